"""Inner solvers: what they return, when they stop, how fast they are, and what they refuse."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from baselines import TorchDEQ, Unrolled, UnrolledCheckpoint
from jfbcore.maps import MAPS, FixedPointMap, PlainMap, ScaledMap
from jfbcore.problems import Bicycle, Consumption, Hamiltonian, Quadrotor
from jfbcore.solvers import SOLVERS, Anderson, ClosedForm, Newton, Picard, Solver, Status

F64 = torch.float64
every_solver = pytest.mark.parametrize("name", SOLVERS)
ITERATIVE = [name for name, solver in SOLVERS.items() if solver is not ClosedForm]
every_iterative = pytest.mark.parametrize("name", ITERATIVE)


class Quadratic(Hamiltonian):
    """H = <b, u> - <u, A u>/2 with its maximum at A^-1 b: everything about it is known."""

    plain_step_size = 1.0

    def __init__(self, eigenvalues: list[float], batch: int = 3, *, bound: float = math.inf):
        random = torch.Generator().manual_seed(0)
        m = len(eigenvalues)
        q, _ = torch.linalg.qr(torch.randn(m, m, generator=random, dtype=F64))
        self.matrix = (q * torch.tensor(eigenvalues, dtype=F64)) @ q.T
        self.b = torch.randn(batch, m, generator=random, dtype=F64)
        self.bound, self.constrained = bound, math.isfinite(bound)
        self.gradients = 0

    def maximiser(self) -> Tensor:
        return torch.linalg.solve(self.matrix, self.b.T).T

    def control_part(self, u: Tensor) -> Tensor:
        return (self.b * u).sum(1) - 0.5 * (u * (u @ self.matrix)).sum(1)

    def constant_part(self) -> Tensor:
        return torch.zeros(self.b.shape[0], dtype=F64)

    def grad(self, u: Tensor) -> Tensor:
        self.gradients += 1
        return self.b - u @ self.matrix

    def hvp(self, u: Tensor, v: Tensor) -> Tensor:
        return -v @ self.matrix

    def curvature_scaling(self, u: Tensor) -> Tensor:
        return torch.full((u.shape[0], 1), 1.0 / torch.linalg.eigvalsh(self.matrix).max().item())

    def newton_direction(self, u: Tensor, r: Tensor) -> Tensor:
        return torch.linalg.solve(self.matrix, r.T).T

    def project(self, u: Tensor) -> Tensor:
        return u.clamp(-self.bound, self.bound) if self.constrained else u

    def interior(self, u: Tensor) -> Tensor | None:
        return u.abs() < self.bound if self.constrained else None

    def closed_form(self) -> Tensor:
        return self.maximiser()

    def start(self) -> Tensor:
        return torch.zeros_like(self.b)


#: a map of rate 1 - step * 0.05: slow
SLOW = [0.05, 0.3, 0.5, 0.8, 1.0, 1.2]


def build(name: str, **settings) -> Solver:
    return SOLVERS[name](**settings)


def error(found: Tensor, expected: Tensor) -> float:
    return (found - expected).abs().max().item()


# ---------------------------------------------------------------------------------------------
# tolerance


@every_solver
@pytest.mark.parametrize("tolerance", [1e-2, 1e-6, 1e-11])
def test_stops_at_its_tolerance(name, tolerance):
    h = Quadratic(SLOW)
    solver = build(name, tolerance=tolerance, max_iterations=2000)
    found = solver.solve(PlainMap().bind(h), h.start())
    residual = torch.linalg.vector_norm(h.b - found.control @ h.matrix, dim=1)
    torch.testing.assert_close(found.residual, residual, rtol=1e-6, atol=1e-14)
    assert (residual <= tolerance).all()
    assert found.status is Status.CONVERGED
    assert found.converged.tolist() == [True] * 3
    assert found.tolerance == tolerance
    # |u - u*| <= |residual| / (smallest eigenvalue 0.05), plus rounding of the reference
    assert error(found.control, h.maximiser()) <= tolerance / 0.05 + 1e-13


@pytest.mark.parametrize("tolerance", [1e-2, 1e-5])
def test_picard_stops_as_early_as_it_may(tolerance):
    h = Quadratic(SLOW)
    found = Picard(tolerance=tolerance, max_iterations=2000).solve(PlainMap().bind(h), h.start())
    u, count = h.start(), 0
    while torch.linalg.vector_norm(h.b - u @ h.matrix, dim=1).max() > tolerance:
        u, count = u + (h.b - u @ h.matrix), count + 1
    assert found.iterations == count
    # One gradient per iteration and one for the last test: nothing is evaluated twice.
    assert h.gradients == count + 1
    torch.testing.assert_close(found.control, u, rtol=1e-12, atol=1e-13)


@every_solver
def test_a_solved_problem_takes_no_iteration(name):
    h = Quadratic(SLOW)
    found = build(name, tolerance=1e-8).solve(PlainMap().bind(h), h.maximiser())
    assert found.iterations == 0
    assert found.status is Status.CONVERGED
    torch.testing.assert_close(found.control, h.maximiser())


@every_solver
def test_no_graph_and_inputs_left_alone(name):
    h = Quadratic(SLOW)
    h.b.requires_grad_()
    start = h.start().requires_grad_()
    before = start.detach().clone()
    found = build(name, tolerance=1e-3).solve(PlainMap().bind(h), start)
    assert not found.residual.requires_grad
    assert not found.control.requires_grad or found.control is start
    assert torch.equal(start.detach(), before)


@every_iterative
def test_max_iterations_is_a_status(name):
    h = Quadratic(SLOW)
    # Newton solves a quadratic in one step, so it is given none that is long enough.
    problem = Quadrotor(2, dtype=F64)
    z = problem.sample_initial_states(3, torch.Generator().manual_seed(0))
    p = 3.0 * torch.randn(z.shape, generator=torch.Generator().manual_seed(1), dtype=F64)
    hamiltonian = problem.hamiltonian(0.0, z, p) if name == "newton" else h
    start = problem.initial_control(0.0, z) if name == "newton" else h.start()
    solver = build(name, tolerance=1e-12, max_iterations=2)
    found = solver.solve(ScaledMap().bind(hamiltonian), start)
    assert found.status is Status.MAX_ITERATIONS
    assert found.iterations == 2
    assert not found.converged.any()


def test_each_sample_says_whether_it_converged():
    h = Quadratic(SLOW)
    start = h.start()
    start[1] = h.maximiser()[1]
    found = Picard(tolerance=1e-8, max_iterations=3).solve(PlainMap().bind(h), start)
    assert found.converged.tolist() == [False, True, False]
    assert found.status is Status.MAX_ITERATIONS


@every_iterative
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_is_a_status(name, bad):
    h = Quadratic(SLOW)
    h.b[1, 0] = bad
    found = build(name, tolerance=1e-8, max_iterations=50).solve(PlainMap().bind(h), h.start())
    assert found.status is Status.NON_FINITE
    assert not found.converged[1]
    assert found.iterations <= 50


@every_iterative
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_one_sample_that_is_no_number_does_not_stop_the_others(name, bad):
    h = Quadratic(SLOW)
    alone = build(name, tolerance=1e-8, max_iterations=500).solve(PlainMap().bind(h), h.start())
    h.b[1, 0] = bad
    found = build(name, tolerance=1e-8, max_iterations=500).solve(PlainMap().bind(h), h.start())
    assert found.converged.tolist() == [True, False, True]
    # What is infinite may still come back, as far as a solver knows.
    assert math.isinf(bad) or found.iterations <= alone.iterations + 1
    for i in (0, 2):
        assert error(found.control[i], h.maximiser()[i]) < 1e-6


def test_divergence_is_a_status():
    h = Quadratic([1.0, 2.5])  # 1 - 2.5 = -1.5: plain ascent of step 1 diverges
    found = Picard(tolerance=1e-8, max_iterations=40).solve(PlainMap(1.0).bind(h), h.start())
    assert found.status is Status.MAX_ITERATIONS
    assert (found.residual > 1e3).all()
    found = Picard(tolerance=1e-8, max_iterations=5000).solve(PlainMap(1.0).bind(h), h.start())
    assert found.status is Status.NON_FINITE


@pytest.mark.parametrize("status", Status)
def test_statuses_read_as_messages(status):
    assert len(status.value.split()) > 4


# ---------------------------------------------------------------------------------------------
# exactly K


@every_solver
@pytest.mark.parametrize("count", [1, 4, 30])
def test_exactly_k_iterations(name, count):
    h = Quadratic(SLOW)
    solver = build(name, tolerance=None, max_iterations=count)
    found = solver.solve(PlainMap().bind(h), h.maximiser())
    # Even from the solution, where a stopping test would have ended it at once.
    assert found.iterations == (0 if name == "closed-form" else count)
    assert found.status is Status.FIXED_ITERATIONS
    assert found.tolerance is None
    assert found.converged.all()
    assert error(found.control, h.maximiser()) < 1e-12


@pytest.mark.parametrize("count", [1, 5])
def test_picard_iterates(count):
    h = Quadratic(SLOW)
    found = Picard(tolerance=None, max_iterations=count).solve(PlainMap(0.5).bind(h), h.start())
    # u_K = sum of (I - A/2)^k b/2 from zero.
    shrink = torch.eye(6, dtype=F64) - 0.5 * h.matrix
    expected = sum(0.5 * h.b @ torch.linalg.matrix_power(shrink, k) for k in range(count))
    torch.testing.assert_close(found.control, expected)


class _Reads(TorchDispatchMode):
    """Counts how often a tensor's value is read by Python, which waits for a GPU."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["picard", "anderson"])
def test_no_value_is_read_without_a_stopping_test(name):
    h = Quadratic(SLOW)
    start = h.start()
    for settings, reads in [
        ({"tolerance": None, "max_iterations": 12}, 0),
        ({"tolerance": 1e-14, "max_iterations": 12, "check_interval": 4}, 3),
    ]:
        solver = build(name, **settings)
        with _Reads() as counted:
            solver.solve(PlainMap().bind(h), start)
        assert counted.count == reads


# ---------------------------------------------------------------------------------------------
# check interval


@every_iterative
@pytest.mark.parametrize("interval", [1, 3, 7])
def test_check_interval(name, interval):
    h = Quadratic(SLOW)
    settings = {"tolerance": 1e-6, "max_iterations": 2000}
    every = build(name, **settings).solve(PlainMap().bind(h), h.start())
    found = build(name, **settings, check_interval=interval).solve(PlainMap().bind(h), h.start())
    assert found.status is Status.CONVERGED
    # The first multiple of the interval at which the test would have passed.
    assert found.iterations % interval == 0
    assert every.iterations <= found.iterations < every.iterations + 2 * interval


@every_iterative
def test_the_last_iterate_is_tested_off_the_interval_too(name):
    h = Quadratic(SLOW)
    solver = build(name, tolerance=1e-12, max_iterations=5, check_interval=3)
    found = solver.solve(PlainMap().bind(h), h.start())
    assert found.iterations in (3, 5)
    torch.testing.assert_close(
        found.residual, torch.linalg.vector_norm(h.b - found.control @ h.matrix, dim=1),
        rtol=1e-6, atol=1e-13,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------
# Anderson


@pytest.mark.parametrize("smallest", [0.05, 0.01])
def test_anderson_beats_picard_on_a_slow_contraction(smallest):
    h = Quadratic([smallest, 0.3, 0.5, 0.8, 1.0, 1.2])
    bound = PlainMap().bind(h)
    picard = Picard(tolerance=1e-9, max_iterations=5000).solve(bound, h.start())
    anderson = Anderson(tolerance=1e-9, max_iterations=5000).solve(bound, h.start())
    # Picard needs about log(1e-9)/log(1 - smallest) = 400 and 2,000 iterations.
    assert picard.iterations > 15 / smallest
    assert anderson.status is Status.CONVERGED
    assert anderson.iterations < picard.iterations / 8
    assert error(anderson.control, h.maximiser()) < 1e-9 / smallest


def test_anderson_with_a_full_window_solves_a_linear_problem_in_m_plus_one_steps():
    """Equivalent to GMRES on a linear map (Walker and Ni 2011, theorem 2.2)."""
    h = Quadratic(SLOW)
    bound = PlainMap().bind(h)
    solver = Anderson(tolerance=None, max_iterations=8, window=6, regularisation=0.0)
    # m + 1 = 7 iterations in exact arithmetic, one more here; the normal equations square the
    # condition number of nearly dependent differences.
    assert solver.solve(bound, h.start()).residual.max() < 1e-6
    plain = Picard(tolerance=None, max_iterations=8).solve(bound, h.start())
    assert plain.residual.max() > 0.1


def test_anderson_converges_where_picard_diverges():
    h = Quadratic([1.0, 2.5])
    found = Anderson(tolerance=1e-10, max_iterations=200).solve(PlainMap(1.0).bind(h), h.start())
    assert found.status is Status.CONVERGED
    assert error(found.control, h.maximiser()) < 1e-9


@dataclass(frozen=True)
class Spoiled(FixedPointMap):
    """Plain ascent whose result is thrown far off at chosen applications."""

    at: tuple[int, ...]
    size: float
    calls: list[int] = dataclasses.field(default_factory=list, compare=False)

    def direction(self, hamiltonian: Hamiltonian, u: Tensor, r: Tensor) -> Tensor:
        self.calls.append(1)
        return r + (self.size if len(self.calls) in self.at else 0.0)


@pytest.mark.parametrize("size", [1e3, 1e8])
def test_anderson_safeguard(size):
    """A single wild application is forgotten: the sample goes back to its best point."""
    h = Quadratic(SLOW)
    spoiled = Spoiled((6,), size)
    found = Anderson(tolerance=1e-6, max_iterations=400).solve(spoiled.bind(h), h.start())
    assert found.status is Status.CONVERGED
    assert error(found.control, h.maximiser()) < 1e-4


@pytest.mark.parametrize("size", [1e8, math.inf, math.nan])
def test_anderson_drops_a_wild_application_at_once(size):
    """Ended right after it, the solver returns a point as good as the one before."""
    h = Quadratic(SLOW)
    residual = {
        count: Anderson(tolerance=None, max_iterations=count)
        .solve(Spoiled((6,), size).bind(h), h.start())
        .residual
        for count in (4, 6)
    }
    assert (residual[6] <= residual[4]).all()


@pytest.mark.parametrize("size", [math.inf, math.nan])
@pytest.mark.parametrize("tolerance", [None, 1e-9])
def test_anderson_safeguard_against_non_finite_values(size, tolerance):
    """The iteration recovers as from a finite jump, and no stopping test ends it before."""
    h = Quadratic(SLOW)
    solver = Anderson(tolerance=tolerance, max_iterations=60)
    found = solver.solve(Spoiled((6,), size).bind(h), h.start())
    assert error(found.control, h.maximiser()) < 1e-6


def test_anderson_returns_its_best_and_not_its_last_iterate():
    """The last application is thrown off, by less than a generous safeguard would catch."""
    h = Quadratic(SLOW)
    best = Anderson(tolerance=None, max_iterations=4).solve(PlainMap().bind(h), h.start())
    size = 10.0 * best.residual.max().item()
    solver = Anderson(tolerance=None, max_iterations=5, growth=1e6)
    found = solver.solve(Spoiled((5,), size).bind(h), h.start())
    residual = torch.linalg.vector_norm(h.b - found.control @ h.matrix, dim=1)
    torch.testing.assert_close(found.residual, residual, rtol=1e-9, atol=1e-12)
    assert (found.residual <= best.residual).all()


def test_anderson_treats_samples_apart():
    h = Quadratic(SLOW)
    solver = Anderson(tolerance=None, max_iterations=6)
    together = solver.solve(PlainMap().bind(h), h.start()).control
    for i in range(3):
        alone = Quadratic(SLOW)
        alone.b = h.b[i : i + 1]
        found = solver.solve(PlainMap().bind(alone), alone.start()).control
        # The same small linear systems, batched: their solutions are ill-conditioned weights.
        torch.testing.assert_close(found[0], together[i], rtol=1e-6, atol=1e-8)


@every_iterative
def test_bounds_are_respected(name):
    h = Quadratic([1.0, 1.0, 1.0], bound=0.3)  # A = I: the projection is the answer
    found = build(name, tolerance=1e-10).solve(PlainMap(0.5).bind(h), h.start())
    assert found.status is Status.CONVERGED
    torch.testing.assert_close(found.control, h.b.clamp(-0.3, 0.3), rtol=0, atol=1e-9)


# ---------------------------------------------------------------------------------------------
# Newton


def test_newton_solves_a_quadratic_in_one_step():
    h = Quadratic([0.01, 1.0, 100.0])
    found = Newton(tolerance=1e-9).solve(PlainMap().bind(h), h.start())
    assert found.iterations == 1


def hamiltonians() -> dict[str, Hamiltonian]:
    found: dict[str, Hamiltonian] = {}
    random = torch.Generator().manual_seed(0)
    for name, problem, spread in [
        ("quadrotor", Quadrotor(2, dtype=F64), 1.0),
        ("bicycle", Bicycle(2, dtype=F64), 0.08),
        ("consumption", Consumption(3, dtype=F64), 0.05),
    ]:
        z = problem.sample_initial_states(2, random)
        p = problem.initial_costate() + spread * torch.randn(z.shape, generator=random, dtype=F64)
        found[name] = problem.hamiltonian(0.0, z, p)
    return found


@pytest.mark.parametrize("name", hamiltonians())
def test_newton_is_quadratic(name):
    """Each error is at most a constant times the last one's square, down to rounding."""
    h = hamiltonians()[name]
    bound = ScaledMap().bind(h)
    start = h.problem.initial_control(0.0, h._z)
    exact = Newton(tolerance=None, max_iterations=60).solve(bound, start).control
    scale = exact.abs().max().item()
    near = exact * (1.0 + 0.05 * torch.cos(torch.arange(exact.numel(), dtype=F64)).view_as(exact))
    near = h.project(near)
    errors = [
        error(Newton(tolerance=None, max_iterations=k).solve(bound, near).control, exact) / scale
        for k in range(1, 7)
    ]
    assert errors[-1] < 1e-12
    order = [
        math.log(b) / math.log(a) for a, b in itertools.pairwise(errors) if 1e-12 < b < a < 0.1
    ]
    # The exponent of e_{k+1} = e_k^q tends to 2; the constant keeps it a little below at first.
    assert order
    assert max(order) > 1.7


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 1e3])
def test_newton_from_far_away(scale):
    """Large costates, from zero control: the line search copes, the oracle agrees."""
    problem = Quadrotor(3, dtype=F64)
    random = torch.Generator().manual_seed(0)
    z = problem.sample_initial_states(8, random)
    p = scale * torch.randn(z.shape, generator=random, dtype=F64)
    h = problem.hamiltonian(0.0, z, p)
    start = problem.initial_control(0.0, z)
    tolerance = 1e-11 * max(scale, 1.0)  # rounding of terms of the size of the costate
    found = Newton(tolerance=tolerance).solve(ScaledMap().bind(h), start)
    assert found.status is Status.CONVERGED
    torch.testing.assert_close(found.control, h.closed_form(), rtol=1e-9, atol=1e-9)


def test_newton_never_loses_value():
    problem = Bicycle(4, dtype=F64)
    random = torch.Generator().manual_seed(0)
    z = problem.sample_initial_states(8, random)
    h = problem.hamiltonian(0.0, z, torch.randn(z.shape, generator=random, dtype=F64))
    start = problem.initial_control(0.0, z)
    values = [
        h.value(Newton(tolerance=None, max_iterations=k).solve(ScaledMap().bind(h), start).control)
        for k in range(1, 9)
    ]
    values.insert(0, h.value(start))
    for before, after in itertools.pairwise(values):
        assert (after >= before - 1e-12 * before.abs()).all()


def rejecting(n_samples: int = 4) -> tuple[Hamiltonian, Tensor]:
    """Quadrotors whose costates are so large that full Newton steps are rejected."""
    problem = Quadrotor(2, dtype=F64)
    random = torch.Generator().manual_seed(0)
    z = problem.sample_initial_states(n_samples, random)
    sizes = torch.tensor([0.1, 3.0, 30.0, 100.0], dtype=F64).unsqueeze(1)
    h = problem.hamiltonian(0.0, z, sizes * torch.randn(z.shape, generator=random, dtype=F64))
    return h, problem.initial_control(0.0, z)


def test_newton_counts_steps_and_not_trials():
    """As many iterations as the sample that needs most of them takes alone."""
    h, start = rejecting()
    bound = ScaledMap().bind(h)
    solver = Newton(tolerance=1e-9)
    trials = 0

    class Counting(Newton):
        def step(self, *arguments):
            nonlocal trials
            trials += 1
            return super().step(*arguments)

    together = Counting(tolerance=1e-9).solve(bound, start)
    assert together.status is Status.CONVERGED
    assert trials > together.iterations
    assert together.iterations < 15
    exactly = Newton(tolerance=None, max_iterations=together.iterations).solve(bound, start)
    assert torch.equal(exactly.control, together.control)
    # Each sample by itself takes the same steps, none of which waits for another sample.
    control, residual = solver.repeat(bound, start, trials)
    torch.testing.assert_close(control, h.closed_form(), rtol=1e-9, atol=1e-9)
    assert (residual <= 1e-9).all()


def test_newton_does_not_wait_for_a_sample_that_is_no_number():
    """No trial of its step lengths can help it: one trial a step, and no thirty."""
    h = Quadratic(SLOW)
    h.b[1] = math.nan
    values = 0
    part = h.control_part

    def counted(u: Tensor) -> Tensor:
        nonlocal values
        values += 1
        return part(u)

    h.control_part = counted
    found = Newton(tolerance=1e-9).solve(PlainMap().bind(h), h.start())
    assert found.converged.tolist() == [True, False, True]
    assert values <= 1 + found.iterations


# ---------------------------------------------------------------------------------------------
# the loop, in its modes


@every_iterative
@pytest.mark.parametrize("tolerance", [None, 1e-8])
def test_a_graph_and_checkpoints_change_no_control(name, tolerance):
    """The plain iterate where the number of iterations is fixed, the next one elsewhere."""
    h = Quadratic(SLOW)
    bound = PlainMap().bind(h)
    count = 9 if tolerance is None else 400
    solver = build(name, tolerance=tolerance, max_iterations=count)
    plain = solver.solve(bound, h.start())
    for estimator in (Unrolled(), UnrolledCheckpoint(segment=4)):
        h.b.requires_grad_()
        tracked = estimator.attach(bound, solver, h.start())
        assert tracked.control.requires_grad
        assert not tracked.residual.requires_grad
        if tolerance is None or isinstance(estimator, Unrolled):
            torch.testing.assert_close(tracked.residual, plain.residual, rtol=1e-9, atol=1e-12)
        assert tracked.converged.all()
        if tolerance is None:
            torch.testing.assert_close(tracked.control, plain.control, rtol=1e-9, atol=1e-12)
            assert tracked.iterations == plain.iterations
        else:
            assert tracked.iterations == plain.iterations + 1
            assert error(tracked.control.detach(), h.maximiser().detach()) < 1e-6


@every_iterative
@pytest.mark.parametrize("segment", [1, 3, 50])
def test_a_checkpointed_gradient_is_the_tracked_one(name, segment):
    h = Quadratic(SLOW)
    h.b.requires_grad_()
    bound = PlainMap().bind(h)
    solver = build(name, tolerance=1e-8, max_iterations=400)
    v = torch.cos(torch.arange(18, dtype=F64)).view(3, 6)
    plain, again = (
        torch.autograd.grad(estimator.attach(bound, solver, h.start()).control, h.b, v)[0]
        for estimator in (Unrolled(), UnrolledCheckpoint(segment=segment))
    )
    # The same operations, computed twice.
    torch.testing.assert_close(again, plain, rtol=1e-12, atol=1e-13)


# ---------------------------------------------------------------------------------------------
# closed form


def test_closed_form():
    problem = Quadrotor(3, dtype=F64)
    random = torch.Generator().manual_seed(0)
    z = problem.sample_initial_states(8, random)
    h = problem.hamiltonian(0.0, z, torch.randn(z.shape, generator=random, dtype=F64))
    found = ClosedForm(tolerance=1e-10).solve(PlainMap().bind(h), problem.initial_control(0.0, z))
    assert found.iterations == 0
    assert found.status is Status.CONVERGED
    # Stationary to rounding of terms of order ten.
    assert h.grad(found.control).abs().max() < 1e-12


def test_closed_form_needs_one():
    problem = Bicycle(dtype=F64)
    z = problem.sample_initial_states(2, torch.Generator().manual_seed(0))
    h = problem.hamiltonian(0.0, z, torch.zeros_like(z))
    with pytest.raises(ValueError, match=r"closed-form maximiser.*use Newton\(\)"):
        ClosedForm().solve(PlainMap().bind(h), problem.initial_control(0.0, z))
    assert "bicycle" in ClosedForm().supports(problem)
    assert ClosedForm().supports(Quadrotor()) is None
    assert ClosedForm().supports(Consumption(2)) is not None
    assert ClosedForm().supports(Consumption(2, eta=1.0)) is None


# ---------------------------------------------------------------------------------------------
# float32 and bad input


@every_iterative
@pytest.mark.parametrize("map_name", MAPS)
def test_float32_reaches_float32_tolerances(name, map_name):
    problem = Quadrotor(2)
    random = torch.Generator().manual_seed(0)
    z = problem.sample_initial_states(16, random)
    p = 0.1 * torch.randn(z.shape, generator=random)
    h = problem.hamiltonian(0.0, z, p)
    found = build(name, tolerance=1e-5).solve(
        MAPS[map_name].bind(h), problem.initial_control(0.0, z)
    )
    assert found.control.dtype == torch.float32
    assert found.status is Status.CONVERGED
    # tolerance / smallest curvature (1/2), plus rounding
    assert error(found.control, h.closed_form()) < 1e-4


@every_solver
@pytest.mark.parametrize(
    ("setting", "bad", "kind"),
    [
        ("tolerance", 0.0, ValueError),
        ("tolerance", -1e-3, ValueError),
        ("tolerance", math.nan, ValueError),
        ("tolerance", math.inf, ValueError),
        ("tolerance", "1e-3", TypeError),
        ("max_iterations", 0, ValueError),
        ("max_iterations", 2.0, TypeError),
        ("max_iterations", True, TypeError),
        ("check_interval", 0, ValueError),
        ("check_interval", 1.5, TypeError),
    ],
)
def test_bad_settings(name, setting, bad, kind):
    with pytest.raises(kind, match=f"`{setting}` must be"):
        build(name, **{setting: bad})


@pytest.mark.parametrize(
    ("make", "setting"),
    [
        (functools.partial(Anderson, window=0), "window"),
        (functools.partial(Anderson, regularisation=-1.0), "regularisation"),
        (functools.partial(Anderson, growth=0.0), "growth"),
        (functools.partial(Newton, max_halvings=0), "max_halvings"),
    ],
)
def test_bad_settings_of_one_solver(make, setting):
    with pytest.raises(ValueError, match=f"`{setting}` must be"):
        make()


@every_solver
def test_settings_are_keywords(name):
    with pytest.raises(TypeError):
        SOLVERS[name](1e-3)
    with pytest.raises(TypeError, match="no_such_option"):
        SOLVERS[name](no_such_option=1)
    solver = SOLVERS[name](tolerance=1e-3)
    assert solver == dataclasses.replace(solver)
    with pytest.raises(dataclasses.FrozenInstanceError):
        solver.tolerance = 1.0


def test_torchdeq_keeps_to_its_iterations_and_counts_them():
    """A map that swings between two points for ever: its library's own count is of the best one."""
    pytest.importorskip("torchdeq")
    h = Quadratic([2.0, 2.0])
    solver = Picard(tolerance=1e-9, max_iterations=50)
    with torch.no_grad():
        found = TorchDEQ().attach(PlainMap(1.0).bind(h), solver, h.start())
    assert found.status is Status.MAX_ITERATIONS
    assert found.iterations == 50
    # Before the first round and after the only one: a residual and an increment.
    assert h.gradients <= 50 + 4


def test_torchdeq_stops_where_one_sample_is_exact():
    pytest.importorskip("torchdeq")
    h = Quadratic(SLOW)
    start = h.start()
    start[1] = h.maximiser()[1]
    h.b[1] = start[1] @ h.matrix  # to the bit
    solver = Picard(tolerance=1e-6, max_iterations=2000)
    with torch.no_grad():
        found = TorchDEQ().attach(PlainMap().bind(h), solver, start)
        picard = solver.solve(PlainMap().bind(h), start)
    assert found.status is Status.CONVERGED
    assert found.iterations < 2 * picard.iterations
