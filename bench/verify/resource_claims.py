"""Claims 6 and 7: cost against the clock, and scale."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pandas as pd

from bench.registry import has_inner_problem
from bench.verify.claim import (
    NOT_MEASURED,
    SIZE,
    Claim,
    Numbers,
    Tables,
    number,
    size_name,
    verdict,
)


def _without_inner(costs: pd.Series) -> list[str]:
    """The gradients in the index of `costs` that solve no inner problem."""
    return [name for name in costs.index if not has_inner_problem(name)]


def times_to_cost(table: pd.DataFrame) -> pd.DataFrame:
    """Seconds until each gradient's held-out cost reaches a cost that all of them end at or below.

    `target` is, per size and seed, the worst final cost among the gradients with an inner
    problem; infinite where a run never gets there.
    """
    run = table.dropna(subset=["seconds"]).sort_values("seconds")
    rows = []
    for (problem, n, seed), part in run.groupby([*SIZE, "seed"], sort=False):
        # The last point, not the last finite one: a run that diverged ends nowhere.
        final = part.groupby("gradient").tail(1).set_index("gradient")["cost"]
        inner = final.drop(_without_inner(final), errors="ignore").dropna()
        if len(inner) < 2:  # nothing to be equal to
            continue
        for gradient, curve in part.groupby("gradient"):
            reached = curve[curve["cost"] <= inner.max()]["seconds"]
            rows.append({"problem": problem, "n_agents": n, "seed": seed, "gradient": gradient,
                         "target": inner.max(), "worst": inner.idxmax(),
                         "seconds": reached.min() if len(reached) else math.inf})  # fmt: skip
    return pd.DataFrame(rows)


def cost(data: Tables) -> Claim:
    table = data["races"].dropna(subset=["seconds"])
    last = table.sort_values("seconds").groupby([*SIZE, "gradient", "seed"]).tail(1)
    # A cost that is not finite is null in the data: the run has diverged.
    ends = last.assign(cost=last["cost"].fillna(math.inf))
    final = ends.groupby([*SIZE, "gradient"])["cost"].median()
    holds, behind = [], []
    for key, costs in final.groupby(level=SIZE, sort=False):
        costs = costs.droplevel(SIZE)
        rivals = costs.drop(["jfb", *_without_inner(costs)], errors="ignore").dropna()
        if "jfb" not in costs or rivals.empty:
            continue
        near = bool(
            math.isfinite(costs["jfb"]) and costs["jfb"] <= rivals.min() + 0.1 * abs(rivals.min())
        )
        holds.append(near)
        if not near:
            behind.append(
                f"{size_name(key)}: JFB ends at {number(costs['jfb'])}, {rivals.idxmin()} at "
                f"{number(rivals.min())}."
            )
    seeds = table["seed"].nunique()
    return Claim(
        6,
        "Comparable final cost per wall-clock second",
        f"JFB ends within 10 % of the best other gradient with an inner problem in {sum(holds)} of "
        f"{len(holds)} sizes"
        if holds
        else "no two to compare yet",
        verdict(holds) if holds else NOT_MEASURED,
        f"median over {seeds} seed{'s' if seeds > 1 else ''}; equal training time within a "
        "size, and a step begun in time is finished. "
        "The cost to be equal to is the worst final one among the gradients with an inner problem; "
        "the direct policy, which has none, is shown beside them",
        "figures/claim-6-cost.png",
        "Held-out cost against training seconds.",
        (*behind, *_excluded(data["races"])),
        (*_costs(final), *_equal_cost(table)) if holds else (),
    )


def _costs(final: pd.Series) -> list[Numbers]:
    wide = final.unstack("gradient")
    gradients = _jfb_first(wide.columns)
    rows = [
        (size_name(key), *("" if pd.isna(row[g]) else number(row[g], 4) for g in gradients))
        for key, row in wide.iterrows()
    ]
    return [
        Numbers.of(
            "Held-out cost after equal training time, a last step finished",
            ("size", *gradients),
            rows,
        )
    ]


def _equal_cost(table: pd.DataFrame) -> list[Numbers]:
    times = times_to_cost(table)
    if times.empty:
        return []
    gradients = _jfb_first(times["gradient"].unique())
    rows = []
    for key, part in times.groupby(SIZE, sort=True):
        medians = part.groupby("gradient")["seconds"].median()
        cells = (
            "" if g not in medians else f"{medians[g]:.3g} s" if math.isfinite(medians[g])
            else "never"
            for g in gradients
        )  # fmt: skip
        target = f"{number(part['target'].median(), 4)} ({part['worst'].mode().iloc[0]})"
        rows.append((size_name(key), target, *cells))
    return [Numbers.of("Seconds to equal cost", ("size", "cost", *gradients), rows)]


def _jfb_first(names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: (name != "jfb", not has_inner_problem(name), name))


def _excluded(table: pd.DataFrame) -> list[str]:
    reasons = table.dropna(subset=["reason"]).drop_duplicates([*SIZE, "gradient", "reason"])
    return [
        f"{row.problem} n={row.n_agents} {row.gradient}: {row.reason}."
        for row in reasons.itertuples()
    ]


def scale(data: Tables) -> Claim:
    table = data["scale"].sort_values(["problem", "seed", "step"])
    # A cost that is not finite is null in the data, and `last` would pass over it.
    table = table.assign(cost=table["cost"].fillna(math.inf))
    ends = table.groupby(["problem", "seed"], sort=False).agg(
        first=("cost", "first"), last=("cost", "last"), points=("cost", "size"),
        seconds=("step_seconds", "first"), status=("status", "first"),
    )  # fmt: skip
    falls = (ends["last"] < ends["first"]) & ends["status"].eq("ok")
    middle = ends[["first", "last", "seconds"]].groupby(level="problem", sort=False).median()
    rows = [
        (f"{name}", number(row["first"]), number(row["last"]), f"{row['seconds']:.2g}")
        for name, row in middle.iterrows()
    ]
    left = middle["last"] / middle["first"]
    failed = [
        f"{problem}, seed {seed}: {row['status']}, {number(row['first'])} to {number(row['last'])}."
        for (problem, seed), row in ends[~falls].iterrows()
    ]
    return Claim(
        7,
        "100 quadrotors, 100 bicycles and 100 goods train",
        "of the first held-out cost are left: "
        + ", ".join(f"{name} {100 * value:.2g} %" for name, value in left.items()),
        verdict(falls.groupby(level="problem").all()),
        f"{int(table['step'].max())} steps of jfb on the scaled map, batch "
        f"{int(table['batch'].iloc[0])}; reproduced where the cost falls. That it falls is not "
        "that it arrives: no optimum is compared with here",
        "figures/claim-7-scale.png",
        "Held-out cost at 100 agents or goods, relative to its first value.",
        tuple(failed),
        (
            Numbers.of(
                "100 agents or goods, median over the seeds",
                ("problem", "cost at first", "at last", "seconds a step"),
                rows,
            ),
        ),
    )
