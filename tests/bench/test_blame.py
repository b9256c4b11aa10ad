"""Blame: the commit that a scan of all of them would find, measured in a real repository."""

from __future__ import annotations

import json

import pytest

from bench.case import Case
from bench.cli import main
from bench.gate.blame import blame, blame_table, commits_of
from bench.gate.counts import compare, summarise
from bench.records import empty_record, write_json
from tests.bench.fake_trees import make_repository

CASE = Case(problem="quadrotor", n_agents=1, gradient="jfb", batch_size=2, n_steps=3)
COMMITS = [f"commit{i}" for i in range(12)]


def summary(**changes):
    record = empty_record(CASE, 0) | {"status": "ok", "versions": {"torch": "1"}} | changes
    return summarise([record])


def history(bytes_of, status_of=lambda i: "ok"):
    """Measures commit i, and the list of what was measured."""
    log = []

    def measure(commit, cases):
        assert list(cases) == [CASE.id]
        log.append(commit)
        i = COMMITS.index(commit)
        if bytes_of(i) is None:
            return {"versions": {}, "cases": {}}
        return summary(saved_tensor_bytes=bytes_of(i), status=status_of(i))

    return measure, log


BASELINE = summary(saved_tensor_bytes=100)


def moves_of(head):
    comparison = compare(BASELINE, head)
    assert comparison.moves
    return comparison


@pytest.mark.parametrize("first", range(1, 12))
def test_bisection_finds_what_a_scan_finds(first):
    measure, log = history(lambda i: 108 if i >= first else 100)
    (found,) = blame(moves_of(summary(saved_tensor_bytes=108)), BASELINE, COMMITS, measure)
    # Both ends, and at most four halvings of the eleven between.
    assert len(log) == len(set(log)) <= 2 + 4
    scan = next(c for c in COMMITS if measure(c, [CASE.id])["cases"][CASE.id]["saved bytes"] > 100)
    assert found.commit == scan == COMMITS[first]


def test_quantities_of_one_case_share_its_measurements():
    """And each is blamed on its own commit."""
    log = []

    def measure(commit, cases):
        log.append(commit)
        i = COMMITS.index(commit)
        return summary(
            saved_tensor_bytes=108 if i >= 3 else 100, peak_live_tensor_bytes=2 if i >= 9 else 1
        )

    baseline = summary(saved_tensor_bytes=100, peak_live_tensor_bytes=1)
    comparison = compare(baseline, measure(COMMITS[-1], []))
    log.clear()
    found = {one.move.quantity: one.commit for one in blame(comparison, baseline, COMMITS, measure)}
    assert found == {"saved bytes": COMMITS[3], "peak live bytes": COMMITS[9]}
    assert len(log) == len(set(log))


def test_commits_that_do_not_run_are_passed_over_and_said():
    measure, _ = history(lambda i: None if i in (5, 6) else 108 if i >= 7 else 100)
    (found,) = blame(moves_of(summary(saved_tensor_bytes=108)), BASELINE, COMMITS, measure)
    assert found.commit == COMMITS[7]
    assert "one of the 2 before it" in found.reason


@pytest.mark.parametrize(
    ("bytes_of", "words"),
    [(lambda i: 108, "older than the range"), (lambda i: 100, "not in the range")],
)
def test_a_move_that_did_not_begin_in_the_range_is_blamed_on_nobody(bytes_of, words):
    measure, _ = history(bytes_of)
    (found,) = blame(moves_of(summary(saved_tensor_bytes=108)), BASELINE, COMMITS, measure)
    assert found.commit is None
    assert words in found.reason
    assert words in blame_table([found])


def test_a_change_of_status_is_blamed_too():
    measure, _ = history(lambda i: 100, lambda i: "crashed" if i >= 4 else "ok")
    (found,) = blame(moves_of(summary(status="crashed")), BASELINE, COMMITS, measure)
    assert found.commit == COMMITS[4]


def test_a_commit_whose_case_breaks_is_neither_good_nor_bad():
    measure, _ = history(
        lambda i: 108 if i >= 3 else 100, lambda i: "crashed" if 4 <= i <= 9 else "ok"
    )
    (found,) = blame(moves_of(summary(saved_tensor_bytes=108)), BASELINE, COMMITS, measure)
    assert found.commit == COMMITS[3]


def test_an_improvement_is_blamed_on_nobody():
    assert blame(moves_of(summary(saved_tensor_bytes=90)), BASELINE, COMMITS, None) == []


def test_the_verb_names_the_commit_in_a_repository(tmp_path, capsys, monkeypatch):
    record = empty_record(CASE, 0) | {"status": "ok", "versions": {"torch": "1"}}
    folder = tmp_path / "repository"
    commits = make_repository(folder, ["100", "100", "crash", "108", "108"], json.dumps(record))
    monkeypatch.setattr("bench.gate.trees.ROOT", folder)
    assert commits_of(f"{commits[1]}..HEAD") == commits[1:]
    baseline, run = tmp_path / "baseline.json", tmp_path / "run"
    write_json(baseline, BASELINE)
    gate = ["gate", "--baseline", str(baseline), str(run), "--blame", f"{commits[0]}..HEAD"]
    write_json(run / "records" / "one.json", record | {"saved_tensor_bytes": 100})
    assert main(gate) == 0
    assert "blame" not in capsys.readouterr().out
    write_json(run / "records" / "one.json", record | {"saved_tensor_bytes": 108})
    assert main(gate) == 1
    out = capsys.readouterr().out
    assert f"blame  {CASE.id}  saved bytes  {commits[3][:7]}" in out
    assert "revision 3 (or one of the 1 before it, which do not run)" in out


@pytest.mark.parametrize("silent", [0, 11])
def test_an_end_that_does_not_run_is_said(silent):
    measure, _ = history(lambda i: None if i == silent else 108 if i >= 3 else 100)
    (found,) = blame(moves_of(summary(saved_tensor_bytes=108)), BASELINE, COMMITS, measure)
    assert found.commit is None
    assert found.reason == f"cannot be told: commit {COMMITS[silent]} does not run"


def test_a_field_of_the_schema_belongs_to_no_case():
    measure, log = history(lambda i: 100)
    head = summary(saved_tensor_bytes=100)
    head["record_fields"] = [name for name in head["record_fields"] if name != "residual"]
    (found,) = blame(moves_of(head), BASELINE, COMMITS, measure)
    assert found.commit is None
    assert "bench/records.py" in found.reason
    assert log == []
