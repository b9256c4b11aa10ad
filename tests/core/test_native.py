"""The native kernels for processors against the formulas beside which they stand, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from jfbcore.kernels import native, saved_sweep
from jfbcore.kernels.interaction import CUTOFF_SQUARED
from jfbcore.kernels.saved_sweep import Layers
from jfbcore.problems.interaction import interaction_formula

F32, F64 = torch.float32, torch.float64
STEPS = 3
#: float32 rounds to 6e-8; sums of a hundred terms of both signs lose some of it, and so does
#: 1 - tanh^2 where tanh is near one
ROUNDING = 3e-5


@pytest.fixture(scope="module", autouse=True)
def kernels():
    if not native.load():
        pytest.fail("the native kernels were not built: these tests need a C++ compiler")


def error(found: Tensor, true: Tensor) -> float:
    if true.numel() == 0:
        return float(found.numel())
    return ((found.double() - true).norm() / true.norm()).item()


def layers(n: int, width: int, depth: int, random: torch.Generator) -> Layers:
    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=F64)

    count, rank = depth - 1, min(10, n + 1)
    matrix, weights = normal(width + rank, n) / n**0.5, normal(count, width, width) / width**0.5
    return Layers(
        matrix,
        matrix.T.contiguous(),
        matrix.clone(),
        matrix.T.contiguous(),
        weights,
        weights.transpose(1, 2).contiguous(),
        normal(count, width),
        normal(width),
        normal(n),
        1.0 / max(count, 1),
    )


def single(x: Layers) -> Layers:
    return Layers(*(y.float() if isinstance(y, Tensor) else y for y in x))


# Widths and sizes below, at and above multiples of the vectors' lengths; one row and many.
@pytest.mark.parametrize(
    ("n", "width", "depth", "batch"),
    [
        (12, 96, 3, 50),
        (240, 96, 3, 5),
        (4, 100, 3, 128),
        (2, 50, 3, 130),
        (1, 3, 3, 5),
        (7, 17, 4, 65),
        (16, 16, 1, 64),
        (33, 31, 2, 2),
    ],
)
def test_the_network_is_its_formulas(n, width, depth, batch):
    random = torch.Generator().manual_seed(n)
    exact = layers(n, width, depth, random)
    if n % 4 == 0:
        # Some columns alone of the costate: those of two numbers of each agent's four.
        columns = (4, 1, 3)
        out = saved_sweep.narrow(exact.matrix, columns)
        exact = exact._replace(
            costate_matrix=out.clone(),
            transposed_costate_matrix=out.T.contiguous(),
            linear=saved_sweep.narrow(exact.linear[None], columns)[0],
            columns=columns,
        )
    own = single(exact)
    z = 2.0 * torch.randn(STEPS, batch, n, generator=random, dtype=F64)
    bias = torch.randn(exact.matrix.shape[0], generator=random, dtype=F64)
    z[0, 0] *= 30.0  # saturates tanh
    p_bar = torch.randn(STEPS, batch, len(exact.linear), generator=random, dtype=F64)
    onto = torch.randn(STEPS, batch, n, generator=random, dtype=F64)
    true, found = [], []
    for i in range(STEPS):
        true.append(saved_sweep.sweep_formula(exact, bias, z[i]))
        found.append(saved_sweep.sweep(own, bias.float(), z[i].float()))
        assert len(found[i][1]) == 1, "the formula has served"
        assert error(found[i][0], true[i][0]) < ROUNDING
    kept = [torch.stack([saved[0] for _, saved in found])]
    true_kept = [torch.stack(parts) for parts in zip(*(saved for _, saved in true), strict=True)]
    bars, true_bars = [], []
    for i in reversed(range(STEPS)):
        at = torch.tensor(i)
        z_bar, own_bars = saved_sweep.pull_back(own, kept, at, p_bar[i].float(), onto[i].float())
        true_z_bar, step_bars = saved_sweep.pull_back(exact, true_kept, at, p_bar[i], onto[i])
        assert error(z_bar, true_z_bar) < ROUNDING
        bars.append(own_bars[0])
        true_bars.append(step_bars)
    times = torch.arange(STEPS, dtype=F64)
    own_gradients = saved_sweep.parameter_gradients(
        own, times.float(), z.float(), p_bar.flip(0).float(), kept, [torch.stack(bars)]
    )
    stacked = [torch.stack(parts) for parts in zip(*true_bars, strict=True)]
    gradients = saved_sweep.parameter_gradients(exact, times, z, p_bar.flip(0), true_kept, stacked)
    for name, true_gradient in gradients._asdict().items():
        assert error(getattr(own_gradients, name), true_gradient) < ROUNDING, name


@pytest.mark.parametrize("dimension", [2, 3])
@pytest.mark.parametrize("agents", [2, 15, 16, 17, 50, 100])
def test_pairs_are_the_interaction_and_its_gradient(agents, dimension):
    random = torch.Generator().manual_seed(agents)
    positions = torch.randn(7, agents, dimension, generator=random, dtype=F64, requires_grad=True)
    true = interaction_formula(positions)
    (slope,) = torch.autograd.grad(true.sum(), positions)
    cost, gradient = native.operators.pairs(positions.detach().float(), CUTOFF_SQUARED)
    assert error(cost, true.detach()) < ROUNDING
    assert error(gradient, slope) < ROUNDING


def test_tensors_that_are_not_contiguous_are_refused():
    with pytest.raises(RuntimeError, match="contiguous"):
        native.operators.pairs(torch.zeros(2, 3, 4).transpose(1, 2), CUTOFF_SQUARED)


def test_they_can_be_switched_off(monkeypatch):
    monkeypatch.setenv("JFB_NATIVE", "0")
    assert not native.load.__wrapped__()


def test_a_compiler_that_fails_is_a_warning_with_its_words(monkeypatch, tmp_path):
    (tmp_path / "kernels.cpp").write_text("this is no program")
    monkeypatch.setattr(native, "_SOURCES", tmp_path)
    with pytest.warns(UserWarning, match="without the native kernels: .*error"):
        assert not native.load.__wrapped__()


@pytest.mark.parametrize("dtype", [F64, torch.float16])
def test_other_dtypes_take_the_formulas(dtype):
    assert not native.serves(torch.zeros(1, dtype=dtype))
    assert native.serves(torch.zeros(1))
