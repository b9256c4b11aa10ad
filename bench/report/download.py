"""The data of a page as links inside it: nothing has to be fetched from elsewhere."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.report.load import Run

#: more than this stays beside the page, where the link then leads
_LARGEST = 200_000


@dataclass(frozen=True)
class Download:
    """A link to data: the name of the file, where it is, and what is in it."""

    name: str
    href: str
    text: str


def downloads(runs: Sequence[Run], out: Path) -> list[Download]:
    """The tables beside the page, inside it where they are small, packed by gzip."""
    found = []
    for name, text in (("cases.csv", "every record"), ("curves.csv", "every training curve")):
        path = out / name
        if path.is_file() and any(run.records for run in runs):
            packed = gzip.compress(path.read_bytes(), mtime=0)
            if len(packed) > _LARGEST:
                found.append(Download(name, name, text))
            else:
                data = base64.b64encode(packed).decode("ascii")
                href = f"data:application/gzip;base64,{data}"
                found.append(Download(f"{name}.gz", href, text))
    return found
