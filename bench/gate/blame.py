"""Which commit of a range moved a gated quantity first, by bisection per moved case."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.gate.counts import QUANTITIES, Comparison, Move, compare
from bench.gate.outcome import GateError
from bench.gate.trees import git, measure_cases, open_tree, resolve

#: the summary of some cases at a commit
Measure = Callable[[str, Sequence[str]], Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Blame:
    """Where a move began: `commit`, or None with `reason` saying why there is none to name."""

    move: Move
    commit: str | None
    reason: str = ""


def commits_of(text: str) -> list[str]:
    """The commits of FROM..TO along first parents, oldest first, FROM itself the first.

    Raises ValueError where `text` is no such range or holds no commit.
    """
    first, dots, last = text.partition("..")
    if not (first and dots and last) or "..." in text:
        raise ValueError(f"`blame` must be a range FROM..TO of revisions, got {text!r}")
    start, end = resolve("blame", first), resolve("blame", last)
    later = git("rev-list", "--first-parent", "--reverse", f"{start}..{end}").split()
    if not later:
        raise ValueError(f"`blame` {text} holds no commit; pass an older revision first")
    return [start, *later]


@dataclass
class _Measured:
    """Measurements by commit and case: several quantities of a case share one."""

    measure: Measure
    found: dict[tuple[str, str], Mapping[str, Any]] = field(default_factory=dict)

    def __call__(self, commit: str, case: str) -> Mapping[str, Any]:
        key = commit, case
        if key not in self.found:
            self.found[key] = self.measure(commit, [case])
        return self.found[key]


def measure_commit(commit: str, cases: Sequence[str]) -> Mapping[str, Any]:
    """The cases measured in a checkout of `commit`; nothing where it cannot be measured."""
    print(f"measuring {commit[:10]}: {', '.join(cases)}", file=sys.stderr)
    try:
        with open_tree("blame", commit) as tree:
            return measure_cases(tree, cases)
    except (ValueError, GateError):
        # A commit that does not run is passed over, as in `git bisect skip`.
        return {"versions": {}, "cases": {}}


def blame(
    comparison: Comparison,
    baseline: Mapping[str, Any],
    commits: Sequence[str],
    measure: Measure = measure_commit,
) -> list[Blame]:
    """The first commit with each of the comparison's moves for the worse."""
    measured = _Measured(measure)
    return [_first(move, baseline, commits, measured) for move in comparison.moves if move.worse]


def _first(
    move: Move, baseline: Mapping[str, Any], commits: Sequence[str], measured: _Measured
) -> Blame:
    def moved(commit: str) -> bool | None:
        """Whether `commit` has the move; None where it cannot be told."""
        head = measured(commit, move.case)
        if move.case not in head["cases"]:
            return None
        base, found = baseline["cases"][move.case], head["cases"][move.case]
        if _is_quantity(move) and found["status"] != base["status"]:
            # Where the case itself breaks, its numbers have neither moved nor stayed.
            return None
        only = {"cases": {move.case: baseline["cases"][move.case]}}
        again = compare(only, dict(head)).moves
        return any(other.worse and _same(move, other) for other in again)

    if move.case not in baseline["cases"]:
        reason = "a field of the schema: look for it in the history of bench/records.py"
        return Blame(move=move, commit=None, reason=reason)
    for commit, wanted, reason in (
        (commits[-1], True, "not in the range: the last commit lacks it"),
        (commits[0], False, "older than the range: its start has it"),
    ):
        answer = moved(commit)
        if answer is None:
            reason = f"cannot be told: commit {commit[:10]} does not run"
        if answer is not wanted:
            return Blame(move=move, commit=None, reason=reason)
    good, bad = 0, len(commits) - 1
    skipped: set[int] = set()
    while True:
        open_ = [i for i in range(good + 1, bad) if i not in skipped]
        if not open_:
            break
        middle = min(open_, key=lambda i: abs(2 * i - good - bad))
        answer = moved(commits[middle])
        if answer is None:
            skipped.add(middle)
        elif answer:
            bad = middle
        else:
            good = middle
    passed = bad - good - 1
    reason = f"or one of the {passed} before it, which do not run" if passed else ""
    return Blame(move=move, commit=commits[bad], reason=reason)


def _same(move: Move, other: Move) -> bool:
    """The same quantity, or both a change of status, whichever it is to."""
    if _is_quantity(move):
        return move.quantity == other.quantity
    return other.quantity.startswith("status ")


def _is_quantity(move: Move) -> bool:
    return move.quantity in {quantity.name for quantity in QUANTITIES}


def blame_table(found: Sequence[Blame]) -> str:
    """One line a move: the commit with its subject, or why there is none."""
    lines = []
    for one in found:
        words = one.reason
        if one.commit is not None:
            words = git("log", "-1", "--format=%h %an, %as: %s", one.commit)
            words += f" ({one.reason})" if one.reason else ""
        lines.append(f"blame  {one.move.case}  {one.move.quantity}  {words}")
    return "\n".join(lines)
