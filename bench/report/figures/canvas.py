"""What all figures share: theme, panels, axes with units, legends and the strip of failures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, NullLocator

from bench.report.figures.hover import titled
from bench.report.style import (
    FAILURES,
    Look,
    format_bytes,
    format_number,
    format_seconds,
    seeds_in_words,
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
#: height of a line of the strip of failures, and of the strip at most, as shares of the axes
_LANE, _MOST_STRIP = 0.085, 0.5


class Drawing(NamedTuple):
    """One figure: file stem, heading of its section, caption, the figure itself."""

    name: str
    section: str
    caption: str
    figure: Figure


class Lane(NamedTuple):
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
        "legend.frameon": False,
        "legend.fontsize": 8,
        # letters as letters: smaller, and read aloud
        "svg.fonttype": "none",
        # the same records give the same SVG, byte for byte
        "svg.hashsalt": "jfbbench",
    }
    with sns.axes_style("whitegrid"), sns.plotting_context("paper"), mpl.rc_context(own):
        yield


def save(figure: Figure, vector: Path, dots_per_inch: float | None = None) -> Path:
    """Write `figure` as the SVG `vector`, with words on hovering, and return its path.

    With `dots_per_inch` a PNG lies beside it.
    """
    with theme():
        # the layout is solved once and kept for both files
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        # no date in the file, so that the same records give the same bytes
        figure.savefig(vector, metadata={"Date": None})
        titled(vector)
        if dots_per_inch is not None:
            figure.savefig(vector.with_suffix(".png"), dpi=dots_per_inch)
    return vector


def grid(count: int, columns: int, height: float) -> tuple[Figure, np.ndarray]:
    """A figure of `count` axes in rows of `columns`, each `height` inches, and an array of them.

    Legends are fitted in the layout; axes that fill the last row are hidden.
    """
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, hspace=0.04, wspace=0.03)
    columns = max(1, min(columns, count))
    rows = max(1, -(-count // columns))
    figure = Figure(figsize=(WIDTH, rows * height), layout=layout)
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat[count:]:
        ax.set_visible(False)
    return figure, axes


def paged(items: list[Any], most: int) -> list[tuple[str, list[Any]]]:
    """`items` in pages of `most`, each with the end of its file name: "-1", … of several."""
    pages = [items[start : start + most] for start in range(0, len(items), most)]
    return [(f"-{i}" if len(pages) > 1 else "", page) for i, page in enumerate(pages, 1)]


def scale_axis(ax: Axes, unit: str, values: Iterable[float], log: bool, lanes: int = 0) -> None:
    """Scale the y axis to `values`, leaving room at the top for `lanes` of failures."""
    finite = np.asarray([value for value in values if np.isfinite(value)], dtype=float)
    finite = finite[finite > 0] if log else finite
    if len(finite) == 0:
        finite = np.asarray([1.0])
    low, high = finite.min(), finite.max()
    if log:
        ax.set_yscale("log", base=2 if unit == "bytes" else 10)
        low, high = np.log([low, high])
        pad = max(0.08 * (high - low), np.log(1.3))
    else:
        pad = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    low, high = low - pad, high + pad
    high = low + (high - low) / (1 - _strip_height(lanes))
    ax.set_ylim(*(np.exp([low, high]) if log else (low, high)))
    write = FORMATS[unit]
    if log or unit != "number":  # three digits do not tell the ticks of a narrow axis apart
        ax.yaxis.set_major_formatter(lambda value, _: short(write(value)))
    else:
        ax.yaxis.set_major_formatter("{x:,.7g}")
    if log:
        narrow = high - low < np.log(200)
        if unit != "bytes":
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,)))
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.yaxis.set_minor_locator(NullLocator())


def log_counts(ax: Axes, values: Iterable[float], name: str) -> None:
    """A logarithmic x axis of whole numbers, with a tick at every value that occurs."""
    ticks = sorted(set(values))
    ax.set(xscale="log", xlim=(ticks[0] / 1.35, ticks[-1] * 1.35), xlabel=name)
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_locator(NullLocator())


def curve(ax: Axes, look: Look, x: Any, band: pd.DataFrame, every: int = 1) -> None:
    """The line `median` with a marker at each `every`-th point, and the band `low` to `high`."""
    ax.fill_between(x, band["low"], band["high"], color=look.color, alpha=0.16, linewidth=0)
    line = handle(look, "_")
    line.set(xdata=x, ydata=band["median"], markevery=every)
    ax.add_line(line)


def failure_strip(ax: Axes, lanes: Sequence[Lane]) -> None:
    """Draw `lanes` on a grey strip at the top edge; the axes' limits are final by now.

    The words stand beside marks in one half of the axes, and below marks in both.
    """
    height, bottom = _strip_height(len(lanes)), ax.get_ylim()[0]
    strip = Rectangle((0, 1 - height), 1, height, transform=ax.transAxes, color="#f0f0f0", lw=0)
    ax.add_patch(strip)
    for number, lane in enumerate(lanes):
        step = height / len(lanes)
        y = 1 - (number + 0.5) * step
        places = [(x, bottom) for x in lane.positions]
        marks = (ax.transScale + ax.transLimits).transform(places)[:, 0]
        x, align, drop, size = 0.5, "center", 0.3 * step, 6.5
        if marks.min() > 0.5:
            x, align, drop, size = marks.min() - 0.02, "right", 0.0, 7.5
        elif marks.max() < 0.5:
            x, align, drop, size = marks.max() + 0.02, "left", 0.0, 7.5
        entry = handle(lane.look, "_", line=False)
        entry.set(transform=ax.get_xaxis_transform(), clip_on=False, zorder=4, markersize=5.5)
        entry.set_data(list(lane.positions), [y + 0.7 * drop] * len(marks))
        ax.add_line(entry)
        ax.text(x, y - drop, lane.words, transform=ax.transAxes, fontsize=size, zorder=5,
                ha=align, va="center_baseline", color="#333333")  # fmt: skip


def named_lines(ax: Axes, names: Sequence[str], **text: Any) -> None:
    """A line across the axes for each of `names`, the first on top."""
    ax.set_yticks(range(len(names)), names, **text)
    ax.set_ylim(len(names) - 0.5, -0.5)


def failure_words(statuses: Iterable[str]) -> str:
    """The statuses in words, each once, in a fixed order."""
    present = set(statuses)
    return ", ".join(words for status, words in FAILURES.items() if status in present)


def handle(look: Look, label: str, hollow: bool = False, line: bool = True) -> Line2D:
    """A legend entry in the look of a gradient; without `line` a marker alone."""
    return Line2D(
        [],
        [],
        color=look.color,
        marker=look.marker,
        markersize=6,
        markerfacecolor="white" if hollow else look.color,
        markeredgecolor=look.color if hollow else "white",
        markeredgewidth=1.0 if hollow else 0.6,
        linestyle=line_style(look) if line else "none",
        linewidth=1.5,
        label=label,
    )


def ring(ax: Axes, x: pd.Series, y: pd.Series) -> Line2D:
    """Mark rows that stopped above the tolerance asked, and return the entry of the legend."""
    ax.plot(x, y, "o", markersize=9.5, markerfacecolor="none", markeredgecolor=_MISSED,
            markeredgewidth=1.1, zorder=4)  # fmt: skip
    return handle(Look(_MISSED, "o", ""), "residual not reached", hollow=True, line=False)


def line_style(look: Look) -> Any:
    """The dashes of a look as matplotlib wants them."""
    return (0, look.dashes) if look.dashes else "-"


def legend_above(figure: Figure, handles: Sequence[Line2D], columns: int) -> None:
    """One legend for all panels, above them; of entries with the same words the first stands."""
    own: dict[object, Line2D] = {}
    for each in handles:
        own.setdefault(each.get_label(), each)
    columns = min(columns, len(own))
    entries = list(own.values())
    figure.legend(handles=entries, loc="outside upper left", ncols=columns, columnspacing=1.4)


def legend_right(ax: Axes, handles: Sequence[Any]) -> None:
    """A legend outside, right of the axes."""
    ax.legend(handles=list(handles), loc="upper left", bbox_to_anchor=(1.01, 1.02),
              handlelength=2.4, borderaxespad=0.2, labelspacing=0.35)  # fmt: skip


def spread_in_words(counts: pd.Series, what: str) -> str:
    """The sentence of a caption that says what lines and bands stand for."""
    if counts.max() == 1:
        return f"{what} are single runs (1 seed), so there are no bands."
    return f"{what} are medians over {seeds_in_words(counts)}, bands the interquartile range."


def _strip_height(lanes: int) -> float:
    return min(_LANE * lanes, _MOST_STRIP)
