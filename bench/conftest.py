"""Beside pytest-benchmark's table of times: memory, iterations and residual of the same cases."""

from __future__ import annotations

from typing import Any

import pytest

#: heading, key of `extra_info`, format
COLUMNS = (
    ("saved [B]", "saved_tensor_bytes", ",d"),
    ("peak [B]", "peak_live_tensor_bytes", ",d"),
    ("iterations", "iterations_mean", ".1f"),
    ("residual", "residual_max", ".1e"),
)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """A table for each group, after the times."""
    session = getattr(config, "_benchmarksession", None)
    groups: dict[str, list[Any]] = {}
    for bench in getattr(session, "benchmarks", ()):
        if bench.extra_info:
            groups.setdefault(bench.group, []).append(bench)
    for group, benches in groups.items():
        terminalreporter.section(group, sep="-")
        width = max(len(bench.name) for bench in benches)
        headings = "".join(f"{heading:>16}" for heading, _, _ in COLUMNS)
        terminalreporter.write_line(f"{'':{width}}{'median [ms]':>16}{headings}")
        for bench in benches:
            cells = [_cell(bench.extra_info.get(name), form) for _, name, form in COLUMNS]
            row = "".join(
                f"{cell:>16}" for cell in [_cell(1e3 * bench.stats.median, ".2f"), *cells]
            )
            terminalreporter.write_line(f"{bench.name:{width}}{row}")


def _cell(value: Any, form: str) -> str:
    return "-" if value is None else format(value, form)
