"""The claims, measured by the runner, judged from its records, written out for readers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from bench import csv_cells
from bench.claims import discover
from bench.claims.claim import NOT, NOT_MEASURED, PARTLY, REPRODUCED, Judgement, Tables
from bench.claims.tables import Record, by_job, record_of, tables
from bench.identity import stem
from bench.jobs import Job, RunSettings
from bench.probes.step import Step
from bench.records import read_object, read_records, write_json
from bench.release.plan import SCALE, TARGETS, Part
from bench.runner import run_jobs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCHEMA_VERSION = 4
#: what a quick check says in place of a verdict, which takes longer runs and more seeds
QUICK_WORDS = dict.fromkeys((PARTLY, NOT), "inconsistent, too short to judge")
QUICK_WORDS[REPRODUCED] = "consistent"
#: core seconds of an eager training step of jfb, batch 8 at the problem's own horizon; of a size
#: that is not there those of the next smaller one
_STEP_SECONDS = {
    "quadrotor": {1: 0.16, 20: 0.31, 100: 0.6},
    "rotor-quadrotor": {1: 0.4},
    "bicycle": {1: 0.05, 20: 0.14, 100: 0.25},
    "consumption": {1: 0.09, 100: 0.15},
}
#: what a job costs in such steps, by its probe, and how much more on the released inner iteration
_STEPS = {"trace": 170, "descent": 190, "memory": 40, "derivative": 250, "maximisers": 130}
_RELEASED, _START = 1.5, 6.0


@dataclass(frozen=True)
class Outcome:
    """`claims`: the seven rows. `beyond`: what the papers leave open. `missing`: jobs not done.

    `failed`: jobs that crashed or ran out of time or memory, with the reason; removing their record
    tries them again. `failures`: assertions of the quick check that do not hold, one line each.
    """

    claims: list[dict[str, Any]]
    beyond: list[dict[str, Any]]
    missing: list[str]
    failed: dict[str, str]
    failures: list[str]


def jobs(quick: bool) -> list[Job]:
    """Every job of every claim once, seed 0 of everything before any other seed."""
    found = {job: None for claim in discover() for job in claim.jobs(quick)}
    return sorted(found, key=lambda job: job.seed)


def core_seconds(job: Job) -> float:
    """What a job takes on one core, estimated; a training to a target is not the claims' own."""
    if isinstance(job.probe, Step):
        return 0.0
    if job.case.train_seconds is not None:
        return _START + job.case.train_seconds
    sizes = _STEP_SECONDS[job.case.problem]
    step = sizes[max(size for size in sizes if size <= job.case.n_agents)]
    more = _RELEASED if job.case.step_size is not None else 1.0
    return _START + more * step * _STEPS.get(job.probe.name, 10)


def plan() -> list[str]:
    """Per claim the jobs and core hours of a full check, those of an earlier claim left out."""
    lines, seen, total = [], set(), 0.0
    for claim in discover():
        own = [job for job in claim.jobs(False) if job not in seen]
        seen.update(own)
        shared = sum(isinstance(job.probe, Step) for job in own)
        hours = sum(map(core_seconds, own)) / 3600
        total += hours
        beside = f", and {shared} trainings of other parts" if shared else ""
        lines.append(f"{len(own) - shared:5} jobs {hours:6.2f} h  {claim.CLAIM}{beside}")
    measured = sum(not isinstance(job.probe, Step) for job in seen)
    return [*lines, f"{measured:5} jobs {total:6.2f} h on one core, those trainings left out"]


def verify(quick: bool, settings: RunSettings) -> Outcome:
    """Measure what is missing and judge what is there, whichever that is.

    A quick check without `resume` begins anew: it is a test of the code as it is now. Trainings of
    another part of a release are left to it where its folder lies beside, see `records_of`.
    """
    wanted = jobs(quick)
    if quick and not settings.resume:
        _begin_anew(settings.out, {job.name for job in wanted})
    others = () if quick else _beside(settings.out)
    elsewhere = {Job(case=case, seed=seed) for part in others for case, seed in part.jobs()}
    wanted = [job for job in wanted if job not in elsewhere]
    # What runs side by side first, so that it is not held up by what runs alone.
    run_jobs(sorted(wanted, key=lambda job: job.probe.timed(job.case)), settings)
    return judge(quick, settings.out)


def _beside(out: Path) -> list[Part]:
    """The parts of a release that train what claims rest on, of those whose folders lie beside."""
    return [part for part in (TARGETS, SCALE) if (out.parent / part.name).is_dir()]


def records_of(quick: bool, out: Path) -> dict[str, Record]:
    """The records that the claims ask for: those under `out`, and trainings from the folders of
    other parts beside it, so that a release measures them once.
    """
    found, others = by_job(read_records(out)), () if quick else _beside(out)
    there = by_job(record for part in others for record in read_records(out.parent / part.name))
    if there:
        shared = (record_of(job, there) for job in jobs(quick) if isinstance(job.probe, Step))
        found |= by_job(record for record in shared if record is not None)
    return found


def not_planned(out: Path) -> Set[Job]:
    """Trainings that the release around `out` did not plan: its claims do without them.

    What has joined the presets since is for the next release.
    """
    plan = (read_object(out.parent / "release.json") or {}).get("plan")
    if not plan:
        return frozenset()
    return {
        Job(case=case, seed=seed)
        for part in (TARGETS, SCALE)
        for case, seed in part.jobs()
        if case.id not in plan.get(part.name, {}).get("cases", ())
    }


def _begin_anew(out: Path, own: set[str]) -> None:
    """Remove the records under `out`; ValueError where there are others than the check's `own`."""
    others = sorted({stem(record) for record in read_records(out)} - own)
    if others:
        raise ValueError(
            f"`out` {out} holds other records than those of the quick check "
            f"({', '.join(others[:3])}, …), which it would remove; give it another folder"
        )
    shutil.rmtree(out / "records", ignore_errors=True)
    (out / "records.jsonl").unlink(missing_ok=True)


def judge(quick: bool, out: Path) -> Outcome:
    """Verdicts and figures from the records under `out`: verify.json, data/*.csv, figures/*.png."""
    records = records_of(quick, out)
    outcome, data = judge_records(quick, records, not_planned(out))
    figures = _draw(data, out)
    for row in (*outcome.claims, *outcome.beyond):
        row["figure"] = row["figure"] if row["figure"] in figures else None
    _write_tables(data, out)
    environment = read_object(out / "environment.json") or {}
    environment["limits"] = _limits(quick, outcome, records)
    write_json(out / "environment.json", environment)
    scope = "quick" if quick else "full"
    write_json(
        out / "verify.json", {"schema_version": SCHEMA_VERSION, "scope": scope, **asdict(outcome)}
    )
    return outcome


def judge_records(
    quick: bool, records: Mapping[str, Record], left_out: Set[Job] = frozenset()
) -> tuple[Outcome, list[tuple[ModuleType, Tables]]]:
    """The outcome, and each claim with its tables: a pure function of the records.

    `left_out`: jobs that are not asked for.
    """
    claims, beyond, failures, data = [], [], [], []
    for claim in discover():
        asked = [job for job in claim.jobs(quick) if job not in left_out]
        found, absent = tables(asked, records)
        data.append((claim, found))
        row = _row(claim, found, absent, quick)
        if claim.NUMBER is not None:
            claims.append(row)
        elif row["verdict"] != NOT_MEASURED:
            beyond.append(row)
        if quick and hasattr(claim, "failures"):
            failures += claim.failures(found)
    missing, failed = [], {}
    for job in jobs(quick):
        if job in left_out:
            continue
        record = record_of(job, records)
        if record is None:
            missing.append(job.name)
        elif record["status"] in ("crashed", "timeout", "out_of_memory"):
            failed[job.name] = f"{record['status']}: {record['reason']}"
    if quick:
        failures += [f"{name}: not measured" for name in missing]
        failures += [f"{name}: {reason}" for name, reason in failed.items()]
    return Outcome(claims, beyond, missing, failed, failures), data


def _row(claim: ModuleType, data: Tables, absent: Sequence[Job], quick: bool) -> dict[str, Any]:
    """A row of the page. What the absent jobs would have shown is not known, so that a claim they
    belong to is not reproduced.
    """
    found = claim.judge(data) if claim.TABLE in data else Judgement("no data yet", NOT_MEASURED, "")
    verdict, findings = found.verdict, found.findings
    if absent:
        left = (
            f"{len(absent)} jobs are not there, and not taken as holding: verify.json names them."
        )
        findings = (*findings, left)
        verdict = PARTLY if verdict == REPRODUCED else verdict
    return {
        "number": claim.NUMBER,
        "claim": claim.CLAIM,
        "value": found.value,
        "verdict": QUICK_WORDS.get(verdict, verdict) if quick else verdict,
        "conditions": found.conditions,
        "figure": f"figures/{claim.FIGURE}.png",
        "figure_caption": claim.CAPTION,
        "findings": findings,
        "tables": found.tables,
    }


def drawn(data: Sequence[tuple[ModuleType, Tables]]) -> Iterator[tuple[ModuleType, Figure]]:
    """Each claim with its figure, of those that have data and draw one."""
    for claim, found in data:
        if claim.TABLE in found and (figure := claim.figure(found)) is not None:
            yield claim, figure


def _draw(data: Sequence[tuple[ModuleType, Tables]], out: Path) -> set[str]:
    """Write the figures of the claims with data; their names below `out`."""
    import matplotlib as mpl

    from bench.report.figures.canvas import theme

    mpl.use("Agg")
    (out / "figures").mkdir(parents=True, exist_ok=True)
    names = set()
    with theme():
        for claim, figure in drawn(data):
            name = f"figures/{claim.FIGURE}.png"
            figure.savefig(out / name, dpi=130)
            names.add(name)
    return names


def _write_tables(data: Sequence[tuple[ModuleType, Tables]], out: Path) -> None:
    """data/*.csv: the tables that the claims were judged on."""
    (out / "data").mkdir(parents=True, exist_ok=True)
    for claim, found in data:
        for name, table in found.items():
            stem = "trace" if name == "trace" else f"{claim.FIGURE}-{name}"
            csv_cells.table(table).to_csv(out / "data" / f"{stem}.csv", index=False)


def _limits(quick: bool, outcome: Outcome, records: Mapping[str, Record]) -> list[str]:
    found = [
        f"Scope {'quick' if quick else 'full'}: what is said holds for the runs listed with each "
        "claim, no further.",
        "True gradients are implicit ones along the trajectory that the policy flies: where the "
        "inner tolerance was not reached they take the control applied for a fixed point, which "
        "it is not.",
        "Traced runs are short next to a training to the optimum, and clipped and guarded by the "
        "suite's own rules, the released recipe too.",
    ]
    if outcome.missing:
        left = len(outcome.missing)
        text = f"Not finished: {len(records)} jobs are done, {left} missing (named in verify.json)."
        found.insert(0, text)
    found += [f"{name}: {reason}." for name, reason in outcome.failed.items()]
    places = sorted({f"{r['machine']['cpu']}, threads {r['threads']}" for r in records.values()})
    if len(places) > 1:
        found.append(
            f"Measured on several machines or numbers of threads: {'; '.join(places)}. Seconds, "
            "and the costs reached in them, compare within one of them only."
        )
    sources = {record["fingerprint"] for record in records.values()}
    if len(sources) > 1:
        found.append(f"Measured in pieces with {len(sources)} states of the measuring code.")
    return found
