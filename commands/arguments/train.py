"""Options of the commands that train, or that use an encoder alone."""

from __future__ import annotations

import argparse
from pathlib import Path

from commands.arguments.shared import (
    add_cache,
    add_device,
    add_store,
    add_training,
    add_workers,
    at_least,
)


def add_pair(add: argparse.ArgumentParser) -> None:
    """The options of `mass pair`."""
    add_store(add)
    add_cache(add)
    add.add_argument(
        "pairs_folder", type=Path, metavar="PAIRS", help="the folder to fill; run again to go on"
    )
    add.add_argument(
        "--partners",
        type=at_least(1),
        metavar="N",
        help="scans of other cases to register each to (3)",
    )
    add.add_argument("--most", type=at_least(1), metavar="N", help="most pairs in all; seconds each (600)")
    add_workers(add, "processes that register", default=1)


def add_pretrain(add: argparse.ArgumentParser) -> None:
    """The options of `mass pretrain`."""
    add_store(add)
    add_cache(add)
    add.add_argument(
        "run_folder", type=Path, metavar="RUN", help="checkpoints, metrics, pictures, weights; made new"
    )
    add.add_argument(
        "--dry-run",
        action="store_true",
        help="print parameters, memory, time of a step (mean of ten) and of the run; write nothing",
    )
    add.add_argument(
        "--pairs",
        type=Path,
        metavar="PAIRS",
        help="folder of `mass pair`: half of the samples are of two patients",
    )
    add_training(add, ("whole", "large", "small", "published"), default="whole")


def add_carry(add: argparse.ArgumentParser) -> None:
    """The options of `mass carry`."""
    add_store(add)
    add_cache(add)
    add.add_argument(
        "carried_folder", type=Path, metavar="CARRIED", help="the folder to fill; run again to go on"
    )
    add.add_argument("--label", metavar="NAME", help="label map to carry, where the store has several")
    add.add_argument("--values", nargs="+", type=at_least(1), metavar="N", help="only these label values")
    add.add_argument("--dataset", action="append", metavar="NAME", help="only its scans (may be repeated)")
    which = add.add_mutually_exclusive_group()
    which.add_argument("--scans", nargs="+", metavar="ID", help="carry over from these labelled scans")
    which.add_argument(
        "--num",
        type=at_least(1),
        metavar="N",
        help="carry over from N labelled scans, drawn (default: from all, five at most)",
    )
    where = add.add_mutually_exclusive_group()
    where.add_argument(
        "--to", nargs="+", metavar="ID", help="to these scans (default: those without the label)"
    )
    where.add_argument(
        "--most", type=at_least(1), metavar="N", help="most scans to carry to, drawn; seconds each (100)"
    )
    add.add_argument(
        "--held-out",
        nargs="+",
        metavar="ID",
        help="neither from these nor to them, nor others of their cases",
    )
    add.add_argument("--seed", type=int, metavar="S", help="seed of the draws (0)")
    add_workers(add, "processes that register", default=1)


def add_finetune(add: argparse.ArgumentParser) -> None:
    """The options of `mass finetune`."""
    add.add_argument(
        "checkpoint",
        type=Path,
        metavar="CHECKPOINT",
        help="weights to start from (.safetensors, .pt, .pth), the folder of a run, or small-v1",
    )
    add_store(add)
    add_cache(add)
    add.add_argument(
        "run_folder", type=Path, metavar="RUN", help="checkpoints, metrics, weights, report; made new"
    )
    add.add_argument("--label", metavar="NAME", help="label map to learn, where the store has several")
    add.add_argument(
        "--carried",
        type=Path,
        metavar="CARRIED",
        help="folder of `mass carry`: train on its scans, too, with the labels carried over to them",
    )
    add.add_argument("--dataset", action="append", metavar="NAME", help="only its scans (may be repeated)")
    which = add.add_mutually_exclusive_group()
    which.add_argument("--scans", nargs="+", metavar="ID", help="train on these scans")
    which.add_argument(
        "--num", type=int, metavar="N", help="train on N labelled scans, drawn (default: all but a fifth)"
    )
    add.add_argument(
        "--held-out", nargs="+", metavar="ID", help="report on these (default: labelled, not trained on)"
    )
    add.add_argument("--seed", type=int, metavar="S", help="seed of the draw and of the training (0)")
    add.add_argument(
        "--mode",
        choices=("full", "decoder", "tokens"),
        help="what is trained: all, all but the encoder, or the tokens only (default: full)",
    )
    add.add_argument(
        "--from-scratch", action="store_true", help="start from random weights, in the same network"
    )
    add_training(
        add,
        ("published", "small", "whole"),
        default="published; whole for a checkpoint that was trained on whole scans",
    )


def add_embed(add: argparse.ArgumentParser) -> None:
    """The options of `mass embed`."""
    add.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="a run's, exported, or published one; or small-v1"
    )
    add_store(add)
    add_cache(add)
    add.add_argument("--out", type=Path, required=True, metavar="features.npz", help="the file, .npz or .csv")
    add.add_argument(
        "--window",
        type=int,
        metavar="N",
        help="most voxels seen at once, a multiple of 16 (default: 128; a network of whole scans sees each "
        "scan whole, in the window of its training)",
    )
    add_device(add)


def add_classify(add: argparse.ArgumentParser) -> None:
    """The options of `mass classify`."""
    add.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="a run's, exported, or published one; or small-v1"
    )
    add_store(add)
    add_cache(add)
    add.add_argument("run_folder", type=Path, metavar="RUN", help="head, predictions, results; made new")
    add.add_argument(
        "--labels",
        type=Path,
        metavar="labels.csv",
        help="columns id, class (or one of 0 and 1 per class), split (default: from the store)",
    )
    add.add_argument(
        "--mode",
        choices=("frozen-attention", "frozen-linear", "full"),
        default="frozen-linear",
        help="what is trained (default: frozen-linear, a logistic regression)",
    )
    add.add_argument(
        "--from-scratch", action="store_true", help="start from random weights, in the same encoder"
    )
    add.add_argument(
        "--test-fraction",
        type=float,
        default=0.0,
        metavar="F",
        help="fraction of each class that is drawn as test",
    )
    add.add_argument("--seed", type=int, metavar="N", help="seed of weights, samples, draws (0)")
    add.add_argument("--config", type=Path, metavar="C.toml", help="settings that differ, by table")
    add.add_argument("--resume", action="store_true", help="go on with the run in RUN")
    add_device(add)
