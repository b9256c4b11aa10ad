"""Worker processes: started ahead, used for one order each, ended with all they started."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from bench.environment import ROOT, usable_cores
from bench.nvml import Sampler

#: cores up to which no worker is started beside a measurement
_FEW_CORES = 4
#: how the log of a worker without an order begins, before the process that started it
_WAITING = ".waiting-"
#: how a worker ended whose run was over before its own time was
OUT_OF_TIME = "the run's time was over"


class Ended(NamedTuple):
    """How a worker ended, as `wait` says, its exit code, and what the GPU sampler saw."""

    outcome: str
    code: int
    sampled: dict[str, Any] | None


class Worker:
    """A process of `bench.worker`, which imports what a case needs and waits for its order.

    It ends with the thread that made it, so it has to be made by one that lasts as long as it is
    needed: the main one, or one of a `Crew`.
    """

    def __init__(
        self, logs: Path, threads: int, environment: Mapping[str, str] | None = None
    ) -> None:
        prefix = f"{_WAITING}{os.getpid()}-"
        descriptor, name = tempfile.mkstemp(prefix=prefix, suffix=".log", dir=logs)
        os.fchmod(descriptor, 0o644)
        self.log = Path(name)
        # With a byte in this pipe the worker tells the sampler that the step has been measured.
        self._heard, mark = multiprocessing.Pipe(duplex=False)
        self._mark = mark.fileno()
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "bench.worker", str(os.getpid())],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=descriptor,
                stderr=descriptor,
                text=True,
                env=os.environ
                | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
                | dict(environment or {}),
                # Its own session: a timeout takes whatever the case started down with it.
                start_new_session=True,
                pass_fds=(self._mark,),
            )
        except BaseException:
            self._heard.close()
            self.log.unlink()
            raise
        finally:
            os.close(descriptor)
            mark.close()

    def send(self, order: Mapping[str, Any]) -> None:
        """Hand the order over and return at once."""
        _send(self.process, _text(order))

    def run(
        self,
        order: Mapping[str, Any],
        log: Path,
        timeout: float,
        uuid: str | None = None,
        deadline: float = math.inf,
    ) -> Ended:
        """Hand the order over and `wait` for the end; the worker's output is in `log`.

        `uuid`: the device whose memory is sampled meanwhile, from an idle baseline on.
        """
        self.log = self.log.replace(log)
        sampler = Sampler(uuid, self.process.pid, until=self._heard) if uuid else None
        order = dict(order) | {
            "mark": self._mark if sampler else None,
            "uuid": uuid,
            "idle_bytes": sampler.baseline if sampler else None,
        }
        try:
            outcome = wait(self.process, _text(order), timeout, deadline)
        except BaseException:
            if sampler:
                sampler.stop()
            raise
        return Ended(outcome, self.process.returncode, sampler.stop() if sampler else None)

    def close(self) -> None:
        """End the process if it is alive; the log of one that had no order goes with it."""
        if self.process.poll() is None:
            kill(self.process)
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
        self._heard.close()
        if self.log.name.startswith(_WAITING):
            self.log.unlink(missing_ok=True)


class Pool:
    """Workers for the jobs of a run, `spare` of them started ahead of their job.

    `timed`: for each job in order whether its seconds are measured. `spare` None starts one beside
    jobs that are not, which importing does not disturb; on few cores that holds for any `spare`.
    """

    def __init__(
        self, logs: Path, threads: int, *, spare: int | None, timed: Sequence[bool]
    ) -> None:
        self._logs, self._threads = logs, threads
        self._timed = deque(timed)
        self._beside_timed = spare is not None and usable_cores() > _FEW_CORES
        self._spare = spare if spare is not None and self._beside_timed else int(spare != 0)
        self._ready: deque[Worker] = deque()
        for path in logs.glob(f"{_WAITING}*"):
            # Of a run that was killed, and not of another one that shares the folder.
            owner = path.name.removeprefix(_WAITING).split("-")[0]
            if not psutil.pid_exists(int(owner)):
                path.unlink(missing_ok=True)

    def fill(self) -> None:
        """Start what is missing of the spare workers; returns before they have imported."""
        while len(self._ready) < min(self._spare, len(self._timed)):
            self._ready.append(Worker(self._logs, self._threads))

    def take(self, again: bool = False) -> Worker:
        """The worker that has waited longest, or a new one; the caller closes it.

        `again`: for the job at hand once more, not for the next.
        """
        worker = None
        while self._ready and worker is None:
            worker = self._ready.popleft()
            if worker.process.poll() is not None:
                worker.close()
                worker = None
        worker = worker or Worker(self._logs, self._threads)
        if not again:
            self._now = self._timed.popleft()
        try:
            if self._beside_timed or not self._now:
                self.fill()
        except BaseException:
            worker.close()
            raise
        return worker

    def close(self) -> None:
        while self._ready:
            self._ready.popleft().close()


class Crew:
    """Runs several jobs at a time, in threads, each with workers of its own.

    For jobs of which no seconds are measured. `close` ends what runs, and no result of it counts.
    """

    def __init__(self, logs: Path, threads: int, at_once: int) -> None:
        self._logs, self._threads = logs, threads
        # A worker ends with the thread that made it; these last until `close`.
        self._executor = ThreadPoolExecutor(at_once, thread_name_prefix="job")
        self._workers: set[Worker] = set()
        self._lock = threading.Lock()
        self.closed = False

    def submit(self, run: Callable[[], Any]) -> Future[Any]:
        """Run it as soon as a thread is free."""
        return self._executor.submit(run)

    def take(self, again: bool = False) -> Worker:
        """A new worker; the caller closes it."""
        with self._lock:
            worker = Worker(self._logs, self._threads)
            self._workers.add(worker)
            if self.closed:
                kill(worker.process)
        return worker

    def close(self) -> None:
        with self._lock:
            self.closed = True
            for worker in self._workers:
                if worker.process.poll() is None:
                    kill(worker.process)
        self._executor.shutdown(cancel_futures=True)


def wait(process: subprocess.Popen, order: str, timeout: float, deadline: float = math.inf) -> str:
    """Hand the job over and wait; "exited", OUT_OF_TIME at the monotonic time `deadline`, or the
    timeout: seconds without those in which the process was ready but others had the processor.
    """
    began = time.monotonic()
    try:
        _send(process, order)
        while True:
            now = time.monotonic()
            left = timeout - (now - began - kept_off(process.pid))
            if left <= 0.0:
                kill(process)
                waited = now - began - timeout
                return f"timeout after {timeout:g} s" + (
                    f" and {waited:.3g} s of waiting for a processor" if waited > 1.0 else ""
                )
            if now >= deadline:
                kill(process)
                return OUT_OF_TIME
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(min(left, deadline - now), 0.001))
                return "exited"
    except BaseException:
        # Interrupted: the job has no record and --resume will run it.
        kill(process)
        raise


def kept_off(pid: int) -> float:
    """Seconds for which a thread of the process was ready to run but was not let, of the thread
    that waited most; 0 where the system does not say (Linux does)."""
    waited = [0.0]
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError, IndexError):  # the thread has ended
            waited.append(int(path.read_text().split()[1]) * 1e-9)
    return max(waited)


def kill(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, 9)
    process.wait()


def _text(order: Mapping[str, Any]) -> str:
    """The order as the line that a worker reads."""
    return pickle.dumps(dict(order)).hex() + "\n"


def _send(process: subprocess.Popen, order: str) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
        stdin.write(order)
