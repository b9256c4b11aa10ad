"""Which cases: of a preset or of a grid of one's own, narrowed by KEY=VALUE; and their options."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from bench.arguments import integer, integers, number, texts
from bench.case import Case
from bench.plugins import shown
from bench.registry import PROBLEMS, default_batch, default_steps

#: the preset that is meant where neither a preset nor a problem is given
USUAL = "smoke"
#: the name of a run of a grid
ADHOC = "adhoc"
#: options of a grid: the argument of `grid`, type, metavar and help
_GRID: dict[str, tuple[str, Any, str, str]] = {
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
    "network": (
        *("network", str, "NET"),
        "dense, shared, indexed, assigned or branched (default: dense)",
    ),
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
    from bench.presets import select
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


def grid(
    problems: Sequence[str],
    *,
    agents: Sequence[int] = (1,),
    gradients: Sequence[str] = ("jfb",),
    maps: Sequence[str] = ("scaled",),
    solvers: Sequence[str] = ("picard",),
    iterations: Sequence[int | None] = (None,),
    batches: Sequence[int | None] = (None,),
    n_steps: int | None = None,
    **settings: Any,
) -> list[Case]:
    """The cases of a grid, a combination that means the same as an earlier one left out.

    `iterations`: exactly so many inner iterations; None iterates to the case's tolerance. A batch
    of None and `n_steps` None take the problem's own. `settings`: further fields of every case.
    Raises ValueError where two cases that differ have the same id, as those of two files of the
    same base name do.
    """
    cases: dict[str, Case] = {}
    for problem, n_agents, batch in itertools.product(problems, agents, batches):
        own: dict[str, Any] = {
            "problem": problem,
            "n_agents": n_agents,
            "batch_size": default_batch(problem) if batch is None else batch,
            "n_steps": default_steps(problem) if n_steps is None else n_steps,
        }
        for gradient, map_name, solver, count in itertools.product(
            gradients, maps, solvers, iterations
        ):
            exact = {} if count is None else {"max_iterations": count, "tolerance": None}
            case = Case(**own, gradient=gradient, map=map_name, solver=solver, **(settings | exact))
            earlier = cases.setdefault(case.id, case)
            if (earlier.named, earlier.to_dict(0)) != (case.named, case.to_dict(0)):
                raise ValueError(
                    f"two cases are both called {case.id}, of {_places(earlier)} and "
                    f"{_places(case)}; rename one of the files"
                )
    return list(cases.values())


def _places(case: Case) -> str:
    return ", ".join(name for name in case.named.values() if shown(name) != name)


def narrowed(cases: list[Case], filters: Sequence[str], where: str) -> list[Case]:
    """The cases that match every KEY=VALUE filter; `where` names their origin in errors.

    A filter's value may list alternatives, separated by commas; `none` is a field that is null.
    ValueError for a filter that is not KEY=VALUE, an unknown key, or when nothing is left, with
    what the key may be.
    """
    names = ["id", *(field.name for field in fields(Case))]
    for entry in filters:
        key, separator, value = entry.partition("=")
        if not separator:
            raise ValueError(f"`filter` must be KEY=VALUE, got {entry!r}")
        if key not in names:
            raise ValueError(f"`filter` key must be one of {', '.join(names)}, got {key!r}")
        wanted = value.split(",")
        values = list(dict.fromkeys(getattr(case, key) for case in cases))
        kept = [each for each in values if any(_spells(text, each) for text in wanted)]
        if not kept:
            raise ValueError(
                f"`filter` {' '.join(filters)} leaves no case of {where}: {key} may be "
                f"{_listed(values, 3 if key == 'id' else 12)} there, got {value!r}"
            )
        cases = [case for case in cases if getattr(case, key) in kept]
    return cases


def _listed(values: Sequence[object], most: int) -> str:
    texts = ["none" if value is None else shown(str(value)) for value in values[:most]]
    return ", ".join(texts) + (f" or one of {len(values) - most} more" * (len(values) > most))


def _spells(text: str, value: object) -> bool:
    """Whether `text` is a way to write `value`, as Python, JSON or a shell user would."""
    if value is None:
        return text.lower() in ("none", "null")
    if isinstance(value, bool):
        return text.lower() == str(value).lower()
    if isinstance(value, int | float):
        try:
            return float(text) == value
        except ValueError:
            return False
    return text in (value, shown(str(value)))
