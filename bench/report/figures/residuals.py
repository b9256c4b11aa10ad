"""Inner iterations and achieved residual of every setting: are rows comparable at all?"""

from __future__ import annotations

import functools

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from bench.case import DEFAULT_STEPS, PROBLEM_NAMES, Case
from bench.report.figures.canvas import Drawing, grid, handle, ring, ring_handle, seeds_in_words
from bench.report.frames import WORKLOAD, missed
from bench.report.series import describe
from bench.report.style import Look, gradient_rank, look

_MOST_ROWS = 30
#: residuals below are drawn here: below the rounding of float64 they all mean the same
_LEAST_RESIDUAL = 1e-16
_SETTING = ("problem", "n_agents", "environment", "ascent", "solver", "budget", *WORKLOAD)


def residual_figures(cases: pd.DataFrame) -> list[Drawing]:
    """Iterations and residual, one line per setting, the gradients side by side on it."""
    solved = cases[cases["residual_max"].notna() | cases["iterations_mean"].notna()].copy()
    if solved.empty:
        return []
    said = [name for name in _SETTING if solved[name].nunique(dropna=False) > 1 or name in _LEAST]
    solved["setting"] = [_words(row, said) for row in solved[list(said)].to_dict("records")]
    # numbers instead of the words of `budget`, in which K = 50 comes before K = 6
    by = [*_SETTING[:5], "tolerance", "max_iterations", *WORKLOAD]
    order = solved.sort_values(by, na_position="last")["setting"].drop_duplicates().tolist()
    count = -(-len(order) // _MOST_ROWS)
    length = -(-len(order) // count)
    pages = [order[start : start + length] for start in range(0, len(order), length)]
    return [
        _page(solved[solved["setting"].isin(page)], page, number if len(pages) > 1 else None)
        for number, page in enumerate(pages, start=1)
    ]


_LEAST = ("problem", "n_agents", "budget")


def _words(row: dict[str, object], said: list[str]) -> str:
    first = f"{row['problem']}, N={row['n_agents']}"
    words = [describe(name, row[name]) for name in said if name not in ("problem", "n_agents")]
    return "\n".join(filter(None, [first, ", ".join(word for word in words if word)]))


def _page(rows: pd.DataFrame, order: list[str], number: int | None) -> Drawing:
    gradients = sorted(rows["gradient"].unique(), key=gradient_rank)
    figure, axes = grid(1, 2, height=1.5 + 0.42 * len(order))
    iterations, residual = axes[0]
    for ax, column in ((iterations, "iterations_mean"), (residual, "residual_max")):
        _draw(ax, rows, order, gradients, column)
    iterations.set_xlabel("mean iterations per time step")
    residual.set_xlabel("largest inner residual")
    residual.sharey(iterations)
    residual.tick_params(labelleft=False)
    _tolerances(residual, rows, order)
    late = missed(rows)
    ring(residual, rows.loc[late, "residual_max"], _positions(rows[late], order, gradients))
    handles = [handle(look(name), name) for name in gradients]
    asked = handle(Look("#222222", "|", ""), "tolerance asked")
    asked.set(markersize=9, markeredgecolor="#222222", markeredgewidth=1.2)
    handles.append(asked)
    if late.any():
        handles.append(ring_handle())
    for entry in handles:
        entry.set_linestyle("none")
    figure.legend(
        handles=handles,
        loc="outside upper left",
        ncols=6,
        frameon=False,
        fontsize=8,
        handletextpad=0.1,
        columnspacing=1.2,
    )
    counts = rows.groupby(["setting", "gradient"])["seed"].nunique()
    caption = (
        f"Every mark is one record ({seeds_in_words(counts)} per case). Gradients on one line "
        "solve the same problem, and those that share the solver should agree; cvxpylayers and "
        "torchdeq bring their own. Rows are comparable only where the residual on the right is "
        "equal. A tolerance is relative to the problem's gradient scale, its mark is in the "
        "residual's own units. Lines without one run exactly K iterations."
    )
    if (rows["residual_max"] < _LEAST_RESIDUAL).any():
        caption += f" Residuals below {_LEAST_RESIDUAL:g} are drawn there."
    suffix = f"-{number}" if number else ""
    return Drawing(f"residuals{suffix}", "Iterations and achieved residual", caption, figure)


def _draw(
    ax: Axes, rows: pd.DataFrame, order: list[str], gradients: list[str], column: str
) -> None:
    height = _positions(rows, order, gradients)
    values = rows[column]
    counts = column == "iterations_mean"
    if not counts:
        # a residual of exactly zero has no place on a logarithmic axis
        values = values.clip(lower=_LEAST_RESIDUAL)
    sns.scatterplot(
        x=values,
        y=height,
        hue=rows["gradient"],
        style=rows["gradient"],
        palette={name: look(name).color for name in gradients},
        markers={name: look(name).marker for name in gradients},
        s=34,
        linewidth=0.5,
        legend=False,
        ax=ax,
    )
    # a closed form takes no iteration at all: linear below one, logarithmic above
    ax.set_xscale("symlog", linthresh=1.0) if counts else ax.set_xscale("log")
    ax.set_yticks(range(len(order)), order)
    ax.set_ylim(len(order) - 0.5, -0.5)
    ax.set_ylabel("")
    for line in range(1, len(order)):
        ax.axhline(line - 0.5, color="#d5d5d5", linewidth=0.6)
    ax.grid(visible=False, axis="y")
    if values.isna().all():
        return
    if counts:
        ax.set_xlim(-0.15, 1.5 * max(values.max(), 10.0))
        return
    low, high = np.log10(values.min()), np.log10(values.max())
    if high - low < 2:
        ax.set_xlim(10 ** (min(low, high - 1) - 0.3), 10 ** (high + 0.3))


def _positions(rows: pd.DataFrame, order: list[str], gradients: list[str]) -> pd.Series:
    """Height of every row: its setting's line, gradients spread over the middle of the line."""
    offsets = np.linspace(-0.36, 0.36, len(gradients)) if len(gradients) > 1 else np.zeros(1)
    line = rows["setting"].map({name: place for place, name in enumerate(order)}).astype(float)
    return line + rows["gradient"].map(dict(zip(gradients, offsets, strict=True))).astype(float)


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

    case = Case(
        problem=problem,
        variant=variant,
        n_agents=n_agents,
        gradient="jfb",
        batch_size=1,
        n_steps=DEFAULT_STEPS[problem],
    )
    return build_problem(case).gradient_scale
