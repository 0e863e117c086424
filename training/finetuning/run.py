"""Fine-tuning: a network and the tokens of some structures, trained on labelled scans of a store.

    checkpoint --> network --------------------+
    labelled scans --encode, average--> tokens +--> trained on labels --> weights.safetensors

*Reads* a checkpoint and a store's scans with labels. *Writes* a run's folder (`training.engine.run_folder`)
with the same trainer as pretraining, and at the end report.json: Dice, HD95 and ASD of each structure on
held-out scans. The initial tokens are those of in-context segmentation with the training scans as references,
so before the first step the network is as good as in-context segmentation.

The tokens are always trained; in addition, the mode "full" trains encoder, decoder and mask head, "decoder"
the decoder and the mask head, and "tokens" nothing else. The task encoding, which only encodes references, is
not used and does not change.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from storage import Store, StorePath, open_store, write_atomically
from training.data import Share
from training.engine import (
    Callbacks,
    ChosenPrecision,
    DeviceName,
    LossTerms,
    Ranks,
    RunRecord,
    Task,
    Trainer,
    TrainingProgress,
    TrainingResult,
    has_begun,
    joined_processes,
    open_run,
    segmentation_loss,
    settle_precision,
)
from training.evaluation import TITLES, Evaluation
from training.files import RECORD, read_settings
from training.finetuning.carried_labels import CarriedMaps
from training.finetuning.config import FinetuneConfig, with_chosen_window
from training.finetuning.evaluation import evaluate_tokens, report_document, scalars
from training.finetuning.initial_tokens import OnScan, initial_tokens, random_tokens
from training.finetuning.labelled_samples import (
    LabelledBatch,
    LabelledViews,
    LabelReader,
    augment_labelled,
    make_labelled_loader,
)
from training.finetuning.scans import LabelledScans, Mode, choose_scans
from training.inference import FINETUNED, Case, PromptedIris, TokenTable, write_png
from training.network import (
    MODEL_CARD,
    WEIGHTS,
    Iris,
    ModelCard,
    TrainedOn,
    export_weights,
    load_checkpoint,
    preparation_warning,
    weights_file,
)

REPORT = "report.json"

_DRAWN_STRUCTURES = 4
"""Largest number of structures of a sample in a picture."""
_USE = """\
from training import load_finetuned, predict_labels

tuned = load_finetuned("FILE.safetensors")
config = tuned.inference()
labels = predict_labels(tuned.net, image, tuned.prompt(config), config)  # z-scores (z,y,x); 0 or 1 + index"""


@dataclass(frozen=True, kw_only=True)
class Finetuning:
    """The outcome of a fine-tuning."""

    result: TrainingResult
    """Result of the trainer."""
    scans: LabelledScans
    """Training scans and held-out scans."""
    resumed: bool
    """Whether the training was resumed from a checkpoint."""
    is_first: bool
    """Whether this process writes files and prints messages."""
    weights: Path | None
    """Path of the exported weights; None if the run is not complete."""
    report: Evaluation | None
    """Scores on the held-out scans; None if the run is not complete, or there are none."""


def finetune(
    checkpoint: Path,
    store_path: StorePath,
    folder: Path,
    config: FinetuneConfig,
    *,
    resume: bool = False,
    device: DeviceName = "auto",
    callbacks: Callbacks | None = None,
) -> Finetuning:
    """Fine-tune a network and write the run's folder; under torchrun, in all its processes together.

    Args:
        checkpoint: A checkpoint of Iris: of a run, the folder of a complete run, or the published one. With
            `from_scratch`, only its numbers of channels are used.
        store_path: Path or URL of the store.
        folder: Folder of the run; created if it does not exist.
        config: All settings.
        resume: Whether to resume the run in the folder.
        device: Device to compute on.
        callbacks: Functions to call while it trains.

    Raises:
        CheckpointError: The checkpoint is not one of Iris.
        DataError: The store lacks the label or the scans in the settings, or a scan cannot be read.
        RunError: There is a run in the folder (or, with `resume`, none), or another process trains in it.
        ConfigError: Settings, checkpoint or scans differ from those of the run, or are invalid.
        NonFiniteLoss: A loss or gradient is NaN or infinite.
    """
    callbacks = callbacks or Callbacks()
    checkpoint = weights_file(checkpoint)
    net = load_checkpoint(checkpoint)
    store = open_store(store_path)
    warning = "" if config.finetune.from_scratch else preparation_warning(net.trained_on, store)
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()[:16]
    config = replace(config, finetune=replace(config.finetune, checkpoint_digest=digest))
    scans = choose_scans(store, config.finetune)
    config = with_known_labels(config, scans)
    shapes = [store.entries[scan_id].shape_zyx for scan_id in scans.trained_on]
    config = with_chosen_window(config, net.trained_on, shapes)
    record = _record(store, scans, _as_begun(config, folder) if resume else config)
    with joined_processes(device) as (ranks, where):
        wanted = config.optimisation.precision
        precision = settle_precision(folder, wanted, where, resume=resume, ranks=ranks)
        job = _Job(
            store=store,
            folder=folder,
            config=config,
            record=record,
            scans=scans,
            table=token_table(store, scans, config),
            ranks=ranks,
            device=where,
            precision=precision,
            on_scan=callbacks.scan if ranks.is_first else None,
        )
        with open_run(folder, record, precision, resume=resume, ranks=ranks):
            if ranks.is_first:
                _announce(callbacks, precision, (warning, _stale_warning(scans)))
            return job.train(net, callbacks.progress)


def _record(store: Store, scans: LabelledScans, config: FinetuneConfig) -> RunRecord:
    """Return the settings and scans that the run's folder records."""
    crop = config.data.boxes.crop_zyx
    views = TrainedOn.of_store(store, crop, whole_scans=config.data.whole_fraction > 0)
    return RunRecord.of_store(store, scans.trained_on, config.values(), views)


def with_known_labels(config: FinetuneConfig, scans: LabelledScans) -> FinetuneConfig:
    """Return the settings with absolute path and digest of the carried labels; without them unchanged."""
    if not scans.carried:
        return config
    # The absolute path, because a run may be resumed from another folder, or with the option given again.
    folder = str(Path(config.finetune.carried).resolve())
    tuning = replace(config.finetune, carried=folder, carried_digest=scans.carried_digest)
    return replace(config, finetune=tuning)


def _as_begun(config: FinetuneConfig, folder: Path) -> FinetuneConfig:
    """Return the settings with the path of carried labels that the run began with, if they are the same."""
    if not config.finetune.carried or not (folder / RECORD).exists():
        return config
    begun = read_settings(folder).get("finetune", {})
    if begun.get("carried_digest") != config.finetune.carried_digest:
        return config
    return replace(config, finetune=replace(config.finetune, carried=begun["carried"]))


def _stale_warning(scans: LabelledScans) -> str:
    """Return which carried labels are left out because they are out of date; empty if none is."""
    if not scans.stale:
        return ""
    more = f" and {len(scans.stale) - 1} more" if len(scans.stale) > 1 else ""
    return (
        f"carried labels of {scans.stale[0]}{more} are left out: these scans, or those that the labels are "
        "from, were prepared anew since. `mass carry` makes them again (--to names scans that have labels)"
    )


def _announce(callbacks: Callbacks, precision: ChosenPrecision, warnings: Iterable[str]) -> None:
    """Call the callbacks for precision and warnings, before the first step."""
    for warning in warnings:
        if warning and callbacks.warning:
            callbacks.warning(warning)
    if callbacks.precision:
        callbacks.precision(precision)


def token_table(store: Store, scans: LabelledScans, config: FinetuneConfig) -> TokenTable:
    """Return the table of a fine-tuning's tokens: their structures, and the preparation of the scans."""
    return TokenTable(
        label=scans.label,
        structures=scans.structures,
        spacing_mm=store.info.spacing_mm,
        ingest=store.info.config.get("ingest", {}),
        modalities=scans.modalities,
        window_voxels=config.data.boxes.crop_zyx,
        masks_at_once=config.data.structures_at_once,
        whole_scans=config.data.whole_fraction > 0,
        fine_windows=config.data.max_fine_windows if config.data.whole_fraction > 0 else 0,
    )


@dataclass(frozen=True, kw_only=True)
class _Job:
    """A fine-tuning, after its folder was created or checked."""

    store: Store
    folder: Path
    config: FinetuneConfig
    record: RunRecord
    scans: LabelledScans
    table: TokenTable
    ranks: Ranks
    device: torch.device
    precision: ChosenPrecision
    on_scan: OnScan | None

    def train(self, net: Iris, on_progress: Callable[[TrainingProgress], None] | None) -> Finetuning:
        """Train and, if the run is complete, export the weights and evaluate them."""
        config, resumed = self.config, has_begun(self.folder)
        torch.manual_seed(config.optimisation.seed)
        if config.finetune.from_scratch:
            net = Iris(net.channels)
        net = net.to(self.device).eval()
        if config.finetune.from_scratch or resumed:
            tokens = random_tokens(net, len(self.table.structures))
        else:
            tokens = initial_tokens(net, self.store, self.scans, config, on_scan=self.on_scan)
        model = PromptedIris(net, tokens).to(self.device)
        freeze(model, config.finetune.mode)
        trainer = Trainer(
            finetuning_task(model, self.store, config, self.scans, self.table, self.ranks),
            self.folder,
            optimisation=config.optimisation,
            run=config.run,
            ranks=self.ranks,
            settings={
                **config.values(),
                "trained_on": self.record.trained_on.to_json(),
                FINETUNED: self.table.to_json(),
            },
            precision=self.precision,
            on_progress=on_progress,
        )
        if resumed:
            trainer.resume()
        result = trainer.run()
        weights, report = None, None
        if result.complete and self.ranks.is_first:
            weights, report = self._finish(result)
        return Finetuning(
            result=result,
            scans=self.scans,
            resumed=resumed,
            is_first=self.ranks.is_first,
            weights=weights,
            report=report,
        )

    def _finish(self, result: TrainingResult) -> tuple[Path, Evaluation | None]:
        """Export the averaged weights, then write the report on the held-out scans."""
        assert isinstance(result.average, PromptedIris)
        net = result.average.module
        weights, card = self.folder / WEIGHTS, self._card(result)
        export_weights(net, weights, card).replace(self.folder / MODEL_CARD)
        if not self.scans.held_out:
            return weights, None
        report = evaluate_tokens(
            net,
            self.store,
            self.table,
            self.scans.held_out,
            self.config.inference,
            device=self.device,
            progress=partial(self.on_scan, "report") if self.on_scan else None,
            distances=True,
        )
        document = json.dumps(report_document(report), indent=1).encode() + b"\n"
        write_atomically(self.folder / REPORT, lambda file: file.write(document))
        figures = {
            f"{title} of {part.structure} ({part.num_cases} held-out scans)": getattr(part, measure)
            for part in report.structures
            for measure, title in TITLES.items()
        }
        text = replace(card, figures=figures).to_markdown(net).replace("FILE.safetensors", weights.name)
        write_atomically(self.folder / MODEL_CARD, lambda file: file.write(text.encode()))
        return weights, report

    def _card(self, result: TrainingResult) -> ModelCard:
        names = ", ".join(part.name for part in self.table.structures)
        start = "from random weights" if self.config.finetune.from_scratch else "from a checkpoint"
        title = f"Iris, fine-tuned on {len(self.scans.training)} scans of {self.record.store_name}"
        more = (
            f"; {len(self.scans.carried)} more scans with labels carried over" if self.scans.carried else ""
        )
        return replace(
            self.record.card(title, result.step),
            summary=f"Trained {start} on labels ({self.table.label}: {names}{more}); needs no references.",
            use=_USE,
            metadata={FINETUNED: json.dumps(self.table.to_json())},
        )


def freeze(model: PromptedIris, mode: Mode) -> None:
    """Set `requires_grad` of all weights: True for those that the mode trains, else False."""
    net = model.module
    model.requires_grad_(False)
    parts: Iterable[nn.Module] = {
        "full": (net.encoder, net.decoder, net.out),
        "decoder": (net.decoder, net.out),
        "tokens": (),
    }[mode]
    for part in parts:
        part.requires_grad_(True)
    for name, weight in net.named_parameters(recurse=False):
        assert name.startswith("task_prior_")
        weight.requires_grad_(True)


# ------------------------------------------------------------ the task


def finetuning_task(
    model: PromptedIris,
    store: Store,
    config: FinetuneConfig,
    scans: LabelledScans,
    table: TokenTable,
    ranks: Ranks,
) -> Task[LabelledBatch, LabelledViews]:
    """Return the task of a fine-tuning for the trainer.

    Args:
        model: The network, on the device it is trained on, after `freeze`.
        store: Store that samples are read from.
        config: All settings.
        scans: Training scans and held-out scans.
        table: Structures of the tokens.
        ranks: Rank of this process.
    """
    device = next(model.parameters()).device
    on_gpu = device.type == "cuda"
    seed = config.optimisation.seed
    reader = _reader(store, config, scans)
    validation = [
        scan_id
        for scan_id in scans.held_out
        if np.prod(store.entries[scan_id].shape_zyx) <= config.run.max_evaluation_voxels
    ][: config.finetune.num_validation]

    def batches(size: int, first: int, number: int) -> Iterable[LabelledBatch]:
        share = Share(
            first_sample=first,
            num_samples=number,
            batch_size=size,
            rank=ranks.rank,
            world_size=ranks.world_size,
        )
        return make_labelled_loader(
            reader, config.data, share, seed=seed, num_workers=config.run.num_workers, pin_memory=on_gpu
        )

    def prepare(batch: LabelledBatch) -> LabelledViews:
        return augment_labelled(batch.to(device, non_blocking=on_gpu), config.augmentation)

    def evaluate(average: nn.Module) -> Mapping[str, float]:
        assert isinstance(average, PromptedIris)
        return scalars(
            evaluate_tokens(average.module, store, table, validation, config.inference, device=device)
        )

    return Task(
        net=model,
        batches=batches,
        prepare=prepare,
        loss=labelled_loss,
        evaluate=evaluate if validation else None,
        draw=draw_labelled,
    )


def _reader(store: Store, config: FinetuneConfig, scans: LabelledScans) -> LabelReader:
    """Return the reader of the samples: labelled scans, and those with carried labels."""
    return LabelReader(
        store,
        scans.trained_on,
        scans.label,
        scans.structures,
        config.data,
        seed=config.optimisation.seed,
        carried=CarriedMaps(Path(config.finetune.carried), scans.carried),
    )


def labelled_loss(net: nn.Module, views: LabelledViews) -> LossTerms:
    """Return the loss of segmenting the structures of the samples, including absent ones."""
    return segmentation_loss(net(views.image, views.structures), views.masks)


def draw_labelled(net: nn.Module, views: LabelledViews, path: Path) -> None:
    """Write a picture of the first sample: labelled structures on the left, predictions on the right."""
    logits = net(views.image[:1], views.structures[:1])[0]
    image = views.image[0, 0].cpu().numpy()
    visible = views.masks[0].flatten(1).any(1).nonzero().flatten().tolist()
    cases = [
        Case(
            reference=image,
            mask=views.masks[0, k].cpu().numpy(),
            target=image,
            prediction=(logits[k] > 0).cpu().numpy(),
            expected=views.masks[0, k].cpu().numpy(),
            title=f"structure {int(views.structures[0, k])}",
        )
        for k in visible[:_DRAWN_STRUCTURES]
    ]
    if cases:
        write_png(path, cases)
