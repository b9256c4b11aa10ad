"""The Triton kernels behind jfbcore.kernels.sweep: importing this module needs Triton.

A program keeps all weights in registers and takes one row after another through the whole core.
Nothing between is written to memory. The sums are in float32 throughout, without tensor cores.
"""

# Triton knows neither annotated nor unpacked tuples.
# ruff: noqa: RUF005
# mypy: disable-error-code="assignment,no-untyped-def,untyped-decorator"

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

#: programs of one launch: the multiprocessors of an H100, of which a program fills one
MOST_PROGRAMS = 132
#: of a program, for widths up to 64 and for wider ones: two weights of 128 columns then take 64 of
#: the 128 registers of a thread
NARROW_WARPS, WIDE_WARPS = 8, 16


def launch_core(
    a0: Tensor, readout: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], step: float
) -> Tensor:
    """`core` in one launch; inputs that are not contiguous cost a copy each."""
    return _launch(_core, (a0,), a0, readout, weights, biases, step)


def launch_core_vjp(
    a0: Tensor,
    pulled_bar: Tensor,
    readout: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    step: float,
) -> Tensor:
    """`core_vjp` in one launch; inputs that are not contiguous cost a copy each."""
    return _launch(_core_vjp, (a0, pulled_bar), pulled_bar, readout, weights, biases, step)


def _launch(kernel, inputs, like, readout, weights, biases, step) -> Tensor:
    (n_rows, total), (width,) = like.shape, readout.shape
    out = torch.empty_like(like, memory_format=torch.contiguous_format)
    if n_rows == 0:
        return out
    padded = triton.next_power_of_2(width)
    rows_each = triton.cdiv(n_rows, MOST_PROGRAMS)
    kernel[(triton.cdiv(n_rows, rows_each),)](
        *(x.contiguous() for x in inputs),
        readout.contiguous(),
        tuple(x.contiguous() for x in weights),
        tuple(x.contiguous() for x in biases),
        out,
        n_rows,
        step,
        WIDTH=width,
        TOTAL=total,
        PADDED=padded,
        REST=triton.next_power_of_2(max(total - width, 1)),
        N_LAYERS=len(weights),
        ROWS=rows_each,
        num_warps=NARROW_WARPS if padded <= 64 else WIDE_WARPS,
    )
    return out


@triton.jit(do_not_specialize=["n_rows"])
def _core(
    a0,
    readout,
    weights,
    biases,
    out,
    n_rows,
    step,
    WIDTH: tl.constexpr,
    TOTAL: tl.constexpr,
    PADDED: tl.constexpr,
    REST: tl.constexpr,
    N_LAYERS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """`core_formula`, with its names, for ROWS rows; PADDED is the power of two from WIDTH on."""
    columns = tl.arange(0, PADDED)
    w, W, b = layer_parameters(readout, weights, biases, WIDTH, PADDED, N_LAYERS)
    for turn in range(ROWS):
        row = tl.program_id(0) * ROWS + turn
        mine = row * TOTAL + columns
        inside = (columns < WIDTH) & (row < n_rows)
        a = tl.load(a0 + mine, mask=inside, other=0.0)
        slopes = layer_slopes(a, W, b, step, N_LAYERS)
        pulled = layer_pulls(slopes, w, W, step, N_LAYERS)
        tl.store(out + mine, slopes[0] * pulled[0], mask=inside)
        _hand_on(a0, out, row, n_rows, WIDTH, TOTAL, REST)


@triton.jit(do_not_specialize=["n_rows"])
def _core_vjp(
    a0,
    pulled_bar,
    readout,
    weights,
    biases,
    out,
    n_rows,
    step,
    WIDTH: tl.constexpr,
    TOTAL: tl.constexpr,
    PADDED: tl.constexpr,
    REST: tl.constexpr,
    N_LAYERS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """`core_vjp_formula`, with its names."""
    columns = tl.arange(0, PADDED)
    w, W, b = layer_parameters(readout, weights, biases, WIDTH, PADDED, N_LAYERS)
    for turn in range(ROWS):
        row = tl.program_id(0) * ROWS + turn
        mine = row * TOTAL + columns
        inside = (columns < WIDTH) & (row < n_rows)
        a = tl.load(a0 + row * WIDTH + columns, mask=inside, other=0.0)
        bar = tl.load(pulled_bar + mine, mask=inside, other=0.0)
        slopes = layer_slopes(a, W, b, step, N_LAYERS)
        pulled = layer_pulls(slopes, w, W, step, N_LAYERS)
        a_bar = layer_pull_back(slopes, pulled, bar, W, step, N_LAYERS)
        tl.store(out + mine, a_bar, mask=inside)
        _hand_on(pulled_bar, out, row, n_rows, WIDTH, TOTAL, REST)


@triton.jit
def _hand_on(
    source, out, row, n_rows, WIDTH: tl.constexpr, TOTAL: tl.constexpr, REST: tl.constexpr
):
    """Copy the columns beyond WIDTH."""
    if TOTAL > WIDTH:
        rest = WIDTH + tl.arange(0, REST)
        inside = (rest < TOTAL) & (row < n_rows)
        value = tl.load(source + row * TOTAL + rest, mask=inside, other=0.0)
        tl.store(out + row * TOTAL + rest, value, mask=inside)


@triton.jit
def layer_parameters(
    readout, weights, biases, WIDTH: tl.constexpr, PADDED: tl.constexpr, N_LAYERS: tl.constexpr
):
    """Readout, weights and biases with zeros beyond the width."""
    columns = tl.arange(0, PADDED)
    rows = columns[:, None]
    w = tl.load(readout + columns, mask=columns < WIDTH, other=0.0)
    W = ()
    b = ()
    for i in tl.static_range(N_LAYERS):
        entries = weights[i] + rows * WIDTH + columns[None, :]
        inside = (rows < WIDTH) & (columns[None, :] < WIDTH)
        W = W + (tl.load(entries, mask=inside, other=0.0),)
        b = b + (tl.load(biases[i] + columns, mask=columns < WIDTH, other=0.0),)
    return w, W, b


@triton.jit
def layer_slopes(a, W, b, step, N_LAYERS: tl.constexpr):
    """tanh(a_0), ..., tanh(a_{d-1})."""
    slope, state = _tanh_and_antiderivative(a)
    slopes = (slope,)
    for i in tl.static_range(N_LAYERS):
        slope, activation = _tanh_and_antiderivative(b[i] + _times_transposed(state, W[i]))
        slopes = slopes + (slope,)
        state += step * activation
    return slopes


@triton.jit
def layer_pulls(slopes, w, W, step, N_LAYERS: tl.constexpr):
    """q_0, ..., q_{d-1}."""
    q = w
    pulled = (q,)
    for i in tl.static_range(N_LAYERS, 0, -1):
        q += step * _times(slopes[i] * q, W[i - 1])
        pulled = (q,) + pulled
    return pulled


@triton.jit
def layer_pull_back(slopes, pulled, bar, W, step, N_LAYERS: tl.constexpr):
    """The cotangent of a_0 for the cotangent `bar` of the core."""
    slope_bars = (bar * pulled[0],)
    q_bar = bar * slopes[0]
    for i in tl.static_range(1, N_LAYERS + 1):
        cotangent = step * _times_transposed(q_bar, W[i - 1])
        slope_bars = slope_bars + (cotangent * pulled[i],)
        q_bar += cotangent * slopes[i]

    state_bar = tl.zeros_like(bar)
    for i in tl.static_range(N_LAYERS, 0, -1):
        a_bar = slope_bars[i] * (1.0 - slopes[i] * slopes[i]) + step * state_bar * slopes[i]
        state_bar += _times(a_bar, W[i - 1])
    return slope_bars[0] * (1.0 - slopes[0] * slopes[0]) + state_bar * slopes[0]


@triton.jit
def _times(x, weight):
    """x @ weight."""
    return tl.sum(x[:, None] * weight, axis=0)


@triton.jit
def _times_transposed(x, weight):
    """x @ weight.T."""
    return tl.sum(x[None, :] * weight, axis=1)


@triton.jit
def _tanh_and_antiderivative(a):
    """tanh(a) and log(2 cosh a), to an absolute 1e-7 and without overflow."""
    size = tl.abs(a)
    decay = tl.exp(-2.0 * size)
    slope = (1.0 - decay) / (1.0 + decay)
    return tl.where(a < 0.0, -slope, slope), size + tl.log(1.0 + decay)
