"""What went wrong, in one line, and whether memory ran out: of an exception, of a dead process."""

from __future__ import annotations

from pathlib import Path

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
    lines = [line.strip() for line in reversed(text.splitlines())]
    return next((line for line in lines if any(w in line.lower() for w in _WORDS)), None)


def words_of(error: BaseException) -> str:
    """What went wrong, in one line."""
    return f"{type(error).__name__}: {first_line(error)}"


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [repr(error)])[0]


def fate(outcome: str, code: int, log_path: Path, oom_kills: int) -> tuple[str, str]:
    """Status and reason of a job whose worker could not write its record.

    `outcome`, `code`: how it ended. `oom_kills`: the count before it was started.
    """
    if outcome != "exited":
        return "timeout", f"{outcome}, twice"
    if code == -9:
        status = "out_of_memory" if oom_kills < oom_kill_count() else "crashed"
        return status, "killed by SIGKILL, which is how the system ends what exhausts memory"
    text = log_path.read_text(encoding="utf-8", errors="replace").strip()
    status = "crashed" if line_about_memory(text) is None else "out_of_memory"
    return status, f"exit code {code}: {(text.splitlines() or ['no output'])[-1]}"


def oom_kill_count() -> int:
    """How often the system killed for memory in this cgroup; 0 where it does not say."""
    try:
        text = Path("/sys/fs/cgroup/memory.events").read_text()
    except OSError:
        return 0
    return int(dict(line.split() for line in text.splitlines()).get("oom_kill", 0))
