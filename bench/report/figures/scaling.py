"""Memory and time against the number of agents and of inner iterations, with fitted slopes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from bench.report.figures.canvas import FORMATS as WRITE
from bench.report.figures.canvas import (
    Drawing,
    Lane,
    failure_strip,
    failure_words,
    grid,
    handle,
    legend_right,
    log_counts,
    ring,
    ring_handle,
    scale_axis,
    spread_in_words,
)
from bench.report.figures.cells import Cell, Metric, select_cells
from bench.report.figures.hover import hover
from bench.report.fits import power_law_slope
from bench.report.frames import WORKLOAD, missed
from bench.report.series import Panel, Series, constant_settings, describe, panels, title
from bench.report.style import FAILURES, Look

_COLUMNS = 2
_MOST_CELLS = 8
#: share of the axis' logarithmic length over which series at equal x are spread
_SPREAD = 0.025
_GREY = Look("#555555", "o", "")


LIVE = Metric("peak_live_tensor_bytes", "peak live tensors", "bytes")
SAVED = Metric("saved_tensor_bytes", "saved for backward", "bytes")
ALLOCATED = Metric("cuda_max_allocated_bytes", "peak CUDA allocation", "bytes")
DEVICE = Metric("cuda_nvml_device_delta_bytes", "device memory (NVML)", "bytes")
STEP = Metric("step_seconds", "time per gradient step", "seconds")


def agents_figures(
    cases: pd.DataFrame, metrics: Sequence[Metric] = (LIVE, STEP, ALLOCATED, DEVICE)
) -> list[Drawing]:
    """Peak memory and the time of a training step against the number of agents."""
    return _figures(
        cases,
        name="agents",
        section="Memory and time against agents",
        metrics=metrics,
        x=("n_agents", "agents"),
        loose=("ascent", "budget"),
    )


def memory_iterations_figures(
    cases: pd.DataFrame, metrics: Sequence[Metric] = (SAVED, LIVE, ALLOCATED)
) -> list[Drawing]:
    """Memory against K, over the cases that run exactly K inner iterations."""
    exact = cases[cases["tolerance"].isna() & cases["max_iterations"].notna()]
    return _figures(
        exact,
        name="memory-iterations",
        section="Memory against inner iterations K",
        metrics=metrics,
        x=("max_iterations", "inner iterations K (exactly K, no early stop)"),
        strict=("n_agents",),
        loose=("ascent",),
    )


def _figures(
    cases: pd.DataFrame,
    *,
    name: str,
    section: str,
    metrics: Sequence[Metric],
    x: tuple[str, str],
    loose: Sequence[str],
    strict: Sequence[str] = (),
) -> list[Drawing]:
    column, axis_name = x
    fixed = ("environment", "problem", *strict, *WORKLOAD)
    cells = select_cells(panels(cases, fixed, loose), metrics, column, fixed, loose)
    drawings = []
    pages = [cells[start : start + _MOST_CELLS] for start in range(0, len(cells), _MOST_CELLS)]
    for number, page in enumerate(pages, start=1):
        columns = min(_COLUMNS, len(page))
        figure, axes = grid(-(-len(page) // columns), columns, height=3.25)
        constant = constant_settings(pd.concat([panel.rows for panel, _, _ in page]))
        for ax in axes.flat[len(page) :]:
            ax.set_visible(False)
        for ax, (panel, metric, drawn) in zip(axes.flat, page, strict=False):
            _draw(ax, panel, metric, drawn, column, axis_name, constant)
        suffix = f"-{number}" if len(pages) > 1 else ""
        caption = _caption(page, column, constant)
        drawings.append(Drawing(name + suffix, section, caption, figure))
    return drawings


def _draw(
    ax: Axes,
    panel: Panel,
    metric: Metric,
    drawn: Sequence[Series],
    column: str,
    axis_name: str,
    constant: Mapping[str, Any],
) -> None:
    every = np.concatenate([series.rows[column].to_numpy(dtype=float) for series in drawn])
    log_counts(ax, every, _goods(axis_name, panel))
    shift = np.exp(np.linspace(-0.5, 0.5, max(len(drawn), 2)) * _SPREAD * np.log(np.ptp(every) + 1))
    lanes, handles, values, points = [], [], [], []
    predictions = ringed = False
    for series, factor in zip(drawn, shift, strict=False):
        # a run that diverged later may well have been measured before
        measured = series.rows[series.rows[metric.column].notna()]
        predicted = predicted_rows(series.rows, metric)
        values += [*measured[metric.column].astype(float), *predicted["bytes"].astype(float)]
        # Every K is asked of every method; not every method goes to every number of agents.
        wanted = every if column == "max_iterations" else ()
        lanes += absent(series.look, series.rows, metric.column, column, wanted, factor)
        late = measured[missed(measured)]
        if len(late):
            ringed = True
            ring(ax, late[column].astype(float) * factor, late[metric.column].astype(float))
        if len(predicted):
            predictions = True
            hollow(ax, predicted[column].astype(float) * factor, predicted["bytes"], series.look)
        said = [
            f"{series.label}, {column.removeprefix('n_').replace('_', ' ')} {place}: "
            f"{WRITE[metric.unit](value)} (seed {seed})"
            for place, value, seed in zip(
                measured[column], measured[metric.column].astype(float), measured["seed"],
                strict=True,
            )
        ]  # fmt: skip
        hover(ax, measured[column].astype(float) * factor, measured[metric.column], said)
        slope = power_law_slope(measured[column], measured[metric.column])
        text = "" if slope is None else f"  slope {round(slope, 2) + 0.0:.2f}"
        handles.append(handle(series.look, f"{series.label}{text}"))
        points.append(
            pd.DataFrame(
                {
                    "x": measured[column].astype(float) * factor,
                    "y": measured[metric.column].astype(float),
                    "series": series.label,
                }
            )
        )
    sns.lineplot(
        pd.concat(points),
        x="x",
        y="y",
        hue="series",
        style="series",
        palette={series.label: series.look.color for series in drawn},
        markers={series.label: series.look.marker for series in drawn},
        dashes={series.label: series.look.dashes for series in drawn},
        estimator="median",
        errorbar=("pi", 50),
        linewidth=1.5,
        markersize=6,
        legend=False,
        ax=ax,
    )
    scale_axis(ax, metric.unit, values, log=True, lanes=len(lanes))
    failure_strip(ax, lanes)
    if predictions:
        handles.append(predicted_handle())
    if ringed:
        handles.append(ring_handle())
    legend_right(ax, handles)
    ax.set_xlabel(_goods(axis_name, panel))
    ax.set_ylabel(metric.name)
    ax.set_title(title(panel.settings, constant))


def absent(
    look: Look,
    rows: pd.DataFrame,
    metric: str,
    column: str,
    wanted: Iterable[float],
    factor: float = 1.0,
) -> list[Lane]:
    """The lane that says where a series has no value: what failed, and what was not `wanted` of it.

    None where the series has them all.
    """
    failed = rows[rows["status"].isin(list(FAILURES))]
    measured = rows.loc[rows[metric].notna(), column].astype(float)
    left = set(wanted) - set(measured) - set(failed[column].astype(float))
    places = sorted({*failed[column].astype(float), *left})
    if not places:
        return []
    words = [failure_words(failed["status"])] if len(failed) else []
    if failed[column].isin(measured).any():
        words[0] += " (some seeds)"
    words += ["not measured"] if left else []
    return [Lane(look, [place * factor for place in places], ", ".join(words))]


def predicted_rows(rows: pd.DataFrame, metric: Metric) -> pd.DataFrame:
    """Rows that did not finish and whose metric is predicted, with the prediction in `bytes`."""
    column = f"predicted_{metric.column}"
    if column not in rows:
        return rows.iloc[:0].assign(bytes=[])
    found = rows[rows[metric.column].isna() & rows[column].notna()]
    return found.assign(bytes=found[column])


def hollow(ax: Axes, x: pd.Series, y: pd.Series, own: Look) -> None:
    """Points that are predicted, because nothing was measured there."""
    ax.plot(
        x,
        y.astype(float),
        linestyle="none",
        marker=own.marker,
        markersize=6.5,
        markerfacecolor="white",
        markeredgecolor=own.color,
        zorder=3,
    )


def predicted_handle() -> Line2D:
    """The legend entry of `hollow`."""
    entry = handle(_GREY, "predicted, did not finish", hollow=True)
    entry.set_linestyle("none")
    return entry


def _goods(axis_name: str, panel: Panel) -> str:
    """The consumption problem counts goods where the others count agents."""
    if panel.settings["problem"] == "consumption" and axis_name == "agents":
        return "goods"
    return axis_name


def _caption(page: Sequence[Cell], column: str, constant: Mapping[str, Any]) -> str:
    drawn = [series.rows for _, _, parts in page for series in parts]
    counts = pd.concat(
        [rows.groupby(["gradient", column], dropna=False)["seed"].nunique() for rows in drawn]
    )
    words = ", ".join(
        word for word in (describe(name, value) for name, value in constant.items()) if word
    )
    parts = [
        f"All panels: {words}." if words else "",
        spread_in_words(counts, "Points"),
        "Both axes are logarithmic; a slope is the exponent of the least-squares power law through "
        "the measured medians (predicted points take no part), rough where it rests on two sizes.",
        "Series are spread sideways a little so that equal values stay visible.",
    ]
    if any(rows["status"].isin(list(FAILURES)).any() for rows in drawn):
        parts.append("The grey strip at the top shows sizes at which a method did not finish.")
    return " ".join(part for part in parts if part)
