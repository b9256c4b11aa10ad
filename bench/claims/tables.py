"""From the records of jobs to the tables that claims are judged on, one for each probe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from bench.claims.claim import SIZE, Tables
from bench.identity import identity
from bench.jobs import Job
from bench.probes.probe import Probe
from bench.probes.trace import Trace
from bench.recipes import RELEASED_INNER

Record = Mapping[str, Any]
#: fields of a case that every row begins with
_HEAD = (
    *("problem", "n_agents", "gradient", "map", "network", "step_size", "max_iterations"),
    *("batch_size", "n_steps", "seed"),
)
#: how a point of a curve is called in a row
_CURVE = {"evaluation_cost": "cost", "optimality_gap": "gap"}
#: statuses of a job whose rows, or whose refusal, say something about a claim
_TELLING = ("ok", "diverged", "unsupported")


def by_job(records: Iterable[Record]) -> dict[str, Record]:
    """The records by what they are of; see `record_of`."""
    return {identity(record): record for record in records}


def record_of(job: Job, records: Mapping[str, Record]) -> Record | None:
    """The record of exactly this job among those of `by_job`."""
    return records.get(identity(job.new_record()))


def tables(jobs: Sequence[Job], records: Mapping[str, Record]) -> tuple[Tables, list[Job]]:
    """A table per probe of what has been measured, by problem and size; and the jobs that have
    no record, or one that says nothing because the job crashed or ran out of time or memory.
    """
    rows: dict[str, list[dict[str, Any]]] = {}
    absent = []
    for job in jobs:
        record = record_of(job, records)
        if record is None or record["status"] not in _TELLING:
            absent.append(job)
        else:
            # Whatever has a curve is a training, the step that is trained to a target too.
            name = "training" if "curve" in record else job.probe.name
            rows.setdefault(name, []).extend(_rows(job.probe, record))
    found = {name: pd.DataFrame(part) for name, part in rows.items() if part}
    return {
        # `reason` where no row has one; by problem and size, and in the order of the jobs within
        name: (table if "reason" in table else table.assign(reason=None))
        .sort_values(SIZE, kind="stable", ignore_index=True)
        for name, table in found.items()
    }, absent  # fmt: skip


def _rows(probe: Probe, record: Record) -> Iterable[dict[str, Any]]:
    case = record["case"]
    head = {name: case[name] for name in _HEAD}
    released = getattr(probe, "recipe", None) == "released"
    released = released or case["step_size"] == RELEASED_INNER["step_size"]
    head["variant"] = "released" if released else case["map"]
    head["run"] = f"{case['problem']} n={case['n_agents']}, {head['variant']}"
    if isinstance(probe, Trace):
        head["minibatches"] = probe.states // probe.minibatch
        head["minibatch_size"] = probe.minibatch
    if "curve" not in record:
        return [head | row for row in record["rows"] or ()]
    seconds = (record["step_seconds"] or {}).get("median")
    tail = {"status": record["status"], "reason": record["reason"], "step_seconds": seconds}
    points: Iterable[Record] = record["curve"] or ({"seconds": None, "evaluation_cost": None},)
    return [
        head | {_CURVE.get(name, name): value for name, value in point.items()} | tail
        for point in points
    ]
