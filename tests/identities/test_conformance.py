"""What every estimator, solver and map must do on every problem, without being named.

A new entry of a registry is run through all of this. Combinations are left out only for the
reason the estimator or solver gives itself.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from baselines import (
    GMRES,
    ConjugateGradient,
    CvxpyLayer,
    DenseLU,
    Diffcp,
    Implicit,
    LinearSolver,
    Moreau,
    Neumann,
    Unrolled,
    UnrolledCheckpoint,
    build_policy,
)
from baselines.linear_solvers import Watched
from jfbcore.jfb import JFB
from jfbcore.maps import MAPS, BoundMap, FixedPointMap, NewtonMap, PlainMap, ScaledMap
from jfbcore.problems import Bicycle, Consumption, Hamiltonian, Problem
from jfbcore.rollout import rollout
from jfbcore.solvers import SOLVERS, ClosedForm, Newton, Picard, Solver, Status
from tests.identities.test_identities import (
    CASES,
    ESTIMATORS,
    FRESH_METHODS,
    attach,
    contractive_point,
    definition_derivatives,
    difference_quotient,
    every_case,
    every_combination,
    every_estimator,
    every_gradient,
    every_map,
    every_solver,
    is_exact,
    make_costates_generic,
    noise,
    pulled_back,
    relative_error,
    tight,
)
from tests.problems.test_conformance import F64, Point, generator


def has_own_solver(estimator: object) -> bool:
    """Whether the estimator ignores the policy's solver (it borrows the tolerance only)."""
    return "cvxpy" in type(estimator).__module__


def independent_residual(point: Point, u: Tensor) -> Tensor:
    """|grad H|, projected where u is constrained, with grad H by autograd from the definition."""
    _, gradient, _ = definition_derivatives(point, point.z, point.p, u)
    h = point.hamiltonian()
    return torch.linalg.vector_norm(h.project(u + gradient) - u, dim=1)


def _to_tolerance(name: str, problem: Problem, method: object) -> Solver:
    return SOLVERS[name](tolerance=1e-4 * problem.gradient_scale)


def _exactly(name: str, problem: Problem, method: object) -> Solver:
    return SOLVERS[name](tolerance=None, max_iterations=7)


def _once(name: str, problem: Problem, method: object) -> Solver:
    return SOLVERS[name](tolerance=None, max_iterations=1)


# ---------------------------------------------------------------------------------------------
# rollouts


@every_combination(
    "case", "gradient", "solver", "map_name", methods=FRESH_METHODS, make=_to_tolerance
)
def test_a_short_rollout(case, gradient, solver, map_name):
    """In float32, as everything runs by default."""
    dtype = torch.float32
    problem = CASES[case](n_agents=2, n_steps=2, t_final=0.1, dtype=dtype)
    inner = SOLVERS[solver](tolerance=1e-4 * problem.gradient_scale)
    method = FRESH_METHODS[gradient]
    policy = build_policy(
        problem,
        method,
        fixed_point_map=MAPS[map_name],
        solver=inner,
        width=6,
        generator=generator(),
    )
    make_costates_generic(policy)
    result = rollout(policy, problem.sample_initial_states(3, generator()))
    for tensor, shape in [
        (result.running_cost, (3,)),
        (result.terminal_cost, (3,)),
        (result.cost, (3,)),
        (result.final_state, (3, problem.state_dim)),
    ]:
        assert tensor.shape == shape
        assert tensor.dtype == dtype
        assert tensor.isfinite().all()
    result.cost.mean().backward()
    gradients = [p.grad for p in policy.parameters() if p.grad is not None]
    assert gradients
    assert all(g.isfinite().all() for g in gradients)
    assert any(g.ne(0).any() for g in gradients)

    summary = result.inner.summary()
    if not method.inner_problem:
        assert summary is None
        return
    assert len(result.inner.iterations) == problem.n_steps
    assert summary["residual"]["mean"] <= summary["residual"]["max"]
    # Every registered map contracts here, so that everything reaches its tolerance.
    assert summary["residual"]["max"] <= inner.tolerance
    assert summary["iterations"]["max"] <= max(inner.max_iterations, 1)


@every_combination("case", "gradient", "solver", "map_name", make=_to_tolerance)
def test_the_residual_is_per_sample_and_true(case, gradient, solver, map_name):
    point, estimator = contractive_point(case, 2), ESTIMATORS[gradient]
    tolerance = 1e-3 * point.problem.gradient_scale
    inner = SOLVERS[solver](tolerance=tolerance)
    with torch.no_grad():
        found = attach(point, estimator, inner, MAPS[map_name])
    assert not found.control.requires_grad
    assert found.control.shape == point.u.shape
    assert found.residual.shape == point.u.shape[:1]
    expected = independent_residual(point, found.control)
    # Two evaluations of one formula: rounding, relative to the terms that cancel.
    scale = point.problem.gradient_scale
    torch.testing.assert_close(found.residual, expected, rtol=1e-8, atol=1e-13 * max(scale, 1.0))
    assert found.tolerance == tolerance
    assert (expected <= 1.000001 * tolerance).all()
    assert found.status is Status.CONVERGED
    assert found.converged.all()

    # With a graph: still this control to within the tolerance, and a residual without a graph.
    z, p = (x.clone().requires_grad_() for x in (point.z, point.p))
    tracked = attach(point, estimator, inner, MAPS[map_name], z, p)
    assert tracked.control.requires_grad
    assert not tracked.residual.requires_grad
    assert tracked.status is Status.CONVERGED
    assert (independent_residual(point, tracked.control) <= 1.000001 * tolerance).all()


@every_combination("case", "gradient", "solver", make=_to_tolerance)
def test_too_few_iterations_are_reported(case, gradient, solver):
    point, estimator = contractive_point(case, 2), ESTIMATORS[gradient]
    inner = SOLVERS[solver](tolerance=1e-14 * point.problem.gradient_scale, max_iterations=1)
    with torch.no_grad():
        found = attach(point, estimator, inner, PlainMap())
    assert found.iterations <= 1
    converged = independent_residual(point, found.control) <= inner.tolerance
    assert found.status is (Status.CONVERGED if converged.all() else Status.MAX_ITERATIONS)
    # A liquidation's H is quadratic: one step of Newton's method is all it takes.
    quadratic = case == "liquidation" and isinstance(inner, Newton)
    if not (quadratic or isinstance(inner, ClosedForm) or has_own_solver(estimator)):
        assert not converged.any()  # one plain step from a generic point solves nothing


@every_combination("case", "gradient", "solver", make=_to_tolerance)
def test_a_costate_that_is_not_a_number_is_reported(case, gradient, solver):
    point, estimator = contractive_point(case, 2), ESTIMATORS[gradient]
    inner = SOLVERS[solver](tolerance=1e-4 * point.problem.gradient_scale, max_iterations=20)
    p = point.p.clone()
    p[0] = math.nan
    with torch.no_grad():
        found = attach(point, estimator, inner, ScaledMap(), p=p)
    assert found.status is Status.NON_FINITE
    assert not found.converged[0]


# ---------------------------------------------------------------------------------------------
# exactly K


@dataclass(frozen=True)
class Counting(FixedPointMap):
    """A map that counts how often it is applied, whoever applies it."""

    inner: FixedPointMap
    calls: list[int] = dataclasses.field(default_factory=list, compare=False)

    def direction(self, hamiltonian: Hamiltonian, u: Tensor, r: Tensor) -> Tensor:
        return self.inner.direction(hamiltonian, u, r)

    def bind(self, hamiltonian: Hamiltonian) -> BoundMap:
        return _CountingBound(self, hamiltonian)


class _CountingBound(BoundMap):
    def step(self, u: Tensor, gradient: Tensor) -> Tensor:
        self.recipe.calls.append(u.shape[0])
        return super().step(u, gradient)


@pytest.fixture
def newton_steps(monkeypatch):
    """Counts the steps of the Newton solver, which does not apply the map."""
    calls: list[int] = []
    step = Newton.step

    def counted(self, *arguments):
        state = step(self, *arguments)
        # A trial that is rejected is not a step yet.
        calls.extend([1] * (not state.waits))
        return state

    monkeypatch.setattr(Newton, "step", counted)
    return calls


@every_combination("case", "gradient", "solver", make=_exactly)
@pytest.mark.parametrize("iterations", [2, 7])
def test_exactly_k_applications(case, gradient, solver, iterations, newton_steps):
    _applies_exactly(case, gradient, solver, iterations, newton_steps)


@every_combination("case", "gradient", "solver", make=_once)
def test_exactly_one_application(case, gradient, solver, newton_steps):
    _applies_exactly(case, gradient, solver, 1, newton_steps)


def _applies_exactly(case, gradient, solver, iterations, newton_steps):
    point, estimator = contractive_point(case, 2), ESTIMATORS[gradient]
    inner = SOLVERS[solver](tolerance=None, max_iterations=iterations)
    counting = Counting(ScaledMap())
    with torch.no_grad():
        found = attach(point, estimator, inner, counting)
    applied = len(counting.calls) + len(newton_steps)
    assert found.tolerance is None
    assert found.status is Status.FIXED_ITERATIONS
    if has_own_solver(estimator):
        assert applied == 0
        return
    if isinstance(inner, ClosedForm):
        assert (applied, found.iterations) == (0, 0)
        return
    assert applied == found.iterations == iterations


@every_case
@pytest.mark.parametrize("iterations", [1, 2, 7])
@pytest.mark.parametrize("tracked", [1, 3])
def test_applications_with_a_graph(case, iterations, tracked):
    """JFB adds its tracked applications; unrolled and implicit add none."""
    point = contractive_point(case, 2)
    solver = Picard(tolerance=None, max_iterations=iterations)
    z, p = (x.clone().requires_grad_() for x in (point.z, point.p))
    for estimator, extra in [
        (JFB(tracked), tracked),
        (Unrolled(), 0),
        (UnrolledCheckpoint(), 0),
        (Implicit(), 0),
    ]:
        counting = Counting(ScaledMap())
        found = attach(point, estimator, solver, counting, z, p)
        assert len(counting.calls) == iterations + extra
        assert found.iterations == iterations
        found.control.sum().backward()
        recomputed = iterations if isinstance(estimator, UnrolledCheckpoint) else 0
        assert len(counting.calls) == iterations + extra + recomputed


@every_case
@every_map
def test_exact_k_controls_are_the_iterates(case, map_name):
    """Picard's Kth control is T applied K times, here by the definition's gradient."""
    point = contractive_point(case, 2)
    u = point.problem.initial_control(point.t, point.z)
    h = point.hamiltonian()
    for k in range(1, 5):
        _, gradient, _ = definition_derivatives(point, point.z, point.p, u)
        u = h.project(u + MAPS[map_name].direction(h, u, gradient))
        solver = Picard(tolerance=None, max_iterations=k)
        for estimator in (JFB(), Unrolled(), UnrolledCheckpoint(), Implicit()):
            with torch.no_grad():
                found = attach(point, estimator, solver, MAPS[map_name]).control
            # Rounding of two evaluations, carried through at most four applications.
            torch.testing.assert_close(found, u, rtol=1e-10, atol=1e-11)


# ---------------------------------------------------------------------------------------------
# what an estimator says about itself


#: gradients that need a concave Hamiltonian and its formulation as a convex program
_CONIC = {name for name in ESTIMATORS if has_own_solver(ESTIMATORS[name])}


@every_case
def test_what_is_supported(case):
    """Every gradient serves every problem, but those that need a convex program of it."""
    problem = CASES[case](n_agents=2)
    refused = {name for name in ESTIMATORS if ESTIMATORS[name].supports(problem) is not None}
    concave = case in ("quadrotor", "consumption-concave", "liquidation")
    assert refused - _CONIC == set()
    assert concave or refused == _CONIC


@every_case
@every_gradient
@every_solver
def test_reasons(case, gradient, solver):
    """None or a sentence; and what is refused is refused with that very sentence."""
    estimator = FRESH_METHODS[gradient]
    problem = CASES[case](n_agents=2)
    inner: Solver = SOLVERS[solver]()
    if not estimator.inner_problem:
        return
    reasons = [
        estimator.supports(problem),
        inner.supports(problem),
        estimator.supports_solver(inner),
    ]
    for reason in reasons:
        assert reason is None or (isinstance(reason, str) and len(reason.split()) > 3)
    given = [reason for reason in reasons if reason is not None]
    build = functools.partial(
        build_policy, problem, estimator, fixed_point_map=ScaledMap(), solver=inner, width=4
    )
    if not given:
        build()
        return
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is compared below
        build()
    assert str(error.value) in given


@pytest.mark.parametrize("backend", [Diffcp(), Diffcp("SCS"), Moreau()])
def test_a_missing_package_is_a_reason(backend, monkeypatch):
    package = backend.modules()[-1]
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else find(name)
    )
    reason = CvxpyLayer(backend).supports(CASES["quadrotor"](n_agents=1))
    assert reason == f"{package} is not installed; pip install 'jfbbench[baselines]'"


@every_estimator
def test_every_estimator_serves_something(gradient):
    estimator = ESTIMATORS[gradient]
    served = [
        (case, solver)
        for case in CASES
        for solver in SOLVERS
        if estimator.supports(CASES[case](n_agents=2)) is None
        and estimator.supports_solver(SOLVERS[solver]()) is None
    ]
    assert served


@every_estimator
def test_estimators_are_values(gradient):
    """Frozen dataclasses without unknown options: two of the same settings are equal."""
    estimator = ESTIMATORS[gradient]
    assert dataclasses.is_dataclass(estimator)
    settings = {f.name: getattr(estimator, f.name) for f in dataclasses.fields(estimator) if f.init}
    assert type(estimator)(**settings) == estimator
    with pytest.raises(TypeError, match="no_such_option"):
        type(estimator)(no_such_option=1)
    for name in settings:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(estimator, name, None)


# ---------------------------------------------------------------------------------------------
# linear solvers


LINEAR_SOLVERS: dict[str, LinearSolver] = {
    "cg": ConjugateGradient(tolerance=1e-12),
    "gmres": GMRES(tolerance=1e-12),
    "neumann": Neumann(tolerance=1e-12, terms=400),
    "lu": DenseLU(),
}
every_linear_solver = pytest.mark.parametrize("linear_solver", LINEAR_SOLVERS)


def spd(size: int, batch: int, condition: float) -> Tensor:
    """Symmetric positive definite matrices with the eigenvalues 1 to `condition`."""
    q, _ = torch.linalg.qr(torch.randn(batch, size, size, generator=generator(), dtype=F64))
    values = torch.logspace(0.0, math.log10(condition), size, dtype=F64)
    return (q * values) @ q.transpose(1, 2)


def product(matrix: Tensor, v: Tensor) -> Tensor:
    return (matrix @ v.unsqueeze(-1)).squeeze(-1)


@every_linear_solver
@pytest.mark.parametrize("size", [1, 2, 9])
def test_linear_solvers_on_positive_definite_matrices(linear_solver, size):
    a = spd(size, 4, condition=20.0 if size > 1 else 1.0)
    b = torch.randn(4, size, generator=generator(1), dtype=F64)
    b[2] = 0.0  # a sample without a cotangent
    # For Neumann's series the preconditioner must make I - P A a contraction: 2/(min + max).
    x = LINEAR_SOLVERS[linear_solver].solve(lambda w: product(a, w), lambda r: r * (2.0 / 21.0), b)
    expected = torch.linalg.solve(a, b.unsqueeze(-1)).squeeze(-1)
    # Relative residual 1e-12 times the condition number 20; 400 terms of (19/21)^k leave 4e-18.
    torch.testing.assert_close(x, expected, rtol=1e-9, atol=1e-10)
    assert torch.equal(x[2], torch.zeros_like(x[2]))


def test_gmres_does_not_take_a_small_direction_for_none():
    """Two eigenvalues 3e-8 apart: the second direction is that small, and far above rounding."""
    values = torch.tensor([[1.0, 1.0 + 3e-8]], dtype=F64)
    b = torch.ones(1, 2, dtype=F64)
    x = GMRES(tolerance=1e-12).solve(lambda w: values * w, lambda r: r, b)
    assert (values * x - b).norm() <= 1e-12 * b.norm()


@pytest.mark.parametrize("linear_solver", ["gmres", "lu"])
def test_linear_solvers_on_indefinite_matrices(linear_solver):
    a = spd(6, 3, condition=10.0) - 2.0 * torch.eye(6, dtype=F64)
    assert (torch.linalg.eigvalsh(a)[:, 0] < -0.5).all()
    b = torch.randn(3, 6, generator=generator(1), dtype=F64)
    x = LINEAR_SOLVERS[linear_solver].solve(lambda w: product(a, w), lambda r: r, b)
    torch.testing.assert_close(product(a, x), b, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@every_linear_solver
def test_a_sample_that_is_not_finite_is_undefined_and_leaves_the_others_alone(linear_solver, bad):
    a = spd(4, 3, condition=5.0)
    b = torch.randn(3, 4, generator=generator(1), dtype=F64)
    a[1, 2, 2] = bad
    x = LINEAR_SOLVERS[linear_solver].solve(lambda w: product(a, w), lambda r: r / 5.0, b)
    alone = LINEAR_SOLVERS[linear_solver].solve(
        lambda w: product(a[1:2], w), lambda r: r / 5.0, b[1:2]
    )
    assert not x[1].isfinite().all()
    assert not alone.isfinite().all()
    torch.testing.assert_close(product(a[::2], x[::2]), b[::2], rtol=1e-8, atol=1e-9)


def test_conjugate_gradient_stops_at_negative_curvature():
    a = torch.diag(torch.tensor([1.0, -1.0], dtype=F64)).expand(2, 2, 2)
    b = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=F64)
    x = ConjugateGradient().solve(lambda w: product(a, w), lambda r: r, b)
    # The first sample sees curvature -1 at once and stays at zero; the second is solved.
    torch.testing.assert_close(x, torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=F64))


def counted(a: Tensor) -> tuple[Callable[[Tensor], Tensor], list[int]]:
    """The product with `a`, and a list that grows by one with each."""
    calls: list[int] = []

    def operator(w: Tensor) -> Tensor:
        calls.append(1)
        return product(a, w)

    return operator, calls


def test_conjugate_gradient_does_not_stall_at_curvature_that_is_not_positive():
    """A sample that cannot go on ends, says so, and keeps no other sample waiting."""
    a = torch.diag(torch.tensor([1.0, -1.0, 3.0], dtype=F64)).expand(3, 3, 3)
    b = torch.tensor([[0.0, 1.0, 0.0], [1.0, 1.0, 0.0], [1.0, 0.0, 1.0]], dtype=F64)
    operator, calls = counted(a)
    solver = Watched(ConjugateGradient())
    x = solver.solve(operator, lambda r: r, b)
    # Curvature -1 and 0 at the first step; two eigenvalues take two. One product is Watched's.
    assert len(calls) <= 4
    torch.testing.assert_close(x[2], torch.tensor([1.0, 0.0, 1.0 / 3.0], dtype=F64))
    torch.testing.assert_close(solver.residuals[0], torch.tensor([1.0, 1.0, 0.0], dtype=F64))
    assert solver.status is Status.MAX_ITERATIONS


def test_a_neumann_series_that_diverges_gives_its_best_sum_and_a_status():
    """I - P A has the eigenvalue -3 for one sample: the series overflows after 650 terms."""
    a = torch.stack((torch.eye(2), torch.diag(torch.tensor([4.0, 0.5])))).to(F64)
    b = torch.ones(2, 2, dtype=F64)
    solver = Watched(Neumann(terms=2000))
    x = solver.solve(lambda w: product(a, w), lambda r: r, b)
    assert x.isfinite().all()
    torch.testing.assert_close(x[0], b[0])
    # No worse than the first term, x = b, and reported.
    assert solver.residuals[0][1] <= (product(a, b) - b)[1].norm() / b[1].norm()
    assert solver.status is Status.MAX_ITERATIONS
    assert Watched(Neumann(), [torch.tensor([0.0, math.nan])]).status is Status.NON_FINITE
    assert Watched(Neumann(), [torch.tensor([0.0, 1e-7])]).status is Status.CONVERGED


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ConjugateGradient(tolerance=0.0), "`tolerance` must be > 0"),
        (lambda: ConjugateGradient(max_iterations=0), "`max_iterations` must be >= 1"),
        (lambda: GMRES(tolerance=math.nan), "`tolerance` must be finite"),
        (lambda: GMRES(max_iterations=-1), "`max_iterations` must be >= 1"),
        (lambda: Neumann(terms=0), "`terms` must be >= 1"),
        (lambda: JFB(0), r"`tracked` must be >= 1, got 0; for the exact gradient use `Implicit"),
        (lambda: UnrolledCheckpoint(segment=0), "`segment` must be >= 1"),
        (lambda: Diffcp(jobs=0), "`jobs` must be >= 1"),
        (lambda: Diffcp(gap=0.0), "`gap` must be > 0"),
        (lambda: Diffcp("ECOS"), "`solver` must be one of"),
        (lambda: Moreau(gap=-1.0), "`gap` must be > 0"),
        (lambda: PlainMap(0.0), "`step_size` must be > 0"),
        (lambda: ScaledMap(1.5), r"`damping` must be in \(0, 1\]"),
    ],
)
def test_bad_settings(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Implicit("cg"), "`linear_solver` must be a LinearSolver object"),
        (lambda: CvxpyLayer("SCS"), "`backend` must be a ConicBackend object"),
        (lambda: Moreau(warm_start=1), "`warm_start` must be True or False"),
        (lambda: JFB(1.5), "`tracked` must be an integer"),
        (lambda: JFB(True), "`tracked` must be an integer"),
        (lambda: PlainMap("0.1"), "`step_size` must be a number"),
    ],
)
def test_settings_of_the_wrong_type(build, message):
    with pytest.raises(TypeError, match=message):
        build()


# ---------------------------------------------------------------------------------------------
# active bounds


def saturated_bicycle() -> Point:
    """Six steering angles: on either bound, and inside."""
    problem = Bicycle(3, dtype=F64)
    z = problem.sample_initial_states(2, generator())
    z = z + 0.05 * noise(z, 1)
    p = 0.3 * noise(z, 2)
    agents = p.view(2, 3, 4)
    # kappa = p_psi v / l: beyond 0.41 in size the maximiser is on the bound.
    kappa = torch.tensor([[2.0, -2.0, 0.1], [-0.15, 1.0, -1.5]], dtype=F64)
    agents[..., 2] = kappa * problem.wheelbase / z.view(2, 3, 4)[..., 3]
    return Point(problem, 0.0, z, p, problem.initial_control(0.0, z))


def bounded_consumption(eta: float = 0.9) -> Point:
    """Goods at the least excess, at the greatest and between, in both samples."""
    problem = Consumption(3, eta=eta, min_excess=1.0, max_excess=6.0, dtype=F64)
    z = problem.sample_initial_states(2, generator()) + 0.2
    t = 0.3
    p = torch.full_like(z, 0.0)
    p[:, 0] = -0.06
    # Marginal utility w^-2 between 1/36 at the greatest excess and 1 at the least; the price
    # is 0.06 + eta p_h u^(eta - 1).
    p[:, 1:] = torch.tensor([[3.0, -0.05, 0.04], [-0.06, 0.05, 2.0]], dtype=F64)
    return Point(problem, t, z, p, problem.initial_control(t, z))


BOUNDED = {
    "bicycle": (saturated_bicycle, 4, 8),
    "consumption": (bounded_consumption, 4, 2),
    "consumption-concave": (functools.partial(bounded_consumption, 1.0), 4, 2),
}


BOUNDED_PROBLEMS = {case: CASES[case] for case in BOUNDED}


def grid_maximiser(point: Point, z: Tensor, p: Tensor, near: Tensor) -> Tensor:
    """argmax H by golden-section search over each control near `near`, from the definition.

    The Hamiltonians here are separable over controls, so each is searched on its own.
    """
    problem, t = point.problem, point.t
    h = problem.hamiltonian(t, z, p)

    def value(u: Tensor) -> Tensor:
        """H as a function of each control alone, (batch, m): the others stay at `near`."""
        columns = []
        for k in range(u.shape[1]):
            one = near.clone()
            one[:, k] = u[:, k]
            columns.append(
                -(p * problem.dynamics(t, z, one)).sum(1) - problem.running_cost(t, z, one)
            )
        return torch.stack(columns, 1)

    low, high = h.project(near - 0.2), h.project(near + 0.2)
    shrink = (math.sqrt(5.0) - 1.0) / 2.0
    for _ in range(60):
        left, right = high - shrink * (high - low), low + shrink * (high - low)
        better_left = value(left) > value(right)
        high = torch.where(better_left, right, high)
        low = torch.where(better_left, low, left)
    return 0.5 * (low + high)


@pytest.mark.parametrize("case", BOUNDED)
def test_controls_on_their_bounds_maximise(case):
    build, n_active, n_inside = BOUNDED[case]
    point = build()
    u = attach(point, JFB(), tight("newton", point.problem), ScaledMap()).control
    h = point.hamiltonian()
    inside = h.interior(u)
    assert int((~inside).sum()) == n_active
    assert int(inside.sum()) == n_inside
    # Golden section resolves a flat maximum to the square root of rounding.
    torch.testing.assert_close(grid_maximiser(point, point.z, point.p, u), u, rtol=0, atol=2e-6)


@every_combination("case", "gradient", "solver", cases=BOUNDED_PROBLEMS)
def test_every_control_finds_its_bounds(case, gradient, solver):
    """On the scaled map, which contracts here too; plain ascent is slow and Newton's map jumps."""
    point, estimator = BOUNDED[case][0](), ESTIMATORS[gradient]
    inner = tight(solver, point.problem, estimator)
    expected = attach(point, JFB(), tight("newton", point.problem), ScaledMap()).control
    z, p = (x.clone().requires_grad_() for x in (point.z, point.p))
    found = attach(point, estimator, inner, ScaledMap(), z, p)
    # Interior-point methods approach a bound from inside, by about the root of their gap.
    accuracy = 2e-4 if has_own_solver(estimator) else 1e-9
    torch.testing.assert_close(found.control.detach(), expected, rtol=0, atol=accuracy)
    if has_own_solver(estimator) or not is_exact(estimator, ScaledMap()):
        return

    # The gradient, through whatever moves the bounds: differences of a Newton solve. The active
    # set does not change along the way.
    v, dz, dp = noise(expected, 1), noise(z, 2), noise(p, 3)

    def along(s: float) -> Tensor:
        shifted = attach(
            point,
            JFB(),
            tight("newton", point.problem),
            ScaledMap(),
            point.z + s * dz,
            point.p + s * dp,
        )
        return (v * shifted.control).sum()

    expected_slope = difference_quotient(along, 1e-5).item()
    into_z, into_p = torch.autograd.grad(found.control, (z, p), v)
    slope = ((into_z * dz).sum() + (into_p * dp).sum()).item()
    size = (into_z * dz).abs().sum().item() + (into_p * dp).abs().sum().item()
    # Controls solved to 1e-12 give difference quotients good to 1e-7; linear solvers 1e-6.
    assert abs(slope - expected_slope) < 1e-5 * size


@pytest.mark.parametrize("case", BOUNDED)
@pytest.mark.parametrize(
    ("linear_solver", "map_name"),
    # Neumann's series needs a contraction; plain ascent is none at the least excess.
    [(s, m) for s in LINEAR_SOLVERS for m in MAPS if (s, m) != ("neumann", "plain")],
)
def test_linear_solvers_agree_with_active_bounds(case, linear_solver, map_name):
    point = BOUNDED[case][0]()
    solver, v = tight("newton", point.problem), noise(point.u, 1)
    found = pulled_back(point, Implicit(LINEAR_SOLVERS[linear_solver]), solver, MAPS[map_name], v)
    expected = pulled_back(point, Implicit(DenseLU()), solver, NewtonMap(), v)
    # All solve to 1e-12 relative; the Hessians' condition number is below 1e3.
    assert relative_error(found, expected) < 1e-8


def test_gradient_through_the_moving_bound_written_out():
    """At the least and greatest excess u = h + const: du/dh is one and nothing else moves u."""
    point = bounded_consumption()
    u = attach(point, JFB(), tight("newton", point.problem), ScaledMap()).control
    excess = u - point.z[:, 1:]
    active = ((excess - 1.0).abs() < 1e-9) | ((excess - 6.0).abs() < 1e-9)
    for estimator in (Implicit(), Implicit(DenseLU()), Unrolled(), JFB(), JFB(3)):
        for k, sample in active.nonzero().flip(1).tolist():
            v = torch.zeros_like(u)
            v[sample, k] = 1.0
            inner = tight("picard", point.problem, estimator)
            into_z, into_p = pulled_back(point, estimator, inner, ScaledMap(), v)
            expected = torch.zeros_like(into_z)
            expected[sample, 1 + k] = 1.0
            torch.testing.assert_close(into_z, expected)
            torch.testing.assert_close(into_p, torch.zeros_like(into_p))
