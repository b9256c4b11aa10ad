"""The distribution as it is installed, and where its files are."""

import pytest

from bench import packages, places
from tests.bench.helpers import run_cli


@pytest.mark.parametrize(
    ("module", "extra"),
    [("casadi", "reference"), ("pynvml", "bench"), ("tqdm", "bench"), ("asv", "history"),
     ("torchdeq", "baselines"), ("hypothesis", "test"), ("unheard_of", "dev")],
)  # fmt: skip
def test_a_missing_module_is_brought_by_an_extra(module, extra):
    assert packages.extra_of(module) == extra


def test_a_verb_names_the_extra_it_lacks(capsys, monkeypatch):
    def lack(args):
        raise ModuleNotFoundError("No module named 'tqdm.auto'", name="tqdm.auto")

    monkeypatch.setattr("bench.commands.where.run", lack)
    code, out, err = run_cli(capsys, "where")
    assert (code, out) == (2, "")
    assert err == (
        "bench where: error: needs tqdm, which is not installed; pip install 'jfbbench[bench]'\n"
    )


def test_the_version_is_said(capsys):
    code, out, _ = run_cli(capsys, "--version")
    assert code == 0
    assert out.startswith("jfbbench 1.")


def test_where_names_what_is_read_and_written(capsys):
    code, out, _ = run_cli(capsys, "where")
    assert code == 0
    assert dict(line.split("\t") for line in out.splitlines()) == {
        name: str(path) for name, path in places.table().items()
    }


def test_an_installed_package_writes_to_the_users_folders(tmp_path, monkeypatch):
    monkeypatch.setattr(places, "CHECKOUT", False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    assert places.runs("smoke") == tmp_path / "jfbbench-runs" / "smoke"
    own = tmp_path / "share" / "jfbbench" / "references"
    assert places.own_references() == own
    suite = places.data("references")
    assert places.references("quadrotor-1.json") == suite
    own.mkdir(parents=True)
    (own / "quadrotor-1.json").write_text("{}")
    assert places.references("quadrotor-1.json") == own
    monkeypatch.setenv("JFBBENCH_HOME", str(tmp_path / "home"))
    assert places.own_references() == tmp_path / "home" / "references"
