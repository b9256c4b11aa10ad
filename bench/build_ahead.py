"""The build phase of a sweep: compiled cases are built by several processes at once.

Each runs its case's step once, so that the compiler's caches on disk hold the kernels, and ends.
The process that measures the case later finds them there.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench.environment import usable_cores
from bench.jobs import Order
from bench.probes.build import Build
from bench.workers import Worker

#: share of a sweep's time limit that the build phase may take
SHARE = 0.3
#: share of a case's timeout that building it may take
_TIMEOUT_SHARE = 0.5


def build_ahead(todo: Sequence[Order], logs: Path, at_once: int, until: float = math.inf) -> None:
    """Build the compiled cases of `todo`, `at_once` at a time, until the monotonic time `until`.

    Of a case that cannot be built one line on stderr says so; the process that measures it will
    find out by itself.
    """
    from tqdm import tqdm

    # The seeds of a case share its kernels.
    waiting = list({job.case: job for job in reversed(todo) if job.case.compile}.values())
    if not waiting or at_once < 1:
        return
    cores = max(1, usable_cores() // min(at_once, len(waiting)))
    environment = {"TORCHINDUCTOR_COMPILE_THREADS": str(cores)} | dict(os.environ)
    running: dict[Worker, tuple[Order, float]] = {}
    unbuilt = 0
    try:
        with tqdm(total=len(waiting), desc="building", unit="case", file=sys.stderr) as bar:
            while (waiting or running) and time.monotonic() < until:
                while waiting and len(running) < at_once:
                    job = waiting.pop()
                    worker = Worker(logs, job.threads, environment)
                    running[worker] = job, time.monotonic() + _TIMEOUT_SHARE * job.settings.timeout
                    worker.send(job.message(None, Build()))
                for worker, (job, end) in list(running.items()):
                    if (reason := _ended(worker, end)) is None:
                        continue
                    if reason:
                        bar.write(f"not built ahead: {job.case.id}: {reason}", file=sys.stderr)
                    del running[worker]
                    worker.close()
                    bar.update()
                time.sleep(0.02)
            unbuilt = len(waiting) + len(running)
    finally:
        for worker in running:
            worker.close()
    if unbuilt:
        print(f"build phase: its time is over, {unbuilt} cases not built ahead", file=sys.stderr)


def _ended(worker: Worker, end: float) -> str | None:
    """None while the worker builds, "" once it has, else what went wrong."""
    code = worker.process.poll()
    if code is None:
        return "timeout" if time.monotonic() > end else None
    if code == 0:
        return ""
    lines = worker.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"exit code {code}: {lines[-1] if lines else 'no output'}"
