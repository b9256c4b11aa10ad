"""What to read off: sentences computed from the case table, none where the data are missing."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from bench.report.fits import power_law_slope
from bench.report.frames import WORKLOAD, iterates, missed
from bench.report.style import FAILURES, format_bytes, format_seconds, gradient_rank

_SIZE = ("environment", "problem", "n_agents", *WORKLOAD, "ascent", "solver")


def summary(cases: pd.DataFrame) -> list[str]:
    """The sentences, most important first."""
    sentences = [
        _outcomes(cases),
        _residuals(cases),
        _flat_in_iterations(cases),
        _unrolled_ratio(cases),
        _step_time(cases),
        _growth(cases),
        _largest(cases),
    ]
    return [sentence for sentence in sentences if sentence]


def _outcomes(cases: pd.DataFrame) -> str:
    if cases.empty:
        return "No cases were measured here."
    counts = cases["status"].value_counts()
    words = ", ".join(
        f"{count} {str(status).replace('_', ' ')}" for status, count in counts.items()
    )
    return f"{cases['id'].nunique()} cases, {len(cases)} records: {words}."


def _residuals(cases: pd.DataFrame) -> str:
    asked = cases[cases["tolerance"].notna() & cases["tolerance_reached"].notna()]
    if asked.empty:
        return ""
    reached = int(asked["tolerance_reached"].sum())
    tail = "" if reached == len(asked) else "; the others are marked “residual not reached”"
    return f"{reached} of {len(asked)} records that asked for a tolerance reached it{tail}."


def _exact(cases: pd.DataFrame, gradient: str) -> pd.DataFrame:
    """Records of exactly K iterations with saved bytes, predicted ones left out."""
    return cases[
        cases["tolerance"].isna()
        & cases["max_iterations"].notna()
        & cases["saved_tensor_bytes"].notna()
        & (cases["gradient"] == gradient)
        & (cases["status"] == "ok")
    ]


def _flat_in_iterations(cases: pd.DataFrame) -> str:
    groups = [
        group
        for _, group in _exact(cases, "jfb").groupby(list(_SIZE), dropna=False)
        if group["max_iterations"].nunique() > 1
    ]
    if not groups:
        return ""
    flat = sum(group["saved_tensor_bytes"].nunique() == 1 for group in groups)
    low = min(group["max_iterations"].min() for group in groups)
    high = max(group["max_iterations"].max() for group in groups)
    within = f"between K = {low} and K = {high}"
    if flat == len(groups):
        where = "the one setting" if flat == 1 else f"all {flat} settings"
        return f"jfb saves the same bytes for backward {within}, to the byte, in {where} measured."
    return (
        f"jfb saves the same bytes for backward {within} in {flat} of {len(groups)} settings only."
    )


def _unrolled_ratio(cases: pd.DataFrame) -> str:
    keys = [*_SIZE, "max_iterations"]
    columns = ["saved_tensor_bytes", "peak_live_tensor_bytes"]
    medians = [
        _exact(cases, gradient)
        .astype(dict.fromkeys(columns, float))
        .groupby(keys, dropna=False)[columns]
        .median()
        for gradient in ("unrolled", "jfb")
    ]
    ratio = (medians[0] / medians[1]).dropna(subset=["saved_tensor_bytes"])
    if ratio.empty:
        return ""
    parts = []
    for iterations, group in ratio.groupby(level="max_iterations"):
        saved = _range(group["saved_tensor_bytes"])
        peak = group["peak_live_tensor_bytes"].dropna()
        extra = f" ({_range(peak)}× at the peak)" if len(peak) else ""
        parts.append(f"{saved}×{extra} at K = {iterations}")
    return f"unrolled saves more for backward than jfb: {'; '.join(parts)}."


def _step_time(cases: pd.DataFrame) -> str:
    timed = _comparable(cases)
    keys = ["environment", "problem", "n_agents", *WORKLOAD, "budget"]
    settings = timed.groupby([*keys, "gradient", "ascent", "solver"], dropna=False)["step_seconds"]
    table = settings.median().groupby([*keys, "gradient"], dropna=False).min().unstack("gradient")
    if "jfb" not in table or table.shape[1] < 2:
        return ""
    parts = []
    for gradient in sorted(table.columns.drop("jfb"), key=gradient_rank):
        ratio = (table[gradient] / table["jfb"]).dropna()
        if len(ratio):
            parts.append(f"{gradient} {_range(ratio)}×")
    if not parts:
        return ""
    return (
        "Time per gradient step relative to jfb on the same problem with the same stopping rule, "
        f"each with its best map and solver: {'; '.join(parts)}."
    )


def _comparable(cases: pd.DataFrame) -> pd.DataFrame:
    """Timed rows with an inner solve that came down to the tolerance they were asked for."""
    timed = (cases["status"] == "ok") & cases["step_seconds"].notna()
    return cases[timed & ~missed(cases) & iterates(cases)]


def _growth(cases: pd.DataFrame) -> str:
    measured = cases[cases["status"] == "ok"]
    parts = []
    for gradient in sorted(measured["gradient"].unique(), key=gradient_rank):
        slopes = _slopes(measured[measured["gradient"] == gradient])
        if slopes:
            parts.append(f"{gradient} {_range(pd.Series(slopes), '.2f')}")
    if not parts:
        return ""
    return f"Exponent of step time in the number of agents (fitted power law): {'; '.join(parts)}."


def _slopes(rows: pd.DataFrame) -> list[float]:
    keys = ["environment", "problem", *WORKLOAD, "ascent", "solver", "budget"]
    slopes = [
        power_law_slope(group["n_agents"], group["step_seconds"])
        for _, group in rows.groupby(keys, dropna=False)
    ]
    return [slope for slope in slopes if slope is not None]


def _largest(cases: pd.DataFrame) -> str:
    """The largest size each problem ran at, and what did not finish there."""
    parts = []
    for problem, rows in cases.groupby("problem"):
        size = rows["n_agents"].max()
        there = rows[rows["n_agents"] == size]
        failed = there[there["status"].isin(list(FAILURES))]
        # Seeds are one case; what runs exactly K iterations has come down to no residual asked for.
        finished = _medians(_comparable(there[there["tolerance"].notna()]))
        words = f"{problem} at {size} {'goods' if problem == 'consumption' else 'agents'}"
        if len(finished):
            best = finished.loc[finished["step_seconds"].idxmin()]
            words += (
                f", fastest {best['gradient']} ({format_seconds(best['step_seconds'])} a step at "
                f"batch {best['batch_size']}"
            )
            live = best["peak_live_tensor_bytes"]
            words += ")" if pd.isna(live) else f", {format_bytes(live)} live)"
        if len(failed):
            words += f", did not finish: {_names(failed)}"
        parts.append(words)
    return f"Largest sizes: {'; '.join(parts)}." if parts else ""


def _medians(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per case, its seeds' median step time and bytes in it."""
    keys = ["environment", "run", "id"]
    return rows.groupby(keys, dropna=False, sort=False, as_index=False).agg(
        gradient=("gradient", "first"),
        batch_size=("batch_size", "first"),
        step_seconds=("step_seconds", "median"),
        peak_live_tensor_bytes=("peak_live_tensor_bytes", "median"),
    )


def _names(failed: pd.DataFrame) -> str:
    pairs = failed[["gradient", "status"]].drop_duplicates()
    ordered: Sequence[tuple[str, str]] = sorted(
        pairs.itertuples(index=False, name=None), key=lambda pair: gradient_rank(pair[0])
    )
    return ", ".join(f"{gradient} ({FAILURES[status]})" for gradient, status in ordered)


def _range(values: pd.Series, form: str = "") -> str:
    """One number where all read the same, otherwise lowest to highest."""
    low, high = (_short(float(value), form) for value in (values.min(), values.max()))
    return low if low == high else f"{low} to {high}"


def _short(value: float, form: str) -> str:
    # rounding first turns -0.00 into 0.00
    return f"{round(value, 2) + 0.0:{form or (',.0f' if abs(value) >= 10 else '.2g')}}"
