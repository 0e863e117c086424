"""The panels of the notebooks without a kernel: clicks, sliders, and the volume viewer in a frame."""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path

import ipywidgets
import numpy as np
from PIL import Image

from pipeline.quality import score_scan
from pipeline.report import thinned
from tests.browser import browser, chromium
from tests.notebooks.frame import assert_it_draws
from tests.pipeline.drawn_scan import drawn_scan


def test_a_click_moves_the_cross_to_the_voxel_under_it() -> None:
    from notebooks.viewer import PlaneViewer

    scan = drawn_scan()
    moved = []
    viewer = PlaneViewer(scan, (9, 20, 24), label=scan.labels[0].array, moved=lambda: moved.append(1))
    before = viewer.pictures[1].png
    viewer.pictures[0].clicks.place = [0.0, 0.999]  # axial: upper right corner = front, left of the patient
    assert viewer.point == (9, 39, 0)
    assert [slider.value for slider in viewer.sliders] == [9, 39, 0]
    assert viewer.pictures[1].png != before
    viewer.sliders[0].value = 3
    assert viewer.point == (3, 39, 0)
    assert len(moved) == 2


def test_walking_and_filtering_follow_the_cross_and_the_bounds() -> None:
    from notebooks.viewer import filtered, walk

    scan = drawn_scan()
    assert isinstance(walk(scan, (9, 20, 30))._still(), np.ndarray)
    panel = filtered(scan, (9, 20, 30))
    size, score, _ = panel.children[0].children
    count = panel.children[1]
    before = count.value
    size.value = (size.min, size.max)
    assert count.value != before
    score.value = score.max
    assert count.value.startswith("1 of")


def test_the_volume_viewer_draws_without_a_kernel(tmp_path: Path) -> None:
    from notebooks.viewer import explore

    scan = drawn_scan()
    shown = explore(scan, score_scan(scan), (9, 20, 24), label=scan.labels[0].array)._repr_mimebundle_()
    assert np.asarray(Image.open(BytesIO(base64.b64decode(shown["image/png"]))).convert("L")).std() > 10
    exported = tmp_path / "exported.html"
    exported.write_text(f"<!DOCTYPE html><body>{shown['text/html']}</body>", encoding="utf-8")
    with browser(chromium()) as tab:
        tab.size(1100, 700)
        tab.open(exported.as_uri())
        assert_it_draws(tab)
        assert tab.messages == []


def test_pictures_do_not_wait_for_a_script() -> None:
    from notebooks.viewer import PlaneViewer

    viewer = PlaneViewer(drawn_scan(), (9, 20, 24))
    image = viewer.pictures[0].children[0]
    assert type(image) is ipywidgets.Image  # anywidget drops changes where its script takes over 2 s
    before = image.value
    viewer.sliders[0].value = 3
    assert image.value != before


def test_a_large_scan_is_thinned_for_the_frame() -> None:
    scan = drawn_scan()
    part = thinned(scan, scan.image.size // 2)
    assert part.factors_zyx == (2, 2, 2)
    np.testing.assert_array_equal(part.image, scan.image[::2, ::2, ::2])
    np.testing.assert_array_equal(part.labels[0].array, scan.labels[0].array[::2, ::2, ::2])
    assert part.spacing_zyx_mm == tuple(2 * mm for mm in scan.spacing_zyx_mm)
    assert thinned(scan, scan.image.size).factors_zyx == (1, 1, 1)
