"""The eight identities that tie every gradient, solver and map to the same mathematics.

Everything is float64. Each estimator is held against something that shares no code with it: a
control found by a dense Newton iteration on the definition of H (or Lambert's W), and finite
differences of that control. Nothing is looked up by name: whatever is registered is tested, and
left out only for the reason it gives itself.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import lambertw
from torch import Tensor, nn

from baselines import (
    GMRES,
    GRADIENTS,
    METHODS,
    ConjugateGradient,
    CostateNetworkMethod,
    CvxpyLayer,
    DenseLU,
    EstimatorMethod,
    Implicit,
    Method,
    Moreau,
    Neumann,
    Reversible,
    TorchDEQ,
    Unrolled,
    UnrolledCheckpoint,
    UnrolledNetworkMethod,
    UnrolledNetworkPolicy,
    build_policy,
)
from bench.diagnostics import angle, policy_gradient
from bench.memory import LiveTensorTracker, SavedTensorCounter
from jfbcore.jfb import JFB, GradientEstimator
from jfbcore.maps import MAPS, FixedPointMap, NewtonMap, PlainMap, ScaledMap
from jfbcore.policy import HamiltonianPolicy, Policy
from jfbcore.problems import PROBLEMS, Consumption, Problem, Quadrotor
from jfbcore.rollout import rollout
from jfbcore.solvers import SOLVERS, Anderson, Newton, Picard, Solution, Solver
from jfbcore.value_network import ValueNetwork
from tests.problems.test_conformance import (
    F64,
    Point,
    agent_permutation,
    by_definition,
    generator,
)


def shared_habits(n_agents: int, **keywords) -> Consumption:
    """Goods of which each forms 30 % of its habit evenly over all, so that no good is special."""
    A = 0.7 * torch.eye(n_agents, dtype=torch.float64) + 0.3 / n_agents
    return Consumption(n_agents, A=A, **keywords)


#: every registered problem, the variant that has a convex formulation and a closed form, and one
#: whose Hamiltonian has costates of other agents in it
CASES: dict[str, Callable[..., Problem]] = {
    **PROBLEMS,
    "consumption-concave": functools.partial(Consumption, eta=1.0),
    "consumption-shared": shared_habits,
}
#: the registry's estimators, copied: nothing that other tests left in their caches
ESTIMATORS: dict[str, GradientEstimator] = {k: dataclasses.replace(g) for k, g in GRADIENTS.items()}
#: every registered method, on those copies where it uses an estimator
FRESH_METHODS: dict[str, Method] = {
    name: EstimatorMethod(ESTIMATORS[name]) if name in ESTIMATORS else method
    for name, method in METHODS.items()
}
#: estimators that differentiate the solver's iterations themselves
DIFFERENTIATES_ITERATIONS = (Unrolled, UnrolledCheckpoint)
#: residual of an inner solve, in units of the problem's gradient: a thousand times rounding
TIGHT = 1e-12

#: whose plain map contracts at 0.9: four times the iterations of any other
_SLOW_CASE = "rotor-quadrotor"
every_case = pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=pytest.mark.slow) if c == _SLOW_CASE else c for c in CASES],
)
every_estimator = pytest.mark.parametrize("gradient", ESTIMATORS)
every_gradient = pytest.mark.parametrize("gradient", FRESH_METHODS)
every_solver = pytest.mark.parametrize("solver", SOLVERS)
every_map = pytest.mark.parametrize("map_name", MAPS)
#: cases on which every solver is tried on every map; on all others solvers are tried on the scaled
#: map, and maps with Picard
CROSSED = ("quadrotor", "consumption")


def is_exact(estimator: GradientEstimator, fixed_point_map: FixedPointMap) -> bool:
    """Whether the estimator claims the true derivative: all do, but the Jacobian-free ones.

    On a Newton map those are exact too.
    """
    truncated = isinstance(estimator, JFB) or (
        isinstance(estimator, TorchDEQ) and estimator.mode == "phantom"
    )
    return not truncated or isinstance(fixed_point_map, NewtonMap)


def slowness(problem: Problem) -> int:
    """How many times more iterations than elsewhere the maps of `problem` need."""
    return 4 if problem.name == _SLOW_CASE else 1


def tight(
    solver: str, problem: Problem, method: Method | GradientEstimator | None = None
) -> Solver:
    """The registered solver at the tightest tolerance float64 leaves room for.

    An estimator that differentiates the iteration itself gets a fixed number of iterations
    instead: its derivative converges later than the control does, and where the map converges
    in one step it would not have converged at all.
    """
    estimator = method.estimator if isinstance(method, Method) else method
    if isinstance(method, UnrolledNetworkMethod) or isinstance(
        estimator, DIFFERENTIATES_ITERATIONS
    ):
        # 0.8^120 = 2e-12; the plain map of rotor-quadrotor contracts by 0.93: 0.93^480 = 7e-16.
        return SOLVERS[solver](tolerance=None, max_iterations=120 * slowness(problem))
    if isinstance(estimator, Reversible):
        # Relaxed with 0.8 the slower of two modes falls by 0.87 where the map does by 0.8: 0.87^240
        # = 3e-15.
        return SOLVERS[solver](tolerance=None, max_iterations=240 * slowness(problem))
    return SOLVERS[solver](tolerance=TIGHT * problem.gradient_scale, max_iterations=1000)


def any_solver(method: Method | GradientEstimator, problem: Problem) -> Solver:
    """The first registered solver that the method can work with, tight."""
    solvers = (tight(name, problem, method) for name in SOLVERS)
    return next(solver for solver in solvers if method.supports_solver(solver) is None)


def refusal(
    problem: Problem, method: Method | GradientEstimator, solver: Solver | None
) -> str | None:
    """Why these three do not go together, by their own words; None where they do."""
    if solver is None:
        return "no solver that the method can work with"
    reasons = (method.supports(problem), solver.supports(problem), method.supports_solver(solver))
    return next((reason for reason in reasons if reason is not None), None)


def every_combination(
    *axes: str,
    methods: Mapping[str, Any] = ESTIMATORS,
    make: Callable[[str, Problem, Any], Solver] | None = None,
    exact: bool = False,
    cases: Mapping[str, Callable[..., Problem]] = CASES,
) -> pytest.MarkDecorator:
    """Parametrize by what goes together of `axes`: case, gradient, solver, map_name, or fewer.

    `make` builds the solver from its name, the problem and the method; without an axis "solver" it
    is the first that the method can work with. `exact` leaves out gradients that are biased by
    design on their map. `test_what_is_supported` says what remains.
    """
    names = {"case": cases, "gradient": methods, "solver": SOLVERS, "map_name": MAPS}
    build = make or tight
    problems = {case: cases[case](n_agents=2, dtype=F64) for case in cases}
    rows = []
    for row in itertools.product(*(names[axis] for axis in axes)):
        chosen = dict(zip(axes, row, strict=True))
        case, method = chosen["case"], methods[chosen["gradient"]]
        solver, map_name = chosen.get("solver"), chosen.get("map_name")
        crossed = case in CROSSED or solver in (None, "picard") or map_name in (None, "scaled")
        inner = (
            any_solver(method, problems[case])
            if solver is None
            else build(solver, problems[case], method)
        )
        estimator = method.estimator if isinstance(method, Method) else method
        if isinstance(method, CostateNetworkMethod):
            estimator = JFB()  # its policies are jfb's on another network
        biased = exact and estimator is not None and not is_exact(estimator, MAPS[map_name])
        if crossed and not biased and refusal(problems[case], method, inner) is None:
            usual = solver in (None, "picard"), map_name in (None, "scaled")
            # The usual solver on the usual map everywhere; one of them on quadrotors; all of what
            # goes together where time is no object.
            quick = all(usual) or (any(usual) and case == "quadrotor")
            quick &= case != _SLOW_CASE or chosen["gradient"] in ("jfb", "implicit")
            marks = () if quick else (pytest.mark.slow,)
            rows.append(pytest.param(*row, id="-".join(row), marks=marks))
    return pytest.mark.parametrize(axes, rows)


def noise(like: Tensor, seed: int) -> Tensor:
    return torch.randn(like.shape, generator=generator(seed), dtype=F64)


def reference_control(point: Point, z: Tensor | None = None, p: Tensor | None = None) -> Tensor:
    """argmax H to rounding, from the problem's dynamics and running cost alone.

    Lambert's W for the quadrotor; elsewhere Newton's method with the dense Hessian of
    H = -<p, f> - L taken by autograd, halving its steps while they lose.
    """
    z, p = point.z if z is None else z, point.p if p is None else p
    problem, t = point.problem, point.t
    start = problem.initial_control(t, z).requires_grad_()
    if isinstance(problem, Quadrotor):
        along = (p * problem.dynamics(t, z, start)).sum()
        c = torch.autograd.grad(along, start)[0].numpy()
        n = problem.n_agents
        w = lambertw(n * (c**2).sum(1, keepdims=True)).real
        return torch.from_numpy(-n * np.exp(-w / 2) * c)
    project = problem.hamiltonian(t, z, p).project
    u = start.detach()
    for _ in range(50):
        value, gradient, hessian = definition_derivatives(point, z, p, u)
        direction = torch.linalg.solve(-hessian, gradient.unsqueeze(-1)).squeeze(-1)
        step = torch.ones(u.shape[0], 1, dtype=F64)
        for _ in range(30):
            candidate = u + step * direction
            found = by_definition(point, z, p, candidate)
            good = (found >= value - 1e-13 * value.abs()) & (project(candidate) == candidate).all(1)
            if bool(good.all()):
                break
            step = torch.where(good.unsqueeze(-1), step, 0.5 * step)
        u = candidate
        if direction.abs().max() < 1e-13:
            break
    return u


def definition_derivatives(
    point: Point, z: Tensor, p: Tensor, u: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """H, its gradient and its dense Hessian in u, by autograd through f and L."""
    u = u.detach().clone().requires_grad_()
    value = by_definition(point, z, p, u)
    (gradient,) = torch.autograd.grad(value.sum(), u, create_graph=True)
    rows = [
        torch.autograd.grad(gradient[:, k].sum(), u, retain_graph=True)[0]
        for k in range(u.shape[1])
    ]
    return value.detach(), gradient.detach(), torch.stack(rows, 1)


def map_jacobian(point: Point, fixed_point_map: FixedPointMap, u: Tensor) -> Tensor:
    """dT/du at a fixed point, (batch, m, m): I + alpha D Hessian, column by column."""
    _, _, hessian = definition_derivatives(point, point.z, point.p, u)
    bound = fixed_point_map.bind(point.hamiltonian())
    columns = [bound.scale(u, hessian[:, :, k]) for k in range(u.shape[1])]
    return torch.eye(u.shape[1], dtype=F64) + torch.stack(columns, 2)


def spectral_radius(matrices: Tensor) -> float:
    return torch.linalg.eigvals(matrices).abs().max().item()


def _relaxed_iterations_arrive(point: Point) -> bool:
    """Whether the relaxed iteration, too, finds the maximiser from the initial control: on the
    undamped Newton map it may circle it."""
    solver = Picard(tolerance=1e-4 * point.problem.gradient_scale, max_iterations=1000)
    with torch.no_grad():
        found = (attach(point, Reversible(), solver, m) for m in MAPS.values())
        return all(bool(solution.converged.all()) for solution in found)


@functools.cache
def contractive_point(case: str, n_agents: int, batch: int = 3, seed: int = 0) -> Point:
    """A generic point at whose maximiser, inside all bounds, every registered map contracts.

    The costate's deviation from its nominal value is halved until that is so.
    """
    problem = CASES[case](n_agents=n_agents, dtype=F64)
    random = generator(seed)
    t, z = 0.0, problem.sample_initial_states(batch, random)
    for _ in range(5):  # a few coarse steps make every component of the state generic
        u = problem.initial_control(t, z)
        u = u + 0.2 * torch.randn(u.shape, generator=random, dtype=F64)
        z = z + 0.05 * problem.dynamics(t, z, u)
        t += 0.05
    base = problem.initial_costate().expand_as(z)
    spread = 0.2 * base.abs().amax() if base.any() else 0.5
    deviation = spread * torch.randn(z.shape, generator=random, dtype=F64)
    for _ in range(12):
        point = Point(problem, t, z, base + deviation, problem.initial_control(t, z))
        u = reference_control(point)
        _, gradient, _ = definition_derivatives(point, point.z, point.p, u)
        solved = gradient.abs().max() < 1e-11 * problem.gradient_scale
        # 0.8: far enough from 1 that a few hundred iterations reach rounding.
        most = 0.8 if slowness(problem) == 1 else 0.93
        contracts = all(spectral_radius(map_jacobian(point, m, u)) < most for m in MAPS.values())
        if solved and contracts and _relaxed_iterations_arrive(point):
            return Point(problem, t, z, point.p, u)
        deviation = 0.5 * deviation
    raise AssertionError("no contractive point found")


def attach(
    point: Point,
    estimator: GradientEstimator,
    solver: Solver,
    fixed_point_map: FixedPointMap,
    z: Tensor | None = None,
    p: Tensor | None = None,
) -> Solution:
    """One decision of the estimator at `point` (or at another state and costate)."""
    z, p = point.z if z is None else z, point.p if p is None else p
    bound = fixed_point_map.bind(point.problem.hamiltonian(point.t, z, p))
    return estimator.attach(bound, solver, point.problem.initial_control(point.t, z))


def pulled_back(
    point: Point,
    estimator: GradientEstimator,
    solver: Solver,
    fixed_point_map: FixedPointMap,
    cotangent: Tensor,
) -> tuple[Tensor, Tensor]:
    """The cotangent of the control pulled back to the state and the costate."""
    z, p = (x.detach().clone().requires_grad_() for x in (point.z, point.p))
    solution = attach(point, estimator, solver, fixed_point_map, z, p)
    return torch.autograd.grad(solution.control, (z, p), cotangent, materialize_grads=True)


def relative_error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    difference = sum(float((a - b).square().sum()) for a, b in zip(found, expected, strict=True))
    return (difference / sum(float(b.square().sum()) for b in expected)) ** 0.5


def gradient_tolerance(estimator: GradientEstimator) -> float:
    """Relative accuracy an exact estimator promises with the settings it is registered with."""
    if isinstance(estimator, Implicit) and isinstance(estimator.linear_solver, DenseLU):
        return 1e-9  # one factorisation: rounding times a condition number below 1e2
    if isinstance(estimator, (*DIFFERENTIATES_ITERATIONS, Reversible, JFB)):
        # K gamma^K with gamma^K the residual (1e-12) and K below 1e3; exact at once on a
        # Newton map, whose derivative at the fixed point is zero.
        return 1e-9
    # Iterative linear solvers stop at 1e-6 of the right-hand side. That leaves 1 / (1 - rate) times
    # as much, 14 times where the rate is 0.93, and the matrix is not normal. Conic solvers leave a
    # duality gap of 1e-10, of which the control sees the square root.
    return 3e-5


# ---------------------------------------------------------------------------------------------
# the ground truth itself


@every_case
@pytest.mark.parametrize("n_agents", [1, 2])
def test_the_reference_control_is_stationary(case, n_agents):
    point = contractive_point(case, n_agents)
    _, gradient, hessian = definition_derivatives(point, point.z, point.p, point.u)
    # Terms of the size of the gradient scale cancel to rounding.
    assert gradient.abs().max() < 1e-12 * max(1.0, point.problem.gradient_scale)
    assert (torch.linalg.eigvalsh(hessian) < 0).all()


# ---------------------------------------------------------------------------------------------
# 1. implicit and converged unrolled gradients are derivatives


@every_case
@pytest.mark.parametrize("n_agents", [1, 2])
@pytest.mark.parametrize(
    "estimator",
    [
        Implicit(DenseLU()),
        Implicit(ConjugateGradient(tolerance=1e-13)),
        Implicit(GMRES(tolerance=1e-13)),
        Implicit(Neumann(tolerance=1e-13, terms=500)),
        Unrolled(),
        UnrolledCheckpoint(),
    ],
    ids=["lu", "cg", "gmres", "neumann", "unrolled", "checkpoint"],
)
def test_gradcheck_of_one_decision(case, n_agents, estimator):
    """The full Jacobian of the control in the state and the costate."""
    point = contractive_point(case, n_agents, batch=1)
    solver = tight("picard", point.problem, estimator)

    def control(z: Tensor, p: Tensor) -> Tensor:
        return attach(point, estimator, solver, ScaledMap(), z, p).control

    inputs = tuple(x.clone().requires_grad_() for x in (point.z, point.p))
    # Central differences with steps of 1e-6: the control is solved to about 1e-12, which the
    # difference quotient turns into 1e-6; its truncation, 1e-12 times third derivatives, is less.
    # The tolerances are ten times that, relative where controls are large (consumption).
    scale = max(1.0, point.u.abs().max().item())
    assert torch.autograd.gradcheck(control, inputs, eps=1e-6, atol=1e-5 * scale, rtol=1e-5)


def difference_quotient(f: Callable[[float], Tensor], step: float) -> Tensor:
    """f'(0) by central differences, extrapolated once (error of order step^4)."""
    near = (f(step) - f(-step)) / (2 * step)
    far = (f(2 * step) - f(-2 * step)) / (4 * step)
    return (4 * near - far) / 3


@every_combination("case", "gradient", "solver", "map_name", exact=True)
def test_one_decision_against_differences_of_the_reference(case, gradient, solver, map_name):
    """Every exact gradient, whatever solves and whatever the map, is the reference's derivative."""
    point = contractive_point(case, 2)
    estimator = ESTIMATORS[gradient]
    inner = tight(solver, point.problem, estimator)
    v, dz, dp = noise(point.u, 1), noise(point.z, 2), noise(point.p, 3)
    dp = dp * point.p.abs().mean()  # steps in proportion to what they change

    def along(s: float) -> Tensor:
        return (v * reference_control(point, point.z + s * dz, point.p + s * dp)).sum()

    # The step balances rounding (1e-14/step) and truncation (step^4): both below 1e-9.
    expected = difference_quotient(along, 1e-4).item()
    into_z, into_p = pulled_back(point, estimator, inner, MAPS[map_name], v)
    found = ((into_z * dz).sum() + (into_p * dp).sum()).item()
    size = (into_z * dz).abs().sum().item() + (into_p * dp).abs().sum().item()
    # 1e-8 for the difference quotient, on top of what the estimator promises.
    assert abs(found - expected) < (gradient_tolerance(estimator) + 1e-8) * size


def small_policy(
    case: str,
    method: Method | GradientEstimator,
    solver: Solver | None = None,
    fixed_point_map: FixedPointMap | None = None,
    *,
    n_agents: int = 2,
    n_steps: int = 4,
    t_final: float = 0.4,
    seed: int = 0,
) -> Policy:
    problem = CASES[case](n_agents=n_agents, n_steps=n_steps, t_final=t_final, dtype=F64)
    return build_policy(
        problem,
        method,
        fixed_point_map=ScaledMap() if fixed_point_map is None else fixed_point_map,
        solver=tight("newton", problem) if solver is None else solver,
        width=6,
        depth=3,
        generator=generator(seed),
    )


@torch.no_grad()
def make_costates_generic(policy: Policy, share: float = 0.3) -> None:
    """Let the residual and the quadratic part of the network each move the costate by `share`.

    In units of the nominal costate, or of 1 where that is zero: large enough that controls and
    their derivatives are generic, small enough that every map contracts along the rollout.
    """
    if isinstance(policy, UnrolledNetworkPolicy):
        policy = policy.policy
    if not isinstance(policy, HamiltonianPolicy):
        return
    problem, network = policy.problem, policy.value_network
    base = problem.initial_costate()
    unit = 0.2 * base.abs().amax().item() if base.any() else 1.0 / problem.n_agents
    z = problem.sample_initial_states(4, generator())
    for parameter, power in ((network.readout, 1), (network.quadratic, 2)):
        kept = parameter.clone()
        before = network.costate(0.0, z)
        parameter.zero_()
        deviation = (before - network.costate(0.0, z)).abs().amax()
        parameter.copy_(kept * (share * unit / deviation) ** (1 / power))


def move(policy: Policy, directions: list[Tensor], s: float) -> Policy:
    moved = copy.deepcopy(policy)
    with torch.no_grad():
        for parameter, direction in zip(moved.parameters(), directions, strict=True):
            parameter.add_(direction, alpha=s)
    return moved


def parameter_gradient(policy: Policy, x: Tensor) -> list[Tensor]:
    cost = rollout(policy, x).cost.mean()
    return list(torch.autograd.grad(cost, list(policy.parameters()), materialize_grads=True))


@every_combination("case", "gradient", "map_name", methods=FRESH_METHODS, exact=True)
def test_rollout_gradient_against_differences(case, gradient, map_name):
    """The gradient of a short rollout's cost in the network's parameters.

    The costs whose difference is taken come from another solver (Newton) than the gradient.
    """
    method = FRESH_METHODS[gradient]
    estimator, problem = method.estimator, CASES[case](n_agents=2, dtype=F64)
    inner = any_solver(method, problem)
    policy = small_policy(case, method, inner, MAPS[map_name])
    make_costates_generic(policy)
    x = policy.problem.sample_initial_states(2, generator(5))
    # In proportion to the parameters, so that one step length suits all of them; those that
    # are zero (the linear part) move by a hundredth of the nominal costate.
    unit = problem.initial_costate().abs().amax().item() or 1.0
    directions = [
        noise(p, 10 + i) * (0.3 * p.detach().abs().mean().item() or 0.01 * unit)
        for i, p in enumerate(policy.parameters())
    ]
    found = parameter_gradient(policy, x)

    truth = policy
    if isinstance(policy, HamiltonianPolicy):
        truth = HamiltonianPolicy(
            policy.problem,
            policy.value_network,
            fixed_point_map=ScaledMap(),
            solver=tight("newton", problem),
            gradient=JFB(),
        )

    @torch.no_grad()
    def cost(s: float) -> Tensor:
        return rollout(move(truth, directions, s), x).cost.mean()

    expected = difference_quotient(cost, 1e-4).item()
    slope = sum(float((g * d).sum()) for g, d in zip(found, directions, strict=True))
    size = sum(float((g * d).abs().sum()) for g, d in zip(found, directions, strict=True))
    # Differences of a cost of up to 1e3 carry 1e-13 * 1e3 / 1e-4 = 1e-6 of rounding.
    tolerance = 1e-9 if estimator is None else gradient_tolerance(estimator)
    assert abs(slope - expected) < (tolerance + 1e-8) * size + 2e-6


@pytest.mark.parametrize("estimator", [Unrolled(), UnrolledCheckpoint(segment=1)], ids=repr)
@pytest.mark.parametrize("solver", ["picard", "anderson", "newton"])
def test_unrolled_gradient_when_stopped_by_its_tolerance(estimator, solver):
    """With eta = 1 the scaled map lands on the maximiser from anywhere, in one application."""
    point = contractive_point("consumption-concave", 2)
    v = noise(point.u, 1)
    solver = SOLVERS[solver](tolerance=TIGHT * point.problem.gradient_scale, max_iterations=1000)
    found = pulled_back(point, estimator, solver, ScaledMap(), v)
    expected = pulled_back(point, Implicit(DenseLU()), solver, ScaledMap(), v)
    # As close as the residual: a hundred times 1e-12 to spare.
    assert relative_error(found, expected) < 1e-9


@every_case
@pytest.mark.parametrize("n_agents", [2, 5])
@pytest.mark.parametrize("estimator", [Unrolled(), UnrolledCheckpoint()], ids=repr)
def test_a_tracked_newton_step_at_the_maximiser_is_exact(case, n_agents, estimator):
    """One step with a graph, from a control without one: (-Hessian)^-1 d(grad H)."""
    point = contractive_point(case, n_agents)
    v = noise(point.u, 1)
    solver = Newton(tolerance=1e-8 * point.problem.gradient_scale)
    z, p = (x.clone().requires_grad_() for x in (point.z, point.p))
    bound = ScaledMap().bind(point.problem.hamiltonian(point.t, z, p))
    solution = estimator.attach(bound, solver, point.u)
    assert solution.iterations == 1
    found = torch.autograd.grad(solution.control, (z, p), v, materialize_grads=True)
    truth = tight("newton", point.problem)
    expected = pulled_back(point, Implicit(DenseLU()), truth, ScaledMap(), v)
    # Two exact derivatives at the same control: rounding times a condition number below 1e2.
    assert relative_error(found, expected) < 1e-11


@every_case
@pytest.mark.parametrize("map_name", ["plain", "scaled"])
@pytest.mark.parametrize("estimator", [Unrolled(), UnrolledCheckpoint()], ids=repr)
def test_a_tracked_anderson_iteration_converges_with_its_residual(case, map_name, estimator):
    """Through the least-squares problems of its extrapolation, whose weights divide differences of
    the size of the residual: the derivative has as many digits as the control all the same."""
    point = contractive_point(case, 3)
    v = noise(point.u, 1)
    truth = tight("newton", point.problem)
    expected = pulled_back(point, Implicit(DenseLU()), truth, MAPS[map_name], v)
    for tolerance, accuracy in ((1e-4, 1e-2), (1e-8, 1e-6), (1e-12, 1e-10)):
        solver = Anderson(tolerance=tolerance * point.problem.gradient_scale, max_iterations=300)
        found = pulled_back(point, estimator, solver, MAPS[map_name], v)
        # The derivative lags behind the control: a hundred times the relative residual, which is
        # ten times the worst measured.
        assert relative_error(found, expected) < accuracy


# ---------------------------------------------------------------------------------------------
# 2. JFB is one hand-written derivative


@every_case
@every_map
def test_jfb_is_the_derivative_of_one_application(case, map_name):
    """d<v, T(u*)>/d(theta, z) with u* and D constants, written out.

    With w = alpha D v: <w, grad_u H> = -<p, f_u w> - L_u w, so that the costate receives -f_u w,
    the state the z-derivative of the rest, and theta what the costate passes on.
    """
    policy = small_policy(case, JFB(), fixed_point_map=MAPS[map_name])
    make_costates_generic(policy)
    problem, network = policy.problem, policy.value_network
    z = contractive_point(case, 2).z.clone().requires_grad_()
    t, parameters = 0.25, list(network.parameters())
    decision = policy(t, z)
    v = noise(decision.control, 1)
    found = torch.autograd.grad(decision.control, [z, *parameters], v, materialize_grads=True)

    with torch.no_grad():
        p = network.costate(t, z)
        u = attach(Point(problem, t, z, p, v), JFB(), policy.solver, policy.fixed_point_map).control
        bound = policy.fixed_point_map.bind(problem.hamiltonian(t, z, p))
        # The projection passes on what it leaves alone: here almost everything.
        inside = bound.hamiltonian.interior(u + bound.scale(u, bound.hamiltonian.grad(u)))
        if inside is not None:
            assert inside.double().mean() > 0.8
            v = v * inside
        w = bound.scale(u, v)

    def dynamics_along_w(state: Tensor) -> tuple[Tensor, Tensor]:
        """f_u w and L_u w, by differentiating the dynamics and the cost in the step length."""
        s = torch.zeros((), dtype=F64, requires_grad=True)
        f = problem.dynamics(t, state, u + s * w)
        f_bar = torch.zeros_like(f, requires_grad=True)
        (pulled,) = torch.autograd.grad(f, s, f_bar, create_graph=True)
        (f_u_w,) = torch.autograd.grad(pulled, f_bar, create_graph=True)
        cost = problem.running_cost(t, state, u + s * w)
        c_bar = torch.zeros_like(cost, requires_grad=True)
        (pulled,) = torch.autograd.grad(cost, s, c_bar, create_graph=True)
        (l_u_w,) = torch.autograd.grad(pulled, c_bar, create_graph=True)
        return f_u_w, l_u_w

    state = z.detach().clone().requires_grad_()
    f_u_w, l_u_w = dynamics_along_w(state)
    own = -(p * f_u_w).sum() - l_u_w.sum()
    (into_state,) = torch.autograd.grad(own, state, retain_graph=True, materialize_grads=True)
    # The costate by automatic differentiation of the value, not by the hand-written sweep.
    phi = network(t, state).sum()
    (costate,) = torch.autograd.grad(phi, state, create_graph=True)
    passed = torch.autograd.grad(
        costate, [state, *parameters], -f_u_w.detach(), materialize_grads=True
    )
    expected = (passed[0] + into_state, *passed[1:])
    # The same derivative by two routes: rounding, relative to the largest entry.
    scale = max(x.abs().max().item() for x in expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11 * scale)


# ---------------------------------------------------------------------------------------------
# 3. the bias of JFB(k) falls like gamma^k


@every_case
@every_map
def test_bias_falls_at_the_rate_of_the_map(case, map_name):
    point = contractive_point(case, 2, batch=1)
    rate = spectral_radius(map_jacobian(point, MAPS[map_name], point.u))
    assert rate < 1.0
    solver = tight("newton", point.problem)
    v = noise(point.u, 1)
    exact = pulled_back(point, Implicit(DenseLU()), solver, MAPS[map_name], v)
    errors = [
        relative_error(pulled_back(point, JFB(k), solver, MAPS[map_name], v), exact)
        for k in range(1, 25)
    ]
    if rate < 1e-9:
        # The map is Newton's (or coincides with it): nothing to fall.
        assert max(errors) < 1e-9
        return
    # Rounding ends the fall; the constant is the gain of (I - M)^-1 and of the last derivative.
    clean = [e for e in errors if e > 1e-11]
    for k, error in enumerate(clean, start=1):
        assert error < 20.0 * rate**k
    # The slowest mode dominates after a few applications. Where the next one is close the
    # measured rate approaches from below, hence the wider lower side.
    assert len(clean) >= 3
    last = clean[-1] / clean[-2] if len(clean) < 10 else (clean[-1] / clean[-5]) ** 0.25
    assert 0.85 * rate < last < 1.02 * rate


# ---------------------------------------------------------------------------------------------
# 4. JFB on a Newton map is exact


@every_case
@pytest.mark.parametrize("tracked", [1, 2])
def test_jfb_on_a_newton_map_is_implicit(case, tracked):
    point = contractive_point(case, 2)
    solver, v = tight("newton", point.problem), noise(point.u, 1)
    found = pulled_back(point, JFB(tracked), solver, NewtonMap(), v)
    expected = pulled_back(point, Implicit(DenseLU()), solver, PlainMap(), v)
    # Both are exact at the residual reached, 1e-12; the Hessians' condition is below 1e2.
    assert relative_error(found, expected) < 1e-10


@every_case
@every_map
def test_jfb_and_implicit_hand_on_the_same_control(case, map_name):
    """T of what the solver found, however far from the fixed point that is.

    Their gradients then belong to one trajectory. A tracked control one application ahead of the
    other's turned the angle between two gradients of a sensitive closed loop past 90 degrees.
    """
    point, solver = contractive_point(case, 2), Picard(tolerance=None, max_iterations=2)
    z, p = (x.detach().clone().requires_grad_() for x in (point.z, point.p))
    jfb, implicit = (
        attach(point, estimator, solver, MAPS[map_name], z, p).control
        for estimator in (JFB(), Implicit())
    )
    assert jfb.requires_grad
    assert implicit.requires_grad
    h, u = point.hamiltonian(), point.problem.initial_control(point.t, point.z)
    for _ in range(3):
        _, gradient, _ = definition_derivatives(point, point.z, point.p, u)
        u = h.project(u + MAPS[map_name].direction(h, u, gradient))
    # The same operations in the same order; and rounding carried through three applications.
    assert torch.equal(jfb, implicit)
    torch.testing.assert_close(implicit.detach(), u, rtol=1e-10, atol=1e-11)


def test_where_jfb_is_exact_its_gradient_is_implicit_at_any_tolerance():
    """One bicycle on the scaled map: D is the inverse of its diagonal Hessian.

    Over the whole horizon at an inner tolerance of 1e-2, where a gradient of another trajectory
    would differ by the solver's error times the sensitivity of the closed loop.
    """
    policy = small_policy(
        "bicycle", JFB(), Picard(tolerance=1e-2), n_agents=1, n_steps=60, t_final=4.0
    )
    make_costates_generic(policy)
    states = policy.problem.sample_initial_states(4, generator())
    found = policy_gradient(policy, states)
    expected = policy_gradient(policy, states, Implicit(DenseLU()))
    # Degrees: a division against one factorisation of a diagonal matrix, at every time step.
    assert angle(found, expected) < 1e-6


# ---------------------------------------------------------------------------------------------
# 5. torchdeq


@every_case
@every_map
@pytest.mark.parametrize("tracked", [1, 2, 4])
def test_torchdeq_is_jfb(case, map_name, tracked):
    pytest.importorskip("torchdeq")
    point = contractive_point(case, 2)
    solver, v = tight("picard", point.problem), noise(point.u, 1)
    found = pulled_back(point, TorchDEQ(tracked=tracked), solver, MAPS[map_name], v)
    expected = pulled_back(point, JFB(tracked), solver, MAPS[map_name], v)
    # Two fixed points of residual 1e-12 each.
    assert relative_error(found, expected) < 1e-9


@every_case
@every_map
@pytest.mark.parametrize("tracked", [1, 3])
def test_torchdeq_itself_from_the_same_control(case, map_name, tracked):
    """The library called directly, from a control that is not a fixed point."""
    torchdeq = pytest.importorskip("torchdeq")
    point = contractive_point(case, 2)
    v = noise(point.u, 1)
    start = point.u + 1e-3 * point.u.abs().mean() * noise(point.u, 2)

    def run(track: Callable[[Callable[[Tensor], Tensor]], Tensor]) -> tuple[Tensor, ...]:
        z, p = (x.clone().requires_grad_() for x in (point.z, point.p))
        bound = MAPS[map_name].bind(point.problem.hamiltonian(point.t, z, p))
        control = track(bound)
        return (control.detach(), *torch.autograd.grad(control, (z, p), v, materialize_grads=True))

    iterates: list[Tensor] = []

    def library(bound: Callable[[Tensor], Tensor]) -> Tensor:
        deq = torchdeq.get_deq(
            core="indexing", ift=False, hook_ift=False, grad=tracked, tau=1.0, n_states=1,
            f_solver="fixed_point_iter", f_max_iter=3, f_tol=0.0, f_stop_mode="abs",
        ).train()  # fmt: skip
        recorded = lambda u: iterates.append(u.detach()) or bound(u)  # noqa: E731
        outputs, _ = deq(recorded, start)
        return outputs[-1]

    found = run(library)
    # What the library tracked from: the argument of the first tracked application.
    u0 = iterates[-tracked]

    class Given(Picard):
        def solve(self, fixed_point_map, initial):
            return self.solution(u0, fixed_point_map.residual(u0).detach(), 3)

    expected = run(lambda bound: JFB(tracked).attach(bound, Given(tolerance=None), u0).control)
    # The same operations in the same order, apart from tau * x + (1 - tau) * x: rounding.
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


# ---------------------------------------------------------------------------------------------
# 6. one control, one gradient


@every_combination("case", "gradient", "solver", "map_name")
def test_every_control_is_the_maximiser(case, gradient, solver, map_name):
    point = contractive_point(case, 2)
    estimator = ESTIMATORS[gradient]
    inner = tight(solver, point.problem, estimator)
    for grad_mode in (False, True):
        with torch.set_grad_enabled(grad_mode):
            z, p = (x.clone().requires_grad_(grad_mode) for x in (point.z, point.p))
            found = attach(point, estimator, inner, MAPS[map_name], z, p).control
        error = (found - point.u).abs().max() / point.u.abs().max()
        # An iterative control is off by residual/curvature; an interior-point one by about the
        # square root of the curvature times its gap of 1e-10, times what scaling adds.
        own_solver = "cvxpy" in type(estimator).__module__
        assert error < (1e-5 if own_solver else 1e-10)


@pytest.mark.skipif(
    ESTIMATORS["cvxpylayers"].supports(Quadrotor(1)) is not None, reason="needs cvxpylayers"
)
def test_one_estimator_serves_many_problems_in_turn():
    estimator = dataclasses.replace(GRADIENTS["cvxpylayers"])
    for i in range(30):
        problem = Consumption(2, eta=1.0, gamma=2.0 + i % 2, dtype=F64)
        z = problem.sample_initial_states(1, generator())
        h = problem.hamiltonian(0.0, z, problem.initial_costate().expand_as(z))
        found = estimator.attach(ScaledMap().bind(h), Picard(), problem.initial_control(0.0, z))
        # An interior-point control; that of another problem is off by the order of one.
        torch.testing.assert_close(found.control, h.closed_form(), rtol=1e-3, atol=1e-3)


CONIC = [
    name
    for name in ESTIMATORS
    if "cvxpy" in type(ESTIMATORS[name]).__module__
    and ESTIMATORS[name].supports(Quadrotor(1)) is None
]


@pytest.mark.parametrize("size", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("n_agents", [1, 20, 100])
@pytest.mark.parametrize("gradient", CONIC)
def test_conic_solvers_keep_their_accuracy_with_many_agents_and_large_costates(
    gradient, n_agents, size
):
    """Controls of root mean square `size`, at running costs up to e^4.5 or more."""
    problem, estimator = Quadrotor(n_agents, dtype=F64), ESTIMATORS[gradient]
    z = problem.sample_initial_states(4, generator())
    p = noise(z, 1)
    c = problem.hamiltonian(0.0, z, p).control_coefficient()
    # u = -N exp(-|u|^2/2N) c with |u|^2 = 4 N size^2
    p = p * np.exp(2 * size**2) * size / n_agents / c.square().mean(1, keepdim=True).sqrt()
    u = problem.hamiltonian(0.0, z, p).closed_form()
    torch.testing.assert_close(u.square().mean(1).sqrt(), torch.full((4,), size, dtype=F64))
    point = Point(problem, 0.0, z, p, u)
    v = noise(u, 2)
    expected = pulled_back(point, Implicit(DenseLU()), SOLVERS["closed-form"](), ScaledMap(), v)
    found = attach(point, estimator, Picard(), ScaledMap()).control
    # A gap of 1e-10 leaves the square root of it, of controls of order one; see `CvxpyLayer`.
    assert (found - u).norm() < 5e-5 * u.norm()
    assert relative_error(
        pulled_back(point, estimator, Picard(), ScaledMap(), v), expected
    ) < gradient_tolerance(estimator)


@pytest.mark.skipif("cvxpylayers-moreau" not in CONIC, reason="needs cvxpylayers and moreau")
def test_a_warm_start_changes_no_more_than_the_last_digits():
    problem = Quadrotor(6, dtype=F64)
    cold, warm = CvxpyLayer(Moreau()), CvxpyLayer(Moreau(warm_start=True))
    z = problem.sample_initial_states(4, generator())
    p, drift = 0.1 * noise(z, 1), 0.002 * noise(z, 2)
    for _ in range(4):
        p = p + drift
        point = Point(problem, 0.0, z, p, problem.hamiltonian(0.0, z, p).closed_form())
        for estimator in (cold, warm):
            found = attach(point, estimator, Picard(), ScaledMap()).control
            torch.testing.assert_close(found, point.u, rtol=0, atol=1e-4)


@every_combination("case", "gradient", "map_name", exact=True)
def test_every_unbiased_gradient_is_implicit(case, gradient, map_name):
    point = contractive_point(case, 3)
    estimator = ESTIMATORS[gradient]
    inner = any_solver(estimator, point.problem)
    v = noise(point.u, 1)
    found = pulled_back(point, estimator, inner, MAPS[map_name], v)
    # Independent of `Implicit`: dense inverse Hessian of the definition, mixed derivatives by
    # autograd through f and L.
    _, _, hessian = definition_derivatives(point, point.z, point.p, point.u)
    x = torch.linalg.solve(-hessian, v.unsqueeze(-1)).squeeze(-1)
    z, p, u = (y.clone().requires_grad_() for y in (point.z, point.p, point.u))
    (slope,) = torch.autograd.grad(by_definition(point, z, p, u).sum(), u, create_graph=True)
    expected = torch.autograd.grad(slope, (z, p), x, materialize_grads=True)
    assert relative_error(found, expected) < gradient_tolerance(estimator)


# ---------------------------------------------------------------------------------------------
# 7. agents


class _Permuted(nn.Module):
    """A value function of relabelled agents: phi(permuted z) = network(z)."""

    def __init__(self, network: ValueNetwork, states: list[int]) -> None:
        super().__init__()
        self.network, self.states = network, states
        self.back = torch.argsort(torch.tensor(states))

    def costate(self, t: float, z: Tensor) -> Tensor:
        return self.network.costate(t, z[:, self.back])[:, self.states]


def with_value(policy: Policy, problem: Problem, value: nn.Module) -> Policy:
    if isinstance(policy, UnrolledNetworkPolicy):
        return UnrolledNetworkPolicy(with_value(policy.policy, problem, value))
    return HamiltonianPolicy(
        problem,
        value,
        fixed_point_map=policy.fixed_point_map,
        solver=policy.solver,
        gradient=policy.gradient,
    )


@pytest.mark.slow
@every_combination("case", "gradient")
def test_permuting_agents_permutes_the_control(case, gradient):
    estimator = ESTIMATORS[gradient]
    problem = CASES[case](n_agents=3, dtype=F64)
    solver = any_solver(estimator, problem)
    policy = small_policy(case, estimator, solver, n_agents=3)
    make_costates_generic(policy)
    problem = policy.problem
    states, controls = agent_permutation(problem.name, 3, [2, 0, 1])
    network = getattr(policy, "policy", policy).value_network
    moved = with_value(policy, problem, _Permuted(network, states))
    x = problem.sample_initial_states(3, generator())
    own = "cvxpy" in type(estimator).__module__
    # Sums over agents in another order: rounding; an interior-point method stops elsewhere.
    accuracy = {"rtol": 1e-5, "atol": 1e-5} if own else {"rtol": 1e-8, "atol": 1e-9}
    torch.testing.assert_close(
        moved(0.1, x[:, states]).control, policy(0.1, x).control[:, controls], **accuracy
    )
    found = parameter_gradient(moved, x[:, states])
    assert relative_error(found, parameter_gradient(policy, x)) < (1e-4 if own else 1e-8)


class _EachAgent(nn.Module):
    """The costate that N copies of a single agent's value function give, scaled by `factor`.

    State entries that agents share (wealth) hold the sum over agents; their costate is the mean.
    """

    def __init__(self, network: ValueNetwork, n_agents: int, shared: int, factor: float) -> None:
        super().__init__()
        self.network, self.n_agents, self.shared, self.factor = network, n_agents, shared, factor

    def costate(self, t: float, z: Tensor) -> Tensor:
        batch, n, k = z.shape[0], self.n_agents, self.shared
        own = z[:, k:].reshape(batch, n, -1)
        common = (z[:, :k] / n).unsqueeze(1).expand(batch, n, k)
        single = torch.cat((common, own), 2).flatten(0, 1)
        p = self.network.costate(t, single).reshape(batch, n, -1)
        return self.factor * torch.cat((p[:, :, :k].mean(1), p[:, :, k:].flatten(1)), 1)


@pytest.mark.slow
@every_combination("case", "gradient")
@pytest.mark.parametrize("n_agents", [2, 4])
def test_identical_uncoupled_agents_are_single_ones(case, gradient, n_agents):
    """The same controls, states, costs and gradients, up to how the cost counts agents."""
    estimator, n = ESTIMATORS[gradient], n_agents
    keywords = {"dtype": F64, "n_steps": 4, "t_final": 0.4}
    couplings = {"interaction_weight", "correlation", "cross_impact"}
    for coupling in couplings & set(inspect.signature(CASES[case]).parameters):
        keywords[coupling] = 0.0
    one, many = (CASES[case](n_agents=k, **keywords) for k in (1, n))
    shared = (n * one.state_dim - many.state_dim) // (n - 1)
    solver = any_solver(estimator, one)

    def copies(z: Tensor) -> Tensor:
        return torch.cat((n * z[:, :shared], z[:, shared:].repeat(1, n)), 1)

    x = one.sample_initial_states(2, generator())
    # By how much N agents cost more than one: N where costs add, 1 where they are averaged.
    u = one.initial_control(0.0, x)
    ratio = many.running_cost(0.0, copies(x), u.repeat(1, n)) / one.running_cost(0.0, x, u)
    if not bool(torch.isfinite(ratio).all()):  # no cost at the initial control
        u = u + 0.1
        ratio = many.running_cost(0.0, copies(x), u.repeat(1, n)) / one.running_cost(0.0, x, u)
    factor = ratio[0].item()
    torch.testing.assert_close(ratio, torch.full_like(ratio, factor))

    network = ValueNetwork.for_problem(one, width=6, generator=generator())
    single = HamiltonianPolicy(
        one, network, fixed_point_map=ScaledMap(), solver=solver, gradient=estimator
    )
    make_costates_generic(single)
    swarm = with_value(single, many, _EachAgent(network, n, shared, factor / n))
    alone, together = rollout(single, x), rollout(swarm, copies(x))

    own = "cvxpy" in type(estimator).__module__
    # Fixed points of residual 1e-12 (gap 1e-10), carried through four steps.
    accuracy = {"rtol": 1e-5, "atol": 1e-5} if own else {"rtol": 1e-9, "atol": 1e-10}
    torch.testing.assert_close(together.final_state, copies(alone.final_state), **accuracy)
    torch.testing.assert_close(together.running_cost, factor * alone.running_cost, **accuracy)
    parameters = list(network.parameters())
    found = torch.autograd.grad(together.running_cost.mean(), parameters, materialize_grads=True)
    expected = torch.autograd.grad(alone.running_cost.mean(), parameters, materialize_grads=True)
    # The Jacobian-free ones too: the scaled map of N agents is N copies of the single one's.
    # Iterative linear solvers stop at 1e-6 of different right-hand sides. Moreau's backward solve
    # is regularised: 4e-4 for one good, whose excess is three times the nominal.
    conic = 1e-3 if "moreau" in gradient else 1e-4
    assert relative_error(found, tuple(factor * g for g in expected)) < (conic if own else 1e-5)


# ---------------------------------------------------------------------------------------------
# 8. memory


def saved_bytes(case: str, estimator: GradientEstimator, iterations: int) -> int:
    problem = CASES[case](n_agents=2, n_steps=2, t_final=0.2)
    solver = Picard(tolerance=None, max_iterations=iterations)
    policy = build_policy(
        problem, estimator, fixed_point_map=ScaledMap(), solver=solver, width=8,
        generator=generator(),
    )  # fmt: skip
    x = problem.sample_initial_states(4, generator())
    with SavedTensorCounter(exclude=[x, *policy.parameters()]) as counter:
        cost = rollout(policy, x).cost.mean()
    assert cost.requires_grad
    assert counter.live_bytes == counter.bytes
    return counter.bytes


@every_combination(
    "case",
    "gradient",
    methods={k: g for k, g in ESTIMATORS.items() if not isinstance(g, DIFFERENTIATES_ITERATIONS)},
)
def test_saved_bytes_do_not_depend_on_the_iterations(case, gradient):
    """To the byte, for every estimator but those whose point is to differentiate the iteration."""
    estimator = ESTIMATORS[gradient]
    found = saved_bytes(case, estimator, 5)
    assert found > 0
    assert saved_bytes(case, estimator, 500) == found


@every_case
def test_saved_bytes_of_unrolled_are_affine(case):
    found = [saved_bytes(case, Unrolled(), k) for k in (2, 12, 22, 52)]
    per_iteration = (found[1] - found[0]) // 10
    # At least the control itself, (4, m) in float32, is saved at each application.
    assert per_iteration * 2 >= 4 * 4 * CASES[case](n_agents=2).control_dim
    assert [b - found[0] for b in found] == [
        0,
        10 * per_iteration,
        20 * per_iteration,
        50 * per_iteration,
    ]


@every_case
def test_saved_bytes_of_jfb_are_affine_in_the_tracked_applications(case):
    found = [saved_bytes(case, JFB(k), 7) for k in (2, 4, 6)]
    assert found[0] < found[1]
    assert found[2] - found[1] == found[1] - found[0]


@every_case
def test_checkpointing_saves_the_square_root(case):
    checkpointed = [saved_bytes(case, UnrolledCheckpoint(), k) for k in (25, 100, 400)]
    plain = [saved_bytes(case, Unrolled(), k) for k in (25, 100, 400)]
    # Segments: 5, 10, 20. What is saved per segment does not depend on its length.
    assert checkpointed[2] - checkpointed[1] == 2 * (checkpointed[1] - checkpointed[0])
    assert checkpointed[2] - checkpointed[0] < (plain[2] - plain[0]) / 10


@every_case
def test_checkpointing_lowers_the_peak_of_a_whole_step(case):
    """Recomputing a segment in backward needs memory too: still of the order sqrt(K)."""

    def peak(estimator: GradientEstimator, iterations: int) -> int:
        problem = CASES[case](n_agents=2, n_steps=1, t_final=0.1)
        policy = build_policy(
            problem, estimator, fixed_point_map=ScaledMap(),
            solver=Picard(tolerance=None, max_iterations=iterations), width=8,
            generator=generator(),
        )  # fmt: skip
        x = problem.sample_initial_states(16, generator())
        with LiveTensorTracker() as tracker:
            rollout(policy, x).cost.mean().backward()
        return tracker.peak_bytes

    small, large = (peak(UnrolledCheckpoint(), k) for k in (16, 256))
    plain_small, plain_large = (peak(Unrolled(), k) for k in (16, 256))
    # 16 times the iterations: about 4 times the growing part, against 16 times.
    assert large < 5 * small
    assert plain_large - plain_small > 3 * (large - small)
