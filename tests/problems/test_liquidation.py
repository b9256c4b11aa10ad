"""Liquidation: its closed form against IPOPT, against the paper's and against training."""

from __future__ import annotations

import math

import pytest
import torch

from bench.check.points import generator
from bench.gap import gaps
from bench.reference.cache import reference_path
from bench.reference.closed_form import reference_of
from bench.reference.solution import open_loop_cost
from jfbcore.held_out import held_out_states
from jfbcore.problems import Liquidation

F64 = torch.float64
#: two assets of different variance: modes that are no sums and differences
COVARIANCE = [[1.2, 0.4], [0.4, 0.3]]
PORTFOLIOS = [
    pytest.param(lambda **k: Liquidation(1, dtype=F64, **k), id="one"),
    pytest.param(lambda **k: Liquidation(20, dtype=F64, **k), id="twenty"),
    pytest.param(lambda **k: Liquidation(2, covariance=COVARIANCE, dtype=F64, **k), id="unequal"),
    pytest.param(lambda **k: Liquidation(2, risk_aversion=0.0, dtype=F64, **k), id="riskless"),
]


def states_of(problem: Liquidation, batch: int = 3) -> torch.Tensor:
    return problem.sample_initial_states(batch, generator())


@pytest.mark.parametrize("make", PORTFOLIOS)
def test_the_formula_is_what_its_controls_cost_and_no_control_costs_less(make):
    """The problem is convex in the controls: a zero gradient there proves the optimum."""
    problem = make()
    x = states_of(problem)
    controls = problem.optimal_controls(x).requires_grad_()
    cost = open_loop_cost(problem, x, controls)
    torch.testing.assert_close(cost.detach(), problem.optimal_cost(x), rtol=1e-12, atol=0.0)
    (slope,) = torch.autograd.grad(cost.sum(), controls)
    # Marginal impacts are of order h * gradient_scale = 0.1 to 0.5.
    assert slope.abs().max() < 1e-11


@pytest.mark.parametrize("make", PORTFOLIOS[:3])
def test_against_ipopt(make):
    ipopt = pytest.importorskip("bench.reference.ipopt", exc_type=ImportError)
    problem = make(n_steps=20)
    x = states_of(problem, 2)
    for state, found in zip(x, ipopt.Ipopt().solve(problem, x), strict=True):
        assert found.solved
        # IPOPT stops at a scaled error of 1e-9; costs are of second order in it.
        assert found.cost == pytest.approx(problem.optimal_cost(state[None]).item(), rel=1e-9)
        expected = problem.optimal_controls(state[None])[0]
        torch.testing.assert_close(found.controls, expected, rtol=0.0, atol=1e-6)


def test_without_risk_euler_makes_no_error():
    problem = Liquidation(2, risk_aversion=0.0, dtype=F64)
    x = states_of(problem)
    torch.testing.assert_close(problem.optimal_cost(x), problem.continuous_cost(x))


@pytest.mark.parametrize("make", PORTFOLIOS[:3])
def test_small_steps_lead_to_continuous_time(make):
    """Euler's error is of first order: a tenth of the step, a tenth of the difference."""
    coarse, fine = make(n_steps=500), make(n_steps=5000)
    x = states_of(coarse)
    limit = coarse.continuous_cost(x)
    errors = [(problem.optimal_cost(x) - limit).abs().max() for problem in (coarse, fine)]
    assert errors[1] / errors[0] == pytest.approx(0.1, rel=0.05)
    assert errors[1] < 1e-3 * limit.max()
    times = torch.tensor([0.0, 1.0, 2.5, 5.0], dtype=F64)
    rates = fine.optimal_controls(x)
    sold = torch.cat((torch.zeros_like(rates[:, :1]), rates.cumsum(1)), 1) * fine.time_step
    flown = x.unsqueeze(1) - sold[:, (times / fine.time_step).round().long()]
    torch.testing.assert_close(fine.continuous_holdings(x, times), flown, rtol=0.0, atol=2e-3)


def test_the_papers_trajectory():
    """x0 sinh(kappa (T - t)) / sinh(kappa T) for one asset, kappa^2 = lambda sigma^2 / eta, where
    nothing may be left (Almgren & Chriss, in the limit of small steps)."""
    problem = Liquidation(final_rate=1e9, dtype=F64)
    kappa = math.sqrt(0.95**2 / 2.5)
    times = torch.linspace(0.0, 5.0, 11, dtype=F64)
    expected = 1.3 * torch.sinh(kappa * (5.0 - times)) / math.sinh(kappa * 5.0)
    found = problem.continuous_holdings(torch.tensor([[1.3]], dtype=F64), times)[0, :, 0]
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-8)
    cost = problem.continuous_cost(torch.tensor([[1.3]], dtype=F64)).item()
    assert cost == pytest.approx(2.5 * kappa / math.tanh(5.0 * kappa) * 1.3**2, rel=1e-8)


def test_gaps_come_from_the_formula(tmp_path):
    """Also where no file is: a size that nobody solved for."""
    problem = Liquidation(7)
    assert not reference_path(problem, "reports/references").exists()
    best = problem.optimal_cost(held_out_states(Liquidation(7, dtype=F64)))
    assert gaps(problem).of((1.01 * best).tolist()) == pytest.approx(0.01, abs=1e-9)
    reference = reference_of(problem, 4)
    assert reference.label == "optimal"
    assert reference.costs == pytest.approx(best[:4].tolist(), rel=1e-12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cross_impact": 1.0}, r"`cross_impact` must be in \[0, 1\), got 1.0"),
        ({"correlation": -0.1}, "`correlation` must be >= 0, got -0.1"),
        ({"impact": 0.0}, "`impact` must be > 0"),
        ({"covariance": [[1.0, 2.0], [2.0, 1.0]]}, "`covariance` must have no negative eigenvalue"),
        ({"covariance": [[1.0]]}, "`covariance` must be a 2 x 2 matrix"),
    ],
)
def test_bad_parameters_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Liquidation(2, **settings)


def test_two_names_for_the_size():
    with pytest.raises(TypeError, match="`n_agents` is another name for `n_assets`"):
        Liquidation(2, n_agents=2)
