"""The profile as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench.report.style import format_bytes, format_number, format_seconds


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """Rates, one line per case, then each case's parts, the longest first."""
    if (rates := result["rates"]) is not None:
        yield from _rate_lines(rates, result["environment"]["threads"])
        yield from _case_lines(result["cases"])
    for missing in result["unsupported"]:
        yield f"not supported: {missing['id']}: {missing['reason']}"
    for missing in result["failed"]:
        yield f"failed: {missing['id']}: {missing['reason']}"


def _rate_lines(rates: Mapping[str, Any], threads: int) -> Iterator[str]:
    yield (
        f"product {rates['square_flops_per_second'] / 1e9:.1f} GFLOP/s (large square), "
        f"copy {rates['copy_bytes_per_second'] / 1e9:.1f} GB/s (read + written), "
        f"operator {format_seconds(rates['operator_seconds'])}, "
        f"with a graph {format_seconds(rates['tracked_forward_seconds'])} + "
        f"{format_seconds(rates['tracked_backward_seconds'])} backward, "
        f"view {format_seconds(rates['view_seconds'])}; "
        f"{threads} threads"
    )
    yield ""


def _case_lines(cases: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield (
        f"{'case':34s} {'step':>8s} {'forward':>8s} {'backward':>8s} {'update':>8s} {'GFLOP':>7s} "
        f"{'bytes':>9s} {'kernels':>8s} {'roofline':>8s} {'x':>6s} {'launch':>8s} {'x':>6s}  bound"
    )
    for entry in cases:
        yield _case_line(entry)
    for entry in cases:
        own = entry["own_rates"]
        product = own["product_flops_per_second"]
        yield ""
        yield (
            f"{label(entry)}: own shapes "
            f"{'no products' if product is None else f'{product / 1e9:.1f} GFLOP/s'}, "
            f"copy {own['copy_bytes_per_second'] / 1e9:.1f} GB/s at "
            f"{format_bytes(own['operator_bytes'])} per operator"
        )
        for part in sorted(entry["parts"], key=lambda part: -part["seconds"]):
            yield _part_line(part)


def label(entry: Mapping[str, Any]) -> str:
    """A case in a few words."""
    case = entry["case"]
    words = f"{case['problem']} {case['n_agents']}, {case['gradient']}"
    return words if case["device"] == "cpu" else f"{words}, {case['device']}"


def _case_line(entry: Mapping[str, Any]) -> str:
    seconds, counts, floors = entry["seconds"], entry["counts"], entry["floor_seconds"]
    times = (format_seconds(seconds[name]) for name in ("step", "forward", "backward", "optimiser"))
    flops = counts["matmul_flops"] + counts["pointwise_flops"]
    return (
        f"{label(entry):34s} {' '.join(f'{text:>8s}' for text in times)} {flops / 1e9:7.2f} "
        f"{format_bytes(counts['bytes']):>9s} {counts['calls']:8,d} "
        f"{format_seconds(floors['roofline']):>8s} {_ratio(entry, 'roofline'):>6s} "
        f"{format_seconds(floors['launch']):>8s} {_ratio(entry, 'launch'):>6s}  {entry['bound']}"
    )


def _ratio(entry: Mapping[str, Any], floor: str) -> str:
    value = entry["ratio"].get(floor)
    return "-" if value is None else format_number(value)


def _part_line(part: Mapping[str, Any]) -> str:
    flops = part["matmul_flops"] + part["pointwise_flops"]
    return (
        f"  {part['phase']:9s} {part['part']:22s} {format_seconds(part['seconds']):>8s} "
        f"{part['share']:6.1%} {part['calls']:7,d} kernels {part['free']:7,d} views "
        f"{flops / 1e6:9.1f} MFLOP {format_bytes(part['bytes']):>9s}"
    )
