"""The gate's intervals, on times whose distribution is known."""

from __future__ import annotations

import numpy as np
import pytest

from bench.gate.statistics import exact_bounds, ratio_interval


def times(
    random: np.random.Generator, pairs: int, blocks: int, between: float, slower: float = 1.0
) -> tuple[list[float], list[float]]:
    """Equal code in `pairs` pairs of processes that differ by `between`, blocks by 2 %."""
    base, head = [], []
    for _ in range(pairs):
        offset = np.exp(between * random.standard_normal())
        base += list(np.exp(0.02 * random.standard_normal(2 * blocks)))
        head += list(slower * offset * np.exp(0.02 * random.standard_normal(2 * blocks)))
    return base, head


def misses(processes: bool) -> int:
    """Of 100 comparisons of equal code, the intervals that leave out 1."""
    random, found = np.random.default_rng(0), 0
    for seed in range(100):
        base, head = times(random, 8, 10, between=0.015)
        given = [10] * 8 if processes else None
        interval = ratio_interval(base, head, confidence=0.99, seed=seed, processes=given)
        found += not interval.low <= 1.0 <= interval.high
    return found


def test_blocks_alone_leave_out_what_processes_differ_by():
    # Nominally 1 of 100; a bootstrap over eight pairs is known to be somewhat short.
    assert misses(processes=True) <= 6
    assert misses(processes=False) > 10


def test_a_slowdown_is_outside_the_interval():
    base, head = times(np.random.default_rng(1), 8, 10, between=0.015, slower=1.2)
    interval = ratio_interval(base, head, confidence=0.99, seed=0, processes=[10] * 8)
    assert interval.low > 1.1
    assert 1.15 < interval.ratio < 1.25


def test_one_pair_is_what_it_was():
    base, head = times(np.random.default_rng(2), 1, 20, between=0.0)
    one = ratio_interval(base, head, confidence=0.99, seed=0)
    assert one == ratio_interval(base, head, confidence=0.99, seed=0, processes=[20])


@pytest.mark.parametrize("processes", [[], [5, 4], [10, 0]])
def test_processes_add_up(processes):
    with pytest.raises(ValueError, match="`processes` must be positive numbers that add up to 10"):
        ratio_interval([1.0] * 20, [1.0] * 20, confidence=0.99, seed=0, processes=processes)


def test_exact_bounds():
    # The rule of three, one-sided at 97.5 %: 1 - 0.025^(1/n).
    low, high = exact_bounds(0, 100)
    assert (low, high) == (0.0, pytest.approx(1 - 0.025**0.01))
    assert exact_bounds(0, 367)[1] > 0.01 > exact_bounds(0, 368)[1]
    low, high = exact_bounds(5, 100)
    # Clopper and Pearson, Biometrika 26 (1934): the tails at the bounds hold 2.5 % each.
    tail = sum(_binomial(k, 100, high) for k in range(6))
    assert tail == pytest.approx(0.025, abs=1e-6)
    with pytest.raises(ValueError, match="between 0 and `runs`"):
        exact_bounds(2, 1)


def _binomial(k: int, n: int, p: float) -> float:
    from math import comb

    return comb(n, k) * p**k * (1 - p) ** (n - k)
