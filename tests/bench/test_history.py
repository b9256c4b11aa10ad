"""The cases under asv and pytest-benchmark: what is found, what is timed, which numbers result."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import os
import re
import subprocess
import sys
import tomllib

import pytest
import torch

from bench.case import REPEATS
from bench.environment import ROOT
from bench.presets import quick

TIMES = {"benchmarks.Times.time_step", "benchmarks.BackwardTimes.time_backward"}
TRACKED = {
    f"benchmarks.Quantities.track_{name}"
    for name in (
        "peak_live_bytes",
        "saved_bytes",
        "iterations",
        "missed_tolerance",
        "cuda_peak_bytes",
    )
}


_DISCOVER = """
import json, sys
from asv_runner._aux import update_sys_path
from asv_runner.discovery import disc_benchmarks
update_sys_path(sys.argv[1])
names = ("type", "params", "param_names", "version", "timeout", "pretty_name", "unit")
found = {b.name: {name: getattr(b, name) for name in names} for b in disc_benchmarks(sys.argv[1])}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def discovered():
    """What asv's own discovery finds, in a process of its own: it changes the import path."""
    if importlib.util.find_spec("asv_runner") is None:
        pytest.skip("asv is not installed")
    folder = str(ROOT / "bench" / "history")
    ran = subprocess.run(
        [sys.executable, "-c", _DISCOVER, folder],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(ran.stdout)


def test_exactly_the_benchmarks_meant_are_found(discovered):
    assert set(discovered) == TIMES | TRACKED


def test_every_benchmark_runs_the_quick_cases_and_says_its_version(discovered):
    from bench.history import benchmarks

    values = [list(map(repr, some)) for some in benchmarks.PARAMETERS.values()]
    for name, found in discovered.items():
        assert found["params"] == values
        assert found["param_names"] == ["problem", "agents", "method", "map", "mode"]
        assert found["version"] == ("4" if name in TIMES else "3")
        assert found["pretty_name"]
        assert found["unit"] != "bytes", "asv would round it to three digits"
        assert found["timeout"] > 60, "asv's default of 60 s is too short for the larger cases"


def test_the_published_history_has_ten_commits_and_no_hosts_name():
    paths = list((ROOT / "reports" / "asv").glob("*/*-*.json"))
    if not paths:
        pytest.skip("a source distribution has no history")
    results = [json.loads(path.read_text()) for path in paths]
    assert len({result["commit_hash"] for result in results}) >= 10
    assert {result["params"]["machine"] for result in results} == {"cpu"}
    for result in results:
        assert set(result["results"]) <= TRACKED  # counts: times are of one machine


def test_times_are_sampled_by_asv_and_counts_are_not(discovered):
    assert {found["type"] for name, found in discovered.items() if name in TIMES} == {"time"}
    assert {found["type"] for name, found in discovered.items() if name in TRACKED} == {"track"}


def test_the_cases_tracked_are_the_quick_ones():
    from bench.history import benchmarks

    cases = list(quick())
    assert list(benchmarks.CASES.values()) == cases  # no two with the same parameters
    combinations = set(itertools.product(*benchmarks.PARAMETERS.values()))
    assert {benchmarks.key(case) for case in cases} <= combinations
    for value in itertools.chain(*benchmarks.PARAMETERS.values()):
        assert any(value in benchmarks.key(case) for case in cases), f"{value} has no case"


_ABSENT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""

_ONE_CASE = """
from bench.history import benchmarks
name = ("consumption", 1, "direct", "scaled", "to tolerance")
benchmarks.CASES = {name: benchmarks.CASES[name]}
record = benchmarks.Quantities().setup_cache()[name]
print(record["status"], record["reason"])
"""


def test_what_asv_installs_is_enough_to_measure(tmp_path):
    """Its environment holds what asv.conf.json names, and not the extra that the reports need."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    installs = json.loads((ROOT / "asv.conf.json").read_text())["install_command"]
    words = set(re.findall(r"[\w-]+", " ".join(installs)))
    named = words.union(*(map(_name, extras[extra]) for extra in extras if extra in words))
    lacking = {_name(line) for extra in ("bench", "reference") for line in extras[extra]}
    absent = {{"nvidia-ml-py": "pynvml", "pillow": "PIL"}.get(x, x) for x in lacking - named}
    absent -= {"pandas"}  # torch asks for it in a way that such a hook cannot answer
    (tmp_path / "sitecustomize.py").write_text(_ABSENT.format(names=absent))
    ran = subprocess.run(
        [sys.executable, "-c", _ONE_CASE],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert ran.stdout == "ok None\n", ran.stderr[-2000:]


def _name(requirement: str) -> str:
    return re.split(r"[\[<>=]", requirement)[0]


@pytest.mark.slow
def test_pytest_benchmark_times_a_case_and_notes_its_numbers(tmp_path):
    """In a process of its own, as its users start it."""
    from bench.measure import Step, measure_memory
    from bench.presets import smoke

    case = next(case for case in smoke() if (case.problem, case.gradient) == ("bicycle", "direct"))
    out = tmp_path / "found.json"
    arguments = ["bench", "--benchmark-only", f"--benchmark-json={out}", "-p", "no:cacheprovider"]
    # A worker of pytest-xdist would hand on that it is one, and then nothing is timed.
    alone = {name: value for name, value in os.environ.items() if "XDIST" not in name}
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *arguments, "-k", case.id],
        cwd=ROOT, env=alone, check=True, capture_output=True, text=True,
    )  # fmt: skip
    (found,) = json.loads(out.read_text())["benchmarks"]
    assert case.id in found["name"]
    assert found["group"].startswith("bicycle")
    assert found["stats"]["rounds"] == REPEATS
    body = measure_memory(Step(case))
    for name in ("saved_tensor_bytes", "peak_live_tensor_bytes"):
        assert found["extra_info"][name] == body[name]
        assert f" {body[name]:,d}" in ran.stdout
    assert found["extra_info"]["residual"] is found["extra_info"]["iterations"] is None
    assert found["extra_info"]["gradient"] == "direct"


def test_a_commit_without_a_case_has_no_number_for_it(monkeypatch):
    """And none of another case in its place."""
    from bench.history import benchmarks

    monkeypatch.setattr(benchmarks, "CASES", {})
    assert benchmarks.Quantities().setup_cache() == {}
    for setup in (
        lambda: benchmarks.Times().setup("quadrotor", 1, "jfb", "scaled", "to tolerance"),
        lambda: benchmarks.Quantities().setup({}, "quadrotor", 1, "jfb", "scaled", "to tolerance"),
    ):
        with pytest.raises(NotImplementedError, match="no case"):
            setup()


def test_a_residual_below_its_tolerance_is_as_good_as_any_other():
    from bench.build import build_problem
    from bench.history import benchmarks

    found = {}
    for case in quick():
        for residual in (1e-6, 9e-5, 2e-4):
            # A tolerance is in units of the problem's gradient scale, a residual is not.
            scale = build_problem(case).gradient_scale
            record = {"status": "ok", "residual": {"max": residual * scale}}
            name = benchmarks.key(case)
            value = benchmarks.Quantities().track_missed_tolerance({name: record}, *name)
            before = found.setdefault((case.tolerance, residual), value)
            assert value == pytest.approx(before, nan_ok=True)
    assert [found[1e-4, r] for r in (1e-6, 9e-5)] == [1.0, 1.0]
    assert found[1e-4, 2e-4] == pytest.approx(2.0)
    assert all(math.isnan(found[None, r]) for r in (1e-6, 9e-5, 2e-4))


def test_every_benchmark_runs_and_has_the_numbers_of_the_benchmark_body(monkeypatch):
    from bench.case import Case
    from bench.history import benchmarks
    from bench.measure import Step, measure_memory

    case = Case(problem="quadrotor", n_agents=2, gradient="jfb", batch_size=2, n_steps=3)
    name = benchmarks.key(case)
    monkeypatch.setattr(benchmarks, "CASES", {name: case})
    threads = torch.get_num_threads()
    try:
        quantities = benchmarks.Quantities()
        records = quantities.setup_cache()
        quantities.setup(records, *name)
        found = {
            track: getattr(quantities, f"track_{track}")(records, *name)
            for track in (full.rpartition("track_")[2] for full in TRACKED)
        }
        times, backward = benchmarks.Times(), benchmarks.BackwardTimes()
        for _ in range(2):  # as asv does, before each sample
            times.setup(*name)
            times.time_step(*name)
            backward.setup(*name)
            backward.time_backward(*name)
        assert times.step.last is not None
        body = measure_memory(Step(case))
    finally:
        benchmarks._step.cache_clear()
        torch.set_num_threads(threads)
    assert math.isnan(found.pop("cuda_peak_bytes"))
    assert found == {
        "peak_live_bytes": body["peak_live_tensor_bytes"],
        "saved_bytes": body["saved_tensor_bytes"],
        "iterations": body["iterations"]["mean"],
        "missed_tolerance": 1.0,
    }
    records[name] |= {"status": "crashed", "reason": "made up"}
    with pytest.raises(RuntimeError, match="crashed: made up"):
        quantities.track_saved_bytes(records, *name)


def test_unsupported_cases_are_not_applicable():
    """asv shows n/a for what raises NotImplementedError in setup."""
    from bench.case import Case
    from bench.history import benchmarks

    case = Case(problem="bicycle", n_agents=1, gradient="cvxpylayers", batch_size=1, n_steps=2)
    cases = benchmarks.CASES | {benchmarks.key(case): case}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmarks, "CASES", cases)
        with pytest.raises(NotImplementedError, match="concave"):
            benchmarks.Times().setup(*benchmarks.key(case))
