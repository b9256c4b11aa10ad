"""When runs come within a target, as a share of their time limit: no pile where a stage ends."""

from __future__ import annotations

import pandas as pd

from bench.report.figures.canvas import Drawing, grid
from bench.report.targets import TARGETS, time_to_target

_BINS = 20
#: problems by colour, as told apart in the stacks
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#767676")


def crossing_figure(cases: pd.DataFrame, curves: pd.DataFrame) -> list[Drawing]:
    """A histogram per target over methods and seeds, stacked by problem; nothing without runs."""
    key = ["run", "id", "seed"]
    limits = cases.set_index(key)["train_seconds"].dropna()
    known = curves[curves["optimality_gap"].notna()]
    runs = [
        (curve["problem"].iloc[0], [time_to_target(curve, t) / limits.loc[own] for t in TARGETS])
        for own, curve in known.groupby(key, dropna=False)
        if own in limits.index
    ]
    shares = pd.DataFrame(
        [times for _, times in runs], index=[problem for problem, _ in runs], columns=TARGETS
    )
    # Never is infinite, and in no bar.
    shares = shares.where(shares <= 1).dropna(how="all")
    if shares.empty:
        return []
    problems = sorted(set(shares.index))
    figure, axes = grid(len(TARGETS), len(TARGETS), height=3.0)
    for ax, target in zip(axes.flat, TARGETS, strict=True):
        stacks = [shares.loc[[problem], target].dropna() for problem in problems]
        colors = [_COLORS[i % len(_COLORS)] for i in range(len(problems))]
        ax.hist(stacks, _BINS, range=(0.0, 1.0), stacked=True, color=colors, label=problems)
        ax.set_title(f"within {target:.0%}, {sum(map(len, stacks))} runs")
        ax.set_xlabel("seconds / time limit")
    axes[0][0].set_ylabel("runs")
    axes[0][-1].legend(frameon=False, fontsize=8)
    caption = (
        "When a run came within the stated gap of the reference for good, as a share of its time "
        "limit; every method, map and seed is one run, and those that missed the target are left "
        "out. A recipe whose stages were shares of the limit would pile all methods up in one bar."
    )
    return [Drawing("crossings", "When targets are reached", caption, figure)]
