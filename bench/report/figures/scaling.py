"""Memory and time against the number of agents and of inner iterations, with fitted slopes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from bench.report.figures import canvas
from bench.report.figures.hover import hover
from bench.report.figures.panels import (
    Metric,
    Series,
    all_panels,
    comparisons,
    constant_settings,
    panels,
    title,
)
from bench.report.frames import WORKLOAD, exact, missed
from bench.report.style import FAILURES, Look, sized
from bench.report.targets import power_law_slope

_COLUMNS, _MOST_CELLS = 2, 8
#: share of the axis' logarithmic length over which series at equal x are spread
_SPREAD = 0.025

LIVE = Metric("peak_live_tensor_bytes", "peak live tensors", "bytes")
SAVED = Metric("saved_tensor_bytes", "saved for backward", "bytes")
ALLOCATED = Metric("cuda_max_allocated_bytes", "peak CUDA allocation", "bytes")
DEVICE = Metric("cuda_nvml_device_delta_bytes", "device memory (NVML)", "bytes")
STEP = Metric("step_seconds", "time per gradient step", "seconds")


def agents_figures(
    cases: pd.DataFrame, metrics: Sequence[Metric] = (LIVE, STEP, ALLOCATED, DEVICE)
) -> list[canvas.Drawing]:
    """Peak memory and the time of a training step against the number of agents."""
    section = "Memory and time against agents"
    return _figures(cases, "agents", section, metrics, "n_agents", (), ("ascent", "budget"))


def memory_iterations_figures(
    cases: pd.DataFrame, metrics: Sequence[Metric] = (SAVED, LIVE, ALLOCATED)
) -> list[canvas.Drawing]:
    """Memory against K, over the cases that run exactly K inner iterations."""
    name, section = "memory-iterations", "Memory against inner iterations K"
    strict, loose = ("n_agents",), ("ascent",)
    return _figures(exact(cases), name, section, metrics, "max_iterations", strict, loose)


def _figures(
    cases: pd.DataFrame,
    name: str,
    section: str,
    metrics: Sequence[Metric],
    column: str,
    strict: Sequence[str],
    loose: Sequence[str],
) -> list[canvas.Drawing]:
    fixed = ("environment", "problem", *strict, *WORKLOAD)
    cells = comparisons(panels(cases, fixed, loose), metrics, column, loose)
    drawings = []
    for suffix, page in canvas.paged(cells, _MOST_CELLS):
        figure, axes = canvas.grid(len(page), _COLUMNS, height=3.25)
        constant = constant_settings(pd.concat([panel.rows for panel, _, _ in page]))
        for ax, (panel, metric, drawn) in zip(axes.flat, page, strict=False):
            canvas.legend_right(ax, draw(ax, drawn, metric, column))
            ax.set_title(title(panel.settings, constant))
        rows = [series.rows for _, _, parts in page for series in parts]
        caption = " ".join([*all_panels(constant), *_caption(rows, column)])
        drawings.append(canvas.Drawing(name + suffix, section, caption, figure))
    return drawings


def draw(
    ax: Axes, drawn: Sequence[Series], metric: Metric, column: str, plain: bool = False
) -> list[Line2D]:
    """Draw `metric` against `column`, medians with bands over seeds; the entries of a legend.

    What failed or was not measured is on a strip above, what is predicted hollow, what missed its
    tolerance ringed. Unless `plain`, series are spread sideways and their slopes in the legend.
    """
    counts = column == "max_iterations"
    every = np.concatenate([series.rows[column].to_numpy(dtype=float) for series in drawn])
    problem = drawn[0].rows["problem"].iloc[0]
    plural = "goods" if problem == "consumption" else "agents"
    canvas.log_counts(
        ax, every, "inner iterations K (exactly K, no early stop)" if counts else plural
    )
    width = 0.0 if plain else _SPREAD * np.log(np.ptp(every) + 1)
    shift = np.exp(np.linspace(-0.5, 0.5, max(len(drawn), 2)) * width)
    handles, values = [], []
    lanes: list[canvas.Lane] = []
    marks: dict[str, Line2D] = {}
    for series, factor in zip(drawn, shift, strict=False):
        # a run that diverged later may well have been measured before
        rows = series.rows[series.rows[metric.column].notna()]
        x, y = rows[column].astype(float) * factor, rows[metric.column].astype(float)
        shares = {"low": 0.25, "median": 0.5, "high": 0.75}
        band = pd.DataFrame({name: y.groupby(x).quantile(q) for name, q in shares.items()})
        canvas.curve(ax, series.look, band.index, band)
        said = [
            f"{series.label}, {f'K = {place}' if counts else sized(problem, place)}: "
            f"{canvas.FORMATS[metric.unit](value)} (seed {seed})"
            for place, value, seed in zip(rows[column], y, rows["seed"], strict=True)
        ]
        hover(ax, x, y, said)
        if (late := missed(rows)).any():
            marks["ring"] = canvas.ring(ax, x[late], y[late])
        predicted = predicted_rows(series.rows, metric)
        if len(predicted):
            place = predicted[column].astype(float) * factor
            hollow = canvas.handle(series.look, "_", hollow=True, line=False)
            hollow.set_data(place, predicted["bytes"].astype(float))
            ax.add_line(hollow)
            grey = Look("#555555", "o", "")
            marks["hollow"] = canvas.handle(
                grey, "predicted, did not finish", hollow=True, line=False
            )
        # Every K is asked of every method; not every method goes to every number of agents.
        lanes += absent(series, metric, column, every if counts else (), factor)
        values += [*y, *predicted["bytes"].astype(float)]
        slope = power_law_slope(rows[column], y)
        text = "" if slope is None or plain else f"  slope {round(slope, 2) + 0.0:.2f}"
        handles.append(canvas.handle(series.look, f"{series.label}{text}"))
    canvas.scale_axis(ax, metric.unit, values, log=True, lanes=len(lanes))
    canvas.failure_strip(ax, lanes)
    ax.set_ylabel(metric.name)
    return handles + [marks[name] for name in ("hollow", "ring") if name in marks]


def absent(
    series: Series, metric: Metric, column: str, wanted: Iterable[float], factor: float = 1.0
) -> list[canvas.Lane]:
    """The lane that says where a series has no value: what failed, and what was not `wanted` of it.

    None where the series has them all.
    """
    rows = series.rows
    failed = rows[rows["status"].isin(list(FAILURES))]
    measured = rows.loc[rows[metric.column].notna(), column].astype(float)
    left = set(wanted) - set(measured) - set(failed[column].astype(float))
    some = " (some seeds)" if failed[column].isin(measured).any() else ""
    words = [f"{canvas.failure_words(failed['status'])}{some}"] if len(failed) else []
    words += ["not measured"] if left else []
    places = sorted({*failed[column].astype(float), *left})
    return (
        [canvas.Lane(series.look, [x * factor for x in places], ", ".join(words))] if places else []
    )


def predicted_rows(rows: pd.DataFrame, metric: Metric) -> pd.DataFrame:
    """Rows that did not finish and whose metric is predicted, with the prediction in `bytes`."""
    column = f"predicted_{metric.column}"
    predicted = rows.get(column, pd.Series(np.nan, index=rows.index))
    return rows.assign(bytes=predicted)[rows[metric.column].isna() & predicted.notna()]


def _caption(drawn: Sequence[pd.DataFrame], column: str) -> Iterable[str]:
    counts = [rows.groupby(["gradient", column], dropna=False)["seed"].nunique() for rows in drawn]
    yield canvas.spread_in_words(pd.concat(counts), "Points")
    yield (
        "Both axes are logarithmic; a slope is the exponent of the least-squares power law through "
        "the measured medians (predicted points take no part), rough where it rests on two sizes."
    )
    yield "Series are spread sideways a little so that equal values stay visible."
    if any(rows["status"].isin(list(FAILURES)).any() for rows in drawn):
        yield "The grey strip at the top shows sizes at which a method did not finish."
