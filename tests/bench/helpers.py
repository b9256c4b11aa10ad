"""What the tests of the command line and of the sweep share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import cli
from bench.case import Case

#: dotted paths of a record whose null is part of its meaning and needs no reason
_MEANINGFUL = ("case", "reason", "null_reasons")


def record_path(directory: Path, case: Case, seed: int) -> Path:
    """Where the record of a training step lies while its run lasts."""
    return directory / "records" / f"{case.id}-s{seed}.json"


def unexplained_nulls(record: dict[str, Any]) -> set[str]:
    """The dotted paths of a record's nulls that `null_reasons` says nothing about.

    In a curve, one reason stands for the column: `curve.loss` for every point's loss.
    """
    reasons = record["null_reasons"]
    found: set[str] = set()

    def visit(path: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                visit(f"{path}.{key}" if path else key, inner)
        elif isinstance(value, list):
            for inner in value:
                visit(path, inner)
        elif value is None and path not in reasons:
            found.add(path)

    visit("", {key: value for key, value in record.items() if key not in _MEANINGFUL})
    return found


def stale_reasons(record: dict[str, Any]) -> set[str]:
    """The paths in `null_reasons` whose value is not null at all."""

    def is_null(path: str) -> bool:
        value: Any = record
        for key in path.split("."):
            if isinstance(value, list):
                value = value[-1] if value else None
            if value is None:
                return True
            value = value.get(key)
        return value is None or (isinstance(value, list) and None in value)

    return {path for path in record["null_reasons"] if not is_null(path)}


def run_cli(capsys: Any, *arguments: str) -> tuple[int, str, str]:
    """Run the command line in this process: (exit code, stdout, stderr)."""
    capsys.readouterr()
    code = _code(lambda: cli.main([str(argument) for argument in arguments]))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def _code(call: Callable[[], int]) -> int:
    try:
        return call()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
