"""The profile that `bench roofline` left: its table for the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.report.load import Run
from bench.report.style import DASH, format_bytes, format_number, format_seconds
from bench.report.tables import Cell, Table

#: heading of the section with the table and the figure
SECTION = "Roofline"
_TIMES = ("step", "forward", "backward", "optimiser")


def entries(runs: Sequence[Run]) -> list[tuple[str, Mapping[str, Any]]]:
    """(what to call it, the case's profile) of every run that has one."""
    profiled = [run for run in runs if run.roofline]
    found = []
    for run in profiled:
        for entry in run.roofline["cases"]:
            case = entry["case"]
            name = f"{case['problem']} {case['n_agents']}, {case['gradient']}"
            if case["device"] != "cpu":
                name += f", {case['device']}"
            found.append((f"{name} ({run.name})" if len(profiled) > 1 else name, entry))
    return found


def roofline_tables(runs: Sequence[Run]) -> list[Table]:
    """One row per profiled case; empty where no run has a profile."""
    rows = [_row(name, entry) for name, entry in entries(runs)]
    if not rows:
        return []
    columns = [
        "case", "step", "forward", "backward", "update", "FLOP", "bytes", "kernels",
        "roofline floor", "step / roofline", "launch floor", "step / launch", "highest floor",
    ]  # fmt: skip
    notes = [_rates(run) for run in runs if run.roofline]
    conventions = (text for run in runs if run.roofline for text in run.roofline["conventions"])
    missing = (
        f"{words}: {case['id']}: {case['reason']}."
        for run in runs
        for key, words in (("unsupported", "Not supported"), ("failed", "Failed"))
        for case in run.roofline.get(key, ())
    )
    return [Table(SECTION, columns, rows, [*notes, *dict.fromkeys(conventions), *missing])]


def _row(name: str, entry: Mapping[str, Any]) -> list[Cell]:
    seconds, counts, floors = entry["seconds"], entry["counts"], entry["floor_seconds"]
    flops = counts["matmul_flops"] + counts["pointwise_flops"]
    products = f"{format_number(counts['matmul_flops'])} in products of matrices"
    cells = [Cell(name, name)]
    cells += [Cell(format_seconds(seconds[part]), seconds[part]) for part in _TIMES]
    cells += [
        Cell(format_number(flops), flops, products),
        Cell(format_bytes(counts["bytes"]), counts["bytes"]),
        Cell(f"{counts['calls']:,}", counts["calls"], f"and {counts['free']:,} views"),
    ]
    for floor in ("roofline", "launch"):
        cells.append(Cell(format_seconds(floors[floor]), floors[floor]))
        ratio = entry["ratio"].get(floor)
        cells.append(
            Cell(DASH, 1e300, "the floor is zero", "null")
            if ratio is None
            else Cell(f"{format_number(ratio)} ×", ratio)
        )
    return [*cells, Cell(entry["bound"], entry["bound"])]


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
