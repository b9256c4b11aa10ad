"""Which commit of a range moved a gated quantity first, by bisection per moved case."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.gate.counts import Comparison, Move, compare
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
    later = git("rev-list", "--first-parent", "--reverse", f"{start}..{end}").decode().split()
    if not later:
        raise ValueError(f"`blame` {text} holds no commit; pass an older revision first")
    return [start, *later]


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
    # Several quantities of a case share its measurements.
    measured = functools.cache(lambda commit, case: measure(commit, [case]))
    return [_first(move, baseline, commits, measured) for move in comparison.moves if move.worse]


def _first(
    move: Move,
    baseline: Mapping[str, Any],
    commits: Sequence[str],
    measured: Callable[[str, str], Mapping[str, Any]],
) -> Blame:
    base = baseline["cases"].get(move.case)
    if base is None:
        reason = "a field of the schema: look for it in the history of bench/records.py"
        return Blame(move=move, commit=None, reason=reason)
    of_status = move.quantity.startswith("status ")

    def moved(commit: str) -> bool | None:
        """Whether `commit` has the move; None where it cannot be told."""
        head = measured(commit, move.case)["cases"].get(move.case)
        # Where the case itself breaks, its numbers have neither moved nor stayed.
        if head is None or (not of_status and head["status"] != base["status"]):
            return None
        again = compare({"cases": {move.case: base}}, {"cases": {move.case: head}}).moves
        # Of a status any change for the worse, whichever it is to.
        return any(
            other.worse
            and (other.quantity.startswith("status ") if of_status
                 else other.quantity == move.quantity)
            for other in again
        )  # fmt: skip

    for commit, wanted, reason in (
        (commits[-1], True, "not in the range: the last commit lacks it"),
        (commits[0], False, "older than the range: its start has it"),
    ):
        answer = moved(commit)
        if answer is None:
            reason = f"cannot be told: commit {commit[:10]} does not run"
        if answer is not wanted:
            return Blame(move=move, commit=None, reason=reason)
    good, bad, between = commits[0], commits[-1], list(commits[1:-1])
    while between:
        at = len(between) // 2
        answer = moved(middle := between[at])
        if answer is None:
            between.remove(middle)
        elif answer:
            bad, between = middle, between[:at]
        else:
            good, between = middle, between[at + 1 :]
    passed = commits.index(bad) - commits.index(good) - 1
    reason = f"or one of the {passed} before it, which do not run" if passed else ""
    return Blame(move=move, commit=bad, reason=reason)


def blame_table(found: Sequence[Blame]) -> str:
    """One line a move: the commit with its subject, or why there is none."""
    lines = []
    for one in found:
        words = one.reason
        if one.commit is not None:
            words = git("log", "-1", "--format=%h %an, %as: %s", one.commit).decode().strip()
            words += f" ({one.reason})" if one.reason else ""
        lines.append(f"blame  {one.move.case}  {one.move.quantity}  {words}")
    return "\n".join(lines)
