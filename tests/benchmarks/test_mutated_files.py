"""Files with faults: the whole run of 300, and the faults that once crashed something."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from benchmarks.plain_readers import plain_reader
from pipeline.discovery.from_path import discover
from pipeline.errors import CorruptImage, NotAnImage, ScanError
from pipeline.ingest.config import IngestConfig
from pipeline.ingest.reading import read_source
from tests.phantom import phantom, write_dicom

ROOT = Path(__file__).parents[2]
CONFIG = IngestConfig()


@pytest.mark.long
def test_of_300_files_with_faults_none_crashes_hangs_or_is_misread() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.mutated_files", "--count", "300", "--memory", "1024"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    assert "300 files, 0 misread, crashed or hung" in run.stdout


@pytest.mark.parametrize("name", ["x.nii.gz", "x.nrrd", "x.nhdr", "x.mha", "x.mhd"])
def test_the_second_reader_reads_sound_files_as_the_first(tmp_path: Path, name: str) -> None:
    scan = phantom(shape_zyx=(6, 7, 8), direction=((0, 0, 1), (-1, 0, 0), (0, -1, 0)))
    path = scan.write(tmp_path / name)
    arrays, affines = plain_reader(name)(path)
    np.testing.assert_array_equal(arrays[0], scan.image)
    np.testing.assert_allclose(affines[0], scan.grid.affine, atol=1e-3)


def read(folder: Path) -> None:
    (source,) = discover(folder, CONFIG.series_rules).sources
    read_source(source, CONFIG)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        (
            b"s%03d.raw 1 9 0",
            "is not valid",
        ),  # the library divides by the step, which ends the process
        (b"LO%5Y\x9d\x01", "is not valid"),
        (b"x\0.raw", "is not valid"),
    ],
)
def test_a_data_file_whose_name_is_none_is_refused_before_the_library_sees_it(
    tmp_path: Path, name: bytes, what: str
) -> None:
    path = phantom().write(tmp_path / "x.mha")
    head, _, body = path.read_bytes().partition(b"ElementDataFile = LOCAL")
    path.write_bytes(head + b"ElementDataFile = " + name + body)
    with pytest.raises(CorruptImage, match=what):
        read(tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"NDims = 3", b"NDims = 4"),
        (b"NDims = 3", b"NDims = x"),
        (b"ElementSpacing = 1.3 1.2 3", b"ElementSpacing = 1.3 1.2"),
        (b"CompressedDataSize = ", b"CompressedDataSize = x"),
        (b"CompressedData = True", b"CompressedData = maybe"),
        (b"BinaryData = True", b"BinaryData True"),
    ],
)
def test_a_metaimage_header_that_makes_no_sense_is_refused_in_silence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], old: bytes, new: bytes
) -> None:
    path = phantom().write(tmp_path / "x.mha")
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))
    with pytest.raises(CorruptImage, match="the MetaImage header makes no sense"):
        read(tmp_path)
    assert capfd.readouterr() == ("", "")


def test_a_metaimage_with_fields_of_other_formats_is_read(tmp_path: Path) -> None:
    path = phantom().write(tmp_path / "x.mha")
    data = path.read_bytes()
    path.write_bytes(data.replace(b"DimSize", b"dim[0] = 3\nITK_FileNotes = a = b\nDimSize", 1))
    read(tmp_path)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_a_size_that_the_bytes_cannot_hold_is_refused_before_memory_is_taken(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = phantom().write(tmp_path / f"x{suffix}")
    data = path.read_bytes()
    path.write_bytes(data.replace(b"70 60 36", b"65536 65536 1024"))
    monkeypatch.setattr("pipeline.ingest.image_files.read_with_itk", lambda *_: pytest.fail("it was read"))
    with pytest.raises(CorruptImage, match="cut short: its header needs 8796093022208 bytes"):
        read(tmp_path)


def test_a_damaged_dicom_file_does_not_end_the_search(tmp_path: Path) -> None:
    paths = write_dicom(tmp_path / "series", phantom())
    phantom().write(tmp_path / "good.nii.gz")
    data = bytearray(paths[0].read_bytes())
    struct.pack_into("<H", data, 138, 1326)  # the length of the group's length
    paths[0].write_bytes(data)
    found = discover(tmp_path, CONFIG.series_rules)
    assert "good" in [source.scan_id for source in found.sources]


def test_an_array_header_that_is_no_python_is_a_damaged_set(tmp_path: Path) -> None:
    file = io.BytesIO()
    np.lib.format.write_array(file, np.zeros((2, 8, 8, 8), np.int16))
    header = file.getvalue().replace(b"'descr': ", b"'descr': (((")
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("train_images.npy", header)
    (failure,) = discover(tmp_path, CONFIG.series_rules).failures
    assert failure.kind == CorruptImage.__name__


def test_nothing_of_a_file_of_noise_is_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("a.hdr", "b.mgz", "c.mgh", "d.nii"):
        (tmp_path / name).write_bytes(rng.bytes(5000))
        (tmp_path / "a.img").write_bytes(rng.bytes(5000))
    for source in discover(tmp_path, CONFIG.series_rules).sources:
        with pytest.raises(ScanError) as caught:
            read_source(source, CONFIG)
        assert isinstance(caught.value, NotAnImage)
