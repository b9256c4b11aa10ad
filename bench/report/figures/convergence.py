"""Loss, evaluation cost and optimality gap along training, against seconds and steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter

from bench.report.figures.canvas import (
    FORMATS,
    Drawing,
    Lane,
    failure_strip,
    failure_words,
    grid,
    handle,
    legend_above,
    line_style,
    scale_axis,
    spread_in_words,
)
from bench.report.figures.hover import hover
from bench.report.frames import WORKLOAD, trained
from bench.report.series import Panel, Series, constant_settings, describe, panels, series_of, title
from bench.report.style import FAILURES
from bench.report.targets import own_rate

#: of each metric its words and the unit of its axis
_METRICS = {
    "evaluation_cost": ("evaluation cost", "number"),
    "optimality_gap": ("gap to the reference optimum", "percent"),
    "loss": ("training loss", "number"),
}
#: file name's end, words and unit of what is on the other axis
_AXES = {
    "seconds": ("", "training time [s], evaluation off the clock", "s"),
    "step": ("-steps", "training steps", "steps"),
}
_VARIANTS = ("ascent", "solver", "budget", "recipe", "learning_rate")
_CURVE = ("run", "id", "seed")
#: points of a line; more cannot be told apart at this size
_GRID = 40
_COLUMNS, _MOST_PANELS = 3, 12


def convergence_figures(curves: pd.DataFrame, cases: pd.DataFrame) -> list[Drawing]:
    """Per metric figures against seconds and against steps, a panel per problem and size."""
    # First of all: where a tuned run alone failed, its rate has no line to end.
    ran = own_rate(cases[trained(cases)])
    failed = ran[ran["status"].isin(list(FAILURES))]
    drawings = []
    for metric in _METRICS:
        known = own_rate(curves[curves[metric].notna()])
        points = known.groupby(list(_CURVE), dropna=False)["step"].transform("size")
        if (points > 1).any():
            drawings += _pages(known[points > 1], failed, metric)
    return drawings


def _pages(curves: pd.DataFrame, failed: pd.DataFrame, metric: str) -> list[Drawing]:
    found = panels(curves, ("problem", "n_agents", "environment", *WORKLOAD))
    # Where one method stands alone there is nothing to compare: last.
    found.sort(key=lambda panel: panel.rows["gradient"].nunique() < 2)
    pages = [found[i : i + _MOST_PANELS] for i in range(0, len(found), _MOST_PANELS)]
    drawings = []
    words = _METRICS[metric][0]
    for axis, (end, _, _) in _AXES.items():
        for number, page in enumerate(pages, start=1):
            columns = min(_COLUMNS, len(page))
            figure, axes = grid(-(-len(page) // columns), columns, height=2.9)
            constant = constant_settings(pd.concat([panel.rows for panel in page]))
            handles = []
            for ax, panel in zip(axes.flat, page, strict=False):
                handles += _panel(ax, panel, failed, metric, axis, constant)
            for ax in axes.flat[len(page) :]:
                ax.set_visible(False)
            for ax in axes[:, 0]:
                ax.set_ylabel(words)
            legend_above(figure, handles, 6)
            suffix = f"-{number}" if len(pages) > 1 else ""
            drawings.append(
                Drawing(
                    f"convergence-{metric.replace('_', '-')}{end}{suffix}",
                    f"{words[0].upper()}{words[1:]} against {axis}{'s' * (axis == 'step')}",
                    _caption(page, constant, metric),
                    figure,
                )
            )
    return drawings


def _panel(
    ax: Axes,
    panel: Panel,
    failed: pd.DataFrame,
    metric: str,
    axis: str,
    constant: Mapping[str, Any],
) -> list[Line2D]:
    """Draw one panel; the entries of its legend."""
    here = pd.Series(True, index=failed.index)
    for name, value in panel.settings.items():
        here &= failed[name] == value
    # a run that failed before its first evaluation has no curve, yet is part of the picture
    together = pd.concat(
        [panel.rows, failed.loc[here, ["gradient", *_VARIANTS, "status", *_CURVE]]]
    )
    drawn = series_of(together, _VARIANTS)
    _draw(ax, drawn, metric, axis)
    ax.set_xlabel(_AXES[axis][1])
    ax.set_title(title(panel.settings, constant), fontsize=8.5)
    return [handle(series.look, series.label) for series in drawn]


def _draw(ax: Axes, drawn: Sequence[Series], metric: str, axis: str) -> None:
    bands = {series.label: median_band(series.rows, metric, axis) for series in drawn}
    shown = [band for band in bands.values() if len(band)]
    ends = [band["x"].max() for band in shown]
    wide = axis == "seconds" and max(ends) > 15 * min(ends) and min(ends) > 0
    if wide:
        firsts = [band.loc[band["x"] > 0, "x"].min() for band in shown]
        # linear at its beginning, because training starts at zero seconds
        threshold = max(min(firsts), max(ends) / 1000)
        powers = 10.0 ** np.arange(np.ceil(np.log10(2 * threshold)), np.log10(max(ends)) + 0.1)
        ax.set_xscale("symlog", linthresh=threshold, linscale=0.4)
        ax.xaxis.set_major_locator(FixedLocator([0, *powers]))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.set_xlim(0, max(ends) * 1.15)
    else:
        ax.set_xlim(0, max(ends) * 1.03 or 1)
    values: list[float] = []
    lanes = []
    for series in drawn:
        band = bands[series.label]
        _line(ax, series, band, metric, axis)
        values += [*band["median"], *band["low"], *band["high"]]
        failures = series.rows[series.rows["status"].isin(list(FAILURES))]
        if len(failures):
            last = failures.groupby(list(_CURVE), dropna=False)[axis].max().fillna(0)
            places = sorted(last.clip(lower=ax.get_xlim()[0], upper=ax.get_xlim()[1]))
            lanes.append(Lane(series.look, places, failure_words(failures["status"])))
    finite = [value for value in values if np.isfinite(value)]
    log = bool(finite) and min(finite) > 0 and max(finite) > 8 * min(finite)
    scale_axis(ax, _METRICS[metric][1], values, log=log, lanes=len(lanes))
    failure_strip(ax, lanes)


def _line(ax: Axes, series: Series, band: pd.DataFrame, metric: str, axis: str) -> None:
    finite = band.replace(np.inf, np.nan)
    ax.fill_between(
        finite["x"], finite["low"], finite["high"], color=series.look.color, alpha=0.16, linewidth=0
    )
    ax.plot(
        finite["x"],
        finite["median"],
        color=series.look.color,
        linestyle=line_style(series.look),
        linewidth=1.5,
        marker=series.look.marker,
        markersize=5,
        markeredgecolor="white",
        markeredgewidth=0.5,
        markevery=max(1, len(finite) // 8),
    )
    some = finite.iloc[:: max(1, len(finite) // 8)]
    write, unit = FORMATS[_METRICS[metric][1]], _AXES[axis][2]
    words = [
        f"{series.label}: {write(y)} after {x:.4g} {unit}"
        for x, y in zip(some["x"], some["median"], strict=True)
    ]
    hover(ax, some["x"], some["median"], words)


def median_band(rows: pd.DataFrame, metric: str, axis: str) -> pd.DataFrame:
    """Median and quartiles over seeds on a common grid of `axis`: columns x, median, low, high.

    The grid ends where the first seed that did not fail ends, so that every point rests on every
    seed; a seed that failed counts as infinite after its last point.
    """
    rows = rows.dropna(subset=[metric, axis])
    curves = [
        (own.sort_values(axis), own["status"].iloc[0] in FAILURES)
        for _, own in rows.groupby(list(_CURVE), dropna=False)
    ]
    if not curves:
        return pd.DataFrame(columns=["x", "median", "low", "high"], dtype=float)
    ends = [own[axis].max() for own, failed in curves if not failed]
    end = min(ends) if ends else max(own[axis].max() for own, _ in curves)
    x = _common_grid([own[axis].to_numpy(dtype=float) for own, _ in curves], end)
    values = np.stack(
        [
            np.interp(x, own[axis], own[metric], right=np.inf if failed else None)
            for own, failed in curves
        ]
    )
    low, median, high = (_quantile(values, share) for share in (0.25, 0.5, 0.75))
    return pd.DataFrame({"x": x, "median": median, "low": low, "high": high})


def _common_grid(places: list[np.ndarray], end: float) -> np.ndarray:
    """The points that occur, or evenly chosen ones of them where they are too many."""
    start = max(own.min() for own in places)
    every = np.unique(np.concatenate(places))
    every = every[(every >= start) & (every <= end)]
    if len(every) <= _GRID:
        return every
    return every[np.unique(np.linspace(0, len(every) - 1, _GRID).round().astype(int))]


def _quantile(values: np.ndarray, share: float) -> np.ndarray:
    """Quantile over the first axis; numpy's own gives nan beside an infinite value."""
    ordered = np.sort(values, axis=0)
    place = share * (len(ordered) - 1)
    below = int(place)
    weight = place - below
    if weight == 0:
        return ordered[below]
    return (1 - weight) * ordered[below] + weight * ordered[below + 1]


def _caption(page: Sequence[Panel], constant: Mapping[str, Any], metric: str) -> str:
    rows = pd.concat([panel.rows for panel in page])
    seeds = rows.groupby(["environment", "n_agents", "gradient", *_VARIANTS], dropna=False)[
        "seed"
    ].nunique()
    words = ", ".join(
        word for word in (describe(name, value) for name, value in constant.items()) if word
    )
    parts = [
        f"All panels: {words}." if words else "",
        spread_in_words(seeds, "Lines"),
    ]
    if metric == "loss":
        parts.append("The loss is that of the training minibatch, hence noisy.")
    if rows["status"].isin(list(FAILURES)).any():
        parts.append(
            "A seed that diverged counts as infinite from its last point on; the grey strip shows "
            "where runs ended early."
        )
    return " ".join(part for part in parts if part)
