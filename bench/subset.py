"""Measuring a few cases of the gate preset in another source tree, by that tree's own code."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.gate import GateError, summarise
from bench.records import read_records


def measure_cases(tree: Path, ids: Iterable[str], out: Path | None = None) -> dict[str, Any]:
    """A summary, as the gate compares it, of the cases `ids` measured in `tree`.

    Records are kept under `out` if it is given. A case that the tree's gate preset has not is not
    in the summary. Raises GateError where the tree's `bench run` fails.
    """
    ids = sorted(ids)
    if out is None:
        with tempfile.TemporaryDirectory(prefix="jfbbench-") as folder:
            return measure_cases(tree, ids, Path(folder))
    order = ["run", "--preset", "gate", "--threads", "1", "--out", str(out.resolve())]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "bench", *order, "--filter", f"id={','.join(ids)}"],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
    )
    if done.returncode == 2 and "leaves no case" in done.stderr:
        return summarise([])
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        raise GateError(
            f"measuring {', '.join(ids)} ended with code {done.returncode}: "
            f"{lines[-1] if lines else 'no message'}"
        )
    return summarise(read_records(out))
