"""`mass segment` as people use it: raw files in, files out; bad targets, Ctrl-C, wrong inputs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from PIL import Image

from commands import segment as segmenting
from commands.main import main
from commands.progress import TargetProgress
from commands.segmenting import targets
from commands.segmenting.results import staged
from tests.phantom import Phantom, phantom, write_dicom
from tests.training.like_intensity import LikeInside
from tests.waits import PATIENT_SECONDS
from training.network.iris import Iris
from training.network.preparation import TrainedOn

ROOT = Path(__file__).parent.parent.parent


def draw(seed: int = 0, **more) -> Phantom:
    """Lung (3) and bone (4) in what lies between in brightness."""
    drawn = phantom(shape_zyx=(36, 32, 46), spacing_zyx_mm=(3.0, 2.2, 2.0), seed=seed, **more)
    return drawn.replace(
        image=np.where(np.isin(drawn.labels, (3, 4)), drawn.image, 40).astype(np.int16),
        labels=np.where(np.isin(drawn.labels, (3, 4)), drawn.labels, 0).astype(np.uint8),
    )


def stand_in() -> LikeInside:
    net = LikeInside()
    net.trained_on = TrainedOn(spacing_mm=2.0, crop_voxels=(48, 48, 48))
    return net


@pytest.fixture
def net(monkeypatch: pytest.MonkeyPatch) -> LikeInside:
    """A network whose answers are known, in place of any checkpoint."""
    made = stand_in()
    monkeypatch.setattr(segmenting, "load_checkpoint", lambda path, weights: made)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A reference with its mask, and a target."""
    draw().write(tmp_path / "ref.nii.gz")
    draw().write_labels(tmp_path / "mask.nii.gz")
    draw(seed=1).write(tmp_path / "scans" / "a.mha")
    return tmp_path


def mass(folder: Path, *arguments: str, mask: str = "mask.nii.gz", image: str = "ref.nii.gz") -> int:
    shown = ["--reference-image", str(folder / image), "--reference-mask", str(folder / mask)]
    out = ["--out", str(folder / "out"), "--json", str(folder / "told.json"), "--modality", "ct"]
    places = [str(folder / a) if (folder / a).exists() else a for a in arguments]
    how = () if "--by" in arguments else ("--by", "network")
    return main(["segment", "checkpoint", *shown, *places, *out, *how])


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return 2 * float((first & second).sum()) / float(first.sum() + second.sum())


def labels_in(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def files_of(*labels: str) -> set[str]:
    """What a run leaves that writes these label maps and nothing else."""
    names = [label.split("_seg.")[0] for label in labels]
    each = [
        {label, f"{name}_seg.png", f"{name}_result.json"} for label, name in zip(labels, names, strict=True)
    ]
    return {"results.csv"}.union(*each) if labels else set()


def test_files_and_dicom_folders_are_answered_in_their_format_with_a_picture(
    net: LikeInside, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = draw(seed=2)
    write_dicom(folder / "scans" / "series", drawn)
    draw(seed=3).write(folder / "scans" / "b.nrrd")
    assert mass(folder, "scans") == 0
    assert files_in(folder / "out") == files_of("a_seg.mha", "b_seg.nrrd", "series_seg.nii.gz")
    told = json.loads((folder / "told.json").read_text())
    assert [target["scan_id"] for target in told["targets"]] == ["a", "b", "series"]
    assert told["structures"] == {"3": "label 3", "4": "label 4"}
    assert told["failed"] == []
    for target in told["targets"]:
        found = labels_in(Path(target["labels"]))
        for value in (3, 4):
            assert dice(found == value, drawn.labels == value) > 0.85
            volume_ml = (found == value).sum() * 3.0 * 2.2 * 2.0 / 1000
            assert target["volumes_ml"][f"label {value} ({value})"] == pytest.approx(volume_ml, rel=1e-3)
        with Image.open(target["picture"]) as picture:
            assert np.asarray(picture.convert("RGB")).std() > 10
    out = capsys.readouterr()
    assert "looking for: label 3 (3), label 4 (4)" in out.out
    assert "DOE" not in out.out + out.err


def test_names_beside_the_mask_options_and_probabilities(net: LikeInside, folder: Path) -> None:
    (folder / "mask.json").write_text('{"3": "lung", "4": "bone"}')
    options = ("--label", "4", "--probabilities", "--largest-component", "--mirror", "--spacing", "2.5")
    assert mass(folder, "scans/a.mha", *options) == 0
    assert files_in(folder / "out") == files_of("a_seg.mha") | {"a_prob_4.mha"}
    told = json.loads((folder / "told.json").read_text())
    assert (told["structures"], told["spacing_mm"]) == ({"4": "bone"}, 2.5)
    probability = labels_in(folder / "out" / "a_prob_4.mha")
    assert probability.dtype == np.float32
    assert ((probability >= 0.5) >= (labels_in(folder / "out" / "a_seg.mha") == 4)).all()


def test_a_file_that_is_named_like_a_label_is_a_target_when_it_is_named(
    net: LikeInside, folder: Path
) -> None:
    draw(seed=4).write(folder / "brain_mask.nii")
    assert mass(folder, "brain_mask.nii") == 0
    assert "brain_mask_seg.nii" in files_in(folder / "out")


def test_targets_of_one_name_get_files_of_their_own(net: LikeInside, folder: Path) -> None:
    draw(seed=5).write(folder / "other" / "a.mha")
    assert mass(folder, "scans/a.mha", "other/a.mha", "scans/a.mha") == 0
    assert len([name for name in files_in(folder / "out") if name.endswith(".mha")]) == 2


def test_a_bad_target_is_told_of_and_does_not_stop_the_others(
    net: LikeInside, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = (folder / "scans" / "a.mha").read_bytes()
    (folder / "short.mha").write_bytes(good[: len(good) // 2])
    assert mass(folder, "short.mha", "nowhere.nii", "scans") == 1
    assert files_in(folder / "out") == files_of("a_seg.mha")
    told = json.loads((folder / "told.json").read_text())
    assert {failure["scan_id"]: failure["kind"] for failure in told["failed"]} == {
        "nowhere.nii": "UnreadableFile",
        "short": "CorruptImage",
    }
    out = capsys.readouterr().out
    assert "failed (2)" in out
    assert "segmented (1)" in out


def test_a_result_that_cannot_be_written_leaves_nothing_of_it(
    net: LikeInside, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "draw_cases", lambda cases: 1 / 0)
    assert mass(folder, "scans") == 1
    assert files_in(folder / "out") == files_of()
    (failure,) = json.loads((folder / "told.json").read_text())["failed"]
    assert failure["reason"] == "ZeroDivisionError: division by zero"
    assert "please report it" in failure["remedy"]

    def full(cases):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(targets, "draw_cases", full)
    assert mass(folder, "scans") == 1
    assert files_in(folder / "out") == files_of()
    told = json.loads((folder / "told.json").read_text())
    assert told["failed"][0]["reason"] == "its result cannot be written (No space left on device)"


def test_staged_files_appear_together_or_not_at_all(tmp_path: Path) -> None:
    def stopped() -> None:
        with staged(tmp_path, "x") as part:
            (part / "x_seg.nii").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert files_in(tmp_path) == set()
    with staged(tmp_path, "x") as part:
        (part / "x_seg.nii").write_text("whole")
        assert files_in(tmp_path) == {part.name}
    assert files_in(tmp_path) == {"x_seg.nii"}


SLOW = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with it ignored
from commands import segment as segmenting
from commands.main import main
from tests.commands.test_segment import stand_in

net = stand_in()
decode = net.decode
def slowly(features, priors):
    if {seconds}:
        print("deciding", flush=True)
    time.sleep({seconds})
    return decode(features, priors)
net.decode = slowly
segmenting.load_checkpoint = lambda path, weights: net
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.long)]
)
def test_a_signal_ends_it_with_nothing_half_written(folder: Path, number: int, code: int) -> None:
    shown = ["--reference-image", folder / "ref.nii.gz", "--reference-mask", folder / "mask.nii.gz"]
    arguments = ["segment", "c", *shown, folder / "scans", "--out", folder / "out", "--modality", "ct"]
    run = subprocess.Popen(
        [sys.executable, "-c", SLOW.format(seconds=2 * PATIENT_SECONDS), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert run.stdout is not None
    while "deciding" not in run.stdout.readline():
        assert run.poll() is None
    run.send_signal(number)
    out, _ = run.communicate(timeout=PATIENT_SECONDS)
    assert run.returncode == code
    assert files_in(folder / "out") == files_of()
    assert ("interrupted" in out) == (number == signal.SIGINT)


def test_progress_names_the_target_and_the_windows() -> None:
    at = TargetProgress(target=2, num_targets=4, name="b", done=0, total=0, seconds=9.0)
    assert (at.line(), at.fraction) == ("target 2/4 b: reading", 0.25)
    later = TargetProgress(
        target=2, num_targets=4, name="b", done=10, total=40, seconds=19.0, step_seconds=10.0
    )
    assert later.line() == "target 2/4 b: window 10/40, 30 s left of this target"
    assert later.fraction == pytest.approx(0.3125)


def test_progress_of_registration_names_the_reference_in_hand_and_never_goes_back() -> None:
    drawn = TargetProgress(
        target=1, num_targets=1, name="b", done=40, total=40, seconds=9.0, steps=("windows", "references")
    )
    begun = replace(drawn, step="references", done=0, total=2)
    assert begun.fraction == drawn.fraction == 0.5
    assert begun.later(12).line() == "target 1/1 b: registering reference 1/2, at it for 12 s"
    half = replace(begun, done=1, step_seconds=20)
    assert half.line() == "target 1/1 b: registering reference 2/2, 20 s left"
    assert (half.fraction, replace(half, done=2).fraction) == (0.75, 1.0)
    assert replace(half, done=2).line() == "target 1/1 b: drawing and writing"
    early = replace(drawn, done=10, step_seconds=5)
    assert early.line() == "target 1/1 b: window 10/40, 15 s left of these windows"


# ---------------------------------------------------------------- wrong inputs: one sentence, nothing written


def refused(capsys: pytest.CaptureFixture[str], folder: Path) -> str:
    out = capsys.readouterr()
    assert not (folder / "out").exists()
    lines = out.err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("mass: ")
    return lines[0]


def test_a_checkpoint_of_another_kind(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = ["--reference-image", str(folder / "ref.nii.gz"), "--reference-mask", str(folder / "mask.nii.gz")]
    torch.save({"fc.weight": torch.zeros(2, 3)}, folder / "other.pt")
    for name, words in (
        ("other.pt", "other.pt: not a checkpoint of Iris"),
        ("ref.nii.gz", "ref.nii.gz: "),
        ("scans", "a folder without weights.safetensors"),
        ("nowhere.pt", "nowhere.pt: there is no such file"),
    ):
        arguments = [str(folder / name), *shown, str(folder / "scans"), "--out", str(folder / "out")]
        assert main(["segment", *arguments]) == 2
        assert words in refused(capsys, folder)


def test_a_mask_on_another_grid(net: LikeInside, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw(centre_xyz_mm=(20.0, -35.0, 413.0)).write_labels(folder / "shifted.nii.gz")
    phantom(shape_zyx=(10, 11, 12)).write_labels(folder / "small.nii.gz")
    for name in ("shifted.nii.gz", "small.nii.gz"):
        assert mass(folder, "scans", mask=name) == 2
        said = refused(capsys, folder)
        assert said.count(name) == 1
        assert "ref.nii.gz" not in said, "the file at fault is named, and only it"
        assert "must lie on its image's grid" in said
        assert "--resample-mask" in said
    image = sitk.ReadImage(str(folder / "mask.nii.gz"))
    sitk.WriteImage(image[1:, :, :], str(folder / "cut.nii.gz"))
    assert mass(folder, "scans", mask="cut.nii.gz") == 2
    refused(capsys, folder)
    assert mass(folder, "scans", "--resample-mask", mask="cut.nii.gz") == 0


def write_4d(source: Path, path: Path) -> Path:
    sitk.WriteImage(sitk.JoinSeries([sitk.ReadImage(str(source))] * 3), str(path))
    return path


def test_of_4d_scans_the_option_that_chooses_a_volume_is_named(
    net: LikeInside, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_4d(folder / "scans" / "a.mha", folder / "four.nii.gz")
    write_4d(folder / "ref.nii.gz", folder / "four_ref.nii.gz")
    assert mass(folder, "four.nii.gz") == 1
    (failure,) = json.loads((folder / "told.json").read_text())["failed"]
    assert "4D with 3 volumes" in failure["reason"]
    assert failure["remedy"] == "Choose one with --frame N, counted from 0"
    capsys.readouterr()
    assert mass(folder, "scans", image="four_ref.nii.gz") == 2
    said = capsys.readouterr().err
    assert "--frame N" in said
    assert "manifest" not in said
    assert mass(folder, "four.nii.gz", "--frame", "3") == 1
    assert "--frame N" in capsys.readouterr().out
    assert mass(folder, "four.nii.gz", "--frame", "1") == 0


def test_a_4d_mask_is_refused_with_what_helps(
    net: LikeInside, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_4d(folder / "mask.nii.gz", folder / "four.nii.gz")
    assert mass(folder, "scans", mask="four.nii.gz") == 2
    said = capsys.readouterr().err
    assert "3D file" in said
    assert "frame" not in said


def test_an_empty_mask_and_a_label_that_is_not_there(
    net: LikeInside, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw().replace(labels=np.zeros((36, 32, 46), np.uint8)).write_labels(folder / "empty.nii.gz")
    assert mass(folder, "scans", mask="empty.nii.gz") == 2
    assert "empty.nii.gz: the mask is empty, every voxel is 0" in refused(capsys, folder)
    assert mass(folder, "scans", "--label", "9") == 2
    assert "there is no label 9 in the mask, which holds 3, 4" in refused(capsys, folder)


def test_images_and_masks_that_do_not_pair_up(
    net: LikeInside, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mass(folder, "scans", "--reference-image", "ref.nii.gz") == 2
    assert "got 2 --reference-image and 1 --reference-mask" in refused(capsys, folder)
    draw(seed=8).write(folder / "scans" / "b.mha")
    assert mass(folder, "scans", image="scans") == 2
    assert "one scan is wanted, there are 2 here" in refused(capsys, folder)


def test_a_target_of_another_modality_is_told_of_by_itself(
    net: LikeInside, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_dicom(folder / "mr", draw(seed=3).replace(modality="mr"))
    write_dicom(folder / "ct", draw(seed=3), series_uid="1.2.3")
    draw().write(folder / "ref_ct" / "x.mha")
    shown = ["--reference-image", str(folder / "ct"), "--reference-mask", str(folder / "mask.nii.gz")]
    arguments = ["segment", "c", *shown, str(folder / "mr"), str(folder / "ct"), "--out", str(folder / "out")]
    arguments += ["--by", "network"]
    assert main([*arguments, "--json", str(folder / "told.json")]) == 1
    (failure,) = json.loads((folder / "told.json").read_text())["failed"]
    assert failure["reason"] == "the target is MR, the references are CT"
    assert "--across-modalities" in failure["remedy"]
    assert files_in(folder / "out") == files_of("ct_seg.nii.gz")
    assert main([*arguments, "--across-modalities"]) == 0


def test_a_real_checkpoint_without_a_record_is_used_at_the_published_spacing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    torch.save(Iris((2, 4, 4, 8, 32), 1).state_dict(), folder / "net.pt")
    shown = ["--reference-image", folder / "ref.nii.gz", "--reference-mask", folder / "mask.nii.gz"]
    options = [
        "--by",
        "network",
        "--window",
        "48",
        "48",
        "48",
        "--overlap",
        "0",
        "--modality",
        "ct",
        "--json",
        folder / "told.json",
    ]
    arguments = ["segment", folder / "net.pt", *shown, folder / "scans", "--out", folder / "out", *options]
    assert main([str(argument) for argument in arguments]) == 0
    assert json.loads((folder / "told.json").read_text())["spacing_mm"] == 1.5
    assert "the published 1.5 mm are taken" in capsys.readouterr().out
    assert files_in(folder / "out") == files_of("a_seg.mha")


@pytest.mark.usefixtures("quick_registration")
def test_registration_that_tries_where_the_network_sees_the_structures_is_the_default(
    net: LikeInside, folder: Path
) -> None:
    shown = ["--reference-image", str(folder / "ref.nii.gz"), "--reference-mask", str(folder / "mask.nii.gz")]
    net.trained_on = TrainedOn(spacing_mm=3.5, crop_voxels=(32, 32, 32))  # coarse enough to be quick
    told = {}
    for name, how in (("default", []), ("both", ["--by", "both"]), ("network", ["--by", "network"])):
        out = ["--out", str(folder / name), "--json", str(folder / "told.json"), "--modality", "ct"]
        assert main(["segment", "checkpoint", *shown, str(folder / "scans"), *out, *how]) == 0
        (told[name],) = json.loads((folder / "told.json").read_text())["targets"]
    assert told["network"]["agreement"] is None
    assert told["default"]["agreement"] == told["both"]["agreement"] > 0.5
    assert any("registration" in note for note in told["default"]["notes"])
    assert set(told["default"]["confidences"]) == set(told["default"]["volumes_ml"])
    assert all(0 < confidence <= 1 for confidence in told["default"]["confidences"].values())
    assert told["network"]["confidences"] == {}


@pytest.mark.usefixtures("quick_registration")
def test_no_network_is_named_by_none(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = ["--reference-image", str(folder / "ref.nii.gz"), "--reference-mask", str(folder / "mask.nii.gz")]
    rest = [str(folder / "scans"), "--out", str(folder / "none"), "--modality", "ct", "--spacing", "3"]
    told = ["--json", str(folder / "told.json")]
    assert main(["segment", "none", *shown, *rest, *told]) == 0
    (target,) = json.loads((folder / "told.json").read_text())["targets"]
    assert target["confidences"]
    assert "the checkpoint does not say" not in capsys.readouterr().out
    assert main(["segment", "none", *shown, *rest, "--by", "network"]) == 2
    assert "--by network asks a network" in capsys.readouterr().err
    assert main(["segment", "none", "--finetuned", *rest]) == 2
    assert "--finetuned needs a network" in capsys.readouterr().err
