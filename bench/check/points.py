"""A batch of times, states, costates and controls at which formulas are compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from jfbcore.problems import Hamiltonian, Problem

BATCH = 4


@dataclass
class Point:
    """A batch of times, states, costates and admissible controls."""

    problem: Problem
    t: float
    z: Tensor
    p: Tensor
    u: Tensor

    def hamiltonian(self) -> Hamiltonian:
        return self.problem.hamiltonian(self.t, self.z, self.p)

    def require_grad(self) -> Point:
        for tensor in (self.z, self.p, self.u):
            tensor.requires_grad_()
        return self


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw_point(
    make: Callable[..., Problem], n_agents: int, *, batch: int = BATCH, seed: int = 0
) -> Point:
    """A float64 point of the problem that `make` makes, a short way into a simulation."""
    problem = make(n_agents=n_agents, dtype=torch.float64)
    random = generator(seed)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=random, dtype=torch.float64)

    t, z = 0.0, problem.sample_initial_states(batch, random)
    base = problem.initial_costate().expand_as(z)
    # Around the nominal costate where there is one, else of order one.
    spread = 0.2 * base.abs().amax() if base.any() else 0.5
    p = base + spread * noise(z)
    for _ in range(5):  # a few coarse steps make every component of the state generic
        u = problem.initial_control(t, z)
        u = problem.hamiltonian(t, z, p).project(u + 0.3 * noise(u))
        z = z + 0.05 * problem.dynamics(t, z, u)
        t += 0.05
    u = problem.initial_control(t, z)
    u = problem.hamiltonian(t, z, p).project(u + 0.3 * noise(u))
    return Point(problem, t, z.detach(), p, u.detach())
