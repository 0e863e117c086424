"""Masks moved to another grid by nearest neighbour."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from pipeline.exchange.placing import MaskVolume, place, put_on
from pipeline.volumes import Grid, nine
from tests.exchange_store import OBLIQUE, TURNED


def grid_of(shape: tuple[int, int, int], spacing: tuple[float, float, float], direction: object) -> Grid:
    """Return a grid around one point of the world."""
    matrix = np.asarray(direction, dtype=float)
    x, y, z = np.array([-5.0, 4.0, 10.0]) - matrix @ ((np.array(shape[::-1]) - 1) / 2 * spacing)
    return Grid(shape_zyx=shape, spacing_xyz_mm=spacing, origin_xyz_mm=(x, y, z), direction=nine(matrix))


@pytest.mark.parametrize("direction", [np.eye(3), TURNED, OBLIQUE], ids=["same", "turned", "oblique"])
def test_every_voxel_has_the_value_of_the_nearest_one(direction: object) -> None:
    source = grid_of((5, 6, 7), (1.3, 1.7, 2.9), direction)
    target = replace(grid_of((8, 7, 6), (1.1, 1.6, 1.9), np.eye(3)), origin_xyz_mm=(-7.713, -0.816, 3.417))
    values = np.random.default_rng(0).integers(1, 9, source.shape_zyx).astype(np.uint8)
    found = put_on(values, source, target)
    inside = 0
    for z, y, x in product(*(range(n) for n in target.shape_zyx)):
        at = source.to_index(target.to_world(np.array([x, y, z], dtype=float)))
        i, j, k = np.floor(at + 0.5).astype(int)
        within = all(0 <= n < size for n, size in zip((k, j, i), source.shape_zyx, strict=True))
        assert found[z, y, x] == (values[k, j, i] if within else 0)
        inside += within
    assert inside > 100


def test_masks_on_the_stored_grid_itself_are_not_touched() -> None:
    grid = grid_of((5, 6, 7), (1.3, 1.7, 2.9), OBLIQUE)
    values = np.array([0, 3, 7, 299], np.uint16)[np.random.default_rng(1).integers(0, 4, grid.shape_zyx)]
    placed = place([MaskVolume(values=values, grid=grid, names={7: "seven"}, scores={7: 0.5})], grid)
    assert not placed.empty
    by_name = {mask.name: mask for mask in placed.masks}
    assert by_name["seven"].score == 0.5
    for value in np.unique(values[values > 0]):
        mask = by_name["seven" if value == 7 else str(value)]
        whole = np.zeros(grid.shape_zyx, dtype=np.bool_)
        whole[mask.box] = mask.voxels
        np.testing.assert_array_equal(whole, values == value)


def test_what_lies_outside_of_the_stored_grid_is_told_as_empty() -> None:
    grid = grid_of((5, 6, 7), (1.0, 1.0, 1.0), np.eye(3))
    far = Grid(
        shape_zyx=(2, 2, 2),
        spacing_xyz_mm=(1.0, 1.0, 1.0),
        origin_xyz_mm=(900.0, 0.0, 0.0),
        direction=grid.direction,
    )
    placed = place([MaskVolume(values=np.ones((2, 2, 2), np.uint8), grid=far, names={1: "far"})], grid)
    assert (placed.masks, placed.empty) == ((), ("far",))
