"""The sweep: a record for every case whatever happens to it, and nothing lost or done twice."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from bench import environment, runner, worker, workers
from bench.case import Case
from bench.environment import ROOT, git_revision, processor
from bench.jobs import Job, Order, RunSettings
from bench.probes.probe import Hooks
from bench.record import STATUSES
from bench.record_schema import faults
from bench.records import (
    CorruptRecord,
    claim,
    empty_record,
    explain_nulls,
    pack,
    read_record,
    read_records,
    write_json,
)
from bench.runner import run_cases
from bench.workers import Crew
from jfbcore.extras.guard import Guard
from jfbcore.train import Training
from tests.bench.fake_trees import run_git
from tests.bench.helpers import record_path, run_cli, stale_reasons, unexplained_nulls

OK = Case(problem="quadrotor", n_agents=1, gradient="jfb", batch_size=2, n_steps=3)
TRAINED = replace(OK, train_steps=3)
DIRECT = replace(OK, gradient="direct")
FIXED = replace(OK, tolerance=None, max_iterations=5, timed=False)
UNSUPPORTED = replace(OK, problem="bicycle", gradient="cvxpylayers")
#: plain ascent far beyond its stable step size: controls overflow within a few iterations
DIVERGED = replace(OK, map="plain", step_size=1e6, max_iterations=50)
CASES = {
    "trained": TRAINED,
    "direct": DIRECT,
    "fixed": FIXED,
    "unsupported": UNSUPPORTED,
    "diverged": DIVERGED,
}
EXPECTED = {
    "trained": "ok",
    "direct": "ok",
    "fixed": "ok",
    "unsupported": "unsupported",
    "diverged": "diverged",
}


def settings(out: Path, **changes: object) -> RunSettings:
    usual = {"preset": "smoke", "timeout": 100.0, "threads": 1}
    return RunSettings(out=out, **(usual | changes))  # type: ignore[arg-type]


def order(case: Case, how: RunSettings, seed: int = 0) -> Order:
    return Order(Job(case=case, seed=seed), how, 1, {})


def record_of(out: Path, case: Case, seed: int = 0) -> dict:
    return read_record(record_path(out, case, seed))


def made_up(case: Case, **changes: object) -> dict:
    """A whole record that nothing was measured for."""
    record = empty_record(case, 0) | {"status": "ok"} | changes
    explain_nulls(record, "made up")
    return record


def stamp(path: Path) -> tuple[int, int, bytes]:
    """What changes when a file is written again, even with the same content."""
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, path.read_bytes()


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> Path:
    """One sweep over every kind of outcome, shared; tests that change it take a copy."""
    out = tmp_path_factory.mktemp("sweep")
    counts = run_cases(list(CASES.values()), 1, settings(out))
    assert counts == {"ok": 3, "unsupported": 1, "diverged": 1}
    return out


@pytest.fixture
def copied(measured, tmp_path) -> Path:
    return shutil.copytree(measured, tmp_path / "run")


@pytest.fixture
def first_worker(monkeypatch):
    """Call a function with the process of the first worker as soon as it has been started."""

    def install(act) -> None:
        original, calls = workers.wait, []

        def wait(process, *arguments):
            if not calls:
                act(process)
            calls.append(process.pid)
            return original(process, *arguments)

        monkeypatch.setattr(workers, "wait", wait)

    return install


def test_notes_are_limits_of_the_run_and_survive_a_resume(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "_run_one", lambda job, *rest: made_up(job.case))
    run_cases([OK], 1, settings(tmp_path, notes=("another case ran beside it",)))
    run_cases([OK], 1, settings(tmp_path, notes=("a second note", " "), resume=True))
    found = json.loads((tmp_path / "environment.json").read_text())
    assert found["notes"] == ["another case ran beside it", "a second note"]
    assert found["limits"][-2:] == found["notes"]


def test_a_resume_with_nothing_to_do_leaves_the_environment_as_it_was(
    tmp_path, monkeypatch, capsys
):
    """And says that what it keeps is not of the code as it is now."""
    monkeypatch.setattr(runner, "_run_one", run_and_write)
    now = {"commit": "a" * 40, "dirty": False}
    monkeypatch.setattr(runner, "git_revision", lambda: now)
    run_cases([OK], 1, settings(tmp_path))
    before = json.loads((tmp_path / "environment.json").read_text())
    monkeypatch.setattr(runner, "describe", refuse)
    run_cases([OK], 1, settings(tmp_path, resume=True))
    assert "kept" not in capsys.readouterr().err
    now = {"commit": "b" * 40, "dirty": False}
    run_cases([OK], 1, settings(tmp_path, resume=True, notes=("a late note",)))
    assert "1 of 1 records kept are of another state of the code" in capsys.readouterr().err
    after = json.loads((tmp_path / "environment.json").read_text())
    assert after.pop("limits") == [*before.pop("limits"), "a late note"]
    assert (before.pop("notes"), after.pop("notes")) == ([], ["a late note"])
    assert after == before


def test_the_commit_of_a_repository_around_the_code_is_not_the_codes(tmp_path, monkeypatch):
    around = tmp_path / "around"
    (around / "site-packages" / "bench").mkdir(parents=True)
    (around / "site-packages" / "bench" / "environment.py").write_text("")
    (around / ".gitignore").write_text("site-packages\n")
    run_git(around, "init", "--quiet")
    run_git(around, "add", ".gitignore")
    run_git(around, "commit", "--quiet", "--message", "another project")
    monkeypatch.setattr(environment, "ROOT", around / "site-packages")
    assert git_revision() == {"commit": None, "dirty": None}
    run_git(around, "add", "--force", "site-packages")
    run_git(around, "commit", "--quiet", "--message", "with a copy of the code")
    assert git_revision() == {"commit": run_git(around, "rev-parse", "HEAD"), "dirty": False}


def run_and_write(job: Job, *_: object) -> dict:
    record = made_up(job.case, git=job.git)
    write_json(record_path(job.settings.out, job.case, job.seed), record)
    return record


class TestRecords:
    @pytest.mark.parametrize("name", CASES)
    def test_one_for_every_case_with_the_status_expected(self, measured, name):
        record = record_of(measured, CASES[name])
        assert record["status"] == EXPECTED[name]
        assert record["case"] == CASES[name].to_dict(0)
        assert (record["reason"] is None) == (record["status"] == "ok")

    @pytest.mark.parametrize("name", CASES)
    def test_has_every_field_of_the_schema(self, measured, name):
        record = record_of(measured, CASES[name])
        assert set(record) >= {
            *("schema_version", "case", "status", "reason", "step_seconds", "forward_seconds"),
            *("backward_seconds", "iterations", "residual", "peak_live_tensor_bytes"),
            *("saved_tensor_bytes", "peak_rss_bytes", "cuda", "curve", "final", "versions", "git"),
        }
        assert set(record["cuda"]) == {
            *("busy_seconds", "context_bytes", "max_allocated_bytes", "max_reserved_bytes"),
            *("nvml_device_delta_bytes", "nvml_process_bytes", "nvml_source", "samples"),
        }
        assert set(record["final"]) == {
            *("loss", "evaluation_cost", "optimality_gap", "state_costs", "state_references"),
        }
        assert list(faults(record)) == []

    @pytest.mark.parametrize("name", CASES)
    def test_every_null_has_a_reason(self, measured, name):
        assert unexplained_nulls(record_of(measured, CASES[name])) == set()

    @pytest.mark.parametrize("name", CASES)
    def test_no_reason_for_what_is_not_null(self, measured, name):
        assert stale_reasons(record_of(measured, CASES[name])) == set()

    def test_what_a_measurement_holds(self, measured):
        record = record_of(measured, TRAINED)
        seconds = record["step_seconds"]
        assert set(seconds) == {"median", "min", "q25", "q75", "repeats"}
        # Of one thread; what the clocks' ticks are may round it up.
        assert 0 < record["cpu_share"]["step"] < 1.1
        assert 0 < seconds["min"] <= seconds["q25"] <= seconds["median"] <= seconds["q75"]
        assert seconds["repeats"] >= 10
        assert record["forward_seconds"] > 0
        assert record["backward_seconds"] > 0
        assert set(record["iterations"]) == set(record["residual"]) == {"mean", "max"}
        assert record["tolerance_reached"] is True
        assert 0 < record["saved_tensor_bytes"] < record["peak_live_tensor_bytes"]
        # torch alone is some 100 MB; nothing this small needs 8 GB
        assert 50e6 < record["peak_rss_bytes"] < 8e9
        assert record["threads"] == 1
        assert 0 < record["cpu_share"]["step"] <= 1.05
        assert 0 < record["cpu_share"]["training"] <= 1.05
        assert record["variables"]["OMP_NUM_THREADS"] == "1"
        assert record["fingerprint"] == environment.fingerprint()
        assert record["machine"] == {"cpu": processor(), "gpu": None}
        assert record["versions"]["torch"] == metadata.version("torch")
        assert record["git"]["commit"] == git_revision()["commit"]

    def test_evaluation_says_what_the_final_costs_rest_on(self, measured):
        record = record_of(measured, TRAINED)
        found = record["evaluation"]
        assert found["states"] == 64
        assert found["reference_states"] is None  # three time steps have no reference
        assert "discretisation" in record["null_reasons"]["evaluation.reference_states"]
        # after three steps another residual than that of the parameters that were timed
        assert 0 < found["residual"]["max"] <= 1e-4
        assert found["residual"] != record["residual"]
        assert found["iterations"]["mean"] >= 1
        assert found["tolerance_reached"] is True
        untrained = record_of(measured, FIXED)
        assert set(untrained["evaluation"].values()) == {None}

    def test_a_runner_that_ends_before_its_record_is_complete_leaves_none(
        self, tmp_path, monkeypatch
    ):
        def killed(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(runner, "_predict", killed)
            with pytest.raises(KeyboardInterrupt):
                run_cases([FIXED], 1, settings(tmp_path))
        assert list((tmp_path / "records").iterdir()) == []
        assert run_cases([FIXED], 1, settings(tmp_path, resume=True)) == {"ok": 1}
        assert [path.name for path in (tmp_path / "logs").iterdir()] == []

    def test_curve_and_final(self, measured):
        record = record_of(measured, TRAINED)
        curve = record["curve"]
        assert (curve[0]["step"], curve[-1]["step"]) == (0, 3)
        for point in curve:
            assert {"seconds", "step", "loss", "evaluation_cost"} <= set(point)
        assert [p["seconds"] for p in curve] == sorted(p["seconds"] for p in curve)
        assert record["final"]["loss"] == curve[-1]["loss"]
        assert record["final"]["evaluation_cost"] == curve[-1]["evaluation_cost"]
        assert record["interventions"] == 0

    def test_gaps_are_those_of_the_curve_against_the_reference_on_file(self, tmp_path, monkeypatch):
        """With optima at half of what the untrained policy costs, state by state."""
        from bench.build import build
        from bench.reference.cache import make_reference, save_reference
        from bench.reference.solution import Solution
        from bench.training import config

        training = Training(build(TRAINED, 0), config(TRAINED, 0))
        before = training.evaluate().costs
        problem = training.problem
        optima = [
            Solution(cost=cost / 2, objective=cost / 2, controls=torch.zeros(1, 1), seconds=0.0,
                     status="made up", solved=True)
            for cost in before
        ]  # fmt: skip
        folder = tmp_path / "references"
        folder.mkdir()
        save_reference(make_reference(problem, "transcription", optima), problem, folder)
        monkeypatch.setattr("bench.places.references", lambda _: folder)
        record = empty_record(TRAINED, 0)
        worker.fill(record, TRAINED, 0)
        found = [point["optimality_gap"] for point in record["curve"]]
        assert found[0] == pytest.approx(1.0)
        assert record["final"]["optimality_gap"] == found[-1] != found[0]
        # State by state, and the mean of that; the same training once more, to the bit.
        again = Training(build(TRAINED, 0), config(TRAINED, 0)).run()
        ratios = [2 * a / b for a, b in zip(again.curve[-1].costs, before, strict=True)]
        assert found[-1] == pytest.approx(sum(ratios) / len(ratios) - 1, rel=1e-9)
        assert record["evaluation"]["reference_states"] == len(before) == 64
        assert record["final"]["state_costs"] == pytest.approx(again.curve[-1].costs, rel=1e-9)
        assert record["final"]["state_references"] == [cost / 2 for cost in before]
        assert not any("optimality_gap" in name for name in record["null_reasons"])

    def test_threads_are_those_torch_uses(self, tmp_path):
        assert run_cases([FIXED], 1, settings(tmp_path, threads=3)) == {"ok": 1}
        assert record_of(tmp_path, FIXED)["threads"] == 3

    def test_bytes_are_those_of_the_benchmark_body(self, measured):
        """The same function, the same bytes, in another process."""
        from bench.measure import Step, measure_memory

        for case in (TRAINED, DIRECT, FIXED):
            found = measure_memory(Step(case, 0))
            record = record_of(measured, case)
            for name in ("saved_tensor_bytes", "peak_live_tensor_bytes"):
                assert record[name] == found[name], (case.id, name)

    def test_a_case_that_cannot_be_served_says_why(self, measured):
        assert "concave" in record_of(measured, UNSUPPORTED)["reason"]

    def test_divergence_says_what_is_not_finite(self, measured):
        record = record_of(measured, DIVERGED)
        assert "finite" in record["reason"]
        assert record["residual"]["max"] is None
        assert record["tolerance_reached"] is False

    def test_fixed_iterations_are_exact(self, measured):
        assert record_of(measured, FIXED)["iterations"] == {"mean": 5.0, "max": 5}

    def test_nothing_else_is_left_in_the_folder(self, measured):
        names = {p.name for p in (measured / "records").iterdir()}
        assert names == {record_path(measured, case, 0).name for case in CASES.values()}
        assert {p.name for p in measured.iterdir()} == {
            *("records", "environment.json", "logs", ".lock"),
        }

    def test_the_environment_is_described(self, measured):
        found = json.loads((measured / "environment.json").read_text())
        assert {"platform", "cpu", "memory_bytes", "versions", "git", "threads", "limits"} <= set(
            found
        )
        assert found["threads"] == 1

    def test_json_without_extensions(self, measured):
        for path in (measured / "records").iterdir():
            json.loads(path.read_text(), parse_constant=pytest.fail)


class TestResume:
    def test_what_is_there_is_not_measured_again(self, copied, monkeypatch):
        monkeypatch.setattr(runner, "_run_one", refuse)
        before = {p.name: stamp(p) for p in (copied / "records").iterdir()}
        assert run_cases(list(CASES.values()), 1, settings(copied, resume=True)) == {}
        assert {p.name: stamp(p) for p in (copied / "records").iterdir()} == before

    def test_a_record_from_before_a_field_existed_counts(self, copied, monkeypatch):
        path = record_path(copied, FIXED, 0)
        record = read_record(path)
        del record["case"]["learning_rate"]
        record["schema_version"] = 1
        path.write_text(json.dumps(record), encoding="utf-8")
        monkeypatch.setattr(runner, "_run_one", refuse)
        assert run_cases([FIXED], 1, settings(copied, resume=True)) == {}

    @pytest.mark.parametrize("change", [{"batch_size": 99}, {"seed": 5}, {"momentum": 0.9}])
    def test_a_record_of_something_else_does_not(self, copied, change):
        path = record_path(copied, FIXED, 0)
        record = read_record(path)
        record["case"] |= change
        path.write_text(json.dumps(record), encoding="utf-8")
        assert run_cases([FIXED], 1, settings(copied, resume=True)) == {"ok": 1}

    def test_packed_records_count_and_what_they_lack_is_measured(self, copied):
        record_path(copied, FIXED, 0).unlink()
        assert pack(copied) == len(CASES) - 1
        assert run_cases(list(CASES.values()), 1, settings(copied, resume=True)) == {"ok": 1}
        assert [p.name for p in (copied / "records").iterdir()] == [
            record_path(copied, FIXED, 0).name
        ]
        with pytest.raises(ValueError, match=rf"{len(CASES)} of these records.*--resume"):
            run_cases(list(CASES.values()), 1, settings(copied))

    def test_exactly_what_is_missing_is_measured(self, copied):
        missing = record_path(copied, FIXED, 0)
        old = read_record(missing)
        missing.unlink()
        before = {p.name: stamp(p) for p in (copied / "records").iterdir()}
        assert run_cases(list(CASES.values()), 1, settings(copied, resume=True)) == {"ok": 1}
        after = {p.name: stamp(p) for p in (copied / "records").iterdir()}
        assert set(after) == {*before, missing.name}
        assert {name: after[name] for name in before} == before
        assert read_record(missing)["saved_tensor_bytes"] == old["saved_tensor_bytes"]

    def test_records_without_resume_are_refused(self, copied):
        before = {p.name: stamp(p) for p in (copied / "records").iterdir()}
        with pytest.raises(ValueError, match=r"`out` .* 5 of these records.*--resume"):
            run_cases(list(CASES.values()), 1, settings(copied))
        assert {p.name: stamp(p) for p in (copied / "records").iterdir()} == before

    @pytest.mark.parametrize(
        "damage",
        [
            lambda text: text[: len(text) // 2],
            lambda text: "",
            lambda text: "[1, 2]",
            lambda text: re.sub('"schema_version": [0-9]+', '"schema_version": 0', text),
            lambda text: text.replace('"status": "ok"', '"status": "fine"'),
            lambda text: '{"schema_version": 1, "status": "ok", "case": {}}',
        ],
        ids=["half", "empty", "list", "schema", "status", "no-id"],
    )
    def test_a_damaged_record_is_measured_again_with_a_warning(
        self, copied, damage, first_worker, capsys
    ):
        """The worker is killed at once: what matters is that the case is taken up again."""
        path = record_path(copied, FIXED, 0)
        path.write_text(damage(path.read_text()))
        first_worker(lambda process: process.kill())
        counts = run_cases(list(CASES.values()), 1, settings(copied, resume=True))
        assert counts == {"crashed": 1}
        assert read_record(path)["status"] == "crashed"
        warning = next(x for x in capsys.readouterr().err.splitlines() if "warning" in x)
        assert path.name in warning
        assert "again" in warning

    def test_the_report_uses_the_rest(self, copied):
        path = record_path(copied, FIXED, 0)
        path.write_text(path.read_text()[:100])
        with pytest.warns(CorruptRecord, match=path.name):
            found = list(read_records(copied))
        assert {record["case"]["id"] for record in found} == {
            case.id for case in CASES.values()
        } - {FIXED.id}

    def test_the_report_of_the_command_line_uses_the_rest(self, copied, capsys):
        path = record_path(copied, FIXED, 0)
        path.write_text(path.read_text()[:100])
        code, out, err = run_cli(capsys, "report", copied)
        assert code == 0
        page = Path(out.strip())
        assert page.exists()
        assert [line for line in err.splitlines() if path.name in line]
        assert TRAINED.id in (copied / "cases.csv").read_text()
        assert FIXED.id not in (copied / "cases.csv").read_text()

    def test_a_case_that_changed_under_its_id_is_never_passed_off_as_measured(
        self, tmp_path, first_worker
    ):
        """A record of other training steps has the same file name. When the new worker dies,
        the old record must not become its result."""
        old = made_up(replace(OK, train_steps=7))
        write_json(record_path(tmp_path, OK, 0), old)
        first_worker(lambda process: process.kill())
        assert run_cases([OK], 1, settings(tmp_path, resume=True)) == {"crashed": 1}
        record = record_of(tmp_path, OK)
        assert record["status"] == "crashed"
        assert record["case"] == OK.to_dict(0)

    def test_a_record_of_another_case_is_not_overwritten_without_resume(
        self, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(runner, "_run_one", refuse)
        path = record_path(tmp_path, OK, 0)
        write_json(path, made_up(replace(OK, train_steps=7)))
        before = stamp(path)
        with pytest.raises(ValueError, match="--resume"):
            run_cases([OK], 1, settings(tmp_path))
        assert stamp(path) == before

    def test_more_seeds_measure_the_new_ones_only(self, tmp_path, monkeypatch):
        write_json(record_path(tmp_path, OK, 0), made_up(OK))
        asked = []

        def run_one(job, *_):
            asked.append(job.seed)
            return made_up(job.case)

        monkeypatch.setattr(runner, "_run_one", run_one)
        run_cases([OK], 3, settings(tmp_path, resume=True))
        assert asked == [1, 2]


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("a case was measured")


class TestOutcomes:
    def test_a_killed_worker_is_recorded_and_the_rest_measured(self, tmp_path, first_worker):
        first_worker(lambda process: os.kill(process.pid, signal.SIGKILL))
        assert run_cases([OK, FIXED], 1, settings(tmp_path)) == {"crashed": 1, "ok": 1}
        record = record_of(tmp_path, OK)
        assert record["status"] == "crashed"
        assert "SIGKILL" in record["reason"]
        assert unexplained_nulls(record) == set()
        assert stale_reasons(record) == set()
        assert record["threads"] == 1
        assert record["machine"] == {"cpu": processor(), "gpu": None}
        assert record["versions"]["torch"]
        assert record_of(tmp_path, FIXED)["status"] == "ok"

    def test_a_segmentation_fault_is_recorded(self, tmp_path, first_worker):
        first_worker(lambda process: os.kill(process.pid, signal.SIGSEGV))
        assert run_cases([OK], 1, settings(tmp_path)) == {"crashed": 1}
        assert "-11" in record_of(tmp_path, OK)["reason"]

    def test_a_timeout_is_recorded_and_ends_the_worker(self, tmp_path, monkeypatch):
        """Shorter than the import of torch, so that no machine is too fast for it."""
        ended = []
        original = workers.wait

        def wait(process, *arguments):
            ended.append(process)
            return original(process, *arguments)

        monkeypatch.setattr(workers, "wait", wait)
        assert run_cases([OK], 1, settings(tmp_path, timeout=0.05)) == {"timeout": 1}
        record = record_of(tmp_path, OK)
        assert record["status"] == "timeout"
        assert "0.05 s" in record["reason"]
        assert unexplained_nulls(record) == set()
        assert stale_reasons(record) == set()
        # Tried once more before it is recorded.
        assert record["reason"].endswith(", twice")
        assert [w.returncode for w in ended] == [-signal.SIGKILL] * 2
        assert not any(psutil.pid_exists(w.pid) for w in ended)

    @pytest.mark.slow
    @pytest.mark.skipif(
        torch.version.cuda is not None, reason="torch with CUDA maps more than the limit itself"
    )
    def test_memory_beyond_the_limit_is_recorded(self, tmp_path):
        """The value network alone keeps several blocks of 2^17 samples x 96 units x 4 bytes,
        50 MB each, in each of 20 time steps; torch takes half of the 1.25 GiB allowed."""
        case = replace(FIXED, gradient="unrolled", batch_size=2**17, n_steps=20)
        found = run_cases([case], 1, settings(tmp_path, memory_limit=5 * 2**28))
        assert found == {"out_of_memory": 1}
        record = record_of(tmp_path, case)
        assert "memory" in record["reason"]
        assert unexplained_nulls(record) == set()
        # More than the limit is what it must have asked for; the factor is what the network alone
        # keeps by the count above.
        predicted = record["predicted"]
        assert predicted["peak_live_tensor_bytes"] > predicted["saved_tensor_bytes"] > 5 * 2**28
        assert predicted["saved_tensor_bytes"] > 20 * 2**17 * 96 * 4 * 3
        assert predicted["model_error"] < 0.05

    @pytest.mark.slow
    def test_what_took_too_long_is_predicted(self, tmp_path, monkeypatch):
        """By the same model that `bench predict` has, in a worker of its own."""
        from bench.predict import fit_on_cpu, predicted_by

        original, calls = workers.wait, []

        def wait(process, *arguments):
            calls.append(process.pid)
            if len(calls) <= 2:
                workers.kill(process)
                return "timeout after 1 s"
            return original(process, *arguments)

        monkeypatch.setattr(workers, "wait", wait)
        assert run_cases([FIXED], 1, settings(tmp_path)) == {"timeout": 1}
        record = record_of(tmp_path, FIXED)
        assert record["predicted"] == predicted_by(fit_on_cpu(FIXED), FIXED)
        assert min(record["predicted"].values()) >= 0
        assert unexplained_nulls(record) == stale_reasons(record) == set()

    def test_what_finished_is_not_predicted(self, tmp_path):
        assert run_cases([FIXED], 1, settings(tmp_path)) == {"ok": 1}
        record = record_of(tmp_path, FIXED)
        assert set(record["predicted"].values()) == {None}
        assert "memory or time ran out" in record["null_reasons"]["predicted.saved_tensor_bytes"]

    @pytest.mark.parametrize(
        ("error", "status"),
        [
            (RuntimeError("an operator failed"), "crashed"),
            (ZeroDivisionError("division by zero"), "crashed"),
            (AssertionError(), "crashed"),
            (MemoryError("no room"), "out_of_memory"),
            (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory"),
            (
                RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes"),
                "out_of_memory",
            ),
        ],
        ids=["runtime", "arithmetic", "assertion", "memory", "cuda", "allocator"],
    )
    def test_an_exception_in_the_case_is_a_status(self, error, status, monkeypatch, capfd):
        from bench import measure

        def fail(*_):
            raise error

        monkeypatch.setattr(measure, "Step", fail)
        record = empty_record(OK, 0)
        worker.fill(record, OK, 0)
        assert record["status"] == status
        assert str(error) in record["reason"]
        assert record["reason"].count("\n") == 0
        assert (type(error).__name__ in record["reason"]) or status == "out_of_memory"

    def test_memory_that_runs_out_beside_the_step_is_no_status(self, monkeypatch):
        from bench import measure

        def fail(_):
            raise MemoryError("made up")

        monkeypatch.setattr(measure, "gradient_cosine", fail)
        record = empty_record(OK, 0)
        worker.fill(record, OK, 0)
        assert record["status"] == "ok"
        assert record["saved_tensor_bytes"] > 0
        assert record["gradient_cosine"] is None
        assert record["null_reasons"]["gradient_cosine"].startswith("memory ran out beside")

    def test_the_step_is_measured_before_diagnostics_and_training(self, monkeypatch):
        from bench import measure

        calls = []
        for name in (
            *("measure_time", "measure_memory", "gradient_cosine"),
            *("linear_residual", "reversible_drift"),
        ):
            own = getattr(measure, name)
            monkeypatch.setattr(
                measure, name, lambda *a, own=own, name=name: calls.append(name) or own(*a)
            )
        case = replace(OK, train_steps=2)
        hooks = Hooks(measured=lambda: calls.append("measured"))
        worker.fill(empty_record(case, 0), case, 0, hooks)
        assert calls[:2] == ["measure_time", "measured"]
        assert len(calls) == 6

    def test_training_that_diverges_keeps_what_was_measured_before(self, monkeypatch):
        """The guard finds every step bad and gives up after its 20 in a row."""
        monkeypatch.setattr(Guard, "inspect", lambda *_: "loss is made up")
        case = replace(OK, train_steps=30, timed=False)
        record = empty_record(case, 0)
        worker.fill(record, case, 0)
        assert (record["status"], record["reason"]) == ("diverged", "loss is made up")
        assert record["saved_tensor_bytes"] > 0
        assert record["curve"][-1]["step"] == record["interventions"] == 21

    def test_statuses_are_those_of_the_design(self):
        assert set(STATUSES) == {
            *("ok", "unsupported", "out_of_memory", "timeout", "diverged", "crashed"),
        }


class TestTimeLimit:
    def test_no_case_is_started_after_it_and_resume_finishes(self, tmp_path, monkeypatch, capsys):
        """Each case takes ten seconds of a made-up clock; the third would start at twenty."""
        clock = SimpleNamespace(seconds=0.0)

        def run_slowly(job, *rest):
            clock.seconds += 10.0
            record = empty_record(job.case, job.seed) | {"status": "ok"}
            write_json(record_path(tmp_path, job.case, job.seed), record)
            return record

        monkeypatch.setattr(runner, "_run_one", run_slowly)
        monkeypatch.setattr(runner.time, "monotonic", lambda: clock.seconds)
        assert run_cases([OK, FIXED], 2, settings(tmp_path, time_limit=15.0)) == {"ok": 2}
        assert "2 cases not measured; continue with --resume" in capsys.readouterr().err
        assert run_cases([OK, FIXED], 2, settings(tmp_path, resume=True)) == {"ok": 2}
        assert "not measured" not in capsys.readouterr().err


def run_made_up(job: Order, *_: object) -> dict:
    return made_up(job.case)


class TestOneSweepPerFolder:
    def test_a_second_one_is_refused(self, tmp_path, monkeypatch):
        monkeypatch.setattr(runner, "_run_one", refuse)
        with (
            claim(tmp_path),
            pytest.raises(ValueError, match=r"`out` .* is in use by another sweep"),
        ):
            run_cases([OK], 1, settings(tmp_path, resume=True))
        assert not list((tmp_path / "records").iterdir())

    def test_the_folder_is_free_again_afterwards(self, copied):
        for _ in range(2):
            assert run_cases(list(CASES.values()), 1, settings(copied, resume=True)) == {}

    def test_also_after_a_failure(self, tmp_path, monkeypatch):
        monkeypatch.setattr(runner, "_run_one", refuse)
        with pytest.raises(AssertionError):
            run_cases([OK], 1, settings(tmp_path))
        with claim(tmp_path):
            pass


class TestSideBySide:
    def test_only_what_measures_no_seconds_runs_beside_something(self, tmp_path, monkeypatch):
        monkeypatch.setattr(runner, "usable_cores", lambda: 2)
        inside, together = set(), []

        def run(order, workers, deadline):
            inside.add(order.job.name)
            # Long enough for the other one to begin.
            wait_for(lambda: len(inside) > 1 or order.timed, seconds=20.0)
            together.append((order.timed, len(inside)))
            if not order.timed:
                both.wait(20.0)
            inside.discard(order.job.name)
            return {"status": "ok"}

        both = threading.Barrier(2)
        monkeypatch.setattr(runner, "_run_one", run)
        assert run_cases([OK, FIXED, DIRECT], 2, settings(tmp_path)) == {"ok": 6}
        assert together == [(True, 1)] * 2 + [(False, 2)] * 2 + [(True, 1)] * 2

    def test_processes_that_share_the_jobs_share_the_cores(self, tmp_path, monkeypatch):
        monkeypatch.setattr(runner, "usable_cores", lambda: 2)
        inside = []

        def run(order, workers, deadline):
            inside.append(threading.current_thread() is threading.main_thread())
            return {"status": "ok"}

        monkeypatch.setattr(runner, "_run_one", run)
        run_cases([FIXED, DIRECT], 2, settings(tmp_path, part=(1, 2)))
        assert inside == [True, True]

    def test_what_is_ended_with_the_crew_leaves_no_record(self, tmp_path):
        logs = tmp_path / "logs"
        logs.mkdir()
        crew = Crew(logs, 1, 2)
        order = Order(Job(case=TestInterruption.BESIDE, seed=0), settings(tmp_path), 1, {})
        future = crew.submit(lambda: runner._run_one(order, crew))
        wait_for(lambda: list(logs.glob("quadrotor*.log")))
        crew.close()
        with pytest.raises(runner._OutOfTime):
            future.result()
        assert not (tmp_path / "records").exists() or not list((tmp_path / "records").iterdir())
        assert not orphans(tmp_path)


class TestInterruption:
    #: takes minutes, so that it is always this case that is interrupted
    LONG = replace(FIXED, gradient="unrolled", max_iterations=500, n_steps=160, timed=True)
    #: the same as one of several at a time
    BESIDE = replace(LONG, timed=False)
    #: asks for SIGINT: a shell lets what it starts in the background ignore it
    SWEEP = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from pathlib import Path; from tests.bench.test_runner import *; "
        "run_cases([FIXED, getattr(TestInterruption, sys.argv[2])], 1, "
        "settings(Path(sys.argv[1]), resume=True))"
    )

    def interrupt(self, out: Path, kind: signal.Signals, name: str = "LONG") -> None:
        """Stop a sweep with `kind` during its second case; its worker must end with it."""
        case = getattr(self, name)
        sweep = subprocess.Popen(
            [sys.executable, "-c", self.SWEEP, str(out), name],
            cwd=ROOT,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        try:
            workers = wait_for(lambda: worker_of(sweep, case, out))
            sweep.send_signal(kind)
            sweep.wait(20)
            # An orphan would go on for its full time, against the next sweep's measurements,
            # and write a record into a folder that is no longer claimed.
            _, alive = psutil.wait_procs(workers, timeout=5)
            assert not alive
        finally:
            if sweep.poll() is None:
                sweep.kill()
                sweep.wait()
            for orphan in orphans(out):
                orphan.kill()
        assert not record_path(out, case, 0).exists()

    def test_a_killed_sweep_is_resumed_and_loses_nothing(self, tmp_path):
        self.interrupt(tmp_path, signal.SIGKILL)
        first = record_path(tmp_path, FIXED, 0)
        before = stamp(first)
        assert read_record(first)["status"] == "ok"
        assert run_cases([FIXED, DIRECT], 1, settings(tmp_path, resume=True)) == {"ok": 1}
        assert stamp(first) == before
        names = {p.name for p in (tmp_path / "records").iterdir()}
        assert names == {first.name, record_path(tmp_path, DIRECT, 0).name}

    @pytest.mark.parametrize("name", ["LONG", "BESIDE"])
    @pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT], ids=lambda kind: kind.name)
    def test_a_stopped_sweep_leaves_nothing_running(self, tmp_path, kind, name):
        first = record_path(tmp_path, FIXED, 0)
        write_json(first, made_up(FIXED))
        before = stamp(first)
        self.interrupt(tmp_path, kind, name)
        assert [p.name for p in (tmp_path / "records").iterdir()] == [first.name]
        assert stamp(first) == before
        with claim(tmp_path):
            pass  # free again

    def test_what_a_worker_killed_while_writing_leaves_is_no_record(self, tmp_path, monkeypatch):
        path = record_path(tmp_path, OK, 0)
        path.parent.mkdir()
        (path.parent / f".{path.name}.1.partial").write_text('{"schema_version": 1, "ca')
        assert list(read_records(tmp_path)) == []
        monkeypatch.setattr(runner, "_run_one", run_made_up)
        assert run_cases([OK], 1, settings(tmp_path)) == {"ok": 1}


def worker_of(sweep: subprocess.Popen, case: Case, out: Path) -> list[psutil.Process]:
    """The sweep's worker processes, once the log of `case` has been opened."""
    if sweep.poll() is not None:
        raise AssertionError(f"the sweep ended by itself: {sweep.returncode}")
    if not (out / "logs" / f"{record_path(out, case, 0).stem}.log").exists():
        return []
    return psutil.Process(sweep.pid).children()


def orphans(out: Path) -> list[psutil.Process]:
    """Workers whose log is in `out`: ours, whoever their parent is by now."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if "bench.worker" in (process.info["cmdline"] or []):
            try:
                log = os.readlink(f"/proc/{process.pid}/fd/1")
            except OSError:
                continue
            if log.startswith(str(out)):
                found.append(process)
    return found


def wait_for(condition, seconds: float = 60.0):
    """The first true value of `condition()`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError(f"nothing after {seconds} s")


class TestWriting:
    @pytest.mark.parametrize("where", ["fsync", "replace"])
    def test_a_full_disk_leaves_the_old_file_and_no_part_of_the_new(
        self, where, tmp_path, monkeypatch
    ):
        path = tmp_path / "record.json"
        write_json(path, {"value": 1})
        before = stamp(path)

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, where, full)
        with pytest.raises(OSError, match="No space left"):
            write_json(path, {"value": 2})
        assert stamp(path) == before
        assert [p.name for p in tmp_path.iterdir()] == ["record.json"]

    def test_what_json_cannot_write_leaves_the_old_file(self, tmp_path):
        path = tmp_path / "record.json"
        write_json(path, {"value": 1})
        with pytest.raises(TypeError):
            write_json(path, {"value": object()})
        assert json.loads(path.read_text()) == {"value": 1}
        assert [p.name for p in tmp_path.iterdir()] == ["record.json"]

    def test_what_is_not_finite_becomes_null(self, tmp_path):
        nan, inf = float("nan"), float("inf")
        write_json(tmp_path / "r.json", {"a": nan, "b": [inf, -inf, 1.5], "c": {"d": (nan, 2)}})
        assert json.loads((tmp_path / "r.json").read_text()) == {
            "a": None,
            "b": [None, None, 1.5],
            "c": {"d": [None, 2]},
        }

    def test_a_full_disk_during_the_sweep_is_one_line(self, tmp_path, monkeypatch, capsys):
        """The environment is written, then the disk fills: the case has no record, the sweep ends
        with one line, and once there is room `--resume` measures the case."""
        monkeypatch.setattr(workers, "wait", lambda process, *_: workers.kill(process) or "exited")
        original, count = os.fsync, []

        def full(descriptor: int) -> None:
            count.append(descriptor)
            if len(count) > 1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            original(descriptor)

        monkeypatch.setattr(os, "fsync", full)
        arguments = ("run", "--filter", f"id={SMOKE_ID}", "--out", tmp_path, "--threads", "1")
        code, out, err = run_cli(capsys, *arguments)
        assert code == 2
        assert out == ""
        errors = [line for line in err.splitlines() if "error" in line]
        assert len(errors) == 1
        assert "No space left on device" in errors[0]
        assert "Traceback" not in err
        assert not list((tmp_path / "records").iterdir())
        monkeypatch.setattr(os, "fsync", original)
        code, out, _ = run_cli(capsys, *arguments, "--resume")
        assert code == 0
        assert out.startswith("1 crashed")


#: any case of the smoke preset: its worker is killed before it has done anything
SMOKE_ID = "quadrotor-n6-jfb-scaled-picard-k5-b4-t8-float32-cpu"


def test_the_command_line_measures_and_resumes(tmp_path, capsys):
    """One case of the smoke preset, the way a reader runs it."""
    arguments = ("run", "--preset", "smoke", "--filter", f"id={SMOKE_ID}", "--out", tmp_path)
    code, out, err = run_cli(capsys, *arguments, "--threads", "1")
    assert code == 0
    assert out == f"1 ok; records in {tmp_path}\n"
    assert "case" in err  # progress
    code, out, err = run_cli(capsys, *arguments, "--threads", "1")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "--resume" in err
    code, out, _ = run_cli(capsys, *arguments, "--threads", "1", "--resume")
    assert code == 0
    assert out.startswith("nothing to do")
