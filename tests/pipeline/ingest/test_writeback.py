"""A label map standardised and written back lies where it came from, for every way an array can be stored."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from pipeline.ingest.config import IngestConfig
from pipeline.ingest.labels import RawLabel
from pipeline.ingest.reading import RawScan
from pipeline.ingest.standard_scan import StandardScan, standardize
from pipeline.ingest.writeback import probability_to_source_grid, to_source_grid, write_image
from pipeline.volumes.grid import Grid, corner_distance_mm
from pipeline.volumes.reorientation import axis_maps, turn_array, turn_grid, turn_to_ras
from tests.phantom import STRUCTURES, Phantom, phantom

ORDERS = [
    np.array(
        [[sign * (axis == row) for axis, sign in zip(order, signs, strict=True)] for row in range(3)],
        dtype=float,
    )
    for order in permutations(range(3))
    for signs in product((1, -1), repeat=3)
]
"""All 48 ways in which index axes can lie along the patient's axes."""


def standard(scan: Phantom, config: IngestConfig | None = None) -> StandardScan:
    label = RawLabel(name="label", array=scan.labels, grid=scan.grid, value_names=STRUCTURES)
    raw = RawScan(
        scan_id="case",
        location="case",
        image=scan.image,
        grid=scan.grid,
        labels=(label,),
        modality=scan.modality,
        modality_origin="manifest",
    )
    return standardize(raw, config or IngestConfig())


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return 2 * float((first & second).sum()) / float(first.sum() + second.sum())


def worst_dice(found: np.ndarray, wanted: np.ndarray, values: tuple[int, ...] = (1, 2, 3, 4)) -> float:
    return min(dice(found == value, wanted == value) for value in values)


def in_order(direction: np.ndarray, **more) -> Phantom:
    """The phantom on a grid whose axes have these directions, with the shape that shows all of it."""
    size_mm = {0: 92.0, 1: 72.0, 2: 108.0}  # left-right, front-back, feet-head
    spacing_xyz = (1.3, 1.9, 2.6)
    lengths = [size_mm[int(np.abs(direction[:, j]).argmax())] for j in range(3)]
    shape = tuple(int(n / s) for n, s in zip(lengths, spacing_xyz, strict=True))
    return phantom(
        shape_zyx=(shape[2], shape[1], shape[0]),
        spacing_zyx_mm=spacing_xyz[::-1],
        direction=direction,
        **more,
    )


def rotation(degrees: float) -> np.ndarray:
    """A rotation about no particular axis."""
    axis = np.array([0.5, 0.3, 0.8]) / np.linalg.norm([0.5, 0.3, 0.8])
    cross = np.cross(np.eye(3), axis)
    angle = np.radians(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


@pytest.mark.parametrize(
    "direction",
    ORDERS,
    ids=lambda d: "".join("LPSRAI"[int(np.abs(c).argmax()) + 3 * (c.sum() < 0)] for c in d.T),
)
def test_labels_come_back_onto_every_axis_order(direction: np.ndarray) -> None:
    scan = in_order(direction)
    stored = standard(scan)
    back = to_source_grid(stored.labels[0].array, stored.grid, stored.source_grid)
    assert stored.source_grid == scan.grid
    assert back.shape == scan.labels.shape
    assert worst_dice(back, scan.labels) > 0.9


@pytest.mark.parametrize("direction", [ORDERS[0], ORDERS[13], ORDERS[38]])
def test_a_mirrored_or_transposed_result_is_noticed(direction: np.ndarray) -> None:
    scan = in_order(direction)
    stored = standard(scan)
    for axis in range(3):
        mirrored = np.flip(stored.labels[0].array, axis)
        back = to_source_grid(mirrored, stored.grid, stored.source_grid)
        assert worst_dice(back, scan.labels) < 0.5


@pytest.mark.parametrize("direction", ORDERS[::5])
def test_the_stored_axes_run_to_the_head_the_front_and_the_right(direction: np.ndarray) -> None:
    stored = standard(in_order(direction))
    np.testing.assert_allclose(stored.grid.matrix, np.diag([-1, -1, 1]), atol=1e-12)
    organ = np.argwhere(stored.labels[0].array == 1).mean(
        axis=0
    )  # 14 mm to the feet, 5 to the front, 13 to the right
    middle = np.argwhere(stored.image > -500).mean(axis=0)
    z, y, x = (organ - middle) * 1.5
    assert z < -8
    assert y > 2
    assert x > 8


@pytest.mark.parametrize("degrees", [3, 17, 40])
@pytest.mark.parametrize("direction", [ORDERS[0], ORDERS[22], ORDERS[41]])
def test_an_oblique_scan_keeps_its_own_axes_and_comes_back(direction: np.ndarray, degrees: float) -> None:
    scan = in_order(rotation(degrees) @ direction)
    stored = standard(scan)
    back = to_source_grid(stored.labels[0].array, stored.grid, stored.source_grid)
    assert worst_dice(back, scan.labels) > 0.9
    cosines = np.abs(stored.grid.matrix.T @ scan.grid.matrix)
    np.testing.assert_allclose(np.sort(cosines, axis=0), [[0, 0, 0], [0, 0, 0], [1, 1, 1]], atol=1e-9)


def test_stored_voxels_lie_in_the_patient_where_the_source_says() -> None:
    """Independent of our geometry: the image library looks each labelled point up in the source."""
    scan = in_order(rotation(12) @ ORDERS[29])
    stored = standard(scan)
    image = sitk.GetImageFromArray(scan.labels)
    image.SetSpacing(scan.grid.spacing_xyz_mm)
    image.SetOrigin(scan.grid.origin_xyz_mm)
    image.SetDirection(scan.grid.direction)
    points = np.argwhere(stored.labels[0].array == 1)[::7]
    world = stored.grid.to_world(points[:, ::-1].astype(float))
    found = [image[image.TransformPhysicalPointToIndex(point.tolist())] for point in world]
    assert np.mean(np.array(found) == 1) > 0.99


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_what_is_written_has_the_geometry_of_the_source(tmp_path: Path, suffix: str) -> None:
    scan = in_order(rotation(20) @ ORDERS[9])
    stored = standard(scan)
    back = to_source_grid(stored.labels[0].array, stored.grid, stored.source_grid)
    path = tmp_path / f"back{suffix}"
    write_image(path, back, stored.source_grid)
    image = sitk.ReadImage(str(path))
    x, y, z = image.GetSize()
    grid = Grid(
        shape_zyx=(z, y, x),
        spacing_xyz_mm=image.GetSpacing(),
        origin_xyz_mm=image.GetOrigin(),
        direction=image.GetDirection(),
    )
    assert corner_distance_mm(grid, scan.grid) < 1e-4
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), back)


def test_equal_spacing_gives_every_label_voxel_back_exactly() -> None:
    scan = phantom(spacing_zyx_mm=(1.5, 1.5, 1.5), shape_zyx=(70, 44, 54), direction=ORDERS[3])
    stored = standard(scan, IngestConfig(crop=False))
    back = to_source_grid(stored.labels[0].array, stored.grid, stored.source_grid)
    np.testing.assert_array_equal(back, scan.labels)


def test_beyond_the_crop_the_result_is_background() -> None:
    scan = phantom()
    stored = standard(scan, IngestConfig(margin_mm=0))
    assert stored.grid.num_voxels * 1.5**3 < scan.grid.num_voxels * np.prod(scan.grid.spacing_xyz_mm)
    back = to_source_grid(np.ones(stored.grid.shape_zyx, np.uint8), stored.grid, stored.source_grid)
    assert back[0, 0, 0] == 0
    assert back[18, 30, 35] == 1
    volume = back.sum() * np.prod(scan.grid.spacing_xyz_mm)
    assert volume == pytest.approx(stored.grid.num_voxels * 1.5**3, rel=0.05)


def test_a_label_map_off_the_stored_grid_is_refused() -> None:
    stored = standard(phantom())
    with pytest.raises(ValueError, match="stored grid"):
        to_source_grid(np.zeros((3, 3, 3), np.uint8), stored.grid, stored.source_grid)


def test_grids_without_parallel_axes_are_refused() -> None:
    with pytest.raises(ValueError, match="parallel"):
        axis_maps(phantom().grid, phantom(direction=rotation(10)).grid)


@pytest.mark.parametrize("direction", [*ORDERS, *(rotation(31) @ d for d in ORDERS[::6])])
def test_a_turned_array_on_its_turned_grid_is_the_same_picture(direction: np.ndarray) -> None:
    grid = Grid(
        shape_zyx=(3, 4, 5),
        spacing_xyz_mm=(0.7, 1.1, 2.0),
        origin_xyz_mm=(-5.0, 7.0, 11.0),
        direction=tuple(direction.ravel()),
    )
    array = np.arange(60).reshape(3, 4, 5)
    turn = turn_to_ras(grid)
    turned, turned_grid = turn_array(array, turn), turn_grid(grid, turn)
    assert turned.shape == turned_grid.shape_zyx
    for place in [(0, 0, 0), (1, 2, 3), (2, 0, 4)]:
        index = np.argwhere(turned == array[place])[0]
        np.testing.assert_allclose(
            turned_grid.to_world(index[::-1].astype(float)), grid.to_world(np.array(place[::-1], dtype=float))
        )


def test_a_grid_survives_being_written_as_plain_values() -> None:
    grid = phantom(direction=rotation(10)).grid
    assert Grid.from_dict(grid.to_dict()) == grid


def test_a_scan_beside_the_stored_volume_gets_background_and_no_probability() -> None:
    stored = standard(phantom())
    x, y, z = stored.source_grid.origin_xyz_mm
    for origin in ((x + 1000, y, z), (x, y + 1000, z), (x, y, z + 1000)):
        beside = replace(stored.source_grid, origin_xyz_mm=origin)
        result = to_source_grid(stored.labels[0].array, stored.grid, beside)
        assert result.shape == beside.shape_zyx
        assert not result.any()
        ones = np.ones(stored.grid.shape_zyx, np.float32)
        assert probability_to_source_grid(ones, stored.grid, beside) is None


def test_an_array_off_its_grid_is_not_written(tmp_path: Path) -> None:
    grid = phantom().grid
    with pytest.raises(ValueError, match="must lie on its grid"):
        write_image(tmp_path / "x.nii.gz", np.zeros((3, 4, 5), np.uint8), grid)
    assert list(tmp_path.iterdir()) == []
