"""Files as parts of a page: figures, and tables to download."""

from __future__ import annotations

import base64
import gzip
import io
import mimetypes
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import PIL.Image
from markupsafe import Markup

from bench.report.figures.hover import inline

#: bytes of an SVG that is part of the page, and of a picture in it; larger ones are rastered
_LARGEST_INLINE, _LARGEST_SVG = 300_000, 45_000
#: packed bytes of a table inside the page; a larger one stays beside it
_LARGEST_TABLE = 200_000


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


def downloads(out: Path) -> Iterator[tuple[str, tuple[str, str]]]:
    """File name -> where it is and what is in it: inside the page, packed, where it is small."""
    for name, text in (("cases.csv", "every record"), ("curves.csv", "every training curve")):
        packed = gzip.compress((out / name).read_bytes(), mtime=0)
        if len(packed) > _LARGEST_TABLE:
            yield name, (name, text)
        else:
            yield f"{name}.gz", (_uri("application/gzip", packed), text)


def figure_image(stem: Path, caption: str, hovers: bool = False) -> Image:
    """The figure saved as `stem`.svg and, mostly, `stem`.png, embedded.

    With `hovers` an SVG is part of the page, so that its points have words on hovering. Elsewhere,
    and where it is large, it gives way to a small raster of the same picture.
    """
    vector, raster = (stem.with_name(f"{stem.name}.{kind}") for kind in ("svg", "png"))
    if vector.stat().st_size > (_LARGEST_INLINE if hovers else _LARGEST_SVG) and raster.exists():
        return Image(embedded(raster), caption, stem.name)
    if hovers:
        return Image("", caption, stem.name, Markup(inline(vector, caption or stem.name)))
    return Image(embedded(vector), caption, stem.name)


def embedded(path: Path) -> str:
    """The file as a data URI; a PNG is compressed until letters are just crisp."""
    if path.suffix != ".png":
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        return _uri(kind, path.read_bytes())
    packed = io.BytesIO()
    with PIL.Image.open(path) as picture:
        picture.convert("RGB").save(packed, "WEBP", quality=55, method=6)
    return _uri("image/webp", packed.getvalue())


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
