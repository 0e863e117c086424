"""Augmentation on the training device: parameters are drawn first, then applied; both views share nothing.

*Takes* a Batch of cuts, *gives* Views of crops. Each sample's numbers are drawn on the CPU from a generator
of its own (run's seed, sample, view), so that they are the same however a batch is shared out. The image is
warped trilinearly, the words once by nearest neighbour whatever K is, on the same grid. What a warp brings in
from outside the cut is the scan's padding value in the image and in no mask but the last, which is all ones.

*Valid* for voxels of one size along all axes: rotations are in voxels. The field of noise is drawn on the
device, from the sample's seed: the same on every rank, but a GPU's is not the CPU's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from training.data.batches import Batch, Cuts
from training.data.boxes import Triple
from training.data.sampling import generator_of
from training.data.words import unpack_words
from training.errors import ConfigError

Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class ViewAugmentation:
    """How strongly a view is changed; the defaults are the published recipe's for the reference (weak)."""

    affine_probability: float = 0.5
    """Share of samples that are warped."""
    max_scale_change: float = 0.3
    """Each axis is scaled by 1 - this to 1 + this."""
    max_rotation_degrees: float = 30.0
    """Rotation about each axis, either way."""
    max_shear: float = 0.0
    """Shear along each axis with each other, either way."""
    intensity_probability: float = 0.2
    """Share of samples for each of the changes below, each by itself."""
    brightness: Range = (0.9, 1.1)
    """Factor of the z-scores."""
    brightness_shift_std: float = 0.1
    """Standard deviation of what is added to all z-scores of a view."""
    gamma: Range = (0.8, 1.2)
    """Exponent of the values, taken between the view's least (0) and greatest (1)."""
    contrast: Range = (0.8, 1.2)
    """Factor of the distance to the view's mean; values stay between its least and greatest."""
    blur_voxels: Range = (0.8, 1.2)
    """Sigma of a Gaussian, voxels."""
    noise_std: float = 0.02
    """Standard deviation of what is added to each voxel."""

    def __post_init__(self) -> None:
        for name in ("affine_probability", "intensity_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must be 0 to 1, got {getattr(self, name)}")
        if not 0 <= self.max_scale_change < 1:
            raise ConfigError(f"max_scale_change must be >= 0 and < 1, got {self.max_scale_change}")
        for name in ("max_rotation_degrees", "max_shear", "brightness_shift_std", "noise_std"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be >= 0, got {getattr(self, name)}")
        for name in ("brightness", "gamma", "contrast", "blur_voxels"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ConfigError(f"{name} must be two numbers > 0, the lesser first, got {[low, high]}")


def strong() -> ViewAugmentation:
    """Return the published recipe's for the target."""
    return ViewAugmentation(
        affine_probability=0.8,
        max_shear=0.1,
        brightness=(0.8, 1.3),
        brightness_shift_std=0.15,
        gamma=(0.8, 1.3),
        contrast=(0.8, 1.3),
        blur_voxels=(0.7, 1.5),
        noise_std=0.04,
    )


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig:
    """How both views are changed."""

    reference: ViewAugmentation = field(default_factory=ViewAugmentation)
    """The view whose mask is given: weak."""
    target: ViewAugmentation = field(default_factory=strong)
    """The view to segment: strong."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawn:
    """What happens to one view of each of B samples, on the CPU; a neutral value leaves a sample as it is."""

    matrix: Tensor
    """float32 (B, 3, 3), (z, y, x): from an offset to the middle of the crop to one of the cut, voxels."""
    brightness: Tensor
    """float32 (B,); neutral 1."""
    brightness_shift: Tensor
    """float32 (B,), z-score units; neutral 0."""
    gamma: Tensor
    """float32 (B,); neutral 1."""
    contrast: Tensor
    """float32 (B,); neutral 1."""
    blur_voxels: Tensor
    """float32 (B,); neutral 0."""
    noise_std: Tensor
    """float32 (B,), z-score units; neutral 0."""
    noise_seed: Tensor
    """int64 (B,)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Views:
    """What a training step takes: crops on the training device."""

    reference: Tensor
    """float32 (B, 1, Z, Y, X), z-scores."""
    target: Tensor
    """float32 (B, 1, Z, Y, X), z-scores."""
    reference_masks: Tensor
    """bool (B, K, Z, Y, X); the last is all ones. A mask may be empty where the warp moved it out."""
    target_masks: Tensor
    """bool (B, K, Z, Y, X): the same masks in the target."""


def augment(batch: Batch, config: AugmentationConfig) -> Views:
    """Return both views of a batch, changed as its seed and sample indices say, on the batch's device."""
    samples = [int(index) for index in batch.sample_indices]
    reference, reference_words = apply_drawn(
        batch.reference_codes,
        batch.reference_words,
        batch,
        draw(config.reference, [generator_of(batch.seed, sample, "reference") for sample in samples]),
    )
    target, target_words = apply_drawn(
        batch.target_codes,
        batch.target_words,
        batch,
        draw(config.target, [generator_of(batch.seed, sample, "target") for sample in samples]),
    )
    return Views(
        reference=reference,
        target=target,
        reference_masks=unpack_words(reference_words, batch.num_masks),
        target_masks=unpack_words(target_words, batch.num_masks),
    )


def draw(config: ViewAugmentation, generators: list[np.random.Generator]) -> Drawn:
    """Return what happens to a view of each sample, one generator a sample."""
    rows = [_draw_one(config, generator) for generator in generators]
    return Drawn(
        matrix=torch.from_numpy(np.stack([matrix for matrix, _, _ in rows])).float(),
        **{
            name: torch.tensor([values[name] for _, values, _ in rows], dtype=torch.float32)
            for name in _CHANGES
        },
        noise_seed=torch.tensor([seed for _, _, seed in rows], dtype=torch.int64),
    )


def _draw_one(
    config: ViewAugmentation, generator: np.random.Generator
) -> tuple[NDArray[np.float64], dict[str, float], int]:
    """Draw every number, used or not: a probability that changes moves no other number."""
    warped = generator.random() < config.affine_probability
    scale = generator.uniform(1 - config.max_scale_change, 1 + config.max_scale_change, 3)
    angles = np.radians(generator.uniform(-config.max_rotation_degrees, config.max_rotation_degrees, 3))
    shear = generator.uniform(-config.max_shear, config.max_shear, 6)
    matrix = affine_matrix(scale, angles, shear) if warped else np.eye(3)
    changed = generator.random(len(_CHANGES)) < config.intensity_probability
    values = {
        "brightness": generator.uniform(*config.brightness),
        "brightness_shift": generator.normal(0.0, config.brightness_shift_std),
        "gamma": generator.uniform(*config.gamma),
        "contrast": generator.uniform(*config.contrast),
        "blur_voxels": generator.uniform(*config.blur_voxels),
        "noise_std": config.noise_std,
    }
    for name, change in zip(_CHANGES, changed, strict=True):
        values[name] = values[name] if change else _CHANGES[name][0]
    return matrix, values, int(generator.integers(2**63 - 1))


def affine_matrix(
    scale: NDArray[np.float64], angles: NDArray[np.float64], shear: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return rotations about z, y and x times a shear times a scaling, (3, 3) on (z, y, x).

    Args:
        scale: Factor of each axis, (3,); above 1 the crop sees more of the cut.
        angles: Rotation about each axis, radians, (3,).
        shear: Off-diagonal entries, row by row, (6,).
    """
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        first, second = (other for other in range(3) if other != axis)
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = math.cos(angle)
        turn[first, second], turn[second, first] = -math.sin(angle), math.sin(angle)
        matrix = matrix @ turn
    sheared = np.eye(3)
    sheared[~np.eye(3, dtype=bool)] = shear
    return np.asarray(matrix @ sheared @ np.diag(scale))


def apply_drawn(codes: Tensor, words: Tensor, batch: Cuts, drawn: Drawn) -> tuple[Tensor, Tensor]:
    """Return one view's image, float32 (B, 1, Z, Y, X), and words, int16 (B, Z, Y, X), cropped.

    Args:
        codes: int16 (B, 1, Z, Y, X), cut.
        words: int16 (B, Z, Y, X), cut.
        batch: Whose scale, offset and padding the codes have.
        drawn: What to do.
    """
    with torch.no_grad(), torch.autocast(codes.device.type, enabled=False):
        image, words = warp(codes, words, batch, drawn.matrix)
        for name, (neutral, change) in _CHANGES.items():
            values: Tensor = getattr(drawn, name)
            chosen = torch.nonzero(values != neutral)[:, 0].tolist()
            if not chosen:
                continue
            if name == "noise_std":
                for sample in chosen:
                    image[sample] += values[sample] * _noise(image[sample], int(drawn.noise_seed[sample]))
            else:
                value = values[chosen].to(image.device).view(-1, 1, 1, 1, 1)
                image[chosen] = change(image[chosen], value)
    return image, words


def warp(codes: Tensor, words: Tensor, batch: Cuts, matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the crop from the middle of each cut, seen through its matrix: z-scores and words.

    A sample whose matrix is the identity is cut out, exactly. One grid serves both: image and words move
    together.
    """
    scale, offset = (value.view(-1, 1, 1, 1, 1) for value in (batch.scale, batch.offset))
    z, y, x = _middle(codes.shape[2:], batch.crop_zyx)
    image = codes[..., z, y, x] * scale + offset
    cropped = words[..., z, y, x].clone()
    moved = torch.nonzero((matrix != torch.eye(3)).flatten(1).any(dim=1))[:, 0].tolist()
    if moved:
        grid = _grid(matrix[moved], codes.shape[2:], batch.crop_zyx, codes.device)
        padding = batch.padding_codes[moved].float().view(-1, 1, 1, 1, 1)
        # Outside is 0 of what is sampled: the padding is taken off before and put back after.
        seen = _sample(codes[moved].float() - padding, grid, "bilinear") + padding
        image[moved] = seen * scale[moved] + offset[moved]
        cropped[moved] = _sample(words[moved].float()[:, None], grid, "nearest")[:, 0].to(words.dtype)
    return image, cropped


def _sample(volume: Tensor, grid: Tensor, mode: str) -> Tensor:
    return functional.grid_sample(volume, grid, mode=mode, padding_mode="zeros", align_corners=False)


def _grid(matrix: Tensor, cut: torch.Size, crop: Triple, device: torch.device) -> Tensor:
    """Return where each voxel of the crop looks, (B, Z, Y, X, 3), in grid_sample's (x, y, z) of -1..1."""
    ratio = torch.tensor(crop, dtype=torch.float64) / torch.tensor(cut, dtype=torch.float64)[:, None]
    theta = (matrix.double() * ratio).flip(1, 2)
    theta = torch.cat([theta, torch.zeros(len(theta), 3, 1, dtype=theta.dtype)], dim=2)
    return functional.affine_grid(theta.float().to(device), [len(theta), 1, *crop], align_corners=False)


def _middle(cut: torch.Size, crop: Triple) -> tuple[slice, ...]:
    starts = [(whole - part) // 2 for whole, part in zip(cut, crop, strict=True)]
    return tuple(slice(start, start + part) for start, part in zip(starts, crop, strict=True))


def _brighten(image: Tensor, factor: Tensor) -> Tensor:
    return image * factor


def _shift(image: Tensor, amount: Tensor) -> Tensor:
    return image + amount


def _bend(image: Tensor, gamma: Tensor) -> Tensor:
    low = image.amin(dim=(1, 2, 3, 4), keepdim=True)
    span = image.amax(dim=(1, 2, 3, 4), keepdim=True) - low
    return ((image - low) / span.clamp_min(1e-6)).clamp_(0, 1) ** gamma * span + low


def _stretch(image: Tensor, factor: Tensor) -> Tensor:
    low = image.amin(dim=(1, 2, 3, 4), keepdim=True)
    high = image.amax(dim=(1, 2, 3, 4), keepdim=True)
    mean = image.mean(dim=(1, 2, 3, 4), keepdim=True)
    return ((image - mean) * factor + mean).clamp(low, high)


def _blur(image: Tensor, sigma: Tensor) -> Tensor:
    """Blur along each axis by a matrix of Gaussian weights, each row of sum 1: borders darken nothing."""
    for axis in (2, 3, 4):
        places = torch.arange(image.shape[axis], dtype=torch.float32, device=image.device)
        weights = torch.exp(-0.5 * ((places[:, None] - places) / sigma.view(-1, 1, 1)) ** 2)
        weights = weights / weights.sum(dim=2, keepdim=True)
        moved = image.movedim(axis, 2).flatten(3)
        image = (weights[:, None] @ moved).view(image.movedim(axis, 2).shape).movedim(2, axis)
    return image


def _noise(like: Tensor, seed: int) -> Tensor:
    generator = torch.Generator(like.device).manual_seed(seed)
    return torch.randn(like.shape, generator=generator, device=like.device)


_CHANGES: dict[str, tuple[float, Callable[[Tensor, Tensor], Tensor]]] = {
    "brightness": (1.0, _brighten),
    "brightness_shift": (0.0, _shift),
    "gamma": (1.0, _bend),
    "contrast": (1.0, _stretch),
    "blur_voxels": (0.0, _blur),
    "noise_std": (0.0, _shift),
}
"""Neutral value of each change and how it is made, in this order; noise is a field of its own."""
