"""What lies in a folder that may not be entered is an error of that file, with its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.discovery.from_path import discover
from pipeline.discovery.label_names import find_value_names
from pipeline.errors import UnreadableFile
from pipeline.formats.files import check_readable
from pipeline.ingest.config import IngestConfig
from pipeline.ingest.loading import find_targets
from tests.closed_folder import close_folder
from tests.phantom import phantom


@pytest.fixture
def scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A scan in a folder that may not be entered; a good one and a link to it lie beside the folder."""
    phantom().write(tmp_path / "closed" / "a.nii.gz")
    phantom().write(tmp_path / "good.nii.gz")
    (tmp_path / "link.nii.gz").symlink_to(tmp_path / "closed" / "a.nii.gz")
    (tmp_path / "good.json").symlink_to(tmp_path / "closed" / "names.json")
    close_folder(tmp_path / "closed", monkeypatch)
    return tmp_path / "closed" / "a.nii.gz"


def test_a_target_there_is_named(scan: Path) -> None:
    with pytest.raises(UnreadableFile, match=rf"{scan}: .*Permission denied.*Give yourself permission"):
        find_targets(scan, IngestConfig())


def test_a_link_into_it_is_not_readable(scan: Path) -> None:
    with pytest.raises(UnreadableFile, match="Permission denied"):
        check_readable(scan.parent.parent / "link.nii.gz", shown="link")


def test_names_of_labels_there_are_not_known(scan: Path) -> None:
    assert find_value_names(scan.parent.parent / "good.nii.gz", scan.parent.parent) == (None, None)


def test_a_row_of_a_manifest_fails_alone(scan: Path) -> None:
    manifest = scan.parent.parent / "scans.csv"
    manifest.write_text("id,image,modality\na,closed/a.nii.gz,ct\ndicom,closed/series,ct\nb,good.nii.gz,ct\n")
    found = discover(manifest, IngestConfig().series_rules)
    assert [source.scan_id for source in found.sources] == ["b"]
    assert [failure.kind for failure in found.failures] == ["UnreadableFile"] * 2
    assert all("Permission denied" in failure.reason for failure in found.failures)
