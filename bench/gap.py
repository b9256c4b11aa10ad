"""Optimality gaps of held-out costs, where a reference optimum is on file."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bench.environment import ROOT
from bench.reference import StaleReference, load_reference, optimality_gap
from jfbcore.problems import Problem

GapFunction = Callable[[Sequence[float]], float | None]


def gaps(problem: Problem) -> tuple[GapFunction, str | None]:
    """A function from held-out costs to the gap, and the reason when it can only say None."""
    try:
        reference = load_reference(problem, ROOT / "reports" / "references")
    except StaleReference:
        return _none, "the reference optimum on file is for another discretisation"
    if reference is None:
        return _none, "no reference optimum on file for this problem and size"
    return lambda costs: optimality_gap(costs, reference), None


def _none(costs: Sequence[float]) -> None:
    return None
