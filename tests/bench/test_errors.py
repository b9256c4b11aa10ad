"""Errors of control and gradient, held against what is known of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bench.build import build
from bench.case import Case
from bench.errors import BiasTrace, Polished, control_error, exact_control, gradient_error
from bench.measure import Step
from jfbcore.maps import ScaledMap
from jfbcore.problems import Bicycle, Quadrotor
from jfbcore.solvers import Picard
from jfbcore.train import Training, TrainingConfig

F64 = torch.float64
CASE = Case(problem="quadrotor", n_agents=2, gradient="jfb", batch_size=4, n_steps=6)
PROBLEMS = ("quadrotor", "bicycle", "consumption")


def step(**changes) -> Step:
    """With controls of order one: those of an untrained quadrotor are near zero."""
    found = Step(replace(CASE, **changes))
    if found.case.problem == "quadrotor":
        with torch.no_grad():
            found.policy.value_network.linear.add_(1.0)
    return found


class TestExactControl:
    def test_it_is_lambert_w_where_there_is_a_formula(self):
        problem = Quadrotor(2, dtype=F64)
        z = problem.sample_initial_states(3, torch.Generator().manual_seed(0))
        h = problem.hamiltonian(0.0, z, torch.ones_like(z))
        assert torch.equal(exact_control(h, torch.zeros(3, 8, dtype=F64), 1e-3), h.closed_form())

    def test_elsewhere_newton_finds_it_from_nearby(self):
        problem = Bicycle(1, dtype=F64)
        z = problem.sample_initial_states(5, torch.Generator().manual_seed(0))
        h = problem.hamiltonian(0.0, z, 0.01 * torch.ones_like(z))
        bound = ScaledMap().bind(h)
        start = problem.initial_control(0.0, z)
        found = Picard(tolerance=1e-12).solve(bound, start).control
        exact = exact_control(h, found + 1e-3, 1e-12)
        torch.testing.assert_close(exact, found, rtol=0.0, atol=1e-9)
        # An exact one comes back as it is, also where Newton is given nothing to improve.
        assert torch.equal(exact_control(h, exact, 1e3), exact)

    def test_polished_goes_on_where_the_first_solver_stopped(self):
        problem = Bicycle(1, dtype=F64)
        z = problem.sample_initial_states(5, torch.Generator().manual_seed(0))
        bound = ScaledMap().bind(problem.hamiltonian(0.0, z, 0.01 * torch.ones_like(z)))
        start = problem.initial_control(0.0, z)
        first = Picard(tolerance=None, max_iterations=1)
        assert first.solve(bound, start).residual.max() > 1e-6
        assert Polished(first=first, tolerance=1e-11).solve(bound, start).residual.max() < 1e-9


class TestControlError:
    @pytest.mark.parametrize("problem", PROBLEMS)
    def test_it_falls_with_the_tolerance(self, problem):
        tight, loose = (
            control_error(step(problem=problem, tolerance=t, dtype="float64"))["max"]
            for t in (1e-10, 1e-2)
        )
        assert tight < 1e-6
        assert loose > 10 * tight

    def test_an_iteration_that_was_cut_short_is_seen(self):
        # One plain step of size alpha from zero: u = alpha c, where the answer is of order c.
        cut = control_error(step(map="plain", step_size=1e-3, tolerance=None, max_iterations=1))
        assert cut["mean"] == pytest.approx(1.0, abs=0.05)

    def test_there_is_none_without_an_inner_problem(self):
        assert control_error(Step(replace(CASE, gradient="direct"))) is None
        assert gradient_error(Step(replace(CASE, gradient="direct"))) is None


class TestGradientError:
    @pytest.mark.parametrize("problem", PROBLEMS)
    def test_an_exact_gradient_at_a_tight_tolerance_has_next_to_none(self, problem):
        assert gradient_error(step(problem=problem, gradient="implicit-lu", tolerance=1e-9)) < 1e-6

    def test_jfb_has_its_bias(self):
        biased, less = (
            gradient_error(step(gradient=name, tolerance=1e-9)) for name in ("jfb", "jfb-5")
        )
        assert biased > 1e-2
        assert less < 0.5 * biased

    def test_a_control_that_is_not_there_costs_an_exact_method_too(self):
        cut = {"map": "plain", "step_size": 1e-3, "tolerance": None, "max_iterations": 1}
        assert gradient_error(step(gradient="implicit-lu", **cut)) > 1e-2


class TestBias:
    def trained(self, **changes):
        case = replace(CASE, **changes)
        policy = build(case, 0)
        states = policy.problem.sample_initial_states(4, torch.Generator().manual_seed(0))
        trace = BiasTrace(case, states)
        trace.take(policy, 0)
        training = Training(
            policy, TrainingConfig(steps=6, batch_size=4, held_out=4), callback=trace
        )
        training.run()
        trace.take(policy, 6)
        return trace.rows

    def test_on_a_newton_map_jfb_is_exact(self):
        rows = self.trained(map="newton", solver="newton")
        assert [row["step"] for row in rows] == [0, 2, 4, 6]
        assert max(row["relative"] for row in rows) < 1e-12
        assert min(row["cosine"] for row in rows) > 1 - 1e-12

    def test_on_the_scaled_map_it_is_not(self):
        rows = self.trained()
        assert all(1e-6 < row["relative"] < 1 for row in rows)

    def test_it_does_not_see_the_tolerance(self):
        """Both gradients are taken at one control, so that only the estimator is compared."""
        rows = self.trained(gradient="implicit", tolerance=1e-1, map="plain")
        assert max(row["relative"] for row in rows) < 1e-11

    def test_it_leaves_training_alone(self):
        runs = []
        for watched in (True, False):
            policy = build(CASE, 0)
            trace = BiasTrace(CASE, policy.problem.sample_initial_states(4, torch.Generator()))
            config = TrainingConfig(steps=4, batch_size=4, held_out=4)
            Training(policy, config, callback=trace if watched else None).run()
            runs.append(torch.cat([p.detach().flatten() for p in policy.parameters()]))
            assert len(trace.rows) == (2 if watched else 0)
        assert torch.equal(*runs)

    def test_what_has_none_says_why(self):
        reason = BiasTrace.reason_against
        assert reason(CASE) is None
        assert reason(replace(CASE, gradient="direct")) == "direct solves no inner problem"
        assert (
            reason(replace(CASE, gradient="supervised")) == "supervised differentiates no rollout"
        )
