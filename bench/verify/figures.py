"""One figure a claim, drawn from the tables the claims are judged on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bench.report.figures.canvas import handle, line_style, theme
from bench.report.style import Look, look
from bench.verify.claim import Tables
from bench.verify.derivative_figure import derivative_figure
from bench.verify.open_figures import maximiser_figure, mean_field_figure
from bench.verify.panels import band, count_axis, panels, readable_log

_SIZE = ["problem", "n_agents"]
_DOTS_PER_INCH = 130
_COLUMNS = 4

VARIANTS = {
    "scaled": Look("#0072B2", "o", ""),
    "plain": Look("#D55E00", "s", (4, 1.5)),
    "released": Look("#555555", "^", (1.5, 1.5)),
}
#: the exact one is drawn first and the other one dashed over it: where they agree both show
_SGD = {"exact": look("implicit"), "jfb": replace(look("jfb"), dashes=(2, 2))}


def draw(data: Tables, directory: Path) -> None:
    """Write figures/*.png under `directory`, one for each claim whose table is there."""
    mpl.use("Agg")
    folder = directory / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    with theme():
        for name, figure in _figures(data):
            figure.savefig(folder / f"{name}.png", dpi=_DOTS_PER_INCH)


def _figures(data: Tables) -> Iterator[tuple[str, Figure]]:
    """File stem and figure."""
    if "traces" in data and data["traces"]["rate_max"].notna().any():
        traces = data["traces"].dropna(subset=["rate_max"])
        for name, column, label in (
            ("claim-1-contractivity", "rate_max", "largest |dT/du|"),
            ("claim-2-alignment", "angle_max", "largest angle [degrees]"),
            ("claim-3-variance", "relative_variance", "relative variance"),
        ):
            limit = {"rate_max": 1.0, "angle_max": 90.0}.get(column)
            # Angles may be zero; everything else spans decades.
            scale = "linear" if column == "angle_max" else "log"
            yield name, _trace_figure(traces, column, label, limit, scale)
    if "descent" in data:
        yield "claim-4-convergence", _series_figure(
            data["descent"], "step", "true_gradient_norm", "sgd", _SGD,
            {"jfb": "SGD with JFB", "exact": "SGD with exact gradients"},
            "SGD steps", "true gradient norm",
        )  # fmt: skip
    if "memory" in data:
        memory = data["memory"].assign(mebibytes=data["memory"]["saved_bytes"] / 2**20)
        names = {name: name for name in memory["gradient"].unique()}
        yield "claim-5-memory", _series_figure(
            memory, "K", "mebibytes", "gradient", {name: look(name) for name in names}, names,
            "exact iterations K", "saved for backward [MiB]", log_x=True,
        )  # fmt: skip
    if "races" in data and data["races"]["seconds"].notna().any():
        yield "claim-6-cost", _race_figure(data["races"].dropna(subset=["seconds"]))
    if "scale" in data:
        scale = data["scale"].copy()
        first = scale.groupby(["problem", "seed"])["cost"].transform("first")
        scale["relative"] = scale["cost"] / first
        yield "claim-7-scale", _series_figure(
            scale, "step", "relative", "kind", {"jfb": look("jfb")}, {"jfb": "jfb, scaled map"},
            "training steps", "held-out cost / first", log_y=False, kind="jfb",
        )  # fmt: skip
    if "derivatives" in data:
        yield "beyond-derivative-error", derivative_figure(data["derivatives"])
    if "maximisers" in data:
        yield "beyond-local-maximisers", maximiser_figure(data["maximisers"])
    if "mean-field" in data:
        yield "beyond-mean-field", mean_field_figure(data["mean-field"])


def _trace_figure(
    table: pd.DataFrame, column: str, label: str, limit: float | None, scale: str
) -> Figure:
    present = [name for name in VARIANTS if name in set(table["variant"])]

    def paint(axes: Axes, part: pd.DataFrame) -> None:
        for name in present:
            rows = part[part["variant"] == name]
            if len(rows):
                band(axes, rows.assign(**{column: rows[column].astype(float)}), "step", column,
                     VARIANTS[name])  # fmt: skip
        if limit is not None:
            axes.axhline(limit, color="0.3", linewidth=1, linestyle=":")
        if scale == "log":
            readable_log(axes)
        else:
            axes.set_ylim(bottom=0.0)
        axes.set_xlabel("training steps")
        axes.set_ylabel(label)

    words = {"scaled": "scaled map", "plain": "plain map", "released": "released recipe"}
    handles = [handle(VARIANTS[name], words[name]) for name in present]
    if limit is not None:
        handles.append(Line2D([], [], color="0.3", linestyle=":", label=f"limit {limit:g}"))
    return panels(table, _SIZE, paint, handles, _COLUMNS)


def _series_figure(
    table: pd.DataFrame,
    x: str,
    y: str,
    hue: str,
    looks: dict[str, Look],
    words: dict[str, str],
    x_label: str,
    y_label: str,
    *,
    log_x: bool = False,
    log_y: bool = True,
    kind: str | None = None,
) -> Figure:
    if kind is not None:
        table = table.assign(**{hue: kind})
    if "seed" not in table:
        table = table.assign(seed=0)

    def paint(axes: Axes, part: pd.DataFrame) -> None:
        for name, style in looks.items():
            rows = part[part[hue] == name]
            if len(rows):
                band(axes, rows, x, y, style)
        if log_x:
            count_axis(axes, part[x])
        if log_y:
            readable_log(axes)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)

    handles = [handle(style, words[name]) for name, style in looks.items()]
    return panels(table, _SIZE, paint, handles, _COLUMNS)


def _race_figure(table: pd.DataFrame) -> Figure:
    present = list(table["gradient"].unique())

    def paint(axes: Axes, part: pd.DataFrame) -> None:
        for (gradient, _), run in part.groupby(["gradient", "seed"]):
            style = look(gradient)
            axes.plot(run["seconds"], run["cost"], color=style.color, marker=style.marker,
                      markersize=4, linestyle=line_style(style), linewidth=1.1)  # fmt: skip
        if (part["cost"].dropna() > 0).all():
            readable_log(axes)
        axes.set_xlabel("training seconds")
        axes.set_ylabel("held-out cost")

    return panels(table, _SIZE, paint, [handle(look(name), name) for name in present], 3)
