"""The store of SLIC masks: the same scans, with segments of the right sizes, and no work done twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.slic_store import Limits, limits_of, make_slic_store, with_slic
from pipeline.quality.slic_baseline import SlicConfig
from storage import Store, commit_scan, create_store, open_store, verify
from tests.storage.drawn_record import draw_record

SLIC = SlicConfig(segments=(8, 60), iterations=2)
LIMITS = Limits(min_volume_mm3=100.0, max_volume_fraction=0.6)
SHAPE = (16, 25, 41)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Store:
    path = tmp_path_factory.mktemp("slic") / "source"
    create_store(path, spacing_mm=1.5, config={"proposals": {"min_volume_mm3": 150.0}})
    for number in range(2):
        commit_scan(path, draw_record(f"scan-{number}", shape=SHAPE, seed=number))
    return open_store(path)


@pytest.fixture(scope="module")
def made(source: Store) -> Store:
    return make_slic_store(source.path, source.path.parent / "made", slic=SLIC, limits=LIMITS)


def test_it_verifies_and_has_the_same_scans_images_and_labels(source, made):
    assert list(verify(made.path)) == []
    assert made.scan_ids == source.scan_ids
    for scan_id in source.scan_ids:
        before, after = source.scan(scan_id), made.scan(scan_id)
        assert (before.image() == after.image()).all()
        assert (before.labels("organs") == after.labels("organs")).all()
        assert before.attributes == after.attributes
        assert (before.spacing_zyx_mm, before.dataset, before.split) == (
            after.spacing_zyx_mm,
            after.dataset,
            after.split,
        )


def test_every_scale_is_a_layer_and_its_masks_do_not_overlap(made):
    scan = made.scan("scan-0")
    assert scan.sources == ("slic-8", "slic-60")
    assert scan.num_layers == 2
    for code in range(2):
        rows = np.flatnonzero(scan.proposals.source == code)
        assert len(rows) > 1
        assert scan.masks(rows).sum(axis=0).max() == 1
        assert (scan.masks(rows).sum(axis=(1, 2, 3)) == scan.proposals.voxels[rows]).all()


def test_segments_outside_the_size_limits_are_no_masks(source):
    record = source.scan("scan-0").record()
    loose = with_slic(record, SLIC, Limits(min_volume_mm3=0.0, max_volume_fraction=1.0)).table[:, 9]
    least, most = np.percentile(loose, (30, 80))
    limits = Limits(
        min_volume_mm3=least * np.prod(record.spacing_zyx_mm), max_volume_fraction=most / record.image.size
    )
    tight = with_slic(record, SLIC, limits).table[:, 9]
    assert 0 < len(tight) < len(loose)
    assert sorted(tight) == sorted(loose[(loose >= least) & (loose <= int(most))])
    with pytest.raises(ValueError, match="size limits"):
        with_slic(record, SLIC, Limits(min_volume_mm3=1e9, max_volume_fraction=1.0))


def test_limits_come_from_the_store_that_it_is_made_from(source):
    assert limits_of(source) == Limits(min_volume_mm3=150.0, max_volume_fraction=0.6)


def test_finished_scans_are_kept_and_other_settings_replace_them(source, tmp_path):
    def commits(path: Path) -> dict[str, int]:
        return {file.parent.name: file.stat().st_mtime_ns for file in path.glob("scans/*/*/COMMIT.json")}

    make_slic_store(source.path, tmp_path / "made", slic=SLIC, limits=LIMITS)
    first = commits(tmp_path / "made")
    make_slic_store(source.path, tmp_path / "made", slic=SLIC, limits=LIMITS)
    assert commits(tmp_path / "made") == first
    again = make_slic_store(
        source.path, tmp_path / "made", slic=SlicConfig(segments=(20,), iterations=2), limits=LIMITS
    )
    assert all(commits(tmp_path / "made")[name] != first[name] for name in first)
    assert again.scan("scan-1").sources == ("slic-20",)
