"""How much slower head is than base, from paired times, with an interval that can be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, norm, t

#: resamples of the bootstrap: enough for a 0.5 % tail to rest on twenty of them
RESAMPLES = 4000
#: fewer pairs of processes than this say nothing of what processes differ by
FEWEST_PAIRS = 5


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A ratio of times, head to base, and its bootstrap interval."""

    ratio: float
    low: float
    high: float


def block_ratios(base: Sequence[float], head: Sequence[float]) -> list[float]:
    """The ratio head/base of every block of steps timed by one pair of processes.

    A block is four steps timed in the order base, head, head, base; its two pairs of times are
    `base[2i], head[2i]` and `base[2i + 1], head[2i + 1]`, its ratio their geometric mean.

    - Paired, because a neighbour's load or a lower clock rate lasts longer than a block and slows
      all of it: it cancels in the ratio, where medians taken per side would carry it.
    - Both orders in a block, because whoever runs again right after itself finds its caches warm:
      6 % on two cores, with a sign that single pairs would carry into their median.

    Raises ValueError for times that are no whole blocks or not positive.
    """
    if len(base) != len(head) or len(base) % 2 or not len(base):
        raise ValueError(
            f"`base` and `head` must hold the same even number of times, at least 2, "
            f"got {len(base)} and {len(head)}"
        )
    if min(*base, *head) <= 0:
        raise ValueError(f"times must be > 0, got {min(*base, *head):g}")
    single = np.asarray(head) / np.asarray(base)
    return np.sqrt(single[0::2] * single[1::2]).tolist()


def ratio_interval(pairs: Sequence[Sequence[float]], *, confidence: float, seed: int) -> Interval:
    """The ratio head/base of several pairs of processes, and its hierarchical-bootstrap interval.

    `pairs`: the block ratios of each pair. The ratio is the geometric mean of the pairs' medians:
    within a pair nearly half of the blocks may be outliers of any size before it matters. The
    bootstrap draws pairs first and then blocks of each: two processes with the same code differ by
    1 to 2 % (memory layout), which no number of blocks of one pair shows.

    As it is, such a bootstrap is too narrow by (k-1)/k of the variance between k pairs, too wide
    because the pairs' medians hold the blocks' noise already (Davison and Hinkley, Bootstrap
    Methods and their Application (1997), section 3.8), and knows no heavier tails than a normal
    distribution's. So its deviations are scaled to the standard error of the pairs' medians, and by
    how much wider Student's t with k-1 degrees of freedom is. tests/bench/test_statistics.py shows
    how often the interval holds the true ratio.

    Raises ValueError for fewer pairs than FEWEST_PAIRS, and for a pair without blocks.
    """
    if len(pairs) < FEWEST_PAIRS or not all(len(pair) for pair in pairs):
        raise ValueError(
            f"`pairs` must be at least {FEWEST_PAIRS} with blocks each, got "
            f"{[len(pair) for pair in pairs]}"
        )
    if not 0.5 < confidence < 1:
        raise ValueError(f"`confidence` must be in (0.5, 1), got {confidence:g}")
    generator, k = np.random.default_rng(seed), len(pairs)
    logs = [np.log(np.asarray(pair)) for pair in pairs]
    # Of every pair: medians of its resampled blocks, (k, RESAMPLES).
    resampled = np.stack(
        [np.median(generator.choice(own, (RESAMPLES, len(own))), axis=1) for own in logs]
    )
    drawn = generator.integers(k, size=(k, RESAMPLES))
    # A pair that is drawn twice brings other blocks the second time.
    blocks_drawn = generator.integers(RESAMPLES, size=(k, RESAMPLES))
    means = resampled[drawn, blocks_drawn].mean(axis=0)
    medians = np.array([np.median(own) for own in logs])
    centre, tail = float(medians.mean()), (1 - confidence) / 2
    wider = t.isf(tail, k - 1) / norm.isf(tail)
    if means.std() > 0:
        wider *= medians.std(ddof=1) / math.sqrt(k) / means.std()
    low, high = centre + wider * (np.quantile(means, (tail, 1 - tail)) - centre)
    return Interval(ratio=math.exp(centre), low=math.exp(low), high=math.exp(high))


def exact_bounds(events: int, runs: int) -> tuple[float, float]:
    """Clopper-Pearson's two-sided 95 % bounds of the rate behind `events` in `runs`.

    They hold whatever the rate is: of 100 runs without an alarm the rate may still be 3.6 %, and
    368 are needed before it is at most 1 %. Raises ValueError for counts that cannot be.
    """
    if not 0 <= events <= runs or runs < 1:
        raise ValueError(f"`events` must be between 0 and `runs` >= 1, got {events} of {runs}")
    interval = binomtest(events, runs).proportion_ci(0.95, method="exact")
    return float(interval.low), float(interval.high)
