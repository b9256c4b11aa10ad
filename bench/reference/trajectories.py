"""Optimal controls from training states, for methods that learn from reference trajectories.

The training states are drawn with a seed of their own: none of them is a held-out state. Each
problem, size and count is solved once and kept, with the seconds that each state took, so that a
run which reads the file counts what a run that solves it would.
"""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.environment import ROOT
from bench.records import whole
from bench.reference.cache import discretisation_hash
from bench.reference.solution import in_double
from jfbcore.problems import Bicycle, Consumption, Problem

#: seed of the generator that training states are drawn with; neither the held-out states' seed
#: nor one that a training run is likely to be given
SEED = 770_077
#: where solved training states are kept; they take minutes to solve again, and are not committed
DIRECTORY = ROOT / "reports" / "references" / "training"
#: agents up to which a problem with an interaction is solved: a state of 20 takes a minute
MOST_AGENTS = 20


@dataclass(frozen=True, kw_only=True)
class TrainingReferences:
    """`initial_states` (S, n) that were solved, their optimal `controls` (S, n_steps, m), in
    float64, and the `seconds` that all states took, those without a solution included."""

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
    if problem.n_agents > MOST_AGENTS and not isinstance(problem, Consumption):
        return (
            f"reference trajectories of {problem.n_agents} agents take IPOPT minutes a state; "
            f"they are solved for at most {MOST_AGENTS}"
        )
    return None


def training_states(problem: Problem, count: int) -> Tensor:
    """The first `count` training states, (count, n), in float64; a longer draw begins alike."""
    generator, twin = torch.Generator().manual_seed(SEED), in_double(problem)
    return torch.cat([twin.sample_initial_states(1, generator) for _ in range(count)])


def training_references(
    problem: Problem, count: int, directory: Path = DIRECTORY
) -> TrainingReferences:
    """Optimal controls of `count` training states of `problem`, from file or solved now.

    Shows progress on stderr while it solves. Raises ValueError with the reason where the problem
    cannot be solved, and where IPOPT finds no solution for any state.
    """
    if (reason := reason_against(problem)) is not None:
        raise ValueError(reason)
    path = _path(problem, count, directory)
    if not path.exists():
        _write(path, _solve(problem, count))
    with np.load(path) as file:
        states, controls = (torch.from_numpy(file[name]) for name in ("states", "controls"))
        return TrainingReferences(
            initial_states=states, controls=controls, seconds=float(file["seconds"].sum())
        )


def _solve(problem: Problem, count: int) -> dict[str, np.ndarray]:
    from tqdm import tqdm

    from bench.reference.ipopt import Ipopt

    states = training_states(problem, count)
    # One start a state, and the optimum of the state before: to learn from, the best known kind of
    # flight of one quadrotor is enough. Bicycles have more kinds than one start finds.
    solver = Ipopt(starts=None if isinstance(problem, Bicycle) else 1)
    with tqdm(total=count, desc="training references", unit="state", file=sys.stderr) as bar:
        solutions = solver.solve(problem, states, progress=bar.update)
    solved = [index for index, solution in enumerate(solutions) if solution.solved]
    if not solved:
        statuses = ", ".join(sorted({solution.status for solution in solutions}))
        raise ValueError(f"IPOPT solved none of {count} training states ({statuses})")
    return {
        "states": states[solved].numpy(),
        "controls": torch.stack([solutions[index].controls for index in solved]).numpy(),
        "seconds": np.array([solution.seconds for solution in solutions]),
    }


def _path(problem: Problem, count: int, directory: Path) -> Path:
    content = f"{discretisation_hash(problem)} {SEED} {count}"
    name = hashlib.sha256(content.encode()).hexdigest()[:16]
    return directory / f"{problem.name}-{problem.n_agents}-{name}.npz"


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Whole or not at all: several processes may solve the same states at once."""
    with whole(path, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
