"""One training step: its time, its memory, what its gradient is worth; then the training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench import device
from bench.case import Case
from bench.failures import ran_out
from bench.plugins import shown
from bench.probes.probe import Hooks, Probe

if TYPE_CHECKING:
    from bench.measure import Step as Body

#: what the trackers of tensors count
_COUNTS = ("peak_live_tensor_bytes", "saved_tensor_bytes")
#: figures beside a step's own, each with a pass of its own
_DIAGNOSTICS = (
    *("gradient_cosine", "gradient_error", "control_error", "linear_residual", "reversible_drift"),
)


@dataclass(frozen=True, kw_only=True)
class Step(Probe):
    """What `bench run` measures of a case; its record has every field of the schema."""

    def timed(self, case: Case) -> bool:
        return case.timed or case.recipe is not None

    def measure(self, record: dict[str, Any], case: Case, seed: int, hooks: Hooks) -> None:
        from bench import build, measure

        build.check_device(case.device)
        reasons = record["null_reasons"]
        if case.device == "cuda":
            if not case.timed:
                device.tensors_alone()
            record["cuda"]["context_bytes"], reason = hooks.context()
            if reason is not None:
                reasons["cuda.context_bytes"] = reason
        step = measure.Step(case, seed)
        if not case.inner_problem:
            for name in ("iterations", "residual", "tolerance_reached", *_DIAGNOSTICS[:3]):
                reasons[name] = f"{shown(case.gradient)} solves no inner problem"
        elif not step.rolls_out:
            for name in ("iterations", "residual", "tolerance_reached", *_DIAGNOSTICS[:2]):
                reasons[name] = "a step fits reference trajectories and rolls nothing out"
        elif case.tolerance is None:
            reasons["tolerance_reached"] = "fixed number of iterations, no tolerance asked for"
        _time(record, case, step)
        if case.device == "cuda":
            record["cuda"] |= measure.cuda_memory(step)
            if case.compile and case.timed:
                record["cuda"]["busy_seconds"] = measure.busy_seconds(step)
            else:
                reasons["cuda.busy_seconds"] = "not a timed compiled case"
        else:
            for name in record["cuda"]:
                reasons[f"cuda.{name}"] = "a CPU case: no CUDA device in it"
        # Before the trackers of the memory pass, which have a footprint of their own.
        record["peak_rss_bytes"] = measure.peak_rss_bytes()
        hooks.measured()
        if not _count(record, case, step):
            record["status"], record["reason"] = "diverged", "the rollout's cost is not finite"
        elif case.train_steps or case.recipe is not None:
            _train(record, case, seed, step)
        else:
            parts = [
                (p, n) for p in ("final", "evaluation", "pretraining_seconds") for n in record[p]
            ]
            names = ("curve", "interventions", "bias", "cpu_share.training", *map(".".join, parts))
            reasons |= dict.fromkeys(names, "a case without training")


def _time(record: dict[str, Any], case: Case, step: Body) -> None:
    """Time the step, or at least run it where its memory depends on having been run."""
    from bench import measure

    reasons = record["null_reasons"]
    if case.timed:
        timing = measure.measure_time(step)
        record["step_seconds"] = measure.summarise(timing.step)
        record["cpu_share"]["step"] = timing.cpu_share
        record["forward_seconds"] = measure.summarise(timing.forward)["median"]
        record["backward_seconds"] = measure.summarise(timing.backward)["median"]
        if case.compile:
            record["compile_seconds"] = timing.first - record["step_seconds"]["median"]
    else:
        names = ("step_seconds", "forward_seconds", "backward_seconds", "compile_seconds")
        reasons |= dict.fromkeys((*names, "cpu_share.step"), "a memory-only case")
        # An eager step on a GPU allocates the first time what it always does; a compiled one also
        # what compiling and capturing take.
        for _ in range(1 if case.device == "cpu" else measure.WARM_UP * case.compile):
            step()
    if case.compile:
        from jfbcore.extras.compiled_rollout import CompiledRollout

        rollout = step.rollout
        record["native_kernels"] = isinstance(rollout, CompiledRollout) and rollout.native_kernels
    else:
        reason = step.policy.supports_compiled_rollout() or "it was not asked for"
        compiled = ("compile_seconds", "native_kernels")
        reasons |= dict.fromkeys(compiled, f"not a compiled case: {reason}")


def _count(record: dict[str, Any], case: Case, step: Body) -> bool:
    """Exact bytes, iterations and what the gradient is worth; whether the step is finite."""
    from bench import errors, measure

    reasons = record["null_reasons"]
    uncounted = device.uncounted_reason(case)
    found = measure.measure_memory(step) if uncounted is None else measure.outcome(step)
    step.clear()
    finite = found.pop("finite")
    record |= found
    record["tolerance_reached"] = measure.tolerance_reached(step.policy, record["residual"])
    for name in ("iterations", "residual"):
        if record[name] is not None:  # whatever was said of the method's inner problem
            reasons.pop(name, None)
    if uncounted is not None:
        for name in (*_COUNTS, *_DIAGNOSTICS):
            reasons.setdefault(name, uncounted)
        return finite
    if case.compile:
        hidden = "compiled kernels allocate where no tracker of operations can see"
        reasons |= dict.fromkeys(_COUNTS, hidden)
    reasons.setdefault("linear_residual", "not implicit differentiation by the suite's own solvers")
    reasons.setdefault("reversible_drift", "the gradient inverts no iteration")
    for name in _DIAGNOSTICS:
        module = errors if name in ("gradient_error", "control_error") else measure
        _diagnose(record, name, getattr(module, name), step)
    return finite


def _diagnose(
    record: dict[str, Any], name: str, diagnostic: Callable[[Body], Any], step: Body
) -> None:
    """A figure beside the step's own, with a memory of its own: null where that runs out."""
    try:
        record[name] = diagnostic(step)
    except Exception as error:
        if (shortage := ran_out(error)) is None:
            raise
        record["null_reasons"][name] = f"memory ran out beside the step: {shortage}"
    if record[name] is not None:
        record["null_reasons"].pop(name, None)


def _train(record: dict[str, Any], case: Case, seed: int, step: Body) -> None:
    from bench import training

    # Captured graphs as they were built for the step, which has left the parameters alone; what
    # that took is in `compile_seconds`, not on the clock.
    built: dict[str, Any] = {"policy": step.policy, "rollout": step.rollout} if case.capture else {}
    run = training.prepare(case, seed, training.config(case, seed), **built)
    training.train(record, case, run, step.states)
