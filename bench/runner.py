"""The sweep: each case in a fresh process of its own, one atomic record each, resumable."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, NamedTuple

from bench.case import Case
from bench.environment import ROOT, default_threads, describe, git_revision, machine, versions
from bench.nvml import Sampler
from bench.records import (
    PREDICTED_FIELDS,
    empty_record,
    explain_nulls,
    read_record,
    record_path,
    write_json,
)


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How a sweep runs its cases.

    `memory_limit`: bytes of address space per case, or None. `time_limit`: seconds after which a
    local sweep starts no further case, or None. `notes`: limitations its report must state.
    """

    out: Path
    preset: str
    timeout: float
    resume: bool = False
    threads: int | None = None
    memory_limit: int | None = None
    jobs: str = "local"
    time_limit: float | None = None
    notes: tuple[str, ...] = ()


class _Job(NamedTuple):
    """One case and seed of a sweep: the arguments of `_run_one`."""

    case: Case
    seed: int
    settings: RunSettings
    threads: int
    git: dict[str, Any]


def run_cases(cases: list[Case], seeds: int, settings: RunSettings) -> dict[str, int]:
    """Measure every case and seed that has no record yet; how many ended in each status.

    Raises ValueError when the folder cannot be used: not writable, in use by another sweep, or
    holding records without `resume`.
    """
    from tqdm import tqdm

    jobs = [(case, seed) for case in cases for seed in range(seeds)]
    with _claim(settings.out):
        # The state of the code that each record kept is of.
        done = {job: r.get("git") for job in jobs if (r := _finished(settings.out, *job))}
        there = [job for job in jobs if record_path(settings.out, *job).exists()]
        if there and not settings.resume:
            raise ValueError(
                f"`out` {settings.out} already holds {len(there)} of these records; continue with "
                "--resume or choose another folder"
            )
        threads = settings.threads or default_threads()
        git = git_revision()
        todo = [_Job(*job, settings, threads, git) for job in jobs if job not in done]
        _write_environment(settings, threads, anew=bool(todo))
        if older := sum(then != git for then in done.values()):
            print(
                f"warning: {older} of {len(done)} records kept are of another state of the code; "
                "remove them to measure again",
                file=sys.stderr,
            )
        counts: dict[str, int] = {}
        with tqdm(total=len(jobs), initial=len(done), unit="case", file=sys.stderr) as bar:
            for name, outcome in _outcomes(todo, settings):
                bar.set_postfix_str(name)
                status = outcome()["status"]
                counts[status] = counts.get(status, 0) + 1
                bar.update()
    if left := len(jobs) - len(done) - sum(counts.values()):
        print(f"time limit: {left} cases not started; continue with --resume", file=sys.stderr)
    return counts


def _write_environment(settings: RunSettings, threads: int, *, anew: bool) -> None:
    """environment.json of what is about to be measured; where that is nothing, the one there is
    stays, but for new notes.
    """
    path = settings.out / "environment.json"
    environment = earlier = _earlier_environment(path)
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
    todo: list[_Job], settings: RunSettings
) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """The jobs' names and what waits for their records, in order."""
    if settings.jobs == "local":
        began = time.monotonic()
        for job in todo:
            if settings.time_limit is not None and time.monotonic() - began > settings.time_limit:
                return
            yield job.case.id, functools.partial(_run_one, *job)
        return
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
    # Minutes; the timeouts of the case and of its prediction act first.
    executor.update_parameters(
        timeout_min=2 * int(settings.timeout / 60) + 5,
        gpus_per_node=_gpus(todo),
        cpus_per_task=max((job.threads for job in todo), default=1),
    )
    with executor.batch():
        submitted = [(job, executor.submit(_run_one, *job)) for job in todo]
    for job, running in submitted:
        yield job.case.id, functools.partial(_collect, running, job)


def _collect(running: Any, job: _Job) -> dict[str, Any]:
    """Wait for a submitted job. One that the cluster ended or lost becomes a record of its own."""
    try:
        return running.result()
    except Exception as error:  # whatever submitit and the cluster have to say
        path = record_path(job.settings.out, job.case, job.seed)
        # before it was lost
        if found := _finished(job.settings.out, job.case, job.seed):
            return found
        record = empty_record(job.case, job.seed) | {"threads": job.threads, "git": job.git}
        record["status"] = "crashed"
        record["reason"] = f"the {job.settings.jobs} job failed: {_cause(error)}"
        explain_nulls(record, "status crashed")
        write_json(path, record)
        return record


def _cause(error: Exception) -> str:
    """The line that says why; after a job's traceback submitit says where its logs are."""
    text = str(error).split("\n-----")
    traces = [part for part in text if "Traceback" in part] or text
    lines = [line.strip() for line in traces[-1].splitlines() if line.strip(" -")]
    return lines[-1] if lines else repr(error)


def _gpus(todo: list[_Job]) -> int:
    return int(any(job.case.device == "cuda" for job in todo))


def _run_one(
    case: Case,
    seed: int,
    settings: RunSettings,
    threads: int,
    git: dict[str, Any],
) -> dict[str, Any]:
    path = record_path(settings.out, case, seed)
    log_path = settings.out / "logs" / f"{path.stem}.log"
    log_path.parent.mkdir(exist_ok=True)
    # Not the record's own place: it is not finished before the prediction and the GPU's samples.
    found_path = log_path.with_suffix(".record.json")
    order = {
        "case": case.to_dict(seed),
        "path": str(found_path),
        "threads": threads,
        "memory_limit": settings.memory_limit,
        "git": git,
        "predict": False,
    }
    # What is found there afterwards must be this worker's.
    found_path.unlink(missing_ok=True)
    oom_kills = _oom_kill_count()
    uuid = _gpu_uuid() if case.device == "cuda" else None
    outcome, code, sampled = _work(order, log_path, settings.timeout, uuid)
    try:
        record = read_record(found_path)
    except ValueError:
        record = _record_of_the_dead(case, seed, outcome, code, log_path, oom_kills)
        record |= {"threads": threads, "git": git, "versions": versions()}
        record["machine"] = machine(case.device)
        explain_nulls(record, f"status {record['status']}")
    else:
        if log_path.stat().st_size == 0:
            log_path.unlink()
    _predict(record, order, log_path, settings.timeout)
    if sampled is not None:
        record["cuda"] |= sampled
        record["null_reasons"] = {
            key: reason
            for key, reason in record["null_reasons"].items()
            if key not in {f"cuda.{name}" for name, value in sampled.items() if value is not None}
        }
    write_json(path, record)
    found_path.unlink(missing_ok=True)
    return record


def _work(
    order: dict[str, Any], log_path: Path, timeout: float, uuid: str | None = None
) -> tuple[str, int, dict[str, Any] | None]:
    """Run one worker to its end: how it ended, its exit code, what the GPU sampler saw."""
    threads = str(order["threads"])
    with open(log_path, "w", encoding="utf-8") as log, contextlib.ExitStack() as ends:
        # With a byte in this pipe the worker tells the sampler that the step has been measured.
        heard, mark = os.pipe() if uuid else (None, None)
        for end in (heard, mark):
            if end is not None:
                ends.callback(os.close, end)
        worker = subprocess.Popen(
            [sys.executable, "-m", "bench.worker", str(os.getpid())],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
            # Its own session: a timeout takes whatever the case started down with it.
            start_new_session=True,
            pass_fds=() if mark is None else (mark,),
        )
        sampler = Sampler.start(uuid, worker.pid, until=heard) if uuid else None
        outcome = _wait(worker, json.dumps(order | {"mark": mark}) + "\n", timeout)
        return outcome, worker.returncode, sampler.stop() if sampler else None


def _predict(record: dict[str, Any], order: dict[str, Any], log_path: Path, timeout: float) -> None:
    """Put the memory model's bytes into the record of a case that did not fit, or why not.

    In a worker of its own: the model measures small versions of the case.
    """
    case = record["case"]
    if record["status"] not in ("out_of_memory", "timeout"):
        reason = "predicted only where memory or time ran out"
    elif case["gradient"] == "direct" or case["tolerance"] is not None:
        reason = "predicted only for exactly K inner iterations"
    else:
        found = log_path.with_suffix(".prediction.json")
        log = log_path.with_suffix(".prediction.log")
        outcome, code, _ = _work(order | {"predict": True, "path": str(found)}, log, timeout)
        if found.exists():
            record["predicted"] = json.loads(found.read_text(encoding="utf-8"))
            found.unlink()
            log.unlink()
            reason = "not measured"
        else:
            reason = f"no prediction: {outcome}, exit code {code}"
    names = [f"predicted.{name}" for name in PREDICTED_FIELDS]
    reasons = {key: why for key, why in record["null_reasons"].items() if key not in names}
    record["null_reasons"] = reasons | {
        name: reason
        for name, key in zip(names, PREDICTED_FIELDS, strict=True)
        if record["predicted"][key] is None
    }


def _wait(worker: subprocess.Popen, order: str, timeout: float) -> str:
    """Hand the case over and wait; "exited" or "timeout"."""
    try:
        worker.communicate(order, timeout=timeout)
    except subprocess.TimeoutExpired:
        _kill(worker)
        return f"timeout after {timeout:g} s"
    except BaseException:
        # Interrupted: the case has no record and --resume will run it.
        _kill(worker)
        raise
    return "exited"


def _kill(worker: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(worker.pid, 9)
    worker.wait()


def _record_of_the_dead(
    case: Case, seed: int, outcome: str, code: int, log_path: Path, oom_kills: int
) -> dict[str, Any]:
    record = empty_record(case, seed)
    if outcome != "exited":
        record["status"], record["reason"] = "timeout", outcome
    elif code == -9:
        record["status"] = "out_of_memory" if oom_kills < _oom_kill_count() else "crashed"
        record["reason"] = "killed by SIGKILL, which is how the system ends what exhausts memory"
    else:
        lines = log_path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        memory = any("MemoryError" in line or "bad_alloc" in line for line in lines)
        record["status"] = "out_of_memory" if memory else "crashed"
        record["reason"] = f"exit code {code}: {lines[-1] if lines else 'no output'}"
    return record


def _oom_kill_count() -> int:
    """How often the system killed for memory in this cgroup; 0 where it does not say."""
    try:
        text = Path("/sys/fs/cgroup/memory.events").read_text()
    except OSError:
        return 0
    return int(dict(line.split() for line in text.splitlines()).get("oom_kill", 0))


def _finished(out: Path, case: Case, seed: int) -> dict[str, Any] | None:
    """The record that is there of exactly this case and seed."""
    path = record_path(out, case, seed)
    if not path.exists():
        return None
    try:
        record = read_record(path)
    except ValueError as error:
        print(f"warning: {error}; measuring it again", file=sys.stderr)
        return None
    try:
        # Records from before a field existed are of cases with its usual value.
        found = Case.from_dict(record["case"])
    except (TypeError, ValueError):
        return None
    return record if (found, record["case"].get("seed")) == (case, seed) else None


def _earlier_environment(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


@functools.cache
def _gpu_uuid() -> str:
    import torch

    return str(torch.cuda.get_device_properties(0).uuid)


@contextlib.contextmanager
def _claim(out: Path) -> Iterator[IO[str]]:
    """Hold the folder for this sweep alone; released by the system however the sweep ends."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "records").mkdir(exist_ok=True)
        lock = open(out / ".lock", "w")  # noqa: SIM115 - held by the with below
    except OSError as error:
        raise ValueError(f"`out` {out} cannot be written: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(f"`out` {out} is in use by another sweep") from error
        yield lock
