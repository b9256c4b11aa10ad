"""The self-test: every injection fits the present source, and its rows say what was found."""

from __future__ import annotations

import ast
import csv
import json
from dataclasses import replace

import pytest

from bench.cli import main
from bench.environment import ROOT
from bench.gate.counts import QUANTITIES, summarise
from bench.gate.injections import DETERMINISTIC, INJECTIONS, Injection
from bench.gate.results import FILE, SAME, Row, write_power, write_results
from bench.gate.selftest import (
    MOST_SLOWED,
    case_ids,
    copy_source,
    deterministic_rows,
    injected_copy,
    next_round,
    time_rows,
)
from bench.gate.statistics import Interval
from bench.gate.time import Settings, TimeComparison, Verdict
from bench.gate.trees import measure_cases
from bench.measure import Step, measure_memory
from bench.presets import PRESETS
from bench.records import empty_record, read_records, write_json
from bench.report import write_report
from bench.report.load import TABLE_FILES, load_run
from bench.report.tables import generic_table

ROW = Row(
    name="retain", what="kept", gate="deterministic", runs=1, caught=1, asked="exit 1", met=True,
    moved="saved bytes +1.00%",
)  # fmt: skip


@pytest.mark.parametrize("injection", INJECTIONS, ids=lambda injection: injection.name)
def test_every_injection_applies_to_the_present_source_and_parses(injection, tmp_path):
    text = (injected_copy(injection, tmp_path) / injection.file).read_text()
    assert text != (ROOT / injection.file).read_text()
    assert injection.new in text
    ast.parse(text)
    # The source itself is never touched.
    again = copy_source(tmp_path / "again")
    assert (again / injection.file).read_bytes() == (ROOT / injection.file).read_bytes()


@pytest.mark.parametrize("injection", DETERMINISTIC, ids=lambda injection: injection.name)
def test_deterministic_injections_name_gated_quantities_and_cases(injection):
    assert set(injection.quantities) <= {quantity.name for quantity in QUANTITIES}
    assert injection.quantities
    assert len(case_ids(injection)) == len(injection.cases)


def test_names_are_told_apart():
    assert len({injection.name for injection in INJECTIONS}) == len(INJECTIONS)


@pytest.mark.parametrize(("text", "count"), [("nothing here", 0), ("anchor anchor", 2), (None, 0)])
def test_an_anchor_that_drifted_fails_loudly(tmp_path, text, count):
    if text is not None:
        (tmp_path / "file.py").write_text(text)
    with pytest.raises(ValueError, match=rf"file\.py once, found {count} times: 'anchor'"):
        Injection(name="", what="", file="file.py", old="anchor", new="new").apply(tmp_path)
    assert text is None or (tmp_path / "file.py").read_text() == text


RETAIN = next(one for one in DETERMINISTIC if one.name == "retain")
ONE_CASE = replace(RETAIN, cases=RETAIN.cases[:1])


@pytest.mark.slow
def test_retain_shows_in_what_the_copy_measures(tmp_path):
    """By the copy's own worker, against this process's own trackers."""
    (name,) = case_ids(ONE_CASE)
    case = next(case for case in PRESETS["gate"]() if case.id == name)
    here = measure_memory(Step(case))["saved_tensor_bytes"]
    found = measure_cases(injected_copy(RETAIN, tmp_path), [name])["cases"][name]
    assert found["status"] == "ok"
    # At least one tensor of the control's size, float32, more at every time step.
    control_bytes = case.batch_size * Step(case).policy.problem.control_dim * 4
    assert found["saved bytes"] >= here + case.n_steps * control_bytes


@pytest.mark.parametrize("caught", [True, False])
def test_rows_of_the_deterministic_gate(caught, tmp_path, monkeypatch):
    """The gate's own command line judges; what the copies measure is made up."""

    def measure(tree, ids, out):
        edited = (tree / "jfbcore/rollout.py").read_text() != (
            ROOT / "jfbcore/rollout.py"
        ).read_text()
        for i, name in enumerate(ids):
            case = next(case for case in PRESETS["gate"]() if case.id == name)
            more = 1 if edited and (caught or i > 0) else 0
            record = empty_record(case, 0) | {"status": "ok", "saved_tensor_bytes": 100 + more}
            write_json(out / "records" / f"{name}.json", record)
        return summarise(read_records(out))

    monkeypatch.setattr("bench.gate.selftest.measure_cases", measure)
    same, missing, retain = deterministic_rows(tmp_path, [RETAIN])
    assert (same.met, same.caught, same.moved) == (True, 0, "exit 0")
    assert (missing.met, missing.moved) == (True, "exit 3")
    # Exit 1 is not enough: every case listed has to be named.
    assert (retain.met, retain.caught) == (caught, int(caught))
    assert retain.moved == "exit 1: saved bytes +1.00%"


def comparison(verdict, ratio=1.0, injected=SAME, case="case"):
    """A comparison as it is on file."""
    interval = Interval(ratio=ratio, low=ratio * 0.99, high=ratio * 1.01)
    found = TimeComparison(case=case, verdict=verdict, interval=interval, base_seconds=[0.02])
    return {"injected": injected, "round": 1} | found.cells | {"pair_ratios": [ratio] * 5}


def kinds(*counts):
    """Comparisons on file: (injected, verdict, how many)."""
    return [comparison(v, injected=name) for name, v, number in counts for _ in range(number)]


@pytest.mark.parametrize(
    ("runs", "alarms", "met"), [(100, 1, True), (100, 2, False), (20, 1, False), (20, 0, True)]
)
def test_false_alarms_allowed(runs, alarms, met):
    found = kinds((SAME, Verdict.SLOWER, alarms), (SAME, Verdict.SAME, runs - alarms))
    assert time_rows(found)[0].met is met


@pytest.mark.parametrize(
    ("percent", "runs", "needed"), [(10, 100, 80), (20, 100, 95), (10, 6, 5), (20, 20, 19)]
)
def test_detections_needed(percent, runs, needed):
    name = f"{percent} % slower"
    for caught, met in ((needed, True), (needed - 1, False)):
        found = kinds((name, Verdict.SLOWER, caught), (name, Verdict.UNDECIDED, runs - caught))
        (row,) = (row for row in time_rows(found) if row.name == name)
        assert row.met is met


def test_rows_have_their_rate_with_exact_bounds():
    found = kinds(
        (SAME, Verdict.SAME, 9), (SAME, Verdict.UNDECIDED, 1),
        ("10 % slower", Verdict.SLOWER, 7), ("10 % slower", Verdict.UNDECIDED, 3),
        ("3 % slower", Verdict.SAME, 10),
    )  # fmt: skip
    same, three, _, _, ten, _, loop = time_rows(found)
    assert (same.runs, same.caught, same.met) == (10, 0, True)
    # Clopper and Pearson, as tables have it for 0 of 10: 30.8 %.
    assert same.cells[5] == "0.0% [0.0%, 30.8%]"
    assert "9 same, 1 UNDECIDED" in same.moved
    # Below the threshold nothing is asked.
    assert (three.caught, three.asked, three.met) == (0, "", True)
    assert (ten.caught, ten.met) == (7, False)
    assert "7 SLOWER, 3 UNDECIDED" in ten.moved
    # What was not run is not met.
    assert (loop.runs, loop.met) == (0, False)


def test_kinds_come_in_turn_up_to_what_is_asked():
    found, order = [], []
    while (due := next_round(found, 12)) is not None:
        name, left = due
        order.append(name)
        found += kinds((name, Verdict.SAME, min(left, 1 if name == "loop" else 6)))
    assert order[0] == SAME
    assert sorted(order[:7]) == sorted(set(order))
    # A dozen of each, but two of the loop.
    assert len(found) == 6 * 12 + 2
    many = kinds(*((name, Verdict.SAME, MOST_SLOWED) for name in set(order) - {SAME}))
    assert next_round(many, 1000) == (SAME, 1000)
    assert next_round(many + kinds((SAME, Verdict.SAME, 1000)), 1000) is None


def test_files_hold_the_table_and_the_report_shows_it(tmp_path):
    found = kinds(("10 % slower", Verdict.SLOWER, 1))
    write_results(tmp_path, [ROW], found, Settings(), "source")
    assert FILE in TABLE_FILES
    (content,) = load_run(tmp_path).tables
    assert content["met"] is True
    table = generic_table(content)
    assert table.texts()[0] == [
        "retain", "kept", "deterministic", "1", "1", "-", "exit 1", "yes", "saved bytes +1.00%",
    ]  # fmt: skip
    assert len(table.columns) == len(table.rows[0])
    with open(tmp_path / "gate_comparisons.csv", newline="") as file:
        (line,) = csv.DictReader(file)
    assert (line["injected"], line["verdict"], line["ratio"]) == ("10 % slower", "SLOWER", "1.0")
    with open(tmp_path / "gate_selftest.csv", newline="") as file:
        assert next(csv.DictReader(file))["injected"] == "retain"


def test_the_table_alone_has_a_page(tmp_path):
    write_results(tmp_path, [], [], Settings(), "source")
    page = write_report([tmp_path], tmp_path / "page").read_text(encoding="utf-8")
    assert "Proof of the regression gate" in page


def test_the_figure_shows_each_slowdown_with_its_rate(tmp_path):
    found = kinds((SAME, Verdict.SAME, 4), ("7 % slower", Verdict.SLOWER, 3),
                  ("7 % slower", Verdict.UNDECIDED, 1), ("loop", Verdict.SLOWER, 1))  # fmt: skip
    write_results(tmp_path, time_rows(found), found, Settings(), "source")
    write_power(json.loads((tmp_path / FILE).read_text()), tmp_path / "power.svg")
    text = (tmp_path / "power.svg").read_text(encoding="utf-8")
    assert "7 %: 75.0% of 4" in text
    assert "0 %: 0.0% of 4" in text


@pytest.fixture
def made_up(monkeypatch):
    """The self-test without a measurement; `made_up` says what each comparison finds, and is
    called with the kind of it."""
    monkeypatch.setattr("bench.gate.selftest.deterministic_rows", lambda folder: [ROW])
    monkeypatch.setattr("bench.gate.selftest.injected_copy", lambda one, folder: one.name)
    monkeypatch.setattr("bench.gate.selftest.copy_source", lambda tree: SAME)
    monkeypatch.setattr("bench.gate.selftest.tree_pairs", lambda base, head: head)
    asked = []

    def install(find):
        def compare_times(kind, cases, settings):
            asked.append((kind, len(cases)))
            verdict = find(kind)
            interval = Interval(ratio=1.0, low=0.9, high=1.1)
            return [
                TimeComparison(case=case.id, verdict=verdict, interval=interval) for case in cases
            ]

        monkeypatch.setattr("bench.gate.selftest.compare_times", compare_times)
        return asked

    return install


@pytest.mark.parametrize(("verdict", "code"), [(Verdict.SLOWER, 0), (Verdict.SAME, 1)])
def test_the_verb_exits_0_only_if_everything_asked_is_met(verdict, code, tmp_path, capsys, made_up):
    """From made-up measurements to exit code, table and files: slowdowns caught, or missed."""
    asked = made_up(lambda kind: Verdict.SAME if kind == SAME else verdict)
    arguments = ["gate", "--self-test", "--comparisons", "8", "--out", str(tmp_path)]
    assert main(arguments) == code
    written = json.loads((tmp_path / FILE).read_text())
    runs = {row[0]: row[3] for row in written["rows"][1:]}
    slower = {f"{percent} % slower": 8 for percent in (3, 5, 7, 10, 20)}
    assert runs == {SAME: 8} | slower | {"loop": 1}
    assert (SAME, 6) in asked
    assert (SAME, 2) in asked
    assert (written["met"], len(written["comparisons"])) == (code == 0, 8 * 6 + 1)
    lines = capsys.readouterr().out.splitlines()
    for line, name in zip(lines, ["injected", "retain", *runs], strict=True):
        assert line.strip().startswith(name)
    assert (tmp_path / "environment.json").exists()


def test_it_goes_on_where_it_was_interrupted(tmp_path, made_up):
    def interrupted(kind):
        if len(asked) == 9:
            raise KeyboardInterrupt
        return Verdict.SAME if kind == SAME else Verdict.SLOWER

    asked = made_up(interrupted)
    test = ["gate", "--self-test", "--comparisons", "12", "--out", str(tmp_path)]
    assert main(test) == 130
    kept = json.loads((tmp_path / FILE).read_text())["comparisons"]
    assert len(kept) == 7 * 6 + 1
    made_up(lambda kind: Verdict.SAME if kind == SAME else Verdict.SLOWER)
    assert main([*test, "--resume"]) == 0
    found = json.loads((tmp_path / FILE).read_text())
    assert found["comparisons"][: len(kept)] == kept
    assert len(found["comparisons"]) == 6 * 12 + 2
    # Every round has its number: its comparisons share their processes.
    assert max(one["round"] for one in found["comparisons"]) == len(asked) - 1
    # More of them later, in a part of their own.
    assert main([*test[:3], "18", *test[4:], "--resume"]) == 0
    assert len(json.loads((tmp_path / FILE).read_text())["comparisons"]) == 6 * 18 + 2


def test_another_source_is_not_added_to(tmp_path, capsys, made_up):
    made_up(lambda kind: Verdict.SAME)
    test = ["gate", "--self-test", "--comparisons", "1", "--out", str(tmp_path)]
    main(test)
    content = json.loads((tmp_path / FILE).read_text())
    write_json(tmp_path / FILE, content | {"source": "another"})
    capsys.readouterr()
    assert main([*test, "--resume"]) == 2
    assert "has another source: 'another'" in capsys.readouterr().err
