"""A requirement, and what came of checking one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.failures import words_of


class Unmet(AssertionError):  # noqa: N818 - a result, not an error
    """A requirement does not hold; the message says what was seen."""


@dataclass(frozen=True)
class Requirement:
    """Something that must hold: `holds` returns a remark or None, and raises where it does not.

    `what` completes "it holds that", `remedy` says what to do where it does not. Without an
    `essential` one the others cannot be checked.
    """

    what: str
    remedy: str
    holds: Callable[[Any], str | None]
    essential: bool = False


def requirement(
    what: str, remedy: str, *, essential: bool = False
) -> Callable[[Callable[[Any], str | None]], Requirement]:
    """Makes a requirement of the function that is decorated."""
    return lambda holds: Requirement(what, remedy, holds, essential)


def declared(names: Mapping[str, object]) -> tuple[Requirement, ...]:
    """The requirements of a module, given its names, in the order in which it declares them."""
    return tuple(value for value in names.values() if isinstance(value, Requirement))


@dataclass(frozen=True)
class Outcome:
    """Whether a requirement holds, and a remark: a figure, or what was seen instead."""

    requirement: Requirement
    holds: bool
    remark: str | None


def judge(requirements: Sequence[Requirement], subject: object) -> Iterator[Outcome]:
    """Check one requirement after the other; an essential one that is not met is the last."""
    for requirement in requirements:
        try:
            remark = requirement.holds(subject)
        except Unmet as error:
            yield Outcome(requirement, False, str(error))
        except Exception as error:  # whatever the code under test raises
            yield Outcome(requirement, False, words_of(error))
        else:
            yield Outcome(requirement, True, remark)
            continue
        if requirement.essential:
            return


def require(condition: object, seen: str) -> None:
    """Raise Unmet, which says what was `seen`, unless `condition` holds."""
    if not condition:
        raise Unmet(seen)


def require_close(value: Tensor, expected: Tensor, what: str) -> None:
    """Raise Unmet unless two float64 evaluations of one formula agree to rounding."""
    require(
        value.shape == expected.shape,
        f"{what} has shape {tuple(value.shape)}, expected {tuple(expected.shape)}",
    )
    if expected.numel() == 0:
        return
    size = max(1.0, expected.abs().max().item())
    error = (value - expected).abs().max().item()
    # Rounding, times a few dozen terms that may cancel.
    require(error <= 1e-10 * size, f"{what} is off by {error:.2g} where values reach {size:.2g}")


def require_finite(value: Tensor, what: str) -> None:
    """Raise Unmet where `value` has an infinity or a NaN."""
    wrong = int((~torch.isfinite(value)).sum())
    require(wrong == 0, f"{what}: {wrong} of {value.numel()} numbers are not finite")


def require_tensor(value: object, shape: tuple[int, ...], dtype: torch.dtype, what: str) -> None:
    """Raise Unmet unless `value` is a tensor of this shape and dtype."""
    if not isinstance(value, Tensor):
        raise Unmet(f"{what} is {type(value).__name__}, expected a tensor")
    require(tuple(value.shape) == shape, f"{what} has shape {tuple(value.shape)}, expected {shape}")
    require(value.dtype == dtype, f"{what} is {value.dtype}, expected {dtype}")
