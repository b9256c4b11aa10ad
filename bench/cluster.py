"""A sweep on Slurm: arrays of tasks are submitted, watched in the queue and collected.

OUT/jobs/<token> holds one array: `orders.pickle`, what its tasks measure, `array.json`, what it is,
and what the tasks leave. A sweep that dies leaves these folders, and the next one with --resume
takes their tasks over. The folders are the user's alone (0700, their files 0600), because reading a
pickle runs what it says.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pickle
import secrets
import shutil
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import slurm
from bench.jobs import Order, RunSettings
from bench.records import read_record, write_json

#: seconds between two looks at the queue
POLL = 3.0
#: looks for which a task that is over may still have a record on its way, through a network's disk
_LOOKS = 3


@dataclass(eq=False)
class _Array:
    """One array of tasks: its folder, its name in the queue, the records' names of its tasks."""

    folder: Path
    name: str
    stems: list[str]

    def finished(self) -> set[int]:
        """The tasks whose record is there."""
        names = os.listdir(self.folder)
        return {int(n[:-5]) for n in names if n.endswith(".json") and n[:-5].isdigit()}

    def last_words(self, task: int) -> str:
        """The last line of a task's log, in brackets; nothing where there is none."""
        try:
            text = (self.folder / f"{task}.log").read_text(errors="replace")
        except OSError:
            return ""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return f" ({lines[-1]})" if lines else ""


#: an array and the number of one of its tasks
_Task = tuple[_Array, int]


def outcomes(
    todo: list[Order], settings: RunSettings, run_one: Callable[..., dict[str, Any]]
) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """The name and the record of every job, as they come; lost jobs are said and left out.

    Raises ValueError where Slurm takes no job.
    """
    try:
        sweep = _Sweep(settings, run_one)
        sweep.adopt(todo)
        sweep.plan(todo)
        yield from sweep.results()
    except slurm.SlurmError as error:
        raise ValueError(f"`jobs` slurm: {error}") from error


class _Sweep:
    def __init__(self, settings: RunSettings, run_one: Callable[..., dict[str, Any]]) -> None:
        self.settings, self.run_one = settings, run_one
        self.folder = settings.out / "jobs"
        self.waiting: dict[_Task, int] = {}  # looks since it was over
        self.arrays: set[_Array] = set()
        self.chunks: deque[list[Order]] = deque()
        self.said: set[str] = set()

    def adopt(self, todo: list[Order]) -> None:
        """Take over the tasks of sweeps that died: those done, and those that are in the queue."""
        left = [a for path in sorted(self.folder.glob("*/array.json")) if (a := _read(path))]
        if not left:
            return
        states = slurm.states([array.name for array in left])
        wanted = {order.job.name for order in todo}
        for array in left:
            done = array.finished()
            for task, stem in enumerate(array.stems):
                state = states.get((array.name, task))
                if stem in wanted and (task in done or (state and state.state in slurm.ALIVE)):
                    self.waiting[array, task] = 0
                    self.arrays.add(array)
                    wanted.discard(stem)
            if array not in self.arrays:
                shutil.rmtree(array.folder)
        if self.waiting:
            _say(f"{len(self.waiting)} jobs of an earlier sweep are taken over")

    def plan(self, todo: list[Order]) -> None:
        """Arrays of what is left, of jobs that ask for the same."""
        taken = {array.stems[task] for array, task in self.waiting}
        groups: dict[tuple[object, ...], list[Order]] = {}
        for order in todo:
            if order.job.name not in taken:
                like = (order.case.device, order.threads, order.timed)
                groups.setdefault(like, []).append(order)
        most = slurm.most_tasks()
        for orders in groups.values():
            self.chunks += [orders[i : i + most] for i in range(0, len(orders), most)]

    def results(self) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
        """Submit what Slurm takes, and collect, until nothing is left."""
        try:
            while self.chunks or self.waiting:
                self._submit()
                for array, task in self._over():
                    record = self._collect(array, task)
                    del self.waiting[array, task]
                    yield array.stems[task], functools.partial(dict, record)
                self._tidy()
                if self.waiting:
                    time.sleep(POLL)
        finally:
            self._tidy()
            if self.waiting:
                _say(
                    f"{len(self.waiting)} jobs stay in the queue: go on with --resume, or end them "
                    f"with scancel --name={','.join(self._names())}"
                )

    def _names(self) -> list[str]:
        return sorted({array.name for array, _ in self.waiting})

    def _submit(self) -> None:
        """Submit arrays until one is refused. That one waits for those in the queue, if any."""
        while self.chunks:
            jobs = self.chunks[0]
            try:
                array = self._submit_array(jobs)
            except slurm.SlurmError as error:
                if "limit" in str(error).lower() and len(jobs) > 1:
                    half = len(jobs) // 2
                    self.chunks[0] = jobs[:half]
                    self.chunks.insert(1, jobs[half:])
                    continue
                if not self.waiting:
                    raise
                _say(f"{error}; trying again when others have ended", self.said)
                return
            self.chunks.popleft()
            self.arrays.add(array)
            self.waiting |= dict.fromkeys(((array, task) for task in range(len(jobs))), 0)

    def _submit_array(self, jobs: list[Order]) -> _Array:
        token = secrets.token_hex(4)
        # The host that submits is in the name: a queue is read by people, too.
        array = _Array(
            self.folder / token,
            f"jfbbench-{socket.gethostname().partition('.')[0]}-{token}",
            [order.job.name for order in jobs],
        )
        self.folder.mkdir(mode=0o700, exist_ok=True)
        array.folder.mkdir(mode=0o700)
        try:
            _write_private(array.folder / "orders.pickle", pickle.dumps((self.run_one, jobs)))
            content = {"name": array.name, "stems": array.stems}
            # Before it is submitted: the name finds the jobs of a sweep that dies in between.
            _write_private(array.folder / "array.json", json.dumps(content).encode())
            case, options = jobs[0].case, self.settings.slurm
            # Minutes; the timeouts of the job, tried twice, and of its prediction act first.
            minutes = 3 * int(self.settings.timeout / 60) + 5
            flags = options.flags(timed=jobs[0].timed, cuda=case.device == "cuda")
            flags += [f"--time={minutes}", f"--cpus-per-task={jobs[0].threads}"]
            slurm.submit(array.folder, array.name, len(jobs), flags, options)
        except BaseException:
            shutil.rmtree(array.folder)
            with contextlib.suppress(OSError):
                self.folder.rmdir()
            raise
        return array

    def _over(self) -> list[_Task]:
        """The tasks with a record; those that will never have one are dropped, with a word."""
        if not self.waiting:
            return []
        try:
            states = slurm.states(self._names())
        except slurm.SlurmError as error:
            _say(f"{error}; asking again", self.said)
            return []
        # After the queue was asked: what is over by then has its record, unless a disk is late.
        done = {(array, task) for array in self.arrays for task in array.finished()}
        for array, task in [key for key in self.waiting if key not in done]:
            rest = states.get((array.name, slurm.REST), slurm.State("gone from the queue", ""))
            found = states.get((array.name, task), rest)
            if found.state == "PENDING" and found.reason in slurm.NEVER:
                slurm.cancel(array.name, [task])
                self._lose(array, task, f"can never start ({found.reason}) and was cancelled")
            elif found.state in slurm.ALIVE:
                if found.state == "PENDING" and found.reason.startswith(("JobHeld", "Partition")):
                    _say(f"{array.name} waits: {found.reason}", self.said)
                self.waiting[array, task] = 0
            elif self.waiting[array, task] < _LOOKS:
                self.waiting[array, task] += 1
            else:
                words = array.last_words(task)
                self._lose(array, task, f"left no record: {found.state.lower()}{words}")
        return [key for key in self.waiting if key in done]

    def _lose(self, array: _Array, task: int, why: str) -> None:
        del self.waiting[array, task]
        _say(f"{array.stems[task]} {why}; --resume measures it")

    def _collect(self, array: _Array, task: int) -> dict[str, Any]:
        """Move a task's record and its logs to the sweep's."""
        record = read_record(array.folder / f"{task}.json")
        write_json(self.settings.out / "records" / f"{array.stems[task]}.json", record)
        for log in (array.folder / str(task) / "logs").glob("*.log"):
            target = self.settings.out / "logs" / log.name
            target.parent.mkdir(exist_ok=True)
            shutil.move(log, target)
        return record

    def _tidy(self) -> None:
        """Remove the folders of arrays that nothing is waited for."""
        for array in self.arrays - {array for array, _ in self.waiting}:
            self.arrays.remove(array)
            shutil.rmtree(array.folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()


def _read(path: Path) -> _Array | None:
    """The array of an array.json; None where a sweep died while it wrote it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return _Array(path.parent, content["name"], content["stems"])
    except (ValueError, KeyError):
        return None


def _write_private(path: Path, content: bytes) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)


def _say(text: str, said: set[str] | None = None) -> None:
    """On stderr; with `said`, once."""
    if said is None or text not in said:
        print(f"slurm: {text}", file=sys.stderr)
    if said is not None:
        said.add(text)
