"""The process that measures one job: reads it from standard input, writes one record.

`python -m bench.worker` is started by `bench.runner`, never by hand. It always writes a record,
whatever happens in the job; what it cannot write (killed, hung) the runner writes for it.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
import time
import traceback
from typing import Any

from bench import device
from bench.case import Case
from bench.environment import fingerprint, keep_freed_memory, machine, variables, versions
from bench.failures import ran_out, words_of
from bench.jobs import STEP, Job
from bench.plugins import without_folders
from bench.probes.probe import NO_HOOKS, Hooks, Probe
from bench.records import explain_nulls, finite, write_json

#: seconds the sampler of device memory has for its last reading, at ten milliseconds each
_LAST_READING = 0.05


def main() -> None:
    _die_with(int(sys.argv[1]))
    keep_freed_memory()
    # Imported before the job arrives, which may be long after, and without touching a GPU: what
    # a waiting worker held there would be in the measurement of another.
    import torch

    import bench.training  # noqa: F401

    line = sys.stdin.readline()
    if not line:
        return  # not needed
    order = pickle.loads(bytes.fromhex(line))
    job: Job = order["job"]
    torch.set_num_threads(order["threads"])
    sys.path += [place for place in order["modules"] if place not in sys.path]
    _limit_memory(order["memory_limit"])
    try:
        record = job.new_record()
    except ValueError as error:
        # The last line of the log goes into the record, where no path of this machine belongs.
        raise SystemExit(without_folders(str(error), vars(job.case).values())) from None
    record["threads"] = torch.get_num_threads()
    record["machine"] = machine(job.case.device)
    record["versions"], record["git"] = versions(), order["git"]
    record["fingerprint"], record["variables"] = fingerprint(), variables()
    hooks = Hooks(
        measured=lambda: _mark(order["mark"]),
        context=lambda: device.context_bytes(order["uuid"], order["idle_bytes"]),
    )
    fill(record, job.case, job.seed, hooks, job.probe)
    if order["path"] is not None:
        write_json(order["path"], record)
    elif record["status"] not in ("ok", "unsupported"):
        raise SystemExit(record["reason"])


def fill(
    record: dict[str, Any], case: Case, seed: int, hooks: Hooks = NO_HOOKS, probe: Probe = STEP
) -> None:
    """Measure `case` into `record`; every outcome becomes a status and a reason."""
    from bench.build import Unsupported

    try:
        probe.measure(record, case, seed, hooks)
        record["status"] = record["status"] or "ok"
    except Unsupported as unsupported:
        record["status"], record["reason"] = "unsupported", unsupported.reason
    except Exception as error:
        if (shortage := ran_out(error)) is not None:
            record["status"], record["reason"] = "out_of_memory", shortage
            if case.device == "cuda" and "cuda" in record:
                device.keep_peaks(record)
        else:
            traceback.print_exc()
            record["status"], record["reason"] = "crashed", words_of(error)
    # What JSON cannot hold becomes null here, so that it gets its reason.
    record.update(finite(record))
    not_measured = f"status {record['status']}" if record["status"] != "ok" else "not measured"
    for package, version in record["versions"].items():
        if version is None:
            record["null_reasons"][f"versions.{package}"] = "not installed"
    explain_nulls(record, not_measured)


def _mark(descriptor: int | None) -> None:
    """Tell the sampler of device memory that its time is over, and let it read a last time."""
    if descriptor is None:
        return
    with contextlib.suppress(BrokenPipeError):  # it gave up before
        os.write(descriptor, b".")
    time.sleep(_LAST_READING)


def _die_with(runner: int) -> None:
    """Ask Linux to kill this process when the one numbered `runner` ends, however it ends."""
    if sys.platform == "linux":
        import ctypes
        import signal

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != runner:  # it ended before we could ask
            raise SystemExit("the runner is gone")


def _limit_memory(limit: int | None) -> None:
    if limit is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    main()
