"""Local maximisers and mean-field limits: what the papers leave open."""

from __future__ import annotations

import itertools
import math

import pandas as pd
import pytest
import torch
from scipy.optimize import minimize_scalar

from bench.case import Case
from bench.verify.maximisers import GlobalSteering, best_steering, maximiser_rows
from bench.verify.open_questions import local_maximisers, mean_field, reference_sizes
from bench.verify.scope import Run
from jfbcore.maps import ScaledMap
from jfbcore.problems import Bicycle
from jfbcore.solvers import Picard

F64 = torch.float64


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


class TestMaximiserRows:
    def test_a_small_run(self):
        case = Case(
            problem="bicycle", n_agents=2, gradient="jfb", batch_size=4, n_steps=6, train_steps=2
        )
        rows = pd.DataFrame(maximiser_rows(Run(case=case, interval=1, seeds=1, states=3), seed=0))
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


def maximisers(**changes) -> pd.DataFrame:
    head = {"run": "bicycle n=1, scaled", "seed": 0, "start": "cold", "policy": "trained",
            "time": 0.0, "kappa_max": 0.1, "local_share": 0.0, "unconverged_share": 0.0,
            "loss_max": 0.0, "cost": 2.0, "global_cost": 2.0}  # fmt: skip
    return pd.DataFrame([head | changes])


class TestAnswers:
    def test_no_local_maximiser(self):
        claim = local_maximisers({"maximisers": maximisers()})
        assert claim.verdict == "no"
        assert claim.findings == ()
        assert "bicycle n=1, scaled 0.1" in claim.value

    def test_local_maximisers_and_what_they_cost(self):
        claim = local_maximisers({"maximisers": maximisers(local_share=0.25, global_cost=1.0)})
        assert claim.verdict == "in 1 of 1 measurements"
        assert "at most 25 % of the steering angles" in claim.value
        (finding,) = claim.findings
        assert "cost 2; with the global maximiser of the same H it would be 1" in finding
        (row,) = claim.tables[0].rows
        assert row == ("bicycle n=1, scaled", "trained", "cold", "0.1", "25", "0", "2", "1")

    def test_an_iteration_cut_short_is_no_local_maximiser(self):
        claim = local_maximisers({"maximisers": maximisers(unconverged_share=0.5)})
        assert claim.verdict == "no"
        assert "50 % of the trained policy's steering angles did not" in claim.findings[0]

    def test_growth_against_the_number_of_agents(self):
        costs = {
            "bicycle": {50: 150.0, 100: 302.0},
            "quadrotor": {50: 10.0, 100: 15.0},
            "consumption": {50: 100.0, 100: 400.0},
        }
        table = pd.DataFrame(
            [
                {"problem": problem, "n_agents": n, "cost": cost}
                for problem, sizes in costs.items()
                for n, cost in {1: 1.0, **sizes}.items()
            ]
        )
        claim = mean_field({"mean-field": table})
        assert claim.verdict == "for bicycle"
        assert "quadrotor: N^0.58" in claim.value
        assert "consumption: N^2.00" in claim.value
        (table,) = claim.tables
        assert table.columns[2:] == ("N = 1", "N = 50", "N = 100")
        assert table.rows[0] == ("bicycle", "cost per agent", "1", "3", "3.02")
        assert [finding.split(":")[0] for finding in claim.findings] == ["quadrotor", "consumption"]

    def test_sizes_come_from_the_references(self):
        table = reference_sizes()
        for problem in ("bicycle", "consumption", "quadrotor"):
            assert list(table[table["problem"] == problem]["n_agents"]) == [1, 6, 20, 50, 100]
        assert (table["states"] >= 1).all()
        assert (table["cost"] > 0).all()
