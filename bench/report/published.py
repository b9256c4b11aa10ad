"""The committed summary of the published runs: reports/README.md and its figures.

A pure function of the records and the claims under reports/: `python -m bench.report.published`
writes both again, and a test fails where they are not what the records say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from bench.environment import ROOT
from bench.report.figures.canvas import grid, handle, legend_above, line_style, scale_axis, theme
from bench.report.figures.cells import Metric
from bench.report.figures.hover import titled
from bench.report.figures.scaling import (
    ALLOCATED,
    SAVED,
    STEP,
    agents_figures,
    memory_iterations_figures,
)
from bench.report.frames import case_frame, curve_frame
from bench.report.load import Run, load_run
from bench.report.style import DASH, format_seconds, gradient_rank, look, tint

REPORTS = ROOT / "reports"
#: what is published: run directories with records, and what each is
RUNS = {
    "smoke": "every problem and gradient in minutes, short horizons",
    "cpu": "time and memory of a training step at full horizons",
    "targets": "training to stated gaps on the recommended recipe",
    "gpu": "one H100",
}
#: fewer seeds than this make no line and no row
_SEEDS = 3
_KEYS = ["problem", "n_agents", "gradient", "ascent", "environment"]


def published(reports: Path = REPORTS) -> tuple[str, dict[str, Figure]]:
    """The text of reports/README.md and its figures by file name."""
    runs = {name: load_run(reports / name) for name in RUNS}
    frames = {name: case_frame([run]) for name, run in runs.items()}
    training = curve_frame([runs["targets"]], frames["targets"])
    with theme():
        figures = {
            "memory-iterations.svg": _memory(frames["cpu"], SAVED, 6),
            "memory-gpu.svg": _memory(frames["gpu"], ALLOCATED, 100),
            "step-time.svg": _step_times(frames["cpu"]),
            "gaps.svg": _gaps(training),
        }
    parts = [
        "# Published measurements",
        "Generated from the records beside it by `python -m bench.report.published`; `make report` "
        "renders the whole report of each run into reports/html. `python -m bench validate "
        "reports/targets` checks records, `python -m bench export reports/targets --parquet FILE` "
        "makes a table of them. How the recipes were found is in "
        "[docs/recipes.md](../docs/recipes.md), how fast a step is in "
        "[docs/performance.md](../docs/performance.md).",
        "## Runs",
        _runs_table(runs),
        "## Claims of the paper",
        _claims_table(load_run(reports / "verify")),
        "## Optimality gaps after training",
        f"Median over seeds, the range in brackets; settings with {_SEEDS} seeds or more, on the "
        "recipe's own learning rate. The letter tells processors and versions of the code apart: "
        "seconds compare within one letter only.",
        _gap_table(frames["targets"]),
        "![Optimality gap against seconds of training](figures/gaps.svg)",
        "## Memory and time of a training step",
        "Bytes saved for backward against exactly K inner iterations, 6 quadrotors, batch 32, 160 "
        "time steps:",
        "![Bytes saved against inner iterations](figures/memory-iterations.svg)",
        "The allocator's peak on an H100, 100 quadrotors, batch 50:",
        "![Device memory against inner iterations](figures/memory-gpu.svg)",
        "Seconds of a training step of quadrotors to a tolerance of 1e-4, batch 32, 160 time "
        "steps, one thread:",
        "![Seconds of a step against agents](figures/step-time.svg)",
    ]
    return "\n\n".join(parts) + "\n", figures


def write(reports: Path = REPORTS) -> None:
    """Write reports/README.md and reports/figures/*.svg."""
    text, figures = published(reports)
    (reports / "README.md").write_text(text, encoding="utf-8")
    (reports / "figures").mkdir(exist_ok=True)
    with theme():
        for name, figure in figures.items():
            path = reports / "figures" / name
            figure.savefig(path, metadata={"Date": None})
            titled(path)


def _table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _runs_table(runs: Mapping[str, Run]) -> str:
    rows = []
    for name, run in runs.items():
        cases = case_frame([run])
        machines = sorted(set(cases["cpu"].dropna()) | set(cases["gpu"].dropna()))
        dirty = int(cases["dirty"].fillna(False).sum())
        commits = cases["commit"].nunique()
        code = f"{commits} commit{'s' * (commits > 1)}"
        code += f", {dirty} records with uncommitted changes" if dirty else ""
        rows.append(
            [
                *(name, RUNS[name], len(cases), int((cases["status"] == "ok").sum())),
                *("; ".join(machines) or "not recorded", code),
            ]
        )
    return _table(["run", "what it is", "records", "ok", "machine", "code"], rows)


def _claims_table(run: Run) -> str:
    rows = [[c["claim"].replace("|", "\\|"), c["verdict"], c["value"].replace("|", "\\|")]
            for c in run.claims]  # fmt: skip
    return _table(["claim", "verdict", "measured"], rows)


def _trained(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of the recommended recipe as it is, finished and with a reference."""
    own = (rows["recipe"] == "recommended") & rows["learning_rate"].isna()
    return rows[own & rows["optimality_gap"].notna()]


def _gap_table(cases: pd.DataFrame) -> str:
    rows = []
    named = cases.rename(columns={"final_optimality_gap": "optimality_gap"})
    for key, group in _groups(_trained(named)):
        problem, agents, gradient, ascent, letter = key
        gaps, steps = group["optimality_gap"], group["step_seconds"].median()
        rows.append(
            [
                *(f"{problem} {agents}", gradient, DASH if pd.isna(ascent) else ascent, letter),
                *(group["seed"].nunique(), f"{group['train_seconds'].iloc[0]:g} s"),
                f"{_percent(gaps.median())} ({_percent(gaps.min())} to {_percent(gaps.max())})",
                format_seconds(steps),
            ]
        )
    heads = ["problem", "gradient", "map", "", "seeds", "trained", "gap", "step"]
    return _table(heads, rows)


def _percent(gap: float) -> str:
    return f"{gap:.1%}" if abs(gap) >= 0.001 else f"{100 * gap:.1g}%"


def _groups(rows: pd.DataFrame) -> list[tuple[tuple, pd.DataFrame]]:
    """By problem, size, gradient, map and environment, in that order; those with seeds enough."""
    keys = [*_KEYS, "execution"]
    found = [
        (tuple(key[:-1]), group)
        for key, group in rows.groupby(keys, dropna=False, observed=True)
        if group["seed"].nunique() >= _SEEDS
    ]
    return sorted(found, key=lambda pair: (*pair[0][:2], gradient_rank(pair[0][2]), str(pair[0])))


def _memory(cases: pd.DataFrame, metric: Metric, n_agents: int) -> Figure:
    """Against exactly K inner iterations; what timed out or was not measured is marked."""
    rows = cases[(cases["problem"] == "quadrotor") & (cases["n_agents"] == n_agents)]
    (drawing,) = memory_iterations_figures(rows, (metric,))
    return drawing.figure


def _step_times(cases: pd.DataFrame) -> Figure:
    usual = (cases["ascent"] == "scaled map") | (cases["gradient"] == "direct")
    rows = cases[usual & (cases["problem"] == "quadrotor")]
    (drawing,) = agents_figures(
        rows[rows["max_iterations"].isna() | rows["tolerance"].notna()], (STEP,)
    )
    return drawing.figure


def _gaps(curves: pd.DataFrame) -> Figure:
    """Median gap against seconds, a panel for each problem and size."""
    groups = _groups(_trained(curves))
    sizes = list(dict.fromkeys(key[:2] for key, _ in groups))
    figure, axes = grid(-(-len(sizes) // 3), 3, 2.9)
    handles = []
    for ax in axes.flat[len(sizes) :]:
        ax.set_visible(False)
    for ax, size in zip(axes.flat, sizes, strict=False):
        drawn: list[float] = []
        for key, group in groups:
            if key[:2] == size:
                # The same evaluation of every seed comes at about the same time.
                rank = group.groupby("seed")["step"].rank(method="first")
                medians = group.groupby(rank)[["seconds", "optimality_gap"]].median()
                own = look(key[2])
                newton = str(key[3]).startswith("newton")
                shade = own if not newton else replace(own, color=tint(own.color, 0.5))
                ax.plot(medians["seconds"], medians["optimality_gap"], color=shade.color,
                        linestyle=line_style(own), linewidth=1.5)  # fmt: skip
                handles.append(handle(shade, f"{key[2]}{', newton map' * newton}"))
                handles[-1].set_marker("")
                drawn += medians["optimality_gap"].tolist()
        ax.set(title=f"{size[0]} {size[1]}", xlabel="seconds of training", xlim=(0, None))
        scale_axis(ax, "percent", drawn, log=True)
    for ax in axes[:, 0]:
        ax.set_ylabel("gap to the reference optimum")
    legend_above(figure, handles, 7)
    return figure


if __name__ == "__main__":
    write()
