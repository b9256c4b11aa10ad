"""Narrowing a list of cases by KEY=VALUE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from bench.case import Case
from bench.plugins import shown


def narrowed(cases: list[Case], filters: Sequence[str], where: str) -> list[Case]:
    """The cases that match every KEY=VALUE filter; `where` names their origin in errors.

    A filter's value may list alternatives, separated by commas; `none` is a field that is null.
    ValueError for a filter that is not KEY=VALUE, an unknown key, or when nothing is left, with
    what the key may be.
    """
    names = ["id", *(field.name for field in fields(Case))]
    for entry in filters:
        key, separator, value = entry.partition("=")
        if not separator:
            raise ValueError(f"`filter` must be KEY=VALUE, got {entry!r}")
        if key not in names:
            raise ValueError(f"`filter` key must be one of {', '.join(names)}, got {key!r}")
        wanted = value.split(",")
        values = list(dict.fromkeys(getattr(case, key) for case in cases))
        kept = [each for each in values if any(_spells(text, each) for text in wanted)]
        if not kept:
            raise ValueError(
                f"`filter` {' '.join(filters)} leaves no case of {where}: {key} may be "
                f"{_listed(values, 3 if key == 'id' else 12)} there, got {value!r}"
            )
        cases = [case for case in cases if getattr(case, key) in kept]
    return cases


def _listed(values: Sequence[object], most: int) -> str:
    texts = ["none" if value is None else shown(str(value)) for value in values[:most]]
    return ", ".join(texts) + (f" or one of {len(values) - most} more" * (len(values) > most))


def _spells(text: str, value: object) -> bool:
    """Whether `text` is a way to write `value`, as Python, JSON or a shell user would."""
    if value is None:
        return text.lower() in ("none", "null")
    if isinstance(value, bool):
        return text.lower() == str(value).lower()
    if isinstance(value, int | float):
        try:
            return float(text) == value
        except ValueError:
            return False
    return text in (value, shown(str(value)))
