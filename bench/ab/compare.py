"""One comparison: interleaved steps until the interval decides, and a rerun before accusing."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bench.ab.process import TimedTree
from bench.ab.statistics import Interval, ratio_interval
from bench.case import Case


class Verdict(enum.Enum):
    """What a comparison found; the value is the word in the table."""

    SLOWER = "SLOWER"
    NOT_CONFIRMED = "not confirmed"
    SAME = "same"
    FASTER = "faster"
    UNDECIDED = "undecided"
    VANISHED = "VANISHED"
    NEW = "new"


#: what fails the gate
REGRESSIONS = (Verdict.SLOWER, Verdict.VANISHED)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """When time has regressed: the interval of the ratio lies above 1 + `threshold`.

    `threshold` is above what two processes with the same code differ by (memory layout: 1 to 2 %)
    and far enough below 10 %. `looks`: after how many blocks of four steps the interval is taken;
    a comparison ends at the first look that decides. `confidence` is two-sided and per look.
    """

    threshold: float = 0.04
    confidence: float = 0.99
    looks: tuple[int, ...] = (10, 20, 40, 80)
    warm_up: int = 3
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class TimeComparison:
    """One case's comparison. `first` and `rerun`: null where not measured; `reason` says why."""

    case: str
    verdict: Verdict
    first: Interval | None = None
    rerun: Interval | None = None
    base_seconds: float | None = None
    reason: str | None = None

    @property
    def regressed(self) -> bool:
        return self.verdict in REGRESSIONS


class Side(Protocol):
    """What is timed: a tree's process, or a test's simulation of one."""

    def build(self, case: Case, warm_up: int) -> str | None: ...

    def time(self) -> float: ...


#: opens base and head, each in a process not used before
OpenPair = Callable[[], AbstractContextManager[tuple[Side, Side]]]


def tree_pairs(base: Path, head: Path) -> OpenPair:
    """Starts one process per tree, both on this machine, and ends both."""

    @contextmanager
    def open_pair() -> Iterator[tuple[Side, Side]]:
        with TimedTree("base", base) as first, TimedTree("head", head) as second:
            first.wait_ready()
            second.wait_ready()
            yield first, second

    return open_pair


def sample(base: Side, head: Side, settings: Settings) -> tuple[Interval, float]:
    """Interleaved blocks up to the look that decides; the interval and base's median second."""
    base_seconds: list[float] = []
    head_seconds: list[float] = []
    interval: Interval | None = None
    for look in settings.looks:
        while len(base_seconds) < 2 * look:
            # ABBA; only one of the two processes ever runs.
            base_seconds.append(base.time())
            head_seconds.append(head.time())
            head_seconds.append(head.time())
            base_seconds.append(base.time())
        interval = ratio_interval(
            base_seconds, head_seconds, confidence=settings.confidence, seed=settings.seed
        )
        if judge(interval, settings) is not Verdict.UNDECIDED:
            break
    assert interval is not None, "`looks` holds at least one"
    return interval, sorted(base_seconds)[len(base_seconds) // 2]


def judge(interval: Interval, settings: Settings) -> Verdict:
    """What one interval says by itself."""
    limit = 1 + settings.threshold
    if interval.low > limit:
        return Verdict.SLOWER
    if interval.high < 1 / limit:
        return Verdict.FASTER
    return Verdict.SAME if interval.high < limit else Verdict.UNDECIDED


def compare_case(base: Side, head: Side, case: Case, settings: Settings) -> TimeComparison:
    """The first measurement of `case`; slower is provisional until `confirm`."""
    old, new = base.build(case, settings.warm_up), head.build(case, settings.warm_up)
    if new is not None:
        # A case that base has not either is nobody's regression.
        verdict = Verdict.NEW if old is not None else Verdict.VANISHED
        return TimeComparison(case=case.id, verdict=verdict, reason=new)
    if old is not None:
        return TimeComparison(case=case.id, verdict=Verdict.NEW, reason=old)
    interval, seconds = sample(base, head, settings)
    return TimeComparison(
        case=case.id, verdict=judge(interval, settings), first=interval, base_seconds=seconds
    )


def confirm(
    found: TimeComparison, base: Side, head: Side, case: Case, settings: Settings
) -> TimeComparison:
    """`found` again, in processes not used before; slower stands only if both say so."""
    again = compare_case(base, head, case, settings)
    verdict = found.verdict if again.verdict is Verdict.SLOWER else Verdict.NOT_CONFIRMED
    return TimeComparison(
        case=found.case,
        verdict=verdict,
        first=found.first,
        rerun=again.first,
        base_seconds=found.base_seconds,
        reason=again.reason,
    )
