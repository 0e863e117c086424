"""Pretrained weights for nnU-Net v2: a plans file with our plain U-Net, and a checkpoint.

*Reads* a plans file that nnU-Net made for the user's data set (`nnUNetv2_plan_and_preprocess -d ID --no_pp`).
*Writes* NAME.json, the same plans with one configuration, `3d_fullres`: our network, spacing, normalisation
and patch; and NAME.pth, for `nnUNetv2_train -pretrained_weights`. nnU-Net imports the network by its name, so
this package must be installed beside it. nnU-Net itself is not needed here.

What stays as nnU-Net planned it: reader, axis order, resampling, batch size, loss. Not taken over from our
training: the clip of intensities and the crop to the body, which nnU-Net's schemes do not have.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from storage import write_atomically
from training.errors import ConfigError
from training.network.image_format import ImageFormat
from training.network.iris import CROP_MULTIPLE, Iris
from training.network.plain import STRIDES, plain_unet_state

CONFIGURATION = "3d_fullres"
NETWORK_CLASS = "training.network.PlainUNet"
NORMALISATION = "ZScoreNormalization"
"""The scheme of nnU-Net that is nearest to ours: (value - mean) / std of each whole scan. For CT too: over 12
CTs the mean of the clipped scan lies between -676 and -193 HU, so the fixed numbers of CTNormalization shift
scans by up to one standard deviation; leaving out the clip shifts the mean by 13 HU at most."""

_NEEDED = ("dataset_name", "plans_name", "configurations")
_NEEDED_3D = ("spacing", "median_image_size_in_voxels", "normalization_schemes")


def export_nnunet(
    net: Iris, plans: Path, out: Path, image_format: ImageFormat, *, name: str
) -> tuple[Path, Path]:
    """Write a plans file and a checkpoint for nnU-Net; returns their paths.

    Args:
        net: A pretrained or fine-tuned network.
        plans: nnU-Net's plans of the data set to train on.
        out: Folder to write to.
        image_format: Preparation of the network's images.
        name: Name of the new plans, for `-p`; also of both files.

    Raises:
        ConfigError: The plans cannot be read, or are not of nnU-Net v2 with a configuration 3d_fullres.
    """
    written = plans_for(read_plans(plans), net.channels, image_format, name=name)
    num_channels = len(written["configurations"][CONFIGURATION]["normalization_schemes"])
    document = {"network_weights": plain_unet_state(net, num_channels)}
    text = json.dumps(written, indent=4).encode() + b"\n"
    paths = out / f"{name}.json", out / f"{name}.pth"
    write_atomically(paths[1], lambda file: torch.save(document, file))
    write_atomically(paths[0], lambda file: file.write(text))
    return paths


def read_plans(path: Path) -> dict[str, Any]:
    """Return nnU-Net's plans.

    Raises:
        ConfigError: The file is missing, no JSON, or has no 3D configuration of nnU-Net v2.
    """
    how = "Name the nnUNetPlans.json that `nnUNetv2_plan_and_preprocess -d ID --no_pp` writes"
    try:
        plans = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: plans of nnU-Net expected, it cannot be read ({error}). {how}") from error
    _require(plans, _NEEDED, f"{path}: plans of nnU-Net v2 expected, but {{}} is missing. {how}")
    configurations = plans["configurations"]
    _require(
        configurations,
        (CONFIGURATION,),
        f"{path}: it has no configuration {{}}, but {', '.join(configurations)}; the network is 3D. {how}",
    )
    _require(
        configurations[CONFIGURATION],
        _NEEDED_3D,
        f"{path}: in {CONFIGURATION}, {{}} is missing. {how}",
    )
    return dict(plans)


def _require(values: Any, keys: Sequence[str], message: str) -> None:
    missing = [key for key in keys if not isinstance(values, dict) or key not in values]
    if missing:
        raise ConfigError(message.replace("{}", ", ".join(missing)))


def plans_for(
    plans: Mapping[str, Any], channels: Sequence[int], image_format: ImageFormat, *, name: str
) -> dict[str, Any]:
    """Return nnU-Net's plans with our network in place of its own.

    Args:
        plans: nnU-Net's plans of the data set; unchanged.
        channels: Number of channels of the five stages of our network.
        image_format: Preparation of the network's images.
        name: Name of the new plans.
    """
    planned = plans["configurations"][CONFIGURATION]
    spacing = image_format.spacing_mm
    size = [
        voxels * edge / spacing
        for voxels, edge in zip(planned["median_image_size_in_voxels"], planned["spacing"], strict=True)
    ]
    num_channels = len(planned["normalization_schemes"])
    configuration = {
        **planned,
        "data_identifier": f"{name}_{CONFIGURATION}",
        "spacing": [spacing] * 3,
        "median_image_size_in_voxels": size,
        "patch_size": [
            patch_side(voxels, most) for voxels, most in zip(size, image_format.crop_voxels, strict=True)
        ],
        "normalization_schemes": [NORMALISATION] * num_channels,
        "use_mask_for_norm": [False] * num_channels,
        "architecture": {
            "network_class_name": NETWORK_CLASS,
            "arch_kwargs": {"channels": list(channels), "strides": [list(step) for step in STRIDES]},
            "_kw_requires_import": [],
        },
    }
    # A cascade would lead to configurations that are not here.
    for key in ("inherits_from", "previous_stage", "next_stage"):
        configuration.pop(key, None)
    return {**plans, "plans_name": name, "configurations": {CONFIGURATION: configuration}}


def patch_side(median_voxels: float, crop_voxels: int) -> int:
    """Return the side of a patch: the image's median size rounded up to 16, at most the training crop's."""
    whole = CROP_MULTIPLE * math.ceil(median_voxels / CROP_MULTIPLE)
    return max(CROP_MULTIPLE, min(whole, crop_voxels))
