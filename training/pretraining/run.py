"""Pretraining: in-context segmentation of the mask proposals of a store; no labels are used for training.

*Reads* a store. *Writes* a run's folder (`training.engine.run_folder`). A sample is two overlapping crops of
a scan: the network gets the reference with some masks, and segments the same masks in the target. If two
scans of the store share a label map, the averaged network is evaluated regularly on labelled structures, in
context with one labelled reference; these labels are not trained on.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from storage import Store, StorePath, open_store
from training.data import (
    Batch,
    KnownScans,
    ScanSplit,
    Share,
    Views,
    augment,
    read_pair_table,
    split_scans,
    window_for,
)
from training.engine import (
    Callbacks,
    ChosenPrecision,
    DeviceName,
    LossTerms,
    Ranks,
    Rehearsal,
    RunRecord,
    Task,
    Trainer,
    TrainingProgress,
    TrainingResult,
    has_begun,
    joined_processes,
    open_run,
    rehearse,
    segmentation_loss,
    settle_precision,
)
from training.evaluation import EvaluationConfig, evaluate_in_context
from training.inference import Case, write_png
from training.network import (
    MODEL_CARD,
    WEIGHTS,
    Iris,
    TrainedOn,
    export_weights,
)
from training.pretraining.config import PretrainConfig
from training.pretraining.stages import Stage, staged_batches, stages_of, with_window

_DRAWN_MASKS = 4
"""Largest number of masks of a sample in a picture."""


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """The outcome of a pretraining."""

    result: TrainingResult
    """Result of the trainer."""
    num_scans: int
    """Number of training scans."""
    resumed: bool
    """Whether the training was resumed from a checkpoint."""
    is_first: bool
    """Whether this process writes files and prints messages."""
    precision: ChosenPrecision
    """Precision of the network."""
    weights: Path | None
    """Path of the exported weights; None if the run is not complete."""


def pretrain(
    store_path: StorePath,
    folder: Path,
    config: PretrainConfig,
    *,
    resume: bool = False,
    device: DeviceName = "auto",
    callbacks: Callbacks | None = None,
) -> Pretraining:
    """Pretrain a network and write the run's folder; under torchrun, in all its processes together.

    Args:
        store_path: Path or URL of the store.
        folder: Folder of the run; created if it does not exist.
        config: All settings.
        resume: Whether to resume the run in the folder.
        device: Device to compute on.
        callbacks: Functions to call while it trains.

    Raises:
        RunError: There is a run in the folder (or, with `resume`, none), or another process trains in it.
        ConfigError: Settings or scans differ from those of the run, or are invalid.
        DataError: A scan cannot be read.
        NonFiniteLoss: A loss or gradient is NaN or infinite.
    """
    callbacks = callbacks or Callbacks()
    store = open_store(store_path)
    split = split_scans(store.entries, config.data)
    config = with_chosen_window(config, [store.entries[scan_id].shape_zyx for scan_id in split.training])
    config = with_known_pairs(config, store, split)
    views = TrainedOn.of_store(store, config.data.crop_zyx, whole_scans=config.data.whole_fraction > 0)
    record = RunRecord.of_store(store, split.training, config.values(), views)
    with joined_processes(device) as (ranks, where):
        wanted = config.optimisation.precision
        precision = settle_precision(folder, wanted, where, resume=resume, ranks=ranks)
        job = _Job(
            store=store,
            folder=folder,
            config=config,
            record=record,
            split=split,
            ranks=ranks,
            device=where,
            precision=precision,
        )
        with open_run(folder, record, precision, resume=resume, ranks=ranks):
            if callbacks.precision and ranks.is_first:
                callbacks.precision(precision)
            return job.train(callbacks.progress)


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """Time and memory of a pretraining, measured over a few steps."""

    stages: tuple[tuple[Stage, Rehearsal], ...]
    """Time and memory of a step, for each stage of the training."""
    num_scans: int
    """Number of training scans."""
    config: PretrainConfig
    """The settings, with the chosen window."""
    device: str
    """Device on which it was measured."""
    precision: ChosenPrecision
    """Precision of the network."""
    is_first: bool
    """Whether this process prints messages."""

    @property
    def run_seconds(self) -> float:
        """Time of all steps, without evaluations and pictures."""
        return sum(stage.num_steps * steps.step_seconds for stage, steps in self.stages)

    @property
    def steps(self) -> Rehearsal:
        """Time and memory of a step of the last stage, which needs the most memory."""
        return self.stages[-1][1]


def rehearse_pretraining(store_path: Path, config: PretrainConfig, *, device: DeviceName = "auto") -> DryRun:
    """Measure time and memory of a few steps of a pretraining; writes nothing.

    Args:
        store_path: Path of the store.
        config: All settings.
        device: Device to compute on.
    """
    store = open_store(store_path)
    split = split_scans(store.entries, config.data)
    shapes = [store.entries[scan_id].shape_zyx for scan_id in split.training]
    config = with_chosen_window(config, shapes)
    with joined_processes(device) as (ranks, where):
        precision = settle_precision(Path(), config.optimisation.precision, where, resume=False, ranks=ranks)
        rehearsed = []
        for stage in stages_of(config.data, shapes, config.optimisation.num_steps):
            torch.manual_seed(config.optimisation.seed)
            net = config.model.make().to(where)
            alone = replace(config, data=replace(stage.data, early_fraction=0.0))
            trainer = Trainer(
                pretraining_task(net, store, alone, split, ranks),
                Path(),  # nothing is written
                optimisation=config.optimisation,
                run=config.run,
                ranks=ranks,
                precision=precision,
            )
            rehearsed.append((stage, rehearse(trainer)))
        return DryRun(
            stages=tuple(rehearsed),
            num_scans=len(split.training),
            config=config,
            device=str(where),
            precision=precision,
            is_first=ranks.is_first,
        )


@dataclass(frozen=True, kw_only=True)
class _Job:
    """A pretraining, after its folder was created or checked."""

    store: Store
    folder: Path
    config: PretrainConfig
    record: RunRecord
    split: ScanSplit
    ranks: Ranks
    device: torch.device
    precision: ChosenPrecision

    def train(self, on_progress: Callable[[TrainingProgress], None] | None) -> Pretraining:
        """Train, and export the weights if the run is complete."""
        config, record = self.config, self.record
        torch.manual_seed(config.optimisation.seed)
        net = config.model.make().to(self.device)
        trainer = Trainer(
            pretraining_task(net, self.store, config, self.split, self.ranks),
            self.folder,
            optimisation=config.optimisation,
            run=config.run,
            ranks=self.ranks,
            settings={**config.values(), "trained_on": record.trained_on.to_json()},
            precision=self.precision,
            on_progress=on_progress,
        )
        resumed = has_begun(self.folder)
        if resumed:
            trainer.resume()
        result = trainer.run()
        return Pretraining(
            result=result,
            num_scans=len(record.scans),
            resumed=resumed,
            is_first=self.ranks.is_first,
            precision=self.precision,
            weights=self._export(result) if result.complete and self.ranks.is_first else None,
        )

    def _export(self, result: TrainingResult) -> Path:
        """Write the averaged weights and their card; return the path of the weights."""
        record, weights = self.record, self.folder / WEIGHTS
        title = f"Iris, pretrained on {len(record.scans)} scans of {record.store_name}"
        card = record.card(title, result.step)
        assert isinstance(result.average, Iris)
        export_weights(result.average, weights, card).replace(self.folder / MODEL_CARD)
        return weights


def with_chosen_window(config: PretrainConfig, shapes: Sequence[tuple[int, int, int]]) -> PretrainConfig:
    """Return the settings with the best window for the scans, if `max_window_voxels` is set; else unchanged.

    Args:
        config: All settings.
        shapes: Voxels along z, y, x of the training scans.
    """
    if not config.data.max_window_voxels:
        return config
    window = window_for(shapes, config.data.max_window_voxels)
    inference = replace(
        config.evaluation.inference,
        window_voxels=window,
        reference_voxels=window,
        whole_scans=config.data.whole_fraction > 0,
    )
    return replace(
        config,
        data=with_window(config.data, window),
        evaluation=replace(config.evaluation, inference=inference),
    )


def with_known_pairs(config: PretrainConfig, store: Store, split: ScanSplit) -> PretrainConfig:
    """Return the settings with absolute path and digest of the run's pairs; without pairs unchanged."""
    data = config.data
    if not data.pairs:
        return config
    known = KnownScans(store, split.training).digests
    digest = data.pairs_digest or read_pair_table(data.pairs, known).digest
    # The absolute path, because a run may be resumed from another folder, or with the option given again.
    pairs = str(Path(data.pairs).absolute())
    return replace(config, data=replace(data, pairs=pairs, pairs_digest=digest))


def pretraining_task(
    net: Iris, store: Store, config: PretrainConfig, split: ScanSplit, ranks: Ranks
) -> Task[Batch, Views]:
    """Return the task of a pretraining for the trainer.

    Args:
        net: The network, on the device it is trained on.
        store: Store that samples are read from.
        config: All settings.
        split: Training scans and held-out scans.
        ranks: Rank of this process.
    """
    device = next(net.parameters()).device
    on_gpu = device.type == "cuda"
    evaluation = choose_evaluation(store, config, split)

    def batches(size: int, first: int, number: int) -> Iterator[Batch]:
        share = Share(
            first_sample=first,
            num_samples=number,
            batch_size=size,
            rank=ranks.rank,
            world_size=ranks.world_size,
        )
        return staged_batches(store, split.training, config, share, pin_memory=on_gpu)

    def prepare(batch: Batch) -> Views:
        return augment(batch.to(device, non_blocking=on_gpu), config.augmentation)

    def evaluate(average: nn.Module) -> Mapping[str, float]:
        assert evaluation is not None
        return evaluate_scalars(average, store, evaluation, device)

    return Task(
        net=net,
        batches=batches,
        prepare=prepare,
        loss=in_context_loss,
        evaluate=evaluate if evaluation else None,
        draw=draw_first_sample,
    )


def in_context_loss(net: nn.Module, views: Views) -> LossTerms:
    """Return the loss of segmenting, in the target, the masks given in the reference."""
    logits = net(views.target, views.reference, views.reference_masks)
    return segmentation_loss(logits, views.target_masks)


def choose_evaluation(store: Store, config: PretrainConfig, split: ScanSplit) -> EvaluationConfig | None:
    """Return the settings of evaluations during a training; None if no two scans share a label map.

    If the settings name no targets, they are labelled scans of at most `max_evaluation_voxels`: held-out ones
    if there are any, else any. References are drawn from the other scans; their labels are not trained on.
    """
    wanted = config.evaluation
    labelled = {
        scan_id: entry
        for scan_id, entry in sorted(store.entries.items())
        if entry.labels
        and wanted.label in ("", *entry.labels)
        and (not wanted.datasets or entry.dataset in wanted.datasets)
    }
    cases = {(entry.dataset, label, entry.case_key) for entry in labelled.values() for label in entry.labels}
    partners = Counter((dataset, label) for dataset, label, _ in cases)
    possible = [
        scan_id
        for scan_id, entry in labelled.items()
        if math.prod(entry.shape_zyx) <= config.run.max_evaluation_voxels
        and any(partners[entry.dataset, label] > 1 for label in entry.labels)
    ]
    if wanted.targets or not possible:
        return wanted if wanted.targets else None
    kept_out = [scan_id for scan_id in possible if scan_id in split.holdout]
    targets: dict[str, list[str]] = {}
    for scan_id in kept_out or possible:
        targets.setdefault(labelled[scan_id].dataset, []).append(scan_id)
    chosen = tuple(scan_id for ids in targets.values() for scan_id in ids[: wanted.num_targets])
    return replace(wanted, targets=chosen)


def evaluate_scalars(
    net: nn.Module, store: Store, config: EvaluationConfig, device: torch.device
) -> dict[str, float]:
    """Return the in-context Dice on labelled scans: the mean ("dice"), and that of each structure."""
    evaluation = evaluate_in_context(net, store, config, device=device)
    each = {f"dice/{part.dataset}/{part.label}/{part.structure}": part.dice for part in evaluation.structures}
    return {"dice": evaluation.mean_dice, **each}


def draw_first_sample(net: nn.Module, views: Views, path: Path) -> None:
    """Write a picture of the first sample: reference with some masks, target with the predictions."""
    visible = (views.reference_masks[0].flatten(1).any(1) & views.target_masks[0].flatten(1).any(1)).nonzero()
    chosen = visible.flatten()[:_DRAWN_MASKS]
    reference, target = views.reference[:1], views.target[:1]
    predicted = net(target, reference, views.reference_masks[:1, chosen]) > 0
    cases = [
        Case(
            reference=reference[0, 0].cpu().numpy(),
            mask=views.reference_masks[0, mask].cpu().numpy(),
            target=target[0, 0].cpu().numpy(),
            prediction=predicted[0, index].cpu().numpy(),
            expected=views.target_masks[0, mask].cpu().numpy(),
            title=f"mask {int(mask)}",
        )
        for index, mask in enumerate(chosen)
    ]
    write_png(path, cases)
