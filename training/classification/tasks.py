"""Classification tasks for the trainer: a head on stored tokens, or an encoder and a head on images.

Reads:  features of scans (frozen encoder), or the scans of a store; a table of classes.
Writes: tasks for `training.engine.trainer`. Sample i of a run is a scan drawn from (seed, i), with
        replacement. Evaluations return the macro AUC on the validation scans, which selects the best weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from storage import Scan, Store
from training.classification.embedding import EmbeddingConfig, ScanFeatures, encode_store, tokens_of
from training.classification.heads import AttentionHead, logits_of, probabilities_of
from training.classification.labels import ClassTable
from training.classification.scores import macro_auc
from training.data import (
    Batch,
    ResampledCut,
    Size,
    Slices,
    ViewAugmentation,
    apply_drawn,
    draw,
    draw_scan_views,
    fit_window,
    generator_of,
    level_window,
    take,
    whole,
)
from training.engine import LossTerms, Task
from training.network import Encoder

SCORE = "auc"

_MOVE_FRACTION = 0.15
"""Largest shift of a view of a whole scan along y and x, as a fraction of its length, as in pretraining."""

_MAX_CLASS_WEIGHT = 100.0
"""Largest weight of a class, so that a single scan of a very rare class does not dominate a batch."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenBatch:
    """Tokens of B encoded scans, padded to the same number."""

    tokens: Tensor
    """float32 (B, T, C); 0 where padded."""
    valid: Tensor
    """bool (B, T): False where padded."""
    targets: Tensor
    """float32 (B, K) 0 or 1."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageBatch:
    """Windows of B scans, before augmentation."""

    cuts: Batch
    """The windows, in the format of pretraining; both views are the same cut, without masks."""
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
    """The scans of a training: classes, rows for training and validation, seed."""

    table: ClassTable
    """Classes of the scans."""
    train: tuple[int, ...]
    """Rows of the training scans."""
    validation: tuple[int, ...]
    """Rows of the validation scans, which select the best weights; may be empty."""
    seed: int
    """Seed of the samples."""
    weighted: bool
    """Whether to weight classes so that rare ones count as much as frequent ones."""

    @property
    def validation_ids(self) -> tuple[str, ...]:
        """Ids of the validation scans."""
        return tuple(self.table.ids[row] for row in self.validation)

    def rows(self, size: int, first: int, number: int) -> Iterator[list[tuple[int, int]]]:
        """Yield batches of (sample number, row of the table), for samples first .. first + number.

        Args:
            size: Samples per batch.
            first: First sample number.
            number: Number of samples; a multiple of `size`.
        """
        for start in range(first, first + number, size):
            yield [
                (k, self.train[int(generator_of(self.seed, k, "scan").integers(len(self.train)))])
                for k in range(start, start + size)
            ]


def class_weights(targets: NDArray[np.float32], *, multi_label: bool, weighted: bool) -> Tensor:
    """Return class weights (K,) for `class_loss`.

    Args:
        targets: (N, K) 0 or 1, of the training scans.
        multi_label: Whether a scan may have several classes. Then the weight of a class is that of its
            positive scans relative to the negative ones; otherwise it is the weight of its scans.
        weighted: False gives weights of 1.
    """
    if not weighted:
        return torch.ones(targets.shape[1])
    count = targets.sum(axis=0)
    if multi_label:
        weights = (len(targets) - count) / np.maximum(count, 1)
    else:
        weights = len(targets) / (targets.shape[1] * np.maximum(count, 1))
    return torch.from_numpy(np.clip(weights, 1 / _MAX_CLASS_WEIGHT, _MAX_CLASS_WEIGHT).astype(np.float32))


def class_loss(logits: Tensor, targets: Tensor, weights: Tensor, *, multi_label: bool) -> LossTerms:
    """Return the weighted cross-entropy, averaged over samples (and over classes for multi-label data).

    Args:
        logits: (B, K).
        targets: (B, K) 0 or 1.
        weights: (K,), see `class_weights`.
        multi_label: Whether a scan may have several classes: binary instead of softmax cross-entropy.
    """
    logits = logits.float()
    if multi_label:
        losses = functional.binary_cross_entropy_with_logits(
            logits, targets, pos_weight=weights, reduction="none"
        )
        total = losses.mean()
    else:
        # Not divided by the sum of the batch's weights: the mean over two halves of a batch must be the mean
        # over the batch.
        each = -(functional.log_softmax(logits, dim=1) * targets).sum(dim=1)
        total = (each * (targets * weights).sum(dim=1)).mean()
    return LossTerms(total=total, parts={})


def attention_task(
    head: AttentionHead, features: Mapping[str, ScanFeatures], samples: Samples
) -> Task[TokenBatch, TokenBatch]:
    """Return the task of training a head on the tokens of a frozen encoder.

    Args:
        head: The head, on the device it is trained on.
        features: Features of all training and validation scans, by id.
        samples: The scans of the training.
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
    """Return the task of training encoder and head on scans; each sample is one random window of a scan.

    With `embedding.whole_scans` it is a shifted view of the whole scan.

    Args:
        net: The network, on the device it is trained on.
        store: The store with the scans.
        samples: The scans of the training.
        embedding: Windows; the same for training and evaluation.
        augmentation: Augmentation of the windows.
    """
    device = next(net.parameters()).device
    table = samples.table
    targets = torch.from_numpy(table.targets)
    weights = _weights(samples).to(device)
    crop = crop_of(store, [table.ids[row] for row in samples.train], embedding)

    def batches(size: int, first: int, number: int) -> Iterator[ImageBatch]:
        for drawn in samples.rows(size, first, number):
            ids = tuple(table.ids[row] for _, row in drawn)
            make = whole_batch if embedding.whole_scans else cut_batch
            cuts = make(store, ids, [k for k, _ in drawn], crop, seed=samples.seed)
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
    """Return a random window of each scan as a batch for augmentation, with both views equal and no masks.

    Args:
        store: The store with the scans.
        scan_ids: The scan of each sample.
        sample_indices: Number of each sample, which determines its window.
        crop: Voxels of a window.
        seed: Seed of the run.
    """
    codes = []
    scans = [store.scan(scan_id) for scan_id in scan_ids]
    for scan, sample in zip(scans, sample_indices, strict=True):
        box = draw_box(scan.shape, crop, generator_of(seed, sample, "reference"))
        inside = tuple(
            slice(max(part.start, 0), min(part.stop, size))
            for part, size in zip(box, scan.shape, strict=True)
        )
        part = scan.image_codes(inside)
        # The box relative to the part that was read.
        local = tuple(slice(b.start - i.start, b.stop - i.start) for b, i in zip(box, inside, strict=True))
        padding = _padding_code(scan)
        codes.append(np.ascontiguousarray(take(part, (local[0], local[1], local[2]), fill=padding)))
    return _batch(scans, codes, sample_indices, crop, seed=seed)


def whole_batch(
    store: Store, scan_ids: Sequence[str], sample_indices: Sequence[int], crop: Size, *, seed: int
) -> Batch:
    """Return a shifted view of each whole scan, resampled to a window; otherwise as `cut_batch`."""
    codes = []
    scans = [store.scan(scan_id) for scan_id in scan_ids]
    for scan, sample in zip(scans, sample_indices, strict=True):
        generator = generator_of(seed, sample, "reference")
        _, view = draw_scan_views(scan.shape, max_move=_MOVE_FRACTION, wide_fraction=0.0, generator=generator)
        level = scan.level_for(level_window(view, scan.shape, crop))
        cut = ResampledCut(view=view, shape=crop, factors=level.factors_zyx)
        region = cut.box.intersect(whole(level.shape_zyx))
        part = scan.image_codes(region.slices, level=level)
        codes.append(cut.take(part, region, padding=_padding_code(scan), image=True))
    return _batch(scans, codes, sample_indices, crop, seed=seed)


def _padding_code(scan: Scan) -> int:
    return round((scan.intensity.low - scan.offset) / scan.scale)


def _batch(
    scans: Sequence[Scan],
    codes: Sequence[NDArray[np.int16]],
    sample_indices: Sequence[int],
    crop: Size,
    *,
    seed: int,
) -> Batch:
    """Return windows of scans as a batch, with both views equal and no masks."""
    stacked = torch.from_numpy(np.stack(codes))[:, None]
    words = torch.zeros(stacked.shape[0], *crop, dtype=torch.int16)
    return Batch(
        reference_codes=stacked,
        target_codes=stacked,
        reference_words=words,
        target_words=words,
        scale=torch.tensor([scan.scale / scan.intensity.std for scan in scans], dtype=torch.float32),
        offset=torch.tensor(
            [(scan.offset - scan.intensity.mean) / scan.intensity.std for scan in scans], dtype=torch.float32
        ),
        padding_codes=torch.tensor([_padding_code(scan) for scan in scans], dtype=torch.int16),
        sample_indices=torch.tensor(list(sample_indices), dtype=torch.int64),
        scan_ids=tuple(scan.id for scan in scans),
        seed=seed,
        num_masks=1,
        crop_zyx=crop,
    )


def draw_box(shape: Size, crop: Size, generator: np.random.Generator) -> Slices:
    """Return a window at a random position in a volume; centred along axes where it is longer."""
    starts = [
        int(generator.integers(size - wide + 1)) if size > wide else -((wide - size) // 2)
        for size, wide in zip(shape, crop, strict=True)
    ]
    z, y, x = (slice(start, start + wide) for start, wide in zip(starts, crop, strict=True))
    return z, y, x


def crop_of(store: Store, scan_ids: Sequence[str], embedding: EmbeddingConfig) -> Size:
    """Return one window size for all scans: that of the largest scan, at most `window_voxels`.

    Whole scans are shown in windows of exactly `window_voxels`.
    """
    if embedding.whole_scans:
        return embedding.window_voxels
    shapes = np.array([store.entries[scan_id].shape_zyx for scan_id in scan_ids])
    z, y, x = (int(side) for side in shapes.max(axis=0))
    return fit_window((z, y, x), embedding.window_voxels)


def measure_tokens(
    head: AttentionHead, encoder: Encoder, store: Store, scan_ids: Sequence[str], embedding: EmbeddingConfig
) -> None:
    """Set the input normalisation of a head from the tokens of some scans, before the training.

    Args:
        head: Changed in place.
        encoder: Encoder with its initial weights.
        store: The store with the scans.
        scan_ids: Ids of the scans to encode.
        embedding: Windows and precision.
    """
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
