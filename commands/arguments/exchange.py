"""Options of the commands that exchange masks and scans with other tools."""

from __future__ import annotations

import argparse
from pathlib import Path

from commands.arguments.shared import add_store, at_least


def add_import_masks(add: argparse.ArgumentParser) -> None:
    """The options of `mass import-masks`."""
    add_store(add)
    files = add.add_argument(
        "files",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="label maps, 4D stacks, .npz (N, z, y, x), SAM2's JSON, dataset.h5, folders of binary masks, or "
        "a manifest .csv with the columns id and mask",
    )
    add.add_argument("--source", metavar="NAME", help="name of the masks in the store (default: imported)")
    add.add_argument("--scan", metavar="ID", help="all files belong to this scan (default: by their names)")
    add.add_argument(
        "--grid",
        choices=("auto", "original", "stored"),
        default="auto",
        help="grid of arrays without geometry (default: the one that they fit)",
    )
    add.add_argument(
        "--axes",
        choices=("auto", "zyx", "xyz"),
        default="auto",
        help="axes of arrays without geometry: zyx as in SimpleITK, xyz as in nibabel (default: as they fit)",
    )
    add.add_argument(
        "--remove",
        action=_instead_of(files),
        metavar="SOURCE",
        help="take the masks of a source out of the store again",
    )
    add.set_defaults(files=[])


def add_export(add: argparse.ArgumentParser) -> None:
    """The options of `mass export`."""
    add_store(add)
    add.add_argument("out", type=Path, metavar="OUT", help="a new or empty folder, or an export to do again")
    add.add_argument(
        "--format",
        choices=("nifti", "nnunet", "published", "totalsegmentator"),
        required=True,
        help="layout of the files",
    )
    for what, of in (("scan", "ids"), ("dataset", "data sets")):
        add.add_argument(
            f"--{what}",
            action="append",
            default=[],
            metavar="PATTERN",
            help=f"only scans whose {of} match it, as 'spine*' (may be repeated)",
        )
    add.add_argument(
        "--proposals", type=at_least(0), metavar="N", help="the best N proposals (0; published: 100)"
    )
    add.add_argument(
        "--source",
        action="append",
        default=[],
        metavar="NAME",
        help="only proposals of this imported source, or own ones: own (may be repeated)",
    )
    add.add_argument(
        "--grid",
        choices=("stored", "original"),
        default="stored",
        help="the store's grid (default), or each scan's own: the stored image resampled back",
    )
    add.add_argument("--label-map", metavar="NAME", help="only this label map of each scan")


def _instead_of(other: argparse.Action) -> type[argparse.Action]:
    """Return an action that stores its value and makes another argument optional."""

    class Store(argparse.Action):
        def __call__(
            self,
            parser: argparse.ArgumentParser,
            namespace: argparse.Namespace,
            values: object,
            option_string: str | None = None,
        ) -> None:
            setattr(namespace, self.dest, values)
            other.required = False

    return Store
