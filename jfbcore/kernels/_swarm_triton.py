"""The Triton kernels behind jfbcore.kernels.swarm: importing this module needs Triton.

A program takes one sample through all time steps: samples do not depend on each other, so nothing
waits for another program and nothing is launched between two time steps. What one time step hands
to another, and what a layout by agents hands to one by coordinates, goes through memory that the
program has written itself, with a barrier between.

Coordinates come first and agents last, so that a coordinate of all agents is contiguous.
"""

# Helpers return more than each caller needs; the compiler drops the rest.
# ruff: noqa: RUF059
# mypy: disable-error-code="assignment,no-untyped-def,untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from jfbcore.kernels._products_triton import product, write_sum
from jfbcore.kernels._quadrotor_triton import (
    ascent,
    attitude,
    exponential,
    near_pairs,
    pull,
    scaling_limit,
    store_three,
    three,
)
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
    x0, x1, x2 = three(mine, N, here)
    y0, y1, y2 = three(mine + 3 * N, N, here)
    dx0, dx1, dx2 = three(mine + 6 * N, N, here)
    dy0, dy1, dy2 = three(mine + 9 * N, N, here)
    for i in range(n_steps):
        row = i * n_batch + sample
        z = states + row * (12 * N)
        p = costates + row * (6 * N)

        a = product(matrix, z, OPEN, 12 * N, 12 * N, PADDED, BLOCK)
        a += tl.load(table + i * ROW + j, mask=j < OPEN, other=0.0)
        tl.store(opened + row * OPEN + j, a, mask=j < OPEN)
        w, W, b = layer_parameters(readout, weights, biases, WIDTH, PADDED, N_LAYERS)
        slopes = layer_slopes(tl.where(j < WIDTH, a, 0.0), W, b, RESIDUAL_STEP, N_LAYERS)
        pulled = layer_pulls(slopes, w, W, RESIDUAL_STEP, N_LAYERS)
        x = tl.where(j < WIDTH, slopes[0] * pulled[0], a)
        write_sum(p, linear, closing, x, 6 * N, STRIDE, PADDED, BLOCK)
        tl.debug_barrier()

        s_yaw, s_pitch, s_roll, c_yaw, c_pitch, c_roll, d1, d2, d3 = attitude(y0, y1, y2)
        p0, p1, p2, c0, c1, c2, c3 = pull(p + agent, here, d1, d2, d3, N, MASS)
        longest = scaling_limit(c0, c1, c2, c3, N)
        u0, u1, u2, u3 = v0, v1, v2, v3
        if not WARM_START:
            u0 = tl.zeros([AGENTS], h.dtype)
            u1, u2, u3 = u0, u0, u0
        for _ in range(count):
            scale, r0, r1, r2, r3 = ascent(u0, u1, u2, u3, c0, c1, c2, c3, longest, N)
            u0 += scale * r0
            u1 += scale * r1
            u2 += scale * r2
            u3 += scale * r3
        scale, r0, r1, r2, r3 = ascent(u0, u1, u2, u3, c0, c1, c2, c3, longest, N)
        tl.store(residuals + row, tl.sqrt(tl.sum(r0 * r0 + r1 * r1 + r2 * r2 + r3 * r3)))
        u = kept + row * (4 * N) + agent
        tl.store(u, u0, mask=here)
        store_three(u + N, N, u1, u2, u3, here)
        # One application more, as the way back tracks it.
        v0, v1, v2, v3 = u0 + scale * r0, u1 + scale * r1, u2 + scale * r2, u3 + scale * r3

        effort = exponential(v0, v1, v2, v3, N)
        if N > 1 and INTERACTION != 0.0:
            pairs, gx, gy, gz = near_pairs(z, N, AGENTS, OTHERS, CUTOFF, False)
            effort += INTERACTION * (0.25 / N) * tl.sum(tl.where(here, tl.sum(pairs, 1) - 1.0, 0.0))
        cost += h * effort

        thrust = v0 / MASS
        x0, x1, x2 = x0 + h * dx0, x1 + h * dx1, x2 + h * dx2
        y0, y1, y2 = y0 + h * dy0, y1 + h * dy1, y2 + h * dy2
        dx0, dx1 = dx0 + h * (d1 * thrust), dx1 + h * (d2 * thrust)
        dx2 += h * (d3 * thrust - G)
        dy0, dy1, dy2 = dy0 + h * v1, dy1 + h * v2, dy2 + h * v3
        after = z + n_batch * (12 * N) + agent
        store_three(after, N, x0, x1, x2, here)
        store_three(after + 3 * N, N, y0, y1, y2, here)
        store_three(after + 6 * N, N, dx0, dx1, dx2, here)
        store_three(after + 9 * N, N, dy0, dy1, dy2, here)
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
        yaw, pitch, roll = three(z + 3 * N + agent, N, here)
        s_yaw, s_pitch, s_roll, c_yaw, c_pitch, c_roll, d1, d2, d3 = attitude(yaw, pitch, roll)
        p0, p1, p2, c0, c1, c2, c3 = pull(p + agent, here, d1, d2, d3, N, MASS)
        longest = scaling_limit(c0, c1, c2, c3, N)
        u = kept + row * (4 * N) + agent
        u0 = tl.load(u, mask=here, other=0.0)
        u1, u2, u3 = three(u + N, N, here)
        scale, r0, r1, r2, r3 = ascent(u0, u1, u2, u3, c0, c1, c2, c3, longest, N)
        v0, v1, v2, v3 = u0 + scale * r0, u1 + scale * r1, u2 + scale * r2, u3 + scale * r3

        # Cotangents of what flew, from the next state and the running cost.
        x0, x1, x2 = three(mine, N, here)
        y0, y1, y2 = three(mine + 3 * N, N, here)
        dx0, dx1, dx2 = three(mine + 6 * N, N, here)
        dy0, dy1, dy2 = three(mine + 9 * N, N, here)
        f1, f2, f3 = h * dx0, h * dx1, h * dx2
        slope = cost_bar * exponential(v0, v1, v2, v3, N) / N
        v0_bar = (d1 * f1 + d2 * f2 + d3 * f3) / MASS + slope * v0
        v1_bar, v2_bar, v3_bar = h * dy0 + slope * v1, h * dy1 + slope * v2, h * dy2 + slope * v3
        # Of the control, where the map's scaling and what it is applied to are constants.
        thrust_bar = scale * v0_bar / -MASS
        p_bar = costate_bars + row * (6 * N)
        own = p_bar + agent
        store_three(own, N, d1 * thrust_bar, d2 * thrust_bar, d3 * thrust_bar, here)
        store_three(own + 3 * N, N, -scale * v1_bar, -scale * v2_bar, -scale * v3_bar, here)

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

        store_three(beside + 6 * N, N, dx0 + h * x0, dx1 + h * x1, dx2 + h * x2, here)
        store_three(beside + 9 * N, N, dy0 + h * y0, dy1 + h * y1, dy2 + h * y2, here)
        store_three(beside + 3 * N, N, y0 + yaw_bar, y1 + pitch_bar, y2 + roll_bar, here)
        if N > 1 and INTERACTION != 0.0:
            pairs, gx, gy, gz = near_pairs(z, N, AGENTS, OTHERS, CUTOFF, True)
            away = cost_bar * INTERACTION * (-0.5 / N)
            x0 += away * tl.sum(gx, 1)
            x1 += away * tl.sum(gy, 1)
            x2 += away * tl.sum(gz, 1)
        store_three(beside, N, x0, x1, x2, here)
        tl.debug_barrier()

        # The state's way through the network.
        bars = product(acting, p_bar, OPEN, 6 * N, 6 * N, PADDED, BLOCK)
        a = tl.load(opened + row * OPEN + j, mask=j < WIDTH, other=0.0)
        w, W, b = layer_parameters(readout, weights, biases, WIDTH, PADDED, N_LAYERS)
        slopes = layer_slopes(a, W, b, RESIDUAL_STEP, N_LAYERS)
        pulled = layer_pulls(slopes, w, W, RESIDUAL_STEP, N_LAYERS)
        x = tl.where(j < WIDTH, bars, 0.0)
        x = layer_pull_back(slopes, pulled, x, W, RESIDUAL_STEP, N_LAYERS)
        x = tl.where(j < WIDTH, x, bars)
        write_sum(bar, rest, turned, x, 12 * N, STRIDE, PADDED, BLOCK)
        tl.debug_barrier()
