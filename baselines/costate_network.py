"""A network that outputs the costate itself, in place of the gradient of a value network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from baselines.direct import DirectPolicy
from baselines.methods import Method, Network
from jfbcore.jfb import JFB
from jfbcore.maps import FixedPointMap
from jfbcore.policy import Decision, HamiltonianPolicy, Policy
from jfbcore.problems import Problem
from jfbcore.problems.base import Time
from jfbcore.solvers import Solver
from jfbcore.value_network import ValueNetwork


class CostateNetwork(nn.Module):
    """p(t, z), a fully connected network of the direct policy's kind and size: no potential.

    Nothing makes it the gradient of a function. Where a method is worse than the direct policy, it
    tells what the Hamiltonian costs from what the value network costs.
    """

    start: Tensor
    unit: Tensor

    def __init__(
        self,
        problem: Problem,
        *,
        width: int | None = None,
        depth: int | None = None,
        generator: torch.Generator | None = None,
        network: Network = ValueNetwork,
    ) -> None:
        super().__init__()
        self.layers = DirectPolicy(
            problem,
            width=width,
            depth=depth,
            generator=generator,
            network=network,
            outputs=problem.state_dim,
        )
        initial = problem.initial_costate()
        zero = torch.zeros(problem.state_dim, dtype=problem.dtype, device=problem.device)
        self.register_buffer("start", zero if initial is None else initial, persistent=False)
        # What an output of 1 adds: the nominal costate's size, or 1 where that is zero.
        size = self.start.abs().max()
        unit = torch.where(size > 0, size, torch.ones_like(size))
        self.register_buffer("unit", unit, persistent=False)

    def constructor_arguments(self) -> dict[str, Any]:
        """What a saved network is built again from."""
        arguments = self.layers.constructor_arguments()
        del arguments["outputs"]
        return arguments

    def costate(self, t: Time, z: Tensor) -> Tensor:
        """p (batch, n) at time `t` and states `z` (batch, n), near the problem's own at first."""
        return self.start + self.unit * self.layers.output(t, z)


class CostatePolicy(Policy):
    """`policy`, whose network in place of a value network is a `CostateNetwork`."""

    def __init__(self, policy: HamiltonianPolicy) -> None:
        super().__init__()
        self.problem, self.policy = policy.problem, policy

    def supports_compiled_rollout(self) -> str | None:
        """Why no compiled rollout can run this policy: it pulls back through a value network."""
        return "costate-network has no value network, whose sweep a compiled rollout keeps"

    def forward(self, t: Time, z: Tensor, warm_start: Tensor | None = None) -> Decision:
        """The control that maximises H at the network's costate."""
        decision: Decision = self.policy(t, z, warm_start)
        return decision


class CostateNetworkMethod(Method):
    """jfb with a network that outputs the costate, in place of a value network's gradient."""

    def supports(self, problem: Problem) -> str | None:
        """None, or the reason why it cannot serve `problem`: that of jfb."""
        return JFB().supports(problem)

    def supports_solver(self, solver: Solver) -> str | None:
        """None, or the reason why it cannot work with `solver`: that of jfb."""
        return JFB().supports_solver(solver)

    def build(
        self,
        problem: Problem,
        *,
        fixed_point_map: FixedPointMap,
        solver: Solver,
        network: Network = ValueNetwork,
        width: int | None = None,
        depth: int | None = None,
        generator: torch.Generator | None = None,
    ) -> CostatePolicy:
        """A policy that maximises the Hamiltonian at the costate that its network outputs."""
        costates = CostateNetwork(
            problem, width=width, depth=depth, generator=generator, network=network
        )
        return CostatePolicy(HamiltonianPolicy(
            problem,
            costates,  # type: ignore[arg-type]  # what a policy asks of it is `costate`
            fixed_point_map=fixed_point_map,
            solver=solver,
            gradient=JFB(),
        ))  # fmt: skip
