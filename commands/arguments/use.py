"""Options of the commands that segment, and of the demo."""

from __future__ import annotations

import argparse
from pathlib import Path

from commands.arguments.shared import add_cache, add_checkpoint, add_count, add_store, add_workers, at_least

EXAMPLES = Path(__file__).parent.parent.parent / "examples" / "manifest.csv"
"""The bundled scans, if this is a checkout."""

DEMO_STEPS = 150
"""Steps of the demo's pretraining: about a minute on two free cores, enough to see the loss fall."""

DEMO_FINETUNE_STEPS = 250
"""Steps of its fine-tuning."""


def add_segment(add: argparse.ArgumentParser) -> None:
    """The options of `mass segment`."""
    add_checkpoint(add, or_else="none: no network, references are carried over by registration")
    add.add_argument(
        "--reference-image",
        action="append",
        default=[],
        type=Path,
        metavar="I",
        help="a scan with a mask of the structures: a file or DICOM folder (may be repeated; averaged)",
    )
    add.add_argument(
        "--reference-mask",
        action="append",
        default=[],
        type=Path,
        metavar="M",
        help="its mask on the same grid, with one or several label values; one for each image, in order",
    )
    add.add_argument(
        "--finetuned", action="store_true", help="CHECKPOINT is of `mass finetune`: it needs no reference"
    )
    add.add_argument("targets", type=Path, nargs="+", metavar="TARGET", help="files or folders of raw scans")
    add.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the results")
    add.add_argument(
        "--label",
        action="append",
        default=[],
        type=int,
        metavar="N",
        help="only this label value of the masks (may be repeated)",
    )
    add.add_argument(
        "--by",
        choices=("network", "registration", "both"),
        help="how structures are found: by the network in context; by registration, which carries the "
        "references' masks over; by both (default): registration that also tries where the network sees them",
    )
    add.add_argument(
        "--largest-component", action="store_true", help="keep the largest connected part of each structure"
    )
    add.add_argument(
        "--probabilities", action="store_true", help="write each structure's probability as an image too"
    )
    _add_reading(add)
    add_workers(add, "targets at a time, each in a process of its own (1)")
    add.add_argument(
        "--again", action="store_true", help="make results again that are there, made with the same settings"
    )


def _add_reading(add: argparse.ArgumentParser) -> None:
    """The options of how references and targets are read."""
    add.add_argument(
        "--spacing", type=float, metavar="MM", help="voxel edge to work at (default: that of the training)"
    )
    add.add_argument(
        "--modality", choices=("ct", "mr", "pet"), help="of all scans (default: from DICOM, or guessed)"
    )
    add.add_argument(
        "--across-modalities", action="store_true", help="take targets of a modality no reference has"
    )
    add.add_argument("--frame", type=int, metavar="N", help="which volume of 4D files, counted from 0")
    add.add_argument(
        "--resample-mask",
        action="store_true",
        help="take reference masks that lie on another grid than their image, by nearest neighbour",
    )


def add_evaluate(add: argparse.ArgumentParser) -> None:
    """The options of `mass evaluate`."""
    add_checkpoint(add)
    add_store(add)
    add_cache(add)
    add.add_argument(
        "--references",
        choices=("fixed", "random", "ensemble"),
        default="random",
        help="one prompt; several, each scored (default); several, their probabilities averaged",
    )
    add.add_argument(
        "--reference",
        action="append",
        default=[],
        metavar="ID",
        help="make prompts of this scan (may be repeated; default: drawn, for fixed the first by id)",
    )
    add_count(add, "--shots", 1, "K", "references of a prompt, averaged (1)")
    add_count(add, "--prompts", 5, "N", "prompts of random and ensemble (5)")
    add.add_argument(
        "--target", action="append", default=[], metavar="ID", help="only this scan (may be repeated)"
    )
    add_count(add, "--targets", 20, "N", "without --target: number drawn from each data set (20)")
    add.add_argument("--dataset", action="append", default=[], metavar="NAME", help="only this data set")
    add.add_argument("--label-map", default="", metavar="NAME", help="only this label map")
    add.add_argument(
        "--whole", action="store_true", help="also all structures of a label map together, as one"
    )
    add_count(add, "--structures", 128, "N", "most structures of a label map, the commonest first (128)")
    add_count(add, "--seed", 0, "N", "seed of the draws (0)", least=0)
    add_count(add, "--resamples", 2000, "N", "bootstrap resamples of the targets (2000)", least=100)
    add.add_argument(
        "--page",
        type=Path,
        metavar="FILE",
        help="write a page: the worst cases first, with a viewer",
    )
    add.add_argument("--markdown", type=Path, metavar="FILE", help="write all tables")
    add.add_argument("--csv", type=Path, metavar="FILE", help="write one row per case and structure")


def add_export_weights(add: argparse.ArgumentParser) -> None:
    """The options of `mass export-weights`."""
    add.add_argument(
        "checkpoint",
        type=Path,
        metavar="RUN",
        help="a run's folder, its weights.safetensors, a .pt file, the published .pth, or small-v1",
    )
    add.add_argument("out", type=Path, metavar="OUT", help="folder to write to; no file is replaced")
    add.add_argument(
        "--format",
        required=True,
        choices=("safetensors", "torchscript", "onnx", "nnunet", "monai"),
        help="safetensors: all weights; torchscript, onnx: the encoder, five feature maps; nnunet: a plans "
        "file and a checkpoint; monai: a bundle",
    )
    add.add_argument(
        "--weights", choices=("ema", "model"), default="ema", help="averaged (default) or last weights"
    )
    add.add_argument(
        "--plans", type=Path, metavar="FILE", help="nnunet: nnU-Net's own plans of the data set to train on"
    )
    add.add_argument("--name", metavar="NAME", help="nnunet: name of the new plans (massPlans)")
    add.add_argument(
        "--modality", choices=("ct", "mr", "pet"), help="monai: modality of the images to be read"
    )
    add.add_argument(
        "--finetuned",
        action="store_true",
        help="monai: RUN is of `mass finetune`; the bundle segments its structures",
    )
    add.add_argument(
        "--compact",
        action="store_true",
        help="safetensors: int8, without position volumes: an eighth of a small network's bytes",
    )


def add_demo(add: argparse.ArgumentParser) -> None:
    """The options of `mass demo`."""
    add.add_argument("--raw", type=Path, default=EXAMPLES, metavar="RAW", help="other scans")
    add.add_argument(
        "--store", type=Path, default=Path("demo-store"), metavar="STORE", help="default: demo-store"
    )
    add.add_argument(
        "--out", type=Path, default=Path("demo-report.html"), metavar="report.html", help="the page"
    )
    add.add_argument(
        "--run",
        type=Path,
        default=Path("demo-run"),
        metavar="RUN",
        dest="run_folder",
        help="default: demo-run",
    )
    add.add_argument(
        "--unseen",
        type=Path,
        nargs=2,
        metavar=("IMAGE", "MASK"),
        help="a labelled scan that is not in RAW, to segment at the end (default: the bundled one; "
        "none for other scans)",
    )
    add.add_argument(
        "--dataset", metavar="NAME", help="fine-tune on the labels of this data set (default: all)"
    )
    add.add_argument(
        "--steps",
        type=int,
        default=DEMO_STEPS,
        metavar="N",
        help=f"steps of pretraining ({DEMO_STEPS}; 0: none)",
    )
    add.add_argument(
        "--finetune-steps",
        type=at_least(1),
        default=DEMO_FINETUNE_STEPS,
        metavar="N",
        help=f"steps of fine-tuning ({DEMO_FINETUNE_STEPS})",
    )
    add_workers(add, "processes on this machine (default: 1)")
