"""An image file that a full disk cut short is an error that names the file."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from pipeline.ingest import writeback
from pipeline.ingest.writeback import write_image
from pipeline.volumes.grid import Grid
from tests.short_disk import files_of_at_most

SUFFIXES = [".nii", ".nii.gz", ".nrrd", ".mha"]
DTYPES = [np.uint8, np.uint16, np.int16, np.float32, np.bool_]


def drawn(dtype: type = np.uint8, side: int = 40) -> tuple[np.ndarray, Grid]:
    array = np.random.default_rng(0).integers(0, 200, (side, side, side)).astype(dtype)
    identity = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    return array, Grid(
        shape_zyx=array.shape, spacing_xyz_mm=(1.0,) * 3, origin_xyz_mm=(0.0,) * 3, direction=identity
    )


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("most", [0, 100, 20_000])
def test_a_write_that_the_disk_cuts_short_is_an_error_with_the_files_name(
    tmp_path: Path, suffix: str, most: int
) -> None:
    array, grid = drawn()
    path = tmp_path / f"case{suffix}"
    with files_of_at_most(most), pytest.raises(OSError, match="File too large") as caught:
        write_image(path, array, grid)
    assert caught.value.errno == errno.EFBIG
    assert caught.value.filename == str(path)


@pytest.mark.parametrize("suffix", SUFFIXES[:2])
def test_a_part_of_a_file_does_not_stay_though_the_disk_has_room_again(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    array, grid = drawn()
    path = tmp_path / f"case{suffix}"
    monkeypatch.setattr(writeback, "_disk_error", lambda folder: None)
    with files_of_at_most(20_000), pytest.raises(OSError, match="only a part of it was written"):
        write_image(path, array, grid)
    assert not path.exists()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_whole_file_of_each_format_and_type_passes(tmp_path: Path, suffix: str, dtype: type) -> None:
    array, grid = drawn(dtype, side=16)
    path = tmp_path / f"case{suffix}"
    write_image(path, array, grid)
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), array)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_last_byte_is_missed(tmp_path: Path, suffix: str) -> None:
    array, grid = drawn(side=16)
    path = tmp_path / f"case{suffix}"
    write_image(path, array, grid)
    assert writeback._is_whole(path, array.nbytes)
    path.write_bytes(path.read_bytes()[:-1])
    assert not writeback._is_whole(path, array.nbytes)


def test_a_format_that_does_not_exist_is_the_librarys_own_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="ImageIO"):
        write_image(tmp_path / "case.unknown", *drawn(side=8))
