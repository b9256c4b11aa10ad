"""Reference optima on the held-out initial states, solved and cached."""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from bench.case import PROBLEM_NAMES

if TYPE_CHECKING:
    from torch import Tensor

    from bench.reference.solution import Solution, Solver
    from jfbcore.problems import Problem

HELP = "solve for the optimal cost on the held-out initial states and cache it"

_METHODS = ("ipopt", "transcription", "both", "best-response", "closed-form")
_HELD_OUT = 64
_TIME_LIMIT = 300.0
#: noise on IPOPT's controls that the transcription starts from, in units of their mean size
_DISTURBANCE = 0.1
#: starts per agent of a swarm's own optima, besides the neighbour's optimum
_AGENT_STARTS = 2


_OPTIONS: dict[str, dict[str, Any]] = {
    # Checked in `run`, so that a bad value gives one line and not a usage page.
    "problem": {"help": ", ".join(PROBLEM_NAMES)},
    "agents": {"type": int, "default": 1, "help": "agents, or goods (default 1)"},
    "states": {
        "type": int, "default": _HELD_OUT,
        "help": f"the first so many held-out states, 1 to {_HELD_OUT} (default {_HELD_OUT})",
    },
    "method": {
        "help": "closed-form (default where the problem knows its optimum), ipopt (default "
        "elsewhere), transcription, both to compare them (the transcription then starts from "
        "ipopt's controls, disturbed, and ipopt's are kept), or best-response: ipopt on one "
        "bicycle at a time, for more of them than it can take at once",
    },
    "starts": {
        "type": int,
        "help": "starting points per state (default: as many as the method needs; ipopt: 6 for "
        "single quadrotors and up to 6 bicycles)",
    },
    "time-limit": {
        "type": float, "default": _TIME_LIMIT, "metavar": "S",
        "help": f"processor seconds ipopt may take per starting point (default {_TIME_LIMIT:g})",
    },
    "first": {
        "type": int, "default": 0, "metavar": "STATE",
        "help": "go on from this state on, counted from 0; those before stay as they are on file",
    },
    "bounds": {
        "action": "store_true",
        "help": "also a lower bound beside each state, where agents can be decoupled",
    },
    "audit": {
        "action": "store_true",
        "help": "only list what the files in --out are worth; 1 unless every state converged",
    },
    "improve": {
        "type": Path, "metavar": "DIR",
        "help": "only replace references that a policy beats: by the costs of single states in "
        "the training records under DIR, and by IPOPT from the flights of the checkpoints there",
    },
    "out": {"type": Path, "help": "where the cache lives (default: see `bench where`)"},
    "write": {
        "action": argparse.BooleanOptionalAction, "default": True,
        "help": "write the cache, by ipopt state by state; the better of what is on file and "
        "what is found stays (default)",
    },
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    for name, keywords in _OPTIONS.items():
        parser.add_argument(f"--{name}", **keywords)


def run(args: argparse.Namespace) -> int:
    """Solve, print the figures and one JSON line, and write the cache. Returns the exit status.

    0 when every state was solved, 1 otherwise. Raises ValueError naming a bad argument.
    """
    from bench import places

    if args.audit:
        from bench.reference import audit

        return audit.run(args.out or places.data("references"))
    args.out = args.out or places.own_references()
    if args.improve is not None:
        from bench.reference import improve

        return improve.run(args.improve, args.out)
    _check(args)
    import torch
    from tqdm import tqdm

    from bench.records import finite
    from bench.reference.cache import make_reference
    from bench.reference.closed_form import knows_optimum
    from jfbcore.held_out import held_out_states
    from jfbcore.problems import PROBLEMS

    problem = PROBLEMS[args.problem](n_agents=args.agents, dtype=torch.float64)
    if args.method is None:
        only_ipopt = args.first or args.bounds
        args.method = "closed-form" if knows_optimum(problem) and not only_ipopt else "ipopt"
    names = ("ipopt", "transcription") if args.method == "both" else (args.method,)
    solvers = {name: _solver(name, args) for name in names}
    for solver in solvers.values():
        if (reason := solver.supports(problem)) is not None:
            raise ValueError(f"`--method` {reason}")
    if args.write:
        # First of all: hours of solving should not end at a folder that cannot be written.
        args.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=args.out):
            pass
    states = held_out_states(problem, args.states)[args.first :]
    references, begin, start = {}, time.perf_counter(), None
    solutions: list[Solution] = []
    for name, solver in solvers.items():
        if name == "transcription":
            start = _start(problem, states, solutions, args.starts)
        solutions = []
        with tqdm(total=len(states), desc=name, unit="state", file=sys.stderr) as bar:
            for solution in solver.solve_each(problem, states, start):
                if args.bounds:  # which only IPOPT has
                    from bench.reference.bound import lower_bound

                    state, controls = states[len(solutions)], solution.controls
                    bound = lower_bound(problem, state, controls, cast(Any, solver))
                    solution = replace(solution, lower_bound=bound)
                solutions.append(solution)
                references[name] = make_reference(problem, name, solutions, args.first)
                if args.write and len(names) == 1 and references[name].solved:
                    # State by state: a run that is cut off has lost one.
                    kept_in = _keep(problem, references[name], args)
                bar.update(1)
    seconds = time.perf_counter() - begin

    kept = references[names[0]]
    costs = kept.solved
    for name, reference in references.items():
        _print_figures(name, reference)
    difference = _difference(references) if args.method == "both" else None
    if difference is not None:
        print(f"mean of (transcription - ipopt) / |ipopt|: {difference:+.2e}")
    if args.write and costs:
        print(kept_in if len(names) == 1 else _keep(problem, kept, args))
    line = {
        "problem": args.problem,
        "n_agents": args.agents,
        "states": args.states,
        "method": args.method,
        "mean": sum(costs) / len(costs) if costs else None,
        "min": min(costs, default=None),
        "max": max(costs, default=None),
        "seconds": round(seconds, 3),
        "difference": difference,
    }
    print(json.dumps(finite(line), allow_nan=False))
    return 0 if len(costs) == len(states) else 1


def _check(args: argparse.Namespace) -> None:
    if args.problem is None:
        raise ValueError("`--problem` is required, unless --audit or --improve is asked for")
    for name, names in (("problem", PROBLEM_NAMES), ("method", (*_METHODS, None))):
        value = getattr(args, name)
        if value not in names:
            listed = ", ".join(filter(None, names))
            raise ValueError(f"`--{name}` must be one of {listed}, got {value!r}")
    ranges = (
        ("agents", 1, None), ("states", 1, _HELD_OUT), ("first", 0, args.states - 1),
        ("starts", 1, None),
    )  # fmt: skip
    for name, least, most in ranges:
        value = getattr(args, name)
        if value is None or (value >= least and (most is None or value <= most)):
            continue
        allowed = f">= {least}" if most is None else f"between {least} and {most}"
        raise ValueError(f"`--{name}` must be {allowed}, got {value}")
    if (args.first or args.bounds) and args.method not in (None, "ipopt"):
        raise ValueError(f"`--first` and `--bounds` are for ipopt, got `--method` {args.method}")
    if args.starts is not None and args.method == "best-response":
        raise ValueError(
            f"`--starts` is for ipopt and transcription, got {args.starts} with best-response, "
            "which has starting points of its own; leave it out"
        )
    if not 0 < args.time_limit < math.inf:
        raise ValueError(f"`--time-limit` must be a number of seconds > 0, got {args.time_limit}")


def _solver(name: str, args: argparse.Namespace) -> Solver:
    """The solver of a method; ValueError that says what to install where CasADi is wanted."""
    if name == "closed-form":
        from bench.reference.closed_form import ClosedForm

        return ClosedForm()
    if name == "transcription":
        from bench.reference.transcription import Transcription

        return Transcription(starts=args.starts or 1)
    try:
        from bench.reference.best_response import BestResponse
        from bench.reference.ipopt import Ipopt
    except ModuleNotFoundError as error:
        if error.name != "casadi":
            raise
        raise ValueError(
            "`--method ipopt` and `best-response` need casadi, which is not installed; install "
            "the `reference` extra or use `--method transcription`"
        ) from error
    ipopt = Ipopt(starts=args.starts, time_limit=args.time_limit)
    return BestResponse(ipopt=ipopt) if name == "best-response" else ipopt


def _start(
    problem: Problem, states: Tensor, known: Sequence[Solution], starts: int | None
) -> Tensor | None:
    """Controls that the transcription starts from: IPOPT's, disturbed, where they are `known`; of
    a swarm of quadrotors the join of its agents' own optima; else None, starts of its own."""
    import torch

    if known:
        exact, random = torch.stack([s.controls for s in known]), torch.Generator().manual_seed(0)
        noise = torch.randn(exact.shape, generator=random, dtype=exact.dtype)
        # Far enough to have to find the way back, near enough to find this optimum and no other.
        return exact + _DISTURBANCE * exact.abs().mean((1, 2), keepdim=True) * noise
    if problem.name != "quadrotor" or problem.n_agents == 1:
        return None
    from bench.reference.ipopt import Ipopt

    return Ipopt(starts=starts or _AGENT_STARTS).agents_alone(problem, states)


def _print_figures(name: str, reference) -> None:
    costs = reference.solved
    if not costs:
        print(f"{name}: no state solved; statuses: {', '.join(sorted(set(reference.statuses)))}")
        if any("Time" in status for status in reference.statuses):
            print("a longer --time-limit gives each starting point more seconds")
        return
    print(
        f"{name} ({reference.label}): mean {sum(costs) / len(costs):.6g}, min {min(costs):.6g}, "
        f"max {max(costs):.6g} over {len(costs)} of {len(reference.costs)} states"
    )


def _difference(references: dict) -> float | None:
    from bench.reference.cache import optimality_gap

    ours = references["transcription"].costs
    if not references["ipopt"].solved:
        return None
    return optimality_gap([float("nan") if c is None else c for c in ours], references["ipopt"])


def _keep(problem, reference, args: argparse.Namespace) -> str:
    """Put what is better in `reference` on file, and say so."""
    from bench.reference.cache import StaleReference, load_reference, save_reference

    try:
        cached = load_reference(problem, args.out)
    except (StaleReference, ValueError) as error:
        print(f"{error}; replacing it now")
        cached = None
    better = reference if cached is None else cached.better(reference)
    if better == cached:
        return f"{args.out} has nothing worse on file; left as it is"
    return f"written to {save_reference(better, problem, args.out)}"
