"""How far JFB's gradient is from the true one, against how strongly the map contracts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bench.report.figures.canvas import FORMATS, Drawing, handle
from bench.report.figures.hover import hover
from bench.report.load import Run
from bench.report.style import Look, format_percent

_COLUMNS = ("problem", "variant", "run", "step", "rate_max", "angle_expectation", "norm_ratio")
#: problems by colour, maps by marker
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#767676")
_MARKERS = {"scaled": "s", "plain": "o", "released": "^"}


def contraction_figure(runs: Sequence[Run]) -> list[Drawing]:
    """From the traces that `bench verify` leaves; nothing where no run has any."""
    files = [run.directory / "data" / "trace.csv" for run in runs]
    frames = [pd.read_csv(file) for file in files if file.is_file()]
    frames = [frame for frame in frames if set(_COLUMNS) <= set(frame)]
    traces = (
        pd.concat(frames, ignore_index=True)[list(_COLUMNS)].dropna() if frames else pd.DataFrame()
    )
    if traces.empty:
        return []
    ratio, angle = traces["norm_ratio"], np.deg2rad(traces["angle_expectation"])
    # |g_jfb - g| / |g| by the law of cosines, from the ratio of norms and the angle.
    bias = np.sqrt((1 + ratio**2 - 2 * ratio * np.cos(angle)).clip(lower=0))
    figure = Figure(figsize=(8.2, 4.3), layout="constrained")
    ax = figure.subplots()
    colors = dict(zip(traces["problem"].unique(), _COLORS * 9, strict=False))
    for (name, problem, variant), own in traces.groupby(["run", "problem", "variant"]):
        x, y = own["rate_max"].clip(lower=1e-4), bias[own.index].clip(lower=1e-4)
        marker = _MARKERS.get(variant, "D")
        ax.plot(x, y, marker, color=colors[problem], markersize=5, alpha=0.75)
        words = [
            f"{name}, training step {step}: |dT/du| {rate:.2g}, bias {format_percent(value)}"
            for step, rate, value in zip(own["step"], own["rate_max"], bias[own.index], strict=True)
        ]
        hover(ax, x, y, words)
    ax.axvline(1.0, color="#555555", linewidth=1)
    ax.set(xscale="log", yscale="log", ylabel="bias of JFB's expected gradient")
    ax.set_xlabel("largest |dT/du| over the states of a minibatch; left of 1 the map contracts")
    ax.yaxis.set_major_formatter(lambda value, _: FORMATS["percent"](value))
    entries = [handle(Look(color, "o", ""), name, line=False) for name, color in colors.items()]
    entries += [
        handle(Look("#444444", _MARKERS.get(name, "D"), ""), f"{name} {kind}", line=False)
        for name in traces["variant"].unique()
        for kind in ["recipe" if name == "released" else "map"]
    ]
    figure.legend(handles=entries, loc="outside right upper")
    caption = (
        "Distance between JFB's expected gradient and the true one, relative to the true one, at "
        "measured steps of training. Values below 0.01% are drawn there."
    )
    return [Drawing("contraction", "Gradient bias against |dT/du|", caption, figure)]
