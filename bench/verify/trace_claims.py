"""Claims 1, 3 and 4, measured along training. No verdict is worded in advance."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from bench.verify.claim import Claim, Tables, listing, number, seeds_of, verdict, worst


def contractivity(data: Tables) -> Claim:
    table = data["traces"]
    rates = worst(table, "rate_max")
    return Claim(
        1,
        "The fixed-point map contracts along training: |dT/du| < 1",
        f"largest |dT/du| per run: {listing(rates, 4)}",
        verdict(rates < 1.0),
        f"{seeds_of(table)}; spectral norm per sample, D held fixed, at the control found along "
        "the held-out rollouts. Below 1 it says that the iteration would converge, not that it "
        "has: the residuals are below",
        "figures/claim-1-contractivity.png",
        "Largest |dT/du| over samples and time steps against training steps; 1 is the limit. "
        "Median and range over the seeds.",
        (*_expansions(table), *_unconverged(table), *_divergences(table)),
    )


def _expansions(table: pd.DataFrame) -> list[str]:
    found = []
    for run, rows in table.groupby("run", sort=False):
        outside = rows[rows["rate_max"] >= 1.0]
        if outside.empty:
            continue
        peak = rows.loc[outside["rate_max"].idxmax()]
        mine = rows[rows["seed"] == peak["seed"]].dropna(subset=["cost"])
        first, last = mine["cost"].iloc[0], mine["cost"].iloc[-1]
        curvature = (
            "H is not concave there"
            if peak["curvature_min"] < 0
            else "H is concave everywhere seen"
        ) + _averaging(peak)
        effect = "JFB still descends" if last < first else "JFB does not descend"
        found.append(
            f"{run} does not contract: |dT/du| reaches {number(peak['rate_max'])} after "
            f"{peak['step']:.0f} steps, {100 * (1 - peak['contractive_fraction']):.2g} % of the "
            f"points are outside; curvature of -H from {number(peak['curvature_min'])} to "
            f"{number(peak['curvature_max'])} ({curvature}). {effect}: held-out cost "
            f"{number(first)} to {number(last)}."
        )
    return found


def _averaging(peak: pd.Series) -> str:
    """Whether an averaged operator (1-b) + b T would contract where T does not.

    With D = 1, dT/du = 1 + alpha Hessian is symmetric: its eigenvalues are beyond 1 where H curves
    upwards, and below -1 where a step overshoots. Averaging mends the second.
    """
    if peak["variant"] == "scaled":
        return ""
    if peak["curvature_min"] < 0:
        return ": nor does any averaged operator (1-b) + b T"
    return f": the averaged operator (1-b) + b T contracts for b < {2 / (1 + peak['rate_max']):.2g}"


def _unconverged(table: pd.DataFrame) -> list[str]:
    found = []
    for run, rows in table.groupby("run", sort=False):
        # Rounding can hold a residual at its tolerance; a tenth above it is not rounding.
        late = rows[rows["residual_max"] > 1.1 * rows["tolerance"]]
        if late.empty:
            continue
        peak = rows.loc[late["residual_max"].idxmax()]
        count = int(peak["max_iterations"])
        rate = peak["rate_median"]
        left = rate**count if math.isfinite(rate) else math.nan
        why = (
            f"at the median |dT/du| of {rate:.5g}, {count} applications leave {number(left)} of "
            "the error"
            if left > 1e-3
            else f"{count} applications do not converge at |dT/du| {number(peak['rate_max'])}"
        )
        found.append(
            f"{run} does not reach its inner tolerance in {len(late)} of "
            f"{rows['residual_max'].notna().sum()} measurements: residual up to "
            f"{number(peak['residual_max'])} against {number(peak['tolerance'])} asked; {why}."
        )
    return found


def _divergences(table: pd.DataFrame) -> list[str]:
    broken = table.dropna(subset=["reason"])
    return [
        f"{row['run']}, seed {row['seed']}, step {row['step']}: {row['reason']}."
        for _, row in broken.iterrows()
    ]


def variance(data: Tables) -> Claim:
    table = data["traces"].dropna(subset=["rate_max"])
    finite = np.isfinite(table["relative_variance"].astype(float))
    holds = finite.groupby(table["run"], sort=False).all()
    return Claim(
        3,
        "The minibatch gradient has bounded relative variance",
        f"largest E|g - Eg|^2/|Eg|^2: {listing(worst(table, 'relative_variance'))}",
        verdict(holds),
        f"{seeds_of(table)}; over minibatches of the held-out states. A finite run can refute a "
        "bound, not prove one: the verdict says only that every value is finite",
        "figures/claim-3-variance.png",
        "Relative variance of JFB's minibatch gradient against training steps. Median and range "
        "over the seeds.",
        tuple(_growths(table)),
    )


def _growths(table: pd.DataFrame) -> list[str]:
    found = []
    for run, rows in table.groupby("run", sort=False):
        first = rows["relative_variance"].iloc[0]
        peak = rows.loc[rows["relative_variance"].fillna(-1.0).idxmax()]
        if not peak["relative_variance"] > max(1.0, 10.0 * first):
            continue
        shrinks = peak["true_gradient_norm"] / rows["true_gradient_norm"].iloc[0]
        if not np.isfinite(shrinks):
            why = "is not finite: the inner iteration has diverged on some state"
        elif shrinks < 0.1:
            why = (
                f"has {number(shrinks)} of its first norm; near a stationary point |Eg| vanishes "
                "and the ratio grows without contradiction"
            )
        else:
            why = (
                f"has {number(shrinks)} of its first norm; the mean gradient has not vanished: the "
                "minibatches disagree"
            )
        found.append(
            f"{run}: grows from {number(first)} to {number(peak['relative_variance'])} at step "
            f"{peak['step']:.0f}, where the true gradient {why}."
        )
    return found


def convergence(data: Tables) -> Claim:
    table = data["descent"]
    falls: dict[str, float] = {}
    slopes: dict[str, float] = {}
    for (problem, n, sgd), rows in table.groupby(["problem", "n_agents", "sgd"], sort=False):
        curve = rows.groupby("step")["true_gradient_norm"].median().cummin()
        name = f"{problem} n={n} {sgd}"
        falls[name] = curve.iloc[-1] / curve.iloc[0]
        later = curve[curve.index > 0]
        slopes[name] = float(np.polyfit(np.log(later.index), np.log(later), 1)[0])
    jfb = {name: fall for name, fall in falls.items() if name.endswith("jfb")}
    slower = [
        f"{name.removesuffix(' jfb')}: JFB-SGD leaves {number(fall)} of the first norm, exact SGD "
        f"{number(falls[name.removesuffix('jfb') + 'exact'])}."
        for name, fall in jfb.items()
        if not fall <= 1.25 * falls[name.removesuffix("jfb") + "exact"]
    ]
    broken = table.dropna(subset=["reason"])
    stopped = [
        f"{row['problem']} n={row['n_agents']} {row['sgd']}, seed {row['seed']}: stopped at step "
        f"{row['step']}, {row['reason']}."
        for _, row in broken.iterrows()
    ]
    seeds = table["seed"].nunique()
    return Claim(
        4,
        "The true gradient norm falls along JFB-SGD, at the rate of exact SGD",
        f"smallest over first true gradient norm: {listing(pd.Series(falls))}",
        verdict(fall < 0.5 for fall in jfb.values()),
        "scaled map; same initial parameters, minibatches and step sizes for both, median over "
        f"{seeds} seed{'s' if seeds > 1 else ''}; reproduced where the norm at least halves. "
        f"Exponent of the smallest norm in the number of steps: {listing(pd.Series(slopes))}",
        "figures/claim-4-convergence.png",
        "True gradient norm along SGD with JFB and with exact gradients. Median and range over the "
        "seeds.",
        (*slower, *stopped),
    )
