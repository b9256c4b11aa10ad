"""Where a step's time goes, by part, with the floors it cannot fall below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter

from bench.report.figures.canvas import Drawing, grid
from bench.report.load import Run
from bench.report.roofline import SECTION, entries
from bench.report.style import format_number, format_seconds, short

#: neighbours in a bar differ in lightness, so that they do in grey print as well
_COLORS = {
    "costate": "#0072B2",
    "control coefficient": "#A6D3F0",
    "inner solve": "#D55E00",
    "re-attachment": "#F2C879",
    "control network": "#0072B2",
    "running cost": "#00704F",
    "dynamics": "#8FD3B6",
    "terminal cost": "#4D4D4D",
    "rollout": "#B5B5B5",
    "gradient accumulation": "#882255",
    "optimiser step": "#CC79A7",
}
_OTHER = "#767676"
#: file name of a floor's marker and its words
_FLOORS = {"roofline": ("v", "roofline floor"), "launch": ("D", "launch floor")}
_CAPTION = (
    "Seconds of one training step by part, forward plain and backward hatched, with the floor "
    "that FLOPs and bytes set at this machine's rates (triangle) and the floor that its price per "
    "operator sets on the number of kernels (diamond). Right of a bar: the step as a multiple of "
    "the higher of the two."
)


def roofline_figures(runs: Sequence[Run]) -> list[Drawing]:
    """One bar per profiled case; nothing where no run has a profile."""
    found = entries(runs)
    if not found:
        return []
    figure, axes = grid(1, 1, 1.3 + 0.42 * len(found))
    _draw(axes[0, 0], found)
    return [Drawing("roofline", SECTION, _CAPTION, figure)]


def _draw(ax: Axes, found: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    longest = max(entry["seconds"]["step"] for _, entry in found)
    with mpl.rc_context({"hatch.linewidth": 0.6}):
        for place, (_, entry) in enumerate(found):
            _bar(ax, place, entry)
    for place, (_, entry) in enumerate(found):
        ratios = [entry["ratio"][name] for name in _FLOORS if name in entry["ratio"]]
        words = format_seconds(entry["seconds"]["step"])
        if ratios:
            words += f", {format_number(min(ratios))} ×"
        ax.annotate(
            words,
            (entry["seconds"]["step"], place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center_baseline",
            fontsize=8,
            color="#333333",
        )
    ax.set_yticks(range(len(found)), [name for name, _ in found])
    ax.set_ylim(len(found) - 0.4, -0.6)
    ax.set_xlim(0, 1.16 * longest)
    ax.grid(visible=False, axis="y")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(format_seconds(value))))
    ax.set_xlabel("time of one training step")
    ax.legend(
        handles=_handles(found),
        loc="upper left",
        bbox_to_anchor=(1.01, 1.02),
        frameon=False,
        fontsize=8,
        borderaxespad=0.2,
        labelspacing=0.35,
    )


def _bar(ax: Axes, place: int, entry: Mapping[str, Any]) -> None:
    left = 0.0
    for part in entry["parts"]:
        ax.barh(
            place,
            part["seconds"],
            left=left,
            height=0.62,
            color=_COLORS.get(part["part"], _OTHER),
            hatch="////" if part["phase"] == "backward" else None,
            edgecolor="white",
            linewidth=0.4,
        )
        left += part["seconds"]
    for name, (marker, _) in _FLOORS.items():
        ax.plot(
            [entry["floor_seconds"][name]],
            [place - 0.36 if marker == "v" else place + 0.36],
            marker=marker,
            markersize=6,
            color="black",
            markeredgecolor="white",
            markeredgewidth=0.6,
            clip_on=False,
            zorder=4,
        )


def _handles(found: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Patch | Line2D]:
    """Parts that take any visible time, then the phases and the floors."""
    shares: dict[str, float] = {}
    for _, entry in found:
        for part in entry["parts"]:
            shares[part["part"]] = max(shares.get(part["part"], 0.0), part["share"])
    names = [name for name in _COLORS if shares.get(name, 0.0) >= 0.005]
    names += [name for name in shares if name not in _COLORS]
    handles: list[Patch | Line2D] = [
        Patch(facecolor=_COLORS.get(name, _OTHER), label=name) for name in names
    ]
    handles.append(Patch(facecolor="#9a9a9a", edgecolor="white", hatch="////", label="backward"))
    handles += [
        Line2D([], [], color="black", marker=marker, markersize=6, linestyle="none", label=words)
        for marker, words in _FLOORS.values()
    ]
    return handles
