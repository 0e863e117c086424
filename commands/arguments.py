"""Every `mass` command, its options, and the function that carries it out: named, not imported."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from commands.options import (
    add_checkpoint,
    add_count,
    add_device,
    add_training,
    add_workers,
    at_least,
    renamed,
)

EXAMPLES = Path(__file__).parent.parent / "examples" / "manifest.csv"
"""The bundled scans, where this is a checkout."""

DEMO_STEPS = 150
"""Of the demo's pretraining: about a minute on two free cores, enough to see the loss fall."""

DEMO_FINETUNE_STEPS = 250
"""Of its fine-tuning."""


def add_prepare(add: argparse.ArgumentParser) -> None:
    """The options of `mass prepare`."""
    add.add_argument(
        "raw", type=Path, metavar="RAW", help="a folder, a manifest (.csv, .tsv, .jsonl), or one file"
    )
    add.add_argument("store", type=Path, metavar="STORE", help="the store; made where there is none")
    add.add_argument(
        "--config", type=Path, metavar="C.toml", help="settings: tables [ingest] and [proposals]"
    )
    where = add.add_mutually_exclusive_group()
    add_workers(where, "processes on this machine (default: 1, in this process)")
    where.add_argument(
        "--scheduler", default="", metavar="tcp://HOST:PORT", help="a Dask scheduler to use instead"
    )
    add.add_argument(
        "--device",
        type=renamed("cuda", "gpu"),
        default="auto",
        choices=("auto", "cpu", "numpy", "gpu"),
        help="where to compute (default: auto; cuda is gpu)",
    )
    add.add_argument(
        "--retry-failed", action="store_true", help="try failed scans again although nothing changed"
    )
    add.add_argument("--prune", action="store_true", help="remove scans whose sources are gone")


def add_status(add: argparse.ArgumentParser) -> None:
    """The options of `mass status`."""
    add.add_argument("store", type=Path, metavar="STORE")


def add_verify(add: argparse.ArgumentParser) -> None:
    """The options of `mass verify`."""
    add.add_argument("store", type=Path, metavar="STORE")


def add_lift(add: argparse.ArgumentParser) -> None:
    """The options of `mass lift`."""
    add.add_argument("store", type=Path, metavar="STORE", help="nothing is prepared anew; may be interrupted")


def add_score(add: argparse.ArgumentParser) -> None:
    """The options of `mass score`."""
    add.add_argument("store", type=Path, metavar="STORE")
    for what, of in (("scan", "ids"), ("dataset", "data sets")):
        add.add_argument(
            f"--{what}",
            action="append",
            default=[],
            metavar="PATTERN",
            help=f"only scans whose {of} fit it, as 'spine*' (may be repeated)",
        )
    add.add_argument(
        "--baseline", choices=("slic",), help="score flat multi-scale SLIC as well (minutes a scan)"
    )
    add.add_argument(
        "--markdown", type=Path, metavar="FILE", help="write all tables; the terminal shows the first"
    )
    add.add_argument("--csv", type=Path, metavar="FILE", help="write a row a structure of a scan")
    add_workers(add, "scans scored at once (default: 1)")


def add_inspect(add: argparse.ArgumentParser) -> None:
    """The options of `mass inspect`."""
    add.add_argument("store", type=Path, metavar="STORE")
    add.add_argument(
        "--scan", action="append", default=[], metavar="ID", help="this scan in full (may be repeated)"
    )
    add.add_argument("--out", type=Path, required=True, metavar="report.html", help="the page")
    add.add_argument(
        "--full", type=int, default=3, metavar="N", help="without --scan: so many scans in full (3)"
    )


def add_pretrain(add: argparse.ArgumentParser) -> None:
    """The options of `mass pretrain`."""
    add.add_argument("store", type=Path, metavar="STORE")
    add.add_argument(
        "run_folder", type=Path, metavar="RUN", help="checkpoints, metrics, pictures, weights; made new"
    )
    add_training(add, ("published", "small", "whole"))


def add_embed(add: argparse.ArgumentParser) -> None:
    """The options of `mass embed`."""
    add.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="a run's, exported, or published one"
    )
    add.add_argument("store", type=Path, metavar="STORE")
    add.add_argument("--out", type=Path, required=True, metavar="features.npz", help="the file, .npz or .csv")
    add.add_argument(
        "--window",
        type=int,
        default=128,
        metavar="N",
        help="most voxels seen at once, a multiple of 16 (128)",
    )
    add_device(add)


def add_classify(add: argparse.ArgumentParser) -> None:
    """The options of `mass classify`."""
    add.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="a run's, exported, or published one"
    )
    add.add_argument("store", type=Path, metavar="STORE")
    add.add_argument("run_folder", type=Path, metavar="RUN", help="head, predictions, results; made new")
    add.add_argument(
        "--labels",
        type=Path,
        metavar="labels.csv",
        help="columns id, class (or one of 0 and 1 a class), split (default: what the store knows)",
    )
    add.add_argument(
        "--mode",
        choices=("frozen-attention", "frozen-linear", "full"),
        default="frozen-attention",
        help="what is trained (default: frozen-attention)",
    )
    add.add_argument(
        "--from-scratch", action="store_true", help="draw the encoder's weights: the same network, untaught"
    )
    add.add_argument(
        "--test-fraction",
        type=float,
        default=0.0,
        metavar="F",
        help="draw so large a part of each class as test",
    )
    add.add_argument("--seed", type=int, metavar="N", help="of weights, samples, draws (0)")
    add.add_argument("--config", type=Path, metavar="C.toml", help="settings that differ, by table")
    add.add_argument("--resume", action="store_true", help="go on with the run in RUN")
    add_device(add)


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
        "--steps", type=int, default=DEMO_STEPS, metavar="N", help=f"of pretraining ({DEMO_STEPS}; 0: none)"
    )
    add.add_argument(
        "--finetune-steps",
        type=at_least(1),
        default=DEMO_FINETUNE_STEPS,
        metavar="N",
        help=f"of fine-tuning ({DEMO_FINETUNE_STEPS})",
    )
    add_workers(add, "processes on this machine (default: 1)")


def add_finetune(add: argparse.ArgumentParser) -> None:
    """The options of `mass finetune`."""
    add.add_argument(
        "checkpoint",
        type=Path,
        metavar="CHECKPOINT",
        help="weights to start from (.safetensors, .pt, .pth), or the folder of a run",
    )
    add.add_argument("store", type=Path, metavar="STORE")
    add.add_argument(
        "run_folder", type=Path, metavar="RUN", help="checkpoints, metrics, weights, report; made new"
    )
    add.add_argument("--label", metavar="NAME", help="label map to learn, where the store has several")
    add.add_argument("--dataset", action="append", metavar="NAME", help="only its scans (may be repeated)")
    which = add.add_mutually_exclusive_group()
    which.add_argument("--scans", nargs="+", metavar="ID", help="train on these scans")
    which.add_argument(
        "--num", type=int, metavar="N", help="train on N labelled scans, drawn (default: all but a fifth)"
    )
    add.add_argument(
        "--held-out", nargs="+", metavar="ID", help="report on these (default: labelled, not trained on)"
    )
    add.add_argument("--seed", type=int, metavar="S", help="of the draw and of the training (0)")
    add.add_argument(
        "--mode",
        choices=("full", "decoder", "tokens"),
        help="what is trained: all, all but the encoder, or the tokens only (default: full)",
    )
    add.add_argument(
        "--from-scratch", action="store_true", help="the same network, its weights drawn at random"
    )
    add_training(add)


def add_segment(add: argparse.ArgumentParser) -> None:
    """The options of `mass segment`."""
    add_checkpoint(add)
    add.add_argument(
        "--reference-image",
        action="append",
        default=[],
        type=Path,
        metavar="I",
        help="a scan that shows what is wanted: a file or DICOM folder (may be repeated; averaged)",
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
    add.add_argument("--out", type=Path, required=True, metavar="DIR", help="the results' folder; made new")
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
    add.add_argument(
        "--spacing", type=float, metavar="MM", help="voxel edge to work at (default: that of the training)"
    )
    add.add_argument(
        "--modality", choices=("ct", "mr", "pet"), help="of all scans given (default: from DICOM, or guessed)"
    )
    add.add_argument(
        "--across-modalities", action="store_true", help="take targets of a modality no reference has"
    )
    add.add_argument("--frame", type=int, metavar="N", help="which volume of 4D files, counted from 0")


def add_evaluate(add: argparse.ArgumentParser) -> None:
    """The options of `mass evaluate`."""
    add_checkpoint(add)
    add.add_argument("store", type=Path, metavar="STORE")
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
    add_count(add, "--targets", 20, "N", "without --target: so many of each data set, drawn (20)")
    add.add_argument("--dataset", action="append", default=[], metavar="NAME", help="only this data set")
    add.add_argument("--label-map", default="", metavar="NAME", help="only this label map")
    add.add_argument(
        "--whole", action="store_true", help="also all structures of a label map together, as one"
    )
    add_count(add, "--structures", 128, "N", "most structures of a label map, the commonest first (128)")
    add_count(add, "--seed", 0, "N", "of the draws (0)", least=0)
    add_count(add, "--resamples", 2000, "N", "bootstrap resamples of the targets (2000)", least=100)
    add.add_argument("--markdown", type=Path, metavar="FILE", help="write all tables")
    add.add_argument("--csv", type=Path, metavar="FILE", help="write a row a case and structure")


COMMANDS: dict[str, tuple[str, str, Callable[[argparse.ArgumentParser], None]]] = {
    "prepare": (
        "commands.prepare.command:run_prepare",
        "bring a store up to date with a folder or manifest of scans",
        add_prepare,
    ),
    "status": (
        "commands.status:run_status",
        "show what a store has, what failed, what is stale",
        add_status,
    ),
    "verify": (
        "commands.verify:run_verify",
        "check every committed byte of a store",
        add_verify,
    ),
    "lift": (
        "commands.lift:run_lift",
        "bring a store of an older format version to the newest one",
        add_lift,
    ),
    "score": (
        "commands.score:run_score",
        "score proposals against the labels in a store",
        add_score,
    ),
    "inspect": (
        "commands.inspect:run_inspect",
        "draw proposals: a page, and PNG files beside it",
        add_inspect,
    ),
    "pretrain": (
        "commands.pretrain:run_pretrain",
        "train a network on a store's proposals",
        add_pretrain,
    ),
    "finetune": (
        "commands.finetune:run_finetune",
        "train a network on labelled scans of a store",
        add_finetune,
    ),
    "segment": (
        "commands.segment:run_segment",
        "find in raw scans what a reference and its mask show",
        add_segment,
    ),
    "evaluate": (
        "commands.evaluate:run_evaluate",
        "measure in-context segmentation on labelled scans",
        add_evaluate,
    ),
    "embed": (
        "commands.classify:run_embed",
        "write an encoder's features of a store's scans",
        add_embed,
    ),
    "classify": (
        "commands.classify:run_classify",
        "train a classifier of whole scans",
        add_classify,
    ),
    "demo": (
        "commands.demo:run_demo",
        "go the whole way on bundled scans, to the labels of one kept out",
        add_demo,
    ),
}
"""By name: `module:function` that runs it, help, what adds its options."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of every command and its options."""
    top = argparse.ArgumentParser(
        prog="mass",
        description="Annotation-free pretraining on 3D medical scans: from raw scans to a store of masks.",
        epilog="Exit codes: 0 all well, 1 something failed, 2 cannot be carried out, 130 interrupted.",
    )
    top.add_argument("--version", action="version", version=f"mass {version('mass3d')}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    for name, (run, help, add_options) in COMMANDS.items():
        added = commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
        added.set_defaults(run=run)
        added.add_argument("--json", type=Path, metavar="FILE", help="write the result for machines")
        add_options(added)
    return top
