"""One scan from its files and back: what is found at a place, and probabilities on the input's own grid."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import LabelMismatch, LooksLikeLabel, NotAnImage, UnreadableFile
from pipeline.ingest.config import IngestConfig
from pipeline.ingest.loading import find_one, find_targets, ingest_config, read_own_labels, read_scan
from pipeline.ingest.writeback import probability_to_source_grid, to_stored_grid
from pipeline.volumes.grid import Grid
from tests.phantom import phantom, write_dicom
from tests.pipeline.ingest.test_writeback import ORDERS, dice, in_order, rotation, standard


@pytest.mark.parametrize("direction", [*ORDERS[::5], rotation(17) @ ORDERS[22]])
def test_leaving_out_what_is_below_the_threshold_changes_nothing_above_it(direction: np.ndarray) -> None:
    scan = in_order(direction)
    stored = standard(scan)
    probability = np.where(stored.labels[0].array == 3, np.float32(0.9), np.float32(0.05))
    whole = probability_to_source_grid(probability, stored.grid, stored.source_grid)
    part = probability_to_source_grid(probability, stored.grid, stored.source_grid, above=0.5)
    assert whole is not None
    assert part is not None
    masks = []
    for box, values in (whole, part):
        mask = np.zeros(scan.labels.shape, bool)
        mask[box] = values >= 0.5
        masks.append(mask)
    np.testing.assert_array_equal(*masks)
    assert part[1].size < whole[1].size / 3
    assert dice(masks[0], scan.labels == 3) > 0.93


def test_nothing_above_the_threshold_is_nothing() -> None:
    stored = standard(phantom())
    nothing = np.zeros(stored.grid.shape_zyx, np.float32)
    assert probability_to_source_grid(nothing, stored.grid, stored.source_grid, above=0.5) is None
    with pytest.raises(ValueError, match="stored grid"):
        probability_to_source_grid(nothing[1:], stored.grid, stored.source_grid)


def test_a_coarse_target_takes_the_mean_of_the_voxels_in_it() -> None:
    fine = Grid(
        shape_zyx=(8, 8, 8),
        spacing_xyz_mm=(1.0, 1.0, 1.0),
        origin_xyz_mm=(0.0, 0.0, 0.0),
        direction=(-1, 0, 0, 0, -1, 0, 0, 0, 1),
    )
    coarse = Grid(
        shape_zyx=(2, 8, 8),
        spacing_xyz_mm=(1.0, 1.0, 4.0),
        origin_xyz_mm=(0.0, 0.0, 1.5),
        direction=(-1, 0, 0, 0, -1, 0, 0, 0, 1),
    )
    probability = np.zeros((8, 8, 8), np.float32)
    probability[:4] = 1
    placed = probability_to_source_grid(probability, fine, coarse)
    assert placed is not None
    assert placed[1][0].min() > 0.9
    assert placed[1][1].max() < 0.1


@pytest.mark.parametrize("direction", ORDERS[::7])
def test_own_labels_are_shown_on_the_stored_grid(direction: np.ndarray) -> None:
    scan = in_order(direction)
    stored = standard(scan)
    np.testing.assert_array_equal(
        to_stored_grid(scan.labels, stored.source_grid, stored.grid), stored.labels[0].array
    )


def test_a_place_holds_one_scan_or_it_is_said_what_it_holds(tmp_path: Path) -> None:
    config = IngestConfig()
    scan = phantom()
    write_dicom(tmp_path / "two" / "a", scan)
    write_dicom(tmp_path / "two" / "b", scan, series_uid="1.2.9")
    assert len(find_targets(tmp_path / "two", config).sources) == 2
    assert find_one(tmp_path / "two" / "a", config).format == "dicom"
    with pytest.raises(NotAnImage, match="one scan is wanted, there are 2 here"):
        find_one(tmp_path / "two", config)
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotAnImage, match="there is no scan here"):
        find_targets(tmp_path / "empty", config)
    with pytest.raises(UnreadableFile, match="there is no such file or folder"):
        find_targets(tmp_path / "nowhere", config)
    write_dicom(tmp_path / "gap", scan, skip=(7,))
    with pytest.raises(NotAnImage, match="gap"):
        find_one(tmp_path / "gap", config)


def test_an_empty_mask_is_named(tmp_path: Path) -> None:
    scan = phantom()
    image = scan.write(tmp_path / "a.nii.gz")
    mask = scan.replace(labels=np.zeros_like(scan.labels)).write_labels(tmp_path / "m.nii.gz")
    with pytest.raises(LabelMismatch, match=r"m\.nii\.gz: the mask is empty"):
        read_scan(image, mask=mask)


@pytest.mark.parametrize(
    "as_intensities",
    [
        pytest.param(lambda image: np.clip(image, 0, None), id="whole numbers from 0, as a mask has"),
        pytest.param(lambda image: image, id="below 0"),
        pytest.param(lambda image: (image * 0.37).astype(np.float32), id="not whole"),
    ],
)
def test_image_and_mask_that_are_exchanged_are_told_with_the_modality_declared_too(
    tmp_path: Path, as_intensities: Callable[[np.ndarray], np.ndarray]
) -> None:
    scan = phantom(modality="ct")
    scan = scan.replace(image=as_intensities(scan.image))
    image, mask = scan.write(tmp_path / "a.nii.gz"), scan.write_labels(tmp_path / "m.nii.gz")
    assert read_scan(image, mask=mask, modality="ct").label_values
    with pytest.raises(LooksLikeLabel, match=r"m\.nii\.gz.*Are image and mask exchanged.*a\.nii\.gz"):
        read_scan(mask, mask=image, modality="ct")


def test_a_probability_map_beside_an_image_is_no_exchange(tmp_path: Path) -> None:
    scan = phantom(modality="ct")
    image = scan.write(tmp_path / "a.nii.gz")
    probability = scan.replace(image=(scan.labels > 0) * np.float32(0.7)).write(tmp_path / "m.nii.gz")
    with pytest.raises(LabelMismatch, match=r"m\.nii\.gz: label values must be whole numbers.*0\.7"):
        read_scan(image, mask=probability, modality="ct")


@pytest.mark.parametrize(("suffix", "result"), [(".nii.gz", ".nii.gz"), (".nhdr", ".nrrd"), (".mhd", ".mha")])
def test_a_scan_is_read_with_its_mask_and_results_go_back_to_its_own_grid(
    tmp_path: Path, suffix: str, result: str
) -> None:
    scan = phantom()
    image = scan.write(tmp_path / f"a{suffix}")
    mask = scan.write_labels(tmp_path / "m.nii.gz")
    (tmp_path / "m.json").write_text('{"1": "one", "99": "nowhere"}')
    loaded = read_scan(image, mask=mask)
    assert loaded.suffix == result
    assert loaded.label_values == tuple(np.unique(scan.labels)[1:].tolist())
    assert loaded.value_names == {1: "one"}
    assert loaded.own_shape == scan.image.shape
    assert loaded.own_voxel_ml == pytest.approx(np.prod(scan.grid.spacing_xyz_mm) / 1000)
    assert loaded.spacing_zyx_mm == loaded.grid.spacing_zyx_mm
    assert abs(float(loaded.image.mean())) < 1  # z-scores
    np.testing.assert_array_equal(loaded.from_own_grid(scan.labels), loaded.labels)
    found = find_one(image, IngestConfig())
    np.testing.assert_array_equal(read_own_labels(found, IngestConfig(), mask), scan.labels)
    placed = loaded.to_own_grid((loaded.labels == 3).astype(np.float32), above=0.5)
    assert placed is not None
    own = np.zeros(loaded.own_shape, np.uint8)
    own[placed[0]] = placed[1] >= 0.5
    assert dice(own == 1, scan.labels == 3) > 0.9
    loaded.write(tmp_path / f"out{result}", own)
    np.testing.assert_array_equal(read_own_labels(found, IngestConfig(), tmp_path / f"out{result}"), own)


def test_a_scan_without_a_mask_has_no_labels(tmp_path: Path) -> None:
    loaded = read_scan(phantom().write(tmp_path / "a.nii.gz"))
    assert loaded.labels is None
    assert loaded.label_values == ()
    assert loaded.value_names == {}


def test_recorded_settings_are_taken_and_a_spacing_goes_before_them() -> None:
    config = ingest_config({"margin_mm": 2.0, "spacing_mm": 1.0, "frame": None}, spacing_mm=3.0)
    assert (config.margin_mm, config.spacing_mm, config.frame) == (2.0, 3.0, None)
    assert ingest_config(None) == IngestConfig()
