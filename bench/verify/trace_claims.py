"""Claims 3 and 4: the minibatch gradient's variance, and the true gradient's descent."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from bench.verify.claim import (
    Claim,
    Numbers,
    Tables,
    by_variant,
    endings,
    number,
    seeds_of,
    unfinished,
    verdict,
)

#: relative variance grows where it ends beyond 1 and beyond this multiple of its first value
_GROWTH = 10.0
#: a gradient with less than this of its first norm is near a stationary point
_NEARLY_STATIONARY = 0.1
#: JFB-SGD may leave this much more of the gradient norm than exact SGD
_SLOWER = 1.25


def variance(data: Tables) -> Claim:
    every = data["traces"]
    table = every.dropna(subset=["relative_variance", "rate_max"], how="all")
    finite = np.isfinite(every["relative_variance"].astype(float))
    # a run that ended before its last measurement has none there
    holds = finite.groupby(every["run"], sort=False).all() & ~unfinished(every, "relative_variance")
    peaks = _peaks(table)
    return Claim(
        3,
        "The minibatch gradient has bounded relative variance",
        "E|g - Eg|^2/|Eg|^2 is finite in "
        f"{int(holds.sum())} of {len(holds)} runs; largest: {by_variant(peaks, 'peak')}",
        verdict(holds),
        f"{seeds_of(table)}; over {_minibatches(table)} of the held-out states, so that the ratio "
        "is a rough one where |Eg| is small. A finite run can refute a bound, not prove one: the "
        "verdict says only that every value is finite",
        "figures/claim-3-variance.png",
        "Relative variance of JFB's minibatch gradient against training steps. Median and "
        "quartiles over the seeds.",
        (*_growths(peaks), *endings(every, "relative_variance")),
        (
            Numbers.of(
                "E|g - Eg|^2/|Eg|^2",
                ("run", "at first", "largest", "at step", "true gradient norm there over first"),
                (
                    (run, number(row["first"]), number(row["peak"]), f"{row['step']:.0f}",
                     number(row["shrinks"]))
                    for run, row in peaks.iterrows()
                ),
            ),
        ),
    )  # fmt: skip


def _minibatches(table: pd.DataFrame) -> str:
    if "minibatches" not in table:
        return "minibatches"
    kinds = table[["minibatches", "minibatch_size"]].drop_duplicates().sort_values("minibatches")
    return " or ".join(f"{n:.0f} minibatches of {size:.0f}" for n, size in kinds.to_numpy())


def _peaks(table: pd.DataFrame) -> pd.DataFrame:
    """Per run: the largest relative variance and the true gradient norm there, with its seed's
    first values of both.
    """
    rows = {}
    for run, part in table.groupby("run", sort=False):
        peak = part.loc[part["relative_variance"].fillna(-1.0).idxmax()]
        first = part[part["seed"] == peak["seed"]].iloc[0]
        rows[run] = {
            "variant": peak["variant"],
            "first": first["relative_variance"],
            "peak": peak["relative_variance"],
            "step": peak["step"],
            "shrinks": peak["true_gradient_norm"] / first["true_gradient_norm"],
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def _growths(peaks: pd.DataFrame) -> list[str]:
    grown = peaks[peaks["peak"] > (_GROWTH * peaks["first"]).clip(lower=1.0)]
    broken = ~np.isfinite(grown["shrinks"].astype(float))
    stationary = grown["shrinks"] < _NEARLY_STATIONARY
    groups = (
        (broken, "the true gradient is not finite: the inner iteration has diverged on some state"),
        (
            stationary & ~broken,
            "the true gradient has less than a tenth of its first norm: near a stationary point "
            "|Eg| vanishes and the ratio grows without contradiction",
        ),
        (
            ~stationary & ~broken,
            "the mean gradient has not vanished: the minibatches disagree",
        ),
    )
    return [
        f"Grows tenfold and beyond 1 where {why}: {'; '.join(grown.index[mask])}."
        for mask, why in groups
        if mask.any()
    ]


def _median_norm(rows: pd.DataFrame) -> pd.Series:
    """The median over the seeds at every step, infinite for a seed that has stopped."""
    measured = rows[rows["reason"].isna()]
    norms = measured.pivot(index="step", columns="seed", values="true_gradient_norm")
    norms = norms.reindex(columns=sorted(rows["seed"].unique()))
    return norms.fillna(math.inf).median(axis=1)


def convergence(data: Tables) -> Claim:
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
    return Claim(
        4,
        "The true gradient norm falls along JFB-SGD, at the rate of exact SGD",
        "JFB-SGD leaves "
        f"{number(min(jfb.values()))} to {number(max(jfb.values()))} of the first true gradient "
        "norm",
        verdict(fall < 0.5 and level[name] for name, fall in jfb.items()),
        "scaled map; same initial parameters, minibatches and step sizes for both, median over "
        f"{seeds} seed{'s' if seeds > 1 else ''}; reproduced where the norm at least halves and is "
        f"left at {_SLOWER:g} times that of exact SGD or less. Both norms are the smallest up to "
        "the last step, and the exponent is theirs in the number of steps",
        "figures/claim-4-convergence.png",
        "True gradient norm along SGD with JFB and with exact gradients. Median and quartiles "
        "over the seeds.",
        (*slower, *stopped),
        (
            Numbers.of(
                "True gradient norm along SGD", ("run", "smallest over first", "exponent"), rows
            ),
        ),
    )
