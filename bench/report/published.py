"""The committed summary of the published runs: reports/README.md and its figures.

A pure function of the records and the claims under reports/: `python -m bench.report.published`
writes both again, and a test fails where they are not what the records say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from bench.environment import ROOT
from bench.report.frames import case_frame, curve_frame
from bench.report.load import Run, load_run
from bench.report.style import DASH, format_bytes, format_seconds, gradient_rank, look

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
Lines = Mapping[str, pd.DataFrame]


def published(reports: Path = REPORTS) -> tuple[str, dict[str, Figure]]:
    """The text of reports/README.md and its figures by file name."""
    runs = {name: load_run(reports / name) for name in RUNS}
    frames = {name: case_frame([run]) for name, run in runs.items()}
    training = curve_frame([runs["targets"]], frames["targets"])
    figures = {
        "memory-iterations.svg": _memory(frames["cpu"], "saved_tensor_bytes", 6),
        "memory-gpu.svg": _memory(frames["gpu"], "cuda_max_allocated_bytes", 100),
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
    for name, figure in figures.items():
        with mpl.rc_context({"svg.hashsalt": "jfbbench", "svg.fonttype": "none"}):
            figure.savefig(reports / "figures" / name, metadata={"Date": None})


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


def _memory(cases: pd.DataFrame, column: str, n_agents: int) -> Figure:
    exact = cases[cases["tolerance"].isna() & cases["max_iterations"].notna()]
    rows = exact[(exact["n_agents"] == n_agents) & (exact["problem"] == "quadrotor")]
    figure, (ax,) = _figure(1)
    _lines(ax, rows, "max_iterations", column)
    ax.set(xlabel="inner iterations K", ylabel=column.replace("_", " "))
    ax.yaxis.set_major_locator(LogLocator(base=4))
    ax.yaxis.set_major_formatter(lambda value, _: format_bytes(value))
    return figure


def _step_times(cases: pd.DataFrame) -> Figure:
    rows = cases[cases["tolerance"].notna() | (cases["gradient"] == "direct")]
    figure, (ax,) = _figure(1)
    _lines(ax, rows[rows["problem"] == "quadrotor"], "n_agents", "step_seconds")
    ax.set(xlabel="quadrotors", ylabel="seconds of a training step")
    ax.yaxis.set_major_formatter(lambda value, _: format_seconds(value))
    return figure


def _lines(ax: Axes, rows: pd.DataFrame, x: str, y: str) -> None:
    """A line for each gradient and environment through its medians, on logarithmic axes."""
    several = rows["environment"].nunique() > 1
    known = rows.dropna(subset=[x, y])
    for gradient in sorted(set(known["gradient"]), key=gradient_rank):
        for letter, group in known[known["gradient"] == gradient].groupby("environment"):
            medians = group.astype({x: float, y: float}).groupby(x)[y].median()
            label = f"{gradient} ({letter})" if several else gradient
            _line(ax, medians.index, medians, gradient, label)
    ax.set(xscale="log", yscale="log")
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.legend(fontsize=8)


def _line(ax: Axes, x: Sequence, y: Sequence, gradient: str, label: str, **style: Any) -> None:
    own = look(gradient)
    usual: dict[str, Any] = {
        "color": own.color,
        "marker": own.marker,
        "ms": 4,
        "dashes": own.dashes or (None, None),
    }
    ax.plot(x, y, label=label, **(usual | style))


def _gaps(curves: pd.DataFrame) -> Figure:
    """Median gap against seconds, a panel for each problem and size."""
    groups = _groups(_trained(curves))
    sizes = list(dict.fromkeys(key[:2] for key, _ in groups))
    figure, axes = _figure(len(sizes))
    for ax, size in zip(axes, sizes, strict=True):
        for key, group in groups:
            if key[:2] == size:
                # The same evaluation of every seed comes at about the same time.
                rank = group.groupby("seed")["step"].rank(method="first")
                medians = group.groupby(rank)[["seconds", "optimality_gap"]].median()
                ascent = "" if pd.isna(key[3]) else f", {str(key[3]).split(' map')[0]}"
                style = {"alpha": 0.5 if "newton" in ascent else 1.0, "marker": ""}
                _line(ax, medians["seconds"], medians["optimality_gap"], key[2],
                      f"{key[2]}{ascent} ({key[4]})", **style)  # fmt: skip
        ax.set(title=f"{size[0]} {size[1]}", xlabel="seconds of training", yscale="log")
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
        ax.minorticks_off()
        ax.legend(fontsize=6)
    axes[0].set_ylabel("optimality gap")
    return figure


def _figure(panels: int) -> tuple[Figure, list[Axes]]:
    columns = min(panels, 3)
    rows = -(-panels // columns)
    size = (7.5, 4.2) if panels == 1 else (4.2 * columns, 3.4 * rows)
    figure = Figure(figsize=size, layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in axes[panels:]:
        ax.remove()
    for ax in axes[:panels]:
        ax.grid(color="#e4e4e4", linewidth=0.7)
    return figure, axes[:panels]


if __name__ == "__main__":
    write()
