"""Loss, evaluation cost and optimality gap along training, against seconds and steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from bench.report.figures import canvas
from bench.report.figures.hover import hover
from bench.report.figures.panels import (
    Panel,
    Series,
    agreeing,
    all_panels,
    constant_settings,
    panels,
    series_of,
    title,
)
from bench.report.frames import WORKLOAD, trained
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


def convergence_figures(curves: pd.DataFrame, cases: pd.DataFrame) -> list[canvas.Drawing]:
    """Per metric figures against seconds and against steps, a panel per problem and size."""
    # First of all: where a tuned run alone failed, its rate has no line to end.
    ran = own_rate(cases[trained(cases)])
    failed = ran[ran["status"].isin(list(FAILURES))]
    drawings = []
    for metric, (words, _) in _METRICS.items():
        known = own_rate(curves[curves[metric].notna()])
        points = known.groupby(list(_CURVE), dropna=False)["step"].transform("size")
        found = panels(known[points > 1], ("problem", "n_agents", "environment", *WORKLOAD))
        # Where one method stands alone there is nothing to compare: last.
        found.sort(key=lambda panel: panel.rows["gradient"].nunique() < 2)
        for axis, (end, _, _) in _AXES.items():
            for suffix, page in canvas.paged(found, _MOST_PANELS):
                name = f"convergence-{metric.replace('_', '-')}{end}{suffix}"
                against = f"{words[0].upper()}{words[1:]} against {axis}{'s' * (axis == 'step')}"
                figure = curves_figure(page, failed, metric, axis)
                drawings.append(
                    canvas.Drawing(name, against, " ".join(_caption(page, metric)), figure)
                )
    return drawings


def curves_figure(
    page: Sequence[Panel], failed: pd.DataFrame, metric: str, axis: str = "seconds"
) -> Figure:
    """A panel each of `page`; `failed` are runs that may have ended before their first point."""
    figure, axes = canvas.grid(len(page), _COLUMNS, height=2.9)
    constant = constant_settings(pd.concat([panel.rows for panel in page]))
    handles = []
    for ax, panel in zip(axes.flat, page, strict=False):
        # a run that failed before its first evaluation has no curve, yet is part of the picture
        lost = agreeing(failed, panel.settings)[["gradient", *_VARIANTS, "status", *_CURVE]]
        drawn = series_of(pd.concat([panel.rows, lost]), _VARIANTS)
        _draw(ax, drawn, metric, axis)
        ax.set_xlabel(_AXES[axis][1])
        ax.set_title(title(panel.settings, constant), fontsize=8.5)
        handles += [canvas.handle(series.look, series.label) for series in drawn]
    for ax in axes[:, 0]:
        ax.set_ylabel(_METRICS[metric][0])
    canvas.legend_above(figure, handles, 6)
    return figure


def _draw(ax: Axes, drawn: Sequence[Series], metric: str, axis: str) -> None:
    bands = [median_band(series.rows, metric, axis) for series in drawn]
    _time_axis(ax, [band["x"] for band in bands if len(band)], axis)
    lanes = []
    for series, band in zip(drawn, bands, strict=True):
        _line(ax, series, band.replace(np.inf, np.nan), metric, axis)
        failures = series.rows[series.rows["status"].isin(list(FAILURES))]
        if len(failures):
            last = failures.groupby(list(_CURVE), dropna=False)[axis].max().fillna(0)
            places = sorted(last.clip(*ax.get_xlim()))
            lanes.append(canvas.Lane(series.look, places, canvas.failure_words(failures["status"])))
    values = pd.concat(bands)[["median", "low", "high"]].to_numpy(dtype=float).ravel()
    finite = values[np.isfinite(values)]
    log = len(finite) > 0 and finite.min() > 0 and finite.max() > 8 * finite.min()
    canvas.scale_axis(ax, _METRICS[metric][1], finite, log=log, lanes=len(lanes))
    canvas.failure_strip(ax, lanes)


def _time_axis(ax: Axes, places: Sequence[pd.Series], axis: str) -> None:
    """From zero to the last end; logarithmic where series in seconds end far apart."""
    ends = [x.max() for x in places]
    ax.set_xlim(0, max(ends) * 1.03 or 1)
    if axis == "seconds" and max(ends) > 15 * min(ends) and min(ends) > 0:
        # linear at its beginning, because training starts at zero seconds
        threshold = max(min(x[x > 0].min() for x in places), max(ends) / 1000)
        powers = 10.0 ** np.arange(np.ceil(np.log10(2 * threshold)), np.log10(max(ends)) + 0.1)
        ax.set_xscale("symlog", linthresh=threshold, linscale=0.4)
        ax.xaxis.set_major_locator(FixedLocator([0, *powers]))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.set_xlim(0, max(ends) * 1.15)


def _line(ax: Axes, series: Series, band: pd.DataFrame, metric: str, axis: str) -> None:
    every = max(1, len(band) // 8)
    some = band.iloc[::every]
    canvas.curve(ax, series.look, band["x"], band, every)
    write, unit = canvas.FORMATS[_METRICS[metric][1]], _AXES[axis][2]
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
    x = np.unique(rows[axis].to_numpy(dtype=float))
    x = x[x <= (min(ends) if ends else x.max())]
    if len(x) > _GRID:  # evenly chosen ones of the points that occur
        x = x[np.unique(np.linspace(0, len(x) - 1, _GRID).round().astype(int))]
    values = np.stack(
        [
            np.interp(x, own[axis], own[metric], right=np.inf if failed else None)
            for own, failed in curves
        ]
    )
    low, median, high = (_quantile(values, share) for share in (0.25, 0.5, 0.75))
    return pd.DataFrame({"x": x, "median": median, "low": low, "high": high})


def _quantile(values: np.ndarray, share: float) -> np.ndarray:
    """Quantile over the first axis; numpy's own gives nan beside an infinite value."""
    ordered = np.sort(values, axis=0)
    place = share * (len(ordered) - 1)
    below, weight = int(place), place % 1
    if weight == 0:
        return ordered[below]
    return (1 - weight) * ordered[below] + weight * ordered[below + 1]


def _caption(page: Sequence[Panel], metric: str) -> Iterator[str]:
    rows = pd.concat([panel.rows for panel in page])
    keys = ["environment", "n_agents", "gradient", *_VARIANTS]
    yield from all_panels(constant_settings(rows))
    yield canvas.spread_in_words(rows.groupby(keys, dropna=False)["seed"].nunique(), "Lines")
    if metric == "loss":
        yield "The loss is that of the training minibatch, hence noisy."
    if rows["status"].isin(list(FAILURES)).any():
        yield (
            "A seed that diverged counts as infinite from its last point on; the grey strip shows "
            "where runs ended early."
        )
