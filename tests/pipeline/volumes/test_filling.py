"""NaN and infinite voxels: padding becomes background, those in the body take the nearest value."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from pipeline.ingest.config import IngestConfig
from pipeline.ingest.reading import RawScan
from pipeline.ingest.standard_scan import standardize
from pipeline.volumes.filling import fill_not_finite
from tests.phantom import Phantom, phantom

CONFIG = IngestConfig()


@pytest.fixture(scope="module")
def scan() -> Phantom:
    return phantom()


def made(image: np.ndarray, scan: Phantom, modality: str | None = "ct") -> tuple[str, ...]:
    return standardize(raw(image, scan, modality), CONFIG).notes


def raw(image: np.ndarray, scan: Phantom, modality: str | None = "ct") -> RawScan:
    return RawScan(
        scan_id="case", location="case", image=image, grid=scan.grid, labels=(), modality=modality,
        modality_origin="manifest",
    )  # fmt: skip


def outside_of_a_cylinder(scan: Phantom) -> np.ndarray:
    """The corners around a round field of view."""
    _, y, x = np.indices(scan.image.shape)
    return np.hypot((y - 29.5) / 30, (x - 34.5) / 35) > 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_padding_becomes_background_and_the_scan_is_what_it_would_be_with_air_there(
    scan: Phantom, value: float
) -> None:
    corners = outside_of_a_cylinder(scan)
    image = scan.image.astype(np.float32)
    image[corners] = value
    air = scan.image.astype(np.float32)
    air[corners] = -1024
    filled, plain = standardize(raw(image, scan), CONFIG), standardize(raw(air, scan), CONFIG)
    np.testing.assert_array_equal(filled.image, plain.image)
    assert filled.intensity == plain.intensity
    (note,) = filled.notes
    assert f"{corners.sum()} at the border or outside of the body became background (-1024)" in note
    assert plain.notes == ()


def test_padding_of_an_mr_takes_the_lowest_value(scan: Phantom) -> None:
    image = phantom(modality="mr").image.astype(np.float32) + 7
    image[outside_of_a_cylinder(scan)] = np.nan
    assert "became background (7)" in made(image, scan, "mr")[0]


def test_a_brain_cut_out_of_its_head_is_read_whatever_is_left_out(scan: Phantom) -> None:
    image = phantom(modality="mr").image.astype(np.float32)
    image[~np.isin(scan.labels, (1, 2))] = np.nan
    note = made(image, scan, "mr")[0]
    assert "inside the body" not in note
    assert note.startswith("98 % of the voxels")


def test_a_hole_in_the_body_takes_the_nearest_values_and_air_around_it_does_not(scan: Phantom) -> None:
    image = scan.image.astype(np.float32)
    image[17:19, 29:32, 34:37] = np.nan
    image[2, 3, 4] = np.inf
    filled = fill_not_finite(image, scan.grid.spacing_zyx_mm)
    assert filled is not None
    assert (filled.num_inside, int(filled.padding.sum())) == (18, 1)
    nearest = ndimage.distance_transform_edt(
        ~np.isfinite(image), sampling=scan.grid.spacing_zyx_mm, return_distances=False, return_indices=True
    )
    hole = np.zeros(image.shape, bool)
    hole[17:19, 29:32, 34:37] = True
    np.testing.assert_array_equal(filled.image[hole], image[tuple(axis[hole] for axis in nearest)])
    assert filled.image[2, 3, 4] == image[np.isfinite(image)].min()
    kept = np.isfinite(image)
    np.testing.assert_array_equal(filled.image[kept], image[kept])
    assert "18 inside the body took the value of the nearest voxel" in made(image, scan)[0]


def test_single_voxels_all_over_the_body_are_filled(scan: Phantom) -> None:
    rng = np.random.default_rng(0)
    image = scan.image.astype(np.float32)
    image[rng.random(image.shape) < 0.02] = np.nan
    filled = fill_not_finite(image, scan.grid.spacing_zyx_mm)
    assert filled is not None
    assert filled.fraction_of_body == pytest.approx(0.02, abs=0.005)
    assert filled.num_inside > 500
    assert np.isfinite(filled.image).all()


@pytest.mark.parametrize("share", [0.55, 0.65, 0.9])
def test_the_share_of_the_body_that_is_missing_is_seen_wherever_it_lies(scan: Phantom, share: float) -> None:
    image = scan.image.astype(np.float32)
    image[np.random.default_rng(1).random(image.shape) < share] = np.nan
    filled = fill_not_finite(image, scan.grid.spacing_zyx_mm)
    assert filled is not None
    assert filled.fraction_of_body > 0.5


def test_without_any_number_there_is_nothing_to_fill_with(scan: Phantom) -> None:
    assert fill_not_finite(np.full((4, 5, 6), np.nan, np.float32), (1.0, 1.0, 1.0)) is None
