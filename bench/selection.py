"""The options that say which cases: a preset, or a grid of one's own."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from bench.arguments import integer, integers, number, texts

if TYPE_CHECKING:
    from bench.case import Case

#: the preset that is meant where neither a preset nor a problem is given
USUAL = "smoke"
#: options of a grid: the argument of `bench.grid.grid`, type, metavar and help
_GRID = {
    "problem": ("problems", texts, "P[,P…]", "measure these problems"),
    "gradient": ("gradients", texts, "G[,G…]", "methods (default: jfb)"),
    "map": ("maps", texts, "M[,M…]", "maps (default: scaled)"),
    "solver": ("solvers", texts, "S[,S…]", "inner solvers (default: picard)"),
    "agents": ("agents", integers, "N[,N…]", "agents or goods (default: 1)"),
    "iterations": (
        *("iterations", integers, "K[,K…]"),
        "exactly K inner iterations (default: to --tolerance)",
    ),
    "batch": ("batches", integers, "B[,B…]", "minibatch (default: the problem's own, else 50)"),
    "horizon_steps": ("n_steps", integer, "T", "time steps (default: the problem's own)"),
    "tolerance": ("tolerance", number, "TOL", "in units of the gradient scale (default: 1e-4)"),
    "step_size": ("step_size", number, "A", "of the plain map"),
    "train_steps": ("train_steps", integer, "S", "then train for S steps (default: 0)"),
    "network": ("network", str, "NET", "dense, shared or indexed (default: dense)"),
    "variant": ("variant", str, "V", "of consumption: default, concave or released"),
    "dtype": ("dtype", str, "TYPE", "float32 or float64 (default: float32)"),
}


def add_preset(parser: argparse.ArgumentParser) -> None:
    """Add --preset, --filter and --device."""
    parser.add_argument("--preset", help=f"a name of `bench list presets` (default: {USUAL})")
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
    for name, (_, kind, metavar, text) in _GRID.items():
        flags = [f"--{name.replace('_', '-')}"]
        flags += ["--steps-per-rollout"] if name == "horizon_steps" else []
        group.add_argument(*flags, type=kind, metavar=metavar, help=text)


def cases_of(args: argparse.Namespace) -> list[Case]:
    """The cases that the options ask for; ValueError in one line where they make no sense."""
    from bench.filters import narrowed
    from bench.grid import grid
    from bench.presets import select
    from bench.registry import PROBLEMS
    from jfbcore import _validate

    given = {name: value for name in _GRID if (value := getattr(args, name, None)) is not None}
    if "problem" not in given:
        if given:
            raise ValueError(
                f"`{next(iter(given))}` belongs to a grid of one's own; give --problem, or choose "
                "among a preset's cases with --filter"
            )
        return select(USUAL if args.preset is None else args.preset, args.filter, args.device)
    if args.preset is not None:
        raise ValueError(f"`problem` makes a grid of one's own; leave preset {args.preset} out")
    for problem in args.problem:
        PROBLEMS.check(problem)  # before its time steps are asked for
    for name in ("agents", "iterations", "batch"):
        for value in given.get(name, ()):
            _validate.positive_int(name, value)
    if args.iterations is not None and args.tolerance is not None:
        raise ValueError(
            f"`tolerance` {args.tolerance:g} does not go with `iterations`, which are run exactly; "
            "leave one of them out"
        )
    cases = grid(**{_GRID[name][0]: value for name, value in given.items()})
    if args.device is not None:
        cases = [replace(case, device=args.device) for case in cases]
    return narrowed(cases, args.filter, "the grid")
