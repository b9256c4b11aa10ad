"""The ranking and the answer, on made-up records whose ratios and gaps are known by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("seaborn")

from bench.report.answer import answer, standing
from bench.report.frames import case_frame, curve_frame
from bench.report.load import load_run
from bench.report.ranking import gaps_at_equal_time, ranking, ranking_table
from bench.report.summary import unrolled_over_jfb
from tests.test_report import NOT_CONCAVE, synthetic_record, write_run


def trained(gradient: str, seed: int, gaps: list[tuple[float, float]], n_agents: int = 1) -> Any:
    """A run on a recipe with the gaps (seconds, gap)."""
    curve = [
        {"seconds": t, "step": i, "loss": 1.0, "evaluation_cost": 1.0, "optimality_gap": gap}
        for i, (t, gap) in enumerate(gaps)
    ]
    record = synthetic_record(gradient, n_agents, seed=seed, curve=curve)
    record["case"] |= {"train_steps": 0, "recipe": "recommended", "train_seconds": 10.0}
    return record


def ranked_run(tmp_path: Path, records: list[dict[str, Any]]) -> Any:
    runs = [load_run(write_run(tmp_path / "run", records))]
    cases = case_frame(runs)
    gaps = gaps_at_equal_time(curve_frame(runs, cases), cases)
    return runs, cases, ranking(cases, gaps), gaps


def test_ratios_are_geometric_means_over_instances(tmp_path: Path) -> None:
    """Twice the best at one size and eight times at another are four times on average."""
    records = []
    for n_agents, factor in ((1, 2.0), (4, 8.0)):
        for gradient, scale in (("jfb", 1.0), ("implicit", factor)):
            record = synthetic_record(gradient, n_agents)
            record["step_seconds"]["median"] = 0.5 * scale
            record["peak_live_tensor_bytes"] = int(1000 * scale)
            records.append(record)
    missed = synthetic_record("unrolled", 1, reached=False)
    missed["step_seconds"]["median"] = 1e-6
    refused = synthetic_record("cvxpylayers", 1, status="unsupported", reason=NOT_CONCAVE)
    _, _, ranked, _ = ranked_run(tmp_path, [*records, missed, refused])
    rows = ranked.set_index("gradient")
    assert rows.loc["implicit", "time"] == pytest.approx(4.0)
    assert rows.loc["implicit", "memory"] == pytest.approx(4.0)
    assert rows.loc["jfb", "time"] == pytest.approx(1.0)
    cells = {row[0]: row for row in ranking_table(ranked).texts()}
    # a row that missed its tolerance is no fast one, and serves nothing
    assert cells["unrolled"][2] == "–"
    assert cells["unrolled"][5] == cells["cvxpylayers"][5] == "0 of 1"
    assert cells["implicit"][2] == "4.0×"


def test_a_method_that_is_alone_on_a_problem_has_no_ratio_there(tmp_path: Path) -> None:
    records = [synthetic_record("jfb", 1), synthetic_record("implicit", 4)]
    runs, cases, ranked, gaps = ranked_run(tmp_path, records)
    assert ranked["time"].isna().all()
    assert ranked["memory"].isna().all()
    assert "Which" not in dict(answer(runs, cases, ranked, gaps))


def test_trainings_that_do_not_compare_are_not_called_short(tmp_path: Path) -> None:
    """Two timed side by side, another trained by itself."""
    timed = [synthetic_record("jfb", 1), synthetic_record("implicit", 1)]
    curve = trained("jfb", 0, [(0, 9.0), (4, 0.5)], n_agents=4)
    lines = dict(answer(*ranked_run(tmp_path / "trained", [*timed, curve])))
    assert lines["Which"].endswith("trained on one problem and size by the same code and machine.")
    lines = dict(answer(*ranked_run(tmp_path / "timed", timed)))
    assert lines["Which"].endswith("Runs this short do not say which gradient trains best.")


@pytest.mark.parametrize(("limit", "jfb"), [(10.0, 0.1), (7.0, 0.5)])
def test_gaps_are_read_off_at_the_shortest_limit(tmp_path: Path, limit: float, jfb: float) -> None:
    """A run that ends before keeps its gap; of one that goes on later points do not count."""
    records = [
        trained("jfb", 0, [(0, 9.0), (4, 0.5), (8, 0.1)]),
        trained("implicit", 0, [(0, 9.0), (5, 0.3)]),
    ]
    records[1]["case"]["train_seconds"] = limit
    _, _, ranked, gaps = ranked_run(tmp_path, records)
    assert dict(zip(gaps["gradient"], gaps["gap"], strict=True)) == {"jfb": jfb, "implicit": 0.3}
    assert ranked["gradient"].tolist() == (
        ["jfb", "implicit"] if jfb < 0.3 else ["implicit", "jfb"]
    )
    assert ranking_table(ranked).texts()[0][4] == f"{min(jfb, 0.3):.0%}"  # of a single run


def test_seeds_that_overlap_are_a_tie_and_the_others_are_named(tmp_path: Path) -> None:
    records = []
    for n_agents, jfb, implicit, direct in ((1, 0.10, 0.11, 0.9), (4, 0.20, 0.50, 0.01)):
        for seed in range(3):
            spread = 0.02 * seed
            for gradient, gap in (("jfb", jfb), ("implicit", implicit), ("direct", direct)):
                records.append(trained(gradient, seed, [(0, 9.0), (5, gap + spread)], n_agents))
    runs, cases, ranked, gaps = ranked_run(tmp_path, records)
    ties = standing(gaps).set_index("gradient")
    # at 1 agent 0.10 to 0.14 meets 0.11 to 0.15; at 4 agents 0.50 lies above 0.24
    assert ties["tied"].to_dict() == {"jfb": 2, "implicit": 1}
    lines = dict(answer(runs, cases, ranked, gaps))
    assert "2 of 2 problems" in lines["Which"]
    assert lines["Which"].startswith("jfb")
    assert lines["When another"] == (
        "All seeds of another are closer to the optimum: direct on 4 synthetics (3.0%, jfb 22%)."
    )


def test_a_seed_that_diverged_is_no_tie(tmp_path: Path) -> None:
    bad = trained("implicit", 0, [(0, 9.0), (5, 0.1)])
    bad |= {"status": "diverged", "reason": "made-up"}
    records = [trained("jfb", 0, [(0, 9.0), (5, 0.2)]), bad]
    _, _, _, gaps = ranked_run(tmp_path, records)
    assert standing(gaps).set_index("gradient")["tied"].to_dict() == {"jfb": 1, "implicit": 0}


def test_memory_at_every_k_of_both(tmp_path: Path) -> None:
    """By construction unrolled saves K times what jfb does; 500 was not run with unrolled."""
    records = [
        synthetic_record(gradient, 4, iterations=iterations, tolerance=None)
        for gradient, counts in (("jfb", (5, 50, 500)), ("unrolled", (5, 50)))
        for iterations in counts
    ]
    _, cases, _, _ = ranked_run(tmp_path, records)
    ratios = unrolled_over_jfb(cases)["saved_tensor_bytes"]
    assert ratios.droplevel([*ratios.index.names[:-1]]).to_dict() == {5: 5.0, 50: 50.0}
