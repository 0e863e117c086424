from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from pipeline.quality.intervals import proposal_mask
from pipeline.quality.scoring import score_scan
from pipeline.report.charts import Curve, bars, curves, histogram, scatter
from pipeline.report.montages import foreground
from pipeline.report.overview import InspectConfig, describe_scan, overview_scan, scan_facts
from pipeline.report.scan_pages import scan_page
from tests.pipeline.drawn_scan import DrawnLabel, drawn_scan
from tests.pipeline.report.markup import Markup, checked

SMALL = InspectConfig(plane_pixels=60, sheet_pixels=40, tile_pixels=40, examples=2)


def test_a_scan_page_is_whole_and_needs_no_network() -> None:
    scan = drawn_scan()
    report = describe_scan(scan, score_scan(scan), SMALL)
    text = scan_page(report)
    page = checked(text)
    shown = " ".join(page.words)
    assert "drawn_1" in shown
    assert "liver" in shown
    assert "speck (fewer than 27 voxels)" in shown
    assert len(page.images) == sum(1 + len(g.examples) for g in report.groups) + len(report.matches) + 2
    assert text == scan_page(describe_scan(scan, score_scan(scan), SMALL))


def test_a_scan_without_labels_has_a_page_too() -> None:
    scan = replace(drawn_scan(), labels=())
    page = checked(scan_page(describe_scan(scan, score_scan(scan), SMALL)))
    assert "This scan has no labels." in " ".join(page.words)
    checked(scan_page(describe_scan(scan, None, SMALL)))


def test_names_from_files_cannot_inject_markup() -> None:
    scan = drawn_scan()
    hostile = '<script>alert("x")</script>'
    label = DrawnLabel(name="l", array=scan.labels[0].array, value_names={1: hostile, 2: "a&b"})
    scan = replace(scan, dataset=hostile, labels=(label,), sources=(hostile, "b", "c"))
    text = scan_page(describe_scan(scan, score_scan(scan), SMALL))
    checked(text)
    assert "<script>alert" not in text


def test_what_ingest_found_out_is_shown() -> None:
    attributes = {
        "location": "a/b.nii.gz",
        "modality_origin": "guess: air below -900",
        "intensity": {"low": -991.0, "high": 500.0, "mean": -210.0, "std": 400.0, "unit": "HU"},
        "source_grid": {"shape_zyx": [20, 512, 512], "spacing_xyz_mm": [0.7, 0.8, 5.0]},
        "facts": {"maker": "ACME"},
        "notes": ["cropped 3 labelled voxels", "uneven slices"],
    }
    facts = dict(scan_facts(replace(drawn_scan(), attributes=attributes)))
    assert facts["modality"] == "CT, known by guess: air below -900"
    assert facts["source grid"] == "20 × 512 × 512 voxels of 5 × 0.8 × 0.7 mm"
    assert facts["intensity"] == "-991 to 500 HU; mean -210, standard deviation 400"
    assert facts["acquisition"] == "maker: ACME"
    assert facts["notes"] == "cropped 3 labelled voxels; uneven slices"
    assert "notes" not in dict(scan_facts(drawn_scan()))


def test_shares_of_the_body_by_coverage_sum_to_one() -> None:
    report = describe_scan(drawn_scan(), None, SMALL)
    assert sum(share for _, share in report.coverage_shares) == pytest.approx(1)
    assert report.overview.covered_fraction == 1
    assert sum(group.num_proposals for group in report.groups) == report.overview.num_proposals


def test_proposals_in_the_air_around_the_body_are_counted() -> None:
    scan = drawn_scan()
    assert overview_scan(scan, None, SMALL).outside_fraction == pytest.approx(
        np.mean(
            [
                (proposal_mask(scan, k) & foreground(scan)).sum() < 0.1 * n
                for k, n in enumerate(scan.table[:, 9])
            ]
        )
    )


def test_when_structures_are_many_the_worst_are_still_shown() -> None:
    scan = drawn_scan()
    report = describe_scan(scan, score_scan(scan), replace(SMALL, structures=2))
    assert [match.score.name for match in report.matches] == ["liver", "node"]


def test_structures_are_spread_over_the_ranking_from_the_best_to_the_worst() -> None:
    scan = drawn_scan()
    label = scan.labels[0]
    x = np.indices(label.array.shape)[2]
    parts = np.where(label.array == 1, 1 + (x % 5), 0).astype(np.uint8)
    names = {value: f"part {value}" for value in range(1, 6)}
    scan = replace(scan, labels=(replace(label, array=parts, value_names=names),))
    score = score_scan(scan)
    assert len(score.structures) == 5
    report = describe_scan(scan, score, replace(SMALL, structures=3))
    shown = [match.score.iou[-1] for match in report.matches]
    every = sorted((entry.iou[-1] for entry in score.structures), reverse=True)
    assert shown == [every[0], every[2], every[4]]
    text = scan_page(report)
    checked(text)
    assert "3 of 5 structures, spread over the ranking" in text


def test_slic_is_drawn_beside_the_proposals_where_it_was_scored() -> None:
    scan = drawn_scan()
    for slic in (False, True):
        text = scan_page(describe_scan(scan, score_scan(scan, slic=slic), SMALL))
        checked(text)
        assert ("mean best IoU, flat SLIC" in text) == slic


def test_small_numbers_are_short() -> None:
    assert "5e-05" in histogram(np.array([5e-5, 5e-5]), label="tiny")


def test_a_histogram_counts_every_value_once() -> None:
    chart = histogram(
        np.array([0.01, 0.1, 1.0, 10.0, 10.0]), label="sizes", bins=3, logarithmic=True, unit="mL"
    )
    assert [int(n) for n in re.findall(r" mL: (\d+)<", chart)] == [1, 1, 3]
    assert "nothing to show" in histogram(np.array([]), label="none")
    assert histogram(np.full(4, 2.0), label="one value").count("<rect") == 30


def test_charts_are_markup_that_parses() -> None:
    Markup(bars(["a<b", "c"], [1.0, 0.0], label="two & two"))
    Markup(curves(["1", "2"], [Curve(name="x>y", values=(0.1, 1.0), dashed=True)], label="c"))
    Markup(scatter(["x", "y"], [0.5, 20.0], [0.1, 1.0], label="s", unit="mL"))
    assert "nothing to show" in scatter([], [], [], label="none")
