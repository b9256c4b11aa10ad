"""The parent's side of a timing process: start it, give it orders, say clearly when it dies."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any

from bench.case import Case
from bench.gate.outcome import GateError

_CHILD = Path(__file__).with_name("child.py")
#: seconds one order may take: importing torch on a busy machine, or a step a hundred times slower
_PATIENCE = 120.0


class TimedTree:
    """A process that times steps of the tree in `directory`; `name` is what errors call it."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self._errors = tempfile.TemporaryFile(  # noqa: SIM115 - closed by `close`
            "w+", encoding="utf-8", errors="replace"
        )
        environment = os.environ | {
            "PYTHONPATH": str(directory),
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
        }
        # -P: without it the folder of child.py would come before the tree.
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_CHILD), str(directory)],
            cwd=directory,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self._doing = "starting"

    def wait_ready(self) -> None:
        """Wait for its imports; apart from the start, so that two trees import at once."""
        self._read()

    def build(self, case: Case, warm_up: int) -> str | None:
        """Prepare `case`; None, or the reason why this tree has no such case."""
        self._doing = f"building {case.id}"
        # All of them: the other tree's defaults may be others, and both have to do the same work.
        values = {field.name: getattr(case, field.name) for field in fields(case)}
        defaults = [field.name for field in fields(case) if values[field.name] == field.default]
        order = {"build": values, "defaults": defaults, "warm_up": warm_up}
        reason = self._ask(order)["reason"]
        self._doing = f"timing {case.id}"
        return reason

    def time(self) -> float:
        """Seconds of one step of the case built last, by the child's clock."""
        seconds = self._ask({"time": 1})["seconds"][0]
        if seconds <= 0.0:
            raise GateError(f"the {self.name} tree's clock gave {seconds:g} s while {self._doing}")
        return seconds

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def __enter__(self) -> TimedTree:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise self._death() from None
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        # One answer per order: nothing is ever left in the reader's own buffer.
        if not select.select([self._process.stdout], [], [], _PATIENCE)[0]:
            raise GateError(f"the {self.name} tree's process hangs while {self._doing}")
        line = self._process.stdout.readline()
        if not line:
            raise self._death()
        return json.loads(line)

    def _death(self) -> GateError:
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        last = lines[-1] if lines else "no message"
        return GateError(
            f"the {self.name} tree's process ended with code {code} while {self._doing}: {last}"
        )
