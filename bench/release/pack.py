"""A release as data: records with their schema, a card that says what they are, and checksums."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.record_schema import SCHEMA_FILE
from bench.records import finite, read_object, read_records
from bench.release.plan import Part

LICENCE = "CC-BY-4.0"
_CHECKSUMS = "SHA256SUMS"


def pack_release(directory: Path, plan: Sequence[Part], out: Path, version: str) -> Path:
    """Write the release under `directory` into the new folder `out`; the archive made of it.

    Raises ValueError where `out` holds something already, or pyarrow is missing.
    """
    from bench.report.frames import case_frame, curve_frame
    from bench.report.load import load_runs

    if out.exists() and any(out.iterdir()):
        raise ValueError(f"`pack` must be an empty or a new folder, got {out}")
    out.mkdir(parents=True, exist_ok=True)
    folders = [directory / part.name for part in plan if (directory / part.name).is_dir()]
    counts = {}
    for folder in folders:
        records = list(read_records(folder))
        if records:
            counts[folder.name] = len(records)
            (out / f"{folder.name}.jsonl").write_text(
                "".join(f"{json.dumps(finite(record), allow_nan=False)}\n" for record in records),
                encoding="utf-8",
            )
        for name in {part.result for part in plan if part.name == folder.name and part.result}:
            shutil.copy(folder / name, out / f"{folder.name}-{name}")
    runs = load_runs(folders)
    cases = case_frame(runs)
    try:
        cases.to_parquet(out / "cases.parquet", index=False)
        curve_frame(runs, cases).to_parquet(out / "curves.parquet", index=False)
    except ImportError as error:
        raise ValueError("`pack` needs pyarrow; pip install jfbbench[export]") from error
    shutil.copy(SCHEMA_FILE, out)
    limits = [limit for run in runs for limit in run.environment.get("limits") or ()]
    state = read_object(directory / "release.json") or {}
    card = data_card(plan, counts, state, list(dict.fromkeys(limits)), version)
    (out / "README.md").write_text(card, encoding="utf-8")
    names = sorted(path.name for path in out.iterdir())
    lines = (f"{hashlib.sha256((out / n).read_bytes()).hexdigest()}  {n}\n" for n in names)
    (out / _CHECKSUMS).write_text("".join(lines), encoding="utf-8")
    return Path(shutil.make_archive(str(out), "zip", out))


def data_card(
    plan: Sequence[Part],
    counts: dict[str, int],
    state: dict[str, Any],
    limits: Sequence[str],
    version: str,
) -> str:
    """What the data are, how and where they were measured, and what they do not say."""
    rows = [f"| `{p.name}` | {counts.get(p.name, '')} | {p.what} |" for p in plan]
    return "\n".join(
        [
            f"# jfbbench {version}: measurements",
            "",
            "Step times, exact byte counts, residuals, training curves and verdicts of "
            "Jacobian-Free Backpropagation (arXiv 2602.00921) and of the gradients it competes "
            "with, on optimal control problems with implicit Hamiltonians.",
            "",
            f"Licence: {LICENCE}. Fingerprint of the measuring code: "
            f"`{state.get('fingerprint', 'unknown')}`, commit `{state.get('commit', 'unknown')}`. "
            f"Machine: {state.get('machine', 'unknown')}. Begun {state.get('started', 'unknown')}.",
            "",
            "`python -m bench release` of that commit measures the same again; `python -m bench "
            "compare DATA MINE` puts the two side by side.",
            "",
            "| part | records | what |",
            "|---|---|---|",
            *rows,
            "",
            "- `PART.jsonl`: one JSON object a record, as `record.schema.json` describes them; "
            "unknown is null, and `null_reasons` says why.",
            "- `cases.parquet`: a row for each record; `curves.parquet`: a row for each point of "
            "a training curve. `pandas.read_parquet`, `polars.read_parquet` and DuckDB's "
            "`select * from 'cases.parquet'` open them.",
            f"- `{_CHECKSUMS}`: `sha256sum -c {_CHECKSUMS}` checks the files.",
            "",
            "## Known limits",
            "",
            *(f"- {limit}" for limit in limits),
            "",
        ]
    )
