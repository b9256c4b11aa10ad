"""Products of a matrix with a vector inside a Triton kernel: importing this module needs Triton."""

# mypy: disable-error-code="assignment,no-untyped-def,untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def product(
    matrix,
    x,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """matrix @ x, (PADDED,), of a matrix (ROWS, COLUMNS). One block is on its way while the one
    before is multiplied."""
    rows = tl.arange(0, PADDED)[:, None]
    k = tl.arange(0, BLOCK)[None, :]
    start = matrix + rows * STRIDE
    entries = tl.load(start + k, mask=(rows < ROWS) & (k < COLUMNS), other=0.0)
    total = tl.zeros([PADDED, BLOCK], x.dtype.element_ty)
    for _ in range(0, COLUMNS, BLOCK):
        after = k + BLOCK
        following = tl.load(start + after, mask=(rows < ROWS) & (after < COLUMNS), other=0.0)
        total += entries * tl.load(x + k, mask=k < COLUMNS, other=0.0)
        entries = following
        k = after
    return tl.sum(total, 1)


@triton.jit
def write_sum(
    target,
    onto,
    matrix,
    x,
    ROWS: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """target = onto + matrix @ x, of a matrix (ROWS, STRIDE); blocks as in `product`."""
    k = tl.arange(0, BLOCK)
    entries = _rows(matrix, k, ROWS, STRIDE, PADDED)
    for _ in range(0, ROWS, BLOCK):
        following = _rows(matrix, k + BLOCK, ROWS, STRIDE, PADDED)
        value = tl.sum(entries * x[None, :], 1) + tl.load(onto + k, mask=k < ROWS, other=0.0)
        tl.store(target + k, value, mask=k < ROWS)
        entries = following
        k += BLOCK


@triton.jit
def _rows(matrix, k, COUNT: tl.constexpr, STRIDE: tl.constexpr, PADDED: tl.constexpr):
    """Rows `k` of a matrix (COUNT, STRIDE), zeros beyond its end."""
    columns = tl.arange(0, PADDED)[None, :]
    inside = (k[:, None] < COUNT) & (columns < STRIDE)
    return tl.load(matrix + k[:, None] * STRIDE + columns, mask=inside, other=0.0)
