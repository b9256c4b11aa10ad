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
from bench.gate.injections import DETERMINISTIC, INJECTIONS, Edit, Injection
from bench.gate.results import FILE, Row, at_least, at_most, text_table, write_results
from bench.gate.selftest import case_ids, deterministic_rows, injected_copy, time_rows
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
    tree = injected_copy(injection, tmp_path)
    for edit in injection.edits:
        text = (tree / edit.file).read_text()
        assert text != (ROOT / edit.file).read_text()
        assert edit.new in text
        ast.parse(text)
    # The source itself is never touched.
    again = injected_copy(Injection(name="none", what="", edits=()), tmp_path)
    for edit in injection.edits:
        assert (again / edit.file).read_bytes() == (ROOT / edit.file).read_bytes()


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
        Edit(file="file.py", old="anchor", new="new").apply(tmp_path)
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


@pytest.mark.parametrize(
    ("runs", "found", "met"), [(100, 1, True), (100, 2, False), (20, 1, False), (20, 0, True)]
)
def test_false_alarms_allowed(runs, found, met):
    assert at_most(0.01, found, runs)[1] is met


@pytest.mark.parametrize(
    ("share", "runs", "needed"),
    [(0.8, 100, 80), (0.95, 100, 95), (0.8, 6, 5), (0.95, 20, 19), (1.0, 1, 1), (0.8, 10, 8)],
)
def test_detections_needed(share, runs, needed):
    assert at_least(share, needed, runs) == (f"at least {needed}", True)
    assert not at_least(share, needed - 1, runs)[1]


def comparison(verdict, ratio=1.0):
    interval = Interval(ratio=ratio, low=ratio * 0.99, high=ratio * 1.01, blocks=10)
    return TimeComparison(case="case", verdict=verdict, first=interval, base_seconds=0.02)


def test_rows_count_confirmed_slowdowns_only():
    found = [("nothing (A/A)", comparison(Verdict.SAME))] * 9
    found += [("nothing (A/A)", comparison(Verdict.NOT_CONFIRMED, 1.06))]
    found += [("sleep 10 %", comparison(Verdict.SLOWER, 1.1))] * 7
    found += [("sleep 10 %", comparison(Verdict.UNDECIDED, 1.05))] * 3
    found += [("sleep 20 %", comparison(Verdict.SLOWER, 1.2))] * 10
    same, ten, twenty, loop = time_rows(found)
    assert (same.runs, same.caught, same.met) == (10, 0, True)
    assert (ten.runs, ten.caught, ten.met) == (10, 7, False)
    assert "7 SLOWER, 3 undecided" in ten.moved
    assert (twenty.caught, twenty.met) == (10, True)
    # What was not run is not met.
    assert (loop.runs, loop.met) == (0, False)


def test_files_hold_the_table_and_the_report_shows_it(tmp_path):
    found = [("sleep 10 %", comparison(Verdict.SLOWER, 1.1))]
    write_results(tmp_path, [ROW], found, Settings())
    assert FILE in TABLE_FILES
    (content,) = load_run(tmp_path).tables
    assert content["met"] is True
    table = generic_table(content)
    assert table.texts()[0] == [
        "retain", "kept", "deterministic", "1", "1", "exit 1", "yes", "saved bytes +1.00%",
    ]  # fmt: skip
    assert len(table.columns) == len(table.rows[0])
    with open(tmp_path / "gate_comparisons.csv", newline="") as file:
        (line,) = csv.DictReader(file)
    assert (line["injected"], line["verdict"], line["first_ratio"]) == (
        "sleep 10 %", "SLOWER", "1.1",
    )  # fmt: skip
    with open(tmp_path / "gate_selftest.csv", newline="") as file:
        assert next(csv.DictReader(file))["injected"] == "retain"


def test_the_table_alone_has_a_page(tmp_path):
    write_results(tmp_path, [], [], Settings())
    page = write_report([tmp_path], tmp_path / "page").read_text(encoding="utf-8")
    assert "Proof of the regression gate" in page


@pytest.mark.parametrize(("verdict", "code"), [(Verdict.SLOWER, 0), (Verdict.SAME, 1)])
def test_the_verb_exits_0_only_if_everything_asked_is_met(
    verdict, code, tmp_path, capsys, monkeypatch
):
    """From made-up measurements to exit code, table and files: slowdowns caught, or missed."""
    monkeypatch.setattr("bench.gate.selftest.deterministic_rows", lambda folder: [ROW])

    def compare_times(open_pair, cases, settings):
        # A/A is asked about once a round, first; the loop and the sleeps after it.
        asked.append(cases)
        return [comparison(Verdict.SAME if len(asked) in (1, 5) else verdict)]

    asked = []
    monkeypatch.setattr("bench.gate.selftest.compare_times", compare_times)
    arguments = ["gate", "--self-test", "--comparisons", "2", "--out", str(tmp_path)]
    assert main(arguments) == code
    written = json.loads((tmp_path / FILE).read_text())
    runs = {row[0]: row[3] for row in written["rows"][1:]}
    assert runs == {"nothing (A/A)": 2, "sleep 10 %": 2, "sleep 20 %": 2, "loop": 1}
    assert (written["met"], len(written["comparisons"])) == (code == 0, len(asked))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["injected", "retain", *runs]
    assert (tmp_path / "environment.json").exists()


def test_the_table_aligns_its_columns():
    lines = text_table([ROW, replace(ROW, name="a longer name")]).splitlines()
    assert len({line.index("deterministic") for line in lines[1:]}) == 1
