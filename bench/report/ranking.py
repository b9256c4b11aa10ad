"""The ranking: one row per method and map, over all problems and sizes that were measured.

Step time and memory are relative, so that sizes can be put together: each instance (problem, size,
workload, stopping rule) gives the ratio to the best there, and a row shows the geometric mean. The
gap is read off the training curves at the instance's time limit: a run whose schedule ended before
keeps what it reached.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from bench.report import style
from bench.report.frames import WORKLOAD, iterates, missed
from bench.report.tables import Cell, Table, number
from bench.report.targets import TARGET_INSTANCE, own_rate

#: what a row of the ranking is
_ROW = ["gradient", "map"]
_INSTANCE = ["environment", "problem", "n_agents", *WORKLOAD, "budget"]
#: the map of a method that has none: a direct policy
NO_MAP = "none"
_NOTE = (
    "Step time and peak memory are geometric means, over problems and sizes, of the ratio to "
    "the best method there; rows that missed their tolerance do not count. A direct policy "
    "solves no inner problem. The gap is what a method is above the reference optimum at the time "
    "limit, which is the same for all on a problem; a run that has done its training steps before "
    "keeps its gap: median, in brackets the middle half, over problems and seeds. Methods that "
    "serve fewer problems are averaged over those."
)


def ranking(cases: pd.DataFrame, gaps: pd.DataFrame) -> pd.DataFrame:
    """One row per method and map: most problem classes first, then by gap.

    `gaps` are as `gaps_at_equal_time` makes them.

    Columns: gradient, map, `time` and `memory` (geometric means of the ratios to the best of an
    instance, NaN where unknown), `time_instances`, `step_seconds` and `peak_bytes` (medians at the
    largest size, `at`), `gap`, `gap_low`, `gap_high` (median and quartiles over instances and
    seeds), `gap_instances`, `served` and `problems` (problem classes it finished, and all).
    """
    cases = cases.assign(map=cases["map"].fillna(NO_MAP))
    asked = (cases["status"] == "ok") & cases["tolerance"].notna()
    times = _ratios(comparable_steps(cases), "step_seconds")
    memory = _ratios(cases[asked | _direct(cases)], "peak_live_tensor_bytes")
    rows = []
    for (gradient, own_map), group in cases.groupby(_ROW):
        own = gaps[(gaps["gradient"] == gradient) & (gaps["map"] == own_map)]
        low, middle, high = _quartiles(own["gap"])
        finished = group[(group["status"] == "ok") & ~missed(group)]
        served = sorted(finished["problem"].unique())
        refused = set(group.loc[group["status"] == "unsupported", "problem"]) - set(served)
        ratios = times.get((gradient, own_map), pd.Series(dtype=float))
        rows.append(
            {
                "gradient": gradient,
                "map": own_map,
                "time": _geometric_mean(ratios),
                "time_instances": len(ratios),
                "memory": _geometric_mean(memory.get((gradient, own_map), pd.Series(dtype=float))),
                **_largest(group),
                **{"gap": middle, "gap_low": low, "gap_high": high},
                "gap_instances": len(own[list(TARGET_INSTANCE)].drop_duplicates()),
                "served": served,
                "problems": sorted(cases["problem"].unique()),
                "refused": sorted(refused),
                "failed": int(group["status"].isin(list(style.FAILURES)).sum()),
                **{"classes": -len(served), "order": style.gradient_rank(gradient)[0]},
            }
        )
    if not rows:
        return pd.DataFrame()
    found = pd.DataFrame(rows).sort_values(["classes", "gap", "time", "order"])
    return found.drop(columns=["classes", "order"]).reset_index(drop=True)


def gaps_at_equal_time(curves: pd.DataFrame, cases: pd.DataFrame) -> pd.DataFrame:
    """The optimality gap of every trained seed at the shortest time limit of its instance.

    Every method has the same training steps within the same limit; one that has done them before
    keeps the gap it ended with. One row per seed: the instance, gradient, map, `at` [s] and `gap`;
    a diverged run's gap is infinite. Only runs on a recipe's own learning rate, and only runs of a
    stated length in seconds: others do not compete for time.
    """
    seed = ["run", "id", "seed"]
    limits = cases.assign(map=cases["map"].fillna(NO_MAP))[[*seed, "map", "train_seconds"]]
    known = own_rate(curves[curves["optimality_gap"].notna() & curves["recipe"].notna()])
    known = known.merge(limits.drop_duplicates(seed), on=seed, how="left")
    known = known[known["train_seconds"].notna()]
    ok = known["status"] == "ok"
    known["at"] = known["train_seconds"].astype(float)
    known["at"] = known.groupby(list(TARGET_INSTANCE), dropna=False)["at"].transform("min")
    reached = known[(known["seconds"] <= known["at"]) | ~ok].sort_values("seconds")
    last = reached.groupby(seed, dropna=False).tail(1).sort_index()
    gap = last["optimality_gap"].where(last["status"] == "ok", math.inf)
    found = last.assign(gap=gap)[[*TARGET_INSTANCE, *_ROW, *seed, "at", "gap"]]
    return found.sort_values([*TARGET_INSTANCE, *seed]).reset_index(drop=True)


def ranking_table(ranked: pd.DataFrame) -> Table:
    """The ranking in cells; hovering says what a number rests on."""
    rows = [
        [
            Cell(row["gradient"], kind="name"),
            style.DASH if row["map"] == NO_MAP else row["map"],
            _factor(row, "time", "step_seconds", style.format_seconds),
            _factor(row, "memory", "peak_bytes", style.format_bytes),
            _gap(row),
            _served(row),
        ]
        for row in ranked.to_dict("records")
    ]
    columns = (
        *("method", "map", "step time, × best", "peak memory, × best"),
        *("gap at equal time", "problems served"),
    )
    return Table("Ranking", columns, rows, [_NOTE], "ranking")


def gap_table(gaps: pd.DataFrame) -> Table:
    """The gaps behind the ranking: one row per problem, size, method and map."""
    rows = []
    groups = gaps.groupby(["problem", "n_agents", *_ROW], sort=False, dropna=False)
    for (problem, agents, gradient, own_map), own in groups:
        low, middle, high = _quartiles(own["gap"])
        half = f"{style.format_percent(low)} to {style.format_percent(high)}"
        rows.append(
            [
                *(problem, number(agents), gradient, style.DASH if own_map == NO_MAP else own_map),
                number(len(own)),
                number(own["at"].iloc[0], style.format_seconds),
                number(middle, style.format_percent),
                replace(number(low), text=half),
            ]
        )
    columns = ["problem", "agents", "method", "map", "runs", "after", "median gap", "middle half"]
    return Table("Gap at equal time", columns, rows, (), "gaps")


def _direct(cases: pd.DataFrame) -> pd.Series:
    return (cases["map"] == NO_MAP) & (cases["status"] == "ok")


def comparable_steps(cases: pd.DataFrame) -> pd.DataFrame:
    """Rows whose step times compare: the tolerance was asked for and reached; or direct."""
    cases = cases.assign(map=cases["map"].fillna(NO_MAP))
    usable = (cases["status"] == "ok") & cases["step_seconds"].notna() & ~missed(cases)
    to_tolerance = iterates(cases) & cases["tolerance"].notna()
    return cases[usable & (to_tolerance | _direct(cases))]


def _ratios(rows: pd.DataFrame, column: str) -> dict[tuple[str, str], pd.Series]:
    """By row of the ranking, the ratios to the best inner solve of each instance.

    A direct policy has no stopping rule; it is compared at every one of its problem and size.
    """
    rows = rows[rows[column].notna()].astype({column: "float64"})
    inner = rows[rows["map"] != NO_MAP]
    direct = rows[rows["map"] == NO_MAP].drop(columns="budget")
    rows = pd.concat([inner, direct.merge(inner[_INSTANCE].drop_duplicates(), on=_INSTANCE[:-1])])
    if rows.empty:
        return {}
    medians = rows.groupby([*_INSTANCE, *_ROW, "solver"], dropna=False)[column].median()
    best = medians.groupby([*_INSTANCE, *_ROW], dropna=False).min().rename("own").reset_index()
    # A method that is alone somewhere is the best there, which says nothing of it.
    several = best.groupby(_INSTANCE, dropna=False)["own"].transform("size") > 1
    best = best[several]
    least = best["own"].where(best["map"] != NO_MAP)
    least = least.groupby([best[name] for name in _INSTANCE], dropna=False).transform("min")
    return dict(list((best["own"] / least).groupby([best[name] for name in _ROW])))


def _geometric_mean(ratios: pd.Series) -> float:
    return float(np.exp(np.log(ratios).mean()))


def _largest(group: pd.DataFrame) -> dict[str, Any]:
    """Step time and memory in seconds and bytes, at the largest size that was measured."""
    known = group[group["step_seconds"].notna()]
    if known.empty:
        return {"step_seconds": math.nan, "peak_bytes": math.nan, "at": ""}
    there = known[known["n_agents"] == known["n_agents"].max()]
    first = there.iloc[0]
    there = there[there["problem"] == first["problem"]]
    noun = "goods" if first["problem"] == "consumption" else f"{first['problem']}s"
    return {
        "step_seconds": float(there["step_seconds"].median()),
        "peak_bytes": float(there["peak_live_tensor_bytes"].astype(float).median()),
        "at": f"{first['n_agents']} {noun}, batch {first['batch_size']}",
    }


def _quartiles(values: pd.Series) -> tuple[float, ...]:
    """Lower quartile, median and upper quartile; NaN of none."""
    # `lower` and `higher` never interpolate towards an infinite gap.
    kinds = ((0.25, "lower"), (0.5, "higher"), (0.75, "higher"))
    return tuple(float(values.quantile(share, kind)) for share, kind in kinds)


def _factor(row: dict[str, Any], name: str, absolute: str, write: Callable[[float], str]) -> Cell:
    if math.isnan(row[name]):
        return number(None, title="not measured where it can be compared")
    title = f"over {row['time_instances']} problems and sizes"
    if not math.isnan(row[absolute]):
        title += f"; {write(row[absolute])} with {row['at']}"
    return number(row[name], style.format_factor, title)


def _gap(row: dict[str, Any]) -> Cell:
    if math.isnan(row["gap"]):
        return number(None, title="no training run against a reference optimum here")
    low, middle, high = (style.format_percent(row[name]) for name in ("gap_low", "gap", "gap_high"))
    # a single run has no interval
    text = f"{middle} [{low}, {high}]" if row["gap_low"] < row["gap_high"] else middle
    title = f"{row['gap_instances']} problems and sizes"
    return replace(number(row["gap"], title=title, kind="gap"), text=text)


def _served(row: dict[str, Any]) -> Cell:
    text = f"{len(row['served'])} of {len(row['problems'])}"
    refused = f"; cannot serve {', '.join(row['refused'])}" if row["refused"] else ""
    failed = f"; {row['failed']} records did not finish" if row["failed"] else ""
    return Cell(text, len(row["served"]), f"{', '.join(row['served'])}{refused}{failed}")
