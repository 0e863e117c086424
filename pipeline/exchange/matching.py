"""Matching of files of masks with the scans of a store.

A file is matched by its name, then by those of the two folders around it: the name is the scan's id, or
begins with it. Of several ids the longest is taken. If there is none, the only scan is taken whose id begins
with the name (`labelsTr/X.nii.gz` for the scan `X_0000`), or with that of the folder around `segmentations/`.
A manifest names the scan of each file. Ambiguous files are refused.

*Reads*: names, a manifest; whether a JSON file has masks. *Writes*: `MaskInput`s by scan.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from pipeline.errors import LabelMismatch, ManifestError, NotAnImage, ScanError, UnreadableFile
from pipeline.exchange.published import cases_in
from pipeline.exchange.slice_masks import looks_like_slice_masks
from pipeline.formats import DICOM_SUFFIXES, has_dicom_preamble, stem_of, volume_suffix

MaskKind: TypeAlias = Literal["image", "folder", "arrays", "slices", "published", "dicom"]

_MANIFESTS = (".csv", ".tsv")
_ARRAYS = (".npz", ".npy")
_PUBLISHED = (".h5", ".hdf5")
_PICKLES = (".pkl", ".pickle", ".pt", ".pth")
_MASK_FOLDERS = ("segmentations", "masks", "segmentation")
"""Folders inside a scan's folder that hold its masks."""


@dataclass(frozen=True, kw_only=True)
class MaskInput:
    """Masks of one scan: a file, a folder, or a case of an HDF5 file."""

    kind: MaskKind
    path: Path
    shown: str
    """Its name in messages."""
    case: str = ""
    """Of an HDF5 file."""


@dataclass(kw_only=True)
class FoundMasks:
    """Masks by scan, and failures of files that cannot be used."""

    inputs: dict[str, list[MaskInput]] = field(default_factory=dict)
    failures: list[ScanError] = field(default_factory=list)

    def add(self, scan_id: str, found: MaskInput) -> None:
        """Add masks of a scan."""
        self.inputs.setdefault(scan_id, []).append(found)


def find_masks(files: Sequence[Path], scan_ids: Collection[str], *, scan_id: str | None = None) -> FoundMasks:
    """Return the masks in some files, by scan.

    Args:
        files: Files, folders of files, manifests.
        scan_ids: Ids of the store.
        scan_id: All files belong to this scan; None to match them by name.
    """
    found = FoundMasks()
    for path in files:
        try:
            if not path.exists():
                raise UnreadableFile(
                    "there is no such file or folder", path=path.name, remedy="Check the path"
                )
            if path.suffix.lower() in _MANIFESTS and path.is_file():
                _add_manifest(found, path, scan_ids)
            elif path.is_dir() and scan_id is None:
                _add_folder(found, path.absolute(), scan_ids, shown=path.name, depth=0)
            else:
                _add(found, path.absolute(), scan_ids, scan_id=scan_id, shown=path.name)
        except ScanError as error:
            found.failures.append(error)
    return found


def match_name(names: Sequence[str], scan_ids: Collection[str], *, shown: str) -> str:
    """Return the scan that a file belongs to.

    Args:
        names: Its stem, then the names of the folders around it; the first of them may also be shorter than
            the id.
        scan_ids: Ids to choose from.
        shown: Name of the file in messages.

    Raises:
        LabelMismatch: No scan fits, or several do.
    """
    for name in names:
        begins = [scan_id for scan_id in scan_ids if _begins(name, scan_id)]
        if begins:
            return max(begins, key=len)
    around = names[2:3] if len(names) > 2 and names[1].lower() in _MASK_FOLDERS else ()
    for name in (names[0], *around):
        longer = sorted(scan_id for scan_id in scan_ids if _begins(scan_id, name))
        if len(longer) == 1:
            return longer[0]
        if longer:
            raise LabelMismatch(
                f"its name fits {len(longer)} scans: {', '.join(longer[:5])}",
                path=shown,
                remedy="Name the scan with --scan, or give a manifest with the columns id and mask",
            )
    raise LabelMismatch(
        "no scan of the store has this name",
        path=shown,
        remedy="Let its name begin with the scan's id, name the scan with --scan, or give a manifest with "
        "the columns id and mask; `mass status` lists the scans",
    )


def files_of_folder(folder: Path) -> dict[str, Path]:
    """Return the files of a folder of binary masks, by the name of the mask, sorted."""
    return {stem_of(path.name): path for path in _visible(folder) if volume_suffix(path.name) is not None}


def slices_of_folder(folder: Path) -> list[Path]:
    """Return the JSON files of a folder, sorted."""
    return [path for path in _visible(folder) if path.suffix.lower() == ".json"]


def _begins(text: str, start: str) -> bool:
    """Whether a text begins with another one that ends at the end of a word, or is equal to it."""
    text, start = text.lower(), start.lower()
    return text.startswith(start) and (len(text) == len(start) or not text[len(start)].isalnum())


def _names(path: Path) -> tuple[str, str, str]:
    """Return a file's or folder's own name, and those of the two folders around it."""
    own = stem_of(path.name) if volume_suffix(path.name) else path.stem if path.is_file() else path.name
    return own, path.parent.name, path.parent.parent.name


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _add_folder(
    found: FoundMasks, folder: Path, scan_ids: Collection[str], *, shown: str, depth: int
) -> None:
    """Add a scan's folder, or what is in a folder of several scans."""
    try:
        scan_id = match_name([folder.name], scan_ids, shown=shown)
    except LabelMismatch as error:
        if depth > 2 or "fits" in error.reason:
            found.failures.append(error)
            return
    else:
        _add(found, folder, scan_ids, scan_id=scan_id, shown=shown)
        return
    for path in _visible(folder):
        below = f"{shown}/{path.name}"
        try:
            if path.is_dir():
                _add_folder(found, path, scan_ids, shown=below, depth=depth + 1)
            elif (
                volume_suffix(path.name)
                or path.suffix.lower() in (*_ARRAYS, *_PUBLISHED)
                or (path.suffix.lower() == ".json" and looks_like_slice_masks(path))
                or path.suffix.lower() in DICOM_SUFFIXES
            ):
                _add(found, path, scan_ids, scan_id=None, shown=below)
        except ScanError as error:
            found.failures.append(error)


def _add(
    found: FoundMasks, path: Path, scan_ids: Collection[str], *, scan_id: str | None, shown: str
) -> None:
    """Add one file or the folder of one scan."""
    kind = _kind_of(path, shown=shown)
    if kind == "published":
        for case in cases_in(path, shown=shown):
            try:
                owner = scan_id or match_name([case], scan_ids, shown=f"{shown}/{case}")
                found.add(owner, MaskInput(kind=kind, path=path, case=case, shown=f"{shown}/{case}"))
            except LabelMismatch as error:
                found.failures.append(error)
        return
    if path.is_dir():
        inside = next((path / name for name in _MASK_FOLDERS if (path / name).is_dir()), None)
        path, shown = (path, shown) if inside is None else (inside, f"{shown}/{inside.name}")
        kind = _kind_of(path, shown=shown)
    owner = scan_id or match_name(_names(path), scan_ids, shown=shown)
    found.add(owner, MaskInput(kind=kind, path=path, shown=shown))


def _kind_of(path: Path, *, shown: str) -> MaskKind:
    """Return the kind of a file or folder of masks, from names alone.

    Raises:
        NotAnImage: It is of no kind that can be read.
    """
    if path.is_dir():
        if files_of_folder(path) or any((path / name).is_dir() for name in _MASK_FOLDERS):
            return "folder"
        if slices_of_folder(path):
            return "slices"
        raise NotAnImage(
            "the folder has no file of masks", path=shown, remedy="Name a folder with a file for each mask"
        )
    suffix = path.suffix.lower()
    if suffix in _PICKLES:
        raise NotAnImage(
            "pickled objects are never loaded: they could run any code",
            path=shown,
            remedy="Save masks as NIfTI, as an .npz array (N, z, y, x), or as JSON with COCO run lengths",
        )
    if suffix in _ARRAYS:
        return "arrays"
    if suffix in _PUBLISHED:
        return "published"
    if suffix == ".json":
        return "slices"
    return "dicom" if _is_dicom(path) else "image"


def _is_dicom(path: Path) -> bool:
    """Whether a file is DICOM: a segmentation or a structure set, as reading will find out."""
    if volume_suffix(path.name) is not None:
        return False
    return path.suffix.lower() in DICOM_SUFFIXES or has_dicom_preamble(path)


def _add_manifest(found: FoundMasks, path: Path, scan_ids: Collection[str]) -> None:
    """Add the rows of a manifest with the columns id and mask; paths are relative to it."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ","))
    except (OSError, UnicodeDecodeError, csv.Error):
        raise ManifestError("it cannot be read as CSV", path=path.name, remedy="Save it as UTF-8") from None
    if not rows or not {"id", "mask"} <= set(rows[0]):
        raise ManifestError(
            "a manifest of masks needs the columns id and mask", path=path.name, remedy="Add them"
        )
    for number, row in enumerate(rows, start=2):
        shown = f"{path.name} line {number}"
        try:
            _add_row(found, path, row, scan_ids, shown=shown)
        except ScanError as error:
            found.failures.append(error)


def _add_row(
    found: FoundMasks, manifest: Path, row: dict[str, str | None], scan_ids: Collection[str], *, shown: str
) -> None:
    scan_id, mask = (row["id"] or "").strip(), (row["mask"] or "").strip()
    if scan_id not in scan_ids:
        raise ManifestError(
            f"the store has no scan {scan_id!r}", path=shown, remedy="`mass status` lists the scans"
        )
    target = manifest.absolute().parent / mask
    if not mask or not target.exists():
        raise UnreadableFile("its mask does not exist", path=shown, remedy="Correct the path in the row")
    _add(found, target, scan_ids, scan_id=scan_id, shown=target.name)
