"""The command line's contract: exit codes, one line per error, the last line of `train`."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import cli
from bench.environment import ROOT
from tests.bench.helpers import run_cli

COSTS = {"loss", "running_cost", "terminal_cost", "evaluation_cost", "optimality_gap"}

#: a training run of milliseconds
TINY = (
    *("train", "--problem", "consumption", "--agents", "1", "--gradient", "jfb"),
    *("--batch", "2", "--horizon-steps", "3", "--threads", "1"),
)


def python(*arguments: str, **kwargs: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
        **kwargs,  # type: ignore[call-overload]
    )


@pytest.fixture
def threads():
    """`train` sets torch's threads for its process, which here is the test's."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def tiny(**changes: str) -> list[str]:
    """TINY with options replaced or added."""
    options = dict(zip(TINY[1::2], TINY[2::2], strict=True))
    options |= {f"--{name.replace('_', '-')}": value for name, value in changes.items()}
    return ["train", *(part for pair in options.items() for part in pair)]


def test_what_is_not_installed_is_named(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    code, out, err = run_cli(capsys, "predict", "--problem", "quadrotor")
    assert (code, out) == (2, "")
    assert "needs tqdm, which is not installed" in err


def test_the_verbs_of_the_contract_are_there():
    assert set(cli.VERBS) >= {"list", "run", "train", "reference", "verify", "report", "gate"}


class TestHelp:
    @pytest.mark.parametrize("verb", cli.VERBS)
    def test_every_verb_has_help(self, verb, capsys):
        code, out, err = run_cli(capsys, verb, "--help")
        assert code == 0
        assert out.startswith(f"usage: python -m bench {verb}")
        assert err == ""

    def test_the_program_has_help_that_lists_the_verbs(self, capsys):
        code, out, _ = run_cli(capsys, "--help")
        assert code == 0
        for verb in cli.VERBS:
            assert re.search(rf"^ +{verb}\b", out, re.MULTILINE)


#: arguments, and what the one line of the answer must contain: argument, value, what is allowed
BAD = [
    ([], ["VERB"]),
    (["fly"], ["'fly'", "list", "run", "train", "report"]),
    (["list", "--preset", "night"], ["preset", "'night'", "smoke", "cpu", "gpu", "released"]),
    (["list", "--device", "tpu"], ["--device", "'tpu'", "cpu", "cuda"]),
    (["list", "--filter", "problem"], ["filter", "'problem'", "KEY=VALUE"]),
    (["list", "--filter", "agents=1"], ["filter", "'agents'", "n_agents"]),
    (["list", "--filter", "n_agents=7"], ["filter", "n_agents=7"]),
    (["list", "--nonsense"], ["--nonsense"]),
    (["run", "--preset", "night"], ["preset", "'night'", "smoke"]),
    (["run", "--filter", "problem=pendulum"], ["filter", "problem=pendulum"]),
    (["run", "--seeds", "0"], ["seeds", "0", ">= 1"]),
    (["run", "--seeds", "-1"], ["seeds", "-1", ">= 1"]),
    (["run", "--seeds", "1.5"], ["seeds", "'1.5'", "integer"]),
    (["run", "--timeout", "0"], ["timeout", "0", "> 0"]),
    (["run", "--timeout", "-3"], ["timeout", "-3", "> 0"]),
    (["run", "--timeout", "nan"], ["timeout", "nan", "finite"]),
    (["run", "--timeout", "soon"], ["timeout", "'soon'", "number"]),
    (["run", "--timeout", "1e7"], ["timeout", "1e+07", "at most 1,000,000 s"]),
    (["run", "--threads", "0"], ["threads", "0", ">= 1"]),
    (["run", "--memory-limit", "0"], ["memory-limit", "0", "> 0"]),
    (["run", "--memory-limit", "-1"], ["memory-limit", "-1", "> 0"]),
    (["run", "--memory-limit", "1e300"], ["memory-limit", "1e+300", "at most", "GiB"]),
    (["run", "--jobs", "slurm", "--time-limit", "5"], ["time-limit", "5", "slurm", "local"]),
    (["run", "--jobs", "slurm", "--part", "1/2"], ["part", "1/2", "slurm", "local"]),
    (["run", "--jobs", "cloud"], ["jobs", "'cloud'", "local", "slurm"]),
    (["train"], ["--problem", "--agents", "--gradient", "required"]),
    (
        tiny(problem="pendulum"),
        ["problem", "'pendulum'", "quadrotor", "bicycle", "consumption"],
    ),
    (tiny(gradient="jbf"), ["gradient", "'jbf'", "jfb", "unrolled", "implicit"]),
    (tiny(map="scale"), ["map", "'scale'", "plain", "scaled", "newton"]),
    (tiny(solver="broyden"), ["solver", "'broyden'", "picard", "anderson", "newton"]),
    (tiny(agents="0"), ["agents", "0", ">= 1"]),
    (tiny(agents="-1"), ["agents", "-1", ">= 1"]),
    (tiny(agents="1.5"), ["agents", "'1.5'", "integer"]),
    (tiny(agents="many"), ["agents", "'many'", "integer"]),
    (tiny(iterations="0"), ["iterations", "0", ">= 1"]),
    (tiny(iterations="-5"), ["iterations", "-5", ">= 1"]),
    (tiny(iterations="5e2"), ["iterations", "'5e2'", "integer"]),
    (tiny(batch="0"), ["batch", "0", ">= 1"]),
    (tiny(batch="-4"), ["batch", "-4", ">= 1"]),
    (tiny(batch="a"), ["batch", "'a'", "integer"]),
    (tiny(horizon_steps="0"), ["steps", "0", ">= 1"]),
    (tiny(steps="0"), ["steps", "0", ">= 1"]),
    (tiny(steps="-1"), ["steps", "-1", ">= 1"]),
    (tiny(steps="ten"), ["steps", "'ten'", "integer"]),
    (tiny(time_limit="0"), ["time_limit", "0", "> 0"]),
    (tiny(time_limit="-1"), ["time_limit", "-1", "> 0"]),
    (tiny(time_limit="inf"), ["time_limit", "inf", "finite"]),
    (tiny(steps="1", time_limit="1"), ["--steps", "--time-limit"]),
    (tiny(tolerance="0"), ["tolerance", "0", "> 0"]),
    (tiny(tolerance="nan"), ["tolerance", "nan", "finite"]),
    (tiny(gradient="direct", solver="picard"), ["solver", "picard", "direct", "no inner problem"]),
    (tiny(gradient="direct", iterations="5"), ["iterations", "5", "direct"]),
    (tiny(gradient="cvxpylayers", map="plain"), ["map", "plain", "cvxpylayers"]),
    (tiny(iterations="5", tolerance="0.1"), ["tolerance", "0.1", "iterations", "5"]),
    (tiny(step_size="-1"), ["step_size", "-1", "> 0"]),
    (tiny(learning_rate="0"), ["learning_rate", "0", "> 0"]),
    (tiny(schedule="linear"), ["schedule", "'linear'", "cosine", "constant"]),
    (tiny(seed="-1"), ["seed", "-1", ">= 0"]),
    (tiny(seed="x"), ["seed", "'x'", "integer"]),
    (tiny(threads="0"), ["threads", "0", ">= 1"]),
    (tiny(dtype="float16"), ["dtype", "'float16'", "float32", "float64"]),
    (tiny(device="tpu"), ["device", "'tpu'", "cpu", "cuda"]),
    (tiny(variant="paper"), ["variant", "'paper'", "default", "concave", "released"]),
    (tiny(problem="quadrotor", variant="concave"), ["variant", "'concave'", "default"]),
    (tiny(problem="bicycle", gradient="cvxpylayers"), ["cvxpylayers", "bicycle", "concave"]),
    (tiny(problem="bicycle", solver="closed-form"), ["`solver` closed-form", "bicycle"]),
    (
        tiny(problem="consumption", network="shared"),
        ["`network` shared", "no identical agents"],
    ),
    (tiny(problem="quadrotor", network="wide"), ["network", "'wide'", "dense", "indexed"]),
    (tiny(step_size="0.1", map="scaled", steps="1"), ["step_size", "scaled", "plain"]),
    ([*tiny(), "--resume"], ["resume", "--checkpoint"]),
    (tiny(checkpoint="/nowhere/at/all.pt"), ["checkpoint", "/nowhere/at/all.pt"]),
    (["report"], ["DIR", "required"]),
    (["report", "/nowhere"], ["/nowhere", "not a directory"]),
    (["report", "/nowhere", "/nor/here"], ["/nowhere", "not a directory"]),
    (tiny(seed=str(10**20)), ["seed", "between", str(10**20)]),
    (["reference"], ["--problem", "required"]),
    (["reference", "--problem", "pendulum"], ["problem", "'pendulum'", "quadrotor"]),
    (["reference", "--problem", "bicycle", "--agents", "0"], ["agents", "0", ">= 1"]),
    (["reference", "--problem", "bicycle", "--agents", "two"], ["agents", "'two'", "int"]),
    (["reference", "--problem", "bicycle", "--states", "0"], ["states", "0"]),
    (["reference", "--problem", "bicycle", "--starts", "0"], ["starts", "0", ">= 1"]),
    (
        ["reference", "--problem", "bicycle", "--method", "best-response", "--starts", "3"],
        ["--starts", "3", "best-response"],
    ),
    (
        ["reference", "--problem", "bicycle", "--method", "magic"],
        ["method", "'magic'", "ipopt"],
    ),
    (["verify", "--threads", "0"], ["threads", "0", ">= 1"]),
    (["verify", "--threads", "two"], ["threads", "'two'", "integer"]),
    (["verify", "--time-limit", "-1"], ["time_limit", "-1", ">= 0"]),
    (["verify", "--part", "3/2"], ["part", "'3/2'", "I/N"]),
    (["verify", "--part", "one"], ["part", "'one'", "I/N"]),
    (["verify", "--quick", "--part", "1/2"], ["part", "'1/2'", "1/1"]),
    (["verify", "--time-limit", "soon"], ["time-limit", "'soon'", "number"]),
    (["predict", "--problem", "pendulum"], ["problem", "'pendulum'", "quadrotor"]),
    (["predict", "--agents", "0"], ["agents", "0", ">= 1"]),
    (["predict", "--gradients", "jbf"], ["gradients", "'jbf'", "jfb", "unrolled"]),
    (["predict", "--memory", "0"], ["memory", "0", "> 0"]),
    (["predict", "--batch", "0"], ["batch", "0", ">= 1"]),
]


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "needed"),
        BAD,
        ids=[" ".join(arguments).replace(" ".join(TINY), "train") for arguments, _ in BAD],
    )
    def test_exits_2_with_one_line_that_says_what_is_wrong(
        self, arguments, needed, capsys, threads, tmp_path, monkeypatch
    ):
        monkeypatch.setattr("bench.environment.ROOT", tmp_path)  # nothing is measured, or stays
        code, out, err = run_cli(capsys, *arguments)
        assert code == 2
        assert out == ""
        assert err.count("\n") == 1, err
        assert err.endswith("\n")
        for word in needed:
            assert word in err

    @pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
    @pytest.mark.parametrize(
        "arguments", [tiny(device="cuda"), ["run", "--device", "cuda"], ["run", "--preset", "gpu"]]
    )
    def test_cuda_without_a_gpu(self, arguments, capsys, threads, tmp_path):
        out_folder = [] if arguments[0] == "train" else ["--out", tmp_path]
        code, out, err = run_cli(capsys, *arguments, *out_folder)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "device" in err
        assert "cuda" in err
        assert not list(tmp_path.iterdir())

    def test_a_folder_that_cannot_be_written(self, capsys, tmp_path):
        """Below a file, which refuses even root."""
        (tmp_path / "file").touch()
        code, out, err = run_cli(capsys, "run", "--out", tmp_path / "file" / "run")
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "out" in err
        assert str(tmp_path / "file" / "run") in err

    def test_a_report_that_cannot_be_written(self, capsys, tmp_path, record_folder):
        (tmp_path / "file").touch()
        code, out, err = run_cli(capsys, "report", record_folder, "--out", tmp_path / "file" / "r")
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert str(tmp_path / "file") in err

    def test_a_report_of_a_folder_without_records(self, capsys, tmp_path):
        code, out, err = run_cli(capsys, "report", tmp_path)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert str(tmp_path) in err

    @pytest.mark.parametrize(
        ("verb", "answer", "expected"),
        [
            ("gate", "print('worse') or 1", 1),
            ("gate", "print('fine') or 0", 0),
            ("gate", "leave()", 141),
            ("list", "leave()", 0),
        ],
    )
    def test_a_reader_that_leaves_does_not_change_the_verdict(self, verb, answer, expected):
        code = f"""if True:
            import sys
            from bench import cli
            from bench.commands import {verb}
            def leave():
                raise BrokenPipeError
            {verb}.run = lambda args: {answer}
            input()
            sys.exit(cli.main([{verb!r}]))"""
        # An empty PYTHONUNBUFFERED: what is printed meets the closed pipe at the end.
        with subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONUNBUFFERED": ""},
        ) as process:  # fmt: skip
            process.stdout.close()
            process.stdin.write(b"\n")
            process.stdin.close()
            assert process.wait(60) == expected

    def test_a_full_disk(self, capsys, tmp_path, monkeypatch):
        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", full)
        code, out, err = run_cli(capsys, "run", "--filter", "n_agents=1", "--out", tmp_path / "run")
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "No space left on device" in err
        assert "None" not in err
        assert [p.name for p in (tmp_path / "run").rglob("*") if p.is_file()] == [".lock"]


@pytest.fixture
def record_folder(tmp_path):
    """A run directory with one record, of a case that was never run."""
    from bench.jobs import Job
    from bench.presets import select
    from bench.records import empty_record, explain_nulls, write_json

    case = select("smoke", ["n_agents=1"])[0]
    record = empty_record(case, 0) | {"status": "crashed", "reason": "made up"}
    explain_nulls(record, "made up")
    write_json(Job(case=case).path(tmp_path / "run"), record)
    return tmp_path / "run"


class TestList:
    def test_a_preset_is_described_with_its_size_and_how_long_it_takes(self, capsys):
        from bench.presets import PRESETS

        code, out, _ = run_cli(capsys, "list", "presets")
        lines = {line.split()[0]: line for line in out.splitlines()}
        assert code == 0
        assert set(lines) == set(PRESETS)
        for name, line in lines.items():
            assert f"{len(list(PRESETS[name]()))} cases" in line
            assert re.search("minutes|night|hours|not timed", line)

    def test_prints_ids_one_per_line_and_imports_no_torch(self):
        """A listing is read by eye and by shell completion: it may not take seconds."""
        code = (
            "import sys; from bench.cli import main; code = main(['list', '--filter', "
            "'problem=bicycle']); print(code, 'torch' in sys.modules, file=sys.stderr)"
        )
        done = python("-c", code)
        assert done.stderr.split() == ["0", "False"]
        lines = done.stdout.splitlines()
        assert lines
        assert all(line.startswith("bicycle-") for line in lines)

    def test_the_reader_may_stop_reading(self):
        """`list | head -1` is no error."""
        done = subprocess.run(
            f"{shlex.quote(sys.executable)} -m bench list --preset cpu | head -1",
            cwd=ROOT,
            shell=True,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.stdout.count("\n") == 1
        assert done.stderr == ""

    def test_a_filter_may_be_given_again(self, capsys):
        _, together, _ = run_cli(capsys, "list", "--filter", "n_agents=1", "gradient=jfb")
        again = ("--filter", "n_agents=1", "--filter", "gradient=jfb")
        code, out, _ = run_cli(capsys, "list", *again)
        assert code == 0
        assert out == together
        assert len(out.splitlines()) > 1

    def test_the_device_of_the_cases_can_be_overridden(self, capsys):
        code, out, _ = run_cli(capsys, "list", "--device", "cuda", "--filter", "n_agents=100")
        assert code == 0
        assert all(line.endswith("-cuda") for line in out.splitlines())


def last_line(out: str) -> dict:
    return json.loads(out.splitlines()[-1])


def without_clock(answer: dict) -> dict:
    return {
        k: v for k, v in answer.items() if k not in ("seconds", "step_seconds", "peak_rss_bytes")
    }


@pytest.mark.usefixtures("threads")
class TestTrain:
    def test_last_line_of_a_process_of_its_own_has_the_schema(self):
        done = python("-m", "bench", *TINY, "--steps", "3", "--seed", "5")
        assert done.returncode == 0
        answer = last_line(done.stdout)
        assert set(answer) >= {
            "final",
            "first",
            "steps",
            "seconds",
            "step_seconds",
            "peak_rss_bytes",
            "seed",
        }
        assert set(answer["final"]) == set(answer["first"]) == COSTS
        for point in (answer["first"], answer["final"]):
            for name in COSTS - {"optimality_gap"}:
                assert isinstance(point[name], float), name
            assert point["evaluation_cost"] == pytest.approx(
                point["running_cost"] + point["terminal_cost"], rel=1e-6
            )
            assert point["optimality_gap"] is None or isinstance(point["optimality_gap"], float)
        assert answer["steps"] == 3
        assert answer["seed"] == 5
        assert set(answer["step_seconds"]) == {"median"}
        assert 0 < answer["step_seconds"]["median"] <= answer["seconds"]
        # torch alone is some 100 MB; nothing this small needs 8 GB
        assert 50e6 < answer["peak_rss_bytes"] < 8e9
        assert done.stderr != ""  # progress

    def test_the_same_seed_gives_the_same_answer_and_another_another(self, capsys):
        answers = []
        for seed in ("3", "3", "4"):
            code, out, _ = run_cli(capsys, *TINY, "--steps", "4", "--seed", seed)
            assert code == 0
            answers.append(without_clock(last_line(out)))
        assert answers[0] == answers[1]
        assert answers[0]["final"] != answers[2]["final"]

    def test_every_gradient_starts_from_the_same_held_out_cost(self, capsys):
        """Same parameters, same 64 states: the first evaluation is the same up to the inner
        tolerance, whatever differentiates the control."""
        first = {}
        for gradient in ("jfb", "jfb-3", "unrolled", "implicit"):
            code, out, _ = run_cli(capsys, *tiny(gradient=gradient, steps="1"))
            assert code == 0
            first[gradient] = last_line(out)["first"]["evaluation_cost"]
        for gradient, cost in first.items():
            assert cost == pytest.approx(first["implicit"], rel=1e-4), gradient

    def test_the_batch_does_not_change_the_held_out_cost(self, capsys):
        costs = []
        for batch in ("2", "3"):
            _, out, _ = run_cli(capsys, *tiny(batch=batch, steps="1"))
            costs.append(last_line(out)["first"]["evaluation_cost"])
        assert costs[0] == costs[1]

    def test_a_time_limit_ends_it(self, capsys):
        code, out, _ = run_cli(capsys, *TINY, "--time-limit", "0.2")
        assert code == 0
        answer = last_line(out)
        assert answer["steps"] >= 1
        assert answer["seconds"] >= 0.2

    def test_exactly_k_iterations(self, capsys):
        code, out, _ = run_cli(capsys, *TINY, "--steps", "1", "--iterations", "2")
        assert code == 0
        assert last_line(out)["steps"] == 1

    def test_a_diverging_run_says_so_and_still_prints_valid_json(self, capsys):
        code, out, err = run_cli(
            capsys,
            *tiny(problem="quadrotor", map="plain", step_size="1e6", iterations="20", steps="30"),
        )
        assert code == 0
        answer = json.loads(out.splitlines()[-1], parse_constant=pytest.fail)
        assert answer["final"]["evaluation_cost"] is None
        assert answer["status"] == "diverged"
        assert "diverged" in err


@pytest.mark.usefixtures("threads")
class TestCheckpoint:
    def test_a_resumed_run_ends_where_an_uninterrupted_one_does(
        self, capsys, tmp_path, monkeypatch
    ):
        """Killed at step 3 of 6 through the progress callback, which follows the checkpoint."""
        from jfbcore.train import Training

        arguments = [*TINY, "--steps", "6", "--checkpoint"]
        _, out, _ = run_cli(capsys, *arguments, tmp_path / "whole.pt")
        whole = last_line(out)

        file = tmp_path / "halves.pt"
        original = Training._train_step

        def stop_after_three(self):
            if self.step == 3:
                self.save(file)
                raise KeyboardInterrupt
            original(self)

        monkeypatch.setattr(Training, "_train_step", stop_after_three)
        code, out, err = run_cli(capsys, *arguments, file)
        assert (code, out) == (130, "")
        assert "interrupted" in err
        monkeypatch.undo()

        code, out, _ = run_cli(capsys, *arguments, file, "--resume")
        assert code == 0
        resumed = last_line(out)
        assert without_clock(resumed) == without_clock(whole)
        assert {p.name for p in tmp_path.iterdir()} == {"whole.pt", "halves.pt"}

    def test_resuming_a_finished_run_changes_nothing(self, capsys, tmp_path):
        arguments = [*TINY, "--steps", "2", "--checkpoint", tmp_path / "run.pt"]
        _, first, _ = run_cli(capsys, *arguments)
        code, second, _ = run_cli(capsys, *arguments, "--resume")
        assert code == 0
        assert without_clock(last_line(second)) == without_clock(last_line(first))

    def test_resuming_without_a_file_starts_anew(self, capsys, tmp_path):
        code, out, _ = run_cli(
            capsys, *TINY, "--steps", "1", "--checkpoint", tmp_path / "new.pt", "--resume"
        )
        assert code == 0
        assert last_line(out)["steps"] == 1
        assert (tmp_path / "new.pt").exists()

    @pytest.mark.parametrize(
        "changes",
        [
            {"learning_rate": "0.1"},
            {"agents": "2"},
            {"problem": "bicycle"},
            {"gradient": "implicit"},
            {"map": "plain"},
            {"horizon_steps": "4"},
            {"iterations": "3"},
        ],
        ids=lambda changes: "-".join(changes),
    )
    def test_the_checkpoint_of_another_run_is_refused(self, changes, capsys, tmp_path):
        file = str(tmp_path / "run.pt")
        run_cli(capsys, *TINY, "--steps", "1", "--checkpoint", file)
        before = Path(file).read_bytes()
        code, out, err = run_cli(capsys, *tiny(steps="1", checkpoint=file, **changes), "--resume")
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert file in err
        assert Path(file).read_bytes() == before

    @pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 torn"])
    def test_an_unreadable_checkpoint_is_refused(self, content, capsys, tmp_path):
        file = tmp_path / "run.pt"
        file.write_bytes(content)
        code, out, err = run_cli(capsys, *TINY, "--steps", "1", "--checkpoint", file, "--resume")
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert str(file) in err
        assert file.read_bytes() == content

    @pytest.mark.parametrize("content", [b"", b"a letter"])
    def test_what_is_no_checkpoint_is_not_overwritten(self, content, capsys, tmp_path):
        file = tmp_path / "letter.pt"
        file.write_bytes(content)
        code, out, err = run_cli(capsys, *TINY, "--steps", "1", "--checkpoint", file)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert str(file) in err
        assert file.read_bytes() == content

    def test_a_finished_run_goes_on_to_more_steps(self, capsys, tmp_path):
        """The recipe's stages stay those of the run that began, and the clock goes on."""
        arguments = [*TINY, "--checkpoint", tmp_path / "run.pt"]
        _, first, _ = run_cli(capsys, *arguments, "--steps", "2")
        code, out, err = run_cli(capsys, *arguments, "--steps", "5", "--resume")
        assert (code, last_line(out)["steps"]) == (0, 5)
        assert last_line(out)["first"] == last_line(first)["first"]
        assert last_line(out)["final"] != last_line(first)["final"]
        code, out, err = run_cli(capsys, *arguments, "--steps", "4", "--resume")
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "at least the 5" in err

    def test_ctrl_c_saves_between_steps_and_says_how_to_go_on(self, capsys, tmp_path, monkeypatch):
        """The command that it prints ends where an uninterrupted run does."""
        from jfbcore.train import Training

        arguments = [*TINY, "--steps", "6", "--checkpoint"]
        _, out, _ = run_cli(capsys, *arguments, tmp_path / "whole.pt")
        whole, original = last_line(out), Training._train_step

        def interrupted(self):
            if self.step == 2:
                signal.raise_signal(signal.SIGINT)
            original(self)

        monkeypatch.setattr(Training, "_train_step", interrupted)
        code, out, err = run_cli(capsys, *arguments, tmp_path / "run.pt")
        assert (code, out) == (130, "")
        assert "saved at step 3" in err
        monkeypatch.undo()
        command = shlex.split(err.partition("continue with: ")[2].splitlines()[0])
        assert command[:3] == ["python", "-m", "bench"]
        code, out, _ = run_cli(capsys, *command[3:])
        assert code == 0
        assert without_clock(last_line(out)) == without_clock(whole)

    def test_a_full_disk_keeps_the_old_checkpoint(self, capsys, tmp_path, monkeypatch):
        file = tmp_path / "run.pt"
        run_cli(capsys, *TINY, "--steps", "1", "--checkpoint", file)
        before = file.read_bytes()

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "replace", full)
        code, out, err = run_cli(capsys, *TINY, "--steps", "1", "--checkpoint", file)
        assert (code, out) == (2, "")
        assert "No space left on device" in err.splitlines()[-1]
        assert "None" not in err.splitlines()[-1]
        assert file.read_bytes() == before
        assert [p.name for p in tmp_path.iterdir()] == [file.name]

    @pytest.mark.parametrize("problem", ["quadrotor", "bicycle", "consumption"])
    @pytest.mark.parametrize("gradient", ["jfb", "direct"])
    def test_a_checkpoint_is_a_policy_for_the_library(self, capsys, tmp_path, problem, gradient):
        """Its cost on the held-out states is the one that training reports, to the last bit."""
        import torch

        import jfbcore as jfb

        arguments = ["train", "--problem", problem, "--agents", "2", "--gradient", gradient,
                     "--batch", "2", "--horizon-steps", "3", "--steps", "2"]  # fmt: skip
        _, out, _ = run_cli(capsys, *arguments, "--checkpoint", tmp_path / "run.pt")
        policy = jfb.load(tmp_path / "run.pt")
        with torch.no_grad():
            cost = jfb.rollout(policy, jfb.held_out_states(policy.problem), warm_start=True).cost
        assert cost.double().mean().item() == last_line(out)["final"]["evaluation_cost"]

    def test_a_folder_is_no_checkpoint_file(self, capsys, tmp_path):
        """Found before training, not when hours of it are to be saved."""
        code, out, err = run_cli(capsys, *TINY, "--steps", "1", "--checkpoint", tmp_path)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert str(tmp_path) in err
        assert list(tmp_path.parent.glob(f".{tmp_path.name}.*")) == []


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate")]
)
def test_out_of_memory_is_one_line(error, capsys, monkeypatch):
    """The second is how torch's allocator on the host says it."""
    from jfbcore.train import Training

    def exhausted(self):
        raise error

    if isinstance(error, RuntimeError):
        error = RuntimeError(f"{error} memory: you tried to allocate 1000000 bytes")
    monkeypatch.setattr(Training, "_train_step", exhausted)
    code, out, err = run_cli(capsys, *TINY, "--steps", "1")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("bench train: error: out of memory: ")


def test_training_ends_with_a_summary_for_readers(capsys):
    _, out, err = run_cli(capsys, *TINY, "--steps", "2")
    final = last_line(out)["final"]
    assert len(out.splitlines()) == 1
    assert f"{final['evaluation_cost']:.5g} after" in err
    assert "2 steps in" in err


def test_a_diverged_training_run_still_answers(capsys):
    """No finite cost and a reference on file: every number is null, and the line is JSON."""
    arguments = ["train", "--problem", "quadrotor", "--agents", "1", "--gradient", "jfb"]
    arguments += ["--map", "plain", "--batch", "2"]
    assert cli.main([*arguments, "--step-size", "1000", "--steps", "1"]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert answer["status"] == "diverged"
    assert answer["final"]["evaluation_cost"] is None
    assert answer["final"]["optimality_gap"] is None
