"""Charts as inline SVG; colours, and what is dark or light, are the page's CSS classes. Sizes are SVG units."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

WIDTH, HEIGHT = 480, 220
LEFT, RIGHT, TOP, BOTTOM = 12, 12, 10, 26
_MOST_BARS = 96
_FEWEST_BUCKETS = 16
_MOST_TICKS = 7


def number(value: float | None, unit: str = "") -> str:
    """Returns a number with three significant digits, and at least three decimals below one; `"-"` for none."""
    if value is None or not math.isfinite(value):
        return "-"
    size = abs(value)
    text = f"{value:.3f}" if size < 10 else f"{value:.2f}" if size < 100 else f"{value:,.1f}"
    return f"{text} {unit}".rstrip()


def ticks(low: float, high: float, *, logarithmic: bool) -> list[float]:
    """Returns round numbers from `low` to `high`, at most seven."""
    if not high > low:
        return [low]
    if logarithmic and low > 0 and high / low > 6:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        for factors in ((1, 2, 5), (1, 3), (1,)):
            found = [f * 10.0**k for k in range(first, last + 1) for f in factors if low <= f * 10.0**k <= high]
            if len(found) <= _MOST_TICKS:
                return found
        return found[:: -(-len(found) // _MOST_TICKS)]
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(f * power for f in (1, 2, 5, 10) if f * power >= rough * 0.999)
    return [k * step for k in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)]


def histogram(data: Mapping[str, Any], marks: Mapping[str, float]) -> str:
    """Returns the distribution of a latency over a logarithmic axis.

    Args:
        data: `edgemm.profiling.report.Histogram`.
        marks: Percentile name -> ms; a line each.
    """
    edges, counts = _merged(data["edges_ms"], data["counts"])
    missing = max(0, _FEWEST_BUCKETS - len(counts))
    width = math.log(edges[-1] / edges[0]) / len(counts)
    low, high = math.log(edges[0]) - missing / 2 * width, math.log(edges[-1]) + missing / 2 * width
    bottom, top = HEIGHT - BOTTOM, max(counts)

    def x(value: float) -> float:
        return LEFT + (math.log(value) - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    parts = []
    for count, left, right in zip(counts, edges, edges[1:], strict=False):
        if count:
            tall = max(1.5, count / top * (bottom - TOP))
            wide = max(x(right) - x(left) - 0.8, 0.6)
            told = f"{number(left)} to {number(right)} ms: {count:,} runs"
            parts.append(
                f'<rect class="bar" x="{x(left):.2f}" y="{bottom - tall:.2f}" width="{wide:.2f}" '
                f'height="{tall:.2f}"><title>{told}</title></rect>'
            )
    for name, value in marks.items():
        at = min(max(x(value), LEFT), WIDTH - RIGHT)
        parts.append(
            f'<line class="mark {css_class(name)}" x1="{at:.2f}" x2="{at:.2f}" y1="{TOP}" y2="{bottom}">'
            f"<title>{escape(name)} {number(value)} ms</title></line>"
        )
    axis = _axis([(t, x(t)) for t in ticks(math.exp(low), math.exp(high), logarithmic=True)], bottom)
    return _svg("distribution of the latency in ms", parts + axis)


def scatter(points: Sequence[Mapping[str, Any]], budget: float | None, unit: str) -> str:
    """Returns plans by what they cost and what they lose.

    Args:
        points: `{x, y, kind, title}` each; kind is `"ships"`, `"fits"` or `"over"`.
        budget: Largest loss that may ship, as a line.
        unit: Of x.
    """
    left = LEFT + 40
    xs, ys = [p["x"] for p in points], [p["y"] for p in points] + [0.0] + ([budget] if budget is not None else [])
    low_x, high_x = _padded(min(xs), max(xs))
    low_y, high_y = _padded(min(ys), max(ys))
    bottom = HEIGHT - BOTTOM

    def x(value: float) -> float:
        return left + (value - low_x) / (high_x - low_x) * (WIDTH - left - RIGHT)

    def y(value: float) -> float:
        return bottom - (value - low_y) / (high_y - low_y) * (bottom - TOP)

    parts = []
    for value in ticks(low_y, high_y, logarithmic=False):
        parts.append(
            f'<line class="grid" x1="{left}" x2="{WIDTH - RIGHT}" y1="{y(value):.2f}" y2="{y(value):.2f}"/>'
        )
        parts.append(
            f'<text class="tick" x="{left - 5}" y="{y(value) + 4:.2f}" text-anchor="end">{value:.3g}</text>'
        )
    if budget is not None:
        parts.append(
            f'<line class="budget" x1="{left}" x2="{WIDTH - RIGHT}" y1="{y(budget):.2f}" y2="{y(budget):.2f}">'
            f"<title>budget {budget:g}</title></line>"
        )
    for point in sorted(points, key=lambda p: ("over", "fits", "ships").index(p["kind"])):
        size = 6 if point["kind"] == "ships" else 4
        parts.append(
            f'<circle class="{point["kind"]}" cx="{x(point["x"]):.2f}" cy="{y(point["y"]):.2f}" r="{size}">'
            f"<title>{escape(point['title'])}</title></circle>"
        )
    axis = _axis([(t, x(t)) for t in ticks(low_x, high_x, logarithmic=False)], bottom, left)
    return _svg(f"loss of accuracy against {unit}", parts + axis)


def _padded(low: float, high: float) -> tuple[float, float]:
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return low - room, high + room


def _merged(edges: Sequence[float], counts: Sequence[int]) -> tuple[list[float], list[int]]:
    """Returns at most 96 buckets: neighbours added up."""
    step = -(-len(counts) // _MOST_BARS)
    added = [sum(counts[at : at + step]) for at in range(0, len(counts), step)]
    return [*edges[: len(counts) : step], edges[-1]], added


def _axis(places: Sequence[tuple[float, float]], bottom: float, left: float = LEFT) -> list[str]:
    parts = [f'<line class="axis" x1="{left}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>']
    for value, at in places:
        anchor = "start" if at < left + 14 else "end" if at > WIDTH - RIGHT - 14 else "middle"
        parts.append(f'<line class="axis" x1="{at:.2f}" x2="{at:.2f}" y1="{bottom}" y2="{bottom + 4}"/>')
        parts.append(
            f'<text class="tick" x="{at:.2f}" y="{bottom + 19}" text-anchor="{anchor}">{value:.4g}</text>'
        )
    return parts


def _svg(label: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">' + "".join(parts) + "</svg>"
    )


def css_class(name: str) -> str:
    """Returns a percentile's name as a CSS class."""
    return "".join(c if c.isalnum() else "_" for c in name)
