"""Direct transcription by single shooting in torch, for sizes that IPOPT cannot reach.

The controls are the variables, the rollout is differentiated, L-BFGS minimises. Nothing but the
`Problem` interface is needed. What it finds is the best cost known, no more: "best known".

Conditioning decides the speed. One agent's problem is small enough for its Hessian (control_dim
x n_steps variables), and the coupling between agents is weak beside it, so the inverse root of
that Hessian, applied agent by agent, is the preconditioner of the whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from bench.reference.agent import agent_states, one_agent
from bench.reference.fan import SPREADS, fanned_controls
from bench.reference.lbfgs import BatchedLBFGS
from bench.reference.parametrisation import Parametrisation, parametrisation_of
from bench.reference.solution import Solution, in_double, open_loop_cost
from jfbcore import _validate
from jfbcore.problems import Bicycle, Problem

#: Hessian rows computed in one batch
_HESSIAN_CHUNK = 128
#: how often the typical agent's Hessian is renewed on the way to its optimum
_HESSIAN_UPDATES = 4


@dataclass(frozen=True, kw_only=True)
class Transcription:
    """Single shooting with preconditioned L-BFGS; prefer IPOPT wherever it runs.

    `starts` perturbed starting points are tried per state and the best result kept; the first
    start is unperturbed. `seed` draws the perturbations.
    """

    starts: int = 1
    #: states solved together
    chunk: int = 16
    perturbation: float = 0.3
    seed: int = 0
    optimiser: BatchedLBFGS = field(default_factory=BatchedLBFGS)

    def __post_init__(self) -> None:
        for name in ("starts", "chunk"):
            _validate.positive_int(name, getattr(self, name))
        _validate.non_negative("perturbation", self.perturbation)

    def solve(
        self,
        problem: Problem,
        states: Tensor,
        *,
        initial_controls: Tensor | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> list[Solution]:
        """The best control found from each of `states`, (batch, n).

        `initial_controls`, (batch, n_steps, m), replaces the start from single-agent optima.
        `progress` is called with the number of states finished, chunk by chunk. States of a chunk
        are solved together, so `seconds` is its time divided by its number of states.
        """
        problem, states = in_double(problem), states.detach().double().cpu()
        solutions: list[Solution] = []
        for rows in torch.arange(len(states)).split(self.chunk):
            given = None if initial_controls is None else initial_controls[rows].double()
            solutions += self._solve_chunk(problem, states[rows], given)
            if progress is not None:
                progress(len(rows))
        return solutions

    def _solve_chunk(
        self, problem: Problem, states: Tensor, initial_controls: Tensor | None
    ) -> list[Solution]:
        begin = time.perf_counter()
        variables = parametrisation_of(problem)
        if initial_controls is None:
            start, root = _from_single_agents(problem, states, self.optimiser)
        else:
            start = variables.decisions(problem, states, initial_controls)
            single = one_agent(problem)
            alone, width = agent_states(problem, states[:1])[:1], start.shape[2] // problem.n_agents
            # Given controls are taken to be near an optimum: the first agent's curvature serves.
            root = _inverse_root(single, parametrisation_of(single), alone, start[:1, :, :width])
        generator = torch.Generator().manual_seed(self.seed)
        best, best_value, best_status = _descend(
            problem, variables, states, start, root, self.optimiser
        )
        others = []
        if isinstance(problem, Bicycle) and problem.n_agents > 1 and initial_controls is None:
            fan = fanned_controls(problem, states, SPREADS[0])
            others.append(variables.decisions(problem, states, fan))
        for _ in range(self.starts - 1):
            noise = torch.randn(start.shape, generator=generator, dtype=start.dtype)
            others.append(start + self.perturbation * _smooth(noise))
        for other in others:
            points, values, statuses = _descend(
                problem, variables, states, other, root, self.optimiser
            )
            better = values < best_value
            best = torch.where(better[:, None, None], points, best)
            best_value = torch.where(better, values, best_value)
            best_status = [
                new if take else old
                for new, old, take in zip(statuses, best_status, better.tolist(), strict=True)
            ]
        with torch.no_grad():
            controls = variables.controls(problem, states, best)
            costs = open_loop_cost(problem, states, controls)
        seconds = (time.perf_counter() - begin) / len(states)
        return [
            Solution(
                cost=cost.item(),
                objective=value.item(),
                controls=control,
                status=status,
                solved=bool(torch.isfinite(cost)),
                seconds=seconds,
            )
            for cost, value, control, status in zip(
                costs, best_value, controls, best_status, strict=True
            )
        ]


def _smooth(noise: Tensor) -> Tensor:
    """White noise (batch, n_steps, m) averaged over a fifth of the horizon."""
    width = max(1, noise.shape[1] // 5)
    kernel = torch.ones(1, 1, width, dtype=noise.dtype) / width**0.5
    rows = noise.transpose(1, 2).flatten(0, 1).unsqueeze(1)
    smooth = torch.nn.functional.conv1d(rows, kernel, padding="same")
    return smooth.view(noise.shape[0], noise.shape[2], -1).transpose(1, 2)


def _descend(
    problem: Problem,
    variables: Parametrisation[Any],
    states: Tensor,
    start: Tensor,
    root: Tensor,
    optimiser: BatchedLBFGS,
) -> tuple[Tensor, Tensor, list[str]]:
    """Decisions (batch, n_steps, m), values (batch,) and statuses of one descent.

    `root`, (d, d) over one agent's d = n_steps * width decisions, is the inverse square root of
    its Hessian: the rows are minimised over y with decisions = start + root y.
    """
    width = root.shape[0] // problem.n_steps

    def decisions(y: Tensor) -> Tensor:
        blocks = (y.view(len(states), -1, root.shape[0]) @ root).unflatten(2, (-1, width))
        return start + blocks.transpose(1, 2).flatten(2)

    def objective(y: Tensor) -> tuple[Tensor, Tensor]:
        y = y.detach().requires_grad_()
        values = variables.cost(problem, states, decisions(y))
        # Rows are independent, so the gradient of the sum holds every row's own gradient.
        (gradient,) = torch.autograd.grad(values.sum(), y)
        return values.detach(), gradient

    found = optimiser.minimise(objective, torch.zeros_like(start).flatten(1))
    return decisions(found.points), found.values, found.statuses


def _from_single_agents(
    problem: Problem, states: Tensor, optimiser: BatchedLBFGS
) -> tuple[Tensor, Tensor]:
    """Start (batch, n_steps, m) from one-agent optima, and one agent's preconditioner root."""
    single = one_agent(problem)
    variables = parametrisation_of(single)
    alone = agent_states(problem, states)
    typical = alone.mean(0, keepdim=True)
    # Only starting points are wanted here. Far from the optimum a Hessian is soon out of date.
    rough = replace(optimiser, tolerance=1e-4, patience=5)
    short = replace(rough, max_iterations=50)
    tried: list[tuple[float, Tensor]] = []
    for nominal in variables.first_guesses(single, typical):
        for _ in range(_HESSIAN_UPDATES):
            root = _inverse_root(single, variables, typical, nominal)
            nominal, value, _ = _descend(single, variables, typical, nominal, root, short)
        # Guesses that lead the typical agent to one optimum lead every agent to the same.
        if all(abs(value.item() - other) > 1e-3 * abs(other) for other, _ in tried):
            tried.append((value.item(), nominal))
    tried.sort(key=lambda pair: pair[0])

    def everyone_from(nominal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        own = _inverse_root(single, variables, typical, nominal)
        start = nominal.expand(len(alone), -1, -1).contiguous()
        points, costs, _ = _descend(single, variables, alone, start, own, rough)
        return points, costs, own

    found, values, root = everyone_from(tried[0][1])
    for _, nominal in tried[1:]:
        points, costs, _ = everyone_from(nominal)
        found = torch.where((costs < values)[:, None, None], points, found)
        values = torch.minimum(costs, values)
    joined = found.view(len(states), problem.n_agents, problem.n_steps, -1)
    return joined.transpose(1, 2).flatten(2), root


def _inverse_root(
    problem: Problem, variables: Parametrisation[Any], state: Tensor, decision: Tensor
) -> Tensor:
    """|Hessian|^(-1/2) of the cost in the decisions, (d, d), symmetric."""
    size = decision.numel()
    rows = []
    for index in torch.arange(size).split(_HESSIAN_CHUNK):
        x = decision.flatten(1).expand(len(index), -1).clone().requires_grad_()
        shaped = x.view(len(index), *decision.shape[1:])
        cost = variables.cost(problem, state.expand(len(index), -1), shaped)
        (gradient,) = torch.autograd.grad(cost.sum(), x, create_graph=True)
        picked = gradient.gather(1, index[:, None]).sum()
        rows.append(torch.autograd.grad(picked, x)[0])
    hessian = torch.cat(rows)
    values, vectors = torch.linalg.eigh(0.5 * (hessian + hessian.T))
    # Saddle directions keep their curvature's size; flat ones get a floor.
    values = values.abs().clamp_min(1e-8 * values.abs().max())
    return (vectors * values.rsqrt()) @ vectors.T
