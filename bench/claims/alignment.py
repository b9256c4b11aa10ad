"""Claim 2: JFB's gradient against the true one, in direction and in length."""

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
    unfinished,
    verdict,
    worst,
)
from bench.claims.panels import trace_figure

NUMBER = 2
TABLE = "trace"
CLAIM = "JFB's gradient is within 90 degrees of the true one"
CRITERION = (
    "Holds in a run where the angle between JFB's and the exact gradient is below 90 degrees at "
    "every measured step: on every minibatch, and in expectation with its 95 % interval."
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
    every = data["trace"].reset_index(drop=True)
    # The largest angle of a step: on a minibatch, or at the far end of the expectation's interval.
    both = every[["angle_max", "angle_expectation_high"]].astype(float)
    every = every.assign(widest=both.max(axis=1, skipna=False))
    table = every.dropna(subset=["angle_max", "rate_max"], how="all")
    angles = worst(every, "widest")
    undefined = table["widest"].isna().groupby(table["run"], sort=False).any()
    undefined = undefined.reindex(angles.index, fill_value=True)
    holds = (angles < 90.0) & ~undefined & ~unfinished(every, "angle_max")
    within = table[~missed_tolerance(table)]["angle_max"]
    return Judgement(
        f"in {int(holds.sum())} of {len(holds)} runs; largest angle [deg] of a seed: "
        f"{by_variant(table, 'angle_max')}; where the inner tolerance was reached "
        f"{number(within.max())} over {len(within)} measurements",
        verdict(holds),
        f"{seeds_of(table)}; true gradient by implicit differentiation; angles are the largest "
        "along training, on a minibatch and of the gradients averaged over minibatches, there "
        "with the far end of its 95 % interval over them. Where the inner tolerance was not "
        "reached the implicit gradient takes the control applied for a fixed point",
        (*_beyond(table), *endings(every, "angle_max"), *_lengths(table)),
        tuple(_tables(table)),
    )


def _tables(table: pd.DataFrame) -> Iterable[Numbers]:
    yield Numbers.of(
        "JFB's gradient against the true one along training",
        ("run", "angle [deg]", "in expectation (95 %)", "length over the true one's",
         "tolerance missed in"),
        (
            (str(run), number(rows["angle_max"].max()),
             f"{number(rows['angle_expectation'].max())} "
             f"({number(rows['angle_expectation_high'].max())})",
             spread(rows["norm_ratio"]), share(missed_tolerance(rows).sum(), len(rows)))
            for run, rows in table.groupby("run", sort=False)
        ),
    )  # fmt: skip
    applied = table[table["angle_applied"].notna()] if "angle_applied" in table else table[:0]
    if len(applied):
        yield Numbers.of(
            "JFB's gradient against the derivative of the iteration as it is run, unrolled to its "
            "last application",
            ("run", "angle [deg]", "length over that derivative's"),
            (
                (str(run), number(rows["angle_applied"].max()), spread(rows["norm_ratio_applied"]))
                for run, rows in applied.groupby("run", sort=False)
            ),
        )


def _beyond(table: pd.DataFrame) -> list[str]:
    """One sentence on each run with a step beyond 90 degrees or without an angle: the first."""
    outside = table[~(table["widest"] < 90.0)].groupby("run", sort=False).head(1)
    found = []
    for row in outside.itertuples():
        own = table[(table["run"] == row.run) & (table["seed"] == row.seed)]
        angle = f"{number(row.widest)} degrees" if math.isfinite(row.widest) else "an overflow"
        missed = missed_tolerance(table.loc[[row.Index]]).item()
        # Where it was missed the implicit gradient takes the control applied for a fixed point.
        found.append(
            f"{row.run}, seed {row.seed}, step {row.step}: {angle}, true gradient norm "
            f"{number(row.true_gradient_norm)} ({number(own['true_gradient_norm'].iloc[0])} at "
            f"first); the inner tolerance was {'not ' if missed else ''}reached, residual "
            f"{number(row.residual_max)} ({number(row.tolerance)} asked)."
        )
    return found


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
    return trace_figure(data["trace"], "angle_max", label, limit=90.0, log=False)


def failures(data: Tables) -> list[str]:
    """What does not hold of what must on every machine; data that is not there does not hold."""
    if "trace" not in data:
        return ["alignment: no traces"]
    traces = data["trace"][data["trace"]["variant"] != "released"]
    found = []
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
