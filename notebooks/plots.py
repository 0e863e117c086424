"""Curves and points as SVG pictures: they show in every notebook, light or dark, without widgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from IPython.display import SVG
from numpy.typing import NDArray
from PIL import Image

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c8c8c")
"""Colours that colour-blind people tell apart (Okabe and Ito)."""
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 560, 300, 60, 44, 34


def curves(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    x: str,
    y: str,
    logarithmic: bool = False,
) -> SVG:
    """Lines through points, one for each name; the name stands in the legend.

    Args:
        series: By name, positions and values.
        x: What the horizontal axis is.
        y: What the vertical axis is.
        logarithmic: Whether the horizontal axis is.
    """
    xs = np.concatenate([np.asarray(a, dtype=float) for a, _ in series.values()])
    ys = np.concatenate([np.asarray(b, dtype=float) for _, b in series.values()])
    frame = _Frame(xs, ys, logarithmic=logarithmic)
    body = []
    for number, (a, b) in enumerate(series.values()):
        points = " ".join(f"{frame.x(p):.1f},{frame.y(q):.1f}" for p, q in zip(a, b, strict=True))
        body.append(f'<polyline fill="none" stroke="{COLORS[number]}" stroke-width="2" points="{points}"/>')
    return _picture(frame.axes(x, y) + "".join(body) + _legend(list(series)))


def points(places: NDArray[np.floating], groups: Sequence[str], *, x: str = "", y: str = "") -> SVG:
    """Points of the plane, coloured by group.

    Args:
        places: (N, 2).
        groups: Name of each point's group.
        x: What the horizontal axis is; empty draws no numbers.
        y: What the vertical axis is.
    """
    names = sorted(set(groups))
    frame = _Frame(places[:, 0], places[:, 1])
    body = [
        f'<circle cx="{frame.x(p):.1f}" cy="{frame.y(q):.1f}" r="3" fill="{COLORS[names.index(group)]}" '
        f'fill-opacity="0.65"><title>{escape(group)}</title></circle>'
        for (p, q), group in zip(places, groups, strict=True)
    ]
    return _picture((frame.axes(x, y) if x else "") + "".join(body) + _legend(names))


class _Frame:
    """The place of values in a picture."""

    def __init__(
        self, xs: NDArray[np.floating], ys: NDArray[np.floating], *, logarithmic: bool = False
    ) -> None:
        self.logarithmic = logarithmic
        self.x0, self.x1 = (self._of(float(value)) for value in (xs.min(), xs.max()))
        self.x1 = max(self.x1, self.x0 + 1e-9)
        self.y0, self.y1 = float(ys.min()), max(float(ys.max()), float(ys.min()) + 1e-9)

    def _of(self, value: float) -> float:
        return float(np.log10(value)) if self.logarithmic else value

    def x(self, value: float) -> float:
        return _LEFT + (self._of(value) - self.x0) / (self.x1 - self.x0) * (_WIDTH - _LEFT - 20)

    def y(self, value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - self.y0) / (self.y1 - self.y0) * (_HEIGHT - _BOTTOM - _TOP)

    def axes(self, x: str, y: str) -> str:
        parts = []
        for value in _round_steps(self.y0, self.y1):
            at = self.y(value)
            parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - 20}" y1="{at:.1f}" y2="{at:.1f}" stroke="#ddd"/>')
            parts.append(f'<text x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{value:g}</text>')
        steps = _round_steps(self.x0, self.x1)
        for value in [10**step for step in range(-3, 7)] if self.logarithmic else steps:
            if self.x0 <= self._of(value) <= self.x1:
                at = self.x(value)
                parts.append(f'<text x="{at:.1f}" y="{_HEIGHT - 26}" text-anchor="middle">{value:g}</text>')
        middle = (_TOP + _HEIGHT - _BOTTOM) / 2
        parts.append(
            f'<text x="{(_LEFT + _WIDTH) / 2}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x)}</text>'
        )
        parts.append(
            f'<text transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">{escape(y)}</text>'
        )
        return "".join(parts)


def _round_steps(low: float, high: float) -> list[float]:
    raw = (high - low) / 5
    power = 10.0 ** np.floor(np.log10(raw))
    step = float(min((m * power for m in (1, 2, 2.5, 5, 10)), key=lambda size: abs(size - raw)))
    return [round(k * step, 10) for k in range(int(np.ceil(low / step)), int(np.floor(high / step)) + 1)]


def _legend(names: Sequence[str]) -> str:
    parts, left = [], float(_LEFT)
    for number, name in enumerate(names):
        parts.append(f'<rect x="{left}" y="10" width="12" height="12" fill="{COLORS[number]}"/>')
        parts.append(f'<text x="{left + 17}" y="20">{escape(name)}</text>')
        left += 32 + 7 * len(name)
    return "".join(parts)


def _picture(body: str) -> SVG:
    return SVG(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" font-family="sans-serif" font-size="12" fill="#222">'
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>{body}</svg>'
    )


def gray_slice(
    plane: NDArray[np.integer], low: float, high: float, spacing_mm: tuple[float, float], *, pixels: int = 300
) -> NDArray[np.uint8]:
    """A slice as a picture whose voxels can be seen, (height, width, 3) uint8, seen as radiologists do.

    Args:
        plane: (rows, columns) of a volume (z, y, x) in RAS.
        low: Value that is black.
        high: Value that is white.
        spacing_mm: Of rows and columns.
        pixels: Height.
    """
    levels = np.clip((plane[::-1, ::-1].astype(float) - low) / (high - low), 0, 1)
    rows, columns = (number * mm for number, mm in zip(plane.shape, spacing_mm, strict=True))
    size = (round(pixels * columns / rows), pixels)
    picture = Image.fromarray((255 * levels).astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
    return np.repeat(np.asarray(picture)[:, :, None], 3, axis=2)
