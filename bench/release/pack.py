"""A release as data: records with their schema, a card that says what they are, and checksums."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from bench.record_schema import SCHEMA_FILE
from bench.records import finite, read_object, read_records
from bench.release.plan import Part

_CHECKSUMS = "SHA256SUMS"


def pack_release(directory: Path, plan: Sequence[Part], out: Path, version: str) -> Path:
    """Write the release under `directory` into the new folder `out`; the archive made of it.

    Raises ValueError where `out` holds something already, or pyarrow is missing.
    """
    from jinja2 import Template

    from bench.report.frames import case_frame, curve_frame
    from bench.report.load import load_runs

    if out.exists() and any(out.iterdir()):
        raise ValueError(f"`pack` must be an empty or a new folder, got {out}")
    if importlib.util.find_spec("pyarrow") is None:
        raise ValueError("`pack` needs pyarrow; pip install jfbbench[export]")
    out.mkdir(parents=True, exist_ok=True)
    there = [part for part in plan if (directory / part.name).is_dir()]
    counts = {}
    for part in there:
        own = out / part.name
        own.mkdir()
        records = list(read_records(directory / part.name))
        if records:
            counts[part.name] = len(records)
            lines = (f"{json.dumps(finite(record), allow_nan=False)}\n" for record in records)
            (own / "records.jsonl").write_text("".join(lines), encoding="utf-8")
        if part.result:
            shutil.copy(directory / part.name / part.result, own)
    runs = load_runs([directory / part.name for part in there])
    cases = case_frame(runs)
    cases.to_parquet(out / "cases.parquet", index=False)
    curve_frame(runs, cases).to_parquet(out / "curves.parquet", index=False)
    shutil.copy(SCHEMA_FILE, out)
    card = Path(__file__).with_name("card.md").read_text(encoding="utf-8")
    limits = [limit for run in runs for limit in run.environment.get("limits") or ()]
    content = Template(card, trim_blocks=True, keep_trailing_newline=True).render(
        version=version,
        plan=plan,
        counts=counts,
        state=read_object(directory / "release.json") or {},
        limits=dict.fromkeys(limits),
        checksums=_CHECKSUMS,
    )
    (out / "README.md").write_text(content, encoding="utf-8")
    sums = (
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(out).as_posix()}\n"
        for path in sorted(out.rglob("*"))
        if path.is_file()
    )
    (out / _CHECKSUMS).write_text("".join(sums), encoding="utf-8")
    return Path(shutil.make_archive(str(out), "zip", out))
