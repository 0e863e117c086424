"""PET from activity (Bq/ml) to SUV by body weight, where the header allows it.

*Reads*: tags of dose, times and weight of a PET series, never kept. *Writes*: the factor from stored real
values to SUV, and a note for the user. Neither weight nor dose nor times of a patient are in the texts.

    SUV = activity * weight * 1000 / dose          1 g of tissue is taken as 1 ml

    Units  DecayCorrection   dose
    GML    -                 the values are SUV already (SUVType BW, or not said)
    BQML   ADMIN             as injected
    BQML   START             decayed from the injection to the start of the scan
    CNTS   as BQML           Philips: values times (7053,1009) are Bq/ml; or times (7053,1000) are SUV

as in the pseudo-code of the Quantitative Imaging Biomarkers Alliance (QIBA, "SUV vendor-neutral"). The start
of the scan is the earlier of series time and earliest acquisition time. Otherwise the values stay as they
are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pydicom

from pipeline.errors import CorruptImage
from pipeline.formats import DAMAGED, find_number, find_text, first_item, os_error, quiet_pydicom

_TAGS: list[Any] = [
    "Units",
    "SUVType",
    "DecayCorrection",
    "CorrectedImage",
    "PatientWeight",
    "SeriesDate",
    "SeriesTime",
    "AcquisitionDate",
    "AcquisitionTime",
    "RadiopharmaceuticalInformationSequence",
    (0x7053, 0x1000),
    (0x7053, 0x1009),
]

_WEIGHT_KG = (0.01, 500.0)
"""Range of plausible weights, from a mouse on."""

_DOSE_BQ = (1e4, 1e11)
"""Range of plausible doses in Bq; some exports write MBq."""

_LONG_HALF_LIFE_SECONDS = 12 * 3600.0
"""From this half-life on, the injection may be days ago: then a time without a date is not enough."""


@dataclass(frozen=True, kw_only=True)
class PetScale:
    """Factor from the values of a PET series to SUV.

    Attributes:
        factor: SUV, or Bq/ml, per stored real value.
        unit: "SUV", "Bq/ml" or "arbitrary".
        note: What was done, or why it is no SUV.
    """

    factor: float
    unit: str
    note: str


class _NoSuvError(Exception):
    """The header does not allow SUV; the text says what is missing."""


def pet_scale(paths: Sequence[Path], shown: str) -> PetScale:
    """Return the factor from the values of a PET series to SUV, from the headers of its files.

    Args:
        paths: All slices, or the multi-frame file.
        shown: Name of the scan in error messages.

    Raises:
        UnreadableFile: A file cannot be read.
        CorruptImage: The tags of a file are damaged.
    """
    try:
        with quiet_pydicom():
            return _scale([_read(path) for path in paths])
    except OSError as error:
        raise os_error(error, shown=shown) from None
    except DAMAGED:  # pydicom parses a tag when it is asked for
        raise CorruptImage(
            "the header of the PET is damaged", path=shown, remedy="Copy or export the series again"
        ) from None


def _scale(headers: Sequence[Any]) -> PetScale:
    """Return the factor to SUV, from the header of each file."""
    first = headers[0]
    units = find_text(first, "Units").upper()
    if units == "GML":
        kind = find_text(first, "SUVType").upper()
        if kind in ("", "BW"):
            return PetScale(factor=1.0, unit="SUV", note="PET in SUV (body weight), as the header says")
        return PetScale(
            factor=1.0, unit="arbitrary", note=f"PET in SUV of another kind ({kind[:8]}), kept as it is"
        )
    becquerel = 1.0
    if units == "CNTS":
        direct, becquerel = _philips(first, 0x1000), _philips(first, 0x1009)
        if direct:
            return PetScale(
                factor=direct, unit="SUV", note="PET turned into SUV (body weight) by Philips' own factor"
            )
        if not becquerel:
            note = "PET stays in counts, no SUV: Philips' factors (7053,1000) and (7053,1009) are missing"
            return PetScale(factor=1.0, unit="arbitrary", note=note)
    elif units != "BQML":
        return PetScale(
            factor=1.0,
            unit="arbitrary",
            note=f"PET stays as it is, no SUV: its unit is {units[:8] or 'missing'}, not BQML",
        )
    try:
        per_becquerel, how = _factor(headers)
    except _NoSuvError as why:
        return PetScale(factor=becquerel, unit="Bq/ml", note=f"PET stays in Bq/ml, no SUV: {why}")
    return PetScale(
        factor=becquerel * per_becquerel,
        unit="SUV",
        note=f"PET turned from Bq/ml into SUV (body weight), {how}",
    )


def _read(path: Path) -> Any:
    return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS), force=True)


def _philips(data: Any, element: int) -> float:
    """Return a private factor of Philips, or 0 if it is missing or impossible."""
    found = data.get((0x7053, element))
    value: Any = None if found is None else found.value
    if isinstance(value, bytes):  # stored without its type
        value = value.decode("ascii", "replace").strip(" \0")
    try:
        number = float(value)
    except (TypeError, ValueError):
        return 0.0
    return number if math.isfinite(number) and number > 0 else 0.0


def _factor(headers: Sequence[Any]) -> tuple[float, str]:
    """Return SUV per Bq/ml, and the decay correction in words.

    Raises:
        _NoSuvError: Something is missing or impossible.
    """
    first = headers[0]
    corrected = str(first.get("CorrectedImage") or "").upper()
    if corrected and "ATTN" not in corrected:
        raise _NoSuvError("the image is not corrected for attenuation")
    weight = _within(find_number(first, "PatientWeight"), _WEIGHT_KG, "the patient's weight")
    drug = first_item(first, "RadiopharmaceuticalInformationSequence")
    if drug is None:
        raise _NoSuvError("nothing is said about the injected dose")
    dose = _within(find_number(drug, "RadionuclideTotalDose"), _DOSE_BQ, "the injected dose in Bq")
    correction = find_text(first, "DecayCorrection").upper()
    if correction == "ADMIN":
        return weight * 1000 / dose, "decay corrected to the injection"
    if correction != "START":
        raise _NoSuvError(f"its decay correction is {correction[:8] or 'missing'}, not START or ADMIN")
    half_life = _within(find_number(drug, "RadionuclideHalfLife"), (1.0, 1e8), "the half-life")
    seconds, how = _seconds_between(drug, headers, half_life)
    return weight * 1000 / (
        dose * 2 ** (-seconds / half_life)
    ), f"decay corrected to the start of the scan{how}"


def _within(value: float | None, limits: tuple[float, float], what: str) -> float:
    if value is None:
        raise _NoSuvError(f"{what} is missing")
    if not limits[0] <= value <= limits[1]:
        raise _NoSuvError(f"{what} cannot be true")
    return value


def _seconds_between(drug: Any, headers: Sequence[Any], half_life: float) -> tuple[float, str]:
    """Return the seconds from injection to the start of the scan, and a remark."""
    starts = [_at(headers[0], "SeriesDate", "SeriesTime")]
    starts += [_at(header, "AcquisitionDate", "AcquisitionTime") for header in headers]
    known = [start for start in starts if start is not None]
    if not known:
        raise _NoSuvError("the start of the scan is missing")
    scan = min(known)
    full = find_text(drug, "RadiopharmaceuticalStartDateTime")
    injected = _moment(full[:8], full[8:])
    if injected is not None and 0 <= (scan - injected).total_seconds() <= 10 * half_life:
        return (scan - injected).total_seconds(), ""
    clock = find_text(drug, "RadiopharmaceuticalStartTime") or full[8:]
    of_day = _moment(f"{scan:%Y%m%d}", clock)
    if of_day is None:
        raise _NoSuvError("the time of the injection is missing")
    if half_life >= _LONG_HALF_LIFE_SECONDS:
        raise _NoSuvError("the date of the injection is missing or not before the scan")
    if of_day > scan:  # before midnight
        of_day -= timedelta(days=1)
    seconds = (scan - of_day).total_seconds()
    if seconds > 10 * half_life:
        raise _NoSuvError("the injection is not shortly before the scan")
    wrong_date = "; the date of the injection is not before the scan, its clock time was used"
    return seconds, "" if injected is None else wrong_date


def _at(data: Any, date: str, time: str) -> datetime | None:
    return _moment(find_text(data, date), find_text(data, time))


def _moment(day: str, clock: str) -> datetime | None:
    """Return the moment of a DICOM date, YYYYMMDD, and time, HHMMSS.FFFFFF; None if either is none."""
    date = re.match(r"(\d{4})\D?(\d{2})\D?(\d{2})", day)
    time = re.match(r"(\d{2})(\d{2})?(\d{2})?(\.\d+)?", clock.replace(":", ""))
    if date is None or time is None:
        return None
    hours, minutes, seconds, fraction = (float(part or 0) for part in time.groups())
    try:
        start = datetime.strptime("".join(date.groups()), "%Y%m%d").replace(tzinfo=UTC)
    except ValueError:
        return None
    return start + timedelta(hours=hours, minutes=minutes, seconds=seconds + fraction)
