"""The figure beside the answer: gaps at equal time, or bytes at exactly K, or seconds."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from bench.report.figures.canvas import (
    FORMATS,
    Drawing,
    Lane,
    failure_strip,
    handle,
    legend_above,
    line_style,
    log_counts,
    scale_axis,
)
from bench.report.figures.cells import Metric
from bench.report.figures.hover import hover
from bench.report.figures.scaling import (
    ALLOCATED,
    SAVED,
    absent,
    hollow,
    predicted_handle,
    predicted_rows,
)
from bench.report.frames import WORKLOAD
from bench.report.ranking import comparable_steps
from bench.report.style import (
    format_bytes,
    format_percent,
    format_seconds,
    gradient_rank,
    look,
    short,
    tint,
)

_SIZE = (5.9, 4.5)


def headline_figure(cases: pd.DataFrame, gaps: pd.DataFrame) -> list[Drawing]:
    """One small figure: the first of these of which there is more than one to compare."""
    compared = gaps.groupby(["problem", "n_agents"])["gradient"].transform("nunique") > 1
    if compared.any():
        return [_gap_figure(gaps[compared])]
    exact = cases[cases["tolerance"].isna() & cases["max_iterations"].notna()]
    for metric in (SAVED, ALLOCATED):
        measured = exact[exact[metric.column].notna() & (exact["status"] == "ok")]
        sizes = measured.groupby("n_agents")["max_iterations"].nunique()
        if len(sizes) and sizes.max() > 1:
            keep = sizes[sizes == sizes.max()].index.max()
            return [_memory_figure(exact[exact["n_agents"] == keep], metric)]
    timed = comparable_steps(cases)
    return [_time_figure(timed)] if timed["gradient"].nunique() > 1 else []


def _time_figure(timed: pd.DataFrame) -> Drawing:
    """A row for each method and map, a marker for each size, of the problem with most rows."""
    problem = timed["problem"].value_counts().idxmax()
    own = timed[timed["problem"] == problem].astype({"step_seconds": float})
    medians = own.groupby(["gradient", "map", "n_agents"])["step_seconds"].median()
    rows = medians.groupby(level=[0, 1]).mean().sort_values().index
    sizes = sorted(own["n_agents"].unique())
    figure = Figure(figsize=(_SIZE[0], min(_SIZE[1], 1 + 0.4 * len(rows))), layout="constrained")
    ax = figure.subplots()
    shades = dict(zip(sizes[::-1], np.linspace(0.0, 0.65, len(sizes)), strict=True))
    for line, (name, own_map) in enumerate(rows):
        drawn = look(name)
        for size, seconds in medians[name, own_map].items():
            color = tint(drawn.color, shades[size])
            ax.plot([seconds], [line], drawn.marker, color=color, markersize=6)
            words = f"{name}, {own_map} map, {problem} {size}: {format_seconds(seconds)}"
            hover(ax, [seconds], [line], [words])
    several = {name for name, _ in rows if sum(name == other for other, _ in rows) > 1}
    labels = [f"{name}, {own_map}" if name in several else name for name, own_map in rows]
    ax.set_yticks(range(len(rows)), labels, fontsize=7.5)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(format_seconds(value))))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel("time of a training step")
    named = " and ".join(filter(None, [", ".join(map(str, sizes[:-1])), str(sizes[-1])]))
    shade = "; the paler, the fewer" if len(sizes) > 1 else ""
    caption = (
        f"Median time of a training step of {problem} with {named} "
        f"agent{'s' if sizes[-1] > 1 else ''}{shade}. Left is better."
    )
    return Drawing("headline", "Step time", caption, figure)


def _gap_figure(gaps: pd.DataFrame) -> Drawing:
    figure = Figure(figsize=_SIZE, layout="constrained")
    ax = figure.subplots()
    places = list(dict.fromkeys(zip(gaps["problem"], gaps["n_agents"], strict=True)))
    places.sort(key=lambda place: (place[0], place[1]))
    names = sorted(gaps["gradient"].unique(), key=gradient_rank)
    for line, place in enumerate(places):
        here = gaps[(gaps["problem"] == place[0]) & (gaps["n_agents"] == place[1])]
        for offset, name in zip(np.linspace(-0.3, 0.3, len(names)), names, strict=True):
            own = here[here["gradient"] == name]
            if len(own):
                _whisker(ax, own, line + offset, name, place)
    ax.set_yticks(range(len(places)), [f"{problem} {agents}" for problem, agents in places])
    ax.set_ylim(len(places) - 0.5, -0.5)
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: FORMATS["percent"](value)))
    ax.set_xlabel("above the reference optimum at equal training time")
    ax.grid(visible=False, axis="y")
    handles = [handle(look(name), name) for name in names]
    for each in handles:
        each.set_linestyle("none")
    legend_above(figure, handles, 5)
    caption = (
        "How far above the reference optimum each method is when the first run of a problem ends: "
        "median over seeds, with its best map, and the range. Left is better; a number behind a "
        "problem is its agents or goods."
    )
    return Drawing("headline", "Gap at equal time", caption, figure)


def _whisker(ax: Axes, own: pd.DataFrame, y: float, name: str, place: tuple[str, int]) -> None:
    best = own.groupby(["map", "id"])["gap"].median().idxmin()
    seeds = own[(own["map"] == best[0]) & (own["id"] == best[1])]["gap"].clip(lower=1e-6)
    middle, drawn = float(seeds.median()), look(name)
    ax.plot([seeds.min(), seeds.max()], [y, y], color=drawn.color, linewidth=1.4)
    ax.plot([middle], [y], marker=drawn.marker, color=drawn.color, markersize=5.5,
            markeredgecolor="white", markeredgewidth=0.5)  # fmt: skip
    words = f"{name}{'' if best[0] == 'none' else f', {best[0]} map'}, {place[0]} {place[1]}: "
    words += f"{format_percent(middle)}, {len(seeds)} seeds from {format_percent(seeds.min())}"
    hover(ax, [middle], [y], [f"{words} to {format_percent(seeds.max())}"])


def _memory_figure(exact: pd.DataFrame, metric: Metric) -> Drawing:
    figure = Figure(figsize=_SIZE, layout="constrained")
    ax = figure.subplots()
    first = exact.iloc[0]
    same = exact["problem"].eq(first["problem"])
    for name in WORKLOAD:
        same &= exact[name].isna() if pd.isna(first[name]) else exact[name].eq(first[name])
    rows = exact[same & exact["ascent"].eq(first["ascent"])]
    ticks = rows["max_iterations"].astype(float)
    values: list[float] = []
    handles = []
    lanes: list[Lane] = []
    predictions = False
    for name in sorted(rows["gradient"].unique(), key=gradient_rank):
        own, drawn = rows[rows["gradient"] == name], look(name)
        known = own[own[metric.column].notna()].astype({metric.column: float})
        medians = known.groupby("max_iterations")[metric.column].median()
        x = medians.index.astype(float)
        ax.plot(x, medians, color=drawn.color, marker=drawn.marker, linestyle=line_style(drawn),
                markersize=6)  # fmt: skip
        words = [f"{name}, K = {k}: {format_bytes(size)}" for k, size in medians.items()]
        hover(ax, x, medians, words)
        predicted = predicted_rows(own, metric)
        predictions |= len(predicted) > 0
        hollow(ax, predicted["max_iterations"].astype(float), predicted["bytes"], drawn)
        values += [*medians, *predicted["bytes"].astype(float)]
        handles.append(handle(drawn, name))
        lanes += absent(drawn, own, metric.column, "max_iterations", ticks)
    log_counts(ax, ticks, "inner iterations K, exactly")
    scale_axis(ax, "bytes", values, log=True, lanes=len(lanes))
    failure_strip(ax, lanes)
    ax.set_ylabel(metric.name)
    legend_above(figure, [*handles, *([predicted_handle()] if predictions else [])], 5)
    caption = (
        f"Bytes of one training step, {metric.name}: {first['problem']}, "
        f"{first['n_agents']} agents, batch {first['batch_size']}, {first['n_steps']} time steps, "
        f"{first['ascent']}."
    )
    return Drawing("headline", "Memory against K", caption, figure)
