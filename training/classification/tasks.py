"""Classification as the one trainer takes it: a head on kept tokens, or an encoder and a head on scans.

Reads:  features of scans (frozen encoder), or the scans of a store; which of them are what.
Writes: tasks for `training.engine.trainer`. Sample i of a run is a scan drawn from (seed, i), with
        replacement. Evaluations tell the macro AUC on the validation scans, which says which weights are the
        best.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from storage import Store
from training.classification.embedding import EmbeddingConfig, ScanFeatures, encode_store, tokens_of
from training.classification.heads import AttentionHead, logits_of, probabilities_of
from training.classification.labels import ClassTable
from training.classification.scores import macro_auc
from training.data import (
    Batch,
    Size,
    Slices,
    ViewAugmentation,
    apply_drawn,
    draw,
    fit_window,
    generator_of,
    take,
)
from training.engine import LossTerms, Task
from training.network import Encoder

SCORE = "auc"

_MOST_WEIGHT = 100.0
"""Of a class: one scan in ten thousand does not outweigh a batch."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenBatch:
    """Encoded scans."""

    tokens: Tensor
    """float32 (B, T, C)"""
    valid: Tensor
    """bool (B, T): which of them exist."""
    targets: Tensor
    """float32 (B, K) 0 or 1."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageBatch:
    """Windows of scans."""

    cuts: Batch
    """As the loader of pretraining makes them; both views are one cut, no masks."""
    targets: Tensor
    """float32 (B, K) 0 or 1."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageViews:
    """Augmented windows on the device."""

    images: Tensor
    """float32 (B, 1, Z, Y, X) z-scores."""
    targets: Tensor
    """float32 (B, K) 0 or 1."""


class ImageClassifier(nn.Module):
    """An encoder and an attention head."""

    def __init__(self, encoder: Encoder, head: AttentionHead) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 1, Z, Y, X) to logits (B, K)."""
        tokens = tokens_of(self.encoder(images))
        with torch.autocast(tokens.device.type, enabled=False):
            valid = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
            logits: Tensor = self.head(tokens, valid)
        return logits


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """What a training draws from."""

    table: ClassTable
    train: tuple[int, ...]
    """Rows of the table."""
    validation: tuple[int, ...]
    """Rows that say which weights are the best; may be empty."""
    seed: int
    weighted: bool
    """Whether rare classes weigh as much as frequent ones."""

    @property
    def validation_ids(self) -> tuple[str, ...]:
        """Ids of the validation scans."""
        return tuple(self.table.ids[row] for row in self.validation)

    def rows(self, size: int, first: int, number: int) -> Iterator[list[tuple[int, int]]]:
        """Samples first .. first + number, `size` at a time: (sample, row)."""
        for start in range(first, first + number, size):
            yield [
                (k, self.train[int(generator_of(self.seed, k, "scan").integers(len(self.train)))])
                for k in range(start, start + size)
            ]


def class_weights(targets: NDArray[np.float32], *, multi_label: bool, weighted: bool) -> Tensor:
    """Return weights (K,): of the scans of a class; with several labels a scan, of its 1 against its 0."""
    if not weighted:
        return torch.ones(targets.shape[1])
    count = targets.sum(axis=0)
    if multi_label:
        weights = (len(targets) - count) / np.maximum(count, 1)
    else:
        weights = len(targets) / (targets.shape[1] * np.maximum(count, 1))
    return torch.from_numpy(np.clip(weights, 1 / _MOST_WEIGHT, _MOST_WEIGHT).astype(np.float32))


def class_loss(logits: Tensor, targets: Tensor, weights: Tensor, *, multi_label: bool) -> LossTerms:
    """Return the weighted cross-entropy, the mean over samples (and, with several labels, classes)."""
    logits = logits.float()
    if multi_label:
        losses = functional.binary_cross_entropy_with_logits(
            logits, targets, pos_weight=weights, reduction="none"
        )
        total = losses.mean()
    else:
        # Not divided by the batch's own weights: a batch in two parts must be what it is as a whole.
        each = -(functional.log_softmax(logits, dim=1) * targets).sum(dim=1)
        total = (each * (targets * weights).sum(dim=1)).mean()
    return LossTerms(total=total, parts={})


def attention_task(
    head: AttentionHead, features: Mapping[str, ScanFeatures], samples: Samples
) -> Task[TokenBatch, TokenBatch]:
    """Training a head on the tokens of a frozen encoder.

    Args:
        head: On the device it is trained on.
        features: Of all training and validation scans, by id.
        samples: What is drawn from.
    """
    device = next(head.parameters()).device
    table = samples.table
    targets = torch.from_numpy(table.targets)
    weights = _weights(samples).to(device)

    def batches(size: int, first: int, number: int) -> Iterator[TokenBatch]:
        for drawn in samples.rows(size, first, number):
            rows = [row for _, row in drawn]
            parts = [features[table.ids[row]].tokens for row in rows]
            tokens = nn.utils.rnn.pad_sequence(parts, batch_first=True)
            lengths = torch.tensor([len(part) for part in parts])
            valid = torch.arange(tokens.shape[1]) < lengths[:, None]
            yield TokenBatch(tokens=tokens, valid=valid, targets=targets[rows])

    def prepare(batch: TokenBatch) -> TokenBatch:
        return TokenBatch(
            tokens=batch.tokens.to(device), valid=batch.valid.to(device), targets=batch.targets.to(device)
        )

    def loss(net: nn.Module, batch: TokenBatch) -> LossTerms:
        logits = net(batch.tokens, batch.valid)
        return class_loss(logits, batch.targets, weights, multi_label=table.multi_label)

    def evaluate(average: nn.Module) -> Mapping[str, float]:
        assert isinstance(average, AttentionHead)
        return {SCORE: _auc(average, [features[scan_id] for scan_id in samples.validation_ids], samples)}

    return Task(
        net=head,
        batches=batches,
        prepare=prepare,
        loss=loss,
        evaluate=evaluate if samples.validation else None,
        score=SCORE,
    )


def full_task(
    net: ImageClassifier,
    store: Store,
    samples: Samples,
    embedding: EmbeddingConfig,
    augmentation: ViewAugmentation,
) -> Task[ImageBatch, ImageViews]:
    """Training encoder and head on scans; of larger scans, on a window drawn for each sample.

    Args:
        net: On the device it is trained on.
        store: With the scans.
        samples: What is drawn from.
        embedding: Windows; the same for training and evaluation.
        augmentation: How a window is changed.
    """
    device = next(net.parameters()).device
    table = samples.table
    targets = torch.from_numpy(table.targets)
    weights = _weights(samples).to(device)
    crop = crop_of(store, [table.ids[row] for row in samples.train], embedding)

    def batches(size: int, first: int, number: int) -> Iterator[ImageBatch]:
        for drawn in samples.rows(size, first, number):
            ids = tuple(table.ids[row] for _, row in drawn)
            cuts = cut_batch(store, ids, [k for k, _ in drawn], crop, seed=samples.seed)
            yield ImageBatch(cuts=cuts, targets=targets[[row for _, row in drawn]])

    def prepare(batch: ImageBatch) -> ImageViews:
        cuts = batch.cuts.to(device)
        generators = [generator_of(cuts.seed, int(k), "target") for k in cuts.sample_indices]
        drawn = draw(augmentation, generators)
        images, _ = apply_drawn(cuts.target_codes, cuts.target_words, cuts, drawn)
        return ImageViews(images=images, targets=batch.targets.to(device))

    def loss(model: nn.Module, views: ImageViews) -> LossTerms:
        return class_loss(model(views.images), views.targets, weights, multi_label=table.multi_label)

    def evaluate(average: nn.Module) -> Mapping[str, float]:
        assert isinstance(average, ImageClassifier)
        found = encode_store(average.encoder, store, samples.validation_ids, embedding, device=device)
        return {SCORE: _auc(average.head, list(found.values()), samples)}

    return Task(
        net=net,
        batches=batches,
        prepare=prepare,
        loss=loss,
        evaluate=evaluate if samples.validation else None,
        score=SCORE,
    )


def cut_batch(
    store: Store, scan_ids: Sequence[str], sample_indices: Sequence[int], crop: Size, *, seed: int
) -> Batch:
    """Return a window of each scan, where its sample puts it, in the form that augmentation takes."""
    codes, scales, offsets, paddings = [], [], [], []
    for scan_id, sample in zip(scan_ids, sample_indices, strict=True):
        scan = store.scan(scan_id)
        intensity = scan.intensity
        box = draw_box(scan.shape, crop, generator_of(seed, sample, "reference"))
        inside = tuple(
            slice(max(part.start, 0), min(part.stop, size))
            for part, size in zip(box, scan.shape, strict=True)
        )
        part = scan.image_codes(inside)
        moved = tuple(slice(b.start - i.start, b.stop - i.start) for b, i in zip(box, inside, strict=True))
        padding = round((intensity.low - scan.offset) / scan.scale)
        codes.append(np.ascontiguousarray(take(part, (moved[0], moved[1], moved[2]), fill=padding)))
        scales.append(scan.scale / intensity.std)
        offsets.append((scan.offset - intensity.mean) / intensity.std)
        paddings.append(padding)
    stacked = torch.from_numpy(np.stack(codes))[:, None]
    words = torch.zeros(stacked.shape[0], *crop, dtype=torch.int16)
    return Batch(
        reference_codes=stacked,
        target_codes=stacked,
        reference_words=words,
        target_words=words,
        scale=torch.tensor(scales, dtype=torch.float32),
        offset=torch.tensor(offsets, dtype=torch.float32),
        padding_codes=torch.tensor(paddings, dtype=torch.int16),
        sample_indices=torch.tensor(list(sample_indices), dtype=torch.int64),
        scan_ids=tuple(scan_ids),
        seed=seed,
        num_masks=1,
        crop_zyx=crop,
    )


def draw_box(shape: Size, crop: Size, generator: np.random.Generator) -> Slices:
    """Return a window anywhere in a volume; along axes where it is the longer, centred over it."""
    starts = [
        int(generator.integers(size - wide + 1)) if size > wide else -((wide - size) // 2)
        for size, wide in zip(shape, crop, strict=True)
    ]
    z, y, x = (slice(start, start + wide) for start, wide in zip(starts, crop, strict=True))
    return z, y, x


def crop_of(store: Store, scan_ids: Sequence[str], embedding: EmbeddingConfig) -> Size:
    """Return the one window for all scans, for a batch has one shape: what holds the largest, or the most."""
    shapes = np.array([store.entries[scan_id].shape_zyx for scan_id in scan_ids])
    z, y, x = (int(side) for side in shapes.max(axis=0))
    return fit_window((z, y, x), embedding.window_voxels)


def measure_tokens(
    head: AttentionHead, encoder: Encoder, store: Store, scan_ids: Sequence[str], embedding: EmbeddingConfig
) -> None:
    """Standardise a head by the tokens that its encoder makes of some scans as it begins."""
    device = next(encoder.parameters()).device
    found = encode_store(encoder, store, scan_ids, embedding, device=device)
    head.standardise(torch.cat([features.tokens for features in found.values()]).to(device))


def _weights(samples: Samples) -> Tensor:
    table = samples.table
    return class_weights(
        table.targets[list(samples.train)], multi_label=table.multi_label, weighted=samples.weighted
    )


def _auc(head: AttentionHead, features: Sequence[ScanFeatures], samples: Samples) -> float:
    probabilities = probabilities_of(logits_of(head, features), multi_label=samples.table.multi_label)
    return macro_auc(probabilities, samples.table.targets[list(samples.validation)])
