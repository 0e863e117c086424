"""Label maps that registration carried over to scans without labels: written by `mass carry`, trained on.

*Reads* and *writes* a folder with a file for each scan, ID.npz, without pickle: the label map, cropped to the
box of its structures, on the grid of the store's scan; the confidence of each structure; the labelled scans
that it was carried over from; the digests of all these scans. A file is there whole or not at all. If one of
the scans was prepared anew since, the map is out of date: it is not trained on, and `mass carry` makes it
again. Memory holds the maps that were read last, 64 million voxels at most.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage import Level, Scan, downsample_labels, write_atomically
from training.data import Triple, box_of_mask
from training.errors import DAMAGED_ARCHIVE, DataError

_KEPT_VOXELS = 64_000_000
"""Most voxels of label maps that a process keeps in memory."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is carried over, and from which scans."""

    label: str
    """Name of the label map."""
    names: Mapping[int, str]
    """The structures: label value and name."""
    references: Mapping[str, str]
    """The labelled scans: id and digest, as in the index."""

    def is_like(self, other: Question) -> bool:
        """Whether the same structures are carried over from the same scans, be they prepared anew or not."""
        return (self.label, self.names, set(self.references)) == (
            other.label,
            other.names,
            set(other.references),
        )

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {**asdict(self), "names": {str(value): name for value, name in self.names.items()}}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Question:
        """Return the question of `to_json`."""
        return cls(
            label=str(values["label"]),
            names={int(value): str(name) for value, name in values["names"].items()},
            references={str(key): str(digest) for key, digest in values["references"].items()},
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class CarriedLabels:
    """A label map that registration carried over to a scan."""

    scan_id: str
    """The scan."""
    digest: str
    """Its digest, as in the index."""
    question: Question
    """The structures, and the scans that they were carried over from."""
    confidences: Mapping[int, float]
    """Estimated Dice of each structure, 0..1, by label value (`training.inference.registration`)."""
    agreement: float
    """Correlation of both images after registration, -1..1."""
    shape: Triple
    """Voxels of the scan along z, y, x."""
    corner: Triple
    """First voxel of the box."""
    box: NDArray[np.uint16]
    """(z, y, x): the label map in the box; outside of it there is no structure."""

    @classmethod
    def of(cls, labels: NDArray[np.uint16], **about: Any) -> CarriedLabels:
        """Return a whole label map (z, y, x), cropped to the box of its structures."""
        found = box_of_mask(labels > 0) or (slice(0, 0),) * 3
        z, y, x = (int(part.start) for part in found)
        depth, height, width = labels.shape
        return cls(shape=(depth, height, width), corner=(z, y, x), box=labels[found].copy(), **about)

    @property
    def confidence(self) -> float:
        """Mean confidence of the structures, 0..1."""
        return float(np.mean(list(self.confidences.values()))) if self.confidences else 0.0

    def labels(self, region: Sequence[slice] | None = None, level: Level | None = None) -> NDArray[np.uint16]:
        """Return the label map, (z, y, x), as `Scan.labels` does.

        Args:
            region: Box to return, in voxels of the level.
            level: Level of the scan; None for the finest.
        """
        factors: Triple = level.factors_zyx if level else (1, 1, 1)
        whole = level.shape_zyx if level else self.shape
        region = [slice(0, size) for size in whole] if region is None else region
        low = [part.start * factor for part, factor in zip(region, factors, strict=True)]
        high = [
            min(part.stop * factor, size)
            for part, factor, size in zip(region, factors, self.shape, strict=True)
        ]
        fine = np.zeros([max(0, stop - start) for start, stop in zip(low, high, strict=True)], np.uint16)
        there, here = [], []
        for start, stop, corner, size in zip(low, high, self.corner, self.box.shape, strict=True):
            first, last = max(start, corner), min(stop, corner + size)
            if first >= last:
                return fine if level is None else downsample_labels(fine, factors)
            there.append(slice(first - start, last - start))
            here.append(slice(first - corner, last - corner))
        fine[tuple(there)] = self.box[tuple(here)]
        return fine if level is None else downsample_labels(fine, factors)


def file_name(scan_id: str) -> str:
    """Return the name of a scan's file."""
    return f"{scan_id}.npz"


def write_carried(folder: Path, carried: CarriedLabels) -> None:
    """Write the file of a scan into a folder."""
    about = {
        "scan": carried.scan_id,
        "digest": carried.digest,
        "question": carried.question.to_json(),
        "confidences": {str(value): number for value, number in carried.confidences.items()},
        "agreement": carried.agreement,
        "shape": carried.shape,
        "corner": carried.corner,
    }
    arrays: dict[str, NDArray[Any]] = {
        "about": np.frombuffer(json.dumps(about, sort_keys=True).encode(), dtype=np.uint8),
        "box": carried.box.astype("<u2"),
    }
    write_atomically(
        folder / file_name(carried.scan_id),
        lambda file: np.savez_compressed(file, allow_pickle=False, **arrays),
    )


def read_carried(path: Path) -> CarriedLabels:
    """Return the label map of one file.

    Raises:
        DataError: It is damaged, or not one of `mass carry`.
    """
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            about = json.loads(file["about"].tobytes())
            box = np.asarray(file["box"], dtype=np.uint16)
        depth, height, width = (int(size) for size in about["shape"])
        z, y, x = (int(first) for first in about["corner"])
        carried = CarriedLabels(
            scan_id=about["scan"],
            digest=about["digest"],
            question=Question.from_json(about["question"]),
            confidences={int(value): float(number) for value, number in about["confidences"].items()},
            agreement=float(about["agreement"]),
            shape=(depth, height, width),
            corner=(z, y, x),
            box=box,
        )
        if path.name != file_name(carried.scan_id) or box.ndim != 3:
            raise ValueError("its contents are of another scan")
    except DAMAGED_ARCHIVE as error:
        raise DataError(f"{path}: damaged ({error}). Remove it and run `mass carry` again") from error
    return carried


class CarriedMaps:
    """The label maps of some scans in a folder, read when they are asked for. Can be pickled."""

    def __init__(self, folder: Path, scan_ids: Sequence[str]) -> None:
        """Read nothing yet.

        Args:
            folder: Folder that `mass carry` has written.
            scan_ids: The scans whose labels are those of the folder; all others have their own.
        """
        self._folder, self.scan_ids = folder, frozenset(scan_ids)
        self._maps: OrderedDict[str, CarriedLabels] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"_folder": self._folder, "scan_ids": self.scan_ids, "_maps": OrderedDict()}

    def labels(
        self, scan: Scan, label: str, region: Sequence[slice] | None = None, level: Level | None = None
    ) -> NDArray[np.uint8] | NDArray[np.uint16]:
        """Return the labels of a scan: the carried ones, or its own. Arguments as for `Scan.labels`.

        Raises:
            DataError: A file is damaged.
        """
        if scan.id not in self.scan_ids:
            return scan.labels(label, region, level=level or 0)
        if scan.id not in self._maps:
            self._maps[scan.id] = read_carried(self._folder / file_name(scan.id))
            while len(self._maps) > 1 and sum(one.box.size for one in self._maps.values()) > _KEPT_VOXELS:
                self._maps.popitem(last=False)
        self._maps.move_to_end(scan.id)
        return self._maps[scan.id].labels(region, level)


@dataclass(frozen=True, kw_only=True)
class CarriedTable:
    """The label maps of a folder, without the maps."""

    folder: Path
    question: Question
    confidences: Mapping[str, float]
    """Mean confidence of each scan's structures, 0..1, by scan id."""
    checksums: Mapping[str, str]
    """Checksum of each scan's map, by scan id."""
    stale: tuple[str, ...] = ()
    """Ids of the scans whose maps are out of date, sorted: these are in no other field."""


def read_carried_table(folder: str | Path, digests: Mapping[str, str]) -> CarriedTable:
    """Return which scans of a store have label maps in a folder; maps of other scans are passed over.

    Args:
        folder: Folder that `mass carry` has written.
        digests: Digest of each scan of the store, as in the index, by scan id.

    Raises:
        DataError: There is no such folder, a file is damaged, maps are of different structures or from
            different scans, or there is no map of the store that is up to date.
    """
    folder = Path(folder)
    question: Question | None = None
    confidences: dict[str, float] = {}
    checksums: dict[str, str] = {}
    stale: list[str] = []
    for path in carried_files(folder):
        scan_id = path.name.removesuffix(".npz")
        if scan_id not in digests:
            continue
        carried = read_carried(path)
        sources = {scan_id: carried.digest, **carried.question.references}
        if any(digests.get(name) != digest for name, digest in sources.items()):
            stale.append(scan_id)
            continue
        question = question or carried.question
        if carried.question != question:
            raise DataError(
                f"{folder}: the labels of {scan_id} are from other scans, or of other structures, than those "
                f"of {next(iter(confidences))}. Carry the labels of each into a folder of its own"
            )
        confidences[scan_id] = carried.confidence
        about = json.dumps([carried.shape, carried.corner, carried.box.shape]).encode()
        checksums[scan_id] = hashlib.sha256(about + carried.box.tobytes()).hexdigest()[:16]
    if question is None and stale:
        raise DataError(
            f"{folder}: all {len(stale)} label maps are out of date: their scans, or those that the labels "
            "are from, were prepared anew since or removed. Run `mass carry` again with the same labelled "
            "scans (--scans), or into a new folder, and begin a new run"
        )
    if question is None:
        raise DataError(
            f"{folder}: no labels here that are carried over to scans of this store. Name the folder that "
            "`mass carry` has filled, or run it"
        )
    return CarriedTable(
        folder=folder, question=question, confidences=confidences, checksums=checksums, stale=tuple(stale)
    )


def carried_files(folder: Path) -> list[Path]:
    """Return the files of label maps in a folder, sorted.

    Raises:
        DataError: There is no such folder, or it cannot be listed.
    """
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no folder of carried labels. Name the one that `mass carry` has filled, or run it"
        )
    try:
        # Not Path.glob: it takes a folder without permission for an empty one.
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror}). Check who may read it") from error
    return [folder / name for name in names if name.endswith(".npz")]
