"""Inner iterations and achieved residual of every setting: are rows comparable at all?"""

from __future__ import annotations

import functools

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from bench.case import DEFAULT_STEPS, PROBLEM_NAMES, Case
from bench.report.figures import canvas
from bench.report.figures.panels import in_words
from bench.report.frames import WORKLOAD, missed
from bench.report.style import Look, gradient_rank, look, seeds_in_words

_MOST_ROWS = 30
#: residuals below are drawn here: below the rounding of float64 they all mean the same
_LEAST_RESIDUAL = 1e-16
_SETTING = ("problem", "n_agents", "environment", "ascent", "solver", "budget", *WORKLOAD)
_CAPTION = (
    "Every mark is one record ({} per case). Gradients on one line solve the same problem, and "
    "those that share the solver should agree; cvxpylayers and torchdeq bring their own. Rows are "
    "comparable only where the residual on the right is equal. A tolerance is relative to the "
    "problem's gradient scale, its mark is in the residual's own units. Lines without one run "
    "exactly K iterations."
)


def residual_figures(cases: pd.DataFrame) -> list[canvas.Drawing]:
    """Iterations and residual, one line per setting, the gradients side by side on it."""
    solved = cases[cases["residual_max"].notna() | cases["iterations_mean"].notna()].copy()
    if solved.empty:
        return []
    said = [
        name for name in _SETTING[2:]
        if solved[name].nunique(dropna=False) > 1 or name == "budget"
    ]  # fmt: skip
    solved["setting"] = [
        "\n".join(filter(None, (f"{row['problem']}, N={row['n_agents']}",
                                in_words({name: row[name] for name in said}))))
        for row in solved.to_dict("records")
    ]  # fmt: skip
    # numbers instead of the words of `budget`, in which K = 50 comes before K = 6
    by = [*_SETTING[:5], "tolerance", "max_iterations", *WORKLOAD]
    order = solved.sort_values(by, na_position="last")["setting"].drop_duplicates().tolist()
    count = -(-len(order) // _MOST_ROWS)
    return [
        _page(solved[solved["setting"].isin(page)], page, suffix)
        for suffix, page in canvas.paged(order, -(-len(order) // count))
    ]


def _page(rows: pd.DataFrame, order: list[str], suffix: str) -> canvas.Drawing:
    gradients = sorted(rows["gradient"].unique(), key=gradient_rank)
    # a setting's line, gradients spread over the middle of it
    several = len(gradients) > 1
    offsets = np.linspace(-0.36, 0.36, len(gradients)) if several else np.zeros(1)
    places = rows["setting"].map(order.index).astype(float)
    height = places + rows["gradient"].map(dict(zip(gradients, offsets, strict=True))).astype(float)
    figure, axes = canvas.grid(2, 2, height=1.5 + 0.42 * len(order))
    iterations, residual = axes[0]
    # a residual of exactly zero has no place on a logarithmic axis
    residuals = rows["residual_max"].clip(lower=_LEAST_RESIDUAL)
    for ax, values in ((iterations, rows["iterations_mean"]), (residual, residuals)):
        for name in gradients:
            mine, own = rows["gradient"] == name, look(name)
            ax.plot(values[mine], height[mine], own.marker, color=own.color, markersize=5.8,
                    markeredgecolor="white", markeredgewidth=0.5)  # fmt: skip
        canvas.named_lines(ax, order)
        for line in range(1, len(order)):
            ax.axhline(line - 0.5, color="#d5d5d5", linewidth=0.6)
        ax.grid(visible=False, axis="y")
    iterations.set_xscale("symlog", linthresh=1.0)
    if rows["iterations_mean"].notna().any():
        iterations.set_xlim(-0.15, 1.5 * max(rows["iterations_mean"].max(), 10.0))
    iterations.set_xlabel("mean iterations per time step")
    residual.set_xscale("log")
    low, high = np.log10(residuals.min()), np.log10(residuals.max())
    if high - low < 2:
        residual.set_xlim(10 ** (min(low, high - 1) - 0.3), 10 ** (high + 0.3))
    residual.set_xlabel("largest inner residual")
    residual.sharey(iterations)
    residual.tick_params(labelleft=False)
    _tolerances(residual, rows, order)
    handles = [canvas.handle(look(name), name, line=False) for name in gradients]
    asked = canvas.handle(Look("#222222", "|", ""), "tolerance asked", line=False)
    asked.set(markersize=9, markeredgecolor="#222222", markeredgewidth=1.2)
    handles.append(asked)
    if (late := missed(rows)).any():
        handles.append(canvas.ring(residual, rows.loc[late, "residual_max"], height[late]))
    canvas.legend_above(figure, handles, 6)
    caption = _CAPTION.format(
        seeds_in_words(rows.groupby(["setting", "gradient"])["seed"].nunique())
    )
    if (rows["residual_max"] < _LEAST_RESIDUAL).any():
        caption += f" Residuals below {_LEAST_RESIDUAL:g} are drawn there."
    return canvas.Drawing(f"residuals{suffix}", "Iterations and achieved residual", caption, figure)


def _tolerances(ax: Axes, rows: pd.DataFrame, order: list[str]) -> None:
    # a problem of another version of the suite has a scale that is not known here
    asked = rows[rows["tolerance"].notna() & rows["problem"].isin(PROBLEM_NAMES)]
    keys = ["setting", "problem", "variant", "n_agents", "tolerance"]
    for name, *problem, tolerance in asked[keys].drop_duplicates().itertuples(index=False):
        line, residual = order.index(name), tolerance * _gradient_scale(*problem)
        ax.plot([residual] * 2, [line - 0.46, line + 0.46], color="#222222", linewidth=1.2)


@functools.cache
def _gradient_scale(problem: str, variant: str, n_agents: int) -> float:
    # Here, so that a report without inner iterations does not import torch.
    from bench.build import build_problem

    case = Case(problem=problem, variant=variant, n_agents=n_agents, gradient="jfb", batch_size=1,
                n_steps=DEFAULT_STEPS[problem])  # fmt: skip
    return build_problem(case).gradient_scale
