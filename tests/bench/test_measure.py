"""The benchmark body: what a step is, how it is timed, and its byte counts."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch

import bench.build as build_module
from baselines import ConjugateGradient, Implicit, Reversible
from bench import measure, worker
from bench.build import Unsupported
from bench.case import Case
from bench.environment import ROOT
from bench.measure import (
    Step,
    linear_residual,
    measure_memory,
    measure_time,
    reversible_drift,
    summarise,
    tolerance_reached,
)
from bench.memory import LiveTensorTracker
from bench.records import empty_record
from jfbcore.extras.compiled_rollout import CompiledRollout

CASE = Case(problem="quadrotor", n_agents=2, gradient="jfb", batch_size=3, n_steps=4)


def fixed(iterations: int, **fields: object) -> Case:
    """A case with exactly `iterations` inner iterations."""
    return replace(CASE, tolerance=None, max_iterations=iterations, **fields)


class TestSummarise:
    def test_against_hand_values(self):
        # Five sorted values: linear quantiles fall on the values themselves.
        assert summarise([5.0, 1.0, 4.0, 2.0, 3.0]) == {
            "median": 3.0,
            "min": 1.0,
            "q25": 2.0,
            "q75": 4.0,
            "repeats": 5,
        }

    def test_an_even_count_interpolates(self):
        # Positions 0.75, 1.5 and 2.25 between 1, 2, 4 and 8.
        found = summarise([8.0, 4.0, 2.0, 1.0])
        assert (found["q25"], found["median"], found["q75"]) == (1.75, 3.0, 5.0)

    def test_one_repeat(self):
        assert set(summarise([0.25]).values()) == {0.25, 1}

    def test_plain_numbers_that_json_can_write(self):
        found = summarise([1.0, 2.0])
        assert {type(value) for value in found.values()} == {float, int}
        assert not any(isinstance(value, np.generic) for value in found.values())


class TestStep:
    @pytest.mark.parametrize("gradient", ["jfb", "unrolled", "implicit", "direct"])
    def test_is_deterministic(self, gradient):
        """Bitwise: the same seed gives the same cost and gradient, in one object and in two."""
        case = replace(CASE, gradient=gradient)
        step = Step(case, seed=1)
        first, again, other = step.gradient(), step.gradient(), Step(case, seed=1).gradient()
        assert torch.equal(first, again)
        assert torch.equal(first, other)
        assert step() == step()

    def test_the_seed_changes_parameters_and_minibatch(self):
        one, two = Step(CASE, seed=0), Step(CASE, seed=1)
        assert not torch.equal(one.states, two.states)
        assert one() != two()

    def test_every_gradient_starts_from_the_same_parameters_and_minibatch(self):
        jfb, implicit = Step(CASE), Step(replace(CASE, gradient="implicit"))
        assert torch.equal(jfb.states, implicit.states)
        # The controls are the same up to the inner tolerance (JFB's has one more application of
        # the map, the tracked one), and so is the cost.
        assert jfb() == pytest.approx(implicit(), rel=1e-4)

    def test_gradient_is_that_of_the_mean_cost(self):
        step = Step(CASE)
        cost = step.forward()
        expected = torch.autograd.grad(cost, list(step.policy.parameters()), allow_unused=True)
        flat = torch.cat(
            [
                torch.zeros_like(p).flatten() if g is None else g.flatten()
                for g, p in zip(expected, step.policy.parameters(), strict=True)
            ]
        )
        assert torch.equal(step.gradient(), flat)

    def test_clear_leaves_nothing_behind(self):
        step = Step(CASE)
        step()
        step.clear()
        assert step.last is None
        assert all(p.grad is None for p in step.policy.parameters())

    def test_an_unsupported_case_says_why(self):
        with pytest.raises(Unsupported) as caught:
            Step(replace(CASE, problem="bicycle", gradient="cvxpylayers"))
        assert "concave" in caught.value.reason

    @pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
    def test_cuda_without_a_gpu_is_an_error_that_names_the_device(self):
        with pytest.raises(ValueError, match="`device`"):
            Step(replace(CASE, device="cuda"))


class TestTime:
    def test_structure(self):
        timing = measure_time(Step(CASE), repeats=4, warm_up=1)
        assert len(timing.forward) == len(timing.backward) == len(timing.step) == 4
        assert min(timing.forward) > 0
        assert min(timing.backward) > 0

    def test_at_least_ten_repeats_unless_told_otherwise(self):
        assert measure.REPEATS >= 10
        assert len(measure_time(Step(CASE)).step) == measure.REPEATS

    def test_the_warm_up_is_not_counted(self):
        step = CountingStep(CASE)
        assert len(measure_time(step, repeats=3, warm_up=2).step) == 3
        assert step.count == 5

    def test_out_of_budget_leaves_three_repeats_after_one_warm_up(self):
        step = CountingStep(CASE)
        assert len(measure_time(step, repeats=10, warm_up=2, budget=0.0).step) == 3
        assert step.count == 4

    def test_each_part_is_timed_to_the_end_of_its_kernels(self, monkeypatch):
        """On a clock that moves by what a part takes: clearing belongs to neither of the two, the
        synchronisation that ends a part belongs to it."""
        now = [0.0]

        def take(seconds):
            now[0] += seconds

        step = SimpleNamespace(
            clear=lambda: take(100.0),
            synchronise=lambda: take(0.25),
            forward=lambda: take(5.0) or SimpleNamespace(backward=lambda: take(2.0)),
        )
        clocks = {"perf_counter": lambda: now[0], "process_time": lambda: now[0] / 2}
        monkeypatch.setattr(measure, "time", SimpleNamespace(**clocks))
        timing = measure_time(step, repeats=3, budget=math.inf)
        assert timing.cpu_share == 0.5
        assert (timing.forward, timing.backward) == ([5.25] * 3, [2.25] * 3)
        assert timing.step == [7.5] * 3
        assert timing.first == 7.5


class CountingStep(Step):
    """Counts its forward passes."""

    count = 0

    def forward(self):
        self.count += 1
        return super().forward()


class TestMemory:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        "gradient", ["jfb", "unrolled", "unrolled-checkpoint", "reversible", "implicit"]
    )
    def test_repeats_to_the_byte(self, gradient):
        """Within one object, where caches may fill, and from a fresh one."""
        case = fixed(5, gradient=gradient)
        step = Step(case)
        first, second, fresh = (
            measure_memory(step),
            measure_memory(step),
            measure_memory(Step(case)),
        )
        assert first == second == fresh

    def test_does_not_depend_on_what_ran_before(self):
        step = Step(CASE)
        cold = measure_memory(step)
        measure_time(step, repeats=3, warm_up=1)
        assert measure_memory(step) == cold

    @pytest.mark.parametrize(
        "gradient", ["jfb", pytest.param("reversible", marks=pytest.mark.slow)]
    )
    def test_the_same_bytes_for_5_and_500_iterations(self, gradient):
        few, many = (measure_memory(Step(fixed(k, gradient=gradient))) for k in (5, 500))
        assert few["saved_tensor_bytes"] == many["saved_tensor_bytes"]
        assert few["peak_live_tensor_bytes"] == many["peak_live_tensor_bytes"]
        assert (few["iterations"]["max"], many["iterations"]["max"]) == (5, 500)

    def test_unrolled_saves_bytes_affine_in_the_iterations(self):
        """Equal steps in K cost equal bytes, exactly: each application saves the same tensors."""
        counts = (20, 30, 40, 50)
        saved = [
            measure_memory(Step(fixed(k, gradient="unrolled")))["saved_tensor_bytes"]
            for k in counts
        ]
        steps = np.diff(saved)
        assert len(set(steps.tolist())) == 1
        # At least the control itself is saved in each of the 10 applications of every time step.
        control = CASE.batch_size * 4 * CASE.n_agents * 4
        assert steps[0] >= 10 * CASE.n_steps * control

    def test_checkpointing_saves_less_than_unrolling(self):
        checkpointed, unrolled = (
            measure_memory(Step(fixed(50, gradient=g)))["saved_tensor_bytes"]
            for g in ("unrolled-checkpoint", "unrolled")
        )
        assert checkpointed < unrolled

    def test_live_bytes_hold_parameters_and_what_is_saved(self):
        step = Step(CASE)
        found = measure_memory(step)
        parameters = sum(p.numel() * p.element_size() for p in step.policy.parameters())
        assert found["saved_tensor_bytes"] > 0
        assert found["peak_live_tensor_bytes"] >= parameters + found["saved_tensor_bytes"]

    def test_saved_bytes_are_proportional_to_the_time_steps(self):
        """Equal numbers of further time steps save equal bytes."""
        saved = [measure_memory(Step(fixed(5, n_steps=n)))["saved_tensor_bytes"] for n in (4, 6, 8)]
        assert saved[2] - saved[1] == saved[1] - saved[0] > 0

    def test_inner_statistics_come_along(self):
        found = measure_memory(Step(CASE))
        assert set(found["iterations"]) == set(found["residual"]) == {"mean", "max"}
        assert 0 <= found["residual"]["mean"] <= found["residual"]["max"]
        assert 1 <= found["iterations"]["mean"] <= found["iterations"]["max"]
        assert found["finite"] is True

    def test_the_direct_policy_has_none(self):
        found = measure_memory(Step(replace(CASE, gradient="direct")))
        assert found["iterations"] is None
        assert found["residual"] is None

    def test_a_cost_that_is_not_finite_is_reported(self):
        case = replace(CASE, map="plain", step_size=1e6, max_iterations=50)
        assert measure_memory(Step(case))["finite"] is False


class TestLinearResidual:
    def test_is_that_of_the_linear_solver(self):
        case = replace(CASE, gradient="implicit")
        # conjugate gradients to 1e-6 in float32: what rounding adds is of the same order
        found = linear_residual(Step(case))
        assert 0 <= found["mean"] <= found["max"] < 1e-5
        step = Step(case)
        step.policy = step.policy.with_gradient(Implicit(ConjugateGradient(max_iterations=1)))
        rough = linear_residual(step)
        assert rough["max"] > 1e-4
        assert step.policy.gradient == Implicit(ConjugateGradient(max_iterations=1))

    @pytest.mark.parametrize("gradient", ["jfb", "unrolled", "direct"])
    def test_is_none_without_a_linear_system(self, gradient):
        assert linear_residual(Step(replace(CASE, gradient=gradient))) is None


class TestReversibleDrift:
    def test_is_that_of_the_inverted_iteration(self):
        case = fixed(20, gradient="reversible")
        # 5^10 = 1e7 times the rounding of a sum in float64
        found = reversible_drift(Step(case))
        assert 0 < found["mean"] <= found["max"] < 1e-8
        step = Step(case)
        step.policy = step.policy.with_gradient(Reversible(inversions=None))
        longer = reversible_drift(step)
        assert longer["max"] > 10 * found["max"]
        assert step.policy.gradient == Reversible(inversions=None)
        assert step.policy.gradient.drifts is None

    @pytest.mark.parametrize("gradient", ["jfb", "implicit", "direct"])
    def test_is_none_where_nothing_is_inverted(self, gradient):
        assert reversible_drift(Step(replace(CASE, gradient=gradient))) is None


class TestTolerance:
    def test_reached(self):
        step = Step(CASE)
        found = measure_memory(step)
        assert tolerance_reached(step.policy, found["residual"]) is True

    def test_missed(self):
        step = Step(replace(CASE, map="plain", step_size=1e-6, max_iterations=2))
        assert tolerance_reached(step.policy, measure_memory(step)["residual"]) is False

    def test_not_a_number_is_missed(self):
        assert (
            tolerance_reached(Step(CASE).policy, {"mean": float("nan"), "max": float("nan")})
            is False
        )

    @pytest.mark.parametrize("case", [fixed(5), replace(CASE, gradient="direct")])
    def test_unknown_where_none_was_asked_for(self, case):
        step = Step(case)
        assert tolerance_reached(step.policy, measure_memory(step)["residual"]) is None


class TestPeakResidentSet:
    def test_agrees_with_the_system(self):
        """At least what is resident now, at most what the machine has."""
        resident = psutil.Process().memory_info().rss
        assert resident <= measure.peak_rss_bytes() <= psutil.virtual_memory().total

    def test_sees_an_allocation_that_is_gone(self):
        """And no more than that, as the size of the address space would be."""
        code = (
            "import numpy as np, psutil; from bench.measure import peak_rss_bytes\n"
            "before, resident = peak_rss_bytes(), psutil.Process().memory_info().rss\n"
            "block = np.ones(2**28, dtype=np.uint8); del block\n"
            "print(before, resident, peak_rss_bytes())"
        )
        ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True,
                             text=True, check=True)  # fmt: skip
        before, resident, after = map(int, ran.stdout.split())
        # The kernel counts resident pages lazily, in batches per thread: 16 MiB is ample slack.
        slack = 2**24
        assert resident - slack <= before <= 1.5 * resident
        assert resident + 2**28 - slack <= after <= before + 2**28 + slack


def test_a_compiled_case_reports_compile_time_apart(monkeypatch):
    """Captured without code generation, which takes tens of seconds."""
    compiled = partial(CompiledRollout, backend="aot_eager")
    monkeypatch.setattr(build_module, "CompiledRollout", compiled)
    case = Case(problem="quadrotor", n_agents=2, gradient="jfb", batch_size=3, n_steps=3)
    records = []
    for each in (case, replace(case, compile=True)):
        record = empty_record(each, 0)
        worker.fill(record, each, 0)
        records.append(record)
    eager, compiled = records
    assert compiled["status"] == "ok"
    # What is captured takes a fixed number of iterations, at least as many as are needed.
    assert compiled["iterations"]["max"] >= eager["iterations"]["max"]
    assert compiled["compile_seconds"] > 0
    assert compiled["null_reasons"]["saved_tensor_bytes"].startswith("compiled kernels")
    assert eager["compile_seconds"] is None
    why = "not a compiled case: it was not asked for"
    assert (
        eager["null_reasons"]["compile_seconds"] == eager["null_reasons"]["native_kernels"] == why
    )


def test_what_cannot_be_compiled_is_unsupported():
    case = Case(problem="quadrotor", n_agents=1, gradient="implicit-gmres", batch_size=2, n_steps=2,
                compile=True)  # fmt: skip
    record = empty_record(case, 0)
    worker.fill(record, case, 0)
    assert record["status"] == "unsupported"
    assert "decides on the host when to stop" in record["reason"]


def test_the_cosine_is_that_of_the_two_gradients():
    """Six agents: enough for JFB's direction to be another one."""
    case = replace(CASE, n_agents=6)
    own, exact = (Step(replace(case, gradient=g)).gradient().double()
                  for g in ("jfb", "implicit-lu"))  # fmt: skip
    expected = (own @ exact / own.norm() / exact.norm()).item()
    found = measure.gradient_cosine(Step(case))
    # In float32 the dot product of a few thousand entries is good to 1e-7.
    assert found == pytest.approx(expected, abs=1e-6)
    assert found < 1 - 1e-5


def test_diagnostics_of_a_checkpointed_case_are_checkpointed_too():
    """36 steps in 6 segments: at least half of what lives at the peak is gone."""
    peaks, found = [], []
    for segment in (None, 6):
        case = Case(problem="quadrotor", n_agents=2, gradient="implicit", batch_size=64, n_steps=36,
                    segment=segment)  # fmt: skip
        step = Step(case)
        with LiveTensorTracker() as live:
            found.append((measure.gradient_cosine(step), measure.linear_residual(step)))
        peaks.append(live.peak_bytes)
    assert found[1] == found[0]
    assert peaks[1] < 0.5 * peaks[0]


@pytest.mark.parametrize("disturbed", [True, False])
def test_a_record_says_how_much_of_its_time_the_processor_worked(monkeypatch, disturbed):
    """With a clock of processor time that runs at half speed, and at that of the wall clock."""
    speed = 0.5 if disturbed else 1.0
    monkeypatch.setattr(measure.time, "process_time", lambda: speed * time.perf_counter())
    case = Case(problem="bicycle", n_agents=1, gradient="jfb", batch_size=2, n_steps=2)
    record = empty_record(case, 0)
    worker.fill(record, case, 0)
    assert record["cpu_share"]["step"] == pytest.approx(speed, abs=0.02)
