"""What a claim's row holds, and the words that verdicts and lists of numbers are made of."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

REPRODUCED, PARTLY, NOT = "reproduced", "partly", "not reproduced"
NOT_MEASURED = "not measured"

Tables = dict[str, pd.DataFrame]


@dataclass(frozen=True)
class Claim:
    """One row of the page. `value` is the number the verdict rests on.

    `findings`: where it fails and why, one sentence each. `number` is None for what goes beyond
    the papers' claims.
    """

    number: int | None
    claim: str
    value: str
    verdict: str
    conditions: str
    figure: str | None
    figure_caption: str
    findings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def verdict(holds: Iterable[bool]) -> str:
    """Reproduced where every condition holds, partly where some do."""
    found = [bool(one) for one in holds]
    return REPRODUCED if all(found) else PARTLY if any(found) else NOT


def worst(table: pd.DataFrame, column: str, by: str = "run") -> pd.Series:
    """The largest value per run; not a number where there is none at all."""
    return table.groupby(by, sort=False)[column].max()


def number(value: float, digits: int = 3) -> str:
    """`digits` digits; what is not finite is said in words."""
    if value is None or math.isnan(value):
        return "not finite"
    return f"{value:.{digits}g}"


def listing(series: pd.Series, digits: int = 3) -> str:
    return "; ".join(f"{name}: {number(value, digits)}" for name, value in series.items())


def seeds_of(table: pd.DataFrame) -> str:
    """How many seeds stand behind a table, such as "1 to 3 seeds a run"."""
    counts = table.groupby("run")["seed"].nunique()
    low, high = int(counts.min()), int(counts.max())
    return f"{low} seed{'s' if low > 1 else ''}" if low == high else f"{low} to {high} seeds"
