"""Claim 6: the held-out cost against the clock."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.claims.cases import SMALL, case, seeded, trained
from bench.claims.claim import (
    NOT_MEASURED,
    SIZE,
    Judgement,
    Numbers,
    Tables,
    number,
    size_name,
    verdict,
)
from bench.claims.panels import panels, readable_log
from bench.jobs import Job
from bench.probes.training import Train
from bench.registry import has_inner_problem
from bench.report.figures.canvas import handle, line_style
from bench.report.style import look

NUMBER = 6
TABLE = "training"
CLAIM = "Comparable final cost per wall-clock second"
CRITERION = (
    "Holds at a size where JFB ends within 10 % of the best other gradient that has an inner "
    "problem."
)
FIGURE = "claim-6-cost"
CAPTION = "Held-out cost against training seconds."
_GRADIENTS = ("jfb", "implicit", "unrolled", "cvxpylayers", "direct")


def jobs(quick: bool) -> list[Job]:
    if quick:
        race = {"recipe": "recommended", "train_seconds": 8.0, "n_steps": 32}
        return seeded(
            [case("quadrotor", 1, gradient=g, **race) for g in _GRADIENTS], Train(), quick
        )
    race = {"recipe": "recommended", "train_seconds": 12.0, "batch_size": 16}
    cases = [
        trained(p, n, gradient=g, **race)
        for p, n in (SMALL[0], ("quadrotor", 6), ("quadrotor", 20), *SMALL[1:])
        for g in _GRADIENTS
        # Conic programs only where H is concave, and nothing but quadrotors is timed with them.
        if g != "cvxpylayers" or p == "quadrotor"
    ]
    return seeded(cases, Train(), quick)


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


def judge(data: Tables) -> Judgement:
    table = data["training"].dropna(subset=["seconds"])
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
    return Judgement(
        f"JFB ends within 10 % of the best other gradient with an inner problem in {sum(holds)} of "
        f"{len(holds)} sizes"
        if holds
        else "no two to compare yet",
        verdict(holds) if holds else NOT_MEASURED,
        f"median over {seeds} seed{'s' if seeds > 1 else ''}; equal training time within a "
        "size, and a step begun in time is finished. "
        "The cost to be equal to is the worst final one among the gradients with an inner problem; "
        "the direct policy, which has none, is shown beside them",
        (*behind, *_excluded(data["training"])),
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


def figure(data: Tables) -> Figure | None:
    table = data["training"].dropna(subset=["seconds"])
    if table.empty:
        return None

    def paint(axes: Axes, part: pd.DataFrame) -> None:
        for (gradient, _), run in part.groupby(["gradient", "seed"]):
            style = look(gradient)
            axes.plot(run["seconds"], run["cost"], color=style.color, marker=style.marker,
                      markersize=4, linestyle=line_style(style), linewidth=1.1)  # fmt: skip
        if (part["cost"].dropna() > 0).all():
            readable_log(axes)
        axes.set_xlabel("training seconds")
        axes.set_ylabel("held-out cost")

    names = table["gradient"].unique()
    return panels(table, SIZE, paint, [handle(look(name), name) for name in names], 3)
