"""How far JFB's gradient is from the true one, against how strongly the map contracts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bench.report.figures.canvas import Drawing
from bench.report.figures.hover import hover
from bench.report.load import Run
from bench.report.style import format_percent

_COLUMNS = ("run", "step", "rate_max", "angle_expectation", "norm_ratio")
_LOOKS = (
    *(("#0072B2", "o"), ("#D55E00", "^"), ("#009E73", "s"), ("#CC79A7", "D"), ("#56B4E9", "v")),
    *(("#E69F00", "P"), ("#1B3A6B", "X"), ("#767676", "<"), ("#7A2E00", ">"), ("#000000", "*")),
)


def contraction_figure(runs: Sequence[Run]) -> list[Drawing]:
    """From the traces that `bench verify` leaves; nothing where no run has any."""
    files = [run.directory / "data" / "traces.csv" for run in runs]
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
    for (name, own), (color, marker) in zip(traces.groupby("run"), _LOOKS * 9, strict=False):
        x, y = own["rate_max"].clip(lower=1e-4), bias[own.index].clip(lower=1e-4)
        ax.plot(x, y, marker, color=color, markersize=5, linestyle="none", label=name)
        words = [
            f"{name}, training step {step}: |dT/du| {rate:.2g}, bias {format_percent(value)}"
            for step, rate, value in zip(own["step"], own["rate_max"], bias[own.index], strict=True)
        ]
        hover(ax, x, y, words)
    ax.axvline(1.0, color="#555555", linewidth=1)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("largest |dT/du| over the states of a minibatch; left of 1 the map contracts")
    ax.set_ylabel("bias of JFB's expected gradient")
    ax.yaxis.set_major_formatter(lambda value, _: format_percent(value))
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    caption = (
        "Distance between JFB's expected gradient and the true one, relative to the true one, at "
        "measured steps of training. Values below 0.01% are drawn there."
    )
    return [Drawing("contraction", "Gradient bias against |dT/du|", caption, figure)]
