"""Dolan-Moré performance profiles: how often a gradient is within a factor of the best."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from bench.report.figures.canvas import Drawing, grid, handle, legend_right, line_style
from bench.report.figures.panels import panels
from bench.report.frames import WORKLOAD, iterates, missed
from bench.report.style import counted, gradient_rank, look
from bench.report.targets import (
    TARGET_INSTANCE,
    TARGETS,
    median_with_misses,
    own_rate,
    performance_profile,
    target_times,
    tuned,
)

_INSTANCE = ("environment", "problem", "n_agents", *WORKLOAD)
_STEP_CAPTION = (
    "One instance is a problem, size, workload and stopping rule; each gradient enters with its "
    "best map and solver, medians over seeds. Instances that stop at a tolerance are scored "
    "wherever there are any, because only they ask for equal residuals. A miss is infinite: "
    "unsupported, not finished, residual not reached, or not run there. Direct policies and the "
    "closed form have no inner solve and are left out. Height at the left edge is how often a "
    "gradient is the fastest, height at the right how often it gets there at all; in brackets the "
    "instances solved."
)
_TARGET_CAPTION = (
    "One instance is a problem and a size; each gradient enters {}, medians over seeds. A target "
    "is the reference optimum plus the stated gap, mean over held-out initial states; a target not "
    "reached, or not tried there, is infinite."
)
#: how a gradient enters the two profiles of the time to target
_OWN = "at its case's own learning rate, with the best of its settings where several were run"
_TUNED = "with the best of the learning rates and other settings tried on it"


def profile_figures(cases: pd.DataFrame, curves: pd.DataFrame) -> list[Drawing]:
    """Profiles of the time per step and, where gaps are known, of the time to target."""
    times = target_times(curves, cases)
    own, best = (own_rate(times), tuned(times)) if len(times) else (times, times)
    wanted = [("profile-step", "time per step", _STEP_CAPTION,
               [("time per gradient step", step_times(cases))])]  # fmt: skip
    for name, words, entry, scored in (
        ("profile-target", "time to target", _OWN, own),
        ("profile-tuned", "time to target, tuned", _TUNED, best),
    ):
        parts = [
            (f"time to {target:.0%}", _instances(scored, f"target_{target:g}"))
            for target in (TARGETS if len(scored) else ())
        ]
        wanted.append((name, words, _TARGET_CAPTION.format(entry), parts))
    return [
        _drawing(name, f"Performance profile: {words}", caption, parts)
        for name, words, caption, parts in wanted
        # nothing where only one gradient was measured
        if parts and parts[0][1].shape[1] > 1
    ]


def step_times(cases: pd.DataFrame) -> pd.DataFrame:
    """Median seconds per step, one row per instance, one column per gradient; a miss is NaN."""
    # measured without a time: a memory-only case, not a miss
    untimed = (cases["status"] == "ok") & cases["step_seconds"].isna()
    timed = cases[iterates(cases) & ~untimed].copy()
    usable = (timed["status"] == "ok") & ~missed(timed)
    timed["seconds"] = timed["step_seconds"].where(usable, math.inf)
    if timed["tolerance"].notna().any():
        timed = timed[timed["tolerance"].notna() | timed["budget"].isna()]
    found = []
    for panel in panels(timed, _INSTANCE, ("budget",)):
        per_setting = panel.rows.groupby(["gradient", "ascent", "solver"], dropna=False)["seconds"]
        best = per_setting.agg(median_with_misses).groupby("gradient").min()
        found += [best] if len(best) > 1 else []
    return _ordered(pd.DataFrame(found))


def _instances(times: pd.DataFrame, column: str) -> pd.DataFrame:
    """The best of each gradient, one row per instance that several were trained on."""
    keys = [*TARGET_INSTANCE, "gradient"]
    best = times.groupby(keys, dropna=False)[column].min().unstack("gradient")
    return _ordered(best[best.notna().sum(axis=1) > 1].reset_index(drop=True))


def _ordered(times: pd.DataFrame) -> pd.DataFrame:
    return times[sorted(times.columns, key=gradient_rank)]


def _drawing(
    name: str, section: str, caption: str, parts: Sequence[tuple[str, pd.DataFrame]]
) -> Drawing:
    figure, axes = grid(len(parts), len(parts), height=3.6)
    for ax, (words, times) in zip(axes[0], parts, strict=True):
        _draw(ax, times)
        ax.set_title(f"{words}, {counted(len(times), 'instance')}")
    axes[0][0].set_ylabel("share of instances solved")
    last = parts[-1][1]
    solved = np.isfinite(last.astype(float)).sum()
    alone = len(parts) == 1
    legend_right(
        axes[0][-1],
        [
            handle(look(method), f"{method} ({solved[method]}/{len(last)})" if alone else method)
            for method in parts[0][1].columns
        ],
    )
    return Drawing(name, section, caption, figure)


def _draw(ax: Axes, times: pd.DataFrame) -> None:
    profile = performance_profile(times)
    end = max([1.3 * ratios[-1] for ratios, _ in profile.values()] + [2.0])
    for method, (ratios, fractions) in profile.items():
        own = look(method)
        ax.step([*ratios, end], [*fractions, fractions[-1]], where="post", color=own.color,
                linestyle=line_style(own), linewidth=1.6, marker=own.marker, markersize=5.5,
                markeredgecolor="white", markeredgewidth=0.75,
                markevery=max(1, len(ratios) // 6))  # fmt: skip
    if not np.isfinite(times.astype(float)).any(axis=None):
        ax.text(0.5, 0.5, "reached by none", transform=ax.transAxes, ha="center", color="#555555")
    ax.set_xscale("log", base=2)
    ax.set(xlim=(1, end), ylim=(-0.02, 1.04), xlabel="within this factor of the fastest")
    ax.xaxis.set_major_formatter("{x:g}×")
