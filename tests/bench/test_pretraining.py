"""Reference trajectories to learn from, and training runs that fit them first."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from baselines import (
    METHODS,
    Choice,
    EstimatorMethod,
    Extremals,
    ReferenceMisfit,
    Supervision,
    build_policy,
    extremals,
    tolerances,
)
from bench import cli, pretraining
from bench.build import Unsupported, build
from bench.case import Case
from bench.measure import Step
from bench.pretraining import Pretraining, reference_misfit
from bench.records import empty_record
from bench.reference import trajectories
from bench.reference.ipopt import Ipopt
from bench.reference.solution import in_double
from bench.reference.trajectories import reason_against, training_references, training_states
from bench.worker import fill
from jfbcore.extras.optimizers import build_optimizer
from jfbcore.extras.shared_network import (
    BranchedValueNetwork,
    IndexedValueNetwork,
    SharedValueNetwork,
)
from jfbcore.held_out import held_out_states
from jfbcore.jfb import JFB
from jfbcore.policy import HamiltonianPolicy
from jfbcore.problems import Bicycle, Consumption, Quadrotor, RotorQuadrotor
from jfbcore.rollout import InnerStatistics, Rollout, rollout
from jfbcore.train import Training, TrainingConfig
from jfbcore.value_network import ValueNetwork
from tests.problems.double_integrator import DoubleIntegrator

pytest.importorskip("casadi")
F64 = torch.float64
CASE = Case(
    problem="quadrotor", n_agents=1, gradient="pretrained-jfb", batch_size=4, n_steps=8,
    map="newton", solver="newton",
)  # fmt: skip
PARTS = {"share": 0.25, "trajectories": 4, "samples": 32}


def known(*, states, times=None, costates=None):
    """Trajectories of one quadrotor with nothing but zeros where nothing is said."""
    count, n_steps, n = states.shape
    numbers = {"controls": (4,), "slopes": (n, n), "feedback": (4, n)}
    zeros = {name: states.new_zeros(count, n_steps, *size) for name, size in numbers.items()}
    return Extremals(
        times=states.new_zeros(n_steps) if times is None else times,
        states=states,
        costates=torch.zeros_like(states) if costates is None else costates,
        **zeros,
    )


def chosen(policy, found, settings):
    """The choice between two kinds of `found` trajectories."""
    generator = torch.Generator().manual_seed(0)
    n_steps = len(found[0].times)
    alone = Quadrotor(1, n_steps=n_steps, dtype=F64)
    return Choice.between(alone, found, tolerances(policy, settings), generator)


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """Solved states are kept away from the repository's."""
    found = trajectories.training_references
    monkeypatch.setattr(
        pretraining, "training_references", lambda p, n, **k: found(p, min(n, 4), tmp_path, **k)
    )
    return tmp_path


class TestReferences:
    @pytest.mark.parametrize("problem", [Quadrotor(1), Bicycle(2), Consumption(3)])
    def test_no_training_state_is_held_out(self, problem):
        held_out = held_out_states(problem).double()
        training = training_states(problem, 200)
        assert len(training.unique(dim=0)) == 200
        # Nor near one: the least distance between independent draws is many roundings of float32.
        assert torch.cdist(training, held_out).min() > 1e-4

    def test_a_longer_draw_begins_alike(self):
        few, many = (training_states(Quadrotor(1), count) for count in (3, 5))
        assert torch.equal(few, many[:3])

    def test_they_are_solved_once_and_their_seconds_kept(self, own_folder, monkeypatch):
        problem = Quadrotor(1, n_steps=8)
        solved = training_references(problem, 2, own_folder)
        assert solved.seconds > 0
        assert solved.controls.shape == (2, 2, 8, 4)
        assert torch.equal(solved.initial_states, training_states(problem, 2))

        def never(*_):
            raise AssertionError("solved again")

        monkeypatch.setattr(trajectories, "_solve", never)
        again = training_references(problem, 2, own_folder)
        assert again.seconds == solved.seconds
        assert torch.equal(again.controls, solved.controls)
        with pytest.raises(AssertionError, match="solved again"):  # another discretisation
            training_references(Quadrotor(1, n_steps=9), 2, own_folder)
        assert [path.suffix for path in own_folder.iterdir()] == [".npz"]

    def test_what_cannot_be_solved_is_a_reason(self, own_folder):
        assert reason_against(Quadrotor(100)) is None
        assert reason_against(Consumption(100)) is None
        assert reason_against(Bicycle(100)) is None
        assert "at most 20" in (reason_against(RotorQuadrotor(50)) or "")
        assert "no formulas of" in (reason_against(DoubleIntegrator(1)) or "")
        with pytest.raises(ValueError, match="at most 20"):
            training_references(RotorQuadrotor(50), 4, own_folder)
        case = replace(CASE, problem="rotor-quadrotor", n_agents=50)
        with pytest.raises(Unsupported, match="at most 20"):
            build(case, 0)

    def test_a_swarm_of_quadrotors_learns_from_one_that_flies_both_kinds(self, own_folder):
        problem = Quadrotor(100, n_steps=40)
        found = training_references(problem, 3, own_folder)
        alone = found.problem
        assert (alone.name, alone.n_agents, alone.n_steps) == ("quadrotor", 1, 40)
        assert found.controls.shape == (2, 3, 40, 4)
        assert torch.equal(training_states(alone, 3), found.initial_states)
        for controls, towards in zip(found.controls, (1.0, -1.0), strict=True):
            flown = extremals(in_double(alone), found.initial_states, controls).states
            # Past half way the first kind still leans towards the target, the second away from it.
            lean = flown[:, 25, 4] - flown[:, 25, 5]
            assert (towards * lean > 0.1).all(), lean


@pytest.mark.parametrize(
    ("gradient", "network"),
    [
        ("pretrained-jfb", "assigned"),
        ("pretrained-direct", "assigned"),
        ("pretrained-jfb", "indexed"),
    ],
)
def test_bicycles_learn_to_steer_as_one_flight_and_its_feedback_do(gradient, network, own_folder):
    """At the states of flights from other initial states, on which some steer at their bound."""
    case = Case(
        problem="bicycle", n_agents=4, gradient=gradient, n_steps=60, batch_size=4,
        network=network,
    )  # fmt: skip
    policy = build(case, 0)
    misfit, _ = reference_misfit(case, policy)
    flights, asked = misfit._states, misfit._controls

    @torch.no_grad()
    def steered() -> torch.Tensor:
        """The policy's controls at the states of all flights, (flights, n_steps, 4, 2)."""
        times = misfit._times.tolist()
        found = [policy(t, flights[:, i]).control for i, t in enumerate(times)]
        return torch.stack(found, 1).unflatten(2, (4, 2))

    before = (steered() - asked.unflatten(2, (4, 2))).norm()
    optimizer = build_optimizer("muon", policy.parameters())
    for i in range(400):
        optimizer.zero_grad()
        misfit(policy, flights[:, 0]).running_cost.mean().backward()
        optimizer.step(5e-3 * (1 - i / 400))
    off = steered() - asked.unflatten(2, (4, 2))
    assert off.norm() < 0.5 * before


class TestMisfit:
    def policy(self, seed, problem):
        generator = torch.Generator().manual_seed(seed)
        return build_policy(problem, JFB(), width=8, generator=generator)

    def test_it_is_zero_for_the_network_that_gave_the_costates(self):
        problem = Quadrotor(1, n_steps=3, dtype=F64)
        teacher, other = self.policy(0, problem), self.policy(1, problem)
        states = torch.randn(2, 3, 12, dtype=F64, generator=torch.Generator().manual_seed(0))
        times = torch.tensor([0.0, 1.5, 3.0], dtype=F64)
        with torch.no_grad():
            costates = [teacher.value_network.costate(t, states[:, i]) for i, t in enumerate(times)]
        found = known(times=times, states=states, costates=torch.stack(costates, 1))
        misfit = ReferenceMisfit([found], Supervision(spread=0.0, samples=64), teacher, seed=0)
        x = states[:, 0]
        assert misfit(teacher, x).cost.abs().max() < 1e-24
        cost = misfit(other, x).cost
        assert cost.shape == (64,)
        assert cost.mean() > 1e-3

    def test_beside_a_trajectory_it_asks_for_the_first_order_expansion(self):
        """A network with a quadratic phi has p = A^T A z exactly: slopes A^T A, at any spread."""
        problem = Quadrotor(1, n_steps=2, dtype=F64)
        policy = self.policy(0, problem)
        network = policy.value_network
        with torch.no_grad():
            network.readout.zero_()
            network.quadratic.mul_(50.0)
            network.quadratic_time.zero_()
        hessian = (network.quadratic.T @ network.quadratic).detach()
        states = torch.randn(3, 2, 12, dtype=F64, generator=torch.Generator().manual_seed(0))
        wrong = known(states=states, costates=states @ hessian)
        right = replace(wrong, slopes=hessian.expand(3, 2, 12, 12))
        settings = Supervision(spread=2.0, samples=16)
        fitted, off = (
            ReferenceMisfit([found], settings, policy, seed=0)(policy, states[:, 0]).cost
            for found in (right, wrong)
        )
        assert fitted.max() < 1e-24
        assert off.mean() > 1e-3

    @pytest.mark.parametrize("network", [SharedValueNetwork, IndexedValueNetwork, ValueNetwork])
    def test_it_is_zero_for_the_swarm_whose_agents_gave_the_costates(self, network):
        """A swarm of agents without interaction: one agent's costate times its share is right."""
        problem = Quadrotor(3, n_steps=2, dtype=F64)
        generator = torch.Generator().manual_seed(0)
        policy = build_policy(problem, JFB(), width=8, generator=generator, network=network)
        one = getattr(policy.value_network, "agent_network", policy.value_network)
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.zero_()
            # phi is affine: every agent's costate is 3, of which the swarm counts a third.
            one.linear.fill_(1.0 if network is ValueNetwork else 3.0)
        costate = torch.full((4, 2, 12), 3.0, dtype=F64)
        first = known(states=torch.randn(4, 2, 12, dtype=F64), costates=costate)
        # What has no gate learns the first kind.
        found, settings = [first, replace(first, costates=2.0 * costate)], Supervision(samples=9)
        choice = chosen(policy, found, settings)
        misfit = ReferenceMisfit(found, settings, policy, choice, seed=0)
        off = misfit(policy, torch.zeros(1, 36, dtype=F64)).cost
        assert len(off) == (3 if network is ValueNetwork else 9)
        assert off.max() < 1e-24

    def test_every_kind_is_learnt_on_a_branch_of_its_own(self):
        """Two kinds whose costates are 1 and 2, and a network that says so by branch: what is left
        is how wrongly the gate chooses, which is log 2 where it does not know."""
        problem = Quadrotor(4, n_steps=2, dtype=F64)
        policy = build_policy(problem, JFB(), width=8, network=BranchedValueNetwork)
        one, branch = policy.value_network.agent_network, 12 + IndexedValueNetwork.INDEX_DIM
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.zero_()
            one.linear[:12] = 1.5
            # 0.5 |a.y|^2 with a = x on the state and 1 on the branch adds x times the branch.
            one.quadratic[0, branch] = 1.0
            one.quadratic[0, :12] = 0.5
        costates = torch.ones(2, 2, 12, dtype=F64)
        first = known(states=torch.zeros(2, 2, 12, dtype=F64), costates=costates)
        found = [first, replace(first, costates=2.0 * costates)]
        settings = Supervision(samples=400, spread=0.0)
        misfit = ReferenceMisfit(found, settings, policy, chosen(policy, found, settings), seed=0)
        off = misfit(policy, torch.zeros(1, 48, dtype=F64)).cost.detach()
        torch.testing.assert_close(off, torch.full_like(off, math.log(2.0)))

    @pytest.mark.parametrize("network", [SharedValueNetwork, IndexedValueNetwork, ValueNetwork])
    def test_a_direct_policy_is_fitted_to_controls_and_their_feedback(self, network):
        """A policy of one constant control against one that is optimal with it, then against one
        that also leans on the state: there the misfit grows with how far beside a point lies."""
        problem = Quadrotor(3, n_steps=2, dtype=F64)
        policy = build_policy(problem, METHODS["direct"], width=8, network=network)
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.zero_()
            policy.network[-1].bias.fill_(2.0)
        right = replace(
            known(states=torch.randn(4, 2, 12, dtype=F64)),
            controls=torch.full((4, 2, 4), 2.0, dtype=F64),
        )
        wrong = replace(right, feedback=torch.ones(4, 2, 4, 12, dtype=F64))
        x, settings = torch.zeros(1, 36, dtype=F64), Supervision(samples=9)
        fitted, off = (
            ReferenceMisfit(
                [found] * 2, settings, policy, chosen(policy, [found] * 2, settings), seed=0
            )(policy, x).cost
            for found in (right, wrong)
        )
        assert fitted.max() < 1e-24
        assert off.mean() > 1e-2

    def test_a_policy_without_a_network_of_either_kind_is_refused(self):
        policy = build_policy(Quadrotor(1), METHODS["unrolled-network"])
        with pytest.raises(TypeError, match="`policy` must have a network to fit"):
            ReferenceMisfit([], Supervision(), policy, seed=0)

    @pytest.mark.parametrize(
        "setting", [{"share": 0.0}, {"share": 1.5}, {"samples": 0}, {"parting": -1.0}]
    )
    def test_settings_are_checked(self, setting):
        with pytest.raises(ValueError, match=f"`{next(iter(setting))}`"):
            Supervision(**setting)


class TestChoice:
    """Three flights of one quadrotor, of two kinds that IPOPT found."""

    @pytest.fixture(scope="class")
    @staticmethod
    def found():
        problem = Quadrotor(1, n_steps=40, dtype=F64)
        states = training_states(problem, 3)
        kinds = [
            torch.stack([solution.controls for solution in kind])
            for kind in Ipopt().kinds_of_flight(problem, states, 2)
        ]
        return problem, [extremals(problem, states, controls) for controls in kinds]

    def test_flights_beside_cost_what_ipopt_finds_there(self, found):
        problem, kinds = found
        choice = Choice.between(problem, kinds, torch.zeros(1), torch.Generator().manual_seed(0))
        assert choice.states.shape == (2, 48, 40, 12)
        assert torch.equal(choice.states[0, :, 0], choice.states[1, :, 0])
        some = [0, 1, 2]  # beside each of the three
        optima = Ipopt().kinds_of_flight(problem, choice.states[0, some, 0], 2)
        best = torch.tensor([[solution.cost for solution in kind] for kind in optima], dtype=F64)
        above = choice.costs[:, some] / best - 1.0
        # Feedback is right to first order, so that the cost is to third; kinds differ by 7 %.
        assert above.min() > -1e-9
        assert above.max() < 0.04, above

    def test_early_the_cheaper_kind_is_right_and_late_the_one_that_is_flown(self, found):
        problem, kinds = found
        choice = Choice.between(problem, kinds, torch.zeros(1), torch.Generator().manual_seed(0))
        times, states, agents, right = choice.draw(2000, torch.Generator().manual_seed(1))
        assert agents.max() == 0
        parted = times >= 0.2 * problem.t_final
        flat = {tuple(row): i for i, row in enumerate(choice.states.flatten(0, 2).tolist())}
        place = torch.tensor([flat[tuple(row)] for row in states[~parted].tolist()])
        kind, flight, step = place // (48 * 40), place // 40 % 48, place % 40
        torch.testing.assert_close(times[~parted], choice.times[step])
        # At the start both kinds are at the same place, where the lookup finds either.
        away = step > 0
        early = right[~parted]
        assert torch.equal(kind[away], early[away])
        assert torch.equal(early, (choice.costs[1] < choice.costs[0]).long()[flight])
        # Later ones, of either kind, lie around flights, also far from all.
        assert 0.4 < right[parted].double().mean() < 0.6
        lookup = torch.cdist(states[parted], choice.states[:, :, 8:].flatten(0, 2))
        assert lookup.min(1).values.median() > 0.5

    def test_an_agent_that_tolerates_it_takes_the_dearer_kind(self, found):
        problem, kinds = found
        tolerances = torch.tensor([-torch.inf, torch.inf])
        choice = Choice.between(problem, kinds, tolerances, torch.Generator().manual_seed(0))
        times, _, agents, right = choice.draw(500, torch.Generator().manual_seed(1))
        early = times < 0.15 * problem.t_final
        assert torch.equal(right[early], agents[early])

    def test_tolerances_grow_with_the_swarm_and_the_index(self):
        settings = Supervision(parting=0.01)
        for method in (JFB(), METHODS["direct"]):
            one, five = (
                build_policy(Quadrotor(n), method, width=8, network=BranchedValueNetwork)
                for n in (1, 5)
            )
            assert tolerances(one, settings).tolist() == [0.0]
            network = five.value_network if isinstance(five, HamiltonianPolicy) else five
            expected = 0.01 * 4 * network.indices[:, 0]
            torch.testing.assert_close(tolerances(five, settings), expected)
            for kind in (IndexedValueNetwork, SharedValueNetwork, ValueNetwork):
                other = build_policy(Quadrotor(5), method, width=8, network=kind)
                assert tolerances(other, settings).tolist() == 5 * [-math.inf]


class TestTraining:
    def begun(self, monkeypatch, steps=8, **changes):
        method = EstimatorMethod(JFB(), Supervision(**PARTS | changes))
        monkeypatch.setattr(pretraining.registry, "method", lambda name: method)
        config = TrainingConfig(
            steps=steps, batch_size=4, held_out=4, coarsening=((1.0, 4),), optimizer="muon",
            learning_rate=1e-2,
        )  # fmt: skip
        training = Training(build(CASE, 0), config)
        return training, Pretraining.begin(CASE, training)

    def test_the_first_part_fits_and_the_rest_rolls_out(self, monkeypatch):
        training, pre = self.begun(monkeypatch)
        rates, rolls = [], []
        training.hooks.append(lambda t: rates.append(t.learning_rate()))
        training.hooks.append(lambda t: rolls.append(t.rollout is rollout))
        result = training.run()
        # After two of eight steps, which is a quarter.
        assert rolls == [False] + 7 * [True]
        assert 0 < pre.fit < result.seconds
        # Down to the lowest within the fit, then from a tenth of the highest down once more.
        assert rates[1] == pytest.approx(0.1 * training.config.learning_rate)
        assert rates[1:] == sorted(rates[1:], reverse=True)
        assert training.schedules.n_steps(0.5) == training.problem.n_steps

    def test_a_misfit_with_a_weight_counts_after_the_fit(self, monkeypatch):
        training, pre = self.begun(monkeypatch)
        pre.misfit.weight = 3.0
        training.run()
        policy, x = training.policy, training.held_out
        running = torch.tensor([4.0, 5.0, 6.0, 8.0, math.inf, 4.0, 5.0], requires_grad=True)
        terminal = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0, 900.0, math.nan])
        pre.then = lambda *_, **__: Rollout(running, terminal, x, InnerStatistics())
        with torch.no_grad():
            drawn = pre.misfit._generator.get_state()
            misfit = pre.misfit(policy, x).running_cost.mean()
            pre.misfit._generator.set_state(drawn)
        flown = training.rollout(policy, x)
        # The median of what is finite or infinite is 6; what costs more than 9 counts as that.
        expected = torch.tensor([5.0, 5.0, 6.0, 8.0, 6.0, 6.0, 6.0]) + 3.0 * misfit
        torch.testing.assert_close(flown.cost.detach(), expected)
        flown.cost.sum().backward()
        assert running.grad.tolist() == [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0]

    def test_references_count_as_seconds(self, monkeypatch):
        training, pre = self.begun(monkeypatch)
        result = training.run()
        counted = pre.counted(result)
        assert pre.seconds == {"references": pre.references, "fit": pre.fit}
        assert pre.references > 0
        assert counted.seconds == pytest.approx(result.seconds + pre.references)
        assert counted.curve[0].seconds == pytest.approx(pre.references)

    def test_fitting_brings_the_misfit_down(self, monkeypatch):
        """An untrained network's is about 1, because its units are the costates' own size."""
        training, pre = self.begun(monkeypatch, steps=600, share=1.0, samples=128)
        result = training.run()
        assert 0.3 < result.curve[0].loss < 3.0
        # Eight time steps, on which costates change by orders of magnitude, are slow to learn.
        assert result.curve[-1].loss < 0.7 * result.curve[0].loss
        assert training.rollout is pre.misfit

    def test_a_run_that_was_stopped_after_the_fit_goes_on_without_it(self, monkeypatch, tmp_path):
        training, _ = self.begun(monkeypatch)
        training.run()
        training.save(tmp_path / "run.pt")
        again = Training(build(CASE, 0), training.config)
        again.load(tmp_path / "run.pt")
        pre = Pretraining.begin(CASE, again)
        assert again.rollout is rollout
        assert pre.seconds["fit"] is None

    def test_other_methods_train_as_before(self):
        case = replace(CASE, gradient="jfb")
        training = Training(build(case, 0), TrainingConfig(steps=1))
        assert Pretraining.begin(case, training) is None
        assert training.rollout is rollout
        with pytest.raises(ValueError, match="jfb learns from no reference"):
            pretraining.reference_misfit(case, training.policy)


class TestRecords:
    def record(self, gradient):
        case = replace(CASE, gradient=gradient, train_steps=5)
        record = empty_record(case, 0)
        fill(record, case, 0)
        assert record["status"] == "ok", record["reason"]
        return record

    def test_a_pretrained_one_says_what_came_before(self):
        record = self.record("pretrained-jfb")
        references, fit = (record["pretraining_seconds"][part] for part in ("references", "fit"))
        assert record["curve"][0]["seconds"] == pytest.approx(references)
        assert record["curve"][-1]["seconds"] > references + fit > references > 0
        assert record["gradient_error"] is not None
        # Newton's map, on which JFB is exact.
        assert [row["step"] for row in record["bias"]] == [0, 2, 4, 5]
        assert max(row["relative"] for row in record["bias"]) < 1e-12

    def test_a_supervised_step_rolls_nothing_out(self):
        record = self.record("supervised")
        assert Step(replace(CASE, gradient="supervised")).rolls_out is False
        assert record["saved_tensor_bytes"] > 0
        for name in ("residual", "gradient_cosine", "gradient_error"):
            assert record[name] is None
            assert record["null_reasons"][name] == (
                "a step fits reference trajectories and rolls nothing out"
            )
        assert record["bias"] is None
        # Its policies solve an inner problem all the same, to a tolerance of 1e-4.
        assert record["control_error"]["max"] < 1e-2
        assert record["evaluation"]["residual"]["max"] <= 1e-4

    def test_others_say_that_nothing_came_before(self):
        record = self.record("jfb")
        assert record["pretraining_seconds"] == {"references": None, "fit": None}
        reasons = record["null_reasons"]
        assert reasons["pretraining_seconds.references"] == "learns from the cost alone"


def test_the_command_line_reports_the_seconds_before_training(capsys):
    arguments = ["train", "--problem", "quadrotor", "--agents", "1", "--steps", "5"]
    arguments += ["--gradient", "pretrained-jfb", "--horizon-steps", "8", "--batch", "4"]
    assert cli.main(arguments) == 0
    out, err = capsys.readouterr()
    answer = json.loads(out.splitlines()[-1])
    before = answer["pretraining_seconds"]
    assert before["references"] > 0
    assert answer["seconds"] > before["references"] + before["fit"]
    assert math.isfinite(answer["final"]["evaluation_cost"])
    assert "training references" in err
