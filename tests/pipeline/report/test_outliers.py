from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.report.outliers import find_unusual, small_groups
from pipeline.report.rows import ScanRow


def a_row(number: int, **changes: object) -> ScanRow:
    rng = np.random.default_rng(number)
    row = ScanRow(
        scan_id=f"scan_{number:02}",
        dataset="heads",
        modality="mr",
        split="",
        case="",
        shape_zyx=(100 + number % 3, 100, 100),
        spacing_zyx_mm=(1.5, 1.5, 1.5),
        num_proposals=2000,
        num_labels=0,
        source_spacing_mm=(1.0, 1.0, 1.0),
        mean=100 + float(rng.normal(0, 5)),
        std=40 + float(rng.normal(0, 2)),
        num_atoms=30_000,
        covered=0.98 + 0.001 * (number % 5),
        outside=0.02,
    )
    return replace(row, **changes)


def reasons(rows: list[ScanRow]) -> dict[str, tuple[str, ...]]:
    return {one.scan_id: one.reasons for one in find_unusual(rows)}


ROWS = [a_row(number) for number in range(12)]


def test_scans_that_are_alike_are_not_unusual() -> None:
    assert reasons(ROWS) == {}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"source_spacing_mm": (1.0, 1.0, 5.0)}, "largest voxel edge of the file: 5 mm, usually 1 mm"),
        ({"shape_zyx": (20, 100, 100)}, "height: 30 mm, usually 151 mm"),
        ({"mean": 900.0}, "mean intensity: 900, usually"),
        ({"std": 4000.0}, "spread of intensities: 4e+03, usually"),
        ({"num_proposals": 500}, "number of proposals: 500, usually 2,000"),
        ({"covered": 0.6}, "part of the body covered: 60%, usually 98%"),
        ({"outside": 0.2}, "proposals outside the body: 20%, usually 2%"),
    ],
)
def test_a_scan_unlike_its_data_set_is_named_with_the_reason(changes: dict[str, object], reason: str) -> None:
    found = reasons([*ROWS, a_row(12, **changes)])
    assert list(found) == ["scan_12"]
    assert found["scan_12"][0].startswith(reason)


def test_a_low_score_is_unusual_and_a_high_one_is_not() -> None:
    rows = [replace(row, mean_iou=0.5) for row in ROWS]
    assert list(reasons([*rows, a_row(12, mean_iou=0.2)])) == ["scan_12"]
    assert reasons([*rows, a_row(12, mean_iou=0.9)]) == {}


def test_scans_are_compared_within_their_data_set_and_modality_only() -> None:
    others = [
        a_row(number, scan_id=f"ct_{number}", modality="ct", mean=-500.0 - number, std=450.0)
        for number in range(6)
    ]
    assert reasons([*ROWS, *others]) == {}


def test_a_data_set_of_few_scans_is_held_to_bounds_only() -> None:
    few = [
        a_row(0),
        a_row(1),
        a_row(2, source_spacing_mm=(1.0, 1.0, 9.0)),
        a_row(3, num_proposals=7, outside=0.6),
    ]
    found = reasons(few)
    assert list(found) == ["scan_03"]
    assert found["scan_03"] == ("only 7 proposals", "60% of the proposals outside the body")
    assert small_groups(few) == ["heads (MR)"]
    assert small_groups(ROWS) == []


def test_a_wide_data_set_has_wide_bounds() -> None:
    spread = [a_row(number, mean=float(100 * number)) for number in range(12)]
    assert reasons(spread) == {}


def test_the_most_unusual_comes_first_and_what_is_unknown_is_no_reason() -> None:
    rows = [replace(row, covered=None, std=None, mean=None) for row in ROWS]
    found = find_unusual([*rows, a_row(12, num_proposals=900), a_row(13, num_proposals=150)])
    assert [one.scan_id for one in found] == ["scan_13", "scan_12"]
    assert found[0].severity > found[1].severity > 1
