"""Time, base against head, within one run on one machine: the only way that time is gated.

Steps of both are interleaved until an interval decides; what looks slower is timed again.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bench.case import Case
from bench.gate.outcome import Outcome
from bench.gate.process import TimedTree
from bench.gate.statistics import Interval, ratio_interval

#: steps of 10 to 40 ms, so that a hundred fit into seconds; one of each kind of work: one agent
#: and many, iteration and linear solve, each problem
TIMED_CASES = (
    Case(problem="quadrotor", n_agents=1, gradient="jfb", batch_size=16, n_steps=20),
    Case(problem="quadrotor", n_agents=20, gradient="jfb", batch_size=16, n_steps=12),
    Case(problem="quadrotor", n_agents=1, gradient="unrolled", batch_size=16, n_steps=16),
    Case(problem="bicycle", n_agents=1, gradient="jfb", batch_size=16, n_steps=20),
    Case(problem="consumption", n_agents=5, gradient="implicit", batch_size=16, n_steps=12),
    Case(problem="consumption", n_agents=5, gradient="jfb", batch_size=16, n_steps=20),
)


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


def compare_times(
    open_pair: OpenPair, cases: Iterable[Case], settings: Settings
) -> list[TimeComparison]:
    """Compare every case in one pair of processes, and whatever looks slower in another.

    The rerun has processes of its own because their memory layout is drawn anew: a ratio that
    came from the layout does not come back.
    """
    with open_pair() as (base, head):
        found = [(case, compare_case(base, head, case, settings)) for case in cases]
    if not any(one.verdict is Verdict.SLOWER for _, one in found):
        return [one for _, one in found]
    with open_pair() as (base, head):
        return [
            confirm(one, base, head, case, settings) if one.verdict is Verdict.SLOWER else one
            for case, one in found
        ]


def outcome_of(found: Sequence[TimeComparison]) -> Outcome:
    """REGRESSION where a case is slower or gone, MISSING where nothing could be compared."""
    if any(one.regressed for one in found):
        return Outcome.REGRESSION
    return Outcome.PASS if any(one.first is not None for one in found) else Outcome.MISSING


def time_table(found: Sequence[TimeComparison], settings: Settings) -> str:
    """One line a case, the regressions first."""
    lines = []
    for one in sorted(found, key=lambda one: not one.regressed):
        line = f"{one.verdict.value:<13}  {one.case}"
        if one.first is not None and one.base_seconds is not None:
            line += f"  {one.base_seconds * 1e3:.1f} ms x {one.first}, {one.first.blocks} blocks"
        if one.rerun is not None:
            line += f"; rerun {one.rerun}"
        if one.reason is not None:
            line += f"  ({one.reason})"
        lines.append(line)
    regressed = sum(one.regressed for one in found)
    lines.append(
        f"{sum(one.first is not None for one in found)} cases timed: {regressed} regressed "
        f"(slower: the {settings.confidence:.0%} interval of head/base above "
        f"{1 + settings.threshold:g}, twice)"
    )
    return "\n".join(lines)
