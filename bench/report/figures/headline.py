"""The figure beside the answer: gaps at equal time, or bytes at exactly K, or seconds."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from bench.report.figures.canvas import FORMATS, Drawing, handle, legend_above, named_lines
from bench.report.figures.hover import hover
from bench.report.figures.panels import Metric, agreeing, series_of
from bench.report.figures.scaling import ALLOCATED, SAVED, draw
from bench.report.frames import WORKLOAD, exact
from bench.report.ranking import comparable_steps
from bench.report.style import format_percent, format_seconds, gradient_rank, look, short, tint

_SIZE = (5.9, 4.5)


def headline_figure(cases: pd.DataFrame, gaps: pd.DataFrame) -> list[Drawing]:
    """One small figure: the first of these of which there is more than one to compare."""
    compared = gaps.groupby(["problem", "n_agents"])["gradient"].transform("nunique") > 1
    if compared.any():
        return [_gap_figure(gaps[compared])]
    counts = exact(cases)
    for metric in (SAVED, ALLOCATED):
        measured = counts[counts[metric.column].notna() & (counts["status"] == "ok")]
        sizes = measured.groupby("n_agents")["max_iterations"].nunique()
        if len(sizes) and sizes.max() > 1:
            keep = sizes[sizes == sizes.max()].index.max()
            return [_memory_figure(counts[counts["n_agents"] == keep], metric)]
    timed = comparable_steps(cases)
    return [_time_figure(timed)] if timed["gradient"].nunique() > 1 else []


def _axes(height: float = _SIZE[1]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_SIZE[0], height), layout="constrained")
    return figure, figure.subplots()


def _time_figure(timed: pd.DataFrame) -> Drawing:
    """A row for each method and map, a marker for each size, of the problem with most rows."""
    problem = timed["problem"].value_counts().idxmax()
    own = timed[timed["problem"] == problem].astype({"step_seconds": float})
    medians = own.groupby(["gradient", "map", "n_agents"])["step_seconds"].median()
    rows = medians.groupby(level=[0, 1]).mean().sort_values().index
    sizes = sorted(own["n_agents"].unique())
    figure, ax = _axes(min(_SIZE[1], 1 + 0.4 * len(rows)))
    shades = dict(zip(sizes[::-1], np.linspace(0.0, 0.65, len(sizes)), strict=True))
    for line, (name, own_map) in enumerate(rows):
        for size, seconds in medians[name, own_map].items():
            color = tint(look(name).color, shades[size])
            ax.plot([seconds], [line], look(name).marker, color=color, markersize=6)
            words = f"{name}, {own_map} map, {problem} {size}: {format_seconds(seconds)}"
            hover(ax, [seconds], [line], [words])
    several = {name for name, _ in rows if sum(name == other for other, _ in rows) > 1}
    labels = [f"{name}, {own_map}" if name in several else name for name, own_map in rows]
    named_lines(ax, labels, fontsize=7.5)
    ax.set(xscale="log", xlabel="time of a training step")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(lambda value, _: short(format_seconds(value)))
    ax.xaxis.set_minor_formatter(NullFormatter())
    named = " and ".join(filter(None, [", ".join(map(str, sizes[:-1])), str(sizes[-1])]))
    shade = "; the paler, the fewer" if len(sizes) > 1 else ""
    caption = (
        f"Median time of a training step of {problem} with {named} "
        f"agent{'s' if sizes[-1] > 1 else ''}{shade}. Left is better."
    )
    return Drawing("headline", "Step time", caption, figure)


def _gap_figure(gaps: pd.DataFrame) -> Drawing:
    figure, ax = _axes()
    places = sorted(set(zip(gaps["problem"], gaps["n_agents"], strict=True)))
    names = sorted(gaps["gradient"].unique(), key=gradient_rank)
    offsets = dict(zip(names, np.linspace(-0.3, 0.3, len(names)), strict=True))
    for (*place, name), own in gaps.groupby(["problem", "n_agents", "gradient"]):
        _whisker(ax, own, places.index(tuple(place)) + offsets[name])
    named_lines(ax, [f"{problem} {agents}" for problem, agents in places])
    ax.set(xscale="log", xlabel="above the reference optimum at equal training time")
    ax.xaxis.set_major_formatter(lambda value, _: FORMATS["percent"](value))
    ax.grid(visible=False, axis="y")
    legend_above(figure, [handle(look(name), name, line=False) for name in names], 5)
    caption = (
        "How far above the reference optimum each method is at the time limit, which is the same "
        "for all on a problem: median over seeds, with its best map, and the range. Left is "
        "better; a number behind a problem is its agents or goods."
    )
    return Drawing("headline", "Gap at equal time", caption, figure)


def _whisker(ax: Axes, own: pd.DataFrame, y: float) -> None:
    """Median and range over the seeds of the method's best map."""
    settings = own.groupby(["map", "id"])["gap"]
    best = settings.median().idxmin()
    seeds = settings.get_group(best).clip(lower=1e-6)
    first, low, middle, high = own.iloc[0], seeds.min(), float(seeds.median()), seeds.max()
    drawn = handle(look(first["gradient"]), "", line=False)
    drawn.set(xdata=[middle], ydata=[y], markersize=5.5)
    ax.plot([low, high], [y, y], color=drawn.get_color(), linewidth=1.4)
    ax.add_line(drawn)
    named_map = "" if best[0] == "none" else f", {best[0]} map"
    words = (
        f"{first['gradient']}{named_map}, {first['problem']} {first['n_agents']}: "
        f"{format_percent(middle)}, {len(seeds)} seeds from {format_percent(low)} "
        f"to {format_percent(high)}"
    )
    hover(ax, [middle], [y], [words])


def _memory_figure(counts: pd.DataFrame, metric: Metric) -> Drawing:
    figure, ax = _axes()
    first = counts.iloc[0]
    rows = agreeing(counts, first[["problem", *WORKLOAD, "ascent"]].to_dict())
    legend_above(figure, draw(ax, series_of(rows, ()), metric, "max_iterations", plain=True), 5)
    ax.set_xlabel("inner iterations K, exactly")
    caption = (
        f"Bytes of one training step, {metric.name}: {first['problem']}, "
        f"{first['n_agents']} agents, batch {first['batch_size']}, {first['n_steps']} time steps, "
        f"{first['ascent']}."
    )
    return Drawing("headline", "Memory against K", caption, figure)
