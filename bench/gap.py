"""Optimality gaps of held-out costs, where a reference optimum is on file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.reference.cache import (
    Reference,
    StaleReference,
    load_reference,
    optimality_gap,
)
from bench.reference.closed_form import knows_optimum, reference_of
from jfbcore.problems import PROBLEMS, Problem


@dataclass(frozen=True)
class Gaps:
    """Gaps against `reference`; where there is none, `reason` says why."""

    reference: Reference | None
    reason: str | None

    def of(self, costs: Sequence[float]) -> float | None:
        """The mean gap of the costs of the first held-out states, None without a reference."""
        if self.reference is None or not self.states(costs):
            return None
        return optimality_gap(costs, self.reference)

    def best(self, costs: Sequence[float]) -> list[float | None] | None:
        """The reference of each state, None where it has none; None without any."""
        if self.reference is None:
            return None
        known = self.reference.costs[: len(costs)]
        return [*known, *[None] * (len(costs) - len(known))]

    def states(self, costs: Sequence[float]) -> int | None:
        """On how many of the states there is a reference, None without one."""
        if self.reference is None:
            return None
        return sum(best is not None for best in self.reference.costs[: len(costs)])


def gaps(problem: Problem) -> Gaps:
    """The gaps of `problem`. A file that cannot be used is a reason, not an error."""
    if type(problem) not in PROBLEMS.values():
        return Gaps(None, f"there is no reference for {problem.name}: it is not a built-in problem")
    try:
        reference = load_reference(problem)
    except StaleReference:
        return Gaps(None, "the reference optimum on file is for another discretisation")
    except (OSError, ValueError) as error:
        return Gaps(None, f"the reference optimum on file cannot be used: {error}")
    if reference is None and knows_optimum(problem):
        reference = reference_of(problem)
    if reference is None:
        return Gaps(None, "no reference optimum on file for this problem and size")
    return Gaps(reference, None)
