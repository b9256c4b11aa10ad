"""The memory model's bytes, put into the records of a sweep that a GPU has measured.

Exact counts do not depend on the device. A CUDA record of exactly K iterations gets them from
the model of `bench.predict`, fitted on the CPU once for all its sizes and iterations.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import predict
from bench.build import Unsupported
from bench.case import Case
from bench.identity import stem
from bench.predict import MemoryModel, predicted_by
from bench.records import CorruptRecord, entries, fill_part, finite, write_json


def fill_predictions(
    directory: Path, fit: Callable[[Case], MemoryModel] = predict.fit
) -> dict[str, int]:
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
        model = None
        if _served(case):
            kind = _kind(case)
            if kind not in models:
                models[kind] = _model(kind, fit)
            model = models[kind]
        counts["left" if model is None else "filled"] += 1
        if model is not None:
            _fill(directory, record, finite(predicted_by(model, case)))
    return counts


def _served(case: Case) -> bool:
    return (
        case.device == "cuda" and case.inner_problem and case.tolerance is None and not case.compile
    )


def _kind(case: Case) -> Case:
    """What cases that differ only in what the model is a function of have in common."""
    return replace(
        case,
        device="cpu",
        batch_size=1,
        n_steps=1,
        max_iterations=1,
        timed=False,
        train_steps=0,
        recipe=None,
        train_seconds=None,
        learning_rate=None,
    )


def _model(kind: Case, fit: Callable[[Case], MemoryModel]) -> MemoryModel | None:
    try:
        return fit(kind)
    except Unsupported:
        return None


def _fill(directory: Path, record: dict[str, Any], predicted: dict[str, Any]) -> None:
    before = json.dumps(record)
    fill_part(record, "predicted", predicted, "the model gives no finite figure")
    if json.dumps(record) != before:
        write_json(directory / "records" / f"{stem(record)}.json", record)
