"""Every kind of bad input has its own error, which names the scan and the remedy, and stops nobody else."""

from __future__ import annotations

import gzip
import os
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from pipeline import errors
from pipeline.discovery.fingerprint import source_digest, source_stat
from pipeline.discovery.from_path import discover
from pipeline.errors import ScanError
from pipeline.ingest.config import IngestConfig
from pipeline.ingest.reading import read_source
from pipeline.ingest.standard_scan import standardize
from tests.phantom import Phantom, phantom
from tests.pipeline.ingest.bad_inputs import CONFIG, refused, source_of, unzipped

pytestmark = pytest.mark.usefixtures("silent")


def test_a_good_file_is_accepted(good: Path) -> None:
    assert standardize(read_source(source_of(good), CONFIG), CONFIG).modality == "ct"


def test_a_missing_file_is_unreadable(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "none.nii.gz", errors.UnreadableFile)


def test_a_broken_link_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "link.nii.gz").symlink_to(tmp_path / "gone.nii.gz")
    assert "link" in refused(tmp_path / "link.nii.gz", errors.UnreadableFile)


def test_a_folder_in_the_place_of_a_file_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "folder.nii.gz").mkdir()
    assert "folder" in refused(tmp_path / "folder.nii.gz", errors.UnreadableFile)


def test_a_file_without_permission_is_unreadable(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _deny(good, monkeypatch, 13)
    assert "Permission denied" in refused(good, errors.UnreadableFile)


def test_a_failing_disk_is_told_apart_because_another_try_may_help(
    good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _deny(good, monkeypatch, 5)
    assert "just now" in refused(good, errors.TransientReadError)


def _deny(path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    real = Path.open

    def opening(self: Path, *args, **kwargs):
        if self == path:
            raise OSError(number, os.strerror(number), str(self))
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", opening)


def test_an_empty_file_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "empty.nii.gz").touch()
    assert "empty" in refused(tmp_path / "empty.nii.gz", errors.UnreadableFile)


def test_the_stat_and_the_digest_of_a_missing_file_say_so_without_its_path(tmp_path: Path) -> None:
    source = source_of(tmp_path / "gone.nii.gz")
    for look in (source_stat, source_digest):
        with pytest.raises(errors.UnreadableFile, match="here/case: the file does not exist"):
            look(source)


# --- bytes


@pytest.mark.parametrize("keep", [0.2, 0.7, 0.999])
def test_a_truncated_gzip_is_corrupt(good: Path, keep: float) -> None:
    data = good.read_bytes()
    good.write_bytes(data[: int(len(data) * keep)])
    assert "cut short" in refused(good, errors.CorruptImage)


def test_a_flipped_byte_in_a_gzip_is_corrupt(good: Path) -> None:
    data = bytearray(good.read_bytes())
    data[len(data) // 2] ^= 0x55
    good.write_bytes(data)
    assert "damaged" in refused(good, errors.CorruptImage)


@pytest.mark.parametrize("suffix", [".nii", ".nrrd", ".mha"])
def test_a_file_with_fewer_bytes_than_its_header_says_is_corrupt(
    scan: Phantom, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"short{suffix}"
    image = sitk.GetImageFromArray(scan.image)
    sitk.WriteImage(image, str(path), useCompression=False)
    path.write_bytes(path.read_bytes()[:-20_000])
    refused(path, errors.CorruptImage)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_a_truncated_compressed_file_is_corrupt(scan: Phantom, tmp_path: Path, suffix: str) -> None:
    path = scan.write(tmp_path / f"short{suffix}")
    path.write_bytes(path.read_bytes()[:-10_000])
    refused(path, errors.CorruptImage)


@pytest.mark.parametrize("suffix", [".mhd", ".nhdr"])
def test_a_header_whose_data_file_is_missing_is_unreadable(
    scan: Phantom, tmp_path: Path, suffix: str
) -> None:
    path = scan.write(tmp_path / f"detached{suffix}")
    (source,) = discover(tmp_path, CONFIG.series_rules).sources
    assert len(source.files) == 2
    source.files[1].unlink()
    with pytest.raises(errors.UnreadableFile, match="data file named by the header does not exist"):
        read_source(source, CONFIG)
    assert path.exists()


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"hello, this is a text", "NIfTI"),
        (b"<!DOCTYPE html><html>404 not found</html>" + b" " * 400, "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS"),
        (b"\x89PNG\r\n" + bytes(500), "PNG"),
        (gzip.compress(b"not an image " * 100, mtime=0), "after unzipping"),
        (bytes(1000), "NIfTI"),
        (b"\x1c\x02\0\0n+2\0" + bytes(600), "NIfTI-2"),
        (struct.pack("<i", 348) + bytes(600), "Analyze 7.5"),
    ],
)
def test_bytes_that_are_no_image_are_told_by_what_they_are(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "x.nii.gz").write_bytes(content)
    assert what in refused(tmp_path / "x.nii.gz", errors.NotAnImage)


def test_random_bytes_never_crash_the_reader(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i, suffix in enumerate([".nii", ".nii.gz", ".nrrd", ".mha", ".mhd"] * 4):
        path = tmp_path / f"{i}{suffix}"
        start = {".nrrd": b"NRRD0004\n", ".mha": b"NDims = 3\n", ".mhd": b"NDims = 3\n"}.get(suffix, b"")
        path.write_bytes(start + rng.bytes(3000))
        with pytest.raises(ScanError):
            read_source(source_of(path), CONFIG)


# --- values


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_an_image_without_a_number_in_most_of_the_body_is_refused(
    scan: Phantom, tmp_path: Path, suffix: str
) -> None:
    image = scan.image.astype(np.float32)
    image[np.random.default_rng(0).random(image.shape) < 0.65] = np.nan
    path = scan.replace(image=image).write(tmp_path / f"nan{suffix}")
    told = refused(path, errors.NotFinite)
    assert re.search("half of the body's voxels must be numbers, 6[45] % are not", told)
    path = scan.replace(image=np.full_like(image, np.inf)).write(tmp_path / f"inf{suffix}")
    assert "no voxel is a number" in refused(path, errors.NotFinite)


def test_doubles_beyond_single_precision_count_as_infinite(scan: Phantom, tmp_path: Path) -> None:
    image = scan.image.astype(np.float64)
    image[0, 0, 0] = 1e300
    path = scan.replace(image=image).write(tmp_path / "huge.nrrd")
    made = standardize(read_source(source_of(path), CONFIG), CONFIG)
    assert "1 at the border or outside of the body became background (-1024)" in made.notes[0]


def test_huge_integers_are_read_without_wrapping_round(scan: Phantom, tmp_path: Path) -> None:
    image = (scan.image.astype(np.int64) + 2000) * 1_000_000
    path = scan.replace(image=image).write(tmp_path / "big.nrrd")
    raw = read_source(source_of(path, modality="mr"), CONFIG)
    np.testing.assert_allclose(raw.image, image, rtol=1e-6)


def test_a_constant_image_is_refused(scan: Phantom, tmp_path: Path) -> None:
    path = scan.replace(image=np.full_like(scan.image, 7)).write(tmp_path / "flat.nii.gz")
    assert "value 7" in refused(path, errors.ConstantImage)


def test_a_ct_of_air_has_no_foreground(scan: Phantom, tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(-1020, -950, scan.image.shape).astype(np.int16)
    path = scan.replace(image=image).write(tmp_path / "air.nii.gz")
    assert "no voxel above -500 HU" in refused(path, errors.EmptyForeground, modality="ct")


def test_a_ct_that_is_one_value_after_the_clip_is_refused(scan: Phantom, tmp_path: Path) -> None:
    image = np.where(scan.image > 0, 3000, 2000).astype(np.int16)
    image[:2] = -5
    config = IngestConfig(crop=False, ct_window_hu=(-20.0, -10.0))
    path = scan.replace(image=image).write(tmp_path / "metal.nii.gz")
    assert "after clipping" in refused(path, errors.ConstantImage, modality="ct", config=config)


def test_a_volume_too_small_to_be_of_use_is_refused(scan: Phantom, tmp_path: Path) -> None:
    path = tmp_path / "tiny.nii.gz"
    image = sitk.GetImageFromArray(scan.image[10:20, 20:30, 20:30])
    image.SetSpacing((0.1, 0.1, 0.1))
    sitk.WriteImage(image, str(path))
    refused(path, errors.EmptyForeground)


def test_a_label_map_is_never_taken_for_a_scan(scan: Phantom, tmp_path: Path) -> None:
    path = scan.write_labels(tmp_path / "organs.nii.gz")
    assert "label map" in refused(path, errors.LooksLikeLabel)


# --- all of them


def test_every_error_of_the_tree_is_drawn_in_its_docstring() -> None:
    drawn = errors.__doc__ or ""
    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, errors.PipelineError):
            assert name in drawn


@pytest.mark.parametrize(
    ("name", "words"),
    [("x.nii", "the file is zipped"), ("x.Nii.Gz", "neither in lower nor in upper case")],
)
def test_a_name_by_which_a_nifti_is_taken_for_another_is_told(good: Path, name: str, words: str) -> None:
    path = good.rename(good.with_name(name))
    message = refused(path, errors.UnreadableFile)
    assert words in message
    assert "ends with .nii.gz" in message


@pytest.mark.parametrize("name", ["X.NII.GZ", "x.nii.gz"])
def test_a_nifti_in_capitals_or_that_is_not_zipped_is_read(good: Path, name: str) -> None:
    path = good.with_name(name)
    path.write_bytes(good.read_bytes() if name.isupper() else unzipped(good))
    assert read_source(source_of(path), CONFIG).image.shape == phantom().image.shape
