"""The time gate: every timed case, base against head, and what to print of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench.ab.compare import OpenPair, Settings, TimeComparison, Verdict, compare_case, confirm
from bench.case import Case
from bench.gate import Outcome


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
