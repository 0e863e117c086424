"""Options that several `mass` commands have."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from storage import InvalidLocation, StorePath, parse_store_path

CACHE_GB = 50
"""Most gigabytes of a cache, unless said otherwise."""


def at_least(least: int) -> Callable[[str], int]:
    """Return a type for argparse: whole numbers of at least `least`."""

    def count(text: str) -> int:
        number = int(text)
        if number < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {number}")
        return number

    return count


def add_count(
    add: argparse.ArgumentParser, name: str, default: int, metavar: str, help: str, *, least: int = 1
) -> None:
    """Give a command an option that takes a whole number of at least `least`."""
    add.add_argument(name, type=at_least(least), default=default, metavar=metavar, help=help)


def add_workers(group: argparse._ActionsContainer, help: str, *, default: int | None = 1) -> None:
    """Give a command the option --workers."""
    group.add_argument("--workers", type=at_least(1), default=default, metavar="N", help=help)


def store_path(text: str) -> StorePath:
    """Return the path or URL of a store; a type for argparse."""
    try:
        return parse_store_path(text)
    except InvalidLocation as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def add_store(add: argparse.ArgumentParser, help: str = "the store: a folder, or a URL (s3://...)") -> None:
    """Give a command the argument STORE."""
    add.add_argument("store", type=store_path, metavar="STORE", help=help)


def add_cache(add: argparse.ArgumentParser) -> None:
    """Give a command the options of a cache for a store at a URL."""
    add.add_argument(
        "--cache", type=Path, metavar="DIR", help="keep what is read from a store at a URL in this folder"
    )
    add.add_argument(
        "--cache-size",
        type=at_least(1),
        default=CACHE_GB,
        metavar="GB",
        help=f"most gigabytes of the cache (default: {CACHE_GB})",
    )


def renamed(other: str, name: str) -> Callable[[str], str]:
    """Return a type for argparse that replaces one word by another: `gpu` and `cuda` are both accepted."""
    return lambda text: name if text == other else text


def add_device(command: argparse.ArgumentParser) -> None:
    """Give a command the option --device."""
    command.add_argument(
        "--device",
        type=renamed("gpu", "cuda"),
        default="auto",
        choices=("auto", "cpu", "cuda"),
        help="where to compute (default: auto; gpu is cuda)",
    )


def add_training(add: argparse.ArgumentParser, recipes: Sequence[str], *, default: str = "published") -> None:
    """Give a command the options of a training with a recipe; `default` is named in their help."""
    add.add_argument("--recipe", choices=recipes, help=f"settings to begin with (default: {default})")
    add.add_argument(
        "--config", type=Path, metavar="C.toml", help="settings that differ from the recipe's, by table"
    )
    add.add_argument("--resume", action="store_true", help="go on with the run in RUN, with its own settings")
    add_workers(add, "processes that read samples (default: the recipe's)", default=None)
    add_device(add)
    add_watch(add, "RUN/run.html")


def add_watch(add: argparse._ActionsContainer, page: str) -> None:
    """Give a command the option --watch."""
    add.add_argument(
        "--watch",
        action="store_true",
        help=f"keep a page up to date that reloads itself in a browser: {page}",
    )


def add_checkpoint(add: argparse.ArgumentParser, *, or_else: str = "") -> None:
    """Give a command the options of a checkpoint that is used in context.

    Args:
        add: The command's parser.
        or_else: Further help: what may be given instead of a checkpoint.
    """
    add.add_argument(
        "checkpoint",
        type=Path,
        metavar="CHECKPOINT",
        help="; ".join(
            filter(
                None,
                (
                    "a run's folder, its weights.safetensors, a .pt file, the published .pth, small-v1",
                    or_else,
                ),
            )
        ),
    )
    add.add_argument(
        "--weights", choices=("ema", "model"), default="ema", help="averaged (default) or last weights"
    )
    add.add_argument(
        "--window",
        type=int,
        nargs=3,
        metavar=("Z", "Y", "X"),
        help="voxels of a sliding window, multiples of 16 (default: the training's crop)",
    )
    add.add_argument(
        "--overlap", type=float, default=0.5, metavar="F", help="part that neighbouring windows share (0.5)"
    )
    add.add_argument("--mirror", action="store_true", help="average over all mirrorings: 8 times the work")
    add_device(add)
