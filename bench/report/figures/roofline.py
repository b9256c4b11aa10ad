"""The profile that `bench roofline` left: its table, and where a step's time goes by part, with
the floors it cannot fall below.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from bench.report.figures.canvas import Drawing, grid, legend_right, named_lines
from bench.report.load import Run
from bench.report.style import format_bytes, format_number, format_seconds, short
from bench.report.tables import Table, number

#: heading of the section with the table and the figure
SECTION = "Roofline"
_TIMES = ("step", "forward", "backward", "optimiser")
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
#: of a floor its marker, where that is, and its words
_FLOORS = {"roofline": ("v", -0.36, "roofline floor"), "launch": ("D", 0.36, "launch floor")}
_CAPTION = (
    "Seconds of one training step by part, forward plain and backward hatched, with the floor "
    "that FLOPs and bytes set at this machine's rates (triangle) and the floor that its price per "
    "operator sets on the number of kernels (diamond). Right of a bar: the step as a multiple of "
    "the higher of the two."
)
_Profiles = Sequence[tuple[str, Mapping[str, Any]]]


def profile_entries(runs: Sequence[Run]) -> _Profiles:
    """(what to call it, the case's profile) of every run that has one."""
    profiled = [run for run in runs if run.roofline]
    found = []
    for run in profiled:
        for entry in run.roofline["cases"]:
            case = entry["case"]
            device = "" if case["device"] == "cpu" else f", {case['device']}"
            own = f" ({run.name})" if len(profiled) > 1 else ""
            name = f"{case['problem']} {case['n_agents']}, {case['gradient']}{device}{own}"
            found.append((name, entry))
    return found


def roofline_tables(runs: Sequence[Run]) -> list[Table]:
    """One row per profiled case; empty where no run has a profile."""
    rows = [_row(name, entry) for name, entry in profile_entries(runs)]
    if not rows:
        return []
    columns = [
        "case", "step", "forward", "backward", "update", "FLOP", "bytes", "kernels",
        "roofline floor", "step / roofline", "launch floor", "step / launch", "highest floor",
    ]  # fmt: skip
    profiles = [run.roofline for run in runs if run.roofline]
    conventions = (text for profile in profiles for text in profile["conventions"])
    missing = (
        f"{words}: {case['id']}: {case['reason']}."
        for profile in profiles
        for key, words in (("unsupported", "Not supported"), ("failed", "Failed"))
        for case in profile.get(key, ())
    )
    rates = [_rates(run) for run in runs if run.roofline]
    notes = [*rates, *dict.fromkeys(conventions), *missing]
    return [Table(SECTION, columns, rows, notes)]


def _row(name: str, entry: Mapping[str, Any]) -> list[Any]:
    seconds, counts, floors = entry["seconds"], entry["counts"], entry["floor_seconds"]
    flops = counts["matmul_flops"] + counts["pointwise_flops"]
    products = f"{format_number(counts['matmul_flops'])} in products of matrices"
    cells = [
        name,
        *(number(seconds[part], format_seconds) for part in _TIMES),
        number(flops, format_number, products),
        number(counts["bytes"], format_bytes),
        number(counts["calls"], "{:,}".format, f"and {counts['free']:,} views"),
    ]
    for floor in _FLOORS:
        cells.append(number(floors[floor], format_seconds))
        ratio = entry["ratio"].get(floor)
        zero = "the floor is zero" if ratio is None else ""
        cells.append(number(ratio, lambda value: f"{format_number(value)} ×", zero))
    return [*cells, entry["bound"]]


def _rates(run: Run) -> str:
    rates = run.roofline["rates"]
    environment = run.roofline.get("environment") or {}
    return (
        f"{run.name}: {environment.get('cpu', 'unknown CPU')}, "
        f"{environment.get('threads', 'an unknown number of')} threads; large square product "
        f"{rates['square_flops_per_second'] / 1e9:.1f} GFLOP/s, large copy "
        f"{rates['copy_bytes_per_second'] / 1e9:.1f} GB/s read and written, one operator "
        f"{format_seconds(rates['operator_seconds'])}, with a graph "
        f"{format_seconds(rates['tracked_forward_seconds'])} and "
        f"{format_seconds(rates['tracked_backward_seconds'])} in backward."
    )


def roofline_figures(runs: Sequence[Run]) -> list[Drawing]:
    """One bar per profiled case; nothing where no run has a profile."""
    found = profile_entries(runs)
    if not found:
        return []
    figure, axes = grid(1, 1, 1.3 + 0.42 * len(found))
    ax = axes[0, 0]
    with mpl.rc_context({"hatch.linewidth": 0.6}):
        for place, (_, entry) in enumerate(found):
            _bar(ax, place, entry)
    named_lines(ax, [name for name, _ in found])
    longest = max(entry["seconds"]["step"] for _, entry in found)
    ax.set(xlim=(0, 1.16 * longest), xlabel="time of one training step")
    ax.grid(visible=False, axis="y")
    ax.xaxis.set_major_formatter(lambda value, _: short(format_seconds(value)))
    legend_right(ax, _handles(found))
    return [Drawing("roofline", SECTION, _CAPTION, figure)]


def _bar(ax: Axes, place: int, entry: Mapping[str, Any]) -> None:
    left = 0.0
    for part in entry["parts"]:
        hatch = "////" if part["phase"] == "backward" else None
        color = _COLORS.get(part["part"], _OTHER)
        ax.barh(place, part["seconds"], left=left, height=0.62, color=color, hatch=hatch,
                edgecolor="white", linewidth=0.4)  # fmt: skip
        left += part["seconds"]
    for name, (marker, offset, _) in _FLOORS.items():
        x = entry["floor_seconds"][name]
        ax.plot([x], [place + offset], marker, color="black", zorder=4, clip_on=False,
                markeredgecolor="white", markeredgewidth=0.6)  # fmt: skip
    ratios = [entry["ratio"][name] for name in _FLOORS if name in entry["ratio"]]
    step = entry["seconds"]["step"]
    words = format_seconds(step) + (f", {format_number(min(ratios))} ×" if ratios else "")
    ax.annotate(words, (step, place), xytext=(5, 0), textcoords="offset points",
                va="center_baseline", fontsize=8, color="#333333")  # fmt: skip


def _handles(found: _Profiles) -> list[Patch | Line2D]:
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
    return handles + [
        Line2D([], [], color="black", marker=marker, markersize=6, linestyle="none", label=words)
        for marker, _, words in _FLOORS.values()
    ]
