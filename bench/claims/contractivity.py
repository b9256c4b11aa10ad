"""Claim 1: whether the fixed-point map contracts along training."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pandas as pd
from matplotlib.figure import Figure

from bench.claims.cases import traced
from bench.claims.claim import (
    Judgement,
    Numbers,
    Tables,
    by_variant,
    endings,
    missed_tolerance,
    number,
    seeds_of,
    share,
    spread,
    verdict,
    worst,
)
from bench.claims.panels import trace_figure

NUMBER = 1
TABLE = "trace"
CLAIM = "The fixed-point map contracts along training: |dT/du| < 1"
CRITERION = (
    "Holds in a run where the largest |dT/du| over samples and time steps is below 1 at every "
    "measured step."
)
FIGURE = "claim-1-contractivity"
CAPTION = (
    "Largest |dT/du| over samples and time steps against training steps; 1 is the limit. "
    "Median and quartiles over the seeds."
)
jobs = traced
#: problems whose scaled map must contract on every machine
_CONTRACTING = ("quadrotor", "consumption")
#: less than this of an error is no reason for a missed tolerance
_VISIBLE = 1e-3


def judge(data: Tables) -> Judgement:
    table = data["trace"]
    rates = worst(table, "rate_max")
    # Without a rate, or with one that is not a number, nothing says that the map contracts.
    below = (rates < 1.0) & ~table["rate_max"].isna().groupby(table["run"], sort=False).any()
    return Judgement(
        f"below 1 in {int(below.sum())} of {len(below)} runs; largest |dT/du| of a seed: "
        f"{by_variant(table, 'rate_max')}",
        verdict(below),
        f"{seeds_of(table)}; spectral norm per sample, D held fixed, at the control found along "
        "the held-out rollouts. Below 1 it says that the iteration would converge, not that it "
        "has: see the residuals. What K applications leave of the error is |dT/du|^K at the "
        "median |dT/du| where the residual is worst or, where that is too small to be the "
        "reason, at the largest",
        (*_expansions(table), *endings(table, "rate_max")),
        (
            Numbers.of(
                "|dT/du| and the inner residual along training",
                ("run", "largest |dT/du|", "points beyond 1", "curvature of -H",
                 "tolerance missed in", "worst residual (asked)", "error left after K"),
                _rows(table.dropna(subset=["rate_max"])),
            ),
        ),
    )  # fmt: skip


def _rows(table: pd.DataFrame) -> Iterable[tuple[str, ...]]:
    for run, rows in table.groupby("run", sort=False):
        missed = missed_tolerance(rows)
        # What is not finite is null in the data, and worse than any other.
        peak = rows.loc[rows["residual_max"].fillna(math.inf).idxmax()]
        yield (
            str(run),
            number(rows["rate_max"].max()),
            f"{100.0 * (1.0 - rows['contractive_fraction'].min()):.2g} %",
            spread(pd.concat([rows["curvature_min"], rows["curvature_max"]])),
            share(missed.sum(), len(rows)),
            f"{number(peak['residual_max'])} ({number(peak['tolerance'])})",
            _left(peak) if missed.any() else "",
        )


def _left(row: pd.Series) -> str:
    """|dT/du|^K at the median |dT/du|, or at the largest where the median says it converged."""
    for name, column in (("median", "rate_median"), ("largest", "rate_max")):
        left = row[column] ** row["max_iterations"]
        if left > _VISIBLE:
            return "grows" if left > 1.0 else f"{number(left)} ({name})"
    return number(left)


def _expansions(table: pd.DataFrame) -> list[str]:
    """Where each run expands most: how far, how H curves there, and whether JFB still descends."""
    found = []
    for run, rows in table[table["rate_max"] >= 1.0].groupby("run", sort=False):
        peak = rows.loc[rows["rate_max"].idxmax()]
        costs = table[(table["run"] == run) & (table["seed"] == peak["seed"])]["cost"]
        first, last = costs.iloc[0], costs.iloc[-1]
        concave = "not concave there" if peak["curvature_min"] < 0 else "concave everywhere seen"
        found.append(
            f"{run} does not contract: |dT/du| reaches {number(peak['rate_max'])} after "
            f"{peak['step']:.0f} steps, {100 * (1 - peak['contractive_fraction']):.2g} % of the "
            f"points are outside; H is {concave}{_averaging(peak)}. JFB "
            f"{'still descends' if last < first else 'does not descend'}: held-out cost "
            f"{number(first)} to {number(last)}."
        )
    return found


def _averaging(peak: pd.Series) -> str:
    """Whether an averaged operator (1-b) + b T would contract where T does not.

    With D = 1, dT/du = 1 + alpha Hessian is symmetric: its eigenvalues are beyond 1 where H curves
    upwards, and below -1 where a step overshoots. Averaging mends the second.
    """
    if peak["variant"] not in ("plain", "released"):
        return ""
    if peak["curvature_min"] < 0:
        return ": nor does any averaged operator (1-b) + b T"
    return f": the averaged operator (1-b) + b T contracts for b < {2 / (1 + peak['rate_max']):.2g}"


def figure(data: Tables) -> Figure | None:
    return trace_figure(data["trace"], "rate_max", "largest |dT/du|", limit=1.0)


def failures(data: Tables) -> list[str]:
    """What does not hold of what must on every machine; data that is not there does not hold."""
    if "trace" not in data:
        return ["contractivity: no traces"]
    scaled = data["trace"][data["trace"]["variant"] == "scaled"]
    largest = scaled.groupby("problem")["rate_max"].agg(lambda rates: rates.max(skipna=False))
    return [
        f"contractivity: {problem}, scaled map: |dT/du| must be < 1, is "
        f"{largest.get(problem, math.nan):.4g}"
        for problem in _CONTRACTING
        # Written so that what is not a number fails.
        if not largest.get(problem, math.nan) < 1.0
    ]
