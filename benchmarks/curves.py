"""Curves as a PNG: a panel a quantity, a colour an arm, a thin line a seed, a thick one their mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Curve = Sequence[tuple[float, float]]
"""Points (x, y), x rising."""

_COLOURS = (
    *((31, 98, 201), (214, 80, 32), (60, 145, 60), (140, 80, 170), (120, 120, 120)),
    *((0, 160, 170), (200, 150, 0), (190, 40, 110), (110, 75, 45), (0, 0, 0), (150, 180, 90)),
)
_SIZE = (470, 360)
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 30, 44
_SCALE = 2


def draw_curves(
    path: Path,
    panels: Mapping[str, Mapping[str, Sequence[Curve]]],
    *,
    x_label: str,
    y_top: float | None = None,
    names_below: bool = False,
) -> None:
    """Write the panels side by side.

    Args:
        path: The PNG.
        panels: For each panel's title, for each arm's name, a curve a seed.
        x_label: What x is.
        y_top: Largest y shown; None takes what the curves need.
        names_below: Whether the names of the arms stand at the foot of a panel, for curves that lie high.
    """
    points = [
        point for arms in panels.values() for curves in arms.values() for curve in curves for point in curve
    ]
    if not points:
        return
    right = max(x for x, _ in points)
    top = y_top or max(0.1, np.ceil(10 * max(y for _, y in points) + 0.2) / 10)
    page = Image.new("RGB", (_SCALE * _SIZE[0] * len(panels), _SCALE * _SIZE[1]), "white")
    for column, (title, arms) in enumerate(panels.items()):
        panel = _panel(title, arms, right, float(top), x_label, names_below=names_below)
        page.paste(panel, (_SCALE * _SIZE[0] * column, 0))
    path.parent.mkdir(parents=True, exist_ok=True)
    page.save(path)


def mean_curve(curves: Sequence[Curve]) -> list[tuple[float, float]]:
    """Return the mean over seeds where all of them have a point."""
    tables = [dict(curve) for curve in curves]
    shared = sorted(set.intersection(*(set(table) for table in tables))) if tables else []
    return [(x, float(np.mean([table[x] for table in tables]))) for x in shared]


def _panel(
    title: str,
    arms: Mapping[str, Sequence[Curve]],
    right: float,
    top: float,
    x_label: str,
    *,
    names_below: bool,
) -> Image.Image:
    width, height = (_SCALE * side for side in _SIZE)
    panel = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(panel)
    font = ImageFont.load_default(12 * _SCALE)
    left, bottom = _LEFT * _SCALE, height - _BOTTOM * _SCALE
    wide, high = width - left - _RIGHT * _SCALE, bottom - _TOP * _SCALE

    def place(point: tuple[float, float]) -> tuple[float, float]:
        return left + wide * point[0] / right, bottom - high * min(point[1], top) / top

    for tick in np.linspace(0, top, 6):
        y = place((0, tick))[1]
        draw.line([(left, y), (left + wide, y)], fill=(225, 225, 225), width=_SCALE)
        draw.text((left - 6 * _SCALE, y), f"{tick:.2f}", fill="black", font=font, anchor="rm")
    for tick in np.linspace(0, right, 5):
        draw.text(
            (place((tick, 0))[0], bottom + 6 * _SCALE), f"{tick:,.0f}", fill="black", font=font, anchor="ma"
        )
    draw.text((left + wide / 2, height - 20 * _SCALE), x_label, fill="black", font=font, anchor="ma")
    draw.text((left, 6 * _SCALE), title, fill="black", font=font)
    for number, (name, curves) in enumerate(arms.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        for curve in curves:
            draw.line([place(point) for point in curve], fill=colour, width=_SCALE)
        draw.line(
            [place(point) for point in mean_curve(curves)], fill=colour, width=3 * _SCALE, joint="curve"
        )
        first = _SIZE[1] - _BOTTOM - 16 * len(arms) if names_below else _TOP + 4
        draw.text((left + 8 * _SCALE, (first + 16 * number) * _SCALE), name, fill=colour, font=font)
    return panel
