"""Slurm's commands: what is asked of sbatch, squeue, scontrol and scancel, and what they answer.

Only the queue is asked, never the accounting database: many clusters have none, and an element of
an array that is cancelled before it starts is not always in it.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

#: states of a task that may still write its record
ALIVE = (
    *("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING"),
    *("REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESIZING", "SPECIAL_EXIT", "STAGE_OUT"),
)
#: why a task that waits will never start, whatever becomes free
NEVER = (
    *("BadConstraints", "DependencyNeverSatisfied", "InvalidAccount", "InvalidQOS"),
    *("AccountNotAllowed", "PartitionNodeLimit", "PartitionTimeLimit", "QOSNotAllowed"),
)
#: the number under which `states` has the tasks of an array that it does not tell apart
REST = -1
#: how many elements an array may have where Slurm does not say
_USUAL_ARRAY = 1001
#: seconds for an answer of the controller
_PATIENCE = 60


class SlurmError(RuntimeError):
    """A command of Slurm failed; the message is its own last line."""


@dataclass(frozen=True, kw_only=True)
class SlurmOptions:
    """What a sweep asks of Slurm beyond processors, devices and time, which follow from its cases.

    `exclusive`: whether a task has its node for itself; None says yes where a case is timed.
    `throttle`: tasks at once. `setup`: shell commands before Python starts, in order. The others
    are handed to sbatch as they are; `gres` replaces the one GPU that a case on CUDA asks for.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    memory: str | None = None
    constraint: str | None = None
    gres: str | None = None
    exclusive: bool | None = None
    throttle: int | None = None
    setup: tuple[str, ...] = ()

    @classmethod
    def parse(cls, texts: Iterable[str]) -> SlurmOptions:
        """From KEY=VALUE, `setup` as often as wanted; ValueError naming what is not allowed."""
        names = [field.name for field in fields(cls)]
        values: dict[str, Any] = {"setup": ()}
        for text in texts:
            key, equals, value = text.partition("=")
            if key not in names or not equals or not value:
                raise ValueError(
                    f"`slurm` takes KEY=VALUE with KEY one of {', '.join(names)}, got {text!r}"
                )
            if key == "throttle" and not (value.isdigit() and int(value) >= 1):
                raise ValueError(f"`slurm` throttle must be a number of tasks >= 1, got {value!r}")
            if key == "exclusive" and value not in ("yes", "no"):
                raise ValueError(f"`slurm` exclusive must be yes or no, got {value!r}")
            if key == "setup":
                values[key] += (value,)
            else:
                own = {"throttle": value.isdigit() and int(value), "exclusive": value == "yes"}
                values[key] = own.get(key, value)
        return cls(**values)

    def flags(self, *, timed: bool, cuda: bool) -> list[str]:
        """The options of sbatch."""
        gres = self.gres or ("gpu:1" if cuda else None)
        wanted = {
            "partition": self.partition, "account": self.account, "qos": self.qos,
            "mem": self.memory, "constraint": self.constraint, "gres": gres,
        }  # fmt: skip
        found = [f"--{name}={value}" for name, value in wanted.items() if value is not None]
        alone = timed if self.exclusive is None else self.exclusive
        return [*found, "--exclusive"] if alone else found


class State(NamedTuple):
    """Of a task: Slurm's word for its state, and why."""

    state: str
    reason: str


def call(*command: str) -> str:
    """What a command of Slurm prints; SlurmError with its last line where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE)
    except FileNotFoundError:
        raise SlurmError(f"{command[0]} is not there: is this a host that submits?") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{command[0]} gave no answer in {_PATIENCE} s") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise SlurmError(f"{command[0]}: {lines[-1].removeprefix(f'{command[0]}: error: ')}")
    return done.stdout


def most_tasks() -> int:
    """How many tasks an array may have: below MaxArraySize, which also bounds their numbers."""
    for line in call("scontrol", "show", "config").splitlines():
        name, _, value = line.partition("=")
        if name.strip() == "MaxArraySize":
            return max(1, int(value) - 1)
    return _USUAL_ARRAY - 1


def submit(
    folder: Path, name: str, count: int, flags: Sequence[str], options: SlurmOptions
) -> None:
    """Submit the tasks 0..count-1 of `folder` as an array called `name`."""
    places = os.pathsep.join(os.path.abspath(place) for place in sys.path)
    script = [
        "#!/bin/sh",
        *options.setup,
        f"export PYTHONPATH={shlex.quote(places)}",
        f"exec {shlex.join([sys.executable, '-m', 'bench.cluster_task', str(folder)])}",
    ]
    path = folder / "task.sh"
    path.write_text("\n".join(script) + "\n", encoding="utf-8")
    throttle = f"%{options.throttle}" if options.throttle else ""
    call(
        *("sbatch", f"--job-name={name}", f"--array=0-{count - 1}{throttle}"),
        *("--nodes=1", "--ntasks=1", f"--output={folder}/%a.log", *flags, str(path)),
    )


def states(names: Sequence[str]) -> dict[tuple[str, int], State]:
    """The tasks of the arrays called `names` that the queue knows, by name and number."""
    answer = call(
        "squeue", "-h", "-r", "-t", "all", f"--name={','.join(names)}", "-o", "%j|%K|%T|%r"
    )
    rows = [line.split("|", 3) for line in answer.splitlines()]
    return {(name, k): State(*rest) for name, tasks, *rest in rows for k in _numbers(tasks)}


def _numbers(tasks: str) -> Iterator[int]:
    """Of "7", "2-4,7" and "2-4%1"; REST of "N/A", which are elements cancelled as they waited."""
    if tasks == "N/A":
        yield REST
    for part in tasks.partition("%")[0].split(","):
        first, _, last = part.partition("-")
        if first.isdigit():
            yield from range(int(first), int(last or first) + 1)


def cancel(name: str, tasks: Sequence[int]) -> None:
    """Cancel tasks of the array called `name`; those that are over already are no error."""
    answer = call("squeue", "-h", f"--name={name}", "-o", "%F")
    for job in set(answer.split()):
        call("scancel", *(f"{job}_{task}" for task in tasks))
