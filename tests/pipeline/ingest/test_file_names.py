"""A path that is not UTF-8 would end the process in the image library: it is an error of that file."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from pipeline.errors import UnreadableFile
from pipeline.exchange.image_masks import read_image_masks
from pipeline.ingest import read_scan
from pipeline.ingest.config import IngestConfig
from pipeline.ingest.image_files import read_file_header
from pipeline.ingest.itk_files import _library_error
from pipeline.ingest.writeback import write_image
from tests.phantom import phantom, write_dicom

NAME = os.fsdecode(b"M\xfcller")
"""In Latin-1."""
REFUSED = r"M\\xfcller.*must be UTF-8.*Rename it"


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("of_folder", [False, True])
def test_a_scan_of_such_a_path_is_refused_with_its_name(tmp_path: Path, suffix: str, of_folder: bool) -> None:
    phantom().write(tmp_path / f"scan{suffix}")
    path = tmp_path / NAME / f"scan{suffix}" if of_folder else tmp_path / f"{NAME}{suffix}"
    path.parent.mkdir(exist_ok=True)
    os.replace(tmp_path / f"scan{suffix}", path)
    with pytest.raises(UnreadableFile, match=REFUSED):
        read_scan(path)
    with pytest.raises(UnreadableFile, match=REFUSED):
        read_file_header([path], IngestConfig(), frame=None, shown=str(path))


def test_a_dicom_series_in_such_a_folder_is_refused(tmp_path: Path) -> None:
    write_dicom(tmp_path / NAME, phantom())
    with pytest.raises(UnreadableFile, match=REFUSED):
        read_scan(tmp_path / NAME)


def test_masks_in_a_4d_file_of_such_a_name_are_refused(tmp_path: Path) -> None:
    masks = np.zeros((2, 12, 12, 12), np.uint8)
    masks[:, 3:9, 3:9, 3:9] = 1
    image = sitk.JoinSeries([sitk.GetImageFromArray(mask) for mask in masks])
    sitk.WriteImage(image, str(tmp_path / "masks.nii.gz"))
    path = tmp_path / f"{NAME}.nii.gz"
    os.replace(tmp_path / "masks.nii.gz", path)
    with pytest.raises(UnreadableFile, match=REFUSED):
        list(read_image_masks(path, IngestConfig(), shown=str(path)))


def test_nothing_is_written_under_such_a_name(tmp_path: Path) -> None:
    scan = phantom()
    with pytest.raises(UnreadableFile, match=REFUSED):
        write_image(tmp_path / f"{NAME}.nii.gz", scan.labels, scan.grid)


def test_other_letters_than_ascii_are_no_hindrance(tmp_path: Path) -> None:
    scan = phantom()
    scan.write(tmp_path / "Müller.nii.gz")
    assert read_scan(tmp_path / "Müller.nii.gz").own_shape == scan.grid.shape_zyx


@pytest.mark.parametrize("word", ["memory_study", "spacing_study", "orthonormal", "allocated"])
def test_words_of_a_path_are_no_cause_of_an_error(word: str) -> None:
    path = Path("/mnt") / word / "a.nii"
    error = _library_error(RuntimeError(f"ITK ERROR: {path}: read failed"), path, "a.nii")
    assert "cut short or damaged" in error.reason
    kind = _library_error(RuntimeError(f"ITK ERROR: {path}: Failed to allocate memory"), path, "a.nii")
    assert "not enough memory" in kind.reason
