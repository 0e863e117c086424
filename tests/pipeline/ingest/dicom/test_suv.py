"""PET in SUV by body weight: each way a header can say it, and each reason why it cannot be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.config import disable_value_validation

from pipeline.discovery import discover, source_digest
from pipeline.ingest import IngestConfig, RawScan, read_source, standardize
from tests.dicom_files import item
from tests.phantom import Phantom, phantom, write_dicom

SCAN = phantom(shape_zyx=(8, 20, 24), spacing_zyx_mm=(9.0, 3.6, 3.9), modality="pet")
HALF_LIFE, DOSE, WEIGHT = 6586.2, 3.5e8, 70.0
HOUR_LATER = 2 ** (-3600 / HALF_LIFE)
BEFORE_MIDNIGHT = {"RadiopharmaceuticalStartTime": "231000"}
SUV_PER_BQ = WEIGHT * 1000 / DOSE


def write_pet(folder: Path, *, drug: dict[str, Any] | None = None, **tags: Any) -> Phantom:
    """A PET whose tracer was injected an hour before its first acquisition."""
    told = {
        "RadionuclideTotalDose": DOSE,
        "RadionuclideHalfLife": HALF_LIFE,
        "RadiopharmaceuticalStartTime": "110000",
    } | (drug or {})
    header = {
        "Units": "BQML",
        "DecayCorrection": "START",
        "CorrectedImage": ["DECY", "ATTN"],
        "PatientWeight": WEIGHT,
        "SeriesDate": "20200101",
        "SeriesTime": "120000",
        "AcquisitionDate": "20200101",
        "AcquisitionTime": "120000.000000",
    }
    with disable_value_validation():
        known = item(**{k: v for k, v in told.items() if v is not None})
    header |= {"RadiopharmaceuticalInformationSequence": [known]} | tags
    with disable_value_validation():
        write_dicom(folder, SCAN, slope=(1.0, 0.0), tags={k: v for k, v in header.items() if v is not None})
    return SCAN


def read(folder: Path, config: IngestConfig | None = None) -> RawScan:
    config = config or IngestConfig()
    (source,) = discover(folder, config.series_rules).sources
    return read_source(source, config)


def factor(raw: RawScan) -> float:
    bright = SCAN.image > 500
    ratio = raw.image[bright] / SCAN.image[bright]
    assert np.ptp(ratio) < 1e-5 * ratio.mean()
    return float(ratio.mean())


@pytest.mark.parametrize(
    ("tags", "drug", "expected"),
    [
        ({}, {}, SUV_PER_BQ / HOUR_LATER),
        ({"DecayCorrection": "ADMIN"}, {}, SUV_PER_BQ),
        ({"SeriesTime": "123000"}, {}, SUV_PER_BQ / HOUR_LATER),
        ({}, {"RadiopharmaceuticalStartDateTime": "20200101110000.00"}, SUV_PER_BQ / HOUR_LATER),
        ({}, {"RadiopharmaceuticalStartDateTime": "20200101103000+0000"}, SUV_PER_BQ / HOUR_LATER**1.5),
        (
            {"SeriesTime": "001000", "AcquisitionTime": "001000"},
            {"RadiopharmaceuticalStartTime": "231000"},
            None,
        ),
    ],
)
def test_activity_becomes_suv_by_the_dose_at_the_time_that_it_is_corrected_to(
    tmp_path: Path, tags: dict, drug: dict, expected: float | None
) -> None:
    write_pet(tmp_path, drug=drug, **tags)
    raw = read(tmp_path)
    assert factor(raw) == pytest.approx(expected or SUV_PER_BQ / HOUR_LATER, rel=1e-5)
    assert raw.unit == "SUV"
    scan = standardize(raw, IngestConfig())
    assert scan.intensity.unit == "SUV"
    assert scan.notes[0].startswith("PET turned from Bq/ml into SUV (body weight), decay corrected to the")


def test_a_wrong_date_of_the_injection_is_noted_and_its_clock_time_used(tmp_path: Path) -> None:
    write_pet(tmp_path, drug={"RadiopharmaceuticalStartDateTime": "20200102110000.00"})
    raw = read(tmp_path)
    assert factor(raw) == pytest.approx(SUV_PER_BQ / HOUR_LATER, rel=1e-5)
    assert "the date of the injection is not before the scan" in raw.notes[0]


def test_the_earliest_acquisition_of_all_slices_is_the_start(tmp_path: Path) -> None:
    write_pet(tmp_path, SeriesTime="150000", AcquisitionTime="143000")
    path = sorted(tmp_path.glob("*.dcm"))[3]
    data = pydicom.dcmread(path)
    data.AcquisitionTime = "120000"
    data.save_as(path)
    assert factor(read(tmp_path)) == pytest.approx(SUV_PER_BQ / HOUR_LATER, rel=1e-5)


@pytest.mark.parametrize(
    ("tags", "drug", "why"),
    [
        ({"PatientWeight": None}, {}, "the patient's weight is missing"),
        ({"PatientWeight": 0}, {}, "the patient's weight cannot be true"),
        ({"RadiopharmaceuticalInformationSequence": None}, {}, "nothing is said about the injected dose"),
        ({}, {"RadionuclideTotalDose": None}, "the injected dose in Bq is missing"),
        ({}, {"RadionuclideTotalDose": 350}, "the injected dose in Bq cannot be true"),
        ({}, {"RadionuclideHalfLife": None}, "the half-life is missing"),
        ({}, {"RadiopharmaceuticalStartTime": None}, "the time of the injection is missing"),
        ({}, {"RadiopharmaceuticalStartTime": "1Z"}, "the time of the injection is missing"),
        ({}, {"RadiopharmaceuticalStartTime": "130000"}, "the injection is not shortly before the scan"),
        ({}, {"RadionuclideHalfLife": 282240.0}, "the date of the injection is missing"),
        ({"DecayCorrection": "NONE"}, {}, "decay correction is NONE"),
        ({"DecayCorrection": None}, {}, "decay correction is missing"),
        ({"CorrectedImage": ["DECY"]}, {}, "not corrected for attenuation"),
        (dict.fromkeys(("SeriesTime", "AcquisitionTime")), {}, "the start of the scan is missing"),
        (
            dict.fromkeys(("SeriesDate", "AcquisitionDate"), "20209901"),
            {},
            "the start of the scan is missing",
        ),
    ],
)
def test_without_what_it_takes_it_stays_in_becquerel_and_the_note_says_why(
    tmp_path: Path, tags: dict, drug: dict, why: str
) -> None:
    write_pet(tmp_path, drug=drug, **tags)
    raw = read(tmp_path)
    assert factor(raw) == 1
    assert raw.unit == "Bq/ml"
    assert raw.notes[0].startswith("PET stays in Bq/ml, no SUV: ")
    assert why in raw.notes[0]


@pytest.mark.parametrize(
    ("tags", "unit", "note"),
    [
        ({"Units": "GML"}, "SUV", "as the header says"),
        ({"Units": "GML", "SUVType": "BW"}, "SUV", "as the header says"),
        ({"Units": "GML", "SUVType": "LBM"}, "arbitrary", "another kind (LBM)"),
        ({"Units": "PROPCPS"}, "arbitrary", "its unit is PROPCPS"),
        ({"Units": None}, "arbitrary", "its unit is missing"),
        ({"Units": "CNTS"}, "arbitrary", "Philips' factors (7053,1000) and (7053,1009) are missing"),
    ],
)
def test_other_units_keep_their_values(tmp_path: Path, tags: dict, unit: str, note: str) -> None:
    write_pet(tmp_path, **tags)
    raw = read(tmp_path)
    assert (factor(raw), raw.unit) == (1, unit)
    assert note in raw.notes[0]


@pytest.mark.parametrize("vr", ["DS", "UN"])
@pytest.mark.parametrize(("element", "expected"), [(0x1000, 0.25), (0x1009, 0.25 * SUV_PER_BQ / HOUR_LATER)])
def test_philips_counts_are_scaled_by_its_private_factors(
    tmp_path: Path, vr: str, element: int, expected: float
) -> None:
    write_pet(tmp_path, Units="CNTS")
    for path in tmp_path.glob("*.dcm"):
        data = pydicom.dcmread(path)
        data.add_new((0x7053, 0x0010), "LO", "Philips PET Private Group")
        data.add_new((0x7053, element), vr, "0.25" if vr == "DS" else b"0.25")
        data.save_as(path)
    raw = read(tmp_path)
    assert factor(raw) == pytest.approx(expected, rel=1e-5)
    assert raw.unit == "SUV"


def test_stored_units_can_be_kept(tmp_path: Path) -> None:
    write_pet(tmp_path)
    config = IngestConfig(pet_unit="stored")
    raw = read(tmp_path, config)
    assert factor(raw) == 1
    assert raw.notes == ()
    assert standardize(raw, config).intensity.unit == "Bq/ml"


def test_no_fact_about_the_patient_reaches_what_is_stored(tmp_path: Path) -> None:
    write_pet(tmp_path, PatientWeight=71.375)
    raw = read(tmp_path)
    shown = repr((raw.notes, raw.facts, raw.unit))
    assert "71" not in shown
    assert "350000000" not in shown


def test_only_pet_has_another_digest_than_before_there_was_suv(tmp_path: Path) -> None:
    write_pet(tmp_path / "pet")
    write_dicom(tmp_path / "ct", phantom(shape_zyx=(8, 20, 24)), series_uid="1.2.5", patient_id="other")
    sources = discover(tmp_path, IngestConfig().series_rules).sources
    assert {s.scan_id: s.later_rules for s in sources} == {"ct": (), "pet": ("suv",)}
    ct, pet = (replace(s, later_rules=()) for s in sources)
    assert source_digest(ct) == source_digest(sources[0])
    assert source_digest(pet) != source_digest(sources[1])
