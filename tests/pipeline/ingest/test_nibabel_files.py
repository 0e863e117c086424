"""What SimpleITK does not read, nibabel does: the same voxels in the same place, by the same rules."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from pipeline.discovery.from_path import discover
from pipeline.errors import BadGeometry, BadSpacing, CorruptImage, NoSuchFrame, NotVolumetric, UnreadableFile
from pipeline.ingest.config import IngestConfig
from pipeline.ingest.nibabel_files import read_with_nibabel
from pipeline.ingest.reading import RawScan, read_source
from pipeline.ingest.standard_scan import standardize
from pipeline.volumes.grid import Grid, corner_distance_mm
from tests.phantom import Phantom, phantom

CONFIG = IngestConfig()
TURNED = ((0, 0, 1), (-1, 0, 0), (0, -1, 0))
TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
WRITERS = {
    "x.nii": nibabel.Nifti2Image,
    "x.nii.gz": nibabel.Nifti2Image,
    "x.hdr": nibabel.Nifti1Pair,
    "x.mgh": nibabel.MGHImage,
    "x.mgz": nibabel.MGHImage,
}


def read(path: Path, config: IngestConfig = CONFIG) -> RawScan:
    (source,) = discover(path, config.series_rules).sources
    return read_source(source, config)


def write(path: Path, scan: Phantom, image_class: Any, *, frames: int = 0) -> Path:
    """The phantom as nibabel writes it; with frames, each one brighter by 1 than the one before."""
    array = scan.image.T
    if frames:
        array = np.stack([array + frame for frame in range(frames)], axis=-1)
    image = image_class(array, TO_RAS @ scan.grid.affine)
    if path.suffix == ".hdr":
        path = path.with_suffix(".img")
    image.to_filename(path)
    return path


@pytest.mark.parametrize("name", WRITERS)
def test_a_format_of_nibabel_has_the_same_voxels_in_the_same_place(tmp_path: Path, name: str) -> None:
    scan = phantom(direction=TURNED)
    write(tmp_path / name, scan, WRITERS[name])
    raw = read(tmp_path / name)
    assert raw.image.dtype == np.int16
    np.testing.assert_array_equal(raw.image, scan.image)
    assert corner_distance_mm(raw.grid, scan.grid) < 1e-3
    assert Grid.from_dict(json.loads(json.dumps(raw.grid.to_dict()))) == raw.grid
    assert raw.notes == ()


@pytest.mark.parametrize("name", ["x.nii.gz", "x.hdr", "x.mgz"])
def test_a_frame_of_a_4d_file_can_be_chosen(tmp_path: Path, name: str) -> None:
    scan = phantom()
    write(tmp_path / name, scan, WRITERS[name], frames=3)
    with pytest.raises(NoSuchFrame, match="frame = 0 to 2"):
        read(tmp_path / name)
    np.testing.assert_array_equal(read(tmp_path / name, IngestConfig(frame=2)).image, scan.image + 2)


def test_analyze_has_the_voxels_and_an_orientation_that_is_said_to_be_assumed(tmp_path: Path) -> None:
    scan = phantom()
    write(tmp_path / "x.hdr", scan, nibabel.AnalyzeImage)
    raw = read(tmp_path)
    np.testing.assert_array_equal(raw.image, scan.image)
    assert raw.grid.spacing_xyz_mm == pytest.approx(scan.grid.spacing_xyz_mm)
    np.testing.assert_array_equal(raw.grid.matrix, np.diag([1, -1, 1]))  # to the left, front, head
    assert "has no orientation" in raw.notes[0]
    assert standardize(raw, CONFIG).notes[0] == raw.notes[0]


def test_slope_and_intercept_are_applied(tmp_path: Path) -> None:
    scan = phantom()
    image = nibabel.Nifti2Image(scan.image.T, TO_RAS @ scan.grid.affine)
    image.header.set_slope_inter(0.5, -10)
    image.to_filename(tmp_path / "x.nii")
    np.testing.assert_allclose(read(tmp_path / "x.nii").image, scan.image * 0.5 - 10)


def test_an_orientation_in_a_file_of_spm_is_not_left_out_in_silence(tmp_path: Path) -> None:
    write(tmp_path / "x.hdr", phantom(), nibabel.AnalyzeImage)
    (tmp_path / "x.mat").write_bytes(b"any")
    with pytest.raises(BadGeometry, match=r"\.mat file of SPM"):
        read(tmp_path / "x.hdr")


def test_a_header_without_its_data_file_is_unreadable(tmp_path: Path) -> None:
    write(tmp_path / "x.hdr", phantom(), nibabel.Nifti1Pair)
    (tmp_path / "x.img").unlink()
    with pytest.raises(UnreadableFile, match="data file named by the header does not exist"):
        read(tmp_path / "x.hdr")


@pytest.mark.parametrize("name", [*WRITERS, "analyze.hdr"])
def test_a_file_that_is_cut_short_is_corrupt(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, phantom(), WRITERS.get(name, nibabel.AnalyzeImage))
    data = (tmp_path / name).with_suffix(".img") if name.endswith(".hdr") else tmp_path / name
    data.write_bytes(data.read_bytes()[:-500])
    with pytest.raises(CorruptImage, match="cut short"):
        read(tmp_path / name)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_a_voxel_size_that_no_scanner_makes_is_refused(tmp_path: Path, value: float) -> None:
    path = write(tmp_path / "x.nii", phantom(), nibabel.Nifti2Image)
    data = bytearray(path.read_bytes())
    struct.pack_into("<d", data, 112, value)
    path.write_bytes(data)
    with pytest.raises(BadSpacing, match="must be positive"):
        read(path)


# --- orientation


def oblique(degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def header_with(path: Path, sform: np.ndarray, qform: np.ndarray, sform_code: int, qform_code: int) -> Path:
    """A NIfTI-1 file with both orientations as given; nibabel would repair them."""
    array = np.arange(5 * 6 * 7, dtype=np.int16).reshape(5, 6, 7)
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape(array.shape)
    header.set_qform(qform)
    header.set_sform(sform)
    header["sform_code"], header["qform_code"] = sform_code, qform_code
    header["vox_offset"], header["magic"] = 352, b"n+1"
    path.write_bytes(header.binaryblock + b"\0" * 4 + array.tobytes(order="F"))
    return path


@pytest.mark.parametrize("sform_code", [0, 1, 2, 4])
@pytest.mark.parametrize("qform_code", [0, 1, 2])
def test_both_libraries_take_the_same_of_two_orientations(
    tmp_path: Path, sform_code: int, qform_code: int
) -> None:
    sizes = np.diag([1.0, 2.0, 3.0])
    one, other = np.eye(4), np.eye(4)
    one[:3, :3], one[:3, 3] = oblique(10) @ sizes, (10, 20, 30)
    other[:3, :3], other[:3, 3] = oblique(30) @ sizes, (1, 2, 3)
    path = header_with(tmp_path / "x.nii", one, other, sform_code, qform_code)
    ours = read_with_nibabel(path, "Nifti1Image", "", CONFIG, None, "x").grid
    image = sitk.ReadImage(str(path))
    theirs = Grid(
        shape_zyx=(7, 6, 5),
        spacing_xyz_mm=image.GetSpacing(),
        origin_xyz_mm=image.GetOrigin(),
        direction=image.GetDirection(),
    )
    assert corner_distance_mm(ours, theirs) < 1e-4


def sheared_by(degrees: float, scan: Phantom) -> np.ndarray:
    """The phantom's affine, right and front, with its y axis leant towards the x axis."""
    matrix = scan.grid.matrix.copy()
    angle = np.radians(degrees)
    matrix[:, 1] = np.cos(angle) * matrix[:, 1] + np.sin(angle) * matrix[:, 0]
    affine = scan.grid.affine
    affine[:3, :3] = matrix * np.array(scan.grid.spacing_xyz_mm)
    return affine


@pytest.mark.parametrize("image_class", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_axes_nearly_at_right_angles_are_put_right_and_the_change_is_told(
    tmp_path: Path, image_class: Any
) -> None:
    scan = phantom(direction=TURNED)
    affine = sheared_by(0.5, scan)
    image = image_class(scan.image.T, TO_RAS @ affine)
    image.to_filename(tmp_path / "x.nii")
    raw = read(tmp_path / "x.nii")
    np.testing.assert_array_equal(raw.image, scan.image)
    assert np.abs(raw.grid.matrix.T @ raw.grid.matrix - np.eye(3)).max() < 1e-9
    (note,) = raw.notes
    # Both axes are turned by half of the half degree, about the middle of 70 x 60 voxels of 1.3 x 1.2 mm.
    x, y = 70 * 1.3 / 2, 60 * 1.2 / 2
    expected = np.radians(0.25) * np.hypot(x, y)
    assert note.startswith("the header's axes are 0.50 degrees off right angles")
    assert float(note.split(" by ")[1].split()[0]) == pytest.approx(expected, abs=0.01)
    middle = np.array([34.5, 29.5, 17.5])
    np.testing.assert_allclose(raw.grid.to_world(middle), affine[:3, :3] @ middle + affine[:3, 3], atol=1e-3)


def test_axes_of_a_text_header_are_put_right_too(tmp_path: Path) -> None:
    scan = phantom()
    path = scan.write(tmp_path / "x.mha")
    raw = read(path)
    text = path.read_bytes()
    path.write_bytes(
        text.replace(b"TransformMatrix = 1 0 0 0 1 0", b"TransformMatrix = 1 0 0 0.01 0.99995 0")
    )
    (note,) = read(path).notes
    assert "0.57 degrees" in note
    assert raw.notes == ()


@pytest.mark.parametrize("degrees", [1.2, 5, 60])
def test_axes_further_off_are_refused(tmp_path: Path, degrees: float) -> None:
    scan = phantom()
    nibabel.Nifti1Image(scan.image.T, TO_RAS @ sheared_by(degrees, scan)).to_filename(tmp_path / "x.nii")
    with pytest.raises(BadGeometry, match=rf"1 degree is put right, this is {degrees:.1f} degrees off"):
        read(tmp_path / "x.nii")


# --- colours and complex numbers


def test_a_colour_nifti_is_refused_as_one(tmp_path: Path) -> None:
    colours = np.zeros((8, 9, 10), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.Nifti1Image(colours, np.eye(4)).to_filename(tmp_path / "x.nii.gz")
    with pytest.raises(NotVolumetric, match=r"colour image \(red, green and blue\)"):
        read(tmp_path / "x.nii.gz", IngestConfig(frame=0))


@pytest.mark.parametrize("name", ["x.nii", "x.nrrd", "x.mha"])
def test_complex_numbers_are_refused_as_such(tmp_path: Path, name: str) -> None:
    array = (phantom().image + 1j).astype(np.complex64)
    if name == "x.nii":
        nibabel.Nifti1Image(array.T, np.eye(4)).to_filename(tmp_path / name)
    elif name == "x.nrrd":
        header = "NRRD0004\ntype: float\ndimension: 4\nsizes: 2 70 60 36\nspacings: nan 1 1 1\n"
        header += "kinds: complex domain domain domain\nendian: little\nencoding: raw\n\n"
        (tmp_path / name).write_bytes(header.encode() + array.tobytes())
    else:
        image = sitk.GetImageFromArray(np.stack([array.real, array.imag], axis=-1), isVector=True)
        sitk.WriteImage(image, str(tmp_path / name))
        with pytest.raises(NoSuchFrame, match="a vector image with 2 volumes"):  # MetaImage does not say
            read(tmp_path / name)
        return
    with pytest.raises(NotVolumetric, match="complex numbers"):
        read(tmp_path / name)
