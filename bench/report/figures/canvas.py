"""What all figures share: theme, panels, axes with units, legends and the strip of failures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    LogLocator,
    NullFormatter,
    NullLocator,
    StrMethodFormatter,
)

from bench.report.style import (
    FAILURES,
    Look,
    format_bytes,
    format_number,
    format_seconds,
    short,
)

#: rings around points whose inner solve stopped above the tolerance asked
_MISSED = "#C00000"
#: width of a figure [in]; the page shows it at its full width
WIDTH = 11.0

FORMATS = {
    "bytes": format_bytes,
    "seconds": format_seconds,
    "number": format_number,
    "percent": lambda value: f"{100 * value:,.0f}%" if value >= 0.1 else f"{100 * value:.3g}%",
}
_LANE = 0.085
_MOST_STRIP = 0.5
#: width of a letter of the strip's words, as a fraction of the narrowest axes in use
_LETTER = 0.026


@dataclass(frozen=True)
class Drawing:
    """One figure: file stem, heading of its section, caption, the figure itself."""

    name: str
    section: str
    caption: str
    figure: Figure


@dataclass(frozen=True)
class Lane:
    """One line of the strip of failures: where a series has no value, and the words why."""

    look: Look
    positions: Sequence[float]
    words: str


@contextmanager
def theme() -> Iterator[None]:
    """Light seaborn theme, readable in print, undone on leaving."""
    own: dict[Any, Any] = {
        "font.family": ["DejaVu Sans", "sans-serif"],
        "axes.edgecolor": "#555555",
        "axes.titlesize": 9.5,
        "axes.titlelocation": "left",
        "axes.labelsize": 9,
        "xtick.labelsize": 8.5,
        "ytick.labelsize": 8.5,
        "grid.color": "#e4e4e4",
        "grid.linewidth": 0.7,
        # letters as letters: smaller, and read aloud
        "svg.fonttype": "none",
        # the same records give the same SVG, byte for byte
        "svg.hashsalt": "jfbbench",
    }
    with sns.axes_style("whitegrid"), sns.plotting_context("paper"), mpl.rc_context(own):
        yield


def grid(rows: int, columns: int, height: float) -> tuple[Figure, np.ndarray]:
    """A figure of rows × columns axes, each row `height` inches, legends fitted in the layout."""
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, hspace=0.04, wspace=0.03)
    figure = Figure(figsize=(WIDTH, rows * height), layout=layout)
    return figure, figure.subplots(rows, columns, squeeze=False)


def scale_axis(ax: Axes, unit: str, values: Iterable[float], log: bool, lanes: int = 0) -> None:
    """Scale the y axis to `values`, leaving room at the top for `lanes` of failures."""
    finite = np.asarray([value for value in values if np.isfinite(value)], dtype=float)
    if log:
        finite = finite[finite > 0]
    if len(finite) == 0:
        finite = np.asarray([1.0])
    if log:
        ax.set_yscale("log", base=2 if unit == "bytes" else 10)
        low, high = np.log(finite.min()), np.log(finite.max())
        pad = max(0.08 * (high - low), np.log(1.3))
    else:
        low, high = finite.min(), finite.max()
        pad = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    low, high = low - pad, high + pad
    high = low + (high - low) / (1 - _strip_height(lanes))
    ax.set_ylim(*(np.exp([low, high]) if log else (low, high)))
    write = FORMATS[unit]
    if log or unit != "number":  # three digits do not tell the ticks of a narrow axis apart
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(write(value))))
    else:
        ax.yaxis.set_major_formatter(StrMethodFormatter("{x:,.7g}"))
    if log:
        narrow = high - low < np.log(200)
        if unit != "bytes":
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,)))
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.yaxis.set_minor_locator(NullLocator())


def log_counts(ax: Axes, values: Iterable[float], name: str) -> None:
    """A logarithmic x axis of whole numbers, with a tick at every value that occurs."""
    ticks = sorted(set(values))
    ax.set_xscale("log")
    ax.set_xlim(ticks[0] / 1.35, ticks[-1] * 1.35)
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel(name)


def failure_strip(ax: Axes, lanes: Sequence[Lane]) -> None:
    """Draw `lanes` on a grey strip at the top edge; the axes' limits are final by now."""
    if not lanes:
        return
    height = _strip_height(len(lanes))
    ax.add_patch(
        Rectangle((0, 1 - height), 1, height, transform=ax.transAxes, color="#f0f0f0", lw=0)
    )
    for number, lane in enumerate(lanes):
        step = height / len(lanes)
        y = 1 - (number + 0.5) * step
        place, align = _room(ax, lane)
        # no room beside the marks: the words go below them
        below = align is None
        ax.plot(
            lane.positions,
            [y + (0.22 * step if below else 0)] * len(lane.positions),
            transform=ax.get_xaxis_transform(),
            color=lane.look.color,
            marker=lane.look.marker,
            markersize=5.5,
            markeredgecolor="white",
            markeredgewidth=0.5,
            linestyle="none",
            clip_on=False,
            zorder=4,
        )
        ax.annotate(
            lane.words,
            (place, y - (0.3 * step if below else 0)),
            xycoords="axes fraction",
            xytext=({"left": 6, "right": -6}.get(align or "", 0), 0),
            textcoords="offset points",
            ha=align or "center",
            va="center_baseline",
            fontsize=6.5 if below else 7.5,
            color="#333333",
            zorder=5,
        )


def _room(ax: Axes, lane: Lane) -> tuple[float, str | None]:
    """Where along the axis a lane's words fit beside or between its marks.

    The place as a fraction of the axis, and the alignment there; None where they fit nowhere.
    """
    pixels = ax.transData.transform([(place, ax.get_ylim()[0]) for place in sorted(lane.positions)])
    marks = ax.transAxes.inverted().transform(pixels)[:, 0]
    edges = np.concatenate([[0.0], marks, [1.0]])
    gaps = np.diff(edges)
    widest = int(np.argmax(gaps))
    if gaps[widest] < _LETTER * (len(lane.words) + 1):
        return 0.5, None
    if widest == 0:
        return float(marks[0]), "right"
    if widest == len(marks):
        return float(marks[-1]), "left"
    return float(edges[widest : widest + 2].mean()), "center"


def failure_words(statuses: Iterable[str]) -> str:
    """The statuses in words, each once, in a fixed order."""
    present = set(statuses)
    return ", ".join(words for status, words in FAILURES.items() if status in present)


def handle(look: Look, label: str, hollow: bool = False) -> Line2D:
    """A legend entry in the look of a gradient."""
    return Line2D(
        [],
        [],
        color=look.color,
        marker=look.marker,
        markersize=6,
        markerfacecolor="white" if hollow else look.color,
        markeredgecolor=look.color if hollow else "white",
        markeredgewidth=1.0 if hollow else 0.6,
        linestyle=line_style(look),
        linewidth=1.5,
        label=label,
    )


def ring(ax: Axes, x: pd.Series, y: pd.Series) -> None:
    """Mark rows that stopped above the tolerance asked: not comparable with the others."""
    ax.plot(
        x,
        y,
        linestyle="none",
        marker="o",
        markersize=9.5,
        markerfacecolor="none",
        markeredgecolor=_MISSED,
        markeredgewidth=1.1,
        zorder=4,
    )


def ring_handle() -> Line2D:
    """The legend entry of `ring`."""
    entry = handle(Look(_MISSED, "o", ""), "residual not reached", hollow=True)
    entry.set_linestyle("none")
    return entry


def line_style(look: Look) -> Any:
    """The dashes of a look as matplotlib wants them."""
    return (0, look.dashes) if look.dashes else "-"


def legend_above(figure: Figure, handles: Sequence[Line2D], columns: int) -> None:
    """One legend for all panels, above them; of entries with the same words the first stands."""
    by_words: dict[object, Line2D] = {}
    for each in handles:
        by_words.setdefault(each.get_label(), each)
    figure.legend(
        handles=list(by_words.values()),
        loc="outside upper left",
        ncols=min(columns, len(by_words)),
        frameon=False,
        fontsize=8,
        columnspacing=1.4,
    )


def legend_right(ax: Axes, handles: Sequence[Line2D]) -> None:
    """A legend outside, right of the axes."""
    ax.legend(
        handles=list(handles),
        loc="upper left",
        bbox_to_anchor=(1.01, 1.02),
        frameon=False,
        fontsize=8,
        handlelength=2.4,
        borderaxespad=0.2,
        labelspacing=0.35,
    )


def seeds_in_words(counts: pd.Series) -> str:
    """How many seeds stand behind the points of a figure, such as "5 seeds" or "1 to 5 seeds"."""
    low, high = int(counts.min()), int(counts.max())
    if low == high:
        return f"{low} seed{'s' if low != 1 else ''}"
    return f"{low} to {high} seeds"


def spread_in_words(counts: pd.Series, what: str) -> str:
    """The sentence of a caption that says what lines and bands stand for."""
    if counts.max() == 1:
        return f"{what} are single runs (1 seed), so there are no bands."
    return f"{what} are medians over {seeds_in_words(counts)}, bands the interquartile range."


def _strip_height(lanes: int) -> float:
    return min(_LANE * lanes, _MOST_STRIP)
