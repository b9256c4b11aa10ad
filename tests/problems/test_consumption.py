"""Consumption and saving against its formulas on Python floats, and its maximiser."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from jfbcore.problems import Consumption
from tests.problems import scalar

F64 = torch.float64
# The same formula on floats: a few dozen roundings of 1e-16 each, relative to the largest term.
EXACT = {"rtol": 1e-12, "atol": 1e-12}

every_size = pytest.mark.parametrize("n_goods", [1, 2, 3, 7])


def spread(weight: float, shift: int):
    """A matrix (m, m) for m goods: the identity, and `weight` from every good to a later one."""

    def build(n_goods: int) -> list[list[float]]:
        rows = [[float(i == j) for j in range(n_goods)] for i in range(n_goods)]
        for i in range(n_goods):
            rows[i][(i + shift) % n_goods] += weight * (1 + i)
        return rows

    return build


#: options of the constructor under which the formulas are compared; matrices by number of goods
VARIANTS = {
    "default": {},
    "concave": {"eta": 1.0},
    "released": {"r": 3.0, "delta": 0.1, "gamma": 0.5, "epsilon": 0.1, "max_excess": 1e5},
    "other": {"eta": 0.6, "theta": 0.7, "gamma": 3.5, "r": -0.1, "delta": 0.2, "epsilon": 2.0},
    "coupled": {"A": spread(0.3, 1), "B": spread(-0.1, 2)},
    "coupled-concave": {"A": spread(0.2, 1), "eta": 1.0},
}
every_variant = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)


def random_batch(n_goods: int, seed: int = 0, batch: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """States, costates and controls with positive wealth, habits and excess, prices positive."""
    generator = torch.Generator().manual_seed(seed)

    def draw(width):
        return torch.rand(batch, width, generator=generator, dtype=F64)

    z = 0.05 + 3.0 * draw(1 + n_goods)
    p = torch.cat((-0.5 - draw(1), 0.4 * draw(n_goods) - 0.2), 1)
    return z, p, z[:, 1:] + 0.1 + 2.0 * draw(n_goods)


def problem_of(n_goods: int, **options) -> Consumption:
    return Consumption(n_goods, dtype=F64, **pick(n_goods, options, *options))


def pick(n_goods: int, options: dict, *names: str) -> dict:
    chosen = {name: options[name] for name in names if name in options}
    return {name: x(n_goods) if callable(x) else x for name, x in chosen.items()}


@every_variant
@every_size
class TestAgainstFloats:
    def test_dynamics(self, n_goods, options):
        z, _, u = random_batch(n_goods)
        found = problem_of(n_goods, **options).dynamics(0.3, z, u)
        chosen = pick(n_goods, options, "r", "eta", "theta", "A", "B")
        expected = [
            scalar.consumption_dynamics(a, b, **chosen)
            for a, b in zip(z.tolist(), u.tolist(), strict=True)
        ]
        torch.testing.assert_close(found, torch.tensor(expected, dtype=F64), **EXACT)

    @pytest.mark.parametrize("t", [0.0, 1.7])
    def test_running_cost(self, n_goods, options, t):
        z, _, u = random_batch(n_goods)
        found = problem_of(n_goods, **options).running_cost(t, z, u)
        chosen = pick(n_goods, options, "delta", "gamma")
        expected = [
            scalar.consumption_running_cost(t, a, b, **chosen)
            for a, b in zip(z.tolist(), u.tolist(), strict=True)
        ]
        torch.testing.assert_close(found, torch.tensor(expected, dtype=F64), **EXACT)

    def test_terminal_cost(self, n_goods, options):
        z, _, _ = random_batch(n_goods)
        found = problem_of(n_goods, **options).terminal_cost(z)
        chosen = pick(n_goods, options, "epsilon", "gamma")
        expected = [scalar.consumption_terminal_cost(a, **chosen) for a in z.tolist()]
        torch.testing.assert_close(found, torch.tensor(expected, dtype=F64), **EXACT)

    def test_hamiltonian(self, n_goods, options):
        z, p, u = random_batch(n_goods)
        found = problem_of(n_goods, **options).hamiltonian(1.2, z, p).value(u)
        flow = pick(n_goods, options, "r", "eta", "theta", "A", "B")
        utility = pick(n_goods, options, "delta", "gamma")
        expected = [
            scalar.hamiltonian(
                c,
                lambda a=a, b=b: scalar.consumption_dynamics(a, b, **flow),
                lambda a=a, b=b: scalar.consumption_running_cost(1.2, a, b, **utility),
            )
            for a, b, c in zip(z.tolist(), u.tolist(), p.tolist(), strict=True)
        ]
        torch.testing.assert_close(found, torch.tensor(expected, dtype=F64), **EXACT)

    def test_gradient_and_hessian(self, n_goods, options):
        z, p, u = (x.requires_grad_() for x in random_batch(n_goods))
        problem = problem_of(n_goods, **options)
        value = -(p * problem.dynamics(0.4, z, u)).sum(1) - problem.running_cost(0.4, z, u)
        (expected,) = torch.autograd.grad(value.sum(), u, create_graph=True)
        h = problem.hamiltonian(0.4, z, p)
        torch.testing.assert_close(h.grad(u), expected, rtol=1e-11, atol=1e-11)
        v = torch.linspace(-1.0, 1.0, u.numel(), dtype=F64).view_as(u)
        found = torch.autograd.grad(h.grad(u), (u, z, p), v)
        for a, b in zip(found, torch.autograd.grad(expected, (u, z, p), v), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(h.hvp(u, v), found[0], rtol=1e-11, atol=1e-11)


@every_size
class TestConcaveCase:
    """With eta = 1 the dynamics are affine in the control and H has a closed-form maximiser."""

    def test_dynamics_are_affine_in_the_control(self, n_goods):
        z, _, u = random_batch(n_goods)
        _, _, v = random_batch(n_goods, seed=1)
        problem = problem_of(n_goods, eta=1.0)

        def linear_part(u):
            return problem.dynamics(0.0, z, u) - problem.dynamics(0.0, z, torch.zeros_like(u))

        torch.testing.assert_close(
            linear_part(2.0 * u + 3.0 * v), 2.0 * linear_part(u) + 3.0 * linear_part(v), **EXACT
        )

    @pytest.mark.parametrize("gamma", [0.5, 2.0])
    def test_closed_form(self, n_goods, gamma):
        z, p, _ = random_batch(n_goods)
        h = problem_of(n_goods, eta=1.0, gamma=gamma).hamiltonian(0.9, z, p)
        found = h.closed_form()
        assert h.interior(found).all()
        # The marginal utility and the price, of order one, cancel.
        assert h.grad(found).abs().max() < 1e-12
        for good, price in enumerate((p[:, 1:] - p[:, :1])[0].tolist()):
            discounted = price * math.exp(0.01 * 0.9)
            expected = z[0, 1 + good].item() + discounted ** (-1.0 / gamma)
            assert found[0, good].item() == pytest.approx(expected, rel=1e-13)

    def test_closed_form_stays_within_the_bounds(self, n_goods):
        z, p, _ = random_batch(n_goods)
        h = problem_of(n_goods, eta=1.0, max_excess=0.5).hamiltonian(0.0, z, p)
        torch.testing.assert_close(h.closed_form(), z[:, 1:] + 0.5, **EXACT)
        # A price of zero or below: more is always better.
        free = problem_of(n_goods, eta=1.0).hamiltonian(0.0, z, -p)
        torch.testing.assert_close(free.closed_form(), z[:, 1:] + 100.0, **EXACT)

    def test_control_coefficient(self, n_goods):
        z, p, _ = random_batch(n_goods)
        found = problem_of(n_goods, eta=1.0).hamiltonian(0.0, z, p).control_coefficient()
        torch.testing.assert_close(found, p[:, 1:] - p[:, :1], **EXACT)

    def test_hamiltonian_is_concave(self, n_goods):
        z, p, u = random_batch(n_goods)
        h = problem_of(n_goods, eta=1.0).hamiltonian(0.0, z, p)
        assert (h.hvp(u, torch.ones_like(u)) < 0).all()
        assert h.curvature_scaling(u).isfinite().all()

    def test_newton_direction_is_the_inverse_hessian(self, n_goods):
        z, p, u = random_batch(n_goods)
        h = problem_of(n_goods, eta=1.0).hamiltonian(0.0, z, p)
        r = torch.linspace(-1.0, 1.0, u.numel(), dtype=F64).view_as(u)
        torch.testing.assert_close(-h.hvp(u, h.newton_direction(u, r)), r, **EXACT)


def test_identities_given_in_full_change_nothing():
    z, p, u = random_batch(3)
    whole = problem_of(3, A=torch.eye(3), B=torch.eye(3, dtype=F64).numpy())
    plain = problem_of(3)
    torch.testing.assert_close(whole.dynamics(0.0, z, u), plain.dynamics(0.0, z, u), rtol=0, atol=0)
    found, expected = (x.hamiltonian(0.2, z, p) for x in (whole, plain))
    torch.testing.assert_close(found.value(u), expected.value(u), rtol=0, atol=0)
    torch.testing.assert_close(found.grad(u), expected.grad(u), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_coupled_habits_in_the_dtype_of_the_state(dtype):
    """One problem serves both, whichever is asked first: its matrices follow the tensors."""
    problem = problem_of(3, A=spread(0.3, 1), B=spread(-0.1, 2))
    for wanted in (dtype, torch.float32, F64):
        z, p, u = (x.to(wanted) for x in random_batch(3))
        assert problem.dynamics(0.0, z, u).dtype == wanted
        assert problem.hamiltonian(0.0, z, p).grad(u).dtype == wanted


def test_no_closed_form_for_a_nonlinear_habit():
    z, p, _ = random_batch(2)
    assert problem_of(2).hamiltonian(0.0, z, p).closed_form() is None


def bisect_control(price_wealth: float, price_habit: float, habit: float, discount: float) -> float:
    """The stationary consumption of one good at gamma = 2, eta = 0.9, on floats.

    The excess w solves discount w^-2 = eta p_h u^(eta-1) - p_x with u = habit + w; at the
    costates used here the difference changes sign once.
    """
    low, high = 1e-6, 100.0
    for _ in range(200):
        w = 0.5 * (low + high)
        price = 0.9 * price_habit * (habit + w) ** -0.1 - price_wealth
        if discount * w**-2.0 > price:
            low = w
        else:
            high = w
    return habit + low


@every_size
class TestMaximiser:
    def ascend(self, h, u: Tensor, steps: int) -> Tensor:
        for _ in range(steps):
            u = h.project(u + h.curvature_scaling(u) * h.grad(u))
        return u

    def test_scaled_ascent_finds_it(self, n_goods):
        z, p, u = random_batch(n_goods)
        h = problem_of(n_goods).hamiltonian(0.5, z, p)
        # The rate is at most (1 - eta)/gamma = 0.05, so that ten steps gain thirteen digits.
        found = self.ascend(h, u, 20)
        expected = [
            [
                bisect_control(q[0], q[1 + k], a[1 + k], math.exp(-0.01 * 0.5))
                for k in range(n_goods)
            ]
            for a, q in zip(z.tolist(), p.tolist(), strict=True)
        ]
        torch.testing.assert_close(found, torch.tensor(expected, dtype=F64), **EXACT)
        assert (h.hvp(found, torch.ones_like(found)) < 0).all()

    @pytest.mark.parametrize("start", [1e-6, 1e-2, 90.0])
    def test_scaled_ascent_finds_it_from_afar(self, n_goods, start):
        z, p, u = random_batch(n_goods)
        h = problem_of(n_goods).hamiltonian(0.5, z, p)
        far = self.ascend(h, z[:, 1:] + start, 30)
        torch.testing.assert_close(far, self.ascend(h, u, 30), **EXACT)

    def test_contraction_rate(self, n_goods):
        z, p, u = random_batch(n_goods)
        h = problem_of(n_goods).hamiltonian(0.5, z, p)
        u = self.ascend(h, u, 20).requires_grad_()
        # The map acts on each good alone, so its Jacobian is diagonal.
        slope = 1.0 + h.curvature_scaling(u) * h.hvp(u, torch.ones_like(u))
        # A tolerance for the limit 1/gamma that replaces 0/0 within 1e-5 of the fixed point.
        assert slope.abs().max() <= (1.0 - 0.9) / 2.0 + 1e-4

    def test_newton_direction_is_the_inverse_hessian_there(self, n_goods):
        z, p, u = random_batch(n_goods)
        h = problem_of(n_goods).hamiltonian(0.5, z, p)
        u = self.ascend(h, u, 20)
        r = torch.linspace(-1.0, 1.0, u.numel(), dtype=F64).view_as(u)
        torch.testing.assert_close(-h.hvp(u, h.newton_direction(u, r)), r, **EXACT)


def test_not_concave_where_habits_are_dear():
    """With eta < 1 and a high price of habit, H bends upward at large consumption."""
    z = torch.tensor([[25.0, 0.05]], dtype=F64)
    h = problem_of(1).hamiltonian(0.0, z, torch.tensor([[-0.01, 1.0]], dtype=F64))
    u, one = torch.tensor([[50.0]], dtype=F64), torch.ones(1, 1, dtype=F64)
    assert h.hvp(u, one).item() > 0
    assert (h.newton_direction(u, one) > 0).all()


class TestBounds:
    def hamiltonian(self, dtype: torch.dtype, **options):
        problem = Consumption(3, dtype=dtype, **options)
        z = 5.0 * torch.rand(500, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
        z = z.to(dtype)
        return problem.hamiltonian(0.0, z, -torch.ones_like(z)), z[:, 1:]

    @pytest.mark.parametrize("dtype", [torch.float32, F64])
    def test_projection(self, dtype):
        h, habits = self.hamiltonian(dtype)
        # One rounding of a sum of size 100, then of its difference.
        tolerance = 4 * 100 * torch.finfo(dtype).eps
        excess = h.project(habits + 500.0) - habits
        torch.testing.assert_close(excess, torch.full_like(excess, 100.0), rtol=0, atol=tolerance)
        tolerance = 4 * 5 * torch.finfo(dtype).eps
        excess = h.project(habits - 3.0) - habits
        torch.testing.assert_close(excess, torch.full_like(excess, 1e-6), rtol=0, atol=tolerance)
        between = habits + 7.0
        torch.testing.assert_close(h.project(between), between)
        assert h.interior(between).all()

    @pytest.mark.parametrize("side", [500.0, -3.0])
    @pytest.mark.parametrize("dtype", [torch.float32, F64])
    def test_a_projected_control_is_not_interior(self, dtype, side):
        """An entry that the projection has moved must be recognised as on the bound afterwards.

        Otherwise the residual of a control on the bound is the whole gradient, and implicit
        differentiation treats it as free.
        """
        h, habits = self.hamiltonian(dtype)
        assert not h.interior(h.project(habits + side)).any()

    @pytest.mark.parametrize("habit", [0.01, 1.0, 20.0, 40.0, 100.0])
    def test_the_smallest_excess_survives_single_precision(self, habit):
        """Marginal utility is finite wherever the projection leads."""
        problem = Consumption(1)
        z = torch.tensor([[10.0, habit]])
        h = problem.hamiltonian(0.0, z, torch.tensor([[-1.0, 0.0]]))
        u = h.project(torch.zeros(1, 1))
        assert (u > z[:, 1:]).all()
        assert h.grad(u).isfinite().all()
        assert problem.running_cost(0.0, z, u).isfinite().all()


class TestTerminalCostInDebt:
    def test_is_the_tangent_below_the_floor(self):
        problem = problem_of(1, wealth_floor=0.05)
        z = torch.tensor([[0.05, 0.1], [0.0, 0.1], [-10.0, 0.1]], dtype=F64, requires_grad=True)
        cost = problem.terminal_cost(z)
        at_floor, slope = 5.0 / 0.05, -5.0 / 0.05**2  # -eps x^-1/(-1) and its derivative
        expected = [at_floor, at_floor - 0.05 * slope, at_floor - 10.05 * slope]
        torch.testing.assert_close(cost, torch.tensor(expected, dtype=F64), **EXACT)
        (grad,) = torch.autograd.grad(cost[1:].sum(), z)
        torch.testing.assert_close(grad[1:, 0], torch.full((2,), slope, dtype=F64), **EXACT)

    def test_decreases_with_wealth(self):
        wealth = torch.linspace(-5.0, 5.0, 1001, dtype=F64)
        cost = problem_of(1).terminal_cost(torch.stack((wealth, torch.ones_like(wealth)), 1))
        assert (cost.diff() < 0).all()
        assert cost.isfinite().all()


def test_identical_goods_are_single_ones():
    """Goods share wealth alone: with wealth per good equal, every good does what one would."""
    z, p, u = random_batch(1)
    many, one = problem_of(5), problem_of(1)

    def repeat(x):
        return torch.cat((x[:, :1], x[:, 1:].repeat(1, 5)), 1)

    h_many, h_one = many.hamiltonian(0.3, repeat(z), repeat(p)), one.hamiltonian(0.3, z, p)
    u_many = u.repeat(1, 5)
    habits = many.dynamics(0.3, repeat(z), u_many)[:, 1:]
    torch.testing.assert_close(habits, one.dynamics(0.3, z, u)[:, 1:].repeat(1, 5), **EXACT)
    torch.testing.assert_close(
        many.running_cost(0.3, repeat(z), u_many), 5.0 * one.running_cost(0.3, z, u), **EXACT
    )
    torch.testing.assert_close(h_many.grad(u_many), h_one.grad(u).repeat(1, 5), **EXACT)
    torch.testing.assert_close(h_many.control_part(u_many), 5.0 * h_one.control_part(u), **EXACT)


def test_defaults():
    problem = Consumption()
    expected = {
        "n_goods": 1,
        "n_agents": 1,
        "r": 0.3,
        "delta": 0.01,
        "gamma": 2.0,
        "epsilon": 5.0,
        "eta": 0.9,
        "theta": 0.9,
        "A": None,
        "B": None,
        "initial_wealth": 25.0,
        "initial_habit": 0.01,
        "initial_scale": 0.1,
        "wealth_floor": 0.05,
        "min_excess": 1e-6,
        "max_excess": 100.0,
        "t_final": 2.0,
        "n_steps": 100,
        "dtype": torch.float32,
        "device": torch.device("cpu"),
        "state_dim": 2,
        "control_dim": 1,
    }
    assert {key: getattr(problem, key) for key in expected} == expected
    hundred = Consumption(100)
    assert (hundred.state_dim, hundred.control_dim) == (101, 100)


def test_released_variant():
    problem = Consumption.released()
    found = [getattr(problem, key) for key in ("r", "delta", "gamma", "epsilon", "eta", "theta")]
    assert found == [3.0, 0.1, 0.5, 0.1, 0.9, 0.9]
    assert Consumption.released(2, gamma=2.0, n_steps=7).gamma == 2.0
    assert Consumption.released(n_goods=2).n_goods == 2


def test_initial_states():
    count = 20_000
    z = Consumption(3, dtype=F64).sample_initial_states(count, torch.Generator().manual_seed(0))
    draw = (z - torch.tensor([25.0, 0.01, 0.01, 0.01], dtype=F64)) / 0.1
    assert draw.min() >= -1e-12  # 25 + x - 25 loses a few bits
    assert draw.max() <= 1.0 + 1e-12
    # Five standard errors of the mean of a uniform variable, and roughly of its variance.
    error = math.sqrt(1 / 12 / count)
    assert (draw.mean(0) - 0.5).abs().max() < 5 * error
    assert (draw.var(0) - 1 / 12).abs().max() < 5 * error


@pytest.mark.parametrize("n_goods", [1, 7, 100])
def test_initial_control_is_one_excess_that_wealth_can_pay_for(n_goods):
    problem = problem_of(n_goods)
    z = problem.sample_initial_states(3, torch.Generator().manual_seed(0))
    for i in range(problem.n_steps):
        u = problem.initial_control(i * problem.time_step, z)
        excess = u - z[:, 1:]
        torch.testing.assert_close(excess, torch.full_like(excess, problem.nominal_excess))
        z = z + problem.time_step * problem.dynamics(i * problem.time_step, z, u)
        assert (z > 0).all()


def test_initial_costate_makes_the_initial_control_stationary():
    """With habits free, marginal utility at the nominal excess is the price of wealth."""
    problem = problem_of(4)
    z, _, _ = random_batch(4)
    h = problem.hamiltonian(0.0, z, problem.initial_costate().expand_as(z))
    assert h.grad(problem.initial_control(0.0, z)).abs().max() < 1e-13


class TestArguments:
    def test_number_of_goods(self):
        assert Consumption(4).n_goods == Consumption(n_goods=4).n_goods == 4
        assert Consumption(n_agents=4).n_goods == 4
        with pytest.raises(TypeError, match="`n_agents` is another name for `n_goods`"):
            Consumption(4, n_agents=4)
        with pytest.raises(ValueError, match="`n_goods` must be >= 1, got 0"):
            Consumption(0)
        with pytest.raises(TypeError, match="`n_goods` must be an integer"):
            Consumption("3")

    @pytest.mark.parametrize(
        ("option", "bad", "message"),
        [
            ("gamma", 1.0, "`gamma` must differ from 1"),
            ("gamma", 0.0, "`gamma` must be > 0"),
            ("eta", 1.5, r"`eta` must be in \(0, 1\], got 1.5"),
            ("eta", 0.0, "`eta` must be > 0"),
            ("theta", -1.0, "`theta` must be > 0"),
            ("initial_wealth", 0.0, "`initial_wealth` must be > 0"),
            ("initial_habit", -0.1, "`initial_habit` must be > 0"),
            ("wealth_floor", 0.0, "`wealth_floor` must be > 0"),
            ("min_excess", 0.0, "`min_excess` must be > 0"),
            ("max_excess", 1e-7, "`max_excess` must be > `min_excess`"),
        ],
    )
    def test_out_of_range(self, option, bad, message):
        with pytest.raises(ValueError, match=message):
            Consumption(**{option: bad})

    @pytest.mark.parametrize("option", ["A", "B"])
    @pytest.mark.parametrize(
        ("bad", "error", "message"),
        [
            (2.0, TypeError, "must be a 2 x 2 matrix of numbers, got 2.0"),
            (torch.eye(3), ValueError, "must be a 2 x 2 matrix of numbers, got 3 rows"),
            ([[1.0, 0.0], [0.0]], ValueError, r"\[1\]` must have 2 entries"),
            ([[1.0, 0.0], [0.0, math.nan]], ValueError, r"\[1\]` must be finite, got nan"),
            ([1.0, 1.0], TypeError, r"\[0\]` must be a sequence of 2 numbers, got 1.0"),
        ],
    )
    def test_matrices(self, option, bad, error, message):
        with pytest.raises(error, match=f"`{option}.*{message}"):
            Consumption(2, **{option: bad})
