"""A quadrotor's formulas for Triton kernels, agents in vectors: importing this module needs Triton.

`jfbcore.kernels.quadrotor` has them for tensors, by the same names.
"""

# Helpers return more than each caller needs; the compiler drops the rest.
# mypy: disable-error-code="assignment,no-untyped-def,untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def attitude(yaw, pitch, roll):
    """Sines and cosines of yaw, pitch and roll, and the unit thrust direction."""
    s_yaw, s_pitch, s_roll = tl.sin(yaw), tl.sin(pitch), tl.sin(roll)
    c_yaw, c_pitch, c_roll = tl.cos(yaw), tl.cos(pitch), tl.cos(roll)
    lean = s_pitch * c_roll
    d1 = s_yaw * s_roll + c_yaw * lean
    d2 = s_yaw * lean - c_yaw * s_roll
    return s_yaw, s_pitch, s_roll, c_yaw, c_pitch, c_roll, d1, d2, c_pitch * c_roll


@triton.jit
def pull(p, here, d1, d2, d3, N: tl.constexpr, MASS: tl.constexpr):
    """Costates of the velocities, and -(df/du)^T p."""
    p0, p1, p2 = three(p, N, here)
    p3, p4, p5 = three(p + 3 * N, N, here)
    return p0, p1, p2, (d1 * p0 + d2 * p1 + d3 * p2) / -MASS, -p3, -p4, -p5


@triton.jit
def scaling_limit(c0, c1, c2, c3, N: tl.constexpr):
    """The limit of the scaling: N sqrt(log(1 + x) / x) with x = N |c|^2."""
    x = N * tl.sum(c0 * c0 + c1 * c1 + c2 * c2 + c3 * c3)
    # log(1 + x)/x as log(1 + x)/((1 + x) - 1): right where the sum rounds, too.
    sum_ = 1.0 + x
    ratio = tl.where(sum_ == 1.0, 1.0, tl.log(sum_) / tl.where(sum_ == 1.0, 1.0, sum_ - 1.0))
    return N * tl.sqrt(ratio)


@triton.jit
def exponential(u0, u1, u2, u3, N: tl.constexpr):
    """exp(|u|^2 / 2N)."""
    return tl.exp(tl.sum(u0 * u0 + u1 * u1 + u2 * u2 + u3 * u3) * (0.5 / N))


@triton.jit
def ascent(u0, u1, u2, u3, c0, c1, c2, c3, longest, N: tl.constexpr):
    """The map's scaling at u, and the gradient of H there."""
    s = tl.sum(u0 * u0 + u1 * u1 + u2 * u2 + u3 * u3) * (0.5 / N)
    weight = tl.exp(s) / N
    scale = tl.minimum(1.0 / weight, longest) / (1.0 + s)
    return scale, c0 - weight * u0, c1 - weight * u1, c2 - weight * u2, c3 - weight * u3


@triton.jit
def near_pairs(
    z,
    N: tl.constexpr,
    AGENTS: tl.constexpr,
    OTHERS: tl.constexpr,
    CUTOFF: tl.constexpr,
    GRADIENT: tl.constexpr,
):
    """exp(-d^2/2) of all pairs that are near, and its products with their differences, to be
    summed: (AGENTS, OTHERS) each. Every agent is near itself, which adds one to the first sum."""
    i = tl.arange(0, AGENTS)[:, None]
    x = tl.load(z + i, mask=i < N, other=0.0)
    y = tl.load(z + N + i, mask=i < N, other=0.0)
    w = tl.load(z + 2 * N + i, mask=i < N, other=0.0)
    total = tl.zeros([AGENTS, OTHERS], z.dtype.element_ty)
    gx, gy, gz = total, total, total
    for first in range(0, N, OTHERS):
        other = first + tl.arange(0, OTHERS)[None, :]
        # Who is not there is far away.
        dx = x - tl.load(z + other, mask=other < N, other=1e18)
        dy = y - tl.load(z + N + other, mask=other < N, other=1e18)
        dz = w - tl.load(z + 2 * N + other, mask=other < N, other=1e18)
        squared = dx * dx + dy * dy + dz * dz
        value = tl.where(squared < CUTOFF, tl.exp(-0.5 * squared), 0.0)
        total += value
        if GRADIENT:
            gx += value * dx
            gy += value * dy
            gz += value * dz
    return total, gx, gy, gz


@triton.jit
def three(pointer, stride: tl.constexpr, inside):
    """Three numbers for each agent, `stride` apart."""
    first = tl.load(pointer, mask=inside, other=0.0)
    second = tl.load(pointer + stride, mask=inside, other=0.0)
    return first, second, tl.load(pointer + 2 * stride, mask=inside, other=0.0)


@triton.jit
def store_three(pointer, stride: tl.constexpr, first, second, third, inside):
    """Write what `three` reads."""
    tl.store(pointer, first, mask=inside)
    tl.store(pointer + stride, second, mask=inside)
    tl.store(pointer + 2 * stride, third, mask=inside)
