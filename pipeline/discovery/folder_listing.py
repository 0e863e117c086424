"""Listing of a folder, with its files sorted by their possible format.

*Reads*: folder entries, and the first 132 bytes of files with an unknown suffix. *Writes*: nothing.
Links to folders are followed, each real folder once. Hidden files and folders are left out.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from pipeline.formats import DICOM_SUFFIXES, SET_SUFFIX, has_dicom_preamble, volume_suffix

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


@dataclass(frozen=True, kw_only=True)
class Tree:
    """Files of a folder; every path is relative to it, and lists are sorted.

    Attributes:
        volumes: Files with the suffix of a single-file format.
        dicom: Files that are DICOM, or have a suffix of DICOM.
        sets: .npz files, which may hold many scans each.
        unreadable: Folders and files that cannot be opened, with the system's reason.
        other: Number of other files, by suffix.
    """

    volumes: tuple[Path, ...]
    dicom: tuple[Path, ...]
    sets: tuple[Path, ...]
    unreadable: tuple[tuple[Path, str], ...]
    other: tuple[tuple[str, int], ...]


def walk(root: Path, *, recursive: bool = True) -> Tree:
    """Return all files below a folder, sorted by their possible format.

    Args:
        root: The folder.
        recursive: Whether subfolders are searched too.
    """
    volumes: list[Path] = []
    dicom: list[Path] = []
    sets: list[Path] = []
    other: Counter[str] = Counter()
    unreadable: list[tuple[Path, str]] = []
    for path in _files(root, unreadable, recursive=recursive):
        relative = path.relative_to(root)
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
    return Tree(
        volumes=tuple(sorted(volumes)),
        dicom=tuple(sorted(dicom)),
        sets=tuple(sorted(sets)),
        unreadable=tuple(sorted(unreadable)),
        other=tuple(sorted(other.items())),
    )


def _files(root: Path, unreadable: list[tuple[Path, str]], *, recursive: bool) -> list[Path]:
    """Return every file below a folder; folders that cannot be listed are appended to `unreadable`."""
    found: list[Path] = []
    pending, seen = [root], set()
    while pending:
        folder = pending.pop()
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            unreadable.append((folder.relative_to(root), error.strerror or "cannot be listed"))
            continue
        for entry in entries:
            if entry.name.startswith(".") or entry.name.upper() == "DICOMDIR":
                continue
            if entry.is_dir() and not volume_suffix(entry.name):
                if recursive:
                    pending.append(Path(entry.path))
            else:  # also broken links, and folders named like a file: the reader raises the error
                found.append(Path(entry.path))
    return found
