"""The opening of the page: environment, what the cases had in common, known limitations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from bench.presets import PRESETS
from bench.report.frames import Machine, environment_letters, machines
from bench.report.load import Run
from bench.report.style import counted, format_bytes
from bench.report.tables import Table

_UNKNOWN = "not recorded"
#: columns of the table of cases and their headings
_WORKLOAD = {
    "n_agents": "agents",
    "batch_size": "batch",
    "n_steps": "time steps",
    "dtype": "precision",
    "device": "device",
    "variant": "variant",
    "ascent": "maps",
    "solver": "solvers",
    "budget": "stopping rules",
    "train_steps": "training steps",
    "seed": "seeds",
}


def environment_table(runs: Sequence[Run]) -> Table:
    """What each run was measured on, one column per run."""
    letters = environment_letters(runs)
    columns = [_environment(run, letters) for run in runs]
    rows = [
        [name, *(_UNKNOWN if column[name] is None else str(column[name]) for column in columns)]
        for name in columns[0]
    ]
    return Table("Environment", ["", *(run.name for run in runs)], rows)


def _environment(run: Run, letters: Mapping[tuple[str, Machine], str]) -> dict[str, Any]:
    own = run.environment
    letter = {made_on: each for (name, made_on), each in letters.items() if name == run.name}
    named = [f"{each}: {made_on.label}" for made_on, each in letter.items()]
    # the commits of the records; how many each, where there are several
    commits = Counter(_commit(record) or _UNKNOWN for record in run.records)
    only = _commit(own) if set(commits) <= {_UNKNOWN} else next(iter(commits))
    size = own.get("memory_bytes")
    return {
        "environment": ", ".join(named if len(named) > 1 else letter.values()),
        "records": len(run.records),
        "preset": own.get("preset"),
        "started": own.get("started"),
        "CPU": own.get("cpu"),
        "cores": own.get("cores"),
        "threads used": own.get("threads"),
        "memory": None if size is None else format_bytes(size),
        "GPU": _gpu(own.get("gpu")),
        "platform": own.get("platform"),
        "Python": own.get("python"),
        "packages": _versions(own.get("versions") or {}),
        "code version": only if len(commits) < 2 else _most_first(commits),
    }


def workload_table(cases: pd.DataFrame) -> Table:
    """Batch, time steps, sizes and settings that each problem was run with."""
    rows = []
    for problem, group in cases.groupby("problem"):
        lists = (sorted(group[name].dropna().unique(), key=_natural) for name in _WORKLOAD)
        # no line break inside a value such as "K = 50"
        words = ([str(value).replace(" ", "\N{NO-BREAK SPACE}") for value in own] for own in lists)
        rows.append([str(problem), *map(", ".join, words)])
    return Table("Cases in this report", ["problem", *_WORKLOAD.values()], rows)


def limitations(runs: Sequence[Run]) -> list[str]:
    """The limitations the runs state about themselves, each once, and what they left out."""
    stated = [str(text) for run in runs for text in run.environment.get("limits") or ()]
    stated += filter(None, map(not_run, runs))
    stated += filter(None, map(_several_machines, runs))
    if all(run.environment.get("gpu") is None for run in runs):
        stated.append("No GPU: device memory was not measured, and nothing here speaks for one.")
    if any((run.environment.get("git") or {}).get("dirty") for run in runs):
        stated.append("The code had uncommitted changes when a run was made.")
    return list(dict.fromkeys(stated))


def not_run(run: Run) -> str:
    """How much of its preset a run holds, and what is missing by batch and iterations; or ""."""
    preset = run.environment.get("preset")
    if preset not in PRESETS or not run.records:
        return ""
    measured = {record["case"]["id"] for record in run.records}
    there: dict[str, list[bool]] = {}
    for case in {case.id: case for case in PRESETS[preset]()}.values():
        stop = "to tolerance" if case.tolerance is not None else f"exactly {case.max_iterations}"
        there.setdefault(f"batch {case.batch_size}, {stop}", []).append(case.id in measured)
    parts = [
        f"{group} ({own.count(False)} of {len(own)})"
        for group, own in there.items()
        if not all(own)
    ]
    done, due = (sum(map(count, there.values())) for count in (sum, len))
    left = f"Preset {preset}: {done} of {due} cases were run. Not run: {'; '.join(parts)}."
    return left if parts else ""


def _several_machines(run: Run) -> str:
    """How many records each machine made, where a run holds those of several; or ""."""
    found = machines(run)
    made = Counter(each.label for each in found)
    if len(made) <= 1:
        return ""
    kinds = ("processors", "GPUs", "numbers of threads", "versions of the code", "sets of packages")
    values = zip(kinds, zip(*found, strict=True), strict=True)
    several = " and ".join(kind for kind, own in values if len(set(own)) > 1)
    return (
        f"The records of {run.name} were made on several {several}: {_most_first(made)}. Seconds, "
        "and the training steps taken in them, compare within one of them only; bytes and inner "
        "iterations compare throughout."
    )


def _most_first(records: Counter[str]) -> str:
    """Each name and its number of records, most first."""
    return ", ".join(f"{name} ({counted(n, 'record')})" for name, n in records.most_common())


def _natural(value: Any) -> tuple[float, str]:
    """Sort key: numbers by size, also those that end a text such as "K = 50"."""
    text = str(value)
    try:
        return (float(text.split()[-1]), text)
    except ValueError:
        return (-1.0, text)


def _gpu(gpu: Any) -> str:
    if not isinstance(gpu, Mapping):
        return str(gpu or "none")
    return (
        ", ".join(
            f"{name.removesuffix('_bytes')} {format_bytes(value)}"
            if name.endswith("_bytes") and value is not None
            else f"{name} {value}"
            for name, value in gpu.items()
        )
        or "none"
    )


def _versions(versions: Mapping[str, str | None]) -> str | None:
    there = {name: version for name, version in versions.items() if version is not None}
    absent = ", ".join(name for name in versions if name not in there)
    named = ", ".join(f"{name} {own}" for name, own in there.items() if name != "python")
    return "; ".join([named] + ([f"not installed: {absent}"] if absent else [])) or None


def _commit(measured: Mapping[str, Any]) -> str | None:
    git = measured.get("git") or {}
    changes = " with uncommitted changes" if git.get("dirty") else ""
    return f"{git['commit'][:12]}{changes}" if git.get("commit") else None
