"""Trajectories of a policy, of the same policy before training, and of an optimum."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import jfbcore as jfb
from bench import plugins
from bench.gap import Gaps, gaps
from bench.reference.solution import Solution, in_double
from jfbcore.extras.checkpoints import saved_run
from jfbcore.extras.description import describe, rebuild
from jfbcore.extras.shared_network import SharedValueNetwork
from jfbcore.held_out import held_out_states
from jfbcore.policy import HamiltonianPolicy, Policy
from jfbcore.problems import PROBLEMS, Problem
from jfbcore.rollout import Rollout, rollout

#: whose a flight is
TRAINED, OPTIMUM, UNTRAINED = "trained policy", "IPOPT optimum", "untrained policy"
#: agents beyond which an optimum takes longer than a figure is worth
MOST_AGENTS = 20


@dataclass(frozen=True)
class Flight:
    """One trajectory: `times` (steps + 1,), `states` (steps + 1, n), `controls` (steps, m).

    `name` says whose it is; `cost` is what the suite's rollout charges for it.
    """

    name: str
    times: np.ndarray
    states: np.ndarray
    controls: np.ndarray
    cost: float


def load_checkpoint(path: Path, outside: Sequence[str] = (), device: str = "cpu") -> Policy:
    """The policy in `path`; `outside` names what it uses from files or modules of the reader's own.

    Raises ValueError where there is no policy in the file, with what to do about it.
    """
    if not path.is_file():
        raise ValueError(
            f"`checkpoint` {path} is not a file; `bench train --checkpoint` writes one"
        )
    for name in outside:
        plugins.load("plugin", name)  # the classes are then there to be rebuilt
    try:
        return jfb.load(path, device=device)
    except ValueError as error:
        hint = "; name the file that defines it with --plugin path/to/file.py:Attribute"
        raise ValueError(f"{error}{hint if 'import' in str(error) else ''}") from error


def initial_states(problem: Problem, file: Path | None) -> Tensor:
    """The states in `file` (.npy, (batch, n) or (n,)), or the held-out ones without a file."""
    if file is None:
        return held_out_states(problem)
    try:
        content = np.load(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"`states` {file} is not a .npy file that can be read: {error}") from error
    states = np.atleast_2d(content)
    if states.ndim != 2 or states.shape[1] != problem.state_dim or not np.isfinite(states).all():
        raise ValueError(
            f"`states` must be finite and have shape (batch, {problem.state_dim}) for "
            f"{problem.name} with {problem.n_agents} agents, got {content.shape} in {file}"
        )
    return torch.as_tensor(states, dtype=problem.dtype, device=problem.device)


def starts_warm(checkpoint: Path) -> bool:
    """Whether the run in `checkpoint` started inner solves warm; True of a policy without a run."""
    try:
        return saved_run(checkpoint).config.warm_start
    except ValueError:
        return True


@torch.no_grad()
def fly(policy: Policy, states: Tensor, warm_start: bool = True) -> Rollout:
    """Roll out with times, states and controls; agents are numbered as the policy numbers them."""
    return rollout(policy, states, warm_start=warm_start, record=True)


def recorded(flown: Rollout) -> tuple[Tensor, Tensor, Tensor]:
    """Times, states and controls of a rollout that was recorded."""
    assert flown.times is not None
    assert flown.states is not None
    assert flown.controls is not None
    return flown.times, flown.states, flown.controls


def flight(name: str, flown: Rollout) -> Flight:
    """The first sample of a recorded rollout."""
    times, states, controls = recorded(flown)
    own = [part.cpu().double().numpy() for part in (times, states[:, 0], controls[:, 0])]
    return Flight(name, own[0], own[1], own[2], flown.cost[0].item())


def untrained(policy: Policy) -> Policy:
    """The same policy with parameters as training draws them from seed 0."""
    generator = torch.Generator().manual_seed(0)
    if not isinstance(policy, HamiltonianPolicy):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return rebuild(describe(policy), policy.problem.device)
    twin, network = copy.copy(policy), policy.value_network
    inner = network.agent_network if isinstance(network, SharedValueNetwork) else network
    twin._modules = dict(policy._modules)
    twin.value_network = type(network).for_problem(
        policy.problem, width=inner.width, depth=inner.depth, generator=generator
    )
    return twin


def why_no_optimum(problem: Problem) -> str | None:
    """None, or the reason why IPOPT does not solve `problem` as a matter of course."""
    if type(problem) not in PROBLEMS.values():
        return f"IPOPT has no formulas of {problem.name}"
    if problem.n_agents > MOST_AGENTS:
        return f"IPOPT takes minutes for {problem.n_agents} agents; ask for it with --optimum"
    return None


def optima(problem: Problem, states: Tensor) -> list[Solution]:
    """IPOPT's best local optimum from each of `states`, (batch, n).

    Raises ValueError where CasADi is not installed or has no formulas of the problem.
    """
    try:
        from bench.reference.ipopt import Ipopt
    except ModuleNotFoundError as error:
        if error.name != "casadi":
            raise
        raise ValueError("`optimum` needs casadi; install the extra `reference`") from error
    try:
        return Ipopt().solve(problem, states)
    except TypeError as error:
        raise ValueError(f"`optimum`: {error}") from error


def optimal_flight(problem: Problem, state: Tensor, solution: Solution) -> Flight:
    """Where the controls of `solution` lead from `state`, (n,), in the suite's own steps."""
    twin = in_double(problem)
    z, path = state[None].detach().cpu().double(), []
    for i, u in enumerate(solution.controls):
        path.append(z[0].numpy())
        z = z + twin.time_step * twin.dynamics(i * twin.time_step, z, u[None])
    times = twin.time_step * np.arange(twin.n_steps + 1)
    states = np.stack([*path, z[0].numpy()])
    return Flight(OPTIMUM, times, states, solution.controls.numpy(), solution.cost)


def gaps_of(problem: Problem, solutions: Sequence[Solution] | None, own_states: bool) -> Gaps:
    """What costs are compared with: `solutions`, or the references on file of held-out states."""
    if solutions is not None:
        from bench.reference.cache import make_reference

        found = make_reference(problem, "ipopt", solutions)
        return Gaps(found, None) if found.solved else Gaps(None, "IPOPT solved none of the states")
    if own_states:
        return Gaps(None, "no reference for states of one's own; --optimum solves them by IPOPT")
    return gaps(problem)
