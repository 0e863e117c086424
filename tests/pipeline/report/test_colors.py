"""Contrast of text (WCAG 2.2, 1.4.3) in both themes, and colours for people without one kind of cone."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage.color import deltaE_ciede2000, rgb2lab

import pipeline.report.assets as assets
from pipeline.report.slices import COMPARISON_COLORS, PALETTE
from training.inference.pictures import DRAWN_COLOR, EXPECTED_COLOR

CSS = (Path(assets.__file__).parent / "web" / "page.css").read_text(encoding="utf-8")
THEMES = dict(zip(("light", "dark"), re.findall(r":root \{(.*?)\}", CSS, re.DOTALL), strict=True))

# Machado, Oliveira and Fernandes (2009), severity 1: linear RGB as seen without the cone.
WITHOUT = {
    "protan": [
        [0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998],
    ],
    "deutan": [
        [0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881],
    ],
    "tritan": [
        [1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900],
    ],
}  # fmt: skip


def linear(color: NDArray[np.float64]) -> NDArray[np.float64]:
    c = color / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def luminance(hexadecimal: str) -> float:
    color = np.array([int(hexadecimal[k : k + 2], 16) for k in (1, 3, 5)], dtype=np.float64)
    return float(linear(color) @ [0.2126, 0.7152, 0.0722])


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", THEMES)
def test_every_colour_of_text_has_a_contrast_of_4_5_on_every_ground(theme: str) -> None:
    colors = dict(re.findall(r"--([\w]+): (#[0-9a-f]{6})", THEMES[theme]))
    for ground in ("page", "card"):
        for ink in ("text", "quiet", "link", "good", "fair", "poor"):
            assert contrast(colors[ink], colors[ground]) >= 4.5, (ink, ground)
        for mark in ("s0", "s1", "s2"):
            assert contrast(colors[mark], colors[ground]) >= 3, (mark, ground)


def of_charts(theme: str) -> tuple[tuple[int, int, int], ...]:
    """Colours of the lines of a chart."""
    found = re.findall(r"--s\d: #([0-9a-f]{2})([0-9a-f]{2})([0-9a-f]{2})", THEMES[theme])
    assert len(found) == 3
    return tuple((int(r, 16), int(g, 16), int(b, 16)) for r, g, b in found)


COLORS = {
    "comparison": COMPARISON_COLORS,
    "palette": PALETTE[:7],
    "charts, light": of_charts("light"),
    "charts, dark": of_charts("dark"),
    "samples": (DRAWN_COLOR, EXPECTED_COLOR),
}


def seen(color: tuple[int, int, int], without: str | None) -> NDArray[np.float64]:
    values = linear(np.array(color, dtype=np.float64))
    if without is not None:
        values = np.clip(np.array(WITHOUT[without]) @ values, 0, 1)
    srgb = np.where(values <= 0.0031308, 12.92 * values, 1.055 * values ** (1 / 2.4) - 0.055)
    return np.asarray(rgb2lab(srgb))


@pytest.mark.parametrize("without", [None, *WITHOUT])
@pytest.mark.parametrize("colors", COLORS.values(), ids=COLORS)
def test_colours_that_must_be_told_apart_are(
    colors: tuple[tuple[int, int, int], ...], without: str | None
) -> None:
    for one, other in combinations(colors, 2):
        assert deltaE_ciede2000(seen(one, without), seen(other, without)) > 10, (one, other)
