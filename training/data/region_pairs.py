"""Regions of two scans that registration found to be the same: written by `mass pair`, drawn in training.

*Reads* and *writes* a folder with a file for each pair of scans, REFERENCE~TARGET.npz, without pickle: which
proposals of the reference are which of the target, how far they overlap, the digests of both scans. A file is
there whole or not at all. If one of the scans was prepared anew since, its proposals have other numbers and
the pair is out of date: a training ends with an error, and `mass pair` makes it again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage import write_atomically
from training.errors import DAMAGED_ARCHIVE, DataError

LEAST_REGIONS = 12
"""Pairs of scans with fewer paired regions are not drawn: a sample needs some that both views show."""
_BETWEEN = "~"
"""Between both ids in a file's name; an id has none."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RegionPairs:
    """Pairs of regions of two scans that are the same structure, by registration."""

    reference: str
    """Id of the scan that was registered."""
    target: str
    """Id of the scan that it was registered to, of another case."""
    digests: tuple[str, str]
    """Digests of both scans, as in the index."""
    agreement: float
    """Correlation of both images after registration, -1..1."""
    proposals: NDArray[np.int32]
    """(2, n): proposals of the reference, and those of the target that lie in the same place."""
    overlaps: NDArray[np.float32]
    """(n,): their IoU after registration, 0..1."""

    @property
    def name(self) -> str:
        """The name of its file."""
        return file_name(self.reference, self.target)


@dataclass(frozen=True, kw_only=True, eq=False)
class PairTable:
    """The pairs that a training may draw."""

    pairs: tuple[RegionPairs, ...]
    """Sorted by the names of their files."""
    digest: str
    """Digest of the contents of all pairs."""


def file_name(reference: str, target: str) -> str:
    """Return the name of the file of two scans."""
    return f"{reference}{_BETWEEN}{target}.npz"


def write_pairs(folder: Path, pairs: RegionPairs) -> None:
    """Write the file of two scans into a folder."""
    about = {
        "reference": pairs.reference,
        "target": pairs.target,
        "digests": list(pairs.digests),
        "agreement": pairs.agreement,
    }
    arrays: dict[str, NDArray[Any]] = {
        "about": np.frombuffer(json.dumps(about).encode(), dtype=np.uint8),
        "proposals": pairs.proposals.astype("<i4"),
        "overlaps": pairs.overlaps.astype("<f4"),
    }
    write_atomically(folder / pairs.name, lambda file: np.savez(file, allow_pickle=False, **arrays))


def read_pairs(path: Path) -> RegionPairs:
    """Return the pairs of one file.

    Raises:
        DataError: It is damaged, or not one of `mass pair`.
    """
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            about = json.loads(file["about"].tobytes())
            pairs = RegionPairs(
                reference=about["reference"],
                target=about["target"],
                digests=(about["digests"][0], about["digests"][1]),
                agreement=float(about["agreement"]),
                proposals=np.asarray(file["proposals"], dtype=np.int32),
                overlaps=np.asarray(file["overlaps"], dtype=np.float32),
            )
            if pairs.name != path.name or pairs.proposals.shape != (2, len(pairs.overlaps)):
                raise ValueError("its contents are of other scans")
    except DAMAGED_ARCHIVE as error:
        raise DataError(f"{path}: damaged ({error}). Remove it and run `mass pair` again") from error
    return pairs


def read_pair_table(folder: str | Path, digests: Mapping[str, str]) -> PairTable:
    """Return the pairs of a folder whose scans are both among some.

    Args:
        folder: Folder that `mass pair` has written.
        digests: Digest of each scan that may be drawn, as in the index, by scan id.

    Raises:
        DataError: There is no such folder, a file is damaged or out of date, or no pair can be drawn.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no folder of pairs. `mass pair STORE {folder}` makes it")
    try:
        # Not Path.glob: it takes a folder without permission for an empty one.
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror}). Check who may read it") from error
    digest = hashlib.sha256()
    found = []
    for path in [folder / name for name in names if name.endswith(".npz")]:
        reference, _, target = path.name.removesuffix(".npz").partition(_BETWEEN)
        if reference not in digests or target not in digests:
            continue
        pairs = read_pairs(path)
        if pairs.digests != (digests[reference], digests[target]):
            raise DataError(
                f"{path}: {reference} or {target} was prepared anew since. Run `mass pair` again, which "
                "makes only such pairs anew"
            )
        # Hex: runs that began earlier have recorded the digest of this text.
        digest.update(f"{path.name} {pairs.proposals.tobytes().hex()}\n".encode())
        if len(pairs.overlaps) >= LEAST_REGIONS:
            found.append(pairs)
    if not found:
        raise DataError(
            f"{folder}: no pair of the training scans has {LEAST_REGIONS} regions that are the same. Run "
            "`mass pair` on this store, or train without pairs"
        )
    return PairTable(pairs=tuple(found), digest=digest.hexdigest())
