"""What every registered problem must satisfy, whatever it describes.

Everything runs in float64 at states a short way into a simulation, and is compared with the
definition H = -<p, f> - L differentiated by autograd or by finite differences.
"""

from __future__ import annotations

import inspect
import itertools
import math

import pytest
import torch
from torch import Tensor

from bench.check import points
from bench.check.points import BATCH, Point, generator
from bench.check.requirement import require_close
from jfbcore.problems import PROBLEMS
from jfbcore.solvers import ClosedForm

F64 = torch.float64
# Two float64 evaluations of one formula in different order: rounding, times a few dozen terms.
ROUNDING = {"rtol": 1e-10, "atol": 1e-11}

every_problem = pytest.mark.parametrize("name", PROBLEMS)
every_size = pytest.mark.parametrize("n_agents", [1, 2, 3, 7])


@every_problem
def test_wrong_shapes_are_named(name):
    problem = PROBLEMS[name](n_agents=2, dtype=F64)
    z = problem.sample_initial_states(BATCH, generator())
    u = problem.initial_control(0.0, z)
    width = problem.state_dim
    for call in (
        lambda: problem.dynamics(0.0, z[:, :-1], u),
        lambda: problem.running_cost(0.0, z[:, :-1], u),
        lambda: problem.terminal_cost(z[:, :-1]),
        lambda: problem.hamiltonian(0.0, z[:, :-1], z),
    ):
        with pytest.raises(ValueError, match=rf"`z` must have shape \(batch, {width}\)"):
            call()
    for call in (problem.dynamics, problem.running_cost):
        with pytest.raises(ValueError, match=rf"`u` .*{name} with 2 agents, got \(4, "):
            call(0.0, z, torch.cat([u, u], 1))
    with pytest.raises(ValueError, match=r"`p` must have shape"):
        problem.hamiltonian(0.0, z, z[0])
    with pytest.raises(TypeError, match="`generator` must be"):
        problem.sample_initial_states(BATCH, None)


@every_problem
def test_inference_mode_changes_nothing(name):
    point = draw_point(name, 3)
    expected = [f(point.u) for f in (point.hamiltonian().value, point.hamiltonian().grad)]
    with torch.inference_mode():
        u = point.u.clone()
        hamiltonian = point.hamiltonian()
        for f, value in zip((hamiltonian.value, hamiltonian.grad), expected, strict=True):
            torch.testing.assert_close(f(u), value, **ROUNDING)
    # What a problem first made there, for a control from outside, must not be in a graph's way.
    problem = PROBLEMS[name](n_agents=3, dtype=F64)
    with torch.inference_mode():
        problem.hamiltonian(point.t, point.z, point.p).grad(point.u)
    u = point.u.clone().requires_grad_()
    hamiltonian = problem.hamiltonian(point.t, point.z, point.p)
    hamiltonian.grad(u).sum().backward()
    expected = -hamiltonian.hvp(point.u, torch.ones_like(point.u))
    torch.testing.assert_close(-u.grad, expected, **ROUNDING)


def by_definition(point: Point, z: Tensor, p: Tensor, u: Tensor) -> Tensor:
    """H = -<p, f> - L, (batch,)."""
    problem, t = point.problem, point.t
    return -(p * problem.dynamics(t, z, u)).sum(1) - problem.running_cost(t, z, u)


def gradient_by_definition(point: Point) -> Tensor:
    """The gradient of H in u, with a graph, by autograd through f and L."""
    value = by_definition(point, point.z, point.p, point.u)
    return torch.autograd.grad(value.sum(), point.u, create_graph=True)[0]


def draw_point(name: str, n_agents: int, *, batch: int = BATCH, seed: int = 0) -> Point:
    return points.draw_point(PROBLEMS[name], n_agents, batch=batch, seed=seed)


@every_problem
@every_size
class TestHamiltonian:
    def test_value(self, name, n_agents):
        point = draw_point(name, n_agents)
        expected = by_definition(point, point.z, point.p, point.u)
        require_close(point.hamiltonian().value(point.u), expected, "H")

    def test_control_and_constant_parts(self, name, n_agents):
        point, other = draw_point(name, n_agents), draw_point(name, n_agents, seed=1)
        h = point.hamiltonian()
        torch.testing.assert_close(
            h.value(point.u), h.control_part(point.u) + h.constant_part(), **ROUNDING
        )
        other_u = h.project(other.u)
        torch.testing.assert_close(
            h.value(point.u) - h.value(other_u),
            h.control_part(point.u) - h.control_part(other_u),
            **ROUNDING,
        )

    def test_gradient_against_autograd(self, name, n_agents):
        point = draw_point(name, n_agents).require_grad()
        expected = gradient_by_definition(point)
        require_close(point.hamiltonian().grad(point.u), expected, "grad H")

    def test_gradient_against_finite_differences(self, name, n_agents):
        point = draw_point(name, n_agents)
        step = 1e-5
        found = point.hamiltonian().grad(point.u)
        for k in range(point.problem.control_dim):
            unit = torch.zeros_like(point.u)
            unit[:, k] = step
            up = by_definition(point, point.z, point.p, point.u + unit)
            down = by_definition(point, point.z, point.p, point.u - unit)
            # Central differences: truncation ~step^2 times third derivatives (up to ~1e2 here),
            # rounding ~1e-15 |H| / step with |H| up to ~1e2.
            torch.testing.assert_close(found[:, k], (up - down) / (2 * step), rtol=1e-6, atol=1e-7)

    def test_hessian_vector_product(self, name, n_agents):
        point = draw_point(name, n_agents).require_grad()
        v = torch.randn(point.u.shape, generator=generator(1), dtype=F64)
        (expected,) = torch.autograd.grad(gradient_by_definition(point), point.u, v)
        require_close(point.hamiltonian().hvp(point.u, v), expected, "hvp")

    def test_mixed_derivatives(self, name, n_agents):
        """In u, z and p: every gradient estimator is made of them."""
        point = draw_point(name, n_agents).require_grad()
        w = torch.randn(point.u.shape, generator=generator(1), dtype=F64)
        inputs = (point.u, point.z, point.p)
        found, expected = (
            torch.autograd.grad(of, inputs, w, allow_unused=True, materialize_grads=True)
            for of in (point.hamiltonian().grad(point.u), gradient_by_definition(point))
        )
        for a, b in zip(found, expected, strict=True):
            require_close(a, b, "a derivative of grad H")

    def test_derivatives_of_the_value(self, name, n_agents):
        point = draw_point(name, n_agents).require_grad()
        inputs = (point.u, point.z, point.p)
        expected = torch.autograd.grad(
            by_definition(point, point.z, point.p, point.u).sum(), inputs
        )
        found = torch.autograd.grad(point.hamiltonian().value(point.u).sum(), inputs)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, **ROUNDING)

    # A value network may start with a zero gradient, and its costates are of any size later.
    @pytest.mark.parametrize("dtype", [torch.float32, F64])
    @pytest.mark.parametrize("scale", [0.0, 1e-8, 1.0, 1e3, 1e6])
    def test_steps_are_usable_at_any_costate(self, name, n_agents, scale, dtype):
        """The scaling is positive: else u + D grad(u) has fixed points that solve nothing."""
        problem, random = PROBLEMS[name](n_agents=n_agents, dtype=dtype), generator()
        z = problem.sample_initial_states(BATCH, random)
        p = scale * torch.randn(z.shape, generator=random, dtype=F64).to(dtype)
        h, start = problem.hamiltonian(0.0, z, p), problem.initial_control(0.0, z)
        for u in (start, h.project(start + 2.0), h.project(start - 2.0)):
            scaling = h.curvature_scaling(u)
            assert (scaling > 0).all()
            assert scaling.isfinite().all()
            assert h.newton_direction(u, torch.ones_like(u)).isfinite().all()

    def test_control_coefficient(self, name, n_agents):
        """c = (df/du)^T p where the dynamics are affine in u, and None where they are not."""
        point = draw_point(name, n_agents)
        problem, other = point.problem, draw_point(name, n_agents, seed=1).u

        def coefficient(u: Tensor) -> Tensor:
            u = u.clone().requires_grad_()
            along = (point.p * problem.dynamics(point.t, point.z, u)).sum()
            return torch.autograd.grad(along, u)[0]

        found = point.hamiltonian().control_coefficient()
        if found is None:
            assert not torch.allclose(coefficient(point.u), coefficient(other))
        else:
            torch.testing.assert_close(found, coefficient(point.u), **ROUNDING)
            torch.testing.assert_close(found, coefficient(other), **ROUNDING)

    def test_inputs_are_left_alone(self, name, n_agents):
        point = draw_point(name, n_agents).require_grad()
        given = [x.detach().clone() for x in (point.z, point.p, point.u)]
        h = point.hamiltonian()
        found = (
            h.value(point.u).sum()
            + h.grad(point.u).sum()
            + h.hvp(point.u, point.u.detach()).sum()
            + h.newton_direction(point.u, point.u.detach()).sum()
            + h.curvature_scaling(point.u).sum()
            + h.project(point.u).sum()
            + point.problem.terminal_cost(point.z).sum()
        )
        found.backward()
        for x, before in zip((point.z, point.p, point.u), given, strict=True):
            assert torch.equal(x.detach(), before)


@pytest.mark.parametrize(
    "name", [name for name in PROBLEMS if ClosedForm().supports(PROBLEMS[name](2)) is None]
)
@every_size
def test_closed_form_is_stationary(name, n_agents):
    point = draw_point(name, n_agents).require_grad()
    h = point.hamiltonian()
    u = h.closed_form()
    assert not u.requires_grad
    residual = h.grad(u)
    if h.constrained:
        residual = residual * h.interior(u)
    # The terms of the gradient are of order one to ten and cancel.
    assert residual.abs().max() < 1e-11


@every_problem
@every_size
class TestShapesAndTypes:
    @pytest.mark.parametrize("dtype", [torch.float32, F64])
    def test_shapes_and_dtypes(self, name, n_agents, dtype):
        problem = PROBLEMS[name](n_agents=n_agents, dtype=dtype)
        n, m = problem.state_dim, problem.control_dim
        assert problem.n_agents == n_agents
        assert problem.time_step == problem.t_final / problem.n_steps
        z = problem.sample_initial_states(BATCH, generator())
        u = problem.initial_control(0.0, z.requires_grad_())
        assert not u.requires_grad
        z = z.detach()
        p = problem.initial_costate().expand_as(z)
        h = problem.hamiltonian(0.0, z, p)
        for tensor, shape in [
            (z, (BATCH, n)),
            (u, (BATCH, m)),
            (problem.initial_costate(), (n,)),
            (problem.dynamics(0.0, z, u), (BATCH, n)),
            (problem.running_cost(0.0, z, u), (BATCH,)),
            (problem.terminal_cost(z), (BATCH,)),
            (h.value(u), (BATCH,)),
            (h.control_part(u), (BATCH,)),
            (h.constant_part(), (BATCH,)),
            (h.grad(u), (BATCH, m)),
            (h.hvp(u, u), (BATCH, m)),
            (h.newton_direction(u, u), (BATCH, m)),
            (h.project(u), (BATCH, m)),
        ]:
            assert tensor.shape == shape
            assert tensor.dtype == dtype
            assert tensor.isfinite().all()

    def test_float32_agrees_with_float64(self, name, n_agents):
        point = draw_point(name, n_agents)
        single = PROBLEMS[name](n_agents=n_agents)
        z, p, u = (x.float() for x in (point.z, point.p, point.u))
        h, h32 = point.hamiltonian(), single.hamiltonian(point.t, z, p)
        for found, expected in [
            (single.dynamics(point.t, z, u), point.problem.dynamics(point.t, point.z, point.u)),
            (
                single.running_cost(point.t, z, u),
                point.problem.running_cost(point.t, point.z, point.u),
            ),
            (single.terminal_cost(z), point.problem.terminal_cost(point.z)),
            (h32.value(u), h.value(point.u)),
            (h32.grad(u), h.grad(point.u)),
            (h32.hvp(u, u), h.hvp(point.u, point.u)),
        ]:
            assert found.dtype == torch.float32
            # float32 rounding is 6e-8; sums of up to 84 terms that partly cancel, relative to
            # the largest entry.
            scale = expected.abs().max().item()
            torch.testing.assert_close(found.double(), expected, rtol=2e-5, atol=5e-6 * scale)

    def test_time_may_be_a_number_or_a_tensor(self, name, n_agents):
        point = draw_point(name, n_agents)
        problem, z, p, u = point.problem, point.z, point.p, point.u

        def everything(t):
            h = problem.hamiltonian(t, z, p)
            return torch.cat(
                [
                    problem.dynamics(t, z, u),
                    problem.running_cost(t, z, u)[:, None],
                    h.value(u)[:, None],
                    h.grad(u),
                    h.hvp(u, u),
                    h.curvature_scaling(u).expand_as(u),
                    problem.initial_control(t, z),
                ],
                1,
            )

        expected = everything(0.7)
        for t in (torch.tensor(0.7, dtype=F64), torch.full((BATCH,), 0.7, dtype=F64)):
            torch.testing.assert_close(everything(t), expected, **ROUNDING)

    def test_any_strides(self, name, n_agents):
        point = draw_point(name, n_agents)
        problem, h = point.problem, point.hamiltonian()
        z, p, u = (x.t().contiguous().t() for x in (point.z, point.p, point.u))
        assert not z.is_contiguous() or problem.state_dim == 1
        h2 = problem.hamiltonian(point.t, z, p)
        for found, expected in [
            (problem.dynamics(point.t, z, u), problem.dynamics(point.t, point.z, point.u)),
            (problem.running_cost(point.t, z, u), problem.running_cost(point.t, point.z, point.u)),
            (problem.terminal_cost(z), problem.terminal_cost(point.z)),
            (h2.value(u), h.value(point.u)),
            (h2.grad(u), h.grad(point.u)),
            (h2.project(u), h.project(point.u)),
        ]:
            torch.testing.assert_close(found, expected, **ROUNDING)

    def test_a_simulation_with_the_initial_control_stays_finite(self, name, n_agents):
        problem = PROBLEMS[name](n_agents=n_agents)
        z = problem.sample_initial_states(BATCH, generator())
        for i in range(problem.n_steps):
            t = i * problem.time_step
            u = problem.initial_control(t, z)
            assert problem.running_cost(t, z, u).isfinite().all()
            z = z + problem.time_step * problem.dynamics(t, z, u)
        assert problem.terminal_cost(z).isfinite().all()

    def test_samples_are_independent(self, name, n_agents):
        """Each sample of a batch is treated as if it were alone."""
        point = draw_point(name, n_agents)
        problem, h = point.problem, point.hamiltonian()
        for i in range(BATCH):
            z, p, u = (x[i : i + 1] for x in (point.z, point.p, point.u))
            alone = problem.hamiltonian(point.t, z, p)
            torch.testing.assert_close(alone.grad(u)[0], h.grad(point.u)[i], **ROUNDING)
            torch.testing.assert_close(alone.value(u)[0], h.value(point.u)[i], **ROUNDING)
            torch.testing.assert_close(
                alone.curvature_scaling(u)[0], h.curvature_scaling(point.u)[i], **ROUNDING
            )


@every_problem
@pytest.mark.parametrize("n_agents", [1, 3])
class TestDerivativesOfTheProblem:
    def functions(self, point: Point):
        problem, t = point.problem, point.t
        return [
            (lambda z, u: problem.dynamics(t, z, u), (point.z, point.u)),
            (lambda z, u: problem.running_cost(t, z, u), (point.z, point.u)),
            (lambda z: problem.terminal_cost(z), (point.z,)),
            (lambda z, p, u: problem.hamiltonian(t, z, p).grad(u), (point.z, point.p, point.u)),
        ]

    def test_first_derivatives(self, name, n_agents):
        # gradcheck's own defaults: central differences with a step of 1e-6 in float64.
        point = draw_point(name, n_agents, batch=2).require_grad()
        for function, inputs in self.functions(point):
            assert torch.autograd.gradcheck(function, inputs)

    def test_second_derivatives(self, name, n_agents):
        point = draw_point(name, n_agents, batch=1).require_grad()
        for function, inputs in self.functions(point):
            # The fast mode projects on random directions: the full one is quadratic in size.
            assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)

    def test_forward_over_vmap_and_reverse(self, name, n_agents):
        """torch.func transforms give the same first derivatives as autograd."""
        point = draw_point(name, n_agents)
        for function, inputs in self.functions(point):
            # `function` wants a batch; vmap hands it one sample at a time.
            def single(*x, function=function):
                return function(*(a.unsqueeze(0) for a in x)).squeeze(0)

            everything = tuple(range(len(inputs)))
            value = torch.func.vmap(single)(*inputs)
            torch.testing.assert_close(value, function(*inputs), **ROUNDING)
            found = torch.func.vmap(torch.func.jacrev(single, everything))(*inputs)
            forward = torch.func.vmap(torch.func.jacfwd(single, everything))(*inputs)
            inputs = tuple(x.clone().requires_grad_() for x in inputs)
            output = function(*inputs)
            for k in range(output[0].numel()):
                expected = torch.autograd.grad(
                    output.reshape(BATCH, -1)[:, k].sum(),
                    inputs,
                    retain_graph=True,
                    allow_unused=True,
                    materialize_grads=True,
                )
                for a, b, c in zip(found, forward, expected, strict=True):
                    size = c.shape[1]
                    torch.testing.assert_close(a.reshape(BATCH, -1, size)[:, k], c, **ROUNDING)
                    torch.testing.assert_close(b.reshape(BATCH, -1, size)[:, k], c, **ROUNDING)


def agent_permutation(name: str, n_agents: int, order: list[int]) -> tuple[list[int], list[int]]:
    """Index lists that permute agents in a state and in a control; shared entries come first."""
    one, two = PROBLEMS[name](n_agents=1), PROBLEMS[name](n_agents=2)
    width = two.state_dim - one.state_dim
    shared = one.state_dim - width
    state = [*range(shared), *(shared + width * i + k for i in order for k in range(width))]
    width = two.control_dim - one.control_dim
    return state, [width * i + k for i in order for k in range(width)]


@every_problem
@pytest.mark.parametrize("n_agents", [2, 3, 7])
def test_permuting_agents_permutes_everything(name, n_agents):
    point = draw_point(name, n_agents)
    problem, h = point.problem, point.hamiltonian()
    order = torch.randperm(n_agents, generator=generator(3)).tolist()
    if order == sorted(order):
        order.reverse()
    states, controls = agent_permutation(name, n_agents, order)
    z, p, u = point.z[:, states], point.p[:, states], point.u[:, controls]
    moved = problem.hamiltonian(point.t, z, p)
    for found, expected in [
        (problem.dynamics(point.t, z, u), problem.dynamics(point.t, point.z, point.u)[:, states]),
        (problem.running_cost(point.t, z, u), problem.running_cost(point.t, point.z, point.u)),
        (problem.terminal_cost(z), problem.terminal_cost(point.z)),
        (moved.value(u), h.value(point.u)),
        (moved.grad(u), h.grad(point.u)[:, controls]),
        (moved.hvp(u, u), h.hvp(point.u, point.u)[:, controls]),
        (moved.newton_direction(u, u), h.newton_direction(point.u, point.u)[:, controls]),
        (problem.initial_control(0.0, z), problem.initial_control(0.0, point.z)[:, controls]),
    ]:
        torch.testing.assert_close(found, expected, **ROUNDING)


@every_problem
class TestSampling:
    def test_same_generator_same_states_in_every_dtype(self, name):
        single = PROBLEMS[name](n_agents=3).sample_initial_states(50, generator())
        double = PROBLEMS[name](n_agents=3, dtype=F64).sample_initial_states(50, generator())
        assert single.dtype == torch.float32
        assert double.dtype == F64
        # The draw is the same; scaling and shifting it round once each.
        torch.testing.assert_close(single.double(), double, rtol=2.5e-7, atol=1e-8)

    def test_the_generator_decides(self, name):
        problem, random = PROBLEMS[name](n_agents=2), generator(5)
        first, second = (problem.sample_initial_states(8, random) for _ in range(2))
        assert not torch.equal(first, second)  # the generator moves on
        assert torch.equal(first, problem.sample_initial_states(8, generator(5)))
        with torch.random.fork_rng():
            torch.manual_seed(0)  # the global state has no say
            assert torch.equal(first, problem.sample_initial_states(8, generator(5)))

    @pytest.mark.parametrize("batch", [0, -1, 2.5, True, "3"])
    def test_bad_batch(self, name, batch):
        with pytest.raises((TypeError, ValueError), match="`batch` must be"):
            PROBLEMS[name]().sample_initial_states(batch, generator())


def options(name: str) -> dict[str, inspect.Parameter]:
    found = dict(inspect.signature(PROBLEMS[name]).parameters)
    found.pop(next(iter(found)))  # the number of agents, under whatever name
    return found


NUMBERS = [
    (name, option)
    for name in PROBLEMS
    for option, parameter in options(name).items()
    if isinstance(parameter.default, float)
]
SEQUENCES = [
    (name, option)
    for name in PROBLEMS
    for option, parameter in options(name).items()
    if isinstance(parameter.default, tuple)
]


@every_problem
class TestArguments:
    def test_options_are_keywords_with_defaults_and_kept(self, name):
        problem = PROBLEMS[name]()
        for option, parameter in options(name).items():
            assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
            if option != "n_agents":
                assert getattr(problem, option) == (
                    torch.device("cpu") if option == "device" else parameter.default
                )

    def test_one_agent_by_default(self, name):
        assert PROBLEMS[name]().n_agents == 1

    @pytest.mark.parametrize("bad", [0, -3])
    def test_too_few_agents(self, name, bad):
        with pytest.raises(ValueError, match=rf"`n_\w+` must be >= 1, got {bad}"):
            PROBLEMS[name](bad)
        with pytest.raises(ValueError, match=rf"`n_agents` must be >= 1, got {bad}"):
            PROBLEMS[name](n_agents=bad)

    @pytest.mark.parametrize("bad", [2.5, 3.0, True, "3", [3]])
    def test_agents_of_the_wrong_type(self, name, bad):
        with pytest.raises(TypeError, match=r"`n_agents` must be an integer >= 1, got"):
            PROBLEMS[name](n_agents=bad)

    def test_unknown_option(self, name):
        with pytest.raises(TypeError, match="no_such_option"):
            PROBLEMS[name](no_such_option=1.0)

    def test_options_are_not_positional(self, name):
        with pytest.raises(TypeError, match="positional"):
            PROBLEMS[name](1, 0.5)

    @pytest.mark.parametrize("bad", [torch.float16, torch.int64, "float32", None])
    def test_bad_dtype(self, name, bad):
        with pytest.raises(ValueError, match="`dtype` must be"):
            PROBLEMS[name](dtype=bad)

    @pytest.mark.parametrize("bad", [0, -1, 2.5, True, "160"])
    def test_bad_n_steps(self, name, bad):
        with pytest.raises((TypeError, ValueError), match="`n_steps` must be"):
            PROBLEMS[name](n_steps=bad)


@pytest.mark.parametrize(("name", "option"), NUMBERS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 10**400])
def test_numbers_must_be_finite(name, option, bad):
    with pytest.raises(ValueError, match=f"`{option}` must be finite"):
        PROBLEMS[name](**{option: bad})


@pytest.mark.parametrize(("name", "option"), NUMBERS)
@pytest.mark.parametrize("bad", ["1.0", None, True, [1.0]])
def test_numbers_must_be_numbers(name, option, bad):
    with pytest.raises(TypeError, match=f"`{option}` must be a number"):
        PROBLEMS[name](**{option: bad})


@pytest.mark.parametrize(("name", "option"), SEQUENCES)
@pytest.mark.parametrize("bad", ["nan", "inf", "text", "short", "long", "number"])
def test_sequences_must_be_finite_numbers(name, option, bad):
    default = options(name)[option].default
    value = {
        "nan": (math.nan, *default[1:]),
        "inf": (*default[:-1], math.inf),
        "text": ("x", *default[1:]),
        "short": default[1:],
        "long": (*default, 0.0),
        "number": 2.0,
    }[bad]
    with pytest.raises((TypeError, ValueError), match=f"`{option}`"):
        PROBLEMS[name](**{option: value})


@every_problem
@pytest.mark.parametrize("n_agents", [1, 100])
def test_gradient_scale(name, n_agents):
    scale = PROBLEMS[name](n_agents=n_agents).gradient_scale
    assert isinstance(scale, float)
    assert 0.0 < scale < math.inf


@every_problem
def test_sizes_grow_with_the_agents(name):
    sizes = [PROBLEMS[name](n_agents=n) for n in (1, 2, 3, 100)]
    for a, b in itertools.pairwise(sizes):
        assert a.state_dim < b.state_dim
        assert a.control_dim < b.control_dim
