"""Optimality gaps of held-out costs, where a reference optimum is on file."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jfbcore.problems import Problem

GapFunction = Callable[[Sequence[float]], float | None]


def gaps(problem: Problem) -> tuple[GapFunction, str | None]:
    """A function from held-out costs to the gap, and the reason when it can only say None."""
    return lambda costs: None, "no reference optimum on file for this discretisation"
