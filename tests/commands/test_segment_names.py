"""`mass segment` where names of files are not UTF-8."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import nibabel
import pytest
import SimpleITK as sitk

from commands.main import main
from tests.commands.test_segment import draw

NAME = os.fsdecode(b"M\xfcller")
"""In Latin-1."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A reference with its mask, a good target, and two with such names: SimpleITK's and nibabel's."""
    draw().write(tmp_path / "ref.nii.gz")
    draw().write_labels(tmp_path / "mask.nii.gz")
    draw(seed=1).write(tmp_path / "scans" / "a.nii.gz")
    whole = (tmp_path / "scans" / "a.nii.gz").read_bytes()
    (tmp_path / "scans" / f"{NAME}.nii.gz").write_bytes(whole)
    other = nibabel.load(tmp_path / "scans" / "a.nii.gz")
    nibabel.save(nibabel.Nifti2Image(other.get_fdata().astype("int16"), other.affine), tmp_path / "b.nii")
    os.replace(tmp_path / "b.nii", tmp_path / "scans" / f"Nifti2 {NAME}.nii")
    return tmp_path


def command(folder: Path, out: Path) -> list[str]:
    shown = ["--reference-image", folder / "ref.nii.gz", "--reference-mask", folder / "mask.nii.gz"]
    rest = [folder / "scans", "--out", out, "--modality", "ct", "--spacing", "5"]
    return [*map(str, ["segment", "none", *shown, *rest]), "--json", str(folder / "told.json")]


def test_a_target_of_such_a_name_fails_alone_and_the_table_lists_the_others(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder / "out"
    assert main(command(folder, out)) == 1
    told = json.loads((folder / "told.json").read_text())
    assert [failure["scan_id"] for failure in told["failed"]] == ["M-ller"]
    assert "must be UTF-8" in told["failed"][0]["reason"]
    assert [target["scan_id"] for target in told["targets"]] == ["Nifti2-M-ller", "a"]
    rows = list(csv.DictReader((out / "results.csv").read_text(encoding="utf-8").splitlines()))
    assert {row["target"] for row in rows} == {"Nifti2-M-ller", "a"}
    assert any(row["file"].endswith(r"M\udcfcller.nii") for row in rows)
    assert json.loads((out / "Nifti2-M-ller_result.json").read_text())["location"].endswith(f"{NAME}.nii")
    assert sitk.ReadImage(str(out / "Nifti2-M-ller_seg.nii")).GetSize() == (46, 32, 36)
    assert "failed (1)" in capsys.readouterr().out
    assert main(command(folder, out)) == 1  # what is there is found again
    again = json.loads((folder / "told.json").read_text())
    assert [target["kept"] for target in again["targets"]] == [True, True]


def test_results_go_into_no_folder_of_such_a_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "ref.nii.gz").unlink()  # nothing is read before
    assert main(command(folder, folder / NAME)) == 2
    said = capsys.readouterr().err
    assert "--out" in said
    assert r"M\xfcller: its name must be UTF-8. Name another" in said
    assert not (folder / NAME).exists()
