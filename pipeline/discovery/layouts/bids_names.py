"""Names of BIDS files: entities and suffixes, and the kind of image of each suffix.

*Reads*: file names. *Writes*: `BidsName`. Source: BIDS specification 1.10, appendices on entities and
suffixes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.formats import Modality, stem_of

DATA_TYPES = frozenset(
    ["anat", "ct", "pet", "func", "dwi", "fmap", "perf", "beh", "eeg", "meg", "ieeg", "swi", "mr"]
)
"""Folders of a subject or session that hold its files."""

_MR_SUFFIXES = (
    *("T1w", "T2w", "T2star", "T2starw", "FLAIR", "PDw", "PDT2", "PD", "FLASH", "UNIT1", "MP2RAGE"),
    *("inplaneT1", "inplaneT2", "angio", "MEGRE", "MESE", "VFA", "IRT1", "MPM", "MTS", "MTR", "swi"),
    *("T1map", "T2map", "T2starmap", "R1map", "R2map", "R2starmap", "PDmap", "MTRmap", "MTsat", "T1rho"),
    *("ADC", "DIR", "STIR", "T1ce", "T1gd"),
)

SCAN_SUFFIXES: dict[str, Modality] = {
    **dict.fromkeys(_MR_SUFFIXES, "mr"),
    "ct": "ct",
    "CT": "ct",
    "pet": "pet",
    "PET": "pet",
}
"""Suffixes of scans, and their modality."""

_LOWER_SUFFIXES: dict[str, Modality] = {
    suffix.lower(): modality for suffix, modality in SCAN_SUFFIXES.items()
} | {"dwi": "mr"}


def modality_of_suffix(suffix: str) -> Modality | None:
    """Return the modality of a suffix, in upper or lower case, or None."""
    return _LOWER_SUFFIXES.get(suffix.lower())


NO_SCANS = {
    **dict.fromkeys(["bold", "cbv"], "a time series of function"),
    "sbref": "a single volume that a time series is aligned to",
    "dwi": "a series of diffusion directions",
    **dict.fromkeys(["asl", "m0scan"], "a perfusion series"),
    **dict.fromkeys(
        ["epi", "fieldmap", "magnitude", "magnitude1", "magnitude2", "phase1", "phase2", "phasediff"],
        "a field map",
    ),
    **dict.fromkeys(["TB1map", "TB1AFI", "TB1EPI", "TB1DAM", "TB1RFM", "RB1map", "RB1COR"], "a field map"),
    "defacemask": "a mask of the removed face",
    "minIP": "a projection",
    "M0map": "a map without anatomy",
    "phase": "an image of phases",
}
"""Suffixes of images that are left out, and what they are."""

LABEL_SUFFIXES = frozenset(["dseg", "mask", "msk", "seg", "probseg"])
"""Suffixes of derivatives that are drawn over a scan."""

RAW_FOLDER = "rawdata"
"""Folder of the scans in a data set that has its derivatives beside them."""

_ENTITY = re.compile(r"(?P<key>[A-Za-z]+)-(?P<value>.+)")


@dataclass(frozen=True, kw_only=True)
class BidsName:
    """A file's name: sub-01_ses-1_acq-high_T1w has the entities sub, ses, acq and the suffix T1w.

    Attributes:
        entities: Value of each entity.
        words: Parts that are no entity; the last is the suffix, the others are of the scan of a derivative.
    """

    entities: Mapping[str, str]
    words: tuple[str, ...]

    @property
    def suffix(self) -> str:
        """The last part, or "" if that is an entity."""
        return self.words[-1] if self.words else ""


def parse_name(path: Path) -> BidsName:
    """Return entities and words of a file's name."""
    entities, words = {}, []
    for part in stem_of(path.name).split("_"):
        match = _ENTITY.fullmatch(part)
        if match:
            entities[match["key"]] = match["value"]
        elif part:
            words.append(part)
    return BidsName(entities=entities, words=tuple(words))


def place_of(path: Path) -> tuple[Path, bool] | None:
    """Return the data set's folder and whether the file is a derivative; None if the path is not of BIDS.

    A path of BIDS has a folder sub-X and a name that begins with sub-X; and a folder of a data type below it,
    or a suffix of scans or labels. Scans may lie in the data set's folder rawdata.
    """
    folders = path.parts[:-1]
    index = next((k for k, part in enumerate(folders) if part.startswith("sub-")), None)
    if index is None or not path.name.startswith(folders[index]):
        return None
    inner = folders[index + 1 :]
    suffix = parse_name(path).suffix
    is_known = suffix in SCAN_SUFFIXES or suffix in LABEL_SUFFIXES
    if not (is_known or any(part in DATA_TYPES for part in inner)) or len(inner) > 3:
        return None
    above = folders[:index]
    is_derived = "derivatives" in above
    if is_derived:
        above = above[: above.index("derivatives")]
    return Path(*(above[:-1] if above[-1:] == (RAW_FOLDER,) else above)), is_derived
