"""DICOM series whose every text carries a canary: a word that occurs nowhere else, with its tag's number.

A canary that is found in something we wrote says which tag has leaked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pydicom
from pydicom.datadict import DicomDictionary, keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from tests.phantom import Phantom, write_dicom

WORD = "ZQXJVK"
"""Begins every canary; long enough not to occur by chance in the pictures of a page."""

BIRTH_DATE, OTHER_DATE, OTHER_TIME = "18470613", "18480714", "235941.271828"
"""Dates and times are canaries too; dates have only digits."""

PATIENT_NAME, PATIENT_ID = f"{WORD}Canary^{WORD}Bird", f"{WORD}4711AB"

TEXTS = frozenset(["AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"])
DATES = frozenset(["DA", "DT", "TM"])

NEEDED = frozenset(
    [
        "Modality", "ImageType", "PhotometricInterpretation", "SpecificCharacterSet", "PixelPresentation",
        "VolumetricProperties", "LossyImageCompression", "Units", "CorrectedImage", "DecayCorrection",
        "DimensionOrganizationType", "PresentationIntentType",
    ]
)  # fmt: skip
"""Tags whose values say how the file is to be read."""

KEPT = frozenset(["BodyPartExamined", "Manufacturer", "ManufacturerModelName", "ConvolutionKernel"])
"""Texts of the machine and the acquisition that a scan keeps on purpose (docs/data.md)."""

_UNREADABLE_GROUPS = frozenset([0x0000, 0x0002, 0x0004, 0x7FE0, 0xFFFC, 0xFFFE])


def canary(tag: int) -> str:
    """Return the canary of a tag: a CS and an SH take 16 characters."""
    return f"{WORD}{tag:08X}"


def write_canaries(folder: Path, scan: Phantom, **options: str) -> list[Path]:
    """Write a series of the phantom, with a canary in every text, date and time of every slice."""
    paths = write_dicom(folder, scan, patient_name=PATIENT_NAME, patient_id=PATIENT_ID, **options)
    for path in paths:
        data = pydicom.dcmread(path)
        fill(data)
        data.save_as(path, enforce_file_format=True)
    return paths


def fill(data: Dataset) -> None:
    """Put a canary into every text that is not needed, at the top, in sequences and in private tags."""
    _fill_texts(data)
    for keyword in ("RequestAttributesSequence", "OtherPatientIDsSequence", "ReferencedPatientSequence"):
        item = Dataset()
        _fill_texts(item)
        item.PatientName, item.PatientID = PATIENT_NAME, PATIENT_ID
        setattr(data, keyword, [item])
    private = data.private_block(0x0011, canary(0x00110010), create=True)
    private.add_new(0x01, "LO", canary(0x00111001))
    private.add_new(0x02, "UN", canary(0x00111002).encode() + b" ")
    data.PatientName, data.PatientID, data.PatientBirthDate = PATIENT_NAME, PATIENT_ID, BIRTH_DATE
    data.OtherPatientIDs = canary(0x00101000)


def _fill_texts(data: Dataset) -> None:
    data.update(_texts())


@cache
def _texts() -> Dataset:
    """Return every text, date and time with its canary: thousands, which all slices share."""
    data = Dataset()
    for number, (kind, *_) in DicomDictionary.items():
        tag, keyword = Tag(number), keyword_for_tag(number)
        if tag.group in _UNREADABLE_GROUPS or not keyword or keyword in NEEDED:
            continue
        if kind in TEXTS:
            value = f"http://{canary(tag)}.invalid" if kind == "UR" else canary(tag)
        elif kind in DATES:
            value = {"DA": OTHER_DATE, "TM": OTHER_TIME, "DT": f"{OTHER_DATE}{OTHER_TIME}"}[kind]
        else:
            continue
        data.add_new(tag, kind, value)
    return data


_FOUND = re.compile(rf"{WORD}\w{{0,16}}|{BIRTH_DATE}|{OTHER_DATE}|{OTHER_TIME}", re.IGNORECASE)


def canaries_in(data: bytes) -> set[str]:
    """Return every canary in some bytes, in UTF-8 and in UTF-16."""
    texts = (
        data.decode("latin-1"),
        data.decode("utf-16-le", "replace"),
        data[1:].decode("utf-16-le", "replace"),
    )
    return {found for text in texts for found in _FOUND.findall(text)}


def leaks(places: Iterable[Path]) -> Iterator[tuple[str, str]]:
    """Yield (file, canary) for every canary in the names and the bytes of files, packed ones unpacked."""
    for place in places:
        for path in sorted(place.rglob("*") if place.is_dir() else [place]):
            for found in canaries_in(str(path.relative_to(place.parent)).encode()):
                yield path.as_posix(), found
            if path.is_file():
                for found in canaries_in(_unpacked(path)):
                    yield path.as_posix(), found


def _unpacked(path: Path) -> bytes:
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        import gzip

        return data + gzip.decompress(data)
    if data[:4] == b"PK\x03\x04":
        import zipfile

        with zipfile.ZipFile(path) as archive:
            return data + b"".join(archive.read(name) for name in archive.namelist())
    if data[:4] == b"\x89PNG":
        from PIL import Image

        with Image.open(path) as picture:
            return data + repr(picture.info).encode()
    return data
