"""The process that times one tree's steps: one order in, one answer out.

Run by path, never as a module, with PYTHONPATH at the tree to be timed: `jfbcore` and `bench` come
from that tree, this file from the tree that does the comparing. So a base that is older than this
file can be timed too, and both sides are timed by the same code. Nothing of `bench` is imported
but the case and the step, by the names every revision has had.

Orders: {"build": fields of a Case, "defaults": those of them at their default, "warm_up": untimed
steps} and {}, one timed step.
"""

from __future__ import annotations

import dataclasses
import gc
import math
import os
import sys
import time
from multiprocessing.connection import Connection
from typing import Any


def main(tree: str, pipe: Connection) -> None:
    import torch

    import bench

    # Everything is imported before the first order: two trees import at once, on two cores.
    import bench.measure

    found = os.path.realpath(os.path.dirname(os.path.dirname(bench.__file__)))
    if found != os.path.realpath(tree):
        raise SystemExit(f"bench was imported from {found}, not from {tree}")
    # One thread: quieter than several, and a slower step shows in it just the same.
    torch.set_num_threads(1)
    step: Any = None
    pipe.send({"ready": True})
    while True:
        try:
            order = pipe.recv()
        except EOFError:
            # The end of the parent: nothing to clean up.
            return
        if "build" in order:
            step = None
            step, reason = _build(order["build"], order["defaults"], order["warm_up"])
            # What is alive now stays: collecting before a sample costs nothing any more.
            gc.collect()
            gc.freeze()
            pipe.send({"reason": reason})
        else:
            pipe.send({"seconds": _time(step)})


def _build(values: dict[str, Any], defaults: list[str], warm_up: int) -> tuple[Any, str | None]:
    """The step of a case, warm; or None and why this tree has no such case.

    A field that this tree's Case does not know yet may be left out where it is at its default.
    """
    from bench.build import Unsupported
    from bench.case import Case
    from bench.measure import Step

    known = {field.name for field in dataclasses.fields(Case)}
    values = {name: v for name, v in values.items() if name in known or name not in defaults}
    try:
        step = Step(Case(**values))
        for _ in range(warm_up):
            cost = step()
            if not math.isfinite(cost):
                # An inner iteration ends at what is not finite: that would pass for fast.
                return None, f"the cost of a step is {cost}"
    except Exception as error:
        if isinstance(error, Unsupported):
            return None, str(error.reason)
        known_words = isinstance(error, TypeError | ValueError)
        return None, str(error) if known_words else f"{type(error).__name__}: {error}"
    return step, None


def _time(step: Any) -> float:
    """Seconds of a step: wall-clock less the time this thread was ready but not running.

    What a neighbour on the same cores takes is most of the noise and no part of the step; a step
    that sleeps, waits for a device or computes longer is slower by this clock all the same.
    """
    # A collection in one side's sample and not in the other's is noise of a whole step's size.
    gc.collect()
    gc.disable()
    # Dropping the last graph is no part of a step.
    step.clear()
    # What is subtracted lies within the window: it cannot be more than that.
    began, kept_off = time.perf_counter(), _kept_off()
    step()
    kept_off, ended = _kept_off() - kept_off, time.perf_counter()
    gc.enable()
    return ended - began - kept_off


#: Linux's account of this thread; where there is none, wall-clock has to do
try:
    _SCHEDSTAT: int | None = os.open("/proc/thread-self/schedstat", os.O_RDONLY)
except OSError:
    _SCHEDSTAT = None


def _kept_off() -> float:
    """Seconds this thread has been ready to run but was not let: the account's second figure."""
    return 0.0 if _SCHEDSTAT is None else int(os.pread(_SCHEDSTAT, 200, 0).split()[1]) * 1e-9


if __name__ == "__main__":
    main(sys.argv[1], Connection(int(sys.argv[2])))
