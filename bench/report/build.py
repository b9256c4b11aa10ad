"""From run directories to files: page, tidy CSV, figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from bench import csv_cells
from bench.report.answer import answer
from bench.report.download import downloads
from bench.report.figures import Drawing, draw_all, draw_others, theme
from bench.report.figures.hover import titled
from bench.report.frames import case_frame, curve_frame
from bench.report.header import (
    CLAIMS_READING,
    READING,
    environment_table,
    limitations,
    workload_table,
)
from bench.report.html import Image, Page, Section, claims_of, render
from bench.report.load import Run, load_runs
from bench.report.ranking import gap_table, gaps_at_equal_time, ranking, ranking_table, with_map
from bench.report.roofline import SECTION as ROOFLINE
from bench.report.roofline import roofline_tables
from bench.report.sections import arranged, trajectories
from bench.report.summary import summary
from bench.report.tables import (
    case_table,
    generic_table,
    missing_table,
    target_table,
    tuned_table,
)
from bench.report.targets import target_times

_DOTS_PER_INCH = 130


def write_report(directories: Sequence[Path], out: Path) -> Path:
    """Write index.html, cases.csv, curves.csv and figures/ under `out`; return the page's path.

    Runs that hold nothing but the claims of `bench verify` get a page of those alone. Raises
    ValueError where a directory does not exist or none holds a usable record or claim. Files of
    a run that cannot be used are left out with a warning.
    """
    runs = load_runs([Path(directory) for directory in directories])
    if not any(run.records or run.roofline for run in runs):
        return _write_claims(runs, Path(out))
    cases = case_frame(runs)
    curves = curve_frame(runs, cases)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    csv_cells.table(cases).to_csv(out / "cases.csv", index=False)
    csv_cells.table(curves).to_csv(out / "curves.csv", index=False)
    gaps = gaps_at_equal_time(with_map(curves, cases))
    ranked = ranking(cases, gaps)
    drawings = [*draw_all(cases, curves, gaps), *draw_others(runs)]
    headline, shown, folded = _saved(drawings, runs, out)
    times = target_times(curves, cases)
    tables = [
        *(gap_table(gaps), target_table(times), tuned_table(times)),
        *(generic_table(table) for run in runs for table in run.tables),
    ]
    page = Page(
        title=" + ".join(run.name for run in runs),
        answer=answer(runs, cases, ranked, gaps),
        ranking=ranking_table(ranked) if len(ranked) else None,
        headline=headline,
        shown=shown,
        trajectories=trajectories(runs),
        folded=folded,
        environment=environment_table(runs),
        workload=workload_table(cases),
        reading=READING,
        limitations=limitations(runs),
        missing=missing_table(cases),
        summary=summary(cases),
        claims=claims_of(runs),
        beyond=claims_of(runs, "beyond"),
        tables=[table for table in tables if table],
        cases=case_table(cases),
        downloads=downloads(runs, out),
    )
    index = out / "index.html"
    index.write_text(render(page), encoding="utf-8")
    return index


def _write_claims(runs: Sequence[Run], out: Path) -> Path:
    """The page of runs that measured the claims and no cases."""
    _, shown, folded = _saved(draw_others(runs), runs, out)
    page = Page(
        title=" + ".join(run.name for run in runs),
        shown=shown,
        folded=folded,
        environment=environment_table(runs),
        reading=CLAIMS_READING,
        limitations=limitations(runs),
        claims=claims_of(runs),
        beyond=claims_of(runs, "beyond"),
        tables=[generic_table(table) for run in runs for table in run.tables],
        downloads=downloads(runs, out),
    )
    index = out / "index.html"
    index.write_text(render(page), encoding="utf-8")
    return index


def _saved(
    drawings: Sequence[Drawing], runs: Sequence[Run], out: Path
) -> tuple[Image | None, list[Section], list[Section]]:
    """Write the figures under `out`; the one beside the answer, those shown, those folded away."""
    (out / "figures").mkdir(parents=True, exist_ok=True)
    for drawing in drawings:
        _save(drawing.figure, out / "figures" / drawing.name)
    return arranged(drawings, out / "figures", {ROOFLINE: roofline_tables(runs)})


def _save(figure: Figure, stem: Path) -> None:
    with theme():
        # the layout is solved once and kept for both files
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        # no date in the file, so that the same records give the same bytes
        vector = stem.with_name(f"{stem.name}.svg")
        figure.savefig(vector, metadata={"Date": None})
        titled(vector)
        figure.savefig(stem.with_name(f"{stem.name}.png"), dpi=_DOTS_PER_INCH)
