"""Augmentation on the training device: parameters are drawn first, then applied; the views are independent.

*Takes* a Batch of cuts, *gives* Views of crops. The parameters of each sample are drawn on the CPU from its
own generator (seed of the run, sample, view), so that they do not depend on how samples are distributed over
ranks and batches. Image and words are warped on the same grid: the image trilinearly, the words by nearest
neighbour, once for all K masks. Voxels from outside the cut have the padding value of the scan in the image,
and belong to no mask except the last one, which is all ones.

*Valid* for isotropic voxels, because rotations are in voxels. Noise is drawn on the device, from the sample's
seed: it is the same on every rank, but differs between GPU and CPU.
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

_CURVE_KNOTS = 7
_SAME = np.linspace(0.0, 1.0, _CURVE_KNOTS)
"""The curve that changes nothing."""
_BIAS_KNOTS = 4


@dataclass(frozen=True, kw_only=True)
class ViewAugmentation:
    """How strongly a view is augmented; the defaults are the published weak augmentation of the reference."""

    affine_probability: float = 0.5
    """Probability that a sample is warped, 0..1."""
    max_scale_change: float = 0.3
    """Each axis is scaled by a factor between 1 - this and 1 + this."""
    max_rotation_degrees: float = 30.0
    """Largest rotation about each axis, in both directions."""
    max_shear: float = 0.0
    """Largest shear for each pair of axes, in both directions."""
    intensity_probability: float = 0.2
    """Probability of each of the changes below, 0..1; they are drawn independently."""
    brightness: Range = (0.9, 1.1)
    """Factor on the z-scores."""
    brightness_shift_std: float = 0.1
    """Standard deviation of the constant added to all z-scores of a view."""
    gamma: Range = (0.8, 1.2)
    """Exponent of the intensities, after scaling them to 0..1 by the view's minimum and maximum."""
    contrast: Range = (0.8, 1.2)
    """Factor on the difference to the view's mean; results are clipped to the view's minimum and maximum."""
    blur_voxels: Range = (0.8, 1.2)
    """Standard deviation of the Gaussian blur, voxels."""
    noise_std: float = 0.02
    """Standard deviation of the Gaussian noise added to each voxel, z-score units."""
    curve_probability: float = 0.0
    """Probability that the intensities go through a random curve, which can exchange dark and bright; the
    lowest one stays. Two views of one scan then no longer match by their intensities."""
    max_curve: float = 1.0
    """How far such a curve departs from the identity, at most: 0 not at all, 1 to values drawn anew."""
    bias_probability: float = 0.0
    """Probability that the intensities are multiplied by a smooth random field, as the bias field of MR."""
    bias_std: float = 0.3
    """Standard deviation of the field's logarithm."""

    def __post_init__(self) -> None:
        for name in (
            "affine_probability",
            "intensity_probability",
            "curve_probability",
            "max_curve",
            "bias_probability",
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must be 0 to 1, got {getattr(self, name)}")
        if not 0 <= self.max_scale_change < 1:
            raise ConfigError(f"max_scale_change must be >= 0 and < 1, got {self.max_scale_change}")
        for name in ("max_rotation_degrees", "max_shear", "brightness_shift_std", "noise_std", "bias_std"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be >= 0, got {getattr(self, name)}")
        for name in ("brightness", "gamma", "contrast", "blur_voxels"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ConfigError(f"{name} must be two numbers > 0, the smaller first, got {[low, high]}")


def strong() -> ViewAugmentation:
    """Return the strong augmentation that the published recipe uses for the target."""
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
    """Augmentation of both views."""

    reference: ViewAugmentation = field(default_factory=ViewAugmentation)
    """Augmentation of the view whose mask is given; weak."""
    target: ViewAugmentation = field(default_factory=strong)
    """Augmentation of the view to segment; strong."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawn:
    """Drawn augmentation parameters of one view of B samples, on the CPU; a neutral value changes nothing."""

    matrix: Tensor
    """float32 (B, 3, 3), (z, y, x): maps offsets from the crop's centre to offsets from the cut's, voxels."""
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
    """int64 (B,): seed of each sample's noise."""
    curve: Tensor
    """float32 (B, 7), 0..1: what seven equally spaced intensities become; neutral 0, 1/6, ..., 1."""
    bias: Tensor
    """float32 (B, 4, 4, 4): logarithm of the bias field at the knots of a coarse grid; neutral 0."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Views:
    """Augmented crops on the training device: the input of a training step."""

    reference: Tensor
    """float32 (B, 1, Z, Y, X), z-scores."""
    target: Tensor
    """float32 (B, 1, Z, Y, X), z-scores."""
    reference_masks: Tensor
    """bool (B, K, Z, Y, X); the last mask is all ones. A mask is empty if the warp moved it out."""
    target_masks: Tensor
    """bool (B, K, Z, Y, X): the same masks in the target."""


def augment(batch: Batch, config: AugmentationConfig) -> Views:
    """Return both views of a batch, augmented, on the batch's device.

    The result is a function of the batch's data, seed and sample indices.
    """
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
    """Draw the augmentation parameters of one view of each sample, with one generator per sample."""
    rows = [_draw_one(config, generator) for generator in generators]
    return Drawn(
        matrix=torch.from_numpy(np.stack([matrix for matrix, _, _ in rows])).float(),
        **{
            name: torch.tensor([values[name] for _, values, _ in rows], dtype=torch.float32)
            for name in _CHANGES
        },
        noise_seed=torch.tensor([seed for _, _, seed in rows], dtype=torch.int64),
        # Drawn last, and only where wanted: other samples are those of before there were such changes.
        curve=torch.from_numpy(
            np.stack([_draw_curve(config, generator) for generator in generators])
        ).float(),
        bias=torch.from_numpy(np.stack([_draw_bias(config, generator) for generator in generators])).float(),
    )


def _draw_one(
    config: ViewAugmentation, generator: np.random.Generator
) -> tuple[NDArray[np.float64], dict[str, float], int]:
    """Draw matrix, values and noise seed of one sample.

    All numbers are drawn, also those that are not used, so that changing one probability does not change the
    numbers drawn after it.
    """
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


def _draw_curve(config: ViewAugmentation, generator: np.random.Generator) -> NDArray[np.float64]:
    """Draw what the intensities become, (7,), see `Drawn`."""
    if config.curve_probability == 0 or generator.random() >= config.curve_probability:
        return _SAME
    part = generator.uniform(0.0, config.max_curve)
    drawn = generator.uniform(0.0, 1.0, _CURVE_KNOTS)
    drawn[0] = 0.0
    return np.asarray((1 - part) * _SAME + part * drawn)


def _draw_bias(config: ViewAugmentation, generator: np.random.Generator) -> NDArray[np.float64]:
    """Draw the knots of the bias field's logarithm, (4, 4, 4)."""
    if config.bias_probability == 0 or generator.random() >= config.bias_probability:
        return np.zeros((_BIAS_KNOTS,) * 3)
    return generator.normal(0.0, config.bias_std, (_BIAS_KNOTS,) * 3)


def affine_matrix(
    scale: NDArray[np.float64], angles: NDArray[np.float64], shear: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return rotations about z, y and x times a shear times a scaling, (3, 3) on (z, y, x).

    Args:
        scale: Factor of each axis, (3,); above 1 the crop shows more of the cut.
        angles: Rotation about each axis, radians, (3,).
        shear: Off-diagonal entries, row by row, (6,).
    """
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        first, second = (other for other in range(3) if other != axis)
        rotation = np.eye(3)
        rotation[first, first] = rotation[second, second] = math.cos(angle)
        rotation[first, second], rotation[second, first] = -math.sin(angle), math.sin(angle)
        matrix = matrix @ rotation
    sheared = np.eye(3)
    sheared[~np.eye(3, dtype=bool)] = shear
    return np.asarray(matrix @ sheared @ np.diag(scale))


def apply_drawn(codes: Tensor, words: Tensor, batch: Cuts, drawn: Drawn) -> tuple[Tensor, Tensor]:
    """Return the augmented crops of one view.

    Args:
        codes: int16 (B, 1, Z, Y, X): image codes of the cuts.
        words: int16 (B, Z, Y, X): words of the cuts.
        batch: The batch that the cuts are from; gives scale, offset, padding and crop size.
        drawn: Augmentation parameters.

    Returns:
        Image, float32 (B, 1, Z, Y, X), z-scores; words, int16 (B, Z, Y, X).
    """
    with torch.no_grad(), torch.autocast(codes.device.type, enabled=False):
        image, words = warp(codes, words, batch, drawn.matrix)
        for sample, (curve, bias) in enumerate(zip(drawn.curve, drawn.bias, strict=True)):
            if not torch.equal(curve, torch.from_numpy(_SAME).float()):
                image[sample] = _map_intensities(image[sample], curve.to(image.device))
            if bias.any():
                image[sample] = _multiply_smoothly(image[sample], bias.to(image.device))
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
    """Return the crop from the middle of each cut, warped by its matrix: z-scores and words.

    A sample whose matrix is the identity is cropped without interpolation. Image and words are sampled on the
    same grid.

    Args:
        codes: int16 (B, 1, Z, Y, X): image codes of the cuts.
        words: int16 (B, Z, Y, X): words of the cuts.
        batch: The batch that the cuts are from.
        matrix: (B, 3, 3), see `Drawn`.
    """
    scale, offset = (value.view(-1, 1, 1, 1, 1) for value in (batch.scale, batch.offset))
    z, y, x = _middle(codes.shape[2:], batch.crop_zyx)
    image = codes[..., z, y, x] * scale + offset
    cropped = words[..., z, y, x].clone()
    moved = torch.nonzero((matrix != torch.eye(3)).flatten(1).any(dim=1))[:, 0].tolist()
    if moved:
        grid = _grid(matrix[moved], codes.shape[2:], batch.crop_zyx, codes.device)
        padding = batch.padding_codes[moved].float().view(-1, 1, 1, 1, 1)
        # grid_sample gives 0 outside the cut: with the padding subtracted before and added after, it gives
        # the padding.
        warped = _sample(codes[moved].float() - padding, grid, "bilinear") + padding
        image[moved] = warped * scale[moved] + offset[moved]
        cropped[moved] = _sample(words[moved].float()[:, None], grid, "nearest")[:, 0].to(words.dtype)
    return image, cropped


def _sample(volume: Tensor, grid: Tensor, mode: str) -> Tensor:
    return functional.grid_sample(volume, grid, mode=mode, padding_mode="zeros", align_corners=False)


def _grid(matrix: Tensor, cut: torch.Size, crop: Triple, device: torch.device) -> Tensor:
    """Return the sampling position of each voxel of the crop, (B, Z, Y, X, 3): (x, y, z) in -1..1."""
    ratio = torch.tensor(crop, dtype=torch.float64) / torch.tensor(cut, dtype=torch.float64)[:, None]
    theta = (matrix.double() * ratio).flip(1, 2)
    theta = torch.cat([theta, torch.zeros(len(theta), 3, 1, dtype=theta.dtype)], dim=2)
    return functional.affine_grid(theta.float().to(device), [len(theta), 1, *crop], align_corners=False)


def _middle(cut: torch.Size, crop: Triple) -> tuple[slice, ...]:
    starts = [(whole - part) // 2 for whole, part in zip(cut, crop, strict=True)]
    return tuple(slice(start, start + part) for start, part in zip(starts, crop, strict=True))


def _scale_brightness(image: Tensor, factor: Tensor) -> Tensor:
    return image * factor


def _add(image: Tensor, amount: Tensor) -> Tensor:
    return image + amount


def _change_gamma(image: Tensor, gamma: Tensor) -> Tensor:
    low = image.amin(dim=(1, 2, 3, 4), keepdim=True)
    span = image.amax(dim=(1, 2, 3, 4), keepdim=True) - low
    return ((image - low) / span.clamp_min(1e-6)).clamp_(0, 1) ** gamma * span + low


def _change_contrast(image: Tensor, factor: Tensor) -> Tensor:
    low = image.amin(dim=(1, 2, 3, 4), keepdim=True)
    high = image.amax(dim=(1, 2, 3, 4), keepdim=True)
    mean = image.mean(dim=(1, 2, 3, 4), keepdim=True)
    return ((image - mean) * factor + mean).clamp(low, high)


def _blur(image: Tensor, sigma: Tensor) -> Tensor:
    """Blur along each axis with a matrix of Gaussian weights; rows sum to 1, so borders do not darken."""
    for axis in (2, 3, 4):
        indices = torch.arange(image.shape[axis], dtype=torch.float32, device=image.device)
        weights = torch.exp(-0.5 * ((indices[:, None] - indices) / sigma.view(-1, 1, 1)) ** 2)
        weights = weights / weights.sum(dim=2, keepdim=True)
        moved = image.movedim(axis, 2).flatten(3)
        image = (weights[:, None] @ moved).view(image.movedim(axis, 2).shape).movedim(2, axis)
    return image


def _map_intensities(image: Tensor, curve: Tensor) -> Tensor:
    """Return an image (1, Z, Y, X) through a curve (7,) from its minimum to its mean plus 3 deviations."""
    low = image.amin()
    span = (image.mean() + 3 * image.std() - low).clamp_min(1e-6)
    place = (image - low) / span * (len(curve) - 1)
    knot = place.floor().clamp(0, len(curve) - 2)
    first, second = curve[knot.long()], curve[knot.long() + 1]
    # Above the last knot, the few brightest voxels keep their distance to it.
    inside = place.clamp(max=len(curve) - 1)
    mapped = first + (second - first) * (inside - knot)
    return low + span * (mapped + (place - inside) / (len(curve) - 1))


def _multiply_smoothly(image: Tensor, bias: Tensor) -> Tensor:
    """Return an image (1, Z, Y, X) whose height above its minimum is multiplied by exp of a smooth field."""
    low = image.amin()
    field = functional.interpolate(bias[None, None], image.shape[1:], mode="trilinear", align_corners=True)
    return low + (image - low) * field[0].exp()


def _noise(like: Tensor, seed: int) -> Tensor:
    generator = torch.Generator(like.device).manual_seed(seed)
    return torch.randn(like.shape, generator=generator, device=like.device)


_CHANGES: dict[str, tuple[float, Callable[[Tensor, Tensor], Tensor]]] = {
    "brightness": (1.0, _scale_brightness),
    "brightness_shift": (0.0, _add),
    "gamma": (1.0, _change_gamma),
    "contrast": (1.0, _change_contrast),
    "blur_voxels": (0.0, _blur),
    "noise_std": (0.0, _add),
}
"""Neutral value and function of each intensity change, in order; for noise the value is drawn by `_noise`."""
