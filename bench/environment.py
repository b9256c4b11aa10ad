"""What a measurement ran on: hardware, versions, threads, source revision."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    *("torch", "numpy", "scipy", "cvxpy", "cvxpylayers", "diffcp", "clarabel", "scs", "moreau"),
    *("moreau-cuda12", "moreau-cuda13", "torchdeq", "casadi", "nvidia-ml-py"),
)
ROOT = Path(__file__).resolve().parent.parent


def versions() -> dict[str, str | None]:
    """Installed versions; null for what is not installed."""
    found: dict[str, str | None] = dict.fromkeys(("python", *PACKAGES))
    found["python"] = platform.python_version()
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


_SOURCE = ("bench", "jfbcore", "baselines", "pyproject.toml", "constraints.txt")


def git_revision() -> dict[str, Any]:
    """{"commit", "dirty"} of the source tree; nulls where no repository holds it."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=20
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # Installed below some other project's checkout, it would pass that one's commit for its own.
    if git("ls-files", "--error-unmatch", "bench/environment.py") is None:
        return {"commit": None, "dirty": None}
    commit = git("rev-parse", "HEAD")
    # What a run can import or install, not what lies beside it.
    status = git("status", "--porcelain", "--", *_SOURCE)
    return {"commit": commit, "dirty": None if status is None else bool(status)}


#: what of this package decides a measurement; reports, gates and the command line do not
_MEASURING = (
    *("build", "case", "device", "diagnostics", "environment", "errors", "failures", "gap"),
    *("identity", "jobs", "measure", "memory", "nvml", "plugins", "predict"),
    *("pretraining", "recipes", "reference/trajectories", "registry", "runner"),
    *("training", "worker", "workers"),
)


@functools.cache
def fingerprint() -> str:
    """A hash of the source that decides a measurement, whatever commit it belongs to.

    That is all of jfbcore and baselines, and what of bench a worker runs; a change of a report or
    of a text leaves it alone.
    """
    folders = ("jfbcore", "baselines", "bench/probes", "bench/roofline")
    sources = ("*.py", "*.cpp", "*.h")
    every = sorted(
        path for name in folders for kind in sources for path in (ROOT / name).rglob(kind)
    )
    files = [*every, *(ROOT / "bench" / f"{name}.py" for name in _MEASURING)]
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(ROOT).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


#: environment variables that decide how fast or how exactly a worker computes
_VARIABLES = (
    *("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "OMP_PROC_BIND", "OMP_PLACES", "OMP_DYNAMIC"),
    *("GOMP_SPINCOUNT", "GOMP_CPU_AFFINITY", "KMP_BLOCKTIME", "KMP_AFFINITY", "MKL_NUM_THREADS"),
    *("JFB_NATIVE", "MKL_CBWR", "OPENBLAS_NUM_THREADS", "MALLOC_ARENA_MAX", "MALLOC_CONF"),
    *("GLIBC_TUNABLES",),
    *("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_NO_CUDA_MEMORY_CACHING"),
    *("CUDA_LAUNCH_BLOCKING", "CUDA_VISIBLE_DEVICES", "CUBLAS_WORKSPACE_CONFIG", "TORCH_LOGS"),
    *("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "TORCH_COMPILE_DISABLE"),
)


def variables() -> dict[str, str]:
    """Those of the variables that decide speed or rounding which are set; libraries that are
    loaded before all others by their file's name."""
    found = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    if preloaded := os.environ.get("LD_PRELOAD", "").replace(":", " ").split():
        found["LD_PRELOAD"] = " ".join(Path(place).name for place in preloaded)
    return found


def usable_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_threads() -> int:
    """Threads of a measurement unless asked otherwise: what OMP_NUM_THREADS says, else one.

    A second thread gains little on these small operators, and beside other load the two wait for
    each other.
    """
    try:
        return max(1, int(os.environ.get("OMP_NUM_THREADS", "1").split(",")[0]))
    except ValueError:
        return 1


def keep_freed_memory() -> bool:
    """Have this process reuse the memory it frees instead of giving it back; False where it cannot.

    The tensors of a rollout are freed and allocated again at every training step, and the system
    clears each page it hands out: up to half of a compiled step's time. Through glibc's mallopt;
    other systems keep their own habits.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    # M_MMAP_MAX 0: large blocks from the heap too. M_TRIM_THRESHOLD and M_TOP_PAD, in bytes.
    settings = ((-4, 0), (-1, 2**31 - 1), (-2, 2**26))
    return all(mallopt(name, value) == 1 for name, value in settings)


def processor() -> str:
    """The CPU's name, and on x86 the family and model that tell generations apart.

    A virtual machine may give processors of several generations, twice as fast as one another,
    the same name.
    """
    found: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            found.setdefault(key.strip(), value.strip())
    name = found.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in found and "model" in found:
        return f"{name} (family {found['cpu family']}, model {found['model']})"
    return name


def machine(device: str) -> dict[str, str | None]:
    """What a case on `device` is measured on: {"cpu", "gpu"}, the latter null without one."""
    gpu = _gpu() if device == "cuda" else None
    return {"cpu": processor(), "gpu": None if gpu is None else gpu["name"]}


def describe(preset: str | None, threads: int, started: str) -> dict[str, Any]:
    """The environment file of a run."""
    import psutil

    return {
        "schema_version": 1,
        "platform": platform.platform(),
        "cpu": processor(),
        "cores": usable_cores(),
        "threads": threads,
        "memory_bytes": psutil.virtual_memory().total,
        "gpu": _gpu(),
        "python": sys.version.split()[0],
        "fingerprint": fingerprint(),
        "versions": versions(),
        "git": git_revision(),
        "preset": preset,
        "started": started,
        "limits": limits(preset),
    }


def limits(preset: str | None) -> list[str]:
    """What a reader must know before comparing rows."""
    found = [
        "Rows compare only where the achieved inner residual does; a row that missed its "
        "tolerance is marked, not dropped.",
        "Times are medians within one process and compare within one run on one processor only. "
        "Byte counts are exact and repeat on any machine.",
        "CVXPYLayers solves in float64: with Clarabel and SCS on the CPU, one sample at a time; "
        "with Moreau the batch at once, on a GPU where moreau-cuda is installed.",
        "No iterative row uses the closed form; it is a row of its own, named so.",
    ]
    if preset == "smoke":
        found.insert(
            0,
            "The smoke preset shortens horizons and batches to finish in minutes: it shows that "
            "everything runs and how memory grows, not how well anything trains.",
        )
    return found


def _gpu() -> dict[str, Any] | None:
    import torch

    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "uuid": str(properties.uuid),
        "cuda": torch.version.cuda,
    }
