"""Dolan-Moré performance profiles: how often a gradient is within a factor of the best."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from bench.report.figures.canvas import Drawing, grid, handle, legend_right, line_style
from bench.report.frames import WORKLOAD, iterates, missed
from bench.report.profile import median_with_misses, performance_profile
from bench.report.series import panels
from bench.report.style import gradient_rank, look
from bench.report.targets import TARGET_INSTANCE, TARGETS, own_rate, target_times, tuned

_INSTANCE = ("environment", "problem", "n_agents", *WORKLOAD)
#: how a gradient enters the two profiles of the time to target
_OWN = (
    "each gradient enters at its case's own learning rate, with the best of its settings where "
    "several were run"
)
_TUNED = "each gradient enters with the best of the learning rates and other settings tried on it"


def profile_figures(cases: pd.DataFrame, curves: pd.DataFrame) -> list[Drawing]:
    """Profiles of the time per step and, where gaps are known, of the time to target."""
    drawings = []
    steps = step_times(cases)
    if steps.shape[1] > 1:
        caption = (
            "One instance is a problem, size, workload and stopping rule; each gradient enters "
            "with its best map and solver, medians over seeds. Instances that stop at a tolerance "
            "are scored wherever there are any, because only they ask for equal residuals. A miss "
            "is infinite: unsupported, not finished, residual not reached, or not run there. "
            "Direct policies and the closed form have no inner solve and are left out. Height at "
            "the left edge is how often a gradient is the fastest, height at the right how often "
            "it gets there at all; in brackets the instances solved."
        )
        drawings.append(
            _drawing(
                "profile-step",
                "Performance profile: time per step",
                [("time per gradient step", steps)],
                caption,
            )
        )
    times = target_times(curves, cases)
    if len(times):
        drawings += _target_profile("profile-target", "time to target", own_rate(times), _OWN)
        best = tuned(times)
        if len(best):
            drawings += _target_profile("profile-tuned", "time to target, tuned", best, _TUNED)
    return drawings


def _target_profile(name: str, section: str, times: pd.DataFrame, entry: str) -> list[Drawing]:
    """One column per target; nothing where only one gradient was trained."""
    parts = [
        (f"time to {target:.0%}", _instances(times, f"target_{target:g}")) for target in TARGETS
    ]
    if parts[0][1].shape[1] < 2:
        return []
    caption = (
        f"One instance is a problem and a size; {entry}, medians over seeds. A target is the "
        "reference optimum plus the stated gap, mean over held-out initial states; a target not "
        "reached, or not tried there, is infinite."
    )
    return [_drawing(name, f"Performance profile: {section}", parts, caption)]


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
        if len(best) > 1:
            found.append(best)
    return _ordered(pd.DataFrame(found))


def _instances(times: pd.DataFrame, column: str) -> pd.DataFrame:
    per_gradient = times.groupby([*TARGET_INSTANCE, "gradient"], dropna=False)[column]
    best = per_gradient.min().unstack("gradient")
    return _ordered(best[best.notna().sum(axis=1) > 1].reset_index(drop=True))


def _ordered(times: pd.DataFrame) -> pd.DataFrame:
    return times[sorted(times.columns, key=gradient_rank)]


def _drawing(
    name: str, section: str, parts: Sequence[tuple[str, pd.DataFrame]], caption: str
) -> Drawing:
    columns = len(parts)
    figure, axes = grid(1, columns, height=3.6)
    for ax, (words, times) in zip(axes[0], parts, strict=True):
        _draw(ax, times)
        noun = "instance" if len(times) == 1 else "instances"
        ax.set_title(f"{words}, {len(times)} {noun}")
    axes[0][0].set_ylabel("share of instances solved")
    last = parts[-1][1]
    solved = np.isfinite(last.astype(float)).sum()
    legend_right(
        axes[0][-1],
        [
            handle(
                look(method), method if columns > 1 else f"{method} ({solved[method]}/{len(last)})"
            )
            for method in parts[0][1].columns
        ],
    )
    return Drawing(name, section, caption, figure)


def _draw(ax: Axes, times: pd.DataFrame) -> None:
    profile = performance_profile(times)
    widest = max((ratios[-1] for ratios, _ in profile.values()), default=1.0)
    end = max(widest * 1.3, 2.0)
    for method, (ratios, fractions) in profile.items():
        own = look(method)
        sns.lineplot(
            x=[*ratios, end],
            y=[*fractions, fractions[-1]],
            drawstyle="steps-post",
            color=own.color,
            linestyle=line_style(own),
            linewidth=1.6,
            marker=own.marker,
            markersize=5.5,
            markevery=max(1, len(ratios) // 6),
            ax=ax,
        )
    if not np.isfinite(times.astype(float)).any(axis=None):
        ax.text(0.5, 0.5, "reached by none", transform=ax.transAxes, ha="center", color="#555555")
    ax.set_xscale("log", base=2)
    ax.set_xlim(1, end)
    ax.set_ylim(-0.02, 1.04)
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}×")
    ax.set_xlabel("within this factor of the fastest")
