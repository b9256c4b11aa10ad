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
from bench.claims.cases import SMALL, SWARM, traced
from bench.claims.claim import NOT, NOT_MEASURED, PARTLY, REPRODUCED
from bench.claims.tables import by_job, record_of
from bench.environment import ROOT
from bench.records import read_records
from bench.verify import jobs, judge_records, not_planned, records_of


def must_hold(data: dict[str, pd.DataFrame]) -> list[str]:
    """What the quick check asserts and does not find."""
    checked = [claim for claim in discover() if hasattr(claim, "failures")]
    return [line for claim in checked for line in claim.failures(data)]


def test_every_committed_verdict_follows_from_the_committed_records() -> None:
    """Whole rows: verdict, value, findings and tables."""
    folder = ROOT / "reports" / "release" / "verify"
    content = json.loads((folder / "verify.json").read_text(encoding="utf-8"))
    outcome, _ = judge_records(False, records_of(False, folder), not_planned(folder))
    found = json.loads(json.dumps(asdict(outcome)))
    assert found["missing"] == content["missing"]
    for part in ("claims", "beyond"):
        # Whether a figure was drawn is not in the records.
        rows = [row | {"figure": None} for row in content[part]]
        assert [row | {"figure": None} for row in found[part]] == rows
    records = by_job(read_records(folder))
    wanted = [job for job in jobs(False) if record_of(job, records) is not None]
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
    kinds = [("recommended", name) for name in ("plain", "scaled", "newton")]
    kinds.append(("released", "plain"))
    assert {problem for problem, _ in SMALL} == {"quadrotor", "bicycle", "consumption"}
    small = {(*size, *kind, seed) for size in SMALL for kind in kinds for seed in range(5)}
    swarm = {(*SWARM, *kind, seed) for kind in kinds[:2] for seed in range(5)}
    assert runs == small | swarm


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
                "angle_expectation": 4.0,
                "angle_expectation_high": 4.5, "norm_ratio": 1.0, "true_gradient_norm": 10.0,
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
             "stop": "count", "gradient": gradient, "saved_bytes": size, "peak_bytes": size}
            for gradient, size in sizes.items()
        ]  # fmt: skip
    return pd.DataFrame(rows)


def race_table(**gaps) -> pd.DataFrame:
    """One quadrotor's curves: two seeds of each of `gaps` at the end, and of a direct policy."""
    rows = []
    for gradient, values in gaps.items():
        for seed, gap in enumerate(values):
            for second, value in ((1.0, 0.9), (2.0, gap)):
                rows.append({"gradient": gradient, "map": "newton", "seed": seed, "gap": value,
                             "seconds": second})  # fmt: skip
    rows += [{"gradient": "direct", "map": None, "seed": s, "gap": 0.5, "seconds": 1.0}
             for s in range(2)]  # fmt: skip
    head = {"problem": "quadrotor", "n_agents": 1, "reason": None}
    return pd.DataFrame(rows).assign(**head, cost=lambda table: table["gap"])


def descent_table(exponent: float = 0.5, apart: float = 0.05, stopped: int = 0) -> pd.DataFrame:
    """Norms k^-0.5 along exact SGD, k^-`exponent` along JFB's, of which `stopped` seeds stop."""
    rows = []
    for sgd, power in (("jfb", exponent), ("exact", 0.5)):
        for seed in range(3):
            for step in (0, 10, 20, 30):
                row = {"sgd": sgd, "seed": seed, "step": step, "reason": None,
                       "true_gradient_norm": 10.0 * max(step, 1) ** -power,
                       "gradient_difference": apart}  # fmt: skip
                if sgd == "jfb" and seed < stopped and step == 20:
                    row |= {"step": 13, "reason": "made up", "true_gradient_norm": None}
                    rows.append(row)
                    break
                rows.append(row)
    return pd.DataFrame(rows).assign(run="quadrotor n=1, plain")


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
        assert wide.findings == (
            "consumption n=1, scaled, seed 0, step 50: 120 degrees, true gradient norm 10 (10 at "
            "first); the inner tolerance was not reached, residual 1 (0.0001 asked).",
        )
        overflown = alignment.judge({"trace": traces_table(angle_max=math.nan)})
        assert overflown.verdict == PARTLY
        assert "step 50: an overflow" in overflown.findings[0]
        assert "tolerance was reached" in overflown.findings[0]
        long = alignment.judge({"trace": traces_table(norm_ratio=7.5)})
        (finding,) = long.findings
        for words in ("7.5 times as long", "overestimates the feedback gain", "consumption n=1"):
            assert words in finding
        assert "quadrotor" not in finding
        row = ("consumption n=1, scaled", "5", "4 (4.5)", "1 to 7.5", "none")
        assert long.tables[0].rows[-1] == row

    def test_variance_that_is_not_finite_is_not_bounded(self):
        assert variance.judge({"trace": traces_table()}).verdict == REPRODUCED
        assert variance.judge({"trace": traces_table(relative_variance=None)}).verdict == PARTLY

    @pytest.mark.parametrize(
        ("last", "norm", "expected"),
        [(0.4, 10.0, PARTLY), (0.4, 0.009, REPRODUCED), (0.05, 10.0, REPRODUCED)],
    )
    def test_a_variance_that_grows_refutes_the_bound(self, last, norm, expected):
        """Of every seed, and not where the gradient has vanished; exp of log 4 / 50 per step."""
        seeds = [
            traces_table(relative_variance=last * scale, true_gradient_norm=norm).assign(seed=seed)
            for seed, scale in enumerate((0.9, 1.0, 1.1))
        ]
        claim = variance.judge({"trace": pd.concat(seeds, ignore_index=True)})
        assert claim.verdict == expected
        grown = [finding for finding in claim.findings if "grows" in finding]
        assert len(grown) == (expected == PARTLY)
        if grown:
            assert grown[0].startswith("consumption n=1, scaled: grows 15.9x")

    def test_one_seed_has_no_interval_and_refutes_nothing(self):
        claim = variance.judge({"trace": traces_table(relative_variance=100.0)})
        assert claim.verdict == REPRODUCED
        assert claim.tables[0].rows[-1][1:4] == ("0.1", "100", "100")

    def test_a_seed_is_held_against_its_own_first_values(self):
        other = traces_table().assign(seed=1, true_gradient_norm=1.0)
        other.loc[5, ["true_gradient_norm", "angle_max"]] = [0.02, 95.0]
        data = {"trace": pd.concat([traces_table(), other], ignore_index=True)}
        (finding,) = alignment.judge(data).findings
        assert finding.startswith("consumption n=1, scaled, seed 1, step 50: 95 degrees")
        assert "norm 0.02 (1 at first)" in finding

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
        for judged, words in (
            (contractivity.judge, "below 1 in 2 of 3 runs"),
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
        assert "of a seed: scaled 5 to 120; where the inner tolerance was reached 5" in claim.value
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

    def test_gaps_at_equal_seconds_with_their_intervals(self):
        claim = cost.judge({"training": race_table(jfb=(0.05, 0.04), implicit=(0.02, 0.045))})
        assert claim.verdict == REPRODUCED
        (table,) = claim.tables
        jfb, implicit, direct = table.rows
        # Medians of two seeds; both had 0.9 after 1 s and end after 2 s.
        assert jfb[1:] == ("jfb newton", "0.045 (0.04 to 0.05)", "2 s", "2 s")
        assert implicit[1:3] == ("implicit newton", "0.0325 (0.02 to 0.045)")
        assert direct[1:] == ("direct", "0.5 (0.5 to 0.5)", "1 s", "never")
        apart = cost.judge({"training": race_table(jfb=(0.05, 0.06), implicit=(0.02, 0.045))})
        assert apart.verdict == NOT
        assert "quadrotor n=1, newton map, 2 s: JFB is at 0.055" in apart.findings[0]
        slower = race_table(jfb=(0.02, 0.02), implicit=(0.02, 0.03))
        slower.loc[slower["gradient"] == "jfb", "seconds"] += 1.5
        slower = pd.concat([slower, slower[:1].assign(seconds=0.0, gap=0.9)])
        assert cost.judge({"training": slower}).verdict == NOT

    def test_a_race_that_diverged_ends_nowhere(self):
        """Whatever its gap before: the last point counts, not the last finite one."""
        table = race_table(jfb=(None, None), implicit=(0.02, 0.03))
        claim = cost.judge({"training": table})
        assert claim.verdict == NOT
        assert claim.tables[0].rows[0][2] == "not finite (not finite to not finite)"

    def test_a_refusal_is_said_and_compared_with_nothing(self):
        refused = {"problem": "quadrotor", "n_agents": 1, "gradient": "cvxpylayers", "seed": 0,
                   "map": "newton", "seconds": None, "cost": None, "gap": None,
                   "reason": "made-up refusal"}  # fmt: skip
        table = race_table(jfb=(0.05, 0.04), implicit=(0.02, 0.045))
        claim = cost.judge({"training": pd.concat([table, pd.DataFrame([refused])])})
        assert claim.findings == ("quadrotor n=1 cvxpylayers: made-up refusal.",)
        assert len(claim.tables[0].rows) == 3

    def test_the_angle_in_expectation_counts_too(self):
        table = traces_table(angle_expectation_high=120.0)
        assert alignment.judge({"trace": table}).verdict == PARTLY

    def test_a_residual_that_is_not_finite_is_the_worst_one(self):
        table = traces_table(residual_max=math.nan)
        (found,) = contractivity.judge({"trace": table}).tables
        assert "not finite (0.0001)" in found.rows[-1]
        assert contractivity.judge({"trace": traces_table(rate_max=math.nan)}).verdict == PARTLY

    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            ({}, REPRODUCED),
            ({"exponent": 0.7}, NOT),
            ({"exponent": -1.0}, NOT),
            ({"apart": 0.001}, NOT_MEASURED),
            ({"apart": math.nan}, REPRODUCED),
            ({"stopped": 1}, REPRODUCED),
            ({"stopped": 2}, NOT),
        ],
    )
    def test_descent_follows_the_exponents(self, changes, expected):
        """Median over three seeds, where the gradients are not the same."""
        claim = convergence.judge({"descent": descent_table(**changes)})
        assert claim.verdict == expected
        stopped = [finding for finding in claim.findings if "Not measured to the end" in finding]
        assert sum(finding.count("step 13") for finding in stopped) == changes.get("stopped", 0)
        if not changes:
            assert claim.tables[0].rows[0] == (
                "quadrotor n=1, plain", "5 %", "-0.5 (-0.5)", "-0.5 (-0.5)", "1 (1)",
                "-0.5 (-0.5)", "-0.5 (-0.5)", "1 (1)",
            )  # fmt: skip

    def test_the_norm_itself_must_fall_and_not_only_its_minimum(self):
        table = descent_table()
        last = (table["step"] == 30) & (table["sgd"] == "jfb")
        table.loc[last, "true_gradient_norm"] = 50.0
        assert convergence.judge({"descent": table}).verdict == NOT

    @pytest.mark.parametrize(
        ("gap", "expected"), [(0.02, REPRODUCED), (0.2, NOT), (-0.01, REPRODUCED), (None, NOT)]
    )
    def test_scale_follows_the_gap_at_the_end(self, gap, expected):
        rows = [
            {"problem": "quadrotor", "map": "newton", "seed": seed, "step": step, "cost": 100.0,
             "gap": value, "seconds": 1.0, "status": "ok", "reason": None}
            for seed in range(2) for step, value in ((0, 9.0), (40, gap if seed else 0.05))
        ]  # fmt: skip
        claim = scale.judge({"training": pd.DataFrame(rows)})
        assert claim.verdict == expected
        assert len(claim.findings) == (expected == NOT)

    @pytest.mark.parametrize(
        ("last", "expected"), [(50.0, REPRODUCED), (150.0, NOT), (math.nan, NOT)]
    )
    def test_scale_without_a_reference_follows_the_last_cost(self, last, expected):
        rows = [
            {"problem": "quadrotor", "map": "scaled", "seed": 0, "step": step, "cost": cost,
             "gap": None, "seconds": 1.0, "status": "ok", "reason": None}
            for step, cost in ((0, 100.0), (20, 80.0), (40, last))
        ]  # fmt: skip
        claim = scale.judge({"training": pd.DataFrame(rows)})
        assert claim.verdict == expected
        if math.isnan(last):
            assert claim.findings == ("quadrotor, scaled map, seed 0: ok, cost 100 to not finite.",)

    def test_one_runner_is_no_race(self):
        row = {"problem": "quadrotor", "n_agents": 1, "gradient": "jfb", "map": "newton",
               "seed": 0, "gap": None, "seconds": 1.0, "cost": 3.0, "reason": None}  # fmt: skip
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
            "consumption n=5, plain map, trained policy, unrolled": "yes (1.5x)",
            "consumption n=5, scaled map, trained policy, unrolled": "no (1x)",
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
        (row,) = claim.tables[0].rows
        assert row == ("bicycle n=1, scaled", "trained", "cold", "0.1", "25", "0", "2", "1")

    def test_an_iteration_cut_short_is_no_local_maximiser(self):
        claim = maximisers.judge({"maximisers": maximiser_table(unconverged_share=0.5)})
        assert claim.verdict == "no"
        assert claim.tables[0].rows[0][4:6] == ("0", "50")

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
