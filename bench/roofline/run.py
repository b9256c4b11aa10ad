"""Which cases are profiled, and what is made of their records: one object, files, text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from bench.jobs import Job
from bench.probes.roofline import Roofline
from bench.records import write_csv, write_json
from bench.report.figures.roofline import profile_entries, roofline_tables
from bench.report.load import Run
from bench.report.style import format_bytes, format_seconds
from bench.roofline.case import with_floors
from bench.roofline.parts import PARTS
from bench.roofline.rates import MachineRates, best
from bench.selection import grid

SCHEMA_VERSION = 1
#: sizes profiled where none are asked for
DEFAULT_SIZES = {"quadrotor": (1, 20, 100), "bicycle": (20,), "consumption": (100,)}
_CASE = ("id", "problem", "n_agents", "gradient", "batch_size", "n_steps", "dtype", "device")
#: how the columns of the table of parts are written
_FORMATS = {"seconds": format_seconds, "share": "{:.1%}".format, "bytes": format_bytes}
CONVENTIONS = (
    "A step is rollout, backward pass and update (clipping and Adam), eager, on fixed parameters; "
    "its time is the median of forward and backward plus the median update.",
    "Parts are timed in a pass of their own by the host's clock and scaled so that a phase's parts "
    "add up to its median; a backward part is the nodes its forward part made.",
    "FLOPs: two per multiply-add in products of matrices, one per element written elsewhere. "
    "Bytes: what each operator reads and writes, as if nothing stayed in a cache.",
    "Kernels are dispatched operators that are neither views nor allocations.",
    "Roofline floor: FLOPs at the faster of the product rates on a large square and on the step's "
    "own shapes, or bytes at the faster of the copy rates on a large tensor and at the size of a "
    "mean operator, whichever takes longer. Launch floor: kernels times the seconds of one "
    "operator on one element. Rates are the best of many repeats beside each of the cases.",
)


def jobs(
    problems: Sequence[str] | None,
    sizes: Sequence[int] | None,
    gradients: Sequence[str],
    *,
    repeats: int,
    **settings: Any,
) -> list[Job]:
    """Every combination; None takes all problems, each problem's sizes. `settings`: as for a grid,
    and further fields of every case.
    """
    found = (
        grid([problem], agents=sizes or DEFAULT_SIZES.get(problem, (1,)), gradients=gradients,
             **settings)
        for problem in problems or DEFAULT_SIZES
    )  # fmt: skip
    return [Job(case=case, probe=Roofline(repeats=repeats)) for part in found for case in part]


def assemble(
    records: Sequence[Mapping[str, Any] | None], environment: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of roofline.json. A case that is not supported, or failed, is listed with its
    reason; one without a record is not.
    """
    measured = [record for record in records if record is not None]
    profiles = [record["profile"] for record in measured if record["profile"] is not None]
    rates = best([MachineRates(**profile["rates"]) for profile in profiles]) if profiles else None
    refused: dict[str, list[dict[str, str]]] = {"unsupported": [], "failed": []}
    for record in measured:
        if record["profile"] is None:
            kind = "unsupported" if record["status"] == "unsupported" else "failed"
            refused[kind].append({"id": record["case"]["id"], "reason": record["reason"]})
    return {
        "schema_version": SCHEMA_VERSION,
        "environment": dict(environment),
        "conventions": list(CONVENTIONS),
        "part_names": dict(PARTS),
        "rates": rates and asdict(rates),
        "cases": [with_floors(profile, rates) for profile in profiles] if rates else [],
        **refused,
    }


def write(result: Mapping[str, Any], directory: Path) -> Path:
    """Write roofline.csv, roofline-parts.csv and roofline.json, each atomically; the last's path.

    The JSON comes last: where it is, the tables are of the same run.
    """
    cases, parts = [], []
    for entry in result["cases"]:
        lead = {name: entry["case"][name] for name in _CASE}
        # Units in the column names.
        seconds = {f"{name}_seconds": value for name, value in entry["seconds"].items()}
        floors = {f"{name}_floor_seconds": value for name, value in entry["floor_seconds"].items()}
        ratios = {f"{name}_ratio": entry["ratio"].get(name) for name in entry["floor_seconds"]}
        counts = entry["counts"] | entry["own_rates"]
        cases.append(lead | seconds | counts | floors | ratios | {"bound": entry["bound"]})
        parts += [lead | part for part in entry["parts"]]
    for name, rows in (("roofline.csv", cases), ("roofline-parts.csv", parts)):
        write_csv(directory / name, list(rows[0]) if rows else [], [[*r.values()] for r in rows])
    path = directory / "roofline.json"
    write_json(path, dict(result))
    return path


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """For a terminal: the page's table of cases, the rates, then each case's parts, the longest
    first."""
    run = Run(name="rates", directory=Path(), environment={}, records=(), roofline=result)
    for table in roofline_tables([run]):
        yield pd.DataFrame(table.texts(), columns=list(table.columns)).to_string(index=False)
        yield table.notes[0]
    for name, entry in profile_entries([run]):
        own = entry["own_rates"]
        product = own["product_flops_per_second"]
        yield (
            f"\n{name}: own shapes "
            f"{'no products' if product is None else f'{product / 1e9:.1f} GFLOP/s'}, "
            f"copy {own['copy_bytes_per_second'] / 1e9:.1f} GB/s at "
            f"{format_bytes(own['operator_bytes'])} per operator"
        )
        parts = pd.DataFrame(entry["parts"]).sort_values("seconds", ascending=False)
        yield parts.to_string(index=False, formatters=_FORMATS)
    for kind, words in (("unsupported", "not supported"), ("failed", "failed")):
        yield from (f"{words}: {one['id']}: {one['reason']}" for one in result[kind])


def summary(result: Mapping[str, Any]) -> dict[str, Any]:
    """What a script wants to know; the rest is in the file."""
    names = ("seconds", "counts", "own_rates", "floor_seconds", "ratio", "bound")
    cases = [
        {
            "id": entry["case"]["id"],
            **{name: entry[name] for name in names},
            "parts": {f"{part['phase']}: {part['part']}": part["seconds"]
                      for part in entry["parts"]},
        }
        for entry in result["cases"]
    ]  # fmt: skip
    kept = {name: result[name] for name in ("schema_version", "rates", "unsupported", "failed")}
    return kept | {"threads": result["environment"]["threads"], "cases": cases}
