"""`pytest bench --benchmark-only`: the smoke cases under pytest-benchmark.

Groups put the gradients of one problem side by side. With `--benchmark-disable`, as in
`make test`, every case runs once and is not timed. In the JSON `extra_info` has the case's fields,
memory, iterations and residual, one a key; bench/conftest.py prints some of it below the times.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import pytest

from bench.case import REPEATS, Case
from bench.presets import smoke

CASES = [case for case in smoke() if case.timed]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_smoke(benchmark, case: Case) -> None:
    import torch

    from bench import measure
    from bench.build import Unsupported
    from bench.environment import default_threads

    if case.device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    torch.set_num_threads(default_threads())
    try:
        step = measure.Step(case)
    except Unsupported as unsupported:
        pytest.skip(unsupported.reason)
    benchmark.group = f"{case.problem} {case.variant} n={case.n_agents}"
    if benchmark.enabled:
        # Memory in a pass of its own, before the timed one.
        found = measure.measure_memory(step)
        reached = measure.tolerance_reached(step.policy, found["residual"])
        benchmark.extra_info |= _flat(asdict(case)) | {
            "threads": torch.get_num_threads(),
            **_flat({name: found[name] for name in ("iterations", "residual")}),
            "tolerance_reached": reached,
            "peak_live_tensor_bytes": found["peak_live_tensor_bytes"],
            "saved_tensor_bytes": found["saved_tensor_bytes"],
        }
    # Dropping the last graph is no part of a step: it is done before each round.
    cost = benchmark.pedantic(step, setup=step.clear, rounds=REPEATS, warmup_rounds=measure.WARM_UP)
    assert math.isfinite(cost), f"the rollout's cost is {cost}"


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """{"residual": {"max": 1.0}} as {"residual_max": 1.0}."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        parts = (
            {f"{name}_{part}": v for part, v in value.items()} if isinstance(value, dict) else {}
        )
        flat |= parts or {name: value}
    return flat
