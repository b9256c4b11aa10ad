"""References that a trained policy beats are replaced: by its cost, or by IPOPT from its flight."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.identity import stem
from bench.records import read_records
from bench.reference.cache import StaleReference, load_reference, make_reference, save_reference
from bench.reference.solution import Solution, in_double
from jfbcore.held_out import held_out_states
from jfbcore.problems import PROBLEMS, Problem
from jfbcore.rollout import rollout

#: relative gain below which a policy has not beaten a reference: rounding of float32 costs
_LEAST_GAIN = 1e-5


@dataclass(frozen=True, kw_only=True)
class Flights:
    """What a policy paid from the first held-out states of `problem`, (states,), and how it has
    `flown`: from which states (states, n), agents numbered as it numbers them, by which controls
    (states, n_steps, m); None where only the costs were recorded."""

    problem: Problem
    source: str
    costs: list[float]
    flown: tuple[Tensor, Tensor] | None = None


def improve(flights: Flights, directory: Path) -> int:
    """In how many states `flights` leads to a better reference; these are written to `directory`.

    Where the controls are known IPOPT goes on from them, and its optimum counts if it is better
    than the policy. Zero where there is no reference to improve.
    """
    problem = flights.problem
    try:
        reference = load_reference(problem, directory)
    except (StaleReference, ValueError) as error:
        print(f"{flights.source}: {error}", file=sys.stderr)
        return 0
    if reference is None:
        return 0
    beaten = [
        index
        for index, (ours, best) in enumerate(zip(flights.costs, reference.costs, strict=False))
        if best is not None and math.isfinite(ours) and ours < best - _LEAST_GAIN * abs(best)
    ]
    for index in beaten:
        solution = _from_flight(flights, index)
        method = "policy" if solution.status.startswith("flown") else "ipopt"
        reference = reference.better(make_reference(problem, method, [solution], index))
        best = reference.costs[index]
        print(f"{flights.source}: state {index} of {problem.name}-{problem.n_agents}: {best:.6g}")
        save_reference(reference, problem, directory)
    return len(beaten)


def _records(directory: Path) -> Iterator[dict[str, Any]]:
    """The valid records of every run directory in or below `directory`."""
    for folder in sorted({directory, *(path for path in directory.rglob("*") if path.is_dir())}):
        if folder.name != "records":
            yield from read_records(folder)


def recorded_flights(directory: Path) -> Iterator[Flights]:
    """Of every training record under `directory` that holds the costs of single states, and of
    every checkpoint there."""
    for record in _records(directory):
        case, costs = record["case"], (record.get("final") or {}).get("state_costs")
        if costs and case["problem"] in PROBLEMS and case.get("variant", "default") == "default":
            problem = PROBLEMS[case["problem"]](n_agents=case["n_agents"])
            # Another grid is another problem.
            if case["n_steps"] == problem.n_steps:
                known = [math.nan if cost is None else cost for cost in costs]
                yield Flights(problem=problem, source=stem(record), costs=known)
    for path in sorted(directory.rglob("*.pt")):
        yield _flown(path)


def _flown(path: Path) -> Flights:
    """The flights of the policy in a checkpoint, in float64."""
    import jfbcore

    policy = jfbcore.load(path).double()
    policy.problem = problem = in_double(policy.problem)
    with torch.no_grad():
        flown = rollout(policy, held_out_states(problem), record=True)
    assert flown.states is not None
    assert flown.controls is not None
    return Flights(
        problem=problem,
        source=path.name,
        costs=flown.cost.tolist(),
        flown=(flown.states[0], flown.controls.transpose(0, 1)),
    )


def _from_flight(flights: Flights, index: int) -> Solution:
    """IPOPT's optimum near the flight from one state, or the flight itself."""
    problem = in_double(flights.problem)
    cost, status = flights.costs[index], f"flown by {flights.source}"
    own = Solution(cost=cost, objective=cost, status=status, solved=True)
    if flights.flown is None:
        return own
    from bench.reference.ipopt import Ipopt

    state, controls = (part[index] for part in flights.flown)
    (optimum,) = Ipopt().solve(problem, state[None], controls[None])
    return optimum if optimum.solved and optimum.cost <= own.cost else own


def run(records: Path, directory: Path) -> int:
    """Improve what can be, and print one JSON line. Raises ValueError without a folder."""
    if not records.is_dir():
        raise ValueError(f"`--improve` must be a folder of records, got {str(records)!r}")
    policies, states = 0, 0
    for flights in recorded_flights(records):
        policies += 1
        states += improve(flights, directory)
    print(json.dumps({"policies": policies, "improved_states": states}))
    return 0
