"""CuPy gives what NumPy gives, to the bit (on a machine with a GPU: pytest -m gpu).

Without a GPU its path runs on a stand-in (`strict_cupy`), which refuses what CuPy would.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.compute import slabs
from pipeline.compute.backend import Backend, get_backend, gpu_is_at_hand
from pipeline.hierarchies.boundaries import boundary_evidence, smooth, window_levels
from pipeline.hierarchies.components import component_tree, connected_components
from pipeline.hierarchies.minhash import leaf_sketches
from pipeline.hierarchies.region_graphs import merge_graph_consuming, region_graph
from pipeline.hierarchies.region_totals import count_inside, region_sums
from pipeline.hierarchies.supervoxels import basins, join_lowest_pass_in_place, number_in_scan_order
from pipeline.proposals import splitting as pieces
from pipeline.proposals.outlines import Outlines, paint_smoothed, region_boxes
from pipeline.proposals.refinement import measure
from tests.pipeline import host_cuda, strict_cupy
from tests.pipeline.drawn_proposals import COARSE, CONFIG, bytes_of, patient_proposals
from tests.pipeline.drawn_regions import CPU, NUMPY


def on_gpu(test: Callable[..., None]) -> Callable[..., None]:
    """Runs on a machine with a GPU only."""
    skipped = pytest.mark.skipif(not gpu_is_at_hand(), reason="no CUDA device that CuPy can use")(test)
    return pytest.mark.gpu(skipped)


needs_compiler = pytest.mark.skipif(not host_cuda.COMPILER, reason="no C++ compiler for the CUDA kernels")

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
    graph = region_graph(labels, count, evidence, backend)
    sums = region_sums(labels, count, levels, backend)
    halves = (np.arange(count) // 2).astype(np.int32)
    copied = replace(graph)  # what is merged is empty afterwards
    merged = merge_graph_consuming(copied, halves, count // 2 + 1, backend).on_host(backend)
    assert not any(len(getattr(copied, name)) for name in ("pairs", "faces", "sums", "lows"))
    joined = labels.copy()
    num_joined = join_lowest_pass_in_place(joined, count, evidence[0], backend)
    graph = graph.on_host(backend)
    thresholds = np.array([1000, 3000, 6000], np.int32)
    limits = {"min_voxels": 2, "max_voxels": codes.size}
    trees = [
        component_tree(levels[0], thresholds, side=side, backend=backend, **limits)  # type: ignore[arg-type]
        for side in ("bright", "dark")
    ]
    whole = connected_components(levels[0] >= 0, backend)[0]
    inside = levels[0] > 3000
    on_device = {
        "levels": levels[0],
        "smoothed": smooth(levels[0], (0.5, 1.0, 2.3), backend),
        "evidence": evidence,
        "labels": labels,
        "joined": joined,
        "components": connected_components(inside, backend)[0],
        "one component": whole,
    }
    if backend.name != "cpu":  # of the array module only
        on_device["numbered"] = number_in_scan_order(levels[1], backend)[0]
    on_host = {
        **{f"graph.{name}": getattr(graph, name) for name in ("pairs", "faces", "sums", "lows")},
        **{f"merged.{name}": getattr(merged, name) for name in ("pairs", "faces", "sums", "lows")},
        **{f"sums.{name}": getattr(sums, name) for name in ("voxels", "levels", "coordinates")},
        **{f"tree {k}": backend.to_host(tree.zones) for k, tree in enumerate(trees)},
        "sketches": leaf_sketches(labels, count, backend),
        "counted": count_inside(labels, inside, count, backend),
        "counted everywhere": count_inside(labels, None, count, backend),
        "number joined": np.array(num_joined),
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


@needs_compiler
@pytest.mark.parametrize("shape", SHAPES)
def test_the_gpus_path_mixes_no_arrays_of_host_and_device(
    shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    strict_cupy.install(monkeypatch)
    assert_as_numpy(Backend(name="gpu"), shape, 4)


CONFIGS = {
    "usual": CONFIG,
    "slivers absorbed": replace(CONFIG, max_atoms=400),
    "wide blurs": replace(CONFIG, outline_smoothing=0.5, max_outline_sigma_mm=20.0),
}


@needs_compiler
def test_slabs_leave_no_trace_on_the_gpus_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slabs, "_SLAB_VOXELS", 1)  # three of 24 planes and fewer
    strict_cupy.install(monkeypatch)
    assert_as_numpy(Backend(name="gpu"), (60, 9, 10), 400)


@needs_compiler
@pytest.mark.parametrize("case", CONFIGS)
@pytest.mark.parametrize("modality", ["ct", "mr"])
def test_proposals_come_out_of_the_gpus_path_as_from_any_other(
    modality: str, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = {"grid": COARSE, "modality": modality, "config": CONFIGS[case]}
    expected = bytes_of(patient_proposals(**drawn))
    strict_cupy.install(monkeypatch)
    assert bytes_of(patient_proposals(**drawn, backend=Backend(name="gpu"))) == expected


def outlines_of(sigma_voxels: float, backend: Backend) -> NDArray[np.uint16]:
    """Two nested blobs and one beside them, blurred, in a volume whose edges cut blocks and blobs."""
    places = np.stack(np.meshgrid(*(np.arange(n) for n in (31, 40, 37)), indexing="ij"), axis=-1)
    labels = np.zeros(places.shape[:3], np.int32)
    for label, (centre, radius) in enumerate([((12, 14, 8), 11.5), ((10, 12, 9), 6.3), ((25, 33, 30), 9.0)]):
        labels[np.linalg.norm(places - centre, axis=-1) < radius] = label + 1
    innermost = np.array([0, 1, 2, 3], np.uint16)
    _, leaf_boxes = measure(labels, 4)
    parent, last = np.array([-1, 0, -1]), np.array([1, 1, 2])
    boxes = region_boxes(leaf_boxes, innermost, parent)
    on_device = backend.to_device(labels)
    sigmas, ways = np.full(3, sigma_voxels), Outlines(fraction=0.1, max_sigma_voxels=9.0)
    out = paint_smoothed(on_device, innermost, parent, last, sigmas, boxes, ways, backend)
    return np.asarray(backend.to_host(out))


SIGMAS = [0.2, 0.5, 0.8, 1.4, 1.6, 2.5, 3.7, 6.1, 9.0]
"""Blocks of 1 to 7 voxels, and blurs so wide that a region stays as it is."""


@needs_compiler
@pytest.mark.parametrize("sigma", SIGMAS)
def test_outlines_of_any_width_are_the_same(sigma: float, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = outlines_of(sigma, CPU)
    strict_cupy.install(monkeypatch)
    np.testing.assert_array_equal(outlines_of(sigma, Backend(name="gpu")), expected, strict=True)


@on_gpu
@pytest.mark.parametrize("sigma", SIGMAS)
def test_outlines_of_any_width_are_the_same_on_a_gpu(sigma: float) -> None:
    np.testing.assert_array_equal(
        outlines_of(sigma, get_backend("gpu")), outlines_of(sigma, CPU), strict=True
    )


@on_gpu
@pytest.mark.parametrize("num_values", [2, 4, 400])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_kernel_of_cupy_equals_numpys_to_the_bit(shape: tuple[int, int, int], num_values: int) -> None:
    assert_as_numpy(get_backend("gpu"), shape, num_values)


@on_gpu
@pytest.mark.parametrize("case", CONFIGS)
@pytest.mark.parametrize("modality", ["ct", "mr"])
def test_proposals_made_on_a_gpu_are_the_same_bytes(modality: str, case: str) -> None:
    made = [
        bytes_of(patient_proposals(grid=COARSE, modality=modality, config=CONFIGS[case], backend=backend))
        for backend in (get_backend("gpu"), CPU)
    ]
    assert made[0] == made[1]


@needs_compiler
def test_a_scan_too_large_for_the_gpu_is_done_by_the_cpu(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = bytes_of(patient_proposals(grid=COARSE))
    strict_cupy.install(monkeypatch)
    freed: list[bool] = []
    monkeypatch.setattr(strict_cupy.Pool, "free_all_blocks", lambda _: freed.append(True))

    def no_room(atoms: Any, volume: Any, backend: Backend) -> Any:
        raise MemoryError("Out of memory allocating 1,000,000 bytes")

    monkeypatch.setattr(pieces, "_intersect_in_place_on_gpu", no_room)
    made = patient_proposals(grid=COARSE, backend=Backend(name="gpu"))
    assert bytes_of(made) == expected
    assert freed
    assert "the GPU has not enough memory for 16,224 voxels" in caplog.text
