"""Hand-written derivatives against the plain formulas that they replace.

The value network's sweep is held to the gradient of phi in test_network, the Hamiltonians of the
suite's problems to their definition in problems/test_conformance.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from jfbcore.hamiltonian import DerivedHamiltonian
from jfbcore.kernels.costate import Costate, costate_formula
from jfbcore.kernels.interaction import Interaction
from jfbcore.kernels.quadrotor import ControlPull, Dynamics, attitude_of, control_pull_formula
from jfbcore.problems import PROBLEMS, Quadrotor
from jfbcore.problems.interaction import interaction_formula
from jfbcore.value_network import ValueNetwork
from tests.problems.test_conformance import draw_point

F64 = torch.float64
# Two float64 evaluations of one formula in different order.
ROUNDING = {"rtol": 1e-10, "atol": 1e-11}
every_size = pytest.mark.parametrize("n_agents", [1, 3, 7])


def agree(kernel, formula, inputs: tuple[Tensor, ...]) -> None:
    """Values, and derivatives by every one of `inputs` along one random direction."""
    inputs = tuple(x.clone().requires_grad_() for x in inputs)
    value, expected = kernel(*inputs), formula(*inputs)
    torch.testing.assert_close(value, expected, **ROUNDING)
    random = torch.Generator().manual_seed(5)
    along = torch.randn(value.shape, generator=random, dtype=F64)
    slopes = torch.autograd.grad(value, inputs, along)
    for a, b in zip(slopes, torch.autograd.grad(expected, inputs, along), strict=True):
        torch.testing.assert_close(a, b, **ROUNDING)


@every_size
def test_quadrotor_dynamics(n_agents):
    problem, point = Quadrotor(n_agents, dtype=F64), draw_point("quadrotor", n_agents)
    agree(
        lambda z, u: Dynamics.apply(problem, z, u, attitude_of(z)),
        problem.dynamics_formula,
        (point.z, point.u),
    )


@every_size
def test_quadrotor_control_pull(n_agents):
    problem, point = Quadrotor(n_agents, dtype=F64), draw_point("quadrotor", n_agents)
    agree(
        lambda z, p: ControlPull.apply(problem, z, p, attitude_of(z)),
        lambda z, p: control_pull_formula(problem, z, p),
        (point.z, point.p),
    )
    u = point.u.clone().requires_grad_()
    along = -(point.p * problem.dynamics_formula(point.z, u)).sum()
    (expected,) = torch.autograd.grad(along, u)
    torch.testing.assert_close(control_pull_formula(problem, point.z, point.p), expected)


@pytest.mark.parametrize("n_agents", [2, 7])
def test_interaction(n_agents):
    random = torch.Generator().manual_seed(0)
    positions = torch.randn(4, n_agents, 3, generator=random, dtype=F64)
    agree(lambda x: Interaction.apply(interaction_formula, x), interaction_formula, (positions,))


@pytest.mark.parametrize("depth", [1, 3])
def test_costate(depth):
    random = torch.Generator().manual_seed(0)
    network = ValueNetwork(5, 7, depth, generator=random, dtype=F64)
    z = torch.randn(4, 5, generator=random, dtype=F64)
    parameters = network._sweep_parameters()
    step = network.residual_step
    agree(
        lambda z: Costate.apply(step, 0.3, z, *parameters),
        lambda z: costate_formula(step, 0.3, z, *parameters),
        (z,),
    )


@pytest.mark.parametrize("name", PROBLEMS)
@every_size
def test_hamiltonians(name, n_agents):
    """The problems' own, against what is derived from their formulas."""
    point = draw_point(name, n_agents)
    own = point.hamiltonian()
    derived = DerivedHamiltonian(point.problem, point.t, point.z, point.p)
    v = torch.randn(point.u.shape, generator=torch.Generator().manual_seed(1), dtype=F64)
    torch.testing.assert_close(own.value(point.u), derived.value(point.u), **ROUNDING)
    torch.testing.assert_close(own.grad(point.u), derived.grad(point.u), **ROUNDING)
    torch.testing.assert_close(own.hvp(point.u, v), derived.hvp(point.u, v), **ROUNDING)


def test_second_derivatives_through_a_chain_are_those_of_the_formula():
    """Two Euler steps whose second control depends on the first state: a derivative of the second
    step by its state must not go through its control, whose own way there is added elsewhere."""
    problem = Quadrotor(2, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    start = 0.3 * torch.randn(3, problem.state_dim, generator=generator, dtype=torch.float64)

    def twice(step):
        z = start.clone().requires_grad_()
        after = z + 0.1 * step(z, z[:, : problem.control_dim])
        after = after + 0.1 * step(after, after[:, : problem.control_dim].sin())
        (slope,) = torch.autograd.grad(after.square().sum(), z, create_graph=True)
        (second,) = torch.autograd.grad(slope.square().sum(), z)
        return second

    expected = twice(problem.dynamics_formula)
    # Sums of a few terms of order one in another order.
    torch.testing.assert_close(twice(lambda z, u: problem.dynamics(0.0, z, u)), expected)
