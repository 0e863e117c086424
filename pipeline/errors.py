"""Errors of inputs: one class per cause.

Every message says which scan, what must hold, what was found, and what to do.

    PipelineError
    ├── ConfigError (also ValueError)      a setting has an impossible value
    ├── ExportRefused                      a format cannot hold a scan, or a folder is not free
    └── ScanError                          one scan, label or manifest row; other scans are not affected
        ├── UnreadableFile (also OSError)  missing, a broken link, no permission, a folder instead of a file
        │   ├── TransientReadError         the disk or network failed; another try may succeed
        │   └── StalledRead                not a byte came for long; tried again in the next run
        ├── NotAnImage                     the bytes are not an image of a known format
        ├── CorruptImage                   a known format, but truncated or damaged
        ├── NotVolumetric                  2D, a single slice, more than four axes
        │   └── NoSuchFrame                4D or colour, and no existing volume of it is chosen
        ├── BadSpacing                     zero, negative, missing or absurd voxel size
        ├── BadGeometry                    axes that are not at right angles to each other
        ├── NotFinite                      NaN or infinite voxels
        ├── ConstantImage                  one value everywhere
        ├── EmptyForeground                nothing, or too little, left after the crop
        ├── LooksLikeLabel                 a label map instead of a scan
        ├── LabelMismatch                  a label on another grid, or with values that were not declared
        ├── DicomSeriesError               missing slices, uneven gaps, gantry tilt, several series
        ├── ManifestError                  a manifest, or a row of it, that cannot be understood
        ├── DuplicateId                    two scans with one id
        ├── UnsafeId                       an id that could leave its folder
        └── NoProposals                    no region within the size limits: scan too small or too flat
"""

# ruff: noqa: N818 - the name says what is wrong; "Error" would only lengthen every except clause.

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


class PipelineError(Exception):
    """Base class of all errors that this package raises on purpose."""


class ConfigError(PipelineError, ValueError):
    """A setting has an impossible value."""


class ExportRefused(PipelineError):
    """What is to be exported cannot be written as asked for; the message says why and what to do."""


def require(holds: bool, setting: str, must: str, got: object = None) -> None:
    """Raise a `ConfigError` unless the condition on a setting holds.

    Args:
        holds: The condition.
        setting: Name of the setting.
        must: What it must be.
        got: What it is; None to leave it out of the message.
    """
    if not holds:
        raise ConfigError(f"{setting} must be {must}" + ("" if got is None else f", got {got}"))


class ScanError(PipelineError):
    """One input cannot be used.

    Attributes:
        reason: What must hold and what was found.
        path: Name of the input in the message: a path relative to the searched folder, without a patient's
            name.
        remedy: What the user can do.
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
    """Return an equal error; exceptions with keyword arguments cannot be pickled without this."""
    return kind(message, path=path, remedy=remedy)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A scan that cannot be used, and why: the record of an error, as it is printed and kept.

    Attributes:
        scan_id: Its id if it has a safe one, else a made-up one ("manifest-line-7").
        location: Its name in messages, without a patient's name.
        reason: What must hold and what was found.
        remedy: What the user can do.
        kind: Name of the error's class.
    """

    scan_id: str
    location: str = ""
    reason: str
    remedy: str
    kind: str

    @classmethod
    def of(cls, error: Exception, *, scan_id: str, location: str = "", remedy: str = "") -> Failure:
        """Return the failure that an error describes.

        Args:
            error: The error.
            scan_id: The scan.
            location: Its name in messages.
            remedy: What the user can do. A `ScanError` brings its own.
        """
        if isinstance(error, ScanError):
            reason, remedy = error.reason, error.remedy
        else:
            reason = str(error)
        return cls(
            scan_id=scan_id, location=location, reason=reason, remedy=remedy, kind=type(error).__name__
        )


class UnreadableFile(ScanError, OSError):
    """A file is missing, is a broken link, cannot be opened, or is a folder."""


class TransientReadError(UnreadableFile):
    """Reading failed, but may succeed in another try (input/output error, stale handle, time-out)."""


class StalledRead(UnreadableFile):
    """Reading stood still for `read_timeout_seconds`; the next run tries again."""


class NotAnImage(ScanError):
    """The bytes are not an image of a known format."""


class CorruptImage(ScanError):
    """An image of a known format is truncated or damaged."""


class NotVolumetric(ScanError):
    """The image is not one scalar 3D volume: 2D, a single slice, more than four axes."""


class NoSuchFrame(NotVolumetric):
    """A file or series holds several volumes, and no existing one is chosen."""


class BadSpacing(ScanError):
    """The voxel size is zero, negative, not a number, or impossible for a body."""


class BadGeometry(ScanError):
    """The axes are not at right angles to each other."""


class NotFinite(ScanError):
    """Some voxels are NaN or infinite."""


class ConstantImage(ScanError):
    """Every voxel has the same value."""


class EmptyForeground(ScanError):
    """Nothing, or too little, is left after the crop to the body."""


class LooksLikeLabel(ScanError):
    """An image that should be a scan is a label map."""


class LabelMismatch(ScanError):
    """A label map does not fit its scan or its declared values."""


class DicomSeriesError(ScanError):
    """DICOM slices do not form one regular volume."""


class ManifestError(ScanError):
    """A manifest, or a row of it, cannot be understood."""


class DuplicateId(ScanError):
    """Several scans have the same id."""


class UnsafeId(ScanError):
    """An id is empty, too long, or could leave its folder."""


class NoProposals(ScanError):
    """The scan has no region that could be a proposal."""
