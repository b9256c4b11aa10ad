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
from bench.report.figures.canvas import theme
from bench.report.figures.hover import titled
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
    with theme():
        paths = [positions(problem, each.states) for each in flights]
        names = ", ".join(f"{each.name} (cost {each.cost:.4g})" for each in flights)
        who = f"{problem.n_agents} × {problem.name}"
        found: list[FlightFigure] = []
        if paths[0] is not None:
            moving = [path for path in paths if path is not None]
            where = "in space" if moving[0].shape[2] == 3 else "seen from above"
            figure = _paths(flights, moving, target(problem))
            found.append(FlightFigure("paths", f"{who}, paths {where}: {names}.", figure))
        else:
            lines = [state_lines(problem, each.states) for each in flights]
            found.append(_over_time("states", f"{who} ({names}), states", flights, lines, problem))
        lines = [control_lines(problem, each.controls) for each in flights]
        found.append(_over_time("controls", f"{who}, controls", flights, lines, problem))
        if paths[0] is not None and problem.n_agents > 1:
            lines = [distance_lines(path) for path in moving]
            found.append(_over_time("distances", f"{who}, distances", flights, lines, problem))
    return found


def save(figures: Sequence[FlightFigure], out: Path, prefix: str) -> list[Path]:
    """Write every figure as SVG and PNG; the SVGs' paths."""
    out.mkdir(parents=True, exist_ok=True)
    written = []
    with theme():
        for each in figures:
            stem = out / f"{prefix}-{each.name}"
            vector = stem.with_name(f"{stem.name}.svg")
            each.figure.savefig(vector, metadata={"Date": None})
            titled(vector)
            each.figure.savefig(stem.with_name(f"{stem.name}.png"), dpi=130)
            written.append(vector)
    return written


def _paths(
    flights: Sequence[Flight], paths: Sequence[np.ndarray], goal: tuple[float, ...] | None
) -> Figure:
    """One panel for one agent, one panel a flight for several."""
    together = paths[0].shape[1] == 1
    solid = paths[0].shape[2] == 3
    columns = 1 if together else len(flights)
    figure = Figure(figsize=(5.4 if together else 4.4 * columns, 4.6), layout="constrained")
    kwargs: dict[str, Any] = {"projection": "3d"} if solid else {}
    axes = [figure.add_subplot(1, columns, i + 1, **kwargs) for i in range(columns)]
    box = _box(flights, paths, goal)
    for place, (each, path) in enumerate(zip(flights, paths, strict=True)):
        # Paths in space are not clipped at the edge of the picture by themselves.
        inside = np.all((path >= box[0]) & (path <= box[1]), axis=2, keepdims=True)
        path = np.where(inside, path, np.nan)
        ax, (color, dashes) = axes[0 if together else place], _LOOKS[each.name]
        width = 1.8 if together else 0.8
        for agent in range(path.shape[1]):
            ax.plot(*path[:, agent].T, color=color, linestyle=dashes, linewidth=width)
            ax.plot(*path[-1:, agent].T, "o", color=color, markersize=3.5)
        if not together:
            ax.set_title(f"{each.name}, cost {each.cost:.4g}")
    for ax in axes:
        if goal is not None:
            ax.plot(*[[x] for x in goal], "x", color="black", markersize=9, markeredgewidth=2)
        for name, letter in zip("xyz", "xyz"[: paths[0].shape[2]], strict=False):
            getattr(ax, f"set_{name}label")(f"{letter} [m]")
        for name, low, high in zip("xyz", *box, strict=False):
            getattr(ax, f"set_{name}lim")(low, high)
        ax.set_aspect("equal")
    if together:
        figure.legend(handles=_handles(flights), loc="outside lower center", ncols=3, frameon=False)
    return figure


def _box(
    flights: Sequence[Flight], paths: Sequence[np.ndarray], goal: tuple[float, ...] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Corners of a cube around the target and every path but the untrained policy's."""
    shown = [p.reshape(-1, p.shape[2]) for f, p in zip(flights, paths, strict=True)
             if f.name != UNTRAINED]  # fmt: skip
    points = np.concatenate([*shown, *([np.array([goal])] if goal is not None else [])])
    low, high = np.nanmin(points, axis=0), np.nanmax(points, axis=0)
    half = 0.55 * float((high - low).max()) or 1.0
    return (low + high) / 2 - half, (low + high) / 2 + half


def _over_time(
    name: str,
    what: str,
    flights: Sequence[Flight],
    lines: Sequence[Sequence[Lines]],
    problem: Problem,
) -> FlightFigure:
    """One panel a quantity: a line each where few, else the median and the middle 90 %."""
    panels = min(len(lines[0]), _MOST_PANELS)
    columns = min(panels, 2)
    rows = -(-panels // columns)
    figure = Figure(figsize=(max(4.2 * columns, 5.6), 0.5 + 2.5 * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in axes[panels:]:
        ax.set_visible(False)
    for index, ax in zip(range(panels), axes, strict=False):
        for place, each in enumerate(flights):
            _draw_lines(ax, each.times, lines[place][index].values, *_LOOKS[each.name])
        ax.set_title(lines[0][index].heading)
        ax.set_xlabel(f"time{time_unit(problem)}")
        flown = zip(flights, lines, strict=True)
        _focus(ax, [part[index].values for each, part in flown if each.name != UNTRAINED])
    figure.legend(handles=_handles(flights), loc="outside lower center", ncols=3, frameon=False)
    caption = f"{what} over time."
    if max(line.values.shape[1] for line in lines[0]) > _MOST_LINES:
        caption += " A line is the median, its band the middle 90 %."
    return FlightFigure(name, caption, figure)


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


def _handles(flights: Sequence[Flight]) -> list[Line2D]:
    return [
        Line2D([], [], color=color, linestyle=dashes, linewidth=1.8, label=each.name)
        for each in flights
        for color, dashes in [_LOOKS[each.name]]
    ]
