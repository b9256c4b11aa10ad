"""The quadrotor against its formulas on Python floats, and its closed-form control."""

from __future__ import annotations

import math

import pytest
import torch

from jfbcore.problems import Quadrotor
from tests.problems import scalar

F64 = torch.float64
# The same formula on floats: a few dozen roundings of 1e-16 each, relative to the largest term.
EXACT = {"rtol": 1e-12, "atol": 1e-12}

every_size = pytest.mark.parametrize("n_agents", [1, 2, 3, 7])


def random_batch(n_agents: int, seed: int = 0, batch: int = 5):
    """States, costates and controls of order one, far from anything special."""
    generator = torch.Generator().manual_seed(seed)

    def draw(width):
        return torch.randn(batch, width * n_agents, generator=generator, dtype=F64)

    return draw(12), draw(12), draw(4)


def problem_of(n_agents: int, **options) -> Quadrotor:
    return Quadrotor(n_agents, dtype=F64, **options)


@every_size
class TestAgainstFloats:
    def test_dynamics(self, n_agents):
        z, _, u = random_batch(n_agents)
        found = problem_of(n_agents).dynamics(0.0, z, u)
        expected = [
            scalar.quadrotor_dynamics(a, b) for a, b in zip(z.tolist(), u.tolist(), strict=True)
        ]
        torch.testing.assert_close(found, torch.tensor(expected, dtype=F64), **EXACT)

    def test_dynamics_with_other_parameters(self, n_agents):
        z, _, u = random_batch(n_agents)
        found = problem_of(n_agents, mass=1.3, g=9.81).dynamics(0.0, z, u)
        expected = [
            scalar.quadrotor_dynamics(a, b, mass=1.3, g=9.81)
            for a, b in zip(z.tolist(), u.tolist(), strict=True)
        ]
        torch.testing.assert_close(found, torch.tensor(expected, dtype=F64), **EXACT)

    @pytest.mark.parametrize("weight", [0.1, 3.0, 0.0])
    def test_running_cost(self, n_agents, weight):
        z, _, u = random_batch(n_agents)
        found = problem_of(n_agents, interaction_weight=weight).running_cost(0.0, z, u)
        expected = [
            scalar.quadrotor_running_cost(a, b, weight)
            for a, b in zip(z.tolist(), u.tolist(), strict=True)
        ]
        torch.testing.assert_close(found, torch.tensor(expected, dtype=F64), **EXACT)

    def test_terminal_cost(self, n_agents):
        z, _, _ = random_batch(n_agents)
        target = (1.0, -2.0, 0.5)
        for found, expected in [
            (problem_of(n_agents), [scalar.quadrotor_terminal_cost(a) for a in z.tolist()]),
            (
                problem_of(n_agents, terminal_weight=7.0, target_position=target),
                [scalar.quadrotor_terminal_cost(a, 7.0, target) for a in z.tolist()],
            ),
        ]:
            torch.testing.assert_close(
                found.terminal_cost(z), torch.tensor(expected, dtype=F64), **EXACT
            )

    def test_hamiltonian(self, n_agents):
        z, p, u = random_batch(n_agents)
        found = problem_of(n_agents).hamiltonian(0.0, z, p).value(u)
        expected = [
            scalar.hamiltonian(
                c,
                lambda a=a, b=b: scalar.quadrotor_dynamics(a, b),
                lambda a=a, b=b: scalar.quadrotor_running_cost(a, b),
            )
            for a, b, c in zip(z.tolist(), u.tolist(), p.tolist(), strict=True)
        ]
        torch.testing.assert_close(found, torch.tensor(expected, dtype=F64), **EXACT)

    def test_control_coefficient(self, n_agents):
        z, p, _ = random_batch(n_agents)
        found = problem_of(n_agents).hamiltonian(0.0, z, p).control_coefficient()
        expected = [
            scalar.quadrotor_control_coefficient(a, b)
            for a, b in zip(z.tolist(), p.tolist(), strict=True)
        ]
        torch.testing.assert_close(found, torch.tensor(expected, dtype=F64), **EXACT)


@every_size
def test_dynamics_are_affine_in_the_control(n_agents):
    z, _, u = random_batch(n_agents)
    _, _, v = random_batch(n_agents, seed=1)
    problem = problem_of(n_agents)

    def linear_part(u):
        return problem.dynamics(0.0, z, u) - problem.dynamics(0.0, z, torch.zeros_like(u))

    torch.testing.assert_close(
        linear_part(2.0 * u - 3.0 * v), 2.0 * linear_part(u) - 3.0 * linear_part(v), **EXACT
    )


@every_size
def test_hamiltonian_is_strictly_concave(n_agents):
    z, p, u = random_batch(n_agents)
    eigenvalues = torch.linalg.eigvalsh(dense_hessian(problem_of(n_agents), z, p, u))
    assert (eigenvalues < 0).all()


def dense_hessian(problem: Quadrotor, z, p, u) -> torch.Tensor:
    """(batch, m, m), one column per Hessian-vector product."""
    h = problem.hamiltonian(0.0, z, p)
    columns = [
        h.hvp(u, torch.eye(u.shape[1], dtype=F64)[k].expand_as(u)) for k in range(u.shape[1])
    ]
    return torch.stack(columns, -1)


@every_size
def test_newton_direction_is_the_inverse_hessian(n_agents):
    z, p, u = random_batch(n_agents)
    _, _, r = random_batch(n_agents, seed=1)
    problem = problem_of(n_agents)
    expected = torch.linalg.solve(-dense_hessian(problem, z, p, u), r.unsqueeze(-1)).squeeze(-1)
    # The Hessian's condition number is 1 + |u|^2/N, below 20 here.
    torch.testing.assert_close(
        problem.hamiltonian(0.0, z, p).newton_direction(u, r), expected, rtol=1e-11, atol=1e-12
    )


@every_size
class TestClosedForm:
    # from |c| = 1e-4, where u = -N c, to 1e6, where Lambert's function is near 30
    @pytest.mark.parametrize("scale", [1e-4, 1.0, 100.0, 1e6])
    def test_against_bisection(self, n_agents, scale):
        z, p, _ = random_batch(n_agents)
        h = problem_of(n_agents).hamiltonian(0.0, z, scale * p)
        found = h.closed_form()
        expected = [scalar.quadrotor_optimal_control(c) for c in h.control_coefficient().tolist()]
        # Both solve a scalar equation to the last few bits; exp(-W/2) turns an absolute error
        # of W (below 40, so 1e-14) into a relative one.
        torch.testing.assert_close(
            found, torch.tensor(expected, dtype=F64), rtol=1e-12, atol=1e-14 * scale
        )
        # The residual is the difference of two terms of size |c|.
        residual = h.grad(found).norm(dim=1) / h.control_coefficient().norm(dim=1)
        assert residual.max() < 1e-12

    def test_is_the_maximum(self, n_agents):
        z, p, _ = random_batch(n_agents)
        h = problem_of(n_agents).hamiltonian(0.0, z, p)
        best = h.closed_form()
        for seed in range(5):
            _, _, step = random_batch(n_agents, seed=seed + 1)
            assert (h.value(best + 0.1 * step) < h.value(best)).all()

    def test_zero_costate_gives_zero_control(self, n_agents):
        z, p, _ = random_batch(n_agents)
        found = problem_of(n_agents).hamiltonian(0.0, z, 0.0 * p).closed_form()
        assert found.eq(0).all()

    def test_scaled_ascent_contracts_at_the_maximum(self, n_agents):
        """u + D grad(u) has the Jacobian I + D Hessian at u*: spectral radius s/(1+s) < 1."""
        z, p, _ = random_batch(n_agents)
        problem = problem_of(n_agents)
        h = problem.hamiltonian(0.0, z, p)
        u = h.closed_form()
        eye = torch.eye(problem.control_dim, dtype=F64)
        jacobian = eye + h.curvature_scaling(u).unsqueeze(-1) * dense_hessian(problem, z, p, u)
        radius = torch.linalg.eigvals(jacobian).abs().amax(1)
        s = u.square().sum(1) / (2 * n_agents)
        torch.testing.assert_close(radius, s / (1 + s), rtol=1e-8, atol=1e-10)

    # far beyond what training visits; plain ascent would overflow in its first step
    @pytest.mark.parametrize("scale", [1.0, 1e3, 1e6])
    def test_scaled_ascent_from_zero_reaches_the_maximum(self, n_agents, scale):
        z, p, _ = random_batch(n_agents)
        h = problem_of(n_agents).hamiltonian(0.0, z, scale * p)
        u = torch.zeros_like(h.control_coefficient())
        for _ in range(2000):
            u = u + h.curvature_scaling(u) * h.grad(u)
        torch.testing.assert_close(u, h.closed_form(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("n_agents", [2, 3, 7])
def test_identical_uncoupled_agents_are_single_ones(n_agents):
    """Without interaction, costs are means over agents: exp(N |u|^2 / 2N) is one agent's."""
    z, p, u = random_batch(1)
    many = problem_of(n_agents, interaction_weight=0.0)
    one = problem_of(1, interaction_weight=0.0)

    def repeat(x):
        return x.repeat(1, n_agents)

    # A value function that is a mean over agents has 1/N of the costate per agent.
    h_many = many.hamiltonian(0.0, repeat(z), repeat(p) / n_agents)
    h_one = one.hamiltonian(0.0, z, p)
    for found, expected in [
        (many.dynamics(0.0, repeat(z), repeat(u)), repeat(one.dynamics(0.0, z, u))),
        (many.running_cost(0.0, repeat(z), repeat(u)), one.running_cost(0.0, z, u)),
        (many.terminal_cost(repeat(z)), one.terminal_cost(z)),
        (h_many.value(repeat(u)), h_one.value(u)),
        (h_many.grad(repeat(u)), repeat(h_one.grad(u)) / n_agents),
        (h_many.closed_form(), repeat(h_one.closed_form())),
    ]:
        torch.testing.assert_close(found, expected, **EXACT)


def test_defaults():
    problem = Quadrotor()
    expected = {
        "n_agents": 1,
        "mass": 0.5,
        "g": 1.0,
        "interaction_weight": 0.1,
        "terminal_weight": 1000.0,
        "target_position": (2.0, 2.0, 2.0),
        "initial_scale": 0.1,
        "t_final": 4.5,
        "n_steps": 160,
        "dtype": torch.float32,
        "device": torch.device("cpu"),
        "state_dim": 12,
        "control_dim": 4,
    }
    assert {key: getattr(problem, key) for key in expected} == expected
    hundred = Quadrotor(100)
    assert (hundred.state_dim, hundred.control_dim) == (1200, 400)


def test_initial_states():
    count = 20_000
    z = Quadrotor(2, dtype=F64).sample_initial_states(count, torch.Generator().manual_seed(0))
    agents = z.view(count, 2, 12)
    assert agents[..., 6:].eq(0).all()
    # Five standard errors of a mean, 0.1/sqrt(n), and of a deviation, 0.1/sqrt(2n).
    assert agents[..., :6].mean(0).abs().max() < 5 * 0.1 / math.sqrt(count)
    assert (agents[..., :6].std(0) - 0.1).abs().max() < 5 * 0.1 / math.sqrt(2 * count)
    correlation = torch.corrcoef(agents[..., :6].reshape(count, 12).T) - torch.eye(12, dtype=F64)
    assert correlation.abs().max() < 5 / math.sqrt(count)
    wide = Quadrotor(2, dtype=F64, initial_scale=0.4)
    torch.testing.assert_close(
        wide.sample_initial_states(count, torch.Generator().manual_seed(0)), 4.0 * z, **EXACT
    )


def test_initial_control_is_zero():
    assert Quadrotor(3).initial_control(0.0, torch.ones(2, 36)).eq(0).all()


@pytest.mark.parametrize(
    ("option", "bad"),
    [
        ("mass", 0.0),
        ("mass", -0.5),
        ("t_final", 0.0),
        ("interaction_weight", -0.1),
        ("terminal_weight", -1.0),
        ("initial_scale", -0.1),
    ],
)
def test_out_of_range(option, bad):
    with pytest.raises(ValueError, match=rf"`{option}` must be >=? 0, got {bad}"):
        Quadrotor(**{option: bad})
