"""The value network's residual core and its vector-Jacobian product, one GPU kernel each.

The core is what a gradient sweep does between the opening layer's pre-activation a_0 and what the
sweep pulls back to it. With act(a) = log(2 cosh a), whose derivative is tanh, and q_{d-1} = w,

    x_1 = act(a_0),  a_i = W_i x_i + b_i,  x_{i+1} = x_i + h act(a_i),
    q_{i-1} = q_i + h W_i^T (tanh(a_i) * q_i),  pulled = tanh(a_0) * q_0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def core(
    a0: Tensor, readout: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], step: float
) -> Tensor:
    """What the sweep pulls back to the opening pre-activation `a0`: (rows, width), as `a0`.

    `readout` w is (width,), `weights` are d - 1 matrices (width, width), `biases` d - 1 vectors
    (width,), `step` is the residual step h of a network of depth d.
    """
    return core_formula(a0, readout, weights, biases, step)


def core_vjp(
    a0: Tensor,
    pulled_bar: Tensor,
    readout: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    step: float,
) -> Tensor:
    """The cotangent of `a0` from the cotangent `pulled_bar` of `core`: both (rows, width).

    Everything between is computed again from `a0`. The parameters get no cotangent.
    """
    return core_vjp_formula(a0, pulled_bar, readout, weights, biases, step)


def core_formula(
    a0: Tensor, readout: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], step: float
) -> Tensor:
    """`core` in torch operations: any dtype, device and depth, differentiable."""
    slopes = _slopes(a0, weights, biases, step)
    return slopes[0] * _pulled(slopes, readout, weights, step)[0]


def core_vjp_formula(
    a0: Tensor,
    pulled_bar: Tensor,
    readout: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    step: float,
) -> Tensor:
    """`core_vjp` in torch operations: any dtype, device and depth.

    `bar` names the cotangent of what it follows. q_0's cotangent runs forward through the layers
    and leaves one for each slope; those run backward through the states.
    """
    slopes = _slopes(a0, weights, biases, step)
    pulled = _pulled(slopes, readout, weights, step)
    slope_bars = [pulled_bar * pulled[0]]
    q_bar = pulled_bar * slopes[0]
    for i, weight in enumerate(weights, start=1):
        cotangent = step * (q_bar @ weight.T)
        slope_bars.append(cotangent * pulled[i])
        q_bar = q_bar + cotangent * slopes[i]

    state_bar = torch.zeros_like(a0)
    for i in range(len(weights), 0, -1):
        a_bar = slope_bars[i] * (1.0 - slopes[i] ** 2) + step * state_bar * slopes[i]
        state_bar = state_bar + a_bar @ weights[i - 1]
    return slope_bars[0] * (1.0 - slopes[0] ** 2) + state_bar * slopes[0]


def _slopes(
    a0: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], step: float
) -> list[Tensor]:
    """tanh(a_0), ..., tanh(a_{d-1})."""
    slopes = [a0.tanh()]
    state = _antiderivative_of_tanh(a0)
    for weight, bias in zip(weights, biases, strict=True):
        a = torch.addmm(bias, state, weight.T)
        slopes.append(a.tanh())
        state = torch.add(state, _antiderivative_of_tanh(a), alpha=step)
    return slopes


def _pulled(
    slopes: list[Tensor], readout: Tensor, weights: Sequence[Tensor], step: float
) -> list[Tensor]:
    """q_0, ..., q_{d-1}."""
    pulled = [readout.expand_as(slopes[-1])]
    for weight, slope in zip(reversed(weights), reversed(slopes[1:]), strict=True):
        pulled.append(torch.addmm(pulled[-1], slope * pulled[-1], weight, alpha=step))
    return pulled[::-1]


def _antiderivative_of_tanh(a: Tensor) -> Tensor:
    """log(2 cosh a) without overflow."""
    return functional.softplus(2.0 * a, threshold=40.0) - a
