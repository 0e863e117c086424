"""`mass export-weights`: the weights of a run in the formats of other tools."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from commands.terminal import CommandError
from pipeline.ingest import ingest_config
from training.inference import Finetuned, inference_for, load_finetuned
from training.network import (
    ImageFormat,
    Iris,
    LabelledStructure,
    convert_weights,
    export_features_bundle,
    export_nnunet,
    export_onnx,
    export_segmentation_bundle,
    export_torchscript,
    features_metadata,
    finetuned_unet,
    load_checkpoint,
)

OWN_OPTIONS = {
    "plans": "nnunet",
    "name": "nnunet",
    "modality": "monai",
    "finetuned": "monai",
    "compact": "safetensors",
}
"""Options that only one format takes."""
PLANS_NAME = "massPlans"


def run_export_weights(arguments: Namespace) -> tuple[int, dict[str, Any]]:
    """Run `mass export-weights`; return the exit code and the results for --json."""
    _check_options(arguments)
    net = load_checkpoint(arguments.checkpoint, weights=arguments.weights)
    image_format = image_format_of(net)
    files, next_steps = FORMATS[arguments.format](arguments, net, image_format)
    for file in files:
        print(file)
    if next_steps:
        print(f"\n{next_steps}")
    return 0, {
        "checkpoint": str(arguments.checkpoint),
        "format": arguments.format,
        "files": [str(file) for file in files],
        "channels": list(net.channels),
        "image": image_format.to_json(),
    }


def image_format_of(net: Iris) -> ImageFormat:
    """Return the preparation of a network's images; by default that of the published training."""
    ingest = ingest_config(net.trained_on.ingest_settings)
    return ImageFormat(
        spacing_mm=ingest.spacing_mm,
        ct_window_hu=ingest.ct_window_hu,
        percentiles=ingest.percentiles,
        body_threshold_hu=ingest.body_threshold_hu,
        margin_mm=ingest.margin_mm,
        crop_voxels=inference_for(net.trained_on).window_voxels,
        whole_scans=net.trained_on.whole_scans,
    )


def _check_options(arguments: Namespace) -> None:
    for option, format in OWN_OPTIONS.items():
        if getattr(arguments, option) and arguments.format != format:
            raise CommandError(f"--{option} belongs to --format {format}; leave it out, or name that format")
    if arguments.format == "nnunet" and not arguments.plans:
        raise CommandError(
            "--format nnunet needs --plans FILE: the nnUNetPlans.json of the data set to train on. "
            "`nnUNetv2_plan_and_preprocess -d ID --no_pp` makes it, in the folder of nnUNet_preprocessed"
        )
    if arguments.format == "monai" and not (arguments.modality or arguments.finetuned):
        raise CommandError("--format monai needs --modality ct, mr or pet: that of the images to be read")


Written = tuple[list[Path], str]
"""The files of an export, and what to do with them."""


def _free(*paths: Path) -> None:
    """Refuse to replace files."""
    for path in paths:
        if path.exists():
            raise CommandError(f"{path}: there is a file of this name. Name another folder, or remove it")


def _safetensors(arguments: Namespace, net: Iris, image_format: ImageFormat) -> Written:
    path = arguments.out / "weights.safetensors"
    _free(path, path.with_suffix(".md"))
    card = convert_weights(arguments.checkpoint, path, weights=arguments.weights, compact=arguments.compact)
    return [path, card], ""


def _torchscript(arguments: Namespace, net: Iris, image_format: ImageFormat) -> Written:
    path = arguments.out / "encoder.ts"
    _free(path)
    return [export_torchscript(net, path, features_metadata(net, image_format.to_json()))], ""


def _onnx(arguments: Namespace, net: Iris, image_format: ImageFormat) -> Written:
    path = arguments.out / "encoder.onnx"
    _free(path)
    return [export_onnx(net, path, features_metadata(net, image_format.to_json()))], ""


def _nnunet(arguments: Namespace, net: Iris, image_format: ImageFormat) -> Written:
    name = arguments.name or PLANS_NAME
    _free(arguments.out / f"{name}.json", arguments.out / f"{name}.pth")
    plans, weights = export_nnunet(net, arguments.plans, arguments.out, image_format, name=name)
    steps = (
        f"Next:\n  cp {plans} {arguments.plans.parent}/\n"
        f"  nnUNetv2_preprocess -d ID -plans_name {name} -c 3d_fullres\n"
        f"  nnUNetv2_train ID 3d_fullres 0 -p {name} -pretrained_weights {weights}"
    )
    return [plans, weights], steps


def _monai(arguments: Namespace, net: Iris, image_format: ImageFormat) -> Written:
    out: Path = arguments.out
    _free(out / "models" / "model.pt", out / "configs" / "metadata.json", out / "configs" / "inference.json")
    if arguments.finetuned:
        files = _segmentation_bundle(
            arguments, load_finetuned(arguments.checkpoint, weights=arguments.weights)
        )
    else:
        files = export_features_bundle(net, out, image_format, arguments.modality)
    return files, (
        f"Next:\n  python -m monai.bundle run --bundle_root {out} "
        f"--config_file {out}/configs/inference.json --dataset_dir IMAGES"
    )


def _segmentation_bundle(arguments: Namespace, tuned: Finetuned) -> list[Path]:
    trained = tuned.modalities
    modality: Any = arguments.modality or (trained[0] if len(trained) == 1 else None)
    if modality is None:
        raise CommandError(f"the network was trained on {', '.join(trained)}: choose one with --modality")
    structures = [LabelledStructure(name=part.name, value=part.values[0]) for part in tuned.structures]
    net = finetuned_unet(tuned.net, tuned.masks_at_once)
    return export_segmentation_bundle(net, structures, arguments.out, image_format_of(tuned.net), modality)


FORMATS: Mapping[str, Callable[[Namespace, Iris, ImageFormat], Written]] = {
    "safetensors": _safetensors,
    "torchscript": _torchscript,
    "onnx": _onnx,
    "nnunet": _nnunet,
    "monai": _monai,
}
"""Function that writes each format."""
