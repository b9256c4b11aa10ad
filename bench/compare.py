"""Two runs side by side: what must be equal, and how far the times are apart.

Bytes, statuses, iteration counts and residuals repeat on any machine with the same versions: the
regression gate's rules judge them. Times do not: a run elsewhere is faster or slower by a factor of
its own, so what repeats is each method's time relative to the others'.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.gate import Comparison, compare, summarise
from bench.records import read_records

#: resamples of the bootstrap over cases
_RESAMPLES = 4000
#: coverage of every interval
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Ratio:
    """Step times of the second run over those of the first, for one method or for all of them.

    `ratio` is the geometric mean over `cases`; `low` and `high` bound it by a bootstrap over cases
    (95 %), and are None for a single case, whose own quartiles say nothing of other cases.
    """

    method: str
    cases: int
    ratio: float
    low: float | None
    high: float | None

    def holds(self, factor: float) -> bool | None:
        """Whether the interval contains `factor`; None without an interval."""
        if self.low is None or self.high is None:
            return None
        return self.low <= factor <= self.high


@dataclass(frozen=True)
class Gap:
    """Gaps of one trained case over its seeds: (least, median, greatest) of either run."""

    case: str
    first: tuple[float, float, float]
    second: tuple[float, float, float]

    @property
    def overlap(self) -> bool:
        return self.first[0] <= self.second[2] and self.second[0] <= self.first[2]


@dataclass(frozen=True)
class Verdict:
    """A claim that both runs judged."""

    claim: str
    first: str
    second: str


@dataclass(frozen=True)
class SideBySide:
    """What `compare_runs` returns; `only_first` and `only_second` count cases of one run alone."""

    counts: Comparison
    speed: Ratio | None
    methods: tuple[Ratio, ...]
    gaps: tuple[Gap, ...]
    verdicts: tuple[Verdict, ...]
    only_first: int
    only_second: int
    versions: tuple[tuple[str, Any, Any], ...]

    @property
    def common(self) -> bool:
        """Whether the runs have anything to compare."""
        return bool(self.counts.compared or self.verdicts)

    @property
    def equal(self) -> bool:
        """Whether all that must repeat does: gated numbers, statuses and verdicts."""
        return not self.counts.moves and all(v.first == v.second for v in self.verdicts)


def compare_runs(first: Path, second: Path) -> SideBySide:
    """Compare the records and verdicts of two run directories, or of folders of such.

    Raises ValueError where either is not a directory.
    """
    a, b = ({_key(record): record for record in _records(path)} for path in (first, second))
    common = [key for key in a if key in b]
    pairs = [(a[key], b[key]) for key in common]
    methods: dict[str, list[float]] = {}
    for one, other in pairs:
        ratio = _time_ratio(one, other)
        if ratio is not None:
            methods.setdefault(str(one["case"]["gradient"]), []).append(ratio)
    everything = [ratio for ratios in methods.values() for ratio in ratios]
    # Cases of one run alone are counted, not compared: a part of a release is a fair run.
    counts = compare(summarise(one for one, _ in pairs), summarise(other for _, other in pairs))
    return SideBySide(
        counts=counts,
        speed=_ratio("all methods", everything) if everything else None,
        methods=tuple(_ratio(name, ratios) for name, ratios in sorted(methods.items())),
        gaps=tuple(_gaps(pairs)),
        verdicts=tuple(_verdicts(first, second)),
        only_first=len(a) - len(common),
        only_second=len(b) - len(common),
        versions=_versions(pairs),
    )


def text(found: SideBySide) -> str:
    """The comparison for a terminal, what must be equal first."""
    counts = found.counts
    lines = [
        f"cases in both runs (seed 0): {counts.compared}; records of the first alone: "
        f"{found.only_first}, of the second alone: {found.only_second}"
    ]
    lines += [
        f"version of {name}: {a or 'none'} and {b or 'none'}" for name, a, b in found.versions
    ]
    lines.append(f"exact counts and statuses: {'equal' if not counts.moves else 'DIFFERENT'}")
    for move in counts.moves:
        numbers = "" if move.base is None or move.head is None else f": {move.base} -> {move.head}"
        lines.append(f"  {move.case}: {move.quantity}{numbers} ({move.change})")
    for verdict in found.verdicts:
        word = "equal" if verdict.first == verdict.second else "DIFFERENT"
        lines.append(f"verdict {word}: {verdict.claim}: {verdict.first} -> {verdict.second}")
    if found.speed is not None:
        lines += ["", "step time, second run over first (95 % interval over cases)"]
        lines.append(_line(found.speed, None))
        lines += [_line(ratio, found.speed.ratio) for ratio in found.methods]
    if found.gaps:
        lines += ["", "optimality gap: least, median, greatest over seeds"]
    for gap in found.gaps:
        a, b = (
            ", ".join(f"{100 * value:.3g} %" for value in side) for side in (gap.first, gap.second)
        )
        lines.append(f"  {gap.case}: {a} | {b}{'' if gap.overlap else '  APART'}")
    return "\n".join(lines)


def _line(ratio: Ratio, factor: float | None) -> str:
    interval = "" if ratio.low is None else f" [{ratio.low:.3f}, {ratio.high:.3f}]"
    apart = "" if factor is None or ratio.holds(factor) is not False else "  apart from the others"
    return f"  {ratio.method:24} {ratio.ratio:.3f}{interval}  {ratio.cases} cases{apart}"


def _records(directory: Path) -> Iterator[dict[str, Any]]:
    if not directory.is_dir():
        raise ValueError(f"`DIR` {directory} is not a directory; pass one that `bench run` wrote")
    yield from read_records(directory)
    for inner in sorted(path for path in directory.iterdir() if path.is_dir()):
        if inner.name != "records":
            yield from read_records(inner)


def _key(record: Mapping[str, Any]) -> tuple[str, int]:
    return str(record["case"]["id"]), int(record["case"]["seed"])


def _time_ratio(one: Mapping[str, Any], other: Mapping[str, Any]) -> float | None:
    first, second = ((record.get("step_seconds") or {}).get("median") for record in (one, other))
    return second / first if first and second else None


def _ratio(name: str, ratios: list[float]) -> Ratio:
    logs = np.log(np.asarray(ratios))
    mean = float(np.exp(logs.mean()))
    if len(logs) < 2:
        return Ratio(name, len(logs), mean, None, None)
    picks = np.random.default_rng(0).integers(len(logs), size=(_RESAMPLES, len(logs)))
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.exp(np.quantile(logs[picks].mean(axis=1), (tail, 1 - tail)))
    return Ratio(name, len(logs), mean, float(low), float(high))


def _gaps(pairs: Iterable[tuple[dict[str, Any], dict[str, Any]]]) -> Iterator[Gap]:
    sides: dict[str, tuple[list[float], list[float]]] = {}
    for one, other in pairs:
        a, b = ((record.get("final") or {}).get("optimality_gap") for record in (one, other))
        if a is not None and b is not None:
            first, second = sides.setdefault(str(one["case"]["id"]), ([], []))
            first.append(a)
            second.append(b)
    for case, (first, second) in sides.items():
        yield Gap(case, _spread(first), _spread(second))


def _spread(values: list[float]) -> tuple[float, float, float]:
    return min(values), float(np.median(values)), max(values)


def _verdicts(first: Path, second: Path) -> Iterator[Verdict]:
    a, b = (_claims(directory) for directory in (first, second))
    yield from (Verdict(claim, a[claim], b[claim]) for claim in a if claim in b)


def _claims(directory: Path) -> dict[str, str]:
    claims: dict[str, str] = {}
    for path in sorted((*directory.glob("verify.json"), *directory.glob("*/verify.json"))):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            claims |= {str(c["claim"]): str(c["verdict"]) for c in content["claims"]}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"`DIR` {path} is not what `bench verify` writes: {error}") from error
    return claims


def _versions(
    pairs: Iterable[tuple[dict[str, Any], dict[str, Any]]],
) -> tuple[tuple[str, Any, Any], ...]:
    """Packages whose versions differ between the runs, as (name, first, second)."""
    different: dict[str, tuple[Any, Any]] = {}
    for one, other in pairs:
        a, b = one.get("versions") or {}, other.get("versions") or {}
        different |= {
            name: (a.get(name), b.get(name)) for name in {*a, *b} if a.get(name) != b.get(name)
        }
    return tuple((name, *values) for name, values in sorted(different.items()))
