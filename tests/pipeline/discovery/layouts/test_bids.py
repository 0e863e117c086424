"""BIDS as public data sets keep it: labels beside their scans, no data types, rawdata, template spaces."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.discovery import discover
from pipeline.ingest import IngestConfig

RULES = IngestConfig().series_rules


def found(root: Path, *names: str) -> dict[str, tuple[str | None, str, tuple[str, ...]]]:
    """Return modality, case and labels of each scan among empty files of these names."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return {
        source.location: (
            source.modality,
            source.case,
            tuple(f"{label.name}:{label.path.relative_to(root)}" for label in source.labels),
        )
        for source in discover(root, RULES).sources
    }


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("sub-1_space-MNI_label-L_desc-T1lesion_mask.nii.gz", "masks"),
        ("sub-1_space-MNI_dseg.nii.gz", "dseg"),
    ],
)
def test_a_label_in_the_space_of_a_scan_is_its_label_though_that_is_a_template(
    tmp_path: Path, label: str, name: str
) -> None:
    scan = "sub-1/anat/sub-1_space-MNI_T1w.nii.gz"
    assert found(tmp_path, scan, f"sub-1/anat/{label}") == {
        scan: ("mr", "sub-1", (f"{name}:sub-1/anat/{label}",))
    }


def test_a_mask_beside_scans_belongs_to_those_in_its_space(tmp_path: Path) -> None:
    scans = [f"sub-1/anat/sub-1_{space}desc-preproc_T1w.nii.gz" for space in ("", "space-MNI_")]
    labels = "sub-1/anat/sub-1_desc-brain_mask.nii.gz"
    result = found(tmp_path, *scans, labels)
    assert result == {scans[0]: ("mr", "sub-1", (f"masks:{labels}",)), scans[1]: ("mr", "sub-1", ())}


def test_scans_in_rawdata_without_data_types_have_their_derivatives(tmp_path: Path) -> None:
    scans = ["d/rawdata/sub-v4/sub-v4_ct.nii.gz", "d/rawdata/sub-v5/sub-v5_split-2_ct.nii.gz"]
    labels = [
        "d/derivatives/sub-v4/sub-v4_seg-vert_msk.nii.gz",
        "d/derivatives/sub-v5/sub-v5_split-2_seg-vert_msk.nii.gz",
    ]
    assert found(tmp_path, *scans, *labels) == {
        scans[0]: ("ct", "d/sub-v4", (f"vert_mask:{labels[0]}",)),
        scans[1]: ("ct", "d/sub-v5", (f"vert_mask:{labels[1]}",)),
    }


def test_a_diffusion_image_is_a_scan_only_without_directions(tmp_path: Path) -> None:
    names = ["sub-1/dwi/sub-1_dwi.nii.gz", "sub-1/dwi/sub-1_adc.nii.gz", "sub-2/dwi/sub-2_dwi.nii.gz"]
    (tmp_path / "sub-2" / "dwi").mkdir(parents=True)
    (tmp_path / "sub-2" / "dwi" / "sub-2_dwi.bval").touch()
    assert found(tmp_path, *names) == dict.fromkeys(names[:2], ("mr", "sub-1", ()))
