"""The self-test: copies of the source, injections, and what both gates say of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from bench.case import Case
from bench.environment import ROOT
from bench.gate.counts import compare, read_baseline, summarise, write_baseline
from bench.gate.injections import DETERMINISTIC, LOOP, SLEEP_10, SLEEP_20, Injection
from bench.gate.outcome import Outcome
from bench.gate.results import Row, at_least, at_most, write_results
from bench.gate.time import TIMED_CASES, Settings, TimeComparison, compare_times, tree_pairs
from bench.gate.trees import PACKAGES, measure_cases
from bench.presets import PRESETS
from bench.records import read_records

#: shares of comparisons: false alarms allowed, slowdowns that must be caught
FALSE_ALARMS, CAUGHT_10, CAUGHT_20 = 0.01, 0.80, 0.95
#: the loop is far slower than 20 %: a tenth of the comparisons shows it
_LOOP_SHARE = 10
_SAME = "nothing (A/A)"
_MANY_AGENTS = next(case for case in TIMED_CASES if case.n_agents > 1)


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
    base = copy_source(folder / "base")
    baseline = folder / "baseline.json"
    summary = measure_cases(base, ids, folder / "records-base")
    write_baseline(baseline, summary)
    again = folder / "records-again"
    measure_cases(base, ids, again)
    code = _gate(baseline, again)
    rows = [
        Row(
            name=_SAME, what="the same source again", gate="deterministic", runs=1,
            caught=int(code != Outcome.PASS), asked="exit 0", met=code == Outcome.PASS,
            moved=f"exit {code}",
        )
    ]  # fmt: skip
    next((again / "records").glob("*.json")).unlink()
    code = _gate(baseline, again)
    missing = code == Outcome.MISSING
    rows.append(
        Row(
            name="missing", what="a record lost", gate="deterministic", runs=1,
            caught=int(missing), asked="exit 3", met=missing, moved=f"exit {code}",
        )
    )  # fmt: skip
    for injection in tqdm(injections, unit="injection", file=sys.stderr):
        rows.append(_deterministic_row(injection, baseline, folder))
    return rows


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
    write_baseline(own, base | {"cases": {id_: base["cases"][id_] for id_ in ids}})
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
    return Row(
        name=injection.name, what=injection.what, gate="deterministic", runs=1,
        caught=int(caught), asked="exit 1", met=caught,
        moved=f"exit {code}: " + (", ".join(worst.values()) or "nothing"),
    )  # fmt: skip


def _gate(baseline: Path, records: Path, tree: Path = ROOT) -> int:
    """The exit code of the gate's own command line."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "bench", "gate", "--baseline", str(baseline), str(records)],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree)},
        capture_output=True,
    )
    return done.returncode


def time_comparisons(
    folder: Path, comparisons: int, settings: Settings
) -> Iterator[tuple[str, TimeComparison]]:
    """`comparisons` of each kind, taken in turn so that all kinds meet the same neighbours."""
    base, same = copy_source(folder / "time-base"), copy_source(folder / "time-same")
    heads = {_SAME: same}
    for injection in (SLEEP_10, SLEEP_20, LOOP):
        heads[injection.name] = injected_copy(injection, folder)
    jobs: list[tuple[str, Case]] = []
    for i in range(comparisons):
        case = TIMED_CASES[i % len(TIMED_CASES)]
        jobs += [(name, case) for name in (_SAME, SLEEP_10.name, SLEEP_20.name)]
        if i % _LOOP_SHARE == 0:
            jobs.append((LOOP.name, _MANY_AGENTS))
    with tqdm(jobs, unit="comparison", file=sys.stderr) as bar:
        for name, case in bar:
            bar.set_postfix_str(name)
            (one,) = compare_times(tree_pairs(base, heads[name]), [case], settings)
            yield name, one


def time_rows(found: Iterable[tuple[str, TimeComparison]]) -> list[Row]:
    """One row a kind, with what is asked of it."""
    kinds = (
        (_SAME, "the same source twice", at_most, FALSE_ALARMS),
        (SLEEP_10.name, SLEEP_10.what, at_least, CAUGHT_10),
        (SLEEP_20.name, SLEEP_20.what, at_least, CAUGHT_20),
        (LOOP.name, LOOP.what, at_least, 1.0),
    )
    found = list(found)
    rows = []
    for name, what, requirement, limit in kinds:
        own = [one for kind, one in found if kind == name]
        caught = sum(one.regressed for one in own)
        asked, met = requirement(limit, caught, len(own))
        rows.append(
            Row(
                name=name, what=what, gate="time", runs=len(own), caught=caught, asked=asked,
                met=met and bool(own), moved=_ratios(own),
            )
        )  # fmt: skip
    return rows


def _ratios(found: Sequence[TimeComparison]) -> str:
    ratios = sorted(one.first.ratio for one in found if one.first is not None)
    if not ratios:
        return "nothing timed"
    verdicts = Counter(one.verdict.value for one in found)
    words = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common())
    middle = ratios[len(ratios) // 2]
    return f"ratio {middle:.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f}); {words}"


def self_test(comparisons: int, settings: Settings, out: Path) -> list[Row]:
    """Every row of the proof; table and comparisons are written under `out` as they come.

    As they come, because a hundred comparisons take long enough to be interrupted.
    """
    with tempfile.TemporaryDirectory(prefix="jfbbench-") as name:
        folder = Path(name)
        counts = deterministic_rows(folder)
        found: list[tuple[str, TimeComparison]] = []
        rows = counts + time_rows(found)
        for one in time_comparisons(folder, comparisons, settings):
            found.append(one)
            rows = counts + time_rows(found)
            write_results(out, rows, found, settings)
    return rows
