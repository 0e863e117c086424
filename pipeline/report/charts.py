"""Small charts as inline SVG: histograms, bars, curves. Values in, markup out.

Colours come from the page (CSS classes and `currentColor`), so that charts follow its light and dark themes.
Every mark has its numbers in a `<title>`, which browsers show on hover and screen readers read.

Reads: numbers. Writes: an `<svg>` element as text. Bounds: no scripts, no fonts, no network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

_WIDTH, _HEIGHT = 420, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 22, 12, 44  # margins around the plotting area
_LETTER = 8.4
"""Width of a letter of the page's charts (14 px, wide fonts), at most."""
_MOST_NAME = 214
"""Width of the names beside bars, at most."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of a chart."""

    name: str
    values: tuple[float, ...]
    """One value per position on the x axis."""
    style: int = 0
    """Index of the page's series colour."""
    dashed: bool = False


def histogram(
    values: NDArray[Any], *, label: str, bins: int = 30, logarithmic: bool = False, unit: str = ""
) -> str:
    """Return a histogram with equal bins, or with bins that are equal on a logarithmic axis (values > 0)."""
    data = np.log10(values[values > 0]) if logarithmic else np.asarray(values, dtype=np.float64)
    if not data.size:
        return _empty(label)
    low, high = float(data.min()), float(data.max())
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    counts, edges = np.histogram(data, bins=bins, range=(low, high))
    return _columns(counts, edges, label=label, logarithmic=logarithmic, unit=unit)


def counted_histogram(counts: Sequence[int], edges: Sequence[float], *, label: str, unit: str = "") -> str:
    """Return a histogram of values that were counted before, in bins that are equal on a logarithmic axis.

    Args:
        counts: Number of values in each bin.
        edges: Edges of the bins, above 0, one more than bins.
        label: What is shown.
        unit: Unit of the values.
    """
    heights, exponents = np.asarray(counts), np.log10(np.asarray(edges))
    used = np.flatnonzero(heights)
    if not used.size:
        return _empty(label)
    part = slice(int(used[0]), int(used[-1]) + 1)
    inside = exponents[part.start : part.stop + 1]
    return _columns(heights[part], inside, label=label, logarithmic=True, unit=unit)


def _columns(counts: NDArray[Any], edges: NDArray[Any], *, label: str, logarithmic: bool, unit: str) -> str:
    """Return the columns of a histogram; edges are exponents of 10 if the axis is logarithmic."""
    low, high = float(edges[0]), float(edges[-1])
    step = (_WIDTH - _LEFT - _RIGHT) / len(counts)
    top = max(int(counts.max()), 1)
    body = []
    for k, count in enumerate(counts):
        start, stop = ((10**e if logarithmic else e) for e in edges[k : k + 2])
        title = f"{_number(start)} to {_number(stop)} {unit}: {count:,}"
        body.append(_bar(_LEFT + k * step + 0.5, count / top, step - 1, title))
    ticks = _decades(low, high) if logarithmic else _round_steps(low, high)
    marks = [
        (_LEFT + (t - low) / (high - low) * (len(counts) * step), _number(10**t if logarithmic else t))
        for t in ticks
    ]
    return _chart(label, "".join(body), marks, [(f, f"{round(f * top):,}") for f in (0.0, 0.5, 1.0)], unit)


def bars(names: Sequence[str], values: Sequence[float], *, label: str) -> str:
    """Return horizontal bars, one per name, with their values at the end. Long names are narrowed."""
    row = 24
    height = row * len(names) + 8
    top = max([*values, 1e-12])
    left = min(_LETTER * max((len(name) for name in names), default=0), _MOST_NAME)
    most = _WIDTH - left - 14 - _LETTER * max((len(_number(value)) for value in values), default=0)
    parts = []
    for k, (name, value) in enumerate(zip(names, values, strict=True)):
        y, width = 4 + k * row, most * value / top
        narrowed = (
            f' textLength="{left:.0f}" lengthAdjust="spacingAndGlyphs"' if _LETTER * len(name) > left else ""
        )
        parts.append(
            f'<text x="{left:.0f}" y="{y + 15}" text-anchor="end"{narrowed}>{escape(name)}</text>'
            f'<rect class="s0" x="{left + 8:.0f}" y="{y + 3}" width="{max(width, 1):.1f}" height="{row - 7}" '
            f'rx="2"><title>{escape(name)}: {_number(value)}</title></rect>'
            f'<text x="{left + 13 + width:.1f}" y="{y + 15}">{_number(value)}</text>'
        )
    return _svg(label, height, "".join(parts))


def curves(positions: Sequence[str], series: Sequence[Curve], *, label: str, unit: str = "") -> str:
    """Return lines over equally spaced positions, y from 0 to 1, with a legend below."""
    width = _WIDTH - _LEFT - _RIGHT
    xs = [_LEFT + width * (k + 0.5) / len(positions) for k in range(len(positions))]
    parts = []
    for number, curve in enumerate(series):
        points = " ".join(f"{x:.1f},{_y(v):.1f}" for x, v in zip(xs, curve.values, strict=True))
        dash = ' stroke-dasharray="5 4"' if curve.dashed else ""
        parts.append(f'<polyline class="l{curve.style}" points="{points}"{dash}/>')
        for x, name, v in zip(xs, positions, curve.values, strict=True):
            title = f"<title>{escape(curve.name)}, {escape(name)}: {v:.3f}</title>"
            parts.append(
                f'<circle class="s{curve.style}" cx="{x:.1f}" cy="{_y(v):.1f}" r="3">{title}</circle>'
            )
        x, y = _LEFT + (number % 2) * width / 2, _HEIGHT + 8 + 17 * (number // 2)
        parts.append(f'<line class="l{curve.style}" x1="{x}" x2="{x + 22}" y1="{y}" y2="{y}"{dash}/>')
        parts.append(f'<text x="{x + 28}" y="{y + 4}">{escape(curve.name)}</text>')
    marks = list(zip(xs, positions, strict=True))
    levels = [(f, f"{f:g}") for f in (0.0, 0.25, 0.5, 0.75, 1.0)]
    height = _HEIGHT + 17 * ((len(series) + 1) // 2) + 4
    return _chart(label, "".join(parts), marks, levels, unit, height=height)


def line_chart(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, label: str, unit: str = ""
) -> str:
    """Return lines through points, with round numbers on both axes and a legend if there are several.

    Args:
        series: Positions, rising, and values of each line by its name; at most three lines.
        label: What is shown.
        unit: What the horizontal axis is.
    """
    x = np.concatenate([np.asarray(a, dtype=np.float64) for a, _ in series.values()])
    y = np.concatenate([np.asarray(b, dtype=np.float64) for _, b in series.values()])
    left, right = float(x.min()), max(float(x.max()), float(x.min()) + 1e-9)
    low, high = float(y.min()), float(y.max())
    if high - low < 1e-12:
        low, high = low - 0.5 * abs(low) - 1e-6, high + 0.5 * abs(high) + 1e-6
    width = _WIDTH - _LEFT - _RIGHT
    parts = []
    for style, (name, (positions, values)) in enumerate(series.items()):
        spots = [
            (_LEFT + width * (a - left) / (right - left), _y((b - low) / (high - low)))
            for a, b in zip(positions, values, strict=True)
        ]
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in spots)
        ends = f"{_number(float(values[0]))} to {_number(float(values[-1]))}"
        parts.append(
            f'<polyline class="l{style}" points="{points}"><title>{escape(name)}: {ends}</title></polyline>'
        )
        if len(series) > 1:
            at, row = _LEFT + (style % 2) * width / 2, _HEIGHT + 8 + 17 * (style // 2)
            parts.append(f'<line class="l{style}" x1="{at}" x2="{at + 22}" y1="{row}" y2="{row}"/>')
            parts.append(f'<text x="{at + 28}" y="{row + 4}">{escape(name)}</text>')
    marks = [(_LEFT + width * (t - left) / (right - left), _number(t)) for t in _round_steps(left, right)]
    levels = [((t - low) / (high - low), _number(t)) for t in _round_steps(low, high)]
    height = _HEIGHT + (17 * ((len(series) + 1) // 2) + 4 if len(series) > 1 else 0)
    return _chart(label, "".join(parts), marks, levels, unit, height=height)


def scatter(
    names: Sequence[str], x: Sequence[float], y: Sequence[float], *, label: str, unit: str = ""
) -> str:
    """Return points over a logarithmic x axis (x > 0), y from 0 to 1."""
    if not names:
        return _empty(label)
    exponents = np.log10(np.asarray(x, dtype=np.float64))
    low, high = float(np.floor(exponents.min())), float(np.ceil(exponents.max()))
    high = max(high, low + 1)
    width = _WIDTH - _LEFT - _RIGHT
    parts = []
    for name, value, exponent, fraction in zip(names, x, exponents, y, strict=True):
        title = f"<title>{escape(name)}: {_number(value)} {escape(unit)}, {fraction:.3f}</title>"
        spot = _LEFT + width * (float(exponent) - low) / (high - low)
        parts.append(
            f'<circle class="s0 point" cx="{spot:.1f}" cy="{_y(fraction):.1f}" r="4">{title}</circle>'
        )
    ticks = [(_LEFT + width * (t - low) / (high - low), _number(10**t)) for t in _decades(low, high)]
    levels = [(f, f"{f:g}") for f in (0.0, 0.25, 0.5, 0.75, 1.0)]
    return _chart(label, "".join(parts), ticks, levels, unit)


def _y(fraction: float) -> float:
    return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - fraction)


def _bar(x: float, fraction: float, width: float, title: str) -> str:
    y = _y(fraction)
    height = _HEIGHT - _BOTTOM - y
    return (
        f'<rect class="s0" x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.5):.1f}" height="{height:.1f}">'
        f"<title>{escape(title)}</title></rect>"
    )


def _chart(
    label: str,
    body: str,
    ticks: Sequence[tuple[float, str]],
    levels: Sequence[tuple[float, str]],
    unit: str,
    *,
    height: int = _HEIGHT,
) -> str:
    """Return a chart: axes, grid and labels around its marks."""
    base = _HEIGHT - _BOTTOM
    grid = "".join(
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{_y(f):.1f}" y2="{_y(f):.1f}"/>'
        f'<text x="{_LEFT - 6}" y="{_y(f) + 4:.1f}" text-anchor="end">{escape(text)}</text>'
        for f, text in levels
    )
    below = "".join(
        f'<text x="{x:.1f}" y="{base + 16}" text-anchor="middle">{escape(text)}</text>' for x, text in ticks
    )
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    axis = f'<text x="{middle}" y="{base + 35}" text-anchor="middle">{escape(unit)}</text>'
    return _svg(label, height, grid + body + below + axis)


def _svg(label: str, height: float, body: str) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {height:g}" role="img" aria-label="{escape(label)}">'
        f"<title>{escape(label)}</title>{body}</svg>"
    )


def _empty(label: str) -> str:
    return _svg(label, 40, '<text x="8" y="24">nothing to show</text>')


def _number(value: float) -> str:
    """Return a number in short form: 0.02, 1.5, 1,200."""
    if value and abs(value) < 0.001:
        return f"{value:.0e}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _decades(low: float, high: float) -> list[float]:
    """Return the whole numbers between two exponents; if fewer than two, the ends and the middle."""
    whole = [float(e) for e in range(int(np.ceil(low)), int(np.floor(high)) + 1)]
    return whole if len(whole) >= 2 else [low, (low + high) / 2, high]


def _round_steps(low: float, high: float) -> list[float]:
    """Return about five round numbers between two values."""
    raw = (high - low) / 5
    power = 10.0 ** np.floor(np.log10(raw))
    step = min((m * power for m in (1, 2, 2.5, 5, 10)), key=lambda s: abs(s - raw))
    return [float(k * step) for k in range(int(np.ceil(low / step)), int(np.floor(high / step)) + 1)]
