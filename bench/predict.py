"""Memory of cases that do not fit, from small measurements of the same code.

With a fixed number of inner iterations nothing in a training step depends on the data, so its
peak live and its saved bytes are exact functions of batch size B, time steps T and iterations K,
affine in each: a + bB + ... + hBTK, eight coefficients, as long as the same moment of the step is
the peak. Measuring at two values of each gives them; a ninth measurement checks them. Where the
iteration is checkpointed, the number of its segments stands in the place of K.

Exact counts do not depend on the device: `fill_predictions` puts the model's bytes, fitted on the
CPU once for all sizes and iterations of a kind of case, into the records that a GPU has measured.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from baselines import UnrolledCheckpoint
from bench.build import Unsupported
from bench.case import Case
from bench.identity import stem
from bench.measure import Step, measure_memory
from bench.records import CorruptRecord, entries, fill_part, finite, write_json
from bench.registry import method

#: small values the coefficients are fitted at, large enough for the peak to be where it is later
BATCHES, STEPS, ITERATIONS = (8, 16), (8, 16), (20, 40)
_CHECK = (24, 24, 60)


#: the quantities of a record that are predicted
QUANTITIES = ("peak_live_tensor_bytes", "saved_tensor_bytes")


@dataclass(frozen=True)
class MemoryModel:
    """Bytes as functions of batch, time steps and iterations, for one kind of case.

    `coefficients`: eight per quantity of `QUANTITIES`. `error`: the largest relative error of
    the model at a point it was not fitted to.
    """

    case: Case
    coefficients: Mapping[str, np.ndarray]
    error: float

    def predict(
        self, batch_size: int, n_steps: int, iterations: int, quantity: str = QUANTITIES[0]
    ) -> float:
        """Predicted bytes of one training step: the peak of live tensors unless told otherwise."""
        return max(
            self._affine(batch_size, n_steps, iterations, name) for name in _bounds(quantity)
        )

    def _affine(self, batch_size: int, n_steps: int, iterations: int, quantity: str) -> float:
        kept = _kept(self.case, iterations) if iterations else 0
        return float(_features(batch_size, n_steps, kept) @ self.coefficients[quantity])

    def crossover(self, batch_size: int, n_steps: int, memory: float) -> float:
        """The iterations at which the peak reaches `memory` bytes; infinite where it never does."""
        kept = math.inf
        for name in _bounds(QUANTITIES[0]):
            at_zero, at_one = (self._affine(batch_size, n_steps, k, name) for k in (0, 1))
            if at_zero >= memory:
                return 0.0
            # A slope of less than a float per sample and step is rounding of the fit, not growth.
            if (slope := at_one - at_zero) >= 4 * batch_size * n_steps:
                kept = min(kept, (memory - at_zero) / slope)
        # As many segments as each has iterations.
        checkpointed = isinstance(method(self.case.gradient).estimator, UnrolledCheckpoint)
        return kept**2 if checkpointed else kept


def fit(case: Case) -> MemoryModel:
    """Measure `case` at small sizes, exact iterations, and fit."""
    points = list(itertools.product(BATCHES, STEPS, ITERATIONS))
    matrix = np.stack([_features(b, t, _kept(case, k)) for b, t, k in points])
    measured = [_bytes(case, *point) for point in points]
    check = _bytes(case, *_CHECK)
    b, t, k = _CHECK
    features = _features(b, t, _kept(case, k))
    coefficients, error = {}, 0.0
    for quantity in QUANTITIES:
        found = np.linalg.solve(matrix, np.array([each[quantity] for each in measured], float))
        coefficients[quantity] = found
        error = max(error, abs(float(features @ found) / check[quantity] - 1.0))
    return MemoryModel(case, coefficients, error)


def fit_on_cpu(case: Case) -> MemoryModel:
    """The model of a case with exactly K iterations, measured on the CPU wherever the case
    belongs: live bytes do not depend on the device.
    """
    return fit(replace(case, device="cpu"))


def predicted_by(model: MemoryModel, case: Case) -> dict[str, float]:
    """The `predicted` part of the record of `case` by a model of its kind, whatever sizes that was
    made for."""
    size = (case.batch_size, case.n_steps, case.max_iterations)
    found = {quantity: round(model.predict(*size, quantity)) for quantity in QUANTITIES}
    return found | {"model_error": model.error}


def _bounds(quantity: str) -> tuple[str, ...]:
    """What a quantity is at least: whatever is saved for backward is alive when it begins.

    That moment becomes the peak at large K where it is not yet the peak of the small sizes.
    """
    return QUANTITIES if quantity == QUANTITIES[0] else (quantity,)


def _kept(case: Case, iterations: int) -> int:
    """What memory is affine in: the iterations, or the segments they are checkpointed in."""
    estimator = method(case.gradient).estimator
    if not isinstance(estimator, UnrolledCheckpoint):
        return iterations
    return math.ceil(iterations / estimator.length(iterations))


def _features(batch_size: int, n_steps: int, kept: int) -> np.ndarray:
    b, t, k = float(batch_size), float(n_steps), float(kept)
    return np.array([1.0, b, t, k, b * t, b * k, t * k, b * t * k])


def _bytes(case: Case, batch_size: int, n_steps: int, iterations: int) -> dict[str, int]:
    small = replace(case, batch_size=batch_size, n_steps=n_steps, max_iterations=iterations)
    return measure_memory(Step(small))


def fill_predictions(directory: Path, fit: Callable[[Case], MemoryModel] = fit) -> dict[str, int]:
    """Fill `predicted` in the records under `directory`: how many are {"filled", "left"}.

    Left alone are those that the model does not serve: of the CPU, direct, to a tolerance,
    compiled, or of a case that cannot be built. A second time changes nothing. `fit` makes the
    model of a kind of case. Raises ValueError where there are no records.
    """
    from tqdm import tqdm

    there = list(entries(directory)) if directory.is_dir() else []
    if not there:
        raise ValueError(f"`fill` {directory} holds no records")
    models: dict[Case, MemoryModel | None] = {}
    counts = {"filled": 0, "left": 0}
    for entry in tqdm(there, unit="record"):
        try:
            record = entry.read()
            case = Case.from_dict(record["case"])
        except (ValueError, TypeError) as error:
            warnings.warn(str(error), CorruptRecord, stacklevel=2)
            continue
        kind, model = _kind(case), None
        if kind is not None:
            if kind not in models:
                models[kind] = None
                with contextlib.suppress(Unsupported):
                    models[kind] = fit(kind)
            model = models[kind]
        counts["left" if model is None else "filled"] += 1
        if model is not None:
            _fill(directory, record, finite(predicted_by(model, case)))
    return counts


def _kind(case: Case) -> Case | None:
    """What cases that differ only in what the model is a function of have in common; None for a
    case that no model serves."""
    exact = case.device == "cuda" and case.inner_problem and case.tolerance is None
    if not exact or case.compile:
        return None
    return replace(
        case, device="cpu", batch_size=1, n_steps=1, max_iterations=1, timed=False, train_steps=0,
        recipe=None, train_seconds=None, learning_rate=None,
    )  # fmt: skip


def _fill(directory: Path, record: dict[str, Any], predicted: dict[str, Any]) -> None:
    before = json.dumps(record)
    fill_part(record, "predicted", predicted, "the model gives no finite figure")
    if json.dumps(record) != before:
        write_json(directory / "records" / f"{stem(record)}.json", record)
