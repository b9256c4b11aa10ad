"""Training runs that are measured as they go."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from baselines import Unrolled
from bench.build import build, exact_estimator
from bench.case import Case
from bench.diagnostics import angle, policy_gradient
from bench.recipes import training_config
from bench.trace import Trace
from bench.verify.scope import Run
from jfbcore.held_out import held_out_states
from jfbcore.policy import HamiltonianPolicy
from jfbcore.train import Training, TrainingConfig

Row = dict[str, Any]


def trace(run: Run, seed: int) -> list[Row]:
    """Rows of `bench.trace.Trace` along one run, the first before any step.

    A run that diverges, or parameters at which the map cannot be measured, leave a row with the
    reason and nulls.
    """
    case = run.case
    policy = build(case, seed)
    assert isinstance(policy, HamiltonianPolicy)
    watcher = Trace(
        exact_estimator(case),
        held_out_states(policy.problem, run.states),
        minibatch_size=run.minibatch,
        map_every=run.map_every,
    )
    rows: list[Row] = []
    truncated = run.recipe == "released"

    def record(step: int) -> None:
        row: Row = {"step": step, **watcher.measure_gradients(policy), "reason": None}
        if truncated:
            row |= _against_applied(policy, watcher.states[: run.minibatch])
        try:
            row |= watcher.measure_map(policy)
        except torch.linalg.LinAlgError as error:  # a decomposition of what is not finite
            row["reason"] = f"the map cannot be measured: {str(error).splitlines()[0]}"
        rows.append(row)

    def watch(training: Training) -> None:
        if training.step % run.interval == 0:
            record(training.step)

    record(0)
    training = Training(policy, _config(run, seed), callback=watch)
    result = training.run()
    if result.reason is not None:
        rows.append({"step": result.steps, "reason": f"{result.status}: {result.reason}"})
    head = {
        "run": run.label,
        "problem": case.problem,
        "n_agents": case.n_agents,
        "variant": run.variant,
        "network": case.network,
        "step_size": case.step_size,
        "tolerance": policy.solver.tolerance,
        "max_iterations": case.max_iterations,
        "minibatches": run.states // run.minibatch,
        "minibatch_size": run.minibatch,
        "seed": seed,
    }
    rejected = len(result.interventions)
    return [head | row | {"rejected_steps": rejected} for row in rows]


def _against_applied(policy: HamiltonianPolicy, states: Tensor) -> Row:
    """JFB against the derivative of the iteration as it is run, one minibatch.

    Where an inner solve stops far from the fixed point the implicit gradient takes the control
    applied for one, which it is not; unrolling differentiates the iteration that led to it.
    """
    jfb = policy_gradient(policy, states)
    applied = policy_gradient(policy, states, Unrolled())
    ratio = (jfb.norm() / applied.norm()).item()
    return {"angle_applied": angle(jfb, applied), "norm_ratio_applied": ratio}


def _config(run: Run, seed: int) -> TrainingConfig:
    # The trace scores the policy itself: the training's own evaluations are only in the way.
    few: dict[str, Any] = {"evaluations": 1, "held_out": 1}
    config = training_config(run.case, steps=run.case.train_steps, seed=seed, recipe=run.recipe)
    return TrainingConfig(**{**vars(config), **few})


def descend(case: Case, steps: int, interval: int, seed: int) -> list[Row]:
    """True gradient norms along SGD with JFB and with exact gradients, from the same theta.

    Plain SGD with the same minibatches and the same step size for both: 0.01 of the norm of theta
    over the norm of the first true gradient, decaying as 1/sqrt(k), each gradient clipped to
    that first norm. Stops with a reason where a gradient is not finite.
    """
    rows: list[Row] = []
    for name, estimator in (("jfb", None), ("exact", exact_estimator(case))):
        policy = build(case, seed)
        assert isinstance(policy, HamiltonianPolicy)
        fixed = held_out_states(policy.problem, 16)
        generator = torch.Generator().manual_seed(seed)
        scale = policy_gradient(policy, fixed, exact_estimator(case)).norm()
        size = torch.cat([p.detach().flatten() for p in policy.parameters()]).norm()
        head = {"problem": case.problem, "n_agents": case.n_agents, "sgd": name, "seed": seed}
        for k in range(steps + 1):
            if k % interval == 0:
                true = policy_gradient(policy, fixed, exact_estimator(case)).norm().item()
                rows.append(head | {"step": k, "true_gradient_norm": true, "reason": None})
            states = policy.problem.sample_initial_states(case.batch_size, generator)
            gradient = policy_gradient(policy, states, estimator)
            if not bool(gradient.isfinite().all()):
                reason = "the minibatch gradient is not finite"
                rows.append(head | {"step": k, "true_gradient_norm": None, "reason": reason})
                break
            clip = min(1.0, (scale / gradient.norm()).item())
            _move(policy, gradient, clip * (0.01 * size / scale / (k + 1) ** 0.5).item())
    return rows


@torch.no_grad()
def _move(policy: HamiltonianPolicy, gradient: Tensor, step: float) -> None:
    parameters = list(policy.parameters())
    parts = gradient.split([p.numel() for p in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.sub_(step * part.view_as(parameter).to(parameter.dtype))
