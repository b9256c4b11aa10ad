"""The time gate: its verdicts on simulated noise, and real processes on a made-up clock."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from bench.case import Case
from bench.cli import main
from bench.gate.outcome import GateError, Outcome
from bench.gate.process import TimedTree, tree_pairs
from bench.gate.statistics import Interval
from bench.gate.time import (
    TIMED_CASES,
    Settings,
    TimeComparison,
    Verdict,
    compare_times,
    judge,
    outcome_of,
    time_table,
)
from bench.gate.trees import open_tree
from tests.bench.fake_trees import make_repository, make_tree, run_git, write_case

CASE = Case(problem="quadrotor", n_agents=1, gradient="jfb", batch_size=2, n_steps=3)
OTHER = Case(problem="bicycle", n_agents=1, gradient="jfb", batch_size=2, n_steps=3)


class Simulated:
    """Stands in for a timing process: draws its times, and is what order it was asked in."""

    def __init__(self, generator, slowdown, log, name, reason=None):
        self.generator, self.slowdown, self.log, self.name = generator, slowdown, log, name
        self.reason = reason

    def build(self, case, warm_up):
        return self.reason

    def time(self):
        # Running again right after itself finds its caches warm, as on a real machine.
        warm = 0.94 if self.log and self.log[-1] == self.name else 1.0
        self.log.append(self.name)
        hit = self.generator.uniform(1, 1.5) if self.generator.random() < 0.2 else 1.0
        noise = math.exp(0.03 * self.generator.standard_normal())
        return 0.02 * warm * hit * noise * self.slowdown


def simulated_pairs(seed, slowdown, reasons=(None, None), between=0.015):
    """Opens pairs of processes that differ by `between` (`Simulated` adds what steps differ by)
    and whose head is slower by `slowdown`; the log of every step, and of every pair."""
    generator, log, opened = np.random.default_rng(seed), [], []

    @contextlib.contextmanager
    def open_pair():
        opened.append(len(log))
        layout = math.exp(between * generator.standard_normal())
        yield (
            Simulated(generator, 1.0, log, "base", reasons[0]),
            Simulated(generator, slowdown * layout, log, "head", reasons[1]),
        )

    return open_pair, log, opened


def verdicts(slowdown, count=100):
    found = []
    for seed in range(count):
        open_pair, _, _ = simulated_pairs(seed, slowdown)
        found += compare_times(open_pair, [CASE], Settings(seed=seed))
    return [one.verdict for one in found]


@pytest.mark.parametrize(
    ("slowdown", "fewest", "most"), [(1.0, 0, 1), (1.1, 80, 100), (1.2, 95, 100)]
)
def test_rates_asked_for_hold_on_simulated_noise(slowdown, fewest, most):
    assert fewest <= verdicts(slowdown).count(Verdict.SLOWER) <= most


def test_a_speed_up_is_no_regression():
    # Where the noise is strong the first look may say no more than that it is not slower.
    found = verdicts(0.8, 10)
    assert set(found) <= {Verdict.FASTER, Verdict.SAME}
    assert found.count(Verdict.FASTER) >= 5


def test_steps_are_interleaved_and_each_order_comes_as_often():
    open_pair, log, opened = simulated_pairs(0, 1.0)
    compare_times(open_pair, [CASE], Settings())
    assert len(log) % 4 == 0
    assert log == ["base", "head", "head", "base"] * (len(log) // 4)
    # Every pair of processes is new and times as many.
    assert np.diff([*opened, len(log)]).tolist() == [4 * Settings().blocks] * len(opened)
    assert len(opened) in Settings().looks


class Quiet(Simulated):
    """Steps that differ by 1 % in each process, and nothing else."""

    def time(self):
        return 0.02 * self.slowdown * math.exp(0.01 * self.generator.standard_normal())


def test_a_slowdown_of_one_pair_of_processes_is_none_of_the_code():
    """One of the first five pairs is 10 % slower: more pairs are asked before it is decided."""
    generator, slow, opened = np.random.default_rng(0), iter([1.0, 1.1]), []

    @contextlib.contextmanager
    def open_pair():
        opened.append(next(slow, 1.0))
        yield Quiet(generator, 1.0, [], "base"), Quiet(generator, opened[-1], [], "head")

    (found,) = compare_times(open_pair, [CASE], Settings())
    assert (found.verdict, found.regressed) == (Verdict.SAME, False)
    assert len(opened) > 5
    assert outcome_of([found]) is Outcome.PASS


def test_what_is_decided_is_not_timed_again():
    """The second case is undecided to the last look, the first is not asked beyond its own."""
    asked, slow = [], itertools.cycle([0.99, 1.09])

    class Watched(Quiet):
        def build(self, case, warm_up):
            asked.append(case)
            # One process in two is far slower: the mean is 1.04, and no interval says so.
            self.slowdown = next(slow) if case is OTHER else 1.0

    generator = np.random.default_rng(0)

    @contextlib.contextmanager
    def open_pair():
        yield Quiet(generator, 1.0, [], "base"), Watched(generator, 1.0, [], "head")

    first, second = compare_times(open_pair, [CASE, OTHER], Settings())
    assert (first.verdict, second.verdict) == (Verdict.SAME, Verdict.UNDECIDED)
    assert (asked.count(CASE), asked.count(OTHER)) == (len(first.pairs), Settings().looks[-1])
    assert len(first.pairs) < Settings().looks[-1]
    # Said in a word, and not with the exit code of a pass.
    assert outcome_of([first, second]) is Outcome.UNDECIDED == 5
    lines = time_table([first, second], Settings()).splitlines()
    assert lines[1].split()[:2] == ["UNDECIDED", OTHER.id]
    assert "0 regressed" in lines[-1]
    assert "1 undecided (the interval still holds 1.04: run again" in lines[-1]
    slower = TimeComparison(case="worse", verdict=Verdict.SLOWER)
    assert outcome_of([first, second, slower]) is Outcome.REGRESSION


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (1.041, 1.2, Verdict.SLOWER),
        (1.039, 1.2, Verdict.UNDECIDED),
        (0.9, 1.039, Verdict.SAME),
        (0.9, 0.96, Verdict.FASTER),
    ],
)
def test_judgement_of_one_interval(low, high, verdict):
    interval = Interval(ratio=1.0, low=low, high=high)
    assert judge(interval, Settings(threshold=0.04)) is verdict


@pytest.mark.parametrize(
    ("reasons", "verdict", "outcome"),
    [
        ((None, "unknown"), Verdict.VANISHED, Outcome.REGRESSION),
        (("unknown", None), Verdict.NEW, Outcome.MISSING),
        (("unknown", "unknown"), Verdict.NEW, Outcome.MISSING),
    ],
)
def test_a_case_that_one_side_has_not(reasons, verdict, outcome):
    open_pair, _, _ = simulated_pairs(0, 1.0, reasons)
    found = compare_times(open_pair, [CASE], Settings())
    assert [one.verdict for one in found] == [verdict]
    assert outcome_of(found) is outcome
    assert "unknown" in time_table(found, Settings())


def test_timed_cases_are_told_apart():
    assert len({case.id for case in TIMED_CASES}) == len(TIMED_CASES)


def test_a_process_times_the_tree_it_was_given(tmp_path):
    """And prints of that tree do not get between the answers."""
    tree = make_tree(tmp_path / "tree", "print('noise') or wait(1000)")
    with TimedTree("head", tree) as process:
        process.read()
        assert process.build(CASE, 1) is None
        # Less what the thread was kept off the processor, which is of this world.
        assert process.time() == pytest.approx(1000, abs=10)


def test_a_tree_without_the_case_gives_its_reason(tmp_path):
    tree = make_tree(tmp_path / "tree")
    write_case(tree, ["problem"])
    with TimedTree("base", tree) as process:
        process.read()
        assert "unexpected keyword argument" in process.build(CASE, 1)


def test_both_trees_do_the_same_work_whatever_their_defaults(tmp_path):
    """Every field is sent; one that a tree does not know is left out at its default only."""
    tree = make_tree(tmp_path / "tree", "wait(self.case.tolerance)")
    write_case(tree, [field.name for field in dataclasses.fields(Case) if field.name != "compile"])
    with TimedTree("base", tree) as process:
        process.read()
        assert process.build(replace(CASE, tolerance=1000.0), 1) is None
        assert process.time() == pytest.approx(1000, abs=10)
        assert "compile" in process.build(replace(CASE, compile=True), 1)


@pytest.mark.parametrize(
    ("step", "words"),
    [("float('nan')", "cost of a step is nan"), ("{}['made up']", "KeyError: 'made up'")],
)
def test_a_step_that_does_not_work_is_no_fast_one(tmp_path, step, words):
    good, bad = make_tree(tmp_path / "good"), make_tree(tmp_path / "bad", step)
    (found,) = compare_times(tree_pairs(good, bad), [CASE], Settings())
    assert found.verdict is Verdict.VANISHED
    assert words in found.reason
    (found,) = compare_times(tree_pairs(bad, good), [CASE], Settings())
    assert found.verdict is Verdict.NEW


def test_a_clock_that_does_not_move_is_an_error_of_the_gate(tmp_path):
    tree = make_tree(tmp_path / "tree")
    with TimedTree("base", tree) as process:
        process.read()
        assert process.build(CASE, 1) is None
        with pytest.raises(GateError, match="the base tree's clock gave"):
            process.time()


@pytest.mark.parametrize(("step", "code"), [("os._exit(7)", 7), ("os.kill(os.getpid(), 9)", -9)])
def test_a_process_that_dies_is_an_error_of_the_gate_not_a_verdict(tmp_path, capsys, step, code):
    good, bad = make_tree(tmp_path / "good"), make_tree(tmp_path / "bad", step)
    with pytest.raises(GateError, match=f"head tree's process ended with code {code} while"):
        compare_times(tree_pairs(good, bad), [CASE], Settings())
    assert main(["gate", "--base", str(good), "--head", str(bad)]) == Outcome.ERROR
    assert f"ended with code {code}" in capsys.readouterr().err


def test_a_tree_that_cannot_be_imported_says_why(tmp_path, capsys):
    tree = make_tree(tmp_path / "tree")
    (tree / "bench" / "__init__.py").write_text("raise RuntimeError('half a change')\n")
    assert main(["gate", "--base", str(tree), "--head", str(tree)]) == Outcome.ERROR
    assert "RuntimeError: half a change" in capsys.readouterr().err


def verdict_of(case, capsys):
    """What the table that was printed says of `case`."""
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    (verdict,) = [words[0] for words in lines if case.id in words]
    return verdict


def test_a_slower_tree_fails_the_gate_and_the_same_tree_does_not(tmp_path, capsys):
    """The whole verb over real processes, on a clock that only the steps move."""
    quick = make_tree(tmp_path / "quick", "wait(1000)")
    slow = make_tree(tmp_path / "slow", "wait(1100)")
    assert main(["gate", "--base", str(quick), "--head", str(slow)]) == Outcome.REGRESSION
    assert verdict_of(TIMED_CASES[0], capsys) == "SLOWER"
    assert main(["gate", "--base", str(slow), "--head", str(quick)]) == Outcome.PASS
    assert verdict_of(TIMED_CASES[0], capsys) == "faster"
    assert main(["gate", "--base", str(slow), "--head", str(slow)]) == Outcome.PASS
    assert verdict_of(TIMED_CASES[0], capsys) == "same"


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository of two revisions, taken for this one."""
    folder = tmp_path / "repository"
    commits = make_repository(folder, ["100", "200"], "{}")
    monkeypatch.setattr("bench.gate.trees.ROOT", folder)
    return folder, commits


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--base", "no-such-revision"], "`base` must be a folder or a revision"),
        (["--base", "HEAD", "--head", "no-such"], "`head` must be a folder or a revision"),
        (["--base", "bench"], "`base` bench is not a source tree: no jfbcore"),
        (["--head", "HEAD"], "--head does not go with"),
        (["--base", "HEAD", "--update"], "--update does not go with --base"),
        (["--comparisons", "3"], "--comparisons does not go with"),
        (["--resume"], "--resume does not go with a baseline"),
        (["--self-test", "--comparisons", "0"], "`comparisons` must be"),
        (["--blame", "HEAD"], "`blame` must be a range"),
        (["--blame", "HEAD..no-such"], "`blame` must be a folder or a revision"),
        (["--blame", "HEAD..HEAD"], "holds no commit"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, words, capsys, monkeypatch, repository):
    monkeypatch.chdir(repository[0])
    assert main(["gate", *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("bench gate: error: ")
    assert words in error
    assert len(error.splitlines()) == 1


def test_a_revision_is_unpacked_and_leaves_nothing_behind(repository):
    folder, commits = repository

    def state():
        return run_git(folder, "worktree", "list"), run_git(folder, "status", "--porcelain")

    before = state()
    with open_tree("base", commits[0][:10]) as tree:
        kept = tree
        assert (tree / "bench" / "bytes.txt").read_text() == "100"
        assert not (tree / ".git").exists()
    assert not kept.exists()

    def fail_inside():
        nonlocal kept
        with open_tree("base", "HEAD") as tree:
            assert (tree / "bench" / "bytes.txt").read_text() == "200"
            kept = tree
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert not kept.exists()
    assert state() == before


def test_the_table_puts_regressions_first():
    interval = Interval(ratio=1.0, low=0.9, high=1.01)
    found = [
        TimeComparison(case="fine", verdict=Verdict.SAME, interval=interval, base_seconds=[0.02]),
        TimeComparison(case="gone", verdict=Verdict.VANISHED, reason="crashes"),
    ]
    lines = time_table(found, Settings()).splitlines()
    assert lines[1].split() == ["VANISHED", "gone", "0", "0", "crashes"]
    assert lines[2].split()[:5] == ["same", "fine", "0.02", "1", "0.9"]
    assert lines[3].startswith("1 cases timed: 1 regressed")
