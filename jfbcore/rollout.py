"""Simulate a policy and add up its cost."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from jfbcore.policy import Decision, HamiltonianPolicy, Policy
from jfbcore.solvers.base import Solution


@dataclass
class InnerStatistics:
    """Iterations and residuals of the inner solves of one rollout."""

    iterations: list[int] = field(default_factory=list)
    residual_means: list[Tensor] = field(default_factory=list)
    residual_maxima: list[Tensor] = field(default_factory=list)

    def add(self, solution: Solution) -> None:
        residual = solution.residual.detach()
        self.iterations.append(solution.iterations)
        self.residual_means.append(residual.mean())
        self.residual_maxima.append(residual.max())

    def summary(self) -> dict[str, dict[str, float]] | None:
        """{"iterations": {mean, max}, "residual": {mean, max}}, or None without inner solves."""
        if not self.iterations:
            return None
        return {
            "iterations": {
                "mean": sum(self.iterations) / len(self.iterations),
                "max": max(self.iterations),
            },
            "residual": {
                "mean": torch.stack(self.residual_means).mean().item(),
                "max": torch.stack(self.residual_maxima).max().item(),
            },
        }


@dataclass(frozen=True)
class Rollout:
    """Costs per sample, (batch,) each, and the inner solves' statistics.

    `running_cost` is the Euler sum of h L, `terminal_cost` G(z_n). The penalties are None unless
    asked for: `hjb_penalty` is the Euler sum of h |HJB residual|, `terminal_penalty` the misfit
    |phi(T, z_n) - G(z_n)|.
    """

    running_cost: Tensor
    terminal_cost: Tensor
    final_state: Tensor
    inner: InnerStatistics
    hjb_penalty: Tensor | None = None
    terminal_penalty: Tensor | None = None

    @property
    def cost(self) -> Tensor:
        return self.running_cost + self.terminal_cost


def rollout(
    policy: Policy,
    initial_states: Tensor,
    *,
    n_steps: int | None = None,
    warm_start: bool = False,
    penalties: bool = False,
) -> Rollout:
    """Left-endpoint Euler from `initial_states` (batch, n), with a graph if grad mode is on.

    `n_steps` None takes the problem's own number of time steps. `warm_start` starts each inner
    solve from the previous step's control. `penalties` also evaluates the HJB residual and the
    terminal misfit of the value network (a second network sweep per step).
    """
    problem = policy.problem
    n_steps = problem.n_steps if n_steps is None else n_steps
    h, z = problem.t_final / n_steps, initial_states
    running = z.new_zeros(z.shape[0])
    hjb = z.new_zeros(z.shape[0]) if penalties else None
    inner = InnerStatistics()
    control: Tensor | None = None
    for i in range(n_steps):
        t = i * h
        # The start of an inner solve has no influence on its fixed point: no derivative to keep.
        start = control.detach() if warm_start and control is not None else None
        decision = policy(t, z, start)
        control = decision.control
        if decision.solution is not None:
            inner.add(decision.solution)
        if hjb is not None:
            hjb = torch.add(hjb, hjb_residual(policy, t, z, decision).abs(), alpha=h)
        running = torch.add(running, problem.running_cost(t, z, control), alpha=h)
        z = torch.add(z, problem.dynamics(t, z, control), alpha=h)
    terminal = problem.terminal_cost(z)
    misfit = None
    if penalties:
        value = _value_network_policy(policy).value_network(problem.t_final, z)
        misfit = (value - terminal).abs()
    return Rollout(running, terminal, z, inner, hjb, misfit)


def hjb_residual(policy: Policy, t: float, z: Tensor, decision: Decision) -> Tensor:
    """d phi/dt + min_u {L + <p, f>} at (t, z), (batch,); zero for the true value function."""
    network = _value_network_policy(policy).value_network
    assert decision.hamiltonian is not None
    _, _, phi_t = network.value_and_gradient(t, z)
    return phi_t - decision.hamiltonian.value(decision.control)


def _value_network_policy(policy: Policy) -> HamiltonianPolicy:
    if not isinstance(policy, HamiltonianPolicy):
        raise ValueError("HJB penalties need a policy with a value network; set them to 0")
    return policy
