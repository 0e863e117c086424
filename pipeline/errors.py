"""What can be wrong with an input, one class per cause.

Every message says which scan, what must hold, what was found, and what to do about it.

    PipelineError
    ├── ConfigError (also ValueError)      a setting that cannot be
    └── ScanError                          one scan, label or manifest row; the others go on
        ├── UnreadableFile (also OSError)  missing, a broken link, no permission, a folder in a file's place
        │   └── TransientReadError         the disk or network failed under us; worth another try
        ├── NotAnImage                     the bytes are no image of a known format
        ├── CorruptImage                   the right format, but truncated or damaged
        ├── NotVolumetric                  2D, a single slice, more than four axes
        │   └── NoSuchFrame                4D or colour, and no choice of a volume that is there
        ├── BadSpacing                     zero, negative, missing or absurd voxel size
        ├── BadGeometry                    axes that are not at right angles to each other
        ├── NotFinite                      NaN or infinite voxels
        ├── ConstantImage                  one value everywhere
        ├── EmptyForeground                nothing, or too little, left after the crop
        ├── LooksLikeLabel                 a label map in a scan's place
        ├── LabelMismatch                  a label on another grid, or with values that were not declared
        ├── DicomSeriesError               missing slices, uneven gaps, gantry tilt, several series
        ├── ManifestError                  a row or a file of the manifest that makes no sense
        ├── DuplicateId                    two scans that claim one id
        ├── UnsafeId                       an id that could leave its folder
        └── NoProposals                    no region within the size limits: too small or too flat
"""

# ruff: noqa: N818 - the name says what is wrong; "Error" would only lengthen every except clause.

from __future__ import annotations

from pathlib import Path
from typing import Any


class PipelineError(Exception):
    """Base of every error that this package raises on purpose."""


class ConfigError(PipelineError, ValueError):
    """A setting outside of what it may be."""


class ScanError(PipelineError):
    """One input cannot be used, for a reason that its owner can understand and mend.

    Attributes:
        reason: What must hold and what was found.
        path: What to show of the place: relative to the folder searched, without a patient's name.
        remedy: What to do about it.
    """

    def __init__(self, message: str, *, path: Path | str | None, remedy: str) -> None:
        super().__init__(message)
        self.reason = message
        self.path = path
        self.remedy = remedy

    def __str__(self) -> str:
        where = "" if self.path is None else f"{self.path}: "
        return f"{where}{self.reason}. {self.remedy}"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.reason, self.path, self.remedy)


def _rebuild(kind: type[ScanError], message: str, path: Path | str | None, remedy: str) -> ScanError:
    """An equal error; exceptions with keyword arguments do not pickle by themselves."""
    return kind(message, path=path, remedy=remedy)


class UnreadableFile(ScanError, OSError):
    """A file is missing, is a broken link, may not be read, or is a folder."""


class TransientReadError(UnreadableFile):
    """The operating system failed in a way that may pass (input/output error, stale handle, time-out)."""


class NotAnImage(ScanError):
    """The bytes are no image of a format that we read."""


class CorruptImage(ScanError):
    """An image of a known format that is truncated or damaged."""


class NotVolumetric(ScanError):
    """Not one scalar 3D volume: 2D, a single slice, more than four axes."""


class NoSuchFrame(NotVolumetric):
    """Several volumes in one file or series, and no choice of one of them that is there."""


class BadSpacing(ScanError):
    """A voxel size that is zero, negative, not a number, or of no body."""


class BadGeometry(ScanError):
    """Axes that are sheared or no orthonormal frame."""


class NotFinite(ScanError):
    """NaN or infinite voxels."""


class ConstantImage(ScanError):
    """Every voxel has the same value."""


class EmptyForeground(ScanError):
    """Nothing, or too little, is left after the crop to the body."""


class LooksLikeLabel(ScanError):
    """What was taken for a scan is a label map."""


class LabelMismatch(ScanError):
    """A label map that does not fit its scan or its declared values."""


class DicomSeriesError(ScanError):
    """DICOM slices that do not make one regular volume."""


class ManifestError(ScanError):
    """A manifest, or a row of it, that cannot be understood."""


class DuplicateId(ScanError):
    """Several scans claim one id."""


class UnsafeId(ScanError):
    """An id that is empty, too long, or could leave its folder."""


class NoProposals(ScanError):
    """The scan holds no region that could be a proposal."""
