"""The runner: each job in a fresh process of its own, one atomic record each, resumable."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import sys
import time
from collections.abc import Callable, Generator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import cluster
from bench.build_ahead import SHARE, build_ahead
from bench.case import Case
from bench.environment import (
    default_threads,
    describe,
    fingerprint,
    git_revision,
    machine,
    usable_cores,
    versions,
)
from bench.failures import fate, oom_kill_count
from bench.jobs import STEP, Job, Order, RunSettings
from bench.nvml_check import self_check
from bench.probes.prediction import Prediction
from bench.records import Entry, claim, explain_nulls, fill_part, is_there, read_object, write_json
from bench.workers import OUT_OF_TIME, Crew, Pool, Worker

#: spare workers of a sweep with CUDA cases
_SPARE = 2
#: seconds after the time limit in which the case that runs is ended; 2 of the 10 that a sweep may
#: take are left for ending it
_GRACE = 8.0


class _OutOfTime(Exception):  # noqa: N818 - not an error: the job stays to be measured
    """The run's time was over before the job had a record."""


def run_cases(cases: list[Case], seeds: int, settings: RunSettings) -> dict[str, int]:
    """`run_jobs` for one training step of every case and seed."""
    return run_jobs([Job(case=c, seed=s) for c in cases for s in range(seeds)], settings)


def run_jobs(jobs: Sequence[Job], settings: RunSettings) -> dict[str, int]:
    """Measure every job that has no record yet; how many ended in each status.

    Raises ValueError when the folder cannot be used: not writable, in use by another run, or
    holding records without `resume`.
    """
    from tqdm import tqdm

    index, count = settings.part
    jobs = jobs[index - 1 :: count]
    out = settings.out
    with claim(out, settings.part):
        # The state of the code that each record kept is of.
        done = {job: r.get("git") for job in jobs if (r := job.finished(out))}
        there = [job for job in jobs if is_there(out, job.name)]
        if there and not settings.resume:
            raise ValueError(
                f"`out` {out} already holds {len(there)} of these records; continue with "
                "--resume or choose another folder"
            )
        threads = settings.threads or default_threads()
        git = git_revision()
        todo = [Order(job, settings, threads, git) for job in jobs if job not in done]
        _write_environment(settings, threads, anew=bool(todo))
        if older := sum(then != git for then in done.values()):
            print(
                f"warning: {older} of {len(done)} records kept are of another state of the code; "
                "remove them to measure again",
                file=sys.stderr,
            )
        counts: dict[str, int] = {}
        with (
            tqdm(total=len(jobs), initial=len(done), unit="case", file=sys.stderr) as bar,
            # Closed here, which ends the waiting workers, however this ends.
            contextlib.closing(_outcomes(todo, settings)) as outcomes,
        ):
            for name, outcome in outcomes:
                bar.set_postfix_str(name)
                try:
                    status = outcome()["status"]
                except _OutOfTime:
                    break
                counts[status] = counts.get(status, 0) + 1
                bar.update()
    if left := len(jobs) - len(done) - sum(counts.values()):
        why = "time limit" if settings.jobs == "local" else settings.jobs
        print(f"{why}: {left} cases not measured; continue with --resume", file=sys.stderr)
    return counts


def _write_environment(settings: RunSettings, threads: int, *, anew: bool) -> None:
    """environment.json of what is about to be measured; where that is nothing, the one there is
    stays, but for new notes.
    """
    path = settings.out / "environment.json"
    environment = earlier = read_object(path) or {}
    if anew or not earlier:
        started = datetime.now(UTC).isoformat(timespec="seconds")
        environment = describe(settings.preset, threads, started)
        if settings.jobs != "local":
            environment["limits"].append(
                f"Submitted to {settings.jobs}: the environment is that of the machine which did "
                "so; every record names the processor it was made on."
            )
    # Records from before a --resume were made under the notes of then.
    notes = [*(str(note) for note in earlier.get("notes") or ()), *settings.notes]
    environment["notes"] = list(dict.fromkeys(note for note in notes if note.strip()))
    limits = environment.get("limits") or ()
    environment["limits"] = list(dict.fromkeys([*limits, *environment["notes"]]))
    write_json(path, environment)


def _outcomes(
    todo: list[Order], settings: RunSettings
) -> Generator[tuple[str, Callable[[], dict[str, Any]]]]:
    """The jobs' names and what waits for their records, in order."""
    if settings.jobs != "local":
        yield from cluster.outcomes(todo, settings, _run_one)
        return
    if not todo:
        return
    began, limit = time.monotonic(), math.inf
    if settings.time_limit is not None:
        limit = settings.time_limit
    on_cuda = any(order.case.device == "cuda" for order in todo)
    spare = _SPARE if settings.spare is None and on_cuda else settings.spare
    logs, threads = _logs(settings), todo[0].threads
    # Each of the processes that share the jobs has its share of the cores.
    at_once = max(1, usable_cores() // (threads * settings.part[1]))
    alone = [order.timed for order in todo if at_once == 1 or _needs_quiet(order)]

    def run(order: Order, workers: Pool | Crew) -> dict[str, Any]:
        if time.monotonic() - began > limit:
            raise _OutOfTime
        return _run_one(order, workers, began + limit + _GRACE)

    with (
        contextlib.closing(Pool(logs, threads, spare=spare, timed=alone)) as pool,
        contextlib.closing(Crew(logs, threads, at_once)) as crew,
    ):
        pool.fill()
        if on_cuda:
            _check_sampler(settings)
        build_ahead(todo, logs, settings.build_ahead, began + SHARE * limit)
        for quiet, orders in itertools.groupby(todo, _needs_quiet):
            if quiet or at_once == 1:
                for order in orders:
                    yield order.job.name, functools.partial(run, order, pool)
                continue
            beside = [(o.job.name, crew.submit(functools.partial(run, o, crew))) for o in orders]
            for name, future in beside:
                yield name, future.result


def _needs_quiet(order: Order) -> bool:
    """Whether nothing else may run beside the job: its seconds or a GPU's memory are measured."""
    return order.timed or order.case.device == "cuda"


def _logs(settings: RunSettings) -> Path:
    logs = settings.out / "logs"
    logs.mkdir(exist_ok=True)
    return logs


def _check_sampler(settings: RunSettings) -> None:
    """Note in environment.json whether the sampler of device memory sees a known allocation."""
    path = settings.out / "environment.json"
    found = self_check()
    if not found["ok"]:
        print(f"warning: NVML self-check: {found['reason']}", file=sys.stderr)
    write_json(path, (read_object(path) or {}) | {"nvml_self_check": found})


def _run_one(
    order: Order, pool: Pool | Crew | None = None, deadline: float = math.inf
) -> dict[str, Any]:
    """The record of one job, measured by a worker from `pool` or by one of its own.

    A job that ran out of its own time is tried once more. Raises _OutOfTime where the monotonic
    time `deadline` or the crew's end ended it before.
    """
    job, settings, threads, git = order
    path = job.path(settings.out)
    log_path = _logs(settings) / f"{path.stem}.log"
    # Not the record's own place: it is not finished before the prediction and the GPU's samples.
    found_path = log_path.with_suffix(".record.json")
    uuid = _gpu_uuid() if job.case.device == "cuda" else None
    for again in (False, True):
        # What is found there afterwards must be this worker's.
        found_path.unlink(missing_ok=True)
        oom_kills = oom_kill_count()
        worker = pool.take(again) if pool else Worker(log_path.parent, threads)
        with contextlib.closing(worker):
            message = order.message(found_path)
            ended = worker.run(message, log_path, settings.timeout, uuid, deadline)
        over = ended.outcome == OUT_OF_TIME or (isinstance(pool, Crew) and pool.closed)
        if over and not found_path.exists():
            log_path.unlink()
            raise _OutOfTime
        if ended.outcome == "exited" or found_path.exists():
            break
    try:
        record = Entry(found_path).content()
    except ValueError:
        record = job.new_record()
        record["status"], record["reason"] = fate(ended.outcome, ended.code, log_path, oom_kills)
        record |= {"threads": threads, "git": git, "versions": versions()}
        record["fingerprint"] = fingerprint()
        record["machine"] = machine(job.case.device)
        explain_nulls(record, f"status {record['status']}")
    else:
        if log_path.stat().st_size == 0:
            log_path.unlink()
    if job.probe == STEP:
        _predict(record, order, log_path, deadline)
    if ended.sampled is not None and "cuda" in record:
        fill_part(record, "cuda", ended.sampled)
    write_json(path, record)
    found_path.unlink(missing_ok=True)
    return record


def _predict(record: dict[str, Any], order: Order, log_path: Path, deadline: float) -> None:
    """Put the memory model's bytes into the record of a case that did not fit, or why not.

    In a worker of its own: the model measures small versions of the case, on the CPU. Time on a
    GPU is not spent on that.
    """
    case, predicted = record["case"], {}
    if record["status"] not in ("out_of_memory", "timeout"):
        reason = "predicted only where memory or time ran out"
    elif case["max_iterations"] is None or case["tolerance"] is not None:
        reason = "predicted only for exactly K inner iterations"
    elif case["device"] == "cuda":
        reason = "a CUDA case: predicted afterwards, by `bench predict --fill`"
    else:
        found = log_path.with_suffix(".prediction.json")
        log = log_path.with_suffix(".prediction.log")
        with contextlib.closing(Worker(log.parent, order.threads)) as worker:
            message = order.message(found, Prediction())
            ended = worker.run(message, log, order.settings.timeout, deadline=deadline)
        reason = f"no prediction: {ended.outcome}, exit code {ended.code}"
        if found.exists():
            own = Entry(found).content()
            predicted, reason = own["predicted"], own["reason"] or "not measured"
            found.unlink()
            log.unlink()
    fill_part(record, "predicted", predicted, reason)


@functools.cache
def _gpu_uuid() -> str:
    import torch

    return str(torch.cuda.get_device_properties(0).uuid)
