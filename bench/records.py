"""Records on disk: one JSON object per case and seed, written atomically."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from bench import csv_cells
from bench.case import Case

SCHEMA_VERSION = 1
STATUSES = (
    "ok",
    "unsupported",
    "out_of_memory",
    "timeout",
    "diverged",
    "crashed",
)
#: what is known of a case that did not fit, see `bench.predict`
PREDICTED_FIELDS = ("peak_live_tensor_bytes", "saved_tensor_bytes", "model_error")
_CUDA_FIELDS = (
    "context_bytes",
    "max_allocated_bytes",
    "max_reserved_bytes",
    "nvml_device_delta_bytes",
    "nvml_process_bytes",
    "nvml_source",
    "samples",
)
#: what the final costs rest on: held-out states, those with a reference, the inner solves there
_EVALUATION_FIELDS = (
    *("states", "reference_states"),
    *("iterations", "residual", "tolerance_reached"),
)


class CorruptRecord(UserWarning):
    """A record file that could not be used."""


def empty_record(case: Case, seed: int) -> dict[str, Any]:
    """A record of `case` with every field of the schema, all unknown."""
    plugins = case.from_outside
    null_reasons = {} if plugins else {"plugins": "problem, method, map and solver are built in"}
    if case.device == "cpu":
        null_reasons["machine.gpu"] = "a CPU case"
    return {
        "schema_version": SCHEMA_VERSION,
        "case": case.to_dict(seed),
        "plugins": plugins,
        "status": None,
        "reason": None,
        "step_seconds": None,
        "forward_seconds": None,
        "backward_seconds": None,
        "compile_seconds": None,
        "iterations": None,
        "residual": None,
        "tolerance_reached": None,
        "gradient_cosine": None,
        "linear_residual": None,
        "reversible_drift": None,
        "peak_live_tensor_bytes": None,
        "saved_tensor_bytes": None,
        "peak_rss_bytes": None,
        "cuda": dict.fromkeys(_CUDA_FIELDS),
        "predicted": dict.fromkeys(PREDICTED_FIELDS),
        "curve": None,
        "interventions": None,
        "final": {"loss": None, "evaluation_cost": None, "optimality_gap": None},
        "evaluation": dict.fromkeys(_EVALUATION_FIELDS),
        "machine": {"cpu": None, "gpu": None},
        "threads": None,
        "null_reasons": null_reasons,
        "versions": {},
        "git": {"commit": None, "dirty": None},
        "fingerprint": None,
    }


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


def record_path(directory: Path, case: Case, seed: int) -> Path:
    return directory / "records" / f"{case.id}-s{seed}.json"


def write_json(path: Path, value: Any) -> None:
    """Write atomically: after a crash at any moment `path` is whole, old or new.

    Non-finite numbers become null, which JSON has no other word for.
    """
    with _whole(path) as file:
        json.dump(finite(value), file, indent=1, allow_nan=False)
        file.write("\n")


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table with its heading, atomically as `write_json` does."""
    with _whole(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(map(csv_cells.cell, row) for row in rows)


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[IO[str]]:
    """A file that takes the place of `path` once it is complete and on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "w", encoding="utf-8", newline="") as file:
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


def read_record(path: Path) -> dict[str, Any]:
    """One record; ValueError naming the file when it is not a whole record of this schema."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a whole record ({error})") from error
    if not isinstance(record, dict) or not isinstance(record.get("case"), dict):
        raise ValueError(f"{path}: not a record")
    if record.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(
            f"{path}: schema version {record.get('schema_version')!r}, need {SCHEMA_VERSION}"
        )
    if record.get("status") not in STATUSES or not {"id", "seed"} <= set(record["case"]):
        raise ValueError(f"{path}: no known status, or a case without id or seed")
    return record


def finished(out: Path, case: Case, seed: int) -> dict[str, Any] | None:
    """The record that is there of exactly this case and seed."""
    path = record_path(out, case, seed)
    if not path.exists():
        return None
    try:
        record = read_record(path)
    except ValueError as error:
        print(f"warning: {error}; measuring it again", file=sys.stderr)
        return None
    return record if case.is_case_of(record, seed) else None


def read_records(directory: Path) -> Iterator[dict[str, Any]]:
    """The records under DIR/records; a corrupt one is warned about and left out."""
    for path in sorted((directory / "records").glob("*.json")):
        try:
            yield read_record(path)
        except ValueError as error:
            warnings.warn(str(error), CorruptRecord, stacklevel=2)
