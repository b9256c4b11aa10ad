"""What the papers leave open: the derivative's error against the number of iterations."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from bench.claims.cases import SHORT, SMALL, case, seeded
from bench.claims.claim import Judgement, Numbers, Tables, number
from bench.claims.panels import series_figure
from bench.jobs import Job
from bench.probes.derivative import Derivative
from bench.report.style import counted, look

NUMBER = None
TABLE = "derivative"
CLAIM = (
    "Does unrolling's derivative first diverge before it converges (the curse of unrolling, "
    "arXiv 2602.19733)?"
)
FIGURE = "beyond-derivative-error"
CAPTION = (
    "Relative error of the policy gradient against the number of unrolled iterations K, or "
    "of tracked applications k of jfb, at the initial and at a trained policy. A gap is a gradient "
    "that is not finite."
)
_CURVE = ["problem", "n_agents", "map", "policy", "gradient"]
_WORDS = {"unrolled": "unrolled, K iterations", "jfb": "jfb(k), k tracked applications"}
#: growth beyond the error after one iteration that counts: the rest is a curve that wiggles
_GROWTH = 1.05
#: errors below this are rounding and the tolerance of the truth
_FLOOR = 1e-8


def jobs(quick: bool) -> list[Job]:
    # Thinned: a curve over K is smooth, and every K is unrolled four times.
    probe = Derivative(counts=(1, 2, 3, 5, 8, 12, 20, 60))
    short = {p: {"n_steps": SHORT[p] // 2} if quick else {} for p, _ in SMALL}
    cases = [case(p, n, dtype="float64", train_steps=50, **short[p]) for p, n in SMALL]
    return seeded(cases, probe, quick)


def growth(table: pd.DataFrame) -> pd.DataFrame:
    """Per curve: the largest error over K relative to the one at K = 1, and the last error.

    Median over seeds at each K first. Errors below `_FLOOR` count as that much (jfb on one
    bicycle's scaled map has none at all), one that is not finite as infinite.
    """
    rows = []
    for key, part in table.groupby(_CURVE, sort=False):
        curve = part["error"].astype(float).fillna(math.inf).groupby(part["count"]).median()
        first = max(curve.iloc[0], _FLOOR)
        rows.append(dict(zip(_CURVE, key, strict=True)) | {
            "first": curve.iloc[0], "largest": curve.max(), "largest_at": int(curve.idxmax()),
            "last": curve.iloc[-1], "last_at": int(curve.index[-1]),
            "growth": max(curve.max(), _FLOOR) / first, "converges": bool(curve.iloc[-1] < first),
        })  # fmt: skip
    return pd.DataFrame(rows)


def judge(data: Tables) -> Judgement:
    curves = growth(data["derivative"])
    unrolled = curves[curves["gradient"] == "unrolled"]
    converging = unrolled[unrolled["converges"]]
    cursed = converging[converging["growth"] > _GROWTH]
    seeds = counted(data["derivative"]["seed"].nunique(), "seed")
    return Judgement(
        f"the error grows beyond that at K = 1 by up to {_factor(unrolled['growth'].max())}",
        f"yes in {len(cursed)} of {len(converging)} cases that converge" if len(cursed) else "no",
        "relative error of the whole policy gradient against implicit differentiation at Newton's "
        f"control, float64, median over {seeds}. Unrolled runs K "
        "iterations from the cold start, so that its error is that of control and derivative "
        "together; jfb(k) tracks k applications from the converged control. Yes where the error "
        f"exceeds {_GROWTH:g} times the one at K = 1 and falls below it in the end; "
        f"{len(unrolled) - len(converging)} of {len(unrolled)} cases do not converge at all",
        tables=(
            Numbers.of(
                "Error of the derivative against K or k",
                ("case", "at 1", "largest", "at", "last", "at", "first diverges"),
                (
                    (f"{row.problem} n={row.n_agents}, {row.map} map, {row.policy} policy, "
                     f"{_WORDS[row.gradient].partition(',')[0]}", number(row.first),
                     number(row.largest), f"{row.largest_at}", number(row.last), f"{row.last_at}",
                     _answer(row))
                    for row in _by_gradient(curves).itertuples()
                ),
            ),
        ),
    )  # fmt: skip


def _by_gradient(curves: pd.DataFrame) -> pd.DataFrame:
    return curves.sort_values("gradient", ascending=False, kind="stable")


def _answer(row: Any) -> str:
    if not row.converges:
        return f"does not converge ({_factor(row.growth)})"
    return f"{'yes' if row.growth > _GROWTH else 'no'} ({_factor(row.growth)})"


def _factor(value: float) -> str:
    return f"{value:.3g}x" if math.isfinite(value) else "not finite"


def figure(data: Tables) -> Figure | None:
    """A panel per problem, map and policy; unrolled and jfb in each."""
    table = data["derivative"]
    shown = table.assign(map=table["map"] + " map", policy=table["policy"] + " policy")
    return series_figure(
        shown.sort_values(["problem", "n_agents", "policy", "map"]), "count", "error", "gradient",
        {name: look(name) for name in _WORDS}, _WORDS, "K, k", "relative error",
        keys=["problem", "n_agents", "map", "policy"], log_x=True,
    )  # fmt: skip
