"""Reading run directories: records, environment and the results of other commands."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.record import UNDISTURBED
from bench.records import RecordError, entries, read_object, read_records

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
    verify, roofline = (_object(directory / f"{name}.json") for name in ("verify", "roofline"))
    if roofline and roofline.get("schema_version") != _ROOFLINE_VERSION:
        said = f"schema version {roofline.get('schema_version')!r}, need {_ROOFLINE_VERSION}"
        left_out(directory / "roofline.json", said)
        roofline = {}
    valid = tuple(read_records(directory))
    # Those of other probes are what claims rest on, no cases of a sweep.
    records = tuple(record for record in valid if not record.get("probe"))
    # a directory that holds a profile only has no environment file
    environment = _object(directory / "environment.json") or roofline.get("environment") or {}
    stated = environment.get("limits")
    limits = list(stated) if isinstance(stated, list) else []
    limits += _limits(records, sum(1 for _ in entries(directory)) - len(valid))
    return Run(
        name=directory.resolve().name,
        directory=directory,
        environment=environment | ({"limits": limits} if limits else {}),
        records=records,
        claims=tuple(verify.get("claims") or ()),
        tables=tuple(filter(None, (_object(directory / name) for name in TABLE_FILES))),
        roofline=roofline,
        beyond=tuple(verify.get("beyond") or ()),
    )


def load_runs(directories: Sequence[Path]) -> list[Run]:
    """All runs, with unique names; ValueError where none has anything to show or to complain of."""
    runs = [load_run(directory) for directory in directories]
    if not any(
        run.records or run.claims or run.roofline or run.tables or any(entries(run.directory))
        for run in runs
    ):
        places = ", ".join(str(run.directory / "records") for run in runs)
        raise ValueError(f"no records under {places}; run `python -m bench run` first")
    named: dict[str, Run] = {}
    for run in runs:
        name, number = run.name, 2
        while name in named:
            name, number = f"{run.name} ({number})", number + 1
        named[name] = replace(run, name=name)
    return list(named.values())


def left_out(path: Path, reason: object) -> None:
    """Warn that the file is not used, and why."""
    warnings.warn(f"{path} is left out: {reason}", UnusableFile, stacklevel=3)


def _limits(records: Sequence[Mapping[str, Any]], invalid: int) -> list[str]:
    """What a reader must know of the records of a run, in whole sentences."""
    found = [f"{invalid} records are not valid and left out."] if invalid else []
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


def _object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; empty where there is no file or, warned about, no object."""
    try:
        return read_object(path) or {}
    except RecordError as error:
        left_out(path, "; ".join(error.faults))
        return {}
