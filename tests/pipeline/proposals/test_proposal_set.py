from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.compute.backend import Backend, NoGpu, get_backend, gpu_is_at_hand
from pipeline.errors import ConfigError, NoProposals
from pipeline.proposals import proposal_set
from pipeline.proposals.config import ProposalConfig
from pipeline.proposals.proposal_set import ProposalSet
from pipeline.volumes.foreground import body_mask
from storage import ScanRecord
from tests.phantom import STRUCTURES
from tests.pipeline.drawn_proposals import (
    COARSE,
    CONFIG,
    FINE,
    best_iou,
    bytes_of,
    masks_of,
    patient,
    patient_proposals,
    proposals_of,
)
from tests.pipeline.drawn_regions import CPU, NUMPY

RNG_SPACING = (2.4, 0.9, 1.3)


@pytest.fixture(scope="module")
def proposals() -> ProposalSet:
    return patient_proposals()


@pytest.fixture(scope="module")
def masks(proposals: ProposalSet) -> NDArray[np.bool_]:
    return masks_of(proposals)


def body_with(*, rail: float | None = None, sphere: float | None = None) -> NDArray[np.int16]:
    """A round body of 40 HU in 36^3 voxels of 2 mm, with a rail below it or a sphere in it, in HU."""
    z, y, x = np.indices((36, 36, 36))
    distance = np.sqrt((z - 18) ** 2 + (y - 15) ** 2 + (x - 18) ** 2)
    image = np.where(distance < 12, 40.0, -1000.0) + np.random.default_rng(0).normal(0, 15, distance.shape)
    if sphere is not None:
        image[distance < 8] = sphere
    if rail is not None:
        image[:, 31:33, 16:18] = rail
    return np.rint(image).astype(np.int16)


def test_best_come_first(proposals: ProposalSet) -> None:
    assert len(proposals.table) == len(proposals.scores) == CONFIG.max_proposals
    assert proposals.scores[0] == 1
    assert (np.diff(proposals.scores) <= 0).all()
    assert (proposals.scores > 0).all()


def test_no_two_proposals_are_nearly_the_same(masks: NDArray[np.bool_]) -> None:
    flat = masks.reshape(len(masks), -1).astype(np.float32)
    both = flat @ flat.T
    sizes = both.diagonal()
    iou = both / (sizes[:, None] + sizes[None] - both)
    np.fill_diagonal(iou, 0)
    assert iou.max() <= CONFIG.duplicate_iou
    assert iou.max() > 0.8  # the limit is reached, so it is this limit that holds


@pytest.mark.parametrize("grid", [FINE, COARSE])
def test_the_minimum_is_a_volume_not_a_voxel_count(grid: tuple[Any, Any]) -> None:
    voxels = patient_proposals(grid=grid).table[:, 9]
    voxel_mm3 = float(np.prod(grid[1]))
    assert voxels.min() == np.ceil(CONFIG.min_volume_mm3 / voxel_mm3)


def test_the_largest_is_a_fraction_of_the_scan(proposals: ProposalSet) -> None:
    assert proposals.table[:, 9].max() <= CONFIG.max_volume_fraction * proposals.atoms[0].size


def test_boxes_and_voxels_are_exact(proposals: ProposalSet, masks: NDArray[np.bool_]) -> None:
    for row, mask in zip(proposals.table, masks, strict=True):
        places = np.argwhere(mask)
        assert row[3:].tolist()[:7] == [*places.min(axis=0), *(places.max(axis=0) + 1), len(places)]


@pytest.mark.parametrize("modality", ["ct", "mr"])
def test_the_structures_of_the_phantom_are_among_the_proposals(modality: str) -> None:
    masks, labels = masks_of(patient_proposals(modality=modality)), patient().labels
    found = {name: best_iou(masks, labels == value) for value, name in STRUCTURES.items()}
    assert min(found.values()) > 0.7, found


def test_few_proposals_reach_large_structures_already(masks: NDArray[np.bool_]) -> None:
    labels = patient().labels
    assert best_iou(masks[:100], labels == 1) > 0.7
    assert best_iou(masks[:100], labels == 3) > 0.7


@pytest.mark.parametrize("modality", ["ct", "mr"])
def test_the_same_scan_has_the_same_bytes_whatever_the_backend_and_the_threads(modality: str) -> None:
    options: dict[str, Any] = {"grid": COARSE, "modality": modality}
    first = bytes_of(patient_proposals(**options))
    assert bytes_of(patient_proposals(**options)) == first
    assert bytes_of(patient_proposals(**options, backend=replace(CPU, num_threads=2))) == first
    assert bytes_of(patient_proposals(**options, backend=NUMPY)) == first


@pytest.mark.parametrize("seed", range(3))
def test_noise_in_few_levels_has_the_same_bytes_on_numba_and_numpy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = (rng.integers(-1, 3, (15, 14, 18)) * 100).astype(np.int16)
    config = replace(CONFIG, min_volume_mm3=10.0)
    first, second = (
        bytes_of(proposals_of(image, RNG_SPACING, config=config, backend=backend)) for backend in (CPU, NUMPY)
    )
    assert first == second


def test_fewer_regions_and_atoms_than_there_are_still_give_sound_proposals() -> None:
    config = replace(CONFIG, max_regions=300, max_atoms=1000, max_voxel_leaves=1000)
    few = patient_proposals(grid=COARSE, config=config)
    assert few.orders[0].shape[1] <= 1000
    assert not any(name.startswith("voxels") for name in few.sources)
    as_record(few, COARSE)


def as_record(proposals: ProposalSet, grid: tuple[Any, Any]) -> ScanRecord:
    scan = patient(grid)
    return ScanRecord(
        scan_id="phantom",
        dataset="drawn",
        split="train",
        modality="ct",
        image=scan.image,
        scale=1.0,
        offset=0.0,
        spacing_zyx_mm=grid[1],
        labels=(),
        atoms=proposals.atoms,
        orders=proposals.orders,
        table=proposals.table,
        scores=proposals.scores,
        sources=proposals.sources,
        attributes={"intensity": {"low": -991.0, "high": 500.0, "mean": 0.0, "std": 1.0, "unit": "HU"}},
        digests={},
    )


def test_the_store_accepts_them(proposals: ProposalSet) -> None:
    record = as_record(proposals, FINE)
    assert record.table.shape == (CONFIG.max_proposals, 11)


def test_each_source_is_the_name_of_a_tree(proposals: ProposalSet) -> None:
    trees = {*CONFIG.trees, "components-bright", "components-dark"}
    assert {source.removesuffix("-rounded") for source in proposals.sources} <= trees
    assert len(proposals.sources) > 15
    np.testing.assert_array_equal(proposals.table[:, 10], proposals.table[:, 0])


def rounded(proposals: ProposalSet) -> NDArray[np.bool_]:
    """(N,) whether a proposal is a second, rounder one."""
    return np.array([proposals.sources[source].endswith("-rounded") for source in proposals.table[:, 10]])


def test_some_of_the_best_are_offered_again_rounder(proposals: ProposalSet) -> None:
    again = rounded(proposals)
    most = CONFIG.rounded_fraction * CONFIG.max_proposals
    assert 0 < again.sum() <= most
    assert proposals.scores[again].max() <= 0.5  # after those twice as good
    rows = {proposals.sources[source] for source in proposals.table[again, 10]}
    assert not any("components" in name for name in rows)  # level sets keep their outline
    assert not rounded(patient_proposals(config=replace(CONFIG, rounding=0.0))).any()


def test_what_is_offered_again_has_less_surface(proposals: ProposalSet, masks: NDArray[np.bool_]) -> None:
    def surface(mask: NDArray[np.bool_]) -> float:
        faces = sum(int((np.diff(mask.astype(np.int8), axis=axis) != 0).sum()) for axis in range(3))
        return faces / float(np.cbrt(mask.sum())) ** 2

    flat = masks.reshape(len(masks), -1)
    again = rounded(proposals)
    less = []
    for k in np.flatnonzero(again):
        both = (flat & flat[k]).sum(axis=1)
        shares = np.where(again, 0, both / (proposals.table[:, 9] + proposals.table[k, 9] - both))
        first = int(np.argmax(shares))  # most likely the one that it is the second of
        less.append(surface(masks[k]) < surface(masks[first]))
    assert np.mean(less) > 0.7


def test_what_is_beside_the_body_is_left_out() -> None:
    image = body_with(rail=250.0)
    rail = np.zeros(image.shape, bool)
    rail[:, 31:33, 16:18] = True
    spacing = (2.0, 2.0, 2.0)
    everything = masks_of(proposals_of(image, spacing, config=replace(CONFIG, min_body_fraction=0.0)))
    assert best_iou(everything, rail) > 0.8
    masks = masks_of(proposals_of(image, spacing))
    body = body_mask(image, spacing, threshold=CONFIG.body_threshold_hu, most=0.0)
    assert not body[rail].any()
    assert ((masks & body).sum(axis=(1, 2, 3)) >= 0.5 * masks.sum(axis=(1, 2, 3))).all()
    assert best_iou(masks, rail) < 0.2


def test_a_saturated_sphere_is_proposed_whole() -> None:
    image = body_with(sphere=2000.0)
    assert best_iou(masks_of(proposals_of(image, (2.0, 2.0, 2.0))), image > 1000) > 0.9


@pytest.mark.parametrize("modality", ["ct", "pet"])
@pytest.mark.parametrize("value", [-991, 0, 40])
def test_a_scan_without_structure_has_no_proposals(modality: str, value: int) -> None:
    with pytest.raises(NoProposals, match="too small or flat"):
        proposals_of(np.full((12, 14, 16), value), (2.0, 2.0, 2.0), modality=modality)


def test_a_scan_smaller_than_the_smallest_proposal_has_none() -> None:
    image = np.random.default_rng(0).integers(-100, 200, (4, 4, 4))
    with pytest.raises(NoProposals):
        proposals_of(image, (1.0, 1.0, 1.0))


def test_a_scan_of_a_single_slice_has_proposals() -> None:
    proposals = proposals_of(patient().image[18:19], FINE[1])
    assert len(proposals.table) > 10


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"trees": ("fine-contrst-0.7mm",)}, "trees: no tree is called 'fine-contrst-0.7mm'.*such as"),
        ({"trees": ("fine-contrast",)}, "did you mean 'fine-contrast-0.7mm'"),
        ({"trees": ("fine-contrast-3mm",)}, "needs the scale 3 in scales_mm"),
        ({"fine_scale_mm": 0.8}, "fine_scale_mm must be one of scales_mm, got 0.8"),
        ({"coarse_scale_mm": 9.0}, "coarse_scale_mm must be one of scales_mm, got 9"),
        ({"scales_mm": (2.2, 1.5, 1.0, 0.7)}, "scales_mm must be positive and rise"),
        ({"scales_mm": (-1.0, 0.7, 1.0, 1.5, 2.2)}, "scales_mm must be positive and rise"),
        ({"scales_mm": ()}, "must be one of scales_mm"),
        ({"ct_windows_hu": ((100.0, 100.0),)}, r"window must rise, got \[100, 100\]"),
        ({"percentile_windows": ((95.0, 5.0),)}, r"window must rise, got \[95, 5\]"),
        ({"ct_windows_hu": ()}, "at least one intensity window"),
        ({"max_atoms": 65_535}, "max_atoms must be 2..65534, got 65535"),
        ({"max_atoms": 1}, "max_atoms must be 2..65534, got 1"),
        ({"max_proposals": 0}, "max_proposals must be positive"),
        ({"max_regions": 1}, "max_regions must be above 1"),
        ({"duplicate_iou": 1.5}, "duplicate_iou must be in"),
        ({"max_volume_fraction": 0.0}, "max_volume_fraction must be in"),
        ({"rounding": 0.6}, "rounding must be in 0..0.5, got 0.6"),
        ({"rounded_fraction": 1.5}, "rounded_fraction must be in 0..1, got 1.5"),
        ({"max_rounding_sigma_mm": 0.0}, "max_rounding_sigma_mm must be positive, got 0"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_with_what_can(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        ProposalConfig(**changes)


def test_a_cpu_without_memory_does_not_try_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[str] = []

    def no_room(image: Any, calibrated: Any, config: ProposalConfig, backend: Backend) -> ProposalSet:
        tries.append(backend.name)
        raise MemoryError

    monkeypatch.setattr(proposal_set, "_propose", no_room)
    with pytest.raises(MemoryError):
        patient_proposals(grid=COARSE)
    assert tries == ["cpu"]


def test_auto_takes_the_gpu_where_one_is_at_hand() -> None:
    assert get_backend("auto").name == ("gpu" if gpu_is_at_hand() else "cpu")


def test_threads_are_those_that_the_worker_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_NUM_THREADS", "3")
    assert get_backend("cpu").num_threads == 3
    assert get_backend("cpu", num_threads=1).num_threads == 1


@pytest.mark.skipif(gpu_is_at_hand(), reason="there is a GPU")
def test_asking_for_a_gpu_where_there_is_none_says_what_to_do() -> None:
    with pytest.raises(NoGpu, match="--device cpu"):
        get_backend("gpu")
