"""GPU memory as the driver sees it, sampled every 10 ms from a process of its own.

A sampler inside the measured process would stall with it and could not see what its allocator
hides; this one is started before the measured process touches the device:

    sampler = Sampler(uuid, worker_pid, until=pipe)  # returns with the idle baseline taken
    ...                                              # the worker runs
    record["cuda"].update(sampler.stop())

Nothing here raises because a figure cannot be had: the figure is None and `nvml_source` says why.
The sampling process does not outlive whoever started it.

    python -m bench.nvml --self-check
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from typing import Any

PERIOD = 0.01
_FIGURES = ("nvml_device_delta_bytes", "nvml_process_bytes", "samples")


class Sampler:
    """A process that samples the device `uuid` for the process `pid`.

    Made before `pid` creates a CUDA context: when the constructor returns, the idle baseline is
    taken, which all device figures are relative to. `uuid` is the device's own ("GPU-…" or
    "MIG-…", the prefix may be left out), or None where there is no CUDA device. NVML's indices are
    of no use: it ignores CUDA_VISIBLE_DEVICES. `until`: a byte from it ends the sampling, so that
    what `pid` does afterwards does not count. `period` and `timeout` (for the baseline) in seconds.
    """

    def __init__(
        self,
        uuid: str | None,
        pid: int,
        *,
        until: Connection | None = None,
        period: float = PERIOD,
        timeout: float = 30.0,
    ) -> None:
        #: bytes used on the device when sampling began; None where that is unknown
        self.baseline: int | None = None
        #: process id of the sampling process; None where none was started
        self.pid: int | None = None
        self._result: dict[str, Any] | None = None
        if uuid is None:
            self._result = _unavailable("no CUDA device in this run")
            return
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        arguments = (theirs, uuid, pid, until, period)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        self.pid = self._process.pid
        first = self._next("took no baseline", timeout)
        if "baseline" in first:
            self.baseline = first["baseline"]
        else:
            self._finish(first)

    def stop(self, *, timeout: float = 10.0) -> dict[str, Any]:
        """End the sampling and return its figures; the same again when called twice.

        - `nvml_device_delta_bytes`: the most the device used, minus the idle baseline
        - `nvml_process_bytes`: the most the driver attributed to the process
        - `samples`: how many times both were read
        - `nvml_source`: where these come from, and for each None the reason

        The first includes the CUDA context and whatever else allocated on the device meanwhile.
        """
        if self._result is None:
            with contextlib.suppress(BrokenPipeError):
                self._pipe.send("stop")
            self._finish(self._next("did not answer", timeout))
        assert self._result is not None
        return dict(self._result)

    def _next(self, failure: str, timeout: float) -> dict[str, Any]:
        """What the sampling process says next, or why it says nothing."""
        if not self._pipe.poll(timeout):
            return _unavailable(f"the sampler {failure} within {timeout:g} s")
        try:
            return self._pipe.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            return _unavailable(
                f"the sampler ended with code {self._process.exitcode} before it answered"
            )

    def _finish(self, result: dict[str, Any]) -> None:
        self._result = result
        self._pipe.close()
        self._process.join(1.0)
        self._process.kill()
        self._process.join()


def _unavailable(reason: str) -> dict[str, Any]:
    return dict.fromkeys(_FIGURES) | {"nvml_source": f"null: {reason}"}


class _Device:
    """Readings of one device's memory through NVML, and of one process on it."""

    def __init__(self, nvml: Any, uuid: str, pid: int) -> None:
        self._nvml, self._pid = nvml, pid
        self._handle = _handle(nvml, uuid)
        self.uuid: str = nvml.nvmlDeviceGetUUID(self._handle)
        self.call = "nvmlDeviceGetMemoryInfo v2"
        try:
            self.used()
        except nvml.NVMLError_FunctionNotFound:
            # An old driver. Version 1 counts memory the driver reserves as used; the difference
            # to the baseline does not change.
            self.call = "nvmlDeviceGetMemoryInfo v1"
        self.process_peak: int | None = None
        self.process_reason = "the driver did not list the process (as in most containers)"
        self._ask_for_processes = True

    def used(self) -> int:
        """Bytes used on the device now."""
        version = {} if self.call.endswith("v1") else {"version": self._nvml.nvmlMemory_v2}
        return self._nvml.nvmlDeviceGetMemoryInfo(self._handle, **version).used

    def processes(self) -> set[int]:
        """Ids of the processes on the device; updates the peak of the one looked for."""
        if not self._ask_for_processes:
            return set()
        try:
            listed = self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)
        except self._nvml.NVMLError as error:
            self._ask_for_processes = False
            self.process_reason = f"the driver refused to list processes: {error}"
            return set()
        for process in listed:
            if process.pid == self._pid and process.usedGpuMemory is None:
                self.process_reason = "the driver lists the process without its memory"
            elif process.pid == self._pid:
                self.process_peak = max(self.process_peak or 0, process.usedGpuMemory)
        return {process.pid for process in listed}


def _handle(nvml: Any, uuid: str) -> Any:
    bare = not uuid.startswith(("GPU-", "MIG-"))
    for name in ("GPU-" + uuid, "MIG-" + uuid) if bare else (uuid,):
        with contextlib.suppress(nvml.NVMLError_NotFound, nvml.NVMLError_InvalidArgument):
            return nvml.nvmlDeviceGetHandleByUUID(name)
    seen = [
        nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetHandleByIndex(i))
        for i in range(nvml.nvmlDeviceGetCount())
    ]
    raise LookupError(f"NVML knows no device {uuid}; it has {', '.join(seen) or 'none'}")


@contextlib.contextmanager
def _opened(uuid: str, pid: int = 0) -> Iterator[_Device]:
    """The device while NVML is initialised; LookupError, which says why, where it fails."""
    try:
        import pynvml
    except ImportError as error:
        raise LookupError(f"pynvml (package nvidia-ml-py) cannot be imported: {error}") from error
    try:
        pynvml.nvmlInit()
    except (pynvml.NVMLError, OSError) as error:
        raise LookupError(f"NVML cannot be initialised: {error}") from error
    try:
        yield _Device(pynvml, uuid, pid)
    except pynvml.NVMLError as error:
        # A peak up to here would be a lower bound that reads like a measurement.
        raise LookupError(f"NVML failed while sampling: {error}") from error
    finally:
        pynvml.nvmlShutdown()


def device_used(uuid: str) -> tuple[int | None, str | None]:
    """Bytes used on the device `uuid` now; or None and why."""
    try:
        with _opened(uuid) as device:
            return device.used(), None
    except LookupError as error:
        return None, str(error)


def _serve(pipe: Connection, uuid: str, pid: int, until: Connection | None, period: float) -> None:
    """The sampling process: sends {"baseline": bytes}, and the figures at the end."""
    try:
        with _opened(uuid, pid) as device:
            answer = _sample(device, pipe, pid, until, period)
    except LookupError as error:
        answer = _unavailable(str(error))
    except Exception as error:
        answer = _unavailable(f"the sampler failed: {type(error).__name__}: {error}")
    with contextlib.suppress(BrokenPipeError):  # nobody asks any more
        pipe.send(answer)


def _sample(
    device: _Device, pipe: Connection, pid: int, until: Connection | None, period: float
) -> dict[str, Any]:
    """Sample until told to stop, by `pipe` or by `until`, or until the process has ended."""
    import psutil

    baseline, present = device.used(), device.processes()
    pipe.send({"baseline": baseline})
    target = psutil.Process(pid) if psutil.pid_exists(pid) else None
    peak, samples, pause, ends = baseline, 0, 0.0, [pipe] if until is None else [pipe, until]
    while True:
        # Asked before reading: the last reading is then at or after the stop.
        told, alive = wait(ends, pause), _is_alive(target)
        peak = max(peak, device.used())
        device.processes()
        samples += 1
        if told or not alive:
            break
        pause = period
    others = len(present - {pid})
    notes = [
        f"{device.call} on {device.uuid} every {period * 1e3:g} ms, "
        f"minus an idle baseline of {baseline} bytes"
    ]
    if pid in present:
        notes.append(f"process {pid} was on the device before the baseline, which includes it")
    if others:
        notes.append(f"{others} other processes on the device at the baseline")
    # Without a byte it is the end of the process that holds the other end.
    if until is not None and until in told and os.read(until.fileno(), 1):
        notes.append("up to the end of the step whose memory is measured")
    elif not alive:
        notes.append(f"process {pid} ended before the sampler was stopped")
    if device.process_peak is None:
        notes.append(f"per process null: {device.process_reason}")
    else:
        notes.append("per process from nvmlDeviceGetComputeRunningProcesses")
    figures = (peak - baseline, device.process_peak, samples)
    return dict(zip(_FIGURES, figures, strict=True)) | {"nvml_source": "; ".join(notes)}


def _is_alive(process: Any) -> bool:
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process) and process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def main() -> int:
    """With --self-check, sample a known allocation and say whether the sampler saw it."""
    from bench.nvml_check import self_check

    parser = argparse.ArgumentParser(prog="python -m bench.nvml", description=main.__doc__)
    parser.add_argument("--self-check", action="store_true", required=True)
    parser.parse_args()
    checked = self_check()
    print(json.dumps(checked))
    return 0 if checked["ok"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
