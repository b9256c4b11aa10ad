"""Whether the sampler of device memory sees an allocation of known size.

A child process creates a CUDA context, then allocates one block of 256 MiB and holds it for
200 ms. The sampler's baseline is taken between the two, so its delta has to be the block.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from bench.environment import ROOT
from bench.nvml import Sampler

BLOCK = 256 * 2**20
#: what other users of the device and the driver's granularity of 2 MiB may add or take
TOLERANCE = 4 * 2**20
HOLD = 0.2

#: says the device's UUID once there is a context, allocates when told to, and says so
_CHILD = f"""
import sys, time
import torch
torch.cuda.mem_get_info()
print(torch.cuda.get_device_properties(0).uuid, flush=True)
sys.stdin.readline()
block = torch.empty({BLOCK}, dtype=torch.uint8, device="cuda")
torch.cuda.synchronize()
time.sleep({HOLD})
print("held", flush=True)
sys.stdin.readline()
"""


def self_check(child: Sequence[str] | None = None, *, timeout: float = 60.0) -> dict[str, Any]:
    """{"expected_bytes", "seen_bytes", "tolerance_bytes", "seconds", "ok", "reason"}.

    `ok` is False where another number of bytes was seen, None where none could be, with the
    reason. `child`: the command of the process that allocates. `timeout`: seconds for all of it.
    """
    began = time.monotonic()
    seen, reason = _seen(list(child or (sys.executable, "-c", _CHILD)), timeout)
    ok = None if seen is None else abs(seen - BLOCK) <= TOLERANCE
    if ok is False:
        reason = f"the sampler saw {seen} bytes where {BLOCK} were allocated"
    return {
        "expected_bytes": BLOCK,
        "seen_bytes": seen,
        "tolerance_bytes": TOLERANCE,
        "seconds": round(time.monotonic() - began, 3),
        "ok": ok,
        "reason": reason,
    }


def _seen(command: list[str], timeout: float) -> tuple[int | None, str | None]:
    """The sampler's delta over the allocation of `command`, or None and why."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True
    ) as process:
        # Its pipes close when it is killed, which ends every wait below.
        watchdog = threading.Timer(timeout, process.kill)
        watchdog.start()
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            held, figures = False, {}
            if uuid := process.stdout.readline().strip():
                sampler = Sampler(uuid, process.pid)
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.write("allocate\n")
                    process.stdin.flush()
                    held = process.stdout.readline().strip() == "held"
                figures = sampler.stop()
            if not held:
                lines = process.stderr.read().strip().splitlines()
                said = lines[-1] if lines else f"nothing within {timeout:g} s"
                return None, f"the allocating process ended: {said}"
        finally:
            watchdog.cancel()
            process.kill()
    delta = figures["nvml_device_delta_bytes"]
    return delta, figures["nvml_source"] if delta is None else None
