"""The compiled time step against the eager one."""

from __future__ import annotations

import pytest
import torch

from baselines import GMRES, DenseLU, DirectPolicy, Implicit, Neumann, Unrolled
from jfbcore.extras.compiled_step import SPAN, CompiledStep, compilation_reason
from jfbcore.jfb import JFB
from jfbcore.maps import ScaledMap
from jfbcore.policy import HamiltonianPolicy
from jfbcore.problems import Bicycle, Consumption, Quadrotor
from jfbcore.rollout import rollout
from jfbcore.solvers import Anderson, Newton, Picard
from jfbcore.value_network import ValueNetwork

#: captures and differentiates the graph, and generates no code
FAST = "aot_eager"
PROBLEMS = {
    "quadrotor": lambda: Quadrotor(3, n_steps=4),
    "bicycle": lambda: Bicycle(3, n_steps=4),
    "consumption": lambda: Consumption(3, n_steps=4),
}


def policy_of(problem, gradient, solver=None):
    solver = Picard(tolerance=1e-4 * problem.gradient_scale) if solver is None else solver
    network = ValueNetwork.for_problem(problem, generator=torch.Generator().manual_seed(0))
    return HamiltonianPolicy(
        problem, network, fixed_point_map=ScaledMap(), solver=solver, gradient=gradient
    )


def run(policy, **options):
    states = policy.problem.sample_initial_states(5, torch.Generator().manual_seed(1))
    policy.zero_grad()
    result = rollout(policy, states, **options)
    result.cost.mean().backward()
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in policy.parameters()]
    return result, torch.cat([grad.flatten() for grad in grads])


@pytest.mark.parametrize(
    ("problem", "backend"),
    [
        *((problem, FAST) for problem in PROBLEMS),
        # The code generator itself takes tens of seconds: once.
        ("quadrotor", "inductor"),
    ],
)
def test_jfb_to_a_tolerance(problem, backend):
    """Stops after as many iterations as eager and agrees to float32 rounding: a rollout of four
    steps amplifies 1e-7 by less than a hundred."""
    policy = policy_of(PROBLEMS[problem](), JFB())
    eager, gradient = run(policy, warm_start=True)
    compiled, found = run(policy, warm_start=True, advance=CompiledStep(policy, backend))
    torch.testing.assert_close(compiled.cost, eager.cost, rtol=1e-5, atol=0.0)
    assert (found - gradient).norm() <= 1e-5 * gradient.norm()
    assert compiled.inner.summary()["iterations"] == eager.inner.summary()["iterations"]


def fixed(problem, iterations):
    return policy_of(problem, JFB(2), Picard(tolerance=None, max_iterations=iterations))


def agrees(policy, advance, **options):
    """Costs, gradient and statistics of a compiled rollout against the eager one, to float32
    rounding: a rollout of a few steps amplifies 1e-7 by less than a hundred."""
    compiled, found = run(policy, advance=advance, **options)
    eager, gradient = run(policy, **options)
    torch.testing.assert_close(compiled.cost, eager.cost, rtol=1e-5, atol=0.0)
    assert (found - gradient).norm() <= 1e-5 * gradient.norm()
    assert compiled.inner.summary()["iterations"] == eager.inner.summary()["iterations"]
    if eager.hjb_penalty is not None:
        torch.testing.assert_close(compiled.hjb_penalty, eager.hjb_penalty, rtol=1e-5, atol=1e-7)


def test_a_coarser_grid_needs_no_new_graph():
    policy = fixed(Quadrotor(1, n_steps=4), 3)
    step = CompiledStep(policy, FAST, span=2)
    run(policy, advance=step)
    with torch.compiler.set_stance("fail_on_recompile"):
        run(policy, n_steps=2, advance=step)
    agrees(policy, step, n_steps=2)


@pytest.mark.parametrize("n_steps", [1, 3, 4, 5])
def test_time_steps_beyond_the_last_whole_span_go_one_by_one(n_steps):
    policy = policy_of(Bicycle(2, n_steps=n_steps), JFB())
    agrees(policy, CompiledStep(policy, FAST, span=2), warm_start=True, penalties=True)


@pytest.mark.parametrize("iterations", [3, 10, 23])
def test_a_loop_of_fixed_length(iterations):
    """Fewer applications than fit into one trip of the compiled loop, one trip, and more."""
    policy = fixed(Quadrotor(2, n_steps=2), iterations)
    agrees(policy, CompiledStep(policy, FAST, span=2))


@pytest.mark.parametrize("problem", PROBLEMS)
def test_implicit_with_conjugate_gradients_inside_the_graph(problem):
    problem = PROBLEMS[problem]()
    policy = policy_of(problem, Implicit())
    agrees(policy, CompiledStep(policy, FAST, span=2))


def test_implicit_with_a_neumann_series_inside_the_graph():
    policy = policy_of(PROBLEMS["consumption"](), Implicit(Neumann()))
    agrees(policy, CompiledStep(policy, FAST, span=2))


def newton(problem, **options):
    return Newton(tolerance=1e-4 * problem.gradient_scale, **options)


@pytest.mark.parametrize(
    ("problem", "solver"),
    [("quadrotor", newton), ("consumption", lambda _: Newton(tolerance=None, max_iterations=3))],
)
def test_newton_inside_the_graph(problem, solver):
    problem = PROBLEMS[problem]()
    policy = policy_of(problem, JFB(), solver(problem))
    agrees(policy, CompiledStep(policy, FAST, span=2), warm_start=True)


def test_newton_backtracks_inside_the_graph():
    """Costates so large that full steps are rejected, by some samples more often than by others."""
    problem = Quadrotor(2)
    generator = torch.Generator().manual_seed(0)
    states = problem.sample_initial_states(6, generator)
    sizes = torch.tensor([0.1, 1.0, 3.0, 10.0, 30.0, 100.0]).unsqueeze(1)
    costates = sizes * torch.randn(states.shape, generator=generator)

    def solve(solver, states, costates):
        hamiltonian = problem.hamiltonian(0.0, states, costates)
        found = solver.solve(ScaledMap().bind(hamiltonian), torch.zeros(len(states), 8))
        return found.control, found.iterations

    wanted, iterations = solve(newton(problem), states, costates)
    full_steps, _ = solve(newton(problem, max_halvings=1), states, costates)
    assert (full_steps - wanted).abs().max() > 0.1
    control, count = torch.compile(solve, backend=FAST, fullgraph=True)(
        newton(problem), states, costates
    )
    assert count == iterations
    torch.testing.assert_close(control, wanted, rtol=1e-5, atol=1e-6)


def test_spans_and_checkpointed_segments():
    policy = policy_of(Quadrotor(2, n_steps=6), JFB())
    agrees(policy, CompiledStep(policy, FAST, span=2), segment=3)


def test_a_graph_of_many_tracked_iterations_spans_one_step():
    problem = Quadrotor(1, n_steps=4)
    many = policy_of(problem, Unrolled(), Picard(tolerance=None, max_iterations=30))
    assert CompiledStep(many, FAST).span == 1
    assert CompiledStep(policy_of(problem, JFB()), FAST).span == SPAN


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("solver", [Picard(), Picard(tolerance=None, max_iterations=12)])
def test_on_a_gpu(solver):
    """Fused kernels add up in another order than the eager ones: rounding, as above."""
    policy = policy_of(Quadrotor(3, n_steps=8, device="cuda"), JFB(), solver)
    agrees(policy, CompiledStep(policy))


def test_unrolled_and_direct():
    problem = Quadrotor(2, n_steps=3)
    unrolled = policy_of(problem, Unrolled(), Picard(tolerance=None, max_iterations=4))
    direct = DirectPolicy(problem, generator=torch.Generator().manual_seed(0))
    for policy in (unrolled, direct):
        eager, gradient = run(policy)
        compiled, found = run(policy, advance=CompiledStep(policy, FAST))
        torch.testing.assert_close(compiled.cost, eager.cost, rtol=1e-5, atol=0.0)
        assert (found - gradient).norm() <= 1e-5 * gradient.norm()


@pytest.mark.parametrize(
    ("gradient", "solver", "reason"),
    [
        (Unrolled(), Picard(), "depends on the data"),
        (Unrolled(), Picard(tolerance=None, max_iterations=500), "at most 50"),
        (JFB(), Anderson(), "compile with Picard or Newton"),
        (Implicit(GMRES()), Picard(), "run it eager"),
        (Implicit(DenseLU()), Picard(), "compile with ConjugateGradient"),
        (Implicit(), Anderson(), "compile with Picard"),
    ],
)
def test_what_cannot_be_compiled_says_why(gradient, solver, reason):
    policy = policy_of(Quadrotor(1, n_steps=2), gradient, solver)
    assert reason in compilation_reason(policy)
    with pytest.raises(ValueError, match=reason):
        CompiledStep(policy)
