"""Plans and checkpoint for nnU-Net: what it reads of them, by the rules of its own code (nnunetv2 2.8.1)."""

from __future__ import annotations

import copy
import json
import pydoc
from pathlib import Path
from typing import Any

import pytest
import torch

from training.errors import ConfigError
from training.network.image_format import ImageFormat
from training.network.iris import Iris
from training.network.nnunet import export_nnunet, patch_side, plans_for, read_plans

CHANNELS = (4, 8, 8, 16, 32)
FORMAT = ImageFormat(
    spacing_mm=1.5,
    ct_window_hu=(-991.0, 500.0),
    percentiles=(2.0, 98.0),
    body_threshold_hu=-500.0,
    margin_mm=10.0,
    crop_voxels=(128, 128, 128),
)
PLANNED: dict[str, Any] = {
    "dataset_name": "Dataset004_Hippocampus",
    "plans_name": "nnUNetPlans",
    "image_reader_writer": "SimpleITKIO",
    "transpose_forward": [0, 1, 2],
    "configurations": {
        "2d": {"patch_size": [56, 40]},
        "3d_fullres": {
            "data_identifier": "nnUNetPlans_3d_fullres",
            "batch_size": 2,
            "patch_size": [40, 56, 40],
            "median_image_size_in_voxels": [36.0, 50.0, 300.0],
            "spacing": [1.0, 3.0, 1.0],
            "normalization_schemes": ["CTNormalization", "ZScoreNormalization"],
            "use_mask_for_norm": [True, True],
            "resampling_fn_data": "resample_data_or_seg_to_shape",
            "architecture": {"network_class_name": "PlainConvUNet", "_kw_requires_import": ["conv_op"]},
            "next_stage": "3d_cascade_fullres",
        },
    },
}


@pytest.fixture(scope="module")
def net() -> Iris:
    torch.manual_seed(0)
    return Iris(CHANNELS, 1).eval()


@pytest.fixture
def planned(tmp_path: Path) -> Path:
    path = tmp_path / "nnUNetPlans.json"
    path.write_text(json.dumps(PLANNED))
    return path


def test_the_plans_keep_what_nnunet_planned_and_take_our_network_spacing_and_patch() -> None:
    before = copy.deepcopy(PLANNED)
    plans = plans_for(PLANNED, CHANNELS, FORMAT, name="massPlans")
    assert before == PLANNED
    assert plans["plans_name"] == "massPlans"
    assert plans["image_reader_writer"] == "SimpleITKIO"
    assert list(plans["configurations"]) == ["3d_fullres"]
    configuration = plans["configurations"]["3d_fullres"]
    assert configuration["data_identifier"] == "massPlans_3d_fullres"
    assert configuration["spacing"] == [1.5, 1.5, 1.5]
    assert configuration["median_image_size_in_voxels"] == [24.0, 100.0, 200.0]
    assert configuration["patch_size"] == [32, 112, 128]
    assert configuration["normalization_schemes"] == ["ZScoreNormalization"] * 2
    assert configuration["use_mask_for_norm"] == [False, False]
    assert configuration["resampling_fn_data"] == "resample_data_or_seg_to_shape"
    assert configuration["batch_size"] == 2
    assert "next_stage" not in configuration


@pytest.mark.parametrize(
    ("median", "crop", "side"), [(1, 128, 16), (16, 128, 16), (16.1, 128, 32), (500, 96, 96)]
)
def test_a_patch_is_the_image_rounded_up_but_no_larger_than_the_training_crop(
    median: float, crop: int, side: int
) -> None:
    assert patch_side(median, crop) == side


def test_nnunet_builds_the_network_from_the_plans_and_finds_all_but_the_segmentation_layers(
    net: Iris, planned: Path, tmp_path: Path
) -> None:
    plans_file, weights = export_nnunet(net, planned, tmp_path / "out", FORMAT, name="mine")
    plans = json.loads(plans_file.read_text())
    architecture = plans["configurations"]["3d_fullres"]["architecture"]
    network_class: Any = pydoc.locate(architecture["network_class_name"])
    network = network_class(
        input_channels=2, num_classes=3, **architecture["arch_kwargs"], deep_supervision=True
    )
    assert not hasattr(network, "initialize")
    assert len(network(torch.randn(1, 2, 16, 16, 16))) == len(architecture["arch_kwargs"]["strides"]) - 1
    stored = torch.load(weights, weights_only=True)["network_weights"]
    own = network.state_dict()
    wanted = {key for key in own if ".seg_layers." not in key}
    assert wanted == set(stored)
    assert all(own[key].shape == stored[key].shape for key in wanted)
    network.load_state_dict({**own, **stored})
    image = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        for one, other in zip(network.encoder(image.repeat(1, 2, 1, 1, 1)), net.encode(image), strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_the_same_network_and_plans_give_the_same_bytes(net: Iris, planned: Path, tmp_path: Path) -> None:
    one = export_nnunet(net, planned, tmp_path / "one", FORMAT, name="mine")
    other = export_nnunet(net, planned, tmp_path / "other", FORMAT, name="mine")
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in other]


def test_what_are_no_3d_plans_is_refused_with_the_file_and_the_remedy(tmp_path: Path) -> None:
    def refused(content: str, reason: str) -> None:
        path = tmp_path / "plans.json"
        path.write_text(content)
        with pytest.raises(ConfigError, match=reason) as caught:
            read_plans(path)
        assert str(path) in str(caught.value)
        assert "nnUNetv2_plan_and_preprocess" in str(caught.value)

    refused("{", "cannot be read")
    refused("[1]", "dataset_name, plans_name, configurations is missing")
    refused(json.dumps({**PLANNED, "configurations": {"2d": {}}}), "no configuration 3d_fullres, but 2d")
    refused(json.dumps({**PLANNED, "configurations": {"3d_fullres": {}}}), "in 3d_fullres, spacing")
    with pytest.raises(ConfigError, match=r"nowhere\.json: plans of nnU-Net expected"):
        read_plans(tmp_path / "nowhere.json")
