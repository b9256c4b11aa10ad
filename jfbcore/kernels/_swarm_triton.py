"""The Triton kernels behind jfbcore.kernels.swarm: importing this module needs Triton.

A program takes one sample through all time steps: samples do not depend on each other, so nothing
waits for another program and nothing is launched between two time steps. What one time step hands
to another, and what a layout by agents hands to one by coordinates, goes through memory that the
program has written itself, with a barrier between.

`jfbcore.kernels.quadrotor` has the formulas of the agents, by the same names. Coordinates come
first and agents last, so that a coordinate of all agents is contiguous.
"""

# Helpers return more than each caller needs; the compiler drops the rest.
# ruff: noqa: RUF059
# mypy: disable-error-code="assignment,no-untyped-def,untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from jfbcore.kernels._sweep_triton import (
    layer_parameters,
    layer_pull_back,
    layer_pulls,
    layer_slopes,
)


@triton.jit(do_not_specialize=["n_batch", "n_steps", "count"])
def there(
    states,  # (steps + 1, batch, 12, N), of which the first is given
    costates,  # (steps, batch, 6, N): those that controls act on
    kept,  # (steps, batch, 4, N): the solver's controls
    opened,  # (steps, batch, OPEN): pre-activations of the opening layer, then A y
    residuals,  # (steps, batch)
    running,  # (batch,)
    matrix,  # (OPEN, 12 N), its columns as a state's coordinates
    closing,  # (6 N, STRIDE): the columns of `matrix` that controls act on, as rows
    table,  # (steps, ROW): biases of `matrix` at every time
    linear,  # (6, N)
    readout,
    weights,
    biases,
    step_length,
    n_batch,
    n_steps,
    count,
    N: tl.constexpr,
    AGENTS: tl.constexpr,  # the power of two from N on, as PADDED is of OPEN
    WIDTH: tl.constexpr,
    OPEN: tl.constexpr,
    PADDED: tl.constexpr,
    STRIDE: tl.constexpr,
    ROW: tl.constexpr,
    N_LAYERS: tl.constexpr,
    RESIDUAL_STEP: tl.constexpr,
    MASS: tl.constexpr,
    G: tl.constexpr,
    INTERACTION: tl.constexpr,
    CUTOFF: tl.constexpr,
    WARM_START: tl.constexpr,
    BLOCK: tl.constexpr,  # columns or rows of a matrix in one block
    OTHERS: tl.constexpr,  # agents whose distances to all are in one block
):
    """The rollout: states, costates, controls, residuals of `count` steps, running costs."""
    sample = tl.program_id(0).to(tl.int64)  # offsets may be beyond 32 bits
    agent = tl.arange(0, AGENTS)
    here = agent < N
    j = tl.arange(0, PADDED)
    h = tl.load(step_length)
    cost = h * 0.0
    v0 = tl.zeros([AGENTS], h.dtype)
    v1, v2, v3 = v0, v0, v0
    mine = states + sample * (12 * N) + agent
    x0, x1, x2 = _three(mine, N, here)
    y0, y1, y2 = _three(mine + 3 * N, N, here)
    dx0, dx1, dx2 = _three(mine + 6 * N, N, here)
    dy0, dy1, dy2 = _three(mine + 9 * N, N, here)
    for i in range(n_steps):
        row = i * n_batch + sample
        z = states + row * (12 * N)
        p = costates + row * (6 * N)

        a = _product(matrix, z, OPEN, 12 * N, 12 * N, PADDED, BLOCK)
        a += tl.load(table + i * ROW + j, mask=j < OPEN, other=0.0)
        tl.store(opened + row * OPEN + j, a, mask=j < OPEN)
        w, W, b = layer_parameters(readout, weights, biases, WIDTH, PADDED, N_LAYERS)
        slopes = layer_slopes(tl.where(j < WIDTH, a, 0.0), W, b, RESIDUAL_STEP, N_LAYERS)
        pulled = layer_pulls(slopes, w, W, RESIDUAL_STEP, N_LAYERS)
        x = tl.where(j < WIDTH, slopes[0] * pulled[0], a)
        _write_sum(p, linear, closing, x, 6 * N, STRIDE, PADDED, BLOCK)
        tl.debug_barrier()

        s_yaw, s_pitch, s_roll, c_yaw, c_pitch, c_roll, d1, d2, d3 = _attitude(y0, y1, y2)
        p0, p1, p2, c0, c1, c2, c3 = _pull(p + agent, here, d1, d2, d3, N, MASS)
        longest = _longest(c0, c1, c2, c3, N)
        u0, u1, u2, u3 = v0, v1, v2, v3
        if not WARM_START:
            u0 = tl.zeros([AGENTS], h.dtype)
            u1, u2, u3 = u0, u0, u0
        for _ in range(count):
            scale, r0, r1, r2, r3 = _ascent(u0, u1, u2, u3, c0, c1, c2, c3, longest, N)
            u0 += scale * r0
            u1 += scale * r1
            u2 += scale * r2
            u3 += scale * r3
        scale, r0, r1, r2, r3 = _ascent(u0, u1, u2, u3, c0, c1, c2, c3, longest, N)
        tl.store(residuals + row, tl.sqrt(tl.sum(r0 * r0 + r1 * r1 + r2 * r2 + r3 * r3)))
        u = kept + row * (4 * N) + agent
        tl.store(u, u0, mask=here)
        _store_three(u + N, N, u1, u2, u3, here)
        # One application more, as the way back tracks it.
        v0, v1, v2, v3 = u0 + scale * r0, u1 + scale * r1, u2 + scale * r2, u3 + scale * r3

        effort = _exponential(v0, v1, v2, v3, N)
        if N > 1 and INTERACTION != 0.0:
            pairs, gx, gy, gz = _pairs(z, N, AGENTS, OTHERS, CUTOFF, False)
            effort += INTERACTION * (0.25 / N) * tl.sum(tl.where(here, tl.sum(pairs, 1) - 1.0, 0.0))
        cost += h * effort

        thrust = v0 / MASS
        x0, x1, x2 = x0 + h * dx0, x1 + h * dx1, x2 + h * dx2
        y0, y1, y2 = y0 + h * dy0, y1 + h * dy1, y2 + h * dy2
        dx0, dx1 = dx0 + h * (d1 * thrust), dx1 + h * (d2 * thrust)
        dx2 += h * (d3 * thrust - G)
        dy0, dy1, dy2 = dy0 + h * v1, dy1 + h * v2, dy2 + h * v3
        after = z + n_batch * (12 * N) + agent
        _store_three(after, N, x0, x1, x2, here)
        _store_three(after + 3 * N, N, y0, y1, y2, here)
        _store_three(after + 6 * N, N, dx0, dx1, dx2, here)
        _store_three(after + 9 * N, N, dy0, dy1, dy2, here)
        tl.debug_barrier()
    tl.store(running + sample, cost)


@triton.jit(do_not_specialize=["n_batch", "n_steps"])
def back(
    states,  # what `there` has written, with its shapes
    costates,
    kept,
    opened,
    z_bar,  # (batch, 12, N), of the final state; overwritten, in the end by the first state's
    onto,  # (batch, 12, N), for z_bar without its way through the network
    running_bar,  # (batch,)
    costate_bars,  # (steps, batch, 6, N), the result
    acting,  # (OPEN, 6 N): the columns of `matrix` that controls act on
    turned,  # (12 N, STRIDE): the matrix of `there` transposed
    readout,
    weights,
    biases,
    step_length,
    n_batch,
    n_steps,
    N: tl.constexpr,
    AGENTS: tl.constexpr,
    WIDTH: tl.constexpr,
    OPEN: tl.constexpr,
    PADDED: tl.constexpr,
    STRIDE: tl.constexpr,
    N_LAYERS: tl.constexpr,
    RESIDUAL_STEP: tl.constexpr,
    MASS: tl.constexpr,
    INTERACTION: tl.constexpr,
    CUTOFF: tl.constexpr,
    BLOCK: tl.constexpr,
    OTHERS: tl.constexpr,
):
    """The way back of `there` for jacobian-free backpropagation: cotangents of the costates."""
    sample = tl.program_id(0).to(tl.int64)  # offsets may be beyond 32 bits
    agent = tl.arange(0, AGENTS)
    here = agent < N
    j = tl.arange(0, PADDED)
    h = tl.load(step_length)
    cost_bar = h * tl.load(running_bar + sample)
    bar, rest = z_bar + sample * (12 * N), onto + sample * (12 * N)
    mine, beside = bar + agent, rest + agent
    for done in range(n_steps):
        row = (n_steps - 1 - done) * n_batch + sample
        z = states + row * (12 * N)
        p = costates + row * (6 * N)

        # The control that flew: one application of the map to the one that was kept.
        yaw, pitch, roll = _three(z + 3 * N + agent, N, here)
        s_yaw, s_pitch, s_roll, c_yaw, c_pitch, c_roll, d1, d2, d3 = _attitude(yaw, pitch, roll)
        p0, p1, p2, c0, c1, c2, c3 = _pull(p + agent, here, d1, d2, d3, N, MASS)
        longest = _longest(c0, c1, c2, c3, N)
        u = kept + row * (4 * N) + agent
        u0 = tl.load(u, mask=here, other=0.0)
        u1, u2, u3 = _three(u + N, N, here)
        scale, r0, r1, r2, r3 = _ascent(u0, u1, u2, u3, c0, c1, c2, c3, longest, N)
        v0, v1, v2, v3 = u0 + scale * r0, u1 + scale * r1, u2 + scale * r2, u3 + scale * r3

        # Cotangents of what flew, from the next state and the running cost.
        x0, x1, x2 = _three(mine, N, here)
        y0, y1, y2 = _three(mine + 3 * N, N, here)
        dx0, dx1, dx2 = _three(mine + 6 * N, N, here)
        dy0, dy1, dy2 = _three(mine + 9 * N, N, here)
        f1, f2, f3 = h * dx0, h * dx1, h * dx2
        slope = cost_bar * _exponential(v0, v1, v2, v3, N) / N
        v0_bar = (d1 * f1 + d2 * f2 + d3 * f3) / MASS + slope * v0
        v1_bar, v2_bar, v3_bar = h * dy0 + slope * v1, h * dy1 + slope * v2, h * dy2 + slope * v3
        # Of the control, where the map's scaling and what it is applied to are constants.
        thrust_bar = scale * v0_bar / -MASS
        p_bar = costate_bars + row * (6 * N)
        own = p_bar + agent
        _store_three(own, N, d1 * thrust_bar, d2 * thrust_bar, d3 * thrust_bar, here)
        _store_three(own + 3 * N, N, -scale * v1_bar, -scale * v2_bar, -scale * v3_bar, here)

        # Thrust's direction is in the dynamics and in the control; (d direction / d angles)^T w.
        thrust = v0 / MASS
        w1 = f1 * thrust + p0 * thrust_bar
        w2 = f2 * thrust + p1 * thrust_bar
        w3 = f3 * thrust + p2 * thrust_bar
        ahead = w1 * c_yaw + w2 * s_yaw
        aside = w1 * s_yaw - w2 * c_yaw
        yaw_bar = w2 * d1 - w1 * d2
        pitch_bar = c_roll * (c_pitch * ahead - w3 * s_pitch)
        roll_bar = c_roll * aside - s_roll * (s_pitch * ahead + w3 * c_pitch)

        _store_three(beside + 6 * N, N, dx0 + h * x0, dx1 + h * x1, dx2 + h * x2, here)
        _store_three(beside + 9 * N, N, dy0 + h * y0, dy1 + h * y1, dy2 + h * y2, here)
        _store_three(beside + 3 * N, N, y0 + yaw_bar, y1 + pitch_bar, y2 + roll_bar, here)
        if N > 1 and INTERACTION != 0.0:
            pairs, gx, gy, gz = _pairs(z, N, AGENTS, OTHERS, CUTOFF, True)
            away = cost_bar * INTERACTION * (-0.5 / N)
            x0 += away * tl.sum(gx, 1)
            x1 += away * tl.sum(gy, 1)
            x2 += away * tl.sum(gz, 1)
        _store_three(beside, N, x0, x1, x2, here)
        tl.debug_barrier()

        # The state's way through the network.
        bars = _product(acting, p_bar, OPEN, 6 * N, 6 * N, PADDED, BLOCK)
        a = tl.load(opened + row * OPEN + j, mask=j < WIDTH, other=0.0)
        w, W, b = layer_parameters(readout, weights, biases, WIDTH, PADDED, N_LAYERS)
        slopes = layer_slopes(a, W, b, RESIDUAL_STEP, N_LAYERS)
        pulled = layer_pulls(slopes, w, W, RESIDUAL_STEP, N_LAYERS)
        x = tl.where(j < WIDTH, bars, 0.0)
        x = layer_pull_back(slopes, pulled, x, W, RESIDUAL_STEP, N_LAYERS)
        x = tl.where(j < WIDTH, x, bars)
        _write_sum(bar, rest, turned, x, 12 * N, STRIDE, PADDED, BLOCK)
        tl.debug_barrier()


@triton.jit
def _product(
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
def _write_sum(
    target,
    onto,
    matrix,
    x,
    ROWS: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """target = onto + matrix @ x, of a matrix (ROWS, STRIDE); blocks as in `_product`."""
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


@triton.jit
def _attitude(yaw, pitch, roll):
    """Sines and cosines of yaw, pitch and roll, and the unit thrust direction."""
    s_yaw, s_pitch, s_roll = tl.sin(yaw), tl.sin(pitch), tl.sin(roll)
    c_yaw, c_pitch, c_roll = tl.cos(yaw), tl.cos(pitch), tl.cos(roll)
    lean = s_pitch * c_roll
    d1 = s_yaw * s_roll + c_yaw * lean
    d2 = s_yaw * lean - c_yaw * s_roll
    return s_yaw, s_pitch, s_roll, c_yaw, c_pitch, c_roll, d1, d2, c_pitch * c_roll


@triton.jit
def _pull(p, here, d1, d2, d3, N: tl.constexpr, MASS: tl.constexpr):
    """Costates of the velocities, and -(df/du)^T p."""
    p0, p1, p2 = _three(p, N, here)
    p3, p4, p5 = _three(p + 3 * N, N, here)
    return p0, p1, p2, (d1 * p0 + d2 * p1 + d3 * p2) / -MASS, -p3, -p4, -p5


@triton.jit
def _longest(c0, c1, c2, c3, N: tl.constexpr):
    """The limit of the scaling: N sqrt(log(1 + x) / x) with x = N |c|^2."""
    x = N * tl.sum(c0 * c0 + c1 * c1 + c2 * c2 + c3 * c3)
    # log(1 + x)/x as log(1 + x)/((1 + x) - 1): right where the sum rounds, too.
    sum_ = 1.0 + x
    ratio = tl.where(sum_ == 1.0, 1.0, tl.log(sum_) / tl.where(sum_ == 1.0, 1.0, sum_ - 1.0))
    return N * tl.sqrt(ratio)


@triton.jit
def _exponential(u0, u1, u2, u3, N: tl.constexpr):
    """exp(|u|^2 / 2N)."""
    return tl.exp(tl.sum(u0 * u0 + u1 * u1 + u2 * u2 + u3 * u3) * (0.5 / N))


@triton.jit
def _ascent(u0, u1, u2, u3, c0, c1, c2, c3, longest, N: tl.constexpr):
    """The map's scaling at u, and the gradient of H there."""
    s = tl.sum(u0 * u0 + u1 * u1 + u2 * u2 + u3 * u3) * (0.5 / N)
    weight = tl.exp(s) / N
    scale = tl.minimum(1.0 / weight, longest) / (1.0 + s)
    return scale, c0 - weight * u0, c1 - weight * u1, c2 - weight * u2, c3 - weight * u3


@triton.jit
def _pairs(
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
def _three(pointer, stride: tl.constexpr, inside):
    """Three numbers for each agent, `stride` apart."""
    first = tl.load(pointer, mask=inside, other=0.0)
    second = tl.load(pointer + stride, mask=inside, other=0.0)
    return first, second, tl.load(pointer + 2 * stride, mask=inside, other=0.0)


@triton.jit
def _store_three(pointer, stride: tl.constexpr, first, second, third, inside):
    tl.store(pointer, first, mask=inside)
    tl.store(pointer + stride, second, mask=inside)
    tl.store(pointer + 2 * stride, third, mask=inside)
