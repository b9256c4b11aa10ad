"""What the self-test found: rows with their requirements, as a table, JSON and CSV."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.gate.time import Settings, TimeComparison
from bench.records import write_csv, write_json

#: the file that `bench report` shows as a table
FILE = "gate_selftest.json"
COLUMNS = ("injected", "what it is", "gate", "runs", "caught", "asked", "met", "what moved")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One kind of injection over all its runs. `asked` says the requirement in words."""

    name: str
    what: str
    gate: str
    runs: int
    caught: int
    asked: str
    met: bool
    moved: str

    @property
    def cells(self) -> list[Any]:
        return [
            self.name, self.what, self.gate, self.runs, self.caught, self.asked,
            "yes" if self.met else "NO", self.moved,
        ]  # fmt: skip


def at_most(limit: float, found: int, runs: int) -> tuple[str, bool]:
    """The requirement that at most a share `limit` of `runs` raises an alarm."""
    allowed = math.floor(limit * runs + 1e-9)
    return f"at most {allowed}", found <= allowed


def at_least(limit: float, found: int, runs: int) -> tuple[str, bool]:
    """The requirement that at least a share `limit` of `runs` is caught."""
    needed = math.ceil(limit * runs - 1e-9)
    return f"at least {needed}", found >= needed


def text_table(rows: Sequence[Row]) -> str:
    """The rows in columns of their own width, to the left."""
    cells = [list(COLUMNS), *([str(cell) for cell in row.cells] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in cells)


def notes(settings: Settings) -> list[str]:
    """How to read the table."""
    return [
        "Every injection is an edit of a copy of the source. The deterministic gate compares the "
        "copy's records with those of the unedited source and has caught it when it exits 1 and "
        "names every case listed; the time gate compares processes of both copies.",
        f"Time has regressed when the {settings.confidence:.0%} bootstrap interval of the median "
        f"ratio head/base lies above {1 + settings.threshold:g}, and does so again in new "
        "processes. Each comparison has processes of its own and one of the timed cases, in turn.",
    ]


def write_results(
    out: Path,
    rows: Sequence[Row],
    comparisons: Sequence[tuple[str, TimeComparison]],
    settings: Settings,
) -> None:
    """gate_selftest.json with the table and every comparison, and both as CSV, under `out`."""
    details = [_flat(name, one) for name, one in comparisons]
    write_json(
        out / FILE,
        {
            "schema_version": 1,
            "title": "Proof of the regression gate: known regressions, injected",
            "columns": list(COLUMNS),
            "rows": [row.cells for row in rows],
            "notes": notes(settings),
            "met": all(row.met for row in rows),
            "comparisons": details,
        },
    )
    write_csv(out / "gate_selftest.csv", list(COLUMNS), [row.cells for row in rows])
    if details:
        write_csv(
            out / "gate_comparisons.csv", list(details[0]), [list(one.values()) for one in details]
        )


def _flat(name: str, one: TimeComparison) -> dict[str, Any]:
    found: dict[str, Any] = {
        "injected": name,
        "case": one.case,
        "verdict": one.verdict.value,
        "base_seconds": one.base_seconds,
    }
    for label, interval in (("first", one.first), ("rerun", one.rerun)):
        for part in ("ratio", "low", "high", "blocks"):
            found[f"{label}_{part}"] = None if interval is None else getattr(interval, part)
    return found
