"""Sets of small scans in one .npz file: each a scan, voxel for voxel, with split and class; or an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from commands.prepare.plan import Found, Job
from pipeline.discovery.fingerprint import choices_digest, source_digest, source_stat
from pipeline.discovery.from_path import discover
from pipeline.errors import ConfigError, CorruptImage, LabelMismatch, NotAnImage, NotVolumetric, ScanError
from pipeline.formats import npz_sets
from pipeline.formats.npz_sets import open_set, read_set_image
from pipeline.ingest.config import IngestConfig
from pipeline.ingest.reading import read_scan_header, read_source
from pipeline.ingest.standard_scan import standardize

CONFIG = IngestConfig()
RULES = CONFIG.series_rules
SHAPE = (9, 11, 12)


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *SHAPE)).astype(np.uint8)


def arrays(**more: Any) -> dict[str, Any]:
    """Three training and two test scans with a class each."""
    return {
        "train_images": images(3),
        "train_labels": np.array([[0], [2], [1]], np.uint8),
        "test_images": images(2, seed=1),
        "test_labels": np.array([[1], [0]], np.uint8),
    } | more


def write(path: Path, values: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **values)
    return path


@pytest.mark.parametrize("whole_folder", [False, True])
def test_every_image_is_a_scan_of_its_split_and_class(tmp_path: Path, whole_folder: bool) -> None:
    path = write(tmp_path / "raw" / "nodule.npz", arrays())
    found = discover(path.parent if whole_folder else path, RULES)
    assert [(s.scan_id, s.split, s.classes) for s in found.sources] == [
        ("nodule_test_0000", "test", ("1",)),
        ("nodule_test_0001", "test", ("0",)),
        ("nodule_train_0000", "train", ("0",)),
        ("nodule_train_0001", "train", ("2",)),
        ("nodule_train_0002", "train", ("1",)),
    ]
    assert {s.dataset for s in found.sources} == {"nodule"}
    assert found.sources[2].location == "nodule.npz [train 0000]"
    assert found.failures == ()
    (note,) = found.notes
    assert "3 train, 2 test" in note
    assert "without voxel size or orientation" in note


def test_a_scan_of_a_set_is_stored_voxel_for_voxel_in_the_file_s_order(tmp_path: Path) -> None:
    values = arrays()
    (source,) = [
        s for s in discover(write(tmp_path / "s.npz", values), RULES).sources if s.scan_id == "s_train_0001"
    ]
    everything = IngestConfig(percentiles=(0, 100))
    scan = standardize(read_source(source, everything), everything)
    assert scan.grid.spacing_zyx_mm == (1.5, 1.5, 1.5)
    real = scan.image * scan.scale + scan.offset
    np.testing.assert_allclose(real, values["train_images"][1], atol=scan.scale)
    assert (scan.modality, scan.modality_origin) == ("other", "set")
    assert read_scan_header(source, everything).voxels_at(1.5) == np.prod(SHAPE)


def test_a_mask_in_a_dark_volume_is_neither_cropped_nor_taken_for_a_label(tmp_path: Path) -> None:
    shape = np.zeros((1, 28, 28, 28), np.uint8)
    shape[0, 12:15, 12:14, 10:13] = 255  # less than the percentiles clip
    (source,) = discover(write(tmp_path / "s.npz", {"val_images": shape}), RULES).sources
    scan = standardize(read_source(source, CONFIG), CONFIG)
    real = scan.image * scan.scale + scan.offset
    np.testing.assert_allclose(real, shape[0], atol=scan.scale)
    assert (source.split, source.classes) == ("val", ())


def test_a_declared_voxel_size_is_resampled_like_any_other(tmp_path: Path) -> None:
    (source, *_) = discover(write(tmp_path / "s.npz", {"train_images": images(1)}), RULES).sources
    config = IngestConfig(spacing_mm=2.0, set_spacing_mm=1.0)
    scan = standardize(read_source(source, config), config)
    assert scan.source_grid.spacing_xyz_mm == (1.0, 1.0, 1.0)
    assert scan.grid.spacing_zyx_mm == (2.0, 2.0, 2.0)
    assert all(abs(2 * n - m) <= 1 for n, m in zip(scan.image.shape, SHAPE, strict=True))
    with pytest.raises(ConfigError, match="set_spacing_mm must be above 0"):
        IngestConfig(set_spacing_mm=0.0)


def test_a_column_a_class_is_kept_as_0_and_1(tmp_path: Path) -> None:
    flags = np.array([[0, 1], [1, 1], [0, 0]])
    found = discover(write(tmp_path / "s.npz", {"train_images": images(3), "train_labels": flags}), RULES)
    assert [s.classes for s in found.sources] == [("0", "1"), ("1", "1"), ("0", "0")]


def test_only_the_scan_whose_voxels_or_class_changed_has_another_digest(tmp_path: Path) -> None:
    before = discover(write(tmp_path / "a" / "s.npz", arrays()), RULES).sources
    changed = arrays()
    changed["train_images"][1, 3, 3, 3] ^= 1
    changed["train_labels"][2] = 7
    after = discover(write(tmp_path / "b" / "s.npz", changed), RULES).sources
    differ = [
        one.scan_id
        for one, other in zip(before, after, strict=True)
        if source_digest(one) != source_digest(other)
    ]
    assert differ == ["s_train_0001", "s_train_0002"]
    assert len({source_digest(source) for source in before}) == len(before)
    assert len({choices_digest(source) for source in before}) == len(before)


def test_a_scan_of_a_set_weighs_what_it_holds_not_what_the_file_does(tmp_path: Path) -> None:
    (source, *_) = discover(write(tmp_path / "s.npz", arrays()), RULES).sources
    found = Found(source=source, files=tuple(source_stat(source)), choices_digest=choices_digest(source))
    assert Job(found=found, stage="ingest", why="new").weight == np.prod(SHAPE)


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        ({"x": np.zeros(3)}, NotAnImage, "train_images, val_images or test_images, this .npz holds x"),
        ({"train_images": np.zeros((4, 28, 28), np.uint8)}, NotVolumetric, r"\(N, z, y, x\)"),
        ({"train_images": np.zeros((4, 28, 28, 3), np.uint8)}, NotVolumetric, r"\(4, 28, 28, 3\)"),
        ({"train_images": np.zeros((4, 8, 8, 8), "U1")}, NotVolumetric, "must be numbers"),
        ({"train_images": np.zeros((4, 8, 8, 8), object)}, NotVolumetric, "must be numbers"),
        (arrays(train_labels=np.zeros((2, 1), int)), LabelMismatch, "one row for each of 3 images"),
        (arrays(train_labels=np.zeros((3, 1))), LabelMismatch, "whole numbers from 0"),
        (arrays(train_labels=np.full((3, 1), -1)), LabelMismatch, "whole numbers from 0"),
        (arrays(train_labels=np.full((3, 2), 2)), LabelMismatch, "each must be 0 or 1, got 2"),
        (arrays(train_labels=np.array([None] * 3)), CorruptImage, "damaged"),
    ],
)
def test_an_npz_that_is_no_such_set_is_one_failure_that_says_why(
    values: dict[str, Any], kind: type[ScanError], message: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "s.npz", values)
    with pytest.raises(kind, match=message):
        open_set(path, shown="s.npz")
    found = discover(path, RULES)
    assert found.sources == ()
    (failure,) = found.failures
    assert (failure.kind, failure.location) == (kind.__name__, "s.npz")
    assert failure.remedy


def test_a_set_beyond_the_limit_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "s.npz", arrays())
    monkeypatch.setattr(npz_sets, "_MAX_ARRAY_BYTES", 3 * 9 * 11 * 12 - 1)
    with pytest.raises(CorruptImage, match="train_images has 3,564 bytes, 3,563 are allowed"):
        open_set(path, shown="s.npz")


def test_a_set_that_the_disk_does_not_give_is_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    path = write(tmp_path / "s.npz", arrays())
    monkeypatch.setattr(npz_sets, "_part", failing)
    monkeypatch.setattr(npz_sets, "_images", failing)
    with pytest.raises(ScanError, match="Input/output error"):
        open_set(path, shown="s.npz")
    with pytest.raises(ScanError, match="Input/output error"):
        read_set_image(path, "train_images", 0, shown="s.npz")


def test_an_image_of_a_set_too_small_to_be_a_volume_is_refused(tmp_path: Path) -> None:
    (source, *_) = discover(write(tmp_path / "s.npz", arrays()), RULES).sources
    with pytest.raises(NotVolumetric, match="at least 10 voxels along three axes, this has"):
        read_source(source, IngestConfig(min_size_voxels=10))


def test_other_npz_files_in_a_folder_are_left_out_and_noted(tmp_path: Path) -> None:
    write(tmp_path / "features.npz", {"x": np.zeros(3)})
    write(tmp_path / "set.npz", {"train_images": images(1)})
    found = discover(tmp_path, RULES)
    assert [s.scan_id for s in found.sources] == ["set_train_0000"]
    assert found.failures == ()
    assert any(note.startswith("features.npz left out: a set of scans holds") for note in found.notes)


def test_a_damaged_set_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "s.npz", arrays())
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(NotAnImage, match="is a ZIP archive, this is none"):
        open_set(path, shown="s.npz")
    spoilt = bytearray(whole)
    spoilt[2000:2100] = bytes(100)
    path.write_bytes(spoilt)
    with pytest.raises(CorruptImage, match="cut short or damaged"):
        read_set_image(path, "train_images", 0, shown="s.npz")


def test_an_image_that_a_set_no_longer_has_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "s.npz", arrays())
    source = discover(path, RULES).sources[-1]
    write(path, {"train_images": images(1)})
    with pytest.raises(CorruptImage, match="cut short or damaged"):
        read_source(source, CONFIG)


def test_a_manifest_keeps_classes_and_refuses_a_set(tmp_path: Path) -> None:
    write(tmp_path / "s.npz", arrays())
    (tmp_path / "a.nii.gz").write_bytes(b"x")
    manifest = tmp_path / "m.csv"
    manifest.write_text("id,image,class\na,a.nii.gz,sick\nb,a.nii.gz,\ns,s.npz,\n")
    found = discover(manifest, RULES)
    assert [(s.scan_id, s.classes) for s in found.sources] == [("a", ("sick",)), ("b", ())]
    (failure,) = found.failures
    assert "this .npz file can only be a set of many" in failure.reason
