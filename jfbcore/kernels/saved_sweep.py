"""The value network's gradient sweep in three parts, for rollouts without a graph.

`sweep` evaluates the costate and keeps what the way back needs, `pull_back` takes a cotangent of
the costate to one of the state, and `parameter_gradients` turns what the two left at all time steps
into the gradients of the parameters, by one product for each parameter. The formulas are those of
`jfbcore.kernels.sweep`, with the opening layer and the quadratic term as one `matrix`:

    (a_0, projected) = matrix z + bias,   p = linear + matrix^T (tanh(a_0) * q_0, projected).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from jfbcore.kernels.sweep import antiderivative_of_tanh


class Layers(NamedTuple):
    """Parameters of the sweep: `matrix` (width + rank, n), the layers' `weights` (width, width) and
    `biases` (width,), `readout` (width,), `linear` (n,), the residual step.

    The transposes are tensors of their own, because a compiled loop takes no two views of one.
    """

    matrix: Tensor
    transposed_matrix: Tensor
    weights: Sequence[Tensor]
    transposed_weights: Sequence[Tensor]
    biases: Sequence[Tensor]
    readout: Tensor
    linear: Tensor
    step: float


class Saved(NamedTuple):
    """What `sweep` keeps, each (rows, width): tanh(a_i), the layers' inputs x_i, q_i but for the
    last, which is the readout; and `stacked` (rows, width + rank), what `matrix` pulls back."""

    slopes: list[Tensor]
    states: list[Tensor]
    pulled: list[Tensor]
    stacked: Tensor


class Cotangents(NamedTuple):
    """What `pull_back` leaves: the cotangents of `matrix` z + bias (rows, width + rank), of q_i and
    of a_i for i > 0, each (rows, width)."""

    opened: Tensor
    pulled: list[Tensor]
    layers: list[Tensor]


def sweep(layers: Layers, bias: Tensor, z: Tensor) -> tuple[Tensor, Saved]:
    """The costate (rows, n) at states `z` (rows, n), for the `bias` (width + rank,) of a time."""
    width = layers.readout.shape[0]
    opened = torch.addmm(bias, z, layers.transposed_matrix)
    a = opened[:, :width]
    slopes: list[Tensor] = [a.tanh()]
    states: list[Tensor] = []
    for transposed, offset in zip(layers.transposed_weights, layers.biases, strict=True):
        state = antiderivative_of_tanh(a)
        states.append(torch.add(states[-1], state, alpha=layers.step) if states else state)
        a = torch.addmm(offset, states[-1], transposed)
        slopes.append(a.tanh())
    pulled: list[Tensor] = []
    q = layers.readout.expand_as(slopes[-1])
    for weight, slope in zip(reversed(layers.weights), reversed(slopes[1:]), strict=True):
        q = torch.addmm(q, slope * q, weight, alpha=layers.step)
        pulled.insert(0, q)
    stacked = torch.cat((slopes[0] * q, opened[:, width:]), 1)
    p = torch.addmm(layers.linear, stacked, layers.matrix)
    return p, Saved(slopes, states, pulled, stacked)


def pull_back(
    layers: Layers, saved: Saved, p_bar: Tensor, onto: Tensor
) -> tuple[Tensor, Cotangents]:
    """`onto` plus the cotangent of `z` for the cotangent `p_bar` of the costate, (rows, n) each."""
    width, step = layers.readout.shape[0], layers.step
    slopes, pulled = saved.slopes, [*saved.pulled, layers.readout]
    bars = p_bar @ layers.transposed_matrix
    slope_bars = [bars[:, :width] * pulled[0]]
    pulled_bars = [bars[:, :width] * slopes[0]]
    for i, transposed in enumerate(layers.transposed_weights, start=1):
        cotangent = step * (pulled_bars[-1] @ transposed)
        slope_bars.append(cotangent * pulled[i])
        pulled_bars.append(torch.addcmul(pulled_bars[-1], cotangent, slopes[i]))
    layer_bars: list[Tensor] = []
    state_bar: Tensor | None = None
    for i in range(len(layers.weights), 0, -1):
        a_bar = slope_bars[i] * (1.0 - slopes[i].square())
        if state_bar is None:
            state_bar = a_bar @ layers.weights[i - 1]
        else:
            a_bar = a_bar + step * state_bar * slopes[i]
            state_bar = torch.addmm(state_bar, a_bar, layers.weights[i - 1])
        layer_bars.insert(0, a_bar)
    opened_bar = slope_bars[0] * (1.0 - slopes[0].square())
    if state_bar is not None:
        opened_bar = opened_bar + state_bar * slopes[0]
    opened_bar = torch.cat((opened_bar, bars[:, width:]), 1)
    z_bar = torch.addmm(onto, opened_bar, layers.matrix)
    return z_bar, Cotangents(opened_bar, pulled_bars, layer_bars)


class Gradients(NamedTuple):
    """Gradients of `Layers`' tensors, and of the opening biases and their slopes in time."""

    matrix: Tensor
    bias: Tensor
    time: Tensor
    readout: Tensor
    linear: Tensor
    weights: list[Tensor]
    biases: list[Tensor]


def parameter_gradients(
    layers: Layers,
    times: Tensor,
    z: Tensor,
    p_bar: Tensor,
    saved: Saved,
    cotangents: Cotangents,
) -> Gradients:
    """The gradients for time steps (steps,) whose tensors are stacked, (steps, rows, …) each."""

    def flat(x: Tensor) -> Tensor:
        return x.flatten(0, 1)

    pulled: list[Tensor] = [*map(flat, saved.pulled), layers.readout]
    pulled_bars, layer_bars = map(flat, cotangents.pulled), map(flat, cotangents.layers)
    slopes, states = map(flat, saved.slopes[1:]), map(flat, saved.states)
    weights, biases = [], []
    for slope, q, q_bar, a_bar, state in zip(
        slopes, pulled[1:], pulled_bars, layer_bars, states, strict=False
    ):
        weight = a_bar.T @ state
        weights.append(torch.addmm(weight, (slope * q).T, q_bar, alpha=layers.step))
        biases.append(a_bar.sum(0))
    per_step = cotangents.opened.sum(1)
    matrix = flat(cotangents.opened).T @ flat(z)
    return Gradients(
        torch.addmm(matrix, flat(saved.stacked).T, flat(p_bar)),
        per_step.sum(0),
        times @ per_step,
        cotangents.pulled[-1].sum((0, 1)),
        p_bar.sum((0, 1)),
        weights,
        biases,
    )
