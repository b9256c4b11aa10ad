"""JFB's relative error beside |dT/du|, and the derivative of the unrolled iteration against K."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bench.report.figures.canvas import grid, handle, log_counts
from bench.report.style import Look, look

#: maps by marker, problems by colour
_MARKERS = {"plain": "o", "scaled": "s", "newton": "^"}
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8A8D1A", "#4B6584")
#: errors and norms below are drawn here: rounding, and maps on which JFB is exact
_LEAST, _LEAST_NORM = 1e-10, 1e-4
_STARTS: dict[str, tuple[float, ...] | str] = {"cold": "", "warm": (4, 1.5)}


def bias_figure(table: pd.DataFrame) -> Figure:
    """A panel per number k of tracked steps; the line is |dT/du|^k."""
    table = table.dropna(subset=["gradient_bias", "map_norm"])
    names = [name for name in ("jfb", "jfb-3", "jfb-5") if name in set(table["gradient"])]
    problems = list(dict.fromkeys(table["problem"]))
    colors = {name: _COLORS[i % len(_COLORS)] for i, name in enumerate(problems)}
    figure, axes = grid(1, max(len(names), 1), 3.8)
    for ax, name in zip(axes[0], names, strict=False):
        tracked = int(name.partition("-")[2] or 1)
        for (problem, map_name), part in table[table["gradient"] == name].groupby(
            ["problem", "map"], sort=False
        ):
            x, y = part["map_norm"].clip(_LEAST_NORM), part["gradient_bias"].clip(_LEAST)
            ax.plot(x, y, _MARKERS.get(map_name, "x"), color=colors[problem], alpha=0.75, ms=5)
        norms = np.geomspace(_LEAST_NORM, 1.0, 60)
        ax.plot(norms, np.maximum(norms**tracked, _LEAST), color="#555555", lw=1.0)
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_title(f"{name}: k = {tracked}")
        ax.set_xlabel("largest |dT/du|")
    axes[0][0].set_ylabel("relative error of the gradient")
    handles = [handle(Look(color, "o", ""), name) for name, color in colors.items()]
    handles += [handle(Look("#333333", mark, ""), f"{name} map") for name, mark in _MARKERS.items()]
    for entry in handles:
        entry.set_linestyle("none")
    handles.append(handle(Look("#555555", "", ""), "bound of one control, |dT/du|^k"))
    figure.legend(handles=handles, loc="outside upper left", ncols=5, frameon=False, fontsize=8)
    return figure


def iteration_figure(table: pd.DataFrame) -> Figure:
    """The relative error of K unrolled iterations, cold and warm; a panel per problem and map."""
    own = table[(table["gradient"] == "unrolled") & table["gradient_bias"].notna()]
    panels = list(own.groupby(["problem", "n_agents", "map"], sort=False))
    columns = min(4, max(len(panels), 1))
    figure, axes = grid(-(-max(len(panels), 1) // columns), columns, 2.6)
    style = look("unrolled")
    for ax, ((problem, n_agents, map_name), part) in zip(axes.flat, panels, strict=False):
        for start, dashes in _STARTS.items():
            line = part[part["start"] == start].groupby("count")["gradient_bias"].median()
            (drawn,) = ax.plot(line.index, line, color=style.color, marker=style.marker, ms=3.5)
            if dashes:
                drawn.set_dashes(dashes)
        jfb = table[
            (table["problem"] == problem) & (table["n_agents"] == n_agents)
            & (table["map"] == map_name) & (table["stage"] == part["stage"].iloc[0])
        ]  # fmt: skip
        for name in ("jfb", "jfb-3", "jfb-5"):
            level = jfb[jfb["gradient"] == name]["gradient_bias"].median()
            ax.axhline(max(level, _LEAST), color=look(name).color, lw=1.0, ls=":")
        ax.set_yscale("log")
        log_counts(ax, part["count"], "K")
        ax.set_title(f"{problem}, N = {n_agents}, {map_name} map")
    for ax in axes.flat[len(panels) :]:
        ax.set_axis_off()
    handles = [
        handle(Look(style.color, style.marker, dashes), f"unrolled from a {start} start")
        for start, dashes in _STARTS.items()
    ]
    handles += [handle(Look(look(n).color, "", (1, 1.5)), n) for n in ("jfb", "jfb-3", "jfb-5")]
    figure.legend(handles=handles, loc="outside upper left", ncols=5, frameon=False, fontsize=8)
    return figure
