"""Train one policy; the last line on stdout is one JSON object with the result."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.arguments import integer, number

HELP = "one training run"
_BAR = "{l_bar}{bar}| {elapsed} {postfix}"


#: options by name: type, metavar, what argparse is told besides
_OPTIONS: dict[str, tuple[Any, str | None, dict[str, Any]]] = {
    # Required, but checked in `run`: the number of agents belongs into the same line.
    "problem": (str, None, {"help": "a name of `bench list problems`, or one from outside"}),
    "agents": (integer, "N", {"default": 1, "help": "agents or goods (default: 1)"}),
    "gradient": (str, None, {"help": "a name of `bench list gradients`, or one from outside"}),
    "recipe": (str, None, {
        "default": "recommended",
        "help": "recommended or released: decides whatever is not given (default: recommended)",
    }),
    "map": (str, None, {"help": "plain, scaled, newton, … (default: scaled, or the recipe's)"}),
    "step-size": (number, "A", {"help": "of the plain map"}),
    "solver": (str, None, {
        "help": "picard, anderson, newton, closed-form (default: picard, or the recipe's)",
    }),
    "network": (str, None, {
        "help": "dense, shared, indexed, assigned or branched (default: the recipe's)",
    }),
    "iterations": (integer, "K", {
        "help": "exactly K inner iterations (default: to --tolerance)",
    }),
    "tolerance": (number, None, {
        "help": "inner residual, in units of the problem's gradient scale (default: 1e-4, "
        "released recipe: 0.1 absolute)",
    }),
    "batch": (integer, "B", {"help": "default: the recipe's"}),
    "horizon-steps": (integer, "T", {"help": "default: the problem's own"}),
    "variant": (str, None, {"default": "default", "help": "default, concave or released"}),
    "dtype": (str, None, {"default": "float32", "help": "float32 or float64"}),
    "device": (str, None, {"default": "cpu", "help": "cpu or cuda"}),
    "learning-rate": (number, "RATE", {}),
    "schedule": (str, None, {"help": "cosine, plateau or constant"}),
    "seed": (integer, None, {"default": 0}),
    "threads": (integer, "N", {"help": "default: OMP_NUM_THREADS, else 1"}),
    "checkpoint": (Path, "FILE", {"help": "save to FILE as it goes"}),
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    for name, (kind, metavar, others) in _OPTIONS.items():
        parser.add_argument(f"--{name}", type=kind, metavar=metavar, **others)
    how, told = argparse.BooleanOptionalAction, "compile the rollout (default: in long runs)"
    parser.add_argument("--compile", action=how, help=told)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=integer, metavar="S", help="optimiser steps (default: 100)")
    length.add_argument("--time-limit", type=number, metavar="SECONDS", help="training seconds")
    parser.add_argument(
        "--resume", action="store_true", help="continue from --checkpoint, to --steps if given"
    )


def run(args: argparse.Namespace) -> int:
    from bench.registry import METHODS, PROBLEMS
    from jfbcore import _validate

    if args.problem is None or args.gradient is None:
        raise ValueError("--problem and --gradient are required, and --agents for more than one")
    PROBLEMS.check(args.problem)
    METHODS.check(args.gradient)
    for name in ("agents", "iterations", "batch", "horizon-steps"):
        if (value := getattr(args, name.replace("-", "_"))) is not None:
            _validate.positive_int(name, value)
    if args.iterations is not None and args.tolerance is not None:
        raise ValueError(
            f"`tolerance` {args.tolerance:g} does not go with `iterations` {args.iterations}, "
            "which are run exactly; leave one of them out"
        )
    if args.seed < 0:
        raise ValueError(f"`seed` must be >= 0, got {args.seed}")
    if args.resume and args.checkpoint is None:
        raise ValueError("`resume` needs a checkpoint file; give --checkpoint FILE")
    if args.checkpoint is not None:
        if args.checkpoint.is_dir():
            raise ValueError(f"`checkpoint` must be a file, got the folder {args.checkpoint}")
        if not args.checkpoint.resolve().parent.is_dir():
            raise ValueError(f"`checkpoint` {args.checkpoint} is in a folder that does not exist")
    _refuse_what_is_ignored(args)
    return _train(args, _case(args))


def _case(args: argparse.Namespace) -> Any:
    """The case: what was asked for, and the recipe's word where nothing was."""
    from bench.build import released_tolerance
    from bench.case import RECIPES, Case
    from bench.recipes import case_settings
    from bench.registry import default_steps
    from jfbcore import _validate

    _validate.one_of("recipe", args.recipe, RECIPES)
    settings = case_settings(args.recipe, args.problem, args.agents, args.gradient)
    if args.map is not None or args.solver is not None:
        # A recipe's map, its step and its solver belong together.
        for name in ("map", "step_size", "solver"):
            settings.pop(name, None)
    asked = {
        "map": args.map,
        "step_size": args.step_size,
        "solver": args.solver,
        "network": args.network,
        "max_iterations": args.iterations,
        "batch_size": args.batch,
    }
    case = Case(
        problem=args.problem,
        n_agents=args.agents,
        gradient=args.gradient,
        n_steps=args.horizon_steps or default_steps(args.problem),
        dtype=args.dtype,
        device=args.device,
        variant=args.variant,
        compile=bool(args.compile),
        **(settings | {name: value for name, value in asked.items() if value is not None}),
    )
    if args.iterations is None and args.tolerance is None and args.recipe != "released":
        return case
    exact = args.iterations is not None or args.tolerance is not None
    return replace(case, tolerance=args.tolerance if exact else released_tolerance(case))


def _refuse_what_is_ignored(args: argparse.Namespace) -> None:
    """ValueError for an option that plays no part with the method asked for."""
    from bench.plugins import shown
    from bench.registry import METHODS

    method = METHODS.resolve(args.gradient)
    unused = getattr(method.estimator, "unused", ())
    why = "does not use it"
    if not method.inner_problem:
        unused = ("map", "step_size", "solver", "iterations", "tolerance")
        why = "solves no inner problem"
    for name in unused:
        value = getattr(args, name)
        if value is not None:
            raise ValueError(
                f"`{name.replace('_', '-')}` {value} plays no part: {shown(args.gradient)} {why}; "
                "leave it out"
            )


def _config(args: argparse.Namespace, case: Any) -> Any:
    """The recipe's settings; a run that is resumed keeps its own, and may get a later end."""
    from bench.recipes import training_config
    from jfbcore.extras.checkpoints import saved_run

    saved = None
    if args.checkpoint is not None and args.checkpoint.exists():
        try:
            saved = saved_run(args.checkpoint)
        except ValueError as error:
            raise ValueError(f"{error}; it is left as it is, give another file") from error

    def recipe(steps: int | None, time_limit: float | None) -> Any:
        return training_config(
            case, steps=steps, time_limit=time_limit, seed=args.seed, recipe=args.recipe,
            learning_rate=args.learning_rate, schedule=args.schedule,
        )  # fmt: skip

    asked = (args.steps, args.time_limit)
    if saved is None or not args.resume:
        return recipe(*((100, None) if asked == (None, None) else asked))
    own = (saved.config.steps, saved.config.time_limit)
    steps, limit = own if asked == (None, None) else asked
    for name, value, kept, done in (
        ("steps", steps, own[0], saved.step),
        ("time-limit", limit, own[1], saved.seconds),
    ):
        if value is not None and value != kept and value < done:
            raise ValueError(
                f"`{name}` must be at least the {done:g} that {args.checkpoint} has done, "
                f"got {value:g}"
            )
    return replace(recipe(*own), steps=steps, time_limit=limit)


def _train(args: argparse.Namespace, case: Any) -> int:
    """Train on the processes that torchrun started, or on this one."""
    import os

    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return _train_here(args, case)
    import torch
    import torch.distributed as dist

    if case.device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if case.device == "cuda" else "gloo")
    try:
        return _train_here(args, case)
    finally:
        dist.destroy_process_group()


def _train_here(args: argparse.Namespace, case: Any) -> int:
    import torch
    from tqdm import tqdm

    from bench import training as trainings
    from bench.build import Unsupported, compiling_pays
    from bench.environment import default_threads, keep_freed_memory
    from bench.gap import gaps
    from bench.plugins import shown
    from bench.pretraining import Pretraining
    from bench.records import finite
    from bench.training_answer import answer, interruptible, summary
    from jfbcore import _validate

    keep_freed_memory()
    threads = default_threads() if args.threads is None else args.threads
    torch.set_num_threads(_validate.positive_int("threads", threads))
    config, identity = _config(args, case), replace(case, compile=False).id
    if args.compile is None:
        case = replace(case, compile=compiling_pays(case, config))
    try:
        training = trainings.prepare(
            case,
            args.seed,
            config,
            checkpoint=args.checkpoint,
            identity=f"{identity}, seed {args.seed}",
        )
    except Unsupported as unsupported:
        asked, problem = (shown(str(getattr(case, f))) for f in (unsupported.field, "problem"))
        raise ValueError(
            f"`{unsupported.field}` {asked} cannot serve {problem}: {unsupported.reason}"
        ) from unsupported
    with interruptible(args.checkpoint, args.arguments) as stop:
        if stop is not None:
            training.hooks.insert(0, stop)
        if args.resume and args.checkpoint.exists():
            training.load(args.checkpoint)
        pretraining = Pretraining.begin(case, training)
        # What the recipe made of what was not asked for: map, solver, network and batch.
        print(f"training {case.id}", file=sys.stderr)
        first = training.world.rank == 0
        with tqdm(total=1.0, file=sys.stderr, disable=not first, bar_format=_BAR) as bar:

            def progress(fraction: float, line: str) -> None:
                bar.n = min(fraction, 1.0)
                bar.set_postfix_str(line)

            result = training.run(progress)
    for intervention in result.interventions:
        print(f"rejected step {intervention.step}: {intervention.reason}", file=sys.stderr)
    if not first:
        return 0
    if pretraining is not None:
        result = pretraining.counted(result)
    if result.status == "ok" and training.scheduled() < 1.0:
        print(
            f"the time limit came after {training.scheduled():.0%} of the schedule; a shorter "
            "limit or --steps makes a shorter schedule",
            file=sys.stderr,
        )
    gap = gaps(training.policy.problem)
    content = answer(training.policy, result, gap, args.seed) | {
        "world_size": training.world.size,
        "pretraining_seconds": None if pretraining is None else pretraining.seconds,
    }
    named = (args.problem, args.gradient, args.map, args.solver)
    outside = [name for name in named if name and ":" in name]
    for line in summary(content, gap, args.checkpoint, outside):
        print(line, file=sys.stderr)
    print(json.dumps(finite(content), allow_nan=False))
    return 0
