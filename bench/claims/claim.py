"""What a judge answers, and the words that verdicts and lists of numbers are made of."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from bench.diagnostics import MISSED
from bench.report.style import seeds_in_words

REPRODUCED, PARTLY, NOT = "reproduced", "partly", "not"
NOT_MEASURED = "not measured"

Tables = dict[str, pd.DataFrame]

#: the columns that a problem's size is made of
SIZE = ["problem", "n_agents"]


@dataclass(frozen=True)
class Numbers:
    """What a claim was measured to be, run by run; the cells are written out for readers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Numbers:
        return cls(title, tuple(columns), tuple(tuple(row) for row in rows))

    def __str__(self) -> str:
        frame = pd.DataFrame(self.rows, columns=self.columns)
        return f"{self.title}:\n{frame.to_string(index=False)}"


@dataclass(frozen=True)
class Judgement:
    """What the measurements say of a claim. `value` is the number the verdict rests on, in a line.

    `tables`: the numbers run by run. `findings`: where it fails and why, one sentence each.
    """

    value: str
    verdict: str
    conditions: str
    findings: tuple[str, ...] = ()
    tables: tuple[Numbers, ...] = ()


def verdict(holds: Iterable[bool]) -> str:
    """Reproduced where every condition holds, partly where some do."""
    found = [bool(one) for one in holds]
    return REPRODUCED if all(found) else PARTLY if any(found) else NOT


def worst(table: pd.DataFrame, column: str) -> pd.Series:
    """The largest value per run; not a number where there is none at all."""
    return table.groupby("run", sort=False)[column].max()


def missed_tolerance(table: pd.DataFrame) -> pd.Series:
    """Which measurements' inner solves did not come down to their tolerance, as far as is known."""
    return ~(table["residual_max"] <= MISSED * table["tolerance"])


def lost(table: pd.DataFrame, column: str) -> pd.Series:
    """Which rows have a reason in place of `column`: a run that diverged, a map beyond measure."""
    return table["reason"].notna() & table[column].isna()


def unfinished(table: pd.DataFrame, column: str) -> pd.Series:
    """Which runs have such a row."""
    return lost(table, column).groupby(table["run"], sort=False).any()


def endings(table: pd.DataFrame, column: str) -> list[str]:
    """One sentence on the runs with such rows, the reasons with them; or none."""
    rows = table[lost(table, column)].drop_duplicates(["run", "seed"])
    named = [
        f"{row['run']}, seed {row['seed']}, step {row['step']} ({row['reason'].rstrip('.')})"
        for _, row in rows.iterrows()
    ]
    return [f"Not measured to the end: {'; '.join(named)}."] if named else []


def number(value: float, digits: int = 3) -> str:
    """`digits` digits; what is not finite is said in words."""
    if value is None or not math.isfinite(value):
        return "not finite"
    return f"{value:.{digits}g}"


def spread(values: pd.Series) -> str:
    """The smallest and the largest of what is finite, such as "0.5 to 2"."""
    low, high = number(values.min()), number(values.max())
    return low if low == high else f"{low} to {high}"


def by_variant(table: pd.DataFrame, column: str) -> str:
    """The largest values of each seed's run by map or recipe, such as "scaled 0.1 to 0.67"."""
    largest = table.groupby(["variant", "run", "seed"], sort=False)[column].max()
    groups = largest.groupby(level="variant", sort=False)
    return ", ".join(f"{name} {spread(values)}" for name, values in groups)


def size_name(key: tuple[str, int]) -> str:
    problem, n_agents = key
    return f"{problem} n={n_agents}"


def share(part: int, whole: int) -> str:
    return f"{part} of {whole}" if part else "none"


def seeds_of(table: pd.DataFrame) -> str:
    """How many seeds stand behind a table, such as "1 to 3 seeds a run"."""
    return seeds_in_words(table.groupby("run")["seed"].nunique())
