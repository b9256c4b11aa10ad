"""One figure a claim, drawn from the tables the claims are judged on."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.report.figures.canvas import theme
from bench.report.style import look


def draw(data: dict[str, pd.DataFrame], directory: Path) -> None:
    """Write figures/claim-N-*.png under `directory`."""
    mpl.use("Agg")
    folder = directory / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    traces = data["traces"].dropna(subset=["rate_max"])
    with theme():
        for name, column, label, log in (
            ("claim-1-contractivity", "rate_max", "largest |dT/du|", False),
            ("claim-2-alignment", "angle_max", "largest angle [degrees]", False),
            ("claim-3-variance", "relative_variance", "relative variance", True),
        ):
            figure, axes = _figure()
            _lines(axes, traces, "step", column, hue="run")
            if name == "claim-1-contractivity":
                axes.axhline(1.0, color="0.3", linewidth=1, linestyle=":")
            if log:
                axes.set_yscale("log")
            _finish(figure, axes, "training steps", label, folder / f"{name}.png")

        figure, axes = _figure()
        descent = data["descent"].assign(
            series=lambda t: t["problem"] + " n=" + t["n_agents"].astype(str) + ", " + t["sgd"]
        )
        _lines(axes, descent, "step", "true_gradient_norm", hue="series")
        axes.set_yscale("log")
        _finish(figure, axes, "SGD steps", "true gradient norm", folder / "claim-4-convergence.png")

        figure, axes = _figure()
        memory = data["memory"]
        for (problem, n, gradient), rows in memory.groupby(["problem", "n_agents", "gradient"]):
            style = look(gradient)
            axes.plot(
                rows["K"],
                rows["saved_bytes"] / 2**20,
                color=style.color,
                marker=style.marker,
                alpha=0.9,
                linestyle={"quadrotor": "-", "bicycle": "--", "consumption": ":"}[problem],
                label=f"{gradient}, {problem} n={n}",
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        _finish(figure, axes, "exact iterations K", "saved for backward [MiB]",
                folder / "claim-5-memory.png")  # fmt: skip

        races = data["races"].dropna(subset=["seconds"])
        panels = list(races.groupby(["problem", "n_agents"]))
        figure = Figure(figsize=(9, 3.6 * len(panels)), layout="constrained")
        grid = figure.subplots(len(panels), 1, squeeze=False)
        for axes, ((problem, n), rows) in zip(grid.flat, panels, strict=True):
            for (gradient, _), run in rows.groupby(["gradient", "seed"]):
                style = look(gradient)
                first = run["seed"].iloc[0] == rows["seed"].min()
                axes.plot(run["seconds"], run["cost"], color=style.color, marker=style.marker,
                          markersize=4, label=gradient if first else None)  # fmt: skip
            axes.set_yscale("log")
            axes.set_title(f"{problem}, n={n}", loc="left")
            axes.set_xlabel("training seconds")
            axes.set_ylabel("held-out cost")
            axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
        figure.savefig(folder / "claim-6-cost.png", dpi=130)

        figure, axes = _figure()
        scale = data["scale"].copy()
        scale["relative"] = scale["cost"] / scale.groupby("problem")["cost"].transform("first")
        _lines(axes, scale, "step", "relative", hue="problem")
        axes.set_yscale("log")
        _finish(
            figure, axes, "training steps", "held-out cost / first", folder / "claim-7-scale.png"
        )


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    return figure, figure.subplots()


def _lines(axes: Axes, table: pd.DataFrame, x: str, y: str, hue: str) -> None:
    n_series = table[hue].nunique()
    # Beyond ten series colours repeat; markers and dashes keep them apart.
    palette = sns.color_palette("colorblind", n_colors=n_series)
    sns.lineplot(
        table, x=x, y=y, hue=hue, style=hue, markers=True, estimator="median",
        errorbar=("pi", 50), palette=palette, ax=axes,
    )  # fmt: skip


def _finish(figure: Figure, axes: Axes, x: str, y: str, path: Path) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)
