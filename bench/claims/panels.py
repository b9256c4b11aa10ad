"""Panels, bands and axes that the figures of the claims share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, NullLocator, ScalarFormatter

from bench.claims.claim import SIZE
from bench.report.figures.canvas import WIDTH, handle, line_style
from bench.report.style import Look

VARIANTS = {
    "scaled": Look("#0072B2", "o", ""),
    "plain": Look("#D55E00", "s", (4, 1.5)),
    "newton": Look("#009E73", "D", (4, 1.5, 1, 1.5)),
    "released": Look("#555555", "^", (1.5, 1.5)),
}
#: draws one panel; the legend is the figure's
Panel = Callable[[Axes, pd.DataFrame], None]


def panels(
    table: pd.DataFrame, keys: list[str], paint: Panel, handles: list[Line2D], columns: int
) -> Figure:
    """One panel per combination of `keys`, the legend once, below them all."""
    groups = list(table.groupby(keys, sort=False))
    columns = min(columns, len(groups))
    rows = -(-len(groups) // columns)
    figure = Figure(figsize=(WIDTH, 2.5 * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, (key, part) in zip(grid.flat, groups, strict=False):
        axes.set_title(_title(keys, key))
        paint(axes, part)
    for axes in grid.flat[len(groups) :]:
        axes.set_visible(False)
    figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    return figure


def _title(keys: list[str], key: tuple) -> str:
    """Problem and size; what else tells panels apart on a line of its own."""
    words = [
        f"n={part}" if name == "n_agents" else str(part)
        for name, part in zip(keys, key, strict=True)
    ]
    return "\n".join(filter(None, (" ".join(words[:2]), ", ".join(words[2:]))))


def band(axes: Axes, part: pd.DataFrame, x: str, y: str, style: Look) -> None:
    """Median and quartiles over the seeds at each x."""
    # A value that is not finite leaves a gap in the line.
    grouped = part.groupby(x)[y]
    middle = grouped.median()
    axes.plot(middle.index, middle, color=style.color, marker=style.marker, markersize=4.5,
              linestyle=line_style(style), linewidth=1.4)  # fmt: skip
    if part["seed"].nunique() > 1:
        low, high = grouped.quantile(0.25), grouped.quantile(0.75)
        axes.fill_between(middle.index, low, high, color=style.color, alpha=0.15, linewidth=0)


def readable_log(axes: Axes) -> None:
    """A log axis whose labels do not run out where it spans less than two decades."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if np.isfinite([low, high]).all() and low > 0 and high / low < 100:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())


def count_axis(axes: Axes, counts: pd.Series) -> None:
    """A log axis of whole numbers with plain labels at those that occur, thinned to fit."""
    axes.set_xscale("log")
    ticks: list[int] = []
    for count in sorted(set(counts)):
        if not ticks or count >= 1.7 * ticks[-1]:
            ticks.append(int(count))
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())


def trace_figure(
    table: pd.DataFrame, column: str, label: str, *, limit: float | None = None, log: bool = True
) -> Figure | None:
    """A panel per size: `column` against training steps on each map; None without any value."""
    table = table.assign(**{column: table[column].astype(float)}).dropna(subset=[column])
    if table.empty:
        return None
    present = {name: style for name, style in VARIANTS.items() if name in set(table["variant"])}
    words = {name: f"{name} map" for name in present} | {"released": "released recipe"}
    return series_figure(
        table, "step", column, "variant", present, words, "training steps", label,
        log_y=log, limit=limit,
    )  # fmt: skip


def series_figure(
    table: pd.DataFrame,
    x: str,
    y: str,
    hue: str,
    looks: dict[str, Look],
    words: dict[str, str],
    x_label: str,
    y_label: str,
    *,
    keys: list[str] = SIZE,
    log_x: bool = False,
    log_y: bool = True,
    limit: float | None = None,
) -> Figure:
    """A panel per size: `y` against `x`, a line for each of `looks` by the value of `hue`."""

    def paint(axes: Axes, part: pd.DataFrame) -> None:
        for name, style in looks.items():
            rows = part[part[hue] == name]
            if len(rows):
                band(axes, rows, x, y, style)
        if limit is not None:
            axes.axhline(limit, color="0.3", linewidth=1, linestyle=":")
        if log_x:
            count_axis(axes, part[x])
        if log_y:
            readable_log(axes)
        else:
            axes.set_ylim(bottom=0.0)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)

    handles = [handle(style, words[name]) for name, style in looks.items()]
    if limit is not None:
        handles.append(Line2D([], [], color="0.3", linestyle=":", label=f"limit {limit:g}"))
    return panels(table, keys, paint, handles, 4)
