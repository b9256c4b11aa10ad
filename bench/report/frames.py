"""Tidy data frames of records: one row per case and seed, one row per point of a curve."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from bench.record import COLUMNS, UNDISTURBED
from bench.report.load import Run

_DTYPES = {"string": "str", "integer": "Int64", "number": "float64", "boolean": "boolean"}
#: column of the tidy table -> (place in the record, pandas dtype)
FIELDS: dict[str, tuple[str, str]] = {
    name: (field.path, _DTYPES[field.type]) for name, field in COLUMNS.items()
}

#: what a record that names no processor, because it is from before records did, was made on
PROCESSOR_UNKNOWN = "processor not recorded"

#: what must be equal, besides the machine, before two rows may be compared
WORKLOAD = ("variant", "batch_size", "n_steps", "dtype", "device", "execution")
#: columns that identify a curve's record
_CURVE_KEYS = (
    *("run", "environment", "id", "problem", "n_agents", "gradient", "ascent", "solver"),
    *("max_iterations", "tolerance", "budget", *WORKLOAD, "recipe", "learning_rate"),
    *("seed", "status"),
)
_CURVE_VALUES = ("seconds", "step", "loss", "evaluation_cost", "optimality_gap")


def case_frame(runs: Sequence[Run]) -> pd.DataFrame:
    """One row per record: run, environment, the columns of `FIELDS`, null_reasons.

    Three columns say in words what identifies a setting: `ascent` (the map and, if not the usual
    ones, the step size and the network), `budget` (when the inner iteration stops) and `execution`
    (eager, compiled, checkpointed in segments). `disturbed` says that other load held the processor
    while seconds were measured. Infinite numbers become null, as in records.
    """
    letters = environment_letters(runs)
    rows = []
    for run in runs:
        for record, made_on in zip(run.records, machines(run), strict=True):
            row = {column: value_at(record, place) for column, (place, _) in FIELDS.items()}
            reasons = record.get("null_reasons") or {}
            rows.append(
                {"run": run.name, "environment": letters[run.name, made_on]}
                | row
                | {"null_reasons": json.dumps(reasons, sort_keys=True)}
            )
    frame = pd.DataFrame(rows, columns=["run", "environment", *FIELDS, "null_reasons"])
    frame = frame.astype({column: dtype for column, (_, dtype) in FIELDS.items()})
    rows = frame.to_dict("records")
    frame.insert(frame.columns.get_loc("step_size") + 1, "ascent", [_ascent(row) for row in rows])
    frame.insert(frame.columns.get_loc("tolerance") + 1, "budget", [_budget(row) for row in rows])
    frame.insert(
        frame.columns.get_loc("segment") + 1, "execution", [_execution(row) for row in rows]
    )
    frame = frame.astype({"ascent": "str", "budget": "str", "execution": "str"})
    share = frame[["cpu_share_step", "cpu_share_training"]].min(axis=1)
    frame.insert(
        frame.columns.get_loc("cpu_share_training") + 1,
        "disturbed",
        (share < UNDISTURBED).astype("boolean").mask(share.isna()),
    )
    return _finite(frame)


def curve_frame(runs: Sequence[Run], cases: pd.DataFrame) -> pd.DataFrame:
    """One row per point of every training curve; `cases` is the `case_frame` of the same runs."""
    records = [record for run in runs for record in run.records]
    rows: list[dict[str, Any]] = []
    for record, case in zip(records, cases.to_dict("records"), strict=True):
        for point in record.get("curve") or ():
            rows.append(
                {key: case[key] for key in _CURVE_KEYS}
                | {key: point.get(key) for key in _CURVE_VALUES}
            )
    frame = pd.DataFrame(rows, columns=[*_CURVE_KEYS, *_CURVE_VALUES])
    dtypes = {key: dtype for key, (_, dtype) in FIELDS.items() if key in _CURVE_KEYS}
    return _finite(frame.astype(dtypes | dict.fromkeys(_CURVE_VALUES, "float64")))


def missed(rows: pd.DataFrame, column: str = "tolerance_reached") -> pd.Series:
    """Rows that were asked for a tolerance and did not reach it; `column` says when."""
    return rows[column].eq(False).fillna(False).astype(bool)


def trained(cases: pd.DataFrame) -> pd.Series:
    """Rows of cases that train, for a number of steps or on a recipe."""
    return (cases["train_steps"].fillna(0) > 0) | cases["recipe"].notna()


def iterates(cases: pd.DataFrame) -> pd.Series:
    """Rows with an inner iteration, whose residual and time can be compared with each other's.

    Without an inner problem the number of iterations is null; a closed form has no iteration.
    """
    inner = cases["max_iterations"].notna()
    return inner & ~((cases["gradient"] == "closed-form") | (cases["solver"] == "closed-form"))


class Machine(NamedTuple):
    """What a record was made on and with, as far as it names it: all but the processor only where
    the records of its run name several."""

    cpu: str | None = None
    gpu: str | None = None
    threads: int | None = None
    code: str | None = None
    packages: str | None = None

    @property
    def label(self) -> str:
        words = [self.cpu or PROCESSOR_UNKNOWN]
        words += [] if self.gpu is None else [self.gpu]
        words += [] if self.threads is None else [f"{self.threads} threads"]
        words += [] if self.code is None else [f"measuring code {self.code}"]
        words += [] if self.packages is None else [self.packages]
        return ", ".join(words)


def machines(run: Run) -> list[Machine]:
    """The machine of every record of `run`."""
    changing = _changing(run)
    found = []
    for record in run.records:
        versions = record.get("versions") or {}
        packages = ", ".join(f"{name} {versions.get(name) or 'not installed'}" for name in changing)
        cpu, gpu = value_at(record, "machine.cpu"), value_at(record, "machine.gpu")
        code = record.get("fingerprint")
        found.append(Machine(cpu, gpu, record.get("threads"), code, packages or None))
    columns = zip(Machine._fields[1:], list(zip(*found, strict=True))[1:], strict=False)
    same = {name: None for name, own in columns if len({*own} - {None}) <= 1}
    return [made_on._replace(**same) for made_on in found]


def _changing(run: Run) -> list[str]:
    """The packages of which the records of `run` name several versions."""
    names = {name for record in run.records for name in record.get("versions") or {}}
    return sorted(
        name
        for name in names
        if len({(record.get("versions") or {}).get(name) for record in run.records}) > 1
    )


def environment_letters(runs: Sequence[Run]) -> dict[tuple[str, Machine], str]:
    """(run name, machine) -> a letter, the same only where machine and software are.

    What a record does not name is taken from its run. The software is the measuring code, by its
    fingerprint where the records have one and by the run's commit where not, and the packages.
    """
    compared = ("platform", "cpu", "cores", "threads", "gpu", "python", "versions", "packages")
    keys: list[str] = []
    letters = {}
    for run in runs:
        codes = {value_at(record, "fingerprint") for record in run.records}
        only = codes.pop() if len(codes) == 1 else None
        for made_on in dict.fromkeys(machines(run)) or (Machine(),):
            named = {name: value for name, value in made_on._asdict().items() if value is not None}
            own = {**run.environment, **named}
            code = named.get("code") or only or run.environment.get("git")
            key = json.dumps([code, *(own.get(name) for name in compared)], sort_keys=True)
            if key not in keys:
                keys.append(key)
            letters[run.name, made_on] = _letter(keys.index(key))
    return letters


def value_at(record: Mapping[str, Any], place: str) -> Any:
    """The value at a dotted place of a record; None where any part of the way is null."""
    value: Any = record
    for part in place.split("."):
        if value is None:
            return None
        value = value.get(part)
    return value


def _letter(index: int) -> str:
    return chr(ord("A") + index) if index < 26 else f"E{index + 1}"


def _finite(frame: pd.DataFrame) -> pd.DataFrame:
    floats = frame.select_dtypes("float64").columns
    return frame.assign(**{name: frame[name].where(np.isfinite(frame[name])) for name in floats})


def _ascent(row: Mapping[str, Any]) -> str | None:
    dense = pd.isna(row["network"]) or row["network"] == "dense"
    network = None if dense else f"{row['network']} network"
    step = "" if pd.isna(row["step_size"]) else f", step {row['step_size']:g}"
    own_map = None if pd.isna(row["map"]) else f"{row['map']} map{step}"
    return ", ".join(part for part in (own_map, network) if part) or None


def _execution(row: Mapping[str, Any]) -> str:
    words = ["compiled"] if not pd.isna(row["compile"]) and row["compile"] else []
    if not pd.isna(row["segment"]):
        words.append(f"checkpointed every {row['segment']} time steps")
    return ", ".join(words) or "eager"


def _budget(row: Mapping[str, Any]) -> str | None:
    """How the inner iteration ends: at a tolerance, or after exactly K iterations."""
    if not pd.isna(row["tolerance"]):
        return f"tolerance {row['tolerance']:g}"
    if not pd.isna(row["max_iterations"]):
        return f"K = {row['max_iterations']}"
    return None
