"""The sweep on Slurm where there is none: options, errors, what is on disk. See tests/slurm."""

import os
import pickle
import stat

import pytest

from bench import cluster, cluster_task, runner, slurm
from bench.case import Case
from bench.jobs import RunSettings
from bench.records import read_records
from bench.runner import run_cases
from tests.bench.helpers import run_cli
from tests.slurm import tasks

CASE = Case(problem="quadrotor", n_agents=1, gradient="jfb", batch_size=2, n_steps=3)


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["partition"], ["KEY=VALUE", "partition, account, qos", "'partition'"]),
        (["queue=fast"], ["KEY=VALUE", "'queue=fast'"]),
        (["throttle=0"], ["throttle", ">= 1", "'0'"]),
        (["exclusive=maybe"], ["exclusive", "yes or no", "'maybe'"]),
    ],
)
def test_a_bad_option_is_named(texts, words):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the words are checked below
        slurm.SlurmOptions.parse(texts)
    assert all(word in str(caught.value) for word in words)


def test_options_become_those_of_sbatch():
    options = slurm.SlurmOptions.parse(
        ["partition=long", "memory=4G", "setup=module load a", "setup=b", "throttle=7"]
    )
    assert options.flags(timed=True, cuda=True) == [
        *("--partition=long", "--mem=4G", "--gres=gpu:1", "--exclusive"),
    ]
    assert options.flags(timed=False, cuda=False) == ["--partition=long", "--mem=4G"]
    assert options.setup == ("module load a", "b")
    shared = slurm.SlurmOptions(exclusive=False, gres="gpu:a100:2")
    assert shared.flags(timed=True, cuda=True) == ["--gres=gpu:a100:2"]


def test_options_without_slurm_are_refused(capsys):
    code, _, err = run_cli(capsys, "run", "--slurm", "qos=high")
    assert code == 2
    assert "`slurm` qos=high needs jobs slurm, got jobs local" in err


def test_without_slurm_it_says_so_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    settings = RunSettings(out=tmp_path, preset="adhoc", timeout=60.0, jobs="slurm")
    with pytest.raises(ValueError, match="`jobs` slurm: scontrol is not there: is this a host"):
        run_cases([CASE], 1, settings)
    assert not (tmp_path / "jobs").exists()


def run_at_once(folder, name, count, flags, options):
    """In place of `slurm.submit`: every task in this process, before the queue is asked."""
    for private in (folder, folder.parent):
        assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "orders.pickle").stat().st_mode) == 0o600
    os.environ["SLURM_ARRAY_JOB_ID"] = "7"
    for task in range(count):
        cluster_task.main(folder, task)
    return "7"


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "")
    monkeypatch.setattr(cluster, "POLL", 0.0)
    monkeypatch.setattr(runner, "_run_one", tasks.instant)
    monkeypatch.setattr(slurm, "submit", run_at_once)
    monkeypatch.setattr(slurm, "states", lambda names: {})


def test_arrays_are_as_long_as_slurm_takes(at_once, tmp_path, monkeypatch):
    sizes = []

    def submit(folder, name, count, *rest):
        sizes.append(count)
        return run_at_once(folder, name, count, *rest)

    monkeypatch.setattr(slurm, "submit", submit)
    monkeypatch.setattr(slurm, "call", lambda *_: "MaxArraySize            = 4\n")
    settings = RunSettings(out=tmp_path, preset="adhoc", timeout=60.0, jobs="slurm")
    assert run_cases([CASE], 8, settings) == {"ok": 8}
    assert sizes == [3, 3, 2]
    assert {r["cluster"]["job"] for r in read_records(tmp_path)} == {"7_0", "7_1", "7_2"}
    assert not (tmp_path / "jobs").exists()


def test_what_exceeds_a_limit_on_submitted_jobs_goes_in_smaller_arrays(
    at_once, tmp_path, monkeypatch
):
    def submit(folder, name, count, *rest):
        if count > 2:
            raise slurm.SlurmError("sbatch: Job violates accounting/QOS policy (job submit limit)")
        return run_at_once(folder, name, count, *rest)

    monkeypatch.setattr(slurm, "submit", submit)
    monkeypatch.setattr(slurm, "most_tasks", lambda: 1000)
    settings = RunSettings(out=tmp_path, preset="adhoc", timeout=60.0, jobs="slurm")
    assert run_cases([CASE], 5, settings) == {"ok": 5}


def test_a_task_that_is_started_again_after_its_sweep_does_nothing(tmp_path):
    cluster_task.main(tmp_path, 0)
    assert not list(tmp_path.iterdir())
    (tmp_path / "orders.pickle").write_bytes(pickle.dumps((tasks.failing, [])))
    (tmp_path / "0.json").write_text("{}")
    cluster_task.main(tmp_path, 0)
    assert (tmp_path / "0.json").read_text() == "{}"


def test_the_queues_words_for_tasks_are_understood(monkeypatch):
    rows = "a|3|RUNNING|None\na|4-5,7%2|PENDING|Resources\na|N/A|CANCELLED|None\n"
    monkeypatch.setattr(slurm, "call", lambda *_: rows)
    found = slurm.states(["a"])
    assert {task for _, task in found} == {3, 4, 5, 7, slurm.REST}
    assert found["a", 5] == ("PENDING", "Resources")
    assert found["a", slurm.REST].state == "CANCELLED"
