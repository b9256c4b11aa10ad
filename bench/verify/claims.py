"""From measurements to seven verdicts. No verdict is worded before its number is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

REPRODUCED, PARTLY, NOT = "reproduced", "partly", "not reproduced"


@dataclass(frozen=True)
class Claim:
    """One row of the page. `value` is the number the verdict rests on."""

    number: int
    claim: str
    value: str
    verdict: str
    conditions: str
    figure: str
    figure_caption: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def verdict(share: float) -> str:
    """Reproduced where every condition holds, partly where some do."""
    return REPRODUCED if share == 1.0 else PARTLY if share > 0.0 else NOT


def _worst(table: pd.DataFrame, column: str, by: str = "run") -> pd.Series:
    return table.groupby(by, sort=False)[column].max()


def _listing(series: pd.Series, fmt: str = "{:.3g}") -> str:
    return "; ".join(f"{name}: {fmt.format(value)}" for name, value in series.items())


def contractivity(data: dict[str, pd.DataFrame]) -> Claim:
    rates = _worst(data["traces"], "rate_max")
    residuals = _worst(data["traces"], "residual_max")
    return Claim(
        1,
        "The fixed-point map contracts along training: |dT/du| < 1",
        f"largest |dT/du| per run: {_listing(rates)}",
        verdict(float((rates < 1.0).mean())),
        "spectral norm per sample at the control found, at every time step of the held-out "
        f"rollouts. Largest inner residual left: {_listing(residuals, '{:.2g}')}",
        "figures/claim-1-contractivity.png",
        "Largest |dT/du| over samples and time steps against training steps; 1 is the limit.",
    )


def alignment(data: dict[str, pd.DataFrame]) -> Claim:
    angles = _worst(data["traces"], "angle_max")
    expected = _worst(data["traces"], "angle_expectation")
    return Claim(
        2,
        "JFB's gradient is within 90 degrees of the true one",
        f"largest angle on a minibatch [deg]: {_listing(angles)}",
        verdict(float((angles < 90.0).mean())),
        f"true gradient by implicit differentiation; in expectation: {_listing(expected)}",
        "figures/claim-2-alignment.png",
        "Largest angle between JFB and exact gradient over minibatches against training steps.",
    )


def variance(data: dict[str, pd.DataFrame]) -> Claim:
    variances = _worst(data["traces"], "relative_variance")
    return Claim(
        3,
        "The minibatch gradient has bounded relative variance",
        f"largest E|g - Eg|^2/|Eg|^2: {_listing(variances)}",
        verdict(float(variances.map(math.isfinite).mean())),
        "over minibatches of the held-out states. The bound is whatever the run shows: near a "
        "stationary point |Eg| vanishes and the ratio grows without contradiction",
        "figures/claim-3-variance.png",
        "Relative variance of JFB's minibatch gradient against training steps.",
    )


def convergence(data: dict[str, pd.DataFrame]) -> Claim:
    table = data["descent"]
    ends = []
    for (problem, sgd), rows in table.groupby(["problem", "sgd"], sort=False):
        curve = rows.groupby("step")["true_gradient_norm"].median()
        ends.append((f"{problem} {sgd}", curve.cummin().iloc[-1] / curve.iloc[0]))
    falls = pd.Series(dict(ends))
    jfb = falls[[name for name in falls.index if name.endswith("jfb")]]
    return Claim(
        4,
        "The true gradient norm falls along JFB-SGD, at the rate of exact SGD",
        f"smallest over first true gradient norm: {_listing(falls)}",
        verdict(float((jfb < 0.5).mean())),
        "same initial parameters, minibatches and step sizes for both; reproduced where the norm "
        "at least halves",
        "figures/claim-4-convergence.png",
        "True gradient norm along SGD with JFB and with exact gradients.",
    )


def memory(data: dict[str, pd.DataFrame]) -> Claim:
    table = data["memory"]
    wide = table.pivot_table(index=["problem", "n_agents", "K"], columns="gradient",
                             values="saved_bytes")  # fmt: skip
    wide["ratio"] = wide["unrolled"] / wide["jfb"]
    flat = wide["jfb"].groupby(level=["problem", "n_agents"]).nunique().eq(1)
    at = wide["ratio"].unstack("K")
    most = int(table["K"].max())
    lines = [
        f"{problem} n={n}: " + ", ".join(f"{ratio:.0f}x at K={k}" for k, ratio in row.items())
        for (problem, n), row in at.iterrows()
    ]
    return Claim(
        5,
        "JFB's memory does not depend on K; unrolling's grows with it, 10-100x above",
        f"saved bytes, unrolled over jfb: {'; '.join(lines)}",
        verdict(float((flat & (at[most] >= 10.0)).mean())),
        f"bytes saved for backward, exact; jfb identical to the byte for every K: "
        f"{'yes' if bool(flat.all()) else 'no'}. Costate evaluated once per time step for both",
        "figures/claim-5-memory.png",
        "Bytes saved for backward against exact iterations K.",
    )


def cost(data: dict[str, pd.DataFrame]) -> Claim:
    table = data["races"].dropna(subset=["seconds"])
    last = table.sort_values("seconds").groupby(["problem", "n_agents", "gradient", "seed"]).last()
    final = last["cost"].groupby(level=["problem", "n_agents", "gradient"]).median()
    shares, lines = [], []
    for (problem, n), costs in final.groupby(level=["problem", "n_agents"]):
        costs = costs.droplevel(["problem", "n_agents"])
        rivals = costs.drop(["jfb", "direct"], errors="ignore")
        shares.append(bool(costs["jfb"] <= 1.1 * rivals.min()))
        lines.append(f"{problem} n={n}: {_listing(costs, '{:.4g}')}")
    return Claim(
        6,
        "Comparable final cost per wall-clock second",
        f"held-out cost after equal training time: {' | '.join(lines)}",
        verdict(sum(shares) / len(shares)),
        "reproduced where JFB ends within 10 % of the best other gradient with an inner problem; "
        "the direct policy, which has none, is shown beside them",
        "figures/claim-6-cost.png",
        "Held-out cost against training seconds.",
    )


def scale(data: dict[str, pd.DataFrame]) -> Claim:
    table = data["scale"]
    first = table.groupby("problem", sort=False)["cost"].first()
    last = table.groupby("problem", sort=False)["cost"].last()
    seconds = table.groupby("problem", sort=False)["step_seconds"].first()
    lines = [
        f"{name}: {first[name]:.4g} to {last[name]:.4g}, {seconds[name]:.2g} s a step"
        for name in first.index
    ]
    falls = (last < first) & last.map(math.isfinite)
    return Claim(
        7,
        "100 quadrotors, 100 bicycles and 100 goods train",
        f"held-out cost, first to last: {'; '.join(lines)}",
        verdict(float(falls.mean())),
        f"{int(table['step'].max())} steps of jfb on the scaled map, batch "
        f"{int(table['batch'].iloc[0])}; reproduced where the cost falls",
        "figures/claim-7-scale.png",
        "Held-out cost at 100 agents or goods, relative to its first value.",
    )


CLAIMS: tuple[Callable[[dict[str, pd.DataFrame]], Claim], ...] = (
    contractivity,
    alignment,
    variance,
    convergence,
    memory,
    cost,
    scale,
)
