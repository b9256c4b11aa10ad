"""The generated parts of README and of the documentation, each between its markers.

`python -m bench.documents` writes them anew: the answer, the ranking, the tables of trainings, of
claims, of the field and of the gate's proof from the published records, the page of commands from
the parsers. A test fails where one is stale. It draws the figure of the proof, too.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

from bench import places
from bench.case import GRADIENT_NAMES as METHOD_NAMES
from bench.cli import VERBS
from bench.environment import ROOT
from bench.record_schema import record_table

#: the published records, a folder for each part of `bench.release.plan.PLAN`
RELEASE = places.release()


@functools.cache
def _ranked() -> tuple[str, str]:
    """The answer as a list, the ranking as a table: gaps of trainings, bytes of the sweep."""
    from bench.report.answer import answer
    from bench.report.frames import case_frame, curve_frame
    from bench.report.load import load_run
    from bench.report.ranking import gaps_at_equal_time, ranking, ranking_table
    from bench.report.style import markdown_table

    runs = [load_run(RELEASE / name) for name in ("targets", "sweep")]
    cases = case_frame(runs)
    gaps = gaps_at_equal_time(curve_frame(runs, cases), cases)
    ranked = ranking(cases, gaps)
    lines = [f"- **{name}:** {line}" for name, line in answer(runs, cases, ranked, gaps)]
    table = ranking_table(ranked)
    return "\n".join(lines), markdown_table(table.columns, table.texts())


def ranking() -> str:
    """The answer and the ranking below it."""
    return "\n\n".join(_ranked())


def headline() -> str:
    """The answer alone."""
    return _ranked()[0]


def trainings(folder: Path = RELEASE / "targets") -> str:
    """Every training in `folder`: seconds and steps to each target, and the gap at the end."""
    from bench.report.frames import case_frame, curve_frame
    from bench.report.load import load_run
    from bench.report.style import markdown_table
    from bench.report.tables import target_tables
    from bench.report.targets import target_times

    runs = [load_run(folder)]
    cases = case_frame(runs)
    table, *_ = target_tables(target_times(curve_frame(runs, cases), cases))
    return markdown_table(table.columns, table.texts(below=True))


def claims_in_brief() -> str:
    """Each claim of the papers on a line: its verdict and the first thing that was measured."""
    from bench.report.load import load_run

    rows = [row for row in load_run(RELEASE / "verify").claims if row["number"]]
    return "\n".join(
        f"{row['number']}. {row['claim']}: **{row['verdict']}**, {row['value'].split(';')[0]}."
        for row in rows
    )


def claims() -> str:
    """The claims with their verdicts, as `bench verify` left them, and each with its criterion.

    Where a figure belongs there is a comment, which `with_figures` replaces.
    """
    from bench.claims import discover
    from bench.report.load import load_run
    from bench.report.style import markdown_table

    run = load_run(RELEASE / "verify")
    criteria = {claim.CLAIM: getattr(claim, "CRITERION", None) for claim in discover()}
    columns = ("number", "claim", "verdict", "value")
    rows = [[row[name] for name in columns] for row in run.claims if row["number"]]
    parts = [markdown_table(("no.", "claim", "verdict", "measured"), rows)]
    for row in (*run.claims, *run.beyond):
        mark = f"{row['number']}. " if row["number"] else ""
        parts += [
            f"## {mark}{row['claim']}",
            *filter(None, [criteria[row["claim"]]]),
            f"**{row['verdict'][0].upper()}{row['verdict'][1:]}**: {row['value']}.",
        ]
        if row["conditions"]:
            parts.append(f"{row['conditions'][0].upper()}{row['conditions'][1:]}.")
        if row["figure"]:
            figure = f"<!-- figure: {Path(row['figure']).stem} -->"
            parts += [figure, f"*{row['figure_caption']}*"]
    return "\n\n".join(parts)


def claim_figures() -> dict[str, str]:
    """The SVG of each figure of the claims, by name, drawn from the records."""
    from bench.report.figures.canvas import save, theme
    from bench.verify import drawn, judge_records, records_of

    found = {}
    _, data = judge_records(False, records_of(False, RELEASE / "verify"))
    with tempfile.TemporaryDirectory() as folder, theme():
        for claim, figure in drawn(data):
            path = save(figure, Path(folder) / f"{claim.FIGURE}.svg")
            found[claim.FIGURE] = path.read_text(encoding="utf-8")
    return found


def with_figures(text: str, folder: str) -> str:
    """The page of the claims with its figures, and what has changed since they were measured."""
    from bench.environment import fingerprint
    from bench.records import read_records

    records = list(read_records(RELEASE / "verify"))
    older = sum(record.get("fingerprint") != fingerprint() for record in records)
    said = f"{older} of the {len(records)} records were measured by an older measuring code."
    note = f"\n!!! note\n    {said}\n" if older else ""
    text = re.sub(
        r"<!-- figure: ([\w-]+) -->", rf"![Figure of the claim: \1]({folder}/\1.svg)", text
    )
    return text.replace("<!-- claims: begin -->\n", f"<!-- claims: begin -->\n{note}\n", 1)


def side_by_side() -> str:
    """Every method on quadrotors: a step's time, bytes and errors."""
    from bench.records import read_records
    from bench.report.style import format_bytes, format_seconds, markdown_table

    order = {name: i for i, name in enumerate(METHOD_NAMES)}
    rows = {}
    for record in read_records(RELEASE / "field"):
        case = record["case"]
        if record["status"] == "unsupported":
            continue
        inner = [(record[name] or {}).get("max") for name in ("control_error", "residual")]
        errors = (record["gradient_error"], *inner)
        own_map = case["map"] or ""
        rows[case["n_agents"], order[case["gradient"]], own_map] = [
            *(case["n_agents"], f"`{case['gradient']}`", own_map),
            format_seconds(record["step_seconds"]["median"]),
            format_bytes(record["peak_live_tensor_bytes"]),
            format_bytes(record["saved_tensor_bytes"]),
            *("" if value is None else f"{value:.1e}" for value in errors),
        ]
    columns = ("agents", "method", "map", "step", "peak", "saved")
    heads = (*columns, "gradient error", "control error", "residual")
    return markdown_table(heads, (row for _, row in sorted(rows.items())))


def proof() -> str:
    """What the self-test of the gate found in its last run, a row for each injection."""
    from bench.report.style import markdown_table

    content = json.loads(SELF_TEST.read_text(encoding="utf-8"))
    return markdown_table(content["columns"], content["rows"])


def commands() -> str:
    """Every verb with its arguments, from the parsers themselves."""
    from bench.report.style import markdown_table

    parts = []
    for name in VERBS:
        module = importlib.import_module(f"bench.commands.{name}")
        parser = argparse.ArgumentParser(add_help=False)
        module.add_arguments(parser)
        rows = [
            [f"`{_spelled(action)}`", (action.help or "").replace("%%", "%")]
            for action in parser._actions
        ]
        text = (module.__doc__ or "").strip().replace("`%", "`")
        table = markdown_table(("argument", "meaning"), rows)
        parts.append(f"## {name}\n\n{text}\n\n{table}")
    return "\n\n".join(parts)


#: file -> marker -> what stands there
PARTS: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"ranking": ranking, "claims": claims_in_brief},
    "CHANGELOG.md": {"headline": headline},
    "docs/recipes.md": {
        "trainings": trainings,
        "growth": functools.partial(trainings, ROOT / "reports" / "growth"),
    },
    "docs/claims.md": {"claims": claims},
    "docs/field.md": {"field": side_by_side},
    "docs/commands.md": {"commands": commands},
    "docs/gate.md": {"proof": proof},
    "docs/records.md": {"record table": record_table},
}
SELF_TEST = ROOT / "reports" / "selftest" / "gate_selftest.json"


def refreshed(name: str) -> str:
    """The text of the file `name` with its generated parts as they are now.

    Raises ValueError where a marker is missing.
    """
    text = (ROOT / name).read_text(encoding="utf-8")
    for marker, make in PARTS[name].items():
        begin, end = f"<!-- {marker}: begin -->", f"<!-- {marker}: end -->"
        before, found, rest = text.partition(f"{begin}\n")
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise ValueError(f"{name} has no lines {begin} and {end}")
        text = f"{before}{begin}\n{make()}\n{end}{after}"
    return text


def _spelled(action: argparse.Action) -> str:
    """An option or argument as one types it."""
    choices = "|".join(map(str, action.choices or ()))
    value = str(action.metavar or action.dest)
    if action.option_strings:
        value = str(action.metavar or choices or action.dest.upper()) if action.nargs != 0 else ""
    return " ".join(filter(None, (", ".join(action.option_strings), value)))


def main() -> None:
    from bench.gate.results import write_power

    for name in PARTS:
        (ROOT / name).write_text(refreshed(name), encoding="utf-8")
    write_power(json.loads(SELF_TEST.read_text(encoding="utf-8")), ROOT / "docs/gate-power.svg")


if __name__ == "__main__":
    main()
