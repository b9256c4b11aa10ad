"""One time step of a rollout without a graph, and its way back: what compiled rollouts run."""

from __future__ import annotations

import torch
from torch import Tensor

from jfbcore.kernels.fused import pull_back
from jfbcore.maps import BoundMap
from jfbcore.policy import HamiltonianPolicy, Policy
from jfbcore.solvers.base import Solution


class TimeStep:
    """The parts of a time step of `policy`, given what its network says of the states.

    `output` is the costate p (batch, n), or the control of a policy without an inner problem.
    `kept` (batch, …) is what the gradient method keeps of the inner solve.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy, self.problem = policy, policy.problem

    def bind(self, t: Tensor, z: Tensor, output: Tensor) -> BoundMap:
        """The fixed-point map at `t` and `z` for the costate `output`."""
        assert isinstance(self.policy, HamiltonianPolicy)
        return self.policy.fixed_point_map.bind(self.problem.hamiltonian(t, z, output))

    def start(self, bound: BoundMap, t: Tensor, z: Tensor, start: Tensor | None) -> Tensor:
        """Where the inner solve starts: the control of the last time step where there is one."""
        if start is None:
            return self.problem.initial_control(t, z)
        return bound.hamiltonian.project(start)

    def solve(
        self, t: Tensor, z: Tensor, output: Tensor, start: Tensor | None
    ) -> tuple[Solution, Tensor]:
        """The inner solution, tested as the solver goes, and what is kept of it."""
        assert isinstance(self.policy, HamiltonianPolicy)
        bound = self.bind(t, z, output)
        initial = self.start(bound, t, z, start)
        return self.policy.gradient.solve(bound, self.policy.solver, initial)

    def repeat(
        self, t: Tensor, z: Tensor, output: Tensor, start: Tensor | None, steps: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What is kept of `steps` untested steps of the solver, the residual, the control."""
        assert isinstance(self.policy, HamiltonianPolicy)
        bound = self.bind(t, z, output)
        initial = self.start(bound, t, z, start)
        return self.policy.gradient.repeat(bound, self.policy.solver, initial, steps)

    def control(self, t: Tensor, z: Tensor, output: Tensor, kept: Tensor) -> Tensor:
        """The control that flies, differentiable in state and network output."""
        if not isinstance(self.policy, HamiltonianPolicy):
            return output
        return self.policy.gradient.reattach(self.bind(t, z, output), self.policy.solver, kept)

    def fly(
        self, t: Tensor, h: Tensor, z: Tensor, output: Tensor, kept: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The next state, the cost h L of the step, and the control that flew."""
        control = self.control(t, z, output, kept)
        z_next = z + h * self.problem.dynamics(t, z, control)
        return z_next, h * self.problem.running_cost(t, z, control), control

    def cost_gradient(
        self, t: Tensor, h: Tensor, z: Tensor, control: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """h L (batch,) and its gradients in state (batch, n) and control (batch, m), in one pass:
        what is expensive in both, such as the distances of agents, is evaluated once."""

        def running(z: Tensor, u: Tensor) -> Tensor:
            return h * self.problem.running_cost(t, z, u)

        if torch.compiler.is_compiling():
            cost, pull, *_ = torch.func.vjp(running, z, control)
            return cost, *pull(torch.ones_like(cost))
        # Elsewhere without torch.func and cotangents: both import 100 MB that only compiling needs.
        with torch.enable_grad():
            z, control = (x.detach().requires_grad_() for x in (z, control))
            total = (cost := running(z, control)).sum()
        cost_z, cost_u = torch.autograd.grad(total, (z, control), materialize_grads=True)
        return cost.detach(), cost_z, cost_u

    def pull_back(
        self,
        t: Tensor,
        h: Tensor,
        z: Tensor,
        output: Tensor,
        kept: Tensor,
        z_bar: Tensor,
        running_bar: Tensor,
        cost_gradient: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Cotangents of the state, but for its way through the network, and of `output`.

        `cost_gradient`: those of `cost_gradient` where the way there has kept them.
        """
        control = self.control(t, z, output, kept)
        if cost_gradient is None:
            cost_gradient = self.cost_gradient(t, h, z, control)[1:]
        cost_z, cost_u = cost_gradient
        dynamics = pull_back(lambda z, u: self.problem.dynamics(t, z, u), z, control)
        onto, control_bar = dynamics(h * z_bar)
        weight = running_bar.unsqueeze(1)
        onto = z_bar + onto + weight * cost_z
        control_bar = control_bar + weight * cost_u
        if not isinstance(self.policy, HamiltonianPolicy):
            return onto, control_bar
        through, output_bar = self.policy.gradient.pull_back(
            lambda z, p: self.bind(t, z, p), self.policy.solver, z, output, kept, control_bar
        )
        return onto + through, output_bar

    def pull_network(self, t: Tensor, z: Tensor, bar: Tensor, onto: Tensor) -> Tensor:
        """`onto` plus the state's cotangent for the cotangent `bar` of a control that a network
        outputs: policies without an inner problem."""
        pulled: Tensor = pull_back(lambda z: self.policy(t, z).control, z)(bar)[0]
        return onto + pulled

    def pull_terminal(self, z: Tensor, bar: Tensor) -> Tensor:
        """The cotangent of the final state for that of the terminal cost (batch,)."""
        pulled: Tensor = pull_back(self.problem.terminal_cost, z)(bar)[0]
        return pulled
