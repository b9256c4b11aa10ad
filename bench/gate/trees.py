"""A source tree to measure: a folder as it is, or a revision unpacked into a temporary one."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.environment import ROOT
from bench.gate.counts import summarise
from bench.gate.outcome import GateError
from bench.records import read_records

#: seconds that git may take
_PATIENCE = 60.0
#: what a tree needs to be measured
PACKAGES = ("jfbcore", "baselines", "bench")


def git(*arguments: str) -> bytes:
    """Output of a git command on this repository; ValueError with git's own first line."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, timeout=_PATIENCE)
    except FileNotFoundError:
        raise ValueError("revisions need git, which is not installed; pass folders") from None
    except subprocess.TimeoutExpired:
        raise GateError(f"git {arguments[0]} has not answered in {_PATIENCE:g} s") from None
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise ValueError(lines[0] if lines else f"git {arguments[0]} failed")
    return done.stdout


def resolve(name: str, revision: str) -> str:
    """The full hash of `revision`; ValueError naming the argument `name`."""
    try:
        named = f"{revision}^{{commit}}"
        found = git("rev-parse", "--verify", "--quiet", "--end-of-options", named)
    except ValueError:
        raise ValueError(
            f"`{name}` must be a folder or a revision of this repository, got {revision!r}"
        ) from None
    return found.decode().strip()


@contextmanager
def open_tree(name: str, folder_or_revision: str) -> Iterator[Path]:
    """The folder of a tree, for as long as the context lasts.

    A revision is unpacked with `git archive`: unlike a worktree it leaves nothing registered in
    the repository, however this process ends. Raises ValueError naming the argument `name`.
    """
    folder = Path(folder_or_revision)
    if folder.is_dir():
        missing = [package for package in PACKAGES if not (folder / package).is_dir()]
        if missing:
            raise ValueError(f"`{name}` {folder} is not a source tree: no {', '.join(missing)}")
        yield folder.resolve()
        return
    revision = resolve(name, folder_or_revision)
    try:
        packed = git("archive", "--format=tar", revision, *PACKAGES)
    except ValueError as error:
        raise ValueError(f"`{name}` {folder_or_revision} cannot be measured: {error}") from None
    with tempfile.TemporaryDirectory(prefix="jfbbench-") as unpacked:
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            # The filter came with 3.11.4; what git packs has no need of it.
            safely: Any = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
            archive.extractall(unpacked, **safely)
        yield Path(unpacked).resolve()


def bench_of(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line of the suite in `tree`, run with `arguments`."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "bench", *arguments],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
    )


def measure_cases(tree: Path, ids: Iterable[str], out: Path | None = None) -> dict[str, Any]:
    """A summary, as the gate compares it, of the cases `ids` measured in `tree`.

    Records are kept under `out` if it is given. A case that the tree's gate preset has not is not
    in the summary. Raises GateError where the tree's `bench run` fails.
    """
    ids = sorted(ids)
    if out is None:
        with tempfile.TemporaryDirectory(prefix="jfbbench-") as folder:
            return measure_cases(tree, ids, Path(folder))
    options = ("--preset", "gate", "--threads", "1", "--filter", f"id={','.join(ids)}")
    done = bench_of(tree, "run", *options, "--out", str(out.resolve()))
    if done.returncode == 2 and "leaves no case" in done.stderr:
        return summarise([])
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        raise GateError(
            f"measuring {', '.join(ids)} ended with code {done.returncode}: "
            f"{lines[-1] if lines else 'no message'}"
        )
    return summarise(read_records(out))
