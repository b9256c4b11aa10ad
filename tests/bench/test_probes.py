"""Probes on small cases: what each writes into its record."""

from __future__ import annotations

import itertools
import math
import pickle
from dataclasses import replace

import pandas as pd
import pytest
import torch
from scipy.optimize import minimize_scalar

from bench.case import Case
from bench.claims import alignment
from bench.claims.tables import by_job, tables
from bench.jobs import Job
from bench.probes.derivative import Derivative
from bench.probes.descent import Descent
from bench.probes.maximisers import GlobalSteering, Maximisers, best_steering
from bench.probes.memory import Memory
from bench.probes.optimum import Optimum
from bench.probes.prediction import Prediction
from bench.probes.probe import Probe
from bench.probes.trace import Trace
from bench.probes.training import Train
from bench.records import finite
from bench.worker import fill
from jfbcore.maps import ScaledMap
from jfbcore.problems import Bicycle
from jfbcore.solvers import Picard
from tests.bench.helpers import stale_reasons, unexplained_nulls

F64 = torch.float64
SMALL = Case(problem="quadrotor", n_agents=1, gradient="jfb", batch_size=2, n_steps=4)


def measured(case: Case, probe: Probe, seed: int = 0) -> dict:
    """The record of a job, measured in this process."""
    record = Job(case=case, probe=probe, seed=seed).new_record()
    record["threads"], record["fingerprint"] = 1, "made up"
    fill(record, case, seed, probe=probe)
    assert unexplained_nulls(record) == stale_reasons(record) == set()
    assert record["probe"] == finite({"name": probe.name, **probe.settings})
    return record


def test_a_probe_is_called_as_its_file_and_says_what_is_not_usual() -> None:
    probe = Memory(iterations=(1, 2))
    assert (probe.name, probe.settings) == ("memory", {"iterations": (1, 2)})
    assert Memory().settings == {}
    assert pickle.loads(pickle.dumps(probe)) == probe
    with pytest.raises(TypeError):
        Memory(iteration=5)


def bound_map(kappa: float, acceleration: float = 0.7):
    """The scaled map of one bicycle whose H has this kappa = p_psi v / l."""
    problem = Bicycle(dtype=F64)
    z = torch.tensor([[0.0, 0.0, 0.1, 0.5]], dtype=F64)
    p = torch.tensor([[0.0, 0.0, kappa * problem.wheelbase / 0.5, -acceleration]], dtype=F64)
    return problem, ScaledMap().bind(problem.hamiltonian(0.0, z, p))


class TestGlobalSteering:
    @pytest.mark.parametrize("kappa", [-0.6, -0.3, -0.1, 0.0, 0.15, 0.25, 0.35, 0.5])
    def test_against_a_search_from_many_brackets(self, kappa):
        """The best of bounded scalar searches on fifty pieces, and of the two bounds."""
        problem, bound = bound_map(kappa)
        solver = GlobalSteering(tolerance=1e-12, max_iterations=50)
        found = solver.solve(bound, torch.zeros(1, 2, dtype=F64)).control[0]

        def loss(delta: float) -> float:
            return kappa * math.tan(delta) + 0.5 * delta**2

        edges = torch.linspace(-problem.max_steering, problem.max_steering, 51).tolist()
        searches = [
            minimize_scalar(loss, bounds=pair, method="bounded", options={"xatol": 1e-10})
            for pair in itertools.pairwise(edges)
        ]
        least = min([search.fun for search in searches] + [loss(edges[0]), loss(edges[-1])])
        # Quadratic at an interior maximiser, and exact on a bound up to float32 edges.
        assert loss(found[0].item()) <= least + 1e-6
        assert found[1].item() == pytest.approx(0.7, abs=1e-12)

    def test_an_ascent_from_zero_stops_at_the_local_maximiser(self):
        """At kappa = 0.35 the interior one is the nearer, the bound the better."""
        problem, bound = bound_map(0.35)
        start = torch.zeros(1, 2, dtype=F64)
        near = Picard(tolerance=1e-10).solve(bound, start).control[0, 0].item()
        best = best_steering(torch.tensor([[0.35]], dtype=F64), problem.max_steering).item()
        assert -1.0 < near < -0.3
        assert best == pytest.approx(-problem.max_steering)


def test_maximisers_of_a_small_run() -> None:
    case = Case(
        problem="bicycle", n_agents=2, gradient="jfb", batch_size=4, n_steps=6, train_steps=2
    )
    rows = pd.DataFrame(measured(case, Maximisers(states=3))["rows"])
    assert len(rows) == 2 * 2 * 6
    assert set(rows["policy"]) == {"initial", "trained"}
    assert (rows["loss_max"] < 1e-3).all()
    # An untrained policy hardly steers: one maximiser, found by both.
    initial = rows[rows["policy"] == "initial"]
    assert (initial["kappa_max"] < 0.23).all()
    assert (initial["local_share"] == 0.0).all()
    assert (initial["unconverged_share"] == 0.0).all()
    # Two controls within the inner tolerance of each other, at 6 of 60 time steps.
    assert initial["cost"].to_numpy() == pytest.approx(initial["global_cost"], rel=1e-2)


def test_derivative_errors_of_a_small_control_problem() -> None:
    case = replace(SMALL, dtype="float64", train_steps=2)
    table = pd.DataFrame(measured(case, Derivative(counts=(1, 40), states=2))["rows"])
    assert len(table) == 2 * 2 * 2 * 2
    one = table[table["count"] == 1]["error"]
    many = table[table["count"] == 40]["error"]
    # The plain map halves the error, 2^-40 = 1e-12, times a rollout's conditioning.
    assert (many < 1e-8).all()
    assert (one > 1e-4).all()


def test_a_diverging_trace_ends_with_its_reason() -> None:
    # A step far beyond the inverse curvature: controls overflow in the first rollout.
    case = replace(SMALL, map="plain", step_size=1e6, max_iterations=50, train_steps=40)
    last = measured(case, Trace(interval=40, states=2, minibatch=1))["rows"][-1]
    assert last["reason"].startswith("diverged")
    assert last["rejected_steps"] > 0


def test_a_truncated_trace_is_also_held_against_what_it_applies() -> None:
    case = replace(
        SMALL, map="plain", step_size=0.4, max_iterations=400, tolerance=1e-12, train_steps=1,
        dtype="float64",
    )  # fmt: skip
    probe = Trace(recipe="released", interval=1, states=2, minibatch=2)
    record = measured(case, probe)
    assert [row["step"] for row in record["rows"]] == [0, 1]
    for row in record["rows"]:
        # This iteration converges, so that unrolling it is implicit differentiation: both
        # comparisons must agree, as far as the derivative has converged with the control.
        assert row["angle_applied"] == pytest.approx(row["angle_max"], rel=1e-6)
        assert row["norm_ratio_applied"] == pytest.approx(row["norm_ratio"], rel=1e-6)
        assert row["norm_ratio"] < 0.9
    data, _ = tables([job := Job(case=case, probe=probe)], by_job([record]))
    _, applied = alignment.judge(data).tables
    assert "derivative of the iteration as it is run" in applied.title
    assert [row[0] for row in applied.rows] == ["quadrotor n=1, released"]
    assert job.is_of(record)


def test_memory_against_iterations() -> None:
    case = Case(problem="bicycle", n_agents=1, gradient="jfb", batch_size=2, n_steps=1)
    sizes = {
        gradient: [
            row["saved_bytes"]
            for row in measured(replace(case, gradient=gradient), Memory(iterations=(3, 6)))["rows"]
        ]
        for gradient in ("jfb", "unrolled", "unrolled-network")
    }
    assert sizes["jfb"][0] == sizes["jfb"][1]
    assert sizes["unrolled"][1] > sizes["unrolled"][0]
    # Of the network nothing is shared between iterations: it grows in proportion to K.
    first, second = sizes["unrolled-network"]
    assert second == pytest.approx(2 * first, rel=0.1)
    assert second > 2 * sizes["unrolled"][1]


@pytest.mark.parametrize("gradient", ["unrolled", "unrolled-network"])
def test_memory_at_the_tolerance_is_at_the_parameters_that_jfb_has_after_training(gradient) -> None:
    case = Case(problem="bicycle", n_agents=1, gradient="jfb", batch_size=2, n_steps=1)
    case = replace(case, gradient=gradient, train_steps=2)
    (row,) = measured(case, Memory(iterations=()))["rows"]
    assert row["stop"] == "tolerance"
    assert row["K"] >= 1
    assert row["saved_bytes"] > 0


@pytest.mark.slow
def test_a_prediction_has_a_row_for_each_memory() -> None:
    case = replace(SMALL, gradient="unrolled", tolerance=None, max_iterations=7)
    record = measured(case, Prediction(memory=(1e5, 1e12)))
    small, large = (row["crossover"] for row in record["rows"])
    assert small < 7 < large
    assert record["predicted"]["saved_tensor_bytes"] > 0
    never = measured(replace(case, gradient="jfb"), Prediction(memory=(1e12,)))
    assert never["rows"][0]["crossover"] is None


def test_training_fills_the_curve() -> None:
    record = measured(replace(SMALL, train_steps=3), Train(held_out=2, evaluations=3))
    assert [point["step"] for point in record["curve"]] == [0, 1, 2, 3]
    assert record["final"]["evaluation_cost"] == record["curve"][-1]["evaluation_cost"]
    assert record["evaluation"]["states"] == 2
    assert record["step_seconds"]["median"] > 0


def test_sgd_with_the_exact_gradient_is_the_other_line() -> None:
    rows = measured(replace(SMALL, map="newton", solver="newton", train_steps=2), Descent())["rows"]
    norms = {
        name: [row["true_gradient_norm"] for row in rows if row["sgd"] == name]
        for name in ("jfb", "exact")
    }
    # On a Newton map jfb's gradient is the exact one, to rounding in float32.
    assert norms["jfb"] == pytest.approx(norms["exact"], rel=1e-3)
    assert len(norms["jfb"]) == 3


def test_optima_come_from_the_references() -> None:
    case = replace(SMALL, problem="bicycle", n_steps=60)
    (row,) = measured(case, Optimum())["rows"]
    assert row["states"] >= 1
    assert row["cost"] > 0
    assert measured(SMALL, Optimum())["status"] == "unsupported"
