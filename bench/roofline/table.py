"""The profile as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from bench.report.style import format_bytes, format_number, format_seconds

_TIMES = ("step", "forward", "backward", "optimiser")


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """Rates, one line per case, then each case's parts, the longest first."""
    if (rates := result["rates"]) is not None:
        yield (
            f"product {rates['square_flops_per_second'] / 1e9:.1f} GFLOP/s (large square), "
            f"copy {rates['copy_bytes_per_second'] / 1e9:.1f} GB/s (read + written), "
            f"operator {format_seconds(rates['operator_seconds'])}, "
            f"with a graph {format_seconds(rates['tracked_forward_seconds'])} + "
            f"{format_seconds(rates['tracked_backward_seconds'])} backward, "
            f"view {format_seconds(rates['view_seconds'])}; "
            f"{result['environment']['threads']} threads\n"
        )
        yield _text([_case(entry) for entry in result["cases"]])
    for entry in result["cases"]:
        own = entry["own_rates"]
        product = own["product_flops_per_second"]
        yield (
            f"\n{label(entry)}: own shapes "
            f"{'no products' if product is None else f'{product / 1e9:.1f} GFLOP/s'}, "
            f"copy {own['copy_bytes_per_second'] / 1e9:.1f} GB/s at "
            f"{format_bytes(own['operator_bytes'])} per operator"
        )
        yield _text([_part(part) for part in sorted(entry["parts"], key=lambda p: -p["seconds"])])
    for kind, words in (("unsupported", "not supported"), ("failed", "failed")):
        yield from (f"{words}: {one['id']}: {one['reason']}" for one in result[kind])


def label(entry: Mapping[str, Any]) -> str:
    """A case in a few words."""
    case = entry["case"]
    words = f"{case['problem']} {case['n_agents']}, {case['gradient']}"
    return words if case["device"] == "cpu" else f"{words}, {case['device']}"


def _text(rows: Sequence[Mapping[str, str]]) -> str:
    return pd.DataFrame(rows).to_string(index=False)


def _case(entry: Mapping[str, Any]) -> dict[str, str]:
    floors, ratio = entry["floor_seconds"], entry["ratio"]
    row = {"case": label(entry)}
    row |= {name: format_seconds(entry["seconds"][name]) for name in _TIMES}
    row |= _counts(entry["counts"])
    for name in ("roofline", "launch"):
        row[f"{name} floor"] = format_seconds(floors[name])
        row[f"step / {name}"] = format_number(ratio[name]) if name in ratio else "-"
    return row | {"highest": entry["bound"]}


def _part(part: Mapping[str, Any]) -> dict[str, str]:
    return {
        "phase": part["phase"],
        "part": part["part"],
        "time": format_seconds(part["seconds"]),
        "share": f"{part['share']:.1%}",
        **_counts(part),
    }


def _counts(tally: Mapping[str, Any]) -> dict[str, str]:
    return {
        "MFLOP": f"{(tally['matmul_flops'] + tally['pointwise_flops']) / 1e6:.1f}",
        "bytes": format_bytes(tally["bytes"]),
        "kernels": f"{tally['calls']:,d}",
        "views": f"{tally['free']:,d}",
    }
