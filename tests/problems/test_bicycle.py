"""The bicycle against its formulas on Python floats, and the shape of its Hamiltonian."""

from __future__ import annotations

import math

import pytest
import torch

from jfbcore.problems import Bicycle
from tests.problems import scalar

F64 = torch.float64
# The same formula on floats: a few dozen roundings of 1e-16 each, relative to the largest term.
EXACT = {"rtol": 1e-12, "atol": 1e-12}
BOUND = math.pi / 2 - 0.25

every_size = pytest.mark.parametrize("n_agents", [1, 2, 3, 7])


def random_batch(n_agents: int, seed: int = 0, batch: int = 5):
    """States and costates of order one, controls with steering within its bound."""
    generator = torch.Generator().manual_seed(seed)

    def draw(width):
        return torch.randn(batch, width * n_agents, generator=generator, dtype=F64)

    z, p, u = draw(4), draw(4), draw(2)
    u[:, ::2] = 0.9 * BOUND * torch.tanh(u[:, ::2])
    return z, p, u


def problem_of(n_agents: int, **options) -> Bicycle:
    return Bicycle(n_agents, dtype=F64, **options)


@every_size
class TestAgainstFloats:
    @pytest.mark.parametrize("wheelbase", [0.05, 1.7])
    def test_dynamics(self, n_agents, wheelbase):
        z, _, u = random_batch(n_agents)
        found = problem_of(n_agents, wheelbase=wheelbase).dynamics(0.0, z, u)
        expected = [
            scalar.bicycle_dynamics(a, b, wheelbase)
            for a, b in zip(z.tolist(), u.tolist(), strict=True)
        ]
        torch.testing.assert_close(found, torch.tensor(expected, dtype=F64), **EXACT)

    @pytest.mark.parametrize("weight", [5.0, 0.3, 0.0])
    def test_running_cost(self, n_agents, weight):
        z, _, u = random_batch(n_agents)
        found = problem_of(n_agents, interaction_weight=weight).running_cost(0.0, z, u)
        expected = [
            scalar.bicycle_running_cost(a, b, weight)
            for a, b in zip(z.tolist(), u.tolist(), strict=True)
        ]
        torch.testing.assert_close(found, torch.tensor(expected, dtype=F64), **EXACT)

    def test_terminal_cost(self, n_agents):
        z, _, _ = random_batch(n_agents)
        target = (-0.5, 3.0)
        for found, expected in [
            (problem_of(n_agents), [scalar.bicycle_terminal_cost(a) for a in z.tolist()]),
            (
                problem_of(n_agents, terminal_weight=7.0, target_position=target),
                [scalar.bicycle_terminal_cost(a, 7.0, target) for a in z.tolist()],
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
                lambda a=a, b=b: scalar.bicycle_dynamics(a, b),
                lambda a=a, b=b: scalar.bicycle_running_cost(a, b),
            )
            for a, b, c in zip(z.tolist(), u.tolist(), p.tolist(), strict=True)
        ]
        torch.testing.assert_close(found, torch.tensor(expected, dtype=F64), **EXACT)


def hamiltonian_with(kappa: float):
    """One bicycle whose steering sees H = -kappa tan(delta) - delta^2/2."""
    problem = problem_of(1)
    z = torch.tensor([[0.0, 0.0, 0.0, problem.wheelbase]], dtype=F64)
    h = problem.hamiltonian(0.0, z, torch.tensor([[0.0, 0.0, kappa, 0.0]], dtype=F64))
    torch.testing.assert_close(h.kappa, torch.tensor([[kappa]], dtype=F64))
    return h


def steering_values(h, angles: torch.Tensor) -> torch.Tensor:
    """H over steering angles at zero acceleration."""
    return h.control_part(torch.stack((angles, torch.zeros_like(angles)), -1))


def ascend(h, steps: int = 300) -> torch.Tensor:
    u = torch.zeros(1, 2, dtype=F64)
    for _ in range(steps):
        u = h.project(u + h.plain_step_size * h.grad(u))
    return u


class TestNonconcavity:
    # The interior maximiser solves delta cos^2(delta) = kappa and exists up to
    # max delta cos^2(delta) = 0.41; it is beaten by the bound from kappa = 0.23 on.
    ANGLES = torch.linspace(-BOUND, BOUND, 20_001, dtype=F64)

    @pytest.mark.parametrize("kappa", [0.05, 0.15, 0.22, -0.2])
    def test_small_kappa_interior_maximiser_is_global(self, kappa):
        h = hamiltonian_with(kappa)
        best = self.ANGLES[steering_values(h, self.ANGLES).argmax()].item()
        found = ascend(h)[0, 0].item()
        assert found == pytest.approx(best, abs=BOUND / 10_000)  # one grid cell
        assert abs(found) < 0.5

    @pytest.mark.parametrize("kappa", [0.25, 0.3, 0.4, -0.35])
    def test_medium_kappa_ascent_finds_a_local_maximiser_only(self, kappa):
        h = hamiltonian_with(kappa)
        best = self.ANGLES[steering_values(h, self.ANGLES).argmax()].item()
        assert best == pytest.approx(-math.copysign(BOUND, kappa))
        found = ascend(h, 3000)
        assert abs(found[0, 0].item()) < 0.65
        assert h.grad(found).abs().max() < 1e-10
        assert h.hvp(found, torch.ones_like(found)).max() < 0  # a strict local maximum

    @pytest.mark.parametrize("kappa", [0.42, 1.0, 50.0, -2.0])
    def test_large_kappa_steers_to_the_bound(self, kappa):
        h = hamiltonian_with(kappa)
        found = ascend(h, 3000)
        assert found[0, 0].item() == pytest.approx(-math.copysign(BOUND, kappa), rel=1e-15)
        assert h.interior(found).tolist() == [[False, True]]
        best = self.ANGLES[steering_values(h, self.ANGLES).argmax()].item()
        assert best == pytest.approx(found[0, 0].item())

    def test_curvature_changes_sign(self):
        h = hamiltonian_with(1.0)
        one = torch.tensor([[1.0, 0.0]], dtype=F64)
        assert h.hvp(torch.tensor([[0.5, 0.0]], dtype=F64), one)[0, 0] < 0
        assert h.hvp(torch.tensor([[-1.0, 0.0]], dtype=F64), one)[0, 0] > 0


class TestNewtonDirection:
    def test_inverse_hessian_where_concave(self):
        h = hamiltonian_with(0.2)
        u = torch.tensor([[0.3, -1.0]], dtype=F64)
        r = torch.tensor([[0.7, 0.4]], dtype=F64)
        torch.testing.assert_close(-h.hvp(u, h.newton_direction(u, r)), r, **EXACT)

    def test_bounded_ascent_where_flat_or_convex(self):
        h = hamiltonian_with(1.0)
        for angle in torch.linspace(-BOUND, BOUND, 201, dtype=F64):
            u = torch.stack((angle, angle)).unsqueeze(0)
            ratio = h.newton_direction(u, torch.ones_like(u))
            assert (ratio > 0).all()
            assert (ratio <= 20.0 + 1e-12).all()


def test_steering_is_clamped_and_acceleration_is_free():
    h = problem_of(2).hamiltonian(0.0, *random_batch(2, batch=1)[:2])
    u = torch.tensor([[5.0, 70.0, -5.0, -70.0]], dtype=F64)
    torch.testing.assert_close(
        h.project(u), torch.tensor([[BOUND, 70.0, -BOUND, -70.0]], dtype=F64)
    )
    assert h.interior(u).tolist() == [[False, True, False, True]]
    assert h.interior(0.1 * u).tolist() == [[True, True, True, True]]


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_projected_control_is_not_interior(dtype):
    """An entry that the projection has moved must be recognised as on the bound afterwards."""
    h = Bicycle(1, dtype=dtype).hamiltonian(0.0, torch.ones(1, 4, dtype=dtype), torch.ones(1, 4))
    on_bound = h.project(torch.tensor([[9.0, 0.0]], dtype=dtype))
    assert h.interior(on_bound).tolist() == [[False, True]]


@pytest.mark.parametrize("n_agents", [2, 3, 7])
def test_identical_uncoupled_agents_are_single_ones(n_agents):
    """Without interaction, costs are sums over agents."""
    z, p, u = random_batch(1)
    many = problem_of(n_agents, interaction_weight=0.0)
    one = problem_of(1, interaction_weight=0.0)

    def repeat(x):
        return x.repeat(1, n_agents)

    h_many, h_one = many.hamiltonian(0.0, repeat(z), repeat(p)), one.hamiltonian(0.0, z, p)
    for found, expected in [
        (many.dynamics(0.0, repeat(z), repeat(u)), repeat(one.dynamics(0.0, z, u))),
        (many.running_cost(0.0, repeat(z), repeat(u)), n_agents * one.running_cost(0.0, z, u)),
        (many.terminal_cost(repeat(z)), n_agents * one.terminal_cost(z)),
        (h_many.value(repeat(u)), n_agents * h_one.value(u)),
        (h_many.grad(repeat(u)), repeat(h_one.grad(u))),
        (h_many.curvature_scaling(repeat(u)), repeat(h_one.curvature_scaling(u))),
    ]:
        torch.testing.assert_close(found, expected, **EXACT)


def test_defaults():
    problem = Bicycle()
    expected = {
        "n_agents": 1,
        "wheelbase": 0.05,
        "max_steering": BOUND,
        "interaction_weight": 5.0,
        "terminal_weight": 250.0,
        "target_position": (1.0, 1.0),
        "initial_scale": 0.1,
        "initial_heading": 0.1,
        "initial_speed": 0.1,
        "t_final": 4.0,
        "n_steps": 60,
        "dtype": torch.float32,
        "device": torch.device("cpu"),
        "state_dim": 4,
        "control_dim": 2,
    }
    assert {key: getattr(problem, key) for key in expected} == expected
    hundred = Bicycle(100)
    assert (hundred.state_dim, hundred.control_dim) == (400, 200)


def test_initial_states():
    count = 20_000
    z = Bicycle(2, dtype=F64).sample_initial_states(count, torch.Generator().manual_seed(0))
    agents = z.view(count, 2, 4)
    assert agents[..., 2:].eq(0.1).all()
    # Five standard errors of a mean, 0.1/sqrt(n), and of a deviation, 0.1/sqrt(2n).
    assert agents[..., :2].mean(0).abs().max() < 5 * 0.1 / math.sqrt(count)
    assert (agents[..., :2].std(0) - 0.1).abs().max() < 5 * 0.1 / math.sqrt(2 * count)


def test_initial_control_is_zero():
    assert Bicycle(3).initial_control(0.0, torch.ones(2, 12)).eq(0).all()


@pytest.mark.parametrize(
    ("option", "bad"),
    [("wheelbase", 0.0), ("max_steering", -0.1), ("t_final", -4.0), ("interaction_weight", -5.0)],
)
def test_out_of_range(option, bad):
    with pytest.raises(ValueError, match=rf"`{option}` must be >=? 0, got {bad}"):
        Bicycle(**{option: bad})


@pytest.mark.parametrize("bad", [math.pi / 2, 2.0])
def test_steering_stays_below_a_right_angle(bad):
    with pytest.raises(ValueError, match="`max_steering` must be < pi/2"):
        Bicycle(max_steering=bad)
