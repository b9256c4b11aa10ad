"""What keeps measurements from being published: of any runs, and of a release by its plan.

Published are valid records of whole presets, of one measuring code in a tree without changes, of
one kind of machine, undisturbed, with five seeds of what trains on a recipe.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.record import UNDISTURBED
from bench.records import entries, read_object, read_records
from bench.release.plan import Part, planned

if TYPE_CHECKING:
    from bench.report.load import Run

Record = Mapping[str, Any]

#: seeds of every case on a recipe
SEEDS = 5
#: what a record may have against it: a word, what is said of several, whether it holds of one
FLAWS: Mapping[str, tuple[str, Callable[[Record], bool]]] = {
    "crashed": ("crashed", lambda record: record["status"] == "crashed"),
    "dirty": (
        "do not name a commit without changes",
        lambda record: (record.get("git") or {}).get("dirty") is not False,
    ),
    "unnamed": (
        "name no fingerprint of the measuring code",
        lambda record: not record.get("fingerprint"),
    ),
    "unplaced": ("name no processor", lambda record: not (record.get("machine") or {}).get("cpu")),
    "disturbed": (
        "were disturbed by other load",
        lambda record: any(
            share is not None and share < UNDISTURBED
            for share in (record.get("cpu_share") or {}).values()
        ),
    ),
}


def flaws(record: Record) -> list[str]:
    """The words of FLAWS that hold of a record."""
    return [word for word, (_, holds) in FLAWS.items() if holds(record)]


def refusals(runs: Sequence[Run]) -> list[str]:
    """A line for each reason not to publish `runs` together; none where they may be."""
    found = [f"{run.name}: {reason}" for run in runs for reason in _of(run)]
    codes = {str(code) for run in runs for r in run.records if (code := r.get("fingerprint"))}
    if len(codes) > 1:
        found.append(f"the records are of {len(codes)} measuring codes: {', '.join(sorted(codes))}")
    return found


def _of(run: Run) -> Iterator[str]:
    # They import pandas, which a release that is only measured does not need.
    from bench.report.frames import machines
    from bench.report.header import not_run

    if not run.records:
        yield "holds no valid records"
        return
    valid = sum(1 for _ in read_records(run.directory))
    if faulty := sum(1 for _ in entries(run.directory)) - valid:
        yield f"{faulty} records are not valid: see `bench validate`"
    counts = Counter(word for record in run.records for word in flaws(record))
    yield from (f"{count} records {FLAWS[word][0]}" for word, count in counts.items())
    kinds = {made_on._replace(code=None) for made_on in machines(run)}
    if len(kinds) > 1:
        yield f"{len(kinds)} kinds of machine: {'; '.join(sorted(kind.label for kind in kinds))}"
    if missing := not_run(run):
        yield missing
    seeds: dict[str, set[int]] = defaultdict(set)
    for case in (record["case"] for record in run.records if record["case"].get("recipe")):
        seeds[case["id"]].add(case["seed"])
    if few := [name for name, own in seeds.items() if len(own) < SEEDS]:
        more = f" and {len(few) - 3} more" if len(few) > 3 else ""
        yield f"fewer than {SEEDS} seeds of cases on a recipe: {', '.join(few[:3])}{more}"


@dataclass
class Findings:
    """What `check_release` found. `flawed`: names of records, by words of FLAWS."""

    missing: list[str] = field(default_factory=list)
    stray: list[str] = field(default_factory=list)
    flawed: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list, dirty=[]))
    fingerprints: Counter[str] = field(default_factory=Counter)
    machines: Counter[str] = field(default_factory=Counter)
    seeds: dict[str, int] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Nothing missing, stray or flawed; one fingerprint; one machine."""
        faults = (self.missing, self.stray, *self.flawed.values())
        return not any(faults) and len(self.fingerprints) == len(self.machines) == 1

    def summary(self) -> str:
        """One line: `0 missing, 0 dirty, 1 fingerprint, 1 machine, seeds 5`."""
        parts = {"missing": self.missing, **self.flawed}
        counts = [f"{len(names)} {word}" for word, names in parts.items()]
        counts += [f"{len(self.stray)} stray"] if self.stray else []
        for word, found in (("fingerprint", self.fingerprints), ("machine", self.machines)):
            counts.append(f"{len(found)} {word}{'' if len(found) == 1 else 's'}")
        return ", ".join([*counts, f"seeds {max(self.seeds.values(), default=0)}"])

    def lines(self) -> Iterator[str]:
        """Everything that is wrong, one line each."""
        for word, names in {"missing": self.missing, **self.flawed, "stray": self.stray}.items():
            yield from (f"{word}: {name}" for name in names)
        for word, counts in (("fingerprint", self.fingerprints), ("machine", self.machines)):
            if len(counts) > 1:
                yield from (f"{word} {name}: {count} records" for name, count in counts.items())


def check_release(directory: Path, plan: Sequence[Part]) -> Findings:
    """Hold what lies under `directory` against `plan`, part by part.

    What is due of a preset is what its release planned, as `release.json` says: a case or a preset
    that has joined since is for the next one.
    """
    findings = Findings()
    begun = (read_object(directory / "release.json") or {}).get("plan") or {}
    for part in plan:
        folder = directory / part.name
        if part.preset is None:
            _check_result(findings, part, folder)
        elif not begun or part.name in begun or folder.is_dir():
            own = begun.get(part.name) or planned((part,))[part.name]
            due = {(case, seed) for case in own["cases"] for seed in range(own["seeds"])}
            _check_records(findings, part, folder, due)
    return findings


def _note(findings: Findings, name: str, record: Record) -> None:
    """What a record has against it, and of which code and machine it is."""
    for word in flaws(record):
        reason = f": {record['reason']}" if word == "crashed" else ""
        findings.flawed[word].append(f"{name}{reason}")
    findings.fingerprints[record.get("fingerprint") or "none"] += 1
    machine = record.get("machine") or {}
    place = ", ".join(str(machine[name]) for name in ("cpu", "gpu") if machine.get(name))
    findings.machines[place] += 1


def _check_records(findings: Findings, part: Part, folder: Path, due: set[tuple[str, int]]) -> None:
    seeds: Counter[str] = Counter()
    # What is not begun yet is missing, and no damaged file.
    for record in read_records(folder) if folder.is_dir() else ():
        case, seed = record["case"]["id"], record["case"]["seed"]
        name = f"{part.name}/{case}, seed {seed}"
        if (case, seed) not in due:
            findings.stray.append(f"{name}: not in the plan")
            continue
        due.remove((case, seed))
        seeds[case] += 1
        _note(findings, name, record)
    findings.missing += [f"{part.name}/{case}, seed {seed}" for case, seed in sorted(due)]
    findings.seeds[part.name] = min(seeds.values(), default=0)


def _check_result(findings: Findings, part: Part, folder: Path) -> None:
    result = read_object(folder / part.result)
    if result is None:
        findings.missing.append(f"{part.name}/{part.result}")
        return
    environment = read_object(folder / "environment.json") or result.get("environment") or {}
    findings.missing += [f"{part.name}: job {job}" for job in result.get("missing") or ()]
    for job in result.get("failed") or ():
        name = job["id"] if isinstance(job, dict) else job
        findings.flawed["failed"].append(f"{part.name}: job {name}")
    for record in read_records(folder) if list(entries(folder)) else ():
        case = record["case"]
        _note(findings, f"{part.name}/{case['id']}, seed {case['seed']}", record)
    findings.fingerprints[environment.get("fingerprint") or "none"] += 1
    findings.machines[str(environment.get("cpu"))] += 1
    if (environment.get("git") or {}).get("dirty") is not False:
        findings.flawed["dirty"].append(f"{part.name}/{part.result}")
