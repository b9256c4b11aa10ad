"""The interaction cost that keeps agents apart, with its analytic gradient."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jfbcore.problems._fused import differentiable_vjp, plain_formula_required

#: pairs further apart than this (squared distance) do not interact
CUTOFF_SQUARED = 4.0


def interaction_cost(positions: Tensor) -> Tensor:
    """Q = 1/(2N) sum_{i<j} 1[d_ij^2 < 4] exp(-d_ij^2 / 2).

    `positions`: (batch, N, dimension), any length unit the cost is meant in. Returns (batch,).
    The backward pass keeps two tensors of the positions' size; nothing of size N^2 outlives
    the call. The jump at the cutoff (e^-2 per pair) has no gradient here, as in arXiv 2602.00921.
    """
    if positions.shape[1] == 1:
        return positions.new_zeros(positions.shape[0])
    if plain_formula_required():
        return _plain_interaction(positions)
    return _Interaction.apply(positions)


def _plain_interaction(positions: Tensor) -> Tensor:
    n_agents = positions.shape[1]
    squared = (positions.unsqueeze(2) - positions.unsqueeze(1)).square().sum(-1)
    apart = (squared < CUTOFF_SQUARED) & ~torch.eye(
        n_agents, dtype=torch.bool, device=positions.device
    )
    return (squared.mul(-0.5).exp() * apart).sum((1, 2)) * (0.25 / n_agents)


class _Interaction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, positions: Tensor) -> Tensor:
        n_agents = positions.shape[1]
        # Distances from inner products: one batched product instead of `dimension` passes over
        # N^2 differences. Centring first keeps the cancellation error at rounding level.
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
        if ctx.needs_input_grad[0]:
            # dQ/dx_i = -1/(2N) sum_j k_ij (x_i - x_j)
            gradient = torch.addcmul(product[:, :-1], row_sums, x.transpose(1, 2), value=-1.0)
            gradient = gradient.transpose(1, 2).mul(0.5 / n_agents)
            ctx.save_for_backward(gradient, positions)
        return row_sums.sum((1, 2)).mul_(0.25 / n_agents)

    @staticmethod
    def backward(ctx, grad_cost: Tensor):
        gradient, positions = ctx.saved_tensors
        if torch.is_grad_enabled():
            return differentiable_vjp(_plain_interaction, (positions,), grad_cost)[0]
        return gradient * grad_cost[:, None, None]
