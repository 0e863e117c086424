"""Pretraining of an encoder without masks: what all such arms share.

An arm is a module with a network around the encoder, a change of the views, and a loss. Everything else is
that of pretraining on masks: the same encoder, scans, loader, windows, augmentation, optimiser and steps.
Both views of a sample are used, each by itself, so that the encoder sees as many voxels a step.

*Reads* a store. *Writes* a run's folder, with weights.safetensors: the trained encoder, and a decoder and a
task encoding with random weights, which no training has touched. `mass classify --checkpoint`,
`mass embed` and `mass finetune` read it; the bench's own fine-tuning takes the encoder alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from storage import Store
from training.data import Batch, Share, augment
from training.engine import (
    LossTerms,
    Ranks,
    RunRecord,
    Task,
    Trainer,
    TrainingResult,
    choose_device,
    has_begun,
    is_run,
    open_run,
    settle_precision,
)
from training.network import WEIGHTS, Iris, ModelCard, TrainedOn, export_weights
from training.network.blocks import ResidualBlock
from training.network.encoder import Encoder
from training.pretraining import PretrainConfig
from training.pretraining.stages import staged_batches

ViewsT = TypeVar("ViewsT")
Change = Callable[[Tensor, "list[np.random.Generator]"], ViewsT]
"""From images (B, 1, Z, Y, X), z-scores, and a generator for each to what the loss takes."""

_STREAM = 7
"""Of the generators of these arms; those of `training.data` are 0 to 2."""


@dataclass(frozen=True, kw_only=True)
class SelfSupervised(Generic[ViewsT]):
    """An arm that pretrains the encoder alone."""

    name: str
    make: Callable[[Encoder, tuple[int, ...]], nn.Module]
    """The network around an encoder of these channels; its attribute `encoder` is the encoder."""
    change: Change[ViewsT]
    loss: Callable[[nn.Module, ViewsT], LossTerms]


def pretrain_encoder(
    arm: SelfSupervised[Any], store: Store, folder: Path, config: PretrainConfig
) -> TrainingResult:
    """Pretrain, or go on with it, and write the run's folder; the same seed gives the same weights.

    Args:
        arm: What is learnt.
        store: The store; scans named in `config.data.exclude` are left out.
        folder: Of the run.
        config: As for pretraining on masks; its window is chosen already.
    """
    scans = tuple(scan_id for scan_id in sorted(store.entries) if scan_id not in config.data.exclude)
    trained_on = TrainedOn.of_store(store, config.data.crop_zyx, whole_scans=config.data.whole_fraction > 0)
    settings = {**config.values(), "arm": {"name": arm.name}}
    record = RunRecord.of_store(store, scans, settings, trained_on)
    device = choose_device("auto")
    resume = is_run(folder)
    precision = settle_precision(folder, config.optimisation.precision, device, resume=resume)
    torch.manual_seed(config.optimisation.seed)
    net = config.model.make().to(device)
    model = arm.make(net.encoder, net.channels).to(device)
    with open_run(folder, record, precision, resume=resume, ranks=Ranks()):
        trainer = Trainer(
            task_of(arm, model, store, scans, config),
            folder,
            optimisation=config.optimisation,
            run=config.run,
            settings={**config.values(), "trained_on": trained_on.to_json()},
            precision=precision,
        )
        if has_begun(folder):
            trainer.resume()
        result = trainer.run()
        if result.complete:
            encoder = result.average.encoder
            assert isinstance(encoder, Encoder)
            export_encoder(encoder, config, folder / WEIGHTS, _card(arm.name, record, result.step))
    return result


def task_of(
    arm: SelfSupervised[ViewsT],
    model: nn.Module,
    store: Store,
    scans: tuple[str, ...],
    config: PretrainConfig,
) -> Task[Batch, ViewsT]:
    """Return the task for the trainer: the samples of pretraining on masks, without the masks."""
    device = next(model.parameters()).device

    def batches(size: int, first: int, number: int) -> Iterable[Batch]:
        share = Share(first_sample=first, num_samples=number, batch_size=size)
        return staged_batches(store, scans, config, share)

    def prepare(batch: Batch) -> ViewsT:
        views = augment(batch.to(device), config.augmentation)
        samples = [int(index) for index in batch.sample_indices]
        generators = [
            np.random.default_rng((batch.seed, sample, _STREAM, view))
            for view in (0, 1)
            for sample in samples
        ]
        return arm.change(torch.cat([views.reference, views.target]), generators)

    return Task(net=model, batches=batches, prepare=prepare, loss=arm.loss)


def export_encoder(encoder: Encoder, config: PretrainConfig, path: Path, card: ModelCard) -> None:
    """Write an encoder as weights of Iris; all other weights are those that the run's seed draws."""
    torch.manual_seed(config.optimisation.seed)
    net = Iris(config.model.channels, config.model.num_tasks, position_std=config.model.position_std)
    net.encoder.load_state_dict({name: value.cpu() for name, value in encoder.state_dict().items()})
    export_weights(net, path, card)


def _card(name: str, record: RunRecord, steps: int) -> ModelCard:
    title = f"Encoder of Iris, pretrained by {name} on {len(record.scans)} scans of {record.store_name}"
    return replace(
        record.card(title, steps),
        summary="A baseline of the test bench. Only the encoder is trained: it cannot segment in context.",
        metadata={"mass3d_bench": json.dumps({"arm": name})},
    )


class Restoring(nn.Module):
    """Encoder and a light decoder with skip connections: from an image to an image.

    Each step up is a 1x1x1 convolution to the width of the next stage, trilinear upsampling, the sum with the
    encoder's features of that stage, and one residual block.
    """

    def __init__(self, encoder: Encoder, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.encoder = encoder
        deepest_first = channels[::-1]
        self.narrow = nn.ModuleList(nn.Conv3d(wide, narrow, 1) for wide, narrow in pairwise(deepest_first))
        self.blocks = nn.ModuleList(ResidualBlock(width, width) for width in deepest_first[1:])
        self.out = nn.Conv3d(channels[0], 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Map (B, 1, Z, Y, X) to the same shape."""
        features = self.encoder(image)
        x = features[0]
        for narrow, block, skip in zip(self.narrow, self.blocks, features[1:], strict=True):
            x = nn.functional.interpolate(
                narrow(x), size=skip.shape[2:], mode="trilinear", align_corners=False
            )
            x = block(x + skip)
        restored: Tensor = self.out(x)
        return restored
