"""Every field of a record, declared once: where it is, what it holds, how the gate treats it.

A new metric is one line here, with `since` one above the latest version where records of that one
are kept, and the probe that measures it. Checks on load, the JSON Schema, the table in
docs/records.md, the columns of `cases.csv` and the gate's quantities are derived from these lines;
after a change of them `python -m bench.record_schema` writes the schema again and `python -m
bench.documents` the table.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from bench.case import DEVICES, DTYPES, NETWORK_NAMES, RECIPES, VARIANTS
from bench.record_field import Field, Gate

STATUSES = ("ok", "unsupported", "out_of_memory", "timeout", "diverged", "crashed")
#: the share of a processor below which what was timed counts as disturbed by other load
UNDISTURBED = 0.9

_text = partial(Field, type="string")
_flag = partial(Field, type="boolean")
_number = partial(Field, type="number")
_count = partial(Field, type="integer", minimum=0)
_positive = partial(Field, type="integer", minimum=1)
_seconds = partial(Field, type="number", unit="s", minimum=0)
_bytes = partial(Field, type="integer", unit="B", minimum=0)

#: a line a field, in the order in which a record has them
_DECLARED: tuple[Field, ...] = (
    _positive("schema_version", "version of this list", nullable=False, since=1),
    Field("case", "what was measured; null where a setting plays no part", nullable=False, since=1),
    _text("case.id", "every field that is not at its usual value", nullable=False, since=1),
    _text("case.problem", nullable=False, since=1),
    _positive("case.n_agents", nullable=False, since=1),
    _text("case.gradient", nullable=False, since=1),
    _text("case.map"),
    _text("case.solver"),
    _positive("case.max_iterations"),
    _number("case.tolerance", "null where exactly `max_iterations` are run", above=0),
    _positive("case.batch_size", nullable=False),
    _positive("case.n_steps", "time steps of the horizon", nullable=False),
    _text("case.dtype", choices=DTYPES, nullable=False),
    _text("case.device", choices=DEVICES, nullable=False),
    _text("case.variant", "of the problem's parameters", choices=VARIANTS),
    _number("case.step_size", "of the plain map, where it is not its own", above=0),
    _count("case.train_steps", "optimiser steps behind the curve"),
    _flag("case.timed", "false where memory alone was measured"),
    _flag("case.compile"),
    _flag("case.capture", "whether rollouts are replayed as CUDA graphs"),
    _text("case.network", choices=NETWORK_NAMES),
    _positive("case.segment", "time steps between checkpoints of the rollout"),
    _text("case.recipe", choices=RECIPES),
    _number("case.train_seconds", "of the recipe", unit="s", above=0),
    _number("case.learning_rate", "in place of the recipe's own", above=0),
    _count("case.seed", nullable=False, since=1),
    Field("probe", "what was measured, with its settings, where that is no training step"),
    _text("probe.name", nullable=False),
    Field(
        "plugins",
        "by field of the case, name, source and SHA-256 of the file of every problem, method, map "
        "and solver that is not the suite's own; null where all are",
        values="object",
    ),
    _text("status", "how it ended", choices=STATUSES, nullable=False, since=1),
    _text("reason", "why it did not end ok"),
    Field("step_seconds", "of one training step without the update, over its repeats"),
    _seconds("step_seconds.median", column="step_seconds", heading="step"),
    _seconds("step_seconds.min"),
    _seconds("step_seconds.q25"),
    _seconds("step_seconds.q75"),
    _positive("step_seconds.repeats", column="step_repeats"),
    _seconds("forward_seconds", "median of the forward part", heading="forward"),
    _seconds("backward_seconds", "median of the backward part", heading="backward"),
    _number("compile_seconds", "what a compiled case's first step took beyond a median one, in s"),
    _flag(
        "native_kernels",
        "whether the network and the interaction of a compiled case's agents ran as native "
        "kernels, on a GPU whether whole rollouts did",
        since=3,
    ),
    Field(
        "cpu_share",
        "processor seconds per second of wall-clock, of all threads together; below "
        f"{UNDISTURBED} other load disturbed what was timed"),
    _number("cpu_share.step", "of the timed steps", minimum=0),
    _number("cpu_share.training", "of the training, evaluations included", minimum=0),
    Field("iterations", "applications of the map, mean and max over time steps"),
    _number(
        "iterations.mean",
        minimum=0,
        heading="iterations",
        # Half an iteration on average: an iterate that lands on the tolerance rounds either way.
        gate=Gate("mean iterations", relative=0.02, absolute=0.25),
    ),
    _number("iterations.max", minimum=0, heading="iterations max"),
    Field("residual", "norm of ∇H in u, projected where u is constrained, over time steps"),
    _number("residual.mean", minimum=0, heading="residual mean"),
    _number(
        "residual.max",
        minimum=0,
        heading="residual max",
        # An order of magnitude: the last residual before stopping is anywhere below the tolerance.
        gate=Gate("residual", relative=9.0, absolute=1e-7),
    ),
    _flag("tolerance_reached", "whether the largest residual met the tolerance; null with fixed K"),
    _number(
        "gradient_cosine",
        "cosine between the minibatch gradient and the implicit one",
        # Rounding may leave a cosine a little above one.
        minimum=-1.000001,
        maximum=1.000001,
        heading="gradient cosine",
        gate=Gate("gradient cosine", absolute=1e-4, larger_is_worse=False),
    ),
    _number(
        "gradient_error",
        "relative distance from the exact gradient at the exact control, in float64",
        minimum=0,
        heading="gradient error",
    ),
    Field(
        "control_error",
        "relative distance of the control handed on from the exact one, over time steps and "
        "samples"),
    _number("control_error.mean", minimum=0),
    _number("control_error.max", minimum=0, heading="control error"),
    Field("bias", "of the gradient along training, on a few states in float64", type="array"),
    Field("bias[]", nullable=False),
    _count("bias[].step", nullable=False),
    _number("bias[].relative", "distance from the exact gradient at the same control, over its "
            "norm", minimum=0),
    _number("bias[].cosine", "between the two", minimum=-1.000001, maximum=1.000001),
    Field(
        "linear_residual",
        "of implicit differentiation, over time steps: its linear solves' residual over their "
        "right-hand side"),
    _number("linear_residual.mean", minimum=0),
    _number("linear_residual.max", minimum=0, heading="linear residual"),
    Field(
        "reversible_drift",
        "of `reversible`, over time steps: distance between reconstructed and true controls over "
        "the control handed on"),
    _number("reversible_drift.mean", minimum=0),
    _number("reversible_drift.max", minimum=0, heading="reversible drift"),
    _bytes(
        "peak_live_tensor_bytes",
        "most bytes of tensors alive at once in a step, parameters included; exact",
        heading="peak live tensors",
        gate=Gate("peak live bytes"),
    ),
    _bytes(
        "saved_tensor_bytes",
        "most bytes that autograd saves for backward, parameters and inputs excluded; exact",
        heading="saved for backward",
        gate=Gate("saved bytes"),
    ),
    _bytes("peak_rss_bytes", "largest resident set of the process", heading="peak RSS"),
    Field("cuda", "memory of a CUDA case, null on a processor"),
    _bytes("cuda.context_bytes", "device use with an empty context, minus the idle baseline"),
    _bytes("cuda.max_allocated_bytes", "the allocator's peak over a step, parameters included, or "
           "up to the failure where memory ran out", heading="CUDA allocated"),
    _bytes("cuda.max_reserved_bytes", "the same of what it reserved", heading="CUDA reserved"),
    _bytes("cuda.nvml_device_delta_bytes", "peak device use minus the idle baseline, context "
           "included", heading="NVML device"),
    _bytes("cuda.nvml_process_bytes", "peak as the driver counts it", heading="NVML process"),
    _number(
        "cuda.busy_seconds",
        "seconds of a timed step in which the GPU ran anything, by the profiler",
        minimum=0,
        heading="GPU busy",
        since=4,
    ),
    _text("cuda.nvml_source"),
    _count("cuda.samples"),
    Field(
        "predicted",
        "where exactly K iterations did not finish, or ran on CUDA and `predict --fill` was "
        "called: what `bench predict` says, and its model's error",
    ),
    _bytes("predicted.peak_live_tensor_bytes"),
    _bytes("predicted.saved_tensor_bytes"),
    _number("predicted.model_error", minimum=0),
    Field("curve", "points of the training; evaluation is off the clock", type="array"),
    Field("curve[]", nullable=False),
    _seconds("curve[].seconds"),
    _count("curve[].step", nullable=False),
    _number("curve[].loss"),
    _number("curve[].evaluation_cost"),
    _number("curve[].optimality_gap"),
    _count("interventions", "training steps that the guard rejected", heading="interventions"),
    Field("pretraining_seconds", "what learning from references took, counted in the curve"),
    _seconds("pretraining_seconds.references", "solving them, once and for all"),
    _seconds("pretraining_seconds.fit", "fitting the network to them"),
    Field("final", "the last point of the curve, and what its costs are means of"),
    _number("final.loss", heading="final loss"),
    _number("final.evaluation_cost", heading="evaluation cost"),
    _number("final.optimality_gap", heading="optimality gap"),
    Field("final.state_costs", "cost of each held-out state", type="array"),
    _number("final.state_costs[]"),
    Field("final.state_references", "the best known cost of each", type="array"),
    _number("final.state_references[]"),
    Field("evaluation", "what the final costs rest on"),
    _count("evaluation.states", "held-out states", column="evaluation_states"),
    _count("evaluation.reference_states", "those with a reference", column="reference_states"),
    Field("evaluation.iterations", "of the inner solves there"),
    _number("evaluation.iterations.mean", minimum=0, column="trained_iterations_mean"),
    _number("evaluation.iterations.max", minimum=0, column="trained_iterations_max"),
    Field("evaluation.residual", "of the same"),
    _number("evaluation.residual.mean", minimum=0, column="trained_residual_mean"),
    _number("evaluation.residual.max", minimum=0, column="trained_residual_max"),
    _flag("evaluation.tolerance_reached", column="trained_tolerance_reached"),
    Field("rows", "what a probe other than a training step found", type="array"),
    Field("rows[]", nullable=False),
    Field("machine", "what it was measured on"),
    _text("machine.cpu", "with the generation where it can be told", column="cpu"),
    _text("machine.gpu", "of a CUDA case", column="gpu"),
    _positive("threads", "threads of torch"),
    Field("variables", "environment variables that were set and decide speed or rounding",
          values="string"),
    Field("null_reasons", "why a field is null, by its path", values="string"),
    Field("versions", "of Python and of packages; null where one is not installed",
          values="string"),
    Field("git", "the source tree"),
    _text("git.commit", column="commit"),
    _flag("git.dirty", "whether it had uncommitted changes", column="dirty"),
    _text("fingerprint", "hash of the measuring code, which no change of a report or a text moves"),
)  # fmt: skip

#: a record of this version has every field
SCHEMA_VERSION = max(field.since for field in _DECLARED)
FIELDS = (replace(_DECLARED[0], maximum=SCHEMA_VERSION), *_DECLARED[1:])


def parts(path: str = "") -> tuple[Field, ...]:
    """The fields directly below `path`; those of the record itself unless told otherwise."""
    return _PARTS.get(path, ())


_PARTS: dict[str, tuple[Field, ...]] = {
    path: tuple(field for field in FIELDS if field.parent == path)
    for path in {field.parent for field in FIELDS}
}
#: the columns of the table with one row per record, by name
COLUMNS: dict[str, Field] = {field.column_name: field for field in FIELDS if field.in_tables}
