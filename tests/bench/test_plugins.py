"""Problems and methods that the suite has never heard of: by file, by module, by entry point."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from baselines import METHODS, EstimatorMethod, PolicyMethod, as_method
from baselines.unsupported import UNSUPPORTED
from bench import registry
from bench.build import build
from bench.case import Case
from bench.environment import ROOT
from bench.jobs import Job
from bench.records import read_records, write_json
from bench.selection import grid
from bench.worker import fill
from jfbcore.jfb import JFB
from jfbcore.maps import ScaledMap
from jfbcore.policy import HamiltonianPolicy
from jfbcore.solvers import Picard
from tests.bench import outside
from tests.bench.helpers import record_path, run_cli, stale_reasons, unexplained_nulls


@pytest.fixture
def di(tmp_path):
    return outside.write(tmp_path, "di.py", outside.DOUBLE_INTEGRATOR)


@pytest.fixture
def mine(tmp_path):
    return outside.write(tmp_path, "mine.py", outside.METHODS)


@pytest.fixture
def installed(tmp_path, monkeypatch):
    folder = tmp_path / "site"
    folder.mkdir()
    outside.install(folder)
    monkeypatch.syspath_prepend(folder)
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "swarm_extras"]:
        del sys.modules[name]


def case_of(problem, gradient="jfb", **changes) -> Case:
    base = Case(problem=str(problem), n_agents=2, gradient=str(gradient), batch_size=3, n_steps=4)
    return replace(base, **changes)


class TestFiles:
    def test_a_problem_and_a_method_from_files_are_built(self, di, mine):
        policy = build(case_of(f"{di}:DoubleIntegrator", f"{mine}:quarter"), seed=0)
        assert isinstance(policy, HamiltonianPolicy)
        assert policy.problem.name == "double-integrator"
        assert (policy.problem.n_agents, policy.problem.n_steps) == (2, 4)
        assert policy.gradient.share == 0.25

    @pytest.mark.parametrize(
        ("attribute", "kind"),
        [
            ("Blend", EstimatorMethod),
            ("quarter", EstimatorMethod),
            ("method", EstimatorMethod),
            ("Linear", PolicyMethod),
        ],
    )
    def test_what_may_stand_for_a_method(self, mine, attribute, kind):
        assert isinstance(registry.method(f"{mine}:{attribute}"), kind)

    def test_a_path_is_relative_to_where_the_caller_is(self, di, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        case = case_of("di.py:DoubleIntegrator")
        assert case == case_of(f"{di}:DoubleIntegrator")
        monkeypatch.chdir("/")
        assert build(case, 0).problem.name == "double-integrator"
        assert pickle.loads(pickle.dumps(case)) == case

    def test_no_path_of_this_machine_is_in_an_id_or_a_record(self, di, mine, tmp_path):
        case = case_of(f"{di}:DoubleIntegrator", f"{mine}:Blend")
        assert case.id == "di.DoubleIntegrator-n2-mine.Blend-scaled-picard-max500-b3-t4-float32-cpu"
        content = case.to_dict(0)
        assert content["problem"] == "di.py:DoubleIntegrator"
        assert content["gradient"] == "mine.py:Blend"
        assert str(tmp_path) not in json.dumps([content, case.from_outside])
        assert case.from_outside == {
            "problem": {
                "name": "di.py:DoubleIntegrator",
                "source": "file di.py",
                "sha256": hashlib.sha256(di.read_bytes()).hexdigest(),
            },
            "gradient": {
                "name": "mine.py:Blend",
                "source": "file mine.py",
                "sha256": hashlib.sha256(mine.read_bytes()).hexdigest(),
            },
        }

    def test_a_method_without_an_inner_problem_has_none_in_its_records(self, di, mine):
        case = case_of(f"{di}:DoubleIntegrator", f"{mine}:Linear", map="plain")
        assert case.id == "di.DoubleIntegrator-n2-mine.Linear-b3-t4-float32-cpu"
        assert case.to_dict(0)["map"] is None
        assert set(case.from_outside) == {"problem", "gradient"}

    def test_a_policy_that_names_no_generator_is_seeded_all_the_same(self, di, mine):
        case = case_of(f"{di}:DoubleIntegrator", f"{mine}:Linear")
        one, two, other = (build(case, seed).gain.weight for seed in (0, 0, 1))
        assert one.equal(two)
        assert not one.equal(other)

    def test_a_record_of_another_version_of_the_file_is_not_this_case(self, di, tmp_path):
        case = case_of(f"{di}:DoubleIntegrator")
        record = {"schema_version": 1, "status": "ok", "case": case.to_dict(0)}
        record["plugins"] = case.from_outside
        write_json(record_path(tmp_path, case, 0), record)
        assert Job(case=case).finished(tmp_path) == record
        record["plugins"]["problem"]["sha256"] = "0" * 64
        write_json(record_path(tmp_path, case, 0), record)
        assert Job(case=case).finished(tmp_path) is None

    def test_two_files_of_one_name_are_not_mixed_up(self, di, tmp_path):
        (tmp_path / "other").mkdir()
        other = outside.write(tmp_path / "other", "di.py", outside.DOUBLE_INTEGRATOR)
        with pytest.raises(ValueError, match="rename one of the files"):
            grid([f"{di}:DoubleIntegrator", f"{other}:DoubleIntegrator"])

    def test_a_measured_record_explains_its_nulls(self, di, mine, tmp_path):
        from bench.records import empty_record

        for gradient in (f"{mine}:Blend", f"{mine}:Linear"):
            case = case_of(f"{di}:DoubleIntegrator", gradient, train_steps=1)
            record = empty_record(case, 0)
            fill(record, case, 0)
            assert record["status"] == "ok", record["reason"]
            assert record["final"]["optimality_gap"] is None
            reason = record["null_reasons"]["final.optimality_gap"]
            assert "no reference for double-integrator" in reason
            # The runner fills in the rest.
            for name in ("threads", "fingerprint"):
                record["null_reasons"].pop(name)
            missing = {name.partition(".")[0] for name in unexplained_nulls(record)}
            assert missing <= {"threads", "git", "machine", "fingerprint"}
            assert not stale_reasons(record)


class TestEntryPoints:
    def test_every_group_is_found(self, installed):
        case = case_of("double-integrator", "blend", map="careful", solver="patient")
        policy = build(case, 0)
        assert policy.problem.name == "double-integrator"
        assert type(policy.gradient).__name__ == "Blend"
        assert policy.fixed_point_map == ScaledMap(damping=0.9)
        assert isinstance(policy.solver, Picard)
        assert case.id.startswith("double-integrator-n2-blend-careful-patient-")
        described = case.from_outside
        assert set(described) == {"problem", "gradient", "map", "solver"}
        assert described["problem"] == {
            "name": "double-integrator",
            "source": "entry point swarm_extras.problems:DoubleIntegrator of swarm-extras 1.2",
            "sha256": hashlib.sha256(outside.DOUBLE_INTEGRATOR.encode()).hexdigest(),
        }

    def test_a_module_needs_no_entry_point(self, installed):
        case = case_of("swarm_extras.problems:DoubleIntegrator", "swarm_extras.methods:quarter")
        assert build(case, 0).gradient.share == 0.25
        assert case.id.startswith("swarm_extras.problems.DoubleIntegrator-n2-swarm_extras.methods.")

    def test_they_are_listed_and_a_broken_one_says_so(self, installed, capsys):
        code, out, _ = run_cli(capsys, "list", "problems")
        assert code == 0
        lines = dict(line.split(None, 1) for line in out.splitlines())
        assert lines["double-integrator"] == (
            "Points that are pushed to the origin at a cost of exp(|u|^2 / 2)"
        )
        assert "cannot be imported: ModuleNotFoundError" in lines["broken"]

    def test_a_whole_run_in_processes_of_their_own(self, installed, tmp_path):
        """The worker finds what is on this process's path, relative entries of it included."""
        order = ["run", "--problem", "double-integrator", "--gradient", "blend,direct"]
        order += ["--batch", "2", "--steps-per-rollout", "3", "--threads", "1"]
        done = subprocess.run(
            [sys.executable, "-m", "bench", *order, "--out", str(tmp_path / "X")],
            cwd=installed.parent,
            env=os.environ | {"PYTHONPATH": f"site{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("2 ok")
        records = list(read_records(tmp_path / "X"))
        assert [record["status"] for record in records] == ["ok", "ok"]
        assert all(record["plugins"]["problem"]["sha256"] for record in records)
        assert str(tmp_path) not in json.dumps(records)


def in_a_file(content: str, tmp_path) -> str:
    return f"{outside.write(tmp_path, 'bad.py', content)}:Thing"


class TestErrors:
    @pytest.mark.parametrize(
        ("content", "words"),
        [
            ("def Thing(:", ["cannot be loaded", "SyntaxError", "line 1"]),
            ("import no_such_package", ["ModuleNotFoundError", "no_such_package"]),
            ("raise SystemExit(3)", ["SystemExit"]),
            ("Thin = 1", ["has no 'Thing'", "did you mean Thin?"]),
            ("Thing = 3", ["must be a subclass of jfbcore.problems.Problem", "got 3"]),
            ("class Thing: pass", ["must be a subclass of jfbcore.problems.Problem"]),
        ],
    )
    @pytest.mark.parametrize("verb", ["train", "run"])
    def test_a_file_that_is_no_problem_is_one_line(self, content, words, verb, tmp_path, capsys):
        name = in_a_file(content, tmp_path)
        arguments = [verb, "--problem", name, "--gradient", "jfb"]
        code, out, err = run_cli(capsys, *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1), err
        for word in ["`problem`", *words]:
            assert word in err

    def test_a_problem_that_is_not_whole_is_one_line(self, tmp_path, capsys):
        name = in_a_file(
            "from jfbcore.problems import Problem\nclass Thing(Problem): pass", tmp_path
        )
        code, out, err = run_cli(capsys, "train", "--problem", name, "--gradient", "jfb")
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert "abstract" in err

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (
                ["run", "--problem", "quadroto"],
                ["'quadroto'", "did you mean quadrotor or rotor-quadrotor?", "file.py"],
            ),
            (["run", "--problem", "quadrotor", "--gradient", "jfb,imp"], ["gradient", "'imp'"]),
            (["run", "--problem", "quadrotor", "--agents", "0"], ["agents", "0", ">= 1"]),
            (["run", "--problem", "quadrotor", "--agents", "1,x"], ["agents", "'x'", "integer"]),
            (["run", "--problem", "quadrotor", "--preset", "smoke"], ["preset", "smoke"]),
            (["run", "--agents", "3"], ["agents", "--problem"]),
            (
                ["run", "--problem", "quadrotor", "--iterations", "5", "--tolerance", "0.1"],
                ["tolerance", "0.1", "iterations"],
            ),
            (["run", "--problem", "quadrotor", "--filter", "n_agents=2"], ["filter", "the grid"]),
            (
                ["train", "--problem", "nowhere.py:X", "--gradient", "jfb"],
                ["nowhere.py", "No such"],
            ),
            (["train", "--problem", "no.where:X", "--gradient", "jfb"], ["no.where", "imported"]),
            (["train", "--problem", "quadrotor"], ["--gradient", "required"]),
            (["list", "problem"], ["'problem'", "problems", "gradients", "presets"]),
            (["list", "maps", "--preset", "smoke"], ["preset", "maps"]),
            (["check", "jbf"], ["'jbf'", "did you mean jfb?"]),
            (["check", "quadrotor", "--problem", "bicycle"], ["quadrotor is a problem"]),
            (["check", "os:path"], ["neither a problem", "nor a method"]),
            (["check", "plain"], ["'plain'", "problem or a method"]),
        ],
    )
    def test_exits_2_with_one_line(self, arguments, words, capsys):
        code, out, err = run_cli(capsys, *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1), err
        for word in words:
            assert word in err

    def test_what_is_no_method_is_a_type_error(self):
        for wrong in ("jfb", None, 3, dict):
            with pytest.raises(TypeError, match="a method must be"):
                as_method(wrong)


class TestMethods:
    def test_a_method_stands_for_itself(self):
        assert as_method(METHODS["jfb"]) is METHODS["jfb"]
        assert as_method(JFB) == as_method(JFB()) == METHODS["jfb"]

    def test_what_the_field_has_besides_is_listed_with_its_reason(self, capsys):
        _, out, _ = run_cli(capsys, "list", "gradients", "--all")
        page = (ROOT / "docs" / "field.md").read_text()
        for name in UNSUPPORTED:
            assert re.search(rf"^{re.escape(name)} +unsupported: .{{10,}}", out, re.MULTILINE)
            assert f"| {name} |" in page
        _, plain, _ = run_cli(capsys, "list", "gradients")
        assert out.count("\n") == plain.count("\n") + len(UNSUPPORTED)
        assert "unsupported" not in plain

    @pytest.mark.parametrize("name", METHODS)
    def test_the_page_on_the_field_has_every_method(self, name):
        rows = re.findall(r"^\| (`[^|]*`) \|", (ROOT / "docs" / "field.md").read_text(), re.M)
        names = []
        for row in rows:  # `jfb`, `-3`, `-5` stand for jfb, jfb-3 and jfb-5
            first, *others = re.findall(r"`([^`]+)`", row)
            names += [first, *(first + other if other[0] == "-" else other for other in others)]
        assert name in names

    @pytest.mark.parametrize("arguments", [("problems", "--all"), ("--all",)])
    def test_all_is_for_gradients(self, arguments, capsys):
        code, _, err = run_cli(capsys, "list", *arguments)
        assert (code, err.count("\n")) == (2, 1)
        assert "`all` is for listing gradients" in err

    @pytest.mark.parametrize("what", ["problems", "gradients", "maps", "solvers", "presets"])
    def test_everything_is_listed_with_a_line(self, what, capsys):
        code, out, _ = run_cli(capsys, "list", what)
        assert code == 0
        for line in out.splitlines():
            assert len(line.split(None, 1)[1]) > 10
        names = [line.split()[0] for line in out.splitlines()]
        own = {kind.plural: kind.names for kind in registry.KINDS}
        assert set(names) >= set(own.get(what, ("smoke", "gate")))


class TestGrid:
    def test_every_combination_once(self):
        cases = grid(["quadrotor", "bicycle"], agents=[1, 6], gradients=["jfb", "direct"])
        assert len(cases) == len({case.id for case in cases}) == 8
        assert {(c.n_steps, c.batch_size) for c in cases} == {(160, 50), (60, 100)}

    def test_a_method_without_an_inner_problem_comes_once(self):
        cases = grid(["quadrotor"], gradients=["jfb", "direct"], maps=["plain", "scaled"])
        assert [case.gradient for case in cases].count("direct") == 1
        assert len(cases) == 3

    def test_exact_iterations(self):
        cases = grid(["quadrotor"], iterations=[5, 50])
        assert [(case.max_iterations, case.tolerance) for case in cases] == [(5, None), (50, None)]

    def test_the_time_steps_of_a_problem_from_outside_are_its_own(self, di):
        (case,) = grid([f"{di}:DoubleIntegrator"])
        assert (case.n_steps, case.batch_size) == (20, 50)


class TestShows:
    """What the command line promises to a stranger with one file."""

    @pytest.mark.slow
    def test_train_run_and_report(self, di, mine, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        train = ["train", "--problem", "di.py:DoubleIntegrator", "--gradient", "mine.py:Blend"]
        code, out, err = run_cli(capsys, *train, "--steps", "2", "--batch", "4", "--threads", "1")
        assert code == 0, err
        assert json.loads(out.splitlines()[-1])["status"] == "ok"
        run = ["run", "--problem", "di.py:DoubleIntegrator", "--batch", "4", "--threads", "1"]
        methods = "jfb,implicit,unrolled,direct,mine.py:Blend,mine.py:Linear"
        run += ["--gradient", methods, "--train-steps", "2", "--out", "X"]
        code, out, err = run_cli(capsys, *run)
        assert (code, out) == (0, "6 ok; records in X\n"), err
        code, out, err = run_cli(capsys, *run, "--resume")
        assert (code, out) == (0, "nothing to do; records in X\n"), err
        code, out, err = run_cli(capsys, "report", "X")
        assert code == 0, err
        page = (tmp_path / "X" / "index.html").read_text(encoding="utf-8")
        assert "mine.py:Blend" in page
        assert str(tmp_path) not in page
