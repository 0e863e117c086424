"""Values of DICOM tags as plain text and numbers; what is missing or malformed is "" or None.

*Reads*: pydicom data sets. *Writes*: nothing.
"""

from __future__ import annotations

import math
from typing import Any

import pydicom


def find_text(data: Any, tag: str) -> str:
    """Return a tag's text without spaces around it; "" if it is missing."""
    value = data.get(tag)
    return "" if value is None else str(value).strip().strip("\0")


def find_number(data: Any, tag: str) -> float | None:
    """Return a tag's number, or None if the tag is missing, empty or not a finite number."""
    value = data.get(tag)
    if isinstance(value, (list, pydicom.multival.MultiValue)):
        value = value[0] if value else None
    try:
        number = None if value is None else float(value)
    except (TypeError, ValueError):
        return None
    return number if number is not None and math.isfinite(number) else None


def find_floats(data: Any, tag: str, count: int) -> tuple[float, ...] | None:
    """Return a tag's `count` numbers, or None if it holds anything else."""
    value = data.get(tag)
    try:
        numbers = () if value is None else tuple(float(v) for v in value)
    except (TypeError, ValueError):
        return None
    return numbers if len(numbers) == count and all(math.isfinite(v) for v in numbers) else None
