"""A MONAI bundle of a network: weights, metadata, and a config that runs it on image files.

*Writes* a folder: `models/model.pt` (a state dict), `configs/metadata.json`, `configs/inference.json`. The
configs name classes of this package, which must be installed beside MONAI. `python -m monai.bundle run
--bundle_root OUT --config_file OUT/configs/inference.json --dataset_dir IMAGES` runs it.

    features      the encoder; five feature maps per image, as one .safetensors file
    segmentation  a fine-tuned network; a label map per image

Images are prepared by MONAI's transforms, not by this package: turned, resampled, clipped and z-scored in the
same order, but MR and PET are not cropped to the body, and the resampling differs in detail.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from storage import write_atomically
from training.network.graphs import OUTPUTS
from training.network.image_format import ImageFormat
from training.network.iris import CROP_MULTIPLE, Iris
from training.network.plain import FinetunedUNet

Modality = Literal["ct", "mr", "pet"]
Config = dict[str, Any]

_SCHEMA = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
)
_AXES = "SAR"
"""MONAI's name for axes z, y, x that grow to the head, the front and the patient's right."""


@dataclass(frozen=True, kw_only=True)
class LabelledStructure:
    """A structure of a fine-tuned network, with the value that it has in label maps."""

    name: str
    """Its name."""
    value: int
    """Its label value."""


def export_features_bundle(net: Iris, out: Path, image_format: ImageFormat, modality: Modality) -> list[Path]:
    """Write the bundle of an encoder; returns its files.

    Args:
        net: A pretrained or fine-tuned network.
        out: Folder of the bundle.
        image_format: Preparation of the network's images.
        modality: Modality of the images that the bundle will read.
    """
    network = {"_target_": "training.network.Encoder", "channels": list(net.channels)}
    inference = {
        **_start(network),
        "preprocessing": _compose(_preparation(image_format, modality)),
        "dataset": _dataset(),
        "initialize": [_load_weights()],
        "run": [
            {
                "_target_": "training.network.write_features",
                "network": "@network",
                "dataset": "@dataset",
                "folder": "@output_dir",
                "device": "@device",
            }
        ],
    }
    outputs = {
        name: _tensor("latent", channels=width, shape=_any_size(CROP_MULTIPLE // int(name.split("_")[1])))
        for name, width in zip(OUTPUTS, reversed(net.channels), strict=True)
    }
    metadata = _metadata(
        "Features of 3D medical images at five scales",
        image_format,
        modality,
        _any_size(CROP_MULTIPLE),
        outputs,
    )
    return _write(out, net.encoder, metadata, inference)


def export_segmentation_bundle(
    net: FinetunedUNet,
    structures: list[LabelledStructure],
    out: Path,
    image_format: ImageFormat,
    modality: Modality,
) -> list[Path]:
    """Write the bundle of a fine-tuned network; returns its files.

    Args:
        net: The network.
        structures: Its structures, in the order of its outputs.
        out: Folder of the bundle.
        image_format: Preparation of the network's images.
        modality: Modality of the images that the bundle will read.
    """
    network = {
        "_target_": "training.network.FinetunedUNet",
        "channels": list(net.channels),
        "num_structures": net.num_structures,
        "masks_at_once": net.masks_at_once,
    }
    inference = {
        **_start(network),
        "preprocessing": _compose(_preparation(image_format, modality)),
        "dataset": _dataset(),
        **_evaluation(structures, image_format),
        "initialize": [_load_weights()],
        "run": ["$@evaluator.run()"],
    }
    window = list(image_format.crop_voxels)
    names = {str(index): part.name for index, part in enumerate(structures, start=1)}
    prediction = _tensor("labels", channels=1 + len(structures), shape=window)
    prediction["channel_def"] = {"0": "background", **names}
    task = f"Segmentation of {', '.join(part.name for part in structures)}"
    metadata = _metadata(task, image_format, modality, window, {"pred": prediction})
    metadata["label_values"] = {part.name: part.value for part in structures}
    return _write(out, net, metadata, inference)


@torch.inference_mode()
def write_features(network: nn.Module, dataset: Any, folder: Path | str, device: torch.device | str) -> None:
    """Write the features of each image as NAME.safetensors, named as in `OUTPUTS`; configs call this.

    Args:
        network: An `Encoder`.
        dataset: Yields dictionaries with "image", a MONAI MetaTensor (1, Z, Y, X) that knows its file's name.
        folder: Where to write; made new.
        device: Where to compute.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    network.to(device).eval()
    for number in range(len(dataset)):
        image = dataset[number]["image"]
        stem = Path(str(image.meta["filename_or_obj"])).name.removesuffix(".gz").removesuffix(".nii")
        batch = padded(torch.as_tensor(image[None]).as_subclass(Tensor)).to(device)
        features = {name: part.cpu().contiguous() for name, part in zip(OUTPUTS, network(batch), strict=True)}
        save_file(features, Path(folder) / f"{stem}.safetensors")


def padded(image: Tensor) -> Tensor:
    """Return an image (B, 1, Z, Y, X) padded on both sides to multiples of 16, with its minimum."""
    sides: list[int] = []
    for size in reversed(image.shape[2:]):
        missing = -size % CROP_MULTIPLE
        sides += [missing // 2, missing - missing // 2]
    return functional.pad(image, sides, value=float(image.min()))


class WindowInferer:
    """Predicts an image in overlapping windows, with MONAI's own function; a bundle's config names it.

    Unlike MONAI's inferer, a window is no longer than the image needs, and beyond the image it shows the
    image's minimum: as `mass segment` does, and as the network was trained.
    """

    def __init__(self, window_voxels: Sequence[int], overlap_fraction: float = 0.5) -> None:
        """Keep the settings: the largest window (z, y, x), and how much of it neighbours share."""
        self.window_voxels, self.overlap_fraction = tuple(window_voxels), overlap_fraction

    def __call__(self, inputs: Tensor, network: nn.Module) -> Tensor:
        """Return the network's output for an image (B, 1, Z, Y, X), averaged with Gaussian weights."""
        from monai.inferers.utils import sliding_window_inference

        window = [
            min(most, size + -size % CROP_MULTIPLE)
            for most, size in zip(self.window_voxels, inputs.shape[2:], strict=True)
        ]
        output: Any = sliding_window_inference(
            inputs,
            window,
            1,
            network,
            overlap=self.overlap_fraction,
            mode="gaussian",
            cval=float(inputs.min()),
        )
        assert isinstance(output, Tensor)
        return output


def _start(network: Config) -> Config:
    """Return the part of an inference config that names folders, device and network."""
    return {
        "imports": ["$import glob", "$import torch"],
        "bundle_root": ".",
        "dataset_dir": ".",
        "output_dir": "$@bundle_root + '/eval'",
        "datalist": "$sorted(glob.glob(@dataset_dir + '/*.nii.gz'))",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": network,
        "network": "$@network_def.to(@device)",
    }


def _dataset() -> Config:
    return {
        "_target_": "Dataset",
        "data": "$[{'image': i} for i in @datalist]",
        "transform": "@preprocessing",
    }


def _load_weights() -> str:
    model = "torch.load(@bundle_root + '/models/model.pt', map_location=@device, weights_only=True)"
    return f"$@network.load_state_dict({model})"


def _compose(transforms: list[Config]) -> Config:
    return {"_target_": "Compose", "transforms": transforms}


def _preparation(image_format: ImageFormat, modality: Modality) -> list[Config]:
    """Return MONAI's transforms that prepare an image of this modality."""
    step, spacing = {"keys": "image"}, image_format.spacing_mm
    transforms: list[Config] = [
        {"_target_": "LoadImaged", **step, "ensure_channel_first": True},
        {"_target_": "Orientationd", **step, "axcodes": _AXES, "labels": None},
        {"_target_": "Spacingd", **step, "pixdim": [spacing] * 3, "mode": "bilinear"},
    ]
    if modality == "ct":
        margin = round(image_format.margin_mm / spacing)
        low, high = image_format.ct_window_hu
        transforms += [
            {
                "_target_": "CropForegroundd",
                **step,
                "source_key": "image",
                "select_fn": f"$lambda image: image > {image_format.body_threshold_hu}",
                "margin": margin,
                "allow_smaller": True,
            },
            {"_target_": "ScaleIntensityRanged", **step, **_same_range(low, high), "clip": True},
        ]
    else:
        low, high = image_format.percentiles
        transforms.append({"_target_": "ClipIntensityPercentilesd", **step, "lower": low, "upper": high})
    transforms.append({"_target_": "NormalizeIntensityd", **step})
    if image_format.whole_scans:
        window = list(image_format.crop_voxels)
        transforms.append({"_target_": "Resized", **step, "spatial_size": window, "mode": "trilinear"})
    return [*transforms, {"_target_": "EnsureTyped", **step}]


def _same_range(low: float, high: float) -> Config:
    """Return a range for `ScaleIntensityRanged` that clips and does not scale."""
    return {"a_min": low, "a_max": high, "b_min": low, "b_max": high}


def _evaluation(structures: list[LabelledStructure], image_format: ImageFormat) -> Config:
    """Return windows, the way back to each image's own grid, label values, and the engine."""
    values = [part.value for part in structures]
    prediction = {"keys": "pred"}
    return {
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": {
            "_target_": "training.network.WindowInferer",
            "window_voxels": list(image_format.crop_voxels),
        },
        "postprocessing": _compose(
            [
                {
                    "_target_": "Invertd",
                    **prediction,
                    "transform": "@preprocessing",
                    "orig_keys": "image",
                    "nearest_interp": False,
                    "to_tensor": True,
                },
                {"_target_": "AsDiscreted", **prediction, "argmax": True},
                {
                    "_target_": "MapLabelValued",
                    **prediction,
                    "orig_labels": list(range(len(values) + 1)),
                    "target_labels": [0, *values],
                },
                {
                    "_target_": "SaveImaged",
                    **prediction,
                    "output_dir": "@output_dir",
                    "output_postfix": "seg",
                    "output_dtype": "$numpy.uint16",
                    "separate_folder": False,
                },
            ]
        ),
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
        },
    }


def _any_size(multiple: int) -> list[str]:
    """Return a spatial shape in MONAI's notation: any multiple along each axis."""
    return [f"{multiple}*{axis}" if multiple > 1 else axis for axis in "abc"]


def _tensor(format: str, *, channels: int, shape: list[Any]) -> Config:
    return {
        "type": "image",
        "format": format,
        "num_channels": channels,
        "spatial_shape": shape,
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": True,
        "channel_def": {str(channel): f"feature {channel}" for channel in range(channels)},
    }


def _metadata(
    task: str, image_format: ImageFormat, modality: Modality, shape: list[Any], outputs: Mapping[str, Config]
) -> Config:
    """Return the bundle's metadata.json."""
    image = _tensor("hounsfield" if modality == "ct" else "magnitude", channels=1, shape=shape)
    image |= {"modality": modality.upper(), "channel_def": {"0": "z-scores"}}
    return {
        "schema": _SCHEMA,
        "version": "1.0.0",
        "changelog": {"1.0.0": "exported by mass export-weights"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch").split("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {},
        "task": task,
        "description": f"{task}. Not a medical device; for research. Needs the package mass3d.",
        "authors": "see the model card of the run",
        "copyright": "see the licences of the training data",
        "image_preparation": image_format.to_json(),
        "network_data_format": {"inputs": {"image": image}, "outputs": dict(outputs)},
    }


def _write(out: Path, network: nn.Module, metadata: Config, inference: Config) -> list[Path]:
    state = {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}
    model, *configs = (
        out / "models" / "model.pt",
        out / "configs" / "metadata.json",
        out / "configs" / "inference.json",
    )
    write_atomically(model, lambda file: torch.save(state, file))
    for path, document in zip(configs, (metadata, inference), strict=True):
        text = json.dumps(document, indent=4).encode() + b"\n"
        write_atomically(path, lambda file, text=text: file.write(text))  # type: ignore[misc]
    return [model, *configs]
