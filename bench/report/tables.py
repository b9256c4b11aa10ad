"""Tables of the page as plain cells: what is shown, how it sorts, what explains a gap."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from bench.case import REPEATS
from bench.record import COLUMNS
from bench.report.frames import FIELDS, PROCESSOR_UNKNOWN, missed
from bench.report.style import DASH, format_bytes, format_number, format_percent, format_seconds
from bench.report.targets import TARGETS, own_rate, tuned


@dataclass(frozen=True)
class Cell:
    """One cell: text, value it sorts by, text on hovering, CSS class, a second smaller line."""

    text: str
    sort: float | str = ""
    title: str = ""
    kind: str = ""
    below: str = ""


@dataclass(frozen=True)
class Table:
    """Headings, rows of cells and remarks below."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()
    anchor: str = ""


_TARGET_COLUMNS = ("seeds", *(f"to a gap of {target:.0%}" for target in TARGETS), "final gap")
#: columns of the case table that the page shows, the most important first
_MEASURED = (
    *("iterations_mean", "residual_max", "step_seconds", "saved_tensor_bytes"),
    *("peak_live_tensor_bytes", "peak_rss_bytes", "final_evaluation_cost", "final_optimality_gap"),
    *("gradient_error", "control_error_max", "forward_seconds", "backward_seconds"),
    *("cuda_max_allocated_bytes", "cuda_max_reserved_bytes", "cuda_nvml_device_delta_bytes"),
    *("cuda_nvml_process_bytes", "iterations_max", "residual_mean", "gradient_cosine"),
    *("linear_residual_max", "reversible_drift_max", "final_loss", "interventions"),
)
_WRITERS: dict[str, Callable[[float], str]] = {"s": format_seconds, "B": format_bytes}


def _writer(name: str) -> Callable[[float], str]:
    return (
        format_percent
        if name == "final_optimality_gap"
        else _WRITERS.get(COLUMNS[name].unit, format_number)
    )


#: heading, column, how its median over seeds is written
_MEASURES = tuple((COLUMNS[name].heading, name, _writer(name)) for name in _MEASURED)


#: what identifies a row to a reader; the case's id appears on hovering
IDENTITY = ("problem", "agents", "method", "map")
#: the rest of a case, as far as a reader has to tell rows apart
_WORKLOAD = (
    *(("solver", "solver"), ("budget", "stops at"), ("batch_size", "batch")),
    *(("n_steps", "time steps"), ("execution", "execution"), ("recipe", "recipe")),
)


def identity(row: Mapping[str, Any]) -> list[Cell]:
    """Problem, agents, method and map of a case, as `IDENTITY` heads them."""
    variant = row["variant"]
    usual = variant is None or pd.isna(variant) or variant == "default"
    problem = row["problem"] if usual else f"{row['problem']}, {variant}"
    ascent = row["ascent"]
    ascent = DASH if ascent is None or pd.isna(ascent) else str(ascent).replace(" map", "")
    return [
        Cell(str(problem), str(problem), str(row["id"])),
        Cell(str(row["n_agents"]), int(row["n_agents"])),
        Cell(str(row["gradient"]), str(row["gradient"]), str(row["id"])),
        Cell(ascent, ascent),
    ]


def _word(row: Mapping[str, Any], name: str) -> Cell:
    value = row[name]
    text = DASH if value is None or pd.isna(value) else str(value)
    return Cell(text, text)


def case_table(cases: pd.DataFrame) -> Table:
    """One row per case, machine and status; numbers are medians over the seeds with that status."""
    several = cases["run"].nunique() > 1
    rows = []
    for _, group in cases.groupby(["run", "environment", "id", "status"], sort=False, dropna=False):
        first = group.iloc[0]
        lead = [Cell(str(first["run"]), str(first["run"]))] if several else []
        lead += [
            *identity(first),
            *(_word(first, name) for name, _ in _WORKLOAD),
            _status(group),
            _seeds(group),
        ]
        rows.append(lead + [_measure(group, column, write) for _, column, write in _MEASURES])
    headings = ["run"] if several else []
    headings += [
        *IDENTITY,
        *(name for _, name in _WORKLOAD),
        "status, reason",
        "seeds",
        *(name for name, _, _ in _MEASURES),
    ]
    notes = [
        "Numbers are medians over the seeds with that status; hover over a number for the range, "
        f"over a {DASH} for why it is missing. Click a heading to sort. Printed, only the leading "
        "columns appear; cases.csv has every record and column.",
        "“residual not reached”: the row did not come down to the tolerance it was asked for and "
        "is not comparable with rows that did; “after training” on the held-out states.",
        f"A step time rests on {REPEATS} repeats unless fewer are named below it.",
    ]
    return Table("All cases", headings, rows, notes, "cases")


def target_table(times: pd.DataFrame) -> Table | None:
    """Seconds to each target per case on the recipe, or None where no optimum is known."""
    if times.empty:
        return None
    note = (
        "Median wall-clock over seeds until the mean cost on held-out initial states is within the "
        "gap of the reference optimum for good; in brackets the seeds that got there, below it the "
        "training steps it took. A miss is infinite. A target is too easy where the untrained "
        "policy's gap is less than three times as wide. The final gap is the median over seeds at "
        "the end of training, below it the range."
    )
    rows = _target_rows(own_rate(times))
    return Table("Time to target", [*IDENTITY, *_TARGET_COLUMNS], rows, [note], "targets")


def tuned_table(times: pd.DataFrame) -> Table | None:
    """The same with the recipe tuned for each gradient, or None where nothing was tuned."""
    best = tuned(times)
    if best.empty:
        return None
    note = (
        "The best of the settings that were tried on each gradient (learning rates, maps, compiled "
        "or not), chosen by the time to the narrowest target reached and scored on the same seeds: "
        "optimistic, and the more so the more settings there were and the fewer seeds each had."
    )
    rows = _target_rows(best)
    for cells, count in zip(rows, best["settings"], strict=True):
        cells.insert(len(IDENTITY), Cell(str(count), count))
    columns = [*IDENTITY, "settings tried", *_TARGET_COLUMNS]
    return Table("Time to target, recipe tuned", columns, rows, [note], "targets-tuned")


def _target_rows(times: pd.DataFrame) -> list[list[Cell]]:
    several = times["cpus"].nunique() > 1
    rows = []
    for row in times.to_dict("records"):
        on = (" and ".join(row["cpus"]) or PROCESSOR_UNKNOWN) if several else ""
        cells = identity(row)
        cells[0] = replace(cells[0], below=on)
        cells.append(Cell(str(row["seeds"]), row["seeds"]))
        for target in TARGETS:
            seconds, reached = row[f"target_{target:g}"], row[f"reached_{target:g}"]
            words = f"{reached} of {row['seeds']} seeds reached it"
            text, below = f"missed ({reached}/{row['seeds']})", ""
            if math.isnan(seconds):
                text, words = "too easy", "the untrained policy is within three times the gap"
            elif math.isfinite(seconds):
                text = f"{format_seconds(seconds)} ({reached}/{row['seeds']})"
                below = f"{row[f'steps_{target:g}']:,.0f} steps"
            sort = seconds if math.isfinite(seconds) else 1e300
            cells.append(Cell(text, sort, words, below=below))
        rows.append([*cells, _final_gap(row["gap"], row["gap_min"], row["gap_max"])])
    return rows


def _final_gap(median: float, least: float, greatest: float) -> Cell:
    low, high = (format_percent(gap) if math.isfinite(gap) else "∞" for gap in (least, greatest))
    below = "" if low == high else f"{low} to {high}"
    if not math.isfinite(median):
        return Cell(DASH, 1e300, "half of the seeds or more did not finish", "null", below)
    return Cell(format_percent(median), median, below=below)


def missing_table(cases: pd.DataFrame) -> Table | None:
    """Which fields are null for which reason, and in how many records; None where none is."""
    counts: Counter[tuple[str, str]] = Counter()
    for text in cases["null_reasons"]:
        counts.update((str(reason), field) for field, reason in json.loads(text).items())
    fields: dict[tuple[str, int], list[str]] = {}
    for (reason, field), count in sorted(counts.items()):
        fields.setdefault((reason, count), []).append(field)
    rows = [
        [Cell(reason), Cell(str(count)), Cell(", ".join(names), kind="id")]
        for (reason, count), names in fields.items()
    ]
    return Table("What is missing and why", ["reason", "records", "fields"], rows) if rows else None


def generic_table(content: Mapping[str, Any]) -> Table:
    """A table that another command left: title, columns, rows, notes."""
    notes = content.get("notes") or ()
    return Table(
        str(content.get("title", "")),
        [str(name) for name in content.get("columns") or ()],
        [[_plain(value) for value in row] for row in content.get("rows") or ()],
        [notes] if isinstance(notes, str) else [str(note) for note in notes],
    )


def _plain(value: Any) -> Cell:
    if value is None:
        return Cell(DASH)
    if isinstance(value, bool):
        return Cell("yes" if value else "no", str(value))
    if isinstance(value, int):
        return Cell(f"{value:,}", value)
    if isinstance(value, float):
        return Cell(format_number(value), value)
    return Cell(str(value), str(value))


def _status(group: pd.DataFrame) -> Cell:
    status = str(group["status"].iloc[0])
    reason = "; ".join(str(text) for text in group["reason"].dropna().unique())
    words = status.replace("_", " ")
    marks = []
    for column, when in (
        ("tolerance_reached", ""),
        ("trained_tolerance_reached", " after training"),
    ):
        count = int(missed(group, column).sum())
        share = "" if count == len(group) else f" ({count} of {len(group)} seeds)"
        marks += [f"residual not reached{when}{share}"] if count else []
    text = ", ".join([words, *marks])
    return Cell(text, status, kind="missed" if marks else status, below=reason)


def _seeds(group: pd.DataFrame) -> Cell:
    seeds = sorted(group["seed"].dropna().unique())
    return Cell(str(len(group)), len(group), "seed " + ", ".join(str(seed) for seed in seeds))


def _measure(group: pd.DataFrame, column: str, write: Callable[[float], str]) -> Cell:
    values = group[column].astype(float).dropna()
    if values.empty:
        return Cell(DASH, 1e300, missing_reason(group.iloc[0], column), "null")
    parts = [f"range {write(values.min())} to {write(values.max())}"] if len(values) > 1 else []
    if column == "step_seconds":
        parts += _quartiles(group)
    if column.endswith("_bytes"):
        parts.append(f"{values.median():,.0f} bytes")
    below = _few_repeats(group) if column == "step_seconds" else ""
    return Cell(write(values.median()), float(values.median()), "; ".join(parts), below=below)


def _few_repeats(group: pd.DataFrame) -> str:
    """How few repeats a time rests on, where a slow step left no time for the usual number."""
    repeats = group["step_repeats"].dropna()
    few = repeats[repeats < REPEATS]
    return "" if few.empty else f"{few.min()} repeats"


def _quartiles(group: pd.DataFrame) -> list[str]:
    first = group.dropna(subset=["step_seconds_q25", "step_seconds_q75"])
    if first.empty:
        return []
    low, high = first["step_seconds_q25"].median(), first["step_seconds_q75"].median()
    repeats = first["step_repeats"].iloc[0]
    tail = "" if pd.isna(repeats) else f" of {repeats} repeats"
    return [f"quartiles {format_seconds(low)} to {format_seconds(high)}{tail}"]


def missing_reason(row: pd.Series, column: str) -> str:
    """Why `column` is null in `row`: the reason recorded for it or a part above, or the status."""
    reasons = json.loads(row["null_reasons"])
    place = FIELDS[column][0]
    while place:
        if place in reasons:
            return str(reasons[place])
        place = place.rpartition(".")[0]
    if row["status"] != "ok":
        words = str(row["status"]).replace("_", " ")
        return words if pd.isna(row["reason"]) else f"{words}: {row['reason']}"
    if column.startswith("final_") and str(row["train_steps"]) == "0" and pd.isna(row["recipe"]):
        return "the case does not train"
    return "no reason recorded"
