"""The figure of the derivative's error against the number of iterations."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.report.figures.canvas import handle
from bench.report.style import Look, look, tint
from bench.verify.panels import band, count_axis, panels

_WORDS = {"unrolled": "unrolled, K iterations", "jfb": "jfb(k), k tracked applications"}


def derivative_figure(table: pd.DataFrame) -> Figure:
    """A panel per problem, map and policy; unrolled and jfb in each."""
    looks = {name: look(name) for name in _WORDS}
    table = table.assign(
        map=table["map"] + " map", policy=table["policy"] + " policy",
    ).sort_values(["problem", "n_agents", "policy", "map"])  # fmt: skip

    def paint(axes: Axes, part: pd.DataFrame) -> None:
        for name, style in looks.items():
            rows = part[part["gradient"] == name]
            band(axes, rows, "count", "error", style)
            start = rows[rows["count"] == rows["count"].min()]["error"].median()
            # The level of one iteration: whatever rises above it has grown first.
            axes.axhline(start, color=tint(style.color, 0.5), linewidth=0.9, linestyle=":")
        axes.set_yscale("log")
        count_axis(axes, part["count"])
        axes.set_xlabel("K, k")
        axes.set_ylabel("relative error")

    handles = [handle(looks[name], words) for name, words in _WORDS.items()]
    handles.append(handle(Look("#999999", "", (1, 1.5)), "error at 1"))
    return panels(table, ["problem", "n_agents", "map", "policy"], paint, handles, 4)
