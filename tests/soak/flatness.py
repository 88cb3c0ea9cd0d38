"""Tell whether a series of samples is flat: its robust slope, against a bar.

The slope is Theil and Sen's: the median of the slopes between all pairs of points. It is moved by
no outlier, be it a fourth of the samples, as a straight line's is. The samples are first put into
some buckets, of which each gives its median, so that a burst of work between two samples counts
little.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from statistics import median
from typing import NamedTuple

#: The part of the time at the beginning that does not count: caches fill, pools grow.
WARM_UP = 0.25

#: Points that a slope is made from.
BUCKETS = 60

#: What a series may grow by, in the time that counts: this part of its median.
BAR = 0.05


class Verdict(NamedTuple):
    """What became of a series.

    Attributes:
        name: of the series.
        median: of what counts.
        growth: by how much it grew in the time that counts, by its slope.
        bar: by how much it may have grown.
    """

    name: str
    median: float
    growth: float
    bar: float

    @property
    def is_flat(self) -> bool:
        """Whether it grew by no more than it may."""
        return self.growth <= self.bar


def judge(
    name: str, samples: Sequence[tuple[float, float]], *, least: float, bar: float = BAR
) -> Verdict:
    """Return whether a series is flat.

    Args:
        name: of the series.
        samples: seconds and value, oldest first.
        least: what it may always grow by: what one more page, or one more message, makes.
        bar: the part of its median that it may grow by.

    Raises:
        ValueError: there are fewer than two samples that count.
    """
    begin, end = samples[0][0], samples[-1][0]
    counted = [one for one in samples if one[0] >= begin + WARM_UP * (end - begin)]
    if len(counted) < 2:
        raise ValueError(f"{name}: {len(samples)} samples, of which fewer than two count")
    points = _buckets(counted)
    slopes = [(w - v) / (u - t) for (t, v), (u, w) in combinations(points, 2) if u > t]
    middle = median(value for _, value in counted)
    growth = median(slopes) * (counted[-1][0] - counted[0][0]) if slopes else 0.0
    return Verdict(name, middle, growth, max(least, bar * middle))


def _buckets(samples: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the medians of neighbours, at most so many."""
    size = -(-len(samples) // BUCKETS)
    parts = [samples[start : start + size] for start in range(0, len(samples), size)]
    return [(median(t for t, _ in part), median(v for _, v in part)) for part in parts]
