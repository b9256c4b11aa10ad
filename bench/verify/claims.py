"""From measurements to seven verdicts, and what goes beyond them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from bench.verify.alignment import alignment
from bench.verify.beyond import derivative_error
from bench.verify.claim import NOT_MEASURED, PARTLY, REPRODUCED, Claim, Tables
from bench.verify.contractivity import contractivity
from bench.verify.memory_claim import memory
from bench.verify.open_questions import local_maximisers, mean_field
from bench.verify.resource_claims import cost, scale
from bench.verify.trace_claims import convergence, variance

#: per claim: the table it rests on, its judge, and what it says before there is any number
_JUDGES: tuple[tuple[str, Callable[[Tables], Claim], str], ...] = (
    ("traces", contractivity, "The fixed-point map contracts along training: |dT/du| < 1"),
    ("traces", alignment, "JFB's gradient is within 90 degrees of the true one"),
    ("traces", variance, "The minibatch gradient has bounded relative variance"),
    ("descent", convergence, "The true gradient norm falls along JFB-SGD"),
    ("memory", memory, "JFB's memory does not depend on K; unrolling's grows with it"),
    ("races", cost, "Comparable final cost per wall-clock second"),
    ("scale", scale, "100 quadrotors, 100 bicycles and 100 goods train"),
)


#: what the papers leave open: the table, and who answers
_OPEN: tuple[tuple[str, Callable[[Tables], Claim]], ...] = (
    ("derivatives", derivative_error),
    ("maximisers", local_maximisers),
    ("mean-field", mean_field),
)


def judge_claims(data: Tables, absent: Mapping[str, Sequence[str]] | None = None) -> list[Claim]:
    """Exactly seven rows; one whose table is missing says so.

    `absent`: by table, the measurements that crashed or have not been made. What they would have
    shown is not known, so that no claim they belong to is reproduced.
    """
    found = []
    for number, (table, judge, words) in enumerate(_JUDGES, start=1):
        if table in data:
            claim = judge(data)
        else:
            claim = Claim(number, words, "no data yet", NOT_MEASURED, "", None, "")
        names = (absent or {}).get(table, ())
        found.append(_without(claim, names) if names else claim)
    return found


def _without(claim: Claim, names: Sequence[str]) -> Claim:
    """`claim` where the measurements `names` are not there."""
    finding = f"Not there, and not taken as holding: {', '.join(names)}."
    verdict = PARTLY if claim.verdict == REPRODUCED else claim.verdict
    return replace(claim, verdict=verdict, findings=(*claim.findings, finding))


def judge_beyond(data: Tables) -> list[Claim]:
    """The supplementary rows whose data is there."""
    return [answer(data) for table, answer in _OPEN if table in data]
