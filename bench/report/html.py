"""The page itself: a Jinja template filled in, every image inside it as a data URI."""

from __future__ import annotations

import base64
import mimetypes
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from bench.report.load import Run, UnusableFile
from bench.report.style import format_number
from bench.report.tables import Cell, Table

#: an SVG larger than this gives way to a smaller PNG, to keep the page small
_LARGEST_SVG = 350_000


@dataclass(frozen=True)
class Image:
    """An embedded image with its caption."""

    source: str
    caption: str
    name: str


@dataclass(frozen=True)
class Section:
    """A heading, the images below it and the tables below those."""

    title: str
    anchor: str
    images: Sequence[Image]
    tables: Sequence[Table] = ()


@dataclass(frozen=True)
class Claim:
    """One claim of verify.json with its figure embedded, if it has one, and its tables."""

    fields: Mapping[str, Any]
    value: str
    image: Image | None
    tables: Sequence[Table] = ()


@dataclass(frozen=True)
class Page:
    """Everything the template shows, in its order."""

    title: str
    environment: Table
    workload: Table | None
    reading: Sequence[str]
    limitations: Sequence[str]
    missing: Table | None
    summary: Sequence[str]
    claims: Sequence[Claim]
    sections: Sequence[Section]
    tables: Sequence[Table]
    cases: Table | None
    beyond: Sequence[Claim] = ()


def render(page: Page) -> str:
    """The HTML text; it refers to nothing outside itself."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("template.html").render(page=page)


def figure_image(stem: Path, caption: str) -> Image:
    """The figure saved as `stem`.svg and `stem`.png: the SVG, or the PNG where much smaller."""
    vector, raster = (stem.with_name(f"{stem.name}.{kind}") for kind in ("svg", "png"))
    size = vector.stat().st_size
    chosen = raster if size > _LARGEST_SVG and size > raster.stat().st_size else vector
    return Image(data_uri(chosen), caption, stem.name)


def data_uri(path: Path) -> str:
    """The file as a data URI."""
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


def claims_of(runs: Sequence[Run], kind: str = "claims") -> list[Claim]:
    """The claims of all runs, or with `kind` "beyond" the rows below them.

    A figure that is not there is warned about and left out.
    """
    claims = []
    for run in runs:
        for fields in getattr(run, kind):
            image = None
            if fields.get("figure"):
                path = run.directory / str(fields["figure"])
                # A page is handed on: it must not carry any other file of this machine.
                if not path.resolve().is_relative_to(run.directory.resolve()):
                    text = (
                        f"figure {fields['figure']} of a claim is not in {run.directory}; left out"
                    )
                    warnings.warn(text, UnusableFile, 2)
                elif path.is_file():
                    caption = str(fields.get("figure_caption") or "")
                    image = Image(data_uri(path), caption, path.stem)
                else:
                    warnings.warn(f"figure {path} of a claim is missing", UnusableFile, 2)
            tables = [_table(table) for table in fields.get("tables") or ()]
            claims.append(Claim(fields, _value(fields.get("value")), image, tables))
    return claims


def _table(table: Mapping[str, Any]) -> Table:
    rows = [[Cell(str(cell)) for cell in row] for row in table["rows"]]
    return Table(table["title"], table["columns"], rows)


def _value(value: Any) -> str:
    """A claim's value in words: its parts by name where it has several."""
    if value is None:
        return ""
    if isinstance(value, Mapping):
        return ", ".join(f"{name.replace('_', ' ')} {_value(part)}" for name, part in value.items())
    if isinstance(value, float):
        return format_number(value)
    return str(value)
