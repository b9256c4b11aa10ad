"""README and the documentation: fresh, short, every command accepted, every link there."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch

pytest.importorskip("seaborn")

from bench import documents
from bench.environment import ROOT, fingerprint
from bench.records import read_records
from tests.bench.helpers import run_cli

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {"README.md": README} | {
    f"docs/{path.name}": path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")
}
COMMANDS = sorted(
    {
        line.split(" #")[0].strip()
        for text in PAGES.values()
        for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
        for line in block.replace("\\\n", " ").splitlines()
        if "-m bench " in line
    }
)


@pytest.mark.parametrize("name", sorted(documents.PARTS))
def test_generated_parts_are_what_the_records_and_the_parsers_say(name: str) -> None:
    """Where it fails, `python -m bench.documents` writes them anew."""
    assert (ROOT / name).read_text(encoding="utf-8") == documents.refreshed(name)


def test_readme_is_short_and_starts_with_something_to_do() -> None:
    lines = README.splitlines()
    assert len(lines) <= 150
    assert next(i for i, line in enumerate(lines, 1) if line.startswith("make ")) <= 20


def test_readme_shows_two_animations_that_load_quickly() -> None:
    shown = re.findall(r"\]\((docs/flights/[\w-]+animation\.svg)\)", README)
    assert len(shown) == 2
    for name in shown:
        content = (ROOT / name).read_bytes()
        assert len(content) <= 1_000_000
        assert b"<animate " in content


@pytest.mark.parametrize("name", sorted(PAGES))
def test_links_lead_to_files(name: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[name]):
        if not target.startswith(("https://", "#")):
            assert ((ROOT / name).parent / target.split("#")[0]).exists(), target


@pytest.mark.parametrize(
    ("name", "file"), [("method", "jfbcore/minimal.py"), ("first-steps", "docs/examples/mine.py")]
)
def test_code_is_included_from_the_file_itself(name: str, file: str) -> None:
    """Spelled to the letter: the site shows anything else as it stands."""
    assert f'\n--8<-- "{file}"\n' in PAGES[f"docs/{name}.md"]
    assert (ROOT / file).is_file()


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 8


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_parse(line: str, capsys, monkeypatch) -> None:
    """Up to the verb's own work, which is replaced; what the parser accepts, `run` gets."""
    words = shlex.split(line)
    verb, *_ = arguments = words[words.index("bench") + 1 :]
    called = []
    module = importlib.import_module(f"bench.commands.{verb}")
    monkeypatch.setattr(module, "run", lambda args: called.append(args) or 0)
    assert run_cli(capsys, *arguments) == (0, "", "")
    assert len(called) == 1


def test_what_it_trains_trains(capsys, tmp_path, monkeypatch) -> None:
    """In milliseconds: an option that is given again replaces the first."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    small = ("--batch", "2", "--horizon-steps", "3", "--threads", "1", "--device", "cpu")
    lines = [line for line in COMMANDS if " train " in line and "--resume" not in line]
    assert len(lines) >= 2
    for line in lines:
        words = shlex.split(line.replace("docs/examples", str(ROOT / "docs" / "examples")))
        end = ("--steps", "1") if "--steps" in words else ("--time-limit", "0.01")
        code, out, err = run_cli(capsys, *words[words.index("bench") + 1 :], *small, *end)
        assert code == 0, err
        assert json.loads(out.splitlines()[-1])["status"] == "ok"
    torch.set_num_threads(threads)


def test_the_library_example_runs(tmp_path, monkeypatch) -> None:
    """As it stands, but for its minibatch of fifty and fewer time steps."""
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert block.count("(50,") == 1
    names: dict = {}
    shorter = block.replace("(50,", "(2,").replace("(n_agents=6)", "(n_agents=6, n_steps=8)")
    exec(shorter.replace("policy = jfb.load(", "loaded = jfb.load("), names)
    assert names["flown"].states.shape == (9, 2, 72)
    assert repr(names["loaded"]) == repr(names["policy"])
    gradients = [p.grad for p in names["policy"].parameters() if p.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_every_field_of_a_record_is_described() -> None:
    from bench.presets import select
    from bench.records import empty_record

    documented = set(re.findall(r"`(\w+)`", PAGES["docs/records.md"]))
    record = empty_record(select("smoke", [])[0], 0)
    assert set(record) - {"schema_version"} <= documented


@pytest.mark.slow
def test_every_claim_has_its_figure_in_the_site() -> None:
    figures = documents.claim_figures()
    text = documents.with_figures(PAGES["docs/claims.md"], "drawn")
    assert set(re.findall(r"\]\(drawn/([\w-]+)\.svg\)", text)) == set(figures)
    judged = json.loads(
        (ROOT / "reports" / "release" / "verify" / "verify.json").read_text(encoding="utf-8")
    )
    drawn = [row for part in ("claims", "beyond") for row in judged[part] if row["figure"]]
    assert len(figures) == len(drawn) > 0
    assert all(
        ElementTree.fromstring(figure.encode()).tag.endswith("svg") for figure in figures.values()
    )
    # It says so where the records are of another state of the measuring code.
    records = read_records(documents.RELEASE / "verify")
    older = any(record.get("fingerprint") != fingerprint() for record in records)
    assert bool(re.search(r"!!! note\n    \d+ of the \d+ records", text)) == older


@pytest.mark.slow
@pytest.mark.parametrize("notebook", sorted((ROOT / "docs" / "notebooks").glob("*.py")))
def test_notebooks_run(notebook: Path) -> None:
    """As scripts, which is what they are; each asserts what it shows."""
    threads = torch.get_num_threads()
    exec(compile(notebook.read_text(encoding="utf-8"), str(notebook), "exec"), {})
    torch.set_num_threads(threads)
