"""The self-test: copies of the source, injections, and what both gates say of them."""

from __future__ import annotations

import math
import shutil
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench.environment import ROOT, fingerprint
from bench.gate.counts import compare, read_baseline, summarise
from bench.gate.injections import DETERMINISTIC, LOOP, SLOWER, Injection
from bench.gate.outcome import Outcome
from bench.gate.process import tree_pairs
from bench.gate.results import FILE, SAME, SCHEMA_VERSION, Row, time_row, write_results
from bench.gate.time import TIMED_CASES, Settings, compare_times
from bench.gate.trees import PACKAGES, bench_of, measure_cases
from bench.presets import PRESETS
from bench.records import read_object, read_records, write_json

#: the most comparisons of each slowdown: at 100 a rate is known to 10 %, and an alarm's rate of
#: 1 % needs more
MOST_SLOWED = 100
#: the loop is far slower than 20 %: a tenth of the comparisons shows it
_LOOP_SHARE = 10
#: what is asked of each kind of time comparison: the share that is reported as slower
_ASKED: dict[str, dict[str, float]] = {
    SAME: {"most": 0.01},
    SLOWER[10].name: {"least": 0.80},
    SLOWER[20].name: {"least": 0.95},
    LOOP.name: {"least": 1.0},
}
_TIMED = (*SLOWER.values(), LOOP)


def copy_source(tree: Path) -> Path:
    """A copy of this source under `tree`."""
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, tree / package, ignore=ignored)
    return tree


def injected_copy(injection: Injection, folder: Path) -> Path:
    """A copy of this source with `injection` in it, in a new folder under `folder`."""
    tree = copy_source(Path(tempfile.mkdtemp(dir=folder)))
    injection.apply(tree)
    return tree


def deterministic_rows(folder: Path, injections: Sequence[Injection] = DETERMINISTIC) -> list[Row]:
    """What the deterministic gate says of an unedited copy, a lost record and each injection."""
    ids = {id_ for injection in injections for id_ in case_ids(injection)}
    base, baseline = copy_source(folder / "base"), folder / "baseline.json"
    write_json(baseline, measure_cases(base, ids, folder / "records-base"))
    again = folder / "records-again"
    measure_cases(base, ids, again)
    rows = []
    for name, what, asked in (
        (SAME, "the same source again", Outcome.PASS),
        ("missing", "a record lost", Outcome.MISSING),
    ):
        code = _gate(baseline, again)
        caught = int(code != Outcome.PASS)
        rows.append(_row(name, what, asked, caught, code == asked, f"exit {code}"))
        next((again / "records").glob("*.json")).unlink()
    for injection in tqdm(injections, unit="injection", file=sys.stderr):
        rows.append(_deterministic_row(injection, baseline, folder))
    return rows


def _row(name: str, what: str, asked: Outcome, caught: int, met: bool, moved: str) -> Row:
    return Row(
        name=name, what=what, gate="deterministic", runs=1, caught=caught,
        asked=f"exit {asked}", met=met, moved=moved,
    )  # fmt: skip


def case_ids(injection: Injection) -> list[str]:
    """The cases of the gate preset that must show `injection`."""
    ids = [case.id for case in PRESETS["gate"]() if case.id.startswith(injection.cases)]
    if not injection.cases or len(ids) < len(injection.cases):
        raise ValueError(f"injection {injection.name}: {injection.cases} name {len(ids)} cases")
    return ids


def _deterministic_row(injection: Injection, baseline: Path, folder: Path) -> Row:
    ids = case_ids(injection)
    tree = injected_copy(injection, folder)
    own = folder / f"baseline-{injection.name}.json"
    base = read_baseline(baseline)
    write_json(own, base | {"cases": {id_: base["cases"][id_] for id_ in ids}})
    records = folder / f"records-{injection.name}"
    measure_cases(tree, ids, records)
    # By the copy's own gate: what a contributor's checkout would say of itself.
    code = _gate(own, records, tree)
    moves = compare(read_baseline(own), summarise(read_records(records))).moves
    hit = [move for move in moves if move.worse and move.quantity in injection.quantities]
    caught = code == Outcome.REGRESSION and {move.case for move in hit} == set(ids)
    worst: dict[str, str] = {}
    for move in hit:
        worst.setdefault(move.quantity, f"{move.quantity} {move.change}")
    moved = f"exit {code}: " + (", ".join(worst.values()) or "nothing")
    return _row(injection.name, injection.what, Outcome.REGRESSION, int(caught), caught, moved)


def _gate(baseline: Path, records: Path, tree: Path = ROOT) -> int:
    """The exit code of the gate's own command line."""
    return bench_of(tree, "gate", "--baseline", str(baseline), str(records)).returncode


def time_rows(found: Sequence[Mapping[str, Any]]) -> list[Row]:
    """One row a kind of time comparison, with what is asked of it."""
    whats = {SAME: "the same source twice"} | {one.name: one.what for one in _TIMED}
    by_name = {name: [one for one in found if one["injected"] == name] for name in whats}
    return [
        time_row(name, what, by_name[name], **_ASKED.get(name, {})) for name, what in whats.items()
    ]


def next_round(found: Sequence[Mapping[str, Any]], comparisons: int) -> tuple[str, int] | None:
    """The kind of time comparison that is furthest behind, and how many cases of it are due.

    None when there are `comparisons` of equal trees and as many of each slowdown, MOST_SLOWED at
    most. In turn, so that all kinds meet the same neighbours.
    """
    slowed = min(comparisons, MOST_SLOWED)
    wanted = {SAME: comparisons} | {one.name: slowed for one in SLOWER.values()}
    wanted[LOOP.name] = math.ceil(slowed / _LOOP_SHARE)
    left = {
        name: number - sum(one["injected"] == name for one in found)
        for name, number in wanted.items()
    }
    name = max(left, key=lambda name: left[name] / wanted[name])
    return (name, left[name]) if left[name] > 0 else None


def on_file(path: Path, settings: Settings) -> tuple[list[Row], list[dict[str, Any]]]:
    """The deterministic rows and the comparisons in `path`, to be added to; none without a file.

    Raises ValueError where they are of other settings or of another source.
    """
    content = read_object(path)
    if content is None:
        return [], []
    own = asdict(settings) | {"looks": list(settings.looks)}
    now = {"schema_version": SCHEMA_VERSION, "source": fingerprint(), "settings": own}
    for name, value in now.items():
        if content.get(name) != value:
            raise ValueError(
                f"`resume` {path} has another {name.replace('_', ' ')}: {content.get(name)!r}, "
                f"now {value!r}; start anew in another folder"
            )
    return [Row(**row) for row in content["deterministic"]], content["comparisons"]


def self_test(comparisons: int, settings: Settings, out: Path, resume: bool = False) -> list[Row]:
    """Every row of the proof; table and comparisons are written under `out` as they come.

    As they come, because a hundred comparisons take long enough to be interrupted: with `resume`
    those on file count.
    """
    counts, found = on_file(out / FILE, settings) if resume else ([], [])
    many_agents = [case for case in TIMED_CASES if case.n_agents > 5]
    with tempfile.TemporaryDirectory(prefix="jfbbench-") as name:
        folder = Path(name)
        counts = counts or deterministic_rows(folder)
        base = copy_source(folder / "time-base")
        heads = {SAME: copy_source(folder / "time-same")}
        heads |= {one.name: injected_copy(one, folder) for one in _TIMED}
        write_results(out, counts + time_rows(found), found, settings, fingerprint())
        with tqdm(unit="comparison", file=sys.stderr, initial=len(found)) as bar:
            while (due := next_round(found, comparisons)) is not None:
                kind, left = due
                bar.set_postfix_str(kind)
                cases = (many_agents if kind == LOOP.name else TIMED_CASES)[:left]
                number = 1 + max((one["round"] for one in found), default=0)
                for one in compare_times(tree_pairs(base, heads[kind]), cases, settings):
                    ratios = [statistics.median(pair) for pair in one.pairs]
                    lead = {"injected": kind, "round": number}
                    found.append(lead | one.cells | {"pair_ratios": ratios})
                    bar.update()
                write_results(out, counts + time_rows(found), found, settings, fingerprint())
    return counts + time_rows(found)
