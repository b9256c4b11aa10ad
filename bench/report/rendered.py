"""The whole report of every run under reports/, rendered: `python -m bench.report.rendered`."""

from __future__ import annotations

import argparse
import json
import shutil
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from html import escape
from multiprocessing import get_context
from pathlib import Path

from bench.environment import ROOT, usable_cores

REPORTS = ROOT / "reports"
_INDEX = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>jfbbench</title>
<h1>jfbbench: reports</h1>
<ul>
{}</ul>
</html>
"""


def render_all(reports: Path, out: Path) -> list[Path]:
    """Write a page for each run directory under `reports`, and out/index.html that names them.

    A run directory is one with an environment.json. Several are rendered at a time.
    """
    folders = sorted(
        path.parent
        for pattern in ("*", "release/*")
        for path in reports.glob(f"{pattern}/environment.json")
    )
    if not folders:
        raise ValueError(f"`reports` {reports} holds no run directories")
    # Largest first, so that no process is left with the longest page at the end.
    folders.sort(key=lambda folder: -sum(path.stat().st_size for path in folder.rglob("*")))
    # Spawned: a copy of a process that has imported torch's threads can hang.
    with ProcessPoolExecutor(usable_cores(), mp_context=get_context("spawn")) as pool:
        pages = sorted(pool.map(partial(_page, out), folders))
    links = (
        f'<li><a href="{page.relative_to(out).as_posix()}">{escape(page.parent.name)}</a></li>\n'
        for page in pages
    )
    (out / "index.html").write_text(_INDEX.format("".join(links)), encoding="utf-8")
    return pages


def _page(out: Path, folder: Path) -> Path:
    from bench.report import write_report

    own = out / folder.name
    if not (folder / "verify.json").is_file():
        return write_report([folder], own)
    # The claims are judged again from their records, with the figures.
    from bench.verify import judge

    own.mkdir(parents=True, exist_ok=True)
    for path in (*folder.glob("*.json"), *folder.glob("*.jsonl")):
        shutil.copy(path, own)
    judge(json.loads((own / "verify.json").read_text())["scope"] == "quick", own)
    return write_report([own], own)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.report.rendered", description=__doc__)
    parser.add_argument("--out", type=Path, default=REPORTS / "html", metavar="DIR")
    for page in render_all(REPORTS, parser.parse_args().out):
        print(page)


if __name__ == "__main__":
    main()
