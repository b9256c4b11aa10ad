"""The process that times one tree's steps: one JSON order per line in, one JSON answer out.

Run by path, never as a module, with PYTHONPATH at the tree to be timed: `jfbcore` and `bench` come
from that tree, this file from the tree that does the comparing. So a base that is older than this
file can be timed too, and both sides are timed by the same code. Nothing of `bench` is imported
but the case and the step, by the names every revision has had.

Orders: {"build": fields of a Case, "warm_up": untimed steps} and {"time": number of steps}.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from typing import IO, Any


def main(tree: str) -> None:
    # What the tree prints must not get between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
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
    _answer(answers, {"ready": True})
    # The end of the input is the end of the parent: nothing to clean up.
    for line in sys.stdin:
        order = json.loads(line)
        if "build" in order:
            step = None
            step, reason = _build(order["build"])
            if step is not None:
                for _ in range(order["warm_up"]):
                    step()
                # What is alive now stays: collecting before a sample costs nothing any more.
                gc.collect()
                gc.freeze()
            _answer(answers, {"reason": reason})
        else:
            _answer(answers, {"seconds": _time(step, order["time"])})


def _build(fields: dict[str, Any]) -> tuple[Any, str | None]:
    """The step of a case, or None and why this tree has no such case."""
    from bench.build import Unsupported
    from bench.case import Case
    from bench.measure import Step

    try:
        return Step(Case(**fields)), None
    except Unsupported as unsupported:
        return None, str(unsupported.reason)
    except (TypeError, ValueError) as error:
        return None, str(error)


def _time(step: Any, repeats: int) -> list[float]:
    """Seconds of each step: wall-clock less the time this thread was ready but not running.

    What a neighbour on the same cores takes is most of the noise and no part of the step; a step
    that sleeps, waits for a device or computes longer is slower by this clock all the same.
    """
    # A collection in one side's sample and not in the other's is noise of a whole step's size.
    gc.collect()
    gc.disable()
    seconds = []
    for _ in range(repeats):
        kept_off, began = _kept_off(), time.perf_counter()
        step()
        ended = time.perf_counter()
        seconds.append(ended - began - (_kept_off() - kept_off))
    gc.enable()
    return seconds


def _open_schedstat() -> int | None:
    """Linux's account of this thread; None where there is none, and wall-clock has to do."""
    try:
        return os.open("/proc/thread-self/schedstat", os.O_RDONLY)
    except OSError:
        return None


_SCHEDSTAT = _open_schedstat()


def _kept_off() -> float:
    """Seconds this thread has been ready to run but was not let: the account's second figure."""
    if _SCHEDSTAT is None:
        return 0.0
    return int(os.pread(_SCHEDSTAT, 200, 0).split()[1]) * 1e-9


def _answer(answers: IO[str], answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


if __name__ == "__main__":
    main(sys.argv[1])
