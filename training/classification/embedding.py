"""What an encoder makes of a whole scan: tokens for attention pooling, and one pooled vector.

    scan --windows--> encoder --> five stages, averaged over the cells of the deepest, side by side = tokens
                                  mean over space of every stage, and maximum of the deepest = pooled

Reads:  scans of a store (z-scores), an encoder.
Writes: `ScanFeatures`: tokens float32 (T, C) with C the sum of the stages' widths, full resolution first;
        pooled float32 (C + width of the deepest,). A file of pooled vectors, .npz or .csv.
Bounds: a window is a multiple of 16 voxels; what it holds beyond the scan is the scan's darkest value, as in
        pretraining, and counts as the scan does. Where windows share voxels these count twice. Memory holds
        one window's features.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from storage import Store
from training.data import STRIDE_VOXELS, Size, fit_window, take_image, window_boxes
from training.engine import Precision, autocast, choose_precision
from training.errors import ConfigError
from training.files import write_atomically
from training.network import Features

STAGE_SCALES = (1, 2, 4, 8, 16)
"""Voxels that a cell of each stage is wide, full resolution first."""

SUFFIXES = (".npz", ".csv")

Progress = Callable[[int, int], None]
"""Called with scans done and scans in all."""


@dataclass(frozen=True, kw_only=True)
class EmbeddingConfig:
    """How scans are shown to an encoder; checked when made."""

    window_voxels: Size = (128, 128, 128)
    """Most voxels of a window; multiples of 16. Larger scans are seen by several windows, spread evenly."""
    max_tokens: int = 512
    """Most tokens of a scan; neighbouring ones are averaged until they are no more, one a window at least."""
    precision: Precision = "float32"
    """Of the encoder's arithmetic (autocast); "auto" is bfloat16 where the device has it. Not the default:
    features are kept, and a classifier made on one machine is used on another."""

    def __post_init__(self) -> None:
        size = self.window_voxels
        if len(size) != 3 or any(side < STRIDE_VOXELS or side % STRIDE_VOXELS for side in size):
            raise ConfigError(
                f"window_voxels: three positive multiples of {STRIDE_VOXELS} expected, got {size}"
            )
        if self.max_tokens < 1:
            raise ConfigError(f"max_tokens must be at least 1, got {self.max_tokens}")


@dataclass(frozen=True, kw_only=True, eq=False)
class ScanFeatures:
    """One scan, encoded; on the CPU."""

    tokens: Tensor
    """float32 (T, C)"""
    pooled: Tensor
    """float32 (C + width of the deepest stage,)"""


@torch.no_grad()
def encode_scan(
    encoder: nn.Module,
    image: NDArray[np.float32],
    config: EmbeddingConfig,
    *,
    device: torch.device | str = "cpu",
) -> ScanFeatures:
    """Return what an encoder makes of a whole scan.

    Args:
        encoder: On `device`; maps (B, 1, Z, Y, X) to `Features`.
        image: (z, y, x) z-scores.
        config: Windows and precision.
        device: Where to compute.
    """
    device = torch.device(device)
    z, y, x = image.shape
    window = fit_window((z, y, x), config.window_voxels)
    boxes = window_boxes((z, y, x), window, 0.0)
    cells = _num_cells(window, len(boxes), config.max_tokens)
    tokens, means, maxima = [], [], []
    for box in boxes:
        part = torch.from_numpy(np.ascontiguousarray(take_image(image, box)))[None, None].to(device)
        with autocast(choose_precision(config.precision, device), device):
            features: Features = encoder(part)
        mean, largest = pool(features)
        means.append(mean[0])
        maxima.append(largest[0])
        tokens.append(tokens_of(features, cells)[0])
    pooled = torch.cat([torch.stack(means).mean(0), torch.stack(maxima).amax(0)])
    return ScanFeatures(tokens=torch.cat(tokens).cpu(), pooled=pooled.cpu())


def pool(features: Features) -> tuple[Tensor, Tensor]:
    """Return the mean over space of every stage, (B, C), and the maximum of the deepest, (B, width)."""
    means = [feature.float().mean(dim=(2, 3, 4)) for feature in features[::-1]]
    return torch.cat(means, dim=1), features[0].float().amax(dim=(2, 3, 4))


def tokens_of(features: Features, cells: Size | None = None) -> Tensor:
    """Return tokens (B, T, C): all stages averaged over `cells` (default: the deepest stage's own)."""
    z, y, x = cells or features[0].shape[2:]
    stages = [functional.adaptive_avg_pool3d(feature.float(), (z, y, x)) for feature in features[::-1]]
    return torch.cat(stages, dim=1).flatten(2).transpose(1, 2)


def _num_cells(window: Size, num_windows: int, max_tokens: int) -> Size:
    """Cells a window along z, y, x: the deepest stage's, or fewer."""
    z, y, x = (side // STRIDE_VOXELS for side in window)
    while z * y * x * num_windows > max_tokens and z * y * x > 1:
        z, y, x = (math.ceil(side / 2) for side in (z, y, x))
    return z, y, x


def feature_names(channels: Sequence[int]) -> tuple[str, ...]:
    """Return the names of a pooled vector's numbers: "mean_1_000" is channel 0 of full resolution."""
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
    """Return the features of scans of a store, by id; the encoder's mode is as before.

    Args:
        encoder: On `device`.
        store: With the scans.
        scan_ids: Which.
        config: Windows and precision.
        device: Where to compute.
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


def encoder_digest(encoder: nn.Module) -> str:
    """Return a sha256 of an encoder's weights: which encoder features are of."""
    digest = hashlib.sha256()
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def check_features_path(path: Path) -> Path:
    """Return the path of a file of features, or say what is wrong with it, before hours of work."""
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"{path}: features are written as .npz or .csv, name the file so")
    if path.is_dir():
        raise ConfigError(f"{path}: a folder is in the file's place, name another file")
    return path


def write_features(
    path: Path, store: Store, pooled: dict[str, NDArray[np.float32]], *, channels: Sequence[int], encoder: str
) -> None:
    """Write pooled features, whole or not at all.

    Args:
        path: Ends in .npz (arrays ids, features (N, F) float32, names, datasets, splits, encoder) or .csv (a
            row a scan: id, dataset, split, then a column a feature).
        store: The scans are of.
        pooled: By id.
        channels: Widths of the encoder.
        encoder: Its digest.
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
