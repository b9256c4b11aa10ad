"""One process of a training that torchrun started: three training steps, written to a file."""

import sys

import torch
import torch.distributed as dist

from baselines import Implicit
from jfbcore import Picard, Quadrotor, ScaledMap, Training, TrainingConfig, ValueNetwork
from jfbcore.extras.distributed import World
from jfbcore.policy import HamiltonianPolicy


def train(batch: int) -> Training:
    """A training whose inner iterations are counted: a test of the residual stops each process
    where its own rows have converged, which is equal to the tolerance only."""
    problem = Quadrotor(n_agents=2, n_steps=6, dtype=torch.float64)
    policy = HamiltonianPolicy(
        problem,
        ValueNetwork.for_problem(problem, generator=torch.Generator().manual_seed(0)),
        fixed_point_map=ScaledMap(),
        solver=Picard(tolerance=None, max_iterations=8),
        gradient=Implicit(),
    )
    config = TrainingConfig(steps=3, batch_size=batch, held_out=4)
    training = Training(policy, config)
    training.run()
    return training


if __name__ == "__main__":
    dist.init_process_group("gloo")
    training = train(int(sys.argv[1]))
    world = World.current()
    result = {
        "size": world.size,
        "parameters": [p.detach() for p in training.policy.parameters()],
        "gradients": [p.grad for p in training.policy.parameters()],
        "costs": [point.evaluation_cost for point in training.curve],
        "longest": world.longest(1.0 + world.rank, torch.device("cpu")),
    }
    torch.save(result, f"{sys.argv[2]}-{world.rank}.pt")
    dist.destroy_process_group()
