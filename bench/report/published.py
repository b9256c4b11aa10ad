"""The committed summary of the published runs: reports/README.md and its figures.

A pure function of the records and the claims under reports/: `python -m bench.report.published`
writes both again, and a test fails where they are not what the records say.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from jinja2 import Template
from matplotlib.figure import Figure

from bench.environment import ROOT
from bench.report.figures.canvas import save, theme
from bench.report.figures.convergence import curves_figure
from bench.report.figures.panels import panels
from bench.report.figures.scaling import (
    ALLOCATED,
    SAVED,
    STEP,
    agents_figures,
    memory_iterations_figures,
)
from bench.report.frames import case_frame, curve_frame
from bench.report.load import Run, load_run
from bench.report.style import DASH, counted, format_seconds, gradient_rank, markdown_table

REPORTS = ROOT / "reports"
#: what is published: run directories with records, and what each is
RUNS = {
    "release/smoke": "every problem and gradient in minutes, short horizons",
    "release/field": "every method side by side on quadrotors",
    "release/targets": "training to stated gaps on the recommended recipe",
    "release/sweep": "time and memory of a training step at full horizons",
    "growth": "larger swarms, methods fitted to optima first: by the code after 1.0.0",
    "gpu": "one H100",
}
#: fewer seeds than this make no line and no row
_SEEDS = 5
_KEYS = ["problem", "n_agents", "gradient", "ascent", "environment", "execution"]


def published(reports: Path = REPORTS) -> tuple[str, dict[str, Figure]]:
    """The text of reports/README.md and its figures by file name."""
    runs = {name: load_run(reports / name) for name in RUNS}
    frames = {name: case_frame([run]) for name, run in runs.items()}
    claims = load_run(reports / "release" / "verify").claims
    text = Template(
        Path(__file__).with_name("published.md").read_text(encoding="utf-8"),
        keep_trailing_newline=True,
    ).render(
        runs=_runs_table(frames),
        claims=markdown_table(
            ["claim", "verdict", "measured"],
            ([claim[name] for name in ("claim", "verdict", "value")] for claim in claims),
        ),
        seeds=_SEEDS,
        gaps=_gap_table(frames["release/targets"]),
        growth=_gap_table(frames["growth"]),
    )
    cpu, gpu = frames["release/sweep"], frames["gpu"]
    usual = (cpu["ascent"] == "scaled map") | (cpu["gradient"] == "direct")
    to_tolerance = cpu["max_iterations"].isna() | cpu["tolerance"].notna()
    steps = cpu[usual & to_tolerance & (cpu["problem"] == "quadrotor")]
    twenty = cpu[(cpu["problem"] == "quadrotor") & (cpu["n_agents"] == 20)]
    # The rows in which a step is eager and of the usual batch: memory alone was measured there.
    hundred = gpu[(gpu["n_agents"] == 100) & (gpu["batch_size"] == 50) & ~gpu["compile"]]
    with theme():
        return text, {
            # what timed out or was not measured is marked
            "memory-iterations.svg": memory_iterations_figures(twenty, (SAVED,))[0].figure,
            "memory-gpu.svg": memory_iterations_figures(hundred, (ALLOCATED,))[0].figure,
            "step-time.svg": agents_figures(steps, (STEP,))[0].figure,
            "gaps.svg": _gaps_figure(runs["release/targets"], frames["release/targets"]),
            "growth.svg": _gaps_figure(runs["growth"], frames["growth"]),
        }


def write(reports: Path = REPORTS) -> None:
    """Write reports/README.md and reports/figures/*.svg."""
    text, figures = published(reports)
    (reports / "README.md").write_text(text, encoding="utf-8")
    (reports / "figures").mkdir(exist_ok=True)
    for name, figure in figures.items():
        save(figure, reports / "figures" / name)


def _gaps_figure(run: Run, cases: pd.DataFrame) -> Figure:
    """Gap against seconds, without markers, those with words on hovering included: Markdown shows
    a mere picture."""
    training = _trained(curve_frame([run], cases), "optimality_gap")
    sizes = panels(training, ("problem", "n_agents", "environment"))
    figure = curves_figure(sizes, cases.iloc[:0], "optimality_gap")
    for line in (line for ax in figure.axes for line in ax.lines):
        line.set_marker("")
    return figure


def _runs_table(frames: Mapping[str, pd.DataFrame]) -> str:
    rows = []
    for name, cases in frames.items():
        machines = sorted(set(cases["cpu"].dropna()) | set(cases["gpu"].dropna()))
        dirty = int(cases["dirty"].fillna(False).sum())
        code = counted(cases["commit"].nunique(), "commit")
        code += f", {dirty} records with uncommitted changes" if dirty else ""
        ok = int((cases["status"] == "ok").sum())
        machine = "; ".join(machines) or "not recorded"
        rows.append([name, RUNS[name], len(cases), ok, machine, code])
    return markdown_table(["run", "what it is", "records", "ok", "machine", "code"], rows)


def _trained(rows: pd.DataFrame, gap: str) -> pd.DataFrame:
    """Rows of the recommended recipe as it is, finished, with a reference and seeds enough."""
    own = (rows["recipe"] == "recommended") & rows["learning_rate"].isna()
    rows = rows[own & rows[gap].notna()]
    return rows[rows.groupby(_KEYS, dropna=False)["seed"].transform("nunique") >= _SEEDS]


def _gap_table(cases: pd.DataFrame) -> str:
    rows = []
    for key, group in _trained(cases, "final_optimality_gap").groupby(_KEYS, dropna=False):
        problem, agents, gradient, ascent, letter, _ = key
        gaps = group["final_optimality_gap"]
        low, middle, high = map(_percent, (gaps.min(), gaps.median(), gaps.max()))
        rows.append(
            [
                *(problem, agents, gradient, DASH if pd.isna(ascent) else ascent, letter),
                *(group["seed"].nunique(), f"{group['train_seconds'].iloc[0]:g} s"),
                f"{middle} ({low} to {high})",
                format_seconds(group["step_seconds"].median()),
            ]
        )
    rows.sort(key=lambda row: (*row[:2], gradient_rank(row[2]), *map(str, row[3:5])))
    heads = ["problem", "gradient", "map", "", "seeds", "trained", "gap", "step"]
    return markdown_table(heads, ([f"{row[0]} {row[1]}", *row[2:]] for row in rows))


def _percent(gap: float) -> str:
    return f"{gap:.1%}" if abs(gap) >= 0.001 else f"{100 * gap:.1g}%"


if __name__ == "__main__":
    write()
