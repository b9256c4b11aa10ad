"""Measure everything in a scope, judge it, and write table, data and figures."""

from __future__ import annotations

import shutil
import sys
import tempfile
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from bench import csv_cells
from bench.environment import describe
from bench.records import write_json
from bench.verify.assertions import failures
from bench.verify.beyond import growth
from bench.verify.claim import Claim, Tables
from bench.verify.claims import judge_beyond, judge_claims
from bench.verify.figures import draw
from bench.verify.jobs import Job, Store, jobs, run_jobs
from bench.verify.memory_claim import memory_fits
from bench.verify.open_questions import reference_sizes
from bench.verify.resource_claims import times_to_cost
from bench.verify.scope import Scope


@dataclass(frozen=True)
class Outcome:
    """`claims`: the seven rows. `beyond`: what the papers leave open. `missing`: jobs not done.

    `crashed`: jobs that broke, with the reason; deleting their file tries them again.
    `failures`: assertions of the quick scope that do not hold, one line each.
    """

    claims: list[Claim]
    beyond: list[Claim]
    missing: list[Job]
    crashed: dict[str, str]
    failures: list[str]


def verify(
    scope: Scope, out: Path, *, time_limit: float | None = None, part: tuple[int, int] = (1, 1)
) -> Outcome:
    """Measure `scope`; write verify.json, data/*.csv and figures/ under `out`.

    A job that is already under out/jobs is not run again, except in the quick scope: that one
    is a test of the code as it is now. `part` (i, n) measures every n-th job from the i-th on and
    judges whatever is there: n processes with the same `out` share the work.
    """
    # First of all: hours of measuring should not end at a folder that cannot be written.
    (out / "data").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=out):
        pass
    started = datetime.now(UTC).isoformat(timespec="seconds")
    store, wanted = Store(out), jobs(scope)
    if scope.name == "quick":
        _begin_anew(out, {job.name for job in wanted})
    own = wanted[part[0] - 1 :: part[1]]
    ahead = store.missing(own)
    minutes = sum(job.seconds for job in ahead) / 60.0
    tqdm.write(
        f"{len(ahead)} of {len(own)} jobs to run, about {minutes:.0f} minutes on two idle cores",
        file=sys.stderr,
    )
    with tqdm(total=len(own), unit="job") as bar:

        def progress(job: Job) -> None:
            bar.set_postfix_str(job.name)
            bar.update()

        run_jobs(own, store, time_limit=time_limit, progress=progress)
    return judge(scope, out, started)


def _begin_anew(out: Path, own: set[str]) -> None:
    """Remove the jobs under `out`; ValueError where there are others than the scope's `own`."""
    others = sorted({path.stem for path in (out / "jobs").glob("*.json")} - own)
    if others:
        raise ValueError(
            f"`out` {out} holds the jobs of another scope ({', '.join(others[:3])}, …), which "
            f"the quick one would remove; give it another folder"
        )
    shutil.rmtree(out / "jobs", ignore_errors=True)


def judge(scope: Scope, out: Path, started: str) -> Outcome:
    """Verdicts and figures from the jobs that are done, whichever those are."""
    (out / "data").mkdir(parents=True, exist_ok=True)
    store, wanted = Store(out), jobs(scope)
    data: Tables = {
        name: _by_size(pd.DataFrame(rows)) for name, rows in store.tables(wanted).items()
    }
    if scope.sizes:
        data["mean-field"] = reference_sizes()
    for name, table in {**data, **_derived(data)}.items():
        csv_cells.table(table).to_csv(out / "data" / f"{name}.csv", index=False)
    draw(data, out)
    missing, crashed = store.missing(wanted), store.errors(wanted)
    absent: dict[str, list[str]] = {}
    for job in wanted:
        if job in missing or job.name in crashed:
            absent.setdefault(job.table, []).append(job.name)
    outcome = Outcome(
        claims=[_with_figure(claim, out) for claim in judge_claims(data, absent)],
        beyond=[_with_figure(claim, out) for claim in judge_beyond(data)],
        missing=missing,
        crashed=crashed,
        failures=_failures(data, missing, crashed) if scope.name == "quick" else [],
    )
    environment = describe(None, torch.get_num_threads(), started)
    environment["limits"] = _limits(scope, wanted, missing, store)
    write_json(out / "environment.json", environment)
    write_json(
        out / "verify.json",
        {
            "schema_version": 3,
            "scope": scope.name,
            "claims": [claim.to_dict() for claim in outcome.claims],
            "beyond": [claim.to_dict() for claim in outcome.beyond],
            "missing": [job.name for job in missing],
            "crashed": outcome.crashed,
            "failures": outcome.failures,
        },
    )
    return outcome


def _failures(data: Tables, missing: list[Job], crashed: dict[str, str]) -> list[str]:
    """What the quick scope asserts and does not find; a measurement that is not there is none."""
    return [
        *failures(data),
        *(f"{job.name}: not measured" for job in missing),
        *(f"{name}: crashed: {error}" for name, error in crashed.items()),
    ]


def _by_size(table: pd.DataFrame) -> pd.DataFrame:
    """Rows by problem and size, in the order of the jobs within: that of duration is no order."""
    keys = [name for name in ("problem", "n_agents") if name in table]
    return table.sort_values(keys, kind="stable", ignore_index=True) if keys else table


def _derived(data: Tables) -> Tables:
    """Tables that are computed from others, kept beside them for readers."""
    found: Tables = {}
    if "memory" in data:
        found["memory-fits"] = memory_fits(data["memory"])
    if "races" in data and data["races"]["seconds"].notna().any():
        found["time-to-cost"] = times_to_cost(data["races"])
    if "derivatives" in data:
        found["derivative-growth"] = growth(data["derivatives"])
    return found


def _with_figure(claim: Claim, out: Path) -> Claim:
    """The claim without its figure where there was nothing to draw."""
    if claim.figure is None or (out / claim.figure).is_file():
        return claim
    return replace(claim, figure=None)


def _limits(scope: Scope, wanted: list[Job], missing: list[Job], store: Store) -> list[str]:
    found = [
        f"Scope {scope.name}: verdicts hold for the runs listed with each claim, no further.",
        "True gradients are implicit ones along the trajectory that the policy flies: where the "
        "inner tolerance was not reached they take the control applied for a fixed point, which "
        "it is not.",
        "Traced runs are short next to a training to the optimum, and clipped and guarded by the "
        "suite's own rules, the released recipe too.",
    ]
    if missing:
        done = len(wanted) - len(missing)
        named = ", ".join(job.name for job in missing[:12])
        more = f" and {len(missing) - 12} more" if len(missing) > 12 else ""
        found.insert(
            0, f"Not finished: {done} of {len(wanted)} jobs are done; missing {named}{more}."
        )
    found += [f"Crashed: {name}: {error}." for name, error in store.errors(wanted).items()]
    machines = sorted(store.machines(wanted))
    if len(machines) > 1:
        found.append(
            f"Measured on several machines or numbers of threads: {'; '.join(machines)}. Seconds, "
            "and the costs reached in them, compare within one of them only."
        )
    revisions = store.revisions(wanted)
    if len(revisions) > 1:
        found.append(f"Measured in pieces at {len(revisions)} commits of the code.")
    return found
