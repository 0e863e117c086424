from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.compute import slabs
from pipeline.compute.backend import Backend, get_backend
from pipeline.hierarchies.boundaries import Levels, boundary_evidence, smooth, window_levels
from pipeline.hierarchies.minhash import leaf_sketches
from pipeline.hierarchies.region_totals import region_sums
from pipeline.hierarchies.supervoxels import basins, join_lowest_pass_in_place
from tests.pipeline.drawn_proposals import COARSE, bytes_of, patient_proposals
from tests.pipeline.drawn_regions import CPU, NUMPY

SHAPE = (23, 9, 11)
SPACING = (2.4, 0.8, 1.1)
WINDOWS = ((-100.0, 300.0), (0.0, 80.0))
THREADS = get_backend("cpu", num_threads=3)


@pytest.fixture(autouse=True)
def _thin_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slabs, "_LEAST_PLANES", 2)
    monkeypatch.setattr(slabs, "_SLAB_VOXELS", 2 * SHAPE[1] * SHAPE[2])


def levels_of(codes: np.ndarray[Any, np.dtype[np.int16]], backend: Backend) -> Levels:
    return Levels(
        codes=codes, scale=1.0, offset=-100.0, windows=WINDOWS, spacing_zyx_mm=SPACING, backend=backend
    )


@pytest.fixture
def codes() -> np.ndarray[Any, np.dtype[np.int16]]:
    return np.random.default_rng(0).integers(0, 400, SHAPE).astype(np.int16)


@pytest.mark.parametrize("num_threads", [1, 2, 5, 40])
@pytest.mark.parametrize("depth", [1, 2, 3, 23])
def test_slabs_hold_every_plane_once_and_in_order(depth: int, num_threads: int) -> None:
    found = slabs.slabs_of((depth, 9, 11), num_threads)
    assert [plane for start, stop in found for plane in range(start, stop)] == list(range(depth))


def test_a_scan_without_voxels_has_no_slabs() -> None:
    assert slabs.slabs_of((0, 4, 5), 2) == []


@pytest.mark.parametrize("backend", [CPU, THREADS, NUMPY], ids=["one thread", "three", "numpy"])
def test_evidence_made_slab_by_slab_is_that_of_the_whole_scan(backend: Backend, codes: Any) -> None:
    volumes = [
        window_levels(codes, scale=1.0, offset=-100.0, window=window, backend=NUMPY) for window in WINDOWS
    ]
    found = levels_of(codes, backend).evidence((0.7, 1.0, 4.0))
    for k, sigma in enumerate((0.7, 1.0, 4.0)):
        whole = boundary_evidence(volumes, sigma_mm=sigma, spacing_zyx_mm=SPACING, backend=NUMPY)
        np.testing.assert_array_equal(found[k], whole)
    assert found.dtype == np.uint16
    sigma_zyx = (0.7 / 2.4, 0.7 / 0.8, 0.7 / 1.1)
    whole = smooth(volumes[1], (0.45, *sigma_zyx[1:]), NUMPY)
    thresholds = np.array([800, 2000, 2001, 7000])
    expected = (whole[..., None] > thresholds).sum(axis=-1).astype(np.uint8)
    assert 0 < expected.mean() < 4
    found = levels_of(codes, backend).exceeded(1, 0.7, thresholds)
    np.testing.assert_array_equal(found, expected, strict=True)


def test_evidence_that_16_bits_do_not_hold_takes_32() -> None:
    codes = np.zeros((3, 4, 5), np.int16)
    codes[:, :, 2:] = 400
    levels = Levels(
        codes=codes,
        scale=1.0,
        offset=0.0,
        windows=(WINDOWS[0],) * 80,
        spacing_zyx_mm=(1.0, 1.0, 1.0),
        backend=CPU,
    )
    evidence = levels.evidence((0.1,))
    assert evidence.dtype == np.int32
    assert evidence.max() < 1 << 17


@pytest.mark.parametrize("num_values", [2, 4, 400])
def test_supervoxels_and_their_sums_do_not_depend_on_slabs_and_threads(num_values: int) -> None:
    rng = np.random.default_rng(num_values)
    evidence, ties = (rng.integers(0, num_values, SHAPE).astype(np.uint16) for _ in range(2))
    volumes = [rng.integers(0, 8184, SHAPE).astype(np.int16) for _ in range(2)]
    expected, num_basins = basins(evidence, NUMPY, ties)
    joined = expected.copy()
    num_joined = join_lowest_pass_in_place(joined, num_basins, evidence, NUMPY)
    sums = region_sums(joined, num_joined, volumes, NUMPY)
    sketches = leaf_sketches(joined, num_joined)
    for backend in (CPU, THREADS):
        labels, count = basins(evidence, backend, ties)
        np.testing.assert_array_equal(labels, expected, strict=True)
        assert count == num_basins
        count = join_lowest_pass_in_place(labels, count, evidence, backend)
        np.testing.assert_array_equal(labels, joined, strict=True)
        found = region_sums(labels, count, volumes, backend)
        for name in ("voxels", "levels", "coordinates"):
            np.testing.assert_array_equal(getattr(found, name), getattr(sums, name), name, strict=True)
        np.testing.assert_array_equal(leaf_sketches(labels, count, backend), sketches)


def test_proposals_are_the_same_bytes_in_thin_slabs_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    in_turn = bytes_of(patient_proposals(grid=COARSE, modality="ct", backend=THREADS))
    monkeypatch.undo()
    assert bytes_of(patient_proposals(grid=COARSE, modality="ct", backend=CPU)) == in_turn
    monkeypatch.setattr("pipeline.proposals.proposal_set._SIDE_BY_SIDE_VOXELS", 0)
    assert bytes_of(patient_proposals(grid=COARSE, modality="ct", backend=THREADS)) == in_turn


@pytest.mark.parametrize("num_threads", [1, 3])
def test_each_item_is_worked_on_once_and_an_error_comes_back(num_threads: int) -> None:
    seen: list[int] = []
    slabs.for_each(seen.append, range(20), num_threads)
    assert sorted(seen) == list(range(20))
    with pytest.raises(ZeroDivisionError):
        slabs.for_each(lambda n: 1 // n, range(3), num_threads)
