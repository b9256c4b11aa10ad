"""What one-step differentiation predicts of JFB: an error of at most the map's own derivative."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bench.claims.cases import traced
from bench.claims.claim import (
    Judgement,
    Numbers,
    Tables,
    missed_tolerance,
    number,
    seeds_of,
    share,
    verdict,
)
from bench.claims.panels import VARIANTS
from bench.report.figures.canvas import WIDTH

NUMBER = None
TABLE = "trace"
CLAIM = (
    "Is JFB's gradient off by no more than |dT/du| (one-step differentiation, arXiv 2305.13768)?"
)
CRITERION = (
    "Holds in a run where, at every measured step whose inner tolerance was reached, the relative "
    "difference of JFB's expected gradient to the exact one is at most the largest |dT/du| along "
    "the rollout."
)
FIGURE = "beyond-one-step"
CAPTION = (
    "Relative difference of JFB's expected gradient to the exact one against the largest |dT/du| "
    "along the rollout, a point for each measured step; on the line they are equal."
)
jobs = traced
#: differences below this are float32's, on maps where JFB is exact
_ROUNDING = 1e-4


def judge(data: Tables) -> Judgement:
    table = _measured(data)
    bound = table["rate_max"].clip(lower=_ROUNDING)
    within = table["bias"] <= bound
    runs = within.groupby(table["run"], sort=False)
    most = (table["bias"] / bound).max()
    return Judgement(
        f"in {int(runs.all().sum())} of {runs.ngroups} runs, at {int(within.sum())} of "
        f"{len(within)} measured steps; never above {number(most)} times |dT/du|",
        verdict(runs.all()),
        f"{seeds_of(table)}; for a single decision the bound is a theorem: du/dp by one "
        "application is (I - dT/du) times the true one. A rollout adds up decisions whose errors "
        "may point the same way, and amplifies them; the bound there is a question. Steps whose "
        "inner tolerance was missed are left out",
        tuple(_beyond(table[~within])),
        (
            Numbers.of(
                "JFB's relative error and the map's derivative along training",
                ("run", "largest error", "largest |dT/du|", "steps within the bound"),
                (
                    (str(run), number(rows["bias"].max()), number(rows["rate_max"].max()),
                     share(int(within[rows.index].sum()), len(rows)))
                    for run, rows in table.groupby("run", sort=False)
                ),
            ),
        ),
    )  # fmt: skip


def _measured(data: Tables) -> pd.DataFrame:
    """The rows with both numbers and an inner tolerance that was reached, with the error `bias`:
    |jfb - true| over |true|, from the angle and the lengths of the expected gradients."""
    table = data["trace"].dropna(subset=["angle_expectation", "norm_ratio", "rate_max"])
    table = table[~missed_tolerance(table)]
    ratio, cosine = table["norm_ratio"], np.cos(np.radians(table["angle_expectation"]))
    # (r - 1)^2 + 2 r (1 - cos): no difference of nearly equal numbers where JFB is exact.
    bias = np.sqrt((ratio - 1.0) ** 2 + 2.0 * ratio * (1.0 - cosine))
    return table.assign(bias=bias)


def _beyond(table: pd.DataFrame) -> list[str]:
    """One sentence on each run with an error above the bound: the furthest."""
    found = []
    for run, rows in table.groupby("run", sort=False):
        row = rows.loc[(rows["bias"] / rows["rate_max"]).idxmax()]
        found.append(
            f"{run}: {number(row['bias'])} where |dT/du| is at most {number(row['rate_max'])}, "
            f"step {row['step']:.0f} of seed {row['seed']}."
        )
    return found


def figure(data: Tables) -> Figure | None:
    table = _measured(data)
    if table.empty:
        return None
    drawn = Figure(figsize=(0.6 * WIDTH, 0.5 * WIDTH), layout="constrained")
    axes = drawn.subplots()
    for variant, rows in table.groupby("variant", sort=False):
        look = VARIANTS[str(variant)]
        x, y = (rows[name].clip(lower=1e-8) for name in ("rate_max", "bias"))
        axes.plot(x, y, look.marker, color=look.color, markersize=4.5, label=str(variant))
    low, high = 1e-8, max(1.0, float(table[["rate_max", "bias"]].to_numpy().max()))
    axes.plot([low, high], [low, high], color="#555555", linewidth=1.0)
    axes.set(xscale="log", yscale="log", xlabel="largest |dT/du|", ylabel="relative error of JFB")
    axes.legend(frameon=False)
    return drawn
