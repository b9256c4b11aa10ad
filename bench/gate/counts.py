"""The regression gate: what is deterministic is compared with a committed baseline.

The fields of the record schema and bytes are compared exactly; iterations, residuals and gradient
cosines with the stated tolerance, because they depend on how a processor rounds. Time is not in
here: it does not compare between runs (`bench.gate.time` compares it within one).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.gate.outcome import Outcome
from bench.record import FIELDS
from bench.record_field import Gate
from bench.records import Entry, RecordError

SCHEMA_VERSION = 1
#: the one status that is not a result: a case that crashed says nothing to compare with
CRASHED = "crashed"


@dataclass(frozen=True, kw_only=True)
class Quantity(Gate):
    """One gated number: where it is in a record, and how far it may move for the worse.

    Fewer bytes than the baseline are an improvement to be written down with --update, no
    regression.
    """

    path: tuple[str, ...]

    @property
    def exact(self) -> bool:
        return self.relative == self.absolute == 0

    def read(self, record: dict[str, Any]) -> float | None:
        value: Any = record
        for key in self.path:
            if not isinstance(value, dict):
                return None
            value = value.get(key)
        return value if isinstance(value, int | float) else None

    def worse(self, base: float, head: float) -> bool:
        change = head - base if self.larger_is_worse else base - head
        return not change <= self.absolute + self.relative * abs(base)


QUANTITIES = tuple(
    Quantity(path=tuple(field.path.split(".")), **asdict(field.gate))
    for field in FIELDS
    if field.gate is not None
)


@dataclass(frozen=True)
class Move:
    """A gated number that is not what the baseline says."""

    case: str
    quantity: str
    base: float | None
    head: float | None
    worse: bool

    @property
    def change(self) -> str:
        if self.base is None or self.head is None:
            return "appeared" if self.base is None else "vanished"
        if self.base == 0:
            return f"{self.head:+.3g}"
        return f"{(self.head - self.base) / abs(self.base):+.2%}"


@dataclass(frozen=True)
class Comparison:
    """What a gate found. `missing`: cases of the baseline without a usable record, or that crashed
    then and now, so that there is nothing to compare.
    """

    compared: int
    moves: list[Move]
    missing: list[str]
    unknown: list[str]

    @property
    def outcome(self) -> Outcome:
        if any(move.worse for move in self.moves):
            return Outcome.REGRESSION
        return Outcome.MISSING if self.missing or not self.compared else Outcome.PASS


def summarise(records: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """A baseline from records: seed 0 of every case, its status and its gated numbers; the fields
    that every record has."""
    cases = {}
    versions: dict[str, Any] = {}
    schema: set[str] | None = None
    for record in records:
        if record["case"]["seed"] != 0:
            continue
        versions = record.get("versions") or {}
        fields = set(_fields(record))
        schema = fields if schema is None else schema & fields
        cases[record["case"]["id"]] = {
            "status": record["status"],
            **({} if record["status"] == "ok" else {"reason": record["reason"]}),
            **{quantity.name: quantity.read(record) for quantity in QUANTITIES},
        }
    return {
        "schema_version": SCHEMA_VERSION,
        "versions": versions,
        "record_fields": None if schema is None else sorted(schema),
        "cases": cases,
    }


def _fields(record: dict[str, Any]) -> Iterator[str]:
    """The fields of the record schema: names at the top, and in the objects always there."""
    yield from record
    for part in ("case", "cuda", "evaluation", "final", "machine", "predicted"):
        yield from (f"{part}.{name}" for name in record.get(part) or ())


def read_baseline(path: Path) -> dict[str, Any]:
    """The baseline in `path`; ValueError when it is not one."""
    try:
        baseline = Entry(path).content()
    except RecordError as error:
        raise ValueError(f"`baseline` {error}") from error
    if not isinstance(baseline, dict) or baseline.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(f"`baseline` {path} is not a baseline of version {SCHEMA_VERSION}")
    for name in ("versions", "cases"):
        if not isinstance(baseline.get(name), dict):
            raise ValueError(f"`baseline` {path} has no {name}; write one with --update")
    gated = {"status", *(quantity.name for quantity in QUANTITIES)}
    for case, found in baseline["cases"].items():
        if lacking := gated - set(found if isinstance(found, dict) else ()):
            raise ValueError(
                f"`baseline` {path} lacks {', '.join(sorted(lacking))} of case {case}; write one "
                "with --update"
            )
    return baseline


def unusable(head: dict[str, Any], baseline: dict[str, Any] | None) -> str:
    """Why `head` cannot become the baseline, or "": what it lacks would never be gated again.

    A case of the old baseline may go only together with the preset's.
    """
    from bench.presets import PRESETS

    crashed = [case for case, found in head["cases"].items() if found["status"] == CRASHED]
    if crashed:
        return f"crashed: {', '.join(crashed)}"
    wanted = {case.id for case in PRESETS["gate"]()} & set(baseline["cases"] if baseline else ())
    gone = sorted(wanted - set(head["cases"]))
    return f"without a record: {', '.join(gone)}" if gone else ""


def compare(baseline: dict[str, Any], head: dict[str, Any]) -> Comparison:
    """Every gated number of every case of the baseline against the same of `head`."""
    moves, missing, compared = _schema_moves(baseline, head), [], 0
    for case, base in baseline["cases"].items():
        found = head["cases"].get(case)
        if found is None or found["status"] == base["status"] == CRASHED:
            missing.append(case)
            continue
        compared += 1
        if found["status"] != base["status"]:
            words = f"status {base['status']} -> {found['status']}"
            words += f" ({found['reason']})" if found.get("reason") else ""
            moves.append(Move(case, words, None, None, found["status"] != "ok"))
            continue
        for quantity in QUANTITIES:
            a, b = base[quantity.name], found[quantity.name]
            if a is None and b is None:
                continue
            if a is None or b is None:
                moves.append(Move(case, quantity.name, a, b, worse=b is None))
            elif a != b and (quantity.exact or quantity.worse(a, b) or quantity.worse(b, a)):
                # A move within tolerance both ways is noise, not worth a line.
                moves.append(Move(case, quantity.name, a, b, quantity.worse(a, b)))
    unknown = [case for case in head["cases"] if case not in baseline["cases"]]
    return Comparison(compared, moves, missing, unknown)


def _schema_moves(baseline: dict[str, Any], head: dict[str, Any]) -> list[Move]:
    """Fields of the record schema that came or went; a field gone is worse: someone reads it."""
    base, found = baseline.get("record_fields"), head.get("record_fields")
    if base is None or found is None:
        return []
    return [
        Move("every record", f"field {name} {word}", None, None, worse)
        for names, word, worse in (
            (set(base) - set(found), "vanished", True),
            (set(found) - set(base), "appeared", False),
        )
        for name in sorted(names)
    ]


def table(comparison: Comparison) -> str:
    """What moved, by how much, the worst first."""
    lines = []
    for move in sorted(comparison.moves, key=lambda m: (not m.worse, m.case)):
        words = ["WORSE " if move.worse else "better", move.case, move.quantity]
        if move.base is not None and move.head is not None:
            ends = (f"{x:,}" if isinstance(x, int) else f"{x:.4g}" for x in (move.base, move.head))
            words += [" -> ".join(ends), move.change]
        lines.append("  ".join(words))
    lines += [f"MISSING {case}" for case in comparison.missing]
    lines += [f"new     {case} (not in the baseline)" for case in comparison.unknown]
    worse = sum(move.worse for move in comparison.moves)
    lines.append(
        f"{comparison.compared} cases compared: {worse} worse, "
        f"{len(comparison.moves) - worse} better, {len(comparison.missing)} missing"
    )
    return "\n".join(lines)
