"""How wrong JFB's gradient is, beside what the theory of one-step differentiation allows.

At a fixed point u = T(u, theta) the derivative J of u and its one-step stand-in dT/dtheta obey
dT/dtheta = (I - dT/du) J, so that the error of one step is dT/du J: relative to J, at most the
spectral norm |dT/du| (Bolte, Pauwels, Vaiter, One-step differentiation of iterative algorithms,
NeurIPS 2023), and |dT/du|^k after k tracked steps. That bounds the derivative of one control; a
policy's gradient adds such errors up along the rollout, and is measured here.

    python -m bench.bias [--out DIR] [--seeds N] [--only PROBLEM …]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import training
from bench.build import build
from bench.case import Case
from bench.diagnostics import contraction_rate, watching
from bench.probes.derivative import derivative_rows
from bench.probes.probe import Row
from bench.recipes import case_settings
from jfbcore.held_out import held_out_states
from jfbcore.maps import MAPS
from jfbcore.policy import HamiltonianPolicy
from jfbcore.rollout import rollout
from jfbcore.solvers import Newton

#: inner residual of what counts as solved, in units of the problem's gradient scale
_TIGHT = 1e-9
#: unrolled iterations K at which the derivative is compared
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True)
class Subject:
    """A problem on a short horizon, and the training steps after which it is measured."""

    problem: str
    n_agents: int
    n_steps: int
    stages: tuple[int, ...] = (0, 30, 100, 300)


SUBJECTS = (
    *(Subject("quadrotor", n, 32) for n in (1, 2, 3)),
    Subject("bicycle", 1, 30),
    Subject("consumption", 5, 25),
    *(Subject("rotor-quadrotor", n, 40) for n in (1, 2)),
    Subject("liquidation", 20, 25),
)


@torch.no_grad()
def map_norms(policy: HamiltonianPolicy, states: Tensor, map_name: str) -> Row:
    """`map_norm`, the largest |dT/du| over time steps and states, and its median `map_norm_median`;
    at the policy's own controls."""
    rates: list[Tensor] = []

    def look(t: Any, z: Tensor, decision: Any) -> None:
        rates.append(contraction_rate(MAPS[map_name].bind(decision.hamiltonian), decision.control))

    with watching(policy, look):
        rollout(policy, states)
    found = torch.stack(rates)
    return {"map_norm": found.max().item(), "map_norm_median": found.median().item()}


def bias_rows(policy: HamiltonianPolicy, states: Tensor) -> Iterator[Row]:
    """A row for every map and JFB gradient at the policy's present parameters."""
    newton = Newton(tolerance=_TIGHT * policy.problem.gradient_scale, max_iterations=200)
    solved = policy.with_gradient(solver=newton)
    norms = {name: map_norms(solved, states, name) for name in MAPS}
    names = {1: "jfb", 3: "jfb-3", 5: "jfb-5"}
    for row in derivative_rows(policy, states, MAPS, tracked=tuple(names)):
        gradient = names[row.pop("count")]
        yield row | {"gradient": gradient, **norms[row["map"]]}


def iteration_rows(
    policy: HamiltonianPolicy, states: Tensor, counts: Sequence[int] = COUNTS
) -> Iterator[Row]:
    """The derivative of exactly K unrolled iterations: a row per map, start and K."""
    maps = ("plain", "scaled")
    return derivative_rows(policy, states, maps, unrolled=counts, starts=("cold", "warm"))


def rows(subject: Subject, seed: int, states: int = 8) -> Iterator[Row]:
    """All rows of one subject along one training run, in float64."""
    settings = case_settings("recommended", subject.problem, subject.n_agents, "jfb")
    case = Case(
        problem=subject.problem,
        n_agents=subject.n_agents,
        gradient="jfb",
        n_steps=subject.n_steps,
        dtype="float64",
        **settings,
    )
    # One training for all maps, so that all rows of a stage belong to the same policy.
    policy = build(replace(case, map="scaled", solver="newton"), seed)
    assert isinstance(policy, HamiltonianPolicy)
    x = held_out_states(policy.problem, states)
    head = {"problem": subject.problem, "n_agents": subject.n_agents, "seed": seed}
    found: list[Row] = []

    def measure(step: int) -> None:
        if step in subject.stages:
            found.extend(head | {"stage": step} | row for row in bias_rows(policy, x))
        if step == subject.stages[-1]:
            found.extend(head | {"stage": step} | row for row in iteration_rows(policy, x))

    measure(0)
    if subject.stages[-1] > 0:
        case = replace(case, train_steps=subject.stages[-1])
        config = training.config(
            case, seed, "recommended", evaluations=1, held_out=1, coarsening=(), terminal_ramp=None
        )
        run = training.prepare(
            case, seed, config, policy=policy, callback=lambda run: measure(run.step)
        )
        run.run()
    return iter(found)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every subject, write DIR/bias.csv and draw DIR/bias.png. Returns the exit status."""
    import pandas as pd

    from bench.report.figures.bias_study import bias_figure, iteration_figure
    from bench.report.figures.canvas import theme

    parser = argparse.ArgumentParser(prog="python -m bench.bias", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("reports/bias"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="+", default=None, metavar="PROBLEM")
    args = parser.parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    found: list[Row] = []
    for subject in SUBJECTS:
        if args.only is None or subject.problem in args.only:
            for seed in range(args.seeds):
                print(f"{subject.problem}, N = {subject.n_agents}, seed {seed}", file=sys.stderr)
                found.extend(rows(subject, seed))
                pd.DataFrame(found).to_csv(args.out / "bias.csv", index=False)
    table = pd.read_csv(args.out / "bias.csv")
    with theme():
        for name, figure in (("bias", bias_figure(table)), ("iterations", iteration_figure(table))):
            figure.savefig(args.out / f"{name}.png", dpi=110)
    return 0


if __name__ == "__main__":
    sys.exit(main())
