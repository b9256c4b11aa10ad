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
    """One row per record: run, environment, the columns of `bench.record.COLUMNS`, null_reasons.

    Three columns say in words what identifies a setting: `ascent` (the map and, if not the usual
    ones, the step size and the network), `budget` (when the inner iteration stops) and `execution`
    (eager, compiled, checkpointed in segments). `disturbed` says that other load held the processor
    while seconds were measured. Infinite numbers become null, as in records.
    """
    records = [record for run in runs for record in run.records]
    letters = environment_letters(runs)
    frame = pd.json_normalize(records).reindex(columns=[field.path for field in COLUMNS.values()])
    frame = frame.set_axis(list(COLUMNS), axis=1)
    frame = frame.astype({name: _DTYPES[field.type] for name, field in COLUMNS.items()})
    rows = frame.to_dict("records")
    share = frame[["cpu_share_step", "cpu_share_training"]].min(axis=1)
    frame.insert(0, "run", [run.name for run in runs for _ in run.records])
    frame.insert(1, "environment", [letters[run.name, each] for run in runs
                                    for each in machines(run)])  # fmt: skip
    for name, before, values, dtype in (
        ("ascent", "step_size", map(_ascent, rows), "str"),
        ("budget", "tolerance", map(_budget, rows), "str"),
        ("execution", "segment", map(_execution, rows), "str"),
        ("disturbed", "cpu_share_training", (share < UNDISTURBED).mask(share.isna()), "boolean"),
    ):
        column = pd.Series(list(values), dtype=dtype)
        frame.insert(frame.columns.get_loc(before) + 1, name, column)
    reasons = [record.get("null_reasons") or {} for record in records]
    frame["null_reasons"] = [json.dumps(own, sort_keys=True) for own in reasons]
    return _finite(frame.astype(dict.fromkeys(("run", "environment", "null_reasons"), "str")))


def curve_frame(runs: Sequence[Run], cases: pd.DataFrame) -> pd.DataFrame:
    """One row per point of every training curve; `cases` is the `case_frame` of the same runs."""
    records = [record for run in runs for record in run.records]
    points = [(i, point) for i, record in enumerate(records) for point in record.get("curve") or ()]
    values = pd.DataFrame([point for _, point in points], columns=list(_CURVE_VALUES), dtype=float)
    keys = cases.iloc[[i for i, _ in points]][list(_CURVE_KEYS)].reset_index(drop=True)
    return _finite(pd.concat([keys, values], axis=1))


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


def exact(cases: pd.DataFrame) -> pd.DataFrame:
    """Rows of cases that run exactly K inner iterations, without a tolerance."""
    return cases[cases["tolerance"].isna() & cases["max_iterations"].notna()]


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
        threads = None if self.threads is None else f"{self.threads} threads"
        code = None if self.code is None else f"measuring code {self.code}"
        words = (self.cpu or PROCESSOR_UNKNOWN, self.gpu, threads, code, self.packages)
        return ", ".join(word for word in words if word is not None)


def machines(run: Run) -> list[Machine]:
    """The machine of every record of `run`."""
    versions = [record.get("versions") or {} for record in run.records]
    names = sorted({name for own in versions for name in own})
    changing = [name for name in names if len({own.get(name) for own in versions}) > 1]
    found = []
    for record, own in zip(run.records, versions, strict=True):
        made_on = record.get("machine") or {}
        packages = ", ".join(f"{name} {own.get(name) or 'not installed'}" for name in changing)
        code, threads = record.get("fingerprint"), record.get("threads")
        place = (made_on.get("cpu"), made_on.get("gpu"))
        found.append(Machine(*place, threads, code, packages or None))
    columns = zip(Machine._fields[1:], list(zip(*found, strict=True))[1:], strict=False)
    same = {name: None for name, own in columns if len({*own} - {None}) <= 1}
    return [made_on._replace(**same) for made_on in found]


def environment_letters(runs: Sequence[Run]) -> dict[tuple[str, Machine], str]:
    """(run name, machine) -> a letter, the same only where machine and software are.

    What a record does not name is taken from its run. The software is the measuring code, by its
    fingerprint where the records have one and by the run's commit where not, and the packages.
    """
    compared = ("platform", "cpu", "cores", "threads", "gpu", "python", "versions", "packages")
    keys = {}
    for run in runs:
        codes = {record.get("fingerprint") for record in run.records}
        only = codes.pop() if len(codes) == 1 else None
        for made_on in dict.fromkeys(machines(run)) or (Machine(),):
            named = {name: value for name, value in made_on._asdict().items() if value is not None}
            own = {**run.environment, **named}
            code = named.get("code") or only or run.environment.get("git")
            keys[run.name, made_on] = json.dumps(
                [code, *(own.get(name) for name in compared)], sort_keys=True
            )
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys.values()))}
    letters = {key: chr(65 + i) if i < 26 else f"E{i + 1}" for key, i in numbers.items()}
    return {place: letters[key] for place, key in keys.items()}


def _finite(frame: pd.DataFrame) -> pd.DataFrame:
    floats = frame.select_dtypes("float64").columns
    return frame.assign(**{name: frame[name].where(np.isfinite(frame[name])) for name in floats})


def _ascent(row: Mapping[str, Any]) -> str | None:
    dense = pd.isna(row["network"]) or row["network"] == "dense"
    step = "" if pd.isna(row["step_size"]) else f", step {row['step_size']:g}"
    own_map = None if pd.isna(row["map"]) else f"{row['map']} map{step}"
    network = None if dense else f"{row['network']} network"
    return ", ".join(filter(None, (own_map, network))) or None


def _execution(row: Mapping[str, Any]) -> str:
    compiled = "compiled" if not pd.isna(row["compile"]) and row["compile"] else ""
    segment = row["segment"]
    parts = "" if pd.isna(segment) else f"checkpointed every {segment} time steps"
    return ", ".join(filter(None, (compiled, parts))) or "eager"


def _budget(row: Mapping[str, Any]) -> str | None:
    """How the inner iteration ends: at a tolerance, or after exactly K iterations."""
    if not pd.isna(row["tolerance"]):
        return f"tolerance {row['tolerance']:g}"
    return None if pd.isna(row["max_iterations"]) else f"K = {row['max_iterations']}"
