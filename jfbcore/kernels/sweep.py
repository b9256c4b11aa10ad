"""The value network's residual core and its vector-Jacobian product, one GPU kernel each.

The core is what a gradient sweep does between the opening layer's pre-activation a_0 and what the
sweep pulls back to it. With act(a) = log(2 cosh a), whose derivative is tanh, and q_{d-1} = w,

    x_1 = act(a_0),  a_i = W_i x_i + b_i,  x_{i+1} = x_i + h act(a_i),
    q_{i-1} = q_i + h W_i^T (tanh(a_i) * q_i),  pulled = tanh(a_0) * q_0.

`core` and `core_vjp` take the Triton kernels of `_sweep_triton` where these serve, through the
custom operations jfbcore::sweep_core and jfbcore::sweep_core_vjp, which torch.compile does not
look into and a CUDA graph can capture after one call to compile them. Everywhere else they take
the formulas below.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

#: what the kernels keep in registers: two weights of 128 columns
MOST_COLUMNS, MOST_WEIGHTS = 128, 2
#: eight for each multiprocessor of an H100; for more rows the matrix products of the formulas fill
#: the device, and launches cost them little
MOST_ROWS = 1056
_TRITON_IS_INSTALLED = importlib.util.find_spec("triton") is not None


def kernels_serve(a0: Tensor, weights: Sequence[Tensor]) -> bool:
    """Whether `core` and `core_vjp` of `a0` are one GPU kernel each."""
    return (
        _TRITON_IS_INSTALLED
        and a0.is_cuda
        and a0.dtype == torch.float32
        and a0.shape[0] <= MOST_ROWS
        and 1 <= len(weights) <= MOST_WEIGHTS
        and weights[0].shape[1] <= MOST_COLUMNS
    )


def core(
    a0: Tensor, readout: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], step: float
) -> Tensor:
    """What the sweep pulls back to the opening pre-activation `a0`: (rows, width), as `a0`.

    Columns of `a0` beyond the width of `readout` are handed on as they are.
    `readout` w is (width,), `weights` are d - 1 matrices (width, width), `biases` d - 1 vectors
    (width,), `step` is the residual step h of a network of depth d. Autograd may not be able to
    differentiate the result: `core_formula` is for that.
    """
    if kernels_serve(a0, weights):
        out: Tensor = _sweep_core(a0, readout, list(weights), list(biases), step)
        return out
    return _beside_the_rest(
        lambda a: core_formula(a, readout, weights, biases, step), a0, readout.shape[0]
    )


def core_vjp(
    a0: Tensor,
    pulled_bar: Tensor,
    readout: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    step: float,
) -> Tensor:
    """The cotangent of `a0` (rows, width) from the cotangent `pulled_bar` of `core`, as which it is
    shaped: (rows, width) or with further columns, which are handed on as they are.

    Everything between is computed again from `a0`. The parameters get no cotangent.
    """
    if kernels_serve(a0, weights):
        bar: Tensor = _sweep_core_vjp(a0, pulled_bar, readout, list(weights), list(biases), step)
        return bar
    return _beside_the_rest(
        lambda bar: core_vjp_formula(a0, bar, readout, weights, biases, step),
        pulled_bar,
        readout.shape[0],
    )


def _beside_the_rest(formula: Callable[[Tensor], Tensor], x: Tensor, width: int) -> Tensor:
    """`formula` of the first `width` columns, the others after it."""
    if x.shape[1] == width:
        return formula(x)
    return torch.cat((formula(x[:, :width]), x[:, width:]), 1)


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
    state = antiderivative_of_tanh(a0)
    for weight, bias in zip(weights, biases, strict=True):
        a = torch.addmm(bias, state, weight.T)
        slopes.append(a.tanh())
        state = torch.add(state, antiderivative_of_tanh(a), alpha=step)
    return slopes


def _pulled(
    slopes: list[Tensor], readout: Tensor, weights: Sequence[Tensor], step: float
) -> list[Tensor]:
    """q_0, ..., q_{d-1}."""
    pulled = [readout.expand_as(slopes[-1])]
    for weight, slope in zip(reversed(weights), reversed(slopes[1:]), strict=True):
        pulled.append(torch.addmm(pulled[-1], slope * pulled[-1], weight, alpha=step))
    return pulled[::-1]


def antiderivative_of_tanh(a: Tensor) -> Tensor:
    """log(2 cosh a) without overflow."""
    return functional.softplus(2.0 * a, threshold=40.0) - a


@torch.library.custom_op("jfbcore::sweep_core", mutates_args=(), device_types="cuda")
def _sweep_core(
    a0: Tensor, readout: Tensor, weights: list[Tensor], biases: list[Tensor], step: float
) -> Tensor:
    from jfbcore.kernels import _sweep_triton

    return _sweep_triton.launch_core(a0, readout, weights, biases, step)


@torch.library.custom_op("jfbcore::sweep_core_vjp", mutates_args=(), device_types="cuda")
def _sweep_core_vjp(
    a0: Tensor,
    pulled_bar: Tensor,
    readout: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    step: float,
) -> Tensor:
    from jfbcore.kernels import _sweep_triton

    return _sweep_triton.launch_core_vjp(a0, pulled_bar, readout, weights, biases, step)


@_sweep_core.register_fake
def _(a0: Tensor, *_: object) -> Tensor:
    return torch.empty_like(a0, memory_format=torch.contiguous_format)


@_sweep_core_vjp.register_fake
def _(a0: Tensor, pulled_bar: Tensor, *_: object) -> Tensor:
    return torch.empty_like(pulled_bar, memory_format=torch.contiguous_format)
