"""The two memory counts against byte counts done by hand; every comparison is exact."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from bench.memory import LiveTensorTracker, SavedTensorCounter
from jfbcore.problems import PROBLEMS

N = 1000
F32, F64 = 4, 8


def leaf(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    return torch.ones(shape, dtype=dtype, device=device, requires_grad=True)


class Cube(torch.autograd.Function):
    """x^3, keeping the input for backward, with one temporary in either direction."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x * x

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * (3.0 * x * x)


class HiddenSquare(torch.autograd.Function):
    """x^2 whose derivative is kept as an attribute of ctx, out of reach of saved-tensor hooks."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.slope = 2.0 * x
        return x * x

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad * ctx.slope


class TestLiveTensorTracker:
    def test_counts_what_is_alive_and_remembers_the_peak(self):
        with LiveTensorTracker() as tracker:
            a = torch.zeros(N)
            b = a + 1.0
            assert tracker.live_bytes == 2 * N * F32
            del a
            assert tracker.live_bytes == N * F32
            b = b * 2.0  # the old and the new b are alive at once
            assert tracker.live_bytes == N * F32
        assert tracker.peak_bytes == 2 * N * F32
        del b
        assert tracker.live_bytes == 0  # freeing after the tracker is closed counts too

    def test_a_freed_address_used_again_is_counted_again(self):
        with LiveTensorTracker() as tracker:
            for _ in range(50):
                a = torch.empty(N)
                assert tracker.live_bytes == N * F32
                del a
                assert tracker.live_bytes == 0
        assert tracker.peak_bytes == N * F32

    @pytest.mark.parametrize(
        "view",
        [
            lambda x: x[10:20],
            lambda x: x.view(10, -1).t(),
            lambda x: x.detach(),
            lambda x: x.data,
            lambda x: x.unbind(0)[3],
            lambda x: x.expand(5, N),
            lambda x: x.view(torch.int32),
            torch.nn.Parameter,
        ],
    )
    def test_views_cost_nothing_and_keep_the_storage(self, view):
        with LiveTensorTracker() as tracker:
            base = torch.zeros(N)
            other = view(base)
            assert tracker.live_bytes == N * F32
            del base
            assert tracker.live_bytes == N * F32
            del other
            assert tracker.live_bytes == 0

    def test_what_existed_before_is_not_counted(self):
        before, out = torch.zeros(N), torch.empty(N)
        with LiveTensorTracker() as tracker:
            before.view(10, -1).add_(1.0)
            before.detach().requires_grad_()
            torch.mul(before, 2.0, out=out)
            out[5:].copy_(before[5:])
        assert tracker.peak_bytes == 0

    def test_track_adds_what_existed_before_once(self):
        before = torch.zeros(N)
        with LiveTensorTracker() as tracker:
            tracker.track([before, before[3:], before.t()])
            assert tracker.live_bytes == N * F32
            before.add_(1.0)
        assert tracker.peak_bytes == N * F32
        del before
        assert tracker.live_bytes == 0

    def test_in_place_and_out_operators(self):
        with LiveTensorTracker() as tracker:
            a = torch.zeros(N)
            a.add_(1.0).mul_(2.0).relu_()
            torch.exp(a, out=a)
            assert tracker.peak_bytes == N * F32
            b = torch.empty(N)
            torch.exp(a, out=b[:])
            assert tracker.peak_bytes == tracker.live_bytes == 2 * N * F32

    def test_resized_storages(self):
        with LiveTensorTracker() as tracker:
            a = torch.zeros(N)
            a.resize_(3 * N)
            assert tracker.live_bytes == 3 * N * F32
            out = torch.empty(0)
            torch.add(a, a, out=out)
            assert tracker.live_bytes == 6 * N * F32
            out.untyped_storage().resize_(0)  # not an operator: seen when the next one reads it
            out.detach()
            assert tracker.live_bytes == 3 * N * F32
        assert tracker.peak_bytes == 6 * N * F32
        del a, out
        assert tracker.live_bytes == 0

    @pytest.mark.parametrize(
        ("make", "size"),
        [
            (lambda: torch.tensor([1.0] * N), N * F32),
            (lambda: torch.tensor([1.0] * N, dtype=torch.float64), N * F64),
            (lambda: torch.zeros(()).new_tensor([1.0] * N), N * F32),
            (lambda: torch.from_numpy(np.zeros(N)), N * F64),
            (lambda: torch.as_tensor(np.zeros(N)), N * F64),
            (lambda: torch.arange(N), N * F64),
            (lambda: torch.rand(N), N * F32),
            (lambda: torch.Tensor(N), N * F32),
        ],
    )
    def test_factories(self, make, size):
        with LiveTensorTracker() as tracker:
            kept = make()
            assert tracker.live_bytes == size
            kept.detach()
        del kept
        assert tracker.live_bytes == 0

    def test_graph_keeps_what_it_saved(self):
        x = leaf(N)
        with LiveTensorTracker() as tracker:
            y = x.sin().exp()  # sin's output is kept by nobody, exp's by exp's node
            assert tracker.peak_bytes == 2 * N * F32
            assert tracker.live_bytes == N * F32
            z = y.exp()  # keeps y's storage for as long as the graph lives
            del y
            assert tracker.live_bytes == 2 * N * F32
            del z
            assert tracker.live_bytes == 0

    def test_backward(self):
        x = leaf(N)
        given = torch.ones(N)
        with LiveTensorTracker() as tracker:
            y = x.exp()
            y.backward(given)
            # y, and the gradient that becomes x.grad
            assert tracker.live_bytes == tracker.peak_bytes == 2 * N * F32
            del y
            assert tracker.live_bytes == N * F32
            x.grad = None
            assert tracker.live_bytes == 0

    def test_custom_function(self):
        x, given = leaf(N), torch.ones(N)
        with LiveTensorTracker() as tracker:
            y = Cube.apply(x)
            assert tracker.live_bytes == N * F32
            assert tracker.peak_bytes == 2 * N * F32  # x*x beside x*x*x
            y.backward(given)
            # y, 3x, 3x*x and their product with the incoming gradient; 3x is gone by then
            assert tracker.peak_bytes == 3 * N * F32
            assert tracker.live_bytes == 2 * N * F32

    def test_sees_what_bypasses_saved_tensor_hooks(self):
        x = leaf(N)
        with LiveTensorTracker() as tracker:
            y = HiddenSquare.apply(x)
            assert tracker.live_bytes == 2 * N * F32
        del y
        gc.collect()
        assert tracker.live_bytes == 0

    @pytest.mark.parametrize("reentrant", [False, True])
    def test_checkpoint(self, reentrant):
        x, given = leaf(N), torch.ones(N)

        def region(x: Tensor) -> Tensor:
            for _ in range(5):
                x = x.exp()
            return x

        with LiveTensorTracker() as plain:
            y = region(x)
        assert plain.live_bytes == 5 * N * F32
        del y
        with LiveTensorTracker() as tracker:
            y = checkpoint(region, x, use_reentrant=reentrant, preserve_rng_state=False)
            assert tracker.live_bytes == N * F32
            assert tracker.peak_bytes == 2 * N * F32
            y.backward(given)
        # the recomputation keeps its five outputs again, beside y
        assert tracker.peak_bytes >= 6 * N * F32
        del y
        x.grad = None
        gc.collect()
        assert tracker.live_bytes == 0

    def test_two_trackers_agree(self):
        x = leaf(N)
        with LiveTensorTracker() as outer, LiveTensorTracker() as inner:
            x.sin().exp().sum().backward()
        assert outer.peak_bytes == inner.peak_bytes > 0
        assert outer.live_bytes == inner.live_bytes == N * F32  # x.grad

    def test_survives_an_exception(self):
        with pytest.raises(RuntimeError), LiveTensorTracker() as tracker:
            torch.zeros(3) + torch.zeros(4)
        assert tracker.live_bytes == 0
        torch.zeros(N)
        assert tracker.peak_bytes == (3 + 4) * F32


class TestSavedTensorCounter:
    def test_sin_exp(self):
        x = leaf(N)
        with SavedTensorCounter(exclude=[x]) as counter:
            y = x.sin().exp()  # sin keeps x, exp its own output
        assert counter.bytes == counter.live_bytes == N * F32
        del y
        assert counter.live_bytes == 0
        assert counter.bytes == N * F32

    def test_inputs_count_unless_excluded(self):
        x = leaf(N)
        with SavedTensorCounter() as counter:
            y = x.sin().exp()
        assert counter.bytes == 2 * N * F32
        del y

    def test_matmul_keeps_both_factors(self):
        a, b = leaf(10, 20, dtype=torch.float64), leaf(20, 30, dtype=torch.float64)
        with SavedTensorCounter() as counter:
            product = a @ b
        assert counter.bytes == (10 * 20 + 20 * 30) * F64
        assert product.shape == (10, 30)

    def test_a_storage_is_counted_once_however_often_it_is_saved(self):
        x = leaf(N)
        with SavedTensorCounter() as counter:
            outputs = [x.sin(), x.cos(), x * x, x[:10].sin(), x.view(10, -1).t().exp().log()]
        # x once, and exp's output, which exp and log both save
        assert counter.bytes == 2 * N * F32
        del outputs
        assert counter.live_bytes == 0

    def test_a_view_counts_as_its_whole_storage(self):
        x = leaf(N)
        with SavedTensorCounter(exclude=[x]) as counter:
            y = (x + 1.0)[:3].sin()
        assert counter.bytes == N * F32
        del y

    def test_a_view_of_an_excluded_storage_is_excluded(self):
        x = leaf(N)
        with SavedTensorCounter(exclude=[x[5:]]) as counter:
            y = x[:3].sin() * x.view(10, -1)[0, 0].exp()
        assert counter.bytes == (3 + 1) * F32  # the two factors of the product, nothing of x
        del y

    def test_custom_function(self):
        x = leaf(N)
        with SavedTensorCounter(exclude=[x]) as counter:
            y = Cube.apply(Cube.apply(x))
        assert counter.bytes == N * F32
        y.backward(torch.ones(N))
        assert counter.live_bytes == 0

    def test_in_place(self):
        x = leaf(N)
        with SavedTensorCounter(exclude=[x]) as counter:
            y = (x + 1.0).exp_().mul_(2.0).add_(1.0)  # exp_ keeps the one storage there is
        assert counter.bytes == N * F32
        del y

    def test_reuse_after_free(self):
        x = leaf(N)
        with SavedTensorCounter(exclude=[x]) as counter:
            for _ in range(50):  # each round frees a storage whose address the next one takes
                y = (x + 1.0).sin()
                assert counter.live_bytes == N * F32
                del y
                assert counter.live_bytes == 0
        assert counter.bytes == N * F32

    def test_temporaries_freed_during_the_forward_do_not_hide_later_ones(self):
        # The address of a temporary that nobody saves goes to the next tensor, which is saved:
        # identity by address would have to tell them apart.
        x = leaf(N)
        with SavedTensorCounter(exclude=[x]) as counter:
            kept = []
            for i in range(10):
                with torch.no_grad():
                    (x + i).sin()
                kept.append((x + i).sin())
        assert counter.bytes == 10 * N * F32

    def test_nothing_is_saved_without_a_graph(self):
        x = leaf(N)
        with SavedTensorCounter() as counter, torch.no_grad():
            x.sin().exp() @ x
        assert counter.bytes == 0

    def test_backward_gives_the_bytes_back(self):
        x = leaf(N)
        with SavedTensorCounter(exclude=[x]) as counter:
            y = x.exp().exp().exp()
            assert counter.live_bytes == 3 * N * F32
            y.backward(torch.ones(N), retain_graph=True)
            assert counter.live_bytes == 3 * N * F32
            y.backward(torch.ones(N))
            assert counter.live_bytes == 0
        assert counter.bytes == 3 * N * F32

    @pytest.mark.parametrize("reentrant", [False, True])
    def test_checkpoint_holds_its_inputs_only(self, reentrant):
        x = leaf(N)
        keywords = {"use_reentrant": reentrant, "preserve_rng_state": False}
        with SavedTensorCounter(exclude=[x]) as counter:
            y = x + 1.0
            for _ in range(4):
                y = checkpoint(lambda y: y.exp().sin().exp(), y, **keywords)
        assert counter.bytes == 4 * N * F32
        del y

    @pytest.mark.parametrize("steps", [1, 5, 50])
    def test_a_loop_is_linear_to_the_byte(self, steps):
        x = leaf(N)
        with SavedTensorCounter(exclude=[x]) as counter:
            y = x
            for _ in range(steps):
                y = y.exp()
        assert counter.bytes == steps * N * F32

    def test_gradients_are_what_they_are_without_it(self):
        x = leaf(N)

        def cost(x: Tensor) -> Tensor:
            return (Cube.apply(x.sin()) @ x.exp()).square()

        (expected,) = torch.autograd.grad(cost(x), x)
        with SavedTensorCounter():
            (found,) = torch.autograd.grad(cost(x), x)
        assert torch.equal(found, expected)

    def test_second_derivatives_are_what_they_are_without_it(self):
        x = leaf(N)

        def curvature() -> Tensor:
            (slope,) = torch.autograd.grad(x.sin().exp().sum(), x, create_graph=True)
            return torch.autograd.grad(slope.sum(), x)[0]

        expected = curvature()
        with SavedTensorCounter():
            assert torch.equal(curvature(), expected)

    def test_is_not_reentrant(self):
        counter = SavedTensorCounter()
        with counter, pytest.raises(RuntimeError, match="already active"):
            counter.__enter__()
        with counter:  # one after the other is fine
            pass


def test_the_counter_does_not_change_what_the_tracker_sees():
    x = leaf(N)

    def peak() -> int:
        with LiveTensorTracker() as tracker:
            Cube.apply(x.sin().exp()).exp().sum().backward()
        return tracker.peak_bytes

    expected = peak()
    with SavedTensorCounter():
        x.grad = None
        assert peak() == expected


def problem_step(name: str, n_agents: int, device: str) -> tuple[int, int, int]:
    """Peak and final live bytes, and saved bytes, of a short differentiated Euler rollout."""
    problem = PROBLEMS[name](n_agents=n_agents)
    z = problem.sample_initial_states(6, torch.Generator().manual_seed(0)).to(device)
    u = problem.initial_control(0.0, z).requires_grad_()
    p = problem.initial_costate().to(device).expand_as(z)
    with LiveTensorTracker() as live, SavedTensorCounter(exclude=[u, z, p]) as saved:
        cost = z.new_zeros(z.shape[0])
        for i in range(4):
            t = i * problem.time_step
            ascent = problem.hamiltonian(t, z, p).grad(u) * 1e-3 + u
            cost = cost + problem.running_cost(t, z, ascent)
            z = z + problem.time_step * problem.dynamics(t, z, ascent)
        (cost + problem.terminal_cost(z)).sum().backward()
    return live.peak_bytes, live.live_bytes, saved.bytes


@pytest.mark.parametrize("n_agents", [1, 3])
@pytest.mark.parametrize("name", PROBLEMS)
def test_counts_are_the_same_every_time_and_on_the_meta_device(name, n_agents):
    expected = problem_step(name, n_agents, "cpu")
    assert expected[0] > expected[2] > 0
    assert problem_step(name, n_agents, "cpu") == expected
    assert problem_step(name, n_agents, "meta") == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_agrees_with_the_cuda_allocator():
    # Elementwise operators only: others borrow workspaces from the same allocator. Sizes are
    # multiples of 512 bytes, the allocator's block size, so rounding adds nothing.
    x = leaf(128 * N, device="cuda")
    given = torch.ones_like(x)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with LiveTensorTracker() as tracker:
        y = Cube.apply(x.sin().exp())
        y.backward(given)
    torch.cuda.synchronize()
    assert tracker.peak_bytes == torch.cuda.max_memory_allocated() - before
    assert tracker.live_bytes == torch.cuda.memory_allocated() - before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", PROBLEMS)
def test_counts_on_cuda_are_those_on_the_cpu(name):
    assert problem_step(name, 3, "cuda") == problem_step(name, 3, "cpu")
