"""The interaction cost and its analytic gradient, from one batched product.

Beside `jfbcore.problems.interaction.interaction_formula`, which says what is computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from jfbcore.kernels import native
from jfbcore.kernels.fused import differentiable_vjp

#: pairs further apart than this (squared distance) do not interact
CUTOFF_SQUARED = 4.0


def _cost_and_gradient(positions: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor | None]:
    """Q (batch,) and dQ/dx (batch, N, dimension), with one transient N x N kernel per sample."""
    n_agents = positions.shape[1]
    # Distances from inner products: one batched product instead of `dimension` passes over
    # N^2 differences. Centring first keeps the cancellation error at rounding level as long as the
    # swarm's extent is moderate: at 1,000 m from its centre a kernel is good to a few per cent.
    x = positions - positions.mean(1, keepdim=True)
    half_norms = x.square().sum(-1).mul_(-0.5)
    kernel = half_norms.unsqueeze(2) + half_norms.unsqueeze(1)
    kernel.baddbmm_(x, x.transpose(1, 2)).exp_()
    # exp is monotone: exp(-d^2/2) > exp(-2) is d^2 < 4, and one pass applies the cutoff.
    torch.threshold_(kernel, math.exp(-0.5 * CUTOFF_SQUARED), 0.0)
    kernel.diagonal(dim1=1, dim2=2).zero_()
    # K is symmetric: one product of [x, 1]^T with it gives K x and the row sums together.
    augmented = torch.cat((x, torch.ones_like(x[..., :1])), 2).transpose(1, 2)
    product = torch.bmm(augmented, kernel)
    row_sums = product[:, -1:]
    gradient = None
    if with_gradient:
        # dQ/dx_i = -1/(2N) sum_j k_ij (x_i - x_j)
        gradient = torch.addcmul(product[:, :-1], row_sums, x.transpose(1, 2), value=-1.0)
        gradient = gradient.transpose(1, 2).mul(0.5 / n_agents)
    return row_sums.sum((1, 2)).mul_(0.25 / n_agents), gradient


class Interaction(torch.autograd.Function):
    """Q of `positions` with the gradient above; `formula` gives its second derivatives."""

    @staticmethod
    def forward(ctx: Any, formula: Callable[[Tensor], Tensor], positions: Tensor) -> Tensor:
        """Q of `positions` (batch, N, d), (batch,); keeps its gradient, not the pairs."""
        ctx.formula = formula
        cost, gradient = _cost_and_gradient(positions, ctx.needs_input_grad[1])
        if gradient is not None:
            ctx.save_for_backward(gradient, positions)
        return cost

    @staticmethod
    def backward(ctx: Any, grad_cost: Tensor) -> tuple[Tensor | None, ...]:
        """The cotangent of the positions, (batch, N, d)."""
        gradient, positions = ctx.saved_tensors
        if torch.is_grad_enabled():
            return None, *differentiable_vjp(ctx.formula, (positions,), grad_cost)
        return None, gradient * grad_cost[:, None, None]


#: operators of compiled graphs; without a derivative, so that transforms of torch.func pass them
_OPERATORS = torch.library.Library("jfbcore", "FRAGMENT")
_OPERATORS.define("interaction(Tensor positions) -> (Tensor, Tensor)")


@torch.library.impl(_OPERATORS, "interaction", "CPU")
def _(positions: Tensor) -> tuple[Tensor, Tensor]:
    cost, gradient = _cost_and_gradient(positions, with_gradient=True)
    assert gradient is not None
    return cost, gradient.contiguous()


@torch.library.register_fake("jfbcore::interaction", lib=_OPERATORS)  # type: ignore[untyped-decorator]
def _(positions: Tensor) -> tuple[Tensor, Tensor]:
    return positions.new_empty(positions.shape[0]), positions.new_empty(positions.shape)


def compiled_interaction(positions: Tensor) -> Tensor:
    """`_cost_and_gradient` as one operator of a compiled graph.

    On a CPU the code generator would keep the N x N tensors of the plain formula for backward and
    write its own loops where a batched product is faster. On a GPU it fuses them away.
    """
    fixed = positions.detach()
    if native.serves(fixed):
        cost, gradient = native.operators.pairs(fixed.contiguous(), CUTOFF_SQUARED)
    else:
        cost, gradient = torch.ops.jfbcore.interaction(fixed)
    # Adds zero, and the gradient to whatever differentiates this.
    total: Tensor = cost + (gradient * (positions - fixed)).sum((1, 2))
    return total
