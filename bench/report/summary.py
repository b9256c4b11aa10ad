"""What to read off: sentences computed from the case table, none where the data are missing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from bench.report.frames import WORKLOAD, exact, iterates, missed
from bench.report.style import FAILURES, format_bytes, format_seconds, gradient_rank
from bench.report.targets import power_law_slope

_SIZE = ["environment", "problem", "n_agents", *WORKLOAD]
_BYTES = ["saved_tensor_bytes", "peak_live_tensor_bytes"]


def unrolled_over_jfb(cases: pd.DataFrame) -> pd.DataFrame:
    """Bytes of unrolled over jfb's in settings that both ran at exactly K, predictions left out.

    Columns: saved_tensor_bytes and peak_live_tensor_bytes; `max_iterations` is of the index.
    """
    known = exact(cases[(cases["status"] == "ok") & cases["saved_tensor_bytes"].notna()])
    keys = ["gradient", *_SIZE, "ascent", "solver", "max_iterations"]
    medians = (
        known.astype(dict.fromkeys(_BYTES, float)).groupby(keys, dropna=False)[_BYTES].median()
    )
    unrolled, jfb = (medians[medians.index.get_level_values(0) == name].droplevel(0)
                     for name in ("unrolled", "jfb"))  # fmt: skip
    return (unrolled / jfb).dropna(subset=_BYTES[:1])


def summary(cases: pd.DataFrame) -> list[str]:
    """What to read off in sentences, most important first; none where the data are missing."""
    if cases.empty:
        return ["No cases were measured here."]
    counts = cases["status"].value_counts()
    words = ", ".join(f"{n} {str(status).replace('_', ' ')}" for status, n in counts.items())
    return [
        f"{cases['id'].nunique()} cases, {len(cases)} records: {words}.",
        *_residuals(cases),
        *_flat_in_iterations(cases),
        *_unrolled_ratio(cases),
        *_step_time(cases),
        *_growth(cases),
        *_largest(cases),
    ]


def _residuals(cases: pd.DataFrame) -> Iterator[str]:
    asked = cases[cases["tolerance"].notna() & cases["tolerance_reached"].notna()]
    reached = int(asked["tolerance_reached"].sum())
    tail = "" if reached == len(asked) else "; the others are marked “residual not reached”"
    if len(asked):
        yield f"{reached} of {len(asked)} records that asked for a tolerance reached it{tail}."


def _flat_in_iterations(cases: pd.DataFrame) -> Iterator[str]:
    known = exact(cases[(cases["status"] == "ok") & (cases["gradient"] == "jfb")])
    known = known[known["saved_tensor_bytes"].notna()]
    groups = known.groupby([*_SIZE, "ascent", "solver"], dropna=False)
    known = known[groups["max_iterations"].transform("nunique") > 1]
    groups = known.groupby([*_SIZE, "ascent", "solver"], dropna=False)
    flat = int((groups["saved_tensor_bytes"].nunique() == 1).sum())
    low, high = known["max_iterations"].min(), known["max_iterations"].max()
    within = f"jfb saves the same bytes for backward between K = {low} and K = {high}"
    if len(known) and flat < groups.ngroups:
        yield f"{within} in {flat} of {groups.ngroups} settings only."
    elif len(known):
        where = "the one setting" if flat == 1 else f"all {flat} settings"
        yield f"{within}, to the byte, in {where} measured."


def _unrolled_ratio(cases: pd.DataFrame) -> Iterator[str]:
    parts = []
    for iterations, group in unrolled_over_jfb(cases).groupby(level="max_iterations"):
        peak = group["peak_live_tensor_bytes"].dropna()
        extra = f" ({_range(peak)}× at the peak)" if len(peak) else ""
        parts.append(f"{_range(group['saved_tensor_bytes'])}×{extra} at K = {iterations}")
    if parts:
        yield f"unrolled saves more for backward than jfb: {'; '.join(parts)}."


def _step_time(cases: pd.DataFrame) -> Iterator[str]:
    keys = [*_SIZE, "budget", "gradient"]
    medians = _comparable(cases).groupby([*keys, "ascent", "solver"], dropna=False)["step_seconds"]
    table = medians.median().groupby(keys, dropna=False).min().unstack("gradient")
    if "jfb" not in table:
        return
    ratios = table.div(table["jfb"], axis=0).drop(columns="jfb").dropna(axis=1, how="all")
    names = sorted(ratios.columns, key=gradient_rank)
    parts = [f"{name} {_range(ratios[name].dropna())}×" for name in names]
    if parts:
        yield (
            "Time per gradient step relative to jfb on the same problem with the same stopping "
            f"rule, each with its best map and solver: {'; '.join(parts)}."
        )


def _comparable(cases: pd.DataFrame) -> pd.DataFrame:
    """Timed rows with an inner solve that came down to the tolerance they were asked for."""
    timed = (cases["status"] == "ok") & cases["step_seconds"].notna()
    return cases[timed & ~missed(cases) & iterates(cases)]


def _growth(cases: pd.DataFrame) -> Iterator[str]:
    slopes: dict[str, list[float]] = {}
    keys = ["gradient", "environment", "problem", *WORKLOAD, "ascent", "solver", "budget"]
    for (gradient, *_), group in cases[cases["status"] == "ok"].groupby(keys, dropna=False):
        slope = power_law_slope(group["n_agents"], group["step_seconds"])
        if slope is not None:
            slopes.setdefault(gradient, []).append(slope)
    names = sorted(slopes, key=gradient_rank)
    words = "; ".join(f"{name} {_range(pd.Series(slopes[name]), '.2f')}" for name in names)
    if words:
        yield f"Exponent of step time in the number of agents (fitted power law): {words}."


def _largest(cases: pd.DataFrame) -> Iterator[str]:
    """The largest size each problem ran at, and what did not finish there."""
    parts = []
    for problem, rows in cases.groupby("problem"):
        there = rows[rows["n_agents"] == rows["n_agents"].max()]
        # Seeds are one case; what runs exactly K iterations has come down to no residual asked for.
        finished = _comparable(there[there["tolerance"].notna()])
        case = finished.groupby(["environment", "run", "id"], dropna=False, sort=False)
        medians = case[["step_seconds", "peak_live_tensor_bytes"]].median()
        noun = "goods" if problem == "consumption" else "agents"
        words = f"{problem} at {there['n_agents'].iloc[0]} {noun}"
        if len(finished):
            place = medians["step_seconds"].idxmin()
            best, (seconds, live) = case.get_group(place).iloc[0], medians.loc[place]
            bytes_ = "" if pd.isna(live) else f", {format_bytes(live)} live"
            words += (
                f", fastest {best['gradient']} ({format_seconds(seconds)} a step at "
                f"batch {best['batch_size']}{bytes_})"
            )
        failed = there.loc[there["status"].isin(list(FAILURES)), ["gradient", "status"]]
        pairs = sorted(set(failed.itertuples(index=False, name=None)), key=_by_gradient)
        if pairs:
            named = ", ".join(f"{gradient} ({FAILURES[status]})" for gradient, status in pairs)
            words += f", did not finish: {named}"
        parts.append(words)
    if parts:
        yield f"Largest sizes: {'; '.join(parts)}."


def _by_gradient(pair: tuple[str, Any]) -> tuple[int, str, str]:
    return (*gradient_rank(pair[0]), str(pair[1]))


def _range(values: pd.Series, form: str = "") -> str:
    """One number where all read the same, otherwise lowest to highest."""
    # rounding first turns -0.00 into 0.00
    words = (
        f"{round(value, 2) + 0.0:{form or (',.0f' if abs(value) >= 10 else '.2g')}}"
        for value in map(float, (values.min(), values.max()))
    )
    return " to ".join(dict.fromkeys(words))
