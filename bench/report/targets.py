"""Time to target: seconds until training stays within a stated gap of the reference optimum."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from bench.report.frames import WORKLOAD, trained
from bench.report.profile import median_with_misses, steps_to_target, time_to_target

#: optimality gaps that count as reached
TARGETS = (0.25, 0.10, 0.05, 0.02)
#: a target is one where the untrained policy's gap is at least so many times as wide
_LEAST_MISS = 3.0

#: what has to be equal for two runs to be after the same target; batch and execution are part of
#: how a gradient trains
TARGET_INSTANCE = ("environment", "problem", "n_agents", "variant", "n_steps", "dtype", "device")

_PROBLEM = ("problem", "n_agents", "environment")
_CASE = (
    *("run", *_PROBLEM, "id", "gradient", "ascent", "solver", "budget", *WORKLOAD),
    *("recipe", "learning_rate"),
)


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
    if times.empty:
        return times
    order = [f"target_{target:g}" for target in sorted(TARGETS)] + ["gap"]
    instance = ["run", *TARGET_INSTANCE]
    anyone = times.groupby(instance, dropna=False)["learning_rate"].transform("count") > 0
    groups = times[anyone].groupby([*instance, "gradient"], dropna=False, sort=False)
    best = [
        group.sort_values(order).iloc[0].to_dict() | {"settings": len(group)} for _, group in groups
    ]
    return pd.DataFrame(best)


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
    known = curves[curves["optimality_gap"].notna()]
    by_seed = dict(list(known.groupby(["run", "id", "seed"], dropna=False)))
    runs = cases[trained(cases) & cases["status"].ne("unsupported")]
    instance = list(TARGET_INSTANCE)
    untrained = known[known["step"] == 0].groupby(instance, dropna=False)["optimality_gap"].min()
    runs = runs.merge(known[instance].drop_duplicates(), on=instance)
    runs = runs.merge(untrained.rename("untrained").reset_index(), on=instance, how="left")
    rows = []
    for key, case in runs.groupby(list(_CASE), dropna=False):
        row = dict(zip(_CASE, key, strict=True))
        seeds = [by_seed.get((row["run"], row["id"], seed)) for seed in case["seed"]]
        ends = case["final_optimality_gap"].where(case["status"] == "ok").fillna(math.inf)
        row["seeds"] = len(seeds)
        row["gap"] = median_with_misses(ends)
        row["gap_min"], row["gap_max"] = ends.min(), ends.max()
        row["cpus"] = tuple(sorted(case["cpu"].dropna().unique()))
        widest = case["untrained"].iloc[0] / _LEAST_MISS
        for target in TARGETS:
            times, steps = (
                pd.Series([math.inf if seed is None else measure(seed, target) for seed in seeds])
                for measure in (time_to_target, steps_to_target)
            )
            row[f"target_{target:g}"] = median_with_misses(times)
            row[f"steps_{target:g}"] = median_with_misses(steps)
            row[f"reached_{target:g}"] = int((times < math.inf).sum())
            if target > widest:
                row[f"target_{target:g}"] = row[f"steps_{target:g}"] = math.nan
        rows.append(row)
    return pd.DataFrame(rows)


def crossing_fractions(
    curves: pd.DataFrame, cases: pd.DataFrame, target: float
) -> dict[tuple[str, int], np.ndarray]:
    """Per problem and size, when its runs came within `target` for good, as shares of the limit.

    One number per trained case and seed that got there and has a time limit. Where the protocol
    decides and not the gradient, they pile up: `np.histogram(shares, 20, (0, 1))` shows it.
    """
    limits = cases.set_index(["run", "id", "seed"])["train_seconds"].dropna()
    shares: dict[tuple[str, int], list[float]] = {}
    known = curves[curves["optimality_gap"].notna()]
    for key, curve in known.groupby(["run", "id", "seed"], dropna=False):
        seconds = time_to_target(curve, target)
        if key in limits.index and math.isfinite(seconds):
            first = curve.iloc[0]
            shares.setdefault((first["problem"], int(first["n_agents"])), []).append(
                seconds / float(limits.loc[key])
            )
    return {key: np.array(values) for key, values in shares.items()}
