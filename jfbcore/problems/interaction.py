"""The interaction cost that keeps agents apart."""

from __future__ import annotations

import torch
from torch import Tensor

from jfbcore.kernels.fused import plain_formula_required
from jfbcore.kernels.interaction import CUTOFF_SQUARED, Interaction, compiled_interaction


def interaction_cost(positions: Tensor) -> Tensor:
    """Q = 1/(2N) sum_{i<j} 1[d_ij^2 < 4] exp(-d_ij^2 / 2).

    `positions`: (batch, N, dimension), any length unit the cost is meant in. Returns (batch,).
    The backward pass keeps two tensors of the positions' size; nothing of size N^2 outlives
    the call. The jump at the cutoff (e^-2 per pair) has no gradient here, as in arXiv 2602.00921.
    """
    if positions.shape[1] == 1:
        return positions.new_zeros(positions.shape[0])
    if torch.compiler.is_compiling() and positions.device.type == "cpu":
        return compiled_interaction(positions)
    if plain_formula_required():
        return interaction_formula(positions)
    cost: Tensor = Interaction.apply(interaction_formula, positions)
    return cost


def with_interaction(cost: Tensor, weight: float, agents: Tensor, dimension: int) -> Tensor:
    """`cost` (batch,) + `weight` Q; `agents`: states (batch, N, n), positions first."""
    if weight == 0 or agents.shape[1] == 1:
        return cost
    return torch.add(cost, interaction_cost(agents[..., :dimension]), alpha=weight)


def interaction_formula(positions: Tensor) -> Tensor:
    """Q from the distances of all pairs: (batch, N, dimension) -> (batch,)."""
    n_agents = positions.shape[1]
    squared = (positions.unsqueeze(2) - positions.unsqueeze(1)).square().sum(-1)
    apart = (squared < CUTOFF_SQUARED) & ~torch.eye(
        n_agents, dtype=torch.bool, device=positions.device
    )
    return (squared.mul(-0.5).exp() * apart).sum((1, 2)) * (0.25 / n_agents)
