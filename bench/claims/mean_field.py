"""What the papers leave open: how the best known cost grows with the number of agents."""

from __future__ import annotations

import math

from matplotlib.figure import Figure

from bench.claims.cases import SMALL, case
from bench.claims.claim import Judgement, Numbers, Tables, number
from bench.claims.panels import series_figure
from bench.jobs import Job
from bench.probes.optimum import Optimum
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
#: why a cost grows faster than that
_WHY = {
    "quadrotor": "control and terminal cost are means over agents, but the interaction (1/2N) sum "
    "over pairs grows with N.",
    "consumption": "one wealth is spread over more and more goods, each of which has a habit.",
}


def jobs(quick: bool) -> list[Job]:
    sizes = () if quick else (1, 6, 20, 50, 100)
    return [Job(case=case(p, n), probe=Optimum()) for p, _ in SMALL for n in sizes]


def judge(data: Tables) -> Judgement:
    table = data["optimum"]
    exponents, words, rows = {}, [], []
    sizes = sorted(table["n_agents"].unique())
    for problem, part in table.groupby("problem", sort=False):
        power = _LIMIT_EXPONENT[str(problem)]
        costs = part.set_index("n_agents")["cost"].sort_index()
        cells = (number(costs[n] / n**power, 4) if n in costs else "" for n in sizes)
        rows.append((str(problem), "cost per agent" if power else "cost", *cells))
        many = costs[costs.index > 1].tail(2)
        if len(many) == 2:  # no growth without two sizes
            (n, m), (low, high) = many.index, many
            exponents[problem] = math.log(high / low) / math.log(m / n)
            words.append(f"{problem}: N^{exponents[problem]:.2f} from {n} to {m}")
    over = {p: e - _LIMIT_EXPONENT[p] for p, e in exponents.items()}
    limits = [p for p, more in over.items() if abs(more) < _NEAR]
    return Judgement(
        "growth of the best known cost: " + "; ".join(words),
        f"for {', '.join(limits)}" if limits else "no",
        "costs of the references (reports/references), means over their held-out states. A limit "
        "needs the exponent 0 where the cost is a mean over agents (quadrotor) and 1 where it is "
        "a sum (bicycle, and consumption, whose goods share one wealth)",
        tuple(f"{p}: {why}" for p, why in _WHY.items() if over.get(p, 0.0) > _NEAR),
        (
            Numbers.of(
                "Best known cost, divided by N where it is a sum over agents",
                ("problem", "", *(f"N = {n}" for n in sizes)),
                rows,
            ),
        ),
    )


def figure(data: Tables) -> Figure | None:
    """A panel per problem: cost, or cost per agent, against the number of agents."""
    table = data["optimum"]
    # Bicycles and goods add up; quadrotors' costs are a mean already.
    per_agent = table["cost"] / table["n_agents"] ** table["problem"].map(_LIMIT_EXPONENT)
    shown = table.assign(shown=per_agent, seed=0, kind="best")[table["n_agents"] > 1]
    return series_figure(
        shown, "n_agents", "shown", "kind", {"best": Look("#0072B2", "o", "")},
        {"best": "best known"}, "agents N", "cost, or cost / N", keys=["problem"],
        log_x=True, log_y=False,
    )  # fmt: skip
