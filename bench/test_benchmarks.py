"""`pytest bench --benchmark-only`: the smoke cases under pytest-benchmark.

Groups put the gradients of one problem side by side. With `--benchmark-disable`, as in
`make test`, every case runs once and is not timed.
"""

from __future__ import annotations

import math

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
        inner = found["residual"]
        benchmark.extra_info |= {
            "threads": torch.get_num_threads(),
            "iterations": found["iterations"],
            "residual": inner,
            "tolerance_reached": measure.tolerance_reached(step.policy, inner),
            "peak_live_tensor_bytes": found["peak_live_tensor_bytes"],
            "saved_tensor_bytes": found["saved_tensor_bytes"],
        }
    # Dropping the last graph is no part of a step: it is done before each round.
    cost = benchmark.pedantic(step, setup=step.clear, rounds=REPEATS, warmup_rounds=measure.WARM_UP)
    assert math.isfinite(cost), f"the rollout's cost is {cost}"
