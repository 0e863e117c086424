"""Masks carried over by registration: to a structure elsewhere, to a bent one, to where there is none."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scipy import ndimage

from training.inference import registration
from training.inference.poses import Pose
from training.inference.prompts import Reference, Structure
from training.inference.refinement import sharpen, vote
from training.inference.registration import _Answer, _by_consensus, _mean, carry, carry_structures


def scene(
    seed: int,
    middle: tuple[int, int, int],
    shape=(18, 40, 44),
    bend: float = 0.0,
):
    """An organ of two parts with a texture around it, in noise of its own; bent by smooth moves."""
    generator = np.random.default_rng(seed)
    places = np.indices(shape).astype(float)
    if bend:
        moves = generator.normal(size=(3, *shape))
        moves = np.stack([ndimage.gaussian_filter(move, 6) for move in moves])
        places = places + bend * moves / np.abs(moves).max()
    z, y, x = (place - centre for place, centre in zip(places, middle, strict=True))
    shell = (z / 4) ** 2 + (y / 7) ** 2 + (x / 6) ** 2
    around = np.sin(y / 3.0) * np.cos(x / 4.0) * (shell < 3)
    labels = np.where(shell < 0.35, 2, np.where(shell < 1, 1, 0)).astype(np.uint16)
    image = around + 2.0 * (labels == 2) - 1.5 * (labels == 1)
    noise = ndimage.gaussian_filter(generator.normal(size=shape), 1.0)
    return (image + 0.5 * noise / noise.std()).astype(np.float32), labels


def lobed(seed: int, middle: tuple[int, int, int], turn: float = 0.0, size: float = 1.0):
    """Two blocks of different brightness side by side in noise: how they are turned is plain to see."""
    generator = np.random.default_rng(seed)
    z, y, x = (place - centre for place, centre in zip(np.indices((18, 42, 46)), middle, strict=True))
    angle = np.radians(turn)
    y, x = (np.cos(angle) * y + np.sin(angle) * x) / size, (np.cos(angle) * x - np.sin(angle) * y) / size
    inside = (abs(z / size) < 5) & (abs(y) < 5)
    labels = np.where(inside & (x > 0) & (x < 13), 1, np.where(inside & (x <= 0) & (x > -9), 2, 0))
    noise = ndimage.gaussian_filter(generator.normal(size=labels.shape), 1.0)
    image = (
        ndimage.gaussian_filter(2.0 * (labels == 1) - 2.0 * (labels == 2), 0.7) + 0.3 * noise / noise.std()
    )
    return image.astype(np.float32), labels.astype(np.uint16)


def masks_of(labels):
    return np.stack([labels == 1, labels == 2])


def dice(first, second) -> float:
    return 2 * float((first & second).sum()) / float(first.sum() + second.sum())


@pytest.mark.parametrize("middle", [(8, 12, 32), (10, 29, 11)])
def test_structures_are_found_where_they_lie_and_as_they_are_bent(middle) -> None:
    image, labels = scene(0, (9, 20, 22))
    target, expected = scene(1, middle, bend=1.8)
    carried = carry(image, masks_of(labels), target)
    assert carried.probabilities.shape == (2, *target.shape)
    assert carried.probabilities.min() >= 0
    assert carried.probabilities.max() <= 1 + 1e-6
    for found, there in zip(carried.probabilities >= 0.5, masks_of(expected), strict=True):
        assert dice(found, there) > 0.75
    assert carried.agreement > 0.7


@pytest.mark.usefixtures("quick_registration")
def test_a_target_of_another_size_is_answered_on_its_own_grid() -> None:
    image, labels = scene(0, (9, 20, 22))
    target, expected = scene(2, (7, 15, 10), shape=(14, 30, 54))
    carried = carry(image, masks_of(labels), target)
    assert dice((carried.probabilities >= 0.5).any(axis=0), expected > 0) > 0.8


@pytest.mark.usefixtures("quick_registration")
def test_a_target_that_shows_a_slab_only_is_found_in_the_reference() -> None:
    image, labels = scene(0, (9, 20, 22))
    image = np.concatenate([image, scene(6, (9, 22, 20))[0]])  # two organs, the upper one without labels
    labels = np.concatenate([labels, np.zeros_like(labels)])
    slab = slice(5, 11)  # half of the organ, in fewer slices than it has
    carried = carry(image, masks_of(labels), np.ascontiguousarray(image[slab]))
    for found, there in zip(carried.probabilities >= 0.5, masks_of(labels[slab]), strict=True):
        assert dice(found, there) > 0.9


@pytest.mark.usefixtures("quick_registration")
def test_where_something_else_sees_the_structures_is_tried_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.inference.poses.NUM_PEAKS", 0)
    monkeypatch.setattr(registration, "turned", lambda *arguments: [])
    image, labels = scene(0, (9, 20, 22))
    target, expected = scene(1, (8, 12, 32), bend=1.8)
    seen = np.where(expected > 0, 0.6, 0.05).astype(np.float32)
    alone = carry(image, masks_of(labels), target)
    led = carry(image, masks_of(labels), target, seen=seen)
    assert dice((led.probabilities >= 0.5).any(axis=0), expected > 0) > 0.8
    assert led.agreement > alone.agreement + 0.1
    # What is seen is not where the masks come to lie: two spots, between whose middle there is the structure.
    spots = np.zeros_like(target)
    spots[6:10, 2:6, 22:26] = spots[6:10, 18:22, 38:42] = 1.0
    np.testing.assert_array_equal(
        carry(image, masks_of(labels), target, seen=spots).probabilities, alone.probabilities
    )
    nothing = carry(image, masks_of(labels), target, seen=np.zeros_like(target))
    np.testing.assert_array_equal(nothing.probabilities, alone.probabilities)


@pytest.mark.usefixtures("quick_registration")
def test_large_windows_are_bent_at_a_coarser_resolution(monkeypatch: pytest.MonkeyPatch) -> None:
    image, labels = scene(0, (9, 20, 22))
    target, expected = scene(1, (8, 12, 32), bend=1.8)
    sizes = []
    shrink = registration._coarse

    def noted(volume, factor, sigma):
        small = shrink(volume, factor, sigma)
        sizes.append(max(small.GetSize()))
        return small

    monkeypatch.setattr(registration, "_coarse", noted)
    monkeypatch.setattr(registration, "turned", lambda *arguments: [])
    monkeypatch.setattr(registration, "WINDOW_MARGIN", 0.9)  # wide enough to be made coarser
    fine = carry(image, masks_of(labels), target)
    finest = max(sizes)
    sizes.clear()
    monkeypatch.setattr(registration, "MAX_BENT_VOXELS", 2_500)
    coarse = carry(image, masks_of(labels), target)
    assert max(sizes) < finest
    assert dice((coarse.probabilities >= 0.5).any(axis=0), expected > 0) > 0.75
    assert fine.agreement > 0.7


@pytest.mark.usefixtures("quick_registration")
@pytest.mark.parametrize(("turn", "size"), [(60.0, 1.0), (-40.0, 1.25), (90.0, 1.0)])
def test_a_turned_structure_of_another_size_is_found(
    turn: float, size: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, labels = lobed(0, (9, 21, 22))
    target, expected = lobed(1, (9, 19, 25), turn=turn, size=size)
    carried = carry(image, masks_of(labels), target)
    monkeypatch.setattr(registration, "turned", lambda *arguments: [])
    as_it_is = carry(image, masks_of(labels), target)
    found, before = (
        [dice(part >= 0.5, there) for part, there in zip(one.probabilities, masks_of(expected), strict=True)]
        for one in (carried, as_it_is)
    )
    assert min(found) > 0.7
    assert np.mean(found) > np.mean(before) + 0.05
    assert carried.agreement > as_it_is.agreement


@pytest.mark.usefixtures("quick_registration")
def test_agreement_tells_a_target_that_lacks_the_structure() -> None:
    image, labels = scene(0, (9, 20, 22))
    there, _ = scene(3, (9, 16, 26))
    noise = ndimage.gaussian_filter(np.random.default_rng(4).normal(size=there.shape), 1.5)
    lacking = (noise / noise.std()).astype(np.float32)
    masks = masks_of(labels)
    assert carry(image, masks, there).agreement > carry(image, masks, lacking).agreement + 0.2


@pytest.mark.usefixtures("quick_registration")
def test_an_empty_mask_and_a_flat_target_are_answered_with_nothing_to_trust() -> None:
    image, labels = scene(0, (9, 20, 22))
    empty = carry(image, np.zeros((1, *image.shape), bool), image)
    assert not empty.probabilities.any()
    assert empty.agreement == 0
    assert carry(image, masks_of(labels), np.zeros_like(image)).agreement == 0


@pytest.mark.usefixtures("quick_registration")
def test_scans_of_few_slices_are_moved_only() -> None:
    image, labels = scene(0, (2, 20, 22), shape=(5, 40, 44))
    target, expected = scene(1, (2, 15, 27), shape=(5, 40, 44))
    found = carry(image, masks_of(labels), target).probabilities >= 0.5
    assert dice(found.any(axis=0), expected > 0) > 0.7


@pytest.mark.usefixtures("quick_registration")
def test_the_same_input_gives_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    image, labels = scene(0, (9, 20, 22))
    target, _ = scene(1, (9, 15, 29), bend=1.5)
    poses = registration.turned
    monkeypatch.setattr(registration, "turned", lambda *arguments: poses(*arguments)[:1])
    once, again = (carry(image, masks_of(labels), target) for _ in range(2))
    assert once.probabilities.tobytes() == again.probabilities.tobytes()
    assert once.agreement == again.agreement


@pytest.mark.usefixtures("quick_registration")
def test_of_several_references_each_counts_for_what_it_shows() -> None:
    first, labels = scene(0, (9, 20, 22))
    second, others = scene(5, (9, 21, 19), bend=1.2)
    target, expected = scene(1, (9, 15, 29), bend=1.5)
    structures = [Structure(name="shell", values=(1,)), Structure(name="core", values=(2,))]
    only_core = Reference(image=second, labels=np.where(others == 2, others, 0).astype(np.uint16))
    shown, steps = Reference(image=first, labels=labels), []
    carried = carry_structures(
        [shown, only_core], structures, target, progress=lambda done, total: steps.append((done, total))
    )
    alone = carry_structures([shown], structures, target)
    assert steps == [(0, 2), (1, 2), (2, 2)]
    assert dice(carried.probabilities[0] >= 0.5, alone.probabilities[0] >= 0.5) > 0.9
    assert (carried.probabilities[1] != alone.probabilities[1]).any()
    assert dice(carried.probabilities[1] >= 0.5, expected == 2) > 0.7


@pytest.mark.usefixtures("quick_registration")
def test_one_reference_is_its_own_answer() -> None:
    image, labels = scene(0, (9, 20, 22))
    target, _ = scene(1, (9, 16, 26))
    structures = [Structure(name="shell", values=(1,)), Structure(name="core", values=(2,))]
    found = carry_structures([Reference(image=image, labels=labels)], structures, target)
    alone = carry(image, np.stack([labels == 1, labels == 2]), target)
    expected = sharpen(vote(alone.probabilities, alone.warped, target), target)
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-5)


def answer(start: int, weight: float = 1.0, shown: tuple[bool, bool] = (True, True)) -> _Answer:
    """Two cubes side by side that begin at a place, in a volume of 4 x 12 x 12."""
    masks = np.zeros((2, 4, 12, 12), np.float32)
    masks[0, 1:3, start : start + 4, 2:5] = shown[0]
    masks[1, 1:3, start : start + 4, 6:9] = 0.8 * shown[1]
    return _Answer.of(masks, np.array(shown), weight)


def test_of_several_answers_one_that_is_elsewhere_counts_less() -> None:
    answers = [answer(2), answer(2), answer(3), answer(8)]
    weights = [one.weight for one in _by_consensus(answers, (4, 12, 12))]
    assert weights[0] == weights[1] == 1.0
    assert 0.4 < weights[2] < 0.7, "three quarters of it lie where the others are"
    assert weights[3] < 1e-6
    before, after = _mean(answers, (4, 12, 12)), _mean(_by_consensus(answers, (4, 12, 12)), (4, 12, 12))
    assert before[0, 1, 9, 3] == pytest.approx(0.25)
    assert after[0, 1, 9, 3] < 1e-6
    assert after[0, 1, 4, 3] == pytest.approx(1.0)
    assert after[1, 1, 4, 7] == pytest.approx(0.8)


def test_answers_that_all_disagree_count_as_they_did() -> None:
    answers = [answer(0, 1e-3), answer(4, 1e-3), answer(8, 1e-3)]
    weighted = _by_consensus(answers, (4, 12, 12))
    assert [one.weight for one in weighted] == [1e-3] * 3
    assert _mean(weighted, (4, 12, 12))[0, 1, 5, 3] == pytest.approx(1 / 3)


def test_a_reference_is_judged_by_what_it_shows_only() -> None:
    answers = [answer(2), answer(2), answer(2, shown=(True, False)), answer(2, 0.5, shown=(False, False))]
    weighted = _by_consensus(answers, (4, 12, 12))
    assert [one.weight for one in weighted[:3]] == [1.0, 1.0, 1.0]
    assert _mean(weighted, (4, 12, 12))[1, 1, 3, 7] == pytest.approx(0.8), "not thinned by who lacks it"
    assert _by_consensus(answers[:1], (4, 12, 12)) == answers[:1]


@pytest.mark.parametrize("num_references", [1, 3])
def test_memory_holds_two_volumes_of_the_target_per_structure(
    num_references: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The images lie on each other already; one volume more is left for all that is of one structure."""
    shape, side = (36, 60, 60), 8
    image = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=shape), 2).astype(np.float32)
    labels = np.zeros(shape, np.uint8)
    for k in range(24):
        z, y, x = (k // 16) * 12 + 6, (k // 4 % 4) * 12 + 6, (k % 4) * 12 + 6
        labels[z : z + side, y : y + side, x : x + side] = k + 1
    structures = [Structure(name=str(k), values=(k,)) for k in range(1, 25)]
    pose = Pose.moved((0, 0, 0))
    monkeypatch.setattr(registration, "places", lambda *_: [pose])
    monkeypatch.setattr(registration, "turned", lambda *_: [])
    monkeypatch.setattr(registration, "_bent", lambda fixed, moving, start, *_: start)
    references = [Reference(image=image, labels=labels)] * num_references
    tracemalloc.start()
    try:
        found = carry_structures(references, structures, image)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (found.probabilities >= 0.5).any(axis=(1, 2, 3)).all()
    assert peak < 3 * found.probabilities.nbytes
