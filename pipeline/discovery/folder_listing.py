"""Listing of a folder, with its files sorted by their possible format.

*Reads*: folder entries, and the first 132 bytes of files with an unknown suffix. *Writes*: nothing.
Links to files are followed, and links to folders within the searched folder, each real folder once; links to
folders elsewhere only if asked for. Hidden files and folders are left out, and special files (named pipes,
sockets, devices), on which a read could wait for ever.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.formats import (
    DATA_SUFFIXES,
    DICOM_SUFFIXES,
    SET_SUFFIX,
    has_dicom_preamble,
    header_of_pair,
    special_kind,
    volume_suffix,
)

_OTHER_SUFFIXES = frozenset(
    [
        ".json",
        ".csv",
        ".jsonl",
        ".tsv",
        ".txt",
        ".md",
        ".rst",
        ".pdf",
        ".xml",
        ".html",
        ".yaml",
        ".yml",
        ".toml",
        ".ini",
        ".log",
        ".npy",
        ".h5",
        ".hdf5",
        ".pt",
        ".pth",
        ".pkl",
        ".mat",
        ".png",
        ".jpg",
        ".jpeg",
        ".bmp",
        ".tif",
        ".tiff",
        ".gif",
        ".svg",
        ".mp4",
        ".avi",
        ".zip",
        ".tar",
        ".gz",
        ".bz2",
        ".xz",
        ".7z",
        ".raw",
        ".zraw",
        ".img",
        ".bval",
        ".bvec",
        ".py",
        ".sh",
        ".ipynb",
        ".xls",
        ".xlsx",
        ".doc",
        ".docx",
        ".stl",
        ".vtk",
        ".vtp",
        ".ply",
        ".obj",
        ".tck",
        ".trk",
        ".exe",
        ".dll",
        ".so",
    ]
)
"""Suffixes of files that cannot be DICOM; they are not opened."""


_TABLES = frozenset(["dataset.json", "dataset_description.json", "meta.csv", "participants.tsv"])
"""Files that describe a data set; layouts are recognised by them."""


@dataclass(frozen=True, kw_only=True)
class FolderListing:
    """Files of a folder; every path is relative to it, and lists are sorted.

    Attributes:
        volumes: Files with the suffix of a single-file format.
        dicom: Files that are DICOM, or have a suffix of DICOM.
        sets: .npz files, which may hold many scans each.
        tables: Files that describe a data set, such as dataset.json.
        unreadable: Folders and files that cannot be opened, with the system's reason.
        other: Number of other files, by suffix.
        special: Special files, which are neither file nor folder, each with its kind ("named pipe").
        links_out: Links to folders outside of the searched one, which were not followed.
    """

    volumes: tuple[Path, ...]
    dicom: tuple[Path, ...]
    sets: tuple[Path, ...]
    tables: tuple[Path, ...]
    unreadable: tuple[tuple[Path, str], ...]
    other: tuple[tuple[str, int], ...]
    special: tuple[tuple[Path, str], ...] = ()
    links_out: tuple[Path, ...] = ()


def walk(root: Path, *, recursive: bool = True, follow_links: bool = False) -> FolderListing:
    """Return all files below a folder, sorted by their possible format.

    Args:
        root: The folder.
        recursive: Whether subfolders are searched too.
        follow_links: Whether links to folders outside of this one are followed too.
    """
    volumes: list[Path] = []
    dicom: list[Path] = []
    sets: list[Path] = []
    tables: list[Path] = []
    other: Counter[str] = Counter()
    listing = _Walk(root=root, recursive=recursive, follow_links=follow_links)
    unreadable = listing.unreadable
    for path in listing.files():
        relative = path.relative_to(root)
        if path.suffix.lower() in DATA_SUFFIXES and header_of_pair(path).is_file():
            continue  # it is listed with its header
        if path.name in _TABLES:
            tables.append(relative)
        if volume_suffix(path.name):
            volumes.append(relative)
        elif path.suffix.lower() == SET_SUFFIX:
            sets.append(relative)
        elif path.suffix.lower() in _OTHER_SUFFIXES:
            other[path.suffix.lower()] += 1
        elif path.suffix.lower() in DICOM_SUFFIXES:
            dicom.append(relative)
        else:
            try:
                is_dicom = has_dicom_preamble(path)
            except OSError as error:
                unreadable.append((relative, error.strerror or "cannot be opened"))
                continue
            if is_dicom:
                dicom.append(relative)
            else:
                other[path.suffix.lower() or "no suffix"] += 1
    return FolderListing(
        volumes=tuple(sorted(volumes)),
        dicom=tuple(sorted(dicom)),
        sets=tuple(sorted(sets)),
        tables=tuple(sorted(tables)),
        unreadable=tuple(sorted(unreadable)),
        other=tuple(sorted(other.items())),
        special=tuple(sorted(listing.special)),
        links_out=tuple(sorted(listing.links_out)),
    )


@dataclass(kw_only=True)
class _Walk:
    """A search for all files below a folder; lists what is left out, relative to the folder."""

    root: Path
    recursive: bool
    follow_links: bool
    unreadable: list[tuple[Path, str]] = field(default_factory=list)
    special: list[tuple[Path, str]] = field(default_factory=list)
    links_out: list[Path] = field(default_factory=list)

    def files(self) -> list[Path]:
        """Return every file; also broken links and folders named like a file, which the reader refuses."""
        found: list[Path] = []
        pending, seen = [self.root], set()
        while pending:
            folder = pending.pop()
            real = os.path.realpath(folder)
            if real in seen:
                continue
            seen.add(real)
            try:
                entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            except OSError as error:
                self.unreadable.append((folder.relative_to(self.root), error.strerror or "cannot be listed"))
                continue
            for entry in entries:
                if entry.name.startswith(".") or entry.name.upper() == "DICOMDIR":
                    continue
                path = Path(entry.path)
                if _is_folder(entry):
                    if self.recursive and self._is_followed(entry):
                        pending.append(path)
                elif (entry.is_symlink() or not entry.is_file()) and (kind := special_kind(path)):
                    self.special.append((path.relative_to(self.root), kind))
                else:
                    found.append(path)
        return found

    def _is_followed(self, entry: os.DirEntry[str]) -> bool:
        """Whether a folder is searched: it is no link, or leads to a folder within the searched one."""
        if self.follow_links or not entry.is_symlink():
            return True
        if Path(os.path.realpath(entry.path)).is_relative_to(os.path.realpath(self.root)):
            return True
        self.links_out.append(Path(entry.path).relative_to(self.root))
        return False


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir() and not volume_suffix(entry.name)
    except OSError:  # a link to itself
        return False
