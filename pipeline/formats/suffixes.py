"""Suffixes of the image formats, and the first bytes that identify DICOM.

*Reads*: file names, and the first 132 bytes of a file. *Writes*: nothing.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.formats.file_kinds import IMAGE_FORMATS
from pipeline.formats.files import special_kind

_RESULT_SUFFIXES = {
    suffix: result for row in IMAGE_FORMATS.values() for suffix, result in row.suffixes.items()
}
"""Suffix of result files by suffix of the single-file input."""

DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
"""Suffixes of DICOM files; a file without one is DICOM if its bytes say so."""


def volume_suffix(name: str) -> str | None:
    """Return the single-file format's suffix at the end of a name, or None."""
    lower = name.lower()
    return next((s for s in _RESULT_SUFFIXES if lower.endswith(s)), None)


def result_suffix(name: str) -> str:
    """Return the suffix of result files for an input of this name; `.nii.gz` if it has no suffix of ours."""
    return _RESULT_SUFFIXES.get(volume_suffix(name) or "", ".nii.gz")


def stem_of(name: str) -> str:
    """Return a file's name without the suffix of its format."""
    suffix = volume_suffix(name) or next((s for s in DICOM_SUFFIXES if name.lower().endswith(s)), "")
    return name[: len(name) - len(suffix)]


def has_dicom_preamble(path: Path) -> bool:
    """Whether a file's bytes 128 to 132 are DICM (part 10 of the standard); never of a pipe or device."""
    if special_kind(path):
        return False
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"
