"""The Triton kernels behind jfbcore.kernels.sweep: importing this module needs Triton.

A program takes a block of rows through the whole core. The names are those of the formulas.
Triton cannot cut a tensor that lives in registers, so what is multiplied with a weight goes
through the program's own rows of the output, from where the product reads it in pieces of CHUNK
columns: the program needs few registers and little shared memory, and its code stays short.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _core(
    a0,
    readout,
    weights,
    biases,
    out,
    n_rows,
    step,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    N_LAYERS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """`core_formula` for BLOCK rows; PADDED is the power of two from WIDTH on."""
    rows = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK))[:, None]
    columns = tl.arange(0, PADDED)[None, :]
    inside = (rows < n_rows) & (columns < WIDTH)
    mine = rows * WIDTH + columns
    a = tl.load(a0 + mine, mask=inside, other=0.0)
    slopes = _slopes(a, weights, biases, out, n_rows, step, WIDTH, PADDED, N_LAYERS, BLOCK, CHUNK)
    pulled = _pulled(
        slopes, readout, weights, out, n_rows, step, WIDTH, PADDED, N_LAYERS, BLOCK, CHUNK
    )
    tl.debug_barrier()
    tl.store(out + mine, slopes[0] * pulled[0], mask=inside)


@triton.jit
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
    PADDED: tl.constexpr,
    N_LAYERS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """`core_vjp_formula` for BLOCK rows."""
    rows = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK))[:, None]
    columns = tl.arange(0, PADDED)[None, :]
    inside = (rows < n_rows) & (columns < WIDTH)
    mine = rows * WIDTH + columns
    a = tl.load(a0 + mine, mask=inside, other=0.0)
    slopes = _slopes(a, weights, biases, out, n_rows, step, WIDTH, PADDED, N_LAYERS, BLOCK, CHUNK)
    pulled = _pulled(
        slopes, readout, weights, out, n_rows, step, WIDTH, PADDED, N_LAYERS, BLOCK, CHUNK
    )

    bar = tl.load(pulled_bar + mine, mask=inside, other=0.0)
    slope_bars = (bar * pulled[0],)
    q_bar = bar * slopes[0]
    for i in tl.static_range(N_LAYERS):
        cotangent = step * _product(
            q_bar, weights[i], True, out, n_rows, WIDTH, PADDED, BLOCK, CHUNK
        )
        slope_bars = slope_bars + (cotangent * pulled[i + 1],)
        q_bar += cotangent * slopes[i + 1]

    state_bar = tl.zeros((BLOCK, PADDED), dtype=tl.float32)
    for n in tl.static_range(N_LAYERS):
        s = slopes[N_LAYERS - n]
        a_bar = slope_bars[N_LAYERS - n] * (1.0 - s * s) + step * state_bar * s
        state_bar += _product(
            a_bar, weights[N_LAYERS - 1 - n], False, out, n_rows, WIDTH, PADDED, BLOCK, CHUNK
        )
    s = slopes[0]
    tl.debug_barrier()
    tl.store(out + mine, slope_bars[0] * (1.0 - s * s) + state_bar * s, mask=inside)


@triton.jit
def _slopes(
    a,
    weights,
    biases,
    out,
    n_rows,
    step,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    N_LAYERS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """tanh(a_0), ..., tanh(a_{d-1})."""
    columns = tl.arange(0, PADDED)[None, :]
    slope, state = _tanh_and_antiderivative(a)
    slopes = (slope,)
    for i in tl.static_range(N_LAYERS):
        bias = tl.load(biases[i] + columns, mask=columns < WIDTH, other=0.0)
        a = bias + _product(state, weights[i], True, out, n_rows, WIDTH, PADDED, BLOCK, CHUNK)
        slope, activation = _tanh_and_antiderivative(a)
        slopes = slopes + (slope,)
        state += step * activation
    return slopes


@triton.jit
def _pulled(
    slopes,
    readout,
    weights,
    out,
    n_rows,
    step,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    N_LAYERS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """q_0, ..., q_{d-1}."""
    columns = tl.arange(0, PADDED)[None, :]
    row = tl.load(readout + columns, mask=columns < WIDTH, other=0.0)
    q = tl.broadcast_to(row, (BLOCK, PADDED))
    pulled = (q,)
    for n in tl.static_range(N_LAYERS):
        scaled = slopes[N_LAYERS - n] * q
        weight = weights[N_LAYERS - 1 - n]
        q += step * _product(scaled, weight, False, out, n_rows, WIDTH, PADDED, BLOCK, CHUNK)
        pulled = (q,) + pulled  # noqa: RUF005
    return pulled


@triton.jit
def _product(
    x,
    weight,
    TRANSPOSED: tl.constexpr,
    scratch,
    n_rows,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """x @ weight, or x @ weight.T; overwrites the program's rows of `scratch`."""
    rows = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK))[:, None]
    columns = tl.arange(0, PADDED)[None, :]
    # No thread may still be reading the last product's x, and all must see this one.
    tl.debug_barrier()
    tl.store(scratch + rows * WIDTH + columns, x, mask=(rows < n_rows) & (columns < WIDTH))
    tl.debug_barrier()
    total = tl.zeros((BLOCK, PADDED), dtype=tl.float32)
    for start in range(0, WIDTH, CHUNK):
        row = start + tl.arange(0, CHUNK)[None, :]
        left = tl.load(
            scratch + rows * WIDTH + row, mask=(rows < n_rows) & (row < WIDTH), other=0.0
        )
        column = start + tl.arange(0, CHUNK)[:, None]
        inside = (column < WIDTH) & (columns < WIDTH)
        if TRANSPOSED:
            right = tl.load(weight + columns * WIDTH + column, mask=inside, other=0.0)
        else:
            right = tl.load(weight + column * WIDTH + columns, mask=inside, other=0.0)
        total = tl.dot(left, right, total, input_precision="ieee")
    return total


@triton.jit
def _tanh_and_antiderivative(a):
    """tanh(a) and log(2 cosh a), to an absolute 1e-7 and without overflow."""
    size = tl.abs(a)
    decay = tl.exp(-2.0 * size)
    slope = (1.0 - decay) / (1.0 + decay)
    return tl.where(a < 0.0, -slope, slope), size + tl.log(1.0 + decay)
