"""What the papers leave open besides the derivative: local maximisers, mean-field limits."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from bench.reference import StaleReference, load_reference
from bench.verify.claim import Claim, Numbers, Tables, number
from jfbcore.problems import PROBLEMS

#: |kappa| from which an interior local maximiser stands beside the global one, and up to which
LOCAL_FROM, LOCAL_TO = 0.23, 0.41
#: sizes with references, 1 agent left out: it has nobody to interact with
_SIZES = (6, 20, 50, 100)
#: the exponent in N that a mean-field limit needs: 0 where the cost is a mean over agents
_LIMIT_EXPONENT = {
    "quadrotor": 0.0,
    "rotor-quadrotor": 0.0,
    "bicycle": 1.0,
    "consumption": 1.0,
    "liquidation": 1.0,
}
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
        f"at most {number(100 * local.max())} % of the steering angles; largest |kappa| of the "
        f"trained policies: {'; '.join(f'{run} {number(k)}' for run, k in kappas.items())}",
        "no" if found.empty else f"in {len(found)} of {len(local)} measurements",
        f"median over {seeds} seed{'s' if seeds > 1 else ''}; kappa = p_psi v / l. An interior "
        f"local maximiser stands beside a global one on the steering bound for |kappa| between "
        f"{LOCAL_FROM:g} and {LOCAL_TO:g}. Every steering angle that met its tolerance is held "
        "against the best of a grid over the whole range, at the initial and the trained policy, "
        "from a cold and from a warm start",
        "figures/beyond-local-maximisers.png",
        "Largest |kappa| over states and bicycles against time along held-out rollouts. Shaded: "
        "where local maximisers exist. Median and quartiles over the seeds.",
        (*_unconverged(trained), *_costs(trained)),
        (
            Numbers.of(
                "Steering angles against the global maximiser",
                ("run", "policy", "start", "largest |kappa|", "local maximisers [%]",
                 "above tolerance [%]", "cost", "with the global maximiser"),
                _rows(table),
            ),
        ),
    )  # fmt: skip


def _rows(table: pd.DataFrame) -> Iterable[tuple[str, ...]]:
    for (run, policy, start), part in table.groupby(["run", "policy", "start"], sort=False):
        yield (
            run, policy, start,
            number(part["kappa_max"].max()),
            number(100 * part["local_share"].mean()),
            number(100 * part["unconverged_share"].mean()),
            number(part["cost"].median(), 4),
            number(part["global_cost"].median(), 4),
        )  # fmt: skip


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


def reference_sizes(directory: Path | None = None) -> pd.DataFrame:
    """Best known cost against the number of agents: one row per problem and size on file."""
    rows = []
    for name, problem in PROBLEMS.items():
        for n in (1, *_SIZES):
            try:
                reference = load_reference(problem(n), directory)
            except (StaleReference, ValueError):
                continue
            if reference is None or not reference.solved:
                continue
            costs = reference.solved
            error = statistics.stdev(costs) / len(costs) ** 0.5 if len(costs) > 1 else math.nan
            rows.append({"problem": name, "n_agents": n, "label": reference.label,
                         "states": len(costs), "cost": statistics.fmean(costs),
                         "standard_error": error})  # fmt: skip
    return pd.DataFrame(rows, columns=["problem", "n_agents", "label", "states", "cost",
                                       "standard_error"])  # fmt: skip


def mean_field(data: Tables) -> Claim:
    table = data["mean-field"]
    exponents, words = {}, []
    for problem, rows in table[table["n_agents"] > 1].groupby("problem", sort=False):
        if len(rows) < 2:  # no growth without two sizes
            continue
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
        "costs of the references on file, means over their held-out states. A limit "
        "needs the exponent 0 where the cost is a mean over agents (quadrotors) and 1 where it is "
        "a sum (bicycle, liquidation, and consumption, whose goods share one wealth)",
        "figures/beyond-mean-field.png",
        "Best known cost against the number of agents, divided by N where it is a sum over agents.",
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
