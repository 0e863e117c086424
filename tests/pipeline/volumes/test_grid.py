from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.volumes.grid import Grid
from pipeline.volumes.resampling import resample_image, resample_labels

GRID = Grid(
    shape_zyx=(4, 5, 6),
    spacing_xyz_mm=(1.0, 1.5, 3.0),
    origin_xyz_mm=(10.0, -20.0, 30.0),
    direction=(0, 1, 0, -1, 0, 0, 0, 0, 1),
)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"shape_zyx": (4, 5)}, "at least one voxel along each of three axes"),
        ({"shape_zyx": (4, 0, 6)}, "at least one voxel along each of three axes"),
        ({"spacing_xyz_mm": (1.0, 0.0, 1.0)}, "spacing must be positive"),
        ({"spacing_xyz_mm": (1.0, float("inf"), 1.0)}, "spacing must be positive"),
        ({"origin_xyz_mm": (0.0, float("nan"), 0.0)}, "origin must be finite"),
        ({"direction": (1, 0, 0, 0.5, 1, 0, 0, 0, 1)}, "right angles"),
    ],
)
def test_what_is_no_grid_is_refused(change: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        replace(GRID, **change)


def test_a_point_of_the_world_is_the_index_it_came_from() -> None:
    index = np.random.default_rng(0).uniform(-3, 9, (50, 3))
    np.testing.assert_allclose(GRID.to_index(GRID.to_world(index)), index, atol=1e-9)
    np.testing.assert_allclose(GRID.to_index(np.array([10.0, -20.0, 33.0])), (0, 0, 1), atol=1e-9)


def test_volumes_are_resampled_along_their_own_axes_only() -> None:
    turned = replace(GRID, direction=(1, 0, 0, 0, 1, 0, 0, 0, 1))
    with pytest.raises(ValueError, match="axes must be the source's"):
        resample_image(np.zeros(GRID.shape_zyx, np.float32), GRID, turned, floor=0.0)
    with pytest.raises(ValueError, match="axes must be the source's"):
        resample_labels(np.zeros(GRID.shape_zyx, np.uint8), GRID, turned)
