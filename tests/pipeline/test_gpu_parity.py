"""CuPy gives what NumPy gives, to the bit (on a machine with a GPU: pytest -m gpu).

Without a GPU its path runs on a stand-in (`strict_cupy`), which refuses what CuPy would.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.backend import Backend, get_backend, gpu_is_at_hand
from pipeline.components import component_tree, connected_components
from pipeline.gradient import boundary_evidence, smooth, window_levels
from pipeline.regions import region_graph, region_sums
from pipeline.supervoxels import basins, number_in_scan_order
from tests.pipeline import strict_cupy
from tests.pipeline.drawn_proposals import COARSE, bytes_of, patient_proposals
from tests.pipeline.drawn_regions import CPU, NUMPY

SHAPES = [(9, 10, 11), (1, 7, 20), (24, 25, 26)]


def kernel_results(backend: Backend, shape: tuple[int, int, int], num_values: int) -> dict[str, NDArray[Any]]:
    """What every kernel gives for noise of so many values (few: plateaus and ties), brought to the host."""
    rng = np.random.default_rng(num_values)
    codes = backend.to_device((rng.integers(0, num_values, shape) * (400 // num_values)).astype(np.int16))
    spacing = (2.4, 0.8, 1.1)
    levels = [
        window_levels(codes, scale=1.0, offset=-100.0, window=window, backend=backend)
        for window in ((-100.0, 300.0), (0.0, 80.0))
    ]
    evidence = backend.xp.empty((2, *shape), dtype=backend.xp.int32)
    for k, sigma in enumerate((0.7, 2.0)):
        evidence[k] = boundary_evidence(levels, sigma_mm=sigma, spacing_zyx_mm=spacing, backend=backend)
    labels, count = basins(evidence[0], backend)
    graph, sums = region_graph(labels, count, evidence, backend), region_sums(labels, count, levels, backend)
    thresholds = np.array([1000, 3000, 6000], np.int32)
    limits = {"min_voxels": 2, "max_voxels": codes.size}
    trees = [
        component_tree(levels[0], thresholds, side=side, backend=backend, **limits)  # type: ignore[arg-type]
        for side in ("bright", "dark")
    ]
    whole = connected_components(levels[0] >= 0, backend)[0]
    on_device = {
        "levels": levels[0],
        "smoothed": smooth(levels[0], (0.5, 1.0, 2.3), backend),
        "evidence": evidence,
        "labels": labels,
        "components": connected_components(levels[0] > 3000, backend)[0],
        "one component": whole,
    }
    if backend.name != "cpu":  # of the array module only
        on_device["numbered"] = number_in_scan_order(levels[1], backend)[0]
    on_host = {
        **{f"graph.{name}": getattr(graph, name) for name in ("pairs", "faces", "sums", "lows")},
        **{f"sums.{name}": getattr(sums, name) for name in ("voxels", "levels", "places")},
        **{f"tree {k}": tree.zones for k, tree in enumerate(trees)},
    }
    return on_host | {name: backend.to_host(array) for name, array in on_device.items()}


def assert_as_numpy(backend: Backend, shape: tuple[int, int, int], num_values: int) -> None:
    expected = kernel_results(NUMPY, shape, num_values)
    for name, array in kernel_results(backend, shape, num_values).items():
        np.testing.assert_array_equal(array, expected[name], name, strict=True)


@pytest.mark.parametrize("num_values", [2, 4, 400])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_kernel_of_numba_equals_numpys_to_the_bit(shape: tuple[int, int, int], num_values: int) -> None:
    assert_as_numpy(CPU, shape, num_values)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_gpus_path_mixes_no_arrays_of_host_and_device(
    shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    strict_cupy.install(monkeypatch)
    assert_as_numpy(Backend(name="gpu"), shape, 4)


@pytest.mark.parametrize("modality", ["ct", "mr"])
def test_proposals_come_out_of_the_gpus_path_as_from_any_other(
    modality: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = bytes_of(patient_proposals(grid=COARSE, modality=modality))
    strict_cupy.install(monkeypatch)
    made = patient_proposals(grid=COARSE, modality=modality, backend=Backend(name="gpu"))
    assert bytes_of(made) == expected


@pytest.mark.gpu
@pytest.mark.skipif(not gpu_is_at_hand(), reason="no CUDA device that CuPy can use")
@pytest.mark.parametrize("num_values", [2, 4, 400])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_kernel_of_cupy_equals_numpys_to_the_bit(shape: tuple[int, int, int], num_values: int) -> None:
    assert_as_numpy(get_backend("gpu"), shape, num_values)


@pytest.mark.gpu
@pytest.mark.skipif(not gpu_is_at_hand(), reason="no CUDA device that CuPy can use")
@pytest.mark.parametrize("modality", ["ct", "mr"])
def test_proposals_made_on_a_gpu_are_the_same_bytes(modality: str) -> None:
    made = [
        bytes_of(patient_proposals(grid=COARSE, modality=modality, backend=backend))
        for backend in (get_backend("gpu"), CPU)
    ]
    assert made[0] == made[1]
