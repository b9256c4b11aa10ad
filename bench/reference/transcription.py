"""Direct transcription by single shooting in torch, for sizes that IPOPT cannot reach.

The controls are the variables, the rollout is differentiated, L-BFGS minimises. Nothing but the
`Problem` interface is needed. What it finds is the best cost known, no more: "best known".

Conditioning decides the speed. One agent's problem is small enough for its Hessian (control_dim
x n_steps variables), and the coupling between agents is weak beside it, so the inverse root of
that Hessian, applied agent by agent, is the preconditioner of the whole.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from bench.reference.agent import agent_states, one_agent
from bench.reference.solution import Solution, Solver, fly, open_loop_cost
from bench.reference.starts import SPREADS, fanned, first_controls
from jfbcore import _validate
from jfbcore.problems import Bicycle, Consumption, Problem

#: Hessian rows computed in one batch
_HESSIAN_CHUNK = 128
#: how often the typical agent's Hessian is renewed on the way to its optimum
_HESSIAN_UPDATES = 4
CONVERGED = "converged"
ITERATION_LIMIT = "iteration limit"
LINE_SEARCH_STOPPED = "line search found no lower cost"


def control_of(problem: Problem, z: Tensor, decision: Tensor) -> Tensor:
    """The admissible control (batch, m) at `z` (batch, n) of a free decision (batch, m).

    Steering is max_steering * tanh(decision / max_steering): smooth, and slope 1 at zero.
    Consumption is the habit and exp(decision), the excess held within its bounds.
    """
    if isinstance(problem, Consumption):
        return z[:, 1:] + decision.exp().clamp(problem.min_excess, problem.max_excess)
    if isinstance(problem, Bicycle):
        bound = problem.max_steering
        steering = bound * (decision[:, ::2] / bound).tanh()
        return torch.stack((steering, decision[:, 1::2]), -1).flatten(1)
    return decision


def decision_of(problem: Problem, z: Tensor, control: Tensor) -> Tensor:
    """The inverse of `control_of`."""
    if isinstance(problem, Consumption):
        return (control - z[:, 1:]).clamp_min(problem.min_excess).log()
    if isinstance(problem, Bicycle):
        bound = problem.max_steering
        # tanh reaches its bound at infinity only
        inside = (control[:, ::2] / bound).clamp(-0.999, 0.999)
        return torch.stack((bound * inside.atanh(), control[:, 1::2]), -1).flatten(1)
    return control


def decisions_of(problem: Problem, states: Tensor, controls: Tensor) -> Tensor:
    """The decisions (batch, n_steps, m) behind `controls` of the same shape, from `states`."""
    z = fly(problem, states, lambda i, z: controls[:, i])[0]
    steps = range(problem.n_steps)
    return torch.stack([decision_of(problem, z[:, i], controls[:, i]) for i in steps], 1)


def flown(problem: Problem, states: Tensor, decisions: Tensor) -> tuple[Tensor, Tensor]:
    """Controls (batch, n_steps, m) and costs (batch,) of decisions of the controls' shape."""
    return fly(problem, states, lambda i, z: control_of(problem, z, decisions[:, i]))[1:]


class _Descent(NamedTuple):
    decisions: Tensor  # (1, n_steps, m)
    value: float
    status: str


@dataclass(frozen=True, kw_only=True)
class Transcription(Solver):
    """Single shooting with preconditioned L-BFGS; prefer IPOPT wherever it runs.

    `starts` perturbed starting points are tried per state and the best result kept; the first
    start is unperturbed. `seed` draws the perturbations. A descent ends where an iteration gains
    less than `tolerance`, relative.
    """

    starts: int = 1
    perturbation: float = 0.3
    seed: int = 0
    tolerance: float = 1e-8
    max_iterations: int = 500

    def __post_init__(self) -> None:
        for name in ("starts", "max_iterations"):
            _validate.positive_int(name, getattr(self, name))
        _validate.non_negative("perturbation", self.perturbation)
        _validate.positive("tolerance", self.tolerance)

    def _solve_each(
        self, problem: Problem, states: Tensor, controls: Tensor | None
    ) -> Iterator[Solution]:
        single, nominals = one_agent(problem), []
        # Only starting points are wanted of the agents alone.
        rough = replace(self, tolerance=1e-5)
        if controls is None:
            typical = agent_states(problem, states).mean(0, keepdim=True)
            nominals = rough._nominals(single, typical)
        for index, state in enumerate(states.split(1)):
            begin = time.perf_counter()
            if controls is None:
                alone = agent_states(problem, state).split(1)
                parts = [rough._best(single, each, nominals).decisions for each in alone]
                start = torch.cat(parts, 2)
                root = nominals[0][1]
            else:
                start = decisions_of(problem, state, controls[index : index + 1].double())
                first = agent_states(problem, state)[:1]
                own = start[:, :, : start.shape[2] // problem.n_agents]
                # Given controls are taken to be near an optimum: the first agent's curvature serves
                root = _inverse_root(single, first, own)
            begins = [start]
            if isinstance(problem, Bicycle) and problem.n_agents > 1 and controls is None:
                fan = fanned(problem, state, SPREADS[0])[1]
                begins.append(decisions_of(problem, state, fan))
            generator = torch.Generator().manual_seed(self.seed)
            for _ in range(self.starts - 1):
                noise = torch.randn(start.shape, generator=generator, dtype=start.dtype)
                begins.append(start + self.perturbation * _smooth(noise))
            found = self._best(problem, state, [(each, root) for each in begins])
            control = flown(problem, state, found.decisions)[0]
            cost = open_loop_cost(problem, state, control).item()
            yield Solution(
                cost=cost,
                objective=found.value,
                controls=control[0],
                status=found.status,
                solved=math.isfinite(cost),
                seconds=time.perf_counter() - begin,
            )

    def _best(
        self, problem: Problem, state: Tensor, starts: Sequence[tuple[Tensor, Tensor]]
    ) -> _Descent:
        """The lowest end of descents from `starts`, decisions and preconditioners."""
        ends = [self._descend(problem, state, start, root) for start, root in starts]
        return min(ends, key=lambda end: end.value if math.isfinite(end.value) else math.inf)

    def _descend(self, problem: Problem, state: Tensor, start: Tensor, root: Tensor) -> _Descent:
        """From `start` (1, n_steps, m). `root` (d, d) over one agent's d = n_steps * width
        decisions is the inverse square root of its Hessian: the variables are y with
        decisions = start + root y, agent by agent.
        """
        width = len(root) // problem.n_steps

        def decisions(y: Tensor) -> Tensor:
            blocks = (y.view(1, -1, len(root)) @ root).unflatten(2, (-1, width))
            return start + blocks.transpose(1, 2).flatten(2)

        def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
            y = torch.from_numpy(x).requires_grad_()
            value = flown(problem, state, decisions(y))[1].sum()
            (gradient,) = torch.autograd.grad(value, y)
            if not (value.isfinite() and gradient.isfinite().all()):
                return 1e300, np.zeros_like(x)  # the line search turns back
            return value.item(), gradient.numpy()

        options = {"maxcor": 30, "maxiter": self.max_iterations, "maxfun": 100_000,
                   "ftol": self.tolerance, "gtol": 0.0}  # fmt: skip
        found = minimize(objective, np.zeros(start.numel()), jac=True, method="L-BFGS-B",
                         options=options)  # fmt: skip
        limit = found.nit >= self.max_iterations
        missed = ITERATION_LIMIT if limit else LINE_SEARCH_STOPPED
        status = CONVERGED if found.success else missed
        return _Descent(decisions(torch.from_numpy(found.x)), float(found.fun), status)

    def _nominals(self, single: Problem, typical: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Optima of the typical agent from the first guesses, the best first, and their roots."""
        # Far from the optimum a Hessian is soon out of date.
        short = replace(self, max_iterations=50)
        ends: list[_Descent] = []
        for controls in first_controls(single, typical):
            nominal = decisions_of(single, typical, controls)
            for _ in range(_HESSIAN_UPDATES):
                root = _inverse_root(single, typical, nominal)
                end = short._descend(single, typical, nominal, root)
                nominal = end.decisions
            # Guesses that lead the typical agent to one optimum lead every agent to the same.
            if all(abs(end.value - other.value) > 1e-3 * abs(other.value) for other in ends):
                ends.append(end)
        ends.sort(key=lambda end: end.value)
        return [(end.decisions, _inverse_root(single, typical, end.decisions)) for end in ends]


def _smooth(noise: Tensor) -> Tensor:
    """White noise (batch, n_steps, m) averaged over a fifth of the horizon."""
    width = max(1, noise.shape[1] // 5)
    kernel = torch.ones(1, 1, width, dtype=noise.dtype) / width**0.5
    rows = noise.transpose(1, 2).flatten(0, 1).unsqueeze(1)
    smooth = torch.nn.functional.conv1d(rows, kernel, padding="same")
    return smooth.view(noise.shape[0], noise.shape[2], -1).transpose(1, 2)


def _inverse_root(problem: Problem, state: Tensor, decision: Tensor) -> Tensor:
    """|Hessian|^(-1/2) of the cost in the decisions (1, n_steps, m), (d, d), symmetric."""
    rows = []
    for index in torch.arange(decision.numel()).split(_HESSIAN_CHUNK):
        x = decision.flatten(1).expand(len(index), -1).clone().requires_grad_()
        shaped = x.view(len(index), *decision.shape[1:])
        cost = flown(problem, state.expand(len(index), -1), shaped)[1]
        (gradient,) = torch.autograd.grad(cost.sum(), x, create_graph=True)
        picked = gradient.gather(1, index[:, None]).sum()
        rows.append(torch.autograd.grad(picked, x)[0])
    hessian = torch.cat(rows)
    values, vectors = torch.linalg.eigh(0.5 * (hessian + hessian.T))
    # Saddle directions keep their curvature's size; flat ones get a floor.
    values = values.abs().clamp_min(1e-8 * values.abs().max())
    return (vectors * values.rsqrt()) @ vectors.T
