"""The wheel, in an empty environment, outside the repository: every verb that a reader needs."""

import hashlib
import json
import os
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import bench

ROOT = Path(bench.__file__).parents[1]


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """The source distribution, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    # In isolation from nothing: the environment of the tests has setuptools already.
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def wheel_in(folder: Path) -> Path:
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.mark.slow
def test_the_wheel_has_the_data_and_neither_tests_nor_benches(dist):
    names = zipfile.ZipFile(wheel_in(dist)).namelist()
    data = {n.removeprefix("bench/data/") for n in names if n.startswith("bench/data/")}
    here = {f"references/{path.name}" for path in (ROOT / "reports/references").glob("*.json")}
    assert data == here | {"baseline.json"}
    assert {"jfbcore/py.typed", "baselines/py.typed", "bench/report/template.html"} <= set(names)
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"bench", "baselines", "jfbcore"}
    assert not [n for n in names if "test_" in n or "history" in n or n == "bench/wheel.py"]


@pytest.mark.slow
def test_the_source_distribution_has_what_its_tests_need(dist):
    (archive,) = dist.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    tests = {str(p.relative_to(ROOT)) for p in (ROOT / "tests").rglob("*.py")}
    published = {str(p.relative_to(ROOT)) for p in (ROOT / "reports").glob("*/records.jsonl")}
    assert tests | published | {"constraints.txt", "Makefile", "reports/baseline.json"} <= names
    assert not [name for name in names if name.startswith(("reports/runs", "reports/asv"))]


@pytest.fixture(scope="module")
def installed(dist, tmp_path_factory):
    """The bin folder of an environment with the wheel, torch as the constraints pin it."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    constraints = ["-c", str(ROOT / "constraints.txt")]
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *constraints]
    # torch alone and first, as `make venv` does: the pin decides which build is taken.
    for what in ("torch", f"{wheel_in(dist)}[bench,reference]"):
        done = subprocess.run([*pip, what], capture_output=True, text=True, cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder / "bin"


def site_hash(binaries: Path) -> str:
    """Of every file in site-packages but the bytecode that Python writes for itself."""
    (site,) = (binaries.parent / "lib").glob("python*/site-packages")
    digest = hashlib.sha256()
    for path in sorted(site.rglob("*")):
        if path.is_file() and path.suffix != ".pyc":
            digest.update(str(path.relative_to(site)).encode() + path.read_bytes())
    return digest.hexdigest()


@pytest.mark.slow
def test_every_verb_works_outside_the_repository(installed, tmp_path):
    keep = {"PATH": f"{installed}{os.pathsep}{os.environ['PATH']}", "HOME": str(tmp_path)}

    def run(*arguments: str, code: int = 0) -> str:
        """What it prints: on stdout, and on stderr too where that is asked for by `code`."""
        done = subprocess.run(
            [str(installed / "jfbbench"), *arguments],
            cwd=tmp_path, env=keep | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + (done.stderr if code else "")

    before = site_hash(installed)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert run("--version") == f"jfbbench {version}\n"
    where = dict(line.split("\t") for line in run("where").splitlines())
    assert where["runs"] == str(tmp_path / "jfbbench-runs" / "PRESET")
    assert where["references read first, and written"].startswith(str(tmp_path))
    tiny = ("--problem", "quadrotor", "--agents", "1", "--gradient", "jfb")
    size = ("--batch", "2", "--iterations", "3")
    run("run", *tiny, *size, "--horizon-steps", "3", "--train-steps", "1")
    records = list((tmp_path / "jfbbench-runs" / "adhoc" / "records").glob("*.json"))
    assert [json.loads(path.read_text())["status"] for path in records] == ["ok"]
    trained = json.loads(run("train", *tiny, *size, "--steps", "1").splitlines()[-1])
    assert trained["final"]["optimality_gap"] > 0  # the references are there
    assert "jfbbench-runs/adhoc/index.html" in run("report", "jfbbench-runs/adhoc")
    run("check", "jfb")
    # The baseline is read; the records of this tiny run are not those that it has.
    assert "missing" in run("gate", "jfbbench-runs/adhoc", code=3)
    conic = ("--gradient", "cvxpylayers", *size, "--horizon-steps", "3", "--out", "conic")
    run("run", *tiny[:4], *conic)
    (path,) = (tmp_path / "conic" / "records").glob("*.json")
    assert "pip install 'jfbbench[baselines]'" in json.loads(path.read_text())["reason"]
    assert site_hash(installed) == before


@pytest.mark.slow
def test_another_projects_package_of_the_same_name_is_refused(installed, tmp_path):
    (tmp_path / "baselines").mkdir()
    (tmp_path / "baselines" / "__init__.py").write_text("")
    done = subprocess.run(
        [str(installed / "jfbbench"), "list"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"finds the package `baselines` in {tmp_path / 'baselines'}" in done.stderr
