"""Two runs side by side: what must be equal, and how far the times are apart.

Bytes, statuses, iteration counts and residuals repeat on any machine with the same versions: the
regression gate's rules judge them. Times do not: a run elsewhere is faster or slower by a factor of
its own, so what repeats is each method's time relative to the others'.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from bench.gate.counts import Comparison, compare, summarise
from bench.records import RecordError, read_object, read_records

#: coverage of the interval of all ratios, and of those of all methods together
_CONFIDENCE = 0.95

Record = dict[str, Any]


@dataclass(frozen=True)
class Ratio:
    """A geometric mean of ratios over `cases`, within [low, high] but for chance.

    Of all methods together it is the second run's step time over the first's. Of one method it is
    how much more its step times changed than the others' did: 1 where the two machines agree on
    how fast it is beside them. `low` and `high` are None where there are too few cases.
    """

    method: str
    cases: int
    ratio: float
    low: float | None = None
    high: float | None = None

    @property
    def apart(self) -> bool:
        """Whether the interval leaves out 1."""
        return self.low is not None and self.high is not None and not self.low <= 1 <= self.high


@dataclass(frozen=True)
class SideBySide:
    """What `compare_runs` returns; `only` counts the records of the first and second run alone.

    `speed`: of the machines, by all step times; `ratios`: of each method beside the others. `gaps`:
    by case, least, median and greatest over seeds of either run. `verdicts`: by claim, of either
    run. `versions`: by package, those that differ.
    """

    counts: Comparison
    speed: Ratio | None
    ratios: tuple[Ratio, ...]
    gaps: Mapping[str, tuple[tuple[float, float, float], ...]]
    verdicts: Mapping[str, tuple[str, str]]
    only: tuple[int, int]
    versions: Mapping[str, tuple[Any, Any]]

    @property
    def common(self) -> bool:
        """Whether the runs have anything to compare."""
        return bool(self.counts.compared or self.verdicts)

    @property
    def equal(self) -> bool:
        """Whether all that must repeat does: gated numbers, statuses and verdicts."""
        return not self.counts.moves and all(a == b for a, b in self.verdicts.values())


def compare_runs(first: Path, second: Path) -> SideBySide:
    """Compare the records and verdicts of two run directories, or of folders of such.

    Raises ValueError where either is not a directory.
    """
    a, b = ({(r["case"]["id"], r["case"]["seed"]): r for r in _records(d)} for d in (first, second))
    pairs = [(a[key], b[key]) for key in a if key in b]
    times: dict[str, list[float]] = {}
    gaps: dict[str, list[tuple[float, float]]] = {}
    versions: dict[str, tuple[Any, Any]] = {}
    for pair in pairs:
        case = pair[0]["case"]
        before, after = ((record.get("step_seconds") or {}).get("median") for record in pair)
        if before and after:
            times.setdefault(case["gradient"], []).append(after / before)
        one, other = ((record.get("final") or {}).get("optimality_gap") for record in pair)
        if one is not None and other is not None:
            gaps.setdefault(case["id"], []).append((one, other))
        old, new = (record.get("versions") or {} for record in pair)
        for name in sorted({*old, *new}):
            if old.get(name) != new.get(name):
                versions[name] = (old.get(name), new.get(name))
    # Cases of one run alone are counted, not compared: a part of a release is a fair run.
    counts = compare(summarise(one for one, _ in pairs), summarise(other for _, other in pairs))
    mine, yours = _claims(first), _claims(second)
    return SideBySide(
        counts=counts,
        speed=_speed(times),
        ratios=tuple(_beside_others(name, times) for name in sorted(times) if len(times) > 1),
        gaps={case: tuple(map(_spread, zip(*own, strict=True))) for case, own in gaps.items()},
        verdicts={claim: (mine[claim], yours[claim]) for claim in mine if claim in yours},
        only=(len(a) - len(pairs), len(b) - len(pairs)),
        versions=versions,
    )


def overlap(gaps: tuple[tuple[float, float, float], ...]) -> bool:
    """Whether the ranges of both runs over seeds meet."""
    one, other = gaps
    return one[0] <= other[2] and other[0] <= one[2]


def text(found: SideBySide) -> str:
    """The comparison for a terminal, what must be equal first."""
    return "\n".join(_lines(found))


def _lines(found: SideBySide) -> Iterator[str]:
    counts = found.counts
    yield (
        f"cases in both runs (seed 0): {counts.compared}; records of the first alone: "
        f"{found.only[0]}, of the second alone: {found.only[1]}"
    )
    for name, (one, other) in found.versions.items():
        yield f"version of {name}: {one or 'none'} and {other or 'none'}"
    yield f"exact counts and statuses: {'equal' if not counts.moves else 'DIFFERENT'}"
    for move in counts.moves:
        numbers = "" if move.base is None or move.head is None else f": {move.base} -> {move.head}"
        yield f"  {move.case}: {move.quantity}{numbers} ({move.change})"
    for claim, (one, other) in found.verdicts.items():
        yield f"verdict {'equal' if one == other else 'DIFFERENT'}: {claim}: {one} -> {other}"
    if found.speed is not None:
        yield from ("", "step time, second run over first (95 % interval over cases)")
        yield _row(found.speed)
    if found.ratios:
        yield "of each method, relative to the others (95 % that all intervals hold)"
    for ratio in found.ratios:
        yield _row(ratio) + ("  APART" if ratio.apart else "")
    if found.gaps:
        yield from ("", "optimality gap: least, median, greatest over seeds")
    for case, both in found.gaps.items():
        sides = " | ".join(", ".join(f"{100 * value:.3g} %" for value in side) for side in both)
        yield f"  {case}: {sides}{'' if overlap(both) else '  APART'}"


def _records(directory: Path) -> Iterator[Record]:
    if not directory.is_dir():
        raise ValueError(f"`DIR` {directory} is not a directory; pass one that `bench run` wrote")
    yield from read_records(directory)
    for inner in sorted(path for path in directory.iterdir() if path.is_dir()):
        if inner.name != "records":
            yield from read_records(inner)


def _row(ratio: Ratio) -> str:
    interval = "" if ratio.low is None else f" [{ratio.low:.3f}, {ratio.high:.3f}]"
    return f"  {ratio.method:24} {ratio.ratio:.3f}{interval}  {ratio.cases} cases"


def _speed(times: Mapping[str, list[float]]) -> Ratio | None:
    """Of all ratios of step times together, with Student's interval of their logarithms."""
    logs = np.log([ratio for own in times.values() for ratio in own])
    if not len(logs):
        return None
    if len(logs) < 2:
        return Ratio("all methods", len(logs), float(np.exp(logs.mean())))
    half = stats.t.ppf((1 + _CONFIDENCE) / 2, len(logs) - 1) * stats.sem(logs)
    low, middle, high = np.exp(logs.mean() + half * np.array([-1, 0, 1]))
    return Ratio("all methods", len(logs), float(middle), float(low), float(high))


def _beside_others(name: str, times: Mapping[str, list[float]]) -> Ratio:
    """One method's ratios over those of all others, with Welch's interval of their logarithms.

    Wide enough for as many methods as there are (Bonferroni).
    """
    own = np.log(times[name])
    rest = np.log([ratio for other in times if other != name for ratio in times[other]])
    ratio = float(np.exp(own.mean() - rest.mean()))
    if min(len(own), len(rest)) < 2 or own.std() == rest.std() == 0:
        return Ratio(name, len(own), ratio)
    welch = stats.ttest_ind(own, rest, equal_var=False)
    interval = welch.confidence_interval(1 - (1 - _CONFIDENCE) / len(times))
    return Ratio(name, len(own), ratio, float(np.exp(interval.low)), float(np.exp(interval.high)))


def _spread(values: tuple[float, ...]) -> tuple[float, float, float]:
    return min(values), float(np.median(values)), max(values)


def _claims(directory: Path) -> dict[str, str]:
    claims: dict[str, str] = {}
    for path in sorted((*directory.glob("verify.json"), *directory.glob("*/verify.json"))):
        try:
            content = read_object(path) or {}
            claims |= {str(c["claim"]): str(c["verdict"]) for c in content["claims"]}
        except (RecordError, KeyError, TypeError) as error:
            raise ValueError(f"`DIR` {path} is not what `bench verify` writes: {error}") from error
    return claims
