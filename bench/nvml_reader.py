"""Readings of one device's memory through NVML."""

from __future__ import annotations

from typing import Any


class Reader:
    """Device and per-process memory of one device, through NVML."""

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
        if self.call.endswith("v1"):
            return self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used
        version = self._nvml.nvmlMemory_v2
        return self._nvml.nvmlDeviceGetMemoryInfo(self._handle, version=version).used

    def processes(self) -> set[int]:
        """Ids of the processes on the device; updates the peak of the one looked for."""
        if not self._ask_for_processes:
            return set()
        try:
            found = self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)
        except self._nvml.NVMLError as error:
            self._ask_for_processes = False
            self.process_reason = f"the driver refused to list processes: {error}"
            return set()
        for process in found:
            if process.pid == self._pid:
                if process.usedGpuMemory is None:
                    self.process_reason = "the driver lists the process without its memory"
                else:
                    self.process_peak = max(self.process_peak or 0, process.usedGpuMemory)
        return {process.pid for process in found}


def _handle(nvml: Any, uuid: str) -> Any:
    bare = not uuid.startswith(("GPU-", "MIG-"))
    for name in ("GPU-" + uuid, "MIG-" + uuid) if bare else (uuid,):
        try:
            return nvml.nvmlDeviceGetHandleByUUID(name)
        except (nvml.NVMLError_NotFound, nvml.NVMLError_InvalidArgument):
            continue
    seen = [
        nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetHandleByIndex(i))
        for i in range(nvml.nvmlDeviceGetCount())
    ]
    raise LookupError(f"NVML knows no device {uuid}; it has {', '.join(seen) or 'none'}")


def device_used(uuid: str) -> tuple[int | None, str | None]:
    """Bytes used on the device `uuid` now; or None and why."""
    try:
        import pynvml
    except ImportError as error:
        return None, f"pynvml (package nvidia-ml-py) cannot be imported: {error}"
    try:
        pynvml.nvmlInit()
        try:
            return Reader(pynvml, uuid, pid=0).used(), None
        finally:
            pynvml.nvmlShutdown()
    except (pynvml.NVMLError, LookupError, OSError) as error:
        return None, f"NVML cannot be read: {error}"
