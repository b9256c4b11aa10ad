"""Measuring a release: the plan's commands, one after the other, from one state of the code."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.environment import ROOT, fingerprint, git_revision, processor
from bench.records import read_object, write_json
from bench.release.plan import Part, planned

#: exit codes with which a part has done its work: a self-test below its goal is a result, too
_DONE = (0, 1)
SCHEMA_VERSION = 1


def measure_release(directory: Path, plan: Sequence[Part], *, part: str = "1/1") -> float:
    """Measure what is missing of `plan` under `directory`; the seconds it took.

    Raises ValueError where the tree is modified or of no known commit, where the release was begun
    with other code or on another processor, and where one of the commands fails.
    """
    started = time.monotonic()
    manifest = directory / "release.json"
    state = _state()
    begun = read_object(manifest)
    if begun is None:
        begun = state | {"started": datetime.now(UTC).isoformat(timespec="seconds")}
    _same(begun, state)
    write_json(manifest, begun | {"plan": (begun.get("plan") or {}) | planned(plan)})
    for each in plan:
        hours = f"about {each.core_hours():.1f} h on one core"
        print(f"{each.name}: {each.what} ({hours})", file=sys.stderr)
        arguments = each.arguments(str(directory / each.name))
        if each.divisible:
            arguments += ["--part", part]
        elif not part.startswith("1/"):
            continue
        code = subprocess.run([sys.executable, "-m", "bench", *arguments], cwd=ROOT).returncode
        if code not in _DONE:
            raise ValueError(
                f"`python -m bench {' '.join(arguments)}` ended with exit code {code}; the same "
                "command goes on where the release stopped"
            )
        # The code may have been edited while it was measured.
        _same(state, _state(cached=False))
    return time.monotonic() - started


def _state(cached: bool = True) -> dict[str, Any]:
    """What must stay the same from the first to the last record."""
    if not cached:
        fingerprint.cache_clear()
    revision = git_revision()
    if revision["dirty"] is not False:
        raise ValueError(
            "`release` measures a clean tree of a known commit; "
            + ("commit or undo the changes first" if revision["commit"] else "no commit is known")
        )
    return {
        "schema_version": SCHEMA_VERSION,
        "fingerprint": fingerprint(),
        "machine": processor(),
        "commit": revision["commit"],
    }


def _same(begun: dict[str, Any], now: dict[str, Any]) -> None:
    for name in ("fingerprint", "machine"):
        if begun.get(name) != now[name]:
            raise ValueError(
                f"`{name}` is {now[name]}, the release was begun with {begun.get(name)}; go back "
                "to that, or begin anew in another --out"
            )
