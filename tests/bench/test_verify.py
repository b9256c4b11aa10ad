"""Checking the claims: jobs that survive, assertions that fail, verdicts that follow the data."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from bench.case import Case
from bench.report import write_report
from bench.verify import resources
from bench.verify.alignment import alignment
from bench.verify.assertions import failures
from bench.verify.beyond import derivative_error, growth
from bench.verify.claim import NOT, NOT_MEASURED, PARTLY, REPRODUCED
from bench.verify.claims import judge_beyond, judge_claims
from bench.verify.contractivity import contractivity
from bench.verify.derivatives import derivative_rows
from bench.verify.jobs import Job, Store, jobs, run_jobs
from bench.verify.memory_claim import memory, memory_fits
from bench.verify.resource_claims import cost, scale, times_to_cost
from bench.verify.run import Outcome, _limits, judge, verify
from bench.verify.scope import FULL_SIZES, Run, full, quick
from bench.verify.trace_claims import convergence, variance
from bench.verify.traces import trace
from tests.bench.helpers import run_cli


def job(name: str, log: list[str], *, seconds: float = 1.0, settings: str = "same") -> Job:
    def measure() -> list[dict]:
        log.append(name)
        return [{"from": name, "value": math.inf}]

    return Job(
        name=name, table="t", seed=0, seconds=seconds, settings=settings, measure=measure
    )  # fmt: skip


class TestJobs:
    def test_a_job_found_is_not_run_again(self, tmp_path):
        log: list[str] = []
        store, wanted = Store(tmp_path), [job("a", log), job("b", log)]
        run_jobs(wanted[:1], store)
        run_jobs(wanted, store)
        assert log == ["a", "b"]
        assert store.missing(wanted) == []
        # What is not finite becomes null on the way through JSON.
        assert store.tables(wanted)["t"] == [
            {"from": "a", "value": None},
            {"from": "b", "value": None},
        ]

    def test_other_settings_are_another_job(self, tmp_path):
        log: list[str] = []
        run_jobs([job("a", log)], Store(tmp_path))
        run_jobs([job("a", log, settings="other")], Store(tmp_path))
        assert log == ["a", "a"]

    @pytest.mark.parametrize("text", ["", '{"version": 1, "rows": [', "[]", '{"version": 0}'])
    def test_half_a_file_is_measured_again(self, tmp_path, text):
        log: list[str] = []
        one = job("a", log)
        store = Store(tmp_path)
        store.path(one).parent.mkdir()
        store.path(one).write_text(text)
        assert store.missing([one]) == [one]
        run_jobs([one], store)
        assert log == ["a"]
        assert store.missing([one]) == []

    def test_no_job_starts_after_the_time_limit(self, tmp_path):
        log: list[str] = []
        store, wanted = Store(tmp_path), [job("a", log), job("b", log)]
        run_jobs(wanted, store, time_limit=0.0)
        assert log == []
        assert store.missing(wanted) == wanted

    def test_done_jobs_are_judged_even_when_no_time_is_left(self, tmp_path):
        log: list[str] = []
        store, wanted = Store(tmp_path), [job("a", log), job("b", log)]
        run_jobs(wanted[1:], store)
        seen: list[str] = []
        run_jobs(wanted[1:], store, time_limit=0.0, progress=lambda one: seen.append(one.name))
        assert seen == ["b"]

    def test_a_killed_process_loses_only_the_job_at_hand(self, tmp_path):
        script = (
            "import os, signal, sys\n"
            "from pathlib import Path\n"
            "from bench.verify.jobs import Job, Store, run_jobs\n"
            "def rows(): return [{'x': 1}]\n"
            "def die(): os.kill(os.getpid(), signal.SIGKILL)\n"
            "make = lambda name, measure: Job(name=name, table='t', seed=0, seconds=1.0,\n"
            "                                 settings='same', measure=measure)\n"
            "run_jobs([make('a', rows), make('b', die)], Store(Path(sys.argv[1])))\n"
        )
        done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
        assert done.returncode == -9
        log: list[str] = []
        store, wanted = Store(tmp_path), [job("a", log), job("b", log)]
        assert [one.name for one in store.missing(wanted)] == ["b"]
        run_jobs(wanted, store)
        assert log == ["b"]

    def test_a_crash_is_kept_with_its_reason_and_the_rest_measured(self, tmp_path):
        log: list[str] = []

        def crash() -> list[dict]:
            log.append("crash")
            raise RuntimeError("made-up crash\nwith details")

        store = Store(tmp_path)
        wanted = [replace(job("a", log), measure=crash), job("b", log)]
        run_jobs(wanted, store)
        run_jobs(wanted, store)
        assert log == ["crash", "b"]
        assert store.errors(wanted) == {"a": "RuntimeError: made-up crash"}
        assert [row["from"] for row in store.tables(wanted)["t"]] == ["b"]

    def test_jobs_of_several_machines_are_said_to_be(self, tmp_path):
        store, wanted = Store(tmp_path), [job("a", []), job("b", [])]
        run_jobs(wanted, store)
        assert len(store.machines(wanted)) == 1
        path = store.path(wanted[1])
        content = json.loads(path.read_text())
        content["machine"]["threads"] += 1
        path.write_text(json.dumps(content))
        (limit,) = (
            text
            for text in _limits(quick(), wanted, [], store)
            if text.startswith("Measured on several machines")
        )
        assert "compare within one of them only" in limit

    @pytest.mark.parametrize("scope", [quick(), full()], ids=["quick", "full"])
    def test_every_table_of_the_claims_has_jobs_with_names_of_their_own(self, scope):
        found = jobs(scope)
        assert len({one.name for one in found}) == len(found)
        claimed = {"traces", "descent", "memory", "crossovers", "races", "scale", "derivatives"}
        # Local maximisers are a question of the full scope.
        more = {"maximisers"} if scope.name == "full" else set()
        assert {one.table for one in found} == claimed | more

    def test_the_full_scope_covers_every_problem_with_seed_0_first(self):
        found = jobs(full())
        seeds = [one.seed for one in found]
        assert seeds == sorted(seeds)
        assert set(seeds) == {0, 1, 2, 3, 4}
        names = {one.name for one in found}
        for problem, n in FULL_SIZES:
            for variant in ("scaled", "plain", "released"):
                for seed in range(5):
                    assert f"trace-{problem}-{n}-{variant}-s{seed}" in names

    def test_the_released_recipe_asks_for_the_released_residual(self):
        """0.1 absolute, whatever the unit of the case's tolerance is."""
        from bench.build import build_problem, build_solver

        released = [run.case for run in full().traces if run.recipe == "released"]
        assert len(released) == len(FULL_SIZES)
        for case in released:
            solver = build_solver(case, build_problem(case))
            assert solver.tolerance == pytest.approx(0.1)
            assert (solver.max_iterations, case.step_size, case.map) == (499, 1e-4, "plain")


def traces_table(**changes) -> pd.DataFrame:
    """Two measurements of each quick problem on the scaled map; `changes` go to the last."""
    rows = []
    for problem in ("quadrotor", "bicycle", "consumption"):
        for step in (0, 50):
            rows.append({
                "run": f"{problem} n=1, scaled", "problem": problem, "n_agents": 1,
                "variant": "scaled", "seed": 0, "step": step, "rate_max": 0.4,
                "rate_median": 0.3, "contractive_fraction": 1.0, "curvature_min": 1.0,
                "curvature_max": 2.0, "residual_max": 1e-5, "tolerance": 1e-4,
                "max_iterations": 500, "cost": 100.0 - step, "angle_max": 5.0,
                "angle_expectation": 4.0, "norm_ratio": 1.0, "true_gradient_norm": 10.0,
                "relative_variance": 0.1, "reason": None,
            })  # fmt: skip
    rows[-1] |= changes
    return pd.DataFrame(rows)


def memory_table(jfb_slope: int = 0, unrolled_slope: int = 100) -> pd.DataFrame:
    rows = []
    for count in (5, 50, 100, 500):
        sizes = {
            "jfb": 1000 + jfb_slope * count,
            "unrolled": 900 + unrolled_slope * count,
            "unrolled-network": 1000 * count,
        }
        rows += [
            {"problem": "quadrotor", "n_agents": 6, "K": count, "batch_size": 2, "n_steps": 5,
             "gradient": gradient, "saved_bytes": size, "peak_bytes": size}
            for gradient, size in sizes.items()
        ]  # fmt: skip
    return pd.DataFrame(rows)


class TestAssertions:
    def test_nothing_fails_where_all_holds(self):
        assert failures({"traces": traces_table(), "memory": memory_table()}) == []

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"rate_max": 1.0}, ["contractivity", "consumption", "1"]),
            ({"rate_max": math.nan}, ["contractivity", "consumption"]),
            ({"angle_max": 90.0}, ["alignment", "consumption", "step 50", "90"]),
            ({"angle_max": math.nan}, ["alignment", "consumption", "step 50"]),
            ({"step": 49}, ["alignment", "consumption", "step 50", "not measured"]),
        ],
    )
    def test_a_trace_that_fails_is_one_line(self, changes, words):
        (line,) = failures({"traces": traces_table(**changes), "memory": memory_table()})
        for word in words:
            assert word in line
        assert "\n" not in line

    @pytest.mark.parametrize(
        ("table", "words"),
        [
            (memory_table(jfb_slope=1), ["jfb", "must not depend on K", "1005 at K=5"]),
            (memory_table(unrolled_slope=18), ["unrolled over jfb", ">= 10", "9.9"]),
            (memory_table().query("K < 500"), ["unrolled over jfb", ">= 10"]),
        ],
    )
    def test_memory_that_fails_is_one_line(self, table, words):
        (line,) = failures({"traces": traces_table(), "memory": table})
        for word in words:
            assert word in line

    def test_what_was_not_measured_fails(self):
        assert len(failures({})) == 3


class TestVerdicts:
    def test_seven_rows_without_any_data(self):
        claims = judge_claims({})
        assert [claim.number for claim in claims] == list(range(1, 8))
        assert {claim.verdict for claim in claims} == {NOT_MEASURED}
        assert judge_beyond({}) == []

    def test_contractivity_follows_the_rates(self):
        assert contractivity({"traces": traces_table()}).verdict == REPRODUCED
        claim = contractivity({"traces": traces_table(
            rate_max=2.94, contractive_fraction=0.75, curvature_min=-0.5, cost=50.0
        )})  # fmt: skip
        assert claim.verdict == PARTLY
        (finding,) = claim.findings
        for words in ("2.94", "25 %", "not concave", "still descends", "100 to 50"):
            assert words in finding
        rising = contractivity({"traces": traces_table(rate_max=2.94, cost=500.0)})
        assert "does not descend" in rising.findings[0]
        everywhere = traces_table().assign(rate_max=1.5)
        assert contractivity({"traces": everywhere}).verdict == NOT

    def test_a_tolerance_that_is_not_reached_is_said_with_the_rate(self):
        table = traces_table(residual_max=9.0, tolerance=0.1, rate_median=0.9999)
        (found,) = contractivity({"traces": table}).tables
        *others, last = found.rows
        # 0.9999^500 = 0.951
        for words in ("1 of 2", "9 (0.1)", "0.951 (median)"):
            assert words in last
        overshooting = contractivity({"traces": table.assign(rate_median=0.5, rate_max=1.01)})
        assert overshooting.tables[0].rows[-1][-1] == "grows"
        assert [row[0] for row in others] == ["quadrotor n=1, scaled", "bicycle n=1, scaled"]
        assert all("none" in row and row[-1] == "" for row in others)

    def test_alignment_follows_the_angles_and_lengths(self):
        assert alignment({"traces": traces_table()}).verdict == REPRODUCED
        wide = alignment({"traces": traces_table(angle_max=120.0, residual_max=1.0)})
        assert wide.verdict == PARTLY
        (finding,) = wide.findings
        assert "not reached" in finding
        assert "consumption n=1, scaled" in finding
        where = ("consumption n=1, scaled", "0", "50", "120", "10 (10)", "1 (0.0001)")
        assert wide.tables[-1].rows == (where,)
        overflown = alignment({"traces": traces_table(angle_max=math.nan)})
        assert overflown.verdict == PARTLY
        assert "although the inner tolerance was reached" in overflown.findings[0]
        assert "none: an overflow" in overflown.tables[-1].rows[0]
        long = alignment({"traces": traces_table(norm_ratio=7.5)})
        (finding,) = long.findings
        for words in ("7.5 times as long", "overestimates the feedback gain", "consumption n=1"):
            assert words in finding
        assert "quadrotor" not in finding
        assert long.tables[0].rows[-1] == ("consumption n=1, scaled", "5", "4", "1 to 7.5", "none")

    def test_variance_that_is_not_finite_is_not_bounded(self):
        assert variance({"traces": traces_table()}).verdict == REPRODUCED
        assert variance({"traces": traces_table(relative_variance=None)}).verdict == PARTLY

    @pytest.mark.parametrize(
        ("norm", "why"),
        [
            (0.5, "near a stationary point"),
            (5.0, "the minibatches disagree"),
            (math.inf, "has diverged"),
        ],
    )
    def test_a_variance_that_grows_is_said_with_the_reason(self, norm, why):
        claim = variance({"traces": traces_table(relative_variance=4.0, true_gradient_norm=norm)})
        (finding,) = claim.findings
        assert why in finding
        assert "consumption n=1, scaled" in finding
        assert "bicycle" not in finding
        share = "not finite" if math.isinf(norm) else f"{norm / 10:g}"
        assert claim.tables[0].rows[-1][1:] == ("0.1", "4", "50", share)

    def test_a_seed_is_held_against_its_own_first_values(self):
        other = traces_table().assign(seed=1, true_gradient_norm=1.0, relative_variance=0.5)
        other.loc[5, ["true_gradient_norm", "relative_variance", "angle_max"]] = [0.02, 40.0, 95.0]
        data = {"traces": pd.concat([traces_table(), other], ignore_index=True)}
        claim = variance(data)
        assert claim.tables[0].rows[-1] == ("consumption n=1, scaled", "0.5", "40", "50", "0.02")
        assert "near a stationary point" in claim.findings[0]
        where = ("consumption n=1, scaled", "1", "50", "95", "0.02 (1)", "1e-05 (0.0001)")
        assert alignment(data).tables[-1].rows == (where,)

    def test_a_run_that_diverged_is_listed_with_its_reason(self):
        table = traces_table()
        broken = {
            "run": "quadrotor n=1, scaled",
            "seed": 0,
            "step": 7,
            "reason": "diverged: made up",
        }
        data = {"traces": pd.concat([table, pd.DataFrame([broken])])}
        claim = contractivity(data)
        assert claim.findings == ("quadrotor n=1, scaled, seed 0, step 7: diverged: made up.",)
        assert claim.verdict == PARTLY
        assert claim.value.startswith("below 1 in 2 of 3 runs")
        for judged, words in ((alignment, "in 2 of 3 runs"), (variance, "finite in 2 of 3 runs")):
            claim = judged(data)
            assert claim.verdict == PARTLY
            assert words in claim.value
            (finding,) = claim.findings
            assert finding == (
                "Not measured to the end: "
                "quadrotor n=1, scaled, seed 0, step 7 (diverged: made up)."
            )

    def test_a_cost_that_is_not_finite_at_the_end_is_no_descent(self):
        table = traces_table(rate_max=2.94, cost=math.nan)
        (finding,) = contractivity({"traces": table}).findings
        assert "JFB does not descend: held-out cost 100 to not finite" in finding

    def test_gradients_count_where_the_map_cannot_be_measured(self):
        """A step at which the eigensolver gives up still has an angle and a variance, or none."""
        lost = dict.fromkeys(("rate_max", "cost", "residual_max"), math.nan)
        beyond = traces_table(**lost, angle_max=120.0, relative_variance=math.inf, reason="made up")
        claim = alignment({"traces": beyond})
        assert (
            "largest angle [deg]: scaled 120; where the inner tolerance was reached 5"
            in claim.value
        )
        assert "although the inner tolerance" not in " ".join(claim.findings)
        assert claim.verdict == variance({"traces": beyond}).verdict == PARTLY
        within = {"traces": traces_table(**lost, reason="made up")}
        for judged in (alignment, variance):
            assert judged(within).verdict == REPRODUCED
            assert judged(within).findings == ()
        assert contractivity(within).verdict == PARTLY

    def test_a_residual_that_is_not_a_number_is_not_reached(self):
        table = traces_table(residual_max=math.nan, angle_max=80.0)
        assert "reached 5 over 5 measurements" in alignment({"traces": table}).value

    def test_memory_splits_method_and_implementation(self):
        fits = memory_fits(memory_table()).set_index("gradient")
        assert fits.loc["unrolled", "slope"] == pytest.approx(100.0)
        assert fits.loc["unrolled", "intercept"] == pytest.approx(900.0)
        assert fits.loc["unrolled", "slope_per_sample"] == pytest.approx(10.0)
        assert fits["misfit"].max() < 1e-9
        claim = memory({"memory": memory_table()})
        assert claim.verdict == REPRODUCED
        # 50900 / 1000, 500000 / 1000 and their quotient; log 50.9 / log 500 = 63 %
        for words in ("500x", "50.9x", "9.82x", "63 %"):
            assert words in claim.tables[0].rows[0]
        assert claim.tables[1].rows == (("quadrotor n=6", "0", "10", "100"),)
        assert claim.findings == ()
        small = memory({"memory": memory_table(unrolled_slope=18)})
        assert small.findings == (
            "quadrotor n=6: unrolling alone saves 9.9 times jfb's bytes at K = 500, less than 10.",
        )
        assert memory({"memory": memory_table(jfb_slope=1)}).verdict == NOT

    def test_crossovers_are_a_table(self):
        rows = [
            {"problem": "quadrotor", "n_agents": 6, "gradient": gradient, "machine": "24 GB",
             "crossover": count, "model_error": 0.01}
            for gradient, count in (("jfb", None), ("unrolled", 1234.5))
        ]  # fmt: skip
        claim = memory({"memory": memory_table(), "crossovers": pd.DataFrame(rows)})
        table = claim.tables[-1]
        assert table.columns == ("size", "jfb, 24 GB", "unrolled, 24 GB")
        assert table.rows == (("quadrotor n=6", "never", "1,234"),)

    def test_cost_and_seconds_to_equal_cost(self):
        curves = {"jfb": (9.0, 4.0), "implicit": (7.0, 3.9), "unrolled": (8.0, 6.0)}
        rows = [
            {"problem": "quadrotor", "n_agents": 1, "gradient": gradient, "seed": 0,
             "seconds": float(second), "cost": value, "reason": None}
            for gradient, costs in curves.items()
            for second, value in enumerate(costs, start=1)
        ]  # fmt: skip
        rows.append(rows[0] | {"gradient": "cvxpylayers", "seconds": None, "cost": None,
                               "reason": "made-up refusal"})  # fmt: skip
        rows += [
            rows[0] | {"gradient": "direct", "seconds": 1.0, "cost": 6.5},
            rows[0] | {"gradient": "direct", "seconds": 2.0, "cost": 6.4},
        ]
        table = pd.DataFrame(rows)
        times = times_to_cost(table).set_index("gradient")["seconds"]
        assert times.to_dict() == {"jfb": 2.0, "implicit": 2.0, "unrolled": 2.0, "direct": math.inf}
        claim = cost({"races": table})
        assert claim.verdict == REPRODUCED
        assert claim.findings == ("quadrotor n=1 cvxpylayers: made-up refusal.",)
        final, times = claim.tables
        assert final.columns == ("size", "jfb", "implicit", "unrolled", "direct")
        assert final.rows == (("quadrotor n=1", "4", "3.9", "6", "6.4"),)
        assert times.rows == (("quadrotor n=1", "6 (unrolled)", "2 s", "2 s", "2 s", "never"),)

    def test_a_race_that_diverged_ends_nowhere(self):
        """Whatever it cost before: the last point counts, not the last finite one."""
        rows = [
            {"problem": "quadrotor", "n_agents": 1, "gradient": gradient, "seed": 0,
             "seconds": float(second), "cost": value, "reason": None}
            for gradient, costs in {"jfb": (9.0, 2.0, None), "implicit": (7.0, 3.9, 3.8),
                                    "unrolled": (8.0, 6.0, 5.0)}.items()
            for second, value in enumerate(costs, start=1)
        ]  # fmt: skip
        table = pd.DataFrame(rows)
        claim = cost({"races": table})
        assert claim.verdict == NOT
        assert claim.tables[0].rows == (("quadrotor n=1", "not finite", "3.8", "5"),)
        assert set(times_to_cost(table)["target"]) == {5.0}

    def test_what_is_not_there_does_not_hold(self):
        data = {"traces": traces_table()}
        claim = judge_claims(data)[0]
        assert claim.verdict == REPRODUCED
        claim = judge_claims(data, {"traces": ["trace-quadrotor-100-s0"]})[0]
        assert claim.verdict == PARTLY
        assert "trace-quadrotor-100-s0" in claim.findings[-1]
        assert judge_claims({}, {"scale": ["a"]})[6].verdict == NOT_MEASURED

    def test_the_angle_in_expectation_counts_too(self):
        table = traces_table(angle_expectation=120.0)
        assert alignment({"traces": table}).verdict == PARTLY

    def test_a_residual_that_is_not_finite_is_the_worst_one(self):
        table = traces_table(residual_max=math.nan)
        (found,) = contractivity({"traces": table}).tables
        assert "not finite (0.0001)" in found.rows[-1]
        assert contractivity({"traces": traces_table(rate_max=math.nan)}).verdict == PARTLY

    @pytest.mark.parametrize(("stopped", "expected"), [(1, REPRODUCED), (2, NOT), (3, NOT)])
    def test_descent_is_that_of_all_seeds(self, stopped, expected):
        rows = []
        for sgd in ("jfb", "exact"):
            for seed in range(3):
                gone = sgd == "jfb" and seed < stopped
                for step in (0, 10, 20, 30):
                    if gone and step == 20:
                        rows.append({"sgd": sgd, "seed": seed, "step": 13, "reason": "made up"})
                        break
                    rows.append({"sgd": sgd, "seed": seed, "step": step, "reason": None,
                                 "true_gradient_norm": 10.0 / (1 + step)})  # fmt: skip
        table = pd.DataFrame(rows).assign(problem="quadrotor", n_agents=1)
        claim = convergence({"descent": table})
        assert claim.verdict == expected
        assert sum("stopped at step 13" in finding for finding in claim.findings) == stopped

    @pytest.mark.parametrize(
        ("last", "expected"), [(50.0, REPRODUCED), (150.0, NOT), (math.nan, NOT)]
    )
    def test_scale_follows_the_last_cost(self, last, expected):
        rows = [
            {"problem": "quadrotor", "n_agents": 100, "seed": 0, "step": step, "cost": cost,
             "step_seconds": 0.1, "batch": 8, "status": "ok", "reason": None}
            for step, cost in ((0, 100.0), (20, 80.0), (40, last))
        ]  # fmt: skip
        claim = scale({"scale": pd.DataFrame(rows)})
        assert claim.verdict == expected
        if math.isnan(last):
            assert claim.findings == ("quadrotor, seed 0: ok, 100 to not finite.",)

    def test_one_runner_is_no_race(self):
        row = {"problem": "quadrotor", "n_agents": 1, "gradient": "jfb", "seed": 0,
               "seconds": 1.0, "cost": 3.0, "reason": None}  # fmt: skip
        claim = cost({"races": pd.DataFrame([row])})
        assert (claim.verdict, claim.findings, claim.tables) == (NOT_MEASURED, (), ())


def derivative_table(errors: dict[str, list[float | None]]) -> pd.DataFrame:
    return pd.DataFrame([
        {"problem": "consumption", "n_agents": 5, "map": name, "policy": "trained", "seed": 0,
         "gradient": "unrolled", "count": count, "error": error}
        for name, values in errors.items()
        for count, error in zip((1, 5, 20), values, strict=True)
    ])  # fmt: skip


class TestDerivativeError:
    def test_growth_by_hand(self):
        table = derivative_table({"plain": [2.0, 3.0, 0.1], "scaled": [0.5, 0.1, 1e-9]})
        found = growth(table).set_index("map")
        assert found["growth"].to_dict() == {"plain": 1.5, "scaled": 1.0}
        assert found["largest_at"].to_dict() == {"plain": 5, "scaled": 1}
        claim = derivative_error({"derivatives": table})
        assert claim.verdict == "yes in 1 of 2 cases that converge"
        assert "by up to 1.5x" in claim.value
        answers = {row[0]: row[-1] for row in claim.tables[0].rows}
        assert answers == {
            "consumption n=5, plain map, trained policy": "yes (1.5x)",
            "consumption n=5, scaled map, trained policy": "no (1x)",
        }

    def test_what_never_converges_is_no_curse(self):
        claim = derivative_error({"derivatives": derivative_table({"plain": [0.2, 9.0, None]})})
        assert claim.verdict == "no"
        assert "does not converge" in claim.tables[0].rows[0][-1]
        assert "not finite" in claim.value

    def test_errors_of_a_small_control_problem(self):
        case = Case(
            problem="quadrotor", n_agents=1, gradient="jfb", batch_size=2, n_steps=4,
            dtype="float64", train_steps=2,
        )  # fmt: skip
        table = pd.DataFrame(derivative_rows(case, ("scaled", "plain"), (1, 40), 2, seed=0))
        assert len(table) == 2 * 2 * 2 * 2
        one = table[table["count"] == 1]["error"]
        many = table[table["count"] == 40]["error"]
        # The plain map halves the error, 2^-40 = 1e-12, times a rollout's conditioning.
        assert (many < 1e-8).all()
        assert (one > 1e-4).all()


class TestMeasurements:
    def test_a_diverging_run_is_recorded_with_its_reason(self):
        # A step far beyond the inverse curvature: controls overflow in the first rollout.
        case = Case(
            problem="quadrotor", n_agents=1, gradient="jfb", map="plain", step_size=1e6,
            max_iterations=50, batch_size=2, n_steps=4, train_steps=40,
        )  # fmt: skip
        rows = trace(Run(case=case, interval=40, seeds=1, states=2, minibatch=1), 0)
        assert rows[-1]["reason"].startswith("diverged")
        assert rows[-1]["rejected_steps"] > 0

    def test_a_truncated_run_is_also_held_against_what_it_applies(self):
        case = Case(
            problem="quadrotor", n_agents=1, gradient="jfb", map="plain", step_size=0.4,
            max_iterations=400, tolerance=1e-12, batch_size=2, n_steps=4, train_steps=1,
            dtype="float64",
        )  # fmt: skip
        run = Run(case=case, recipe="released", interval=1, seeds=1, states=2, minibatch=2)
        rows = trace(run, 0)
        assert [row["step"] for row in rows] == [0, 1]
        for row in rows:
            # This iteration converges, so that unrolling it is implicit differentiation: both
            # comparisons must agree, as far as the derivative has converged with the control.
            assert row["angle_applied"] == pytest.approx(row["angle_max"], rel=1e-6)
            assert row["norm_ratio_applied"] == pytest.approx(row["norm_ratio"], rel=1e-6)
            assert row["norm_ratio"] < 0.9
        _, applied = alignment({"traces": pd.DataFrame(rows)}).tables
        assert "derivative of the iteration as it is run" in applied.title
        assert [row[0] for row in applied.rows] == [run.label]

    def test_memory_rows_name_all_three_gradients(self):
        case = Case(problem="bicycle", n_agents=1, gradient="jfb", batch_size=2, n_steps=1)
        table = pd.DataFrame(resources.memory_rows(case, (3, 6)))
        sizes = table.set_index(["gradient", "K"])["saved_bytes"]
        assert sizes["jfb", 3] == sizes["jfb", 6]
        assert sizes["unrolled", 6] > sizes["unrolled", 3]
        # Of the network nothing is shared between iterations: it grows in proportion to K.
        assert sizes[resources.NETWORK, 6] == pytest.approx(
            2 * sizes[resources.NETWORK, 3], rel=0.1
        )
        assert sizes[resources.NETWORK, 6] > 2 * sizes["unrolled", 6]


@pytest.fixture
def partial_outcome(tmp_path) -> tuple[Path, Outcome]:
    """A folder in which nothing but one small memory job is done."""
    one = replace(quick(), memory=quick().memory[:1])
    wanted = [job for job in jobs(one) if job.table == "memory"]
    store = Store(tmp_path)
    store.write(wanted[0], memory_table().to_dict("records"), 1.0)
    return tmp_path, judge(one, tmp_path, "2000-01-01")


class TestPartialRun:
    def test_what_is_missing_is_listed(self, partial_outcome):
        _, outcome = partial_outcome
        assert len(outcome.claims) == 7
        assert [claim.number for claim in outcome.claims if claim.verdict != NOT_MEASURED] == [5]
        assert len(outcome.missing) == len(jobs(quick())) - 3
        assert outcome.failures

    def test_a_report_of_claims_alone(self, partial_outcome):
        folder, _ = partial_outcome
        page = write_report([folder], folder).read_text(encoding="utf-8")
        body = page[page.index("</nav>") :]
        order = (
            "Not finished:",
            "JFB&#39;s memory does not depend on K",
            "50.9 times",
            "data:image/png",
            "<td>50.9x</td>",
        )
        places = [body.index(text) for text in order]
        assert places == sorted(places)
        assert "All cases" not in page
        # Six claims, in the table and below it.
        assert page.count("<td>not measured</td>") == 6
        assert page.count('"verdict">not measured<') == 6


def test_traces_without_any_rate_have_claims_and_no_figure(tmp_path):
    one = replace(quick(), memory=quick().memory[:1])
    job = next(job for job in jobs(one) if job.table == "traces")
    rows = traces_table().assign(rate_max=None).to_dict("records")
    Store(tmp_path).write(job, rows, 1.0)
    outcome = judge(one, tmp_path, "2000-01-01")
    assert outcome.claims[0].verdict == NOT
    assert [claim.figure for claim in outcome.claims[:3]] == [None] * 3


class TestQuick:
    def test_the_jobs_of_another_scope_are_not_removed(self, tmp_path):
        job = next(iter(jobs(full())))
        Store(tmp_path).write(job, [], 1.0)
        with pytest.raises(ValueError, match="holds the jobs of another scope"):
            verify(quick(), tmp_path, time_limit=0.0)
        assert Store(tmp_path).read(job) is not None

    def test_what_crashed_fails(self, tmp_path):
        one = replace(quick(), memory=quick().memory[:1])
        wanted = [job for job in jobs(one) if job.table == "memory"]
        Store(tmp_path).write(wanted[0], [], 1.0, "RuntimeError: made up")
        outcome = judge(one, tmp_path, "2000-01-01")
        assert f"{wanted[0].name}: crashed: RuntimeError: made up" in outcome.failures
        assert any(line.endswith("not measured") for line in outcome.failures)


class TestCommand:
    @pytest.mark.parametrize(("lines", "expected"), [([], 0), (["made-up failure"], 1)])
    def test_failed_assertions_are_exit_code_1(
        self, capsys, tmp_path, monkeypatch, lines, expected
    ):
        def verify(scope, out, *, time_limit, part):
            assert (scope.name, time_limit, part) == ("quick", 5.0, (1, 1))
            return Outcome(judge_claims({}), [], [], {}, lines)

        monkeypatch.setattr("bench.verify.run.verify", verify)
        monkeypatch.setattr("torch.set_num_threads", lambda n: None)
        code, out, err = run_cli(
            capsys, "verify", "--quick", "--time-limit", "5", "--out", tmp_path
        )
        assert code == expected
        assert err.splitlines() == [f"bench verify: failed: {line}" for line in lines]
        assert sum(line[:2] in {f"{n}." for n in range(1, 8)} for line in out.splitlines()) == 7


def test_parts_share_the_jobs_without_overlap(tmp_path, monkeypatch):
    from bench.verify import run, scope

    seen = []
    monkeypatch.setattr(run, "run_jobs", lambda wanted, *rest, **options: seen.append(wanted))
    monkeypatch.setattr(run, "judge", lambda *arguments: None)
    for i in (1, 2, 3):
        run.verify(scope.full(), tmp_path, part=(i, 3))
    names = [job.name for part in seen for job in part]
    assert len(seen) == 3
    assert sorted(names) == sorted(job.name for job in jobs(scope.full()))
