"""Claim 7: whether a hundred agents are trained to near the optimum."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.figure import Figure

from bench.claims.cases import SMALL, seeded, trained
from bench.claims.claim import NOT_MEASURED, Judgement, Numbers, Tables, number, spread, verdict
from bench.claims.panels import series_figure
from bench.jobs import Job
from bench.probes.training import Train
from bench.release.plan import SCALE, TARGETS
from bench.report.style import look

NUMBER = 7
TABLE = "training"
#: how far from the reference a run may end
_NEAR = 0.1
CLAIM = "100 agents, goods or assets are trained to near the optimum"
CRITERION = (
    "Holds for a problem where every seed ends at most "
    f"{100 * _NEAR:.0f} % above the reference cost."
)
FIGURE = "claim-7-scale"
CAPTION = "Optimality gap of jfb at 100 agents, goods or assets against training steps."


def jobs(quick: bool) -> list[Job]:
    if quick:
        cases = [trained(problem, 100, n_steps=16, train_steps=12) for problem, _ in SMALL]
        return seeded(cases, Train(evaluations=4), quick)
    trainings = (*TARGETS.jobs(), *SCALE.jobs())
    return [Job(case=each, seed=seed) for each, seed in trainings if each.n_agents == 100]


def judge(data: Tables) -> Judgement:
    table = data["training"].sort_values(["problem", "map", "seed", "step"])
    table = table.assign(cost=table["cost"].fillna(math.inf))
    ends = table.groupby(["problem", "map", "seed"], sort=False).agg(
        first=("cost", "first"), last=("cost", "last"), gap=("gap", "last"),
        steps=("step", "last"), seconds=("seconds", "last"), status=("status", "first"),
    )  # fmt: skip
    # A quick run's grid has no reference: there the cost has to fall.
    known = ends["gap"].notna().any()
    near = ends["gap"].le(_NEAR) if known else ends["last"] < ends["first"]
    near &= ends["status"].eq("ok")
    groups = list(ends.groupby(level=["problem", "map"], sort=False))
    rows = [
        (f"{problem}, {kind} map", _percent(own["gap"]), spread(own["first"]), spread(own["last"]),
         f"{own['steps'].median():.0f}", f"{own['seconds'].median():.3g}")
        for (problem, kind), own in groups
    ]  # fmt: skip
    failed = [
        f"{problem}, {kind} map, seed {seed}: {row['status']}, cost {number(row['first'])} to "
        f"{number(row['last'])}{f', gap {100 * row.gap:.3g} %' if known else ''}."
        for (problem, kind, seed), row in ends[~near].iterrows()
    ]
    left = ", ".join(
        f"{problem} {_percent(own['gap']) if known else _percent(own['last'] / own['first'])}"
        for (problem, _), own in groups
    )
    return Judgement(
        f"{'gap at the end' if known else 'of the first held-out cost are left'}: {left}",
        verdict(near.groupby(level=["problem", "map"]).all()) if len(near) else NOT_MEASURED,
        "jfb on the recommended recipe; gaps of the mean held-out cost to the references of "
        "reports/references, which for quadrotors and bicycles are the best costs known"
        if known
        else "a few steps on a coarse grid, where no optimum is known: only that the cost falls",
        tuple(failed),
        (
            Numbers.of(
                "100 agents, goods or assets, the least and the greatest over the seeds",
                ("problem", "gap at the end", "cost at first", "at last", "steps", "seconds"),
                rows,
            ),
        ),
    )


def _percent(values: pd.Series) -> str:
    return f"{spread(100 * values)} %" if values.notna().any() else ""


def figure(data: Tables) -> Figure | None:
    table = data["training"]
    first = table.groupby(["problem", "map", "seed"])["cost"].transform("first")
    known = table["gap"].notna().any()
    shown = table.assign(shown=table["gap"] if known else table["cost"] / first)
    return series_figure(
        shown.dropna(subset=["shown"]), "step", "shown", "gradient", {"jfb": look("jfb")},
        {"jfb": "jfb"}, "training steps", "gap" if known else "held-out cost / first", log_y=known,
    )  # fmt: skip
