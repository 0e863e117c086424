"""Proposals of other methods in our form: size limits, orders of taking, bytes, none at all."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.mask_methods import code_digest, flat, methods, ranked, with_proposals, with_segments
from benchmarks.quality_cells import drawn_scan, score
from pipeline.proposals.config import ProposalConfig
from pipeline.quality.intervals import proposal_mask

LIMITS = ProposalConfig(min_volume_mm3=100.0, max_volume_fraction=0.6)


@pytest.fixture(scope="module")
def segments() -> list[np.ndarray]:
    """Two halves, one of them beyond the limit; then columns, some below it."""
    halves = np.zeros((24, 24, 24), np.int64)
    halves[15:] = 1
    columns = np.zeros((24, 24, 24), np.int64)
    columns[:, :6, :6], columns[:, 6:12, :6], columns[:3, :3, 20:22] = 1, 2, 3
    return [halves, columns]


def test_segments_within_the_limits_are_the_masks(segments):
    made = with_segments(drawn_scan(), segments, LIMITS)
    masks = [proposal_mask(made, row) for row in range(len(made.table))]
    wanted = [segments[0] == 1, segments[1] == 1, segments[1] == 2]
    assert len(masks) == len(wanted)  # 0 of both fills more than 0.6, 3 of the columns has 61 mm3
    assert all((mask == want).all() for mask, want in zip(masks, wanted, strict=True))
    assert made.table[:, 10].tolist() == [0, 1, 1]


def test_the_store_takes_them_and_bytes_grow_with_layers(segments):
    one, two = (with_segments(drawn_scan(), some, LIMITS) for some in (segments[:1], segments))
    assert 0 < one.stored_bytes() < two.stored_bytes()
    assert drawn_scan().stored_bytes() == 0


def test_coarse_first_takes_a_scale_after_the_other_and_even_takes_turns():
    scale_of = np.repeat([0, 1, 2], [3, 10, 40])
    coarse, even = (ranked(scale_of, name) for name in ("coarse first", "even"))
    assert sorted(coarse) == sorted(even) == list(range(53))
    assert scale_of[coarse].tolist() == sorted(scale_of)
    assert scale_of[even][:12].tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 1, 2, 1]


def test_the_first_masks_of_a_scale_lie_all_over_it():
    rows = ranked(np.zeros(1000, np.int64), "coarse first")[:100]
    assert np.histogram(rows, bins=4, range=(0, 1000))[0].min() > 10


def test_both_orders_hold_the_same_masks(segments):
    made = flat(lambda scan: iter(segments), LIMITS)(drawn_scan())
    tables = [sorted(map(tuple, masked.table.tolist())) for masked in made.rankings.values()]
    assert tables[0] == tables[1]
    assert len(tables[0]) == 3


def test_a_scan_without_any_region_scores_nothing_and_is_no_error():
    scan = drawn_scan()
    flat_scan = replace(scan, image=np.full_like(scan.image, 7))
    scored = score(with_proposals(flat_scan, replace(LIMITS, trees=(), component_percentiles=())))
    assert scored.num_proposals == 0
    assert [s.iou for s in scored.structures] == [(0.0,) * 6]


def test_the_limit_of_the_atoms_is_the_best_layers():
    scan = drawn_scan()
    ball = scan.labels[0].array.astype(np.int64)
    noise = np.arange(ball.size).reshape(ball.shape) % 2
    limits = [
        score(with_segments(scan, layers, LIMITS)).structures[0].limit_iou
        for layers in ([noise], [noise, ball], [ball, noise])
    ]
    assert limits[0] < 0.5
    assert limits[1:] == [1.0, 1.0]


def test_every_method_finds_the_ball():
    scan = drawn_scan()
    for name in ("watershed", "components", "felzenszwalb"):
        made = methods()[name].make(scan)
        for masked in made.rankings.values():
            assert score(masked).structures[0].iou[-1] > 0.5, name
            assert masked.stored_bytes() > 0


def test_the_digest_of_code_sees_code_and_not_comments(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "some_code_of_a_test.py"
    digests = []
    for text in ("a = 1\n", "a = 1  # told\n", "a = 2\n"):
        file.write_text(text)
        digests.append(code_digest("some_code_of_a_test"))
    assert digests[0] == digests[1] != digests[2]
    assert code_digest("pipeline.proposals.proposal_set") != code_digest("pipeline.quality.slic_baseline")
