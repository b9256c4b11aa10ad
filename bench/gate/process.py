"""The parent's side of a timing process: start it, give it orders, say clearly when it dies."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
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
        # -P: without it the folder of child.py would come before the tree.
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_CHILD), str(directory)],
            cwd=directory,
            env=os.environ | {"PYTHONPATH": str(directory)} | one_thread,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self._held.callback(self._end)

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
        assert self._process.stdout is not None
        # One answer per order: nothing is ever left in the reader's own buffer.
        if not select.select([self._process.stdout], [], [], _PATIENCE)[0]:
            raise GateError(f"the {self.name} tree's process hangs while {self._doing}")
        line = self._process.stdout.readline()
        if not line:
            raise self._death()
        return json.loads(line)

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise self._death() from None
        return self.read()

    def _death(self) -> GateError:
        code = self._process.wait()
        self._errors.seek(0)
        last = (self._errors.read().strip().splitlines() or ["no message"])[-1]
        return GateError(
            f"the {self.name} tree's process ended with code {code} while {self._doing}: {last}"
        )

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            # What was still to be written to a process that is gone.
            with contextlib.suppress(OSError):
                if stream is not None:
                    stream.close()
