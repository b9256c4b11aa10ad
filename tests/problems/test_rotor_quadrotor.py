"""The rotor quadrotor: its formulas by hand, its concave range, the rates of its maps."""

from __future__ import annotations

import math

import pytest
import torch

from bench.check.points import draw_point, generator
from bench.diagnostics import contraction_rate
from jfbcore.hamiltonian import DerivedHamiltonian
from jfbcore.kernels.rotor_quadrotor import curvature_constants
from jfbcore.maps import MAPS
from jfbcore.problems import RotorQuadrotor
from jfbcore.solvers import Newton, Picard
from tests.problems import scalar

F64 = torch.float64


def test_formulas_against_loops_on_floats():
    point = draw_point(RotorQuadrotor, 2)
    problem, z, u = point.problem, point.z, point.u
    pairs = list(zip(z.tolist(), u.tolist(), strict=True))
    for found, expected in (
        (problem.dynamics(0.0, z, u), [scalar.rotor_quadrotor_dynamics(*pair) for pair in pairs]),
        (
            problem.running_cost(0.0, z, u),
            [scalar.rotor_quadrotor_running_cost(*pair) for pair in pairs],
        ),
        (problem.terminal_cost(z), [scalar.rotor_quadrotor_terminal_cost(x) for x, _ in pairs]),
    ):
        torch.testing.assert_close(found, torch.tensor(expected, dtype=F64))


def test_hovering_is_at_rest():
    problem = RotorQuadrotor(dtype=F64)
    z = torch.tensor([[0.3, -0.2, 1.0, 0.7, *[0.0] * 8]], dtype=F64)
    assert problem.dynamics(0.0, z, torch.zeros(1, 4, dtype=F64)).abs().max() < 1e-12


def test_curvature_constants_bound_the_derivatives():
    """c_2 and c_1 against second differences of w^2 and w on a grid of commands."""
    for s in (0.3, 0.5, 0.9):
        u = torch.linspace(-6.0, 6.0, 60_001, dtype=F64)
        w = RotorQuadrotor(speed_range=s, dtype=F64).rotor_speed(u)
        step = (u[1] - u[0]).item()
        for values, bound in zip((w.square(), w), curvature_constants(s), strict=True):
            bend = (values[2:] - 2.0 * values[1:-1] + values[:-2]).abs().max().item() / step**2
            # Differences of step 2e-4 see the peak to 1e-6 of it.
            assert bend == pytest.approx(bound, rel=1e-5)


@pytest.mark.parametrize("n_agents", [1, 3])
def test_h_is_strongly_concave_in_the_stated_range(n_agents):
    """Eigenvalues of the derived Hessian at commands of every size, costates up to the range."""
    problem = RotorQuadrotor(n_agents, dtype=F64)
    z, p = draw_point(RotorQuadrotor, n_agents, batch=64).z, None
    p = torch.randn(z.shape, generator=generator(1), dtype=F64)
    margin = problem.concavity(z, p)
    # x = 1 - margin grows in proportion to p: put every sample at nine tenths of the range.
    p = p * (0.9 / (1.0 - margin)).unsqueeze(1)
    torch.testing.assert_close(problem.concavity(z, p), torch.full((64,), 0.1, dtype=F64))
    h = DerivedHamiltonian(problem, 0.0, z, p)
    modulus = 0.1 * problem.effort_weight / n_agents
    smallest = math.inf
    for size in (0.0, 0.1, 0.3, 1.0, 3.0):
        u = size * torch.randn(64, problem.control_dim, generator=generator(2), dtype=F64)
        values = torch.linalg.eigvalsh(h._curvature(u))
        assert values.min() >= modulus * (1.0 - 1e-9)
        smallest = min(smallest, values.min().item())
    # The range is no looser than it has to be: some sample comes close to the bound.
    assert smallest < 3.0 * modulus


def test_beyond_the_range_h_is_not_concave():
    problem = RotorQuadrotor(dtype=F64)
    point = draw_point(RotorQuadrotor, 1, batch=16)
    p = 30.0 * point.p
    assert (problem.concavity(point.z, p) < 0).all()
    h = DerivedHamiltonian(problem, 0.0, point.z, p)
    u = torch.linspace(-1.0, 1.0, 41, dtype=F64)
    bends = [torch.linalg.eigvalsh(h._curvature(x.expand(16, 4))).min().item() for x in u]
    assert min(bends) < 0.0


@pytest.mark.parametrize("n_agents", [1, 6])
def test_plain_iterations_are_tens_to_hundreds(n_agents):
    """From cold at the suite's tolerance, at costates that command a tenth of the range.

    The scaled map's rate is 2 supply / (k + 2 supply), about 2/3 where k is the effort's.
    """
    problem = RotorQuadrotor(n_agents, dtype=F64)
    z = draw_point(RotorQuadrotor, n_agents, batch=32).z
    p = torch.randn(z.shape, generator=generator(4), dtype=F64)
    p = p * (0.5 / (1.0 - problem.concavity(z, p))).unsqueeze(1)
    h, start = problem.hamiltonian(0.0, z, p), problem.initial_control(0.0, z)
    tolerance = 1e-4 * problem.gradient_scale
    exact = Newton(tolerance=1e-10).solve(MAPS["scaled"].bind(h), start)
    assert exact.converged.all()
    found = {}
    for name in ("plain", "scaled"):
        bound = MAPS[name].bind(h)
        solution = Picard(tolerance=tolerance).solve(bound, start)
        assert solution.converged.all()
        rate = contraction_rate(bound, exact.control)
        found[name] = (solution.iterations, rate.min().item(), rate.max().item())
    plain, scaled = found["plain"], found["scaled"]
    assert 50 <= plain[0] <= 500
    assert 15 <= scaled[0] < plain[0]
    assert 0.85 < plain[1] <= plain[2] < 1.0
    assert 0.5 < scaled[1] <= scaled[2] < 0.9
    assert contraction_rate(MAPS["newton"].bind(h), exact.control).max() < 1e-9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"speed_range": 1.0}, "`speed_range` must be < 1"),
        ({"inertia": (0.1, 0.0)}, "`inertia` must be > 0 about both axes"),
        ({"effort_weight": 0.0}, "`effort_weight` must be > 0"),
        ({"supply_weight": -1.0}, "`supply_weight` must be >= 0"),
        ({"arm": -0.1}, "`arm` must be > 0"),
    ],
)
def test_bad_parameters_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        RotorQuadrotor(**settings)
