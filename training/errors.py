"""What can go wrong in training and with networks: what must hold, what was got, what to do.

    TrainingError
    ├── ConfigError      (ValueError)       a setting that cannot be, or that differs from the run's
    ├── RunError         (FileExistsError)  a run folder that cannot be begun, gone on with, or shared
    ├── CheckpointError  (ValueError)       no checkpoint that is known, or one that does not fit
    ├── CropError        (ValueError)       an image or masks whose size the network cannot take
    ├── DataError        (RuntimeError)     a scan that a batch needs is damaged or gone, or a worker died
    └── NonFiniteLoss    (ArithmeticError)  a loss or gradient that is NaN or infinite

Each takes one message, so that it survives pickling on its way back from a worker.
"""

# ruff: noqa: N818 - "NonFiniteLoss" says it all; "Error" would only lengthen every except clause.
from __future__ import annotations


class TrainingError(Exception):
    """Anything this package raises on purpose."""

    def __str__(self) -> str:
        # FileExistsError would show a tuple.
        return str(self.args[0]) if self.args else ""


class ConfigError(TrainingError, ValueError):
    """A setting outside of what it may be, or other than the run was begun with."""


class RunError(TrainingError, FileExistsError):
    """A run folder that cannot be begun, gone on with, or shared."""


class CheckpointError(TrainingError, ValueError):
    """A file that is no checkpoint of a known kind, or whose tensors do not fit the network."""


class CropError(TrainingError, ValueError):
    """An image or masks whose size the network cannot take, or that do not fit each other."""


class DataError(TrainingError, RuntimeError):
    """A scan that a batch needs cannot be read, or the worker that reads it died."""


class NonFiniteLoss(TrainingError, ArithmeticError):
    """A loss or gradient that is NaN or infinite; nothing was changed by it."""
