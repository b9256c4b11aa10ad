"""Records: one declaration decides what is valid, what is written and what people read."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import tomllib
import warnings
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, ClassVar

import jsonschema
import pytest

from bench import records as store
from bench.case import Case
from bench.environment import ROOT, variables
from bench.gate.counts import QUANTITIES
from bench.jobs import Job
from bench.measure import measure_time
from bench.record import COLUMNS, FIELDS, SCHEMA_VERSION, STATUSES, parts
from bench.record_schema import SCHEMA_FILE, faults, json_schema, schema_text
from bench.records import (
    CorruptRecord,
    claim,
    empty_record,
    entries,
    explain_nulls,
    is_there,
    pack,
    read_records,
    write_json,
)
from tests.bench.helpers import record_path, run_cli

CASE = Case(problem="quadrotor", n_agents=1, gradient="jfb", batch_size=2, n_steps=3)
PUBLISHED = sorted(path.parent for path in (ROOT / "reports").rglob("records.jsonl"))


def whole(seed: int = 0, **changes: Any) -> dict[str, Any]:
    """A valid record with made-up numbers in it."""
    record = empty_record(CASE, seed) | {
        "status": "ok",
        "step_seconds": {"median": 0.5, "min": 0.4, "q25": 0.45, "q75": 0.6, "repeats": 10},
        "residual": {"mean": 1e-5, "max": 5e-5},
        "saved_tensor_bytes": 1024,
        "curve": [
            {"seconds": 0.0, "step": 0, "loss": 2.0, "evaluation_cost": 3.0, "optimality_gap": None}
        ],
        "threads": 1,
    }
    explain_nulls(record, "made up")
    return record | changes


def without(record: dict[str, Any], path: str) -> dict[str, Any]:
    """A copy that lacks the field at `path`."""
    head, _, rest = path.partition(".")
    if rest:
        return record | {head: without(record[head], rest)}
    return {name: value for name, value in record.items() if name != head}


def text(**changes: Any) -> bytes:
    return json.dumps(whole(**changes)).encode()


#: name of the file -> its content, and what the line about it says
DAMAGED: dict[str, tuple[bytes, str]] = {
    "binary": (bytes(range(256)), "not JSON"),
    "truncated": (text()[:-200], "not JSON"),
    "empty": (b"", "not JSON"),
    "nested": (b"[" * 100_000, "not JSON"),
    "list": (b"[1, 2]", "a list is not a record"),
    "type": (
        text(case=whole()["case"] | {"n_agents": "six"}),
        'case.n_agents is "six", must be a whole number >= 1',
    ),
    "flag": (text(tolerance_reached="yes"), "tolerance_reached is"),
    "sign": (text(saved_tensor_bytes=-8), "saved_tensor_bytes is -8, must be a whole number >= 0"),
    "fraction": (text(peak_rss_bytes=0.5), "peak_rss_bytes is 0.5, must be a whole number"),
    "number": (text(residual={"mean": float("nan"), "max": 1.0}), "residual.mean is NaN"),
    "infinite": (text(forward_seconds=float("inf")), "forward_seconds is infinite"),
    "status": (text(status="fine"), 'status is "fine", must be one of ok, unsupported'),
    "missing": (json.dumps(without(whole(), "cuda.samples")).encode(), "cuda lacks samples"),
    "point": (text(curve=[{"seconds": 1.0, "step": "x"}]), 'curve[0].step is "x"'),
    "version": (text(schema_version=99), "schema_version is 99, must be a whole number >= 1 and"),
}


def lines(output: str) -> list[str]:
    return [line for line in output.splitlines() if ".json" in line]


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A run directory with 15 damaged records and none that is whole."""
    folder = tmp_path / "damaged"
    (folder / "records").mkdir(parents=True)
    for name, (content, _) in DAMAGED.items():
        (folder / "records" / f"{name}.json").write_bytes(content)
    return folder


def test_damaged_records_are_named_by_report_and_validate(damaged, tmp_path, capsys) -> None:
    pytest.importorskip("seaborn")
    code, out, _ = run_cli(capsys, "validate", damaged)
    found = lines(out)
    assert code == 1
    assert len(DAMAGED) == 15
    # one line a fault; a point of the curve has two
    assert {line.split(": ")[0] for line in found} == {
        str(damaged / "records" / f"{name}.json") for name in DAMAGED
    }
    for name, (_, words) in DAMAGED.items():
        assert any(f"/{name}.json: {words}" in line for line in found), name
    code, _, err = run_cli(capsys, "report", damaged, "--out", tmp_path / "out")
    assert code == 0
    warned = [line.removeprefix("warning: ") for line in lines(err)]
    assert len(warned) == 15
    first = {line.split(": ")[0]: line for line in reversed(found)}
    assert sorted(line.partition(" (and ")[0] for line in warned) == sorted(first.values())
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "15 records are not valid and left out" in page


def test_validate_of_files_and_of_nothing(tmp_path, capsys) -> None:
    path = tmp_path / "one.json"
    path.write_bytes(text())
    assert run_cli(capsys, "validate", path)[0] == 0
    code, _, err = run_cli(capsys, "validate", tmp_path / "nowhere")
    assert (code, len(err.splitlines())) == (2, 1)
    assert run_cli(capsys, "validate", tmp_path)[0] == 2
    packed = tmp_path / "two.jsonl"
    packed.write_bytes(text() + b"\n" + text(status="fine") + b"\n")
    code, out, _ = run_cli(capsys, "validate", packed)
    assert code == 1
    assert out.startswith(f"{packed}:2: status is")


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda path: path.name)
def test_published_records_are_valid(folder: Path) -> None:
    found = list(entries(folder))
    assert found
    for entry in found:
        entry.read()


def test_something_is_published() -> None:
    assert {path.name for path in PUBLISHED} >= {
        "smoke",
        "field",
        "targets",
        "verify",
        "sweep",
        "gpu",
    }


def test_the_schema_is_current() -> None:
    """After a change of bench/record.py: `python -m bench.record_schema`."""
    assert SCHEMA_FILE.read_text(encoding="utf-8") == schema_text()


def test_the_schema_is_shipped() -> None:
    with open(ROOT / "pyproject.toml", "rb") as file:
        shipped = tomllib.load(file)["tool"]["setuptools"]["package-data"]["bench"]
    assert any(SCHEMA_FILE.match(pattern) for pattern in shipped)


def test_the_json_schema_agrees() -> None:
    """A library that knows nothing of the declaration finds the same records faulty."""
    validator = jsonschema.Draft202012Validator(json_schema())
    validator.check_schema(json_schema())
    for record in (whole(), whole(seed=3, reason="a reason")):
        assert list(faults(record)) == []
        assert list(validator.iter_errors(record)) == []
    for name, (content, _) in DAMAGED.items():
        # JSON has no such numbers, and a schema no words for them
        if name not in ("binary", "truncated", "empty", "nested", "number", "infinite"):
            assert not validator.is_valid(json.loads(content)), name
    for field in FIELDS:
        if "[" in field.path or not set(field.path.split(".")[:-1]) <= {"case", "cuda", "final"}:
            continue
        record = without(whole(), field.path)
        assert any(field.name in fault for fault in faults(record)), field.path
        assert not validator.is_valid(record), field.path
        older = record | {"schema_version": 1} if field.path != "schema_version" else record
        assert validator.is_valid(older) == (not list(faults(older))) == (field.since > 1)


def test_every_field_of_a_case_and_of_a_record_is_declared() -> None:
    own = {field.name for field in fields(Case)} | {"id", "seed"}
    assert {field.name for field in parts("case")} == own
    assert set(empty_record(CASE, 0)) == {field.name for field in parts()}
    assert len({field.path for field in FIELDS}) == len(FIELDS)
    assert len(COLUMNS) == sum(field.in_tables for field in FIELDS)
    assert max(field.since for field in FIELDS) == SCHEMA_VERSION
    assert {status for field in FIELDS for status in field.choices} >= set(STATUSES)


def test_the_gate_compares_what_the_baseline_has() -> None:
    baseline = json.loads((ROOT / "reports" / "baseline.json").read_text(encoding="utf-8"))
    names = {name for case in baseline["cases"].values() for name in case} - {"status"}
    assert names == {quantity.name for quantity in QUANTITIES}


class TestPacked:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        for seed in range(3):
            write_json(record_path(tmp_path, CASE, seed), whole(seed))
        return tmp_path

    def test_nothing_changes_but_the_files(self, folder: Path) -> None:
        before = list(read_records(folder))
        assert pack(folder) == 3
        assert list(read_records(folder)) == before
        assert not list((folder / "records").iterdir())
        content = (folder / "records.jsonl").read_bytes()
        assert pack(folder) == 3
        assert (folder / "records.jsonl").read_bytes() == content

    def test_a_sweep_goes_on(self, folder: Path) -> None:
        pack(folder)
        assert Job(case=CASE, seed=2).finished(folder) == whole(2)
        assert is_there(folder, record_path(folder, CASE, 2).stem)
        assert Job(case=CASE, seed=3).finished(folder) is None
        assert not is_there(folder, record_path(folder, CASE, 3).stem)
        assert Job(case=replace(CASE, n_steps=4), seed=2).finished(folder) is None

    def test_a_later_record_supersedes_and_is_packed_in_its_place(self, folder: Path) -> None:
        pack(folder)
        later = whole(1, saved_tensor_bytes=2048)
        write_json(record_path(folder, CASE, 1), later)
        assert Job(case=CASE, seed=1).finished(folder) == later
        assert [r["saved_tensor_bytes"] for r in read_records(folder)].count(2048) == 1
        assert len(list(read_records(folder))) == 3
        assert pack(folder) == 3
        assert Job(case=CASE, seed=1).finished(folder) == later

    @pytest.mark.parametrize("operation", ["replace", "unlink"])
    def test_ended_at_any_moment_it_loses_nothing(self, folder, monkeypatch, operation) -> None:
        """As kill -9 would: the operation and all after it do not happen."""
        write_json(record_path(folder, CASE, 0), whole(0))
        pack(folder)
        for seed in (1, 5):
            write_json(record_path(folder, CASE, seed), whole(seed, saved_tensor_bytes=2048))
        expected = sorted(json.dumps(record) for record in read_records(folder))

        class Killed(BaseException):
            pass

        def kill(*_: object, **__: object) -> None:
            raise Killed

        owner: Any = os if operation == "replace" else Path
        with monkeypatch.context() as patch:
            patch.setattr(owner, operation, kill)
            with pytest.raises(Killed):
                pack(folder)
        assert sorted(json.dumps(record) for record in read_records(folder)) == expected
        pack(folder)
        assert sorted(json.dumps(record) for record in read_records(folder)) == expected

    def test_what_is_no_record_stays(self, folder: Path) -> None:
        broken = folder / "records" / "broken.json"
        broken.write_text("{")
        with pytest.warns(CorruptRecord, match=r"broken\.json.*stays where it is"):
            assert pack(folder) == 3
        assert broken.read_text() == "{"

    def test_not_while_a_sweep_writes(self, folder: Path) -> None:
        with claim(folder), pytest.raises(ValueError, match="in use"):
            pack(folder)

    def test_line_of_a_packed_file_is_named(self, folder: Path) -> None:
        pack(folder)
        path = folder / "records.jsonl"
        path.write_text(path.read_text().replace('"status":"ok"', '"status":"OK"', 1))
        with pytest.warns(CorruptRecord, match=r"records\.jsonl:1: status is"):
            assert len(list(read_records(folder))) == 2
        with pytest.raises(ValueError, match=r"records\.jsonl:1"):
            pack(folder)


class TestExport:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        for seed in range(3):
            write_json(record_path(tmp_path / "run", CASE, seed), whole(seed))
        return tmp_path / "run"

    def test_a_table_that_pandas_reads_back(self, folder: Path, tmp_path, capsys) -> None:
        pandas = pytest.importorskip("pandas")
        pytest.importorskip("pyarrow")
        table, sheet = tmp_path / "t.parquet", tmp_path / "t.csv"
        code, out, _ = run_cli(capsys, "export", folder, "--parquet", table, "--csv", sheet)
        assert code == 0
        assert "3 rows" in out
        frame = pandas.read_parquet(table)
        assert set(frame.columns) >= set(COLUMNS)
        assert frame["seed"].tolist() == [0, 1, 2]
        assert frame["step_seconds"].tolist() == [0.5] * 3
        assert frame["peak_rss_bytes"].isna().all()
        with open(sheet, encoding="utf-8") as file:
            assert [row["saved_tensor_bytes"] for row in csv.DictReader(file)] == ["1024"] * 3
        code, *_ = run_cli(capsys, "export", folder, "--curves", "--parquet", table)
        assert code == 0
        assert pandas.read_parquet(table)["loss"].tolist() == [2.0] * 3

    def test_pack_and_usage(self, folder: Path, capsys, monkeypatch) -> None:
        code, _, err = run_cli(capsys, "export", folder)
        assert code == 2
        assert "--parquet" in err
        assert run_cli(capsys, "export", folder / "nowhere", "--pack")[0] == 2
        assert run_cli(capsys, "export", folder, "--pack")[0] == 0
        assert (folder / store.PACKED).exists()
        real = importlib.util.find_spec
        monkeypatch.setattr(
            "importlib.util.find_spec", lambda name: None if name == "pyarrow" else real(name)
        )
        code, _, err = run_cli(capsys, "export", folder, "--parquet", folder / "x")
        assert code == 2
        assert "jfbbench[export]" in err


class TestGroups:
    @pytest.fixture
    def letters(self, tmp_path: Path) -> Callable[..., list[str]]:
        frames = pytest.importorskip("bench.report.frames")
        load = pytest.importorskip("bench.report.load")

        def letters(*changes: dict[str, Any]) -> list[str]:
            for seed, change in enumerate(changes):
                write_json(record_path(tmp_path / "run", CASE, seed), whole(seed, **change))
            return frames.case_frame([load.load_run(tmp_path / "run")])["environment"].tolist()

        return letters

    @pytest.mark.parametrize(
        "change",
        [
            {"fingerprint": "b"},
            {"threads": 2},
            {"machine": {"cpu": "another", "gpu": None}},
            {"versions": {"torch": "9"}},
        ],
        ids=lambda change: next(iter(change)),
    )
    def test_another_code_machine_or_package_is_another_group(self, letters, change) -> None:
        usual = {"fingerprint": "a", "machine": {"cpu": "one", "gpu": None}, "versions": {}}
        assert letters(usual, usual | change, usual) == ["A", "B", "A"]

    def test_another_commit_is_not(self, letters) -> None:
        one, two = ({"commit": name, "dirty": False} for name in ("1", "2"))
        assert letters({"fingerprint": "a", "git": one}, {"fingerprint": "a", "git": two}) == [
            "A",
            "A",
        ]

    def test_disturbed_rows_are_marked(self, letters, tmp_path: Path) -> None:
        frames = pytest.importorskip("bench.report.frames")
        load = pytest.importorskip("bench.report.load")
        shares = [(1.0, None), (0.5, 1.0), (1.0, 0.89), (None, None)]
        letters(*({"cpu_share": {"step": a, "training": b}} for a, b in shares))
        frame = frames.case_frame([load.load_run(tmp_path / "run")])
        assert frame["disturbed"].tolist()[:3] == [False, True, True]
        assert frame["disturbed"].isna().tolist() == [False, False, False, True]
        (limit,) = load.load_run(tmp_path / "run").environment["limits"]
        assert limit.startswith("2 records were disturbed")

    def test_records_that_do_not_name_the_code_are_said_to_be_taken_for_one(
        self, letters, tmp_path: Path
    ) -> None:
        load = pytest.importorskip("bench.report.load")
        assert letters(*({"git": {"commit": name, "dirty": False}} for name in "123")) == ["A"] * 3
        (limit,) = load.load_run(tmp_path / "run").environment["limits"]
        assert limit.startswith("3 records of 3 commits name no fingerprint")


class TestRelease:
    """Nothing is written while there is a reason not to publish; each is a line."""

    CLEAN: ClassVar[dict[str, Any]] = {
        "fingerprint": "a",
        "git": {"commit": "1", "dirty": False},
        "machine": {"cpu": "one", "gpu": None},
        "cpu_share": {"step": 1.0, "training": None},
    }

    @pytest.fixture
    def refused(self, tmp_path: Path, capsys) -> Callable[..., tuple[int, list[str]]]:
        pytest.importorskip("seaborn")

        def refused(*changes: dict[str, Any]) -> tuple[int, list[str]]:
            for seed, change in enumerate(changes):
                record = whole(seed, **self.CLEAN | change)
                write_json(record_path(tmp_path / "run", CASE, seed), record)
            out = tmp_path / "out"
            code, printed, _ = run_cli(
                capsys, "report", "--release", tmp_path / "run", "--out", out
            )
            assert out.exists() == (code == 0)
            return code, printed.splitlines()

        return refused

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"git": {"commit": "1", "dirty": True}}, "1 records do not name a commit without"),
            ({"fingerprint": "b"}, "2 measuring codes: a, b"),
            ({"fingerprint": None}, "1 records name no fingerprint"),
            ({"machine": {"cpu": "two", "gpu": None}}, "2 kinds of machine: one; two"),
            ({"cpu_share": {"step": 0.4, "training": None}}, "1 records were disturbed"),
            ({"saved_tensor_bytes": -1}, "1 records are not valid"),
            ({"case": CASE.to_dict(1) | {"recipe": "recommended"}}, "fewer than 5 seeds"),
        ],
        ids=["dirty", "codes", "no-code", "machines", "disturbed", "faulty", "seeds"],
    )
    def test_each_reason_is_a_line(self, refused, change, words) -> None:
        code, lines = refused({}, change)
        assert (code, len(lines)) == (1, 1)
        assert words in lines[0]

    def test_clean_runs_are_written(self, refused) -> None:
        code, (page,) = refused({}, {})
        assert code == 0
        assert Path(page).is_file()


def test_waiting_is_no_processor_time() -> None:
    """A step that sleeps as long as it computes had a processor for half of its seconds."""
    import time

    class Sleeper:
        def clear(self) -> None: ...

        def synchronise(self) -> None: ...

        def forward(self) -> Any:
            time.sleep(0.02)
            return self

        def backward(self) -> None: ...

    timing = measure_time(Sleeper(), repeats=5, warm_up=1)  # type: ignore[arg-type]
    assert 0 <= timing.cpu_share < 0.5


def test_variables_name_no_folder(monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("LD_PRELOAD", "/somewhere/lib/libjemalloc.so:/else/libx.so")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    found = variables()
    assert found["OMP_NUM_THREADS"] == "3"
    assert found["LD_PRELOAD"] == "libjemalloc.so libx.so"
    assert "OMP_WAIT_POLICY" not in found


def test_a_valid_record_raises_no_warning(tmp_path: Path) -> None:
    write_json(record_path(tmp_path, CASE, 0), whole())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(read_records(tmp_path))) == 1
