"""Training runs that are measured as they go, and races against the clock."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from baselines import DenseLU, Implicit
from bench.build import Unsupported, build
from bench.case import Case
from bench.gap import gaps
from bench.measure import Step, measure_memory
from bench.recipes import training_config
from bench.verify.scope import Run
from jfbcore.diagnostics import Trace, policy_gradient
from jfbcore.held_out import held_out_states
from jfbcore.policy import HamiltonianPolicy
from jfbcore.train import Training

Row = dict[str, Any]


def exact_estimator(case: Case) -> Implicit:
    """Implicit differentiation; dense where H may be indefinite and m is small."""
    return Implicit(DenseLU()) if case.problem == "bicycle" else Implicit()


def trace(run: Run, seed: int) -> list[Row]:
    """Rows of `jfbcore.diagnostics.Trace` along one run, the first before any step."""
    case = run.case
    policy = build(case, seed)
    assert isinstance(policy, HamiltonianPolicy)
    states = held_out_states(policy.problem, run.states)
    watcher = Trace(
        exact_estimator(case), states, interval=run.interval, minibatch_size=run.minibatch
    )
    config = replace(training_config(case, steps=case.train_steps, seed=seed), coarsening=())
    watcher.rows.append({"step": 0, **watcher.measure(policy)})
    Training(policy, config, callback=watcher).run()
    head = {"run": run.label, "problem": case.problem, "n_agents": case.n_agents}
    return [head | {"map": case.map, "step_size": case.step_size, "seed": seed} | row
            for row in watcher.rows]  # fmt: skip


def descend(case: Case, steps: int, interval: int, seed: int) -> list[Row]:
    """True gradient norms along SGD with JFB and with exact gradients, from the same theta.

    Plain SGD with the same minibatches and the same step size for both: 0.01 of the norm of theta
    over the norm of the first true gradient, decaying as 1/sqrt(k), each gradient clipped to
    that first norm.
    """
    rows: list[Row] = []
    for name, estimator in (("jfb", None), ("exact", exact_estimator(case))):
        policy = build(case, seed)
        assert isinstance(policy, HamiltonianPolicy)
        parameters = list(policy.parameters())
        fixed = held_out_states(policy.problem, 16)
        generator = torch.Generator().manual_seed(seed)
        scale = policy_gradient(policy, fixed, exact_estimator(case)).norm()
        size = torch.cat([p.detach().flatten() for p in parameters]).norm()
        for k in range(steps + 1):
            if k % interval == 0:
                true = policy_gradient(policy, fixed, exact_estimator(case)).norm().item()
                rows.append({"problem": case.problem, "n_agents": case.n_agents, "sgd": name,
                             "seed": seed, "step": k, "true_gradient_norm": true})  # fmt: skip
            states = policy.problem.sample_initial_states(case.batch_size, generator)
            gradient = policy_gradient(policy, states, estimator)
            gradient *= min(1.0, (scale / gradient.norm()).item())
            step = (0.01 * size / scale / (k + 1) ** 0.5).item()
            with torch.no_grad():
                parts = gradient.split([p.numel() for p in parameters])
                for parameter, part in zip(parameters, parts, strict=True):
                    parameter.sub_(step * part.view_as(parameter).to(parameter.dtype))
    return rows


def memory_rows(case: Case, iterations: tuple[int, ...]) -> list[Row]:
    """Saved and peak live bytes of jfb and of unrolled at exactly K iterations."""
    rows = []
    for count in iterations:
        for gradient in ("jfb", "unrolled"):
            exact = replace(case, gradient=gradient, tolerance=None, max_iterations=count)
            found = measure_memory(Step(exact))
            rows.append({"problem": case.problem, "n_agents": case.n_agents, "K": count,
                         "gradient": gradient, "saved_bytes": found["saved_tensor_bytes"],
                         "peak_bytes": found["peak_live_tensor_bytes"]})  # fmt: skip
    return rows


def race(case: Case, seconds: float, seed: int) -> list[Row]:
    """The held-out cost against training seconds; one row with a reason where it cannot run."""
    head = {"problem": case.problem, "n_agents": case.n_agents, "gradient": case.gradient,
            "seed": seed}  # fmt: skip
    try:
        policy = build(case, seed)
    except Unsupported as unsupported:
        return [head | {"seconds": None, "cost": None, "reason": unsupported.reason}]
    config = training_config(case, time_limit=seconds, seed=seed)
    result = Training(policy, config).run()
    gap_of, _ = gaps(policy.problem)
    return [
        head | {"seconds": p.seconds, "step": p.step, "cost": p.evaluation_cost,
                "gap": gap_of(p.costs), "reason": result.reason}
        for p in result.curve
    ]  # fmt: skip


def scale_rows(case: Case) -> list[Row]:
    """First and last held-out cost of a short run at full size."""
    policy = build(case, 0)
    config = replace(
        training_config(case, steps=case.train_steps), coarsening=(), evaluations=4, held_out=16
    )
    result = Training(policy, config).run()
    seconds = result.median_step_seconds
    return [
        {"problem": case.problem, "n_agents": case.n_agents, "step": p.step,
         "cost": p.evaluation_cost, "step_seconds": seconds, "batch": case.batch_size,
         "status": result.status}
        for p in result.curve
    ]  # fmt: skip
