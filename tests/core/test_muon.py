"""Muon in the parameters' own precision, held against torch's, which orthogonalises in bfloat16."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from jfbcore.extras.muon import Muon, orthogonalized

SHAPES = ((6, 4), (4, 9), (16, 16))


def matrices(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    return [nn.Parameter(torch.randn(*s, generator=generator).to(dtype)) for s in SHAPES]


def trained(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> list[torch.Tensor]:
    before = [p.detach().clone() for p in parameters]
    generator = torch.Generator().manual_seed(4)
    for _ in range(3):
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        optimizer.step()
    return [p.detach() - start for p, start in zip(parameters, before, strict=True)]


def test_it_moves_as_torchs_muon_does():
    """bfloat16 has eight bits, and the iteration multiplies a rounding by up to ten."""
    ours, theirs = matrices(), matrices()
    pairs = zip(
        trained(Muon(ours, lr=0.01), ours),
        trained(torch.optim.Muon(theirs, lr=0.01, weight_decay=0.0), theirs),
        strict=True,
    )
    for mine, other in pairs:
        assert (mine - other).norm() < 0.05 * other.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_update_keeps_the_singular_vectors_in_its_own_precision(dtype):
    """U^T X V of the update is diagonal where the gradient's singular vectors are U and V: to
    rounding, which bfloat16 would miss by four digits."""
    for gradient in matrices(dtype):
        left, _, right = torch.linalg.svd(gradient.detach(), full_matrices=False)
        core = left.T @ orthogonalized(gradient.detach()) @ right.T
        assert orthogonalized(gradient.detach()).dtype == dtype
        values = core.diagonal()
        assert values.min() > 0.6
        assert values.max() < 1.3
        off = core - torch.diag(values)
        assert off.abs().max() < 1e3 * torch.finfo(dtype).eps


def test_a_vector_is_refused_with_a_way_out():
    with pytest.raises(ValueError, match=r"matrices only.*use Adam"):
        Muon([nn.Parameter(torch.zeros(3))])


def test_a_closure_is_refused():
    with pytest.raises(ValueError, match="call backward before"):
        Muon(matrices()).step(lambda: 0.0)
