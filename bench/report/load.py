"""Reading run directories: records, environment and the results of other commands."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.record import UNDISTURBED
from bench.records import entries, read_records

#: optional result tables that other commands leave in a run directory
TABLE_FILES = ("gate_selftest.json",)
#: of roofline.json, as `bench roofline` writes it
_ROOFLINE_VERSION = 1


class UnusableFile(UserWarning):
    """A file of a run directory, other than a record, that could not be used."""


@dataclass(frozen=True)
class Run:
    """What one run directory holds; `name` is unique within a report, `directory` is not shown."""

    name: str
    directory: Path
    environment: Mapping[str, Any]
    records: tuple[Mapping[str, Any], ...]
    claims: tuple[Mapping[str, Any], ...] = ()
    tables: tuple[Mapping[str, Any], ...] = ()
    roofline: Mapping[str, Any] = field(default_factory=dict)
    beyond: tuple[Mapping[str, Any], ...] = ()


def load_run(directory: Path) -> Run:
    """The run in `directory`; what cannot be used is left out with a warning.

    Raises ValueError where `directory` is not a directory.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise ValueError(f"{directory} is not a directory; pass one that `bench run` has written")
    verify = _read_object(directory / "verify.json")
    tables = (_read_object(directory / name) for name in TABLE_FILES)
    roofline = _read_roofline(directory / "roofline.json")
    valid = tuple(read_records(directory))
    # Those of other probes are what claims rest on, no cases of a sweep.
    records = tuple(record for record in valid if not record.get("probe"))
    # a directory that holds a profile only has no environment file
    environment = _read_object(directory / "environment.json") or roofline.get("environment") or {}
    own = _limits(records, sum(1 for _ in entries(directory)) - len(valid))
    stated = environment.get("limits")
    limits = [*(stated if isinstance(stated, list) else ()), *own]
    return Run(
        name=directory.resolve().name,
        directory=directory,
        environment=environment | ({"limits": limits} if limits else {}),
        records=records,
        claims=tuple(verify.get("claims") or ()) if verify else (),
        tables=tuple(table for table in tables if table),
        roofline=roofline,
        beyond=tuple(verify.get("beyond") or ()) if verify else (),
    )


def load_runs(directories: Sequence[Path]) -> list[Run]:
    """All runs, with unique names; ValueError where none has anything to show or to complain of."""
    runs = [load_run(directory) for directory in directories]
    if not any(
        run.records or run.claims or run.roofline or run.tables or any(entries(run.directory))
        for run in runs
    ):
        raise ValueError(
            f"no records under {', '.join(str(run.directory / 'records') for run in runs)}; "
            "run `python -m bench run` first"
        )
    named: list[Run] = []
    for run in runs:
        taken = [other.name for other in named]
        number = 2
        name = run.name
        while name in taken:
            name, number = f"{run.name} ({number})", number + 1
        named.append(replace(run, name=name))
    return named


def _limits(records: Sequence[Mapping[str, Any]], left_out: int) -> list[str]:
    """What a reader must know of the records of a run, in whole sentences."""
    found = []
    if left_out:
        found.append(f"{left_out} records are not valid and left out.")
    shares = [(record.get("cpu_share") or {}).values() for record in records]
    disturbed = sum(any(s is not None and s < UNDISTURBED for s in own) for own in shares)
    if disturbed:
        found.append(
            f"{disturbed} records were disturbed: other load held the processor for more than "
            f"{1 - UNDISTURBED:.0%} of the seconds measured, which are too many."
        )
    unnamed = [record for record in records if record.get("fingerprint") is None]
    commits = {(record.get("git") or {}).get("commit") for record in unnamed}
    if len(commits) > 1:
        found.append(
            f"{len(unnamed)} records of {len(commits)} commits name no fingerprint of the "
            "measuring code: they are drawn as if it had been the same."
        )
    return found


def _read_roofline(path: Path) -> dict[str, Any]:
    """The profile in `path`; empty where there is none or, warned about, one of another schema."""
    content = _read_object(path)
    if content is None:
        return {}
    if content.get("schema_version") != _ROOFLINE_VERSION:
        found = content.get("schema_version")
        message = f"{path} is left out: schema version {found!r}, need {_ROOFLINE_VERSION}"
        warnings.warn(message, UnusableFile, stacklevel=2)
        return {}
    return content


def _read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in `path`; None where there is no such file or, warned about, no object."""
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        warnings.warn(f"{path} is left out: {error}", UnusableFile, stacklevel=2)
        return None
    if not isinstance(content, dict):
        warnings.warn(f"{path} is left out: not a JSON object", UnusableFile, stacklevel=2)
        return None
    return content
