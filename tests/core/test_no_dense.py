"""Work per training step does not grow with the agents, but inside the operators.

Counted at the dispatcher: as many operators for 50 agents as for 2 (no Python loop over agents),
and none whose result has the size of a dense (n, m) Jacobian.
"""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from baselines import METHODS, DenseLU, Implicit, build_policy
from jfbcore.maps import MAPS
from jfbcore.problems import PROBLEMS
from jfbcore.rollout import rollout
from jfbcore.solvers import SOLVERS, ClosedForm, Solver

BATCH = 4
FEW, MANY = 2, 50
every_problem = pytest.mark.parametrize("name", PROBLEMS)


class Operators(TorchDispatchMode):
    """Counts operators by name and keeps the largest result of each."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.largest: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.counts[str(func)] += 1
        for leaf in tree_leaves(result):
            # A broadcast view has many elements and little memory: count the storage too.
            if isinstance(leaf, Tensor):
                held = leaf.untyped_storage().nbytes() // leaf.element_size()
                size = min(leaf.numel(), held)
                self.largest[str(func)] = max(self.largest[str(func)], size)
        return result


def training_step(
    name: str, n_agents: int, gradient: str, solver: Solver, map_name: str, **settings
) -> tuple[Operators, int]:
    """The operators of a forward and backward pass, and n * m."""
    problem = PROBLEMS[name](n_agents=n_agents, n_steps=2, t_final=0.1)
    method = METHODS[gradient]
    policy = build_policy(
        problem,
        method,
        fixed_point_map=MAPS[map_name],
        solver=solver,
        width=8,
        generator=torch.Generator().manual_seed(0),
    )
    x = problem.sample_initial_states(BATCH, torch.Generator().manual_seed(0))
    with Operators() as operators:
        rollout(policy, x, **settings).cost.mean().backward()
    return operators, problem.state_dim * problem.control_dim


def fixed(solver: str, iterations: int = 3) -> Solver:
    return SOLVERS[solver](tolerance=None, max_iterations=iterations)


#: whose cost depends on values (a linear solver's stopping test) or lies outside torch
DATA_DEPENDENT = ("implicit", "implicit-gmres", "implicit-neumann", "torchdeq-implicit")
OUTSIDE = ("cvxpylayers", "cvxpylayers-scs", "cvxpylayers-moreau")


def every_combination(solvers: list[str], gradients: list[str]) -> pytest.MarkDecorator:
    """Parametrize by problem, map, solver and gradient: what goes together, by their own reasons.

    Every solver on the scaled map, every map with Picard.
    """
    rows = []
    for name, map_name, solver, gradient in itertools.product(PROBLEMS, MAPS, solvers, gradients):
        problem, method, inner = PROBLEMS[name](n_agents=2), METHODS[gradient], fixed(solver)
        reasons = (
            method.supports(problem), inner.supports(problem), method.supports_solver(inner)
        )  # fmt: skip
        crossed = solver == "picard" or map_name == "scaled"
        if crossed and all(reason is None for reason in reasons):
            row = (name, map_name, solver, gradient)
            quick = name == "quadrotor" or (solver, map_name) == ("picard", "scaled")
            marks = () if quick else (pytest.mark.slow,)
            rows.append(pytest.param(*row, id="-".join(row), marks=marks))
    return pytest.mark.parametrize(("name", "map_name", "solver", "gradient"), rows)


def assembles(gradient: str) -> bool:
    """Whether the gradient makes an (m, m) matrix by design."""
    estimator = METHODS[gradient].estimator
    return isinstance(estimator, Implicit) and isinstance(estimator.linear_solver, DenseLU)


@every_combination(
    ["picard", "anderson"],
    [g for g in METHODS if g not in DATA_DEPENDENT and g not in OUTSIDE and not assembles(g)],
)
def test_as_many_operators_for_many_agents(name, map_name, solver, gradient):
    few, _ = training_step(name, FEW, gradient, fixed(solver), map_name)
    many, _ = training_step(name, MANY, gradient, fixed(solver), map_name)
    assert few.counts == many.counts
    assert sum(few.counts.values()) > 20  # something was counted


@every_combination(
    [s for s in SOLVERS if SOLVERS[s] is not ClosedForm],
    [g for g in METHODS if g not in OUTSIDE and not assembles(g)],
)
def test_nothing_of_the_size_of_a_jacobian(name, map_name, solver, gradient):
    """Not even for one sample: no result holds n * m numbers.

    The interaction's N^2 pairs for the whole batch stay below that, where there are any, and so do
    the parameters.
    """
    operators, jacobian = training_step(name, MANY, gradient, fixed(solver), map_name)
    if isinstance(METHODS[gradient].estimator, Implicit):
        # Krylov methods keep up to thirty vectors of control size for the whole batch.
        jacobian *= BATCH
    assert jacobian > BATCH * MANY**2 or name in ("consumption", "liquidation")
    assert max(operators.largest.values()) < jacobian, operators.largest.most_common(3)


def test_a_dense_jacobian_is_noticed():
    """The test above can fail: assembling the control Hessian is seen."""
    operators, jacobian = training_step(
        "consumption", MANY, "implicit-lu", fixed("picard"), "plain"
    )
    assert max(operators.largest.values()) >= jacobian


@every_problem
def test_penalties_and_warm_start_add_no_loop(name):
    settings = {"penalties": True, "warm_start": True}
    few, _ = training_step(name, FEW, "jfb", fixed("picard"), "scaled", **settings)
    many, jacobian = training_step(name, MANY, "jfb", fixed("picard"), "scaled", **settings)
    assert few.counts == many.counts
    assert max(many.largest.values()) < jacobian


@every_problem
def test_inner_iterations_do_not_touch_the_state(name):
    """Between K = 3 and K = 13 only results of control size appear: nothing of size (batch, n).

    For consumption n = m + 1, so that there it is the costate's sweep that must not appear.
    """
    short, _ = training_step(name, MANY, "jfb", fixed("picard", 3), "scaled")
    long, _ = training_step(name, MANY, "jfb", fixed("picard", 13), "scaled")
    added = long.counts - short.counts
    assert added
    # Ten more iterations in each of the two time steps.
    assert all(count % 20 == 0 for count in added.values())
    for network_operator in ("aten.addmm.default", "aten.mm.default", "aten.softplus.default"):
        assert added[network_operator] == 0
    assert sum(added.values()) // 20 < 60
