"""What keeps runs from being published: `bench report --release` lists it and writes nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench.record import UNDISTURBED
from bench.records import Entry, RecordError, entries
from bench.report.frames import machines, value_at
from bench.report.header import not_run
from bench.report.load import Run

#: seeds of every case on a recipe
SEEDS = 5


def refusals(runs: Sequence[Run]) -> list[str]:
    """A line for each reason not to publish `runs` together; none where they may be.

    Published are valid records of whole presets, of one measuring code in a tree without changes,
    of one kind of machine a run, undisturbed, with five seeds of what
    trains on a recipe.
    """
    found = [f"{run.name}: {reason}" for run in runs for reason in _of(run)]
    codes = {str(code) for run in runs for r in run.records if (code := r.get("fingerprint"))}
    if len(codes) > 1:
        found.append(f"the records are of {len(codes)} measuring codes: {', '.join(sorted(codes))}")
    return found


def _of(run: Run) -> Iterator[str]:
    if not run.records:
        yield "holds no valid records"
        return
    counts = {
        "are not valid: see `bench validate`": sum(map(_faulty, entries(run.directory))),
        "crashed": _count(run, "status", lambda value: value == "crashed"),
        "do not name a commit without changes": _count(run, "git.dirty", lambda v: v is not False),
        "name no fingerprint of the measuring code": _count(run, "fingerprint", lambda v: not v),
        "name no processor": _count(run, "machine.cpu", lambda value: not value),
    }
    for part in ("step", "training"):
        counts[f"were disturbed by other load ({part})"] = _count(
            run, f"cpu_share.{part}", lambda share: share is not None and share < UNDISTURBED
        )
    yield from (f"{count} records {words}" for words, count in counts.items() if count)
    kinds = {made_on._replace(code=None) for made_on in machines(run)}
    if len(kinds) > 1:
        yield f"{len(kinds)} kinds of machine: {'; '.join(sorted(kind.label for kind in kinds))}"
    if missing := not_run(run):
        yield missing
    seeds: dict[str, set[int]] = defaultdict(set)
    for record in run.records:
        if record["case"].get("recipe"):
            seeds[record["case"]["id"]].add(record["case"]["seed"])
    if few := [name for name, own in seeds.items() if len(own) < SEEDS]:
        more = f" and {len(few) - 3} more" if len(few) > 3 else ""
        yield f"fewer than {SEEDS} seeds of cases on a recipe: {', '.join(few[:3])}{more}"


def _faulty(entry: Entry) -> bool:
    try:
        entry.read()
    except RecordError:
        return True
    return False


def _count(run: Run, place: str, holds: Any) -> int:
    records: Sequence[Mapping[str, Any]] = run.records
    return sum(bool(holds(value_at(record, place))) for record in records)
