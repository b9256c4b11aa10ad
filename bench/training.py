"""Training a case: the one place that does it, and that writes its curve into a record."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from bench import recipes
from bench.build import build, build_rollout
from bench.case import Case
from bench.errors import BiasTrace
from bench.gap import Gaps, gaps
from bench.measure import tolerance_reached
from bench.pretraining import Pretraining
from jfbcore.policy import Policy
from jfbcore.rollout import Rollout
from jfbcore.train import Evaluation, Training, TrainingConfig

#: evaluations of a run whose time to target is read off its curve
_TARGET_EVALUATIONS = 100
#: the same on a GPU, where evaluating, eager, takes as long as a hundred captured training steps
_GPU_EVALUATIONS = 20


def config(case: Case, seed: int, recipe: str | None = None, **changes: Any) -> TrainingConfig:
    """How a case trains: for `case.train_seconds` on its own recipe or for `case.train_steps`
    steps, on `recipe` or, without one, on the defaults. `changes`: fields of the configuration.
    """
    if case.recipe is not None:
        found = replace(
            recipes.training_config(
                case,
                time_limit=case.train_seconds,
                seed=seed,
                recipe=case.recipe,
                learning_rate=case.learning_rate,
            ),
            evaluations=_GPU_EVALUATIONS if case.device == "cuda" else _TARGET_EVALUATIONS,
        )
    elif recipe is not None:
        found = recipes.training_config(case, steps=case.train_steps, seed=seed, recipe=recipe)
    else:
        found = TrainingConfig(
            steps=case.train_steps,
            batch_size=case.batch_size,
            evaluations=2 if case.train_steps < 100 else 10,
            seed=seed,
        )
    return replace(found, **changes)


def prepare(
    case: Case,
    seed: int,
    config: TrainingConfig,
    *,
    policy: Policy | None = None,
    rollout: Callable[..., Rollout] | None = None,
    **options: Any,
) -> Training:
    """A training run of `case`, of its own policy or of the one given; raises Unsupported.

    `options`: further arguments of `Training`.
    """
    policy = build(case, seed) if policy is None else policy
    rollout = build_rollout(case, policy) if rollout is None else rollout
    return Training(policy, config, rollout=rollout, **options)


def train(
    record: dict[str, Any], case: Case, training: Training, states: Tensor | None = None
) -> float | None:
    """Run it and fill all that a record says of a training, status and reason where it diverged;
    the median seconds of a training step. `states`: where the gradient's bias is followed, if
    anywhere.
    """
    reasons = record["null_reasons"]
    bias = None
    reason = BiasTrace.reason_against(case)
    if states is not None and reason is None:
        bias = BiasTrace(case, states)
        bias.take(training.policy, 0)
        training.hooks.append(bias)
    elif "bias" in record:
        reasons["bias"] = reason or "not followed"
    pretraining = Pretraining.begin(case, training)
    began, had = time.perf_counter(), time.process_time()
    result = training.run()
    worked = (time.process_time() - had) / (time.perf_counter() - began)
    if "cpu_share" in record:
        record["cpu_share"]["training"] = worked
    if bias is not None:
        bias.take(training.policy, result.steps)
        record["bias"] = bias.rows or None
    if pretraining is not None:
        result = pretraining.counted(result)
        record["pretraining_seconds"] = pretraining.seconds
    else:
        for name in record.get("pretraining_seconds") or ():
            reasons[f"pretraining_seconds.{name}"] = "learns from the cost alone"
    gap = gaps(training.policy.problem)
    record["curve"] = [
        {
            "seconds": point.seconds,
            "step": point.step,
            "loss": point.loss,
            "evaluation_cost": point.evaluation_cost,
            "optimality_gap": gap.of(point.costs),
        }
        for point in result.curve
    ]
    last = record["curve"][-1]
    record["final"] |= {name: last[name] for name in record["final"] if name in last}
    record["final"]["state_costs"] = list(result.curve[-1].costs)
    record["final"]["state_references"] = references = gap.best(result.curve[-1].costs)
    if references is not None and None in references:
        reasons["final.state_references"] = "no reference for this state"
    found = evaluation(training.policy, result.curve[-1], gap)
    record["evaluation"] = found
    if gap.reason is not None:
        names = ("final.optimality_gap", "curve.optimality_gap", "evaluation.reference_states")
        reasons |= dict.fromkeys((*names, "final.state_references"), gap.reason)
    for name in ("iterations", "residual", "tolerance_reached"):
        if found[name] is None and name in reasons:
            reasons[f"evaluation.{name}"] = reasons[name]
    record["interventions"] = len(result.interventions)
    if result.status != "ok":
        record["status"], record["reason"] = result.status, result.reason
    return result.median_step_seconds


def evaluation(policy: Policy, point: Evaluation, gaps: Gaps) -> dict[str, Any]:
    """What the costs of a point of the curve rest on: the `evaluation` part of a record."""
    residual = point.inner["residual"] if point.inner else None
    return {
        "states": len(point.costs),
        "reference_states": gaps.states(point.costs),
        "iterations": point.inner["iterations"] if point.inner else None,
        "residual": residual,
        "tolerance_reached": tolerance_reached(policy, residual),
    }
