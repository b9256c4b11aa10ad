"""The options that say which cases: a preset, or a grid of one's own."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bench.arguments import integer, number

if TYPE_CHECKING:
    from bench.case import Case

#: the preset that is meant where neither a preset nor a problem is given
USUAL = "smoke"
#: options that belong to a grid, by the argument of `bench.grid.grid` or the field of a case
_GRID = {
    "agents": "agents",
    "gradient": "gradients",
    "map": "maps",
    "solver": "solvers",
    "iterations": "iterations",
    "batch": "batches",
    "horizon_steps": "n_steps",
    "tolerance": "tolerance",
    "step_size": "step_size",
    "train_steps": "train_steps",
    "network": "network",
    "variant": "variant",
    "dtype": "dtype",
}


def add_preset(parser: argparse.ArgumentParser) -> None:
    """Add --preset, --filter and --device."""
    parser.add_argument(
        "--preset",
        help=f"a name of `bench list presets` (default: {USUAL})",
    )
    parser.add_argument(
        "--filter",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="keep cases whose field KEY is VALUE (or one of VALUE,VALUE,…); all of several hold",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="override the preset's device")


def add_grid(parser: argparse.ArgumentParser) -> None:
    """Add what makes a grid without a preset; several values are separated by commas."""
    group = parser.add_argument_group(
        "a grid of one's own, in place of a preset",
        "A name is one of `bench list`, of an installed entry point, package.module:Attribute or "
        "path/to/file.py:Attribute.",
    )
    for name, metavar, text in (
        ("problem", "P[,P…]", "measure these problems"),
        ("gradient", "G[,G…]", "methods (default: jfb)"),
        ("map", "M[,M…]", "maps (default: scaled)"),
        ("solver", "S[,S…]", "inner solvers (default: picard)"),
    ):
        group.add_argument(f"--{name}", type=_texts, metavar=metavar, help=text)
    for name, metavar, text in (
        ("agents", "N[,N…]", "agents or goods (default: 1)"),
        ("iterations", "K[,K…]", "exactly K inner iterations (default: to --tolerance)"),
        ("batch", "B[,B…]", "minibatch (default: the problem's own, else 50)"),
    ):
        group.add_argument(f"--{name}", type=_integers, metavar=metavar, help=text)
    group.add_argument(
        *("--horizon-steps", "--steps-per-rollout"),
        type=integer,
        metavar="T",
        help="time steps (default: the problem's own)",
    )
    group.add_argument("--tolerance", type=number, help="in units of the gradient scale (1e-4)")
    group.add_argument("--step-size", type=number, metavar="A", help="of the plain map")
    group.add_argument(
        "--train-steps", type=integer, metavar="S", help="then train for S steps (default: 0)"
    )
    group.add_argument("--network", help="dense, shared or indexed (default: dense)")
    group.add_argument("--variant", help="of consumption: default, concave or released")
    group.add_argument("--dtype", help="float32 or float64 (default: float32)")


def cases_of(args: argparse.Namespace) -> list[Case]:
    """The cases that the options ask for; ValueError in one line where they make no sense."""
    from bench.filters import narrowed
    from bench.presets import select

    given = {
        argument: value
        for option, argument in _GRID.items()
        if (value := getattr(args, option, None)) is not None
    }
    if getattr(args, "problem", None) is None:
        if given:
            option = next(o for o, argument in _GRID.items() if argument in given)
            raise ValueError(
                f"`{option}` belongs to a grid of one's own; give --problem, or choose among a "
                "preset's cases with --filter"
            )
        return select(USUAL if args.preset is None else args.preset, args.filter, args.device)
    if args.preset is not None:
        raise ValueError(f"`problem` makes a grid of one's own; leave preset {args.preset} out")
    return narrowed(_grid(args, given), args.filter, "the grid")


def _grid(args: argparse.Namespace, given: dict[str, Any]) -> list[Case]:
    from bench.grid import grid
    from bench.registry import PROBLEMS
    from jfbcore import _validate

    for problem in args.problem:
        PROBLEMS.check(problem)  # before its time steps are asked for
    for name in ("agents", "iterations", "batch"):
        for value in getattr(args, name) or ():
            _validate.positive_int(name, value)
    if args.iterations is not None and args.tolerance is not None:
        raise ValueError(
            f"`tolerance` {args.tolerance:g} does not go with `iterations`, which are run exactly; "
            "leave one of them out"
        )
    cases = grid(args.problem, **given)
    return cases if args.device is None else [replace(c, device=args.device) for c in cases]


def _separated(of: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    def separated(text: str) -> tuple[Any, ...]:
        return tuple(of(part.strip()) for part in text.split(",") if part.strip())

    return separated


_texts, _integers = _separated(str), _separated(integer)
