from __future__ import annotations

import numpy as np
import pytest

from pipeline.hierarchies.merging import merge_weakest_consuming
from pipeline.hierarchies.region_graphs import region_graph
from pipeline.hierarchies.region_totals import region_sums
from tests.pipeline.drawn_regions import CPU, random_evidence, random_regions

SHAPE = (8, 9, 10)


@pytest.mark.parametrize("kept", ["all but one", "two thirds", "half", "two fifths", "few", "one"])
def test_so_many_regions_are_left_and_they_are_unions_of_the_old_in_scan_order(kept: str) -> None:
    labels, graph, sums = random_regions(3, SHAPE)
    count = graph.num_regions
    most = {
        "all but one": count - 1,
        "two thirds": 2 * count // 3,
        "half": count // 2,
        "two fifths": 2 * count // 5,
        "few": 3,
        "one": 1,
    }[kept]
    assert count > 20
    new_region, joined, totals = merge_weakest_consuming(graph, sums, most, CPU)
    left = int(new_region.max()) + 1
    assert 1 <= left <= most
    assert left == most or count > 2 * most  # of far too many, nearest neighbours may be fewer
    merged = new_region[labels]
    _, first = np.unique(merged, return_index=True)
    assert (np.diff(first) > 0).all()
    windows = [volume * 8 for volume in random_evidence(1003, SHAPE)]
    expected = region_sums(merged, left, windows, CPU)
    np.testing.assert_array_equal(totals.voxels, expected.voxels)
    np.testing.assert_array_equal(totals.levels, expected.levels)
    anew = region_graph(merged, left, random_evidence(3, SHAPE), CPU)
    assert joined.num_regions == left
    for ours, theirs in ((joined.pairs, anew.pairs), (joined.faces, anew.faces), (joined.sums, anew.sums)):
        np.testing.assert_array_equal(ours, theirs)
