"""The training loop: that it learns, resumes to the bit, guards, schedules, and keeps time."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import jfbcore.train
from baselines import METHODS, build_policy
from jfbcore.extras.checkpoints import CHECKPOINT_VERSION
from jfbcore.extras.guard import GuardSettings
from jfbcore.held_out import COUNT, held_out_states
from jfbcore.maps import ScaledMap
from jfbcore.policy import Policy
from jfbcore.problems import PROBLEMS
from jfbcore.rollout import rollout
from jfbcore.solvers import Picard
from jfbcore.train import Training, TrainingConfig

every_problem = pytest.mark.parametrize("name", PROBLEMS)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_policy(
    name: str = "quadrotor", *, n_agents: int = 1, n_steps: int = 4, seed: int = 0,
    gradient: str = "jfb", width: int = 8, **settings,
) -> Policy:  # fmt: skip
    problem = PROBLEMS[name](n_agents=n_agents, n_steps=n_steps, **settings)
    return build_policy(
        problem,
        METHODS[gradient],
        fixed_point_map=ScaledMap(),
        solver=Picard(tolerance=1e-4 * problem.gradient_scale, max_iterations=100),
        width=width,
        generator=generator(seed),
    )


def config(**settings) -> TrainingConfig:
    defaults = {"steps": 8, "batch_size": 4, "evaluations": 4, "held_out": 4}
    return TrainingConfig(**(defaults | settings))


def parameters(policy: Policy) -> list[Tensor]:
    return [p.detach().clone() for p in policy.parameters()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def spoil(training: Training, steps: set[int], change: Callable[[Tensor], Tensor]) -> None:
    """Change the minibatches of the given steps."""
    draw = training._draw
    training._draw = lambda: change(draw()) if training.step in steps else draw()


# ---------------------------------------------------------------------------------------------
# learning


@pytest.mark.slow
@every_problem
@pytest.mark.parametrize("gradient", ["jfb", "implicit", "direct"])
def test_training_lowers_the_cost(name, gradient):
    # Six goods: enough for the initial costate to outweigh the network's random part.
    policy = make_policy(name, n_agents=6 if name == "consumption" else 1, n_steps=10,
                         gradient=gradient, width=16)  # fmt: skip
    settings = config(steps=60, batch_size=16, learning_rate=1e-2, held_out=16)
    result = Training(policy, settings).run()
    assert result.status == "ok"
    assert result.reason is None
    assert result.steps == 60
    first, last = result.curve[0], result.curve[-1]
    # The distance to the optimum is what shrinks: costs have a floor of their own (consumption's
    # utility), below which no training gets. Half of a quadrotor's or bicycle's cost is far from
    # it; for consumption any gain of a percent is.
    assert last.evaluation_cost < (0.995 if name == "consumption" else 0.7) * first.evaluation_cost
    assert first.step == 0
    assert last.step == 60


def test_curve_is_the_policy_on_the_held_out_states():
    policy = make_policy()
    training = Training(policy, config())
    before = make_policy()
    result = training.run()
    with torch.no_grad():
        for point, scored in [(result.curve[0], before), (result.curve[-1], policy)]:
            costs = rollout(scored, held_out_states(policy.problem, 4))
            assert point.costs == pytest.approx(costs.cost.tolist(), rel=1e-6)
            assert point.evaluation_cost == pytest.approx(sum(point.costs) / 4)
            assert point.running_cost == pytest.approx(costs.running_cost.mean().item(), rel=1e-6)
            assert point.terminal_cost == pytest.approx(costs.terminal_cost.mean().item(), rel=1e-6)
    assert [point.step for point in result.curve] == [0, 2, 4, 6, 8]


def test_a_step_is_adam_on_the_minibatch_mean():
    """Three steps written out with torch's own optimiser and generator."""
    settings = config(steps=3, schedule="constant", seed=7, clip_norm=5.0, learning_rate=3e-3)
    policy, by_hand = make_policy(), make_policy()
    Training(policy, settings).run()
    optimizer = torch.optim.Adam(by_hand.parameters(), lr=3e-3, betas=(0.9, 0.999))
    draws = generator(7)
    for _ in range(3):
        x = by_hand.problem.sample_initial_states(4, draws)
        optimizer.zero_grad()
        rollout(by_hand, x).cost.mean().backward()
        grads = [p.grad for p in by_hand.parameters() if p.grad is not None]
        norm = torch.stack([g.norm() for g in grads]).norm()
        for g in grads:
            g.mul_(min(1.0, 5.0 / (norm.item() + 1e-6)))
        optimizer.step()
    for a, b in zip(policy.parameters(), by_hand.parameters(), strict=True):
        # float32 rounding in the clipping factor, amplified by Adam's division.
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_seed_is_a_run():
    runs = []
    for seed in (0, 0, 1):
        policy = make_policy()
        Training(policy, config(seed=seed)).run()
        runs.append(parameters(policy))
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


def test_fixed_minibatch():
    seen: list[Tensor] = []

    def run(fixed: bool) -> None:
        training = Training(make_policy(), config(steps=3, fixed_minibatch=fixed))
        inner = training._rollout
        training._rollout = lambda x: seen.append(x) or inner(x)
        training.run()

    run(True)
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])
    run(False)
    assert torch.equal(seen[0], seen[3])
    assert not torch.equal(seen[3], seen[4])


@pytest.mark.parametrize("clip_norm", [1e-3, 1e9])
def test_clipping(clip_norm):
    norms = []

    def callback(training: Training) -> None:
        grads = [p.grad for p in training.policy.parameters() if p.grad is not None]
        norms.append(torch.stack([g.norm() for g in grads]).norm().item())

    Training(make_policy(), config(clip_norm=clip_norm), callback=callback).run()
    if clip_norm == 1e-3:
        assert norms == pytest.approx([1e-3] * 8, rel=1e-3)
    else:
        assert min(norms) > 1.0


def test_hooks_are_called_after_every_training_step(tmp_path):
    """In their order; the one that saves comes before those that are added."""
    seen: list[object] = []
    training = Training(
        make_policy(),
        config(steps=2),
        callback=lambda t: seen.append(("callback", t.step)),
        checkpoint=tmp_path / "checkpoint.pt",
        checkpoint_interval=1,
    )
    training.hooks.append(lambda t: seen.append((t.step, (tmp_path / "checkpoint.pt").exists())))
    training.run()
    assert seen == [("callback", 1), (1, True), ("callback", 2), (2, True)]


# ---------------------------------------------------------------------------------------------
# rates


def rates(settings: TrainingConfig) -> list[float]:
    found = []

    def callback(training: Training) -> None:
        found.append(training.optimizer.param_groups[0]["lr"])

    Training(make_policy(), settings, callback=callback).run()
    return found


def test_cosine_rates():
    found = rates(config(steps=10, learning_rate=0.01, final_learning_rate_fraction=0.1))
    expected = [0.01 * (0.1 + 0.9 * (1 + math.cos(math.pi * i / 10)) / 2) for i in range(10)]
    assert found == pytest.approx(expected)


def test_constant_rates():
    assert rates(config(schedule="constant", learning_rate=0.01)) == pytest.approx([0.01] * 8)


def test_warm_up_rates():
    found = rates(config(schedule="constant", learning_rate=0.01, warmup_steps=4))
    assert found == pytest.approx([0.0025, 0.005, 0.0075, *[0.01] * 5])


def test_plateau_rates_are_torchs():
    """Halved when the loss has not improved for longer than the patience."""
    losses = [5.0, 4.0, 4.5, 4.2, 4.1, 3.9, 3.95, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 3.0, 3.1]
    training = Training(
        make_policy(), config(schedule="plateau", learning_rate=0.01, plateau_patience=2)
    )
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.01)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=2, threshold=0.0
    )
    for loss in losses:
        training.loss = loss
        reference.step(loss)
        assert training.learning_rate() == pytest.approx(optimizer.param_groups[0]["lr"])
    assert optimizer.param_groups[0]["lr"] < 0.005  # the comparison saw some halvings


# ---------------------------------------------------------------------------------------------
# guard


NAN = math.nan


def test_a_bad_step_is_rejected_rolled_back_and_recorded():
    policy = make_policy()
    settings = config(guard=GuardSettings(snapshot_interval=2, backoff=0.5, recovery=1.0),
                      schedule="constant", learning_rate=0.01)  # fmt: skip
    history, rates_ = [parameters(policy)], []

    def callback(training: Training) -> None:
        history.append(parameters(policy))
        rates_.append(training.optimizer.param_groups[0]["lr"])

    training = Training(policy, settings, callback=callback)
    spoil(training, {5}, lambda x: x * NAN)
    result = training.run()
    assert result.status == "ok"
    assert [i.step for i in result.interventions] == [5]
    assert "loss is nan" in result.interventions[0].reason
    # Steps 0..4 are good; snapshots are taken on entering steps 1 and 3 (every second good one),
    # when the parameters have been inspected: those of history[3] come back.
    assert same(history[6], history[3])
    assert not same(history[5], history[3])
    assert rates_[4] == pytest.approx(0.01)
    assert rates_[6] == pytest.approx(0.005)
    assert all(p.isfinite().all() for p in policy.parameters())


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
@pytest.mark.parametrize("resumed", [False, True])
def test_a_rollback_takes_the_optimisers_state_back_too(optimizer, resumed, tmp_path):
    """The parameters and moments that come back are those of one and the same training step."""
    settings = config(
        optimizer=optimizer, schedule="constant", guard=GuardSettings(snapshot_interval=2)
    )

    def state(training: Training) -> list[Tensor]:
        parts = training.optimizer.state_dict()["parts"]
        moments = [tensor for part in parts for one in part["state"].values()
                   for tensor in one.values()]  # fmt: skip
        return [tensor.clone() for tensor in (*parameters(training.policy), *moments)]

    training, history = Training(make_policy(), settings), []
    for _ in range(5):
        history.append(state(training))
        training._train_step()
    if resumed:
        training.save(tmp_path / "checkpoint.pt")
        training = Training(make_policy(seed=3), settings)
        training.load(tmp_path / "checkpoint.pt")
    for step in (5, 6):  # twice: what has come back once is not what training went on in
        spoil(training, {step}, lambda x: x * NAN)
        training._train_step()
        # A snapshot is taken on entering steps 1 and 3, as in the test above.
        assert same(state(training), history[3])
        training.optimizer.step(1e-2)


def test_a_bad_first_step_returns_to_the_beginning():
    policy = make_policy()
    before = parameters(policy)
    training = Training(policy, config(steps=1))
    spoil(training, {0}, lambda x: x * math.inf)
    result = training.run()
    assert same(parameters(policy), before)
    assert len(result.interventions) == 1


def test_a_jump_is_rejected():
    policy = make_policy()
    training = Training(policy, config(guard=GuardSettings(window=3, jump_factor=3.0)))
    spoil(training, {1, 6}, lambda x: x + 100.0)
    result = training.run()
    # At step 1 the window is not full: what is usual is not known yet. By step 6 it is.
    assert [i.step for i in result.interventions] == [6]
    assert "loss jumped to" in result.interventions[0].reason


def test_a_drift_is_taken_back():
    """Parameters that grow by half at every step: no loss jumps, and the first ones were best."""
    policy = make_policy()
    guard = GuardSettings(window=2, snapshot_interval=2, jump_factor=1e6, jump_offset=0.0)
    training = Training(policy, config(steps=20, fixed_minibatch=True, guard=guard))
    history = []

    def grow(rate: float) -> None:
        history.append(parameters(policy))
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.mul_(1.5)

    training.optimizer.step = grow
    result = training.run()
    assert "loss drifted to a median of" in result.interventions[0].reason
    first = result.interventions[0].step
    assert any(same(history[first], earlier) for earlier in history[:first])
    assert training.guard.learning_rate_scale <= 0.5


def test_a_jump_between_two_grids_is_none():
    """The spoiled step is the first on the finer grid: its cost is another one. The jump two
    steps on, when the window has filled again, counts."""
    settings = config(
        steps=10, coarsening=((0.5, 2),), guard=GuardSettings(window=2, jump_factor=3.0)
    )
    training = Training(make_policy(), settings)
    spoil(training, {5, 8}, lambda x: x + 100.0)
    result = training.run()
    assert [i.step for i in result.interventions] == [8]


def test_a_checkpoint_between_two_grids_knows_the_one_it_left(tmp_path):
    settings = config(
        steps=10, coarsening=((0.5, 2),), guard=GuardSettings(window=2, jump_factor=3.0)
    )
    first = Training(make_policy(), settings)
    for _ in range(5):
        first._train_step()
    first.save(tmp_path / "checkpoint")
    second = Training(make_policy(), settings)
    second.load(tmp_path / "checkpoint")
    spoil(second, {5}, lambda x: x + 100.0)
    assert second.run().interventions == []


def test_coarse_grids_and_warm_starts_reach_the_rollouts(monkeypatch):
    """Training's own; an evaluation is on the whole grid whenever it is made."""
    own, seen = jfbcore.train.rollout, []

    def watched(*arguments, **named):
        seen.append((named.get("n_steps"), named["warm_start"]))
        return own(*arguments, **named)

    monkeypatch.setattr(jfbcore.train, "rollout", watched)
    settings = config(steps=4, evaluations=2, coarsening=((0.5, 2),), warm_start=True)
    Training(make_policy(), settings, rollout=watched).run()
    assert seen == [(n, True) for n in (None, 2, 2, None, 4, 4, None)]
    seen.clear()
    settings = config(steps=1, evaluations=1, warm_start=False)
    Training(make_policy(), settings, rollout=watched).run()
    assert seen == [(None, False), (4, False), (None, False)]


def test_the_terminal_ramp_weighs_what_is_minimised_not_what_is_scored():
    settings = config(steps=8, terminal_ramp=(0.01, 0.25, 0.75), fixed_minibatch=True)
    training = Training(make_policy(), settings)
    before = training.evaluate()
    multiples = []
    for _ in range(8):
        x = training.minibatch
        result = rollout(training.policy, x, warm_start=settings.warm_start)
        multiples.append(training.terminal_multiple())
        weighted = result.running_cost + multiples[-1] * result.terminal_cost
        training._train_step()
        assert training.loss == pytest.approx(weighted.mean().item(), rel=1e-5)
    # A hundredth up to a quarter, tenfold over each quarter, whole from three quarters on.
    assert multiples == pytest.approx([0.01, 0.01, 0.01, 10**-1.5, 0.1, 10**-0.5, 1.0, 1.0])
    plain = Training(make_policy(), config()).evaluate()
    assert before.evaluation_cost == plain.evaluation_cost


def test_a_ramp_that_is_over_trains_as_none_does():
    """The multiple is exactly one: the same parameters to the bit."""
    ramped, plain = make_policy(), make_policy()
    for policy, ramp in ((ramped, (1.0, 0.0, 1.0)), (plain, None)):
        Training(policy, config(terminal_ramp=ramp)).run()
    assert same(parameters(ramped), parameters(plain))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"terminal_ramp": (0.1, 0.3)}, "`terminal_ramp` must have 3 entries"),
        ({"terminal_ramp": (0.0, 0.1, 0.5)}, "`terminal_ramp multiple` must be"),
        ({"terminal_ramp": (0.1, 0.5, 0.5)}, "`terminal_ramp` must have 0 <= until < full <= 1"),
        ({"terminal_ramp": (0.1, -0.1, 0.5)}, "`terminal_ramp` must have 0 <= until < full <= 1"),
        ({"terminal_ramp": (0.1, 0.1, 1.5)}, "`terminal_ramp` must have 0 <= until < full <= 1"),
        ({"terminal_ramp": (0.1, 0.1, 0.5), "hjb_final": 1e-2}, "`hjb_final` must be 0 with"),
    ],
)
def test_a_ramp_that_makes_no_sense_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        config(**settings)


@pytest.mark.parametrize("schedule", ["constant", "plateau"])
def test_a_terminal_cost_that_grows_is_no_jump(schedule):
    """In 80 steps the terminal cost grows a hundredfold within 32, faster than a median follows."""
    settings = config(
        steps=80, terminal_ramp=(0.01, 0.3, 0.7), fixed_minibatch=True, learning_rate=1e-6,
        schedule=schedule, plateau_patience=20,
    )  # fmt: skip
    training = Training(make_policy(), settings)
    rates = []
    training.optimizer.step = rates.append
    result = training.run()
    assert result.interventions == []
    # Nor does the plateau schedule take what the weight adds for a loss that does not fall.
    growing = rates[int(0.3 * 80) + 1 : int(0.7 * 80)]
    assert min(growing) == pytest.approx(max(growing))


def test_a_plateau_begins_anew_on_another_grid():
    settings = config(
        steps=10, coarsening=((0.5, 4),), learning_rate=1e-6,
        schedule="plateau", plateau_patience=3,
    )  # fmt: skip
    training = Training(make_policy(n_steps=8), settings)
    x = training._draw()
    # The coarse grid's cost is the lower one.
    training._draw = lambda: x * (0.0 if training.step < 5 else 1.0)
    rates = []
    training.optimizer.step = rates.append
    training.run()
    # Four steps without a better loss end at half the rate, and it takes four more from there.
    assert rates == pytest.approx([1e-6] * 4 + [5e-7] * 5 + [2.5e-7])


def test_an_infinite_gradient_is_rejected():
    policy = make_policy()
    training = Training(policy, config())
    inner = training._rollout

    def exploding(x: Tensor):
        if training.step == 2:
            for p in policy.parameters():
                p.register_hook(lambda g: g * math.inf) if training.step == 2 else None
                break
        return inner(x)

    training._rollout = exploding
    training.run()
    assert training.guard.interventions[0].step == 2
    assert "gradient norm is" in training.guard.interventions[0].reason
    assert all(p.isfinite().all() for p in policy.parameters())


def test_patience_ends_the_run_as_diverged():
    policy = make_policy()
    before = parameters(policy)
    training = Training(policy, config(steps=50, guard=GuardSettings(patience=3)))
    spoil(training, set(range(50)), lambda x: x * NAN)
    result = training.run()
    assert result.status == "diverged"
    assert "loss is nan" in result.reason
    # More than three in a row: the fourth ends it.
    assert result.steps == 4
    assert [i.step for i in result.interventions] == [0, 1, 2, 3]
    assert same(parameters(policy), before)
    assert result.curve[-1].step == 4
    assert math.isfinite(result.curve[-1].evaluation_cost)


@pytest.mark.parametrize("steps", [4, 50])
def test_a_diverged_run_stays_diverged_when_resumed(tmp_path, steps):
    settings = config(steps=steps, guard=GuardSettings(patience=3))
    path = tmp_path / "checkpoint.pt"
    training = Training(make_policy(), settings, checkpoint=path)
    spoil(training, set(range(50)), lambda x: x * NAN)
    first = training.run()
    again = Training(make_policy(seed=3), settings)
    again.load(path)
    result = again.run()
    assert (result.status, result.reason) == ("diverged", first.reason)
    assert result.steps == 4


def test_patience_counts_steps_in_a_row():
    training = Training(make_policy(), config(steps=12, guard=GuardSettings(patience=2)))
    spoil(training, {0, 1, 3, 4, 6, 7, 9, 10}, lambda x: x * NAN)
    result = training.run()
    assert result.status == "ok"
    assert len(result.interventions) == 8


def test_the_rate_recovers():
    settings = config(guard=GuardSettings(backoff=0.25, recovery=2.0), schedule="constant",
                      learning_rate=0.01)  # fmt: skip
    found = []
    training = Training(
        make_policy(), settings, callback=lambda t: found.append(t.guard.learning_rate_scale)
    )
    spoil(training, {2}, lambda x: x * NAN)
    training.run()
    assert found == pytest.approx([1.0, 1.0, 0.25, 0.5, 1.0, 1.0, 1.0, 1.0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"jump_factor": 1.0}, "`jump_factor` must be > 1"),
        ({"drift_factor": 0.5}, "`drift_factor` must be > 1"),
        ({"jump_offset": -1.0}, "`jump_offset` must be >= 0"),
        ({"window": 0}, "`window` must be >= 1"),
        ({"patience": 0}, "`patience` must be >= 1"),
        ({"snapshot_interval": 0}, "`snapshot_interval` must be >= 1"),
        ({"backoff": 0.0}, r"`backoff` must be in \(0, 1\]"),
        ({"backoff": 1.5}, r"`backoff` must be in \(0, 1\]"),
        ({"recovery": 0.9}, "`recovery` must be >= 1"),
        ({"jump_factor": NAN}, "`jump_factor` must be finite"),
    ],
)
def test_bad_guard_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        GuardSettings(**settings)


# ---------------------------------------------------------------------------------------------
# checkpoints


class Killed(Exception):  # noqa: N818 - stands for a signal
    pass


def fingerprint(training: Training) -> dict:
    """Everything a run is, but its clock."""
    return {
        "parameters": [p.tolist() for p in training.policy.parameters()],
        "optimizer": [
            {k: torch.as_tensor(v).tolist() for k, v in state.items()}
            for part in training.optimizer.state_dict()["parts"]
            for state in part["state"].values()
        ],
        "generator": training.generator.get_state().tolist(),
        "guard": str(training.guard.state_dict()),
        "curve": [replace(point, seconds=0.0) for point in training.curve],
        "step": training.step,
        "loss": training.loss,
        "rate": training.optimizer.param_groups[0]["lr"],
    }


@pytest.mark.parametrize("schedule", ["cosine", "plateau"])
@pytest.mark.parametrize("gradient", ["jfb", "direct"])
@pytest.mark.parametrize(("fixed", "optimizer"), [(False, "adam"), (True, "adam"), (False, "muon")])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, schedule, gradient, fixed, optimizer):
    settings = config(
        steps=12, optimizer=optimizer, schedule=schedule, plateau_patience=1, warmup_steps=2,
        fixed_minibatch=fixed, guard=GuardSettings(snapshot_interval=3, window=2),
    )  # fmt: skip
    bad = set() if fixed else {3, 9}  # one rejected step before the checkpoint, one after

    def training(**keywords) -> Training:
        made = Training(make_policy(gradient=gradient), settings, **keywords)
        if bad:
            spoil(made, bad, lambda x: x * NAN)
        return made

    whole = training()
    whole.run()

    def kill(t: Training) -> None:
        if t.step == 8:
            raise Killed

    path = tmp_path / "checkpoint.pt"
    first = training(checkpoint=path, checkpoint_interval=5, callback=kill)
    with pytest.raises(Killed):
        first.run()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.pt"]
    # A policy with other parameters: everything must come from the file.
    second = Training(make_policy(gradient=gradient, seed=5), settings, checkpoint=path)
    second.load(path)
    assert second.step == 5
    if bad:
        spoil(second, bad, lambda x: x * NAN)
    result = second.run()
    assert fingerprint(second) == fingerprint(whole)
    assert len(result.step_seconds) == 12
    assert len(result.interventions) == len(bad)


def saved(tmp_path, **settings):
    path = tmp_path / "checkpoint.pt"
    Training(make_policy(), config(**settings), checkpoint=path).run()
    return path


def test_a_finished_run_is_not_run_again(tmp_path):
    path = saved(tmp_path)
    again = Training(make_policy(seed=3), config())
    again.load(path)
    before = fingerprint(again)
    result = again.run()
    assert result.steps == 8
    assert fingerprint(again) == before


CORRUPTIONS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "truncated": lambda data: data[: len(data) // 2],
    "text": lambda data: b"this is not a checkpoint\n" * 10,
    "flipped": lambda data: data[:200] + bytes(b ^ 0xFF for b in data[200:1200]) + data[1200:],
}


@pytest.mark.parametrize(
    "corruption",
    list(CORRUPTIONS),
)
def test_a_corrupt_checkpoint_is_named(tmp_path, corruption):
    path = saved(tmp_path)
    path.write_bytes(CORRUPTIONS[corruption](path.read_bytes()))
    training = Training(make_policy(), config())
    before = fingerprint(training)
    with pytest.raises(ValueError, match=r"`checkpoint` .*checkpoint\.pt"):
        training.load(path)
    assert fingerprint(training) == before


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"`checkpoint` .*nowhere\.pt cannot be read"):
        Training(make_policy(), config()).load(tmp_path / "nowhere.pt")


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        {"version": 0},
        {},
        {"version": CHECKPOINT_VERSION},
    ],
)
def test_something_else_is_not_a_checkpoint(tmp_path, content):
    path = tmp_path / "other.pt"
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"`checkpoint` .*other\.pt"):
        Training(make_policy(), config()).load(path)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"learning_rate": 1e-3}, ["learning_rate"]),
        ({"seed": 3, "batch_size": 5}, ["batch_size", "seed"]),
        ({"guard": GuardSettings(patience=7)}, ["guard"]),
        ({"optimizer": "muon"}, ["optimizer"]),
    ],
)
def test_another_configuration_is_refused_by_name(tmp_path, changes, names):
    path = saved(tmp_path)
    training = Training(make_policy(), config(**changes))
    before = fingerprint(training)
    with pytest.raises(ValueError, match="another configuration") as error:
        training.load(path)
    assert str(error.value).endswith("different: " + ", ".join(names))
    assert fingerprint(training) == before


def test_another_network_is_refused(tmp_path):
    path = saved(tmp_path)
    training = Training(make_policy(width=9), config())
    with pytest.raises(ValueError, match=r"`checkpoint` .*checkpoint\.pt"):
        training.load(path)


@pytest.mark.parametrize(
    "other",
    [
        {"n_steps": 5},
        {"mass": 0.6},
        {"dtype": torch.float64},
        {"gradient": "implicit"},
        {"n_agents": 2},
    ],
)
def test_the_own_identity_is_that_of_the_run(tmp_path, other):
    """Also where the parameters would fit."""
    path = tmp_path / "checkpoint"
    Training(make_policy(), config(), checkpoint=path).run()
    Training(make_policy(), config()).load(path)
    with pytest.raises(ValueError, match="quadrotor"):
        Training(make_policy(**other), config()).load(path)


def test_another_identity_is_refused(tmp_path):
    """What the caller calls the run decides, whatever the shapes."""
    path = tmp_path / "checkpoint.pt"
    Training(make_policy(), config(), checkpoint=path, identity="one").run()
    Training(make_policy(), config(), identity="one").load(path)
    training = Training(make_policy(), config(), identity="two")
    before = fingerprint(training)
    with pytest.raises(ValueError, match="belongs to another run: one, not two"):
        training.load(path)
    assert fingerprint(training) == before


# ---------------------------------------------------------------------------------------------
# HJB penalties


@every_problem
def test_penalties_are_added_with_their_weights(name):
    """The gradient of a step is that of cost + a |HJB| + b |misfit|; the loss reported is not."""
    weights = {"hjb_running": 0.3, "hjb_final": 0.7}
    grads = []

    def callback(training: Training) -> None:
        grads.extend(
            torch.zeros_like(p) if p.grad is None else p.grad.clone()
            for p in training.policy.parameters()
        )

    settings = config(steps=1, clip_norm=1e9, **weights)
    training = Training(make_policy(name, n_agents=6), settings, callback=callback)
    training.run()
    policy = make_policy(name, n_agents=6)
    x = policy.problem.sample_initial_states(4, generator(settings.seed))
    result = rollout(policy, x, penalties=True)
    loss = (result.cost + 0.3 * result.hjb_penalty + 0.7 * result.terminal_penalty).mean()
    expected = torch.autograd.grad(loss, list(policy.parameters()), materialize_grads=True)
    scale = max(g.abs().max().item() for g in expected)
    for a, b in zip(grads, expected, strict=True):
        # float32 sums in another order, relative to the largest gradient.
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5 * scale)
    assert training.loss == pytest.approx(result.cost.mean().item(), rel=1e-6)
    plain = torch.autograd.grad(
        rollout(policy, x).cost.mean(), list(policy.parameters()), materialize_grads=True
    )
    assert any((a - b).abs().max() > 1e-3 * scale for a, b in zip(expected, plain, strict=True))


# ---------------------------------------------------------------------------------------------
# held-out states


@every_problem
class TestHeldOut:
    def test_prefix(self, name):
        problem = PROBLEMS[name](n_agents=2)
        everything = held_out_states(problem)
        assert everything.shape == (COUNT, problem.state_dim)
        for count in (1, 5, 64):
            assert torch.equal(held_out_states(problem, count), everything[:count])
        assert torch.equal(held_out_states(problem, 70)[:COUNT], everything)

    def test_every_dtype(self, name):
        single = held_out_states(PROBLEMS[name](n_agents=2))
        double = held_out_states(PROBLEMS[name](n_agents=2, dtype=torch.float64))
        torch.testing.assert_close(single.double(), double, rtol=2.5e-7, atol=1e-8)

    def test_never_trained_on(self, name):
        problem = PROBLEMS[name](n_agents=1, dtype=torch.float64)
        held_out = held_out_states(problem)
        for seed in range(20):
            x = problem.sample_initial_states(200, generator(seed))
            # Equality in float64 of random states: coincidence has no chance.
            assert not (x[:, None] == held_out[None]).all(2).any()


# ---------------------------------------------------------------------------------------------
# the clock


def test_evaluations_and_callbacks_are_off_the_clock(monkeypatch):
    """On a clock that moves in steps, which take 1, 3, 2 and 10 seconds, and outside of them."""
    now, steps = [0.0], iter((1.0, 3.0, 2.0, 10.0))

    def take(seconds):
        now[0] += seconds

    monkeypatch.setattr(jfbcore.train, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    training = Training(make_policy(), config(steps=4), callback=lambda _: take(100.0))
    evaluate, roll = training.evaluate, training._rollout
    monkeypatch.setattr(training, "evaluate", lambda: take(100.0) or evaluate())
    monkeypatch.setattr(training, "_rollout", lambda x: take(next(steps)) or roll(x))
    result = training.run()
    assert result.step_seconds == [1.0, 3.0, 2.0, 10.0]
    assert result.seconds == 16.0
    assert result.median_step_seconds == 2.5
    assert [point.seconds for point in result.curve] == [0.0, 1.0, 4.0, 6.0, 16.0]


def test_a_time_limit_counts_training_only(monkeypatch):
    """With a clock on which each step takes a second."""
    ticks = iter(range(10**6))
    monkeypatch.setattr(
        jfbcore.train, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks)))
    )
    found = []

    def callback(training: Training) -> None:
        next(ticks)  # costs time, but not training's
        found.append(training.optimizer.param_groups[0]["lr"])

    settings = config(steps=None, time_limit=6.0, evaluations=3, learning_rate=0.01)
    result = Training(make_policy(), settings, callback=callback).run()
    assert result.steps == 6
    assert result.seconds == 6.0
    assert [point.seconds for point in result.curve] == [0.0, 2.0, 4.0, 6.0]
    floor = settings.final_learning_rate_fraction
    expected = [
        0.01 * (floor + (1 - floor) * (1 + math.cos(math.pi * i / 6)) / 2) for i in range(6)
    ]
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("limit", [5.0, 10.0, 1000.0])
def test_a_limit_cuts_a_schedule_and_does_not_move_it(monkeypatch, limit):
    """With a clock on which each step takes a second: the same grids and rates at the same steps,
    whatever the limit."""
    ticks = iter(range(10**6))
    monkeypatch.setattr(
        jfbcore.train, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks)))
    )
    grids, rates = [], []

    def callback(training: Training) -> None:
        next(ticks)
        grids.append(training.schedules.last_n_steps)
        rates.append(training.optimizer.param_groups[0]["lr"])

    settings = config(
        steps=8, time_limit=limit, evaluations=4, coarsening=((0.5, 2),), learning_rate=0.01
    )
    policy = make_policy()
    result = Training(policy, settings, callback=callback).run()
    taken = min(8, int(limit))
    assert result.steps == taken
    full = policy.problem.n_steps
    assert grids == ([full // 2] * 4 + [full] * 4)[:taken]
    floor = settings.final_learning_rate_fraction
    expected = [
        0.01 * (floor + (1 - floor) * (1 + math.cos(math.pi * i / 8)) / 2) for i in range(taken)
    ]
    assert rates == pytest.approx(expected)
    assert result.curve[-1].step == taken


def test_whole_steps_count_the_grid():
    """Two whole steps on half the grid are four steps; then two more on the whole one."""
    grids: list[int] = []
    settings = config(steps=None, full_steps=4.0, evaluations=4, coarsening=((0.5, 2),))
    policy = make_policy()
    result = Training(
        policy, settings, callback=lambda training: grids.append(training.schedules.last_n_steps)
    ).run()
    full = policy.problem.n_steps
    assert grids == [full // 2] * 4 + [full] * 2
    assert [point.step for point in result.curve] == [0, 2, 4, 5, 6]


def test_schedules_begin_after_compiling(monkeypatch, tmp_path):
    """With a clock on which compiling takes four seconds and each step one."""
    clock = [0.0]

    def tick() -> float:
        # Called in pairs, before and after a step: time passes between the two calls of a pair.
        calls.append(clock[0])
        if len(calls) % 2 == 1:
            now, clock[0] = clock[0], clock[0] + (4.0 if len(calls) == 1 else 1.0)
            return now
        return clock[0]

    monkeypatch.setattr(jfbcore.train, "time", SimpleNamespace(perf_counter=tick))
    settings = config(
        steps=None, time_limit=10.0, evaluations=2, coarsening=((0.5, 2),), learning_rate=0.01
    )
    policy = make_policy()
    grids: list[int] = []
    checkpoint = tmp_path / "run.pt"

    def start() -> Training:
        calls.clear()
        return Training(
            policy,
            settings,
            rollout=functools.partial(rollout),
            callback=lambda training: grids.append(training.schedules.last_n_steps),
            checkpoint=checkpoint,
            checkpoint_interval=1,
        )

    calls: list[float] = []
    training = start()
    result = training.run()
    assert (result.seconds, training.clock.compiling_seconds) == (10.0, 4.0)
    # The step that compiles and half of the six seconds after it.
    full = policy.problem.n_steps
    assert grids == [full // 2] * 4 + [full] * 3
    assert [point.seconds for point in result.curve] == [0.0, 7.0, 10.0]

    # A run that goes on in a new process compiles again; one that had its seconds does not.
    continued = start()
    continued.load(checkpoint)
    assert continued.clock.compiling_seconds == 4.0
    assert continued.run().seconds == 10.0


def test_a_limit_within_compiling_ends_the_run(monkeypatch):
    ticks = iter(range(0, 10**6, 7))
    monkeypatch.setattr(
        jfbcore.train, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks)))
    )
    policy = make_policy()
    settings = config(steps=None, time_limit=7.0)
    result = Training(
        policy,
        settings,
        rollout=functools.partial(rollout),
    ).run()
    assert (result.steps, result.seconds, result.status) == (1, 7.0, "ok")


def test_progress_reaches_one():
    told = []
    Training(make_policy(), config()).run(lambda fraction, line: told.append((fraction, line)))
    assert [fraction for fraction, _ in told] == pytest.approx([i / 8 for i in range(1, 9)])
    assert all("loss" in line and "held-out" in line for _, line in told)


# ---------------------------------------------------------------------------------------------
# bad input


def test_a_run_has_an_end():
    with pytest.raises(ValueError, match="give `steps`, `full_steps` or `time_limit`, got none"):
        TrainingConfig()
    with pytest.raises(ValueError, match="give `steps` or `full_steps`, got both: 3 and 2"):
        TrainingConfig(steps=3, full_steps=2)


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("steps", 0),
        ("steps", 2.5),
        ("time_limit", 0.0),
        ("time_limit", NAN),
        ("batch_size", 0),
        ("batch_size", True),
        ("evaluations", 0),
        ("held_out", -1),
        ("plateau_patience", 0),
        ("learning_rate", 0.0),
        ("learning_rate", math.inf),
        ("learning_rate", "fast"),
        ("clip_norm", -1.0),
        ("final_learning_rate_fraction", -0.1),
        ("hjb_running", -1e-4),
        ("hjb_final", NAN),
        ("schedule", "linear"),
        ("warmup_steps", -1),
        ("warmup_steps", 2.5),
        ("seed", 1.5),
        ("coarsening stage", ("half",)),
        ("coarsening factor", ((0.5, 2.5),)),
    ],
)
def test_bad_settings(name, bad):
    settings = {"steps": 5} | {name.split()[0]: bad}
    if name == "time_limit":
        del settings["steps"]
    with pytest.raises((TypeError, ValueError), match=f"`{name}` must be"):
        TrainingConfig(**settings)


@pytest.mark.parametrize("stages", [((0.5, 4), (0.3, 2)), ((1.5, 2),), ((0.5, 4), (0.5, 2))])
def test_coarsening_stages_follow_each_other(stages):
    with pytest.raises(ValueError, match=r"`coarsening` stages .* each later than the one before"):
        TrainingConfig(steps=5, coarsening=stages)


def test_settings_are_keywords():
    with pytest.raises(TypeError):
        TrainingConfig(5)
    with pytest.raises(TypeError, match="no_such_option"):
        TrainingConfig(steps=5, no_such_option=1)
    with pytest.raises(ValueError, match="`checkpoint_interval` must be >= 1"):
        Training(make_policy(), config(), checkpoint_interval=0)
