"""Cutting the case table into panels of equal settings and series of one gradient each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from bench.report.frames import WORKLOAD
from bench.report.style import FAILURES, Look, counted, gradient_rank, look, sized, tint

#: the settings that get a gradient's full colour where several are drawn
_USUAL = {"ascent": "scaled map", "solver": "picard", "recipe": "default"}
_TINTS = (0.0, 0.4, 0.62, 0.75)
#: settings that a title names unless they are the same in all panels
_TOLD = ("ascent", "budget", *WORKLOAD, "environment")


@dataclass(frozen=True)
class Panel:
    """Rows measured under the same settings, and those settings."""

    settings: Mapping[str, Any]
    rows: pd.DataFrame


@dataclass(frozen=True)
class Series:
    """The rows of one gradient with one choice of the settings that vary inside a panel."""

    label: str
    gradient: str
    look: Look
    rows: pd.DataFrame


@dataclass(frozen=True)
class Metric:
    """A column of the case table with its name and unit."""

    column: str
    name: str
    unit: str


#: a panel, what is drawn in it, and its series
Cell = tuple[Panel, Metric, list[Series]]


def panels(frame: pd.DataFrame, strict: Sequence[str], loose: Sequence[str] = ()) -> list[Panel]:
    """`frame` cut by the columns `strict` and `loose`.

    A row whose `loose` column is null has no such setting (a direct policy has no map), so it
    joins every panel that agrees with it on the rest instead of standing alone.
    """
    found: list[Panel] = []
    for key, group in frame.groupby(list(strict), dropna=False, sort=True):
        settings = dict(zip(strict, key, strict=True))
        choices = group[list(loose)].drop_duplicates()
        # what has most settings opens the panels; rows with fewer join those they agree with
        known = choices.notna().sum(axis=1)
        joined = pd.Series(not loose, index=group.index)
        found += [] if loose else [Panel(settings, group)]
        for choice in choices[known == known.max()].to_dict("records") if loose else ():
            agrees = [group[name].isna() | (group[name] == value) | pd.isna(value)
                      for name, value in choice.items()]  # fmt: skip
            fits = pd.Series(np.logical_and.reduce(agrees), index=group.index)
            found.append(Panel(settings | choice, group[fits]))
            joined |= fits
        if not joined.all():
            found.append(Panel(settings | dict.fromkeys(loose), group[~joined]))
    return found


def agreeing(rows: pd.DataFrame, settings: Mapping[str, Any]) -> pd.DataFrame:
    """The rows that have these settings; null agrees with null."""
    for name, value in settings.items():
        same = rows[name].isna() if pd.isna(value) else rows[name].eq(value).fillna(False)
        rows = rows[same.astype(bool)]
    return rows


def series_of(rows: pd.DataFrame, variants: Sequence[str]) -> list[Series]:
    """One series per gradient and per combination of those `variants` that vary for it.

    Where maps are variants, a gradient that has the usual one nowhere is named with its own.
    """
    found = []
    for gradient in sorted(rows["gradient"].unique(), key=gradient_rank):
        own, drawn = rows[rows["gradient"] == gradient], look(gradient)
        maps = set(own["ascent"].dropna()) if "ascent" in variants else set()
        unusual = bool(maps) and _USUAL["ascent"] not in maps
        varying = [
            name
            for name in variants
            if own[name].nunique(dropna=False) > 1 or (name == "ascent" and unusual)
        ]
        if not varying:
            found.append(Series(gradient, gradient, drawn, own))
            continue
        groups = sorted(
            own.groupby(varying, dropna=False, sort=True),
            key=lambda item: [v != _USUAL.get(n) for n, v in zip(varying, item[0], strict=True)],
        )
        # as many settings as tell them apart
        counts = range(1, len(varying) + 1)
        told = next(n for n in counts if len({key[:n] for key, _ in groups}) == len(groups))
        for rank, (key, group) in enumerate(groups, start=int(unusual)):
            words = in_words(dict(zip(varying[:told], key, strict=False)))
            shade = tint(drawn.color, _TINTS[min(rank, len(_TINTS) - 1)])
            label = f"{gradient}, {words}"
            found.append(Series(label, gradient, replace(drawn, color=shade), group))
    return found


def comparisons(
    candidates: Sequence[Panel], metrics: Sequence[Metric], column: str, loose: Sequence[str]
) -> list[Cell]:
    """What can be drawn: series with two sizes or more, in panels with a series of their own.

    A panel that only repeats rows without the panel's setting (direct policies under every map)
    says nothing new and is left out.
    """
    cells = []
    for panel, metric in itertools.product(candidates, metrics):
        measured = panel.rows["status"].eq("ok") & panel.rows[metric.column].notna()
        rows = panel.rows[measured | panel.rows["status"].isin(list(FAILURES))]
        drawn = [each for each in series_of(rows, ("solver",)) if each.rows[column].nunique() > 1]
        shown = pd.concat([rows.iloc[:0], *(series.rows for series in drawn)])
        lacked = [name for name in loose if pd.notna(panel.settings[name])]
        own = shown[lacked].notna().all(axis=1).any() if lacked else True
        # One method alone compares nothing.
        if own and shown[metric.column].notna().any() and shown["gradient"].nunique() > 1:
            cells.append((panel, metric, drawn))
    return cells


def describe(column: str, value: Any) -> str:
    """A setting in words, empty where it is null."""
    if value is None or pd.isna(value):
        return ""
    return {
        "n_agents": counted(value, "agent"),
        "variant": "" if value == "default" else f"{value} variant",
        "batch_size": f"batch {value}",
        "n_steps": f"{value} time steps",
        "max_iterations": f"K ≤ {value}",
        "environment": f"environment {value}",
        "recipe": f"recipe {value}",
        "learning_rate": f"learning rate {value:g}" if isinstance(value, float) else "",
        "execution": "" if value == "eager" else value,
    }.get(column, str(value))


def in_words(settings: Mapping[str, Any]) -> str:
    """Settings in words, with commas between them."""
    return ", ".join(filter(None, (describe(name, value) for name, value in settings.items())))


def title(settings: Mapping[str, Any], constant: Mapping[str, Any]) -> str:
    """A panel's title on two lines: the problem and size, then settings not `constant`."""
    agents = settings.get("n_agents")
    size = None if agents is None else sized(settings["problem"], agents)
    first = ", ".join(filter(None, (settings["problem"], size)))
    rest = {name: settings[name] for name in _TOLD if name in settings and name not in constant}
    return "\n".join(filter(None, (first, in_words(rest))))


def constant_settings(rows: pd.DataFrame) -> dict[str, Any]:
    """Settings that are the same in all rows: said once in a caption, not in every title."""
    return {name: rows[name].iloc[0] for name in _TOLD if rows[name].nunique(dropna=False) == 1}


def all_panels(constant: Mapping[str, Any]) -> Iterator[str]:
    """The sentence of a caption that says what all panels have in common, if anything."""
    if words := in_words(constant):
        yield f"All panels: {words}."
