"""What a CUDA case measures otherwise than a CPU case, and why."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from bench.case import Case

#: inner iterations up to which the trackers and the diagnostics are quick enough on a GPU
MOST_TRACKED = 50


def uncounted_reason(case: Case) -> str | None:
    """Why no tensors are tracked and no gradients compared in this case; None where they are.

    Every operation under a tracker costs the host more than its kernel costs the GPU.
    """
    if case.device != "cuda":
        return None
    same = "exact counts do not depend on the device and are taken on the CPU"
    if not case.timed:
        return f"a memory-only CUDA case: {same}"
    if case.compile:
        return f"a compiled CUDA case: {same}, not compiled"
    if case.inner_problem and case.max_iterations > MOST_TRACKED:
        return f"a CUDA case of more than {MOST_TRACKED} inner iterations: {same}"
    return None


def tensors_alone() -> None:
    """Let tensors alone decide what a case takes and whether it fits: call it before the first.

    On Hopper the buffers of matrix products are 32 MiB for each thread that multiplies, more than
    all tensors of a small case, and no part of what the case asks for. Near the device's limit a
    tenth of the memory lies in pieces that are too small, unless segments can grow.
    """
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    os.environ.setdefault("CUBLASLT_WORKSPACE_SIZE", "128")


def create_context() -> None:
    """Create the CUDA context of this process and allocate nothing."""
    import torch

    torch.cuda.mem_get_info()


def context_bytes(uuid: str | None, idle_bytes: int | None) -> tuple[int | None, str | None]:
    """What the CUDA context takes: the device's use now minus `idle_bytes`; or None and why.

    By the same counter as the idle baseline: that of torch.cuda.mem_get_info leaves out what the
    driver reserves. Read in the worker itself, so that nothing can be allocated beside it.
    """
    create_context()
    if uuid is None or idle_bytes is None:
        return None, "NVML gave no idle baseline"
    from bench.nvml import device_used

    used, reason = device_used(uuid)
    return (None, reason) if used is None else (used - idle_bytes, None)


def keep_peaks(record: dict[str, Any]) -> None:
    """Put what the allocator reached into the record of a case whose memory ran out."""
    import torch

    if not torch.cuda.is_initialized() or record["cuda"]["max_allocated_bytes"] is not None:
        return
    with contextlib.suppress(RuntimeError):  # the device is beyond answering
        record["cuda"] |= {
            "max_allocated_bytes": torch.cuda.max_memory_allocated(),
            "max_reserved_bytes": torch.cuda.max_memory_reserved(),
        }
