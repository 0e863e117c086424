"""Protection of patients' names, ids and birth dates in everything that is shown or stored.

DICOM exports often name folders after patients. Each part of a relative path is searched for what headers say
of the patient. A part that contains it is replaced by "anon-" and a short hash of the study's UID (not of the
name, which could be guessed and checked). *Reads*: relative paths and header values. *Writes*: text to show.

Not protected: names that are in no header (a folder of NIfTI files named after patients), and ids in a
manifest, which are its author's choice.
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
"""Words in PatientName or PatientID that identify nobody."""

_SHORT_CODE = 4
"""Ids with fewer characters are searched for only in paths of the same patient, and as whole words."""

_SHORT_NAME = 3
"""The same for the words of a name."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What identifies the patient in a header. Never shown: `repr` hides it.

    Attributes:
        name: PatientName.
        codes: PatientID, other ids, birth date.
        stand_in: Text that is shown instead.
        patient_id: PatientID, which is one of `codes`; "" if missing.
    """

    name: str = field(repr=False)
    codes: tuple[str, ...] = field(repr=False)
    stand_in: str
    patient_id: str = field(default="", repr=False)

    def tokens(self) -> frozenset[str]:
        """Return the letters and digits to search for, in lower case and without separators."""
        found = set()
        words = [word.lower() for word in _WORD.findall(self.name)]
        if any(word.isdigit() for word in words):  # a pseudonym such as STS_002: its parts identify nobody
            found.add("".join(words))
        else:
            found.update(word for word in words if len(word) >= 2)
            found.update(
                ("".join(words), "".join(reversed(words)), "".join(words[:2]), "".join(words[1::-1]))
            )
        found.update("".join(_WORD.findall(code.lower())) for code in self.codes)
        return frozenset(token for token in found if token and token not in _GENERIC)

    def patient_key(self) -> str:
        """Return the patient's id for comparisons, never shown; "" if it identifies nobody."""
        plain = "".join(_WORD.findall(self.patient_id.lower()))
        return "" if plain in _GENERIC or not plain.strip("0") else plain


def stand_in_for(study_uid: str) -> str:
    """Return the text that is shown instead of a patient's name."""
    return f"anon-{short_hash(study_uid)}"


class Scrubber:
    """Replaces what identifies a patient in relative paths.

    Args:
        patients: Identities, each with the relative folder of the patient's files. A folder that is named
            after its own patient is replaced in all paths below it. In all other paths names and ids are
            searched for as whole words, if they are long enough.
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
                if self._identifies(part, identity):
                    self._folders.setdefault(folder.parts[:depth], identity.stand_in)

    def path(self, relative: Path, own: Identity | None = None) -> str:
        """Return the path with '/' between its parts, without any patient's name.

        Args:
            relative: Path relative to the searched folder.
            own: Identity of the patient of this file; short names and names without separators are found,
                too.
        """
        parts = []
        for depth, part in enumerate(relative.parts, start=1):
            known = self._folders.get(relative.parts[:depth])
            parts.append(known or self._part(part, own, is_last=depth == len(relative.parts)))
        return "/".join(parts) or "."

    def text(self, text: str) -> str:
        """Return a free text, such as the name of a structure, without any patient's name or id."""
        return self._without_names(text)

    def holds_identity(self, text: str) -> bool:
        """Whether a text contains a patient's name or id."""
        return bool(self._spans(text, self._everywhere))

    def _identifies(self, part: str, identity: Identity) -> bool:
        """Whether a part of a path contains the identity, as whole words or without separators."""
        tokens = identity.tokens()
        plain = "".join(_WORD.findall(part.lower()))
        together = any(len(token) >= _SHORT_CODE and token in plain for token in tokens)
        return together or bool(self._spans(part, dict.fromkeys(tokens, "")))

    def _part(self, part: str, own: Identity | None, *, is_last: bool) -> str:
        """Return a part of a path without names: folders are replaced whole, file names word by word."""
        if own is not None and self._identifies(part, own):
            return own.stand_in
        spans = self._spans(part, self._everywhere)
        if spans and not is_last:
            return spans[0][2]
        return self._without_names(part)

    def _without_names(self, text: str) -> str:
        for start, stop, stand_in in reversed(self._spans(text, self._everywhere)):
            text = text[:start] + stand_in + text[stop:]
        return text

    @staticmethod
    def _spans(text: str, tokens: dict[str, str]) -> list[tuple[int, int, str]]:
        """Return (start, stop, stand-in) of each run of whole words that is a token, from left to right."""
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
    """Return (start, stop) of each word in a run such as DoeJohn."""
    cuts = [0, *(match.start() for match in _CAMEL.finditer(word)), len(word)]
    return list(pairwise(cuts))


def short_hash(text: str, length: int = 8) -> str:
    """Return the first hexadecimal digits of a text's SHA-256."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:length]
