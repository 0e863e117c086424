"""Errors of training and inference. Each message says what must hold, what was found, and what to do.

    TrainingError
    ├── ConfigError      (ValueError)       a setting is invalid, or differs from that of the run
    ├── RunError         (FileExistsError)  a run folder cannot be created, resumed or shared
    ├── CheckpointError  (ValueError)       not a known kind of checkpoint, or it does not fit the network
    ├── CropError        (ValueError)       the network cannot take an image or masks of this size
    ├── DataError        (RuntimeError)     a scan of a batch is damaged or missing, or a worker died
    └── NonFiniteLoss    (ArithmeticError)  a loss or gradient is NaN or infinite

Each takes one message, so that it can be pickled and sent back from a worker process.
"""

# ruff: noqa: N818 - "NonFiniteLoss" is clear without the suffix "Error".
from __future__ import annotations

import zipfile
import zlib


class TrainingError(Exception):
    """Base class of all errors that this package raises itself."""

    def __str__(self) -> str:
        # The __str__ of FileExistsError would show a tuple.
        return str(self.args[0]) if self.args else ""


class ConfigError(TrainingError, ValueError):
    """A setting is outside its valid range, or differs from the one that the run started with."""


class RunError(TrainingError, FileExistsError):
    """A run folder cannot be created, resumed, or shared with another process."""


class CheckpointError(TrainingError, ValueError):
    """A file is not a checkpoint of a known kind, or its tensors do not fit the network."""


class CropError(TrainingError, ValueError):
    """The network cannot take images or masks of this size, or their sizes do not match."""


class DataError(TrainingError, RuntimeError):
    """A scan that a batch needs cannot be read, or the worker process that reads it died."""


class NonFiniteLoss(TrainingError, ArithmeticError):
    """A loss or gradient is NaN or infinite; the weights were not updated with it."""


DAMAGED_ARCHIVE = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    EOFError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What reading a damaged .npz file may raise."""
