"""Whether a release is one: complete, from one clean state of the code and one machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.records import read_object, read_records
from bench.release.plan import Part


@dataclass
class Findings:
    """What `check_release` found; each list names what is wrong, one line each."""

    missing: list[str] = field(default_factory=list)
    dirty: list[str] = field(default_factory=list)
    stray: list[str] = field(default_factory=list)
    crashed: list[str] = field(default_factory=list)
    fingerprints: dict[str, int] = field(default_factory=dict)
    machines: dict[str, int] = field(default_factory=dict)
    seeds: dict[str, int] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Nothing missing, crashed, stray or modified; one fingerprint; one machine."""
        faults = (self.missing, self.dirty, self.stray, self.crashed)
        return not any(faults) and len(self.fingerprints) == len(self.machines) == 1

    def summary(self) -> str:
        """One line: `0 missing, 0 dirty, 1 fingerprint, 1 machine, seeds 5`."""
        ranked = max(self.seeds.values(), default=0)
        extra = [
            f"{len(names)} {word}"
            for word, names in (("crashed", self.crashed), ("stray", self.stray))
            if names
        ]
        return ", ".join(
            [
                f"{len(self.missing)} missing",
                f"{len(self.dirty)} dirty",
                *extra,
                _counted(len(self.fingerprints), "fingerprint"),
                _counted(len(self.machines), "machine"),
                f"seeds {ranked}",
            ]
        )

    def lines(self) -> Iterator[str]:
        """Everything that is wrong, one line each."""
        for word in ("missing", "crashed", "dirty", "stray"):
            yield from (f"{word}: {name}" for name in getattr(self, word))
        for word, counts in (("fingerprint", self.fingerprints), ("machine", self.machines)):
            if len(counts) > 1:
                yield from (f"{word} {name}: {count} records" for name, count in counts.items())


def check_release(directory: Path, plan: Sequence[Part]) -> Findings:
    """Hold what lies under `directory` against `plan`, part by part."""
    findings = Findings()
    for part in plan:
        folder = directory / part.name
        if part.preset is None:
            _check_result(findings, part, folder)
        else:
            _check_records(findings, part, folder)
    return findings


def _check_records(findings: Findings, part: Part, folder: Path) -> None:
    due = {(case.id, seed) for case, seed in part.jobs()}
    seeds: dict[str, set[int]] = {}
    # What is not begun yet is missing, and no damaged file.
    for record in read_records(folder) if folder.is_dir() else ():
        case, seed = record["case"]["id"], record["case"]["seed"]
        name = f"{part.name}/{case}, seed {seed}"
        if (case, seed) not in due:
            findings.stray.append(f"{name}: not in the plan")
            continue
        due.remove((case, seed))
        seeds.setdefault(case, set()).add(seed)
        if record["status"] == "crashed":
            findings.crashed.append(f"{name}: {record['reason']}")
        _count(findings.fingerprints, record.get("fingerprint") or "none")
        _count(findings.machines, _machine(record.get("machine") or {}))
        if (record.get("git") or {}).get("dirty") is not False:
            findings.dirty.append(name)
    findings.missing += [f"{part.name}/{case}, seed {seed}" for case, seed in sorted(due)]
    findings.seeds[part.name] = min((len(each) for each in seeds.values()), default=0)


def _check_result(findings: Findings, part: Part, folder: Path) -> None:
    result, environment = (
        read_object(folder / str(part.result)),
        read_object(folder / "environment.json"),
    )
    environment = environment or (result or {}).get("environment") or {}
    if result is None:
        findings.missing.append(f"{part.name}/{part.result}")
        return
    findings.missing += [f"{part.name}: job {job}" for job in result.get("missing") or ()]
    findings.crashed += [f"{part.name}: job {job}" for job in result.get("crashed") or ()]
    _count(findings.fingerprints, environment.get("fingerprint") or "none")
    _count(findings.machines, str(environment.get("cpu")))
    if (environment.get("git") or {}).get("dirty") is not False:
        findings.dirty.append(f"{part.name}/{part.result}")


def _machine(machine: Mapping[str, Any]) -> str:
    return ", ".join(str(part) for part in (machine.get("cpu"), machine.get("gpu")) if part)


def _count(counts: dict[str, int], name: str) -> None:
    counts[name] = counts.get(name, 0) + 1


def _counted(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
