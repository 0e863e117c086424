"""Charts have their marks where the numbers are."""

from __future__ import annotations

import re

import pytest

from pipeline.report.charts import bars, line_chart


def points(chart: str, style: int = 0) -> list[tuple[float, float]]:
    found = re.search(rf'<polyline class="l{style}" points="([^"]*)"', chart)
    assert found
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in found[1].split())]


def test_a_line_runs_from_left_to_right_and_up_is_more() -> None:
    chart = line_chart({"a<b": ([0, 100, 200], [1.0, 2.0, 3.0])}, label="Loss", unit="step")
    (x0, y0), (x1, y1), (x2, y2) = points(chart)
    assert x1 - x0 == pytest.approx(x2 - x1)
    assert y0 - y1 == pytest.approx(y1 - y2)
    assert y0 > y1
    assert "a&lt;b: 1 to 3" in chart
    assert ">150<" in chart  # round numbers on the axis
    assert chart.count('<line class="l0"') == 0  # one line needs no legend


def test_several_lines_share_the_axes_and_have_a_legend() -> None:
    chart = line_chart({"a": ([1, 2], [0.0, 1.0]), "b": ([1, 2], [1.0, 0.0])}, label="x")
    assert points(chart, 0)[0][1] == points(chart, 1)[1][1]
    assert chart.count('<line class="l') == 2


def test_a_line_without_rise_is_drawn_in_the_middle() -> None:
    flat = points(line_chart({"a": ([1, 2], [5.0, 5.0])}, label="x"))
    rising = points(line_chart({"a": ([1, 2], [0.0, 1.0])}, label="x"))
    assert flat[0][1] == pytest.approx((rising[0][1] + rising[1][1]) / 2, abs=0.2)


def test_names_beside_bars_lie_in_the_picture_and_values_too() -> None:
    names = ["a", "coarse-contrast-2.2mm-balanced-rounded"]
    chart = bars(names, [1.0, 123456.0], label="x")
    (width,) = map(float, re.findall(r'viewBox="0 0 (\d+)', chart))
    edge, other = map(float, re.findall(r'<text x="(\d+)" [^>]*text-anchor="end"', chart))
    assert edge == other
    assert (
        f'textLength="{edge:g}"' in chart
    )  # the long name is as wide as there is room, the short one is not
    assert chart.count("textLength") == 1
    for at, value in re.findall(r'<text x="([\d.]+)" y="\d+">([\d,]+)</text>', chart):
        assert float(at) + 8.4 * len(value) <= width
    assert "textLength" not in bars(["short"], [1.0], label="x")
