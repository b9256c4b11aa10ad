"""Muon for matrices, Adam for vectors, under one learning rate."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from jfbcore.extras.optimizers import build_optimizer

RATE, MATRIX_RATE = 0.01, 3.0


def parameters(generator_seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(generator_seed)
    shapes = ((6, 4), (5,), (4, 9))
    found = [nn.Parameter(torch.randn(*shape, generator=generator)) for shape in shapes]
    for parameter in found:
        # Singular values of very different size: what a plain gradient step would follow.
        parameter.grad = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() == 2:
            parameter.grad[:, 0] *= 100.0
    return found


def steps_of(name: str) -> list[torch.Tensor]:
    found = parameters()
    before = [p.detach().clone() for p in found]
    optimizer = build_optimizer(name, found, betas=(0.9, 0.999), matrix_rate=MATRIX_RATE)
    optimizer.step(RATE)
    return [p.detach() - start for p, start in zip(found, before, strict=True)]


def test_matrix_updates_are_orthogonal_at_their_own_rate():
    """All singular values alike: torch's iteration leaves them between 0.6 and 1.3, and scales
    a matrix of more rows than columns by the root of their ratio."""
    for update in (steps_of("muon")[0], steps_of("muon")[2]):
        rows, columns = update.shape
        scale = RATE * MATRIX_RATE * max(1.0, rows / columns) ** 0.5
        values = torch.linalg.svdvals(update) / scale
        assert values.min() > 0.6
        assert values.max() < 1.3


def test_vectors_take_adams_step():
    """Adam's first step is the sign of the gradient times the rate."""
    signs = parameters()[1].grad.sign()
    for name in ("adam", "muon"):
        torch.testing.assert_close(steps_of(name)[1], -RATE * signs, rtol=1e-4, atol=0.0)


def test_adam_alone_serves_matrices_too():
    for update, parameter in zip(steps_of("adam"), parameters(), strict=True):
        torch.testing.assert_close(update, -RATE * parameter.grad.sign(), rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("name", ["adam", "muon"])
def test_state_goes_on_where_it_was(name):
    def run(interrupted: bool) -> list[torch.Tensor]:
        found = parameters()
        options = {"betas": (0.9, 0.999), "matrix_rate": MATRIX_RATE}
        optimizer = build_optimizer(name, found, **options)
        for step in range(4):
            if interrupted and step == 2:
                state = optimizer.state_dict()
                optimizer = build_optimizer(name, found, **options)
                optimizer.load_state_dict(state)
            optimizer.step(RATE / (step + 1))
        return [p.detach().clone() for p in found]

    for a, b in zip(run(True), run(False), strict=True):
        assert torch.equal(a, b)
