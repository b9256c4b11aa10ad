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


def modes(problem: Liquidation) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """kappa (m,), and the matrices that turn rows of holdings into modes and back.

    The modes y = U' E^(1/2) x diagonalise E^(-1/2) S E^(-1/2): each costs v^2 + kappa^2 y^2.
    """
    m = problem.n_assets
    impact = problem.impact_of(torch.eye(m, dtype=F64))
    risk = problem.risk_aversion * problem._covariance()
    values, vectors = torch.linalg.eigh(impact)
    root, inverse = ((vectors * values**power) @ vectors.T for power in (0.5, -0.5))
    squares, turn = torch.linalg.eigh(inverse @ risk @ inverse)
    # Without risk kappa is zero, where the formulas have limits: one close by gives them.
    return squares.clamp_min(1e-14).sqrt(), root @ turn, turn.T @ inverse


def euler_cost(problem: Liquidation, x: torch.Tensor) -> torch.Tensor:
    """The least cost in Euler's steps, (batch,): in each mode P_i y^2, by the scalar recursion
    P_i = h kappa^2 + P_(i+1) / (1 + h P_(i+1)) from P_n = final_rate."""
    kappa, to_modes, _ = modes(problem)
    h, value = problem.time_step, torch.full_like(kappa, problem.final_rate)
    for _ in range(problem.n_steps):
        value = h * kappa.square() + value / (1.0 + h * value)
    return (x @ to_modes).square() @ value


def continuous_holdings(problem: Liquidation, x: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
    """The optimal x(t) in continuous time, (batch, len(times), m).

    A mode is y(0) (kappa cosh(kappa s) + k sinh(kappa s)) / (the same at s = T), s = T - t,
    k = final_rate: for k to infinity the paper's sinh(kappa s) / sinh(kappa T).
    """
    kappa, to_modes, from_modes = modes(problem)

    def shape(s):
        return kappa * torch.cosh(kappa * s) + problem.final_rate * torch.sinh(kappa * s)

    share = shape((problem.t_final - times).unsqueeze(1)) / shape(problem.t_final)
    return (x @ to_modes).unsqueeze(1) * share @ from_modes


def continuous_cost(problem: Liquidation, x: torch.Tensor) -> torch.Tensor:
    """The least cost in continuous time, (batch,): kappa (kappa tanh(kappa T) + k) /
    (kappa + k tanh(kappa T)) times y(0)^2, summed over the modes."""
    kappa, to_modes, _ = modes(problem)
    bend, k = torch.tanh(kappa * problem.t_final), problem.final_rate
    return (x @ to_modes).square() @ (kappa * (kappa * bend + k) / (kappa + k * bend))


def states_of(problem: Liquidation, batch: int = 3) -> torch.Tensor:
    return problem.sample_initial_states(batch, generator())


@pytest.mark.parametrize("make", PORTFOLIOS)
def test_the_formula_is_what_its_controls_cost_and_no_control_costs_less(make):
    """The problem is convex in the controls: a zero gradient there proves the optimum."""
    problem = make()
    x = states_of(problem)
    controls = problem.optimal_controls(x).requires_grad_()
    cost = open_loop_cost(problem, x, controls)
    torch.testing.assert_close(cost.detach(), euler_cost(problem, x), rtol=1e-12, atol=0.0)
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
        assert found.cost == pytest.approx(euler_cost(problem, state[None]).item(), rel=1e-9)
        expected = problem.optimal_controls(state[None])[0]
        torch.testing.assert_close(found.controls, expected, rtol=0.0, atol=1e-6)


def test_without_risk_euler_makes_no_error():
    problem = Liquidation(2, risk_aversion=0.0, dtype=F64)
    x = states_of(problem)
    torch.testing.assert_close(euler_cost(problem, x), continuous_cost(problem, x))


@pytest.mark.parametrize("make", PORTFOLIOS[:3])
def test_small_steps_lead_to_continuous_time(make):
    """Euler's error is of first order: a tenth of the step, a tenth of the difference."""
    coarse, fine = make(n_steps=500), make(n_steps=5000)
    x = states_of(coarse)
    limit = continuous_cost(coarse, x)
    errors = [(euler_cost(problem, x) - limit).abs().max() for problem in (coarse, fine)]
    assert errors[1] / errors[0] == pytest.approx(0.1, rel=0.05)
    assert errors[1] < 1e-3 * limit.max()
    times = torch.tensor([0.0, 1.0, 2.5, 5.0], dtype=F64)
    rates = fine.optimal_controls(x)
    sold = torch.cat((torch.zeros_like(rates[:, :1]), rates.cumsum(1)), 1) * fine.time_step
    flown = x.unsqueeze(1) - sold[:, (times / fine.time_step).round().long()]
    torch.testing.assert_close(continuous_holdings(fine, x, times), flown, rtol=0.0, atol=2e-3)


def test_the_papers_trajectory():
    """x0 sinh(kappa (T - t)) / sinh(kappa T) for one asset, kappa^2 = lambda sigma^2 / eta, where
    nothing may be left (Almgren & Chriss, in the limit of small steps)."""
    problem = Liquidation(final_rate=1e9, dtype=F64)
    kappa = math.sqrt(0.95**2 / 2.5)
    times = torch.linspace(0.0, 5.0, 11, dtype=F64)
    expected = 1.3 * torch.sinh(kappa * (5.0 - times)) / math.sinh(kappa * 5.0)
    found = continuous_holdings(problem, torch.tensor([[1.3]], dtype=F64), times)[0, :, 0]
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-8)
    cost = continuous_cost(problem, torch.tensor([[1.3]], dtype=F64)).item()
    assert cost == pytest.approx(2.5 * kappa / math.tanh(5.0 * kappa) * 1.3**2, rel=1e-8)


def test_gaps_come_from_the_formula(tmp_path):
    """Also where no file is: a size that nobody solved for."""
    problem = Liquidation(7)
    assert not reference_path(problem, "reports/references").exists()
    exact = Liquidation(7, dtype=F64)
    best = euler_cost(exact, held_out_states(exact))
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
