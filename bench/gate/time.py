"""Time, base against head, within one run on one machine: the only way that time is gated.

Steps of both are interleaved, in one pair of processes after the other, until an interval decides.
"""

from __future__ import annotations

import enum
import statistics
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import pandas as pd
from tqdm import tqdm

from bench.case import Case
from bench.gate.outcome import Outcome
from bench.gate.statistics import Interval, block_ratios, ratio_interval

#: steps of 5 to 15 ms, so that a pair of processes times all within five seconds; one of each kind
#: of work: one agent and many, iteration and linear solve, each problem
TIMED_CASES = (
    Case(problem="quadrotor", n_agents=1, gradient="jfb", batch_size=16, n_steps=10),
    Case(problem="quadrotor", n_agents=20, gradient="jfb", batch_size=16, n_steps=8),
    Case(problem="quadrotor", n_agents=1, gradient="unrolled", batch_size=16, n_steps=8),
    Case(problem="bicycle", n_agents=1, gradient="jfb", batch_size=16, n_steps=10),
    Case(problem="consumption", n_agents=5, gradient="implicit", batch_size=16, n_steps=6),
    Case(problem="consumption", n_agents=5, gradient="jfb", batch_size=16, n_steps=10),
)


class Verdict(enum.Enum):
    """What a comparison found; the value is the word in the table."""

    SLOWER = "SLOWER"
    VANISHED = "VANISHED"
    UNDECIDED = "UNDECIDED"
    SAME = "same"
    FASTER = "faster"
    NEW = "new"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """When time has regressed: the interval of the ratio lies above 1 + `threshold`.

    `looks`: after how many pairs of processes the interval is taken; a case ends at the first look
    that decides, and is undecided where the last does not. `confidence` is two-sided and per look.
    Of each case every pair times `blocks` blocks of four steps, after `warm_up` steps.
    """

    threshold: float = 0.04
    confidence: float = 0.99
    looks: tuple[int, ...] = (5, 8, 12, 16)
    blocks: int = 20
    warm_up: int = 3
    seed: int = 0


@dataclass(kw_only=True)
class TimeComparison:
    """One case's comparison: the block ratios of each pair of processes, `base_seconds` of all of
    base's steps, and what they decide. `reason` says why a side has no such case."""

    case: str
    verdict: Verdict = Verdict.UNDECIDED
    interval: Interval | None = None
    reason: str | None = None
    pairs: list[list[float]] = field(default_factory=list)
    base_seconds: list[float] = field(default_factory=list)

    @property
    def regressed(self) -> bool:
        return self.verdict in (Verdict.SLOWER, Verdict.VANISHED)

    @property
    def cells(self) -> dict[str, Any]:
        """The comparison as a line of a table."""
        found = self.interval
        median = statistics.median(self.base_seconds) if self.base_seconds else None
        return {
            "verdict": self.verdict.value,
            "case": self.case,
            "base_seconds": median,
            "ratio": found and found.ratio,
            "low": found and found.low,
            "high": found and found.high,
            "pairs": len(self.pairs),
            "blocks": sum(map(len, self.pairs)),
            "reason": self.reason,
        }


class Side(Protocol):
    """What is timed: a tree's process, or a test's simulation of one."""

    def build(self, case: Case, warm_up: int) -> str | None:
        """Prepare `case`; None, or the reason why this side has no such case."""

    def time(self) -> float:
        """Seconds of one step of the case built last."""


#: opens base and head, each in a process not used before
OpenPair = Callable[[], AbstractContextManager[tuple[Side, Side]]]


def compare_times(
    open_pair: OpenPair, cases: Sequence[Case], settings: Settings
) -> list[TimeComparison]:
    """Compare every case in as many pairs of processes as it takes to decide it.

    Each pair is new, because its memory layout is drawn anew: a ratio that came from the layout of
    one is part of the interval.
    """
    found = [TimeComparison(case=case.id) for case in cases]
    for count in tqdm(range(1, settings.looks[-1] + 1), unit="pair", leave=False, file=sys.stderr):
        left = [pair for pair in zip(found, cases, strict=True) if _is_open(pair[0])]
        if not left:
            break
        with open_pair() as (base, head):
            for one, case in left:
                _time_pair(one, base, head, case, settings)
        for one, _ in left:
            if count in settings.looks and one.reason is None:
                one.interval = ratio_interval(
                    one.pairs, confidence=settings.confidence, seed=settings.seed
                )
                one.verdict = judge(one.interval, settings)
    return found


def _is_open(one: TimeComparison) -> bool:
    return one.verdict is Verdict.UNDECIDED


def _time_pair(one: TimeComparison, base: Side, head: Side, case: Case, settings: Settings) -> None:
    """Add what one pair of processes measures of `case` to `one`."""
    old, new = base.build(case, settings.warm_up), head.build(case, settings.warm_up)
    if old is not None or new is not None:
        # A case that base has not either is nobody's regression.
        one.verdict = Verdict.NEW if old is not None else Verdict.VANISHED
        one.reason = old if new is None else new
        return
    times: dict[Side, list[float]] = {base: [], head: []}
    for _ in range(settings.blocks):
        # Only one of the two processes ever runs.
        for side in (base, head, head, base):
            times[side].append(side.time())
    one.pairs.append(block_ratios(times[base], times[head]))
    one.base_seconds += times[base]


def judge(interval: Interval, settings: Settings) -> Verdict:
    """What one interval says."""
    limit = 1 + settings.threshold
    if interval.low > limit:
        return Verdict.SLOWER
    if interval.high < 1 / limit:
        return Verdict.FASTER
    return Verdict.SAME if interval.high < limit else Verdict.UNDECIDED


def outcome_of(found: Sequence[TimeComparison]) -> Outcome:
    """REGRESSION where a case is slower or gone, else UNDECIDED where one is, else MISSING where
    nothing could be compared."""
    if any(one.regressed for one in found):
        return Outcome.REGRESSION
    if any(_is_open(one) for one in found):
        return Outcome.UNDECIDED
    return Outcome.PASS if any(one.interval is not None for one in found) else Outcome.MISSING


def time_table(found: Sequence[TimeComparison], settings: Settings) -> str:
    """One line a case, the regressions first."""
    lines = sorted(found, key=lambda one: (not one.regressed, not _is_open(one)))
    table = pd.DataFrame([one.cells for one in lines]).astype(object)
    limit = f"{1 + settings.threshold:g}"
    undecided = sum(map(_is_open, found))
    return "\n".join([
        table.where(table.notna(), "").to_string(index=False, float_format="{:.4g}".format),
        f"{sum(one.interval is not None for one in found)} cases timed: "
        f"{sum(one.regressed for one in found)} regressed (slower: the {settings.confidence:.0%} "
        f"interval of head/base above {limit}), {undecided} undecided"
        + f" (the interval still holds {limit}: run again on a quieter machine)" * (undecided > 0),
    ])  # fmt: skip
