"""Records on disk: one JSON object per case and seed, written atomically.

While a sweep runs there is one file each, DIR/records/CASE-sSEED.json. `pack` makes one file of
lines of them, DIR/records.jsonl; a file beside it is the later record of its case and seed.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from bench import csv_cells
from bench.case import Case
from bench.identity import stem
from bench.places import claim
from bench.record import SCHEMA_VERSION, parts
from bench.record_field import Field
from bench.record_schema import faults

#: the file of lines
PACKED = "records.jsonl"
#: parts of a record that are objects from the start; the others are null until they are measured
_OBJECTS = (
    *("cuda", "predicted", "pretraining_seconds", "final", "evaluation", "machine"),
    *("cpu_share", "git"),
)


class CorruptRecord(UserWarning):
    """A record file that could not be used."""


class RecordError(ValueError):
    """Text that is no valid record: `place` says where it is, `faults` what is wrong, a line each.

    The message names the first fault and how many there are besides.
    """

    def __init__(self, place: str, faults: Sequence[str]) -> None:
        self.place, self.faults = place, tuple(faults)
        more = f" (and {len(faults) - 1} more: see `bench validate`)" if len(faults) > 1 else ""
        super().__init__(f"{place}: {faults[0]}{more}")


def empty_record(case: Case, seed: int) -> dict[str, Any]:
    """A record of `case` with every field of the schema, all unknown."""
    plugins = case.from_outside
    null_reasons = dict.fromkeys(("probe", "rows"), "a training step was measured")
    if not plugins:
        null_reasons["plugins"] = "problem, method, map and solver are built in"
    if case.device == "cpu":
        null_reasons["machine.gpu"] = "a CPU case"
    return {field.name: _unknown(field) for field in parts()} | {
        "schema_version": SCHEMA_VERSION,
        "case": case.to_dict(seed),
        "plugins": plugins,
        "variables": {},
        "null_reasons": null_reasons,
        "versions": {},
    }


def _unknown(field: Field) -> dict[str, None] | None:
    inner = parts(field.path)
    return {part.name: None for part in inner} if field.path in _OBJECTS else None


def fill_part(
    record: dict[str, Any], part: str, values: dict[str, Any], reason: str | None = None
) -> None:
    """Put `values` into a part of the record: no reason is left for what is known now, and, if one
    is given, `reason` is why the others are null."""
    record[part] = (record.get(part) or {}) | values
    reasons = record.setdefault("null_reasons", {})
    for name, value in record[part].items():
        if value is not None:
            reasons.pop(f"{part}.{name}", None)
        elif reason is not None:
            reasons[f"{part}.{name}"] = reason


def explain_nulls(record: dict[str, Any], default: str) -> None:
    """Give every null a reason in `null_reasons`: `default` where none is there yet."""
    reasons = record["null_reasons"]

    def visit(path: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                visit(f"{path}.{key}" if path else key, inner)
        elif isinstance(value, list):
            for inner in value:
                visit(path, inner)
        elif value is None:
            reasons.setdefault(path, default)

    for key, value in record.items():
        if key not in ("null_reasons", "case", "reason"):
            visit(key, value)


def write_json(path: Path, value: Any) -> None:
    """Write atomically: after a crash at any moment `path` is whole, old or new.

    Non-finite numbers become null, which JSON has no other word for.
    """
    with whole(path) as file:
        json.dump(finite(value), file, indent=1, allow_nan=False)
        file.write("\n")


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table with its heading, atomically as `write_json` does."""
    with whole(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(map(csv_cells.cell, row) for row in rows)


@contextlib.contextmanager
def whole(path: Path, mode: str = "w") -> Iterator[IO]:
    """A file that takes the place of `path` once it is complete and on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        text: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
        with open(partial, mode, **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return value


class Entry(NamedTuple):
    """Where a record is: its file and, in a file of lines, the line and its text."""

    path: Path
    line: int | None = None
    text: bytes = b""

    def content(self) -> Any:
        """What the text says; raises RecordError where it is no JSON."""
        try:
            text = self.path.read_bytes() if self.line is None else self.text
            return json.loads(text.decode("utf-8"))
        except OSError as error:
            raise RecordError(self.place, [f"cannot be read: {error.strerror}"]) from error
        except (ValueError, RecursionError) as error:
            raise RecordError(self.place, [f"not JSON: {error}"]) from error

    def read(self) -> dict[str, Any]:
        """The record; raises RecordError where it is no valid one."""
        record = self.content()
        if found := list(faults(record)):
            raise RecordError(self.place, found)
        return record

    @property
    def place(self) -> str:
        return str(self.path) if self.line is None else f"{self.path}:{self.line}"


def entries(source: Path) -> Iterator[Entry]:
    """Where the records of `source` are: a run directory, a folder of records, a file of one or of
    lines. A line that a file of the same case and seed supersedes is left out.

    Raises OSError where a file of lines cannot be read.
    """
    if not source.is_dir():
        yield from _lines(source) if source.suffix == ".jsonl" else [Entry(source)]
        return
    packed = source / PACKED
    paths = sorted((source if source.name == "records" else source / "records").glob("*.json"))
    later = {path.stem for path in paths}
    for entry in _lines(packed) if packed.exists() else ():
        if not (later and _stem(entry) in later):
            yield entry
    yield from map(Entry, paths)


def _lines(path: Path) -> Iterator[Entry]:
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if line.strip():
            yield Entry(path, number, line)


def _stem(entry: Entry) -> str | None:
    """What the file of the record would be called; None where that cannot be told."""
    try:
        return stem(entry.content())
    except (RecordError, TypeError, KeyError, AttributeError, ValueError):
        return None


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in `path`, None where there is no file; RecordError where it is damaged."""
    if not path.exists():
        return None
    content = Entry(path).content()
    if not isinstance(content, dict):
        raise RecordError(str(path), ["not a JSON object"])
    return content


def read_record(path: Path) -> dict[str, Any]:
    """One record; RecordError, a ValueError naming file and field, when it is no valid one."""
    return Entry(path).read()


def read_records(directory: Path) -> Iterator[dict[str, Any]]:
    """The valid records of a run directory; of one that is not, a warning names file and field."""
    for entry in entries(directory):
        try:
            yield entry.read()
        except RecordError as error:
            warnings.warn(str(error), CorruptRecord, stacklevel=2)


def find(out: Path, name: str) -> dict[str, Any] | None:
    """The record whose file is called `name`, packed or not; RecordError where it is damaged."""
    path = out / "records" / f"{name}.json"
    return read_record(path) if path.exists() else _packed(out).get(name)


def is_there(out: Path, name: str) -> bool:
    """Whether there is a record of this name, or what is left of one."""
    return (out / "records" / f"{name}.json").exists() or name in _packed(out)


def _packed(out: Path) -> dict[str, dict[str, Any]]:
    """The valid records of the file of lines, by the names of their own files."""
    path = out / PACKED
    if not path.exists():
        return {}
    found = path.stat()
    return _index(path, (found.st_ino, found.st_mtime_ns, found.st_size))


@functools.lru_cache(maxsize=1)
def _index(path: Path, stamp: tuple[int, ...]) -> dict[str, dict[str, Any]]:
    """As long as the file is the same: a sweep asks for every case of its own."""
    found = {}
    for entry in _lines(path):
        with contextlib.suppress(RecordError):
            record = entry.read()
            found[stem(record)] = record
    return found


def pack(directory: Path) -> int:
    """Keep the records of a finished run in one file of lines; how many it holds.

    Files that are no valid records stay where they are, with a warning. Ended at any moment, it
    leaves every record in one of the two places. Raises ValueError while a sweep writes into the
    folder, and where a line of an earlier file is no valid record.
    """
    with claim(directory):
        lines, packed = [], []
        for entry in entries(directory):
            try:
                record = entry.read()
            except RecordError as error:
                if entry.line is not None:
                    raise
                warnings.warn(f"{error}; it stays where it is", CorruptRecord, stacklevel=2)
                continue
            text = json.dumps(finite(record), separators=(",", ":"), allow_nan=False)
            lines.append((record["case"]["id"], record["case"]["seed"], text))
            packed += [entry.path] if entry.line is None else []
        with whole(directory / PACKED) as file:
            file.writelines(f"{text}\n" for *_, text in sorted(lines))
        for path in packed:
            path.unlink()
    return len(lines)
