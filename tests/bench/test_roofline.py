"""The roofline: counts against hand counts, parts, floors, files, the verb and the page."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench import runner
from bench.case import Case
from bench.measure import Step
from bench.report import write_report
from bench.roofline import case as case_module
from bench.roofline import rates, run
from bench.roofline.case import Update, bound, count, floor_seconds
from bench.roofline.clock import clock_parts, graph_nodes
from bench.roofline.counts import OperatorCounter, Tally, touched_bytes
from bench.roofline.parts import ACCUMULATION, PARTS, ROLLOUT, Parts, labelled
from bench.roofline.rates import MachineRates
from tests.bench.helpers import run_cli

F32 = 4
CASE = Case(problem="quadrotor", n_agents=1, gradient="jfb", batch_size=3, n_steps=4)
#: a profile of milliseconds
TINY = ("--agents", "2", "--batch", "2", "--horizon-steps", "3", "--repeats", "3", "--threads", "1")
MADE_UP = MachineRates(
    square_flops_per_second=100.0,
    copy_bytes_per_second=10.0,
    operator_seconds=0.5,
    view_seconds=0.25,
    tracked_forward_seconds=1.0,
    tracked_backward_seconds=2.0,
)


def counted(call) -> Tally:
    with OperatorCounter() as counter:
        call()
    return counter.total


class TestCounts:
    def test_a_product_and_a_sum_by_hand(self):
        a, w, b = torch.ones(2, 3), torch.ones(3, 4), torch.ones(4)
        assert counted(lambda: a @ w + b) == Tally(
            calls=2,
            matmul_flops=2 * 2 * 3 * 4,
            pointwise_flops=2 * 4,
            # a, w and the product; the product again, b and the sum
            bytes=F32 * ((6 + 12 + 8) + (8 + 4 + 8)),
        )

    def test_backward_included(self):
        """d/da and d/dw are one product each; b's gradient sums the cotangent over the rows."""
        a, w, b = (torch.ones(*s, requires_grad=True) for s in ((2, 3), (3, 4), (4,)))
        cotangent = torch.ones(2, 4)
        with OperatorCounter() as counter:
            (a @ w + b).backward(cotangent)
        backward = counter.by_part["backward", ""]
        assert backward.matmul_flops == 2 * (2 * 2 * 3 * 4)
        assert backward.calls == 3
        assert backward.pointwise_flops == 4
        assert backward.bytes == F32 * ((8 + 12 + 6) + (8 + 6 + 12) + (8 + 4))
        assert counter.by_part["forward", ""].matmul_flops == 2 * 2 * 3 * 4

    def test_views_and_allocations_are_free(self):
        x = torch.ones(4, 6)
        views = counted(lambda: (x.view(24), x.T, x[1:], x.expand(2, 4, 6), x.unbind(), x.detach()))
        assert views == Tally(free=6)
        assert counted(lambda: (torch.empty(9), torch.empty_like(x))) == Tally(free=2)

    def test_in_place_reads_and_writes(self):
        x, y = torch.ones(10), torch.ones(10)
        assert counted(lambda: x.add_(y)).bytes == F32 * 30

    def test_what_is_only_overwritten_is_not_read(self):
        x, y = torch.ones(10), torch.ones(10)
        assert counted(lambda: x.copy_(y)).bytes == F32 * 20
        assert counted(x.zero_).bytes == F32 * 10
        assert counted(lambda: torch.mul(x, y, out=x.new_empty(10))).bytes == F32 * 30

    def test_part_of_a_tensor_counts_as_that_part(self):
        x = torch.ones(10, 10)
        assert counted(lambda: x[:, :2].exp()).bytes == F32 * 40

    def test_broadcast_dimensions_count_once(self):
        assert touched_bytes(torch.ones(5, 1).expand(5, 7)) == F32 * 5
        assert touched_bytes(torch.ones(5, 7)) == F32 * 35
        assert touched_bytes(torch.ones(0, 7)) == 0

    def test_a_product_in_place_counts_like_the_other(self):
        c, a, w = torch.ones(2, 4), torch.ones(2, 3), torch.ones(3, 4)
        assert counted(lambda: c.addmm_(a, w)) == counted(lambda: torch.addmm(c, a, w))

    @pytest.mark.parametrize(("problem", "n_agents"), [("quadrotor", 1), ("consumption", 5)])
    def test_products_agree_with_torchs_counter(self, problem, n_agents):
        """Where none is in place, because torch's counter leaves those out: no interaction cost."""
        step = Step(replace(CASE, problem=problem, n_agents=n_agents))
        with FlopCounterMode(display=False) as theirs, torch.no_grad():
            step.forward()
        with OperatorCounter() as ours, torch.no_grad():
            step.forward()
        assert ours.total.matmul_flops == theirs.get_total_flops() > 0

    def test_the_same_step_costs_the_same_twice(self):
        step = Step(CASE)
        step()
        update = Update(step)
        update()  # the first one also makes Adam's state
        first, again = (count(step, update) for _ in range(2))
        assert first.by_part == again.by_part


class TestParts:
    def test_the_costate_by_hand(self):
        """Width 96, depth 3, rank 10: every product of the sweep, for each of the time steps."""
        step = Step(CASE)
        step()
        counter = count(step, Update(step))
        batch, n, width, rank = CASE.batch_size, 12, 96, 10
        sweep = 2 * batch * (2 * n * width + 4 * width * width + 2 * n * rank)
        assert counter.by_part["forward", "costate"].matmul_flops == CASE.n_steps * sweep
        # one agent has no interaction: no other part multiplies matrices
        others = [t for (_, part), t in counter.by_part.items() if part != "costate"]
        assert all(tally.matmul_flops == 0 for tally in others)
        assert counter.by_part["backward", "costate"].matmul_flops > CASE.n_steps * sweep

    def test_every_part_is_known_and_phases_are_complete(self):
        step = Step(CASE)
        step()
        places = set(count(step, Update(step)).by_part)
        assert {part for _, part in places} <= set(PARTS)
        assert {phase for phase, _ in places} == {"forward", "backward", "optimiser"}
        # solved without a graph, so nothing of it is left for backward
        assert ("forward", "inner solve") in places
        assert ("backward", "inner solve") not in places

    @pytest.mark.parametrize("gradient", ["jfb", "direct"])
    @pytest.mark.parametrize("problem", ["quadrotor", "bicycle", "consumption"])
    def test_the_dynamics_are_a_part_of_every_problem(self, problem, gradient):
        step = Step(replace(CASE, problem=problem, n_agents=2, gradient=gradient))
        step()
        counter = count(step, Update(step))
        for phase in ("forward", "backward"):
            assert counter.by_part[phase, "dynamics"].calls > 0
        clock = clock_parts(step)
        assert clock["forward", "dynamics"].calls == CASE.n_steps

    def test_a_node_belongs_to_the_part_that_made_it(self):
        x = torch.ones(3, requires_grad=True)
        parts = Parts()
        outside = x.exp()
        parts.enter("costate")
        inside = outside.sin()
        parts.enter("inner solve")
        innermost = inside.cos()
        parts.leave()
        after = innermost.neg()
        parts.leave()
        last = after.sum()
        parts.close()
        found = [parts.of_node(y.grad_fn) for y in (outside, inside, innermost, after, last)]
        assert found == [ROLLOUT, "costate", "inner solve", "costate", ROLLOUT]
        accumulator = outside.grad_fn.next_functions[0][0]
        assert parts.of_node(accumulator) == ACCUMULATION

    @pytest.mark.parametrize("gradient", ["jfb", "direct"])
    def test_the_code_is_left_as_it_was(self, gradient):
        policy = Step(replace(CASE, gradient=gradient)).policy
        objects = [policy, policy.problem, *vars(policy).values(), *policy.children()]
        classes = {cls for x in objects for cls in type(x).__mro__}
        before = {cls: dict(vars(cls)) for cls in classes}
        with labelled(policy):
            assert {cls: dict(vars(cls)) for cls in classes} != before
        assert {cls: dict(vars(cls)) for cls in classes} == before

    def test_the_code_is_left_as_it_was_after_an_error(self):
        policy = Step(CASE).policy
        before = type(policy.problem).dynamics
        with pytest.raises(TypeError), labelled(policy):
            policy("not a time")
        assert type(policy.problem).dynamics is before

    def test_wrapping_does_not_change_the_result(self):
        step = Step(CASE)
        plain = step()
        with labelled(step.policy):
            assert step() == plain

    def test_the_clock_stamps_every_node_once(self):
        step = Step(CASE)
        clock = clock_parts(step)
        nodes = sum(entry.calls for (phase, _), entry in clock.items() if phase == "backward")
        assert nodes == len(list(graph_nodes(step.forward())))
        assert clock["forward", "inner solve"].calls == CASE.n_steps
        assert clock["forward", "terminal cost"].calls == 1

    def test_graph_nodes_by_hand(self):
        x = torch.ones(2, requires_grad=True)
        y = x.exp()
        # sum, add, the two products, exp (reached twice) and x's accumulator
        assert len(list(graph_nodes((y * 2 + y * 3).sum()))) == 6


class TestFloors:
    def test_by_hand(self):
        total = Tally(calls=6, matmul_flops=300, pointwise_flops=100, bytes=50)
        own = {"product_flops_per_second": 200.0, "copy_bytes_per_second": 5.0}
        floors = floor_seconds(total, MADE_UP, own)
        # the faster of either pair of rates: 200 FLOP/s and 10 bytes/s
        assert floors == {"arithmetic": 2.0, "traffic": 5.0, "roofline": 5.0, "launch": 3.0}
        assert bound(floors) == "traffic"

    def test_without_products_the_square_is_the_rate(self):
        own = {"product_flops_per_second": None, "copy_bytes_per_second": 20.0}
        floors = floor_seconds(Tally(calls=9, pointwise_flops=200, bytes=40), MADE_UP, own)
        assert floors == {"arithmetic": 2.0, "traffic": 2.0, "roofline": 2.0, "launch": 4.5}
        assert bound(floors) == "launch"


@pytest.fixture
def quick_rates(monkeypatch):
    """Real rates from so little work that they mean nothing."""
    monkeypatch.setitem(rates._SQUARE, "cpu", 32)
    monkeypatch.setitem(rates._COPY, "cpu", 2**16)
    fastest = rates.fastest
    monkeypatch.setattr(rates, "fastest", lambda call, device, _: fastest(call, device, 0.0))
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_rates_are_positive_and_finite(quick_rates):
    found = vars(rates.machine_rates("cpu", torch.float32))
    # A difference of two best times: a neighbour that disturbs the first alone leaves nothing.
    assert 0 <= found.pop("tracked_backward_seconds") < float("inf")
    assert all(0 < value < float("inf") for value in found.values())


def test_rates_by_hand(monkeypatch):
    """From the seconds of the fastest calls, in the order they are asked for."""
    monkeypatch.setitem(rates._SQUARE, "cpu", 10)
    monkeypatch.setitem(rates._COPY, "cpu", 600)
    chain = rates._CHAIN
    seconds = iter((4.0, 3.0 * chain, 8.0 * chain, 2.0 * chain, 0.5 * chain, 6.0))
    monkeypatch.setattr(rates, "fastest", lambda *_: next(seconds))
    assert rates.machine_rates("cpu", torch.float32) == MachineRates(
        square_flops_per_second=2 * 10**3 / 4.0,
        copy_bytes_per_second=2 * 600 / 6.0,
        operator_seconds=2.0,
        view_seconds=0.5,
        tracked_forward_seconds=3.0,
        tracked_backward_seconds=5.0,
    )


def test_default_cases_are_the_papers():
    jobs = run.jobs(None, None, ["jfb"], repeats=3)
    assert [(job.case.problem, job.case.n_agents) for job in jobs] == [
        ("quadrotor", 1),
        ("quadrotor", 20),
        ("quadrotor", 100),
        ("bicycle", 20),
        ("consumption", 100),
    ]
    case = run.jobs(["bicycle"], None, ["jfb", "direct"], repeats=3)[1].case
    assert (case.batch_size, case.n_steps, case.gradient) == (100, 60, "direct")


def test_the_rates_of_all_are_the_best_of_each():
    other = replace(MADE_UP, square_flops_per_second=1.0, operator_seconds=0.1)
    assert rates.best([MADE_UP, other]) == replace(MADE_UP, operator_seconds=0.1)


@pytest.fixture
def in_process(monkeypatch, quick_rates):
    """Jobs measured in this process, where the rates are quick."""
    from bench.records import write_json
    from bench.worker import fill

    def run_one(order, *_):
        record = order.job.new_record() | {"threads": order.threads}
        fill(record, order.case, order.seed, probe=order.job.probe)
        write_json(order.job.path(order.settings.out), record)
        return record

    monkeypatch.setattr(runner, "_run_one", run_one)


@pytest.mark.usefixtures("in_process")
class TestVerb:
    def test_answer_and_files(self, capsys, tmp_path):
        code, out, _ = run_cli(
            capsys, "roofline", "--problem", "consumption", "bicycle", "--gradient", "jfb",
            "cvxpylayers", *TINY, "--out", tmp_path / "new",
        )  # fmt: skip
        assert code == 0
        answer = json.loads(out.splitlines()[-1])
        written = json.loads((tmp_path / "new" / "roofline.json").read_text())
        assert answer["schema_version"] == written["schema_version"] == 1
        ids = [entry["case"]["id"] for entry in written["cases"]]
        assert [entry["id"] for entry in answer["cases"]] == ids
        assert len(ids) == 2
        # neither Hamiltonian is concave
        assert [case["id"].split("-scaled")[0] for case in answer["unsupported"]] == [
            "consumption-n2-cvxpylayers",
            "bicycle-n2-cvxpylayers",
        ]
        for missing in answer["unsupported"]:
            assert "concave" in missing["reason"]
            assert missing["reason"] in out
        for entry in written["cases"]:
            self.check(entry)
        tables = {path.name for path in (tmp_path / "new").iterdir()}
        assert tables >= {"roofline.json", "roofline.csv", "roofline-parts.csv", "records"}
        self.check_tables(tmp_path / "new", written)

    @staticmethod
    def check(entry: dict[str, Any]) -> None:
        assert set(entry) == {
            "case", "seconds", "step_seconds", "iterations", "counts", "own_rates",
            "floor_seconds", "bound", "ratio", "clocked_seconds", "parts", "operators",
        }  # fmt: skip
        for phase in ("forward", "backward", "optimiser"):
            seconds = sum(p["seconds"] for p in entry["parts"] if p["phase"] == phase)
            # scaled to be equal, up to the rounding of a sum
            assert seconds == pytest.approx(entry["seconds"][phase], rel=1e-9)
        for name in ("calls", "matmul_flops", "pointwise_flops", "bytes"):
            assert sum(part[name] for part in entry["parts"]) == entry["counts"][name]
        floors = entry["floor_seconds"]
        assert floors["roofline"] == max(floors["arithmetic"], floors["traffic"])
        step = entry["seconds"]["step"]
        for part in entry["parts"]:
            assert part["share"] == pytest.approx(part["seconds"] / step)
        assert entry["ratio"]["launch"] == pytest.approx(step / floors["launch"])
        assert entry["step_seconds"]["repeats"] == 3

    @staticmethod
    def check_tables(directory: Path, written: dict[str, Any]) -> None:
        with open(directory / "roofline.csv", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert [row["id"] for row in rows] == [e["case"]["id"] for e in written["cases"]]
        assert [int(row["bytes"]) for row in rows] == [
            e["counts"]["bytes"] for e in written["cases"]
        ]
        with open(directory / "roofline-parts.csv", encoding="utf-8") as file:
            parts = list(csv.DictReader(file))
        assert len(parts) == sum(len(entry["parts"]) for entry in written["cases"])

    @pytest.mark.parametrize(
        ("arguments", "needed"),
        [
            (["--problem", "pendulum"], ["problem", "'pendulum'", "quadrotor"]),
            (["--agents", "0"], ["agents", "0", ">= 1"]),
            (["--agents", "two"], ["agents", "'two'", "integer"]),
            (["--gradient", "jbf"], ["gradient", "'jbf'", "jfb"]),
            (["--batch", "0"], ["batch", "0", ">= 1"]),
            (["--horizon-steps", "0"], ["horizon-steps", "0", ">= 1"]),
            (["--repeats", "0"], ["repeats", "0", ">= 1"]),
            (["--threads", "0"], ["threads", "0", ">= 1"]),
            (["--device", "tpu"], ["device", "'tpu'", "cpu", "cuda"]),
            (["--problem", "bicycle", "--gradient", "cvxpylayers"], ["cvxpylayers", "concave"]),
        ],
    )
    def test_bad_input_is_one_line(self, arguments, needed, capsys):
        code, out, err = run_cli(capsys, "roofline", *TINY, *arguments)
        assert (code, out) == (2, "")
        last = err.strip().splitlines()[-1]
        assert last.startswith(("bench roofline: error:", "python -m bench roofline: error:"))
        for text in needed:
            assert text in last

    def test_what_fails_is_listed_and_the_rest_kept(self, capsys, tmp_path, monkeypatch):
        profile_case = case_module.profile_case

        def fail(case, *arguments, **named):
            if case.problem == "bicycle":
                raise torch.OutOfMemoryError("made-up 9 GiB asked\nand more words")
            return profile_case(case, *arguments, **named)

        monkeypatch.setattr(case_module, "profile_case", fail)
        both = ("--problem", "consumption", "bicycle", *TINY, "--out", tmp_path)
        code, out, _ = run_cli(capsys, "roofline", *both)
        assert code == 0
        answer = json.loads(out.splitlines()[-1])
        assert len(answer["cases"]) == 1
        (failed,) = answer["failed"]
        assert failed["reason"] == "made-up 9 GiB asked"
        assert json.loads((tmp_path / "roofline.json").read_text())["failed"] == [failed]
        page = write_report([tmp_path], tmp_path).read_text(encoding="utf-8")
        assert "Failed: bicycle-n2" in page
        code, out, _ = run_cli(capsys, "roofline", "--problem", "bicycle", *TINY)
        assert code == 1
        assert json.loads(out.splitlines()[-1])["cases"] == []

    def test_a_folder_that_cannot_be_made_stops_it_first(self, capsys, tmp_path, monkeypatch):
        monkeypatch.setattr(runner, "_run_one", lambda *_: pytest.fail("measured all the same"))
        (tmp_path / "file").write_text("")
        code, out, err = run_cli(capsys, "roofline", *TINY, "--out", tmp_path / "file" / "folder")
        assert (code, out) == (2, "")
        assert "file" in err
