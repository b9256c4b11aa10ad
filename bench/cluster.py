"""The jobs of a sweep on a cluster, through submitit."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

from bench.jobs import Order, RunSettings
from bench.records import explain_nulls, write_json


def outcomes(
    todo: list[Order], settings: RunSettings, run_one: Callable[..., dict[str, Any]]
) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Submit every job; their names and what waits for their records, in order."""
    try:
        import submitit
    except ImportError as error:
        raise ValueError(
            f"`jobs` {settings.jobs} needs submitit; pip install jfbbench[cluster]"
        ) from error
    try:
        executor = submitit.AutoExecutor(folder=settings.out / "jobs", cluster=settings.jobs)
    except RuntimeError as error:
        raise ValueError(f"`jobs` {settings.jobs} cannot be used here: {error}") from error
    # Minutes; the timeouts of the job, tried twice, and of its prediction act first.
    executor.update_parameters(
        timeout_min=3 * int(settings.timeout / 60) + 5,
        gpus_per_node=_gpus(todo),
        cpus_per_task=max((job.threads for job in todo), default=1),
    )
    with executor.batch():
        submitted = [(job, executor.submit(run_one, job)) for job in todo]
    for job, running in submitted:
        yield job.job.name, functools.partial(collect, running, job)


def collect(running: Any, job: Order) -> dict[str, Any]:
    """Wait for a submitted job. One that the cluster ended or lost becomes a record of its own."""
    try:
        return running.result()
    except Exception as error:  # whatever submitit and the cluster have to say
        # before it was lost
        if found := job.job.finished(job.settings.out):
            return found
        record = job.job.new_record() | {"threads": job.threads, "git": job.git}
        record["status"] = "crashed"
        record["reason"] = f"the {job.settings.jobs} job failed: {_cause(error)}"
        explain_nulls(record, "status crashed")
        write_json(job.job.path(job.settings.out), record)
        return record


def _cause(error: Exception) -> str:
    """The line that says why; after a job's traceback submitit says where its logs are."""
    text = str(error).split("\n-----")
    traces = [part for part in text if "Traceback" in part] or text
    lines = [line.strip() for line in traces[-1].splitlines() if line.strip(" -")]
    return lines[-1] if lines else repr(error)


def _gpus(todo: list[Order]) -> int:
    return int(any(job.case.device == "cuda" for job in todo))
