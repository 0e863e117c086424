"""Every `mass` command, its options, and the function that carries it out: named, not imported."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples" / "manifest.csv"
"""The bundled scans, where this is a checkout."""

DEMO_STEPS = 150
"""Of the demo's pretraining: about a minute on two free cores, enough to see the loss fall."""


def parser() -> argparse.ArgumentParser:
    """Every command and its options."""
    top = argparse.ArgumentParser(
        prog="mass",
        description="Annotation-free pretraining on 3D medical scans: from raw scans to a store of masks.",
        epilog="Exit codes: 0 all well, 1 something failed, 2 cannot be carried out, 130 interrupted.",
    )
    commands = top.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: str, help: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
        added.set_defaults(run=run)
        added.add_argument("--json", type=Path, metavar="FILE", help="write the result for machines")
        return added

    add = command(
        "prepare", "flows:run_prepare", "bring a store up to date with a folder or manifest of scans"
    )
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
        "--device", default="auto", choices=("auto", "cpu", "numpy", "gpu"), help="where to compute"
    )
    add.add_argument(
        "--retry-failed", action="store_true", help="try failed scans again although nothing changed"
    )
    add.add_argument("--prune", action="store_true", help="remove scans whose sources are gone")

    add = command("status", "commands.status:run_status", "show what a store has, what failed, what is stale")
    add.add_argument("store", type=Path, metavar="STORE")

    add = command("verify", "commands.verify:run_verify", "check every committed byte of a store")
    add.add_argument("store", type=Path, metavar="STORE")

    add = command("score", "commands.score:run_score", "score proposals against the labels in a store")
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

    add = command(
        "inspect", "commands.inspect:run_inspect", "draw proposals: a page, and PNG files beside it"
    )
    add.add_argument("store", type=Path, metavar="STORE")
    add.add_argument(
        "--scan", action="append", default=[], metavar="ID", help="this scan in full (may be repeated)"
    )
    add.add_argument("--out", type=Path, required=True, metavar="report.html", help="the page")
    add.add_argument(
        "--full", type=int, default=3, metavar="N", help="without --scan: so many scans in full (3)"
    )

    add = command("pretrain", "commands.pretraining:run_pretrain", "train a network on a store's proposals")
    add.add_argument("store", type=Path, metavar="STORE")
    add.add_argument(
        "run_folder", type=Path, metavar="RUN", help="checkpoints, metrics, pictures, weights; made new"
    )
    add.add_argument(
        "--recipe", choices=("published", "small"), help="settings to begin with (default: published)"
    )
    add.add_argument(
        "--config", type=Path, metavar="C.toml", help="settings that differ from the recipe's, by table"
    )
    add.add_argument("--resume", action="store_true", help="go on with the run in RUN, with its own settings")
    add_workers(add, "processes that read samples (default: the recipe's)", default=None)
    add.add_argument(
        "--device", default="auto", choices=("auto", "cpu", "cuda"), help="where to compute (default: auto)"
    )

    add = command("embed", "commands.classifying:run_embed", "write an encoder's features of a store's scans")
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

    add = command("classify", "commands.classifying:run_classify", "train a classifier of whole scans")
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

    add = command("demo", "flows:run_demo", "prepare, score, draw the bundled scans; pretrain briefly")
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
        "--steps", type=int, default=DEMO_STEPS, metavar="N", help=f"of pretraining ({DEMO_STEPS}; 0: none)"
    )
    add_workers(add, "processes on this machine (default: 1)")
    return top


def add_device(command: argparse.ArgumentParser) -> None:
    """Give a command the option --device."""
    command.add_argument(
        "--device", default="auto", choices=("auto", "cpu", "cuda"), help="where to compute (default: auto)"
    )


def add_workers(group: argparse._ActionsContainer, help: str, *, default: int | None = 1) -> None:
    """Give a command the option --workers."""

    def count(text: str) -> int:
        number = int(text)
        if number < 1:
            raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
        return number

    group.add_argument("--workers", type=count, default=default, metavar="N", help=help)
