"""Which panels and series of a scaling figure are worth drawing."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd

from bench.report.series import Panel, Series, series_of
from bench.report.style import FAILURES


@dataclass(frozen=True)
class Metric:
    """A column of the case table with its name and unit."""

    column: str
    name: str
    unit: str


Cell = tuple[Panel, Metric, list[Series]]


def select_cells(
    candidates: Sequence[Panel],
    metrics: Sequence[Metric],
    column: str,
    fixed: Sequence[str],
    loose: Sequence[str],
) -> list[Cell]:
    """What can be drawn: series with two sizes or more, in panels with a series of their own.

    A panel that only repeats rows without the panel's setting (direct policies under every map)
    says nothing new and is left out, unless those rows would then appear nowhere; then it goes
    without the settings they do not have.
    """
    cells: list[Cell] = []
    repeated: list[Cell] = []
    for panel, metric in itertools.product(candidates, metrics):
        drawn = [
            series
            for series in series_of(_drawable(panel.rows, metric), ("solver",))
            if series.rows[column].nunique() > 1
        ]
        # One method alone compares nothing.
        measured = any(series.rows[metric.column].notna().any() for series in drawn)
        if not measured or len({series.gradient for series in drawn}) < 2:
            continue
        own = pd.Series(True, index=panel.rows.index)
        for name in loose:
            value = panel.settings[name]
            same = panel.rows[name].isna() if pd.isna(value) else panel.rows[name] == value
            own &= same
        anchored = any(own[series.rows.index].any() for series in drawn)
        if anchored:
            cells.append((panel, metric, drawn))
        else:
            shown = pd.concat([series.rows for series in drawn])
            absent = {name: None for name in loose if shown[name].isna().all()}
            bare = replace(panel, settings={**panel.settings, **absent})
            repeated.append((bare, metric, drawn))

    def place(cell: Cell) -> tuple[str, ...]:
        return (cell[1].column, *(str(cell[0].settings[name]) for name in fixed))

    places = {place(cell) for cell in cells}
    for cell in repeated:
        if place(cell) not in places:
            places.add(place(cell))
            cells.append(cell)
    return cells


def _drawable(rows: pd.DataFrame, metric: Metric) -> pd.DataFrame:
    measured = rows["status"].eq("ok") & rows[metric.column].notna()
    return rows[measured | rows["status"].isin(list(FAILURES))]
