"""Words that appear when the pointer rests on a point of a figure in the page.

matplotlib has no such thing; invisible markers carry the words in their group's id, and `titled`
turns those into SVG titles, which browsers show and screen readers read.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
import zlib
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

_SVG = "http://www.w3.org/2000/svg"
#: attributes that say where something is, and numbers there with more decimals than are seen
_PLACES, _LONG = {"d", "points", "x", "y", "width", "height"}, re.compile(r"\d+\.\d{3,}")
_FAMILY = re.compile(r"font-family: ([^;]*);? ?")
_MARK, _BETWEEN = "hover:", "\N{SYMBOL FOR RECORD SEPARATOR}"


def hover(ax: Axes, x: Iterable[float], y: Iterable[float], words: Sequence[str]) -> None:
    """Show `words` at the points (x, y); points that are not finite have none."""
    points = np.column_stack([np.asarray(list(x), float), np.asarray(list(y), float)])
    there = np.isfinite(points).all(axis=1)
    if there.any():
        gid = _MARK + _BETWEEN.join(np.asarray(words, dtype=object)[there])
        ax.plot(*points[there].T, "o", markersize=11, alpha=0.0, gid=gid, label="_", zorder=6)


def titled(path: Path) -> None:
    """Rewrite the SVG in `path`, smaller, with a title at every point that `hover` marked."""
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    root = ElementTree.parse(path).getroot()
    for metadata in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(metadata)
    for element in root.iter():
        if element.get("id", "").startswith(_MARK):
            words = element.attrib.pop("id").removeprefix(_MARK).split(_BETWEEN)
            for use, text in zip(list(element.iter(f"{{{_SVG}}}use")), words, strict=False):
                ElementTree.SubElement(use, f"{{{_SVG}}}title").text = text
        element.tail = (element.tail or "").strip()
        element.text = element.text if (element.text or "").strip() else None
        if family := _FAMILY.search(element.get("style", "")):  # said once, for all
            root.set("font-family", family[1])
            element.set("style", _FAMILY.sub("", element.get("style", "")))
        for name in _PLACES & set(element.attrib):
            # A hundredth of a point is finer than any screen, and half of what matplotlib writes.
            place = " ".join(element.get(name, "").split())
            element.set(name, _LONG.sub(lambda number: f"{float(number[0]):.2f}", place))
    text = ElementTree.tostring(root, encoding="unicode")
    path.write_text(f"<?xml version='1.0' encoding='utf-8'?>\n{text}\n", encoding="utf-8")


def inline(path: Path, label: str) -> str:
    """The SVG in `path` as part of an HTML page: its ids its own, as wide as its box."""
    text = path.read_text(encoding="utf-8")
    # Short, because it is written thousands of times.
    own = f"f{zlib.crc32(path.stem.encode()):x}"
    text = re.sub(r'\bid="([^"]+)"', rf'id="{own}-\1"', text[text.index("<svg") :])
    text = re.sub(r'(href="|url\()#', rf"\1#{own}-", text)
    head, _, rest = text.partition(">")
    head = re.sub(r'\s(?:width|height|version|role|aria-label)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="{escape(label)}">{rest}'
