"""Words for CT, MR and PET in manifests, DICOM tags and file names.

*Reads*: a word. *Writes*: "ct", "mr" or "pet", or None for any other word.
"""

from __future__ import annotations

from typing import Literal

Modality = Literal["ct", "mr", "pet"]

_WORDS: dict[str, Modality] = {
    "ct": "ct",
    "cbct": "ct",
    "mr": "mr",
    "mri": "mr",
    "pet": "pet",
    "pt": "pet",
}

NAME_WORDS: dict[str, Modality] = _WORDS | dict.fromkeys(
    ["t1", "t1w", "t1c", "t1ce", "t2", "t2w", "t2star", "flair", "dwi", "adc", "swi", "bold", "dce"], "mr"
)
"""Words in a file name, and the modality they stand for."""


def parse_modality(word: str) -> Modality | None:
    """Return the modality that a word names (CT, MR, MRI, PET, PT, in any case), or None."""
    return _WORDS.get(word.strip().lower())
