"""Which cases are profiled, and the object that holds them all."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import torch
from tqdm import tqdm

from bench.build import DTYPES, Unsupported
from bench.case import REPEATS, Case
from bench.environment import describe
from bench.failures import words_of
from bench.registry import default_batch, default_steps
from bench.roofline.case import profile_case
from bench.roofline.parts import PARTS
from bench.roofline.rates import machine_rates

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
    "operator on one element. Rates are the best of many repeats, taken in the same call.",
)


def cases(
    problems: Sequence[str] | None,
    sizes: Sequence[int] | None,
    gradients: Sequence[str],
    *,
    batch_size: int | None = None,
    n_steps: int | None = None,
    device: str = "cpu",
) -> list[Case]:
    """Every combination; None takes all problems, each problem's sizes, its batch, its steps."""
    return [
        Case(
            problem=problem,
            n_agents=n_agents,
            gradient=gradient,
            batch_size=default_batch(problem) if batch_size is None else batch_size,
            n_steps=default_steps(problem) if n_steps is None else n_steps,
            device=device,
        )
        for problem in problems or DEFAULT_SIZES
        for n_agents in sizes or DEFAULT_SIZES.get(problem, (1,))
        for gradient in gradients
    ]


def profile(selected: Sequence[Case], *, repeats: int = REPEATS) -> dict[str, Any]:
    """The content of roofline.json. A case that is not supported, or fails, is listed with its
    reason; the others stay.
    """
    started = datetime.now(UTC).isoformat(timespec="seconds")
    found: list[dict[str, Any]] = []
    unsupported: list[dict[str, str]] = []
    failed: list[dict[str, str]] = []
    with tqdm(total=1 + len(selected), unit="case", file=sys.stderr) as bar:
        bar.set_postfix_str("rates of this machine")
        rates = machine_rates(selected[0].device, DTYPES[selected[0].dtype])
        bar.update()
        for case in selected:
            bar.set_postfix_str(case.id)
            try:
                found.append(profile_case(case, rates, repeats=repeats))
            except Unsupported as reason:
                unsupported.append({"id": case.id, "reason": reason.reason})
            except (RuntimeError, MemoryError) as error:
                # Out of memory above all, on the host or the device.
                failed.append({"id": case.id, "reason": words_of(error)})
            bar.update()
    return {
        "schema_version": SCHEMA_VERSION,
        "environment": describe(None, torch.get_num_threads(), started),
        "conventions": list(CONVENTIONS),
        "part_names": dict(PARTS),
        "rates": asdict(rates),
        "cases": found,
        "unsupported": unsupported,
        "failed": failed,
    }
