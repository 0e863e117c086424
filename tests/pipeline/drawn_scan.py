"""A small scan with proposals and labels, for tests of score, pictures and report: no store needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class DrawnLabel:
    name: str
    array: NDArray[np.uint8]
    value_names: Mapping[int, str] | None = None


@dataclass(frozen=True, kw_only=True)
class DrawnScan:
    """The fields of `pipeline.quality.stored_scan.ScanLike`."""

    scan_id: str
    image: NDArray[np.int16]
    atoms: tuple[NDArray[np.uint16], ...]
    orders: tuple[NDArray[np.uint16], ...]
    table: NDArray[np.int32]
    scores: NDArray[np.float32]
    labels: tuple[DrawnLabel, ...]
    sources: tuple[str, ...] = ("linkage", "threshold", "component")
    dataset: str = "drawn"
    modality: str = "ct"
    scale: float = 1.0
    offset: float = 0.0
    spacing_zyx_mm: tuple[float, float, float] = (3.0, 1.5, 1.5)
    attributes: Mapping[str, Any] = field(default_factory=dict)


def ellipsoid(
    shape: tuple[int, ...], centre: tuple[float, ...], radii: tuple[float, ...]
) -> NDArray[np.bool_]:
    grid = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    squares = [((g - c) / r) ** 2 for g, c, r in zip(grid, centre, radii, strict=True)]
    return np.asarray(np.sum(squares, axis=0) <= 1)


def drawn_scan(seed: int = 0, scan_id: str = "drawn_1", dataset: str = "drawn") -> DrawnScan:
    """An off-centre "body" with a "liver" and a "node" in it; atoms are 3 x 4 x 4 bricks.

    Layer 0 has one order (bricks in a Z-curve, so that intervals are compact) and intervals of powers of two;
    layer 1 holds the voxel-exact liver. "spleen" is declared and absent, "speck" has 2 voxels.
    """
    rng = np.random.default_rng(seed)
    shape = (18, 40, 48)
    body = ellipsoid(shape, (9, 21, 22), (8, 17, 20))
    liver = ellipsoid(shape, (9, 20, 30), (5, 9, 8))
    node = ellipsoid(shape, (8, 24, 12), (2.4, 3.2, 3.2))
    image = np.where(body, 40, -900) + np.where(liver, 80, 0) + np.where(node, -90, 0)
    image = (image + rng.normal(0, 12, shape)).astype(np.int16)
    z, y, x = np.indices(shape)
    brick = np.ravel_multi_index((z // 3, y // 4, x // 4), (6, 10, 12)).astype(np.uint16)
    curve = np.argsort([_interleave(*np.unravel_index(b, (6, 10, 12))) for b in range(720)]).astype(np.uint16)
    exact = np.where(liver, 0, 65534).astype(np.uint16)
    rows = [
        (0, a, min(a + size, 720)) for size in (256, 128, 64, 32, 16, 8, 4, 2) for a in range(0, 720, size)
    ]
    masks = [np.isin(brick, curve[a:b]) for _, a, b in rows] + [liver]
    table = np.array(
        [
            (o, a, b, *_box(m), m.sum(), i % 2)
            for i, ((o, a, b), m) in enumerate(zip(rows, masks, strict=False))
        ]
        + [(1, 0, 1, *_box(liver), liver.sum(), 2)],
        dtype=np.int32,
    )
    label = np.zeros(shape, dtype=np.uint8)
    label[liver], label[node], label[2, 2, 2:4] = 1, 2, 4
    names = {1: "liver", 2: "node", 3: "spleen", 4: "speck"}
    return DrawnScan(
        scan_id=scan_id,
        dataset=dataset,
        image=image,
        atoms=(brick, exact),
        orders=(curve[None], np.zeros((1, 1), dtype=np.uint16)),
        table=table,
        scores=np.linspace(1, 0, len(table), dtype=np.float32),
        labels=(DrawnLabel(name="organs", array=label, value_names=names),),
    )


def _interleave(*numbers: Any) -> int:
    return sum(
        ((int(n) >> bit) & 1) << (3 * bit + axis) for axis, n in enumerate(numbers) for bit in range(5)
    )


def _box(mask: NDArray[np.bool_]) -> tuple[int, ...]:
    where = np.argwhere(mask)
    return (*where.min(axis=0), *(where.max(axis=0) + 1))
