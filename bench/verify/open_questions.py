"""What the papers leave open besides the derivative: local maximisers, mean-field limits."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from bench.environment import ROOT
from bench.reference import StaleReference, load_reference
from bench.verify.claim import Claim, Tables, number
from jfbcore.problems import PROBLEMS

#: |kappa| from which an interior local maximiser stands beside the global one, and up to which
LOCAL_FROM, LOCAL_TO = 0.23, 0.41
#: sizes with references, 1 agent left out: it has nobody to interact with
_SIZES = (6, 20, 50, 100)
#: the exponent in N that a mean-field limit needs: 0 where the cost is a mean over agents
_LIMIT_EXPONENT = {"quadrotor": 0.0, "bicycle": 1.0, "consumption": 1.0}
_NEAR = 0.1
#: costs further apart than this are told apart in a finding
_APART = 0.05


def local_maximisers(data: Tables) -> Claim:
    table = data["maximisers"]
    trained = table[table["policy"] == "trained"]
    local = table.groupby(["run", "policy", "start"], sort=False)["local_share"].mean()
    found = local[local > 0.0]
    kappas = trained[trained["start"] == "cold"].groupby("run", sort=False)["kappa_max"].max()
    seeds = table["seed"].nunique()
    return Claim(
        None,
        "Does the inner iteration stop at local maximisers of the bicycle's H?",
        "largest |kappa| along the trained policy's rollouts: "
        + "; ".join(f"{run}: {number(value)}" for run, value in kappas.items()),
        "no" if found.empty else f"in {len(found)} of {len(local)} measurements",
        f"median over {seeds} seed{'s' if seeds > 1 else ''}; kappa = p_psi v / l. An interior "
        f"local maximiser stands beside a global one on the steering bound for |kappa| between "
        f"{LOCAL_FROM:g} and {LOCAL_TO:g}. Every steering angle that met its tolerance is held "
        "against the best of a grid over the whole range, at the initial and the trained policy, "
        "from a cold and from a warm start",
        "figures/beyond-local-maximisers.png",
        "Largest |kappa| over states and bicycles against time along held-out rollouts. Shaded: "
        "where local maximisers exist. Median and range over the seeds.",
        (*_shares(local), *_unconverged(trained), *_costs(trained)),
    )


def _shares(local: pd.Series) -> Iterable[str]:
    for (run, policy, start), share in local[local > 0.0].items():
        yield (
            f"{run}, {policy} policy, {start} start: {number(100 * share)} % of the steering "
            "angles are maximisers in their neighbourhood only."
        )


def _unconverged(trained: pd.DataFrame) -> Iterable[str]:
    cold = trained[trained["start"] == "cold"]
    for run, share in cold.groupby("run", sort=False)["unconverged_share"].mean().items():
        if share > 0.0:
            yield (
                f"{run}: {number(100 * share)} % of the trained policy's steering angles did not "
                "meet their tolerance and are no maximisers of any kind."
            )


def _costs(trained: pd.DataFrame) -> Iterable[str]:
    costs = trained.groupby(["run", "start"], sort=False)[["cost", "global_cost"]].median()
    for (run, start), (flown, best) in costs.iterrows():
        if abs(flown - best) > _APART * abs(best):
            yield (
                f"{run}, {start} start: the trained policy flies at cost {number(flown)}; with the "
                f"global maximiser of the same H it would be {number(best)}."
            )


def reference_sizes(directory: Path = ROOT / "reports" / "references") -> pd.DataFrame:
    """Best known cost against the number of agents: one row per problem and size on file."""
    rows = []
    for name, problem in PROBLEMS.items():
        for n in (1, *_SIZES):
            try:
                reference = load_reference(problem(n), directory)
            except StaleReference:
                continue
            if reference is None or not reference.solved:
                continue
            costs = reference.solved
            error = statistics.stdev(costs) / len(costs) ** 0.5 if len(costs) > 1 else math.nan
            rows.append({"problem": name, "n_agents": n, "label": reference.label,
                         "states": len(costs), "cost": statistics.fmean(costs),
                         "standard_error": error})  # fmt: skip
    return pd.DataFrame(rows)


def mean_field(data: Tables) -> Claim:
    table = data["mean-field"]
    exponents, words = {}, []
    for problem, rows in table[table["n_agents"] > 1].groupby("problem", sort=False):
        last = rows.sort_values("n_agents").tail(2)
        (n, m), (low, high) = last["n_agents"], last["cost"]
        exponents[problem] = math.log(high / low) / math.log(m / n)
        words.append(f"{problem}: N^{exponents[problem]:.2f} from {n} to {m}")
    limits = [p for p, e in exponents.items() if abs(e - _LIMIT_EXPONENT[p]) < _NEAR]
    return Claim(
        None,
        "Does the optimal cost have a mean-field limit as the agents become many?",
        "growth of the best known cost: " + "; ".join(words),
        f"for {', '.join(limits)}" if limits else "no",
        "costs of the references (reports/references), means over their held-out states. A limit "
        "needs the exponent 0 where the cost is a mean over agents (quadrotor) and 1 where it is "
        "a sum (bicycle, and consumption, whose goods share one wealth)",
        "figures/beyond-mean-field.png",
        "Best known cost against the number of agents, divided by N where it is a sum over agents.",
        tuple(_limits(table, exponents)),
    )


def _limits(table: pd.DataFrame, exponents: dict[str, float]) -> Iterable[str]:
    for problem, exponent in exponents.items():
        rows = table[(table["problem"] == problem) & (table["n_agents"] > 1)]
        power = _LIMIT_EXPONENT[problem]
        costs = "; ".join(
            f"{row.n_agents}: {number(row.cost / row.n_agents**power, 4)}"
            for row in rows.itertuples()
        )
        what = "cost per agent" if power else "cost"
        why = ""
        if problem == "quadrotor" and exponent > _NEAR:
            why = (
                ": control and terminal cost are means over agents, but the interaction "
                "(1/2N) sum over pairs grows with N"
            )
        elif problem == "consumption" and exponent > 1.0 + _NEAR:
            why = ": one wealth is spread over more and more goods, each of which has a habit"
        yield f"{problem}, {what} at N = {costs}{why}."
