"""What the papers leave open: how the best known cost grows with the number of agents."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.claims.cases import SMALL, case
from bench.claims.claim import Judgement, Numbers, Tables, number
from bench.claims.panels import band, count_axis, panels
from bench.jobs import Job
from bench.probes.optimum import Optimum
from bench.report.figures.canvas import handle
from bench.report.style import Look

NUMBER = None
TABLE = "optimum"
CLAIM = "Does the optimal cost have a mean-field limit as the agents become many?"
FIGURE = "beyond-mean-field"
CAPTION = (
    "Best known cost against the number of agents, divided by N where it is a sum over agents."
)
#: the exponent in N that a mean-field limit needs: 0 where the cost is a mean over agents
_LIMIT_EXPONENT = {"quadrotor": 0.0, "bicycle": 1.0, "consumption": 1.0}
_NEAR = 0.1


def jobs(quick: bool) -> list[Job]:
    sizes = () if quick else (1, 6, 20, 50, 100)
    return [Job(case=case(p, n), probe=Optimum()) for p, _ in SMALL for n in sizes]


def judge(data: Tables) -> Judgement:
    table = data["optimum"]
    exponents, words = {}, []
    for problem, rows in table[table["n_agents"] > 1].groupby("problem", sort=False):
        if len(rows) < 2:  # no growth without two sizes
            continue
        last = rows.sort_values("n_agents").tail(2)
        (n, m), (low, high) = last["n_agents"], last["cost"]
        exponents[problem] = math.log(high / low) / math.log(m / n)
        words.append(f"{problem}: N^{exponents[problem]:.2f} from {n} to {m}")
    limits = [p for p, e in exponents.items() if abs(e - _LIMIT_EXPONENT[p]) < _NEAR]
    return Judgement(
        "growth of the best known cost: " + "; ".join(words),
        f"for {', '.join(limits)}" if limits else "no",
        "costs of the references (reports/references), means over their held-out states. A limit "
        "needs the exponent 0 where the cost is a mean over agents (quadrotor) and 1 where it is "
        "a sum (bicycle, and consumption, whose goods share one wealth)",
        tuple(_why(exponents)),
        (_costs_by_size(table),),
    )


def _costs_by_size(table: pd.DataFrame) -> Numbers:
    sizes = sorted(table["n_agents"].unique())
    rows = []
    for problem, part in table.groupby("problem", sort=False):
        power = _LIMIT_EXPONENT[str(problem)]
        costs = part.set_index("n_agents")["cost"]
        cells = (number(costs[n] / n**power, 4) if n in costs else "" for n in sizes)
        rows.append((str(problem), "cost per agent" if power else "cost", *cells))
    return Numbers.of(
        "Best known cost, divided by N where it is a sum over agents",
        ("problem", "", *(f"N = {n}" for n in sizes)),
        rows,
    )


def _why(exponents: dict[str, float]) -> Iterable[str]:
    if exponents.get("quadrotor", 0.0) > _NEAR:
        yield (
            "quadrotor: control and terminal cost are means over agents, but the interaction "
            "(1/2N) sum over pairs grows with N."
        )
    if exponents.get("consumption", 0.0) > 1.0 + _NEAR:
        yield (
            "consumption: one wealth is spread over more and more goods, each of which has a habit."
        )


def figure(data: Tables) -> Figure | None:
    """A panel per problem: cost against the number of agents."""
    table = data["optimum"]
    style = Look("#0072B2", "o", "")
    # Bicycles and goods add up; quadrotors' costs are a mean already.
    per_agent = table["problem"] != "quadrotor"
    table = table[table["n_agents"] > 1].assign(seed=0)
    table["shown"] = table["cost"].where(~per_agent, table["cost"] / table["n_agents"])

    def paint(axes: Axes, part: pd.DataFrame) -> None:
        band(axes, part, "n_agents", "shown", style)
        count_axis(axes, part["n_agents"])
        axes.set_xlabel("agents N")
        axes.set_ylabel("cost" if part["problem"].iloc[0] == "quadrotor" else "cost / N")

    return panels(table, ["problem"], paint, [handle(style, "best known")], 3)
