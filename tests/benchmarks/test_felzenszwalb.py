"""The graph segmentation: drawn blocks, and the paper's rule word for word on a few voxels."""

from __future__ import annotations

import itertools

import numpy as np

from benchmarks.felzenszwalb import FelzenszwalbConfig, felzenszwalb_scales

NO_BLUR = FelzenszwalbConfig(scales=(3.0, 0.4), sigma_voxels=0.0)


def by_the_book(image: np.ndarray, k: float, min_voxels: int) -> np.ndarray:
    """Algorithm 1 of the paper with sets and lists, and its merging of small components."""
    steps = (image.astype(np.float32) - float(image.min())) / float(image.max() - image.min())
    owner = {place: {place} for place in np.ndindex(image.shape)}
    inside = {id(members): 0.0 for members in owner.values()}
    edges = []
    for number, place in enumerate(np.ndindex(image.shape)):
        for axis in range(3):
            other = tuple(p + (d == axis) for d, p in enumerate(place))
            if other in owner:
                weight = int(float(abs(steps[other] - steps[place])) * 65535)
                edges.append((weight, 3 * number + axis, place, other))
    for joins_small, (weight, _, place, other) in itertools.product((False, True), sorted(edges)):
        a, b = owner[place], owner[other]
        if a is b:
            continue
        if joins_small:
            wanted = min(len(a), len(b)) < min_voxels
        else:
            wanted = all(weight / 65535 <= inside[id(c)] + k / len(c) for c in (a, b))
        if wanted:
            a |= b
            inside[id(a)] = weight / 65535
            owner.update(dict.fromkeys(b, a))
    numbers: dict[int, int] = {}
    return np.array(
        [numbers.setdefault(id(owner[p]), len(numbers)) for p in np.ndindex(image.shape)]
    ).reshape(image.shape)


def test_it_is_the_rule_of_the_paper():
    rng = np.random.default_rng(1)
    several = 0
    for _ in range(5):
        image = (rng.integers(0, 40, (5, 4, 6)) + 200 * (np.indices((5, 4, 6))[2] > 2)).astype(np.int16)
        for k, labels in zip(
            NO_BLUR.scales, felzenszwalb_scales(image, min_voxels=3, config=NO_BLUR), strict=True
        ):
            assert (labels == by_the_book(image, k, 3)).all()
            several += 2 < labels.max() + 1 < image.size / 3
    assert several  # neither one segment nor all voxels


def test_a_block_in_noise_is_one_segment():
    block = np.zeros((12, 14, 16), bool)
    block[3:9, 4:10, 5:12] = True
    image = (1000 * block + np.random.default_rng(0).normal(0, 5, block.shape)).astype(np.int16)
    (labels,) = felzenszwalb_scales(
        image, min_voxels=10, config=FelzenszwalbConfig(scales=(1.0,), sigma_voxels=0.0)
    )
    assert (labels[block] == labels[6, 7, 8]).all()
    assert (labels[~block] != labels[6, 7, 8]).all()


def test_no_segment_is_smaller_than_asked_for():
    image = np.random.default_rng(0).integers(0, 1000, (10, 11, 12)).astype(np.int16)
    for least in (1, 7):
        (labels,) = felzenszwalb_scales(
            image, min_voxels=least, config=FelzenszwalbConfig(scales=(0.05,), sigma_voxels=0.0)
        )
        assert (np.bincount(labels.ravel()).min() < 7) == (least == 1)
