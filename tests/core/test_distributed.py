"""Training on two processes against training on one."""

import json
import subprocess
import sys

import pytest
import torch

from jfbcore.extras.distributed import World
from tests.core.distributed_child import train

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def launch(*command: str) -> str:
    done = subprocess.run([*TORCHRUN, *command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


# Of the second, processes hold unequal numbers of rows: 3 and 2.
@pytest.mark.parametrize("batch", [4, 5])
@pytest.mark.slow
def test_two_processes_train_as_one(batch, tmp_path):
    launch("-m", "tests.core.distributed_child", str(batch), str(tmp_path / "rank"))
    here = train(batch)
    both = [torch.load(tmp_path / f"rank-{rank}.pt") for rank in range(2)]
    for there in both:
        assert there["size"] == 2
        assert there["longest"] == 2.0
        mine = {"parameters": [p.detach() for p in here.policy.parameters()],
                "gradients": [p.grad for p in here.policy.parameters()]}  # fmt: skip
        for name, tensors in mine.items():
            for a, b in zip(tensors, there[name], strict=True):
                assert (a is None) == (b is None)  # a bias that the costate does not depend on
                # In float64 the order of a sum is all that differs.
                assert a is None or (a - b).abs().max() <= 1e-10 * a.abs().max()
        costs = [point.evaluation_cost for point in here.curve]
        assert there["costs"] == pytest.approx(costs, rel=1e-10)


@pytest.mark.slow
def test_the_command_line_trains_on_what_torchrun_started(tmp_path):
    arguments = (
        *("--problem", "quadrotor", "--agents", "1", "--gradient", "jfb", "--iterations", "5"),
        *("--batch", "4", "--horizon-steps", "5", "--checkpoint", str(tmp_path / "p.pt")),
    )
    out = launch("-m", "bench", "train", *arguments, "--steps", "2")
    (line,) = out.splitlines()  # one process answers
    answer = json.loads(line)
    assert answer["world_size"] == 2
    assert answer["status"] == "ok"
    assert (tmp_path / "p.pt").exists()
    # Seconds differ between processes; they must end together all the same.
    launch("-m", "bench", "train", *arguments, "--time-limit", "2")


def test_a_minibatch_smaller_than_the_world_is_refused():
    with pytest.raises(ValueError, match="`batch_size` must be at least the 3 processes, got 2"):
        World(rank=0, size=3).rows(torch.zeros(2, 1))


def test_one_process_changes_nothing():
    world, x = World.current(), torch.ones(3, 2)
    assert (world.rank, world.size) == (0, 1)
    assert world.rows(x) is x
    x.grad = torch.full_like(x, 2.0)
    world.mean_gradients([x], 1.0)
    assert x.grad.eq(2.0).all()
    assert world.mean(3.0, 1.0, torch.device("cpu")) == 3.0
