"""One time step whose inner solver takes a fixed number of steps, none of them tested."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor

from jfbcore.extras.time_step import TimeStep
from jfbcore.policy import HamiltonianPolicy

#: the matrix of the network's outer products and its biases, None without a value network
Prepared = tuple[Tensor, Tensor] | None
#: steps of the solver that one compiled function may hold; more are repeated calls
LONGEST_BODY = 16
#: the same where a tolerance decides how many there are: any number is then made of the same few
#: functions, because compiling another takes as long as thousands of time steps
SHARED_BODY = 4


class UntestedStep:
    """The functions of one time step, for any number of solver steps, none of them tested."""

    def __init__(self, time_step: TimeStep, compiled: Callable[..., Callable[..., Any]]) -> None:
        self._time_step, self._compiled = time_step, compiled
        policy = time_step.policy
        self._tracked = isinstance(policy, HamiltonianPolicy) and policy.gradient.tracks_from_start
        #: steps of the solver in one function
        self.body = LONGEST_BODY
        self._shared = False
        if isinstance(policy, HamiltonianPolicy) and policy.solver.tolerance is not None:
            self._shared, self.body = True, max(SHARED_BODY, policy.solver.fewest_repeats)
        self._whole: dict[int, Callable[..., Any]] = {}
        self._first: dict[int, Callable[..., Any]] = {}
        self._more, self._finish = compiled(self._repeat), compiled(self._end)
        self.backward = compiled(self._backward)
        self.terminal = compiled(time_step.problem.terminal_cost)
        self.pull_terminal = compiled(time_step.pull_terminal)

    def forward(self, count: int) -> Callable[..., tuple[Tensor, ...]]:
        """The way there with `count` steps of the solver."""
        if not self._tracked and (self._shared or count > self.body) and count > 0:
            return functools.partial(self._in_parts, count)
        if count not in self._whole:
            self._whole[count] = self._compiled(lambda *given: self._at_once(count, *given))
        return self._whole[count]

    def _says(self, prepared: Prepared, t: Tensor, z: Tensor) -> Tensor:
        """What the network says: the costate, or the control of a policy without inner problem."""
        policy = self._time_step.policy
        if isinstance(policy, HamiltonianPolicy):
            assert prepared is not None
            return policy.value_network.prepared_costate(*prepared, z)
        control: Tensor = policy(t, z).control
        return control

    def _at_once(
        self,
        count: int,
        prepared: Prepared,
        t: Tensor,
        h: Tensor,
        z: Tensor,
        running: Tensor,
        start: Tensor | None,
    ) -> tuple[Tensor, ...]:
        time_step = self._time_step
        output = self._says(prepared, t, z)
        if isinstance(time_step.policy, HamiltonianPolicy):
            kept, residual, _ = time_step.repeat(t, z, output, start, count)
        else:
            kept, residual = output, z.new_zeros(z.shape[0])
        z_next, cost, flown = time_step.fly(t, h, z, output, kept)
        return z_next, running + cost, output, kept, flown, residual

    def _in_parts(
        self,
        count: int,
        prepared: Prepared,
        t: Tensor,
        h: Tensor,
        z: Tensor,
        running: Tensor,
        start: Tensor | None,
    ) -> tuple[Tensor, ...]:
        rest = count % self.body or (self.body if self._shared else 0)
        if rest not in self._first:
            self._first[rest] = self._compiled(lambda *given: self._begin(rest, *given))
        output, control = self._first[rest](prepared, t, z, start)
        for _ in range((count - rest) // self.body):
            control = self._more(t, z, output, control)
        z_next, running, flown, residual = self._finish(t, h, z, running, output, control)
        return z_next, running, output, control, flown, residual

    def _begin(
        self, steps: int, prepared: Prepared, t: Tensor, z: Tensor, start: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        output = self._says(prepared, t, z)
        return output, self._time_step.repeat(t, z, output, start, steps)[2]

    def _repeat(self, t: Tensor, z: Tensor, output: Tensor, control: Tensor) -> Tensor:
        return self._time_step.repeat(t, z, output, control, self.body)[2]

    def _end(
        self, t: Tensor, h: Tensor, z: Tensor, running: Tensor, output: Tensor, control: Tensor
    ) -> tuple[Tensor, ...]:
        time_step = self._time_step
        residual = time_step.bind(t, z, output).residual(control)
        z_next, cost, flown = time_step.fly(t, h, z, output, control)
        return z_next, running + cost, flown, residual

    def _backward(
        self,
        prepared: Prepared,
        t: Tensor,
        h: Tensor,
        z: Tensor,
        output: Tensor,
        kept: Tensor,
        z_bar: Tensor,
        running_bar: Tensor,
    ) -> tuple[Tensor, Tensor]:
        time_step = self._time_step
        onto, output_bar = time_step.pull_back(t, h, z, output, kept, z_bar, running_bar)
        policy = time_step.policy
        if isinstance(policy, HamiltonianPolicy):
            assert prepared is not None
            network = policy.value_network
            matrix, bias = prepared
            z_bar = network.prepared_pull_back(matrix, bias, z, output_bar, onto)
            return z_bar, output_bar
        return time_step.pull_network(t, z, output_bar, onto), output_bar
