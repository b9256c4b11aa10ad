"""A problem that is four formulas: what is derived from them, and training with it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from baselines import METHODS, DenseLU, Implicit, build_policy
from jfbcore.hamiltonian import MOST_DENSE, DerivedHamiltonian
from jfbcore.maps import MAPS
from jfbcore.problems import PROBLEMS
from jfbcore.rollout import rollout
from jfbcore.solvers import SOLVERS, Picard
from tests.problems.double_integrator import DoubleIntegrator
from tests.problems.test_conformance import draw_point

F64 = torch.float64
# More controls than the dense Hessian takes, and as few as one agent has.
every_size = pytest.mark.parametrize("n_agents", [1, 3, MOST_DENSE])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def point(n_agents: int, *, size: float = 1.0, batch: int = 4, dtype=F64):
    """A double integrator's Hamiltonian, its costates of the given size, and a control."""
    problem, random = DoubleIntegrator(n_agents, dtype=dtype), generator()
    z = problem.sample_initial_states(batch, random)
    p = (size * torch.randn(z.shape, generator=random, dtype=F64)).to(dtype)
    u = torch.randn(batch, problem.control_dim, generator=random, dtype=F64).to(dtype)
    return problem.hamiltonian(0.0, z, p), u / problem.control_dim**0.5


def exact_hessian(u: Tensor) -> Tensor:
    """That of -exp(|u|^2 / 2): the dynamics are linear in u."""
    weight = (0.5 * u.square().sum(1)).exp()[:, None, None]
    return -weight * (torch.eye(u.shape[1], dtype=u.dtype) + u.unsqueeze(2) * u.unsqueeze(1))


@every_size
class TestDoubleIntegrator:
    def test_gradient_and_hessian_products(self, n_agents):
        h, u = point(n_agents)
        _, _, p = h.inputs
        c = p.view(len(u), n_agents, 4)[..., 2:].flatten(1)
        weight = (0.5 * u.square().sum(1, keepdim=True)).exp()
        torch.testing.assert_close(h.grad(u), -c - weight * u, rtol=1e-12, atol=1e-12)
        v = torch.randn(u.shape, generator=generator(1), dtype=F64)
        expected = (exact_hessian(u) @ v.unsqueeze(2)).squeeze(2)
        torch.testing.assert_close(h.hvp(u, v), expected, rtol=1e-12, atol=1e-12)

    def test_scaling_makes_a_contraction(self, n_agents):
        h, u = point(n_agents)
        scaling = h.curvature_scaling(u)
        assert scaling.shape == u.shape
        assert not scaling.requires_grad
        # D^(1/2) Hessian D^(1/2) has the eigenvalues of D Hessian.
        root = scaling.sqrt()
        values = torch.linalg.eigvalsh(root.unsqueeze(1) * exact_hessian(u) * root.unsqueeze(2))
        assert (1.0 + values).abs().max() < 1.0

    @pytest.mark.parametrize("dtype", [torch.float32, F64])
    @pytest.mark.parametrize("size", [0.0, 1e-3, 1.0, 100.0])
    def test_picard_converges_from_zero(self, n_agents, size, dtype):
        """The first step, of the length of the costate, must not land where exp overflows."""
        h, u = point(n_agents, size=size, dtype=dtype)
        tolerance = 1e-4 * max(size, 1.0)
        solved = Picard(tolerance=tolerance).solve(MAPS["scaled"].bind(h), torch.zeros_like(u))
        assert solved.converged.all()
        assert solved.iterations <= (40 if size <= 1.0 else 100)

    def test_newton_direction(self, n_agents):
        h, u = point(n_agents)
        r = torch.randn(u.shape, generator=generator(1), dtype=F64).requires_grad_()
        direction = h.newton_direction(u, r)
        assert ((direction * r).sum(1) > 0).all()
        if 2 * n_agents <= MOST_DENSE:
            expected = torch.linalg.solve(-exact_hessian(u), r.unsqueeze(2)).squeeze(2)
            torch.testing.assert_close(direction, expected, rtol=1e-10, atol=1e-10)
        assert torch.autograd.grad(direction.sum(), r)[0].any()

    def test_inference_mode(self, n_agents):
        h, u = point(n_agents)
        with torch.inference_mode():
            again, w = point(n_agents)
            for name in ("value", "grad", "curvature_scaling"):
                expected = getattr(h, name)(u)
                torch.testing.assert_close(getattr(again, name)(w), expected)


def test_step_of_the_plain_map_is_half_the_inverse_curvature():
    for n_agents in (1, MOST_DENSE):
        h, u = point(n_agents)
        # At zero control the Hessian is minus the identity.
        torch.testing.assert_close(h.plain_step_size, u.new_full((4, 1), 0.5))


def test_gradient_is_differentiable_in_state_costate_and_control():
    problem = PROBLEMS["bicycle"](n_agents=2, dtype=F64)
    at = draw_point("bicycle", 2, batch=2)

    def grad(z: Tensor, p: Tensor, u: Tensor) -> Tensor:
        return DerivedHamiltonian(problem, at.t, z, p).grad(u)

    inputs = tuple(x.requires_grad_() for x in (at.z, at.p, at.u))
    assert torch.autograd.gradcheck(grad, inputs)
    # torch.func's transforms take another way to the same numbers.
    cotangent = torch.randn(at.u.shape, generator=generator(), dtype=F64)
    expected = torch.autograd.grad(grad(*inputs), inputs, cotangent)
    for a, b in zip(torch.func.vjp(grad, *inputs)[1](cotangent), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


def test_nonconcave_hamiltonian_gets_ascent_directions():
    """The bicycle's H bends upwards at large steering: D and the direction stay positive."""
    problem = PROBLEMS["bicycle"](n_agents=2, dtype=F64)
    z = problem.sample_initial_states(3, generator())
    p = torch.full_like(z, -3.0)
    u = torch.tensor([[1.2, 0.1, -1.2, 0.3]], dtype=F64).repeat(3, 1)
    h = DerivedHamiltonian(problem, 0.0, z, p)
    assert (h.hvp(u, torch.ones_like(u)) > 0).any()
    r = h.grad(u)
    assert ((h.newton_direction(u, r) * r).sum(1) > 0).all()
    assert (h.curvature_scaling(u) > 0).all()


@pytest.mark.parametrize(
    "gradient", ["jfb", "implicit", "unrolled", "unrolled-checkpoint", "direct"]
)
def test_training_with_default_settings(gradient):
    problem, random = DoubleIntegrator(), generator(1)
    policy = build_policy(
        problem, METHODS[gradient], fixed_point_map=MAPS["scaled"], solver=SOLVERS["picard"](),
        generator=generator(),
    )  # fmt: skip
    optimizer = torch.optim.Adam(policy.parameters(), lr=5e-3)
    costs = []
    for _ in range(8):
        result = rollout(policy, problem.sample_initial_states(8, random))
        optimizer.zero_grad()
        result.cost.mean().backward()
        optimizer.step()
        costs.append(result.cost.mean().item())
    assert costs[-1] < 0.8 * costs[0]
    if (inner := result.inner.summary()) is not None:
        assert inner["iterations"]["max"] <= 30
        assert inner["residual"]["max"] <= 1e-4


def test_gradients_agree_at_a_tight_tolerance():
    """Implicit, unrolled and JFB on the Newton map, on the derived Hamiltonian."""
    problem, found = DoubleIntegrator(2, n_steps=5, dtype=F64), {}
    z = problem.sample_initial_states(4, generator(1))
    for name, estimator, kind in (
        ("dense", Implicit(DenseLU()), "scaled"),
        ("implicit", METHODS["implicit"], "scaled"),
        ("unrolled", METHODS["unrolled"], "scaled"),
        ("newton", METHODS["jfb"], "newton"),
    ):
        policy = build_policy(
            problem, estimator, fixed_point_map=MAPS[kind],
            solver=Picard(tolerance=1e-12), generator=generator(), width=8,
        )  # fmt: skip
        with torch.no_grad():
            policy.value_network.linear.fill_(1.0)  # controls of order one
        rollout(policy, z).cost.mean().backward()
        found[name] = torch.cat(
            [p.grad.flatten() for p in policy.parameters() if p.grad is not None]
        )
    for name in ("implicit", "unrolled", "newton"):
        # The linear solver's tolerance; an unrolled iteration lags behind by one application.
        torch.testing.assert_close(found[name], found["dense"], rtol=1e-4, atol=1e-6)
