"""The value network's gradient sweep in three parts, for rollouts without a graph.

`sweep` evaluates the costate and keeps what the way back needs, `pull_back` takes a cotangent of
the costate to one of the state, and `parameter_gradients` turns what the two left at all time steps
into the gradients of the parameters, by one product for each parameter. The formulas are those of
`jfbcore.kernels.sweep`, with the opening layer and the quadratic term as one `matrix`:

    (a_0, projected) = matrix z + bias,   p = linear + matrix^T (tanh(a_0) * q_0, projected).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from jfbcore.kernels import native
from jfbcore.kernels.sweep import antiderivative_of_tanh

#: numbers of an agent, and the first and the last but one of those that are meant
Columns = tuple[int, int, int]


class Layers(NamedTuple):
    """Parameters of the sweep: `matrix` (width + rank, n), the layers' `weights` (depth - 1, width,
    width) and `biases` (depth - 1, width), `readout` (width,), `linear` (n,), the residual step.

    `costate_matrix` and `linear` have the columns of the costates that are evaluated: all, or
    those that `columns` names (see `narrow`).

    The transposes are tensors of their own, because a compiled loop takes no two views of one.
    """

    matrix: Tensor
    transposed_matrix: Tensor
    costate_matrix: Tensor
    transposed_costate_matrix: Tensor
    weights: Tensor
    transposed_weights: Tensor
    biases: Tensor
    readout: Tensor
    linear: Tensor
    step: float
    columns: Columns | None = None


def narrow(x: Tensor, columns: Columns | None) -> Tensor:
    """Of each agent's numbers in a row of `x` (rows, n), those of `columns`: (rows, fewer)."""
    if columns is None:
        return x
    each, first, stop = columns
    return x.view(x.shape[0], -1, each)[..., first:stop].reshape(x.shape[0], -1)


def widen(x: Tensor, columns: Columns | None) -> Tensor:
    """What `narrow` is the transpose of: zeros elsewhere."""
    if columns is None:
        return x
    each, first, stop = columns
    parts = x.reshape(x.shape[0], -1, stop - first)
    return functional.pad(parts, (first, each - stop)).flatten(1)


#: What `sweep` keeps. Of the formula, each (rows, width): tanh(a_i) of all layers, the layers'
#: inputs x_i, q_i but for the last, which is the readout; and (rows, width + rank) what `matrix`
#: pulls back. Of the native kernel, one tensor with all of it.
Saved = list[Tensor]
#: What `pull_back` leaves. Of the formula: the cotangents of `matrix` z + bias (rows, width +
#: rank), then those of q_i and of a_i for i > 0, each (rows, width). Of the kernel, one tensor.
Cotangents = list[Tensor]


def sweep(layers: Layers, bias: Tensor, z: Tensor) -> tuple[Tensor, Saved]:
    """The costate (rows, n), or its `columns`, at states `z` (rows, n).

    `bias`: (width + rank,), that of a time.
    """
    if native.serves(z):
        p, kept = native.operators.network_forward(
            z.contiguous(),
            bias.contiguous(),
            layers.transposed_matrix,
            layers.costate_matrix,
            layers.transposed_weights,
            layers.weights,
            layers.biases,
            layers.readout,
            layers.linear,
            layers.step,
        )
        return p, [kept]
    return sweep_formula(layers, bias, z)


def sweep_formula(layers: Layers, bias: Tensor, z: Tensor) -> tuple[Tensor, Saved]:
    """`sweep` in torch operations, for any dtype."""
    width = layers.readout.shape[0]
    opened = torch.addmm(bias, z, layers.transposed_matrix)
    a = opened[:, :width]
    slopes: list[Tensor] = [a.tanh()]
    states: list[Tensor] = []
    # By index, because a compiled loop takes the parts that an iteration makes for aliases.
    for i in range(layers.biases.shape[0]):
        state = antiderivative_of_tanh(a)
        states.append(torch.add(states[-1], state, alpha=layers.step) if states else state)
        a = torch.addmm(layers.biases[i], states[-1], layers.transposed_weights[i])
        slopes.append(a.tanh())
    pulled: list[Tensor] = []
    q = layers.readout.expand_as(slopes[-1])
    for i in reversed(range(layers.biases.shape[0])):
        q = torch.addmm(q, slopes[i + 1] * q, layers.weights[i], alpha=layers.step)
        pulled.insert(0, q)
    stacked = torch.cat((slopes[0] * q, opened[:, width:]), 1)
    p = torch.addmm(layers.linear, stacked, layers.costate_matrix)
    return p, [*slopes, *states, *pulled, stacked]


def pull_back(
    layers: Layers, saved: Saved, at_step: Tensor, p_bar: Tensor, onto: Tensor
) -> tuple[Tensor, Cotangents]:
    """`onto` plus the cotangent of `z` for the cotangent `p_bar` of the costate, (rows, n) each.

    `saved` is stacked over the time steps, (steps, rows, …); the one at index `at_step` (a tensor
    of one integer) counts.
    """
    if native.serves(p_bar):
        z_bar, bars = native.operators.network_backward(
            *saved,
            at_step,
            p_bar.contiguous(),
            onto.contiguous(),
            layers.matrix,
            layers.transposed_costate_matrix,
            layers.weights,
            layers.transposed_weights,
            layers.readout,
            layers.step,
        )
        return z_bar, [bars]
    return pull_back_formula(layers, [take(x, at_step) for x in saved], p_bar, onto)


def pull_back_formula(
    layers: Layers, saved: Saved, p_bar: Tensor, onto: Tensor
) -> tuple[Tensor, Cotangents]:
    """`pull_back` in torch operations, for what `sweep_formula` has kept."""
    width, step = layers.readout.shape[0], layers.step
    slopes, _, pulled, _ = _parts(layers, saved)
    bars = p_bar @ layers.transposed_costate_matrix
    slope_bars = [bars[:, :width] * pulled[0]]
    pulled_bars = [bars[:, :width] * slopes[0]]
    for i in range(1, layers.weights.shape[0] + 1):
        cotangent = step * (pulled_bars[-1] @ layers.transposed_weights[i - 1])
        slope_bars.append(cotangent * pulled[i])
        pulled_bars.append(torch.addcmul(pulled_bars[-1], cotangent, slopes[i]))
    layer_bars: list[Tensor] = []
    state_bar: Tensor | None = None
    for i in range(layers.weights.shape[0], 0, -1):
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
    return z_bar, [opened_bar, *pulled_bars, *layer_bars]


def take(stacked: Tensor, at_step: Tensor) -> Tensor:
    """The part of `stacked` (steps, …) at an index that is a tensor of one integer."""
    return stacked.index_select(0, at_step.reshape(1)).squeeze(0)


class Gradients(NamedTuple):
    """Gradients of `Layers`' tensors, and of the opening biases and their slopes in time."""

    matrix: Tensor
    bias: Tensor
    time: Tensor
    readout: Tensor
    linear: Tensor
    weights: Tensor
    biases: Tensor


def parameter_gradients(
    layers: Layers,
    times: Tensor,
    z: Tensor,
    p_bar: Tensor,
    saved: Saved,
    cotangents: Cotangents,
) -> Gradients:
    """The gradients for time steps (steps,) whose tensors are stacked, (steps, rows, …) each.

    `p_bar` and `cotangents` have the last time step first, as they were evaluated.
    """
    if native.serves(z):
        by_state, by_costate, per_step, readout, linear, *rest = native.operators.network_gradients(
            z.contiguous(),
            p_bar.contiguous(),
            *saved,
            *cotangents,
            layers.readout,
            layers.biases.shape[0],
            layers.step,
        )
        return Gradients(
            by_state + widen(by_costate, layers.columns),
            per_step.sum(0),
            times @ per_step,
            readout,
            widen(linear.unsqueeze(0), layers.columns).squeeze(0),
            *rest,
        )
    return gradients_formula(
        layers, times, z, p_bar.flip(0), saved, [bar.flip(0) for bar in cotangents]
    )


def gradients_formula(
    layers: Layers,
    times: Tensor,
    z: Tensor,
    p_bar: Tensor,
    saved: Saved,
    cotangents: Cotangents,
) -> Gradients:
    """`parameter_gradients` in torch operations, for what the other formulas have kept; here all
    tensors have the first time step first."""
    depth = layers.biases.shape[0] + 1
    slopes, states, pulled, stacked = _parts(layers, [x.flatten(0, 1) for x in saved])
    opened, *bars = (x.flatten(0, 1) for x in cotangents)
    pulled_bars, layer_bars = bars[:depth], bars[depth:]
    weights, biases = [], []
    for slope, q, q_bar, a_bar, state in zip(
        slopes[1:], pulled[1:], pulled_bars[:-1], layer_bars, states, strict=True
    ):
        weight = a_bar.T @ state
        weights.append(torch.addmm(weight, (slope * q).T, q_bar, alpha=layers.step))
        biases.append(a_bar.sum(0))
    per_step = cotangents[0].sum(1)
    return Gradients(
        opened.T @ z.flatten(0, 1) + widen(stacked.T @ p_bar.flatten(0, 1), layers.columns),
        per_step.sum(0),
        times @ per_step,
        pulled_bars[-1].sum(0),
        widen(p_bar.sum((0, 1)).unsqueeze(0), layers.columns).squeeze(0),
        torch.stack(weights) if weights else torch.zeros_like(layers.weights),
        torch.stack(biases) if biases else torch.zeros_like(layers.biases),
    )


def _parts(layers: Layers, saved: Saved) -> tuple[list[Tensor], list[Tensor], list[Tensor], Tensor]:
    """Slopes, states, q_i (the readout included) and what `matrix` pulls back, of what was kept."""
    depth = layers.biases.shape[0] + 1
    slopes, states, pulled = saved[:depth], saved[depth : 2 * depth - 1], saved[2 * depth - 1 : -1]
    return slopes, states, [*pulled, layers.readout], saved[-1]
