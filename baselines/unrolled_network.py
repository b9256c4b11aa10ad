"""Unrolling with the value network inside the map, as the method's released code does it."""

from __future__ import annotations

import torch
from torch import Tensor

from baselines.unrolled import needs_iterations
from jfbcore.maps import BoundMap
from jfbcore.policy import Decision, HamiltonianPolicy, Policy
from jfbcore.problems.base import Time
from jfbcore.solvers import IterativeSolver
from jfbcore.solvers.iterate import track


class UnrolledNetworkPolicy(Policy):
    """`policy`, with grad phi and the Hamiltonian built anew in each of the tracked iterations.

    A policy and not a gradient estimator: an estimator is given a Hamiltonian that already holds
    its costate, and what this shows is the price of not having one. Same control and, to
    rounding, same gradient as `Unrolled()`, whose graph holds one network evaluation per time
    step where this one holds one per step of the solver. To measure that price; never to train
    with.

    Raises ValueError with the reason where the policy's solver has no iterations.
    """

    def __init__(self, policy: HamiltonianPolicy) -> None:
        super().__init__()
        if (reason := needs_iterations("unrolled-network", policy.solver)) is not None:
            raise ValueError(reason)
        self.problem = policy.problem
        self.policy = policy

    def supports_compiled_rollout(self) -> str | None:
        if self.policy.solver.tolerance is None:
            return None
        return "unrolled-network asks the host when to stop; give it an exact number of iterations"

    def forward(self, t: Time, z: Tensor, warm_start: Tensor | None = None) -> Decision:
        """The control, with the costate evaluated again in every tracked iteration."""
        if not torch.is_grad_enabled():
            decision: Decision = self.policy(t, z, warm_start)
            return decision
        solver = self.policy.solver
        assert isinstance(solver, IterativeSolver)
        initial = self.problem.initial_control(t, z) if warm_start is None else warm_start
        bound: list[BoundMap] = []

        def bind() -> BoundMap:
            p = self.policy.value_network.costate(t, z)
            bound[:] = [self.policy.fixed_point_map.bind(self.problem.hamiltonian(t, z, p))]
            return bound[0]

        state = solver.init(bind(), initial.detach())
        run = track(solver, bound[0], state, solver.max_iterations, bind)
        return Decision(run.point, solver.result(run), bound[0].hamiltonian)
