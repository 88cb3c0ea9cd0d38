"""Draw series of samples, one above the other, as an SVG file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT, LEFT, TOP = 760, 120, 90, 24


def svg(title: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Return a picture of series, each in a strip of its own with its least and most.

    Args:
        title: above all of them.
        series: by name: seconds and value, oldest first.
    """
    full = TOP * 2 + len(series) * (HEIGHT + TOP) + TOP
    size = f'width="{LEFT + WIDTH + 20}" height="{full}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{LEFT}" y="{TOP}" font-size="14">{escape(title)}</text>',
    ]
    for number, (name, samples) in enumerate(series.items()):
        parts += _strip(name, samples, TOP * 3 + number * (HEIGHT + TOP))
    return "\n".join([*parts, "</svg>", ""])


def _strip(name: str, samples: Sequence[tuple[float, float]], top: int) -> list[str]:
    times = [time for time, _ in samples]
    values = [value for _, value in samples]
    most = max(values)
    wide = (max(times) - times[0]) or 1.0
    points = " ".join(
        f"{LEFT + (time - times[0]) / wide * WIDTH:.1f},"
        f"{top + HEIGHT - value / (most or 1) * HEIGHT:.1f}"
        for time, value in samples
    )
    return [
        f'<text x="{LEFT}" y="{top - 6}">{escape(name)}</text>',
        f'<rect x="{LEFT}" y="{top}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#bbb"/>',
        f'<text x="{LEFT - 6}" y="{top + 10}" text-anchor="end">{most:,.4g}</text>',
        f'<text x="{LEFT - 6}" y="{top + HEIGHT}" text-anchor="end">0</text>',
        f'<polyline points="{points}" fill="none" stroke="#06c"/>',
        f'<text x="{LEFT + WIDTH}" y="{top - 6}" text-anchor="end">{wide / 60:,.1f} minutes</text>',
    ]
