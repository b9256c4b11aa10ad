"""The page itself: a Jinja template filled in, every image inside it as a data URI."""

from __future__ import annotations

import base64
import io
import mimetypes
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from bench.report.download import Download
from bench.report.figures.hover import inline
from bench.report.load import Run, UnusableFile
from bench.report.style import format_number
from bench.report.tables import Cell, Table

#: of an SVG that is part of the page, and of one that is a picture in it; larger ones are rastered
_LARGEST_INLINE, _LARGEST_SVG = 300_000, 45_000


@dataclass(frozen=True)
class Image:
    """An embedded image with its caption: `source` a data URI, or `inline` an SVG's own text.

    A `wide` one takes a whole line where others stand side by side.
    """

    source: str
    caption: str
    name: str
    inline: Markup | str = ""
    wide: bool = False


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
    reading: Sequence[str]
    limitations: Sequence[str]
    claims: Sequence[Claim]
    beyond: Sequence[Claim]
    tables: Sequence[Table]
    downloads: Sequence[Download]
    answer: Sequence[tuple[str, str]] = ()
    ranking: Table | None = None
    headline: Image | None = None
    shown: Sequence[Section] = ()
    trajectories: Sequence[Section] = ()
    folded: Sequence[Section] = ()
    workload: Table | None = None
    missing: Table | None = None
    summary: Sequence[str] = ()
    cases: Table | None = None


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


def figure_image(stem: Path, caption: str, hovers: bool = False) -> Image:
    """The figure saved as `stem`.svg and, mostly, `stem`.png, embedded.

    With `hovers` an SVG is part of the page, so that its points have words on hovering. Elsewhere,
    and where it is large, it gives way to a small raster of the same picture.
    """
    vector, raster = (stem.with_name(f"{stem.name}.{kind}") for kind in ("svg", "png"))
    if vector.stat().st_size > (_LARGEST_INLINE if hovers else _LARGEST_SVG) and raster.exists():
        return Image(_webp(raster), caption, stem.name)
    if hovers:
        return Image("", caption, stem.name, Markup(inline(vector, caption or stem.name)))
    return Image(data_uri(vector), caption, stem.name)


def _webp(raster: Path) -> str:
    """A data URI of the picture in `raster`, compressed until letters are just crisp."""
    packed = io.BytesIO()
    with PIL.Image.open(raster) as picture:
        picture.convert("RGB").save(packed, "WEBP", quality=55, method=6)
    return f"data:image/webp;base64,{base64.b64encode(packed.getvalue()).decode('ascii')}"


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
