"""Encoder features of whole scans: tokens for attention pooling, and one pooled vector.

    scan --windows--> encoder --> tokens: all five stages, averaged over the cells of the deepest stage's grid
                                          and concatenated
                                  pooled: spatial mean of every stage, and maximum of the deepest stage

Reads:  scans of a store (z-scores), an encoder.
Writes: `ScanFeatures`: tokens float32 (T, C), where C is the sum of the stages' channels, full resolution
        first; pooled float32 (C + channels of the deepest stage,). A file of pooled vectors, .npz or .csv.
Bounds: a window is a multiple of 16 voxels. It is padded with the scan's minimum, as in pretraining; padding
        has the same weight as the scan. Voxels in several windows count several times. With `whole_scans` the
        scan is resampled to one window. The features of one window at a time are in memory; on a CUDA card
        those of a batch of windows (`windows_at_once`), on the card until the scan is done.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from storage import Store, write_atomically
from training.data import (
    STRIDE_VOXELS,
    Size,
    fit_window,
    take_image,
    to_window,
    window_boxes,
    windows_at_once,
)
from training.engine import Precision, autocast, choose_precision
from training.errors import ConfigError
from training.network import Features, TrainedOn

STAGE_SCALES = (1, 2, 4, 8, 16)
"""Voxels per cell of each stage along an axis, full resolution first."""

SUFFIXES = (".npz", ".csv")

Progress = Callable[[int, int], None]
"""Called with the number of scans done and of all scans."""


@dataclass(frozen=True, kw_only=True)
class EmbeddingConfig:
    """Settings of the encoding of scans; checked on construction."""

    window_voxels: Size = (128, 128, 128)
    """Largest size of a window (z, y, x), multiples of 16. Larger scans are covered by several windows."""
    whole_scans: bool = False
    """Whether each scan is shown whole, resampled to one window: for encoders trained in this way."""
    max_tokens: int = 512
    """Largest number of tokens per scan; neighbouring tokens are averaged to stay below it, but each window
    has at least one."""
    precision: Precision = "float32"
    """Precision of the encoder (autocast); "auto" is bfloat16 if the device has it. The default is float32 so
    that stored features and classifiers can be used on any machine."""

    def __post_init__(self) -> None:
        size = self.window_voxels
        if len(size) != 3 or any(side < STRIDE_VOXELS or side % STRIDE_VOXELS for side in size):
            raise ConfigError(
                f"window_voxels: three positive multiples of {STRIDE_VOXELS} expected, got {size}"
            )
        if self.max_tokens < 1:
            raise ConfigError(f"max_tokens must be at least 1, got {self.max_tokens}")


def embedding_for(trained_on: TrainedOn, base: EmbeddingConfig | None = None) -> EmbeddingConfig:
    """Return settings that show scans as in the training of a network on whole scans.

    Args:
        trained_on: Record of its training.
        base: All other settings, and all settings for a network that was trained on crops; None for the
            defaults.
    """
    base = base or EmbeddingConfig()
    if not (trained_on.whole_scans and trained_on.crop_voxels):
        return base
    return replace(base, window_voxels=trained_on.crop_voxels, whole_scans=True)


@dataclass(frozen=True, kw_only=True, eq=False)
class ScanFeatures:
    """Encoder features of one scan, on the CPU."""

    tokens: Tensor
    """float32 (T, C): tokens of all windows."""
    pooled: Tensor
    """float32 (C + channels of the deepest stage,): the pooled vector."""


@torch.no_grad()
def encode_scan(
    encoder: nn.Module,
    image: NDArray[np.float32],
    config: EmbeddingConfig,
    *,
    device: torch.device | str = "cpu",
) -> ScanFeatures:
    """Return the encoder features of a whole scan.

    Args:
        encoder: The encoder, on `device`; maps (B, 1, Z, Y, X) to `Features`.
        image: (z, y, x) z-scores.
        config: Windows, tokens and precision.
        device: Device to compute on.
    """
    device = torch.device(device)
    windows = list(_windows(image, config))
    z, y, x = windows[0].shape
    cells = _num_cells((z, y, x), len(windows), config.max_tokens)
    at_once = windows_at_once(1, (z, y, x), on_card=device.type == "cuda")
    tokens: list[Tensor] = []
    means: list[Tensor] = []
    maxima: list[Tensor] = []
    for first in range(0, len(windows), at_once):
        batch = torch.from_numpy(np.stack(windows[first : first + at_once]))[:, None].to(device)
        with autocast(choose_precision(config.precision, device), device):
            features: Features = encoder(batch)
        mean, largest = pool(features)
        means += mean
        maxima += largest
        tokens += tokens_of(features, cells)
    pooled = torch.cat([torch.stack(means).mean(0), torch.stack(maxima).amax(0)])
    return ScanFeatures(tokens=torch.cat(tokens).cpu(), pooled=pooled.cpu())


def _windows(image: NDArray[np.float32], config: EmbeddingConfig) -> Iterator[NDArray[np.float32]]:
    """Yield the windows (z, y, x) that show an image, all of one size."""
    if config.whole_scans:
        yield to_window(image, config.window_voxels)
        return
    z, y, x = image.shape
    window = fit_window((z, y, x), config.window_voxels)
    for box in window_boxes((z, y, x), window, 0.0):
        yield take_image(image, box)


def pool(features: Features) -> tuple[Tensor, Tensor]:
    """Return the spatial mean of every stage, (B, C), and the maximum of the deepest stage, (B, width)."""
    means = [feature.float().mean(dim=(2, 3, 4)) for feature in features[::-1]]
    return torch.cat(means, dim=1), features[0].float().amax(dim=(2, 3, 4))


def tokens_of(features: Features, cells: Size | None = None) -> Tensor:
    """Return tokens (B, T, C): all stages, averaged over a grid of cells and concatenated.

    Args:
        features: Features of a window.
        cells: Number of cells along z, y, x; by default the grid of the deepest stage.
    """
    z, y, x = cells or features[0].shape[2:]
    stages = [functional.adaptive_avg_pool3d(feature.float(), (z, y, x)) for feature in features[::-1]]
    return torch.cat(stages, dim=1).flatten(2).transpose(1, 2)


def _num_cells(window: Size, num_windows: int, max_tokens: int) -> Size:
    """Return the cells per window along z, y, x: the deepest stage's grid, or fewer."""
    z, y, x = (side // STRIDE_VOXELS for side in window)
    while z * y * x * num_windows > max_tokens and z * y * x > 1:
        z, y, x = (math.ceil(side / 2) for side in (z, y, x))
    return z, y, x


def feature_names(channels: Sequence[int]) -> tuple[str, ...]:
    """Return the names of a pooled vector's elements, as "mean_1_000" for channel 0 at full resolution."""
    means = [
        f"mean_{scale}_{channel:03d}"
        for scale, width in zip(STAGE_SCALES, channels, strict=True)
        for channel in range(width)
    ]
    return (*means, *(f"max_{STAGE_SCALES[-1]}_{channel:03d}" for channel in range(channels[-1])))


def encode_store(
    encoder: nn.Module,
    store: Store,
    scan_ids: Sequence[str],
    config: EmbeddingConfig,
    *,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> dict[str, ScanFeatures]:
    """Return the features of scans of a store, by id; the encoder's mode is restored.

    Args:
        encoder: The encoder, on `device`.
        store: The store with the scans.
        scan_ids: Ids of the scans to encode.
        config: Windows, tokens and precision.
        device: Device to compute on.
        progress: Called after each scan.
    """
    training = encoder.training
    encoder.eval()
    found = {}
    try:
        for number, scan_id in enumerate(scan_ids, start=1):
            image = store.scan(scan_id).image(normalize=True)
            found[scan_id] = encode_scan(encoder, image, config, device=device)
            if progress is not None:
                progress(number, len(scan_ids))
    finally:
        encoder.train(training)
    return found


def check_features_path(path: Path) -> Path:
    """Return the path of a feature file; called before the encoding, so that errors come early.

    Raises:
        ConfigError: The suffix is not .npz or .csv, or the path is a folder.
    """
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"{path}: features are written as .npz or .csv, name the file so")
    if path.is_dir():
        raise ConfigError(f"{path}: a folder is in the file's place, name another file")
    return path


def write_features(
    path: Path, store: Store, pooled: dict[str, NDArray[np.float32]], *, channels: Sequence[int], encoder: str
) -> None:
    """Write pooled features, atomically.

    Args:
        path: Ends in .npz (arrays ids, features (N, F) float32, names, datasets, splits, encoder) or .csv
            (one row per scan: id, dataset, split, then one column per feature).
        store: The store of the scans.
        pooled: Pooled vectors (F,) by scan id.
        channels: Channels of the encoder's stages.
        encoder: Digest of the encoder.
    """
    names = feature_names(channels)
    entries = [store.entries[scan_id] for scan_id in pooled]
    if path.suffix == ".csv":
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(["id", "dataset", "split", *names])
        for entry, row in zip(entries, pooled.values(), strict=True):
            writer.writerow([entry.scan_id, entry.dataset, entry.split, *(f"{value:.7g}" for value in row)])
        write_atomically(path, lambda file: file.write(text.getvalue().encode()))
        return
    arrays = {
        "ids": np.array([entry.scan_id for entry in entries], dtype=np.str_),
        "features": np.stack(list(pooled.values())),
        "names": np.array(names),
        "datasets": np.array([entry.dataset for entry in entries], dtype=np.str_),
        "splits": np.array([entry.split for entry in entries], dtype=np.str_),
        "encoder": np.array(encoder),
    }
    write_atomically(path, lambda file: np.savez_compressed(file, allow_pickle=False, **arrays))
