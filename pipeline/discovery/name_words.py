"""Words in names of files and folders that distinguish labels from scans, and names without them.

*Reads*: names. *Writes*: words in lower case. A name is cut at everything that is no letter and no digit; a
number is cut off a word that is known here ("label0001"), and such a word off a name in mixed case
("TrainingMask").
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from pipeline.formats import NAME_WORDS, Modality

PLAIN_WORDS = {
    **dict.fromkeys(["label", "labels", "lbl"], "label"),
    **dict.fromkeys(["seg", "segm", "segmentation", "segmentations"], "seg"),
    **dict.fromkeys(["gt", "groundtruth"], "gt"),
    **dict.fromkeys(["mask", "masks", "msk"], "mask"),
    **dict.fromkeys(["gtv", "gtvt", "gtvn", "gtvp"], "gtv"),
    **dict.fromkeys(["annotation", "annotations"], "annotation"),
    **dict.fromkeys(["delineation", "delineations"], "delineation"),
    **{word: word for word in ["dseg", "fseg", "aseg", "aparc", "wmparc", "parcellation"]},
}
"""A file with one of these words in its name is a label; each with the name of the label map."""

WEAK_WORDS = frozenset(
    ["lesion", "lesions", "tumor", "tumour", "roi", "rois", "anatomy", "contour", "contours", "wmh", "ribbon"]
)
"""Words of labels only where the rest of the name is that of a scan in the same folder: X_lesion beside X."""

IMAGE_WORDS = frozenset(
    ["image", "images", "img", "imgs", "imaging", "volume", "volumes", "vol", "scan", "scans"]
)
"""Words that only say that a file is an image."""

CHANNEL_WORDS: dict[str, Modality] = (
    NAME_WORDS
    | dict.fromkeys(
        ["t1n", "t1gd", "t1post", "t1km", "t2f", "t2s", "pd", "pdw", "tof", "mra", "stir", "dixon", "mprage"],
        "mr",
    )
    | dict.fromkeys(["cet1", "hrt2", "3dt1", "3dt2", "3dflair", "hbv", "gado"], "mr")
    | dict.fromkeys(["suv", "fdg", "psma"], "pet")
    | {"ctres": "ct", "cta": "ct", "hu": "ct"}
)
"""Words that name a channel, and their modality."""

PROCESSING_WORDS = frozenset(
    ["pp", "preprocessed", "preproc", "n4", "bias", "restore", "coreg", "registered", "space"]
)
"""Words after a channel that say how it was made."""

_KNOWN = (*sorted({*PLAIN_WORDS, *IMAGE_WORDS}, key=len, reverse=True),)
_NUMBERED = re.compile(rf"(?P<word>{'|'.join(_KNOWN)})(?P<number>\d+)", re.IGNORECASE)
_MIXED = re.compile(
    rf"(?P<first>.*[a-z])(?P<word>{'|'.join(word.capitalize() for word in _KNOWN)})(?P<number>\d*)"
)


def name_words(name: str) -> tuple[str, ...]:
    """Return the words of a name without suffix, in lower case."""
    found: list[str] = []
    for run in re.findall(r"[^\W_]+", name):
        cut = _NUMBERED.fullmatch(run) or _MIXED.fullmatch(run)
        found.extend(part.lower() for part in (cut.groups() if cut else (run,)) if part)
    return tuple(found)


def label_word(words: Iterable[str]) -> str | None:
    """Return the label map's name for the last word for labels, or None if there is no such word."""
    return next((PLAIN_WORDS[word] for word in reversed(tuple(words)) if word in PLAIN_WORDS), None)


def is_label_folder_word(folder: str) -> bool:
    """Whether a folder's name begins or ends with a word for labels ("Lung_Mask", "seg-lungs").

    Such a folder may also be a data set with such a name ("HaN-Seg"); only its files show which.
    """
    words = [word for word in name_words(folder) if not word.isdigit()]
    return bool(words) and (words[0] in PLAIN_WORDS or words[-1] in PLAIN_WORDS)


def key_of(words: Sequence[str]) -> tuple[str, ...]:
    """Return the words that identify a scan or a label: those that are not words for labels and images."""
    return tuple(word for word in words if word not in PLAIN_WORDS and word not in IMAGE_WORDS)


def without_rater(words: Sequence[str]) -> tuple[str, ...]:
    """Return the words of a label without a number at their end: those of "X_mask2" without the 2."""
    several = len(words) > 2 and words[-1].isdigit() and words[-2] in PLAIN_WORDS
    return tuple(words[:-1]) if several else tuple(words)


def keys_of_scan(words: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the keys by which a label can find a scan, the longest first.

    They are its key; that without a channel's number at the end (_0000); and that without the words of a
    channel.
    """
    key = key_of(words)
    keys = [key]
    if len(key) > 1 and re.fullmatch(r"\d{4}", key[-1]):
        keys.append(key[:-1])
    end = channel_start(key)
    if end < len(key):
        keys.append(key[:end])
    return keys


def channel_start(words: Sequence[str]) -> int:
    """Return the index of the first word of the channel at the end of a name, or the number of words."""
    end = len(words)
    while end > 0 and words[end - 1] in PROCESSING_WORDS:
        end -= 1
    start = end
    while start > 0 and words[start - 1] in CHANNEL_WORDS:
        start -= 1
    return start if start < end else len(words)


def has_number(words: Iterable[str]) -> bool:
    """Whether there is a digit in one of the words."""
    return any(character.isdigit() for word in words for character in word)
