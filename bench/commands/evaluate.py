"""Score a trained policy: cost and optimality gap; trajectories into a file with --out.

The last line on stdout is one JSON object. Without --states the policy is scored on the 64
held-out initial states, as training scores it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.reference.solution import Solution
    from jfbcore.policy import Policy
    from jfbcore.rollout import Rollout

HELP = "cost, gap and trajectories of a trained policy"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="of train --checkpoint")
    add_flight_arguments(parser)
    parser.add_argument(
        "--optimum", action="store_true", help="solve every state by IPOPT, for a gap of its own"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE.npz", help="write times, states, controls and costs"
    )


def add_flight_arguments(parser: argparse.ArgumentParser) -> None:
    """What `evaluate` and `plot` share: initial states, classes from outside, device."""
    parser.add_argument(
        "--states", type=Path, metavar="FILE.npy", help="initial states, (batch, state dimension)"
    )
    parser.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="FILE.py:NAME",
        help="a problem or method of your own that the checkpoint was trained with; repeatable",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")


def run(args: argparse.Namespace) -> int:
    from bench.build import check_device
    from bench.flights.fly import (
        fly,
        gaps_of,
        initial_states,
        load_checkpoint,
        optima,
        recorded,
        starts_warm,
    )
    from bench.measure import tolerance_reached
    from bench.records import finite

    if args.out is not None and args.out.suffix != ".npz":
        raise ValueError(f"`out` must be a file that ends in .npz, got {args.out}")
    if args.out is not None and not args.out.resolve().parent.is_dir():
        raise ValueError(f"`out` {args.out} is in a folder that does not exist")
    check_device(args.device)
    policy = load_checkpoint(args.checkpoint, args.plugin, args.device)
    states = initial_states(policy.problem, args.states)
    flown = fly(policy, states, starts_warm(args.checkpoint))
    solutions = optima(policy.problem, recorded(flown)[1][0]) if args.optimum else None
    gap = gaps_of(policy.problem, solutions, args.states is not None)
    costs = flown.cost.double().tolist()
    inner = flown.inner.summary()
    residual = inner["residual"] if inner else None
    answer = {
        "problem": policy.problem.name,
        "n_agents": policy.problem.n_agents,
        "states": len(costs),
        "evaluation_cost": sum(costs) / len(costs),
        "lowest_cost": min(costs),
        "highest_cost": max(costs),
        "running_cost": flown.running_cost.double().mean().item(),
        "terminal_cost": flown.terminal_cost.double().mean().item(),
        "optimality_gap": gap.of(costs),
        "reference_states": gap.states(costs),
        "gap_reason": gap.reason,
        "residual": residual,
        "tolerance_reached": tolerance_reached(policy, residual),
    }
    if args.out is not None:
        save_trajectories(args.out, policy, flown, solutions)
        print(f"written to {args.out}", file=sys.stderr)
    _tell(answer)
    print(json.dumps(finite(answer), allow_nan=False))
    return 0


def save_trajectories(
    path: Path, policy: Policy, flown: Rollout, solutions: Sequence[Solution] | None
) -> None:
    """`times` (steps + 1,), `states` (batch, steps + 1, n), `controls` (batch, steps, m), costs.

    With `solutions` also IPOPT's `optimal_controls` and `optimal_costs`, NaN where it found none.
    """
    import numpy as np

    from bench.flights.fly import recorded

    times, states, controls = recorded(flown)
    content: dict[str, Any] = {
        "times": times,
        "states": states.transpose(0, 1),
        "controls": controls.transpose(0, 1),
        "costs": flown.cost,
        "running_costs": flown.running_cost,
        "terminal_costs": flown.terminal_cost,
    }
    content = {name: value.cpu().numpy() for name, value in content.items()}
    if solutions is not None:
        found = [each.cost if each.solved else np.nan for each in solutions]
        content["optimal_controls"] = np.stack([each.controls.numpy() for each in solutions])
        content["optimal_costs"] = np.array(found)
    np.savez_compressed(path, **content)


def _tell(answer: dict[str, Any]) -> None:
    from bench.report.style import counted, format_percent, sized

    lines = [
        f"{answer['problem']}, {sized(answer['problem'], answer['n_agents'])}: mean cost "
        f"{answer['evaluation_cost']:.5g} over {counted(answer['states'], 'initial state')} "
        f"({answer['lowest_cost']:.5g} to {answer['highest_cost']:.5g}); running "
        f"{answer['running_cost']:.5g}, terminal {answer['terminal_cost']:.5g}"
    ]
    if answer["optimality_gap"] is None:
        lines.append(f"no optimality gap: {answer['gap_reason']}")
    else:
        lines.append(
            f"{format_percent(answer['optimality_gap'])} above the reference optimum, over "
            f"{answer['reference_states']} states that have one"
        )
    if answer["tolerance_reached"] is False:
        lines.append(f"inner tolerance missed: residual {answer['residual']['max']:.3g}")
    print("\n".join(lines), file=sys.stderr)
