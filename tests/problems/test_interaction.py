"""The interaction cost: its value, its cutoff, its derivatives and what it keeps for backward."""

from __future__ import annotations

import math

import pytest
import torch

from jfbcore.problems import interaction_cost
from tests.problems import scalar

F64 = torch.float64


def random_positions(n_agents: int, dimension: int, spread: float, batch: int = 4):
    generator = torch.Generator().manual_seed(n_agents)
    return spread * torch.randn(batch, n_agents, dimension, generator=generator, dtype=F64)


# from all pairs interacting to almost none, so that the cutoff matters in between
@pytest.mark.parametrize("spread", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("dimension", [2, 3])
@pytest.mark.parametrize("n_agents", [1, 2, 3, 7, 20])
def test_against_floats(n_agents, dimension, spread):
    x = random_positions(n_agents, dimension, spread)
    expected = torch.tensor([scalar.interaction(sample) for sample in x.tolist()], dtype=F64)
    # Distances by inner products of coordinates up to 40: absolute errors of d^2 up to 1e-12.
    torch.testing.assert_close(interaction_cost(x), expected, rtol=1e-12, atol=1e-13)


def test_two_agents_by_hand():
    x = torch.tensor([[[0.0, 0.0], [1.0, 0.0]]], dtype=F64)
    expected = torch.tensor([0.25 * math.exp(-0.5)], dtype=F64)
    torch.testing.assert_close(interaction_cost(x), expected, rtol=1e-14, atol=0.0)


# How far from d = 2 the side is certain: d^2 comes out of sums with a few roundings.
@pytest.mark.parametrize(("dtype", "margin"), [(torch.float32, 1e-5), (F64, 1e-13)])
@pytest.mark.parametrize("elsewhere", [0.0, 3.0])
def test_cutoff(dtype, margin, elsewhere):
    def cost(distance: float) -> float:
        x = torch.tensor([[[0.0, 0.0, 0.0], [distance, 0.0, 0.0]]], dtype=dtype) + elsewhere
        return interaction_cost(x).item()

    assert cost(2.0 * (1.0 + margin)) == 0.0
    # The value changes by four times the margin over that distance.
    assert cost(2.0 * (1.0 - margin)) == pytest.approx(0.25 * math.exp(-2.0), rel=6.0 * margin)


def test_no_gradient_from_beyond_the_cutoff():
    x = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [2.5, 0.0]]], dtype=F64, requires_grad=True)
    (grad,) = torch.autograd.grad(interaction_cost(x).sum(), x)
    pull_01, pull_12 = math.exp(-0.5), 1.5 * math.exp(-1.125)  # d exp(-d^2/2)
    expected = torch.tensor(
        [[[pull_01, 0.0], [pull_12 - pull_01, 0.0], [-pull_12, 0.0]]], dtype=F64
    )
    torch.testing.assert_close(grad, expected / 6.0, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("n_agents", [2, 3, 7])
def test_derivatives(n_agents):
    # At this spread every pair is well inside the cutoff, where the cost is smooth.
    x = random_positions(n_agents, 3, 0.2).requires_grad_()
    assert torch.autograd.gradcheck(interaction_cost, x)
    assert torch.autograd.gradgradcheck(interaction_cost, x)


def test_derivatives_with_pairs_on_either_side_of_the_cutoff():
    x = random_positions(7, 3, 1.0, batch=1)
    squared = torch.cdist(x, x).square()
    # No pair within reach of the finite-difference step (1e-6) from the jump.
    assert (squared - 4.0).abs().min() > 1e-3
    assert (squared > 4.0).any()
    x.requires_grad_()
    assert torch.autograd.gradcheck(interaction_cost, x)
    assert torch.autograd.gradgradcheck(interaction_cost, x)


def test_transforms():
    x = random_positions(5, 2, 0.7)

    def single(x):
        return interaction_cost(x.unsqueeze(0)).squeeze(0)

    torch.testing.assert_close(
        torch.func.vmap(single)(x), interaction_cost(x), rtol=1e-12, atol=1e-14
    )
    x.requires_grad_()
    (expected,) = torch.autograd.grad(interaction_cost(x).sum(), x)
    found = torch.func.vmap(torch.func.jacrev(single))(x.detach())
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-14)


def test_moving_and_permuting_all_agents_changes_nothing():
    x = random_positions(7, 3, 0.7)
    for moved in (x + 100.0, x.flip(1), -x):
        # 100 away from the origin, coordinates have lost two digits.
        torch.testing.assert_close(interaction_cost(moved), interaction_cost(x), rtol=1e-11, atol=0)


def test_single_precision():
    x = random_positions(20, 3, 1.0)
    # A pair at the cutoff could flip between the precisions; none is that close.
    squared = torch.cdist(x, x).square()
    assert (squared - 4.0).abs().min() > 1e-4
    torch.testing.assert_close(
        interaction_cost(x.float()).double(), interaction_cost(x), rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("n_agents", [10, 100])
def test_nothing_of_pair_size_is_kept_for_backward(n_agents):
    x = random_positions(n_agents, 3, 0.5).float().requires_grad_()
    kept: list[int] = []

    def pack(tensor):
        kept.append(tensor.untyped_storage().nbytes())
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        cost = interaction_cost(x)
    positions = x.untyped_storage().nbytes()
    assert kept == [positions, positions]  # the gradient, and the positions themselves
    cost.sum().backward()
    assert x.grad.isfinite().all()


def test_not_a_number_is_not_hidden():
    x = random_positions(3, 2, 0.5)
    x[0, 1, 0] = math.nan
    cost = interaction_cost(x)
    assert cost[0].isnan()
    assert cost[1:].isfinite().all()
