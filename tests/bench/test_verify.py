"""`bench verify`: measured by the runner, judged whatever is there, nothing lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from bench import verify
from bench.case import Case
from bench.claims.claim import NOT_MEASURED
from bench.claims.memory import GRADIENTS
from bench.claims.memory import jobs as memory_jobs
from bench.environment import ROOT
from bench.jobs import Job, RunSettings
from bench.probes.memory import Memory
from bench.probes.step import Step
from bench.records import read_records, write_json
from bench.release.plan import SCALE, TARGETS
from bench.report import write_report
from tests.bench.helpers import run_cli
from tests.bench.test_runner import orphans, settings, stamp, wait_for

CASE = Case(problem="bicycle", n_agents=1, gradient="jfb", batch_size=2, n_steps=1)
JOBS = [Job(case=CASE, probe=Memory(iterations=(k,))) for k in (1, 2, 3)]
#: takes minutes
LONG = Job(case=replace(CASE, n_steps=2000, gradient="unrolled"), probe=Memory())


def write_memory(out: Path, status: str = "ok") -> list[Job]:
    """Made-up records of one size of the quick memory claim."""
    jobs = [job for job in memory_jobs(True) if isinstance(job.probe, Memory)][:3]
    for job, slope in zip(jobs, (0, 100, 1000), strict=True):
        record = job.new_record() | {"status": status, "threads": 1, "fingerprint": "made up"}
        record["reason"] = None if status == "ok" else "made up"
        record["rows"] = None if status != "ok" else [
            {"K": k, "saved_bytes": 1000 + slope * k, "peak_bytes": 1000 + slope * k}
            for k in job.probe.iterations
        ]  # fmt: skip
        write_json(job.path(out), record)
    assert [job.case.gradient for job in jobs] == list(GRADIENTS)
    return jobs


@pytest.mark.parametrize("quick", [True, False], ids=["quick", "full"])
def test_every_job_has_a_file_of_its_own_and_seed_0_comes_first(quick):
    found = verify.jobs(quick)
    assert len({job.name for job in found}) == len(found)
    seeds = [job.seed for job in found]
    assert seeds == sorted(seeds)
    assert set(seeds) == ({0} if quick else set(range(5)))


def test_seven_rows_without_any_data():
    outcome, _ = verify.judge_records(True, {})
    assert [row["number"] for row in outcome.claims] == list(range(1, 8))
    assert {row["verdict"] for row in outcome.claims} == {NOT_MEASURED}
    assert outcome.beyond == []
    assert outcome.missing == [job.name for job in verify.jobs(True)]


class TestPartialRun:
    def test_what_is_missing_is_listed(self, tmp_path):
        done = write_memory(tmp_path)
        outcome = verify.judge(True, tmp_path)
        judged = [row for row in outcome.claims if row["verdict"] != NOT_MEASURED]
        assert [row["number"] for row in judged] == [5]
        # What is missing is not taken as holding, and a quick check has no verdicts.
        assert judged[0]["verdict"] == "inconsistent, too short to judge"
        assert "not there, and not taken as holding" in judged[0]["findings"][-1]
        assert set(outcome.missing) == {job.name for job in set(verify.jobs(True)) - set(done)}
        assert outcome.failures

    def test_a_report_of_claims_alone(self, tmp_path):
        write_memory(tmp_path)
        verify.judge(True, tmp_path)
        page = write_report([tmp_path], tmp_path).read_text(encoding="utf-8")
        body = page[page.index("</nav>") :]
        order = (
            "JFB&#39;s memory does not depend on K",
            "51 times",  # (1000 + 100 * 500) / 1000
            "data:image/webp",
            "<td>51x</td>",
        )
        places = [body.index(text) for text in order]
        assert places == sorted(places)
        assert "Not finished:" in body
        assert "All cases" not in page

    def test_what_crashed_fails_and_is_known_with_its_reason(self, tmp_path):
        (first, *_) = write_memory(tmp_path, "crashed")
        outcome = verify.judge(True, tmp_path)
        assert outcome.failed[first.name] == "crashed: made up"
        assert f"{first.name}: crashed: made up" in outcome.failures
        assert outcome.claims[4]["verdict"] == NOT_MEASURED


class TestQuick:
    def test_other_records_are_not_removed(self, tmp_path):
        other = verify.jobs(False)[0]
        write_json(other.path(tmp_path), other.new_record() | {"status": "ok"})
        with pytest.raises(ValueError, match="holds other records than those of the quick check"):
            verify.verify(True, settings(tmp_path, time_limit=0.0))
        assert other.finished(tmp_path) is not None

    def test_it_begins_anew_unless_told_to_go_on(self, tmp_path):
        write_memory(tmp_path)
        verify.verify(True, settings(tmp_path, time_limit=0.0, resume=True))
        assert len(list(read_records(tmp_path))) == 3
        # Those of a finished run are lines of one file.
        lines = [path.read_text().replace("\n", "") for path in (tmp_path / "records").iterdir()]
        (tmp_path / "records.jsonl").write_text("\n".join(lines[:1]) + "\n")
        verify.verify(True, settings(tmp_path, time_limit=0.0))
        assert list(read_records(tmp_path)) == []


def test_trainings_to_a_target_are_those_that_lie_beside(tmp_path, monkeypatch):
    """Read from there, not measured again; without the folder they are the check's own jobs."""
    measured = []
    monkeypatch.setattr(verify, "run_jobs", lambda jobs, _: measured.append(jobs))
    monkeypatch.setattr(verify, "judge", lambda quick, out: None)
    out, beside = tmp_path / "verify", tmp_path / "targets"
    out.mkdir()
    verify.verify(False, settings(out))
    job = next(job for job in measured[0] if isinstance(job.probe, Step))
    assert job.case.recipe == "recommended"
    write_json(job.path(beside), job.new_record() | {"status": "ok"})
    verify.verify(False, settings(out))
    (tmp_path / "scale").mkdir()
    verify.verify(False, settings(out))
    own, others, none = (
        [each for each in jobs if isinstance(each.probe, Step)] for jobs in measured
    )
    assert set(others) < set(own)
    assert {(each.case, each.seed) for each in others} == set(SCALE.jobs())
    assert none == []
    (record,) = verify.records_of(False, out).values()
    assert record["case"]["id"] == job.case.id
    assert verify.records_of(True, out) == {}


def test_claims_do_without_trainings_that_their_release_did_not_plan(tmp_path):
    out, job = tmp_path / "verify", next(iter(TARGETS.jobs()))
    assert verify.not_planned(out) == frozenset()
    plan = {"targets": {"seeds": 5, "cases": [job[0].id]}}
    write_json(tmp_path / "release.json", {"plan": plan})
    left_out = verify.not_planned(out)
    assert Job(case=job[0], seed=job[1]) not in left_out
    assert {Job(case=case, seed=seed) for case, seed in SCALE.jobs()} < left_out
    outcome, _ = verify.judge_records(False, {}, left_out)
    everything, _ = verify.judge_records(False, {})
    assert set(outcome.missing) == set(everything.missing) - {job.name for job in left_out}


def test_the_plan_counts_every_job_of_a_full_check_once():
    *claims, total = verify.plan()
    jobs = verify.jobs(False)
    own = [job for job in jobs if not isinstance(job.probe, Step)]
    assert sum(int(line.split()[0]) for line in claims) == len(own)
    assert int(total.split()[0]) == len(own)
    hours = sum(map(verify.core_seconds, jobs)) / 3600
    # What a release measures has to fit into one sitting.
    assert float(total.split()[2]) == pytest.approx(hours, abs=0.01)
    assert hours < 2.5


class TestCommand:
    @pytest.mark.parametrize(("lines", "expected"), [([], 0), (["made-up failure"], 1)])
    def test_failed_assertions_are_exit_code_1(
        self, capsys, tmp_path, monkeypatch, lines, expected
    ):
        outcome, _ = verify.judge_records(True, {})

        def measured(quick: bool, asked: RunSettings) -> verify.Outcome:
            assert (quick, asked.time_limit, asked.part) == (True, 5.0, (1, 1))
            return replace(outcome, missing=[], failures=lines)

        monkeypatch.setattr(verify, "verify", measured)
        code, out, err = run_cli(
            capsys, "verify", "--quick", "--time-limit", "5", "--out", tmp_path
        )
        assert code == expected
        assert err.splitlines() == [f"bench verify: failed: {line}" for line in lines]
        assert sum(line[:2] in {f"{n}." for n in range(1, 8)} for line in out.splitlines()) == 7


@pytest.mark.slow
def test_parts_share_the_jobs_without_overlap(tmp_path):
    """Three processes of one folder: each measures its own job, and a run of all is kept out."""
    from bench.records import claim
    from bench.runner import run_jobs

    for i in (1, 2, 3):
        with claim(tmp_path, (i % 3 + 1, 3)):  # another part may be at work
            counts = run_jobs(JOBS, settings(tmp_path, part=(i, 3), resume=True))
            assert counts == {"ok": 1}
            with pytest.raises(ValueError, match="in use"):
                run_jobs(JOBS, settings(tmp_path, resume=True))
    assert all(job.finished(tmp_path) for job in JOBS)


def test_a_killed_check_is_resumed_and_loses_nothing(tmp_path):
    """SIGKILL in the middle of the second job: the first is kept, the workers end, the rest is
    measured."""
    program = (
        "import sys; from pathlib import Path; from bench import verify\n"
        "from tests.bench.test_verify import *\n"
        "verify.jobs = lambda quick: [JOBS[0], LONG]\n"
        "verify.verify(True, settings(Path(sys.argv[1])))"
    )
    check = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    log = tmp_path / "logs" / f"{LONG.name}.log"
    try:
        first = JOBS[0].path(tmp_path)
        wait_for(lambda: check.poll() is not None or (log.exists() and first.exists()))
        assert check.poll() is None, "the check ended by itself"
        workers = psutil.Process(check.pid).children()
        check.send_signal(signal.SIGKILL)
        check.wait(20)
        assert psutil.wait_procs(workers, timeout=5)[1] == []
    finally:
        if check.poll() is None:
            check.kill()
            check.wait()
        for orphan in orphans(tmp_path):
            orphan.kill()
    before = stamp(first)
    assert not LONG.path(tmp_path).exists()
    patched = pytest.MonkeyPatch()
    with patched.context() as patch:
        patch.setattr(verify, "jobs", lambda quick: JOBS)
        verify.verify(True, settings(tmp_path, resume=True))
    assert stamp(first) == before
    assert all(job.finished(tmp_path)["status"] == "ok" for job in JOBS)
