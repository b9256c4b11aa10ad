"""The NVML sampler against a driver that the test steers, and against a real one where there is.

The fake `pynvml` is a module on the path that the sampler process takes over. Its device memory and
process lists are files that the test rewrites; it counts its own readings, so that the tests wait
for readings and not for times.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch

from bench import nvml, nvml_check, runner, worker
from bench.case import Case
from bench.jobs import Job
from bench.nvml import Sampler
from bench.records import read_record
from tests.bench.helpers import stale_reasons, unexplained_nulls

FIRST, SECOND = "GPU-11111111-aaaa", "GPU-22222222-bbbb"
MIB = 2**20

FAKE = """
import os
from json import loads
from pathlib import Path
from types import SimpleNamespace

HERE = Path(__file__).parent
nvmlMemory_v2 = 0x02000028


class NVMLError(Exception): ...
class NVMLError_NotFound(NVMLError): ...
class NVMLError_InvalidArgument(NVMLError): ...
class NVMLError_FunctionNotFound(NVMLError): ...
class NVMLError_NoPermission(NVMLError): ...


def state():
    return loads((HERE / "state.json").read_text())


def nvmlInit():
    if state()["init_error"]:
        raise NVMLError(state()["init_error"])


def nvmlShutdown(): ...


def nvmlDeviceGetCount():
    return len(state()["used"])


def nvmlDeviceGetHandleByIndex(index):
    return list(state()["used"])[index]


def nvmlDeviceGetHandleByUUID(uuid):
    if uuid not in state()["used"]:
        raise NVMLError_NotFound("Not Found")
    return uuid


def nvmlDeviceGetUUID(handle):
    return handle


def nvmlDeviceGetMemoryInfo(handle, version=None):
    now = state()
    if version is not None and now["old_driver"]:
        raise NVMLError_FunctionNotFound("Function Not Found")
    if now["crash"]:
        os._exit(7)
    if now["hang"]:
        import time
        time.sleep(60)
    if now["device_error"]:
        raise NVMLError(now["device_error"])
    return SimpleNamespace(used=now["used"][handle])


def nvmlDeviceGetComputeRunningProcesses(handle):
    now = state()
    with (HERE / "readings").open("a") as readings:
        readings.write(".")
    if now["processes"] is None:
        raise NVMLError_NoPermission("Insufficient Permissions")
    return [SimpleNamespace(pid=p, usedGpuMemory=used) for p, used in now["processes"]]
"""


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for `condition`; the limit is there to fail a broken test, not to time a working one."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "condition not met in time"
        time.sleep(0.002)


class Driver:
    """The state of the fake driver, written by the test and read by the sampler process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "pynvml.py").write_text(FAKE)
        self._state = {
            "used": {FIRST: 1000, SECOND: 50},
            "processes": [],
            "init_error": None,
            "device_error": None,
            "old_driver": False,
            "crash": False,
            "hang": False,
        }
        self.set()

    def set(self, **changes: object) -> None:
        self._state |= changes
        partial = self._folder / "partial.json"
        partial.write_text(json.dumps(self._state))
        os.replace(partial, self._folder / "state.json")

    def use(self, used: int, uuid: str = FIRST) -> None:
        self.set(used=self._state["used"] | {uuid: used})

    def readings(self) -> int:
        path = self._folder / "readings"
        return path.stat().st_size if path.exists() else 0

    def let_it_read(self) -> None:
        """Wait until a reading has begun and ended since the last change."""
        seen = self.readings()
        until(lambda: self.readings() >= seen + 2)


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    monkeypatch.syspath_prepend(tmp_path)
    return Driver(tmp_path)


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen]:
    """A process that does nothing until it is killed or its input closes."""
    with subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        yield process
        process.kill()


def test_peak_over_the_baseline(driver):
    sampler = Sampler(FIRST, os.getpid())
    for used in (1500, 9000, 2000):
        driver.use(used)
        driver.let_it_read()
    found = sampler.stop()
    assert found["nvml_device_delta_bytes"] == 8000
    assert found["samples"] >= 6
    assert FIRST in found["nvml_source"]
    assert "baseline of 1000 bytes" in found["nvml_source"]


def test_what_follows_the_mark_does_not_count(driver):
    read, write = multiprocessing.Pipe(duplex=False)
    with read, write:
        sampler = Sampler(FIRST, os.getpid(), until=read)
        driver.use(4000)
        driver.let_it_read()
        worker._mark(write.fileno())
        until(lambda: not sampler._process.is_alive())
        driver.use(9000)
        found = sampler.stop()
    assert found["nvml_device_delta_bytes"] == 3000
    assert "up to the end of the step" in found["nvml_source"]


def test_a_process_that_never_marks_is_sampled_to_its_end(driver, sleeper):
    read, write = multiprocessing.Pipe(duplex=False)
    with read, write:
        sampler = Sampler(FIRST, sleeper.pid, until=read)
        driver.use(4000)
        driver.let_it_read()
        sleeper.kill()
        sleeper.wait()
        found = sampler.stop()
    assert found["nvml_device_delta_bytes"] == 3000
    assert "ended before" in found["nvml_source"]


def test_the_baseline_is_taken_before_start_returns(driver):
    sampler = Sampler(FIRST, os.getpid())
    driver.use(5000)
    assert sampler.stop()["nvml_device_delta_bytes"] == 4000  # one reading at the stop at least


def test_process_bytes(driver):
    pid = os.getpid()
    sampler = Sampler(FIRST, pid)
    for mine in (300, 700, 100):
        driver.set(processes=[(pid + 1, 10**6), (pid, mine)])
        driver.let_it_read()
    found = sampler.stop()
    assert found["nvml_process_bytes"] == 700
    assert "nvmlDeviceGetComputeRunningProcesses" in found["nvml_source"]


@pytest.mark.parametrize(
    ("processes", "reason"),
    [
        ([(os.getpid(), None)], "without its memory"),
        ([(os.getpid() + 1, 10**6)], "did not list the process"),
        ([], "did not list the process"),
        (None, "refused to list processes: Insufficient Permissions"),
    ],
)
def test_process_bytes_unknown(driver, processes, reason):
    driver.set(processes=processes)
    sampler = Sampler(FIRST, os.getpid())
    driver.use(1250)
    found = sampler.stop()
    assert found["nvml_process_bytes"] is None
    assert reason in found["nvml_source"]
    assert found["nvml_device_delta_bytes"] == 250


def test_a_device_in_use_at_the_baseline_is_said_to_be(driver):
    driver.set(processes=[(os.getpid(), 10), (os.getpid() + 1, 20), (os.getpid() + 2, 30)])
    source = Sampler(FIRST, os.getpid()).stop()["nvml_source"]
    assert "on the device before the baseline" in source
    assert "2 other processes" in source


@pytest.mark.parametrize("uuid", [SECOND, SECOND.removeprefix("GPU-")])
def test_the_device_is_found_by_uuid(driver, uuid, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")  # NVML ignores it, and so does the sampler
    sampler = Sampler(uuid, os.getpid())
    driver.use(10**6, FIRST)
    driver.use(80, SECOND)
    found = sampler.stop()
    assert found["nvml_device_delta_bytes"] == 30
    assert SECOND in found["nvml_source"]


def assert_unknown(found: dict, reason: str) -> None:
    assert set(found) == {
        "nvml_device_delta_bytes",
        "nvml_process_bytes",
        "nvml_source",
        "samples",
    }
    assert found.pop("nvml_source").startswith("null: ")
    assert set(found.values()) == {None}, reason


def test_unknown_uuid(driver):
    found = Sampler("GPU-33333333", os.getpid()).stop()
    assert f"knows no device GPU-33333333; it has {FIRST}, {SECOND}" in found["nvml_source"]
    assert_unknown(found, "unknown device")


def test_old_driver_without_version_2(driver):
    driver.set(old_driver=True)
    sampler = Sampler(FIRST, os.getpid())
    driver.use(1100)
    found = sampler.stop()
    assert found["nvml_device_delta_bytes"] == 100
    assert "nvmlDeviceGetMemoryInfo v1" in found["nvml_source"]


def test_no_device():
    found = Sampler(None, os.getpid()).stop()
    assert "no CUDA device" in found["nvml_source"]
    assert_unknown(found, "no device")


def test_no_driver(driver):
    driver.set(init_error="Driver Not Loaded")
    found = Sampler(FIRST, os.getpid()).stop()
    assert "cannot be initialised: Driver Not Loaded" in found["nvml_source"]
    assert_unknown(found, "no driver")


def test_no_pynvml(tmp_path, monkeypatch):
    (tmp_path / "pynvml.py").write_text("raise ImportError('no such thing here')")
    monkeypatch.syspath_prepend(tmp_path)
    found = Sampler(FIRST, os.getpid()).stop()
    assert "pynvml" in found["nvml_source"]
    assert "no such thing here" in found["nvml_source"]
    assert_unknown(found, "no pynvml")


def test_driver_fails_on_the_way(driver):
    sampler = Sampler(FIRST, os.getpid())
    driver.use(5000)
    driver.let_it_read()
    driver.set(device_error="GPU is lost")
    found = sampler.stop()
    assert "NVML failed while sampling: GPU is lost" in found["nvml_source"]
    assert_unknown(found, "a truncated peak is not a measurement")


def test_the_sampled_process_dies(driver, sleeper):
    sampler = Sampler(FIRST, sleeper.pid)
    driver.use(4000)
    driver.let_it_read()
    sleeper.kill()  # a zombie from here on, as its parent has not waited for it
    until(lambda: psutil.Process(sampler.pid).status() == psutil.STATUS_ZOMBIE)
    driver.use(10**9)  # someone else's memory
    found = sampler.stop()
    assert found["nvml_device_delta_bytes"] == 3000
    assert f"process {sleeper.pid} ended before" in found["nvml_source"]


def test_the_sampled_process_is_gone_already(driver, sleeper):
    sleeper.kill()
    sleeper.wait()
    found = Sampler(FIRST, sleeper.pid).stop()
    assert found["nvml_device_delta_bytes"] == 0
    assert found["samples"] == 1


def test_the_sampler_is_killed(driver):
    sampler = Sampler(FIRST, os.getpid())
    psutil.Process(sampler.pid).kill()
    found = sampler.stop()
    assert "ended with code -9 before it answered" in found["nvml_source"]
    assert_unknown(found, "killed")


def test_the_sampler_crashes_at_the_start(driver):
    driver.set(crash=True)
    found = Sampler(FIRST, os.getpid()).stop()
    assert "ended with code 7" in found["nvml_source"]
    assert_unknown(found, "crashed")


def test_a_traceback_becomes_the_reason(tmp_path, monkeypatch):
    (tmp_path / "pynvml.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    found = Sampler(FIRST, os.getpid()).stop()
    assert "ZeroDivisionError" in found["nvml_source"]
    assert_unknown(found, "crashed")


def test_the_driver_hangs_at_the_start(driver):
    driver.set(hang=True)
    sampler = Sampler(FIRST, os.getpid(), timeout=0.5)
    found = sampler.stop()
    assert "took no baseline within 0.5 s" in found["nvml_source"]
    assert not psutil.pid_exists(sampler.pid)
    assert_unknown(found, "hung")


def test_the_driver_hangs_on_the_way(driver):
    sampler = Sampler(FIRST, os.getpid())
    driver.set(hang=True)
    found = sampler.stop(timeout=0.2)
    assert "did not answer within 0.2 s" in found["nvml_source"]
    assert not psutil.pid_exists(sampler.pid)
    assert_unknown(found, "hung")


def test_stop_twice_and_nothing_left_behind(driver):
    sampler = Sampler(FIRST, os.getpid())
    first = sampler.stop()
    assert sampler.stop() == first
    assert not psutil.pid_exists(sampler.pid)


def test_does_not_outlive_its_parent(driver, tmp_path):
    code = (
        "import os; from bench.nvml import Sampler;"
        f"s = Sampler({FIRST!r}, {os.getpid()}); print(s.pid, flush=True); os._exit(1)"
    )
    root = Path(__file__).resolve().parents[1]
    orphan = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60
    )

    def gone() -> bool:
        try:  # where nobody reaps orphans, a zombie is as gone as it gets
            return psutil.Process(int(orphan.stdout)).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    until(gone)


def test_samples_every_period(driver):
    """Every 10 ms unless told otherwise; a loaded machine may make it miss some, and nothing may
    make it take more."""
    assert nvml.PERIOD == 0.01
    begun = time.monotonic()
    sampler = Sampler(FIRST, os.getpid(), period=0.05)
    until(lambda: driver.readings() >= 5)
    samples = sampler.stop()["samples"]
    # One at the start and one at the stop beside those that are due.
    assert 5 <= samples <= (time.monotonic() - begun) / 0.05 + 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_sweep_puts_the_drivers_figures_into_the_record(driver, tmp_path, monkeypatch):
    """Here the case itself ends without a device; what was sampled meanwhile is kept."""
    case = Case(problem="quadrotor", n_agents=1, gradient="jfb", batch_size=2, n_steps=3,
                device="cuda")  # fmt: skip
    monkeypatch.setattr(runner, "_gpu_uuid", lambda: FIRST)
    settings = runner.RunSettings(out=tmp_path, preset="smoke", timeout=100.0, threads=1)
    assert runner.run_cases([case], 1, settings) == {"crashed": 1}
    record = read_record(Job(case=case).path(tmp_path))
    assert record["cuda"]["samples"] >= 1
    assert record["cuda"]["nvml_device_delta_bytes"] == 0
    assert "every 10 ms" in record["cuda"]["nvml_source"]
    assert unexplained_nulls(record) == stale_reasons(record) == set()


def test_starts_from_any_directory(driver, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "bench").mkdir(parents=True)
    (elsewhere / "bench" / "nvml.py").write_text("raise SystemExit('the wrong one')")
    monkeypatch.chdir(elsewhere)
    assert Sampler(FIRST, os.getpid()).stop()["samples"] >= 1


#: stands for the process that allocates: it moves the fake driver's figure by so many bytes
ALLOCATOR = """
import json, os, sys, time
from pathlib import Path
state = Path({state!r})
print({uuid!r}, flush=True)
sys.stdin.readline()
now = json.loads(state.read_text())
now["used"][{uuid!r}] += {step}
state.with_suffix(".new").write_text(json.dumps(now))
os.replace(state.with_suffix(".new"), state)
time.sleep(0.2)
print("held", flush=True)
sys.stdin.readline()
"""


def allocator(folder: Path, step: int) -> list[str]:
    code = ALLOCATOR.format(state=str(folder / "state.json"), uuid=FIRST, step=step)
    return [sys.executable, "-c", code]


@pytest.mark.parametrize(
    ("off", "ok"), [(0, True), (3, True), (-4, True), (8, False), (-8, False), (-256, False)]
)
def test_self_check_sees_a_known_allocation_to_4_mib(driver, tmp_path, off, ok):
    found = nvml_check.self_check(allocator(tmp_path, (256 + off) * MIB))
    assert found["expected_bytes"] == 256 * MIB
    assert found["seen_bytes"] == (256 + off) * MIB
    assert found["tolerance_bytes"] == 4 * MIB
    assert found["ok"] is ok
    assert (found["reason"] is None) == ok


def test_self_check_notices_a_sampler_that_misses_the_peak(driver, tmp_path, monkeypatch):
    original = nvml_check.Sampler.stop

    def stop(sampler):
        found = original(sampler)
        return found | {"nvml_device_delta_bytes": found["nvml_device_delta_bytes"] - 8 * MIB}

    monkeypatch.setattr(nvml_check.Sampler, "stop", stop)
    found = nvml_check.self_check(allocator(tmp_path, 256 * MIB))
    assert found["ok"] is False
    assert str(248 * MIB) in found["reason"]


@pytest.mark.parametrize(
    ("code", "timeout", "reason"),
    [
        ("raise SystemExit('no CUDA here')", 60.0, "no CUDA here"),
        (
            f"print({FIRST!r}, flush=True); input(); raise SystemExit('it went away')",
            60.0,
            "went away",
        ),
        ("import time; time.sleep(60)", 1.0, "nothing within 1 s"),
    ],
    ids=["no device", "dies", "hangs"],
)
def test_self_check_without_an_allocation_says_why(driver, code, timeout, reason):
    found = nvml_check.self_check([sys.executable, "-c", code], timeout=timeout)
    assert (found["ok"], found["seen_bytes"]) == (None, None)
    assert reason in found["reason"]


def test_self_check_without_nvml_says_why(driver, tmp_path):
    driver.set(init_error="Driver Not Loaded")
    found = nvml_check.self_check(allocator(tmp_path, 256 * MIB))
    assert found["ok"] is None
    assert "Driver Not Loaded" in found["reason"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_self_check_on_the_command_line():
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "bench.nvml", "--self-check"],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 1
    assert json.loads(done.stdout)["ok"] is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_self_check_on_a_real_driver():
    found = nvml_check.self_check()
    if found["ok"] is None:
        pytest.skip(found["reason"])
    assert found["ok"], found["reason"]


def test_the_baseline_is_known_once_sampling_has_begun(driver):
    driver.use(12345)
    sampler = Sampler(FIRST, os.getpid())
    assert sampler.baseline == 12345
    sampler.stop()
    assert Sampler(None, os.getpid()).baseline is None


WORKER = """
import json, sys
sys.stdin.readline()
import torch
kept = [torch.ones(64 * 2**20, dtype=torch.uint8, device="cuda") for _ in range(8)]
torch.cuda.synchronize()
print(json.dumps([torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()]), flush=True)
sys.stdin.readline()
"""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_real_driver():
    uuid = str(torch.cuda.get_device_properties(0).uuid)
    with subprocess.Popen(
        [sys.executable, "-c", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as worker:
        sampler = Sampler(uuid, worker.pid)
        try:
            worker.stdin.write("go\n")
            worker.stdin.flush()
            allocated, reserved = json.loads(worker.stdout.readline())
            time.sleep(0.1)  # ten sampling periods with everything allocated
        finally:
            found = sampler.stop()
            worker.kill()
    if found["nvml_device_delta_bytes"] is None:
        pytest.skip(found["nvml_source"])
    # What the driver sees also holds the CUDA context; 64 MiB for other processes that gave
    # memory back after the baseline.
    assert 512 * MIB <= allocated <= reserved <= found["nvml_device_delta_bytes"] + 64 * MIB
    if found["nvml_process_bytes"] is not None:
        assert found["nvml_process_bytes"] >= reserved
    assert found["samples"] >= 5
