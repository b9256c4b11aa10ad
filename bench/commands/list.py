"""List the cases of a preset by id, or what there is to measure, one per line."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from bench.selection import add_preset

if TYPE_CHECKING:
    from bench.case import Case

HELP = "list the cases of a preset, or problems, gradients, maps, solvers, presets"
#: what can be listed besides cases
WHAT = ("problems", "gradients", "maps", "solvers", "presets")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        nargs="?",
        metavar="WHAT",
        help=f"{', '.join(WHAT)}: names with a line of description each (default: cases by id)",
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="with gradients: also solvers of the field that have no method here, and why",
    )
    add_preset(parser)


def run(args: argparse.Namespace) -> int:
    from bench.selection import cases_of
    from jfbcore import _validate

    if args.what is None:
        if args.all:
            raise ValueError("`all` is for listing gradients, got it without")
        for case in cases_of(args):
            print(case.id)
        return 0
    _validate.one_of("what", args.what, WHAT)
    if args.all and args.what != "gradients":
        raise ValueError(f"`all` is for listing gradients, got it with {args.what}")
    for name in ("preset", "filter", "device"):
        if getattr(args, name):
            raise ValueError(f"`{name}` is for listing cases, got it with {args.what}")
    lines = _names(args.what)
    if args.all:
        from baselines.unsupported import UNSUPPORTED

        lines |= {name: f"unsupported: {reason}" for name, reason in UNSUPPORTED.items()}
    width = max(len(name) for name in lines)
    for name, line in lines.items():
        print(f"{name:{width}s}  {line}")
    return 0


#: how long a preset takes, in words, where its own description does not say so
_DURATIONS = {"quick": "minutes on two cores", "gate": "minutes on two cores"}
_SAID = ("minutes", "night")


def _described_preset(name: str, make: Callable[[], Iterable[Case]]) -> str:
    """What the preset is for, how many cases it has, how long it takes."""
    cases, text = list(make()), _first_line(make).rstrip(".")
    trained = sum(case.train_seconds or 0.0 for case in cases)
    if any(word in text for word in _SAID):
        duration = ""
    elif trained:
        duration = f", {trained / 3600:.1f} hours a seed for the training alone"
    else:
        duration = f", {_DURATIONS.get(name, 'not timed as a whole')}"
    return f"{text}; {len(cases)} cases{duration}"


def _names(plural: str) -> dict[str, str]:
    from bench import plugins
    from bench.presets import PRESETS
    from bench.registry import KINDS

    if plural == "presets":
        return {name: _described_preset(name, make) for name, make in PRESETS.items()}
    kind = next(kind for kind in KINDS if kind.plural == plural)
    lines = {name: _described(value) for name, value in kind.built_in().items()}
    for name in plugins.entry_points(kind.group):
        if name in lines:
            continue  # the suite's own name wins
        try:
            lines[name] = _described(kind.resolve(name))
        except ValueError as error:
            lines[name] = str(error)
    return lines


def _described(value: object) -> str:
    from baselines import Method

    return value.describe() if isinstance(value, Method) else _first_line(value)


def _first_line(value: object) -> str:
    text = inspect.getdoc(value) or "(no description)"
    return text.splitlines()[0].removesuffix(".")
