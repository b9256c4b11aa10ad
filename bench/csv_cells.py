"""CSV cells that a spreadsheet must not run: text that begins as a formula does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

#: how a cell begins that spreadsheets take for a formula
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def cell(value: Any) -> Any:
    """`value`, with an apostrophe before text that a spreadsheet would run; numbers pass."""
    if not isinstance(value, str) or not value.startswith(_FORMULA) or _is_number(value):
        return value
    return f"'{value}"


def table(data: pd.DataFrame) -> pd.DataFrame:
    """`data` with every cell of text, and every heading, as `cell` has it."""
    text = data.select_dtypes(exclude="number").columns
    return data.assign(**{name: data[name].map(cell) for name in text}).rename(columns=cell)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
