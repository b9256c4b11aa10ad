"""Judges, each with tables whose answer is known, and the committed verdicts from their records."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import pandas as pd
import pytest

from bench.case import DEFAULT_STEPS
from bench.claims import (
    alignment,
    contractivity,
    convergence,
    cost,
    derivative,
    discover,
    maximisers,
    mean_field,
    memory,
    scale,
    variance,
)
from bench.claims.cases import FULL_SIZES, traced
from bench.claims.claim import NOT, NOT_MEASURED, PARTLY, REPRODUCED
from bench.claims.tables import by_job, record_of
from bench.environment import ROOT
from bench.records import read_records
from bench.verify import jobs, judge_records


def must_hold(data: dict[str, pd.DataFrame]) -> list[str]:
    """What the quick check asserts and does not find."""
    checked = [claim for claim in discover() if hasattr(claim, "failures")]
    return [line for claim in checked for line in claim.failures(data)]


@pytest.mark.parametrize("name", ["verify", "verify-quick"])
def test_every_committed_verdict_follows_from_the_committed_records(name: str) -> None:
    """Whole rows: verdict, value, findings and tables."""
    quick = name == "verify-quick"
    folder = ROOT / "reports" / name
    content = json.loads((folder / "verify.json").read_text(encoding="utf-8"))
    records = by_job(read_records(folder))
    outcome, _ = judge_records(quick, records)
    found = json.loads(json.dumps(asdict(outcome)))
    assert found["missing"] == content["missing"]
    for part in ("claims", "beyond"):
        # Whether a figure was drawn is not in the records.
        rows = [row | {"figure": None} for row in content[part]]
        assert [row | {"figure": None} for row in found[part]] == rows
    wanted = [job for job in jobs(quick) if record_of(job, records) is not None]
    assert len(wanted) == len(records), "records that no claim asks for"


def test_there_are_seven_claims_and_each_is_one_file() -> None:
    found = discover()
    assert [claim.NUMBER for claim in found[:7]] == list(range(1, 8))
    assert {claim.NUMBER for claim in found[7:]} == {None}
    assert len({claim.FIGURE for claim in found}) == len(found)


def test_all_of_it_covers_every_problem_with_five_seeds() -> None:
    runs = {
        (job.case.problem, job.case.n_agents, job.probe.recipe, job.case.map, job.seed)
        for job in traced(False)
    }
    kinds = (("recommended", "scaled"), ("recommended", "plain"), ("released", "plain"))
    assert runs == {
        (*size, *kind, seed) for size in FULL_SIZES for kind in kinds for seed in range(5)
    }


def test_the_released_recipe_asks_for_the_released_residual() -> None:
    """0.1 absolute, whatever the unit of the case's tolerance is."""
    from bench.build import build_problem, build_solver

    released = [job.case for job in traced(False) if job.probe.recipe == "released"]
    for case in released:
        assert case.n_steps == DEFAULT_STEPS[case.problem]
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
        assert must_hold({"trace": traces_table(), "memory": memory_table()}) == []

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
        (line,) = must_hold({"trace": traces_table(**changes), "memory": memory_table()})
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
        (line,) = must_hold({"trace": traces_table(), "memory": table})
        for word in words:
            assert word in line

    def test_what_was_not_measured_fails(self):
        assert len(must_hold({})) == 3


class TestVerdicts:
    def test_contractivity_follows_the_rates(self):
        assert contractivity.judge({"trace": traces_table()}).verdict == REPRODUCED
        claim = contractivity.judge({"trace": traces_table(
            rate_max=2.94, contractive_fraction=0.75, curvature_min=-0.5, cost=50.0
        )})  # fmt: skip
        assert claim.verdict == PARTLY
        (finding,) = claim.findings
        for words in ("2.94", "25 %", "not concave", "still descends", "100 to 50"):
            assert words in finding
        rising = contractivity.judge({"trace": traces_table(rate_max=2.94, cost=500.0)})
        assert "does not descend" in rising.findings[0]
        everywhere = traces_table().assign(rate_max=1.5)
        assert contractivity.judge({"trace": everywhere}).verdict == NOT

    def test_a_tolerance_that_is_not_reached_is_said_with_the_rate(self):
        table = traces_table(residual_max=9.0, tolerance=0.1, rate_median=0.9999)
        (found,) = contractivity.judge({"trace": table}).tables
        *others, last = found.rows
        # 0.9999^500 = 0.951
        for words in ("1 of 2", "9 (0.1)", "0.951 (median)"):
            assert words in last
        overshooting = contractivity.judge({"trace": table.assign(rate_median=0.5, rate_max=1.01)})
        assert overshooting.tables[0].rows[-1][-1] == "grows"
        assert [row[0] for row in others] == ["quadrotor n=1, scaled", "bicycle n=1, scaled"]
        assert all("none" in row and row[-1] == "" for row in others)

    def test_alignment_follows_the_angles_and_lengths(self):
        assert alignment.judge({"trace": traces_table()}).verdict == REPRODUCED
        wide = alignment.judge({"trace": traces_table(angle_max=120.0, residual_max=1.0)})
        assert wide.verdict == PARTLY
        (finding,) = wide.findings
        assert "not reached" in finding
        assert "consumption n=1, scaled" in finding
        where = ("consumption n=1, scaled", "0", "50", "120", "10 (10)", "1 (0.0001)")
        assert wide.tables[-1].rows == (where,)
        overflown = alignment.judge({"trace": traces_table(angle_max=math.nan)})
        assert overflown.verdict == PARTLY
        assert "although the inner tolerance was reached" in overflown.findings[0]
        assert "none: an overflow" in overflown.tables[-1].rows[0]
        long = alignment.judge({"trace": traces_table(norm_ratio=7.5)})
        (finding,) = long.findings
        for words in ("7.5 times as long", "overestimates the feedback gain", "consumption n=1"):
            assert words in finding
        assert "quadrotor" not in finding
        assert long.tables[0].rows[-1] == ("consumption n=1, scaled", "5", "4", "1 to 7.5", "none")

    def test_variance_that_is_not_finite_is_not_bounded(self):
        assert variance.judge({"trace": traces_table()}).verdict == REPRODUCED
        assert variance.judge({"trace": traces_table(relative_variance=None)}).verdict == PARTLY

    @pytest.mark.parametrize(
        ("norm", "why"),
        [
            (0.5, "near a stationary point"),
            (5.0, "the minibatches disagree"),
            (math.inf, "has diverged"),
        ],
    )
    def test_a_variance_that_grows_is_said_with_the_reason(self, norm, why):
        claim = variance.judge(
            {"trace": traces_table(relative_variance=4.0, true_gradient_norm=norm)}
        )
        (finding,) = claim.findings
        assert why in finding
        assert "consumption n=1, scaled" in finding
        assert "bicycle" not in finding
        share = "not finite" if math.isinf(norm) else f"{norm / 10:g}"
        assert claim.tables[0].rows[-1][1:] == ("0.1", "4", "50", share)

    def test_a_seed_is_held_against_its_own_first_values(self):
        other = traces_table().assign(seed=1, true_gradient_norm=1.0, relative_variance=0.5)
        other.loc[5, ["true_gradient_norm", "relative_variance", "angle_max"]] = [0.02, 40.0, 95.0]
        data = {"trace": pd.concat([traces_table(), other], ignore_index=True)}
        claim = variance.judge(data)
        assert claim.tables[0].rows[-1] == ("consumption n=1, scaled", "0.5", "40", "50", "0.02")
        assert "near a stationary point" in claim.findings[0]
        where = ("consumption n=1, scaled", "1", "50", "95", "0.02 (1)", "1e-05 (0.0001)")
        assert alignment.judge(data).tables[-1].rows == (where,)

    def test_a_run_that_diverged_is_listed_with_its_reason(self):
        table = traces_table()
        broken = {
            "run": "quadrotor n=1, scaled",
            "seed": 0,
            "step": 7,
            "reason": "diverged: made up",
        }
        data = {"trace": pd.concat([table, pd.DataFrame([broken])])}
        claim = contractivity.judge(data)
        assert claim.findings == ("quadrotor n=1, scaled, seed 0, step 7: diverged: made up.",)
        assert claim.verdict == PARTLY
        assert claim.value.startswith("below 1 in 2 of 3 runs")
        for judged, words in (
            (alignment.judge, "in 2 of 3 runs"),
            (variance.judge, "finite in 2 of 3 runs"),
        ):
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
        (finding,) = contractivity.judge({"trace": table}).findings
        assert "JFB does not descend: held-out cost 100 to not finite" in finding

    def test_gradients_count_where_the_map_cannot_be_measured(self):
        """A step at which the eigensolver gives up still has an angle and a variance, or none."""
        lost = dict.fromkeys(("rate_max", "cost", "residual_max"), math.nan)
        beyond = traces_table(**lost, angle_max=120.0, relative_variance=math.inf, reason="made up")
        claim = alignment.judge({"trace": beyond})
        assert (
            "largest angle [deg]: scaled 120; where the inner tolerance was reached 5"
            in claim.value
        )
        assert "although the inner tolerance" not in " ".join(claim.findings)
        assert claim.verdict == variance.judge({"trace": beyond}).verdict == PARTLY
        within = {"trace": traces_table(**lost, reason="made up")}
        for judged in (alignment.judge, variance.judge):
            assert judged(within).verdict == REPRODUCED
            assert judged(within).findings == ()
        assert contractivity.judge(within).verdict == PARTLY

    def test_a_residual_that_is_not_a_number_is_not_reached(self):
        table = traces_table(residual_max=math.nan, angle_max=80.0)
        assert "reached 5 over 5 measurements" in alignment.judge({"trace": table}).value

    def test_memory_splits_method_and_implementation(self):
        fits = memory.memory_fits(memory_table()).set_index("gradient")
        assert fits.loc["unrolled", "slope"] == pytest.approx(100.0)
        assert fits.loc["unrolled", "intercept"] == pytest.approx(900.0)
        assert fits.loc["unrolled", "slope_per_sample"] == pytest.approx(10.0)
        assert fits["misfit"].max() < 1e-9
        claim = memory.judge({"memory": memory_table()})
        assert claim.verdict == REPRODUCED
        # 50900 / 1000, 500000 / 1000 and their quotient; log 50.9 / log 500 = 63 %
        for words in ("500x", "50.9x", "9.82x", "63 %"):
            assert words in claim.tables[0].rows[0]
        assert claim.tables[1].rows == (("quadrotor n=6", "0", "10", "100"),)
        assert claim.findings == ()
        small = memory.judge({"memory": memory_table(unrolled_slope=18)})
        assert small.findings == (
            "quadrotor n=6: unrolling alone saves 9.9 times jfb's bytes at K = 500, less than 10.",
        )
        assert memory.judge({"memory": memory_table(jfb_slope=1)}).verdict == NOT

    def test_crossovers_are_a_table(self):
        rows = [
            {"problem": "quadrotor", "n_agents": 6, "gradient": gradient, "memory": 24e9,
             "crossover": count, "model_error": 0.01}
            for gradient, count in (("jfb", None), ("unrolled", 1234.5))
        ]  # fmt: skip
        claim = memory.judge({"memory": memory_table(), "prediction": pd.DataFrame(rows)})
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
        times = cost.times_to_cost(table).set_index("gradient")["seconds"]
        assert times.to_dict() == {"jfb": 2.0, "implicit": 2.0, "unrolled": 2.0, "direct": math.inf}
        claim = cost.judge({"training": table})
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
        claim = cost.judge({"training": table})
        assert claim.verdict == NOT
        assert claim.tables[0].rows == (("quadrotor n=1", "not finite", "3.8", "5"),)
        assert set(cost.times_to_cost(table)["target"]) == {5.0}

    def test_the_angle_in_expectation_counts_too(self):
        table = traces_table(angle_expectation=120.0)
        assert alignment.judge({"trace": table}).verdict == PARTLY

    def test_a_residual_that_is_not_finite_is_the_worst_one(self):
        table = traces_table(residual_max=math.nan)
        (found,) = contractivity.judge({"trace": table}).tables
        assert "not finite (0.0001)" in found.rows[-1]
        assert contractivity.judge({"trace": traces_table(rate_max=math.nan)}).verdict == PARTLY

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
        claim = convergence.judge({"descent": table})
        assert claim.verdict == expected
        assert sum("stopped at step 13" in finding for finding in claim.findings) == stopped

    @pytest.mark.parametrize(
        ("last", "expected"), [(50.0, REPRODUCED), (150.0, NOT), (math.nan, NOT)]
    )
    def test_scale_follows_the_last_cost(self, last, expected):
        rows = [
            {"problem": "quadrotor", "n_agents": 100, "seed": 0, "step": step, "cost": cost,
             "step_seconds": 0.1, "batch_size": 8, "status": "ok", "reason": None}
            for step, cost in ((0, 100.0), (20, 80.0), (40, last))
        ]  # fmt: skip
        claim = scale.judge({"training": pd.DataFrame(rows)})
        assert claim.verdict == expected
        if math.isnan(last):
            assert claim.findings == ("quadrotor, seed 0: ok, 100 to not finite.",)

    def test_one_runner_is_no_race(self):
        row = {"problem": "quadrotor", "n_agents": 1, "gradient": "jfb", "seed": 0,
               "seconds": 1.0, "cost": 3.0, "reason": None}  # fmt: skip
        claim = cost.judge({"training": pd.DataFrame([row])})
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
        found = derivative.growth(table).set_index("map")
        assert found["growth"].to_dict() == {"plain": 1.5, "scaled": 1.0}
        assert found["largest_at"].to_dict() == {"plain": 5, "scaled": 1}
        claim = derivative.judge({"derivative": table})
        assert claim.verdict == "yes in 1 of 2 cases that converge"
        assert "by up to 1.5x" in claim.value
        answers = {row[0]: row[-1] for row in claim.tables[0].rows}
        assert answers == {
            "consumption n=5, plain map, trained policy": "yes (1.5x)",
            "consumption n=5, scaled map, trained policy": "no (1x)",
        }

    def test_what_never_converges_is_no_curse(self):
        claim = derivative.judge({"derivative": derivative_table({"plain": [0.2, 9.0, None]})})
        assert claim.verdict == "no"
        assert "does not converge" in claim.tables[0].rows[0][-1]
        assert "not finite" in claim.value


def maximiser_table(**changes) -> pd.DataFrame:
    head = {"run": "bicycle n=1, scaled", "seed": 0, "start": "cold", "policy": "trained",
            "time": 0.0, "kappa_max": 0.1, "local_share": 0.0, "unconverged_share": 0.0,
            "loss_max": 0.0, "cost": 2.0, "global_cost": 2.0}  # fmt: skip
    return pd.DataFrame([head | changes])


class TestAnswers:
    def test_no_local_maximiser(self):
        claim = maximisers.judge({"maximisers": maximiser_table()})
        assert claim.verdict == "no"
        assert claim.findings == ()
        assert "bicycle n=1, scaled 0.1" in claim.value

    def test_local_maximisers_and_what_they_cost(self):
        claim = maximisers.judge({"maximisers": maximiser_table(local_share=0.25, global_cost=1.0)})
        assert claim.verdict == "in 1 of 1 measurements"
        assert "at most 25 % of the steering angles" in claim.value
        (finding,) = claim.findings
        assert "cost 2; with the global maximiser of the same H it would be 1" in finding
        (row,) = claim.tables[0].rows
        assert row == ("bicycle n=1, scaled", "trained", "cold", "0.1", "25", "0", "2", "1")

    def test_an_iteration_cut_short_is_no_local_maximiser(self):
        claim = maximisers.judge({"maximisers": maximiser_table(unconverged_share=0.5)})
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
        claim = mean_field.judge({"optimum": table})
        assert claim.verdict == "for bicycle"
        assert "quadrotor: N^0.58" in claim.value
        assert "consumption: N^2.00" in claim.value
        (table,) = claim.tables
        assert table.columns[2:] == ("N = 1", "N = 50", "N = 100")
        assert table.rows[0] == ("bicycle", "cost per agent", "1", "3", "3.02")
        assert [finding.split(":")[0] for finding in claim.findings] == ["quadrotor", "consumption"]
