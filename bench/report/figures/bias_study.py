"""JFB's relative error beside |dT/du|, and the derivative of the unrolled iteration against K."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from bench.report.style import look

_MARKERS = {"plain": "o", "scaled": "s", "newton": "^"}
#: errors and norms below are drawn here: rounding, and maps on which JFB is exact
_LEAST, _LEAST_NORM = 1e-10, 1e-4
_TRACKED = {"jfb": 1, "jfb-3": 3, "jfb-5": 5}


def bias_figure(table: pd.DataFrame) -> Figure:
    """A panel per number k of tracked steps; the line is |dT/du|^k, the bound of one control."""
    rows = table[table["gradient"].isin(list(_TRACKED))].dropna(
        subset=["gradient_bias", "map_norm"]
    )
    rows = rows.assign(
        map_norm=rows["map_norm"].clip(_LEAST_NORM),
        gradient_bias=rows["gradient_bias"].clip(_LEAST),
    )
    grid = sns.relplot(
        rows, x="map_norm", y="gradient_bias", col="gradient", hue="problem", style="map",
        markers=_MARKERS, palette="colorblind", alpha=0.75, height=3.8,
    )  # fmt: skip
    norms = np.geomspace(_LEAST_NORM, 1.0, 60)
    for name, ax in grid.axes_dict.items():
        bound = np.maximum(norms ** _TRACKED[name], _LEAST)
        ax.plot(norms, bound, color="#555555", lw=1.0, label="bound of one control, |dT/du|^k")
    grid.set(xscale="log", yscale="log").set_titles("{col_name}")
    grid.set_axis_labels("largest |dT/du|", "relative error of the gradient")
    return grid.figure


def iteration_figure(table: pd.DataFrame) -> Figure:
    """The relative error of K unrolled iterations, cold and warm; a panel per problem and map.

    Dotted are the errors of JFB with 1, 3 and 5 tracked steps at the same stage of training.
    """
    table = table.assign(
        panel=table.apply("{0[problem]}, N = {0[n_agents]}, {0[map]} map".format, axis=1)
    )
    own = table[(table["gradient"] == "unrolled") & table["gradient_bias"].notna()]
    grid = sns.relplot(
        own, x="count", y="gradient_bias", style="start", col="panel", col_wrap=4, kind="line",
        color=look("unrolled").color, marker="o", estimator="median", errorbar=None, height=2.6,
    )  # fmt: skip
    for name, ax in grid.axes_dict.items():
        stage = own.loc[own["panel"] == name, "stage"].iloc[0]
        jfb = table[(table["panel"] == name) & (table["stage"] == stage)]
        for gradient in _TRACKED:
            level = jfb.loc[jfb["gradient"] == gradient, "gradient_bias"].median()
            ax.axhline(
                max(level, _LEAST), color=look(gradient).color, lw=1.0, ls=":", label=gradient
            )
    grid.set(xscale="log", yscale="log").set_titles("{col_name}")
    grid.set_axis_labels("K", "relative error of the gradient")
    return grid.figure
