"""Optimal controls from training states, for methods that learn from reference trajectories.

The training states are drawn with a seed of their own: none of them is a held-out state. Each
problem, size and count is solved once and kept, with the seconds that each state took, so that a
run which reads the file counts what a run that solves it would.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.environment import ROOT
from bench.records import whole
from bench.reference.agent import one_agent
from bench.reference.cache import discretisation_hash
from bench.reference.solution import Solution, Solver, in_double
from jfbcore.problems import Bicycle, Consumption, Problem, Quadrotor

#: seed of the generator that training states are drawn with; neither the held-out states' seed
#: nor one that a training run is likely to be given
SEED = 770_077
#: where solved training states are kept; they take minutes to solve again, and are not committed
DIRECTORY = ROOT / "reports" / "references" / "training"
#: agents up to which a problem with an interaction is solved: a state of 20 takes a minute; of
#: bicycles one state is all that is asked for, and a hundred take two minutes and a half
MOST_AGENTS = 20
_SOLVED_AT_ANY_SIZE = (Consumption, Bicycle)
#: kinds of flight of a quadrotor
_KINDS = 2


@dataclass(frozen=True, kw_only=True)
class TrainingReferences:
    """`initial_states` (S, n) that were solved, for each kind of flight the optimal `controls`
    (kinds, S, n_steps, m), in float64, and the `seconds` that all states took, those without a
    solution included. `problem` is what they are of: the whole, or one agent."""

    problem: Problem
    initial_states: Tensor
    controls: Tensor
    seconds: float


def reason_against(problem: Problem) -> str | None:
    """None, or why no optimal trajectories of `problem` can be had for training."""
    try:
        from bench.reference.nlp import stage_of
    except ModuleNotFoundError as error:
        return f"reference trajectories need {error.name}; pip install jfbbench[reference]"
    try:
        stage_of(problem)
    except TypeError:
        return f"IPOPT has no formulas of {problem.name} to solve reference trajectories with"
    large = problem.n_agents > MOST_AGENTS and not isinstance(problem, _SOLVED_AT_ANY_SIZE)
    if large and flown_alone(problem) is problem:
        return (
            f"reference trajectories of {problem.n_agents} agents take IPOPT minutes a state; "
            f"they are solved for at most {MOST_AGENTS}"
        )
    return None


def flown_alone(problem: Problem) -> Problem:
    """What reference trajectories for `problem` are of: one of its quadrotors, else the whole.

    One quadrotor takes IPOPT a tenth of a second where twenty take a minute, and what it does not
    know of the others training finds out soon.
    """
    return one_agent(problem) if isinstance(problem, Quadrotor) else problem


def training_states(problem: Problem, count: int) -> Tensor:
    """The first `count` training states, (count, n), in float64; a longer draw begins alike."""
    generator, twin = torch.Generator().manual_seed(SEED), in_double(problem)
    return torch.cat([twin.sample_initial_states(1, generator) for _ in range(count)])


def training_references(
    problem: Problem,
    count: int,
    directory: Path = DIRECTORY,
    initial_states: Tensor | None = None,
) -> TrainingReferences:
    """Optimal controls of `count` training states of what is `flown_alone`, or of its
    `initial_states` (count, n) in float64 if given, from file or solved now; of quadrotors for both
    kinds of flight.

    Shows progress on stderr while it solves. Raises ValueError with the reason where the problem
    cannot be solved, and where IPOPT finds no solution for any state.
    """
    if (reason := reason_against(problem)) is not None:
        raise ValueError(reason)
    unit = flown_alone(problem)
    kinds = _KINDS if isinstance(problem, Quadrotor) else 1
    states = training_states(unit, count) if initial_states is None else initial_states
    path = _path(unit, states, kinds, directory)
    if not path.exists():
        _write(path, _solve(unit, states, kinds))
    with np.load(path) as file:
        numbers = {name: torch.from_numpy(file[name]) for name in ("initial_states", "controls")}
        return TrainingReferences(problem=unit, seconds=float(file["seconds"].sum()), **numbers)


def _solve(problem: Problem, states: Tensor, kinds: int) -> dict[str, np.ndarray]:
    from tqdm import tqdm

    count = len(states)
    total = count * kinds
    with tqdm(total=total, desc="training references", unit="state", file=sys.stderr) as bar:
        found = _optima(problem, states, kinds, bar.update)
    # A state without all kinds could not be compared.
    solved = [i for i in range(count) if all(of_kind[i].solved for of_kind in found)]
    if not solved:
        statuses = ", ".join(sorted({x.status for of_kind in found for x in of_kind}))
        raise ValueError(f"IPOPT solved none of {count} training states ({statuses})")
    kept = [[of_kind[i] for i in solved] for of_kind in found]
    controls = [torch.stack([solution.controls for solution in of_kind]) for of_kind in kept]
    return {
        "initial_states": states[solved].numpy(),
        "controls": torch.stack(controls).numpy(),
        "seconds": np.array([[solution.seconds for solution in of_kind] for of_kind in found]),
    }


def _optima(
    problem: Problem, states: Tensor, kinds: int, progress: Callable[[int], object]
) -> list[list[Solution]]:
    """Of each kind the optima from all `states`, as alike as can be: a network that learns one here
    and another there flies neither in between."""
    # Here, so that CasADi is not needed to read what is on file.
    from bench.reference.best_response import BestResponse
    from bench.reference.ipopt import Ipopt

    if isinstance(problem, Quadrotor):
        return Ipopt().kinds_of_flight(problem, states, kinds, progress=progress)
    # One bicycle has more kinds of path than one start finds; several part.
    solver: Solver = Ipopt(starts=None if isinstance(problem, Bicycle) else 1)
    if isinstance(problem, Bicycle) and problem.n_agents > 1:
        solver = BestResponse(common=False)
    return [solver.solve(problem, states, progress=progress)]


def _path(problem: Problem, states: Tensor, kinds: int, directory: Path) -> Path:
    content = f"{discretisation_hash(problem)} of {kinds}".encode() + states.numpy().tobytes()
    name = hashlib.sha256(content).hexdigest()[:16]
    return directory / f"{problem.name}-{problem.n_agents}-{name}.npz"


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Whole or not at all: several processes may solve the same states at once."""
    with whole(path, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
