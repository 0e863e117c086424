"""Voxel sizes, axes and shapes that no scan has."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from pipeline import errors
from pipeline.discovery.from_path import discover
from pipeline.discovery.sources import LabelSource
from pipeline.ingest.config import IngestConfig
from pipeline.ingest.reading import read_source
from tests.phantom import Phantom
from tests.pipeline.ingest.bad_inputs import CONFIG, patched, refused, source_of, unzipped, with_voxels

pytestmark = pytest.mark.usefixtures("silent")


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (0.0, "positive"),
        (-1.5, "positive"),
        (float("nan"), "positive"),
        (400.0, "must measure"),
        (1e-5, "must measure"),
    ],
)
def test_a_nifti_voxel_size_that_no_scanner_makes_is_refused(good: Path, value: float, kind: str) -> None:
    assert kind in refused(with_voxels(good, value), errors.BadSpacing)


def test_a_nifti_with_two_voxel_sizes_is_refused(good: Path) -> None:
    told = refused(patched(good, 80, struct.pack("<f", 1.5)), errors.BadSpacing)
    assert "pixdim says 1.5 x 1.2 x 3, the sform 1.3 x 1.2 x 3 mm" in told


@pytest.mark.parametrize("sizes", [(3, 0, 5, 6), (0, 0, 0, 0)])
def test_a_nifti_of_no_voxels_is_corrupt(good: Path, sizes: tuple[int, ...]) -> None:
    assert "one voxel per axis" in refused(patched(good, 40, struct.pack("<4h", *sizes)), errors.CorruptImage)


@pytest.mark.parametrize("sizes", ["70 0 36", "70 -60 36", "70 x 36", "70"])
def test_a_metaimage_of_no_voxels_is_corrupt(scan: Phantom, tmp_path: Path, sizes: str) -> None:
    path = tmp_path / "x.mha"
    sitk.WriteImage(sitk.GetImageFromArray(scan.image), str(path), useCompression=False)
    data = path.read_bytes()
    assert b"DimSize = 70 60 36\n" in data
    path.write_bytes(data.replace(b"DimSize = 70 60 36\n", f"DimSize = {sizes}\n".encode()))
    assert f"one voxel per axis, got {sizes}" in refused(path, errors.CorruptImage)


@pytest.mark.parametrize("spacing", ["0 1 1", "1 -2 1", "1 1 nan", "1 1 90", "1 one 1"])
def test_a_metaimage_voxel_size_that_no_scanner_makes_is_refused(
    scan: Phantom, tmp_path: Path, spacing: str
) -> None:
    path = tmp_path / "x.mha"
    sitk.WriteImage(sitk.GetImageFromArray(scan.image), str(path), useCompression=False)
    data = path.read_bytes()
    assert b"ElementSpacing = 1 1 1\n" in data
    path.write_bytes(data.replace(b"ElementSpacing = 1 1 1\n", f"ElementSpacing = {spacing}\n".encode()))
    reason = refused(path, errors.BadSpacing)
    assert spacing != "1 1 90" or "mm, the header says 1 x 1 x 90" in reason


@pytest.mark.parametrize("spacing", ["0", "-2", "nan", "90"])
def test_a_nrrd_voxel_size_that_no_scanner_makes_is_refused(
    tmp_path: Path, scan: Phantom, spacing: str
) -> None:
    path = tmp_path / "x.nrrd"
    z, y, x = scan.image.shape
    header = f"NRRD0004\ntype: short\ndimension: 3\nsizes: {x} {y} {z}\nspacings: 1 1 {spacing}\n"
    header += "endian: little\nencoding: raw\n\n"
    path.write_bytes(header.encode() + scan.image.tobytes())
    refused(path, errors.BadSpacing)


def test_a_scan_longer_than_any_patient_is_refused(good: Path) -> None:
    path = with_voxels(good, 24.0, 24.0, 24.0)
    config = IngestConfig(max_extent_mm=1000)
    told = refused(path, errors.BadSpacing, config=config)
    assert "may reach" in told
    assert "mm long (voxels of" in told


def test_a_stored_volume_beyond_the_limit_is_refused_before_it_is_made(good: Path) -> None:
    config = IngestConfig(max_stored_voxels=10_000)
    assert "10,000 are allowed" in refused(good, errors.BadSpacing, config=config)


def test_a_sheared_orientation_is_refused(good: Path) -> None:
    data = bytearray(unzipped(good))
    struct.pack_into("<2h", data, 252, 0, 1)  # qform off, sform on
    struct.pack_into("<4f", data, 280, 1.3, 0.6, 0, 0)
    struct.pack_into("<4f", data, 296, 0, 1.04, 0, 0)
    path = good.with_name("sheared.nii")
    path.write_bytes(data)
    assert "right angles" in refused(path, errors.BadGeometry)


def test_a_metaimage_with_sheared_axes_is_refused(scan: Phantom, tmp_path: Path) -> None:
    path = tmp_path / "x.mha"
    sitk.WriteImage(sitk.GetImageFromArray(scan.image), str(path), useCompression=False)
    data = path.read_bytes()
    path.write_bytes(
        data.replace(b"TransformMatrix = 1 0 0 0 1 0 0 0 1", b"TransformMatrix = 1 0 0 .6 1 0 0 0 1")
    )
    refused(path, errors.BadGeometry)


def test_a_2d_image_is_no_volume(tmp_path: Path) -> None:
    path = tmp_path / "flat.nii.gz"
    sitk.WriteImage(sitk.GetImageFromArray(np.arange(900, dtype=np.int16).reshape(30, 30)), str(path))
    assert "three axes" in refused(path, errors.NotVolumetric)


def test_a_single_slice_is_no_volume(scan: Phantom, tmp_path: Path) -> None:
    path = tmp_path / "slice.nii.gz"
    sitk.WriteImage(sitk.GetImageFromArray(scan.image[:1]), str(path))
    refused(path, errors.NotVolumetric)


def test_a_4d_file_needs_a_choice_of_frame(scan: Phantom, tmp_path: Path) -> None:
    path = _write_4d(scan, tmp_path / "cine.nii.gz")
    message = refused(path, errors.NoSuchFrame)
    assert "frame = 0 to 2" in message
    assert "frame 3 was asked for" in refused(path, errors.NoSuchFrame, frame=3)
    taken = read_source(source_of(path, frame=1), CONFIG)
    np.testing.assert_array_equal(taken.image, scan.image + 1)
    assert taken.grid.shape_zyx == scan.image.shape


def _write_4d(scan: Phantom, path: Path) -> Path:
    stack = sitk.JoinSeries([sitk.GetImageFromArray(scan.image + i) for i in range(3)])
    sitk.WriteImage(stack, str(path))
    return path


def test_the_settings_can_choose_the_frame_of_every_4d_file(scan: Phantom, tmp_path: Path) -> None:
    _write_4d(scan, tmp_path / "cine.nii.gz")
    config = IngestConfig(frame=2)
    (source,) = discover(tmp_path, config.series_rules).sources
    np.testing.assert_array_equal(read_source(source, config).image, scan.image + 2)


def test_a_4d_file_with_one_frame_is_a_volume(scan: Phantom, tmp_path: Path) -> None:
    path = tmp_path / "one.nii.gz"
    sitk.WriteImage(sitk.JoinSeries([sitk.GetImageFromArray(scan.image)]), str(path))
    assert read_source(source_of(path), CONFIG).image.shape == scan.image.shape


def test_a_5d_file_is_no_scan(scan: Phantom, tmp_path: Path) -> None:
    path = tmp_path / "five.nii.gz"
    series = sitk.JoinSeries([sitk.GetImageFromArray(scan.image + i) for i in range(2)])
    sitk.WriteImage(sitk.JoinSeries([series, series]), str(path))
    assert "must be 3D or 4D, this is 70 x 60 x 36 x 2 x 2" in refused(path, errors.NotVolumetric)


def test_a_label_of_several_frames_is_no_label(scan: Phantom, good: Path, tmp_path: Path) -> None:
    path = _write_4d(scan, tmp_path / "labels.nii.gz")
    label = LabelSource(name="organs", path=path, value_names=None, location="here/case labels")
    assert "3 volumes" in refused(good, errors.LabelMismatch, label)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".nii.gz"])
def test_a_colour_image_is_no_scan(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rgb{suffix}"
    colours = np.random.default_rng(0).integers(0, 255, (10, 12, 14, 3)).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(colours, isVector=True), str(path))
    assert "colour image" in refused(path, errors.NotVolumetric)
