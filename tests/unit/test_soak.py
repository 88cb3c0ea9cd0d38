"""What the soak calls flat, and its picture."""

from __future__ import annotations

import random
import xml.etree.ElementTree as ET

import pytest

from tests.soak.__main__ import LEAST, least_of
from tests.soak.flatness import judge
from tests.soak.plot import svg

#: Two hours, a sample every 15 seconds.
TIMES = [15.0 * n for n in range(480)]


def noise(seed: int = 1, *, level: float = 100.0, wide: float = 10.0) -> list[float]:
    chance = random.Random(seed)
    return [level + chance.uniform(-wide, wide) for _ in TIMES]


def test_noise_around_a_level_is_flat() -> None:
    for seed in range(20):
        verdict = judge("noise", list(zip(TIMES, noise(seed), strict=True)), least=0)
        assert verdict.is_flat, verdict
        assert 98 < verdict.median < 102


def test_a_slow_leak_under_noise_is_not_flat() -> None:
    # given a leak of a tenth in two hours, less than the noise
    values = [value + 10 * n / len(TIMES) for n, value in enumerate(noise())]
    # when, then
    verdict = judge("leak", list(zip(TIMES, values, strict=True)), least=0)
    assert not verdict.is_flat
    assert 6 < verdict.growth < 12


def test_a_rise_at_the_beginning_and_bursts_later_are_flat() -> None:
    # given a rise in the first fifth, and a tenth of the samples far above the rest
    values = [
        min(1.0, n / (len(TIMES) / 5)) * value + (500 if n % 10 == 0 else 0)
        for n, value in enumerate(noise())
    ]
    # when, then
    assert judge("bursts", list(zip(TIMES, values, strict=True)), least=0).is_flat


def test_what_shrinks_is_flat_and_little_growth_of_little_is_too() -> None:
    shrinking = [(time, 100 - n / 10) for n, time in enumerate(TIMES)]
    assert judge("shrinking", shrinking, least=0).is_flat
    little = [(time, n / 100) for n, time in enumerate(TIMES)]
    assert not judge("little", little, least=0).is_flat
    assert judge("little", little, least=30).is_flat


def test_too_few_samples_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="keys: 1 samples"):
        judge("keys", [(0.0, 1.0)], least=0)


def test_each_series_has_what_it_may_always_grow_by() -> None:
    assert least_of("memory of a solo worker, MB") == LEAST["memory of a"]
    assert least_of("memory of Redis, MB") == LEAST["memory of Redis"]
    assert least_of("keys of Redis that stay") == LEAST["keys of"]


def test_the_picture_has_a_line_for_each_series() -> None:
    picture = svg("2 < 3", {"keys": [(0, 1), (60, 3)], "memory": [(0, 0), (60, 0)]})
    root = ET.fromstring(picture)
    lines = [one for one in root if one.tag.endswith("polyline")]
    assert [line.get("points") for line in lines] == [
        "90.0,152.0 850.0,72.0",
        "90.0,336.0 850.0,336.0",
    ]
    assert "2 < 3" in [one.text for one in root]
