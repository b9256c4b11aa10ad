"""The value network's gradient sweep and its derivative, written by hand.

`costate_formula` is the sweep in plain operations: the gradient of phi by one pass forwards and one
backwards through the network. `Costate` is the same with its own derivative, which saves less and
differentiates once. Tests hold both against the gradient of phi by automatic differentiation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from jfbcore._time import Time, time_column
from jfbcore.kernels.fused import differentiable_vjp
from jfbcore.kernels.sweep import antiderivative_of_tanh


@dataclass
class Sweep:
    """What a forward-backward sweep leaves: `slopes[i]` = tanh(a_i), `states[i]` = x_i.

    The last layer's state is not among them, only its `last` = a: the gradient has no use for it.
    """

    slopes: list[Tensor]
    states: list[Tensor]
    last: Tensor
    pulled: Tensor
    projected: Tensor


def forward_backward(step: float, t: Time, z: Tensor, *parameters: Tensor) -> Sweep:
    """All that one forward and one backward pass through the network leave; z is (batch, n)."""
    opening, opening_time, opening_bias, readout, quadratic, quadratic_time, _, *layers = parameters
    weights, biases = layers[: len(layers) // 2], layers[len(layers) // 2 :]
    a = torch.addmm(_affine_in_time(opening_bias, t, opening_time), z, opening.T)
    slopes: list[Tensor] = [a.tanh()]
    states: list[Tensor] = []
    for weight, bias in zip(weights, biases, strict=True):
        state = antiderivative_of_tanh(a)
        states.append(torch.add(states[-1], state, alpha=step) if states else state)
        a = torch.addmm(bias, states[-1], weight.T)
        slopes.append(a.tanh())
    pulled = readout
    for weight, slope in zip(reversed(weights), reversed(slopes[1:]), strict=True):
        pulled = torch.addmm(pulled.expand_as(slope), slope * pulled, weight, alpha=step)
    pulled = slopes[0] * pulled
    projected = torch.addmm(_affine_in_time(None, t, quadratic_time), z, quadratic.T)
    return Sweep(slopes, states, a, pulled, projected)


def _affine_in_time(bias: Tensor | None, t: Time, slope: Tensor) -> Tensor:
    """bias + t slope, (width,) for a scalar time and (batch, width) for a time per sample."""
    if bias is None:
        return time_column(t) * slope
    if isinstance(t, Tensor):
        return bias + time_column(t) * slope
    return torch.add(bias, slope, alpha=t)


def costate_of(sweep: Sweep, opening: Tensor, quadratic: Tensor, linear: Tensor) -> Tensor:
    """grad_z phi (batch, n) from the sweep's results."""
    p = torch.addmm(linear, sweep.pulled, opening)
    return torch.addmm(p, sweep.projected, quadratic)


def costate_formula(step: float, t: Time, z: Tensor, *parameters: Tensor) -> Tensor:
    """grad_z phi (batch, n), by torch operations that can be differentiated again."""
    sweep = forward_backward(step, t, z, *parameters)
    return costate_of(sweep, parameters[0], parameters[4], parameters[6])


class Costate(torch.autograd.Function):
    """`costate_formula` with the derivative of the sweep written out.

    Saves z and, per layer, tanh(a) and the layer's input: nothing else of batch size. Reverse of
    the sweep: `bar` names the cotangent of what it follows.
    """

    @staticmethod
    def forward(ctx: Any, step: float, t: Time, z: Tensor, *parameters: Tensor) -> Tensor:
        """grad_z phi, (batch, n); keeps the sweep for the way back."""
        sweep = forward_backward(step, t, z, *parameters)
        ctx.step, ctx.time = step, t
        ctx.n_layers = len(sweep.slopes)
        ctx.save_for_backward(z, *parameters, *sweep.slopes, *sweep.states)
        return costate_of(sweep, parameters[0], parameters[4], parameters[6])

    @staticmethod
    def backward(ctx: Any, p_bar: Tensor) -> tuple[Tensor | None, ...]:
        """Cotangents of the time, the states and every parameter."""
        z, *rest = ctx.saved_tensors
        n_layers, step = ctx.n_layers, ctx.step
        states = rest[len(rest) - n_layers + 1 :]
        slopes = rest[len(rest) - 2 * n_layers + 1 : len(rest) - n_layers + 1]
        parameters = rest[: len(rest) - 2 * n_layers + 1]
        if torch.is_grad_enabled():
            formula = lambda z, *q: costate_formula(step, ctx.time, z, *q)  # noqa: E731
            return None, None, *differentiable_vjp(formula, (z, *parameters), p_bar)
        opening, _, _, readout, quadratic, quadratic_time, _, *layers = parameters
        weights = layers[: n_layers - 1]
        time = time_column(ctx.time)

        # The backward half of the sweep again, keeping the pulled-back vectors q_i.
        pulled = [readout.expand_as(slopes[-1])]
        for weight, slope in zip(reversed(weights), reversed(slopes[1:]), strict=True):
            pulled.append(torch.addmm(pulled[-1], slope * pulled[-1], weight, alpha=step))
        pulled.reverse()

        projected = torch.addmm(time * quadratic_time, z, quadratic.T)
        projected_bar = p_bar @ quadratic.T
        quadratic_bar = torch.addmm(projected.T @ p_bar, projected_bar.T, z)
        opening_bar = (slopes[0] * pulled[0]).T @ p_bar
        cotangent = p_bar @ opening.T
        slope_bars = [cotangent * pulled[0]]
        pulled_bar = cotangent * slopes[0]
        weight_bars = []
        for i, weight in enumerate(weights, start=1):
            weight_bars.append((slopes[i] * pulled[i]).T @ pulled_bar)
            cotangent = pulled_bar @ weight.T
            slope_bars.append(cotangent * pulled[i] * step)
            pulled_bar = torch.addcmul(pulled_bar, cotangent, slopes[i], value=step)

        bias_bars: list[Tensor] = []
        state_bar: Tensor | None = None
        for i in range(n_layers - 1, 0, -1):
            a_bar = torch.addcmul(slope_bars[i], slope_bars[i] * slopes[i], slopes[i], value=-1.0)
            if state_bar is not None:
                a_bar.addcmul_(state_bar, slopes[i], value=step)
            weight_bars[i - 1].mul_(step).addmm_(a_bar.T, states[i - 1])
            bias_bars.append(a_bar.sum(0))
            pullback = a_bar @ weights[i - 1]
            state_bar = pullback if state_bar is None else state_bar + pullback
        bias_bars.reverse()
        a_bar = torch.addcmul(slope_bars[0], slope_bars[0] * slopes[0], slopes[0], value=-1.0)
        if state_bar is not None:
            a_bar.addcmul_(state_bar, slopes[0])
        opening_bar.addmm_(a_bar.T, z)
        z_bar = None
        if ctx.needs_input_grad[2]:
            z_bar = torch.addmm(projected_bar @ quadratic, a_bar, opening)
        return (
            None,
            None,
            z_bar,
            opening_bar,
            _time_weighted(time, a_bar),
            a_bar.sum(0),
            pulled_bar.sum(0),
            quadratic_bar,
            _time_weighted(time, projected_bar),
            p_bar.sum(0),
            *weight_bars,
            *bias_bars,
        )


def _time_weighted(time: Time, cotangent: Tensor) -> Tensor:
    if isinstance(time, Tensor):
        return (time * cotangent).sum(0)
    return cotangent.sum(0) * time
