"""Simulate a policy and add up its cost."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from jfbcore import _validate
from jfbcore.extras.recomputed_step import RecomputedStep
from jfbcore.policy import Decision, HamiltonianPolicy, Policy
from jfbcore.problems.base import Time
from jfbcore.solvers.base import Solution


@dataclass
class InnerStatistics:
    """Iterations and residuals of the inner solves of one rollout."""

    iterations: list[int | Tensor] = field(default_factory=list)
    residuals: list[Tensor] = field(default_factory=list)

    def add(self, solution: Solution | None) -> None:
        """Note the iterations and residuals of a time step, if it had an inner solve."""
        if solution is not None:
            self.iterations.append(solution.iterations)
            self.residuals.append(solution.residual.detach())

    def summary(self) -> dict[str, dict[str, float]] | None:
        """{"iterations": {mean, max}, "residual": {mean, max}}, or None without inner solves."""
        if not self.iterations:
            return None
        # Tensors where the loop ran inside a compiled graph, one number per time step.
        iterations: list[int] = []
        for count in self.iterations:
            iterations += [count] if isinstance(count, int) else count.flatten().tolist()
        residuals = torch.cat([residual.flatten() for residual in self.residuals])
        return {
            "iterations": {"mean": sum(iterations) / len(iterations), "max": max(iterations)},
            "residual": {"mean": residuals.mean().item(), "max": residuals.max().item()},
        }


@dataclass(frozen=True)
class Rollout:
    """Costs per sample, (batch,) each, and the inner solves' statistics.

    `running_cost` is the Euler sum of h L, `terminal_cost` G(z_n). The penalties are None unless
    asked for: `hjb_penalty` is the Euler sum of h |HJB residual|, `terminal_penalty` the misfit
    |phi(T, z_n) - G(z_n)|. So is the trajectory: `times` (n_steps + 1,), `states`
    (n_steps + 1, batch, n) and `controls` (n_steps, batch, m).
    """

    running_cost: Tensor
    terminal_cost: Tensor
    final_state: Tensor
    inner: InnerStatistics
    hjb_penalty: Tensor | None = None
    terminal_penalty: Tensor | None = None
    times: Tensor | None = None
    states: Tensor | None = None
    controls: Tensor | None = None

    @property
    def cost(self) -> Tensor:
        """Running plus terminal cost, (batch,)."""
        return self.running_cost + self.terminal_cost


def rollout(
    policy: Policy,
    initial_states: Tensor,
    *,
    n_steps: int | None = None,
    warm_start: bool = False,
    penalties: bool = False,
    segment: int | None = None,
    record: bool = False,
) -> Rollout:
    """Left-endpoint Euler from `initial_states` (batch, n), with a graph if grad mode is on.

    `n_steps` None takes the problem's own number of time steps. `warm_start` starts each inner
    solve from the previous time step's control. `penalties` also evaluates the HJB residual and the
    terminal misfit of the value network, by a second network sweep per time step. `segment` keeps
    the graph of that many time steps at a time and computes the others again on the way back: the
    memory of n_steps/segment states and `segment` time steps, least near the root of n_steps, for
    one more forward pass. `record` also returns times, states and controls, with a graph if grad
    mode is on. A policy that assigns agents to places begins with that: agents are numbered by
    place in whatever is returned.

    Raises TypeError or ValueError where an argument does not fit, the states' dtype and device
    included, and ValueError for `record` with `segment`.
    """
    if segment is not None:
        _validate.positive_int("segment", segment)
        if record:
            raise ValueError("`record` keeps every time step; leave out `segment`")
    initial_states = starting_states(policy, initial_states)
    problem = policy.problem
    n_steps = problem.n_steps if n_steps is None else _validate.positive_int("n_steps", n_steps)
    h, inner = problem.t_final / n_steps, InnerStatistics()
    states, controls, done = [initial_states], list[Tensor](), 0
    again = isinstance(policy, HamiltonianPolicy) and policy.gradient.recompute
    step = RecomputedStep(policy, advance) if again and torch.is_grad_enabled() else None

    def take(
        steps: range, z: Tensor, running: Tensor, hjb: Tensor | None, start: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        nonlocal done
        for i in steps:
            if step is not None:
                decision, z, running, hjb = step(i * h, h, z, running, hjb, start)
            else:
                decision = policy(i * h, z, start)
                z, running, hjb = advance(policy, decision, i * h, h, z, running, hjb)
            if record:
                states.append(z)
                controls.append(decision.control)
            # A segment that is computed again on the way back must not count twice.
            if i >= done:
                inner.add(decision.solution)
                done = i + 1
            # Where an inner solve starts does not move its fixed point: no derivative to keep.
            start = decision.control.detach() if warm_start else None
            del decision  # nothing of it is in the way of the next time step
        return z, running, hjb, start

    zero = initial_states.new_zeros(initial_states.shape[0])
    flown = initial_states, zero, zero if penalties else None, None
    if segment is None or not torch.is_grad_enabled():
        z, running, hjb, _ = take(range(n_steps), *flown)
    else:
        for first in range(0, n_steps, segment):
            steps = range(first, min(first + segment, n_steps))
            flown = checkpoint(take, steps, *flown, use_reentrant=False, preserve_rng_state=False)
        z, running, hjb, _ = flown
    terminal = problem.terminal_cost(z)
    misfit = None
    if penalties:
        value = _value_network_policy(policy).value_network(problem.t_final, z)
        misfit = (value - terminal).abs()
    result = Rollout(running, terminal, z, inner, hjb, misfit)
    if not record:
        return result
    times = h * torch.arange(n_steps + 1, dtype=torch.float64)
    return replace(
        result, times=times.to(z), states=torch.stack(states), controls=torch.stack(controls)
    )


def advance(
    policy: Policy,
    decision: Decision,
    t: float,
    h: float,
    z: Tensor,
    running: Tensor,
    hjb: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """An Euler step of length `h` [time unit of t] from time `t` and states `z` under a decision:
    the next state (batch, n), the running cost and, unless None, the HJB penalty so far (batch,).
    """
    problem, control, hamiltonian = policy.problem, decision.control, decision.hamiltonian
    rate = problem.dynamics(t, z, control) if hamiltonian is None else hamiltonian.dynamics(control)
    z_next = torch.add(z, rate, alpha=h)
    running = torch.add(running, problem.running_cost(t, z, control), alpha=h)
    if hjb is not None:
        hjb = torch.add(hjb, hjb_residual(policy, t, z, decision).abs(), alpha=h)
    return z_next, running, hjb


def starting_states(policy: Policy, states: Tensor) -> Tensor:
    """`states` (batch, n) as a rollout of `policy` starts from them: agents numbered as it wants
    them. Raises TypeError or ValueError unless it may start from `states`."""
    check_states(policy, states)
    return policy.assigned(states)


def check_states(policy: Policy, states: Tensor) -> None:
    """Raise unless `states` is what `policy`, an object, may start from."""
    _validate.instance("policy", policy, Policy, "HamiltonianPolicy(problem, network, …)")
    kind = next(policy.parameters(), torch.empty(0, dtype=policy.problem.dtype))
    wanted = f"(batch, {policy.problem.state_dim}) {kind.dtype} on {kind.device}"
    if not isinstance(states, Tensor):
        raise TypeError(
            f"`initial_states` must be a tensor {wanted}, got {type(states).__name__}; use "
            f"torch.as_tensor(states, dtype={kind.dtype}, device={str(kind.device)!r})"
        )
    policy.problem.check(initial_states=states)
    if states.dtype != kind.dtype or states.device != kind.device:
        raise ValueError(
            f"`initial_states` must be {wanted} as the policy's parameters are, got {states.dtype} "
            f"on {states.device}; use states.to({kind.dtype}).to({str(kind.device)!r}), or build "
            "problem and policy for these states"
        )


def hjb_residual(policy: Policy, t: Time, z: Tensor, decision: Decision) -> Tensor:
    """d phi/dt + min_u {L + <p, f>} at (t, z), (batch,); zero for the true value function."""
    network = _value_network_policy(policy).value_network
    assert decision.hamiltonian is not None
    _, _, phi_t = network.value_and_gradient(t, z)
    return phi_t - decision.hamiltonian.value(decision.control)


def _value_network_policy(policy: Policy) -> HamiltonianPolicy:
    if not isinstance(policy, HamiltonianPolicy):
        raise ValueError("HJB penalties need a policy with a value network; set them to 0")
    return policy
