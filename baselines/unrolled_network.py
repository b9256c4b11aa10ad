"""Unrolling with the value network inside the map, as the method's released code does it."""

from __future__ import annotations

import torch
from torch import Tensor

from jfbcore.policy import Decision, HamiltonianPolicy, Policy
from jfbcore.problems.base import Time
from jfbcore.solvers import Picard


class UnrolledNetworkPolicy(Policy):
    """`policy`, with grad phi and the Hamiltonian built anew in each of the K tracked iterations.

    A policy and not a gradient estimator: an estimator is given a Hamiltonian that already holds
    its costate, and what this shows is the price of not having one. Same control and, to
    rounding, same gradient as `Unrolled()`, whose graph holds one network evaluation per time
    step where this one holds K. To measure that price; never to train with.

    Raises ValueError unless the policy's solver is Picard with a fixed number of iterations.
    """

    def __init__(self, policy: HamiltonianPolicy) -> None:
        super().__init__()
        solver = policy.solver
        if not isinstance(solver, Picard) or solver.tolerance is not None:
            raise ValueError(
                f"`policy.solver` must be Picard(tolerance=None), got {solver!r}: the tracked "
                "iteration has no stopping test"
            )
        self.problem = policy.problem
        self.policy = policy

    def forward(self, t: Time, z: Tensor, warm_start: Tensor | None = None) -> Decision:
        policy, solver = self.policy, self.policy.solver
        initial = self.problem.initial_control(t, z) if warm_start is None else warm_start
        u = initial.detach()
        for _ in range(solver.max_iterations):
            p = policy.value_network.costate(t, z)
            hamiltonian = self.problem.hamiltonian(t, z, p)
            bound = policy.fixed_point_map.bind(hamiltonian)
            u = bound(u)
        with torch.no_grad():
            residual = bound.residual(u)
        return Decision(u, solver.solution(u, residual, solver.max_iterations), hamiltonian)
