"""The opening of the page: environment, what the cases had in common, known limitations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from bench.case import Case
from bench.presets import PRESETS
from bench.report.frames import Machine, environment_letters, machines
from bench.report.load import Run
from bench.report.style import format_bytes
from bench.report.tables import Cell, Table

_UNKNOWN = "not recorded"

#: what holds for every run; a run's own limitations follow
READING = (
    "A row is one case: a problem, a size, a gradient and a solver setting. Rows may be compared "
    "only where the problem, batch, time steps, precision, device and the achieved residual are "
    "equal; a row that did not reach its tolerance is marked, never dropped.",
    "Time is the median of repeated gradient steps after a warm-up; memory is measured in a "
    "separate pass. Peak live tensors and bytes saved for backward are counted from tensor "
    "storages and do not depend on the machine; RSS includes the interpreter and libraries.",
    "The time axis of training curves excludes evaluation.",
    "A missing value is unknown, never zero.",
)

#: what holds for a page of claims alone
CLAIMS_READING = (
    "A verdict says whether the claim held in the runs listed, at their sizes and lengths: "
    "reproduced where it held in all of them, partly where in some, not where in none.",
    "A missing value is unknown, never zero.",
)


def environment_table(runs: Sequence[Run]) -> Table:
    """What each run was measured on, one column per run."""
    letters = environment_letters(runs)
    rows = [
        [Cell("environment"), *(Cell(_letters_of(run, letters)) for run in runs)],
        [Cell("records"), *(Cell(str(len(run.records))) for run in runs)],
    ]
    rows += [
        [Cell(name), *(Cell(write(run.environment)) for run in runs)] for name, write in _LINES
    ]
    rows.append([Cell("code version"), *(Cell(_code_version(run)) for run in runs)])
    headings = [run.name for run in runs]
    return Table("Environment", ["", *headings], rows)


def workload_table(cases: pd.DataFrame) -> Table:
    """Batch, time steps, sizes and settings that each problem was run with."""
    columns = {
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
    rows = []
    for problem, group in cases.groupby("problem"):
        lists = [group[name].dropna().unique().tolist() for name in columns]
        ordered = [sorted(values, key=_natural) for values in lists]
        # no line break inside a value such as "K = 50"
        texts = (
            ", ".join(str(value).replace(" ", "\N{NO-BREAK SPACE}") for value in values)
            for values in ordered
        )
        rows.append([Cell(str(problem)), *(Cell(text) for text in texts)])
    return Table("Cases in this report", ["problem", *columns.values()], rows)


def limitations(runs: Sequence[Run]) -> list[str]:
    """The limitations the runs state about themselves, each once, and what they left out."""
    stated = [str(text) for run in runs for text in run.environment.get("limits") or ()]
    stated += [text for run in runs if (text := not_run(run))]
    stated += [text for run in runs if (text := _several_machines(run))]
    if all(run.environment.get("gpu") is None for run in runs):
        stated.append("No GPU: device memory was not measured, and nothing here speaks for one.")
    if any((run.environment.get("git") or {}).get("dirty") for run in runs):
        stated.append("The code had uncommitted changes when a run was made.")
    return list(dict.fromkeys(stated))


def _letters_of(run: Run, letters: Mapping[tuple[str, Machine], str]) -> str:
    own = {made_on: letter for (name, made_on), letter in letters.items() if name == run.name}
    if len(own) == 1:
        return next(iter(own.values()))
    return ", ".join(f"{letter}: {made_on.label}" for made_on, letter in own.items())


def _several_machines(run: Run) -> str:
    """How many records each machine made, where a run holds those of several; or ""."""
    found = machines(run)
    made = Counter(each.label for each in found)
    if len(made) <= 1:
        return ""
    kinds = ("processors", "GPUs", "numbers of threads", "versions of the code", "sets of packages")
    several = [kind for kind, own in zip(kinds, zip(*found, strict=True), strict=True)
               if len(set(own)) > 1]  # fmt: skip
    return (
        f"The records of {run.name} were made on several {' and '.join(several)}: "
        f"{_counted(made)}. Seconds, "
        "and the training steps taken in them, compare within one of them only; bytes and inner "
        "iterations compare throughout."
    )


def _counted(records: Counter[str]) -> str:
    """Each name and its number of records, most first."""
    return ", ".join(
        f"{name} ({count} {'record' if count == 1 else 'records'})"
        for name, count in records.most_common()
    )


def not_run(run: Run) -> str:
    """How much of its preset a run holds, and what is missing by batch and iterations; or ""."""
    preset = run.environment.get("preset")
    if preset not in PRESETS or not run.records:
        return ""
    cases = {case.id: case for case in PRESETS[preset]()}
    missing = set(cases) - {record["case"]["id"] for record in run.records}
    if not missing:
        return ""
    groups = Counter((_share(cases[name]), name in missing) for name in cases)
    parts = [
        f"{group} ({count} of {count + groups[group, False]})"
        for (group, absent), count in groups.items()
        if absent
    ]
    measured = len(cases) - len(missing)
    return (
        f"Preset {preset}: {measured} of {len(cases)} cases were run. Not run: {'; '.join(parts)}."
    )


def _share(case: Case) -> str:
    stop = f"exactly {case.max_iterations}" if case.tolerance is None else "to tolerance"
    return f"batch {case.batch_size}, {stop}"


def _natural(value: Any) -> tuple[float, str]:
    """Sort key: numbers by size, also those that end a text such as "K = 50"."""
    text = str(value)
    try:
        return (float(text.split()[-1]), text)
    except ValueError:
        return (-1.0, text)


def _text(name: str) -> Any:
    def write(environment: Mapping[str, Any]) -> str:
        value = environment.get(name)
        return _UNKNOWN if value is None else str(value)

    return write


def _gpu(environment: Mapping[str, Any]) -> str:
    gpu = environment.get("gpu")
    if not gpu:
        return "none"
    if not isinstance(gpu, Mapping):
        return str(gpu)
    return ", ".join(
        f"{name.removesuffix('_bytes')} {format_bytes(value)}"
        if name.endswith("_bytes") and value is not None
        else f"{name} {value}"
        for name, value in gpu.items()
    )


def _memory(environment: Mapping[str, Any]) -> str:
    size = environment.get("memory_bytes")
    return _UNKNOWN if size is None else format_bytes(size)


def _versions(environment: Mapping[str, Any]) -> str:
    versions = environment.get("versions") or {}
    found = [
        f"{name} {version}"
        for name, version in versions.items()
        if version is not None and name != "python"
    ]
    absent = [name for name, version in versions.items() if version is None]
    missing = [f"not installed: {', '.join(absent)}"] if absent else []
    return "; ".join([", ".join(found), *missing]) if versions else _UNKNOWN


def _code_version(run: Run) -> str:
    """The commit the records were measured at; how many records each, where there are several."""
    commits = Counter(_git(record) for record in run.records)
    if set(commits) <= {_UNKNOWN}:
        return _git(run.environment)
    return next(iter(commits)) if len(commits) == 1 else _counted(commits)


def _git(measured: Mapping[str, Any]) -> str:
    git = measured.get("git") or {}
    if not git.get("commit"):
        return _UNKNOWN
    return str(git["commit"])[:12] + (" with uncommitted changes" if git.get("dirty") else "")


_LINES = (
    ("preset", _text("preset")),
    ("started", _text("started")),
    ("CPU", _text("cpu")),
    ("cores", _text("cores")),
    ("threads used", _text("threads")),
    ("memory", _memory),
    ("GPU", _gpu),
    ("platform", _text("platform")),
    ("Python", _text("python")),
    ("packages", _versions),
)
