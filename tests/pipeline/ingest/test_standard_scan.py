"""The stored form: intensities, crop, resampling, modality, and that it never varies."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from pipeline.errors import ConfigError
from pipeline.formats.modality_names import parse_modality
from pipeline.ingest.config import IngestConfig
from pipeline.ingest.labels import RawLabel
from pipeline.ingest.modality import guess_modality
from pipeline.ingest.reading import RawScan
from pipeline.ingest.standard_scan import StandardScan, standardize
from pipeline.volumes.foreground import body_box
from pipeline.volumes.grid import Grid
from pipeline.volumes.reorientation import resampled_grid
from pipeline.volumes.resampling import resample_image, resample_labels
from tests.phantom import Phantom, phantom

AXES = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


def raw_of(scan: Phantom, *, modality: str | None = "", location: str = "case", **more) -> RawScan:
    label = RawLabel(name="label", array=scan.labels, grid=scan.grid, value_names=None)
    return RawScan(
        scan_id="case",
        location=location,
        image=more.pop("image", scan.image),
        grid=scan.grid,
        labels=(label,),
        modality=scan.modality if modality == "" else modality,
        modality_origin="manifest" if modality is not None else "",
        **more,
    )


def real(stored: StandardScan) -> np.ndarray:
    return stored.image.astype(np.float64) * stored.scale + stored.offset


def test_ct_codes_are_hounsfield_units_within_the_window() -> None:
    stored = standardize(raw_of(phantom()), IngestConfig())
    assert (stored.scale, stored.offset, stored.intensity.unit) == (1.0, 0.0, "HU")
    assert stored.image.min() == -991
    assert stored.image.max() == 500
    organ = stored.image[stored.labels[0].array == 1]
    assert np.median(organ) == pytest.approx(120, abs=3)


def test_padding_outside_the_field_of_view_does_not_bleed_into_tissue() -> None:
    scan = phantom(noise=0)
    padded = np.where(scan.image < -900, -3024, scan.image).astype(np.int16)
    stored = standardize(raw_of(scan, image=padded), IngestConfig(crop=False))
    plain = standardize(raw_of(scan), IngestConfig(crop=False))
    assert np.abs(stored.image - plain.image).max() <= 24


@pytest.mark.parametrize("modality", ["mr", "pet"])
def test_mr_and_pet_codes_run_from_the_2nd_to_the_98th_percentile(modality: str) -> None:
    scan = phantom(modality=modality)
    stored = standardize(raw_of(scan), IngestConfig())
    assert (stored.image.min(), stored.image.max()) == (0, 4000)
    low, high = stored.intensity.low, stored.intensity.high
    assert real(stored).min() == pytest.approx(low)
    assert real(stored).max() == pytest.approx(high)
    for edge in (0, 4000):
        assert 0.015 < float((stored.image == edge).mean()) < 0.025 or edge == 0


@pytest.mark.parametrize("modality", ["ct", "mr"])
def test_mean_and_deviation_are_those_of_the_stored_volume(modality: str) -> None:
    stored = standardize(raw_of(phantom(modality=modality)), IngestConfig())
    assert stored.intensity.mean == pytest.approx(real(stored).mean(), rel=1e-9)
    assert stored.intensity.std == pytest.approx(real(stored).std(), rel=1e-9)


def test_a_brain_in_a_sea_of_zeros_uses_its_whole_range() -> None:
    scan = phantom(modality="mr")
    image = np.where(scan.labels == 2, scan.image, 0).astype(np.int16)
    stored = standardize(raw_of(scan, image=image), IngestConfig(crop=False))
    assert stored.intensity.high > stored.intensity.low


def test_ct_that_is_not_in_hounsfield_units_is_scaled_like_mr_and_noted() -> None:
    scan = phantom()
    image = (scan.image.astype(np.int32) + 1036).clip(0).astype(np.int16)
    stored = standardize(raw_of(scan, image=image), IngestConfig())
    assert stored.intensity.unit == "arbitrary"
    assert any("not HU" in note for note in stored.notes)
    assert stored.image.max() == 4000


def test_the_crop_keeps_the_body_and_its_margin_and_no_more() -> None:
    scan = phantom(shape_zyx=(60, 120, 140), noise=5)
    for margin in (0.0, 12.0):
        stored = standardize(raw_of(scan), IngestConfig(margin_mm=margin))
        body = np.array([96, 54, 68]) + 2 * margin
        assert np.all(np.abs(np.array(stored.grid.extent_zyx_mm) - body) < 16)
        assert not stored.notes
        assert (stored.labels[0].array == 4).any()


@pytest.mark.parametrize("modality", ["ct", "mr"])
def test_both_legs_are_kept(modality: str) -> None:
    image = np.full((30, 50, 120), -1000.0)
    _, y, x = np.ogrid[:30, :50, :120]
    for centre, radius in ((30, 14), (90, 11)):
        image[np.broadcast_to((y - 25) ** 2 + (x - centre) ** 2 < radius**2, image.shape)] = 40
    image += np.random.default_rng(0).normal(0, 10, image.shape)
    if modality == "mr":
        image = np.maximum(image + 1000, 0)
    box = body_box(image, (3.0, 2.0, 2.0), threshold=-500 if modality == "ct" else None, margin_mm=0)
    assert box is not None
    assert box[2].start <= 17
    assert box[2].stop >= 101


def test_a_thin_table_beside_the_body_is_cropped_away() -> None:
    image = np.full((30, 100, 100), -1000, np.int16)
    _, y, x = np.ogrid[:30, :100, :100]
    image[np.broadcast_to((y - 60) ** 2 + (x - 50) ** 2 < 25**2, image.shape)] = 40
    image[:, 5:7] = 100
    box = body_box(image, (3.0, 2.0, 2.0), threshold=-500, margin_mm=4)
    assert box is not None
    assert box[1].start > 20


def test_faint_tissue_is_kept_beside_a_hot_tumour() -> None:
    scan = phantom(modality="pet", noise=2)
    image = scan.image.astype(np.float32)
    image[scan.labels == 2] *= 60
    stored = standardize(raw_of(scan, image=image), IngestConfig(margin_mm=0))
    assert min(np.array(stored.grid.extent_zyx_mm) / (96, 54, 68)) > 0.85


def test_labelled_voxels_outside_of_the_crop_are_counted() -> None:
    scan = phantom(shape_zyx=(60, 120, 140))
    scan.labels[0, 0, :4] = 7
    stored = standardize(raw_of(scan), IngestConfig(margin_mm=0))
    assert stored.notes == (
        f"4 of {np.count_nonzero(scan.labels)} labelled voxels of label lie outside the crop",
    )


def test_the_crop_does_not_depend_on_labels() -> None:
    scan = phantom(shape_zyx=(60, 120, 140))
    with_labels = standardize(raw_of(scan), IngestConfig())
    without = standardize(replace(raw_of(scan), labels=()), IngestConfig())
    np.testing.assert_array_equal(with_labels.image, without.image)


def test_the_same_scan_gives_the_same_bytes_whatever_its_memory_layout() -> None:
    scan = phantom()
    first = standardize(raw_of(scan), IngestConfig())
    fortran = standardize(raw_of(scan, image=np.asfortranarray(scan.image)), IngestConfig())
    doubled = standardize(raw_of(scan, image=scan.image.astype(np.float32)), IngestConfig())
    for other in (fortran, doubled):
        assert first.image.tobytes() == other.image.tobytes()
        assert first.intensity == other.intensity
    assert first.image.flags.c_contiguous
    assert first.labels[0].array.flags.c_contiguous


def test_the_input_is_not_changed() -> None:
    scan = phantom()
    image, labels = scan.image.copy(), scan.labels.copy()
    scan.image.flags.writeable = scan.labels.flags.writeable = False
    standardize(raw_of(scan), IngestConfig())
    np.testing.assert_array_equal(image, scan.image)
    np.testing.assert_array_equal(labels, scan.labels)


def test_labels_are_resampled_by_nearest_neighbour_only() -> None:
    scan = phantom()
    stored = standardize(raw_of(scan), IngestConfig(spacing_mm=0.9))
    assert set(np.unique(stored.labels[0].array)) == set(np.unique(scan.labels))
    assert stored.labels[0].array.dtype == np.uint8


# --- resampling


def line(n: int, spacing: float) -> Grid:
    return Grid(
        shape_zyx=(1, 1, n), spacing_xyz_mm=(spacing, 1.0, 1.0), origin_xyz_mm=(0.0, 0.0, 0.0), direction=AXES
    )


def test_upsampling_is_linear_interpolation_between_voxel_centres() -> None:
    grid = line(3, 2.0)
    target = replace(grid, shape_zyx=(1, 1, 5), spacing_xyz_mm=(1.0, 1.0, 1.0))
    out = resample_image(np.array([[[0, 10, 30]]], np.int16), grid, target, floor=-np.inf)
    np.testing.assert_allclose(out[0, 0], [0, 5, 10, 20, 30])


def test_downsampling_leaves_no_alias_of_a_fine_grating() -> None:
    grid = line(400, 0.5)
    grating = np.where(np.arange(400) % 2, 100.0, -100.0).astype(np.float32)
    out = resample_image(
        grating.reshape(1, 1, -1),
        grid,
        replace(resampled_grid(grid, 1.5), shape_zyx=(1, 1, 133)),
        floor=-np.inf,
    )
    assert np.abs(out[0, 0, 2:-2]).max() < 15


@settings(max_examples=60)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)),
    spacing=st.tuples(*[st.floats(0.3, 6.0)] * 3),
    target_mm=st.floats(0.5, 4.0),
    value=st.integers(-1000, 1000),
)
def test_a_constant_stays_constant_and_the_volume_keeps_its_place(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], target_mm: float, value: int
) -> None:
    grid = Grid(shape_zyx=shape, spacing_xyz_mm=spacing, origin_xyz_mm=(3.0, -4.0, 5.0), direction=AXES)
    target = resampled_grid(grid, target_mm)
    out = resample_image(np.full(shape, value, np.int16), grid, target, floor=-np.inf)
    np.testing.assert_allclose(out, value, atol=1e-3)
    middle = [g.to_world((np.array(g.shape_zyx[::-1]) - 1) / 2) for g in (grid, target)]
    np.testing.assert_allclose(middle[0], middle[1], atol=1e-9)
    for old, new in zip(grid.extent_zyx_mm, target.extent_zyx_mm, strict=True):
        assert abs(old - new) <= target_mm / 2 + 1e-6 or new == target_mm
    labels = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)
    assert set(np.unique(resample_labels(labels, grid, target))) <= set(labels.ravel().tolist())


def test_a_linear_ramp_is_kept_exactly_in_world_space() -> None:
    scan = phantom(direction=((0, 0, 1), (1, 0, 0), (0, -1, 0)))
    k, j, i = np.meshgrid(*(np.arange(n) for n in scan.grid.shape_zyx), indexing="ij")
    world = scan.grid.to_world(np.stack([i, j, k], axis=-1).astype(float))
    ramp = (world @ [1.0, 2.0, -0.5]).astype(np.float32)
    target = resampled_grid(scan.grid, 1.5)
    out = resample_image(ramp, scan.grid, target, floor=-np.inf)
    k, j, i = np.meshgrid(*(np.arange(n) for n in target.shape_zyx), indexing="ij")
    wanted = target.to_world(np.stack([i, j, k], axis=-1).astype(float)) @ [1.0, 2.0, -0.5]
    np.testing.assert_allclose(out[2:-2, 2:-2, 2:-2], wanted[2:-2, 2:-2, 2:-2], atol=0.01)


# --- modality


@pytest.mark.parametrize(
    ("word", "modality"),
    [("CT", "ct"), (" mri ", "mr"), ("PT", "pet"), ("pet", "pet"), ("US", None), ("", None)],
)
def test_words_for_modalities(word: str, modality: str | None) -> None:
    assert parse_modality(word) == modality


def test_air_tells_ct_whatever_the_name_says() -> None:
    scan = phantom()
    stored = standardize(raw_of(scan, modality=None, location="x/MR_1.nii.gz"), IngestConfig())
    assert stored.modality == "ct"
    assert stored.modality_origin.startswith("guess: ")
    assert "-1000" in stored.modality_origin


def test_a_word_of_the_name_tells_the_modality_where_the_numbers_do_not() -> None:
    scan = phantom(modality="mr")
    for name, modality in (
        ("PET_image.nii.gz", "pet"),
        ("sub-1_T2w.nii.gz", "mr"),
        ("petition.nii.gz", "mr"),
    ):
        stored = standardize(raw_of(scan, modality=None, location=f"x/{name}"), IngestConfig())
        assert stored.modality == modality


def test_a_few_hot_voxels_on_a_coarse_grid_are_pet() -> None:
    image = np.abs(np.random.default_rng(0).normal(0, 1, (30, 40, 40))).astype(np.float32)
    image[10:13, 10:13, 10:13] = 60
    assert guess_modality(image, (3.3, 4.0, 4.0), name="x")[0] == "pet"
    assert guess_modality(image, (1.0, 1.0, 1.0), name="x")[0] == "mr"


# --- settings


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("spacing_mm", 0.0),
        ("margin_mm", -1.0),
        ("ct_window_hu", (500.0, -991.0)),
        ("percentiles", (98.0, 2.0)),
        ("num_codes", 40_000),
        ("frame", -1),
    ],
)
def test_a_setting_that_cannot_be_is_named(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        IngestConfig(**{field: value})


def test_hounsfield_units_without_air_are_known_by_their_range() -> None:
    tissue = np.random.default_rng(0).uniform(-120, 300, (20, 20, 20)).astype(np.float32)
    assert guess_modality(tissue, (1.0, 1.0, 1.0), name="x")[0] == "ct"
    assert guess_modality(tissue + 120, (1.0, 1.0, 1.0), name="x")[0] == "mr"  # nothing below 0
    assert guess_modality(tissue * 20 + 1500, (1.0, 1.0, 1.0), name="x")[0] == "mr"  # far beyond the range
