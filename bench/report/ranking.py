"""The ranking: one row per method and map, over all problems and sizes that were measured.

Step time and memory are relative, so that sizes can be put together: each instance (problem, size,
workload, stopping rule) gives the ratio to the best there, and a row shows the geometric mean. The
gap is read off the training curves at the time when the first of an instance's runs ended.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bench.report.frames import WORKLOAD, iterates, missed
from bench.report.style import (
    DASH,
    FAILURES,
    format_bytes,
    format_factor,
    format_percent,
    format_seconds,
    gradient_rank,
)
from bench.report.tables import Cell, Table
from bench.report.targets import TARGET_INSTANCE, own_rate

#: what a row of the ranking is
_ROW = ("gradient", "map")
_INSTANCE = ("environment", "problem", "n_agents", *WORKLOAD, "budget")
#: no map: a direct policy has none
_NONE = "none"


def with_map(curves: pd.DataFrame, cases: pd.DataFrame) -> pd.DataFrame:
    """`curves` with the column `map` of their cases."""
    keys = ["run", "id", "seed"]
    maps = cases.assign(map=cases["map"].fillna(_NONE))[[*keys, "map"]].drop_duplicates()
    return curves.merge(maps, on=keys, how="left")


def ranking(cases: pd.DataFrame, gaps: pd.DataFrame) -> pd.DataFrame:
    """One row per method and map: most problem classes first, then by gap.

    `gaps` are as `gaps_at_equal_time` makes them.

    Columns: gradient, map, `time` and `memory` (geometric means of the ratios to the best of an
    instance, NaN where unknown), `time_instances`, `step_seconds` and `peak_bytes` (medians at the
    largest size, `at`), `gap`, `gap_low`, `gap_high` (median and quartiles over instances and
    seeds), `gap_instances`, `served` and `problems` (problem classes it finished, and all).
    """
    cases = cases.assign(map=cases["map"].fillna(_NONE))
    times, memory = (
        _ratios(comparable_steps(cases), "step_seconds"),
        _ratios(
            cases[(cases["status"] == "ok") & cases["tolerance"].notna() | _direct(cases)],
            "peak_live_tensor_bytes",
        ),
    )
    rows = []
    for key, group in cases.groupby(list(_ROW), dropna=False):
        row: dict[str, Any] = dict(zip(_ROW, key, strict=True))
        row["time"], row["time_instances"] = _mean_ratio(times, key)
        row["memory"], _ = _mean_ratio(memory, key)
        row |= _largest(group)
        own = gaps[(gaps["gradient"] == key[0]) & (gaps["map"] == key[1])]
        low, middle, high = _quartiles(own["gap"])
        row |= {"gap": middle, "gap_low": low, "gap_high": high}
        row["gap_instances"] = len(own[list(TARGET_INSTANCE)].drop_duplicates())
        finished = group[(group["status"] == "ok") & ~missed(group)]
        row["served"] = sorted(finished["problem"].unique())
        row["problems"] = sorted(cases["problem"].unique())
        row["refused"] = sorted(
            set(group.loc[group["status"] == "unsupported", "problem"]) - set(row["served"])
        )
        row["failed"] = int(group["status"].isin(list(FAILURES)).sum())
        rows.append(row)
    found = pd.DataFrame(rows)
    if found.empty:
        return found
    order = found["gradient"].map(lambda name: gradient_rank(name)[0])
    classes = -found["served"].map(len)
    found = found.assign(order=order, classes=classes)
    found = found.sort_values(["classes", "gap", "time", "order"], na_position="last")
    return found.drop(columns=["order", "classes"]).reset_index(drop=True)


def gaps_at_equal_time(curves: pd.DataFrame) -> pd.DataFrame:
    """The optimality gap of every trained seed at the time when its instance's first run ended.

    One row per seed: the instance, gradient, map, `at` [s] and `gap`; a diverged run's gap is
    infinite. Only runs on a recipe's own learning rate, and only runs of a stated length in
    seconds: others do not compete for time.
    """
    columns = [*TARGET_INSTANCE, "gradient", "map", "run", "id", "seed", "at", "gap"]
    known = own_rate(curves[curves["optimality_gap"].notna() & curves["recipe"].notna()])
    rows = []
    for key, instance in known.groupby(list(TARGET_INSTANCE), dropna=False):
        seeds = list(instance.groupby(["run", "id", "seed"], dropna=False))
        at = min(own["seconds"].max() for _, own in seeds if own["status"].iloc[0] == "ok")
        for (run, name, seed), own in seeds:
            reached = own[own["seconds"] <= at].sort_values("seconds")
            gap = math.inf if own["status"].iloc[0] != "ok" else reached["optimality_gap"].iloc[-1]
            first = own.iloc[0]
            rows.append([*key, first["gradient"], first["map"], run, name, seed, at, gap])
    return pd.DataFrame(rows, columns=columns)


def ranking_table(ranked: pd.DataFrame) -> Table:
    """The ranking in cells; hovering says what a number rests on."""
    rows = [
        [
            Cell(row["gradient"], row["gradient"], kind="name"),
            Cell(DASH if row["map"] == _NONE else row["map"], row["map"]),
            _factor(row, "time", "step_seconds", format_seconds),
            _factor(row, "memory", "peak_bytes", format_bytes),
            _gap(row),
            _served(row),
        ]
        for row in ranked.to_dict("records")
    ]
    notes = [
        "Step time and peak memory are geometric means, over problems and sizes, of the ratio to "
        "the best method there; rows that missed their tolerance do not count. A direct policy "
        "solves no inner problem. The gap is what a method is above the reference optimum when the "
        "first run of a problem ends: median, in brackets the middle half, over problems and "
        "seeds. Methods that serve fewer problems are averaged over those.",
    ]
    columns = (
        *("method", "map", "step time, × best", "peak memory, × best"),
        *("gap at equal time", "problems served"),
    )
    return Table("Ranking", columns, rows, notes, "ranking")


def gap_table(gaps: pd.DataFrame) -> Table | None:
    """The gaps behind the ranking: one row per problem, size, method and map."""
    if gaps.empty:
        return None
    keys = ["problem", "n_agents", "gradient", "map"]
    rows = []
    for (problem, agents, gradient, own_map), own in gaps.groupby(keys, sort=False, dropna=False):
        low, middle, high = _quartiles(own["gap"])
        rows.append(
            [
                Cell(str(problem), str(problem)),
                Cell(str(agents), int(agents)),
                Cell(str(gradient), str(gradient)),
                Cell(DASH if own_map == _NONE else str(own_map), str(own_map)),
                Cell(str(len(own)), len(own)),
                Cell(format_seconds(own["at"].iloc[0]), float(own["at"].iloc[0])),
                Cell(format_percent(middle), _sortable(middle)),
                Cell(f"{format_percent(low)} to {format_percent(high)}", _sortable(low)),
            ]
        )
    columns = ["problem", "agents", "method", "map", "runs", "after", "median gap", "middle half"]
    return Table("Gap at equal time", columns, rows, (), "gaps")


def _direct(cases: pd.DataFrame) -> pd.Series:
    return (cases["map"] == _NONE) & (cases["status"] == "ok")


def comparable_steps(cases: pd.DataFrame) -> pd.DataFrame:
    """Rows whose step times compare: the tolerance was asked for and reached; or direct."""
    cases = cases.assign(map=cases["map"].fillna(_NONE))
    usable = (cases["status"] == "ok") & cases["step_seconds"].notna() & ~missed(cases)
    to_tolerance = iterates(cases) & cases["tolerance"].notna()
    return cases[usable & (to_tolerance | _direct(cases))]


def _ratios(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """Per instance and row of the ranking, the ratio to the instance's best inner solve.

    A direct policy has no stopping rule; it is compared at every one of its problem and size.
    """
    rows = rows[rows[column].notna()].astype({column: "float64"})
    inner = rows[rows["map"] != _NONE]
    usual = rows[rows["map"] == _NONE].drop(columns="budget")
    joined = usual.merge(inner[list(_INSTANCE)].drop_duplicates(), on=list(_INSTANCE[:-1]))
    together = pd.concat([inner, joined])
    if together.empty:
        return pd.DataFrame(columns=[*_ROW, "ratio"])
    medians = together.groupby([*_INSTANCE, *_ROW, "solver"], dropna=False)[column].median()
    best = medians.groupby([*_INSTANCE, *_ROW], dropna=False).min().reset_index()
    least = best[best["map"] != _NONE].groupby(list(_INSTANCE), dropna=False)[column].min()
    best = best.merge(least.rename("least").reset_index(), on=list(_INSTANCE))
    return best.assign(ratio=best[column] / best["least"])


def _mean_ratio(ratios: pd.DataFrame, key: Sequence[str]) -> tuple[float, int]:
    own = ratios[(ratios["gradient"] == key[0]) & (ratios["map"] == key[1])]["ratio"]
    return (float(np.exp(np.log(own).mean())), len(own)) if len(own) else (math.nan, 0)


def _largest(group: pd.DataFrame) -> dict[str, Any]:
    """Step time and memory in seconds and bytes, at the largest size that was measured."""
    known = group[group["step_seconds"].notna()]
    if known.empty:
        return {"step_seconds": math.nan, "peak_bytes": math.nan, "at": ""}
    there = known[known["n_agents"] == known["n_agents"].max()]
    there = there[there["problem"] == there["problem"].iloc[0]]
    noun = "goods" if there["problem"].iloc[0] == "consumption" else f"{there['problem'].iloc[0]}s"
    return {
        "step_seconds": float(there["step_seconds"].median()),
        "peak_bytes": float(there["peak_live_tensor_bytes"].astype(float).median()),
        "at": f"{there['n_agents'].iloc[0]} {noun}, batch {there['batch_size'].iloc[0]}",
    }


def _quartiles(values: pd.Series) -> tuple[float, float, float]:
    if values.empty:
        return math.nan, math.nan, math.nan
    ordered = np.sort(values.to_numpy(dtype=float))
    # `lower` and `higher` never interpolate towards an infinite gap.
    kinds = ((0.25, "lower"), (0.5, "higher"), (0.75, "higher"))
    low, middle, high = (
        float(np.quantile(ordered, share, method=kind))  # type: ignore[call-overload]
        for share, kind in kinds
    )
    return low, middle, high


def _factor(row: dict[str, Any], name: str, absolute: str, write: Callable[[float], str]) -> Cell:
    if math.isnan(row[name]):
        return Cell(DASH, 1e300, "not measured where it can be compared", "null")
    title = f"over {row['time_instances']} problems and sizes"
    if not math.isnan(row[absolute]):
        title += f"; {write(row[absolute])} with {row['at']}"
    return Cell(format_factor(row[name]), row[name], title)


def _gap(row: dict[str, Any]) -> Cell:
    if math.isnan(row["gap"]):
        return Cell(DASH, 1e300, "no training run against a reference optimum here", "null")
    text, title = format_percent(row["gap"]), f"{row['gap_instances']} problems and sizes"
    if row["gap_low"] < row["gap_high"]:  # a single run has no interval
        text += f" [{format_percent(row['gap_low'])}, {format_percent(row['gap_high'])}]"
    return Cell(text, _sortable(row["gap"]), title, "gap")


def _served(row: dict[str, Any]) -> Cell:
    text = f"{len(row['served'])} of {len(row['problems'])}"
    refused = f"; cannot serve {', '.join(row['refused'])}" if row["refused"] else ""
    failed = f"; {row['failed']} records did not finish" if row["failed"] else ""
    return Cell(text, len(row["served"]), f"{', '.join(row['served'])}{refused}{failed}")


def _sortable(value: float) -> float:
    return value if math.isfinite(value) else 1e300


def at_fixed_iterations(cases: pd.DataFrame) -> tuple[int, float, float] | None:
    """(K, least, greatest) of the saved bytes of unrolled over jfb's, at the largest K of both."""
    exact = cases[
        cases["tolerance"].isna()
        & cases["max_iterations"].notna()
        & cases["saved_tensor_bytes"].notna()
        & (cases["status"] == "ok")
    ]
    keys = ["problem", "n_agents", *WORKLOAD, "ascent", "solver", "max_iterations"]
    bytes_of = [
        exact[exact["gradient"] == name].groupby(keys, dropna=False)["saved_tensor_bytes"].median()
        for name in ("unrolled", "jfb")
    ]
    ratio = (bytes_of[0].astype(float) / bytes_of[1].astype(float)).dropna()
    if ratio.empty:
        return None
    largest = ratio.index.get_level_values("max_iterations").max()
    there = ratio.xs(largest, level="max_iterations")
    return int(largest), float(there.min()), float(there.max())
