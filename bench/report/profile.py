"""Time to target and Dolan-Moré performance profiles (Math. Program. 91, 2002)."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd


def performance_profile(times: pd.DataFrame) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Method -> (ratios, fraction of instances solved within that multiple of the best time).

    `times`: one row per instance, one column per method [s]; NaN or infinite is a miss. Both
    returned arrays start at ratio 1 and grow; the fraction holds from its ratio to the next. An
    instance nobody solved stays in the denominator.
    """
    values = times.fillna(math.inf).astype(float)
    best = values.min(axis=1)
    # equal to the best is ratio 1 also where the best is zero: a target met before the first step
    ratio = values.div(best, axis=0).mask(values.eq(best, axis=0), 1.0)
    ratio = ratio[np.isfinite(values)]
    profiles = {}
    for method in values.columns:
        ratios = ratio[method][np.isfinite(ratio[method])]
        steps, counts = np.unique(ratios, return_counts=True)
        fractions = np.cumsum(counts) / len(values)
        if len(steps) == 0 or steps[0] > 1.0:
            steps = np.concatenate([[1.0], steps])
            fractions = np.concatenate([[0.0], fractions])
        profiles[str(method)] = (steps, fractions)
    return profiles


def time_to_target(curve: pd.DataFrame, target: float) -> float:
    """Seconds until the optimality gap of a curve is at most `target` for good; inf for a miss."""
    return _settled_at(curve, target, "seconds")


def steps_to_target(curve: pd.DataFrame, target: float) -> float:
    """The same in training steps."""
    return _settled_at(curve, target, "step")


def _settled_at(curve: pd.DataFrame, target: float, column: str) -> float:
    """Where the evaluations after which none misses the target begin; a gap that is NaN misses."""
    missed = ~(curve["optimality_gap"].to_numpy(dtype=float) <= target)
    begin = int(missed.nonzero()[0][-1]) + 1 if missed.any() else 0
    return float(curve[column].iloc[begin]) if begin < len(curve) else math.inf


def median_with_misses(seconds: pd.Series) -> float:
    """Median where a miss is infinite: infinite once half of the seeds miss."""
    ordered = np.sort(seconds.fillna(math.inf).to_numpy(dtype=float))
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return float(ordered[middle])
    return float((ordered[middle - 1] + ordered[middle]) / 2)
