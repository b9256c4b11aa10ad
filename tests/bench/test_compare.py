"""Two runs side by side: what must repeat, and how far the times are apart."""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.case import Case
from bench.compare import compare_runs, overlap
from bench.records import empty_record, write_json
from tests.bench.helpers import record_path, run_cli

_CASES = [
    Case(problem="quadrotor", n_agents=n, gradient=gradient, batch_size=4, n_steps=8)
    for n in (1, 6, 20)
    for gradient in ("jfb", "implicit")
]


def _run(directory: Path, change: Callable[[Case, dict[str, Any]], None]) -> Path:
    """A run directory of six cases whose records `change` edits."""
    for index, case in enumerate(_CASES):
        record = copy.deepcopy(empty_record(case, 0))
        record |= {
            "status": "ok",
            "step_seconds": dict.fromkeys(("median", "min", "q25", "q75"), 0.1 + 0.01 * index)
            | {"repeats": 10},
            "saved_tensor_bytes": 1000,
            "peak_live_tensor_bytes": 2000,
            "versions": {"torch": "2.13.0"},
        }
        change(case, record)
        write_json(record_path(directory, case, 0), record)
    return directory


def _nothing(case: Case, record: dict[str, Any]) -> None:
    """Leaves the record as it is."""


def _times(factor: Callable[[Case], float]) -> Callable[[Case, dict[str, Any]], None]:
    def change(case: Case, record: dict[str, Any]) -> None:
        record["step_seconds"]["median"] *= factor(case)

    return change


def test_a_machine_twice_as_slow_is_equal_and_its_factor_is_named(tmp_path, capsys):
    first = _run(tmp_path / "a", _nothing)
    second = _run(tmp_path / "b", _times(lambda case: 2 * 1.1 ** (case.n_agents % 3 - 1)))
    found = compare_runs(first, second)
    assert found.equal
    # cases take 2, 1.82 and 2.2 times as long, whatever the method
    assert found.speed.low < found.speed.ratio < found.speed.high
    assert found.speed.ratio == pytest.approx(2.0, rel=0.05)
    assert [ratio.ratio for ratio in found.ratios] == pytest.approx([1.0, 1.0])
    assert not any(ratio.apart for ratio in found.ratios)
    code, out, _ = run_cli(capsys, "compare", first, second)
    assert code == 0
    assert "APART" not in out


def test_a_method_that_is_slower_beside_the_others_is_said(tmp_path, capsys):
    def factor(case: Case) -> float:
        return (4 if case.gradient == "implicit" else 2) * 1.01**case.n_agents

    first, second = _run(tmp_path / "a", _nothing), _run(tmp_path / "b", _times(factor))
    found = compare_runs(first, second)
    ratios = {ratio.method: ratio for ratio in found.ratios}
    assert ratios["implicit"].ratio == pytest.approx(2.0)
    assert ratios["jfb"].ratio == pytest.approx(0.5)
    # Welch's interval of three logarithms a side, each at 97.5 %: n - 1 = 2 twice is 4 degrees.
    logs = [0.00995033 * n for n in (1, 6, 20)]
    half = 3.4954 * statistics.stdev(logs) * (2 / 3) ** 0.5
    assert ratios["jfb"].low == pytest.approx(0.5 * math.exp(-half), rel=1e-4)
    assert ratios["jfb"].apart
    code, out, _ = run_cli(capsys, "compare", first, second)
    assert code == 0
    assert out.count("APART") == 2


def test_one_case_a_method_has_no_interval(tmp_path):
    first, second = _run(tmp_path / "a", _nothing), _run(tmp_path / "b", _nothing)
    for case in _CASES[2:]:
        record_path(second, case, 0).unlink()
    assert [ratio.low for ratio in compare_runs(first, second).ratios] == [None, None]


def test_one_byte_more_is_different(tmp_path, capsys):
    def heavier(case: Case, record: dict[str, Any]) -> None:
        record["saved_tensor_bytes"] += case.n_agents == 20 and case.gradient == "jfb"

    first, second = _run(tmp_path / "a", _nothing), _run(tmp_path / "b", heavier)
    code, out, _ = run_cli(capsys, "compare", first, second)
    assert code == 1
    assert "DIFFERENT" in out
    assert "saved bytes: 1000 -> 1001" in out


def test_a_folder_of_runs_is_one_run_and_a_part_of_it_a_fair_one(tmp_path):
    release = tmp_path / "release"
    _run(release / "smoke", _nothing)
    mine = tmp_path / "mine"
    _run(mine, _nothing)
    record_path(mine, _CASES[0], 0).unlink()
    found = compare_runs(release, mine)
    assert found.equal
    assert found.only == (1, 0)
    assert found.counts.compared == len(_CASES) - 1


def test_gaps_compare_by_their_range_over_seeds(tmp_path):
    def trained(gaps: list[float]) -> Path:
        directory = tmp_path / str(gaps[0])
        for seed, gap in enumerate(gaps):
            record = empty_record(_CASES[0], seed) | {"status": "ok"}
            record["final"] |= {"loss": 1.0, "evaluation_cost": 1.0, "optimality_gap": gap}
            write_json(record_path(directory, _CASES[0], seed), record)
        return directory

    near, same, far = (
        trained([0.01, 0.02, 0.03]),
        trained([0.025, 0.03, 0.04]),
        trained([0.5, 0.6, 0.7]),
    )
    (meeting,) = compare_runs(near, same).gaps.values()
    assert overlap(meeting)
    (apart,) = compare_runs(near, far).gaps.values()
    assert not overlap(apart)
    assert apart[1] == (0.5, 0.6, 0.7)


def test_verdicts_must_be_equal(tmp_path, capsys):
    first, second = _run(tmp_path / "a", _nothing), _run(tmp_path / "b", _nothing)
    for directory, verdict in ((first, "reproduced"), (second, "partly")):
        write_json(directory / "verify.json", {"claims": [{"claim": "memory", "verdict": verdict}]})
    code, out, _ = run_cli(capsys, "compare", first, second)
    assert code == 1
    assert "verdict DIFFERENT: memory: reproduced -> partly" in out


def test_other_versions_are_named(tmp_path):
    def newer(case: Case, record: dict[str, Any]) -> None:
        record["versions"] = {"torch": "2.14.0"}

    first, second = _run(tmp_path / "a", _nothing), _run(tmp_path / "b", newer)
    assert compare_runs(first, second).versions == {"torch": ("2.13.0", "2.14.0")}


def test_nothing_in_common_and_no_directory_are_said(tmp_path, capsys):
    first = _run(tmp_path / "a", _nothing)
    (tmp_path / "empty").mkdir()
    code, _, err = run_cli(capsys, "compare", first, tmp_path / "empty")
    assert code == 3
    assert "no case in common" in err
    code, _, err = run_cli(capsys, "compare", first, tmp_path / "nowhere")
    assert code == 2
    assert "nowhere is not a directory" in err
