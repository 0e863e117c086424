"""`mass segment --finetuned`: labelled scans in, a network out, a raw scan segmented without references."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from commands.arguments import parser
from commands.main import main
from commands.segment import settings
from tests.phantom import phantom
from tests.training.drawn_checkpoint import drawn_net, export
from tests.training.finetuning.test_run import TINY
from tests.training.phantom_store import make_phantom_store
from training.finetuning.run import finetune
from training.inference import WHOLE_SCAN_THRESHOLD, InferenceConfig
from training.network import TrainedOn


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tuning of a step, what it started from, and a raw scan."""
    made = tmp_path_factory.mktemp("finetuned")
    store = make_phantom_store(made / "store")
    net = drawn_net()
    plain = export(net, made / "plain.safetensors")
    config = replace(TINY, optimisation=replace(TINY.optimisation, num_steps=1))
    finetune(plain, store.path, made / "run", config, device="cpu")
    phantom(shape_zyx=(24, 40, 38), spacing_zyx_mm=(3.0, 1.6, 2.1)).write(made / "scan.nii.gz")
    return made


def segment(folder: Path, out: Path, *options: str, checkpoint: str = "run") -> int:
    command = [
        "segment",
        str(folder / checkpoint),
        "--finetuned",
        str(folder / "scan.nii.gz"),
        "--out",
        str(out),
    ]
    place = ["--json", str(out.with_suffix(".json")), "--modality", "ct", "--overlap", "0", "--spacing", "3"]
    return main([*command, *place, "--device", "cpu", *options])


def test_a_raw_scan_is_answered_on_its_own_grid_with_the_label_values(folder: Path, tmp_path: Path) -> None:
    assert segment(folder, tmp_path / "out", "--probabilities") == 0
    told = json.loads((tmp_path / "out.json").read_text())
    assert told["structures"] == {"1": "organ", "3": "lung"}
    assert told["window_voxels"] == [32, 32, 32]
    (target,) = told["targets"]
    result, scan = (sitk.ReadImage(str(path)) for path in (target["labels"], folder / "scan.nii.gz"))
    assert result.GetSize() == scan.GetSize()
    np.testing.assert_allclose(result.GetOrigin(), scan.GetOrigin(), atol=1e-4)
    np.testing.assert_allclose(result.GetDirection(), scan.GetDirection(), atol=1e-6)
    labels = sitk.GetArrayFromImage(result)
    assert set(np.unique(labels)) <= {0, 1, 3}
    organ, lung = (
        sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out" / f"scan_prob_{value}.nii.gz")))
        for value in (1, 3)
    )
    assert np.array_equal(labels == 1, (organ >= 0.5) & (organ >= lung))
    assert set(target["confidences"]) == set(target["volumes_ml"])
    for (name, sure), drawn in zip(target["confidences"].items(), (organ, lung), strict=True):
        assert (sure > 0) == bool((drawn >= 0.5).any()), name
        assert sure <= 1
    assert segment(folder, tmp_path / "one", "--label", "3") == 0
    assert json.loads((tmp_path / "one.json").read_text())["structures"] == {"3": "lung"}
    (alone,) = json.loads((tmp_path / "one.json").read_text())["targets"]
    assert set(np.unique(sitk.GetArrayFromImage(sitk.ReadImage(alone["labels"])))) <= {0, 3}


@pytest.mark.parametrize(
    ("options", "checkpoint", "message"),
    [
        (["--label", "2"], "run", "was not fine-tuned on label 2, but on 1, 3"),
        (["--mirror"], "run", "not mirrored"),
        (["--reference-image", "r", "--reference-mask", "m"], "run", "needs no references"),
        ([], "plain.safetensors", "not fine-tuned; show it a reference"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(
    options: list[str],
    checkpoint: str,
    message: str,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert segment(folder, tmp_path / "out", *options, checkpoint=checkpoint) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_network_fine_tuned_on_whole_scans_keeps_the_threshold_of_its_training() -> None:
    trained_on = TrainedOn(crop_voxels=(16, 32, 32), whole_scans=True)
    arguments = parser().parse_args(["segment", "RUN", "scan.nii.gz", "--out", "OUT"])
    assert settings(arguments, trained_on)[0].inference.threshold == WHOLE_SCAN_THRESHOLD
    arguments = parser().parse_args(["segment", "RUN", "--finetuned", "scan.nii.gz", "--out", "OUT"])
    assert settings(arguments, trained_on)[0].inference.threshold == InferenceConfig.threshold
