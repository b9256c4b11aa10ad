"""Measure everything in a scope, judge it, and write table, data and figures."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from bench.environment import describe
from bench.records import write_json
from bench.verify import traces
from bench.verify.claims import CLAIMS, Claim
from bench.verify.figures import draw
from bench.verify.scope import Scope


def measure(scope: Scope) -> dict[str, list[dict[str, Any]]]:
    """Every row the claims rest on, by table."""
    descents = [run for run in scope.traces if run.case.map == "scaled" and run.case.n_agents <= 6]
    steps = scope.descent_steps
    jobs: list[tuple[str, str, Any]] = []
    for run in scope.traces:
        for seed in range(run.seeds):
            jobs.append(("traces", run.label, lambda run=run, seed=seed: traces.trace(run, seed)))
    for run in descents:
        jobs.append((
            "descent",
            f"SGD {run.label}",
            lambda run=run: traces.descend(run.case, steps, max(1, steps // 10), 0),
        ))  # fmt: skip
    for case in scope.memory:
        jobs.append((
            "memory",
            f"memory {case.problem} n={case.n_agents}",
            lambda case=case: traces.memory_rows(case, scope.iterations),
        ))  # fmt: skip
    for case in scope.races:
        for seed in range(scope.race_seeds):
            jobs.append((
                "races",
                f"race {case.gradient} n={case.n_agents}",
                lambda case=case, seed=seed: traces.race(case, scope.race_seconds, seed),
            ))  # fmt: skip
    for case in scope.scale:
        jobs.append((
            "scale",
            f"scale {case.problem}",
            lambda case=case: traces.scale_rows(case),
        ))  # fmt: skip
    tables: dict[str, list[dict[str, Any]]] = {}
    with tqdm(jobs, unit="run") as bar:
        for table, label, job in bar:
            bar.set_postfix_str(label)
            tables.setdefault(table, []).extend(job())
    return tables


def verify(scope: Scope, out: Path) -> list[Claim]:
    """Measure `scope`; write verify.json, data/*.csv and figures/ under `out`."""
    # First of all: hours of measuring should not end at a folder that cannot be written.
    (out / "data").mkdir(parents=True, exist_ok=True)
    write_json(out / "environment.json", {})
    started = datetime.now(UTC).isoformat(timespec="seconds")
    data = {name: pd.DataFrame(rows) for name, rows in measure(scope).items()}
    for name, table in data.items():
        table.to_csv(out / "data" / f"{name}.csv", index=False)
    return judge(data, out, scope.name, started)


def judge(data: dict[str, pd.DataFrame], out: Path, scope: str, started: str) -> list[Claim]:
    """Verdicts and figures from tables that are already measured."""
    claims = [claim(data) for claim in CLAIMS]
    draw(data, out)
    environment = describe(None, torch.get_num_threads(), started)
    environment["limits"] = [
        f"Scope {scope}: verdicts hold for the runs listed with each claim, no further.",
        "True gradients are implicit ones at the residual the inner solver reached.",
    ]
    write_json(out / "environment.json", environment)
    write_json(
        out / "verify.json",
        {"schema_version": 1, "scope": scope, "claims": [claim.to_dict() for claim in claims]},
    )
    return claims
