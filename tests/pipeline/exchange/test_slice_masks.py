"""COCO run lengths and SAM2's JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import LabelMismatch, NotAnImage
from pipeline.exchange import Target
from pipeline.exchange.slice_masks import decode_run_lengths, read_slice_masks
from pipeline.volumes import Grid, crop_grid

SMALL = np.zeros((5, 4), dtype=bool)
SMALL[1:4, 1:3] = True
SMALL[4, 3] = True
LARGE = np.zeros((40, 50), dtype=bool)
LARGE[3:30, 7:44] = True
LARGE[10:12, 0] = True

GRID = Grid(
    shape_zyx=(3, 5, 4),
    spacing_xyz_mm=(1.0, 1.0, 2.0),
    origin_xyz_mm=(0.0, 0.0, 0.0),
    direction=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0),
)


def target(grid: Grid = GRID, **choices: Any) -> Target:
    return Target(scan_id="ann", stored=grid, original=grid, image=lambda: np.zeros(1, np.float32), **choices)


@pytest.mark.parametrize(
    ("mask", "counts"),
    [(SMALL, "63203N"), (LARGE, ":2_8i0nG" + "0" * 71 + "]7")],
)
def test_strings_that_the_coco_api_has_written_are_decoded(mask: np.ndarray, counts: str) -> None:
    np.testing.assert_array_equal(decode_run_lengths({"size": list(mask.shape), "counts": counts}), mask)


def test_plain_counts_go_column_by_column() -> None:
    found = decode_run_lengths({"size": [2, 3], "counts": [1, 2, 3]})
    assert found.tolist() == [[False, True, False], [True, False, False]]


@pytest.mark.parametrize(
    "value",
    [
        {"size": [2, 3], "counts": [1, 2]},
        {"size": [2, 3], "counts": [8, -2]},
        {"size": [2, 3], "counts": "\x01"},
        {"counts": [6]},
        "text",
    ],
)
def test_counts_that_do_not_fill_their_size_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"counts|size"):
        decode_run_lengths(value)


def test_records_without_an_object_are_masks_of_one_slice(tmp_path: Path) -> None:
    record = {"segmentation": {"size": [5, 4], "counts": "63203N"}, "predicted_iou": 0.5}
    (tmp_path / "slice_2.json").write_text(json.dumps([record, record]))
    first, second = read_slice_masks([tmp_path / "slice_2.json"], target(), shown="x")
    assert first.grid == crop_grid(GRID, (slice(2, 3), slice(0, 5), slice(0, 4)))
    np.testing.assert_array_equal(first.values[0], SMALL)
    assert (first.names, second.names) == ({1: "slice 2 mask 0"}, {1: "slice 2 mask 1"})
    assert first.scores == {1: 0.5}


def test_a_masklet_is_one_mask_through_all_slices(tmp_path: Path) -> None:
    encoded = {"size": [5, 4], "counts": "63203N"}
    (tmp_path / "a.json").write_text(json.dumps({"masklet": [[encoded], [None], [encoded]]}))
    (volume,) = read_slice_masks([tmp_path / "a.json"], target(), shown="x")
    assert volume.grid == GRID
    np.testing.assert_array_equal(volume.values[[0, 2]], np.stack([SMALL, SMALL]))
    assert not volume.values[1].any()


@pytest.mark.parametrize(
    ("data", "error", "text"),
    [
        (
            {"3": [{"segmentation": {"size": [5, 4], "counts": [20]}}]},
            LabelMismatch,
            r"slice 3 is not in 0..2",
        ),
        ({"0": [{"segmentation": {"size": [9, 4], "counts": [36]}}]}, LabelMismatch, "must have the size"),
        ({"masklet": [[{"size": [5, 4], "counts": [20]}]]}, LabelMismatch, "must have the size"),
        ({"0": [{"bbox": [1, 2]}]}, NotAnImage, "list of records"),
        ({"x": [{"segmentation": {"size": [5, 4], "counts": [20]}}]}, LabelMismatch, "need its number"),
        ({}, LabelMismatch, "no mask"),
    ],
)
def test_json_that_does_not_fit_is_refused(
    tmp_path: Path, data: Any, error: type[Exception], text: str
) -> None:
    (tmp_path / "a.json").write_text(json.dumps(data))
    with pytest.raises(error, match=text):
        list(read_slice_masks([tmp_path / "a.json"], target(), shown="x"))


def test_square_slices_need_their_axes(tmp_path: Path) -> None:
    square = crop_grid(GRID, (slice(0, 3), slice(0, 4), slice(0, 4)))
    (tmp_path / "a.json").write_text(
        json.dumps({"0": [{"segmentation": {"size": [4, 4], "counts": [0, 4, 12]}}]})
    )
    with pytest.raises(LabelMismatch, match="2 ways: --grid stored --axes zyx; --grid stored --axes xyz"):
        list(read_slice_masks([tmp_path / "a.json"], target(square), shown="x"))
    (rows,) = read_slice_masks([tmp_path / "a.json"], target(square, axes="zyx"), shown="x")
    (turned,) = read_slice_masks([tmp_path / "a.json"], target(square, axes="xyz"), shown="x")
    np.testing.assert_array_equal(rows.values[0], turned.values[0].T)
    assert rows.values[0, :, 0].all()
