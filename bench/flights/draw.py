"""Figures of flights: paths, states, controls and distances, several policies side by side."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bench.flights.fly import OPTIMUM, TRAINED, UNTRAINED, Flight
from bench.flights.views import (
    Lines,
    control_lines,
    distance_lines,
    positions,
    state_lines,
    target,
    time_unit,
)
from bench.report.figures import canvas
from jfbcore.problems import Problem

#: colour and dashes; the dashes tell them apart without colour
_LOOKS: dict[str, tuple[str, Any]] = {
    TRAINED: ("#0072B2", "-"),
    OPTIMUM: ("#222222", "--"),
    UNTRAINED: ("#D55E00", ":"),
}
#: more panels than this say nothing that the first ones do not
_MOST_PANELS = 8
#: more lines than this in one colour are drawn as a band
_MOST_LINES = 3


@dataclass(frozen=True)
class FlightFigure:
    """One figure, what it is called in file names, and a caption for readers."""

    name: str
    caption: str
    figure: Figure

    def _repr_png_(self) -> bytes:
        """What a notebook shows of it."""
        picture = io.BytesIO()
        self.figure.savefig(picture, format="png", dpi=90)
        return picture.getvalue()


def flight_figures(problem: Problem, flights: Sequence[Flight]) -> list[FlightFigure]:
    """Everything there is to draw of `flights`, which start in the same state."""
    names = ", ".join(f"{each.name} (cost {each.cost:.4g})" for each in flights)
    who, unit = f"{problem.n_agents} × {problem.name}", time_unit(problem)
    paths = [p for each in flights if (p := positions(problem, each.states)) is not None]
    lines = {
        "controls": (f"{who}, controls", [control_lines(problem, f.controls) for f in flights])
    }
    if not paths:
        states = [state_lines(problem, each.states) for each in flights]
        lines = {"states": (f"{who} ({names}), states", states)} | lines
    elif problem.n_agents > 1:
        lines["distances"] = (f"{who}, distances", [distance_lines(path) for path in paths])
    with canvas.theme():
        found = [
            FlightFigure(name, *_over_time(what, flights, own, unit))
            for name, (what, own) in lines.items()
        ]
        if paths:
            where = "in space" if paths[0].shape[2] == 3 else "seen from above"
            caption = f"{who}, paths {where}: {names}."
            figure = _paths(flights, paths, target(problem))
            found.insert(0, FlightFigure("paths", caption, figure))
    return found


def save(figures: Sequence[FlightFigure], out: Path, prefix: str) -> list[Path]:
    """Write every figure as SVG and PNG; the SVGs' paths."""
    out.mkdir(parents=True, exist_ok=True)
    return [canvas.save(each.figure, out / f"{prefix}-{each.name}.svg", 130) for each in figures]


def _paths(
    flights: Sequence[Flight], paths: Sequence[np.ndarray], goal: tuple[float, ...] | None
) -> Figure:
    """One panel for one agent, one panel a flight for several."""
    _, agents, dimension = paths[0].shape
    together = agents == 1
    columns = 1 if together else len(flights)
    figure = Figure(figsize=(5.4 if together else 4.4 * columns, 4.6), layout="constrained")
    kind: dict[str, Any] = {"projection": "3d"} if dimension == 3 else {}
    axes = figure.subplots(1, columns, squeeze=False, subplot_kw=kind)[0]
    box = _box(flights, paths, goal)
    for place, (each, path) in enumerate(zip(flights, paths, strict=True)):
        # Paths in space are not clipped at the edge of the picture by themselves.
        inside = np.all((path >= box[0]) & (path <= box[1]), axis=2, keepdims=True)
        path = np.where(inside, path, np.nan)
        ax, (color, dashes) = axes[0 if together else place], _LOOKS[each.name]
        width = 1.8 if together else 0.8
        for agent in range(agents):
            ax.plot(*path[:, agent].T, color=color, linestyle=dashes, linewidth=width)
            ax.plot(*path[-1:, agent].T, "o", color=color, markersize=3.5)
        if not together:
            ax.set_title(f"{each.name}, cost {each.cost:.4g}")
    for ax in axes:
        if goal is not None:
            ax.plot(*[[x] for x in goal], "x", color="black", markersize=9, markeredgewidth=2)
        for name, low, high in zip("xyz", *box, strict=False):
            ax.set(**{f"{name}label": f"{name} [m]", f"{name}lim": (low, high)})
        ax.set_aspect("equal")
    if together:
        _legend(figure, flights)
    return figure


def _box(
    flights: Sequence[Flight], paths: Sequence[np.ndarray], goal: tuple[float, ...] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Corners of a cube around the target and every path but the untrained policy's."""
    flown = zip(flights, paths, strict=True)
    shown = [path.reshape(-1, path.shape[2]) for each, path in flown if each.name != UNTRAINED]
    points = np.concatenate([*shown, *([] if goal is None else [np.array([goal])])])
    low, high = np.nanmin(points, axis=0), np.nanmax(points, axis=0)
    half = 0.55 * float((high - low).max()) or 1.0
    return (low + high) / 2 - half, (low + high) / 2 + half


def _over_time(
    what: str, flights: Sequence[Flight], lines: Sequence[Lines], unit: str
) -> tuple[str, Figure]:
    """One panel a quantity: a line each where few, else the median and the middle 90 %."""
    headings = list(lines[0])[:_MOST_PANELS]
    panels, columns = len(headings), min(len(headings), 2)
    rows = -(-panels // columns)
    figure = Figure(figsize=(max(4.2 * columns, 5.6), 0.5 + 2.5 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for ax in axes[panels:]:
        ax.set_visible(False)
    for heading, ax in zip(headings, axes, strict=False):
        flown = [(each, own[heading]) for each, own in zip(flights, lines, strict=True)]
        for each, values in flown:
            _draw_lines(ax, each.times, values, *_LOOKS[each.name])
        ax.set(title=heading, xlabel=f"time{unit}")
        _focus(ax, [values for each, values in flown if each.name != UNTRAINED])
    _legend(figure, flights)
    bands = max(values.shape[1] for values in lines[0].values()) > _MOST_LINES
    caption = " A line is the median, its band the middle 90 %." if bands else ""
    return f"{what} over time.{caption}", figure


def _draw_lines(ax: Axes, times: np.ndarray, values: np.ndarray, color: str, dashes: str) -> None:
    t = times[: len(values)]
    if values.shape[1] <= _MOST_LINES:
        ax.plot(t, values, color=color, linestyle=dashes, linewidth=1.4)
        return
    low, middle, high = np.quantile(values, (0.05, 0.5, 0.95), axis=1)
    ax.fill_between(t, low, high, color=color, alpha=0.15, linewidth=0)
    ax.plot(t, middle, color=color, linestyle=dashes, linewidth=1.6)


def _focus(ax: Axes, values: Sequence[np.ndarray]) -> None:
    """Show `values` in full, whatever else is drawn: an untrained policy may go anywhere."""
    shown = np.concatenate([part.ravel() for part in values])
    shown = shown[np.isfinite(shown)]
    if len(shown) and np.ptp(shown) > 0:
        pad = 0.25 * np.ptp(shown)
        below = pad if shown.min() < 0 else min(pad, shown.min() + 0.04 * pad)
        ax.set_ylim(shown.min() - below, shown.max() + pad)


def _legend(figure: Figure, flights: Sequence[Flight]) -> None:
    handles = []
    for each in flights:
        color, dashes = _LOOKS[each.name]
        handles.append(Line2D([], [], color=color, linestyle=dashes, lw=1.8, label=each.name))
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
