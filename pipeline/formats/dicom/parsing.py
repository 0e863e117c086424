"""Shared by all DICOM readers: pydicom without its warnings, and its errors on damaged files.

*Reads*: nothing. *Writes*: nothing.
"""

from __future__ import annotations

import logging
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from pydicom.config import disable_value_validation
from pydicom.errors import BytesLengthException, InvalidDicomError

logging.getLogger("pydicom").setLevel(
    logging.CRITICAL
)  # its messages contain paths, and these may contain patients' names

DAMAGED: tuple[type[Exception], ...] = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    EOFError,
    ArithmeticError,
    RuntimeError,  # NotImplementedError for unknown compressions, RecursionError for nested sequences
    AssertionError,
    MemoryError,  # of an absurd length
    BytesLengthException,
    InvalidDicomError,
    struct.error,
    zlib.error,
)
"""Errors of pydicom on damaged files; their messages may quote the patient's name. OSError: the disk."""


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Read without warnings, which contain paths and perhaps names, and without checks of values."""
    with disable_value_validation(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
