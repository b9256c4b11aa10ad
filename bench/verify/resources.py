"""Bytes, seconds and sizes: what the claims on memory, cost and scale rest on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bench.build import Unsupported, build
from bench.case import DEFAULT_BATCH, DEFAULT_STEPS, Case
from bench.gap import gaps
from bench.measure import Step, measure_memory
from bench.predict import fit
from bench.recipes import training_config
from jfbcore.train import Training

Row = dict[str, Any]

#: unrolling with the network inside the map
NETWORK = "unrolled-network"
#: device memories in bytes, by what is printed on the box
MACHINES = {"24 GB": 24e9, "141 GB": 141e9}


def memory_rows(case: Case, iterations: tuple[int, ...]) -> list[Row]:
    """Saved and peak live bytes of jfb and both ways of unrolling at exactly K iterations."""
    rows = []
    for count in iterations:
        exact = replace(case, tolerance=None, max_iterations=count)
        for gradient in ("jfb", "unrolled", NETWORK):
            found = measure_memory(Step(replace(exact, gradient=gradient)))
            rows.append({"problem": case.problem, "n_agents": case.n_agents, "K": count,
                         "batch_size": case.batch_size, "n_steps": case.n_steps,
                         "gradient": gradient, "saved_bytes": found["saved_tensor_bytes"],
                         "peak_bytes": found["peak_live_tensor_bytes"]})  # fmt: skip
    return rows


def crossover_rows(case: Case, gradient: str) -> list[Row]:
    """The K at which a step at full batch and horizon outgrows each machine; null for never."""
    model = fit(replace(case, gradient=gradient, tolerance=None, max_iterations=1))
    size = (DEFAULT_BATCH[case.problem], DEFAULT_STEPS[case.problem])
    head = {"problem": case.problem, "n_agents": case.n_agents, "gradient": gradient,
            "batch_size": size[0], "n_steps": size[1], "model_error": model.error,
            "bytes_at_500": model.predict(*size, 500)}  # fmt: skip
    rows = []
    for machine, memory in MACHINES.items():
        count = model.crossover(*size, memory)
        never = count == float("inf")
        rows.append(head | {"machine": machine, "crossover": None if never else count})
    return rows


def race(case: Case, seconds: float, seed: int) -> list[Row]:
    """The held-out cost against training seconds; one row with a reason where it cannot run."""
    head = {"problem": case.problem, "n_agents": case.n_agents, "gradient": case.gradient,
            "seed": seed}  # fmt: skip
    try:
        policy = build(case, seed)
    except Unsupported as unsupported:
        return [head | {"seconds": None, "cost": None, "reason": unsupported.reason}]
    config = replace(training_config(case, time_limit=seconds, seed=seed), held_out=16)
    result = Training(policy, config).run()
    gap = gaps(policy.problem)
    return [
        head | {"seconds": p.seconds, "step": p.step, "cost": p.evaluation_cost,
                "gap": gap.of(p.costs), "reason": result.reason}
        for p in result.curve
    ]  # fmt: skip


def scale_rows(case: Case, seed: int) -> list[Row]:
    """Held-out cost along a short run at full size."""
    policy = build(case, seed)
    config = replace(
        training_config(case, steps=case.train_steps, seed=seed),
        coarsening=(), evaluations=4, held_out=16,
    )  # fmt: skip
    result = Training(policy, config).run()
    seconds = result.median_step_seconds
    return [
        {"problem": case.problem, "n_agents": case.n_agents, "seed": seed, "step": p.step,
         "cost": p.evaluation_cost, "step_seconds": seconds, "batch": case.batch_size,
         "status": result.status, "reason": result.reason}
        for p in result.curve
    ]  # fmt: skip
