"""Keeping patients' names, ids and birth dates out of everything that is shown or stored.

DICOM exports often name folders after patients. What a header calls the patient is looked for in the parts of
every relative path, and a part that holds it is replaced by "anon-" and a short hash of the study's UID (not
of the name, which could be guessed and checked). *Reads*: relative paths and header values. *Writes*: text to
show.

Stops being valid for names that no header in the tree tells (a folder of NIfTI files named after patients),
and for ids that a manifest gives: those are its author's choice.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

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

_SHORT_CODE = 4
"""Ids with fewer characters are looked for in the patient's own paths only, and as whole words."""

_SHORT_NAME = 3
"""The same for the words of a name."""


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
    """Replaces what identifies a patient in relative paths.

    Args:
        patients: Who was seen, each with the relative folder of their files. Folders that are named after
            their own patient are replaced for everything below them; elsewhere names and ids are looked for
            as whole words, if they are long enough to mean anything.
    """

    def __init__(self, patients: Iterable[tuple[Path, Identity]] = ()) -> None:
        self._everywhere: dict[str, str] = {}
        self._folders: dict[tuple[str, ...], str] = {}
        ordered = sorted(set(patients), key=lambda p: (p[1].stand_in, str(p[0])))
        for identity in dict.fromkeys(identity for _, identity in ordered):
            for token in sorted(identity.tokens()):
                if len(token) >= (_SHORT_NAME if token.isalpha() else _SHORT_CODE):
                    self._everywhere.setdefault(token, identity.stand_in)
        for folder, identity in ordered:
            for depth, part in enumerate(folder.parts, start=1):
                if self._names(part, identity):
                    self._folders.setdefault(folder.parts[:depth], identity.stand_in)

    def path(self, relative: Path, own: Identity | None = None) -> str:
        """The path with '/' between its parts, without any patient's name.

        Args:
            relative: Path relative to the folder searched.
            own: The identity of the patient whose file it is: shorter and run-together names are found, too.
        """
        parts = []
        for depth, part in enumerate(relative.parts, start=1):
            known = self._folders.get(relative.parts[:depth])
            parts.append(known or self._part(part, own, is_last=depth == len(relative.parts)))
        return "/".join(parts) or "."

    def holds_identity(self, text: str) -> bool:
        """Whether a patient's name or id stands in a text."""
        return bool(self._spans(text, self._everywhere))

    def _names(self, part: str, identity: Identity) -> bool:
        """Whether a part of a path names its own patient, as whole words or run together."""
        tokens = identity.tokens()
        plain = "".join(_WORD.findall(part.lower()))
        together = any(len(token) >= _SHORT_CODE and token in plain for token in tokens)
        return together or bool(self._spans(part, dict.fromkeys(tokens, "")))

    def _part(self, part: str, own: Identity | None, *, is_last: bool) -> str:
        """A part without names: folders are replaced whole, in file names the words that name somebody."""
        if own is not None and self._names(part, own):
            return own.stand_in
        spans = self._spans(part, self._everywhere)
        if spans and not is_last:
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


def short_hash(text: str, length: int = 8) -> str:
    """The first hexadecimal digits of a text's SHA-256."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:length]
