"""How every gradient looks, in every figure, and how quantities are written."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

DASH = "–"


@dataclass(frozen=True)
class Look:
    """Colour, marker and dashes of one gradient; any of the three alone tells most apart."""

    color: str
    marker: str
    dashes: tuple[float, ...] | str


#: families share a hue, members differ in lightness, marker and dashes; safe for colour-blind
#: readers and in grey print because marker and dashes repeat what the colour says
LOOKS: dict[str, Look] = {
    "jfb": Look("#0072B2", "o", ""),
    "jfb-3": Look("#56B4E9", "s", (4, 1.5)),
    "jfb-5": Look("#1B3A6B", "D", (4, 1.5, 1, 1.5)),
    "jfb-recompute": Look("#3A4FB2", "P", (1.5, 1.5)),
    "unrolled": Look("#D55E00", "^", ""),
    "unrolled-checkpoint": Look("#E69F00", "v", (4, 1.5)),
    "reversible": Look("#B8860B", "<", (6, 2)),
    "unrolled-network": Look("#7A2E00", "X", (1.5, 1.5)),
    "implicit": Look("#009E73", "s", ""),
    "implicit-lu": Look("#7FA37F", "*", (6, 2)),
    "implicit-cg": Look("#00543D", "P", (4, 1.5)),
    "implicit-gmres": Look("#63BFA0", "h", (4, 1.5, 1, 1.5)),
    "implicit-neumann": Look("#8A8D1A", "d", (1.5, 1.5)),
    "implicit-recompute": Look("#2E7D4F", "X", (6, 1.5, 1.5, 1.5)),
    "cvxpylayers": Look("#CC79A7", "D", ""),
    "cvxpylayers-scs": Look("#A34E78", "^", (4, 1.5)),
    "cvxpylayers-moreau": Look("#7B2F5B", "v", (1.5, 1.5)),
    "torchdeq": Look("#882255", "<", ""),
    "torchdeq-phantom": Look("#AA4499", ">", (4, 1.5)),
    "torchdeq-implicit": Look("#6B4A2B", "p", (4, 1.5, 1, 1.5)),
    "pretrained-jfb": Look("#0C3C6E", "o", (6, 2)),
    "direct": Look("#767676", "X", ""),
    "pretrained-direct": Look("#B05A7A", "d", (4, 1.5)),
    "closed-form": Look("#000000", "H", (1.5, 1.5)),
}

#: what an unknown name is drawn with
_SPARE = (
    ("#4B6584", "#7F6A00", "#A23B3B", "#3D7A7A", "#6D4C9F"),
    ("8", "P", "d", ">", "<", "p"),
    ((6, 2), (2, 1), (6, 1.5, 1.5, 1.5)),
)

#: statuses drawn at the top edge of a figure, and the words they are drawn with
FAILURES: dict[str, str] = {
    "out_of_memory": "out of memory",
    "timeout": "timeout",
    "diverged": "diverged",
    "crashed": "crashed",
}


def look(gradient: str) -> Look:
    """The fixed look of `gradient`; an unknown name gets one that depends on the name alone."""
    if gradient in LOOKS:
        return LOOKS[gradient]
    number, (colors, markers, dashes) = zlib.crc32(gradient.encode()), _SPARE
    return Look(colors[number % 5], markers[number // 7 % 6], dashes[number // 31 % 3])


def gradient_rank(gradient: str) -> tuple[int, str]:
    """Sort key: the order of `LOOKS`, then unknown names by alphabet."""
    names = list(LOOKS)
    return (names.index(gradient) if gradient in LOOKS else len(names), gradient)


def tint(color: str, share: float) -> str:
    """`color` mixed with `share` of white; tells settings of one gradient apart."""
    parts = [int(color[start : start + 2], 16) for start in (1, 3, 5)]
    return "#" + "".join(f"{round(part + (255 - part) * share):02x}" for part in parts)


def markdown_table(columns: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A table for Markdown, each cell on one line."""
    lines = [columns, ["---"] * len(columns), *rows]
    cells = [[" ".join(str(cell).split()).replace("|", "\\|") for cell in row] for row in lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def counted(number: object, noun: str) -> str:
    """A number and its noun, such as "1 seed" or "5 seeds"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def seeds_in_words(counts: pd.Series) -> str:
    """How many seeds stand behind something, such as "5 seeds" or "1 to 5 seeds"."""
    low, high = int(counts.min()), int(counts.max())
    return counted(low, "seed") if low == high else f"{low} to {high} seeds"


def sized(problem: str, number: object) -> str:
    """Agents of a problem, such as "6 agents"; consumption has goods."""
    return counted(number, "good" if problem == "consumption" else "agent")


def format_bytes(value: float) -> str:
    """Bytes with a binary prefix and three significant digits, such as 1.25 MiB."""
    size, units = float(value), ["B", "KiB", "MiB", "GiB", "TiB"]
    while abs(size) >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.0f} B" if units[0] == "B" else f"{_three_digits(size)} {units[0]}"


def format_seconds(value: float) -> str:
    """Seconds with three significant digits, in µs or ms where shorter; ∞ for a miss."""
    if math.isinf(value):
        return "∞"
    if value >= 1 or value == 0:
        return f"{_three_digits(value)} s"
    scale, unit = (1e3, "ms") if value >= 1e-3 else (1e6, "µs")
    return f"{_three_digits(value * scale)} {unit}"


def format_factor(value: float) -> str:
    """A multiple of the best, such as 1.0× or 12×."""
    return f"{value:,.0f}×" if value >= 10 else f"{value:.1f}×"


def format_percent(gap: float) -> str:
    """A share as per cent: one decimal below 10, none above; ∞ for a run that failed."""
    if not math.isfinite(gap):
        return "∞"
    if abs(gap) >= 0.1:
        return f"{100 * gap:,.0f}%"
    return f"{gap:.1%}" if abs(gap) >= 0.001 else f"{100 * gap:.2g}%"


def format_number(value: float) -> str:
    """Three significant digits, in powers of ten outside 0.001 to 100,000."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if 1e-3 <= abs(value) < 1e5:
        return _three_digits(value)
    return f"{value:.2e}"


def short(text: str) -> str:
    """`text` without the zeros that end its number's decimals: 1.50 MiB becomes 1.5 MiB.

    So does a power of ten's: 1.00e-04 becomes 1e-04.
    """
    number, space, unit = text.partition(" ")
    mantissa, e, exponent = number.partition("e")
    if "." in mantissa:
        mantissa = mantissa.rstrip("0").rstrip(".")
    return mantissa + e + exponent + space + unit


def _three_digits(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{2 if abs(value) < 10 else 1}f}" if abs(value) >= 1 else f"{value:.3g}"
