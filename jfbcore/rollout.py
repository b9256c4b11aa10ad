"""Simulate a policy and add up its cost."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from jfbcore import _validate
from jfbcore.policy import Decision, HamiltonianPolicy, Policy
from jfbcore.problems.base import Time


@dataclass
class InnerStatistics:
    """Iterations and residuals of the inner solves of one rollout."""

    iterations: list[int | Tensor] = field(default_factory=list)
    residuals: list[Tensor] = field(default_factory=list)

    def add(self, step: Step) -> None:
        """Note the iterations and residuals of a time step, or of several taken at once."""
        if step.iterations is None or step.residual is None:
            return
        self.iterations.append(step.iterations)
        self.residuals.append(step.residual)

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


class Step(NamedTuple):
    """One time step: the next state (batch, n), the running cost so far (batch,), the control
    (batch, m), the inner solve's iterations and residual (batch,), the HJB residual (batch,).

    The last three are None where there is no inner solve or no penalty.
    """

    state: Tensor
    running_cost: Tensor
    control: Tensor
    iterations: int | Tensor | None
    residual: Tensor | None
    hjb_residual: Tensor | None


def advance(
    policy: Policy,
    t: Time,
    h: float | Tensor,
    z: Tensor,
    running: Tensor,
    start: Tensor | None = None,
    penalties: bool = False,
) -> Step:
    """Decide at time `t` in states `z` and take one Euler step of length `h` [time unit of t].

    `start`: where the inner solve starts; None takes the problem's initial control.
    """
    problem = policy.problem
    # The start of an inner solve has no influence on its fixed point: no derivative to keep.
    decision = policy(t, z, None if start is None else start.detach())
    control, solution, hamiltonian = decision.control, decision.solution, decision.hamiltonian
    rate = problem.dynamics(t, z, control) if hamiltonian is None else hamiltonian.dynamics(control)
    return Step(
        _euler(z, rate, h),
        _euler(running, problem.running_cost(t, z, control), h),
        control,
        None if solution is None else solution.iterations,
        None if solution is None else solution.residual.detach(),
        hjb_residual(policy, t, z, decision) if penalties else None,
    )


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
    the graph of that many time steps at a time and computes the others again on the way back. That
    takes the memory of n_steps/segment states and `segment` time steps, which is least near the
    root of n_steps, and one more forward pass. `record` also returns times, states and controls,
    with a graph if grad mode is on.

    Raises TypeError or ValueError where an argument does not fit, the states' dtype and device
    included, and ValueError for `record` with `segment`.
    """
    if segment is not None:
        _validate.positive_int("segment", segment)
        if record:
            raise ValueError("`record` keeps every time step; leave out `segment`")
    check_states(policy, initial_states)
    problem = policy.problem
    n_steps = problem.n_steps if n_steps is None else _validate.positive_int("n_steps", n_steps)
    h, z = problem.t_final / n_steps, initial_states
    running = z.new_zeros(z.shape[0])
    hjb = z.new_zeros(z.shape[0]) if penalties else None
    inner = InnerStatistics()
    start: Tensor | None = None
    states, controls = [z], list[Tensor]()
    done = 0

    def take(
        steps: range, z: Tensor, running: Tensor, hjb: Tensor | None, start: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        nonlocal done
        for i in steps:
            step = advance(policy, i * h, h, z, running, start, penalties)
            z, running = step.state, step.running_cost
            if record:
                states.append(z)
                controls.append(step.control)
            if warm_start:
                start = step.control.detach()
            # A segment that is computed again on the way back must not count twice.
            if i >= done:
                inner.add(step)
                done = i + 1
            if hjb is not None and step.hjb_residual is not None:
                hjb = torch.add(hjb, step.hjb_residual.abs(), alpha=h)
        return z, running, hjb, start

    if segment is None or not torch.is_grad_enabled():
        z, running, hjb, start = take(range(n_steps), z, running, hjb, start)
    else:
        for first in range(0, n_steps, segment):
            steps = range(first, min(first + segment, n_steps))
            z, running, hjb, start = checkpoint(
                take, steps, z, running, hjb, start,
                use_reentrant=False, preserve_rng_state=False,
            )  # fmt: skip
    terminal = problem.terminal_cost(z)
    misfit = None
    if penalties:
        value = _value_network_policy(policy).value_network(problem.t_final, z)
        misfit = (value - terminal).abs()
    flown = Rollout(running, terminal, z, inner, hjb, misfit)
    if not record:
        return flown
    times = h * torch.arange(n_steps + 1, dtype=torch.float64)
    return replace(
        flown, times=times.to(z), states=torch.stack(states), controls=torch.stack(controls)
    )


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


def _euler(x: Tensor, rate: Tensor, h: float | Tensor) -> Tensor:
    return x + h * rate if isinstance(h, Tensor) else torch.add(x, rate, alpha=h)


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
