"""Arrays, units and places of every format agree, whatever the byte order and number type."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from pipeline.discovery.from_path import discover
from pipeline.ingest.config import IngestConfig
from pipeline.ingest.reading import RawScan, read_source
from pipeline.ingest.standard_scan import standardize
from pipeline.volumes.grid import corner_distance_mm
from tests.phantom import Phantom, phantom, write_dicom

CONFIG = IngestConfig()
TURNED = ((0, 0, 1), (-1, 0, 0), (0, -1, 0))


def read(path: Path) -> RawScan:
    (source,) = discover(path, CONFIG.series_rules).sources
    return read_source(source, CONFIG)


def nifti_bytes(scan: Phantom, *, order: str, slope: float = 1.0, inter: float = 0.0) -> bytes:
    """A NIfTI-1 file made by hand from the standard."""
    z, y, x = scan.image.shape
    dx, dy, dz = scan.grid.spacing_xyz_mm
    ox, oy, oz = scan.grid.origin_xyz_mm
    rows = [(-dx, 0, 0, -ox), (0, -dy, 0, -oy), (0, 0, dz, oz)]
    header = bytearray(352)

    def put(place: int, form: str, *values: float) -> None:
        struct.pack_into(order + form, header, place, *values)

    put(0, "i", 348)
    put(40, "8h", 3, x, y, z, 1, 1, 1, 1)
    put(70, "2h", 4, 16)
    put(76, "8f", 1, dx, dy, dz, 0, 0, 0, 0)
    put(108, "3f", 352, slope, inter)
    header[123] = 2
    put(252, "2h", 0, 1)
    for i, row in enumerate(rows):
        put(280 + 16 * i, "4f", *row)
    header[344:348] = b"n+1\0"
    return bytes(header) + scan.image.astype(order + "i2").tobytes()


@pytest.mark.parametrize("order", ["<", ">"])
def test_nifti_of_both_byte_orders(tmp_path: Path, order: str) -> None:
    scan = phantom()
    (tmp_path / "x.nii").write_bytes(nifti_bytes(scan, order=order))
    raw = read(tmp_path / "x.nii")
    np.testing.assert_array_equal(raw.image, scan.image)
    assert corner_distance_mm(raw.grid, scan.grid) < 1e-3


def test_slope_and_intercept_of_a_nifti_are_applied(tmp_path: Path) -> None:
    scan = phantom()
    (tmp_path / "x.nii").write_bytes(nifti_bytes(scan, order="<", slope=0.5, inter=-10))
    raw = read(tmp_path / "x.nii")
    np.testing.assert_allclose(raw.image, scan.image * 0.5 - 10)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd"])
def test_all_formats_give_the_same_array_at_the_same_place(tmp_path: Path, suffix: str) -> None:
    scan = phantom(direction=TURNED)
    raw = read(scan.write(tmp_path / f"x{suffix}"))
    np.testing.assert_array_equal(raw.image, scan.image)
    assert corner_distance_mm(raw.grid, scan.grid) < 1e-3


def test_the_stored_form_does_not_depend_on_the_format(tmp_path: Path) -> None:
    scan = phantom(direction=TURNED)
    scan.replace(image=scan.image.clip(-1024)).write(tmp_path / "a.mha")
    write_dicom(tmp_path / "d", scan)
    stored = [standardize(read(tmp_path / name), CONFIG) for name in ("a.mha", "d")]
    np.testing.assert_array_equal(stored[0].image, stored[1].image)
    assert corner_distance_mm(stored[0].grid, stored[1].grid) < 1e-3


@pytest.mark.parametrize(
    ("dtype", "kept"),
    [
        (np.uint8, np.int16),
        (np.int8, np.int16),
        (np.int16, np.int16),
        (np.uint16, np.int16),
        (np.int32, np.int16),
        (np.uint32, np.int16),
        (np.int64, np.int16),
        (np.float32, np.float32),
        (np.float64, np.float32),
    ],
)
def test_every_number_type_is_kept_exactly(tmp_path: Path, dtype: type, kept: type) -> None:
    scan = phantom()
    image = (scan.image.clip(0, 120)).astype(dtype)
    raw = read(scan.replace(image=image).write(tmp_path / "x.nrrd"))
    assert raw.image.dtype == kept
    np.testing.assert_array_equal(raw.image, image)


def test_unsigned_values_beyond_int16_become_floats(tmp_path: Path) -> None:
    scan = phantom()
    image = (scan.image.astype(np.int32) + 40_000).astype(np.uint16)
    raw = read(scan.replace(image=image).write(tmp_path / "x.nrrd"))
    assert raw.image.dtype == np.float32
    np.testing.assert_array_equal(raw.image, image)


def test_one_component_of_a_vector_image_can_be_chosen(tmp_path: Path) -> None:
    scan = phantom()
    both = np.stack([scan.image, scan.image + 5], axis=-1)
    sitk.WriteImage(sitk.GetImageFromArray(both, isVector=True), str(tmp_path / "x.nrrd"))
    config = IngestConfig(frame=1)
    (source,) = discover(tmp_path, config.series_rules).sources
    np.testing.assert_array_equal(read_source(source, config).image, scan.image + 5)


def test_a_name_with_odd_letters_is_read(tmp_path: Path) -> None:
    scan = phantom()
    raw = read(scan.write(tmp_path / "Müller (1) ∆.nii.gz"))
    np.testing.assert_array_equal(raw.image, scan.image)
