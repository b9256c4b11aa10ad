"""Tables of the page as plain cells: what is shown, how it sorts, what explains a gap."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bench.case import REPEATS
from bench.record import COLUMNS
from bench.report.frames import PROCESSOR_UNKNOWN, missed
from bench.report.style import DASH, format_bytes, format_number, format_percent, format_seconds
from bench.report.targets import TARGETS, own_rate, tuned

#: what sorts behind every number
_LAST = 1e300


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
    """Headings, rows of cells and remarks below; a cell may be text alone."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    notes: Sequence[str] = ()
    anchor: str = ""

    def texts(self, *, below: bool = False) -> list[list[str]]:
        """What the rows say, without what they sort by; with their second lines where `below`."""
        return [
            [
                cell if isinstance(cell, str)
                else ", ".join(filter(None, (cell.text, cell.below if below else "")))
                for cell in row
            ]
            for row in self.rows
        ]  # fmt: skip


def number(
    value: Any, write: Callable[[Any], str] = str, title: str = "", kind: str = "", below: str = ""
) -> Cell:
    """A number as `write` has it; a dash where it is null, with the reason in `title`."""
    if value is None or pd.isna(value):
        return Cell(DASH, _LAST, title, "null", below)
    return Cell(write(value), value if math.isfinite(value) else _LAST, title, kind, below)


#: what identifies a row to a reader; the case's id appears on hovering
IDENTITY = ("problem", "agents", "method", "map")
#: the rest of a case, as far as a reader has to tell rows apart
_WORKLOAD = {
    **{"solver": "solver", "budget": "stops at", "batch_size": "batch"},
    **{"n_steps": "time steps", "execution": "execution", "recipe": "recipe"},
}
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
_CASE_NOTES = (
    "Numbers are medians over the seeds with that status; hover over a number for the range, "
    f"over a {DASH} for why it is missing. Click a heading to sort. Printed, only the leading "
    "columns appear; cases.csv has every record and column.",
    "“residual not reached”: the row did not come down to the tolerance it was asked for and "
    "is not comparable with rows that did; “after training” on the held-out states.",
    f"A step time rests on {REPEATS} repeats unless fewer are named below it.",
)
_TARGET_NOTE = (
    "Median wall-clock over seeds until the mean cost on held-out initial states is within the "
    "gap of the reference optimum for good; in brackets the seeds that got there, below it the "
    "training steps it took. A miss is infinite. A target is too easy where the untrained "
    "policy's gap is less than three times as wide. The final gap is the median over seeds at "
    "the end of training, below it the range."
)
_TUNED_NOTE = (
    "The best of the settings that were tried on each gradient (learning rates, maps, compiled "
    "or not), chosen by the time to the narrowest target reached and scored on the same seeds: "
    "optimistic, and the more so the more settings there were and the fewer seeds each had."
)


def identity(row: Mapping[str, Any], below: str = "") -> list[Cell | str]:
    """Problem, agents, method and map of a case, as `IDENTITY` heads them."""
    variant, ascent = row["variant"], row["ascent"]
    named = "" if pd.isna(variant) or variant == "default" else f", {variant}"
    return [
        Cell(f"{row['problem']}{named}", title=str(row["id"]), below=below),
        number(row["n_agents"]),
        Cell(str(row["gradient"]), title=str(row["id"])),
        DASH if pd.isna(ascent) else str(ascent).replace(" map", ""),
    ]


def case_table(cases: pd.DataFrame) -> Table:
    """Every case of every run, medians over the seeds of one status."""
    lead = ["run"] if cases["run"].nunique() > 1 else []
    rows = []
    for _, group in cases.groupby(["run", "environment", "id", "status"], sort=False, dropna=False):
        first = group.iloc[0]
        cells = [*(first[name] for name in lead), *identity(first)]
        cells += [DASH if pd.isna(first[name]) else str(first[name]) for name in _WORKLOAD]
        rows.append(
            [*cells, _status(group), _seeds(group), *(_measure(group, c) for c in _MEASURED)]
        )
    headings = [COLUMNS[name].heading for name in _MEASURED]
    columns = [*lead, *IDENTITY, *_WORKLOAD.values(), "status, reason", "seeds", *headings]
    return Table("All cases", columns, rows, _CASE_NOTES, "cases")


def target_tables(times: pd.DataFrame) -> list[Table]:
    """Seconds to each target per case, on the recipe and with the recipe tuned for each gradient.

    Without those for which no optimum is known or nothing was tuned.
    """
    if times.empty:
        return []
    columns = ["seeds", *(f"to a gap of {target:.0%}" for target in TARGETS), "final gap"]
    own, best = _target_rows(own_rate(times)), tuned(times)
    tables = [Table("Time to target", [*IDENTITY, *columns], own, [_TARGET_NOTE], "targets")]
    if len(best):
        rows = [
            [*cells[:4], number(count), *cells[4:]]
            for cells, count in zip(_target_rows(best), best["settings"], strict=True)
        ]
        heads, name = [*IDENTITY, "settings tried", *columns], "Time to target, recipe tuned"
        tables.append(Table(name, heads, rows, [_TUNED_NOTE], "targets-tuned"))
    return tables


def _target_rows(times: pd.DataFrame) -> list[list[Cell | str]]:
    several = times["cpus"].nunique() > 1
    rows = []
    for row in times.to_dict("records"):
        made_on = (row["cpus"] or PROCESSOR_UNKNOWN) if several else ""
        cells = [*identity(row, made_on), number(row["seeds"])]
        for target in TARGETS:
            seconds, reached = row[f"target_{target:g}"], row[f"reached_{target:g}"]
            got = f"({reached}/{row['seeds']})"
            if math.isnan(seconds):
                words = "the untrained policy is within three times the gap"
                cells.append(Cell("too easy", _LAST, words))
                continue
            text, below = f"missed {got}", ""
            if math.isfinite(seconds):
                text = f"{format_seconds(seconds)} {got}"
                below = f"{row[f'steps_{target:g}']:,.0f} steps"
            words = f"{reached} of {row['seeds']} seeds reached it"
            cells.append(Cell(text, min(seconds, _LAST), words, below=below))
        ends = dict.fromkeys(format_percent(row[name]) for name in ("gap_min", "gap_max"))
        below = " to ".join(ends) if len(ends) > 1 else ""
        gap = row["gap"] if math.isfinite(row["gap"]) else None
        lost = "half of the seeds or more did not finish" if gap is None else ""
        rows.append([*cells, number(gap, format_percent, lost, below=below)])
    return rows


def missing_table(cases: pd.DataFrame) -> Table | None:
    """Which fields are null for which reason, and in how many records; None where none is."""
    pairs = [pair for text in cases["null_reasons"] for pair in json.loads(text).items()]
    if not pairs:
        return None
    counts = pd.DataFrame(pairs, columns=["fields", "reason"]).value_counts(sort=False)
    alike = counts.rename("records").reset_index().sort_values(["reason", "fields"])
    groups = alike.groupby(["reason", "records"], sort=False)["fields"].agg(", ".join)
    rows = [[r, str(count), Cell(names, kind="id")] for (r, count), names in groups.items()]
    return Table("What is missing and why", ["reason", "records", "fields"], rows)


def generic_table(content: Mapping[str, Any]) -> Table:
    """A table that another command left: title, columns, rows, notes."""
    notes = content.get("notes") or ()
    return Table(
        str(content.get("title", "")),
        [str(name) for name in content.get("columns") or ()],
        [[_plain(value) for value in row] for row in content.get("rows") or ()],
        [notes] if isinstance(notes, str) else [str(note) for note in notes],
    )


def _plain(value: Any) -> Cell | str:
    if value is None or isinstance(value, bool):
        return {None: DASH, True: "yes", False: "no"}[value]
    if isinstance(value, int | float):
        return number(value, format_number if isinstance(value, float) else "{:,}".format)
    return str(value)


def _status(group: pd.DataFrame) -> Cell:
    status = str(group["status"].iloc[0])
    reason = "; ".join(str(text) for text in group["reason"].dropna().unique())
    text, kind = status.replace("_", " "), status
    for column, when in (
        ("tolerance_reached", ""),
        ("trained_tolerance_reached", " after training"),
    ):
        count = int(missed(group, column).sum())
        share = "" if count == len(group) else f" ({count} of {len(group)} seeds)"
        if count:
            text, kind = f"{text}, residual not reached{when}{share}", "missed"
    return Cell(text, status, kind=kind, below=reason)


def _seeds(group: pd.DataFrame) -> Cell:
    seeds = sorted(group["seed"].dropna().unique())
    return number(len(group), str, "seed " + ", ".join(str(seed) for seed in seeds))


def _measure(group: pd.DataFrame, column: str) -> Cell:
    """The median over seeds, its range and what it rests on when hovering."""
    values = group[column].astype(float).dropna()
    if values.empty:
        return number(None, title=missing_reason(group.iloc[0], column))
    write = _WRITERS.get(COLUMNS[column].unit, format_number)
    write = format_percent if column == "final_optimality_gap" else write
    parts = [f"range {write(values.min())} to {write(values.max())}"] if len(values) > 1 else []
    below = ""
    if column == "step_seconds":
        known = group.dropna(subset=["step_seconds_q25", "step_seconds_q75"])
        repeats = known["step_repeats"].iloc[0] if len(known) else None
        tail = "" if pd.isna(repeats) else f" of {repeats} repeats"
        low, high = known["step_seconds_q25"].median(), known["step_seconds_q75"].median()
        if len(known):
            parts.append(f"quartiles {format_seconds(low)} to {format_seconds(high)}{tail}")
        # where a slow step left no time for the usual number
        least = group["step_repeats"].min()
        below = f"{least} repeats" if pd.notna(least) and least < REPEATS else ""
    if column.endswith("_bytes"):
        parts.append(f"{values.median():,.0f} bytes")
    return number(float(values.median()), write, "; ".join(parts), below=below)


def missing_reason(row: pd.Series, column: str) -> str:
    """Why `column` is null in `row`: the reason recorded for it or a part above, or the status."""
    reasons = json.loads(row["null_reasons"])
    place = COLUMNS[column].path
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
