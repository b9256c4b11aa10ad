"""Claim 7: whether 100 agents train."""

from __future__ import annotations

import math

from matplotlib.figure import Figure

from bench.claims.cases import SMALL, seeded, trained
from bench.claims.claim import Judgement, Numbers, Tables, number, verdict
from bench.claims.panels import series_figure
from bench.jobs import Job
from bench.probes.training import Train
from bench.report.style import look

NUMBER = 7
TABLE = "training"
CLAIM = "100 quadrotors, 100 bicycles and 100 goods train"
CRITERION = "Holds for a problem where the held-out cost falls with every seed."
FIGURE = "claim-7-scale"
CAPTION = "Held-out cost at 100 agents or goods, relative to its first value."


def jobs(quick: bool) -> list[Job]:
    size = {"n_steps": 16, "train_steps": 12} if quick else {"batch_size": 16, "train_steps": 60}
    cases = [trained(problem, 100, **size) for problem, _ in SMALL]
    return seeded(cases, Train(evaluations=4), quick)


def judge(data: Tables) -> Judgement:
    table = data["training"].sort_values(["problem", "seed", "step"])
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
    return Judgement(
        "of the first held-out cost are left: "
        + ", ".join(f"{name} {100 * value:.2g} %" for name, value in left.items()),
        verdict(falls.groupby(level="problem").all()),
        f"{int(table['step'].max())} steps of jfb on the scaled map, batch "
        f"{int(table['batch_size'].iloc[0])}; reproduced where the cost falls. That it falls is "
        "not that it arrives: no optimum is compared with here",
        tuple(failed),
        (
            Numbers.of(
                "100 agents or goods, median over the seeds",
                ("problem", "cost at first", "at last", "seconds a step"),
                rows,
            ),
        ),
    )


def figure(data: Tables) -> Figure | None:
    table = data["training"]
    first = table.groupby(["problem", "seed"])["cost"].transform("first")
    return series_figure(
        table.assign(relative=table["cost"] / first), "step", "relative", "gradient",
        {"jfb": look("jfb")}, {"jfb": "jfb, scaled map"},
        "training steps", "held-out cost / first", log_y=False,
    )  # fmt: skip
