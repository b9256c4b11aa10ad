"""Scores over cases and seeds: time to a stated gap of the reference optimum, Dolan-Moré profiles
(Math. Program. 91, 2002), power laws.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from bench.report.frames import WORKLOAD, trained

#: optimality gaps that count as reached
TARGETS = (0.25, 0.10, 0.05, 0.02)
#: a target is one where the untrained policy's gap is at least so many times as wide
_LEAST_MISS = 3.0
#: what has to be equal for two runs to be after the same target; batch and execution are part of
#: how a gradient trains
TARGET_INSTANCE = ("environment", "problem", "n_agents", "variant", "n_steps", "dtype", "device")

_SEED = ["run", "id", "seed"]
_CASE = [
    *("run", "problem", "n_agents", "environment", "id", "gradient", "ascent", "solver"),
    *("budget", *WORKLOAD, "recipe", "learning_rate"),
]


def own_rate(rows: pd.DataFrame) -> pd.DataFrame:
    """`rows` without the runs at other learning rates than the recipe's, where there are both.

    Of each gradient at each size apart: one that ran at another rate only stays.
    """
    own = rows["learning_rate"].isna()
    keys = [rows[name] for name in ("run", "problem", "n_agents", "gradient")]
    return rows[own | ~own.groupby(keys, dropna=False).transform("any")]


def tuned(times: pd.DataFrame) -> pd.DataFrame:
    """Of `target_times`, every gradient's best setting where any gradient's rate was tuned.

    One row per problem, size and gradient; `settings` counts the rates and maps to choose from, 1
    for a gradient that was only run on the recipe. Best is the shortest time to the narrowest
    target that any of them reaches, then the smallest median gap at the end.
    """
    instance = ["run", *TARGET_INSTANCE]
    anyone = times.groupby(instance, dropna=False)["learning_rate"].transform("count") > 0
    order = [f"target_{target:g}" for target in sorted(TARGETS)] + ["gap"]
    best = times[anyone].sort_values(order)
    groups = best.groupby([*instance, "gradient"], dropna=False, sort=False)
    return best.assign(settings=groups["id"].transform("size"))[groups.cumcount() == 0].sort_index()


def target_times(curves: pd.DataFrame, cases: pd.DataFrame) -> pd.DataFrame:
    """One row per trained case of the problems whose optimum is known.

    Columns `target_0.25` … hold the median seconds over seeds (infinite where half of the seeds
    or more miss it), `steps_0.25` … the median training steps, `reached_0.25` … the number of
    seeds that reach it; `gap`, `gap_min` and `gap_max` the median, least and greatest gap at the
    end of training, infinite for a seed that failed; `cpus` what the seeds ran on, where it was
    recorded. A target that an untrained policy of any gradient is closer to than three times its
    gap says nothing of training: its times are NaN for all of them. A seed that failed without a
    curve is a miss like any other; a gradient that cannot serve the problem did not try, and has no
    row.
    """
    known, instance = curves[curves["optimality_gap"].notna()], list(TARGET_INSTANCE)
    untrained = known[known["step"] == 0].groupby(instance, dropna=False)["optimality_gap"].min()
    runs = cases[trained(cases) & cases["status"].ne("unsupported")]
    runs = runs.merge(known[instance].drop_duplicates(), on=instance)
    runs = runs.merge(untrained.rename("untrained").reset_index(), on=instance, how="left")
    runs["gap"] = runs["final_optimality_gap"].where(runs["status"] == "ok").fillna(math.inf)
    by_seed = dict(list(known.groupby(_SEED, dropna=False)))
    own = [by_seed.get(key) for key in runs[_SEED].itertuples(index=False, name=None)]
    scores = {
        "seeds": ("seed", "size"),
        "gap": ("gap", median_with_misses),
        "gap_min": ("gap", "min"),
        "gap_max": ("gap", "max"),
        "cpus": ("cpu", lambda cpus: " and ".join(sorted(cpus.dropna().unique()))),
        "untrained": ("untrained", "first"),
    }
    for target in TARGETS:
        seconds, steps = f"target_{target:g}", f"steps_{target:g}"
        for name, column in ((seconds, "seconds"), (steps, "step")):
            runs[name] = [time_to_target(curve, target, column) for curve in own]
            scores[name] = (name, median_with_misses)
        scores[f"reached_{target:g}"] = (seconds, lambda times: int(np.isfinite(times).sum()))
    found = runs.groupby(_CASE, dropna=False).agg(**scores).reset_index()
    for target in TARGETS:
        easy = target > found["untrained"] / _LEAST_MISS
        found.loc[easy, [f"target_{target:g}", f"steps_{target:g}"]] = math.nan
    return found.drop(columns="untrained")


def time_to_target(curve: pd.DataFrame | None, target: float, column: str = "seconds") -> float:
    """Where the evaluations of `curve` begin after which none misses `target`, in `column`.

    An optimality gap that is NaN misses. Infinite where the last one misses or there is no curve.
    """
    if curve is None:
        return math.inf
    missed = ~(curve["optimality_gap"].to_numpy(dtype=float) <= target)
    begin = int(missed.nonzero()[0][-1]) + 1 if missed.any() else 0
    return float(curve[column].iloc[begin]) if begin < len(curve) else math.inf


def median_with_misses(seconds: pd.Series) -> float:
    """Median where a miss is infinite: infinite once half of the seeds miss."""
    ordered = np.sort(seconds.fillna(math.inf).to_numpy(dtype=float))
    return float(ordered[(len(ordered) - 1) // 2] / 2 + ordered[len(ordered) // 2] / 2)


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
            steps, fractions = np.insert(steps, 0, 1.0), np.insert(fractions, 0, 0.0)
        profiles[str(method)] = (steps, fractions)
    return profiles


def power_law_slope(x: pd.Series, y: pd.Series) -> float | None:
    """Exponent b of the least-squares fit y = a·x^b through the median y at every x.

    Medians first, so that an x measured with more seeds weighs no more than the others. None with
    fewer than two distinct positive x, where there is no slope.
    """
    points = pd.DataFrame({"x": x.astype(float), "y": y.astype(float)}).dropna()
    medians = points[(points > 0).all(axis=1)].groupby("x")["y"].median()
    if len(medians) < 2:
        return None
    return float(np.polyfit(np.log(medians.index), np.log(medians), 1)[0])
