"""Source trees and repositories without torch: enough of `bench` for the gate to measure them."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path

from bench import case

#: writes one record per case asked for, whose saved bytes are what the tree's `bytes.txt` says
_RUN = """
import json, pathlib, sys
arguments = dict(zip(sys.argv[2::2], sys.argv[3::2]))
root = pathlib.Path(__file__).parent
text = (root / "bytes.txt").read_text().strip()
if text == "crash":
    raise SystemExit("this revision does not run")
records = pathlib.Path(arguments["--out"]) / "records"
records.mkdir(parents=True)
for name in arguments["--filter"].removeprefix("id=").split(","):
    record = json.loads((root / "record.json").read_text())
    record["case"]["id"] = name
    record["saved_tensor_bytes"] = int(text)
    (records / f"{name}.json").write_text(json.dumps(record))
"""


def make_tree(folder: Path, step: str = "1.0") -> Path:
    """A source tree whose every case's step is the expression `step`, which may use `self.case`
    and is the step's cost, on a clock of its own: `wait(seconds)` moves it."""
    for name in ("jfbcore", "baselines", "bench"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text("")
    (folder / "torch.py").write_text("def set_num_threads(n): pass\n")
    (folder / "bench" / "build.py").write_text("class Unsupported(Exception): reason = 'none'\n")
    write_case(folder, [field.name for field in dataclasses.fields(case.Case)])
    (folder / "bench" / "measure.py").write_text(
        "import os, time\n"
        "clock = [0.0]\n"
        "time.perf_counter = lambda: clock[0]\n"
        "def wait(seconds):\n"
        "    clock[0] += seconds\n"
        "    return 1.0\n"
        "class Step:\n"
        "    def __init__(self, case): self.case = case\n"
        "    def clear(self): pass\n"
        f"    def __call__(self): return {step}\n"
    )
    return folder


def write_case(folder: Path, names: list[str]) -> None:
    """Let the tree's Case have fields of these names, without defaults."""
    (folder / "bench" / "case.py").write_text(
        f"import dataclasses\nCase = dataclasses.make_dataclass('Case', {names})\n"
    )


def make_repository(folder: Path, revisions: list[str], record: str) -> list[str]:
    """A repository with one commit per entry, which `bytes.txt` holds; the commits' hashes."""
    make_tree(folder)
    (folder / "bench" / "__main__.py").write_text(_RUN)
    (folder / "bench" / "record.json").write_text(record)
    run_git(folder, "init", "--quiet")
    commits = []
    for i, text in enumerate(revisions):
        (folder / "bench" / "bytes.txt").write_text(text)
        (folder / "bench" / "number.txt").write_text(str(i))
        run_git(folder, "add", "--all")
        run_git(folder, "commit", "--quiet", "--message", f"revision {i}")
        commits.append(run_git(folder, "rev-parse", "HEAD"))
    return commits


def run_git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=A Tester", "-c", "user.email=tester@example.org"]
    return subprocess.run(
        ["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True
    ).stdout.strip()
