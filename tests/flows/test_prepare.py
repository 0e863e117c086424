"""`mass prepare`: what is done, what is not done again, and what is told."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from commands.main import main
from commands.prepare import command, scan_task
from commands.prepare.command import prepare_store
from commands.prepare.settings import Settings
from commands.prepare.work import Options
from storage import open_store, read_ledger, verify
from tests.phantom import phantom
from tests.pipeline.discovery.layouts import drawn_trees


def store_bytes(store: Path) -> dict[str, bytes]:
    """Every file of a store by its path."""
    return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()}


def folder_times(store: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every scan's COMMIT.json: other ones after a commit."""
    return {
        path.parent.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in store.rglob("COMMIT.json")
    }


def test_every_scan_is_committed_and_a_second_run_does_nothing(
    raw: Path, tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    first = prepare_store(raw, store, settings, Options())
    assert (first.exit_code, len(first.committed), first.failed) == (0, 3, ())
    assert open_store(store).scan_ids == ("ann_ct", "ben_ct", "cis_ct")
    assert open_store(store).entries["ann_ct"].labels == ("label",)
    before, times = store_bytes(store), folder_times(store)

    monkeypatch.setattr(command, "run_flow", lambda work: pytest.fail("Prefect was started for nothing"))
    second = prepare_store(raw, store, settings, Options())
    assert (second.exit_code, second.committed) == (0, ())
    assert second.skipped == ("ann_ct", "ben_ct", "cis_ct")
    assert store_bytes(store) == before
    assert folder_times(store) == times


def test_a_changed_source_redoes_that_scan_only(raw: Path, prepared: Path, settings: Settings) -> None:
    store = prepared
    times = folder_times(store)
    phantom(seed=9).write(raw / "ben_ct.nii.gz")
    report = prepare_store(raw, store, settings, Options())
    assert report.reasons == {"source changed": 1}
    assert [outcome.scan_id for outcome in report.committed] == ["ben_ct"]
    after = folder_times(store)
    assert {scan_id for scan_id in after if after[scan_id] != times[scan_id]} == {"ben_ct"}


def test_a_touched_source_is_recognised_by_its_bytes(
    raw: Path, prepared: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = prepared
    os.utime(raw / "ben_ct.nii.gz", (1, 1))
    monkeypatch.setattr(command, "run_flow", lambda work: pytest.fail("something is done again"))
    prepare_store(raw, store, settings, Options())
    assert read_ledger(store)["ben_ct"].files[0].mtime_ns == 1_000_000_000


def test_other_proposal_settings_redo_proposals_without_a_look_at_the_source(
    raw: Path, prepared: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = prepared
    images = {
        scan_id: open_store(store).scan(scan_id).image_codes().copy() for scan_id in ("ann_ct", "cis_ct")
    }
    fewer = replace(settings, proposals=replace(settings.proposals, max_proposals=20))
    monkeypatch.setattr("commands.prepare.scan_task.read_source", lambda *a: pytest.fail("a source was read"))
    report = prepare_store(raw, store, fewer, Options())
    (reason,) = report.reasons
    assert reason.startswith("proposals settings changed (max_proposals ")
    assert reason.endswith(" -> 20)")
    assert len(report.committed) == 3
    again = open_store(store)
    assert all(entry.num_proposals <= 20 for entry in again.entries.values())
    assert all((again.scan(scan_id).image_codes() == image).all() for scan_id, image in images.items())
    assert again.entries["ann_ct"].labels == ("label",)

    fresh = raw.with_name("fresh")
    monkeypatch.undo()
    prepare_store(raw, fresh, fewer, Options())
    assert store_bytes(fresh) == store_bytes(store), "the way there leaves no trace"


def test_another_case_changes_the_record_alone(
    raw: Path, tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "raw" / "scans.csv"
    for case in ("", "p7", "p8"):
        if case == "p7":
            for name in ("read_source", "propose"):
                monkeypatch.setattr(scan_task, name, lambda *_, **__: pytest.fail("computed anew"))
        table.write_text(f"id,image,label,case\nann,ann_ct.nii.gz,ann_ct_label.nii.gz,{case}\n")
        report = prepare_store(table, tmp_path / "store", settings, Options())
        assert report.reasons == {"case changed" if case else "new": 1}
        scan = open_store(tmp_path / "store").scan("ann")
        assert scan.case == case
        assert list(verify(tmp_path / "store")) == []
        if case == "":
            proposals, labels = scan.proposals.table, scan.labels("label")
        np.testing.assert_array_equal(scan.proposals.table, proposals)
        np.testing.assert_array_equal(scan.labels("label"), labels)
    assert not prepare_store(table, tmp_path / "store", settings, Options()).committed


def test_other_ingest_settings_redo_everything_and_say_so(
    raw: Path, prepared: Path, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    store = prepared
    wider = replace(settings, ingest=replace(settings.ingest, spacing_mm=5.0))
    report = prepare_store(raw, store, wider, Options())
    assert report.reasons == {"ingest settings changed (spacing_mm 4 -> 5)": 3}
    assert "stop now (Ctrl-C), and give the --config of before" in capsys.readouterr().out
    assert open_store(store).info.spacing_mm == 5.0
    assert open_store(store).scan("ann_ct").spacing_zyx_mm == (5.0, 5.0, 5.0)


def test_scans_without_a_source_are_kept_until_they_are_pruned(
    raw: Path, prepared: Path, settings: Settings
) -> None:
    store = prepared
    (raw / "cis_ct.nii.gz").unlink()
    report = prepare_store(raw, store, settings, Options())
    assert report.absent == ("cis_ct",)
    assert "cis_ct" in open_store(store).scan_ids
    prepare_store(raw, store, settings, Options(prune=True))
    assert open_store(store).scan_ids == ("ann_ct", "ben_ct")
    assert set(read_ledger(store)) == {"ann_ct", "ben_ct"}


def test_two_workers_and_one_give_the_same_bytes(
    raw: Path, prepared: Path, tmp_path: Path, config: Path
) -> None:
    arguments = ["prepare", str(raw), str(tmp_path / "two"), "--config", str(config), "--workers", "2"]
    assert main(arguments) == 0
    assert store_bytes(tmp_path / "two") == store_bytes(prepared)


def test_the_report_for_machines_tells_of_every_scan(raw: Path, tmp_path: Path, config: Path) -> None:
    (raw / "dud_ct.nii.gz").write_bytes(b"no image")
    out = tmp_path / "report.json"
    arguments = ["prepare", str(raw), str(tmp_path / "store"), "--config", str(config), "--json", str(out)]
    assert main(arguments) == 1
    told = json.loads(out.read_text())
    assert [scan["scan"] for scan in told["committed"]] == ["ann_ct", "ben_ct", "cis_ct"]
    assert all(scan["num_proposals"] > 0 and scan["seconds"] > 0 for scan in told["committed"])
    assert [(f["scan"], f["file"], f["kind"]) for f in told["failed"]] == [
        ("dud_ct", "dud_ct.nii.gz", "NotAnImage")
    ]
    assert told["failed"][0]["reason"]
    assert told["failed"][0]["remedy"]
    assert told["exit_code"] == 1


def test_a_store_made_elsewhere_from_the_same_scans_has_the_same_bytes(
    raw: Path, prepared_once: Path, tmp_path: Path, settings: Settings
) -> None:
    prepare_store(raw, tmp_path / "two", settings, Options())
    assert store_bytes(tmp_path / "two") == store_bytes(prepared_once)


def test_a_layout_brings_cases_and_its_own_labels_to_the_store(tmp_path: Path, settings: Settings) -> None:
    root = tmp_path / "raw"
    drawn_trees.totalsegmentator(root / "one")
    drawn_trees.decathlon(root / "two")
    report = prepare_store(root, tmp_path / "store", settings, Options())
    assert not report.failed
    assert any(note.startswith("layout: Medical Segmentation Decathlon, 4 scans") for note in report.notes)
    store = open_store(tmp_path / "store")
    assert store.scan("two_BRATS_001_t1gd").case == store.scan("two_BRATS_001_FLAIR").case == "two/BRATS_001"
    assert store.scan("two_BRATS_001_t1gd").label_values("label")[2] == "lesion"
    scan = store.scan("one_s0001_ct")
    assert (scan.modality, scan.split, scan.case) == ("ct", "train", "")
    assert scan.label_names == ("segmentations", "segmentations_2")
    assert scan.label_values("segmentations_2") == {6: "upper_body"}
    assert not prepare_store(root, tmp_path / "store", settings, Options()).committed
    plain = prepare_store(root / "one", tmp_path / "plain", settings, Options(layout="plain"))
    assert {outcome.scan_id for outcome in plain.committed} == {"s0001_ct", "s0002_mri"}
    assert open_store(tmp_path / "plain").scan("s0001_ct").label_names == ()
