"""The gate's intervals, on times whose distribution is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from bench.gate.statistics import block_ratios, exact_bounds, ratio_interval


def ratios(random, pairs, blocks, between, slower=1.0):
    """Block ratios of `pairs` pairs of processes that differ by `between`, blocks by 2 %."""
    return [
        slower * np.exp(between * random.standard_normal() + 0.02 * random.standard_normal(blocks))
        for _ in range(pairs)
    ]


def covered(pairs, draw, comparisons=200):
    """Of `comparisons` of equal code, the 99 % intervals that hold 1. `draw`: ratios of one."""
    random, found = np.random.default_rng(0), 0
    for seed in range(comparisons):
        interval = ratio_interval(draw(random, pairs), confidence=0.99, seed=seed)
        found += interval.low <= 1.0 <= interval.high
    return found / comparisons


@pytest.mark.slow
@pytest.mark.parametrize("pairs", [5, 8, 16])
@pytest.mark.parametrize("between", [0.0, 0.015])
def test_the_interval_covers_what_processes_differ_by(pairs, between):
    """Of 200, two or fewer are expected to miss; seven would with a probability of 0.1 %."""
    assert covered(pairs, lambda random, k: ratios(random, k, 8, between)) >= 1 - 6 / 200


def test_processes_of_two_kinds_are_covered_too():
    """A third of all processes is 3.3 % slower, as one of two memory layouts makes it; centred."""

    def draw(random, pairs):
        shift = 0.033 * ((random.random(pairs) < 1 / 3) - 1 / 3)
        return [np.exp(one + 0.02 * random.standard_normal(8)) for one in shift]

    # In 4 % of all draws the eight are of one kind, and know nothing of the other.
    assert covered(8, draw) >= 0.95


def test_one_bootstrap_of_all_blocks_would_not_cover_it():
    """What the interval was before: processes are no part of it."""
    random, missed = np.random.default_rng(0), 0
    for _ in range(100):
        blocks = np.log(np.concatenate(ratios(random, 8, 8, 0.015)))
        picks = random.choice(blocks, (2000, len(blocks)))
        low, high = np.quantile(np.median(picks, axis=1), (0.005, 0.995))
        missed += not low <= 0.0 <= high
    assert missed >= 10


def test_a_slowdown_is_outside_the_interval():
    drawn = ratios(np.random.default_rng(1), 8, 10, between=0.015, slower=1.2)
    interval = ratio_interval(drawn, confidence=0.99, seed=0)
    assert 1.1 < interval.low < 1.2 < interval.high < 1.3


def test_without_noise_of_blocks_it_is_scipys_bootstrap_widened():
    """Blocks of a pair all equal: what is left is a bootstrap of the pairs' mean."""
    random = np.random.default_rng(2)
    logs = 0.02 * random.standard_normal(12)
    reference = stats.bootstrap(
        (logs,), np.mean, confidence_level=0.95, n_resamples=50_000, method="percentile",
        rng=np.random.default_rng(3),
    ).confidence_interval  # fmt: skip
    found = ratio_interval([[math.exp(x)] * 6 for x in logs], confidence=0.95, seed=0)
    assert math.log(found.ratio) == pytest.approx(logs.mean(), abs=1e-12)
    # t with 11 degrees of freedom against the normal: 2.201 and 1.960; the bootstrap's variance is
    # that of the twelve, not of what they are drawn from: 12/11.
    wider = 2.20099 / 1.95996 * math.sqrt(12 / 11)
    for end, own in ((found.low, reference.low), (found.high, reference.high)):
        # The tails of 4,000 resamples are known to 3 % of the interval's half width.
        assert math.log(end) - logs.mean() == pytest.approx(wider * (own - logs.mean()), rel=0.05)


def test_swapping_base_and_head_mirrors_the_interval():
    drawn = ratios(np.random.default_rng(4), 8, 8, between=0.015, slower=1.3)
    there = ratio_interval(drawn, confidence=0.99, seed=5)
    back = ratio_interval([1 / pair for pair in drawn], confidence=0.99, seed=5)
    # The same resamples of the negated logarithms, up to how quantiles interpolate.
    assert there.ratio == pytest.approx(1 / back.ratio, rel=1e-12)
    assert there.low == pytest.approx(1 / back.high, rel=1e-9)


def test_going_first_and_single_hits_leave_the_ratio_alone():
    """Exact by construction: no noise but an advantage of going first, and blocks that are hit."""
    first = np.tile((0.94, 1.0), 20)
    base, head = first.copy(), 1.1 * first[::-1]
    base[:8] *= 3.0
    head[10:14] *= 2.0
    # Six blocks of twenty are hit, on one side or the other: far from half.
    assert np.median(block_ratios(base, head)) == pytest.approx(1.1, rel=1e-12)


@pytest.mark.parametrize(
    ("base", "head", "words"),
    [
        ([1.0] * 10, [1.0] * 12, "same even number"),
        ([1.0] * 11, [1.0] * 11, "same even number"),
        ([], [], "at least 2"),
        ([1.0] * 10, [1.0] * 9 + [0.0], "> 0"),
    ],
)
def test_times_that_are_no_blocks_are_refused(base, head, words):
    with pytest.raises(ValueError, match=words):
        block_ratios(base, head)


@pytest.mark.parametrize("pairs", [[], [[1.0]] * 4, [[1.0]] * 4 + [[]]])
def test_too_few_pairs_are_refused(pairs):
    with pytest.raises(ValueError, match="`pairs` must be at least 5 with blocks each"):
        ratio_interval(pairs, confidence=0.99, seed=0)


def test_exact_bounds():
    # The rule of three, one-sided at 97.5 %: 1 - 0.025^(1/n).
    low, high = exact_bounds(0, 100)
    assert (low, high) == (0.0, pytest.approx(1 - 0.025**0.01))
    assert exact_bounds(0, 367)[1] > 0.01 > exact_bounds(0, 368)[1]
    low, high = exact_bounds(5, 100)
    # Clopper and Pearson, Biometrika 26 (1934): the tails at the bounds hold 2.5 % each.
    tail = sum(math.comb(100, k) * high**k * (1 - high) ** (100 - k) for k in range(6))
    assert tail == pytest.approx(0.025, abs=1e-6)
    with pytest.raises(ValueError, match="between 0 and `runs`"):
        exact_bounds(2, 1)
