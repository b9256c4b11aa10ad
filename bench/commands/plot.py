"""Draw what a trained policy does: its paths or states, its controls, distances between agents.

Three flights start in the same state: the trained policy's, the optimum that IPOPT finds and the
untrained policy's. Figures are written as SVG and PNG; --animate adds an animated SVG.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from bench.commands.evaluate import add_flight_arguments

HELP = "draw what a trained policy does"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint",
        type=Path,
        metavar="CHECKPOINT|DIR",
        help="of train --checkpoint; of a folder every checkpoint in it (*.pt)",
    )
    add_flight_arguments(parser)
    parser.add_argument(
        "--optimum",
        action=argparse.BooleanOptionalAction,
        help="whether to draw IPOPT's optimum (default: of built-in problems up to 20 agents)",
    )
    parser.add_argument(
        "--animate", action="store_true", help="also an animated SVG of the trained policy"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where to write (default: beside the checkpoint)"
    )


def run(args: argparse.Namespace) -> int:
    from bench.build import check_device

    check_device(args.device)
    files = [args.checkpoint]
    if args.checkpoint.is_dir():
        files = sorted(args.checkpoint.glob("*.pt"))
        if not files:
            raise ValueError(
                f"{args.checkpoint} has no checkpoint (*.pt); `bench train --checkpoint` writes "
                "one, and `bench report` draws the records of a run"
            )
    for file in files:
        _plot(args, file)
    return 0


def _plot(args: argparse.Namespace, file: Path) -> None:
    from bench.flights import fly
    from bench.flights.animate import save_animation
    from bench.flights.draw import flight_figures, save

    policy = fly.load_checkpoint(file, args.plugin, args.device)
    problem = policy.problem
    flown = fly.fly(policy, fly.initial_states(problem, args.states)[:1], fly.starts_warm(file))
    flights = [fly.flight(fly.TRAINED, flown)]
    state = fly.recorded(flown)[1][0]
    reason = "not asked for" if args.optimum is False else None
    if args.optimum is None:
        reason = fly.why_no_optimum(problem)
    if reason is None:
        print("solving for the optimum by IPOPT", file=sys.stderr)
        (solution,) = fly.optima(problem, state)
        reason = None if solution.solved else f"IPOPT ended with {solution.status}"
    if reason is None:
        flights.append(fly.optimal_flight(problem, state[0], solution))
    else:
        print(f"no optimum drawn: {reason}", file=sys.stderr)
    flights.append(fly.flight(fly.UNTRAINED, fly.fly(fly.untrained(policy), state)))
    figures = flight_figures(problem, flights)
    out = args.out or file.parent
    written = save(figures, out, file.stem)
    captions = {path.name: each.caption for path, each in zip(written, figures, strict=True)}
    if args.animate:
        caption = f"{problem.n_agents} × {problem.name}, flown by the trained policy"
        animated = save_animation(problem, flights[0], caption, out / f"{file.stem}-animation.svg")
        written.append(animated)
        captions[animated.name] = f"{caption}; cost {flights[0].cost:.4g}."
    # What `bench report` writes below the pictures that it finds in a run's `trajectories` folder.
    listing = out / f"{file.stem}-figures.json"
    listing.write_text(json.dumps(captions, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for path in written:
        print(path)
