"""roofline.json and the tidy tables beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.records import write_csv, write_json

_CASE = ("id", "problem", "n_agents", "gradient", "batch_size", "n_steps", "dtype", "device")


def write(result: Mapping[str, Any], directory: Path) -> Path:
    """Write roofline.csv, roofline-parts.csv and roofline.json, each atomically; the last's path.

    The JSON comes last: where it is, the tables are of the same run.
    """
    _write_csv(directory / "roofline.csv", [case_row(entry) for entry in result["cases"]])
    rows = [row for entry in result["cases"] for row in part_rows(entry)]
    _write_csv(directory / "roofline-parts.csv", rows)
    path = directory / "roofline.json"
    write_json(path, dict(result))
    return path


def case_row(entry: Mapping[str, Any]) -> dict[str, Any]:
    """One case as one row, its units in the column names."""
    row = {name: entry["case"][name] for name in _CASE}
    row |= {f"{name}_seconds": value for name, value in entry["seconds"].items()}
    row |= entry["counts"]
    row |= entry["own_rates"]
    row |= {f"{name}_floor_seconds": value for name, value in entry["floor_seconds"].items()}
    row |= {f"{name}_ratio": entry["ratio"].get(name) for name in entry["floor_seconds"]}
    return row | {"bound": entry["bound"]}


def part_rows(entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per phase and part of a case."""
    lead = {name: entry["case"][name] for name in _CASE}
    return [lead | part for part in entry["parts"]]


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    columns = list(rows[0]) if rows else []
    write_csv(path, columns, ([row[name] for name in columns] for row in rows))
