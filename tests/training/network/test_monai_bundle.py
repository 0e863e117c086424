"""MONAI bundles, read by MONAI: the network, the weights, and an image prepared as ours are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from training.inference.prediction import predict_labels
from training.inference.prompted import token_prompt
from training.inference.prompts import InferenceConfig, Structure
from training.network.image_format import ImageFormat
from training.network.iris import Iris
from training.network.monai_bundle import (
    LabelledStructure,
    WindowInferer,
    export_features_bundle,
    export_segmentation_bundle,
    padded,
    write_features,
)
from training.network.plain import finetuned_unet

if TYPE_CHECKING:  # seconds, which only the process that runs these tests pays
    from monai.bundle import ConfigParser
    from monai.data import MetaTensor
    from monai.transforms import Compose

CHANNELS = (4, 8, 8, 16, 32)
FORMAT = ImageFormat(
    spacing_mm=2.0,
    ct_window_hu=(-991.0, 500.0),
    percentiles=(2.0, 98.0),
    body_threshold_hu=-500.0,
    margin_mm=4.0,
    crop_voxels=(32, 32, 16),
)
STRUCTURES = [LabelledStructure(name="anterior", value=1), LabelledStructure(name="posterior", value=5)]


@pytest.fixture(scope="module")
def net() -> Iris:
    torch.manual_seed(0)
    made = Iris(CHANNELS, 3).eval()
    for stage in range(3):
        made.get_buffer(f"task_prior_{stage}").normal_()
    return made


def parsed(folder: Path) -> ConfigParser:
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(folder / "configs" / "inference.json")
    parser.read_meta(folder / "configs" / "metadata.json")
    parser["bundle_root"] = str(folder)
    parser["device"] = "$torch.device('cpu')"
    return parser


def loaded_network(folder: Path) -> Any:
    """The network as MONAI builds it from the config, with the weights of the bundle."""
    network = parsed(folder).get_parsed_content("network_def")
    network.load_state_dict(torch.load(folder / "models" / "model.pt", weights_only=True))
    return network.eval()


def transforms(folder: Path, *, without: set[str]) -> Compose:
    """The preparation in the config, without some transforms."""
    from monai.bundle import ConfigParser
    from monai.transforms import Compose

    steps = json.loads((folder / "configs" / "inference.json").read_text())["preprocessing"]["transforms"]
    parser = ConfigParser({"steps": [step for step in steps if step["_target_"] not in without]})
    return Compose(parser.get_parsed_content("steps"))


def test_monai_builds_the_encoder_and_gets_the_same_features(net: Iris, tmp_path: Path) -> None:
    export_features_bundle(net, tmp_path, FORMAT, "mr")
    image = torch.randn(1, 1, 32, 16, 16)
    with torch.no_grad():
        for one, other in zip(loaded_network(tmp_path)(image), net.encode(image), strict=True):
            assert torch.equal(one, other)


def test_monai_builds_the_fine_tuned_network_and_gets_the_same_labels(net: Iris, tmp_path: Path) -> None:
    tuned = finetuned_unet(net, masks_at_once=13)
    export_segmentation_bundle(tuned, STRUCTURES, tmp_path, FORMAT, "ct")
    image = torch.randn(1, 1, 32, 16, 16)
    with torch.no_grad():
        assert torch.equal(loaded_network(tmp_path)(image), tuned(image))
    postprocessing = json.loads((tmp_path / "configs" / "inference.json").read_text())["postprocessing"]
    (mapping,) = [step for step in postprocessing["transforms"] if step["_target_"] == "MapLabelValued"]
    assert (mapping["orig_labels"], mapping["target_labels"]) == ([0, 1, 2], [0, 1, 5])


def test_the_metadata_have_every_key_of_monais_specification(net: Iris, tmp_path: Path) -> None:
    tuned = finetuned_unet(net, masks_at_once=13)
    export_segmentation_bundle(tuned, STRUCTURES, tmp_path, FORMAT, "ct")
    metadata = json.loads((tmp_path / "configs" / "metadata.json").read_text())
    names = "version monai_version pytorch_version numpy_version task description authors copyright"
    assert all(isinstance(metadata[name], str) and metadata[name] for name in names.split())
    data = metadata["network_data_format"]
    keys = {"type", "format", "num_channels", "spatial_shape", "dtype", "value_range", "is_patch_data"}
    for tensor in (*data["inputs"].values(), *data["outputs"].values()):
        assert keys | {"channel_def"} <= set(tensor)
    assert data["outputs"]["pred"]["channel_def"] == {"0": "background", "1": "anterior", "2": "posterior"}
    assert data["inputs"]["image"]["modality"] == "CT"
    assert metadata["image_preparation"]["spacing_mm"] == [2.0, 2.0, 2.0]


def scan_in_ras(values: np.ndarray[Any, Any], spacing_mm: float) -> MetaTensor:
    """An image (1, X, Y, Z) as MONAI reads it from a file whose axes grow to right, front and head."""
    from monai.data import MetaTensor

    affine = torch.diag(torch.tensor([spacing_mm] * 3 + [1.0], dtype=torch.float64))
    return MetaTensor(torch.from_numpy(values)[None], affine=affine)


def test_a_ct_is_turned_cropped_clipped_and_z_scored(net: Iris, tmp_path: Path) -> None:
    export_features_bundle(net, tmp_path, FORMAT, "ct")
    body = np.full((20, 24, 28), -1000.0, np.float32)  # x, y, z
    body[8:12, 8:16, 8:20] = np.random.default_rng(0).uniform(-100, 900, (4, 8, 12))
    prepare = transforms(tmp_path, without={"LoadImaged"})
    image = np.asarray(prepare({"image": scan_in_ras(body, 2.0)})["image"])
    box = body[6:14, 6:18, 6:22].transpose(2, 1, 0)  # 4 mm are two voxels
    expected = np.clip(box, -991, 500)
    expected = (expected - expected.mean()) / expected.std()
    assert image.shape == (1, 16, 12, 8)
    np.testing.assert_allclose(image[0], expected, atol=2e-3)


def test_an_mr_is_clipped_to_its_percentiles_and_not_cropped(net: Iris, tmp_path: Path) -> None:
    export_features_bundle(net, tmp_path, FORMAT, "mr")
    values = np.random.default_rng(0).gamma(2.0, 100.0, (16, 20, 40)).astype(np.float32)
    prepare = transforms(tmp_path, without={"LoadImaged"})
    image = np.asarray(prepare({"image": scan_in_ras(values, 2.0)})["image"])
    clipped = np.clip(values, *np.percentile(values, (2, 98))).transpose(2, 1, 0)
    expected = (clipped - clipped.mean()) / clipped.std()
    np.testing.assert_allclose(image[0], expected, atol=2e-2)


def test_features_of_each_image_are_a_file_with_five_arrays(net: Iris, tmp_path: Path) -> None:
    from monai.data import MetaTensor

    image = MetaTensor(torch.randn(1, 16, 32, 16), meta={"filename_or_obj": "images/ann.nii.gz"})
    write_features(net.encoder, [{"image": image}], tmp_path / "out", "cpu")
    features = load_file(tmp_path / "out" / "ann.safetensors")
    with torch.no_grad():
        expected = net.encode(torch.as_tensor(image.as_tensor())[None])
    for factor, feature in zip((16, 8, 4, 2, 1), expected, strict=True):
        torch.testing.assert_close(features[f"features_{factor}"], feature)


def test_an_image_is_padded_with_its_minimum_on_both_sides(net: Iris) -> None:
    image = torch.rand(1, 1, 13, 32, 17) + 3
    wide = padded(image)
    assert wide.shape == (1, 1, 16, 32, 32)
    torch.testing.assert_close(wide[:, :, 1:14, :, 7:24], image)
    outside = torch.ones_like(wide, dtype=torch.bool)
    outside[:, :, 1:14, :, 7:24] = False
    assert (wide[outside] == image.min()).all()


@pytest.mark.parametrize("shape", [(20, 40, 17), (64, 32, 16)])
def test_a_bundle_gives_the_labels_that_segmenting_with_this_package_gives(
    net: Iris, shape: tuple[int, int, int]
) -> None:
    image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    config = InferenceConfig(window_voxels=(32, 32, 16), precision="float32")
    structures = tuple(Structure(name=str(value), values=(value,)) for value in (1, 2))
    prompt = token_prompt(net, structures, config)
    expected = predict_labels(net, image, prompt, config)
    with torch.no_grad():
        tuned = finetuned_unet(net, config.masks_at_once)
        probabilities = WindowInferer((32, 32, 16))(torch.from_numpy(image)[None, None], tuned)
    labels = probabilities[0].argmax(dim=0).numpy()
    assert set(np.unique(expected)) == {0, 1, 2}
    assert (labels == expected).mean() > 0.999


def test_an_encoder_of_whole_scans_gets_them_stretched_over_a_window(net: Iris, tmp_path: Path) -> None:
    whole = ImageFormat(
        spacing_mm=2.0,
        ct_window_hu=(-991.0, 500.0),
        percentiles=(2.0, 98.0),
        body_threshold_hu=-500.0,
        margin_mm=4.0,
        crop_voxels=(32, 32, 16),
        whole_scans=True,
    )
    export_features_bundle(net, tmp_path, whole, "mr")
    prepare = transforms(tmp_path, without={"LoadImaged"})
    values = np.random.default_rng(0).random((16, 20, 40), np.float32)
    assert prepare({"image": scan_in_ras(values, 2.0)})["image"].shape == (1, 32, 32, 16)
