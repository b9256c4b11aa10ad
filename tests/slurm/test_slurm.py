"""The sweep on a real Slurm of one node; `make test-slurm` starts it, without and with accounting.

Cases are not measured here, but for one: `tests.slurm.tasks` stands in for it on the node.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from bench import cluster, runner, slurm
from bench.case import Case
from bench.jobs import RunSettings
from bench.records import read_records
from bench.runner import run_cases
from tests.slurm import tasks


def running() -> bool:
    try:
        slurm.call("sinfo", "-h")
    except slurm.SlurmError:
        return False
    return True


pytestmark = [pytest.mark.slurm, pytest.mark.skipif(not running(), reason="needs a Slurm")]
#: takes memory only, and so no node for itself
CASE = Case(problem="quadrotor", n_agents=1, gradient="jfb", batch_size=2, n_steps=3, timed=False)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(cluster, "POLL", 1.0)
    yield
    subprocess.run(["scancel", "--user=root"], check=False)


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """Run a sweep of CASE with a task in place of the measurement."""

    def run(task, seeds: int = 2, resume: bool = False, **options) -> dict[str, int]:
        monkeypatch.setattr(runner, "_run_one", task)
        settings = RunSettings(out=tmp_path, preset="adhoc", timeout=60.0, jobs="slurm",
                               resume=resume, slurm=slurm.SlurmOptions(**options))  # fmt: skip
        return run_cases([CASE], seeds, settings)

    return run


def queue() -> list[str]:
    return slurm.call("squeue", "-h", "-r", "-o", "%j %i %T").splitlines()


def when(ready, act) -> None:
    """Call `act` from another thread as soon as `ready` is true of the queue's lines."""

    def watch() -> None:
        while not ready(queue()):
            time.sleep(0.2)
        act()

    threading.Thread(target=watch, daemon=True).start()


def running_tasks(lines) -> int:
    return sum("RUNNING" in line for line in lines)


def test_records_say_where_they_were_made_and_nothing_else_is_left(sweep, tmp_path):
    assert sweep(tasks.instant, seeds=3) == {"ok": 3}
    records = list(read_records(tmp_path))
    assert len(records) == 3
    assert all(re.fullmatch(r"\d+_[0-2]", r["cluster"]["job"]) for r in records)
    assert {r["cluster"]["host"] for r in records} == {os.uname().nodename}
    assert not (tmp_path / "jobs").exists()


def test_a_case_is_measured_as_it_is_locally(tmp_path):
    command = [
        *(sys.executable, "-m", "bench", "run", "--jobs", "slurm", "--out", str(tmp_path)),
        *("--problem", "quadrotor", "--agents", "1", "--gradient", "jfb", "--batch", "2"),
        *("--iterations", "3", "--horizon-steps", "3", "--slurm", "exclusive=no"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (record,) = read_records(tmp_path)
    assert record["status"] == "ok"
    assert record["saved_tensor_bytes"] > 0


def test_arrays_stay_below_what_slurm_takes(sweep, monkeypatch):
    assert slurm.most_tasks() == 1000
    monkeypatch.setattr(slurm, "most_tasks", lambda: 3)
    assert sweep(tasks.instant, seeds=8) == {"ok": 8}


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("partition=nowhere", "Invalid partition"),
        ("memory=999999G", "not available"),
        ("constraint=unheard", "Invalid feature"),
        ("gres=gpu:9", "Invalid generic resource"),
    ],
)
def test_a_refused_submission_is_one_line_and_leaves_nothing(option, words, tmp_path):
    command = [
        *(sys.executable, "-m", "bench", "run", "--jobs", "slurm", "--slurm", option),
        *("--problem", "quadrotor", "--agents", "1", "--gradient", "jfb", "--out", str(tmp_path)),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if "error" in line]
    assert line.startswith("bench run: error: `jobs` slurm: sbatch:")
    assert words in line
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "jobs").exists()
    assert not list((tmp_path / "records").iterdir())


def test_cancelled_jobs_leave_no_record_and_resume_measures_them(sweep, tmp_path, capsys):
    """One of them runs, the others wait: neither kind reaches accounting in time."""
    when(
        # Seed 0 is over, seed 1 runs and the others wait.
        lambda lines: len(lines) == 7 and running_tasks(lines),
        lambda: subprocess.run(["scancel", "--user=root"], check=True),
    )
    assert sweep(tasks.unending, seeds=8) == {"ok": 1}
    err = capsys.readouterr().err
    assert "7 cases not measured; continue with --resume" in err
    assert err.count("left no record: cancelled") == 7, err
    assert len(list(read_records(tmp_path))) == 1
    assert sweep(tasks.instant, seeds=8, resume=True) == {"ok": 7}


def test_a_broken_node_is_said_and_leaves_no_record(sweep, tmp_path, capsys):
    assert sweep(tasks.failing, seeds=1) == {}
    assert "failed (RuntimeError: the node is broken)" in capsys.readouterr().err
    assert not list((tmp_path / "records").iterdir())


def test_a_job_that_can_never_start_is_cancelled_and_said(sweep, capsys):
    """A partition whose longest time is below what the case's timeout asks for."""
    began = time.monotonic()
    assert sweep(tasks.instant, seeds=1, partition="short") == {}
    assert time.monotonic() - began < 60
    assert "can never start (PartitionTimeLimit)" in capsys.readouterr().err
    assert not queue()


def test_what_a_dead_submitter_left_is_adopted_and_not_doubled(sweep, tmp_path, monkeypatch):
    code = (
        "import sys; from pathlib import Path; from bench import runner\n"
        "from bench.jobs import RunSettings; from tests.slurm import tasks\n"
        "from tests.slurm.test_slurm import CASE\n"
        "runner._run_one = tasks.sleeping\n"
        "runner.run_cases([CASE], 4, RunSettings(out=Path(sys.argv[1]), preset='adhoc', "
        "timeout=60.0, jobs='slurm'))"
    )
    dead = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    while len(queue()) < 4:
        time.sleep(0.2)
    dead.send_signal(signal.SIGKILL)
    dead.wait()
    before = {line.split()[0] for line in queue()}

    def refuse(*_):
        raise AssertionError("submitted again")

    monkeypatch.setattr(slurm, "submit", refuse)
    assert sweep(tasks.sleeping, seeds=4, resume=True) == {"ok": 4}
    assert len(before) == 1
    assert not (tmp_path / "jobs").exists()


def test_a_requeued_job_touches_no_record_after_its_sweep(sweep, tmp_path):
    """It starts again where its folder is gone, or where its record is done already."""
    when(
        running_tasks,
        lambda: subprocess.run(
            "scontrol requeue $(squeue -h -t R -o %A | head -1)", shell=True, check=True
        ),
    )
    assert sweep(tasks.sleeping, seeds=2) == {"ok": 2}
    (path, *_) = sorted((tmp_path / "records").iterdir())
    before = path.stat().st_mtime_ns
    time.sleep(8.0)
    assert path.stat().st_mtime_ns == before


def test_setup_commands_run_first_and_tasks_are_throttled(sweep):
    seen = []
    # Watched until the sweep is over, which is never the case for this condition.
    when(lambda lines: seen.append(running_tasks(lines)), lambda: None)
    setup = ("export SET_UP=once", 'export SET_UP="$SET_UP twice"')
    assert sweep(tasks.saying, seeds=4, setup=setup, throttle=1) == {"ok": 4}
    assert max(seen) == 1


def test_timed_cases_have_the_node_for_themselves(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "_run_one", tasks.sleeping)
    seen = []
    when(running_tasks, lambda: seen.append(slurm.call("squeue", "-h", "-t", "R", "-o", "%C %h")))
    settings = RunSettings(out=tmp_path, preset="adhoc", timeout=60.0, jobs="slurm")
    assert run_cases([replace(CASE, timed=True)], 1, settings) == {"ok": 1}
    assert seen[0].split() == ["4", "NO"]


@pytest.mark.slow
def test_a_sweep_as_large_as_the_presets_drains_and_resumes(sweep, tmp_path):
    """1,320 tasks in two arrays, of which some are cancelled on the way."""
    when(
        lambda lines: 100 < len(lines) < 1200,
        lambda: subprocess.run("scancel $(squeue -h -r -t PD -o %i | tail -20)",
                               shell=True, check=True),
    )  # fmt: skip
    assert sweep(tasks.instant, seeds=1320) == {"ok": 1300}
    assert sweep(tasks.instant, seeds=1320, resume=True) == {"ok": 20}
    records = [json.loads(p.read_text()) for p in Path(tmp_path, "records").iterdir()]
    assert {record["case"]["seed"] for record in records} == set(range(1320))
