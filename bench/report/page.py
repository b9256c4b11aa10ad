"""From run directories to files: the page with every image inside it, tidy CSV, figures."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from bench import csv_cells
from bench.environment import ROOT
from bench.report import header
from bench.report.answer import answer
from bench.report.figures.canvas import Drawing, save, theme
from bench.report.figures.convergence import convergence_figures
from bench.report.figures.crossings import crossing_figure
from bench.report.figures.headline import headline_figure
from bench.report.figures.profiles import profile_figures
from bench.report.figures.residuals import residual_figures
from bench.report.figures.roofline import SECTION as ROOFLINE
from bench.report.figures.roofline import roofline_figures, roofline_tables
from bench.report.figures.scaling import agents_figures, memory_iterations_figures
from bench.report.frames import case_frame, curve_frame
from bench.report.images import Image, downloads, embedded, figure_image
from bench.report.load import Run, UnusableFile, left_out, load_runs
from bench.report.ranking import gap_table, gaps_at_equal_time, ranking, ranking_table
from bench.report.style import format_number
from bench.report.summary import summary
from bench.report.tables import Table, case_table, generic_table, missing_table, target_tables
from bench.report.targets import target_times

_DOTS_PER_INCH = 130
#: bytes of the page that what is folded away may take
_FOLDED = 200_000
#: sections on the page, in their order: anchor, heading, and the names that may stand there, best
#: first; six figures are enough to read
_SHOWN = (
    ("memory-k", "Memory against inner iterations K", ("memory-iterations",)),
    ("agents", "Memory and time against agents", ("agents",)),
    ("training", "Gap against seconds", ("convergence-optimality-gap",)),
    ("training", "Cost against seconds", ("convergence-evaluation-cost", "convergence-loss")),
    ("profile", "How often a gradient is near the fastest", ("profile-target", "profile-step")),
)
#: flights that are shown where a run has none of its own
_OWN_FLIGHTS = ROOT / "docs" / "flights"


@dataclass(frozen=True)
class Section:
    """A heading, the images below it and the tables below those."""

    title: str
    anchor: str
    images: Sequence[Image]
    tables: Sequence[Table] = ()


def write_report(directories: Sequence[Path], out: Path) -> Path:
    """Write index.html, cases.csv, curves.csv and figures/ under `out`; return the page's path.

    Runs that hold nothing but the claims of `bench verify` get a page of those alone. Raises
    ValueError where a directory does not exist or none holds a usable record or claim. Files of
    a run that cannot be used are left out with a warning.
    """
    runs, out = load_runs([Path(directory) for directory in directories]), Path(out)
    (out / "figures").mkdir(parents=True, exist_ok=True)
    measured = any(run.records or run.roofline for run in runs)
    cases = _cases(runs, out) if measured else {}
    with theme():
        others = roofline_figures(runs)
    drawings = [*cases.pop("drawings", ()), *others]
    for drawing in drawings:
        save(drawing.figure, out / "figures" / f"{drawing.name}.svg", _DOTS_PER_INCH)
    headline, shown, folded = _arranged(drawings, out / "figures", roofline_tables(runs))
    content = {
        "title": " + ".join(run.name for run in runs),
        **dict.fromkeys(("answer", "ranking", "workload", "missing", "summary", "cases")),
        **cases,
        "tables": [
            *cases.get("tables", ()),
            *(generic_table(t) for run in runs for t in run.tables),
        ],
        **{"headline": headline, "shown": shown, "folded": folded},
        "trajectories": trajectories(runs) if measured else [],
        "environment": header.environment_table(runs),
        "limitations": header.limitations(runs),
        "claims": claims_of(runs),
        "beyond": claims_of(runs, "beyond"),
        "downloads": dict(downloads(out)) if any(run.records for run in runs) else {},
    }
    jinja = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    index = out / "index.html"
    index.write_text(jinja.get_template("template.html").render(content), encoding="utf-8")
    return index


def _cases(runs: Sequence[Run], out: Path) -> dict[str, Any]:
    """What the page says of cases, the tables beside it written; with the figures of them."""
    cases = case_frame(runs)
    curves = curve_frame(runs, cases)
    for name, table in (("cases", cases), ("curves", curves)):
        csv_cells.table(table).to_csv(out / f"{name}.csv", index=False)
    gaps = gaps_at_equal_time(curves, cases)
    ranked = ranking(cases, gaps)
    tables = [gap_table(gaps)] if len(gaps) else []
    with theme():
        drawings = [
            *headline_figure(cases, gaps),
            *memory_iterations_figures(cases),
            *agents_figures(cases),
            *residual_figures(cases),
            *convergence_figures(curves, cases),
            *profile_figures(cases, curves),
            *crossing_figure(cases, curves),
        ]
    return {
        "drawings": drawings,
        "answer": answer(runs, cases, ranked, gaps),
        "ranking": ranking_table(ranked) if len(ranked) else None,
        "workload": header.workload_table(cases),
        "missing": missing_table(cases),
        "summary": summary(cases),
        "tables": [*tables, *target_tables(target_times(curves, cases))],
        "cases": case_table(cases),
    }


def _arranged(
    drawings: Sequence[Drawing], folder: Path, tables: Sequence[Table]
) -> tuple[Image | None, list[Section], list[Section]]:
    """The figure beside the answer, the sections on the page, and those folded away."""
    by_name = {drawing.name: drawing for drawing in drawings}

    def taken(names: Sequence[str]) -> Image | None:
        # a figure of many panels has several pages, of which the first is shown
        for name in (each for wanted in names for each in (wanted, f"{wanted}-1")):
            if name in by_name:
                return figure_image(folder / name, by_name.pop(name).caption, True)
        return None

    headline = taken(["headline"])
    shown: dict[str, Section] = {}
    for anchor, heading, names in _SHOWN:
        if anchor not in shown and (image := taken(names)):
            shown[anchor] = Section(heading, anchor, [image])
    folded: dict[str, list[Image]] = {}
    left = _FOLDED
    for name, drawing in by_name.items():
        image = figure_image(folder / name, drawing.caption)
        if len(image.source) > left:
            # What the page has no room for lies beside it.
            image = replace(image, source=f"{folder.name}/{name}.png")
        left -= len(image.source)
        folded.setdefault(drawing.section, []).append(image)
    away = [
        Section(
            title,
            title.lower().replace(" ", "-").replace(":", ""),
            images,
            tables if title == ROOFLINE else (),
        )
        for title, images in folded.items()
    ]
    return headline, list(shown.values()), away


def trajectories(runs: Sequence[Run]) -> list[Section]:
    """What `bench plot --out RUN/trajectories` drew, or else the flights of this repository.

    A section for each policy that was drawn.
    """
    folders = [run.directory / "trajectories" for run in runs]
    own = [folder for folder in folders if folder.is_dir()]
    listings = [path for folder in own or [_OWN_FLIGHTS] for path in folder.glob("*-figures.json")]
    apart = "" if own else " (trained apart from these records)"
    return [
        Section(f"{path.stem.removesuffix('-figures')}{apart}", path.stem, images)
        for path in sorted(listings)
        if (images := _flight(path))
    ]


def _flight(listing: Path) -> list[Image]:
    """The pictures named in `listing`, in its order; what is not there was left out on purpose."""
    try:
        captions = json.loads(listing.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        left_out(listing, error)
        return []
    # Several flights side by side are read at the page's full width.
    several = any(word in name for word in ("distances", "animation") for name in captions)
    images = [
        figure_image(listing.with_name(name).with_suffix(""), text, hovers=True)
        for name, text in captions.items()
        if listing.with_name(name).is_file()
    ]
    return [replace(image, wide=several and image.name.endswith("-paths")) for image in images]


def claims_of(runs: Sequence[Run], kind: str = "claims") -> list[dict[str, Any]]:
    """The claims of all runs, or with `kind` "beyond" the rows below them.

    With their figures embedded as `image`; one that is not there is warned about and left out.
    """
    return [
        {"number": None, "verdict": None, "findings": (), "conditions": "", **claim}
        | {
            "value": _value(claim.get("value")),
            "image": _claim_image(run.directory, claim) if claim.get("figure") else None,
            "tables": [generic_table(table) for table in claim.get("tables") or ()],
        }
        for run in runs
        for claim in getattr(run, kind)
    ]


def _claim_image(directory: Path, fields: Mapping[str, Any]) -> Image | None:
    path = directory / str(fields["figure"])
    # A page is handed on: it must not carry any other file of this machine.
    if not path.resolve().is_relative_to(directory.resolve()):
        said = f"figure {fields['figure']} of a claim is not in {directory}; left out"
    elif not path.is_file():
        said = f"figure {path} of a claim is missing"
    else:
        return Image(embedded(path), str(fields.get("figure_caption") or ""), path.stem)
    warnings.warn(said, UnusableFile, stacklevel=2)
    return None


def _value(value: Any) -> str:
    """A claim's value in words: its parts by name where it has several."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name.replace('_', ' ')} {_value(part)}" for name, part in value.items())
    if isinstance(value, float):
        return format_number(value)
    return "" if value is None else str(value)
