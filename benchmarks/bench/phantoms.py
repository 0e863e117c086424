"""Drawn scans with exact truth: bodies of ten organs, deformed, turned, of varying brightness, with noise.

Any number of subjects; subject i of a seed is always the same. Organs are implicit functions of a point in
the body's own coordinates, (z, y, x) in -1..1, negative inside; later organs lie over earlier ones. A subject
has a smooth random deformation, a pose (turn, scale, move), a brightness of each organ, a bias field, blurred
borders and noise. Two shapes, a ring and a cross, are left out of the scans that are pretrained on: what is
found of them was not learnt by heart. Subjects whose spleen is enlarged are of the class "1", others "0".

Reads nothing. Writes a store, with proposals made as `mass prepare` makes them. Bounds: these are shapes, not
anatomy; a method that wins here may lose on patients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates

from benchmarks.mask_methods import Masked, with_proposals
from pipeline.proposals.config import ProposalConfig
from storage import LabelVolume, ScanRecord, Store, commit_scan, create_store, digest_of, finish, open_store

Points: TypeAlias = NDArray[np.float32]
"""(3, Z, Y, X): z, y, x in the body's coordinates."""
Field: TypeAlias = NDArray[np.float32]
"""(Z, Y, X)"""
Shape: TypeAlias = Callable[[Points], Field]
"""Negative inside, 0 at the border, about 1 a radius outside."""

SPACING_MM = 3.0
VERSION = 1
"""Raised when the same subject is drawn differently."""
PRETRAINING, LABELLED, TARGET = "pretraining", "labelled", "target"
"""Splits of the store."""


@dataclass(frozen=True, kw_only=True)
class PhantomConfig:
    """How many subjects, and how they look."""

    shape_zyx: tuple[int, int, int] = (40, 56, 48)
    """Voxels of 3 mm."""
    pretraining: int = 40
    """Subjects without the two unseen shapes."""
    labelled: int = 24
    """Subjects that labels may be shown of."""
    targets: int = 10
    """Subjects that answers are scored on."""
    deformation: float = 0.07
    """Standard deviation of the smooth displacement, in body coordinates."""
    noise: float = 40.0
    """Standard deviation of the noise; organs differ by 30 to 600."""
    seed: int = 0


def _ellipsoid(centre: tuple[float, float, float], radii: tuple[float, float, float]) -> Shape:
    def inside(p: Points) -> Field:
        terms = [((p[k] - centre[k]) / radii[k]) ** 2 for k in range(3)]
        return np.asarray(np.sqrt(terms[0] + terms[1] + terms[2]) - 1, np.float32)

    return inside


def _rod(centre_yx: tuple[float, float], radius: float, bend: float) -> Shape:
    """A tube along z, bent along y."""

    def inside(p: Points) -> Field:
        y = p[1] - centre_yx[0] - bend * np.cos(2.2 * p[0])
        return np.asarray(np.hypot(y, p[2] - centre_yx[1]) / radius - 1, np.float32)

    return inside


def _ring(centre: tuple[float, float, float], radius: float, thickness: float) -> Shape:
    def inside(p: Points) -> Field:
        around = np.hypot(p[1] - centre[1], p[2] - centre[2]) - radius
        return np.asarray(np.hypot(around, p[0] - centre[0]) / thickness - 1, np.float32)

    return inside


def _cross(centre: tuple[float, float, float], arm: float, thickness: float) -> Shape:
    def inside(p: Points) -> Field:
        z, y, x = (np.abs(p[k] - centre[k]) for k in range(3))
        bars = [
            np.maximum(np.maximum(y / thickness, z / thickness), x / arm),
            np.maximum(np.maximum(x / thickness, z / thickness), y / arm),
        ]
        return np.asarray(np.minimum(*bars) - 1, np.float32)

    return inside


@dataclass(frozen=True, kw_only=True)
class Organ:
    """One structure: its label, shape and brightness."""

    name: str
    value: int
    shape: Shape
    brightness: float
    """Mean over subjects; the body has 300, air 0."""
    unseen: bool = False
    """Whether it is left out of the scans that are pretrained on."""


ORGANS = (
    Organ(name="liver", value=1, shape=_ellipsoid((0.05, -0.1, 0.42), (0.42, 0.5, 0.34)), brightness=420),
    Organ(name="spleen", value=2, shape=_ellipsoid((0.1, 0.15, -0.55), (0.3, 0.24, 0.16)), brightness=470),
    Organ(
        name="kidney left", value=3, shape=_ellipsoid((-0.3, 0.4, -0.35), (0.26, 0.14, 0.15)), brightness=540
    ),
    Organ(
        name="kidney right", value=4, shape=_ellipsoid((-0.36, 0.4, 0.4), (0.26, 0.14, 0.15)), brightness=540
    ),
    Organ(
        name="heart wall", value=5, shape=_ellipsoid((0.62, -0.2, -0.15), (0.26, 0.34, 0.32)), brightness=380
    ),
    Organ(
        name="heart cavity", value=6, shape=_ellipsoid((0.62, -0.2, -0.15), (0.15, 0.2, 0.19)), brightness=620
    ),
    Organ(name="spine", value=7, shape=_rod((0.62, 0.02), 0.15, 0.03), brightness=700),
    Organ(name="aorta", value=8, shape=_rod((0.3, 0.02), 0.075, 0.06), brightness=640),
    Organ(name="ring", value=9, shape=_ring((-0.62, -0.2, 0.05), 0.28, 0.1), brightness=560, unseen=True),
    Organ(
        name="cross", value=10, shape=_cross((-0.1, -0.45, -0.35), 0.26, 0.09), brightness=150, unseen=True
    ),
)
UNSEEN = tuple(organ.name for organ in ORGANS if organ.unseen)
_BODY = _ellipsoid((0, 0, 0), (1.15, 0.92, 0.9))
_ENLARGED = 1.45
"""Factor of the spleen's radii in the class "1"."""
_BORDER = 0.06
"""Part of a radius over which brightness changes at a border."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Phantom:
    """A drawn subject."""

    image: NDArray[np.int16]
    """(z, y, x), 0 to about 1,000."""
    labels: NDArray[np.uint8]
    """(z, y, x), values of `ORGANS`; 0 is everything else."""
    enlarged: bool
    """Whether the spleen is enlarged."""


def draw_phantom(config: PhantomConfig, number: int, *, unseen: bool) -> Phantom:
    """Return subject `number`.

    Args:
        config: How it looks.
        number: Of the subject; its draws follow from this and the seed.
        unseen: Whether it has the two shapes that are not pretrained on.
    """
    generator = np.random.default_rng((config.seed, number))
    points = _points(config, generator)
    enlarged = bool(generator.random() < 0.5)
    brightness = {organ.name: organ.brightness + generator.normal(0, 35) for organ in ORGANS}
    image = 300 * _softly(_BODY(points))
    labels = np.zeros(config.shape_zyx, np.uint8)
    for organ in ORGANS:
        if organ.unseen and not unseen:
            continue
        own = _about_spleen(points) if organ.name == "spleen" and enlarged else points
        depth = organ.shape(own)
        part = _softly(depth)
        image = image * (1 - part) + brightness[organ.name] * part
        labels[depth < 0] = organ.value
    bias = _smooth(config.shape_zyx, 3, generator)
    image = image * (1 + 0.08 * bias) * generator.uniform(0.85, 1.15)
    image = gaussian_filter(image, 0.5) + generator.normal(0, config.noise, image.shape)
    codes = np.clip(image, 0, 1200).round().astype(np.int16)
    return Phantom(image=codes, labels=labels, enlarged=enlarged)


def _points(config: PhantomConfig, generator: np.random.Generator) -> Points:
    """The place of each voxel in the body: pose, then deformation."""
    axes = [np.linspace(-1.1, 1.1, count, dtype=np.float32) for count in config.shape_zyx]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"))
    angles = np.radians(generator.uniform(-12, 12, 3))
    scale = generator.uniform(0.88, 1.14, 3)[:, None, None, None]
    move = generator.uniform(-0.12, 0.12, 3)[:, None, None, None]
    turn = np.eye(3)
    for axis, angle in enumerate(angles):
        first, second = (other for other in range(3) if other != axis)
        one = np.eye(3)
        one[first, first] = one[second, second] = np.cos(angle)
        one[first, second], one[second, first] = -np.sin(angle), np.sin(angle)
        turn = turn @ one
    points = np.einsum("ij,jzyx->izyx", turn, grid) / scale + move
    warp = np.stack([_smooth(config.shape_zyx, 4, generator) for _ in range(3)])
    return np.asarray(points + config.deformation * warp, np.float32)


def _smooth(shape: tuple[int, int, int], knots: int, generator: np.random.Generator) -> Field:
    """A smooth random field of mean 0 and deviation about 1, from knots^3 normal numbers."""
    coarse = generator.normal(0, 1, (knots, knots, knots))
    places = [np.linspace(0, knots - 1, count) for count in shape]
    grid = np.stack(np.meshgrid(*places, indexing="ij"))
    return np.asarray(map_coordinates(coarse, grid, order=3, mode="nearest"), np.float32)


def _softly(depth: Field) -> Field:
    """1 inside, 0 outside, half at the border."""
    return np.asarray(1 / (1 + np.exp(np.clip(depth / _BORDER, -30, 30))), np.float32)


def _about_spleen(points: Points) -> Points:
    """Points at which the usual spleen is the enlarged one."""
    centre = np.array((0.1, 0.15, -0.55), np.float32)[:, None, None, None]
    return np.asarray((points - centre) / _ENLARGED + centre, np.float32)


def phantom_record(config: PhantomConfig, number: int, split: str) -> ScanRecord:
    """Return subject `number` as a stored scan, with proposals."""
    drawn = draw_phantom(config, number, unseen=split != PRETRAINING)
    values = drawn.image.astype(np.float64)
    intensity = {"low": 0.0, "high": 1200.0, "mean": float(values.mean()), "std": float(values.std())}
    truth = LabelVolume(
        name="organs",
        array=drawn.labels,
        value_names={organ.value: organ.name for organ in ORGANS if (drawn.labels == organ.value).any()},
    )
    scan = Masked(
        scan_id=f"phantom_{number:04d}",
        dataset="phantoms",
        modality="mr",
        image=drawn.image,
        scale=1.0,
        offset=0.0,
        spacing_zyx_mm=(SPACING_MM,) * 3,
        labels=(truth,),
        attributes={"intensity": {**intensity, "unit": "arbitrary"}, "class": str(int(drawn.enlarged))},
        atoms=(np.zeros(drawn.image.shape, np.uint16),),
        orders=(np.zeros((1, 1), np.uint16),),
        table=np.zeros((0, 11), np.int32),
        scores=np.zeros(0, np.float32),
        sources=(),
    )
    made = with_proposals(scan, ProposalConfig())
    fields = {name: getattr(made, name) for name in Masked.__dataclass_fields__}
    return ScanRecord(**fields, split=split, digests={"source": digest(config, number, split)})


def digest(config: PhantomConfig, number: int, split: str) -> str:
    """Of all that a subject follows from."""
    looks = [config.shape_zyx, config.deformation, config.noise, config.seed, VERSION]
    return digest_of([*looks, number, split])


def make_phantom_store(folder: Path, config: PhantomConfig) -> Store:
    """Make the store, or what is missing of it."""
    store = create_store(folder, spacing_mm=SPACING_MM, config={})
    splits = [PRETRAINING] * config.pretraining + [LABELLED] * config.labelled + [TARGET] * config.targets
    for number, split in enumerate(splits):
        there = store.entries.get(f"phantom_{number:04d}")
        if there is None or there.digests.get("source") != digest(config, number, split):
            commit_scan(folder, phantom_record(config, number, split), replace=True)
    finish(folder)
    return open_store(folder)
