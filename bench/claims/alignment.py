"""Claim 2: JFB's gradient against the true one, in direction and in length."""

from __future__ import annotations

import math

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
    unfinished,
    verdict,
    worst,
)
from bench.claims.panels import trace_figure

NUMBER = 2
TABLE = "trace"
CLAIM = "JFB's gradient is within 90 degrees of the true one"
CRITERION = (
    "Holds in a run where the angle between JFB's and the exact gradient is below 90 degrees, "
    "on every minibatch and on average over them."
)
FIGURE = "claim-2-alignment"
CAPTION = (
    "Largest angle between JFB and exact gradient over minibatches against training steps. "
    "Median and quartiles over the seeds."
)
jobs = traced
#: the steps of the quick traces at which every angle is looked at
_STEPS = (0, 50)
#: JFB's gradient counts as too long or too short beyond this factor
_LENGTH = 1.5


def judge(data: Tables) -> Judgement:
    every = data["trace"]
    table = every.dropna(subset=["angle_max", "rate_max"], how="all")
    angles = worst(every, "angle_max")
    undefined = table["angle_max"].isna().groupby(table["run"], sort=False).any()
    undefined = undefined.reindex(angles.index, fill_value=True)
    expected = worst(every, "angle_expectation")
    holds = (angles < 90.0) & (expected < 90.0) & ~undefined & ~unfinished(every, "angle_max")
    within = table[~missed_tolerance(table)]["angle_max"]
    beyond = _beyond(table)
    return Judgement(
        f"in {int(holds.sum())} of {len(holds)} runs; largest angle [deg]: "
        f"{by_variant(table, 'angle_max')}; where the inner tolerance was reached "
        f"{number(within.max())} over {len(within)} measurements",
        verdict(holds),
        f"{seeds_of(table)}; true gradient by implicit differentiation; angles are the largest "
        "along training, on a minibatch and of the gradients averaged over minibatches",
        (*_misaligned(beyond), *endings(every, "angle_max"), *_lengths(table)),
        (*_tables(table), *([_beyond_table(beyond)] if len(beyond) else [])),
    )


def _tables(table: pd.DataFrame) -> tuple[Numbers, ...]:
    true = Numbers.of(
        "JFB's gradient against the true one along training",
        ("run", "angle [deg]", "in expectation", "length over the true one's",
         "tolerance missed in"),
        (
            (str(run), number(rows["angle_max"].max()), number(rows["angle_expectation"].max()),
             spread(rows["norm_ratio"]), share(int(missed_tolerance(rows).sum()), len(rows)))
            for run, rows in table.groupby("run", sort=False)
        ),
    )  # fmt: skip
    if "angle_applied" not in table or table["angle_applied"].isna().all():
        return (true,)
    applied = table.dropna(subset=["angle_applied"])
    return true, Numbers.of(
        "Against the derivative of the iteration as it is run, unrolled to its last application",
        ("run", "angle [deg]", "length over that derivative's"),
        (
            (str(run), number(rows["angle_applied"].max()), spread(rows["norm_ratio_applied"]))
            for run, rows in applied.groupby("run", sort=False)
        ),
    )


def _beyond(table: pd.DataFrame) -> pd.DataFrame:
    """The first measurement of each run beyond 90 degrees, or without an angle."""
    outside = table[(table["angle_max"] >= 90.0) | table["angle_max"].isna()]
    firsts = table.groupby(["run", "seed"], sort=False)["true_gradient_norm"].first()
    found = outside.groupby("run", sort=False).head(1)
    return found.assign(
        first_norm=firsts.loc[pd.MultiIndex.from_frame(found[["run", "seed"]])].to_numpy(),
        missed=missed_tolerance(found).astype(bool),
    )


def _misaligned(beyond: pd.DataFrame) -> list[str]:
    late, reached = beyond[beyond["missed"]], beyond[~beyond["missed"]]
    found = []
    if len(late):
        found.append(
            "Beyond 90 degrees where the inner tolerance was not reached, so that the implicit "
            "gradient is that of a fixed point, which the control applied is not: "
            f"{'; '.join(late['run'])}."
        )
    if len(reached):
        found.append(
            "Beyond 90 degrees, or without an angle, although the inner tolerance was reached: "
            f"{'; '.join(reached['run'])}."
        )
    return found


def _beyond_table(beyond: pd.DataFrame) -> Numbers:
    return Numbers.of(
        "Where the angle is first beyond 90 degrees",
        ("run", "seed", "step", "angle [deg]", "true gradient norm (at first)", "residual (asked)"),
        (
            (row.run, f"{row.seed:.0f}", f"{row.step:.0f}",
             number(row.angle_max) if math.isfinite(row.angle_max) else "none: an overflow",
             f"{number(row.true_gradient_norm)} ({number(row.first_norm)})",
             f"{number(row.residual_max)} ({number(row.tolerance)})")
            for row in beyond.itertuples()
        ),
    )  # fmt: skip


def _lengths(table: pd.DataFrame) -> list[str]:
    """JFB multiplies du/dc by alpha D where the truth has the inverse Hessian: its length tells."""
    ratios = table.dropna(subset=["norm_ratio"]).groupby("run", sort=False)["norm_ratio"]
    long, short = ratios.max(), ratios.min()
    long, short = long[long > _LENGTH], short[short < 1.0 / _LENGTH]
    found = []
    if len(long):
        found.append(
            f"JFB's gradient is up to {number(long.max())} times as long as the true one: the "
            "map's step overestimates the feedback gain where -H curves more "
            f"({'; '.join(long.index)})."
        )
    if len(short):
        found.append(
            f"JFB's gradient is down to {number(short.min())} of the true one's length: the "
            "derivative of one application is a small part of the fixed point's "
            f"({'; '.join(short.index)})."
        )
    return found


def figure(data: Tables) -> Figure | None:
    label = "largest angle [degrees]"
    return trace_figure(data["trace"], "angle_max", label, limit=90.0, scale="linear")


def failures(data: Tables) -> list[str]:
    """What does not hold of what must on every machine; data that is not there does not hold."""
    if "trace" not in data:
        return ["alignment: no traces"]
    found = []
    traces = data["trace"][data["trace"]["variant"] != "released"]
    for run, rows in traces.groupby("run", sort=False):
        for step in _STEPS:
            angles = rows[rows["step"] == step]["angle_max"]
            if not (len(angles) and bool((angles < 90.0).all())):
                largest = f"{angles.max():.4g}" if len(angles) else "not measured"
                found.append(
                    f"alignment: {run}, step {step}: the angle on every minibatch must be < 90 "
                    f"degrees, is {largest}"
                )
    return found
