"""Claim 3: the minibatch gradient's relative variance."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

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
CRITERION = "Holds in a run where the relative variance is finite at every measured step."
FIGURE = "claim-3-variance"
CAPTION = (
    "Relative variance of JFB's minibatch gradient against training steps. Median and "
    "quartiles over the seeds."
)
jobs = traced
#: relative variance grows where it ends beyond 1 and beyond this multiple of its first value
_GROWTH = 10.0
#: a gradient with less than this of its first norm is near a stationary point
_NEARLY_STATIONARY = 0.1


def judge(data: Tables) -> Judgement:
    every = data["trace"]
    table = every.dropna(subset=["relative_variance", "rate_max"], how="all")
    finite = np.isfinite(every["relative_variance"].astype(float))
    # a run that ended before its last measurement has none there
    holds = finite.groupby(every["run"], sort=False).all() & ~unfinished(every, "relative_variance")
    peaks = _peaks(table)
    return Judgement(
        "E|g - Eg|^2/|Eg|^2 is finite in "
        f"{int(holds.sum())} of {len(holds)} runs; largest: {by_variant(peaks, 'peak')}",
        verdict(holds),
        f"{seeds_of(table)}; over {_minibatches(table)} of the held-out states, so that the ratio "
        "is a rough one where |Eg| is small. A finite run can refute a bound, not prove one: the "
        "verdict says only that every value is finite",
        (*_growths(peaks), *endings(every, "relative_variance")),
        (
            Numbers.of(
                "E|g - Eg|^2/|Eg|^2",
                ("run", "at first", "largest", "at step", "true gradient norm there over first"),
                (
                    (run, number(row["first"]), number(row["peak"]), f"{row['step']:.0f}",
                     number(row["shrinks"]))
                    for run, row in peaks.iterrows()
                ),
            ),
        ),
    )  # fmt: skip


def _minibatches(table: pd.DataFrame) -> str:
    if "minibatches" not in table:
        return "minibatches"
    kinds = table[["minibatches", "minibatch_size"]].drop_duplicates().sort_values("minibatches")
    return " or ".join(f"{n:.0f} minibatches of {size:.0f}" for n, size in kinds.to_numpy())


def _peaks(table: pd.DataFrame) -> pd.DataFrame:
    """Per run: the largest relative variance and the true gradient norm there, with its seed's
    first values of both.
    """
    rows = {}
    for run, part in table.groupby("run", sort=False):
        peak = part.loc[part["relative_variance"].fillna(-1.0).idxmax()]
        first = part[part["seed"] == peak["seed"]].iloc[0]
        rows[run] = {
            "variant": peak["variant"],
            "first": first["relative_variance"],
            "peak": peak["relative_variance"],
            "step": peak["step"],
            "shrinks": peak["true_gradient_norm"] / first["true_gradient_norm"],
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def _growths(peaks: pd.DataFrame) -> list[str]:
    grown = peaks[peaks["peak"] > (_GROWTH * peaks["first"]).clip(lower=1.0)]
    broken = ~np.isfinite(grown["shrinks"].astype(float))
    stationary = grown["shrinks"] < _NEARLY_STATIONARY
    groups = (
        (broken, "the true gradient is not finite: the inner iteration has diverged on some state"),
        (
            stationary & ~broken,
            "the true gradient has less than a tenth of its first norm: near a stationary point "
            "|Eg| vanishes and the ratio grows without contradiction",
        ),
        (
            ~stationary & ~broken,
            "the mean gradient has not vanished: the minibatches disagree",
        ),
    )
    return [
        f"Grows tenfold and beyond 1 where {why}: {'; '.join(grown.index[mask])}."
        for mask, why in groups
        if mask.any()
    ]


def figure(data: Tables) -> Figure | None:
    return trace_figure(data["trace"], "relative_variance", "relative variance")
