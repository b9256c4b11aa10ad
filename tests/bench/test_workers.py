"""Worker processes started ahead, the build phase before a sweep, and the end of its time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from bench import build_ahead as building
from bench import runner, workers
from bench.environment import ROOT
from bench.jobs import Order
from bench.probes.build import Build
from bench.records import read_record
from bench.runner import run_cases
from bench.workers import Pool, Worker
from tests.bench import test_runner
from tests.bench.helpers import record_path
from tests.bench.test_runner import (
    DIRECT,
    FIXED,
    OK,
    order,
    orphans,
    settings,
    wait_for,
    worker_of,
)

LONG = test_runner.TestInterruption.LONG
COMPILED = replace(OK, compile=True)


def running(logs: Path) -> int:
    """Worker processes whose log is in `logs`."""
    return len(orphans(logs))


@pytest.fixture
def watched(monkeypatch) -> list[tuple[int, int]]:
    """Of each order: the process that got it, and how many workers there were then."""
    seen: list[tuple[int, int]] = []
    original = workers.wait

    def wait(process, *arguments):
        seen.append((process.pid, len(psutil.Process().children())))
        return original(process, *arguments)

    monkeypatch.setattr(workers, "wait", wait)
    return seen


@pytest.fixture
def many_cores(monkeypatch) -> None:
    monkeypatch.setattr(workers, "usable_cores", lambda: 16)


@pytest.mark.slow
class TestSpareWorkers:
    def test_each_is_used_once_and_as_many_wait_as_are_needed(self, tmp_path, watched, many_cores):
        cases = [OK, DIRECT, replace(OK, n_steps=4)]
        assert run_cases(cases, 1, settings(tmp_path, spare=2)) == {"ok": 3}
        assert len({pid for pid, _ in watched}) == 3
        assert [count for _, count in watched] == [3, 2, 1]
        assert [read_record(record_path(tmp_path, case, 0))["status"] for case in cases] == [
            "ok"
        ] * 3
        assert list((tmp_path / "logs").iterdir()) == []
        assert running(tmp_path) == 0

    def test_on_few_cores_none_imports_beside_a_measurement(self, tmp_path, watched, monkeypatch):
        monkeypatch.setattr(workers, "usable_cores", lambda: 4)
        assert run_cases([OK, DIRECT], 1, settings(tmp_path, spare=2)) == {"ok": 2}
        assert [count for _, count in watched] == [1, 1]

    def test_one_imports_beside_a_job_that_is_not_timed(self, tmp_path, watched, monkeypatch):
        """On few cores too: there are no seconds to disturb."""
        monkeypatch.setattr(workers, "usable_cores", lambda: 2)
        assert run_cases([FIXED, DIRECT, OK], 1, settings(tmp_path)) == {"ok": 3}
        assert [count for _, count in watched] == [2, 1, 1]

    def test_sweeps_on_the_cpu_have_none_unless_asked(self, tmp_path, watched, many_cores):
        assert run_cases([OK, DIRECT], 1, settings(tmp_path)) == {"ok": 2}
        assert [count for _, count in watched] == [1, 1]

    def test_one_that_has_died_is_not_given_a_case(self, tmp_path, many_cores):
        pool = Pool(tmp_path, 1, spare=2, timed=[True] * 4)
        try:
            pool.fill()
            first, second = pool._ready
            first.process.kill()
            first.process.wait()
            with_order = pool.take()
            assert with_order is second
            with_order.close()
            assert len(pool._ready) == 2
        finally:
            pool.close()
        assert running(tmp_path) == 0
        assert list(tmp_path.iterdir()) == []

    def test_what_a_killed_sweep_left_of_them_is_removed(self, tmp_path):
        """And not what a sweep has that shares the folder."""
        ended = subprocess.Popen(["true"])
        ended.wait()
        (tmp_path / f".waiting-{ended.pid}-x.log").write_text("")
        other = tmp_path / f".waiting-{os.getppid()}-x.log"
        other.write_text("")
        Pool(tmp_path, 1, spare=2, timed=[True])
        assert list(tmp_path.iterdir()) == [other]

    def test_one_that_is_not_needed_ends_by_itself(self, tmp_path):
        """Where no signal tells it that the runner is gone, the end of its input does."""
        worker = Worker(tmp_path, 1)
        try:
            worker.process.communicate("", timeout=60)
            assert worker.process.returncode == 0
            assert worker.log.read_text() == ""
        finally:
            worker.close()

    def test_none_touches_a_gpu_before_its_order(self):
        """Nothing that a waiting worker has imported asks CUDA for anything."""
        code = (
            "import torch\n"
            "touched = []\n"
            "def note(name):\n"
            "    return lambda *a, **k: touched.append(name) or 0\n"
            "for name in ('is_available', 'device_count', 'init', '_lazy_init', 'mem_get_info',\n"
            "             'current_device', 'get_device_properties', 'synchronize'):\n"
            "    setattr(torch.cuda, name, note(name))\n"
            "from bench import build, measure, training, worker\n"
            "print(touched)\n"
        )
        found = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100
        )
        assert found.stdout == "[]\n", found.stderr

    #: asks for SIGINT: a shell lets what it starts in the background ignore it
    SWEEP = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from bench import workers; workers.usable_cores = lambda: 16; "
        "from tests.bench.test_workers import *; "
        "run_cases([LONG, OK, DIRECT], 1, settings(Path(sys.argv[1]), spare=2))"
    )

    @pytest.mark.parametrize(
        "kind", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda kind: kind.name
    )
    def test_they_end_with_the_sweep(self, kind, tmp_path):
        sweep = subprocess.Popen(
            [sys.executable, "-c", self.SWEEP, str(tmp_path)],
            cwd=ROOT,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        try:
            there = wait_for(lambda: worker_of(sweep, LONG, tmp_path))
            assert len(there) == 3
            sweep.send_signal(kind)
            sweep.wait(20)
            _, alive = psutil.wait_procs(there, timeout=5)
            assert not alive
        finally:
            if sweep.poll() is None:
                sweep.kill()
                sweep.wait()
            for orphan in orphans(tmp_path):
                orphan.kill()
        assert list((tmp_path / "records").iterdir()) == []


class TestBuildPhase:
    def jobs(self, out: Path, *cases, **changes) -> list[Order]:
        return [order(case, settings(out, **changes), seed) for case in cases for seed in (0, 1)]

    def test_a_worker_that_builds_writes_no_record(self, tmp_path):
        """Here of a case without a compiler, which takes the same way."""
        worker = Worker(tmp_path, 1)
        try:
            message = order(OK, settings(tmp_path)).message(None, Build())
            ended = worker.run(message, tmp_path / "log", 60)
        finally:
            worker.close()
        assert (ended.outcome, ended.code) == ("exited", 0)
        assert [path.name for path in tmp_path.iterdir()] == ["log"]

    def test_compiled_cases_only_each_once_in_their_order_and_as_many_as_allowed(
        self, tmp_path, monkeypatch
    ):
        alive, orders = [], []

        class Quick(Worker):
            def send(self, order):
                alive.append(running(tmp_path))
                job = order["job"]
                orders.append((job.case.n_steps, job.seed, job.probe.name))
                self.process.kill()
                self.process.wait()
                self.process.returncode = 0

        monkeypatch.setattr(building, "Worker", Quick)
        compiled = [replace(COMPILED, n_steps=n) for n in (3, 4, 5)]
        building.build_ahead(self.jobs(tmp_path, FIXED, *compiled), tmp_path, 2)
        assert orders == [(n, 0, "build") for n in (3, 4, 5)]
        assert max(alive) <= 2
        assert list(tmp_path.iterdir()) == []

    def test_what_cannot_be_built_is_one_line(self, tmp_path, capsys):
        """A CUDA case without a device: the worker that measures it will say so in a record."""
        case = replace(COMPILED, device="cuda")
        building.build_ahead(self.jobs(tmp_path, case), tmp_path, 1)
        err = [line for line in capsys.readouterr().err.splitlines() if "not built" in line]
        assert len(err) == 1
        assert case.id in err[0]
        assert "exit code 1: " in err[0]
        assert list(tmp_path.iterdir()) == []

    def test_half_of_a_cases_timeout_and_no_process_left(self, tmp_path, capsys):
        building.build_ahead(self.jobs(tmp_path, COMPILED, timeout=0.1), tmp_path, 1)
        assert f"not built ahead: {COMPILED.id}: timeout" in capsys.readouterr().err
        assert running(tmp_path) == 0

    def test_no_longer_than_its_share_of_the_limit(self, tmp_path, capsys):
        end = time.monotonic() + 0.2
        building.build_ahead(self.jobs(tmp_path, COMPILED), tmp_path, 1, end)
        assert time.monotonic() - end < 2.0
        assert "1 cases not built ahead" in capsys.readouterr().err
        assert running(tmp_path) == 0
        assert list(tmp_path.iterdir()) == []

    def test_the_sweep_passes_its_share_on(self, tmp_path, monkeypatch):
        asked = []
        monkeypatch.setattr(runner, "build_ahead", lambda *arguments: asked.append(arguments))
        began = time.monotonic()
        found = run_cases([FIXED], 1, settings(tmp_path, build_ahead=3, time_limit=1000.0))
        assert found == {"ok": 1}
        ((todo, _, at_once, until),) = asked
        assert ([job.case for job in todo], at_once) == ([FIXED], 3)
        assert until - began == pytest.approx(300.0, abs=20.0)

    @pytest.mark.slow
    def test_the_compilers_cache_holds_the_case_afterwards(self, tmp_path, monkeypatch):
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
        case = replace(COMPILED, tolerance=None, max_iterations=2, n_steps=4)
        counts = run_cases([case], 1, settings(tmp_path, timeout=600.0, build_ahead=1))
        assert counts == {"ok": 1}
        first = read_record(record_path(tmp_path, case, 0))["compile_seconds"]
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "empty"))
        assert run_cases([case], 1, settings(tmp_path / "cold", timeout=600.0)) == {"ok": 1}
        cold = read_record(record_path(tmp_path / "cold", case, 0))["compile_seconds"]
        assert first < cold


class TestTimeout:
    SLEEP = (sys.executable, "-c", "import sys, time; sys.stdin.readline(); time.sleep(1.0)")

    @pytest.mark.parametrize(
        ("waited", "expected"), [(0.0, "timeout after 0.3 s"), (9.0, "exited")]
    )
    def test_waiting_for_a_processor_does_not_count(self, monkeypatch, waited, expected):
        monkeypatch.setattr(workers, "kept_off", lambda pid: waited)
        process = subprocess.Popen(
            self.SLEEP, stdin=subprocess.PIPE, text=True, start_new_session=True
        )
        assert workers.wait(process, "go\n", 0.3) == expected
        assert process.returncode == (0 if expected == "exited" else -signal.SIGKILL)

    @pytest.mark.skipif(sys.platform != "linux", reason="the account of Linux")
    def test_two_busy_processes_on_one_core_wait_for_each_other(self):
        """Half of the time each, as far as the rest of the machine lets them."""
        core = min(os.sched_getaffinity(0))
        program = (
            f"import os, time; os.sched_setaffinity(0, {{{core}}})\n"
            "end = time.monotonic() + 20\nwhile time.monotonic() < end: pass"
        )
        both = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(2)]
        try:
            assert wait_for(lambda: all(workers.kept_off(one.pid) > 0.2 for one in both))
        finally:
            for one in both:
                one.kill()
                one.wait()

    def test_a_process_that_is_gone_has_not_waited(self):
        assert workers.kept_off(2**22 + 1) == 0.0


class TestTimeLimit:
    def test_it_ends_the_case_that_runs_which_has_no_record(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(runner, "_GRACE", 1.0)
        began = time.monotonic()
        assert run_cases([LONG, FIXED], 1, settings(tmp_path, time_limit=0.5)) == {}
        assert time.monotonic() - began < 1.5 + 5.0
        assert "2 cases not measured; continue with --resume" in capsys.readouterr().err
        assert list((tmp_path / "records").iterdir()) == []
        assert list((tmp_path / "logs").iterdir()) == []
        assert running(tmp_path) == 0
        assert run_cases([FIXED], 1, settings(tmp_path, resume=True)) == {"ok": 1}

    def test_a_cases_own_timeout_before_it_is_a_record(self, tmp_path):
        counts = run_cases([DIRECT], 1, settings(tmp_path, timeout=0.05, time_limit=100.0))
        assert counts == {"timeout": 1}

    def test_the_grace_leaves_time_to_end_within_ten_seconds(self):
        assert runner._GRACE <= 8.0


def test_the_sampler_is_checked_once_where_there_is_a_cuda_case(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "_run_one", lambda job, *rest: {"status": "ok"})
    monkeypatch.setattr(runner, "self_check", lambda: {"ok": True, "seen_bytes": 1})
    on_cuda = [replace(FIXED, device="cuda"), replace(DIRECT, device="cuda")]
    run_cases(on_cuda, 1, settings(tmp_path / "cuda", spare=0))
    found = json.loads((tmp_path / "cuda" / "environment.json").read_text())
    assert found["nvml_self_check"] == {"ok": True, "seen_bytes": 1}
    assert found["preset"] == "smoke"
    run_cases([FIXED], 1, settings(tmp_path / "cpu"))
    assert "nvml_self_check" not in json.loads((tmp_path / "cpu" / "environment.json").read_text())


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's mallopt")
@pytest.mark.parametrize("keeps", [True, False])
def test_a_process_keeps_the_memory_it_frees(keeps):
    """64 MiB that were used and freed stay with the process, and would not otherwise."""
    program = (
        "import psutil, sys, torch; from bench.environment import keep_freed_memory\n"
        "assert sys.argv[1] == 'False' or keep_freed_memory() is True\n"
        "resident = lambda: psutil.Process().memory_info().rss\n"
        "before = resident(); block = torch.ones(2**24); del block; print(resident() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(keeps)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert (int(done.stdout) > 60 * 2**20) is keeps
