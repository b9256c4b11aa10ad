"""Argument checks whose messages name the argument, the value found and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import field, fields
from numbers import Integral, Real
from typing import Any


def positive_int(name: str, value: object, hint: str = "") -> int:
    """Return `value` as an int, or raise: TypeError for a non-integer, ValueError below 1."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"`{name}` must be an integer >= 1, got {value!r}{_way_out(hint)}")
    if value < 1:
        raise ValueError(f"`{name}` must be >= 1, got {value}{_way_out(hint)}")
    return int(value)


def integer(name: str, value: object) -> int:
    """Return `value` as an int, or raise TypeError for a non-integer."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"`{name}` must be an integer, got {value!r}")
    return int(value)


def positive(name: str, value: object, hint: str = "") -> float:
    """Return `value` as a float, or raise unless it is a finite number above zero."""
    number = finite(name, value, hint)
    if number <= 0:
        raise ValueError(f"`{name}` must be > 0, got {value}{_way_out(hint)}")
    return number


def non_negative(name: str, value: object, hint: str = "") -> float:
    """Return `value` as a float, or raise unless it is a finite number at or above zero."""
    number = finite(name, value, hint)
    if number < 0:
        raise ValueError(f"`{name}` must be >= 0, got {value}{_way_out(hint)}")
    return number


def finite(name: str, value: object, hint: str = "") -> float:
    """Return `value` as a float, or raise unless it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"`{name}` must be a number, got {value!r}{_way_out(hint)}")
    try:
        number = float(value)
    except OverflowError:  # an integer beyond what a float can hold
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"`{name}` must be finite, got {value}{_way_out(hint)}")
    return number


Check = Callable[[str, Any], Any]


def parameter(default: Any, check: Check) -> Any:
    """A dataclass's field: `check(name, value)` returns the value to keep, or raises."""
    return field(default=default, metadata={"check": check})


def parameters(thing: Any) -> None:
    """Check every `parameter` of a dataclass's object, frozen or not."""
    for each in fields(thing):
        if check := each.metadata.get("check"):
            object.__setattr__(thing, each.name, check(each.name, getattr(thing, each.name)))


def optional(check: Check) -> Check:
    """`check` for what may be None, too."""
    return lambda name, value: None if value is None else check(name, value)


def points(dimension: int) -> Check:
    """`point` of so many coordinates."""
    return lambda name, value: point(name, value, dimension)


def one_size(**sizes: int | None) -> int:
    """The one of two names for a number of agents that was given; 1 where none was."""
    given = {name: size for name, size in sizes.items() if size is not None}
    first, second = sizes
    if len(given) == 2:
        raise TypeError(f"`{second}` is another name for `{first}`; give one of them")
    return next((positive_int(name, size) for name, size in given.items()), 1)


def point(name: str, value: object, dimension: int) -> tuple[float, ...]:
    """Return `value` as a tuple of `dimension` finite numbers, or raise."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise TypeError(f"`{name}` must be a sequence of {dimension} numbers, got {value!r}")
    if len(value) != dimension:
        raise ValueError(f"`{name}` must have {dimension} entries, got {value!r}")
    return tuple(finite(name, x) for x in value)


def matrix(name: str, value: object, size: int) -> tuple[tuple[float, ...], ...]:
    """Return `value`, nested sequences, an array or a tensor, as `size` rows of finite numbers."""
    rows = value.tolist() if hasattr(value, "tolist") else value
    wanted = f"`{name}` must be a {size} x {size} matrix of numbers"
    if not isinstance(rows, Sequence) or isinstance(rows, str):
        raise TypeError(f"{wanted}, got {value!r}")
    if len(rows) != size:
        raise ValueError(f"{wanted}, got {len(rows)} rows")
    return tuple(point(f"{name}[{i}]", row, size) for i, row in enumerate(rows))


def instance(name: str, value: object, kind: type, example: str) -> None:
    """Raise TypeError unless `value` is an object of `kind`; `example` is one, as code."""
    if not isinstance(value, kind):
        given = f"the class {value.__name__}" if isinstance(value, type) else repr(value)
        raise TypeError(
            f"`{name}` must be a {kind.__name__} object, got {given}; write {name}={example}"
        )


def one_of(name: str, value: object, allowed: Collection[object]) -> None:
    """Raise ValueError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"`{name}` must be one of {', '.join(map(str, allowed))}, got {value!r}")


def _way_out(hint: str) -> str:
    return f"; {hint}" if hint else ""
