"""The report, on synthetic records: made-up numbers with known slopes, ratios and failures."""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

pytest.importorskip("seaborn")
pytest.importorskip("jinja2")

from bench.commands import report as command
from bench.presets import PRESETS
from bench.records import CorruptRecord, empty_record
from bench.report import load_run, write_report
from bench.report.figures.canvas import theme
from bench.report.figures.convergence import convergence_figures, median_band
from bench.report.figures.crossings import crossing_figure
from bench.report.figures.hover import hover, titled
from bench.report.figures.panels import panels, series_of
from bench.report.figures.residuals import residual_figures
from bench.report.figures.scaling import (
    SAVED,
    agents_figures,
    memory_iterations_figures,
    predicted_rows,
)
from bench.report.frames import WORKLOAD, case_frame, curve_frame
from bench.report.header import environment_table, limitations, not_run
from bench.report.load import Run, UnusableFile
from bench.report.style import DASH, LOOKS, format_bytes, format_seconds, look, short
from bench.report.summary import summary
from bench.report.tables import case_table, target_tables
from bench.report.targets import (
    median_with_misses,
    own_rate,
    performance_profile,
    power_law_slope,
    target_times,
    time_to_target,
    tuned,
)
from jfbcore.problems import Consumption

NO_CUDA = "no CUDA device on this made-up machine"
NOT_CONCAVE = "a made-up reason: <not> concave & unsupported"


def synthetic_record(
    gradient: str,
    n_agents: int,
    *,
    seed: int = 0,
    iterations: int | None = 50,
    tolerance: float | None = 1e-4,
    status: str = "ok",
    reason: str | None = None,
    reached: bool = True,
    curve: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Bytes grow like N and, for unrolled, like K; seconds like N²: exact power laws."""
    budget = f"tol{tolerance:g}" if tolerance else f"k{iterations}"
    training = "-train10" if curve or status == "diverged" else ""
    ok = status == "ok"
    saved = 1024 * n_agents * (iterations if gradient == "unrolled" and iterations else 1)
    return {
        "schema_version": 1,
        "case": {
            "id": f"synthetic-n{n_agents}-{gradient}-{budget}{training}",
            "problem": "synthetic",
            "n_agents": n_agents,
            "gradient": gradient,
            "map": None if gradient == "direct" else "scaled",
            "solver": None if gradient == "direct" else "picard",
            "max_iterations": None if gradient == "direct" else iterations,
            "tolerance": None if gradient == "direct" else tolerance,
            "batch_size": 4,
            "n_steps": 5,
            "dtype": "float32",
            "device": "cpu",
            "train_steps": 10 if training else 0,
            "seed": seed,
            "variant": "default",
            "step_size": None,
            "timed": True,
        },
        "status": status,
        "reason": reason,
        "step_seconds": {
            "median": 0.01 * n_agents**2,
            "min": 0.009 * n_agents**2,
            "q25": 0.0095 * n_agents**2,
            "q75": 0.011 * n_agents**2,
            "repeats": 10,
        }
        if ok
        else None,
        "forward_seconds": 0.006 if ok else None,
        "backward_seconds": 0.004 if ok else None,
        "iterations": {"mean": 20.0, "max": 30} if ok else None,
        "residual": {"mean": 1e-5, "max": 5e-5 if reached else 3.0} if ok else None,
        "tolerance_reached": reached if ok and tolerance else None,
        "peak_live_tensor_bytes": 2 * saved if ok else None,
        "saved_tensor_bytes": saved if ok else None,
        "predicted": {"peak_live_tensor_bytes": 2 * saved, "saved_tensor_bytes": saved}
        if status == "out_of_memory" and tolerance is None
        else None,
        "peak_rss_bytes": 400 * 2**20 if ok else None,
        "cuda": None,
        "curve": curve,
        "final": {key: curve[-1][key] for key in ("loss", "evaluation_cost", "optimality_gap")}
        if curve
        else None,
        "null_reasons": {"cuda": NO_CUDA},
        "interventions": None,
        "versions": {"torch": "0.0-synthetic"},
        "git": {"commit": "0123456789abcdef", "dirty": False},
    }


def synthetic_curve(rate: float) -> list[dict[str, Any]]:
    """Ten steps of half a second towards an optimum of 10."""
    points = []
    for step in range(11):
        cost = 10 * (1 + np.exp(-rate * step))
        gap = (cost - 10) / 10
        point = {"seconds": 0.5 * step, "step": step, "loss": cost * 1.01}
        points.append(point | {"evaluation_cost": cost, "optimality_gap": gap})
    return points


def write_run(directory: Path, records: Iterable[dict[str, Any]]) -> Path:
    (directory / "records").mkdir(parents=True)
    environment = {
        "platform": "synthetic",
        "cpu": "Synthetic CPU",
        "cores": 2,
        "threads": 2,
        "memory_bytes": 8 * 2**30,
        "gpu": None,
        "python": "3.x",
        "versions": {"torch": "0.0-synthetic"},
        "git": {"commit": "0123456789abcdef", "dirty": False},
        "preset": "synthetic",
        "started": "2000-01-01T00:00:00Z",
        "limits": ["All numbers of this run are made up."],
    }
    (directory / "environment.json").write_text(json.dumps(environment))
    for record in records:
        name = f"{record['case']['id']}-s{record['case']['seed']}.json"
        (directory / "records" / name).write_text(json.dumps(record))
    return directory


def all_records() -> list[dict[str, Any]]:
    records = []
    for n_agents in (1, 4, 16):
        records += [synthetic_record(name, n_agents) for name in ("jfb", "implicit", "direct")]
        fits = n_agents < 16
        failure = {} if fits else {"status": "out_of_memory", "reason": "made-up 9 GiB asked"}
        records.append(synthetic_record("unrolled", n_agents, **failure))
    for iterations in (5, 50, 500):
        for name in ("jfb", "unrolled"):
            records.append(synthetic_record(name, 4, iterations=iterations, tolerance=None))
    records += [
        synthetic_record("cvxpylayers", 1, status="unsupported", reason=NOT_CONCAVE),
        synthetic_record("torchdeq", 1, status="timeout", reason="made-up 60 s passed"),
        synthetic_record("jfb-3", 1, reached=False),
        synthetic_record(
            "unrolled",
            4,
            iterations=5000,
            tolerance=None,
            status="out_of_memory",
            reason="made-up 99 GiB asked",
        ),
        synthetic_record("jfb-5", 1, status="crashed", reason="made-up signal 9"),
    ]
    for seed in range(5):
        for name, rate in (("jfb", 1.0), ("implicit", 0.5)):
            curve = synthetic_curve(rate + 0.02 * seed)
            records.append(synthetic_record(name, 1, seed=seed, curve=curve))
    records.append(synthetic_record("unrolled", 1, status="diverged", reason="made-up overflow"))
    return records


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with every status, a corrupt record, a claim and the optional tables, reported once."""
    directory = write_run(tmp_path_factory.mktemp("reports") / "synthetic-run", all_records())
    figure = directory / "claim.svg"
    figure.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    claim = {
        "number": 5,
        "claim": "Memory is flat in K",
        "figure_caption": "A made-up claim figure",
        "value": "128 ×",
        "verdict": "reproduced",
        "conditions": "synthetic conditions",
        "figure": "claim.svg",
    }
    (directory / "verify.json").write_text(json.dumps({"claims": [claim]}))
    table = {"title": "Synthetic gate", "columns": ["what", "rate"], "rows": [["noise", 0.125]]}
    (directory / "gate_selftest.json").write_text(json.dumps(table | {"notes": ["made up"]}))
    (directory / "records" / "half-written.json").write_text('{"schema_version": 1, "case": {')
    with pytest.warns(CorruptRecord, match=r"half-written\.json"):
        write_report([directory], directory)
    return directory


@pytest.fixture(scope="module")
def page(run_directory: Path) -> str:
    return (run_directory / "index.html").read_text(encoding="utf-8")


def test_page_shows_every_case_status_and_reason(page: str) -> None:
    for record in all_records():
        assert record["case"]["id"] in page
        assert record["status"].replace("_", " ") in page
    for reason in ("made-up 9 GiB asked", "made-up 60 s passed", "made-up overflow"):
        assert reason in page
    # escaped, so that a reason can hold any text
    assert "a made-up reason: &lt;not&gt; concave &amp; unsupported" in page
    assert "residual not reached" in page


def test_page_opens_with_the_answer_and_folds_the_rest_away(page: str) -> None:
    order = ('<dl class="answer"', '<section id="ranking">', '<div id="headline">', "</nav>")
    order += ("Memory is flat in K", '<section id="memory-k">', '<details id="summary">')
    order += ('<details id="environment">', "All numbers of this run are made up.", 'id="cases"')
    places = [page.index(text) for text in order]
    assert places == sorted(places)


def test_page_refers_to_nothing_outside(page: str) -> None:
    targets = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]+)""", page)
    assert targets
    assert all(target.startswith(("#", "data:image/", "data:application/")) for target in targets)
    assert not re.search(r"url\((?!#)", page)
    assert "@import" not in page


def test_missing_values_are_dashes_with_a_reason(page: str) -> None:
    assert re.search(rf'<td class="null" title="{NO_CUDA}"[^>]*>–</td>', page)
    assert re.search(r'title="out of memory: made-up 9 GiB asked"[^>]*>–</td>', page)


def test_optional_sections(page: str) -> None:
    for text in ("128 ×", "reproduced", "synthetic conditions", "A made-up claim figure"):
        assert text in page
    assert "Synthetic gate" in page
    assert "Time to target" in page


def test_figures_are_written_as_svg_and_png(run_directory: Path) -> None:
    stems = {path.stem for path in (run_directory / "figures").iterdir()}
    assert stems >= {
        *("agents", "memory-iterations", "residuals", "profile-step", "headline"),
        *("convergence-evaluation-cost", "convergence-loss", "convergence-optimality-gap"),
        "profile-target",
    }
    for stem in stems:
        svg = (run_directory / "figures" / f"{stem}.svg").read_text(encoding="utf-8")
        assert svg.lstrip().startswith("<?xml")
        png = (run_directory / "figures" / f"{stem}.png").read_bytes()
        assert png.startswith(b"\x89PNG")


def test_predicted_bytes_are_drawn_where_a_case_did_not_finish(run_directory: Path) -> None:
    with pytest.warns(CorruptRecord):
        cases = case_frame([load_run(run_directory)])
    rows = cases[(cases["gradient"] == "unrolled") & cases["tolerance"].isna()]
    found = predicted_rows(rows, SAVED)
    assert found["max_iterations"].tolist() == [5000]
    # by construction unrolled saves 1024 bytes per agent and iteration
    assert found["bytes"].tolist() == [1024 * 4 * 5000]
    svg = (run_directory / "figures" / "memory-iterations.svg").read_text(encoding="utf-8")
    assert "predicted, did not finish" in svg


def test_a_k_that_a_method_was_not_measured_at_is_marked(tmp_path: Path) -> None:
    ks = {"jfb": (5, 50, 500), "implicit": (5, 50)}
    records = [
        synthetic_record(name, 4, iterations=k, tolerance=None) for name in ks for k in ks[name]
    ]
    cases = case_frame([load_run(write_run(tmp_path / "run", records))])
    (drawing,) = memory_iterations_figures(cases, (SAVED,))
    (ax,) = drawing.figure.axes
    assert [text.get_text() for text in ax.texts] == ["not measured"]


def test_one_method_alone_is_no_comparison(tmp_path: Path) -> None:
    records = [synthetic_record("jfb", n_agents) for n_agents in (1, 4)]
    cases = case_frame([load_run(write_run(tmp_path / "run", records))])
    assert agents_figures(cases) == []


def test_what_is_written_in_a_figure_is_not_rounded(tmp_path: Path) -> None:
    figure = Figure()
    ax = figure.subplots()
    ax.set_title("tolerance 0.0001")
    hover(ax, [1.0, math.nan, 3.0], [1.0, 2.0, 3.0], ["first 0.00012", "nowhere", "third"])
    with theme():
        figure.savefig(tmp_path / "figure.svg")
    titled(tmp_path / "figure.svg")
    text = (tmp_path / "figure.svg").read_text(encoding="utf-8")
    assert "tolerance 0.0001" in text
    assert re.findall("<title>(.*?)</title>", text) == ["first 0.00012", "third"]
    assert not re.search(r' d="[^"]*\d\.\d{3}', text)


def test_csv_round_trip(run_directory: Path) -> None:
    cases = pd.read_csv(run_directory / "cases.csv")
    records = all_records()
    assert len(cases) == len(records)
    rows = {(row["id"], row["seed"]): row for row in cases.to_dict("records")}
    for record in records:
        row = rows[record["case"]["id"], record["case"]["seed"]]
        assert row["status"] == record["status"]
        assert json.loads(row["null_reasons"]) == record["null_reasons"]
        saved, seconds = record["saved_tensor_bytes"], record["step_seconds"]
        # null stays empty, never becomes a number
        assert (
            pd.isna(row["saved_tensor_bytes"])
            if saved is None
            else (row["saved_tensor_bytes"] == saved)
        )
        assert (
            pd.isna(row["step_seconds"])
            if seconds is None
            else (row["step_seconds"] == seconds["median"])
        )
    curves = pd.read_csv(run_directory / "curves.csv")
    assert len(curves) == 10 * 11
    expected = all_records()[-2]["curve"]
    last = curves[curves["id"].str.contains("implicit") & (curves["seed"] == 4)]
    assert last["optimality_gap"].tolist() == [point["optimality_gap"] for point in expected]


def test_whole_numbers_stay_whole_in_csv(run_directory: Path) -> None:
    text = pd.read_csv(run_directory / "cases.csv", dtype=str)
    assert set(text["n_agents"]) == {"1", "4", "16"}
    assert text["saved_tensor_bytes"].dropna().str.fullmatch(r"\d+").all()


def test_summary_is_computed(run_directory: Path) -> None:
    with pytest.warns(CorruptRecord):
        sentences = " ".join(summary(case_frame([load_run(run_directory)])))
    assert "jfb saves the same bytes for backward between K = 5 and K = 500" in sentences
    # by construction unrolled saves K times what jfb saves
    for ratio in ("5×", "50×", "500×"):
        assert re.search(rf"\b{ratio} \({ratio} at the peak\) at K", sentences)
    assert "jfb 2.00" in sentences
    assert "unrolled (out of memory)" in sentences


def test_the_fastest_is_that_of_medians_to_a_tolerance(tmp_path: Path) -> None:
    """Not the luckiest seed's, and not one that stops after five iterations whatever is left."""
    records = []
    for gradient, seconds in (("jfb", (2.0, 2.0, 2.0)), ("implicit", (1.0, 3.0, 3.0))):
        for seed, value in enumerate(seconds):
            record = synthetic_record(gradient, 4, seed=seed)
            record["step_seconds"]["median"] = value
            records.append(record)
    exact = synthetic_record("unrolled", 4, iterations=5, tolerance=None)
    exact["step_seconds"]["median"] = 0.1
    sentences = " ".join(
        summary(case_frame([load_run(write_run(tmp_path / "r", [*records, exact]))]))
    )
    assert "fastest jfb (2.00 s a step at batch 4" in sentences


def test_no_case_no_largest_size() -> None:
    assert not any("Largest" in sentence for sentence in summary(case_frame([])))


def test_slope_of_an_exact_power_law() -> None:
    x = pd.Series([1, 6, 20, 100, 6])
    # the arithmetic is exact up to rounding of logarithms
    assert power_law_slope(x, 3.0 * x.astype(float) ** 1.5) == pytest.approx(1.5, abs=1e-12)
    assert power_law_slope(x, pd.Series([7.0] * 5)) == pytest.approx(0.0, abs=1e-12)
    assert power_law_slope(pd.Series([6, 6]), pd.Series([1.0, 2.0])) is None
    assert power_law_slope(pd.Series([1, 6]), pd.Series([1.0, np.nan])) is None


def test_performance_profile_by_hand() -> None:
    # ratios: a 1, 2, 1, miss; b 2, 1, miss, miss; the last instance is solved by nobody
    times = pd.DataFrame({"a": [1.0, 4.0, 3.0, np.inf], "b": [2.0, 2.0, np.nan, np.inf]})
    profile = performance_profile(times)
    np.testing.assert_array_equal(profile["a"][0], [1.0, 2.0])
    np.testing.assert_array_equal(profile["a"][1], [0.5, 0.75])
    np.testing.assert_array_equal(profile["b"][0], [1.0, 2.0])
    np.testing.assert_array_equal(profile["b"][1], [0.25, 0.5])


def test_performance_profile_where_the_best_time_is_zero() -> None:
    # a target met before the first step: no other gradient is within any factor of it
    profile = performance_profile(pd.DataFrame({"a": [0.0, 1.0], "b": [2.0, 1.0], "c": [0.0, 2.0]}))
    assert [values.tolist() for values in profile["a"]] == [[1.0], [1.0]]
    assert [values.tolist() for values in profile["b"]] == [[1.0], [0.5]]
    assert [values.tolist() for values in profile["c"]] == [[1.0, 2.0], [0.5, 1.0]]


def test_time_to_target_and_misses() -> None:
    curve = pd.DataFrame({"seconds": [0.0, 1.0, 2.0], "optimality_gap": [0.9, 0.2, 0.04]})
    curve["step"] = [0, 7, 19]
    assert time_to_target(curve, 0.25) == 1.0
    assert time_to_target(curve, 0.01) == np.inf
    assert time_to_target(curve, 0.05, "step") == 19
    assert time_to_target(curve, 0.01, "step") == np.inf
    # A target that is lost again is reached when it is kept.
    curve = pd.DataFrame({"optimality_gap": [0.9, 0.04, np.nan, 0.3, 0.04, 0.01]})
    curve["seconds"] = curve["step"] = np.arange(6.0)
    assert time_to_target(curve, 0.05) == 4.0
    assert time_to_target(curve[:4], 0.05) == np.inf
    assert time_to_target(curve, 1.0) == 3.0
    assert median_with_misses(pd.Series([1.0, np.inf, 3.0])) == 3.0
    assert median_with_misses(pd.Series([1.0, np.inf])) == np.inf


def test_a_seed_without_a_curve_is_a_miss(tmp_path: Path) -> None:
    curve = synthetic_curve(1.0)
    records = [synthetic_record("jfb", 1, seed=seed, curve=curve) for seed in range(2)]
    lost = [
        synthetic_record("jfb", 1, seed=seed, status="diverged", reason="made up")
        for seed in range(2, 5)
    ]
    runs = [load_run(write_run(tmp_path / "run", records + lost))]
    cases = case_frame(runs)
    (row,) = target_times(curve_frame(runs, cases), cases).to_dict("records")
    assert (row["seeds"], row["reached_0.25"]) == (5, 2)
    assert row["target_0.25"] == row["gap"] == row["gap_max"] == np.inf
    assert row["gap_min"] == curve[-1]["optimality_gap"]
    (table,) = target_tables(target_times(curve_frame(runs, cases), cases))
    assert (table.rows[0][-1].text, table.rows[0][-1].below) == (DASH, "0.0045% to ∞")


def test_a_target_that_needs_no_training_is_none(tmp_path: Path) -> None:
    """The untrained gap of 40 % is less than three times 25 %: nobody has a time to it."""
    easy = [point for point in synthetic_curve(1.0) if point["optimality_gap"] < 0.4]
    easy[0] |= {"step": 0}
    runs = [load_run(write_run(tmp_path / "run", [synthetic_record("jfb", 1, curve=easy)]))]
    cases = case_frame(runs)
    times = target_times(curve_frame(runs, cases), cases)
    (row,) = times.to_dict("records")
    assert np.isnan(row["target_0.25"])
    assert row["target_0.1"] < np.inf
    (table,) = target_tables(times)
    assert "too easy" in table.texts()[0]


def test_crossing_fractions_are_shares_of_the_limit(tmp_path: Path) -> None:
    records = [synthetic_record("jfb", 1, seed=seed, curve=synthetic_curve(1.0)) for seed in (0, 1)]
    records.append(synthetic_record("jfb", 1, seed=2, curve=synthetic_curve(0.01)))
    for record in records:
        record["case"] |= {"train_steps": 0, "recipe": "recommended", "train_seconds": 5.0}
    runs = [load_run(write_run(tmp_path / "run", records))]
    cases = case_frame(runs)
    # exp(-2) is the first gap below a quarter, after a second of five; one seed misses it.
    (drawing,) = crossing_figure(cases, curve_frame(runs, cases))
    first = drawing.figure.axes[0]
    # Twenty bars of a twentieth: both runs are in the fifth.
    heights = [bar.get_height() for bar in first.patches]
    assert [i for i, height in enumerate(heights) if height] == [int(0.2 * 20)]
    assert max(heights) == 2


def test_a_gradient_that_cannot_serve_the_problem_has_no_target(tmp_path: Path) -> None:
    records = [
        synthetic_record("jfb", 1, curve=synthetic_curve(1.0)),
        synthetic_record("cvxpylayers", 1, status="unsupported", reason="not concave"),
    ]
    runs = [load_run(write_run(tmp_path / "run", records))]
    cases = case_frame(runs)
    (row,) = target_times(curve_frame(runs, cases), cases).to_dict("records")
    assert row["gradient"] == "jfb"
    assert "not concave" in write_report([tmp_path / "run"], tmp_path / "report").read_text()


def test_a_case_that_trains_on_a_recipe_has_targets(tmp_path: Path) -> None:
    """Such a case has no number of training steps: its seconds are what is fixed."""
    records = [synthetic_record("jfb", 1, seed=seed, curve=synthetic_curve(1.0)) for seed in (0, 1)]
    records.append(synthetic_record("jfb", 1, seed=2, status="diverged", reason="made up"))
    for record in records:
        record["case"] |= {"train_steps": 0, "recipe": "recommended", "train_seconds": 5.0}
    runs = [load_run(write_run(tmp_path / "run", records))]
    cases = case_frame(runs)
    (row,) = target_times(curve_frame(runs, cases), cases).to_dict("records")
    assert (row["seeds"], row["reached_0.25"]) == (3, 2)
    assert row["target_0.25"] == 1.0


def test_every_gradient_is_shown_on_the_recipe_and_with_its_best_learning_rate(
    tmp_path: Path,
) -> None:
    """The recipe's own rate is the better one for jfb, the other one for implicit."""
    records = []
    for gradient, decay, rate in (
        ("jfb", 1.0, None), ("jfb", 0.3, 0.02), ("implicit", 0.5, None), ("implicit", 0.8, 0.02),
        ("unrolled", 0.7, None),
    ):  # fmt: skip
        for seed in (0, 1, 2):
            record = synthetic_record(gradient, 1, seed=seed, curve=synthetic_curve(decay))
            record["case"] |= {"train_steps": 0, "recipe": "recommended", "train_seconds": 5.0}
            record["case"]["learning_rate"] = rate
            record["case"]["id"] += "" if rate is None else f"-lr{rate:g}"
            records.append(record)
    runs = [load_run(write_run(tmp_path / "run", records))]
    cases = case_frame(runs)
    times = target_times(curve_frame(runs, cases), cases)
    assert len(times) == 5
    assert own_rate(times)["learning_rate"].isna().all()
    # One that ran at another rate only stays.
    implicit = times["gradient"].eq("implicit") & times["learning_rate"].isna()
    assert set(own_rate(times[~implicit])["gradient"]) == {"jfb", "implicit", "unrolled"}
    best = tuned(times).set_index("gradient")
    # A gradient that nobody tuned takes part with the recipe's rate.
    assert best["settings"].to_dict() == {"implicit": 2, "jfb": 2, "unrolled": 1}
    assert math.isnan(best.loc["jfb", "learning_rate"])
    assert best.loc["implicit", "learning_rate"] == 0.02
    page = write_report([tmp_path / "run"], tmp_path / "report").read_text()
    assert "Time to target, recipe tuned" in page
    assert (tmp_path / "report" / "figures" / "profile-tuned.png").is_file()


def test_records_of_several_commits_are_counted_by_commit(tmp_path: Path) -> None:
    records = [synthetic_record("jfb", n) for n in (1, 6, 20)]
    for record, commit in zip(records, ("a" * 40, "b" * 40, "b" * 40), strict=True):
        record["git"] = {"commit": commit, "dirty": False}
    page = write_report([write_run(tmp_path / "run", records)], tmp_path / "report").read_text()
    assert "bbbbbbbbbbbb (2 records), aaaaaaaaaaaa (1 record)" in page


def test_the_code_version_is_that_of_the_records(tmp_path: Path) -> None:
    """Not that of a later sweep which found nothing left to measure."""
    record = synthetic_record("jfb", 1)
    record["git"] = {"commit": "a" * 40, "dirty": False}
    (run,) = [load_run(write_run(tmp_path / "run", [record]))]
    table = environment_table([run])
    assert [row[1] for row in table.rows if row[0] == "code version"] == ["a" * 12]


def test_records_of_several_processors_are_told_apart(tmp_path: Path) -> None:
    records = []
    for gradient, cpu in (("jfb", "Fast CPU"), ("implicit", "Slow CPU"), ("unrolled", None)):
        record = synthetic_record(gradient, 1, curve=synthetic_curve(1.0))
        record["case"] |= {"train_steps": 0, "recipe": "recommended", "train_seconds": 5.0}
        if cpu is not None:
            record["machine"] = {"cpu": cpu, "gpu": None}
        records.append(record)
    runs = [load_run(write_run(tmp_path / "run", records))]
    assert any(
        text.startswith("The records of run were made on several processors: ")
        for text in limitations(runs)
    )
    cases = case_frame(runs)
    # no figure and no profile draws them as one series
    assert cases["environment"].tolist() == ["A", "B", "C"]
    (table,) = target_tables(target_times(curve_frame(runs, cases), cases))
    below = {row[2].text: row[0].below for row in table.rows}
    assert below == {
        "jfb": "Fast CPU",
        "implicit": "Slow CPU",
        "unrolled": "processor not recorded",
    }
    # two steps of half a second to a quarter of the optimum
    assert [(row[5].text, row[5].below) for row in table.rows] == [("1.00 s (1/1)", "2 steps")] * 3
    alone = replace(runs[0], records=runs[0].records[:1])
    assert not any("several processors" in text for text in limitations([alone]))


@pytest.mark.parametrize(
    ("field", "kind", "words"),
    [
        ("threads", "numbers of threads", "4 threads"),
        ("gpu", "GPUs", "Second GPU"),
    ],
)
def test_records_of_several_threads_or_gpus_are_told_apart(
    tmp_path: Path, field: str, kind: str, words: str
) -> None:
    records = []
    for seed, (threads, gpu) in enumerate(((1, "First GPU"), (4, "Second GPU"), (4, "Second GPU"))):
        record = synthetic_record("jfb", 1, seed=seed)
        record["machine"] = {"cpu": "CPU", "gpu": gpu if field == "gpu" else None}
        record["threads"] = threads if field == "threads" else 1
        records.append(record)
    run = load_run(write_run(tmp_path / "run", records))
    (text,) = (text for text in limitations([run]) if text.startswith("The records of run"))
    assert f"were made on several {kind}: CPU, {words} (2 records)" in text
    cases = case_frame([run])
    assert cases["environment"].tolist() == ["A", "B", "B"]
    # nor does the table of all cases take a median over both
    assert len(case_table(cases).rows) == 2
    assert words in str(environment_table([run]).rows[0])


def test_a_small_gap_is_not_written_as_none(tmp_path: Path) -> None:
    record = synthetic_record("jfb", 1, curve=synthetic_curve(1.0))
    record["case"] |= {"train_steps": 0, "recipe": "recommended", "train_seconds": 5.0}
    for point in record["curve"]:
        point["optimality_gap"] = 6.9e-5
    record["final"]["optimality_gap"] = 6.9e-5
    runs = [load_run(write_run(tmp_path / "run", [record]))]
    cases = case_frame(runs)
    (table,) = target_tables(target_times(curve_frame(runs, cases), cases))
    assert table.rows[0][-1].text == "0.0069%"


def test_the_tolerance_is_marked_in_the_units_of_the_residual(tmp_path: Path) -> None:
    records = [synthetic_record("jfb", goods, tolerance=1e-4) for goods in (5, 100)]
    for record in records:
        record["case"]["problem"] = "consumption"
    (drawing,) = residual_figures(case_frame([load_run(write_run(tmp_path / "run", records))]))
    _, residual = drawing.figure.axes
    marks = [line for line in residual.lines if line.get_linewidth() == 1.2]
    downwards = sorted(marks, key=lambda line: line.get_ydata()[0])
    assert [line.get_xdata()[0] for line in downwards] == pytest.approx(
        [1e-4 * Consumption(goods).gradient_scale for goods in (5, 100)]
    )


def test_a_tuned_run_that_failed_is_not_drawn_where_its_rate_is_not(tmp_path: Path) -> None:
    own = synthetic_record("jfb", 1, curve=synthetic_curve(1.0))
    other = synthetic_record("jfb", 1, status="diverged", reason="made up")
    for record, rate in ((own, None), (other, 0.02)):
        record["case"] |= {"train_steps": 0, "recipe": "recommended", "train_seconds": 5.0}
        record["case"]["learning_rate"] = rate
    other["case"]["id"] += "-lr0.02"
    cases = case_frame([load_run(write_run(tmp_path / "run", [own, other]))])
    curves = curve_frame([load_run(tmp_path / "run")], cases)
    drawings = convergence_figures(curves, cases)
    assert drawings
    for drawing in drawings:
        assert "grey strip" not in drawing.caption
        (legend,) = drawing.figure.legends
        assert [text.get_text() for text in legend.get_texts()] == ["jfb"]


def test_compiled_and_checkpointed_rows_are_not_mixed_with_eager_ones(tmp_path: Path) -> None:
    records = []
    for changes in ({}, {"compile": True}, {"segment": 12}, {"network": "shared"}):
        record = synthetic_record("jfb", 1)
        record["case"] |= {"compile": False, "network": "dense", "segment": None} | changes
        record["case"]["id"] += "-" + "-".join(changes)
        records.append(record)
    cases = case_frame([load_run(write_run(tmp_path / "run", records))])
    found = {row["id"].split("-")[-1]: row for row in cases.to_dict("records")}
    assert found["compile"]["execution"] == "compiled"
    assert found["segment"]["execution"] == "checkpointed every 12 time steps"
    assert found["network"]["execution"] == found[""]["execution"] == "eager"
    assert found["network"]["ascent"] == "scaled map, shared network"
    assert found[""]["ascent"] == "scaled map"
    assert "execution" in WORKLOAD


def test_band_counts_a_failed_seed_as_infinite() -> None:
    rows = pd.DataFrame(
        {
            "run": "r",
            "id": "case",
            "seed": [0, 0, 0, 1, 1, 1, 2, 2],
            "status": ["ok"] * 6 + ["diverged"] * 2,
            "step": [0, 1, 2, 0, 1, 2, 0, 1],
            "loss": [4.0, 3.0, 2.0, 6.0, 5.0, 4.0, 5.0, 9.0],
        }
    )
    band = median_band(rows, "loss", "step")
    assert band["x"].tolist() == [0, 1, 2]
    assert band["median"].tolist() == [5.0, 5.0, 4.0]
    assert band["high"].iloc[-1] == np.inf


def test_panels_join_rows_without_a_setting() -> None:
    frame = pd.DataFrame(
        {
            "problem": "p",
            "gradient": ["jfb", "jfb", "direct"],
            "ascent": pd.Series(["plain map", "scaled map", None], dtype="str"),
            "solver": pd.Series(["picard", "picard", None], dtype="str"),
        }
    )
    found = panels(frame, ["problem"], ["ascent"])
    assert [panel.settings["ascent"] for panel in found] == ["plain map", "scaled map"]
    assert all("direct" in set(panel.rows["gradient"]) for panel in found)
    labels = [series.label for series in series_of(frame, ["ascent"])]
    assert labels == ["jfb, scaled map", "jfb, plain map", "direct"]


def test_every_gradient_has_its_own_look() -> None:
    looks = [(own.color, own.marker) for own in LOOKS.values()]
    assert len(set(looks)) == len(looks)
    assert len({own.color for own in LOOKS.values()}) == len(looks)
    assert look("somebody-elses-backend") == look("somebody-elses-backend")


def test_units() -> None:
    assert format_bytes(1023) == "1023 B"
    assert format_bytes(1.25 * 2**20) == "1.25 MiB"
    assert format_bytes(3 * 2**40) == "3.00 TiB"
    assert format_seconds(0.0123) == "12.3 ms"
    assert format_seconds(np.inf) == "∞"
    assert short("16.0 MiB") == "16 MiB"
    assert short("100") == "100"
    assert short("1.00e-04") == "1e-04"
    assert short("1.50e+06") == "1.5e+06"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 99}, "schema_version is 99"),
        ({"case": None}, "case is null"),
        ({"status": None}, "status is null"),
        ({"residual": 3.0}, "residual is 3.0"),
        ({"curve": [1.0]}, r"curve\[0\] is 1.0"),
    ],
)
def test_record_that_is_no_record_is_left_out(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    directory = write_run(tmp_path / "run", [synthetic_record("jfb", 1)])
    broken = directory / "records" / "implicit-broken.json"
    broken.write_text(json.dumps(synthetic_record("implicit", 1) | change))
    with pytest.warns(CorruptRecord, match=rf"implicit-.*{message}"):
        run = load_run(directory)
    assert [record["case"]["gradient"] for record in run.records] == ["jfb"]


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(words)


def test_several_runs_are_reported_in_the_first_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, gradient in (("one", "jfb"), ("two", "implicit")):
        write_run(tmp_path / name, [synthetic_record(gradient, 1)])
    assert command.run(arguments(str(tmp_path / "one"), str(tmp_path / "two"))) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "one" / "index.html")
    assert set(pd.read_csv(tmp_path / "one" / "cases.csv")["gradient"]) == {"jfb", "implicit"}


def test_rows_that_missed_their_tolerance_in_training_or_have_few_repeats_are_marked(
    tmp_path: Path,
) -> None:
    record = synthetic_record("jfb", 1, tolerance=1e-4, curve=synthetic_curve(1.0))
    record["step_seconds"]["repeats"] = 4
    late = {"residual": {"mean": 1.0, "max": 2.0}, "tolerance_reached": False}
    record["evaluation"] = {"states": 64, "reference_states": 8, "iterations": None} | late
    directory = write_run(tmp_path / "run", [record])
    page = write_report([directory], directory).read_text()
    assert "ok, residual not reached after training" in page
    assert "4 repeats" in page
    (row,) = pd.read_csv(directory / "cases.csv").to_dict("records")
    assert (row["evaluation_states"], row["reference_states"]) == (64, 8)
    assert row["trained_residual_max"] == 2.0


def test_command_joins_runs_that_share_a_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [synthetic_record("jfb", 1), synthetic_record("jfb", 4)]
    directories = [write_run(tmp_path / place / "run", records) for place in ("one", "two")]
    out = tmp_path / "joined"
    assert command.run(arguments(*map(str, directories), "--out", str(out))) == 0
    assert capsys.readouterr().out.strip() == str(out / "index.html")
    cases = pd.read_csv(out / "cases.csv")
    # nothing overrides anything, and the machine's paths stay out of the page
    assert cases["run"].tolist() == ["run", "run", "run (2)", "run (2)"]
    assert set(cases["environment"]) == {"A"}
    assert str(tmp_path) not in (out / "index.html").read_text(encoding="utf-8")


def test_a_single_bare_record_makes_a_report(tmp_path: Path) -> None:
    record = synthetic_record("direct", 1, status="crashed", reason="made-up signal 11")
    directory = tmp_path / "bare"
    (directory / "records").mkdir(parents=True)
    minimal = {key: record[key] for key in ("schema_version", "case", "status", "reason")}
    (directory / "records" / "only.json").write_text(json.dumps(minimal))
    page = write_report([directory], tmp_path / "out").read_text(encoding="utf-8")
    assert "made-up signal 11" in page
    assert "not recorded" in page


def synthetic_profile(**changes: Any) -> dict[str, Any]:
    """A profile with made-up rates, one supported case and one that is not."""
    tally = {"calls": 1234, "free": 5, "matmul_flops": 6e9, "pointwise_flops": 1e9, "bytes": 2**30}
    phases = (("forward", "costate"), ("backward", "dynamics"), ("optimiser", "optimiser step"))
    entry = {
        "case": {"problem": "synthetic", "n_agents": 7, "gradient": "jfb", "device": "cpu"},
        "seconds": {"step": 0.6, "forward": 0.3, "backward": 0.2, "optimiser": 0.1},
        "counts": tally,
        "floor_seconds": {"arithmetic": 0.1, "traffic": 0.2, "roofline": 0.2, "launch": 0.05},
        "bound": "traffic",
        "ratio": {"roofline": 3.0, "launch": 12.0},
        "parts": [
            {"phase": phase, "part": part, "seconds": 0.2, "share": 1 / 3} for phase, part in phases
        ],
    }
    rates = {"square_flops_per_second": 7e10, "copy_bytes_per_second": 1e10}
    rates |= {"operator_seconds": 1e-6, "tracked_forward_seconds": 2e-6}
    found = {
        "schema_version": 1,
        "environment": {"cpu": "Synthetic CPU", "threads": 2},
        "conventions": ["A made-up convention."],
        "rates": rates | {"tracked_backward_seconds": 3e-6},
        "cases": [entry],
        "unsupported": [{"id": "synthetic-n7-cvxpylayers", "reason": "made-up lack of concavity"}],
    }
    return found | changes


def test_roofline_section_appears_with_its_file(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run", [synthetic_record("jfb", 1)])
    without = write_report([directory], directory).read_text(encoding="utf-8")
    assert 'id="roofline"' not in without
    (directory / "roofline.json").write_text(json.dumps(synthetic_profile()))
    page = write_report([directory], directory).read_text(encoding="utf-8")
    section = page[page.index('<details id="roofline">') :].split("</details>")[0]
    for text in ("synthetic 7, jfb", "600 ms", "1.00 GiB", "1,234", "3.00 ×", "12.0 ×", "traffic"):
        assert f">{text}<" in section
    for text in (
        "70.0 GFLOP/s",
        "A made-up convention.",
        "made-up lack of concavity",
        "data:image",
    ):
        assert text in section
    assert page.count('id="roofline"') == 1
    assert (directory / "figures" / "roofline.svg").is_file()


def test_roofline_of_another_schema_is_left_out(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run", [synthetic_record("jfb", 1)])
    (directory / "roofline.json").write_text(json.dumps(synthetic_profile(schema_version=99)))
    with pytest.warns(UnusableFile, match="schema version 99"):
        assert not load_run(directory).roofline


def test_a_profile_alone_makes_a_report(tmp_path: Path) -> None:
    (tmp_path / "profile").mkdir()
    (tmp_path / "profile" / "roofline.json").write_text(json.dumps(synthetic_profile()))
    page = write_report([tmp_path / "profile"], tmp_path / "out").read_text(encoding="utf-8")
    assert '<details id="roofline">' in page
    assert "No cases were measured here." in page
    # the environment is the profile's own
    assert "<td>Synthetic CPU</td>" in page


def test_what_a_preset_left_out_is_said(tmp_path: Path) -> None:
    cases = list(PRESETS["cpu"]())
    kept = [case for case in cases if case.batch_size == 32 and case.tolerance is not None]
    records = [empty_record(case, 0) | {"status": "ok"} for case in kept[1:]]
    run = Run("cpu", tmp_path, {"preset": "cpu"}, tuple(records))
    text = not_run(run)
    assert text.startswith(f"Preset cpu: {len(kept) - 1} of {len(cases)} cases were run.")
    assert f"batch 32, to tolerance (1 of {len(kept)})" in text
    assert "batch 128, exactly 500 (60 of 60)" in text
    whole = Run("smoke", tmp_path, {"preset": "smoke"}, tuple(
        empty_record(case, 0) | {"status": "ok"} for case in PRESETS["smoke"]()
    ))  # fmt: skip
    assert not_run(whole) == ""
