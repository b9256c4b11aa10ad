"""From run directories to files: page, tidy CSV, figures."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from bench import csv_cells
from bench.report.figures import Drawing, draw_all, draw_roofline, theme
from bench.report.frames import case_frame, curve_frame
from bench.report.header import (
    CLAIMS_READING,
    READING,
    environment_table,
    limitations,
    workload_table,
)
from bench.report.html import Page, Section, claims_of, figure_image, render
from bench.report.load import Run, load_runs
from bench.report.roofline import SECTION as ROOFLINE
from bench.report.roofline import roofline_tables
from bench.report.summary import summary
from bench.report.tables import (
    Table,
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
    (out / "figures").mkdir(parents=True, exist_ok=True)
    csv_cells.table(cases).to_csv(out / "cases.csv", index=False)
    csv_cells.table(curves).to_csv(out / "curves.csv", index=False)
    drawings = [*draw_all(cases, curves), *draw_roofline(runs)]
    for drawing in drawings:
        _save(drawing.figure, out / "figures" / drawing.name)
    times = target_times(curves, cases)
    extra = [generic_table(table) for run in runs for table in run.tables]
    page = Page(
        title=" + ".join(run.name for run in runs),
        environment=environment_table(runs),
        workload=workload_table(cases),
        reading=READING,
        limitations=limitations(runs),
        missing=missing_table(cases),
        summary=summary(cases),
        claims=claims_of(runs),
        beyond=claims_of(runs, "beyond"),
        sections=_sections(drawings, out / "figures", {ROOFLINE: roofline_tables(runs)}),
        tables=[table for table in (target_table(times), tuned_table(times), *extra) if table],
        cases=case_table(cases),
    )
    index = out / "index.html"
    index.write_text(render(page), encoding="utf-8")
    return index


def _write_claims(runs: Sequence[Run], out: Path) -> Path:
    """The page of runs that measured the claims and no cases."""
    page = Page(
        title=" + ".join(run.name for run in runs),
        environment=environment_table(runs),
        workload=None,
        reading=CLAIMS_READING,
        limitations=limitations(runs),
        missing=None,
        summary=(),
        claims=claims_of(runs),
        beyond=claims_of(runs, "beyond"),
        sections=(),
        tables=[generic_table(table) for run in runs for table in run.tables],
        cases=None,
    )
    out.mkdir(parents=True, exist_ok=True)
    index = out / "index.html"
    index.write_text(render(page), encoding="utf-8")
    return index


def _save(figure: Figure, stem: Path) -> None:
    with theme():
        # the layout is solved once and kept for both files
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        # no date in the file, so that the same records give the same bytes
        figure.savefig(stem.with_name(f"{stem.name}.svg"), metadata={"Date": None})
        figure.savefig(stem.with_name(f"{stem.name}.png"), dpi=_DOTS_PER_INCH)


def _sections(
    drawings: Sequence[Drawing], folder: Path, tables: Mapping[str, Sequence[Table]]
) -> list[Section]:
    return [
        Section(
            title,
            title.lower().replace(" ", "-").replace(":", ""),
            [figure_image(folder / drawing.name, drawing.caption) for drawing in group],
            tables.get(title, ()),
        )
        for title, group in itertools.groupby(drawings, key=lambda drawing: drawing.section)
    ]
