"""Claim 2: JFB's gradient against the true one, in direction and in length."""

from __future__ import annotations

import math

import pandas as pd

from bench.verify.claim import Claim, Tables, listing, number, seeds_of, verdict, worst

#: JFB's gradient counts as too long or too short beyond this factor
_LENGTH = 1.5


def alignment(data: Tables) -> Claim:
    table = data["traces"].dropna(subset=["rate_max"])
    angles = worst(table, "angle_max")
    undefined = table["angle_max"].isna().groupby(table["run"], sort=False).any()
    holds = (angles < 90.0) & ~undefined.reindex(angles.index)
    converged = table["residual_max"] <= 1.1 * table["tolerance"]
    within = table[converged]["angle_max"]
    return Claim(
        2,
        "JFB's gradient is within 90 degrees of the true one",
        f"largest angle on a minibatch [deg]: {listing(angles)}",
        verdict(holds),
        f"{seeds_of(table)}; true gradient by implicit differentiation; in expectation: "
        f"{listing(worst(table, 'angle_expectation'))}. Where the inner tolerance was reached the "
        f"largest angle is {number(within.max())} over {len(within)} measurements",
        "figures/claim-2-alignment.png",
        "Largest angle between JFB and exact gradient over minibatches against training steps. "
        "Median and range over the seeds.",
        (*_misaligned(table), *_applied(table), *_lengths(table)),
    )


def _misaligned(table: pd.DataFrame) -> list[str]:
    found = []
    for run, rows in table.groupby("run", sort=False):
        outside = rows[(rows["angle_max"] >= 90.0) | rows["angle_max"].isna()]
        if outside.empty:
            continue
        first = outside.iloc[0]
        asked = first["residual_max"] <= 1.1 * first["tolerance"]
        reached = (
            "the inner tolerance was reached"
            if asked
            else "the inner tolerance was not reached, and the implicit gradient is that of a "
            "fixed point, which the control applied is not"
        )
        size = first["angle_max"]
        what = (
            f"the angle is {number(size)} degrees"
            if math.isfinite(size)
            else "a gradient overflows and no angle exists"
        )
        found.append(
            f"{run}: first at step {first['step']:.0f} (seed {first['seed']:.0f}) {what}; true "
            f"gradient norm {number(first['true_gradient_norm'])}, first of this run "
            f"{number(rows['true_gradient_norm'].iloc[0])}, residual "
            f"{number(first['residual_max'])}: {reached}."
        )
    return found


def _applied(table: pd.DataFrame) -> list[str]:
    if "angle_applied" not in table:
        return []
    found = []
    for run, rows in table.dropna(subset=["angle_applied"]).groupby("run", sort=False):
        ratios = rows["norm_ratio_applied"]
        found.append(
            f"{run}: against the derivative of the iteration as it is run (unrolled to its last "
            f"application) JFB's angle is at most {number(rows['angle_applied'].max())} degrees "
            f"and its length {number(ratios.min())} to {number(ratios.max())} of that derivative's."
        )
    return found


def _lengths(table: pd.DataFrame) -> list[str]:
    """JFB multiplies du/dc by alpha D where the truth has the inverse Hessian: its length tells."""
    found = []
    for run, rows in table.groupby("run", sort=False):
        ratios = rows["norm_ratio"].dropna()
        if ratios.empty:
            continue
        long, short = ratios.max(), ratios.min()
        if long > _LENGTH:
            row = rows.loc[ratios.idxmax()]
            found.append(
                f"{run}: JFB's gradient is up to {number(long)} times as long as the true one "
                f"(step {row['step']:.0f}): this map's step overestimates the feedback gain where "
                f"the curvature of -H is up to {number(row['curvature_max'])}."
            )
        if short < 1.0 / _LENGTH:
            row = rows.loc[ratios.idxmin()]
            found.append(
                f"{run}: JFB's gradient is down to {number(short)} of the true one's length (step "
                f"{row['step']:.0f}, |dT/du| {number(row['rate_max'])}): the derivative of one "
                "application is a small part of the fixed point's."
            )
    return found
