"""What of the figures is on the page, and what is folded away: six are enough to read."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from bench.environment import ROOT
from bench.report.figures import Drawing
from bench.report.html import Image, Section, figure_image
from bench.report.load import Run, UnusableFile
from bench.report.tables import Table

#: sections on the page, in their order: anchor, heading, and for each of its figures the names that
#: may stand there, best first
_SHOWN: tuple[tuple[str, str, tuple[tuple[str, ...], ...]], ...] = (
    ("memory-k", "Memory against inner iterations K", (("memory-iterations",),)),
    ("agents", "Memory and time against agents", (("agents",),)),
    (
        "training",
        "Gap against seconds",
        (("convergence-optimality-gap", "convergence-evaluation-cost", "convergence-loss"),),
    ),
    ("profile", "How often a gradient is near the fastest", (("profile-target", "profile-step"),)),
    ("bias", "Gradient bias against |dT/du|", (("contraction",),)),
)
#: flights that are shown where a run has none of its own
_OWN_FLIGHTS = ROOT / "docs" / "flights"
#: how much of the page what is folded away may take
_FOLDED_BYTES = 200_000


def arranged(
    drawings: Sequence[Drawing], folder: Path, tables: Mapping[str, Sequence[Table]]
) -> tuple[Image | None, list[Section], list[Section]]:
    """The figure beside the answer, the sections on the page, and those folded away.

    `tables` go with the folded section of that title.
    """
    by_name = {drawing.name: drawing for drawing in drawings}
    headline = None
    if "headline" in by_name:
        headline = figure_image(folder / "headline", by_name.pop("headline").caption, True)
    shown = []
    for anchor, heading, figures in _SHOWN:
        images = []
        for names in figures:
            # a figure of many panels has several pages, of which the first is shown
            choice = [name for wanted in names for name in (wanted, f"{wanted}-1")]
            found = next((name for name in choice if name in by_name), None)
            if found is not None:
                images.append(figure_image(folder / found, by_name.pop(found).caption, True))
        if images:
            cost = anchor == "training" and "gap" not in images[0].name
            shown.append(Section("Cost against seconds" if cost else heading, anchor, images))
    folded: dict[str, list[Image]] = {}
    left = _FOLDED_BYTES
    for name, drawing in by_name.items():
        image = figure_image(folder / name, drawing.caption)
        if len(image.source) > left:
            # What the page has no room for lies beside it.
            image = replace(image, source=f"{folder.name}/{name}.png")
        left -= len(image.source)
        folded.setdefault(drawing.section, []).append(image)
    away = [
        Section(title, _anchor(title), images, tables.get(title, ()))
        for title, images in folded.items()
    ]
    return headline, shown, away


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-").replace(":", "")


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
        warnings.warn(f"{listing} is left out: {error}", UnusableFile, stacklevel=2)
        return []
    pictures = [(listing.with_name(name), caption) for name, caption in captions.items()]
    images = [
        figure_image(path.with_suffix(""), text, hovers=True)
        for path, text in pictures
        if path.is_file()
    ]
    # Several flights side by side are read at the page's full width.
    several = any(word in name for word in ("distances", "animation") for name in captions)
    return [replace(image, wide=several and image.name.endswith("-paths")) for image in images]
