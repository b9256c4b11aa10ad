"""Which cases are profiled, and the object that holds them all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from bench.jobs import Job
from bench.probes.roofline import Roofline
from bench.roofline.case import with_floors
from bench.roofline.parts import PARTS
from bench.roofline.rates import MachineRates, best
from bench.selection import grid

SCHEMA_VERSION = 1
#: sizes profiled where none are asked for
DEFAULT_SIZES = {"quadrotor": (1, 20, 100), "bicycle": (20,), "consumption": (100,)}
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
