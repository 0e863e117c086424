"""Keeping patients' names, ids and birth dates out of everything that is shown or stored.

DICOM exports often name folders after patients. What a header calls the patient is looked for in the parts of
every relative path, and a part that holds it is replaced by "anon-" and a short hash of the study's UID (not
of the name, which could be guessed and checked). *Reads*: relative paths and header values. *Writes*: text to
show.

Stops being valid for names that no header in the tree tells (a folder of NIfTI files named after patients),
and for ids that a manifest gives: those are its author's choice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from pipeline.sources import short_hash

_WORD = re.compile(r"[^\W\d_]+|\d+")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")

_GENERIC = frozenset(
    [
        "anonymous",
        "anonymized",
        "anonymised",
        "anon",
        "removed",
        "deidentified",
        "unknown",
        "patient",
        "subject",
        "phantom",
        "test",
        "name",
        "none",
        "null",
        "mr",
        "ct",
        "pt",
        "pet",
        "mri",
        "scan",
        "image",
        "images",
        "series",
        "study",
        "dicom",
        "head",
        "body",
        "chest",
        "abdomen",
        "brain",
        "male",
        "female",
        "na",
        "no",
        "of",
        "the",
        "dr",
        "mrs",
    ]
)
"""Words in PatientName or PatientID that name nobody."""

_SHORT = 4
"""Ids with fewer characters are looked for in the patient's own paths only, and as whole words."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a header says of its patient. Never shown: `repr` hides it.

    Attributes:
        name: PatientName.
        codes: PatientID, other ids, birth date.
        stand_in: What to show in their place.
    """

    name: str = field(repr=False)
    codes: tuple[str, ...] = field(repr=False)
    stand_in: str

    def tokens(self) -> frozenset[str]:
        """Letters and digits to look for, in lower case and without separators."""
        found = set()
        words = [word.lower() for word in _WORD.findall(self.name)]
        if any(word.isdigit() for word in words):  # a pseudonym such as STS_002: its parts mean nothing
            found.add("".join(words))
        else:
            found.update(word for word in words if len(word) >= 2)
            found.update(
                ("".join(words), "".join(reversed(words)), "".join(words[:2]), "".join(words[1::-1]))
            )
        found.update("".join(_WORD.findall(code.lower())) for code in self.codes)
        return frozenset(token for token in found if token and token not in _GENERIC)


def stand_in_for(study_uid: str) -> str:
    """What is shown in place of a patient's name."""
    return f"anon-{short_hash(study_uid)}"


class Scrubber:
    """Replaces what identifies a patient in relative paths."""

    def __init__(self, identities: Iterable[Identity] = ()) -> None:
        self._everywhere: dict[str, str] = {}
        for identity in sorted(identities, key=lambda i: i.stand_in):
            for token in sorted(identity.tokens()):
                if len(token) >= _SHORT:
                    self._everywhere.setdefault(token, identity.stand_in)

    def path(self, relative: Path, own: Identity | None = None) -> str:
        """The path with '/' between its parts, without any patient's name.

        Args:
            relative: Path relative to the folder searched.
            own: The identity of the patient whose file it is: shorter and run-together names are found, too.
        """
        parts = [
            self._part(part, own, is_last=i == len(relative.parts) - 1) for i, part in _numbered(relative)
        ]
        return "/".join(parts) or "."

    def holds_identity(self, text: str) -> bool:
        """Whether a patient's name or id stands in a text."""
        return bool(self._spans(text, self._everywhere))

    def _part(self, part: str, own: Identity | None, *, is_last: bool) -> str:
        tokens = dict(self._everywhere)
        if own is not None:
            mine = own.tokens()
            tokens.update(dict.fromkeys(mine, own.stand_in))
            plain = "".join(_WORD.findall(part.lower()))
            if any(len(token) >= _SHORT and token in plain for token in mine):
                return own.stand_in
        spans = self._spans(part, tokens)
        if not spans:
            return part
        if not is_last:
            return spans[0][2]
        for start, stop, stand_in in reversed(spans):
            part = part[:start] + stand_in + part[stop:]
        return part

    @staticmethod
    def _spans(text: str, tokens: dict[str, str]) -> list[tuple[int, int, str]]:
        """Where runs of whole words spell a token: (start, stop, stand-in), from left to right."""
        if not tokens:
            return []
        words = [
            (match.start() + cut, match.start() + end)
            for match in _WORD.finditer(text)
            for cut, end in _camel_cuts(match.group())
        ]
        spans: list[tuple[int, int, str]] = []
        first = 0
        while first < len(words):
            for last in range(len(words) - 1, first - 1, -1):
                token = "".join(text[a:b].lower() for a, b in words[first : last + 1])
                if token in tokens:
                    spans.append((words[first][0], words[last][1], tokens[token]))
                    first = last
                    break
            first += 1
        return spans


def _camel_cuts(word: str) -> list[tuple[int, int]]:
    """(start, stop) of the words in a run such as DoeJohn."""
    cuts = [0, *(match.start() for match in _CAMEL.finditer(word)), len(word)]
    return list(pairwise(cuts))


def _numbered(path: Path) -> list[tuple[int, str]]:
    return list(enumerate(path.parts))
