"""RTSTRUCT contours become masks of the series that they were drawn on, whatever its direction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest

from pipeline.discovery import discover
from pipeline.errors import ScanError
from pipeline.ingest import IngestConfig, RawScan, read_source
from pipeline.ingest.standard_scan import standardize
from tests.dicom_files import instance, write_rtstruct
from tests.phantom import Phantom, phantom, write_dicom

CONFIG = IngestConfig()
C, S = np.cos(0.3), np.sin(0.3)
OBLIQUE = np.array([[1, 0, 0], [0, C, -S], [0, S, C]]) @ np.array([[C, -S, 0], [S, C, 0], [0, 0, 1]])
SAGITTAL = np.array([[0, 0, -1.0], [1, 0, 0], [0, -1, 0]])
SHAPE = (12, 30, 36)


def small(direction: np.ndarray | None = None) -> Phantom:
    axes = np.eye(3) if direction is None else direction
    return phantom(shape_zyx=SHAPE, spacing_zyx_mm=(6.0, 2.4, 2.6), direction=axes)


def ring(scan: Phantom, k: float, x: float, y: float, radius: float, count: int = 300) -> np.ndarray:
    """World points of a circle in the plane of slice k; centre and radius in voxels."""
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    index = np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle), np.full(count, k)], axis=1)
    return scan.grid.to_world(index)


def disc(x: float, y: float, radius: float) -> np.ndarray:
    j, i = np.indices(SHAPE[1:])
    assert np.abs(np.hypot(i - x, j - y) - radius).min() > 0.005
    return np.hypot(i - x, j - y) < radius


def read(root: Path) -> RawScan:
    (source,) = discover(root, CONFIG.series_rules).sources
    return read_source(source, CONFIG)


def told(raw: RawScan) -> tuple[str, ...]:
    """Notes on the labels, without their beginning."""
    start = "label rtstruct: "
    assert all(note.startswith(start) for note in raw.labels[0].notes)
    return tuple(note.removeprefix(start) for note in raw.labels[0].notes)


@pytest.mark.parametrize("direction", [np.eye(3), OBLIQUE, SAGITTAL])
def test_a_disc_with_a_hole_is_exact_on_a_series_of_any_direction(
    tmp_path: Path, direction: np.ndarray
) -> None:
    scan = small(direction)
    write_dicom(tmp_path / "ct", scan)
    contours = [ring(scan, k, 17.3, 14.2, 9.31) for k in (4, 5, 6)] + [ring(scan, 5, 16.1, 14.7, 4.23)]
    write_rtstruct(tmp_path / "rs" / "a.dcm", {"GTV": contours})
    raw = read(tmp_path)
    (label,) = raw.labels
    expected = np.zeros(SHAPE, bool)
    expected[4:7] = disc(17.3, 14.2, 9.31)
    expected[5] &= ~disc(16.1, 14.7, 4.23)
    np.testing.assert_array_equal(label.array, expected)
    assert (label.name, label.value_names, label.array.dtype) == ("rtstruct", {1: "GTV"}, np.uint8)
    assert told(raw) == ()
    stored = standardize(raw, CONFIG).labels[0]
    assert stored.value_names == {1: "GTV"}
    assert stored.array.any()


def test_overlapping_structures_lie_in_further_maps_and_nothing_is_lost(tmp_path: Path) -> None:
    scan = small()
    write_dicom(tmp_path / "ct", scan)
    rings = {"body": (17.3, 14.2, 11.31), "liver": (14.1, 12.7, 4.23), "arm": (31.4, 26.2, 2.21)}
    write_rtstruct(tmp_path / "a.dcm", {name: [ring(scan, 5, *where)] for name, where in rings.items()})
    raw = read(tmp_path)
    first, second = raw.labels
    assert (first.name, first.value_names) == ("rtstruct", {1: "body", 3: "arm"})
    assert (second.name, second.value_names) == ("rtstruct_2", {2: "liver"})
    for value, where in enumerate(rings.values(), start=1):
        home = second if value == 2 else first
        np.testing.assert_array_equal(home.array[5] == value, disc(*where))
    assert told(raw) == ("structures overlap: they lie in 2 label maps",)


def test_a_plane_between_slices_fills_the_nearest_and_midway_always_the_lower(tmp_path: Path) -> None:
    scan = small()
    write_dicom(tmp_path / "ct", scan)
    planes = {"near": [3.3, 4.3], "midway": [3.5, 4.5, 5.5], "above": [11.45]}
    write_rtstruct(
        tmp_path / "a.dcm", {n: [ring(scan, k, 17.3, 14.2, 9.31) for k in ks] for n, ks in planes.items()}
    )
    raw = read(tmp_path)
    filled = {
        raw_label.value_names[value]: np.flatnonzero((raw_label.array == value).any(axis=(1, 2))).tolist()
        for raw_label in raw.labels
        for value in raw_label.value_names
    }
    assert filled == {"near": [3, 4], "midway": [3, 4, 5], "above": [11]}


def test_of_several_planes_at_one_slice_the_nearest_counts_and_the_rest_is_noted(tmp_path: Path) -> None:
    scan = small()
    write_dicom(tmp_path / "ct", scan)
    contours = [ring(scan, k, 17.3, 14.2, r) for k, r in ((4.4, 3.31), (4.1, 9.31), (3.8, 5.31), (6.0, 9.31))]
    write_rtstruct(tmp_path / "a.dcm", {"GTV": contours})
    raw = read(tmp_path)
    np.testing.assert_array_equal(raw.labels[0].array[4], disc(17.3, 14.2, 9.31))
    assert any(note.startswith("2 contour planes of GTV lie between slices") for note in told(raw))
    assert "GTV has no contour on 1 slices between its first and its last" in told(raw)


@pytest.mark.parametrize("k", [-0.7, 12.3])
def test_a_plane_farther_than_half_a_slice_is_refused(tmp_path: Path, k: float) -> None:
    scan = small()
    write_dicom(tmp_path / "ct", scan)
    write_rtstruct(tmp_path / "a.dcm", {"GTV": [ring(scan, k, 17.3, 14.2, 9.31)]})
    with pytest.raises(ScanError, match=r"within half a slice of a slice, one of GTV lies .* mm") as caught:
        read(tmp_path)
    assert type(caught.value).__name__ == "LabelMismatch"
    assert str(caught.value).startswith("a.dcm: ")


def test_a_contour_across_the_slices_is_refused(tmp_path: Path) -> None:
    scan = small()
    write_dicom(tmp_path / "ct", scan)
    tilted = ring(scan, 5, 17.3, 14.2, 9.31) + np.linspace(0, 9, 300)[:, None] * [0, 0, 1]
    write_rtstruct(tmp_path / "a.dcm", {"GTV": [tilted]})
    with pytest.raises(ScanError, match=r"one of GTV crosses 1\.5 slices"):
        read(tmp_path)


def test_points_and_open_contours_are_noted_and_enclose_nothing(tmp_path: Path) -> None:
    scan = small()
    write_dicom(tmp_path / "ct", scan)
    write_rtstruct(tmp_path / "a.dcm", {"marker": [ring(scan, 5, 17.3, 14.2, 9.31)]}, kind="POINT")
    raw = read(tmp_path)
    assert not raw.labels[0].array.any()
    assert raw.labels[0].value_names == {1: "marker"}
    assert told(raw) == ("1 contours of marker are points or open: they enclose nothing",)


def test_a_structure_without_contours_keeps_its_name(tmp_path: Path) -> None:
    scan = small()
    write_dicom(tmp_path / "ct", scan)
    write_rtstruct(tmp_path / "a.dcm", {"empty": [], "GTV": [ring(scan, 5, 17.3, 14.2, 9.31)]})
    raw = read(tmp_path)
    assert raw.labels[0].value_names == {1: "empty", 2: "GTV"}
    assert told(raw) == ("empty has no contour",)


def test_contours_with_broken_numbers_are_corrupt(tmp_path: Path) -> None:
    scan = small()
    write_dicom(tmp_path / "ct", scan)
    path = write_rtstruct(tmp_path / "a.dcm", {"GTV": [ring(scan, 5, 17.3, 14.2, 9.31)]})
    data = pydicom.dcmread(path)
    data.ROIContourSequence[0].ContourSequence[0].ContourData = ["1", "2", "3", "4"]
    data.save_as(path)
    with pytest.raises(ScanError, match="structure set is damaged"):
        read(tmp_path)
    path.unlink()
    (source,) = discover(tmp_path, CONFIG.series_rules).sources
    assert source.labels == ()


def test_a_structure_set_that_vanished_is_a_clear_error(tmp_path: Path) -> None:
    scan = small()
    write_dicom(tmp_path / "ct", scan)
    path = write_rtstruct(tmp_path / "a.dcm", {"GTV": [ring(scan, 5, 17.3, 14.2, 9.31)]})
    (source,) = discover(tmp_path, CONFIG.series_rules).sources
    path.unlink()
    with pytest.raises(ScanError, match="label file does not exist"):
        read_source(source, CONFIG)


def test_contours_go_to_the_series_whose_images_they_name(tmp_path: Path) -> None:
    scan = small()
    write_dicom(tmp_path / "ct", scan)
    write_dicom(tmp_path / "mr", scan.replace(modality="mr"), series_uid="1.2.77")
    rings = {n: [ring(scan, 5, 17.3, 14.2, 9.31)] for n in ("on ct", "on mr", "on both")}
    drawn_on = {
        "on ct": [instance(5)],
        "on mr": [instance(5, "1.2.77")],
        "on both": [instance(5), instance(5, "1.2.77")],
    }
    write_rtstruct(tmp_path / "a.dcm", rings, drawn_on=drawn_on, series="")
    found = {s.scan_id: s.labels[0].structures for s in discover(tmp_path, CONFIG.series_rules).sources}
    assert found == {"ct": ((1, "on ct"), (3, "on both")), "mr": ((2, "on mr"), (3, "on both"))}
