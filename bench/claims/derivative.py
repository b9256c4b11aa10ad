"""What the papers leave open: the derivative's error against the number of iterations."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.claims.cases import SHORT, SMALL, case, seeded
from bench.claims.claim import Judgement, Numbers, Tables, number
from bench.claims.panels import band, count_axis, panels
from bench.jobs import Job
from bench.probes.derivative import Derivative
from bench.report.figures.canvas import handle
from bench.report.style import Look, look, tint

NUMBER = None
TABLE = "derivative"
CLAIM = (
    "Does unrolling's derivative first diverge before it converges (the curse of unrolling, "
    "arXiv 2602.19733)?"
)
FIGURE = "beyond-derivative-error"
CAPTION = (
    "Relative error of the policy gradient against the number of unrolled iterations K, or "
    "of tracked applications k of jfb, at the initial and at a trained policy. Dotted: the "
    "error of one iteration. A gap is a gradient that is not finite."
)

_CURVE = ["problem", "n_agents", "map", "policy", "gradient"]
_WORDS = {"unrolled": "unrolled, K iterations", "jfb": "jfb(k), k tracked applications"}
#: growth beyond the error after one iteration that counts: the rest is a curve that wiggles
_GROWTH = 1.05
#: errors below this are rounding and the tolerance of the truth
_FLOOR = 1e-8


def jobs(quick: bool) -> list[Job]:
    probe = Derivative() if quick else Derivative(counts=(*Derivative.counts, 100))
    cases = [
        case(p, n, dtype="float64", train_steps=50, **({"n_steps": SHORT[p] // 2} if quick else {}))
        for p, n in SMALL
    ]
    return seeded(cases, probe, quick)


def growth(table: pd.DataFrame) -> pd.DataFrame:
    """Per curve: the largest error over K relative to the one at K = 1, and the last error.

    Median over seeds at each K first. Errors below `_FLOOR` count as that much (jfb on one
    bicycle's scaled map has none at all), one that is not finite as infinite.
    """
    rows = []
    for key, part in table.groupby(_CURVE, sort=False):
        curve = part["error"].astype(float).fillna(math.inf).groupby(part["count"]).median()
        rows.append(dict(zip(_CURVE, key, strict=True)) | {
            "first": curve.iloc[0], "largest": curve.max(), "largest_at": int(curve.idxmax()),
            "last": curve.iloc[-1], "last_at": int(curve.index[-1]),
            "growth": max(curve.max(), _FLOOR) / max(curve.iloc[0], _FLOOR),
            "converges": bool(curve.iloc[-1] < max(curve.iloc[0], _FLOOR)),
        })  # fmt: skip
    return pd.DataFrame(rows)


def judge(data: Tables) -> Judgement:
    curves = growth(data["derivative"])
    unrolled = curves[curves["gradient"] == "unrolled"]
    converging = unrolled[unrolled["converges"]]
    cursed = converging[converging["growth"] > _GROWTH]
    seeds = data["derivative"]["seed"].nunique()
    return Judgement(
        f"the error grows beyond that at K = 1 by up to {_factor(unrolled['growth'].max())}",
        f"yes in {len(cursed)} of {len(converging)} cases that converge" if len(cursed) else "no",
        "relative error of the whole policy gradient against implicit differentiation at Newton's "
        f"control, float64, median over {seeds} seed{'s' if seeds > 1 else ''}. Unrolled runs K "
        "iterations from the cold start, so that its error is that of control and derivative "
        "together; jfb(k) tracks k applications from the converged control. Yes where the error "
        f"exceeds {_GROWTH:g} times the one at K = 1 and falls below it in the end; "
        f"{len(unrolled) - len(converging)} of {len(unrolled)} cases do not converge at all",
        tuple(_sentences(curves)),
        (
            Numbers.of(
                "Error of unrolling's derivative against K",
                ("case", "at K = 1", "largest", "at K", "last", "at K", "first diverges"),
                (
                    (_name(row), number(row.first), number(row.largest), f"{row.largest_at}",
                     number(row.last), f"{row.last_at}", _answer(row))
                    for row in unrolled.itertuples()
                ),
            ),
        ),
    )  # fmt: skip


def _name(row: Any) -> str:
    return f"{row.problem} n={row.n_agents}, {row.map} map, {row.policy} policy"


def _answer(row: Any) -> str:
    if not row.converges:
        return f"does not converge ({_factor(row.growth)})"
    return f"{'yes' if row.growth > _GROWTH else 'no'} ({_factor(row.growth)})"


def _sentences(curves: pd.DataFrame) -> list[str]:
    found = []
    for row in curves.itertuples():
        label = "jfb(k)" if row.gradient == "jfb" else "unrolled"
        if not row.converges:
            found.append(
                f"{_name(row)}: {label} does not converge, {number(row.first)} at 1 and "
                f"{number(row.last)} at {row.last_at}."
            )
        elif row.growth > _GROWTH and row.largest > _FLOOR:
            found.append(
                f"{_name(row)}: {label} goes from {number(row.first)} through "
                f"{number(row.largest)} at {row.largest_at} iterations to {number(row.last)} at "
                f"{row.last_at}."
            )
    return found


def _factor(value: float) -> str:
    return f"{value:.3g}x" if math.isfinite(value) else "not finite"


def figure(data: Tables) -> Figure | None:
    """A panel per problem, map and policy; unrolled and jfb in each."""
    table = data["derivative"]
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
