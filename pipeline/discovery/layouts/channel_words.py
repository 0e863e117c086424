"""Words for the channels of a case (MR sequences, CT, PET), and the modality of each.

*Reads*: names of channels and of files. *Writes*: words and modalities.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from pipeline.discovery.name_words import CHANNEL_WORDS, PROCESSING_WORDS, channel_start
from pipeline.formats import Modality

_UNSURE = frozenset(["t1", "t2"])
"""Words that may also mean the first and the second time."""


def words_of(text: str) -> list[str]:
    """Return the words of a name in lower case: runs of letters and digits."""
    return [word for word in re.split(r"[^A-Za-z0-9]+", text.lower()) if word]


def modality_of_channel(name: str) -> Modality | None:
    """Return the modality of a channel that a data set names ("CT", "T1w", "FDG-PET"), or None.

    None for a name with words of two modalities.
    """
    found = {CHANNEL_WORDS[word] for word in words_of(name) if word in CHANNEL_WORDS}
    return found.pop() if len(found) == 1 else None


def split_channel(stem: str) -> tuple[str, tuple[str, ...]]:
    """Return the part of a file's name before its channel, and the channel's words; () without a channel.

    "p01_MR_T1" is ("p01", ("mr", "t1")), and "FLAIR" is ("", ("flair",)).
    """
    pieces = [(match.start(), match.group().lower()) for match in re.finditer(r"[A-Za-z0-9]+", stem)]
    first = channel_start([word for _, word in pieces])
    if first == len(pieces):
        return stem, ()
    words = tuple(word for _, word in pieces[first:] if word not in PROCESSING_WORDS)
    return stem[: pieces[first][0]].rstrip("_-. "), words


def modality_of_words(words: Sequence[str], beside: Iterable[str]) -> Modality | None:
    """Return the modality of a file by the words of its channel, or None if it is not certain.

    Args:
        words: Words of its own channel.
        beside: Words of all channels of the case. T1 and T2 alone may be the first and the second time.
    """
    found = {CHANNEL_WORDS[word] for word in words}
    if len(found) != 1:
        return "pet" if found == {"ct", "pet"} and words[-1] in ("pet", "pt", "suv") else None
    modality = found.pop()
    sure = {word for word in beside if CHANNEL_WORDS[word] == "mr"} - _UNSURE
    return modality if sure or not set(words) <= _UNSURE else None
