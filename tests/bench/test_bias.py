"""JFB's bias against the bound of one-step differentiation, and the unrolled derivative."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from baselines import GRADIENTS, build_policy
from bench import bias
from bench.check.points import draw_point, generator
from bench.diagnostics import contraction_rate
from bench.probes.derivative import compared
from bench.report.figures.bias_study import bias_figure, iteration_figure
from jfbcore.maps import MAPS
from jfbcore.problems import Liquidation, RotorQuadrotor
from jfbcore.solvers import Newton

F64 = torch.float64
JFB_NAMES = ("jfb", "jfb-3", "jfb-5")


@pytest.fixture(scope="module")
def policy():
    problem = Liquidation(4, n_steps=4, cross_impact=0.3, dtype=F64)
    return build_policy(problem, GRADIENTS["jfb"], width=8, generator=generator())


@pytest.fixture(scope="module")
def states(policy):
    return policy.problem.sample_initial_states(3, generator(1))


@pytest.mark.parametrize("map_name", ["plain", "scaled"])
@pytest.mark.parametrize("tracked", ["jfb", "jfb-3"])
def test_the_bound_holds_for_one_control(map_name, tracked):
    """|J d - J_k d| <= |dT/du|^k |J d| for the derivative J of the control by the costate."""
    point = draw_point(RotorQuadrotor, 2)
    problem, z = point.problem, point.z
    p = (0.5 * point.p).requires_grad_()
    bound = MAPS[map_name].bind(problem.hamiltonian(0.0, z, p))
    start, newton = problem.initial_control(0.0, z), Newton(tolerance=1e-11)
    norm = contraction_rate(bound, newton.solve(bound, start).control)
    derivatives = []
    for name in ("implicit-lu", tracked):
        u = GRADIENTS[name].attach(bound, newton, start).control
        rows = [torch.autograd.grad(u[:, i].sum(), p, retain_graph=True)[0] for i in range(8)]
        derivatives.append(torch.stack(rows, 1))
    exact, found = derivatives
    direction = torch.randn(*p.shape, 20, generator=generator(2), dtype=F64)
    size = torch.linalg.vector_norm(exact @ direction, dim=1)
    error = torch.linalg.vector_norm((exact - found) @ direction, dim=1)
    k = GRADIENTS[tracked].tracked
    assert (error <= (norm.unsqueeze(1) ** k) * size * (1.0 + 1e-6)).all()
    # The bound is not idle: in some direction a tenth of it is reached.
    assert (error >= 0.1 * (norm.unsqueeze(1) ** k) * size).any()


def test_rows_of_every_map(policy, states):
    rows = {(row["map"], row["gradient"]): row for row in bias.bias_rows(policy, states)}
    assert set(rows) == {(m, g) for m in MAPS for g in JFB_NAMES}
    # c m / (2 (1 - c) + c m) on the scaled map: the inverse mean of the Hessian's two eigenvalues.
    assert rows["scaled", "jfb"]["map_norm"] == pytest.approx(1.2 / 2.6, rel=1e-9)
    for name in ("plain", "scaled"):
        biases = [rows[name, gradient]["gradient_bias"] for gradient in JFB_NAMES]
        assert biases == sorted(biases, reverse=True)
        assert biases[0] > 1e-3
        assert rows[name, "jfb"]["gradient_cosine"] < 1.0
    assert rows["newton", "jfb"]["gradient_bias"] < 1e-9
    assert rows["newton", "jfb"]["map_norm"] < 1e-9


def test_the_unrolled_derivative_comes_to_the_exact_one(policy, states):
    found = pd.DataFrame(bias.iteration_rows(policy, states, counts=(1, 4, 120)))
    last = found[found["count"] == 120]["gradient_bias"]
    assert len(last) == 4  # two maps, two starts
    # Rates of 0.8 on the plain map: 0.8^120 = 2e-12, times K.
    assert (last < 1e-8).all()
    pivot = found.pivot(index=["map", "count"], columns="start", values="gradient_bias")
    for name in ("plain", "scaled"):
        assert pivot.loc[(name, 1), "cold"] > pivot.loc[(name, 4), "cold"]
    # A warm start helps the slower map; the other has forgotten it by K = 4 in so long time steps.
    assert pivot.loc[("plain", 4), "warm"] < pivot.loc[("plain", 4), "cold"]


def test_a_gradient_that_is_not_a_number_has_no_bias():
    nothing = torch.full((1,), torch.nan, dtype=F64)
    row = compared(nothing, torch.ones(3, dtype=F64))
    assert all(value != value for value in row.values())


def test_figures(policy, states):
    head = {"problem": "liquidation", "n_agents": 4, "seed": 0, "stage": 0}
    rows = [*bias.bias_rows(policy, states), *bias.iteration_rows(policy, states, counts=(1, 4))]
    table = pd.DataFrame([head | row for row in rows])
    assert len(bias_figure(table).axes) == 3
    assert sum(ax.axison for ax in iteration_figure(table).axes) == 2
