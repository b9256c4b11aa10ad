"""The parent's side of a timing process: start it, give it orders, say clearly when it dies."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from bench.case import Case
from bench.gate.outcome import GateError
from bench.gate.time import OpenPair

_CHILD = Path(__file__).with_name("child.py")
#: seconds one order may take: importing torch on a busy machine, or a step a hundred times slower
_PATIENCE = 120.0


def tree_pairs(base: Path, head: Path) -> OpenPair:
    """Starts one process per tree, both on this machine, and ends both."""

    @contextmanager
    def open_pair() -> Iterator[tuple[TimedTree, TimedTree]]:
        with TimedTree("base", base) as first, TimedTree("head", head) as second:
            # Both import at once.
            first.read()
            second.read()
            yield first, second

    return open_pair


class TimedTree:
    """A process that times steps of the tree in `directory`; `name` is what errors call it.

    A context manager. Its first answer, which `read` waits for, says that it is ready.
    """

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self._doing = "starting"
        self._held = contextlib.ExitStack()
        self._errors = self._held.enter_context(
            tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        )
        one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self._pipe, theirs = (self._held.enter_context(end) for end in Pipe())
        # -P: without it the folder of child.py would come before the tree.
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_CHILD), str(directory), str(theirs.fileno())],
            cwd=directory,
            env=os.environ | {"PYTHONPATH": str(directory)} | one_thread,
            stdin=subprocess.DEVNULL,
            stdout=self._errors,
            stderr=self._errors,
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        self._held.callback(self._process.wait)
        self._held.callback(self._process.kill)

    def __enter__(self) -> TimedTree:
        return self

    def __exit__(self, *error: object) -> None:
        self._held.close()

    def build(self, case: Case, warm_up: int) -> str | None:
        """Prepare `case`; None, or the reason why this tree has no such case."""
        self._doing = f"building {case.id}"
        # All of them: the other tree's defaults may be others, and both have to do the same work.
        values = {field.name: getattr(case, field.name) for field in fields(case)}
        defaults = [field.name for field in fields(case) if values[field.name] == field.default]
        reason = self._ask({"build": values, "defaults": defaults, "warm_up": warm_up})["reason"]
        self._doing = f"timing {case.id}"
        return reason

    def time(self) -> float:
        """Seconds of one step of the case built last, by the child's clock."""
        seconds = self._ask({})["seconds"]
        if seconds <= 0.0:
            raise GateError(f"the {self.name} tree's clock gave {seconds:g} s while {self._doing}")
        return seconds

    def read(self) -> dict[str, Any]:
        """The process's next answer; GateError where it hangs or has died."""
        if not self._pipe.poll(_PATIENCE):
            raise GateError(f"the {self.name} tree's process hangs while {self._doing}")
        try:
            return self._pipe.recv()
        except (EOFError, OSError):
            raise self._death() from None

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        # An order that a dead process does not take is told by the answer that does not come.
        with contextlib.suppress(OSError):
            self._pipe.send(order)
        return self.read()

    def _death(self) -> GateError:
        code = self._process.wait()
        self._errors.seek(0)
        last = (self._errors.read().strip().splitlines() or ["no message"])[-1]
        return GateError(
            f"the {self.name} tree's process ended with code {code} while {self._doing}: {last}"
        )
