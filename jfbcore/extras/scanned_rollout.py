"""A rollout and its way back as two loops of compiled code, for processors.

Each direction is one compiled function whose loop over the time steps runs inside it, so that a
training step enters compiled code twice and not twice at every time step. The inner solver tests
as it goes, at every time step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan

from jfbcore.extras.time_step import TimeStep
from jfbcore.kernels.saved_sweep import Cotangents, Layers, Saved
from jfbcore.policy import HamiltonianPolicy


@dataclass
class Scanned:
    """What the way there leaves for the way back: tensors stacked over the time steps."""

    times: Tensor
    step_length: Tensor
    layers: Layers
    table: Tensor
    final_state: Tensor
    running_cost: Tensor
    terminal_cost: Tensor
    residual: Tensor
    iterations: Tensor
    kept: list[Tensor]


class ScannedRollout:
    """Both directions of a rollout of `policy`, a policy with a value network."""

    def __init__(self, policy: HamiltonianPolicy, compiled: Callable[..., Any]) -> None:
        self.policy = policy
        self.time_step = TimeStep(policy)
        self._there = {warm: compiled(self._forward(warm)) for warm in (False, True)}
        self._back = compiled(self._backward)

    def fly(self, times: Tensor, step_length: Tensor, states: Tensor, warm_start: bool) -> Scanned:
        """Roll out from `states` (batch, n) over the grid `times` (steps,)."""
        matrix, table = self.policy.value_network.prepare(times)
        table = table[:, : matrix.shape[0]].contiguous()
        # Inputs of what is compiled, which would otherwise find the same parameters twice.
        layers = self.policy.value_network.layers(matrix)
        final, running, terminal, residual, iterations, *kept = self._there[warm_start](
            layers, times, table, step_length, states
        )
        return Scanned(
            times, step_length, layers, table, final, running, terminal, residual, iterations, kept
        )

    def pull_back(
        self, flown: Scanned, running_bar: Tensor, terminal_bar: Tensor, z_bar: Tensor
    ) -> dict[str, Tensor]:
        """Gradients of the value network's parameters by name."""
        return self._back(
            flown.layers,
            flown.times,
            flown.step_length,
            flown.final_state,
            flown.kept,
            running_bar,
            terminal_bar,
            z_bar,
        )

    def _forward(self, warm_start: bool) -> Callable[..., list[Tensor]]:
        network, time_step = self.policy.value_network, self.time_step
        problem = self.policy.problem

        def there(
            layers: Layers, times: Tensor, table: Tensor, h: Tensor, states: Tensor
        ) -> list[Tensor]:

            def body(carry: list[Tensor], at: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
                z, running, *start = carry
                t, bias = at
                p, saved = network.saved_costate(layers, bias, z)
                solution, control = time_step.solve(t, z, p, start[0] if start else None)
                z_next, cost, flown = time_step.fly(t, h, z, p, control)
                following = [z_next, running + cost] + ([flown.clone()] if warm_start else [])
                steps = solution.iterations
                count = steps if isinstance(steps, Tensor) else torch.full((), steps)
                kept = [z.clone(), p.clone(), control.clone(), *_flat(saved)]
                return following, [solution.residual.clone(), count.clone(), *kept]

            carry = [states.clone(), states.new_zeros(states.shape[0])]
            if warm_start:
                carry.append(problem.initial_control(times[0], states).clone())
            (final, running, *_), (residual, iterations, *kept) = scan(body, carry, [times, table])
            return [final, running, problem.terminal_cost(final), residual, iterations, *kept]

        return there

    def _backward(
        self,
        layers: Layers,
        times: Tensor,
        h: Tensor,
        final: Tensor,
        kept: list[Tensor],
        running_bar: Tensor,
        terminal_bar: Tensor,
        z_bar: Tensor,
    ) -> dict[str, Tensor]:
        network, time_step = self.policy.value_network, self.time_step
        depth = len(layers.weights)
        z_bar = z_bar + time_step.pull_terminal(final, terminal_bar)

        def body(carry: list[Tensor], at: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
            t, z, p, control, *rest = at
            onto, p_bar = time_step.pull_back(t, h, z, p, control, carry[0], running_bar)
            saved = _saved(rest, depth)
            following, cotangents = network.saved_pull_back(layers, saved, p_bar, onto)
            return [following], [p_bar.clone(), *_flat(cotangents)]

        _, (p_bar, *rest) = scan(body, [z_bar], [times, *kept], reverse=True)
        z, _, _, *saved = kept
        return network.saved_gradients(
            layers, times, z, p_bar, _saved(saved, depth), _cotangents(rest, depth)
        )


def _flat(parts: Saved | Cotangents) -> list[Tensor]:
    """The tensors of `parts`, each once and none a view of another."""
    flat: list[Tensor] = []
    for part in parts:
        flat += [part] if isinstance(part, Tensor) else part
    return flat


def _saved(flat: list[Tensor], depth: int) -> Saved:
    slopes, rest = flat[: depth + 1], flat[depth + 1 :]
    return Saved(slopes, rest[:depth], rest[depth : 2 * depth], rest[-1])


def _cotangents(flat: list[Tensor], depth: int) -> Cotangents:
    opened, *rest = flat
    return Cotangents(opened, rest[: depth + 1], rest[depth + 1 :])
