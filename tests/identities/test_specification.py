"""The library is held to its specification, the hundred lines of jfbcore/minimal.py.

The two share no code. The specification takes costates by automatic differentiation of phi, the
library by a sweep written by hand, and so on for the dynamics and the interaction cost.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from jfbcore import minimal
from jfbcore.jfb import JFB
from jfbcore.maps import ScaledMap
from jfbcore.policy import HamiltonianPolicy
from jfbcore.problems import Quadrotor
from jfbcore.rollout import rollout
from jfbcore.solvers import Picard
from jfbcore.value_network import ValueNetwork
from tests.problems.test_conformance import F64, generator

SOURCE = Path(minimal.__file__)
#: Two float64 evaluations of the same formulas in different order. Norms of measured differences
#: are below 1e-15; the rest is for other processors and libraries, which round differently. A
#: derivative more or less, or a constant changed by 1e-4, is seen as 1e-9 or more.
TOLERANCE = 1e-12

every_size = pytest.mark.parametrize("n_agents", [1, 20, 100])


def in_the_specification(library: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The library network's tensors under the specification's names.

    The library keeps the column that multiplies time apart; the specification has y = (z, t).
    """

    def with_time(name: str) -> Tensor:
        own, time = library[name], library[f"{name}_time"]
        return torch.cat((own, time if own.dim() == 1 else time.unsqueeze(1)), -1)

    renamed = {
        "opening.weight": with_time("opening"),
        "opening.bias": library["opening_bias"],
        "readout": library["readout"],
        "quadratic": with_time("quadratic"),
        "linear": with_time("linear"),
    }
    for i in range(sum(name.startswith("weights.") for name in library)):
        renamed[f"layers.{i}.weight"] = library[f"weights.{i}"]
        renamed[f"layers.{i}.bias"] = library[f"biases.{i}"]
    return renamed


def generic_network(problem: Quadrotor) -> ValueNetwork:
    """A network whose costates ask for controls of order one, of which every part has a share."""
    network = ValueNetwork.for_problem(problem, generator=generator(1))
    random = generator(2)
    with torch.no_grad():
        # As drawn, the linear part is zero and the others too small to move a control.
        for part in (network.linear, network.linear_time):
            part.copy_(torch.randn(part.shape, generator=random, dtype=F64) / problem.n_agents)
        network.readout.mul_(10.0 / problem.n_agents)
    return network


def generic_states(problem: Quadrotor, batch: int) -> Tensor:
    """States that move and turn, with agents on both sides of the distance where they interact."""
    states = problem.sample_initial_states(batch, generator())
    return states + 0.7 * torch.randn(states.shape, generator=generator(3), dtype=F64)


def relative_difference(library: Tensor, specification: Tensor) -> float:
    return ((library - specification).norm() / specification.norm()).item()


@every_size
def test_the_formulas_of_the_problem(n_agents):
    problem = Quadrotor(n_agents, dtype=F64)
    drawn = minimal.initial_states(3, n_agents, generator())
    assert torch.equal(problem.sample_initial_states(3, generator()), drawn.flatten(1))
    z = generic_states(problem, 3)
    u = torch.randn(3, problem.control_dim, generator=generator(4), dtype=F64)
    by_agent = z.unflatten(1, (-1, 12)), u.unflatten(1, (-1, 4))
    for library, specification in (
        (problem.dynamics(0.0, z, u), minimal.dynamics(*by_agent).flatten(1)),
        (problem.running_cost(0.0, z, u), minimal.running_cost(*by_agent)),
        (problem.terminal_cost(z), minimal.terminal_cost(by_agent[0])),
    ):
        assert library.shape == specification.shape
        assert relative_difference(library, specification) < TOLERANCE


@every_size
@pytest.mark.parametrize("size", [0.0, 0.1, 1.0])
def test_the_map(n_agents, size):
    """T, its residual and its derivatives in z and p, at controls of a given `size`.

    At zero control, from where every iteration starts, the limit on the step is active.
    """
    problem = Quadrotor(n_agents, dtype=F64)
    z = generic_states(problem, 3).requires_grad_()
    p = (torch.randn(z.shape, generator=generator(5), dtype=F64) / n_agents).requires_grad_()
    u = size * torch.randn(3, problem.control_dim, generator=generator(4), dtype=F64)
    v = torch.randn(u.shape, generator=generator(6), dtype=F64)

    bound = ScaledMap().bind(problem.hamiltonian(0.0, z, p))
    moved = bound(u)
    control = u.unflatten(1, (-1, 4))
    _, pull_back = torch.func.vjp(minimal.dynamics, z.unflatten(1, (-1, 12)), control)
    _, c = pull_back(p.unflatten(1, (-1, 12)))
    expected, residual = minimal.fixed_point_map(c, control)
    assert relative_difference(bound.residual(u), residual) < TOLERANCE
    assert relative_difference(moved, expected.flatten(1)) < TOLERANCE
    derivatives = torch.autograd.grad(moved, (z, p), v)
    for library, specification in zip(
        derivatives, torch.autograd.grad(expected.flatten(1), (z, p), v), strict=True
    ):
        assert relative_difference(library, specification) < TOLERANCE


@every_size
@pytest.mark.parametrize(
    "solver",
    [
        Picard(tolerance=1e-10),
        # Far from converged: here every detail of the map counts, the limit on its step too.
        Picard(tolerance=None, max_iterations=2),
    ],
    ids=["converged", "two-iterations"],
)
def test_costs_and_gradients(n_agents, solver):
    # One agent flies the full horizon, a swarm the first steps of it.
    batch, n_steps = (4, 160) if n_agents == 1 else (3, 12)
    t_final = 4.5 * n_steps / 160
    problem = Quadrotor(n_agents, n_steps=n_steps, t_final=t_final, dtype=F64)
    network, z = generic_network(problem), generic_states(problem, batch)
    policy = HamiltonianPolicy(
        problem, network, fixed_point_map=ScaledMap(), solver=solver, gradient=JFB()
    )
    result = rollout(policy, z)
    statistics = result.inner.summary()
    assert statistics is not None
    assert statistics["iterations"]["mean"] >= 2
    assert (solver.tolerance is None) == (statistics["residual"]["max"] > 1e-3)
    with torch.no_grad():
        assert 0.1 < policy(0.0, z).control.square().mean().sqrt() < 10.0
    found = in_the_specification(gradients(result.cost, network))

    phi = minimal.ValueNetwork(problem.state_dim).double()
    phi.load_state_dict(in_the_specification(network.state_dict()))
    cost = minimal.rollout(
        phi,
        z.unflatten(1, (-1, 12)),
        n_steps,
        t_final,
        # No residual is below zero: all iterations are taken.
        tolerance=0.0 if solver.tolerance is None else solver.tolerance,
        max_iterations=solver.max_iterations,
    )
    assert result.cost.shape == cost.shape == (batch,)
    assert ((result.cost - cost).abs() / cost.abs()).max() < TOLERANCE
    expected = gradients(cost, phi)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.norm() > 0
        assert relative_difference(found[name], gradient) < TOLERANCE, name


def gradients(cost: Tensor, network: nn.Module) -> dict[str, Tensor]:
    """Gradient of the mean cost in every parameter; zero where b multiplies time alone."""
    names, parameters = zip(*network.named_parameters(), strict=True)
    found = torch.autograd.grad(cost.mean(), parameters, materialize_grads=True)
    return dict(zip(names, found, strict=True))


def test_a_page_that_needs_nothing_but_torch():
    text = SOURCE.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 100
    imported: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import is one of the project"
            imported.add(str(node.module).partition(".")[0])
    assert imported <= {"torch", *sys.stdlib_module_names}


def test_training_lowers_the_cost(capsys):
    with torch.random.fork_rng(devices=[]):
        # The first minibatch is seen before any step of the optimiser.
        first, last = (minimal.main(steps=steps, batch=4) for steps in (1, 5))
    # Initial states hardly differ, so minibatches do not either: a fall is the optimiser's.
    assert last < 0.5 * first
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 6
    assert printed[-1].split()[-1] == f"{last:.2f}"
