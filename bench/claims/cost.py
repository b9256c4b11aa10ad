"""Claim 6: the optimality gap against the clock."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.claims.cases import SMALL, case, seeded
from bench.claims.claim import (
    NOT_MEASURED,
    SIZE,
    Judgement,
    Numbers,
    Tables,
    number,
    size_name,
    verdict,
)
from bench.claims.panels import panels, readable_log
from bench.jobs import Job
from bench.probes.training import Train
from bench.recipes import case_settings
from bench.registry import has_inner_problem
from bench.release.plan import TARGETS
from bench.report.figures.canvas import handle, line_style
from bench.report.style import counted, look

NUMBER = 6
TABLE = "training"
CLAIM = "Comparable optimality gap at equal seconds"
CRITERION = (
    "Holds at a size and on a map where, after the seconds in which the best other gradient with "
    "an inner problem has ended, the interval of JFB's gap over the seeds overlaps that gradient's "
    "or lies below it."
)
FIGURE = "claim-6-cost"
CAPTION = "Optimality gap, or held-out cost without a reference, against training seconds."
_GRADIENTS = ("jfb", "implicit", "unrolled", "cvxpylayers", "direct")
#: what one row of the comparison is of, beside the size
_METHOD = ["gradient", "map"]


def jobs(quick: bool) -> list[Job]:
    """Quickly a race of seconds; in full the trainings to a target of a release."""
    if quick:
        race: dict[str, Any] = {"recipe": "recommended", "train_seconds": 8.0, "n_steps": 32}
        cases = [case(*SMALL[0], gradient=g, **race) for g in _GRADIENTS]
        return seeded(cases, Train(), quick)
    return [
        Job(case=each, seed=seed)
        for each, seed in TARGETS.jobs()
        if each.recipe == "recommended"
        # Beside them there are direct policies of swarms on one dense network.
        and each.network == case_settings(
            "recommended", each.problem, each.n_agents, each.gradient
        ).get("network", "dense")
    ]  # fmt: skip


def _scored(data: Tables) -> pd.DataFrame:
    """The points of the curves with a `score`: the gap where it is known, else the cost."""
    table = data["training"].dropna(subset=["seconds"])
    known = "gap" in table and table["gap"].notna().groupby([table[k] for k in SIZE]).transform(
        "any"
    )
    score = table["cost"] if known is False else table["gap"].where(known, table["cost"])
    # What is not finite is null in the data: the run has diverged.
    return table.assign(score=score.fillna(math.inf), map=table["map"].fillna(""))


def ends(table: pd.DataFrame, until: float = math.inf) -> pd.DataFrame:
    """Per size and method the least, median and greatest score of a seed after `until` seconds; a
    run that has ended keeps its last. `seconds`: the median of the points' times.
    """
    points = table[table["seconds"] <= until].sort_values("seconds")
    last = points.groupby([*SIZE, *_METHOD, "seed"], sort=False).tail(1)
    groups = last.groupby([*SIZE, *_METHOD], sort=False)
    found = groups["score"].agg(["min", "median", "max"])
    return found.assign(seconds=groups["seconds"].median())


def judge(data: Tables) -> Judgement:
    table = _scored(data)
    holds, findings, rows = [], [], []
    for size, part in ends(table).groupby(level=SIZE, sort=False):
        part = part.droplevel(SIZE)
        inner = part[[has_inner_problem(gradient) for gradient, _ in part.index]]
        rivals = inner.drop("jfb", level="gradient", errors="ignore")
        if len(rivals) and len(rivals) < len(inner):
            name, best = rivals["median"].idxmin(), rivals.loc[rivals["median"].idxmin()]
            at_equal_seconds = ends(table, best["seconds"]).sort_index().loc[size]
            for (_, kind), last in inner.loc[["jfb"]].iterrows():
                own = at_equal_seconds.loc["jfb", kind]
                holds.append(bool(own["min"] <= best["max"] and math.isfinite(last["median"])))
                if not holds[-1]:
                    findings.append(
                        f"{size_name(size)}, {kind} map, {best['seconds']:.3g} s: JFB is at "
                        f"{_interval(own)}, {name[0]} at {_interval(best)}."
                    )
        target = inner["max"][inner["max"].map(math.isfinite)].max()
        rows += [
            (size_name(size), " ".join(key).strip(), _interval(row), f"{row['seconds']:.3g} s",
             _reached(table, size, key, target))
            for key, row in sorted(part.iterrows(), key=_jfb_first)
        ]  # fmt: skip
    seeds = counted(table["seed"].nunique(), "seed")
    return Judgement(
        f"JFB's interval overlaps that of the best other gradient with an inner problem, or lies "
        f"below it, in {sum(holds)} of {len(holds)} sizes and maps"
        if holds
        else "no two to compare yet",
        verdict(holds) if holds else NOT_MEASURED,
        f"median over {seeds}, with the least and the greatest of "
        "one (of five, a 94 % interval of the median); the same limit and the same training steps "
        "within a size, each on one core. A run that has ended keeps its gap. The "
        "direct policy, which has no inner problem, is shown beside them",
        (*findings, *_excluded(data["training"])),
        (
            Numbers.of(
                "Optimality gap at the end (held-out cost without a reference)",
                ("size", "gradient, map", "at the end", "ended after",
                 "until the worst with an inner problem"),
                rows,
            ),
        ) if holds else (),
    )  # fmt: skip


def _jfb_first(item: tuple[Any, pd.Series]) -> tuple[bool, bool, Any]:
    (gradient, kind), _ = item
    return gradient != "jfb", not has_inner_problem(gradient), (gradient, kind)


def _interval(row: pd.Series) -> str:
    return f"{number(row['median'])} ({number(row['min'])} to {number(row['max'])})"


def _reached(
    table: pd.DataFrame, size: tuple[str, int], method: Sequence[str], target: float
) -> str:
    """Median seconds until a method's score is at most `target`, or "never"."""
    mask = (table[[*SIZE, *_METHOD]] == [*size, *method]).all(axis=1)
    own = table[mask]
    first = own[own["score"] <= target].groupby("seed")["seconds"].min()
    median = first.reindex(own["seed"].unique()).fillna(math.inf).median()
    return f"{median:.3g} s" if math.isfinite(median) else "never"


def _excluded(table: pd.DataFrame) -> list[str]:
    reasons = table.dropna(subset=["reason"]).drop_duplicates([*SIZE, "gradient", "reason"])
    return [
        f"{row.problem} n={row.n_agents} {row.gradient}: {row.reason}."
        for row in reasons.itertuples()
    ]


def figure(data: Tables) -> Figure | None:
    table = _scored(data)
    table = table[table["score"].map(math.isfinite)]
    if table.empty:
        return None

    def paint(axes: Axes, part: pd.DataFrame) -> None:
        for (gradient, kind, _), run in part.groupby([*_METHOD, "seed"]):
            style = look(gradient)
            # JFB's maps are told apart by how dark the line is.
            shade = {"plain": 0.35, "scaled": 0.65}.get(kind, 1.0) if gradient == "jfb" else 1.0
            axes.plot(run["seconds"], run["score"], color=style.color, alpha=shade,
                      linestyle=line_style(style), linewidth=1.1)  # fmt: skip
        if (part["score"] > 0).all():
            readable_log(axes)
        axes.set_xlabel("training seconds")
        axes.set_ylabel("gap" if (part["score"] == part.get("gap")).all() else "held-out cost")

    names = table["gradient"].unique()
    return panels(table, SIZE, paint, [handle(look(name), name) for name in names], 3)
