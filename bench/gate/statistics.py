"""How much slower head is than base, from paired times, with an interval that can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

#: resamples of the bootstrap: enough for a 0.5 % tail to rest on twenty of them
RESAMPLES = 4000


#: fewer blocks than this have no interval worth the name
FEWEST_BLOCKS = 5


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A ratio of times, head to base, and its bootstrap interval; `blocks`: what it rests on."""

    ratio: float
    low: float
    high: float
    blocks: int

    def __str__(self) -> str:
        return f"{self.ratio:.3f} [{self.low:.3f}, {self.high:.3f}]"


def ratio_interval(
    base: Sequence[float],
    head: Sequence[float],
    *,
    confidence: float,
    seed: int,
    processes: Sequence[int] | None = None,
) -> Interval:
    """The median over blocks of the ratio head/base, and its percentile-bootstrap interval.

    A block is four steps timed in the order base, head, head, base; its two pairs are
    `base[2i], head[2i]` and `base[2i + 1], head[2i + 1]`, its ratio their geometric mean.

    - Paired, because a neighbour's load or a lower clock rate lasts longer than a block and slows
      all of it: it cancels in the ratio, where medians taken per side would carry it.
    - Both orders in a block, because whoever runs again right after itself finds its caches warm:
      6 % on two cores, with a sign that single pairs would carry into their median.
    - The median, because a block that is hit on one side is an outlier of any size, and nearly
      half of the blocks may be before it matters.

    `processes`: how many of the blocks, in order, each pair of processes was measured for; None
    takes them for one pair. With several the ratio is the median of the pairs' own medians, and the
    bootstrap draws pairs first and then blocks of each: two processes with the same code differ by
    1 to 2 % (memory layout), which no number of blocks of one pair shows. An interval that draws
    from few pairs is too short: of k pairs all resamples are the same one in k^(k-1) times, so that
    confidence c needs k^(k-1) above 2/(1-c), which is 5 pairs for 99 %.

    Raises ValueError for times that are no whole blocks, too few, or not positive, and for
    `processes` that do not add up to the blocks.
    """
    if len(base) != len(head) or len(base) % 2 or len(base) < 2 * FEWEST_BLOCKS:
        raise ValueError(
            f"`base` and `head` must hold the same even number of times, at least "
            f"{2 * FEWEST_BLOCKS}, got {len(base)} and {len(head)}"
        )
    if min(*base, *head) <= 0:
        raise ValueError(f"times must be > 0, got {min(*base, *head):g}")
    if not 0.5 < confidence < 1:
        raise ValueError(f"`confidence` must be in (0.5, 1), got {confidence:g}")
    logs = (np.log(np.asarray(head)) - np.log(np.asarray(base))).reshape(-1, 2).mean(axis=1)
    generator = np.random.default_rng(seed)
    counts = [len(logs)] if processes is None else list(processes)
    if min(counts, default=0) < 1 or sum(counts) != len(logs):
        raise ValueError(
            f"`processes` must be positive numbers that add up to {len(logs)} blocks, got {counts}"
        )
    pairs = np.split(logs, np.cumsum(counts)[:-1])
    # Per pair: its resampled medians, (RESAMPLES,), each drawn from its own blocks.
    medians = np.stack([_resampled_medians(pair, generator) for pair in pairs])
    drawn = generator.integers(len(pairs), size=(len(pairs), RESAMPLES))
    # A pair that is drawn twice counts twice, with the same blocks.
    medians = np.median(np.take_along_axis(medians, drawn, axis=0), axis=0)
    tail = (1 - confidence) / 2
    low, high = np.quantile(medians, (tail, 1 - tail))
    return Interval(
        ratio=float(np.exp(np.median([np.median(pair) for pair in pairs]))),
        low=float(np.exp(low)),
        high=float(np.exp(high)),
        blocks=len(logs),
    )


def _resampled_medians(logs: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    picks = generator.integers(len(logs), size=(RESAMPLES, len(logs)))
    return np.median(logs[picks], axis=1)


def exact_bounds(events: int, runs: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Clopper-Pearson's two-sided bounds of the rate behind `events` in `runs`.

    They hold whatever the rate is: of 100 runs without an alarm the rate may still be 3.6 %, and
    368 are needed before it is at most 1 %. Raises ValueError for counts that cannot be.
    """
    if not 0 <= events <= runs or runs < 1:
        raise ValueError(f"`events` must be between 0 and `runs` >= 1, got {events} of {runs}")
    interval = binomtest(events, runs).proportion_ci(confidence, method="exact")
    return float(interval.low), float(interval.high)
