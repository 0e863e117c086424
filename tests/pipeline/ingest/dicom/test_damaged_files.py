"""Damaged DICOM files of every kind: an error without a path, no crash, no memory for what is not there."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import numpy as np
import pytest

from pipeline.discovery import discover
from pipeline.errors import ScanError
from pipeline.ingest import IngestConfig, read_source
from tests.dicom_files import write_enhanced, write_rtstruct, write_seg
from tests.phantom import phantom, write_dicom
from tests.pipeline.ingest.dicom.test_structure_sets import ring

CONFIG = IngestConfig()
SMALL = {"shape_zyx": (9, 20, 24), "spacing_zyx_mm": (8.0, 3.6, 3.9)}
HARMS = (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f", b"NaN ", b"1e99")


@pytest.fixture
def tree(tmp_path: Path) -> dict[str, Path]:
    """One file of each kind, in a tree of scans and labels that can all be read."""
    scan = phantom(**SMALL)
    write_dicom(tmp_path / "ct", scan)
    tags = {"Units": "BQML", "DecayCorrection": "START", "PatientWeight": 70, "SeriesDate": "20200101"}
    pet = write_dicom(tmp_path / "pet", phantom(**SMALL, modality="pet"), series_uid="1.2.8", tags=tags)
    frames = [(n, k, scan.labels[k] == n) for n in (1, 2) for k in range(9)]
    rings = {"x": [ring(scan, 5, 12.3, 9.2, 5.31)], "y": [ring(scan, 6, 12.3, 9.2, 5.31)]}
    mr = phantom(**SMALL, modality="mr")
    return {
        "seg": write_seg(tmp_path / "seg.dcm", frames, scan, names={1: "a", 2: "b"}),
        "rtstruct": write_rtstruct(tmp_path / "rs.dcm", rings),
        "pet": pet[4],
        "enhanced": write_enhanced(tmp_path / "enhanced.dcm", mr, rescale=[(1.0 + k, 2.0) for k in range(9)]),
    }


def damaged(content: bytes, rng: random.Random) -> bytes:
    """The content with a few bytes changed, left out, or cut off, mostly in the header."""
    made = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        place, kind = rng.randrange(132, min(len(made), 6000)), rng.random()
        if kind < 0.5:
            made[place] = rng.randrange(256)
        elif kind < 0.7:
            made[place : place + 4] = rng.choice(HARMS)
        elif kind < 0.85:
            del made[place : place + rng.randrange(1, 40)]
        elif place > 200:
            del made[place:]
    return bytes(made)


@pytest.mark.parametrize("times", [16, pytest.param(60, marks=pytest.mark.long)])
@pytest.mark.parametrize("kind", ["seg", "rtstruct", "pet", "enhanced"])
def test_a_damaged_file_is_a_clear_failure_or_reads(
    tree: dict[str, Path], tmp_path: Path, kind: str, times: int
) -> None:
    path, rng, errors = tree[kind], random.Random(kind), list[str]()
    content = path.read_bytes()
    for _ in range(times):
        path.write_bytes(damaged(content, rng))
        found = discover(tmp_path, CONFIG.series_rules)
        errors.extend(failure.reason + failure.remedy for failure in found.failures)
        assert str(tmp_path) not in repr(found.notes)
        for source in found.sources:
            try:
                read_source(source, CONFIG)
            except ScanError as error:
                errors.append(str(error))
    assert len(errors) > times // 8
    assert str(tmp_path) not in "".join(errors)


def test_a_file_that_is_shorter_than_its_tags_say_is_refused_before_its_pixels_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_dicom(tmp_path, phantom(**SMALL))[4]
    content = path.read_bytes()
    pixels = content.index(b"\xe0\x7f\x10\x00OW") + 8
    path.write_bytes(content[:pixels] + struct.pack("<I", 0x70000000) + content[pixels + 4 :])

    def decode(*_: object) -> np.ndarray:
        raise AssertionError("memory would be taken")

    monkeypatch.setattr("pipeline.ingest.dicom.pixels._decode", decode)
    (source,) = discover(tmp_path, CONFIG.series_rules).sources
    with pytest.raises(ScanError, match="shorter than its own header says"):
        read_source(source, CONFIG)
