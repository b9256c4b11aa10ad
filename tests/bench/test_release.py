"""A release is complete, from one clean state of the code and one machine, or says what is not."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import importlib
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from bench import places
from bench.compare import compare_runs
from bench.jobs import Job
from bench.records import empty_record, write_json
from bench.release import campaign
from bench.release.check import check_release
from bench.release.pack import pack_release
from bench.release.plan import PLAN, Part, planned
from tests.bench.helpers import run_cli

_RECORDS = Part(
    name="small",
    what="a few cases, two seeds",
    preset="gate",
    filters=("problem=bicycle", "tolerance=none"),
    seeds=2,
)
_RESULT = Part(name="claims", what="a result", command=("verify",), result="verify.json")


def _release(directory: Path) -> Path:
    """A complete release of both parts."""
    for case, seed in _RECORDS.jobs():
        record = empty_record(case, seed) | {"status": "ok", "fingerprint": "f" * 16}
        record["machine"] = {"cpu": "a processor", "gpu": None}
        record["git"] = {"commit": "c" * 40, "dirty": False}
        write_json(Job(case=case, seed=seed).path(directory / "small"), record)
    write_json(directory / "claims" / "verify.json", {"claims": [], "missing": []})
    environment = {"fingerprint": "f" * 16, "cpu": "a processor", "git": {"dirty": False}}
    write_json(directory / "claims" / "environment.json", environment)
    return directory


def _edit(directory: Path, **changes: Any) -> str:
    """Change the first record; its name in findings."""
    case, seed = _RECORDS.jobs()[0]
    path = Job(case=case, seed=seed).path(directory / "small")
    write_json(path, json.loads(path.read_text()) | changes)
    return f"small/{case.id}, seed {seed}"


def test_the_published_release_is_complete_and_of_one_state():
    findings = check_release(places.release(), PLAN)
    assert list(findings.lines()) == []
    assert findings.complete, findings.summary()
    assert findings.seeds["targets"] == 5


def test_a_complete_release_has_nothing_to_say(tmp_path):
    findings = check_release(_release(tmp_path), (_RECORDS, _RESULT))
    assert findings.complete
    assert list(findings.lines()) == []
    assert findings.summary() == "0 missing, 0 dirty, 1 fingerprint, 1 machine, seeds 2"


@pytest.mark.parametrize(
    ("changes", "word", "summary"),
    [
        ({"git": {"commit": "c" * 40, "dirty": True}}, "dirty", "0 missing, 1 dirty, 1 fing"),
        ({"git": {"commit": None, "dirty": None}}, "dirty", "0 missing, 1 dirty, 1 fing"),
        ({"fingerprint": "e" * 16}, "fingerprint", "0 missing, 0 dirty, 2 fingerprints"),
        ({"machine": {"cpu": "another", "gpu": None}}, "machine", "1 fingerprint, 2 machines"),
        ({"status": "crashed", "reason": "a fault"}, "crashed", "1 crashed"),
        ({"machine": {"cpu": None, "gpu": None}}, "unplaced", "1 unplaced"),
        ({"cpu_share": {"step": 0.5, "training": None}}, "disturbed", "1 disturbed"),
    ],
)
def test_each_fault_is_named_and_counted(tmp_path, changes, word, summary):
    directory = _release(tmp_path)
    _edit(directory, **changes)
    findings = check_release(directory, (_RECORDS, _RESULT))
    assert not findings.complete
    assert any(line.startswith(word) for line in findings.lines())
    assert summary in findings.summary()


def test_missing_records_seeds_and_results_are_named(tmp_path):
    directory = _release(tmp_path)
    case, seed = _RECORDS.jobs()[0]
    Job(case=case, seed=seed).path(directory / "small").unlink()
    (directory / "claims" / "verify.json").unlink()
    findings = check_release(directory, (_RECORDS, _RESULT))
    assert findings.missing == [f"small/{case.id}, seed {seed}", "claims/verify.json"]
    assert findings.seeds == {"small": 1}


def test_what_is_not_begun_is_missing_and_no_damaged_file(tmp_path, recwarn):
    findings = check_release(tmp_path, (_RECORDS, _RESULT))
    assert len(findings.missing) == len(_RECORDS.jobs()) + 1
    assert not recwarn.list


def test_what_joins_the_plan_later_is_for_the_next_release(tmp_path):
    directory = _release(tmp_path)
    write_json(directory / "release.json", {"plan": planned((_RECORDS,))})
    more = dataclasses.replace(_RECORDS, filters=("problem=bicycle",), seeds=3)
    assert len(more.jobs()) > len(_RECORDS.jobs())
    assert check_release(directory, (more, _RESULT)).complete
    another = dataclasses.replace(_RECORDS, name="another")
    assert check_release(directory, (_RECORDS, another, _RESULT)).complete
    (directory / "another").mkdir()
    assert check_release(directory, (_RECORDS, another, _RESULT)).missing
    (directory / "release.json").unlink()
    assert check_release(directory, (more, _RESULT)).missing


def test_jobs_that_a_result_lacks_are_missing(tmp_path):
    directory = _release(tmp_path)
    write_json(directory / "claims" / "verify.json", {"claims": [], "missing": ["a job"]})
    assert check_release(directory, (_RECORDS, _RESULT)).missing == ["claims: job a job"]


@pytest.mark.parametrize("failed", [{"a job": "timeout: too slow"}, [{"id": "a job"}]])
def test_jobs_of_a_result_that_failed_are_named(tmp_path, failed):
    """As `bench verify` and `bench roofline` list them."""
    directory = _release(tmp_path)
    write_json(directory / "claims" / "verify.json", {"claims": [], "failed": failed})
    findings = check_release(directory, (_RECORDS, _RESULT))
    assert findings.flawed["failed"] == ["claims: job a job"]
    assert "1 failed" in findings.summary()


def test_the_records_of_a_result_are_held_to_the_same(tmp_path):
    directory = _release(tmp_path)
    case, seed = _RECORDS.jobs()[0]
    record = json.loads(Job(case=case, seed=seed).path(directory / "small").read_text())
    path = Job(case=case, seed=seed).path(directory / "claims")
    write_json(path, record | {"git": {"commit": "c" * 40, "dirty": True}})
    findings = check_release(directory, (_RECORDS, _RESULT))
    assert findings.flawed["dirty"] == [f"claims/{case.id}, seed {seed}"]


def test_the_plan_names_presets_and_verbs_that_exist_and_ranks_on_five_seeds():
    from bench.cli import VERBS

    for part in PLAN:
        verb, *arguments = part.arguments("X")
        assert verb in VERBS
        parser = argparse.ArgumentParser()
        importlib.import_module(f"bench.commands.{verb}").add_arguments(parser)
        # A release goes on where it stopped: a verb that asks for --resume to do so gets it.
        assert getattr(parser.parse_args(arguments), "resume", True) or verb == "verify"
        assert part.preset is None or part.jobs()
    assert {part.seeds for part in PLAN if part.name == "targets"} == {5}
    assert len(next(part for part in PLAN if part.name == "sweep").jobs()) <= 200


def test_a_modified_tree_is_refused_and_nothing_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(campaign, "git_revision", lambda: {"commit": "c", "dirty": True})
    code, _, err = run_cli(capsys, "release", "--out", tmp_path / "out")
    assert code == 2
    assert "clean tree" in err
    assert not (tmp_path / "out").exists()


def test_code_or_machine_that_changed_since_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(campaign, "git_revision", lambda: {"commit": "c", "dirty": False})
    assert campaign.measure_release(tmp_path, ()) < 60
    begun = json.loads((tmp_path / "release.json").read_text())
    for name in ("fingerprint", "machine"):
        write_json(tmp_path / "release.json", begun | {name: "another"})
        with pytest.raises(ValueError, match=f"`{name}` is .* begun with another"):
            campaign.measure_release(tmp_path, ())


def test_a_packed_release_is_whole_and_its_checksums_hold(tmp_path):
    pytest.importorskip("pyarrow")
    import pandas as pd

    directory, out = _release(tmp_path / "release"), tmp_path / "data"
    archive = pack_release(directory, (_RECORDS, _RESULT), out, "9.9")
    lines = (out / "small" / "records.jsonl").read_text().splitlines()
    assert len(lines) == len(pd.read_parquet(out / "cases.parquet")) == len(_RECORDS.jobs())
    assert {json.loads(line)["fingerprint"] for line in lines} == {"f" * 16}
    assert (out / "claims" / "verify.json").is_file()
    beside = compare_runs(out, directory)
    assert beside.equal
    assert beside.counts.compared == len({json.loads(line)["case"]["id"] for line in lines})
    sums = dict(
        reversed(line.split("  ")) for line in (out / "SHA256SUMS").read_text().splitlines()
    )
    files = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert set(sums) == files - {"SHA256SUMS"}
    for name, checksum in sums.items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == checksum
    card = (out / "README.md").read_text()
    assert "CC-BY-4.0" in card
    assert f"| `small` | {len(lines)} |" in card
    with zipfile.ZipFile(archive) as packed:
        assert set(packed.namelist()) >= set(sums)
    with pytest.raises(ValueError, match="`pack` must be an empty or a new folder"):
        pack_release(directory, (_RECORDS, _RESULT), out, "9.9")


def test_check_says_what_is_missing(tmp_path, capsys):
    code, out, _ = run_cli(capsys, "release", "--check", "--only", "smoke", "--out", tmp_path)
    assert code == 1
    due = len(next(part for part in PLAN if part.name == "smoke").jobs())
    assert out.splitlines()[-1].startswith(f"{due} missing, 0 dirty")
    code, _, err = run_cli(capsys, "release", "--only", "nothing")
    assert code == 2
    assert "`only` must be one of smoke, field, targets" in err
