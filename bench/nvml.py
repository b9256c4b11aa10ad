"""GPU memory as the driver sees it, sampled every 10 ms from a process of its own.

A sampler inside the measured process would stall with it and could not see what its allocator
hides; this one is started before the measured process touches the device:

    sampler = Sampler.start(uuid, worker_pid, until=pipe)  # returns with the idle baseline taken
    ...                                                    # the worker runs
    record["cuda"].update(sampler.stop())

Nothing here raises because a figure cannot be had: the figure is None and `nvml_source` says why.
`python -m bench.nvml` is the sampling process; it ends when its standard input closes, so it
does not outlive whoever started it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from bench.nvml_reader import Reader

PERIOD = 0.01


class Sampler:
    """The parent's handle on a sampling process; made by `Sampler.start`."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        #: what the sampling process printed, line by line; None once it has closed its output
        self._messages: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._result: dict[str, Any] | None = None
        #: bytes used on the device when sampling began; None where that is unknown
        self.baseline: int | None = None

    @classmethod
    def start(
        cls,
        uuid: str | None,
        pid: int,
        *,
        until: int | None = None,
        period: float = PERIOD,
        timeout: float = 30.0,
    ) -> Sampler:
        """Start sampling the device `uuid` for process `pid`; returns with the baseline taken.

        `uuid` is the device's own ("GPU-…" or "MIG-…", the prefix may be left out), or None
        where there is no CUDA device. NVML's indices are of no use: it ignores
        CUDA_VISIBLE_DEVICES. The delta `stop` returns is relative to the device's use now, so
        call this before `pid` creates a CUDA context. `until`: the read end of a pipe; a byte in
        it ends the sampling, so that what `pid` does afterwards does not count. `period` and
        `timeout` (for the baseline) are in seconds.
        """
        sampler = cls()
        if uuid is None:
            sampler._result = _unavailable("no CUDA device in this run")
            return sampler
        sampler._launch(uuid, pid, until, period)
        first = sampler._next("took no baseline", timeout)
        if first is not None and "baseline" in first:
            sampler.baseline = first["baseline"]
        elif first is not None:
            sampler._finish(first)
        return sampler

    @property
    def pid(self) -> int | None:
        """Process id of the sampling process; None where none was started."""
        return self._process.pid if self._process else None

    def stop(self, *, timeout: float = 10.0) -> dict[str, Any]:
        """End the sampling and return its figures; the same again when called twice.

        - `nvml_device_delta_bytes`: the most the device used, minus the idle baseline
        - `nvml_process_bytes`: the most the driver attributed to the process
        - `samples`: how many times both were read
        - `nvml_source`: where these come from, and for each None the reason

        The first includes the CUDA context and whatever else allocated on the device meanwhile.
        """
        if self._result is None:
            assert self._process is not None
            assert self._process.stdin is not None
            self._process.stdin.close()
            if (last := self._next("did not answer", timeout)) is not None:
                self._finish(last)
        assert self._result is not None
        return dict(self._result)

    def _launch(self, uuid: str, pid: int, until: int | None, period: float) -> None:
        # -P and an explicit path: the working directory may hold another package named bench.
        paths = [os.environ.get("PYTHONPATH", ""), str(Path(__file__).resolve().parents[1])]
        command = [sys.executable, "-P", "-m", "bench.nvml"]
        command += ["--uuid", uuid, "--pid", str(pid), "--period", repr(period)]
        command += [] if until is None else ["--until", str(until)]
        # A file rather than a pipe, which would have to be drained; closed in `_close`.
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            pass_fds=() if until is None else (until,),
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        )
        # A thread, because reading a pipe with a timeout is not portable otherwise.
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                try:
                    self._messages.put(json.loads(line))
                except json.JSONDecodeError:
                    break  # killed in the middle of a line: as good as no line
        self._messages.put(None)

    def _next(self, failure: str, timeout: float) -> dict[str, Any] | None:
        """What the sampling process says next; None where nothing, which ends the sampling."""
        try:
            message = self._messages.get(timeout=timeout)
        except queue.Empty:
            self._give_up(f"the sampler {failure} within {timeout:g} s")
            return None
        if message is None:
            self._give_up()
        return message

    def _finish(self, result: dict[str, Any]) -> None:
        self._result = result
        self._close()

    def _give_up(self, reason: str | None = None) -> None:
        """Record that there is no answer; without a `reason`, because the sampler ended."""
        assert self._process is not None
        if reason is None:
            code = self._process.wait()
            self._errors.seek(0)
            lines = self._errors.read().split("\n")
            last = next((line for line in reversed(lines) if line.strip()), "no message")
            reason = f"the sampler ended with code {code} before it answered ({last.strip()})"
        self._finish(_unavailable(reason))

    def _close(self) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()


def _unavailable(reason: str) -> dict[str, Any]:
    return {
        "nvml_device_delta_bytes": None,
        "nvml_process_bytes": None,
        "nvml_source": f"null: {reason}",
        "samples": None,
    }


def _sample(
    uuid: str, pid: int, period: float, stop: threading.Event, marked: threading.Event
) -> dict[str, Any]:
    """Sample until `stop` is set or `pid` ends; prints a line once the baseline is taken.

    `marked`: set before `stop` where the process itself said that it has been measured.
    """
    try:
        import pynvml
    except ImportError as error:
        return _unavailable(f"pynvml (package nvidia-ml-py) cannot be imported: {error}")
    import psutil

    try:
        pynvml.nvmlInit()
    except (pynvml.NVMLError, OSError) as error:
        return _unavailable(f"NVML cannot be initialised: {error}")
    try:
        reader = Reader(pynvml, uuid, pid)
        baseline, present = reader.used(), reader.processes()
        print(json.dumps({"baseline": baseline}), flush=True)
        try:
            target: psutil.Process | None = psutil.Process(pid)
        except psutil.NoSuchProcess:
            target = None
        peak, samples = baseline, 0
        due = time.monotonic()
        while True:
            # Asked before reading: the last reading is then at or after the stop.
            stopped, alive = stop.is_set(), _is_alive(target)
            peak = max(peak, reader.used())
            reader.processes()
            samples += 1
            if stopped or not alive:
                break
            # A late sample shifts the following ones; it is not made up for by a burst.
            due = max(due + period, time.monotonic())
            stop.wait(due - time.monotonic())
    except LookupError as error:
        return _unavailable(str(error))
    except pynvml.NVMLError as error:
        # A peak up to here would be a lower bound that reads like a measurement.
        return _unavailable(f"NVML failed while sampling: {error}")
    finally:
        pynvml.nvmlShutdown()

    notes = [
        f"{reader.call} on {reader.uuid} every {period * 1e3:g} ms, "
        f"minus an idle baseline of {baseline} bytes"
    ]
    if pid in present:
        notes.append(f"process {pid} was on the device before the baseline, which includes it")
    if present - {pid}:
        notes.append(f"{len(present - {pid})} other processes on the device at the baseline")
    if marked.is_set():
        notes.append("up to the end of the step whose memory is measured")
    elif not alive:
        notes.append(f"process {pid} ended before the sampler was stopped")
    if reader.process_peak is None:
        notes.append(f"per process null: {reader.process_reason}")
    else:
        notes.append("per process from nvmlDeviceGetComputeRunningProcesses")
    return {
        "nvml_device_delta_bytes": peak - baseline,
        "nvml_process_bytes": reader.process_peak,
        "nvml_source": "; ".join(notes),
        "samples": samples,
    }


def _is_alive(process: Any) -> bool:
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process) and process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def main() -> int:
    """The sampling process: prints {"baseline": bytes}, and the figures at the end.

    With --self-check, samples a known allocation and says whether the sampler saw it.
    """
    parser = argparse.ArgumentParser(prog="python -m bench.nvml", description=main.__doc__)
    parser.add_argument("--self-check", action="store_true", help="exit code 1 where it fails")
    parser.add_argument("--uuid", help="UUID of the device")
    parser.add_argument("--pid", type=int, help="process to attribute memory to")
    parser.add_argument("--period", type=float, default=PERIOD, help="seconds between samples")
    parser.add_argument("--until", type=int, help="file descriptor; a byte from it is the end")
    arguments = parser.parse_args()
    if arguments.self_check:
        from bench.nvml_check import self_check

        checked = self_check()
        print(json.dumps(checked))
        return 0 if checked["ok"] else 1
    if arguments.uuid is None or arguments.pid is None:
        parser.error("--uuid and --pid are required, or --self-check")
    stop, marked = threading.Event(), threading.Event()

    def wait_for_end_of_input() -> None:
        # Unbuffered: a thread blocked inside a buffered reader breaks the interpreter's exit.
        while os.read(0, 4096):
            pass
        stop.set()

    def wait_for_mark() -> None:
        if os.read(arguments.until, 1):
            marked.set()
            stop.set()

    threading.Thread(target=wait_for_end_of_input, daemon=True).start()
    if arguments.until is not None:
        threading.Thread(target=wait_for_mark, daemon=True).start()
    found = _sample(arguments.uuid, arguments.pid, arguments.period, stop, marked)
    print(json.dumps(found), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
