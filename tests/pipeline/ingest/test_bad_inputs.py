"""Every kind of bad input has its own error, which names the scan and the remedy, and stops nobody else."""

from __future__ import annotations

import gzip
import os
import pickle
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from pipeline import errors
from pipeline.discovery.fingerprint import source_digest, source_stat
from pipeline.discovery.from_path import discover
from pipeline.discovery.sources import LabelSource, Source
from pipeline.errors import ScanError
from pipeline.ingest.config import IngestConfig
from pipeline.ingest.reading import read_source
from pipeline.ingest.standard_scan import standardize
from tests.phantom import Phantom, phantom

CONFIG = IngestConfig()


@pytest.fixture(autouse=True)
def _silence(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """No library writes to the terminal, whatever it is fed."""
    yield
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


@pytest.fixture(scope="module")
def scan() -> Phantom:
    return phantom()


def source_of(
    path: Path, *labels: LabelSource, frame: int | None = None, modality: str | None = None
) -> Source:
    return Source(
        scan_id="case",
        format="file",
        files=(path,),
        labels=labels,
        location="here/case",
        frame=frame,
        modality=modality,
    )


def refused(
    path: Path, kind: type[ScanError], *labels: LabelSource, config: IngestConfig = CONFIG, **more
) -> str:
    """The message of the error; its class is exactly the one expected, and it survives pickling."""
    with pytest.raises(ScanError) as caught:
        standardize(read_source(source_of(path, *labels, **more), config), config)
    error = caught.value
    assert type(error) is kind, error
    assert str(error).startswith("here/case")
    assert str(path.parent) not in str(error)
    assert len(error.remedy) > 5
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (kind, str(error))
    return str(error)


def unzipped(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes())


def patched(path: Path, offset: int, value: bytes) -> Path:
    """The NIfTI file with some bytes of its header replaced, uncompressed."""
    data = bytearray(unzipped(path))
    data[offset : offset + len(value)] = value
    out = path.with_name("patched.nii")
    out.write_bytes(data)
    return out


def with_voxels(path: Path, *sizes: float) -> Path:
    """The NIfTI file with other voxel sizes along x, y, z, in pixdim and in the sform."""
    out = patched(path, 80, struct.pack(f"<{len(sizes)}f", *sizes))
    data = bytearray(out.read_bytes())
    for axis, size in enumerate(sizes):
        struct.pack_into("<f", data, 280 + 20 * axis, size)
    out.write_bytes(data)
    return out


@pytest.fixture
def good(scan: Phantom, tmp_path: Path) -> Path:
    return scan.write(tmp_path / "good.nii.gz")


def test_a_good_file_is_accepted(good: Path) -> None:
    assert standardize(read_source(source_of(good), CONFIG), CONFIG).modality == "ct"


# --- files


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


# --- geometry


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


# --- dimensions


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


# --- labels


def label(path: Path, names: dict[int, str] | None = None) -> LabelSource:
    return LabelSource(name="label", path=path, value_names=names)


def test_a_label_of_another_shape_is_refused(scan: Phantom, good: Path) -> None:
    other = phantom(shape_zyx=(30, 60, 70)).write_labels(good.with_name("l.nii.gz"))
    assert "grid" in refused(good, errors.LabelMismatch, label(other))


@pytest.mark.parametrize("change", ["origin", "spacing", "direction"])
def test_a_label_in_another_place_is_refused(scan: Phantom, good: Path, change: str) -> None:
    other = {
        "origin": phantom(centre_xyz_mm=(21.0, -35.0, 410.0)),
        "spacing": phantom(spacing_zyx_mm=(3.0, 1.25, 1.3)),
        "direction": phantom(direction=((0.8, -0.6, 0), (0.6, 0.8, 0), (0, 0, 1))),
    }[change].write_labels(good.with_name("l.nii.gz"))
    assert "corners" in refused(good, errors.LabelMismatch, label(other))


def test_a_label_off_by_rounding_is_accepted(scan: Phantom, good: Path) -> None:
    nearly = phantom(centre_xyz_mm=(20.01, -35.0, 410.0), spacing_zyx_mm=(3.0001, 1.2, 1.3))
    path = nearly.replace(labels=scan.labels).write_labels(good.with_name("l.nii.gz"))
    raw = read_source(source_of(good, label(path)), CONFIG)
    np.testing.assert_array_equal(raw.labels[0].array, scan.labels)


def test_label_values_that_were_not_declared_are_refused(scan: Phantom, good: Path) -> None:
    path = scan.write_labels(good.with_name("l.nii.gz"))
    message = refused(good, errors.LabelMismatch, label(path, {1: "organ", 2: "lesion", 3: "lung"}))
    assert "these are not: 4, 5" in message


@pytest.mark.parametrize("values", [(0, 0.5), (0, -1), (0, 70000)])
def test_label_values_that_are_no_labels_are_refused(
    scan: Phantom, good: Path, values: tuple[float, float]
) -> None:
    array = np.where(scan.labels > 0, values[1], values[0]).astype(np.float32)
    path = scan.replace(labels=array).write_labels(good.with_name("l.nii.gz"))
    assert "whole numbers" in refused(good, errors.LabelMismatch, label(path))


def test_labels_saved_as_floats_or_above_255_are_kept(scan: Phantom, good: Path) -> None:
    array = (scan.labels.astype(np.float32)) * 100
    path = scan.replace(labels=array).write_labels(good.with_name("l.nii.gz"))
    (found,) = read_source(source_of(good, label(path)), CONFIG).labels
    assert found.array.dtype == np.uint16
    np.testing.assert_array_equal(found.array, array)


def test_a_missing_label_file_says_that_it_is_the_label(good: Path) -> None:
    assert "label file does not exist" in refused(
        good, errors.UnreadableFile, label(good.with_name("no.nii.gz"))
    )


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


def test_of_a_4d_label_map_the_volume_of_its_scan_is_taken(scan: Phantom, tmp_path: Path) -> None:
    def write(name: str, volumes: list[np.ndarray]) -> Path:
        images = [sitk.GetImageFromArray(volume) for volume in volumes]
        sitk.WriteImage(sitk.JoinSeries(images), str(tmp_path / name))
        return tmp_path / name

    path = write("x.nii.gz", [scan.image, scan.image + 1])
    labels = scan.labels.astype(np.uint8)
    label = LabelSource(name="gt", path=write("x_gt.nii.gz", [labels * 0, labels]), value_names=None)
    (read,) = read_source(source_of(path, label, frame=1), CONFIG).labels
    assert np.array_equal(read.array, labels)
    short = LabelSource(name="gt", path=write("y_gt.nii.gz", [labels * 0] * 2), value_names=None)
    whole = scan.write(tmp_path / "whole.nii.gz")
    assert "Save the volume" in refused(whole, errors.LabelMismatch, short)
