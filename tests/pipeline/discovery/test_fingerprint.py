"""Digests of sources, and what headers show before anything is read."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from pipeline.discovery.fingerprint import source_digest, source_stat
from pipeline.discovery.from_path import discover
from pipeline.errors import (
    CorruptImage,
    NotVolumetric,
)
from pipeline.ingest.config import IngestConfig
from pipeline.ingest.reading import read_scan_header, read_source
from tests.phantom import phantom, write_dicom
from tests.pipeline.discovery.test_discovery import RULES
from tests.pipeline.discovery.test_from_manifest import manifest


def test_the_digest_follows_content_and_choices_and_not_names(tmp_path: Path) -> None:
    scan = phantom()
    first = scan.write(tmp_path / "a" / "x.nii.gz")
    second = tmp_path / "b" / "other.nii.gz"
    second.parent.mkdir()
    second.write_bytes(first.read_bytes())
    text = "id,image,modality,label,case\n{id},{image},{modality},{label},{case}\n"

    def digest(**row: str) -> str:
        row = {"id": "x", "modality": "", "label": "", "case": ""} | row
        (source,) = discover(manifest(tmp_path, text.format(**row)), RULES).sources
        return source_digest(source)

    same = digest(image="a/x.nii.gz")
    assert digest(image="b/other.nii.gz") == same
    assert digest(image="a/x.nii.gz", modality="ct") != same
    scan.write_labels(tmp_path / "l.nii.gz")
    assert digest(image="a/x.nii.gz", label="l.nii.gz") != same
    assert len({same, digest(image="a/x.nii.gz", case="p"), digest(image="a/x.nii.gz", case="q")}) == 3
    scan.replace(image=scan.image + 1).write(first)
    assert digest(image="a/x.nii.gz") != same


def test_the_stat_changes_with_any_slice(tmp_path: Path) -> None:
    paths = write_dicom(tmp_path / "s", phantom())
    (source,) = discover(tmp_path, RULES).sources
    before = source_stat(source)
    assert len(before) == 1
    assert before == source_stat(source)
    os.utime(paths[4], ns=(1, 1))
    assert source_stat(source) != before


def test_a_header_shows_what_reading_would_refuse(tmp_path: Path) -> None:
    scan = phantom()
    scan.write(tmp_path / "cut.nii")
    with (tmp_path / "cut.nii").open("r+b") as file:
        file.truncate(5000)
    scan.replace(image=scan.image[:1], grid=dataclasses.replace(scan.grid, shape_zyx=(1, 60, 70))).write(
        tmp_path / "flat.mha"
    )
    scan.write(tmp_path / "good.nii.gz")
    found = {source.scan_id: source for source in discover(tmp_path, RULES).sources}
    for scan_id, error in (("cut", CorruptImage), ("flat", NotVolumetric)):
        with pytest.raises(error) as told:
            read_scan_header(found[scan_id], IngestConfig())
        assert str(tmp_path) not in str(told.value)
        with pytest.raises(error):
            read_source(found[scan_id], IngestConfig())
    assert read_scan_header(found["good"], IngestConfig()).num_voxels == 36 * 60 * 70
