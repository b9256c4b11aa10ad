"""Claim 4: how the true gradient norm falls along SGD with JFB and with exact gradients."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bench.claims.cases import SHORT, SMALL, case, seeded
from bench.claims.claim import Judgement, Numbers, Tables, number, verdict
from bench.claims.panels import series_figure
from bench.jobs import Job
from bench.probes.descent import Descent
from bench.report.style import look

NUMBER = 4
TABLE = "descent"
CLAIM = "The true gradient norm falls along JFB-SGD, at the rate of exact SGD"
CRITERION = (
    "Holds for a problem where the true gradient norm at least halves and ends at most at "
    "1.25 times what exact SGD leaves."
)
FIGURE = "claim-4-convergence"
CAPTION = (
    "True gradient norm along SGD with JFB and with exact gradients. Median and quartiles over "
    "the seeds."
)
#: JFB-SGD may leave this much more of the gradient norm than exact SGD
_SLOWER = 1.25
#: the exact one is drawn first and the other one dashed over it: where they agree both show
_LOOKS = {"exact": look("implicit"), "jfb": replace(look("jfb"), dashes=(2, 2))}
_WORDS = {"jfb": "SGD with JFB", "exact": "SGD with exact gradients"}


def jobs(quick: bool) -> list[Job]:
    if quick:
        cases = [case(p, n, n_steps=SHORT[p], train_steps=40) for p, n in SMALL]
    else:
        sizes = (SMALL[0], ("quadrotor", 6), *SMALL[1:])
        cases = [case(p, n, batch_size=16, train_steps=100) for p, n in sizes]
    return seeded(cases, Descent(), quick)


def _median_norm(rows: pd.DataFrame) -> pd.Series:
    """The median over the seeds at every step, infinite for a seed that has stopped."""
    measured = rows[rows["reason"].isna()]
    norms = measured.pivot(index="step", columns="seed", values="true_gradient_norm")
    norms = norms.reindex(columns=sorted(rows["seed"].unique()))
    return norms.fillna(math.inf).median(axis=1)


def judge(data: Tables) -> Judgement:
    table = data["descent"]
    falls: dict[str, float] = {}
    slopes: dict[str, float] = {}
    for (problem, n, sgd), rows in table.groupby(["problem", "n_agents", "sgd"], sort=False):
        name = f"{problem} n={n} {sgd}"
        curve = _median_norm(rows).cummin()
        stopped_early = rows["reason"].notna().groupby(rows["seed"]).any()
        # Where half of the seeds have stopped, the least norm before is nobody's result.
        falls[name] = math.inf if stopped_early.mean() >= 0.5 else curve.iloc[-1] / curve.iloc[0]
        later = curve[(curve.index > 0) & np.isfinite(curve)]
        slopes[name] = math.nan
        if len(later) > 1:
            slopes[name] = float(np.polyfit(np.log(later.index), np.log(later), 1)[0])
    rows = [(name, number(fall), number(slopes[name])) for name, fall in falls.items()]
    jfb = {name: fall for name, fall in falls.items() if name.endswith("jfb")}
    exact = {name: falls[name.removesuffix("jfb") + "exact"] for name in jfb}
    level = {name: bool(fall <= _SLOWER * exact[name]) for name, fall in jfb.items()}
    slower = [
        f"{name.removesuffix(' jfb')}: JFB-SGD leaves {number(fall)} of the first norm, exact SGD "
        f"{number(exact[name])}."
        for name, fall in jfb.items()
        if not level[name]
    ]
    broken = table.dropna(subset=["reason"])
    stopped = [
        f"{row['problem']} n={row['n_agents']} {row['sgd']}, seed {row['seed']}: stopped at step "
        f"{row['step']}, {row['reason']}."
        for _, row in broken.iterrows()
    ]
    seeds = table["seed"].nunique()
    return Judgement(
        "JFB-SGD leaves "
        f"{number(min(jfb.values()))} to {number(max(jfb.values()))} of the first true gradient "
        "norm",
        verdict(fall < 0.5 and level[name] for name, fall in jfb.items()),
        "scaled map; same initial parameters, minibatches and step sizes for both, median over "
        f"{seeds} seed{'s' if seeds > 1 else ''}; reproduced where the norm at least halves and is "
        f"left at {_SLOWER:g} times that of exact SGD or less. Both norms are the smallest up to "
        "the last step, and the exponent is theirs in the number of steps",
        (*slower, *stopped),
        (
            Numbers.of(
                "True gradient norm along SGD", ("run", "smallest over first", "exponent"), rows
            ),
        ),
    )


def figure(data: Tables) -> Figure | None:
    return series_figure(
        data["descent"], "step", "true_gradient_norm", "sgd", _LOOKS, _WORDS,
        "SGD steps", "true gradient norm",
    )  # fmt: skip
