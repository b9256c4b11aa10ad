"""Claim 4: how fast the true gradient norm falls along SGD with JFB and with exact gradients."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bench.claims.cases import SHORT, SMALL, case, seeded
from bench.claims.claim import (
    NOT_MEASURED,
    Judgement,
    Numbers,
    Tables,
    endings,
    number,
    seeds_of,
    spread,
    verdict,
)
from bench.claims.panels import series_figure
from bench.jobs import Job
from bench.probes.descent import Descent
from bench.report.style import look

NUMBER = 4
TABLE = "descent"
CLAIM = "The true gradient norm falls along JFB-SGD, at the rate of exact SGD"
#: exponents may differ by this share; gradients that differ by less than that are the same
_APART, _SAME = 0.2, 0.01
CRITERION = (
    "Holds in a run where the true gradient norm falls along JFB-SGD with an exponent in the "
    f"number of steps within {100 * _APART:.0f} % of that along exact SGD from the same "
    "parameters, both for the running minimum and for the norm at each step. Judged are runs in "
    f"which the two gradients differ by more than {100 * _SAME:.0f} %."
)
FIGURE = "claim-4-convergence"
CAPTION = (
    "True gradient norm along SGD with JFB and with exact gradients. Median and quartiles over "
    "the seeds."
)
#: the exact one is drawn first and the other one dashed over it: where they agree both show
_LOOKS = {"exact": look("implicit"), "jfb": replace(look("jfb"), dashes=(2, 2))}
_WORDS = {"jfb": "SGD with JFB", "exact": "SGD with exact gradients"}
_KINDS = ("minimum", "last")


def jobs(quick: bool) -> list[Job]:
    if quick:
        cases = [case(p, n, n_steps=SHORT[p], train_steps=40) for p, n in SMALL]
        return seeded([*cases, replace(cases[0], map="plain")], Descent(), quick)
    cases = [case(p, n, map=m, train_steps=60) for p, n in SMALL for m in ("scaled", "plain")]
    cases.append(case("quadrotor", 6, train_steps=60))
    # JFB on a Newton map is the exact gradient; goods show that it descends alike.
    cases.append(case("consumption", 5, map="newton", solver="newton", train_steps=60))
    return seeded(cases, Descent(), quick)


def _exponents(norms: pd.Series) -> list[float]:
    """Exponents of the running minimum and of the norm itself in the number of steps; infinite
    where the run has stopped.
    """
    later = norms[norms.index > 0]
    if len(later) < 2 or not np.isfinite(later).all():
        return [math.inf, math.inf]
    steps = np.log(later.index.to_numpy(dtype=float))
    curves = (norms.cummin()[later.index], later)
    return [float(np.polyfit(steps, np.log(curve), 1)[0]) for curve in curves]


def rates(table: pd.DataFrame) -> pd.DataFrame:
    """Per run and seed: exponents (`minimum`, sgd) and (`last`, sgd), their ratios (kind, `ratio`),
    and (`difference`, sgd), the median over its points of how far the two gradients are apart.
    """
    rows = []
    for key, own in table.groupby(["run", "seed", "sgd"], sort=False):
        exponents = _exponents(own.set_index("step")["true_gradient_norm"].astype(float))
        rows.append([*key, *exponents, own["gradient_difference"].median()])
    found = pd.DataFrame(rows, columns=["run", "seed", "sgd", *_KINDS, "difference"])
    order = found["run"].unique()
    found = found.pivot(index=["run", "seed"], columns="sgd").reindex(order, level="run")
    for kind in _KINDS:
        found[kind, "ratio"] = found[kind, "jfb"] / found[kind, "exact"]
    return found


def judge(data: Tables) -> Judgement:
    table = data["descent"]
    found = rates(table)
    middle = found.groupby(level="run", sort=False).median()
    # A gradient that is nowhere finite has no difference, and is not the exact one.
    differ = ~(middle["difference", "jfb"] <= _SAME)
    pairs = middle[differ]
    holds = pd.Series(True, pairs.index)
    for kind in _KINDS:
        holds &= (pairs[kind, "jfb"] < 0) & ((pairs[kind, "ratio"] - 1.0).abs() <= _APART)
    findings = [
        f"{run}: exponents {number(row['minimum', 'jfb'])} of the running minimum and "
        f"{number(row['last', 'jfb'])} of the norm along JFB-SGD, "
        f"{number(row['minimum', 'exact'])} and {number(row['last', 'exact'])} along exact SGD."
        for run, row in pairs[~holds].iterrows()
    ]
    if not differ.all():
        same = "; ".join(differ.index[~differ])
        findings.append(f"Not judged, because the two gradients are the same: {same}.")
    judged = found.loc[list(holds.index)].replace([np.inf, -np.inf], np.nan)
    return Judgement(
        f"in {int(holds.sum())} of {len(holds)} runs; exponents along JFB-SGD over those along "
        f"exact SGD: {spread(judged['minimum', 'ratio'])} for the running minimum, "
        f"{spread(judged['last', 'ratio'])} for the norm at each step",
        verdict(holds) if len(holds) else NOT_MEASURED,
        "same initial parameters, minibatches and step sizes for both, which fall as the inverse "
        f"root of the number of steps; median over {seeds_of(table)}, and the least and the "
        "greatest of a seed in brackets and above",
        (*findings, *endings(table, "true_gradient_norm")),
        (
            Numbers.of(
                "Exponents of the true gradient norm in the number of steps",
                ("run", "gradients differ by", "minimum, jfb", "exact", "ratio", "norm, jfb",
                 "exact", "ratio"),
                (_row(run, part) for run, part in found.groupby(level="run", sort=False)),
            ),
        ),
    )  # fmt: skip


def _row(run: object, part: pd.DataFrame) -> tuple[str, ...]:
    columns = [part[kind, name] for kind in _KINDS for name in ("jfb", "exact", "ratio")]
    return (
        str(run),
        f"{100 * part['difference', 'jfb'].median():.2g} %",
        *(f"{number(column.median())} ({spread(column)})" for column in columns),
    )


def figure(data: Tables) -> Figure | None:
    return series_figure(
        data["descent"], "step", "true_gradient_norm", "sgd", _LOOKS, _WORDS,
        "SGD steps", "true gradient norm", keys=["problem", "n_agents", "variant"],
    )  # fmt: skip
