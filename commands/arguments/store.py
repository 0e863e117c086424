"""Options of the commands that make, check, repair, score and show stores."""

from __future__ import annotations

import argparse
from pathlib import Path

from commands.arguments.shared import add_store, add_watch, add_workers, renamed, store_path


def add_prepare(add: argparse.ArgumentParser) -> None:
    """The options of `mass prepare`."""
    add.add_argument(
        "raw", type=Path, metavar="RAW", help="a folder, a manifest (.csv, .tsv, .jsonl), or one file"
    )
    add_store(add, "the store, a folder or a URL (s3://...); made where there is none")
    add.add_argument(
        "--config", type=Path, metavar="C.toml", help="settings: tables [ingest] and [proposals]"
    )
    add.add_argument(
        "--follow-links", action="store_true", help="also follow links to folders outside of RAW"
    )
    add_layout(add)
    where = add.add_mutually_exclusive_group()
    add_workers(where, "processes on this machine (default: 1, in this process)")
    where.add_argument(
        "--scheduler", default="", metavar="tcp://HOST:PORT", help="a Dask scheduler to use instead"
    )
    add_prepare_device(add)
    add.add_argument(
        "--retry-failed", action="store_true", help="try failed scans again although nothing changed"
    )
    add.add_argument("--prune", action="store_true", help="remove scans whose sources are gone")
    add_watch(add, "STORE-progress.html, beside the store")
    add.add_argument(
        "--embedded-server",
        action="store_true",
        help="use the Prefect server of the run, also where PREFECT_API_URL names another",
    )


def add_status(add: argparse.ArgumentParser) -> None:
    """The options of `mass status`."""
    add_store(add)


def add_verify(add: argparse.ArgumentParser) -> None:
    """The options of `mass verify`."""
    add_store(add)


def add_plan(add: argparse.ArgumentParser) -> None:
    """The options of `mass plan`."""
    add.add_argument(
        "raw", type=Path, metavar="RAW", help="a folder, a manifest (.csv, .tsv, .jsonl), or one file"
    )
    add.add_argument(
        "store", type=Path, metavar="STORE", nargs="?", help="the store, if there is one already"
    )
    add.add_argument(
        "--config", type=Path, metavar="C.toml", help="settings: tables [ingest] and [proposals]"
    )
    add.add_argument(
        "--follow-links", action="store_true", help="also follow links to folders outside of RAW"
    )
    add_layout(add)
    add_workers(add, "processes that `mass prepare` would have (default: 1)")
    add.add_argument("--retry-failed", action="store_true", help="count failed scans as tried again")


def add_repair(add: argparse.ArgumentParser) -> None:
    """The options of `mass repair`."""
    add_store(add)
    add.add_argument(
        "--raw",
        type=Path,
        action="append",
        default=[],
        metavar="RAW",
        help="folder or manifest of its scans (may be repeated; default: as in `mass prepare` here)",
    )
    add_layout(add)
    add_workers(add, "processes on this machine (default: 1, in this process)")
    add_prepare_device(add)


def add_layout(add: argparse.ArgumentParser) -> None:
    """Give a command the option --layout."""
    add.add_argument(
        "--layout",
        default="auto",
        metavar="NAME",
        help="layout of the folder: nnunet, decathlon, bids, freesurfer, totalsegmentator, brats, "
        "or plain (default: auto, which recognises it)",
    )


def add_prepare_device(add: argparse.ArgumentParser) -> None:
    """Give a command that makes proposals the option --device."""
    add.add_argument(
        "--device",
        type=renamed("cuda", "gpu"),
        default="auto",
        choices=("auto", "cpu", "numpy", "gpu"),
        help="where to compute (default: auto; cuda is gpu)",
    )


def add_lift(add: argparse.ArgumentParser) -> None:
    """The options of `mass lift`."""
    add_store(add, "nothing is prepared anew; may be interrupted")


def add_score(add: argparse.ArgumentParser) -> None:
    """The options of `mass score`."""
    add_store(add)
    for what, of in (("scan", "ids"), ("dataset", "data sets")):
        add.add_argument(
            f"--{what}",
            action="append",
            default=[],
            metavar="PATTERN",
            help=f"only scans whose {of} match it, as 'spine*' (may be repeated)",
        )
    add.add_argument(
        "--baseline", choices=("slic",), help="score flat multi-scale SLIC as well (minutes per scan)"
    )
    add.add_argument(
        "--markdown", type=Path, metavar="FILE", help="write all tables; the terminal shows the first"
    )
    add.add_argument("--csv", type=Path, metavar="FILE", help="write one row per scan and structure")
    add_workers(add, "scans scored at once (default: 1)")


def add_inspect(add: argparse.ArgumentParser) -> None:
    """The options of `mass inspect`."""
    add.add_argument(
        "store",
        type=store_path,
        metavar="STORE",
        help="a store, the folder of a run, the JSON of `mass evaluate`, or a folder of `mass segment`",
    )
    add.add_argument(
        "--against",
        type=store_path,
        metavar="STORE",
        help="results of `mass segment` beside the labels of this store, the worst first",
    )
    add.add_argument(
        "--scan", action="append", default=[], metavar="ID", help="this scan in full (may be repeated)"
    )
    add.add_argument("--out", type=Path, metavar="report.html", help="the page: one file, without network")
    add.add_argument(
        "--serve", action="store_true", help="show the page in a browser of this machine, with every scan"
    )
    add.add_argument(
        "--port", type=int, default=0, metavar="N", help="with --serve: the port (default: any free one)"
    )
    add.add_argument(
        "--full", type=int, default=3, metavar="N", help="without --scan: number of scans in full (3)"
    )
    add.add_argument(
        "--megabytes",
        type=float,
        default=25,
        metavar="N",
        help="size of the page up to which it includes scans for the viewer (25)",
    )
    add_workers(add, "scans read at once (default: 1)")
