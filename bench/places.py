"""Where files are read and written: beside the source in a checkout of the repository, from an
installed package in folders of the user's. Nothing is ever written beside an installed package.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from bench import environment

_PACKAGE = Path(__file__).resolve().parent
#: whether the source is a checkout; the wheel carries a copy of its data in bench/data
CHECKOUT = (_PACKAGE.parent / "pyproject.toml").is_file()


def runs(name: str) -> Path:
    """The folder of a run: reports/runs/NAME, or jfbbench-runs/NAME in the working directory."""
    where = environment.ROOT / "reports" / "runs" if CHECKOUT else Path("jfbbench-runs").absolute()
    return where / name


def release() -> Path:
    """The folder of what is to be published."""
    return environment.ROOT / "reports" / "release" if CHECKOUT else runs("release")


def data(name: str) -> Path:
    """A file or folder that belongs to the suite: "references" or "baseline.json"."""
    return environment.ROOT / "reports" / name if CHECKOUT else _PACKAGE / "data" / name


def own_references() -> Path:
    """Where references are written: in a checkout those of the suite, else a folder of the user's.

    That is $JFBBENCH_HOME/references, where the variable is not set $XDG_DATA_HOME or
    ~/.local/share in its place.
    """
    if CHECKOUT:
        return data("references")
    share = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return Path(os.environ.get("JFBBENCH_HOME") or share / "jfbbench") / "references"


def references(file: str) -> Path:
    """The folder to read the reference `file` from: the user's own where it is there."""
    own = own_references()
    return own if (own / file).exists() else data("references")


def table() -> dict[str, Path]:
    """What is where, as `bench where` says it."""
    return {
        "source": _PACKAGE.parent,
        "runs": runs("PRESET"),
        "references read": data("references"),
        "references read first, and written": own_references(),
        "baseline": data("baseline.json"),
        "report template": _PACKAGE / "report",
    }


@contextlib.contextmanager
def claim(out: Path, part: tuple[int, int] = (1, 1)) -> Iterator[None]:
    """Hold the folder for this process alone, or with the other parts of one run; released by the
    system however the process ends.
    """
    whole = part == (1, 1)
    names = [".lock"] if whole else [".lock", f".lock-{part[0]}-of-{part[1]}"]
    kinds = [fcntl.LOCK_EX if whole else fcntl.LOCK_SH, fcntl.LOCK_EX]
    with contextlib.ExitStack() as held:
        try:
            (out / "records").mkdir(exist_ok=True, parents=True)
            locks = [held.enter_context(open(out / name, "w")) for name in names]
        except OSError as error:
            raise ValueError(f"`out` {out} cannot be written: {error.strerror}") from error
        for lock, kind in zip(locks, kinds, strict=False):
            try:
                fcntl.flock(lock, kind | fcntl.LOCK_NB)
            except OSError as error:
                raise ValueError(f"`out` {out} is in use by another sweep") from error
        yield
