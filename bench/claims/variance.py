"""Claim 3: the minibatch gradient's relative variance."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from bench.claims.cases import traced
from bench.claims.claim import (
    Judgement,
    Numbers,
    Tables,
    by_variant,
    endings,
    number,
    seeds_of,
    unfinished,
    verdict,
)
from bench.claims.panels import trace_figure

NUMBER = 3
TABLE = "trace"
CLAIM = "The minibatch gradient has bounded relative variance"
#: below this share of its first norm a gradient is near a stationary point, where any ratio grows
_FLOOR = 1e-3
CRITERION = (
    "Holds in a run where the relative variance is finite at every measured step and does not grow "
    f"along training while the true gradient has at least {100 * _FLOOR:g} % of its first norm: "
    "the 95 % interval over the seeds of its exponential growth does not lie above zero."
)
FIGURE = "claim-3-variance"
CAPTION = (
    "Relative variance of JFB's minibatch gradient against training steps. Median and "
    "quartiles over the seeds."
)
jobs = traced
#: growth of the logarithm per step up to which it is rounding
_ROUNDING = 1e-9


def judge(data: Tables) -> Judgement:
    table = data["trace"].astype({"relative_variance": float}).reset_index(drop=True)
    finite = np.isfinite(table["relative_variance"])
    # A run that ended before its last measurement has none there.
    bounded = finite.groupby(table["run"], sort=False).all()
    bounded &= ~unfinished(table, "relative_variance")
    growths = pd.DataFrame(
        {run: _growth(rows) for run, rows in table[finite].groupby("run", sort=False)},
        index=["low", "middle", "high"],
    ).T.reindex(bounded.index)
    # One seed has no interval, and one point no growth: neither refutes the bound.
    grows = growths["low"] > _ROUNDING
    holds = bounded & ~grows
    above = _above_floor(table)
    return Judgement(
        f"E|g - Eg|^2/|Eg|^2 is finite in {int(bounded.sum())} of {len(bounded)} runs and grows "
        f"in {int(grows.sum())}; largest of a seed above the floor: "
        f"{by_variant(table[above], 'relative_variance')}",
        verdict(holds),
        f"{seeds_of(table)}; over {_minibatches(table)} of the held-out states, so that the ratio "
        "is a rough one where |Eg| is small. A finite run can refute a bound, not prove one",
        (*_sentences(growths[grows]), *endings(table, "relative_variance")),
        (
            Numbers.of(
                "E|g - Eg|^2/|Eg|^2",
                ("run", "at first", "largest above the floor", "largest of all",
                 "growth per 100 steps (95 %)"),
                (
                    (str(run), number(rows["relative_variance"].iloc[0]),
                     number(rows[above[rows.index]]["relative_variance"].max()),
                     number(rows["relative_variance"].max()), _factors(growths.loc[run]))
                    for run, rows in table.groupby("run", sort=False)
                ),
            ),
        ),
    )  # fmt: skip


def _minibatches(table: pd.DataFrame) -> str:
    if "minibatches" not in table:
        return "minibatches"
    kinds = table[["minibatches", "minibatch_size"]].drop_duplicates().sort_values("minibatches")
    return " or ".join(f"{n:.0f} minibatches of {size:.0f}" for n, size in kinds.to_numpy())


def _above_floor(table: pd.DataFrame) -> pd.Series:
    """Where the true gradient has at least the floor's share of the first norm of its run."""
    norms = table.groupby(["run", "seed"], sort=False)["true_gradient_norm"]
    return table["true_gradient_norm"] >= _FLOOR * norms.transform("first")


def _growth(rows: pd.DataFrame) -> tuple[float, float, float]:
    """Growth of the logarithm per step: low end, mean and high end of Student's 95 % interval over
    the seeds of a run, NaN where unknown.
    """
    slopes = [
        np.polyfit(own["step"].astype(float), np.log(own["relative_variance"].clip(1e-300)), 1)[0]
        for _, own in rows[_above_floor(rows)].groupby("seed")
        if own["step"].nunique() > 1
    ]
    middle = float(np.mean(slopes)) if slopes else np.nan
    half = np.nan
    if len(slopes) > 1:
        half = stats.t.ppf(0.975, len(slopes) - 1) * np.std(slopes, ddof=1) / len(slopes) ** 0.5
    return middle - half, middle, middle + half


def _factors(growth: pd.Series) -> str:
    low, middle, high = (number(factor) for factor in np.exp(100.0 * growth))
    return "" if np.isnan(growth["middle"]) else f"{middle}x ({low} to {high})"


def _sentences(growths: pd.DataFrame) -> list[str]:
    return [
        f"{run}: grows {_factors(row)} per 100 steps while the true gradient has not vanished."
        for run, row in growths.iterrows()
    ]


def figure(data: Tables) -> Figure | None:
    return trace_figure(data["trace"], "relative_variance", "relative variance")
