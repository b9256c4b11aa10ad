"""The process that measures one case: reads it from standard input, writes one record.

`python -m bench.worker` is started by `bench.runner`, never by hand. It always writes a record,
whatever happens in the case; what it cannot write (killed, hung) the runner writes for it. Asked
to predict, it writes what the memory model says of the case instead; asked to build, it runs the
case's step once, for the compiler's caches on disk, and writes nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import device
from bench.case import Case
from bench.environment import fingerprint, keep_freed_memory, machine, variables, versions
from bench.failures import ran_out, words_of
from bench.plugins import shown, without_folders
from bench.records import empty_record, explain_nulls, finite, write_json

if TYPE_CHECKING:
    from bench.measure import Step

#: seconds the sampler of device memory has for its last reading, at ten milliseconds each
_LAST_READING = 0.05
#: what the trackers of tensors count
_COUNTS = ("peak_live_tensor_bytes", "saved_tensor_bytes")
#: figures beside a step's own, each with a pass of its own
_DIAGNOSTICS = (
    *("gradient_cosine", "gradient_error", "control_error", "linear_residual", "reversible_drift"),
)


def main() -> None:
    _die_with(int(sys.argv[1]))
    keep_freed_memory()
    # Imported before the case arrives, which may be long after, and without touching a GPU: what
    # a waiting worker held there would be in the measurement of another.
    import torch

    from bench import measure
    from bench.build import Unsupported

    line = sys.stdin.readline()
    if not line:
        return  # not needed
    order = json.loads(line)
    torch.set_num_threads(order["threads"])
    sys.path += [place for place in order["modules"] if place not in sys.path]
    try:
        case, seed = Case.from_dict(order["case"]), order["case"]["seed"]
    except ValueError as error:
        # The last line of the log goes into the record, where no path of this machine belongs.
        raise SystemExit(without_folders(str(error), order["case"].values())) from None
    _limit_memory(order["memory_limit"])
    if order["predict"]:
        from bench.predict import predicted_record

        write_json(Path(order["path"]), predicted_record(case))
        return
    if order["build"]:
        with contextlib.suppress(Unsupported):
            measure.Step(case, seed)()
        return
    record = empty_record(case, seed)
    record["threads"] = torch.get_num_threads()
    record["machine"] = machine(case.device)
    record["versions"], record["git"] = versions(), order["git"]
    record["fingerprint"], record["variables"] = fingerprint(), variables()
    fill(
        record,
        case,
        seed,
        measured=lambda: _mark(order["mark"]),
        context=lambda: device.context_bytes(order["uuid"], order["idle_bytes"]),
    )
    write_json(Path(order["path"]), record)


def fill(
    record: dict[str, Any],
    case: Case,
    seed: int,
    measured: Callable[[], object] = lambda: None,
    context: Callable[[], tuple[int | None, str | None]] = lambda: (None, "no sampler"),
) -> None:
    """Measure `case` into `record`; every outcome becomes a status and a reason.

    `measured` is called when the step's memory on the device has been measured: diagnostics and
    training follow, with a memory of their own. `context` creates the CUDA context of a CUDA case
    and returns its bytes, or None and why.
    """
    from bench.build import Unsupported

    try:
        _measure(record, case, seed, measured, context)
    except Unsupported as unsupported:
        record["status"], record["reason"] = "unsupported", unsupported.reason
    except Exception as error:
        if (shortage := ran_out(error)) is not None:
            record["status"], record["reason"] = "out_of_memory", shortage
            if case.device == "cuda":
                device.keep_peaks(record)
        else:
            _crashed(record, error)
    # What JSON cannot hold becomes null here, so that it gets its reason.
    record.update(finite(record))
    not_measured = f"status {record['status']}" if record["status"] != "ok" else "not measured"
    for package, version in record["versions"].items():
        if version is None:
            record["null_reasons"][f"versions.{package}"] = "not installed"
    explain_nulls(record, not_measured)


def _mark(descriptor: int | None) -> None:
    """Tell the sampler of device memory that its time is over, and let it read a last time."""
    if descriptor is None:
        return
    with contextlib.suppress(BrokenPipeError):  # it gave up before
        os.write(descriptor, b".")
    time.sleep(_LAST_READING)


def _measure(
    record: dict[str, Any],
    case: Case,
    seed: int,
    measured: Callable[[], object],
    context: Callable[[], tuple[int | None, str | None]],
) -> None:
    from bench import build, errors, measure

    build.check_device(case.device)
    reasons = record["null_reasons"]
    if case.device == "cuda":
        if not case.timed:
            device.small_workspaces()
        record["cuda"]["context_bytes"], reason = context()
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
    if case.timed:
        timing = measure.measure_time(step)
        record["step_seconds"] = measure.summarise(timing.step)
        record["forward_seconds"] = measure.summarise(timing.forward)["median"]
        record["backward_seconds"] = measure.summarise(timing.backward)["median"]
        record["cpu_share"]["step"] = timing.cpu_share
        if case.compile:
            record["compile_seconds"] = timing.first - record["step_seconds"]["median"]
    else:
        times = ("step_seconds", "forward_seconds", "backward_seconds", "compile_seconds")
        reasons |= dict.fromkeys((*times, "cpu_share.step"), "a memory-only case")
        # An eager step on a GPU allocates the first time what it always does; a compiled one also
        # what compiling and capturing take.
        for _ in range(1 if case.device == "cpu" else measure.WARM_UP * case.compile):
            step()
    if not case.compile:
        reasons["compile_seconds"] = "not a compiled case"
    if case.device == "cuda":
        record["cuda"] |= measure.cuda_memory(step)
    else:
        for name in record["cuda"]:
            reasons[f"cuda.{name}"] = "a CPU case: no CUDA device in it"
    # Before the trackers of the memory pass, which have a footprint of their own.
    record["peak_rss_bytes"] = measure.peak_rss_bytes()
    measured()
    uncounted = device.uncounted_reason(case)
    found = measure.measure_memory(step) if uncounted is None else device.inner_statistics(step)
    finite = found.pop("finite")
    record |= found
    record["tolerance_reached"] = measure.tolerance_reached(step.policy, record["residual"])
    for name in ("iterations", "residual"):
        if record[name] is not None:  # whatever was said of the method's inner problem
            reasons.pop(name, None)
    if uncounted is None:
        if case.compile:
            for name in _COUNTS:
                reasons[name] = "compiled kernels allocate where no tracker of operations can see"
        reasons.setdefault(
            "linear_residual", "not implicit differentiation by the suite's own solvers"
        )
        reasons.setdefault("reversible_drift", "the gradient inverts no iteration")
        _diagnose(record, "gradient_cosine", measure.gradient_cosine, step)
        _diagnose(record, "gradient_error", errors.gradient_error, step)
        _diagnose(record, "control_error", errors.control_error, step)
        _diagnose(record, "linear_residual", measure.linear_residual, step)
        _diagnose(record, "reversible_drift", measure.reversible_drift, step)
    else:
        for name in (*_COUNTS, *_DIAGNOSTICS):
            reasons.setdefault(name, uncounted)
    record["status"] = "ok"
    if not finite:
        record["status"], record["reason"] = "diverged", "the rollout's cost is not finite"
    elif case.train_steps or case.recipe is not None:
        _train(record, case, seed, step)
    else:
        for name in ("curve", "interventions", "bias", "cpu_share.training"):
            reasons[name] = "a case without training"
        for part in ("final", "evaluation", "pretraining_seconds"):
            for name in record[part]:
                reasons[f"{part}.{name}"] = "a case without training"


def _diagnose(
    record: dict[str, Any], name: str, diagnostic: Callable[[Step], Any], step: Step
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


def _train(record: dict[str, Any], case: Case, seed: int, step: Step) -> None:
    from bench import measure
    from bench.build import build, build_rollout
    from bench.errors import BiasTrace
    from bench.gap import gaps
    from bench.pretraining import Pretraining
    from jfbcore.train import Training

    reasons = record["null_reasons"]
    if case.capture:
        # As they were built and captured for the step, which has left the parameters alone; what
        # that took is in `compile_seconds`, not on the clock.
        policy, rollout = step.policy, step.rollout
    else:
        policy = build(case, seed)
        rollout = build_rollout(case, policy)
    config = measure.training_config(case, seed)
    bias = None
    if (reason := BiasTrace.reason_against(case)) is None:
        bias = BiasTrace(case, step.states)
        bias.take(policy, 0)
    else:
        reasons["bias"] = reason
    training = Training(policy, config, rollout=rollout, callback=bias)
    pretraining = Pretraining.begin(case, training)
    began, had = time.perf_counter(), time.process_time()
    result = training.run()
    share = (time.process_time() - had) / (time.perf_counter() - began)
    record["cpu_share"]["training"] = share
    if bias is not None:
        bias.take(policy, result.steps)
        record["bias"] = bias.rows or None
    if pretraining is not None:
        result = pretraining.counted(result)
        record["pretraining_seconds"] = pretraining.seconds
    else:
        for name in record["pretraining_seconds"]:
            reasons[f"pretraining_seconds.{name}"] = "learns from the cost alone"
    gap = gaps(policy.problem)
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
    record["evaluation"] = evaluation = measure.evaluation(policy, result.curve[-1], gap)
    if gap.reason is not None:
        names = ("final.optimality_gap", "curve.optimality_gap", "evaluation.reference_states")
        reasons |= dict.fromkeys((*names, "final.state_references"), gap.reason)
    for name in ("iterations", "residual", "tolerance_reached"):
        if evaluation[name] is None and name in reasons:
            reasons[f"evaluation.{name}"] = reasons[name]
    record["interventions"] = len(result.interventions)
    if result.status != "ok":
        record["status"], record["reason"] = result.status, result.reason


def _crashed(record: dict[str, Any], error: Exception) -> None:
    traceback.print_exc()
    record["status"], record["reason"] = "crashed", words_of(error)


def _die_with(runner: int) -> None:
    """Ask Linux to kill this process when the one numbered `runner` ends, however it ends."""
    if sys.platform == "linux":
        import ctypes
        import signal

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != runner:  # it ended before we could ask
            raise SystemExit("the runner is gone")


def _limit_memory(limit: int | None) -> None:
    if limit is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    main()
