"""What went wrong, in one line, and whether memory ran out: of an exception, of a dead process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.case import Case
from bench.environment import fingerprint
from bench.records import empty_record

#: how a message tells that memory ran out, in lower case: of the host, of the device, and of the
#: libraries that allocate on it by themselves
_WORDS = (
    *("can't allocate memory", "not enough memory", "out of memory", "memoryerror", "bad_alloc"),
    *("cublas_status_alloc_failed", "cudnn_status_alloc_failed", "cusolver_status_alloc_failed"),
    *("cusparse_status_alloc_failed", "cufft_alloc_failed", "cudaerrormemoryallocation"),
)


def ran_out(error: BaseException) -> str | None:
    """What `error` says where it says that memory ran out, else None."""
    import torch

    if isinstance(error, MemoryError):
        return f"the host ran out: {error!r}"
    if isinstance(error, torch.OutOfMemoryError):
        return first_line(error)
    # RuntimeError is also what torch.compile wraps the error of a kernel in, and the base of
    # torch.AcceleratorError.
    return line_about_memory(str(error)) if isinstance(error, RuntimeError) else None


def line_about_memory(text: str) -> str | None:
    """The last line of `text` that says that memory ran out, or None."""
    lines = [line.strip() for line in text.splitlines()]
    return next((line for line in reversed(lines) if _about_memory(line)), None)


def _about_memory(line: str) -> bool:
    return any(word in line.lower() for word in _WORDS)


def words_of(error: BaseException) -> str:
    """What went wrong, in one line."""
    return f"{type(error).__name__}: {first_line(error)}"


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [repr(error)])[0]


def record_of_the_dead(
    case: Case, seed: int, outcome: str, code: int, log_path: Path, oom_kills: int
) -> dict[str, Any]:
    """A record in the place of one that its worker could not write."""
    record = empty_record(case, seed) | {"fingerprint": fingerprint()}
    if outcome != "exited":
        record["status"], record["reason"] = "timeout", outcome
    elif code == -9:
        record["status"] = "out_of_memory" if oom_kills < oom_kill_count() else "crashed"
        record["reason"] = "killed by SIGKILL, which is how the system ends what exhausts memory"
    else:
        text = log_path.read_text(encoding="utf-8", errors="replace").strip()
        lines = text.splitlines()
        record["status"] = "crashed" if line_about_memory(text) is None else "out_of_memory"
        record["reason"] = f"exit code {code}: {lines[-1] if lines else 'no output'}"
    return record


def oom_kill_count() -> int:
    """How often the system killed for memory in this cgroup; 0 where it does not say."""
    try:
        text = Path("/sys/fs/cgroup/memory.events").read_text()
    except OSError:
        return 0
    return int(dict(line.split() for line in text.splitlines()).get("oom_kill", 0))
