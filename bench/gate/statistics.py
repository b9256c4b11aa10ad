"""How much slower head is than base, from paired times, with an interval that can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

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
    base: Sequence[float], head: Sequence[float], *, confidence: float, seed: int
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

    Raises ValueError for times that are no whole blocks, too few, or not positive.
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
    picks = generator.integers(len(logs), size=(RESAMPLES, len(logs)))
    medians = np.median(logs[picks], axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(medians, (tail, 1 - tail))
    return Interval(
        ratio=float(np.exp(np.median(logs))),
        low=float(np.exp(low)),
        high=float(np.exp(high)),
        blocks=len(logs),
    )
