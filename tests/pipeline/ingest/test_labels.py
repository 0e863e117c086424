"""A label map is brought onto its image's grid where that is exact, and said to be; else it is refused."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from pipeline.discovery.sources import LabelSource, Source
from pipeline.errors import LabelMismatch
from pipeline.ingest.config import IngestConfig
from pipeline.ingest.reading import RawScan, read_source
from pipeline.ingest.standard_scan import standardize
from pipeline.ingest.writeback import write_image
from pipeline.volumes.grid import Grid
from pipeline.volumes.resampling import labels_on_grid
from tests.phantom import Phantom, phantom

CONFIG = IngestConfig()
RESAMPLING = IngestConfig(resample_labels=True)
TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@pytest.fixture
def scan() -> Phantom:
    return phantom()


def read(scan: Phantom, label: Path, config: IngestConfig = CONFIG) -> RawScan:
    image = scan.write(label.parent / "image.nii.gz")
    source = Source(
        scan_id="case",
        format="file",
        files=(image,),
        labels=(LabelSource(name="organs", path=label, value_names=None),),
        location="here/case",
    )
    return read_source(source, config)


@pytest.mark.parametrize("axes", ["PIR", "LAS", "RSA", "SPL", "IRP"])
def test_a_label_whose_axes_run_otherwise_is_turned_exactly(scan: Phantom, tmp_path: Path, axes: str) -> None:
    image = nibabel.Nifti1Image(scan.labels.T, TO_RAS @ scan.grid.affine)
    wanted = nibabel.orientations.axcodes2ornt(axes)
    own = nibabel.orientations.io_orientation(image.affine)
    turned = image.as_reoriented(nibabel.orientations.ornt_transform(own, wanted))
    assert nibabel.aff2axcodes(turned.affine) == tuple(axes)
    turned.to_filename(tmp_path / "label.nii.gz")
    raw = read(scan, tmp_path / "label.nii.gz")
    np.testing.assert_array_equal(raw.labels[0].array, scan.labels)
    assert raw.labels[0].notes == (
        "label organs: its axes have another order or direction than the image's: turned",
    )
    assert raw.labels[0].notes[0] in standardize(raw, CONFIG).notes


def test_a_label_on_the_same_grid_has_no_note(scan: Phantom, tmp_path: Path) -> None:
    assert read(scan, scan.write_labels(tmp_path / "label.nrrd")).labels[0].notes == ()


def test_a_label_on_another_grid_is_resampled_only_if_the_settings_say_so(
    scan: Phantom, tmp_path: Path
) -> None:
    other = phantom(shape_zyx=(50, 50, 60), spacing_zyx_mm=(2.5, 1.5, 1.5))
    path = other.write_labels(tmp_path / "label.nii.gz")
    with pytest.raises(LabelMismatch, match=r"shape .* resample_labels = true"):
        read(scan, path)
    (label,) = read(scan, path, RESAMPLING).labels
    assert label.array.shape == scan.labels.shape
    assert label.grid == read(scan, path, RESAMPLING).grid
    for value in (1, 2, 3, 4):
        one, two = label.array == value, scan.labels == value
        assert 2 * (one & two).sum() / (one.sum() + two.sum()) > 0.85
    (note,) = label.notes
    assert "(60 x 50 x 50 voxels): resampled by nearest neighbour; 0.0 % of its labelled voxels" in note


def test_the_share_of_a_label_outside_of_the_image_is_told(scan: Phantom, tmp_path: Path) -> None:
    labels = np.zeros((10, 10, 10), np.uint8)
    labels[:, :, :5] = 1
    # Voxels of 2 mm, of which the first 3 of 5 labelled columns lie to the right of the image's first.
    grid = Grid(
        shape_zyx=labels.shape,
        spacing_xyz_mm=(2.0, 2.0, 2.0),
        origin_xyz_mm=tuple(scan.grid.to_world(np.array([-5.0 / 1.3, 10.0, 10.0]))),
        direction=scan.grid.direction,
    )
    write_image(tmp_path / "label.nii.gz", labels, grid)
    (label,) = read(scan, tmp_path / "label.nii.gz", RESAMPLING).labels
    assert "60.0 % of its labelled voxels lie outside" in label.notes[0]
    assert label.array.sum() > 0


def test_a_label_that_lies_nowhere_on_its_image_is_refused_even_then(scan: Phantom, tmp_path: Path) -> None:
    away = phantom(shape_zyx=(30, 30, 30), centre_xyz_mm=(900.0, 0.0, 0.0))
    path = away.write_labels(tmp_path / "label.nii.gz")
    with pytest.raises(LabelMismatch, match="no labelled voxel of this lies within the image"):
        read(scan, path, RESAMPLING)


def test_float_labels_that_are_nearly_whole_are_rounded_with_a_note(scan: Phantom, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).uniform(-9e-4, 9e-4, scan.labels.shape)
    path = scan.replace(labels=(scan.labels + noise).astype(np.float32)).write_labels(tmp_path / "l.nii.gz")
    (label,) = read(scan, path).labels
    np.testing.assert_array_equal(label.array, scan.labels)
    assert label.notes == ("label organs: its values are up to 0.0009 off whole numbers: rounded",)


def test_float_labels_further_from_whole_numbers_are_refused(scan: Phantom, tmp_path: Path) -> None:
    path = scan.replace(labels=(scan.labels * 1.002).astype(np.float32)).write_labels(tmp_path / "l.nii.gz")
    with pytest.raises(LabelMismatch, match="whole numbers"):
        read(scan, path)


def test_resampling_agrees_with_scipy_on_oblique_grids() -> None:
    rng = np.random.default_rng(1)
    angle = np.radians(20)
    turned = ((np.cos(angle), -np.sin(angle), 0), (np.sin(angle), np.cos(angle), 0), (0, 0, 1))
    source = phantom(shape_zyx=(7, 6, 5), spacing_zyx_mm=(3.0, 2.0, 2.5)).grid
    target = phantom(shape_zyx=(6, 7, 7), spacing_zyx_mm=(2.1, 2.2, 2.3), direction=turned).grid
    labels = rng.integers(0, 5, source.shape_zyx).astype(np.uint8)
    matrix = np.linalg.inv(source.affine) @ target.affine
    flip = [2, 1, 0]
    expected = ndimage.affine_transform(
        labels, matrix[:3, :3][np.ix_(flip, flip)], matrix[:3, 3][flip], target.shape_zyx, order=0,
        mode="constant",
    )  # fmt: skip
    made, _ = labels_on_grid(labels, source, target)
    k, j, i = np.indices(target.shape_zyx)
    index = source.to_index(target.to_world(np.stack([i, j, k], axis=-1).astype(float)))
    within = ((index >= 0) & (index <= np.array(source.shape_zyx[::-1]) - 1)).all(axis=-1)
    assert within.sum() > 50
    np.testing.assert_array_equal(made[within], expected[within])  # SciPy leaves out the rim of half a voxel
