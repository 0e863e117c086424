"""Cases that folders tell: a folder for each patient, a folder for each sequence; and what tells none."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.discovery import discover
from pipeline.discovery.layouts.folder_cases import MOST_SCANS, folder_cases
from pipeline.ingest import IngestConfig

RULES = IngestConfig().series_rules


def cases(*names: str) -> dict[str, str]:
    return {str(scan): str(case) for scan, case in folder_cases(Path(name) for name in names).items()}


@pytest.mark.parametrize(
    ("names", "case"),
    [
        pytest.param(
            ["p{n}/p{n}_frame01.nii", "p{n}/p{n}_4d.nii"], "p{n}", id="files named after the folder"
        ),
        pytest.param(["d/00{n}/00{n}_SA.nii", "d/00{n}/00{n}_LA.nii"], "d/00{n}", id="a number alone"),
        pytest.param(
            ["002_S_{n}/A/I1/ADNI_002_S_{n}_PD.nii", "002_S_{n}/B/I2/ADNI_002_S_{n}_MPR.nii"],
            "002_S_{n}",
            id="the name somewhere in the files' names",
        ),
        pytest.param(["100{n}/T1w/T1w.nii", "100{n}/MNI/T1w.nii"], "100{n}", id="the same names in folders"),
        pytest.param(
            ["c{n}/visit1/T1.nii", "c{n}/visit2/T1.nii"], "c{n}", id="visits belong to their patient"
        ),
        pytest.param(
            ["IXI-T1/I{n}-T1.nii", "IXI-T2/I{n}-T2.nii"], "ixi/i{n}", id="a folder for each sequence"
        ),
        pytest.param(["CT/p{n}.nii", "PET/p{n}.nii"], "p{n}", id="a folder for CT and one for PET"),
    ],
)
def test_folders_tell_the_patient(names: list[str], case: str) -> None:
    found = cases(*(name.format(n=n) for n in (1, 2) for name in names))
    assert found == {name.format(n=n): case.format(n=n) for n in (1, 2) for name in names}


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(["d2020/d2020_1.nii", "d2020/d2020_2.nii"], id="no folder beside it is named alike"),
        pytest.param(
            [f"fold{f}/scan{n}.nii" for f in (1, 2) for n in (1, 2)], id="numbers tell the patients of a fold"
        ),
        pytest.param(["center1/a.nii", "center1/b.nii", "center2/c.nii", "center2/d.nii"], id="other names"),
        pytest.param(["ct/001.nii", "mr/001.nii"], id="CT and MR of one number may be strangers"),
        pytest.param(["T1/scan.nii", "T2/scan.nii"], id="a name without a number"),
        pytest.param(["p1/ct.nii", "p2/ct.nii"], id="one scan each"),
        pytest.param(
            [f"set{s}/set{s}_{n}.nii" for s in (1, 2) for n in range(MOST_SCANS + 1)], id="too many scans"
        ),
    ],
)
def test_where_folders_do_not_tell_there_is_no_case(names: list[str]) -> None:
    assert cases(*names) == {}


def test_a_label_in_a_patients_folder_belongs_to_the_scans_beside_it_else_to_all_of_the_patient(
    tmp_path: Path,
) -> None:
    for patient in ("p1", "p2"):
        for name in ("raw/a", "new/b", "new/c", "Masks/Brain_Mask", "new/old_seg"):
            path = tmp_path / patient / f"{name}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    (tmp_path / "other_seg.nii.gz").touch()
    found = discover(tmp_path, RULES)
    assert {s.scan_id: [(x.name, x.shared) for x in s.labels] for s in found.sources} == {
        f"{patient}_{name}": [("brain_mask", True)] + [("old_seg", True)] * name.startswith("new")
        for patient in ("p1", "p2")
        for name in ("raw_a", "new_b", "new_c")
    }
    (note,) = (note for note in found.notes if "belong to no scan" in note)
    assert "other_seg.nii.gz" in note
    assert "Brain_Mask" not in note


def test_a_folder_of_a_patient_holds_the_channels_of_all_its_folders(tmp_path: Path) -> None:
    for patient in ("0", "2"):
        for name in ("orig/T1", "orig/FLAIR", "pre/T1", "pre/FLAIR", "other"):
            path = tmp_path / patient / f"{name}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    found = discover(tmp_path, RULES)
    assert {s.location: s.case for s in found.sources} == {s.location: s.location[0] for s in found.sources}
    assert len(found.sources) == 10
    assert {s.case for s in discover(tmp_path, RULES, layout="plain").sources} == {""}
