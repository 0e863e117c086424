"""Classification of whole scans: a frozen encoder with a head, or all weights trained; figures for each.

    frozen-linear     pooled features, standardised, logistic regression
    frozen-attention  tokens of the frozen encoder, attention and a linear map, trained by the one trainer
    full              encoder, attention and map, trained by the one trainer on augmented windows

Reads:  a checkpoint, a store, a table of classes and splits.
Writes: a run's folder (`training.engine.run_folder`), and when it is complete: head.safetensors,
        encoder.safetensors (where the encoder is not the checkpoint's), predictions.csv (validation and
        test), labels.csv (what was used), results.json, results.md.
Bounds: nothing is chosen by the test scans. Where there are validation scans, C or the best weights of a
        training are chosen by their macro AUC; without, C by cross-validation, and the last averaged weights
        are taken. One process; a frozen encoder's tokens of all scans are held in memory.
"""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from storage import Store, digest_of
from training.classification.config import ClassifyConfig
from training.classification.embedding import Progress, ScanFeatures, encode_store, encoder_digest
from training.classification.heads import (
    ENCODER,
    HEAD,
    AttentionHead,
    Head,
    HeadCard,
    LinearHead,
    export_encoder,
    export_head,
    logits_of,
    probabilities_of,
)
from training.classification.labels import ClassSplit, ClassTable
from training.classification.results import to_markdown, write_predictions
from training.classification.scores import ClassScores, score_classes
from training.classification.tasks import ImageClassifier, Samples, attention_task, full_task, measure_tokens
from training.engine import (
    BEST,
    CHECKPOINTS,
    ChosenPrecision,
    DeviceName,
    RunRecord,
    Task,
    Trainer,
    TrainingProgress,
    TrainingResult,
    begin_run,
    check_run,
    choose_device,
    has_begun,
    locked_run,
    read_checkpoint,
    scan_digests,
    settle_precision,
)
from training.errors import ConfigError
from training.files import write_atomically
from training.network import Iris, installed_versions

RESULTS, TABLE, PREDICTIONS, LABELS = "results.json", "results.md", "predictions.csv", "labels.csv"

_MEASURED_SCANS = 64
"""Training scans whose tokens standardise a head that is trained with its encoder."""


@dataclass(frozen=True, kw_only=True)
class Classification:
    """How a classification ended."""

    scores: ClassScores | None
    """On the test scans; None where a signal stopped the training."""
    tested_on: str
    """What these are: "test" or "val"."""
    training: TrainingResult | None
    """Of the trainer; None in the mode frozen-linear."""
    document: Mapping[str, Any]
    """What results.json says."""


def classify(
    net: Iris,
    store: Store,
    folder: Path,
    config: ClassifyConfig,
    table: ClassTable,
    split: ClassSplit,
    *,
    checkpoint: str = "",
    resume: bool = False,
    device: DeviceName = "auto",
    features: Mapping[str, ScanFeatures] | None = None,
    on_encoded: Progress | None = None,
    on_progress: Callable[[TrainingProgress], None] | None = None,
    on_precision: Callable[[ChosenPrecision], None] | None = None,
) -> Classification:
    """Train a classifier in a run's folder, and tell how well it does.

    Args:
        net: The checkpoint's network; not changed.
        store: With the scans.
        folder: The run's; made where there is none.
        config: Every setting.
        table: What the scans are.
        split: Which of them are trained on, chosen by, tested on.
        checkpoint: What to call the checkpoint.
        resume: Go on with the run in the folder.
        device: Where to compute.
        features: Of the scans by this very encoder and `config.embedding`, where they are known already.
        on_encoded: Told after each scan that a frozen encoder has seen.
        on_progress: Told after each step of a training.
        on_precision: Told before the first step of a training.

    Raises:
        RunError: There is a run in the folder (or, with `resume`, none), or another process trains in it.
        ConfigError: Settings, classes or scans differ from the run's.
        DataError: A scan cannot be read.
        NonFiniteLoss: A loss or gradient is NaN or infinite.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ConfigError("mass classify trains in one process; start it without torchrun")
    net = _fresh(net, config) if config.from_scratch else copy.deepcopy(net)
    where = choose_device(device)
    net = net.to(where)
    precision = settle_precision(folder, config.optimisation.precision, where, resume=resume)
    record = _record(net, store, config, table, split)
    with locked_run(folder):
        if resume:
            check_run(folder, record)
        else:
            begin_run(folder, record, precision)
        if on_precision and config.mode != "frozen-linear":
            on_precision(precision)
        job = _Job(
            store=store, folder=folder, config=config, table=table, split=split, net=net, precision=precision
        )
        made = job.make(features, on_encoded, on_progress)
        if made.training is not None and not made.training.complete:
            return Classification(
                scores=None, tested_on=split.tested_on, training=made.training, document=made.told
            )
        scores, document = job.finish(made, checkpoint)
    return Classification(scores=scores, tested_on=split.tested_on, training=made.training, document=document)


def _fresh(net: Iris, config: ClassifyConfig) -> Iris:
    """The same network, its weights drawn."""
    torch.manual_seed(config.optimisation.seed)
    return Iris(net.channels, net.num_tasks, position_std=0.02).eval()


def _record(
    net: Iris, store: Store, config: ClassifyConfig, table: ClassTable, split: ClassSplit
) -> RunRecord:
    """What the run is of: with other classes, splits or another encoder it is another run."""
    used = {
        part: [[table.ids[row], "".join(f"{value:g}" for value in table.targets[row])] for row in rows]
        for part, rows in (("train", split.train), ("val", split.validation), ("test", split.test))
    }
    data = {
        "encoder": encoder_digest(net.encoder),
        "classes": list(table.classes),
        "labels": digest_of({"used": used}),
        **{f"num_{part}": len(rows) for part, rows in used.items()},
    }
    ids = sorted(table.ids[row] for row in (*split.train, *split.validation, *split.test))
    return RunRecord(
        settings=config.values() | {"data": data},
        store_name=store.path.resolve().name,
        scans=scan_digests(store, ids),
        versions=installed_versions(),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Made:
    """A classifier, before it is tested."""

    head: Head
    features: Mapping[str, ScanFeatures]
    """Of validation and test scans, at least, by id; none where a training was stopped."""
    training: TrainingResult | None
    told: Mapping[str, Any]
    """How it was made."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Job:
    """What the parts of a classification share."""

    store: Store
    folder: Path
    config: ClassifyConfig
    table: ClassTable
    split: ClassSplit
    net: Iris
    """On its device; a copy, whose encoder the mode "full" trains."""
    precision: ChosenPrecision
    began: float = field(default_factory=time.monotonic)

    def make(
        self,
        features: Mapping[str, ScanFeatures] | None,
        on_encoded: Progress | None,
        on_progress: Callable[[TrainingProgress], None] | None,
    ) -> _Made:
        """Train what the mode trains."""
        if self.config.mode == "full":
            return self.full(on_progress)
        if features is None:
            rows = (*self.split.train, *self.split.validation, *self.split.test)
            features = self.encoded(rows, on_encoded)
        if self.config.mode == "frozen-linear":
            return self.linear(features)
        return self.attention(features, on_progress)

    def encoded(self, rows: Sequence[int], progress: Progress | None = None) -> dict[str, ScanFeatures]:
        """Features of some rows by the encoder as it is now."""
        ids = [self.table.ids[row] for row in rows]
        return encode_store(
            self.net.encoder, self.store, ids, self.config.embedding, device=self.device, progress=progress
        )

    @property
    def device(self) -> torch.device:
        return next(self.net.parameters()).device

    @property
    def samples(self) -> Samples:
        return Samples(
            table=self.table,
            train=self.split.train,
            validation=self.split.validation,
            seed=self.config.optimisation.seed,
            weighted=self.config.weighted,
        )

    def linear(self, features: Mapping[str, ScanFeatures]) -> _Made:
        """Logistic regression on pooled features."""
        from training.classification.linear_probe import fit_linear

        def pooled(rows: Sequence[int]) -> NDArray[np.float32]:
            width = len(next(iter(features.values())).pooled)
            found = [features[self.table.ids[row]].pooled.numpy() for row in rows]
            return np.stack(found) if found else np.zeros((0, width), np.float32)

        head, chosen = fit_linear(
            pooled(self.split.train),
            self.table.targets[list(self.split.train)],
            pooled(self.split.validation),
            self.table.targets[list(self.split.validation)],
            multi_label=self.table.multi_label,
            weighted=self.config.weighted,
            seed=self.config.optimisation.seed,
        )
        told = {"c": chosen.value, "c_chosen_by": chosen.by}
        return _Made(head=head, features=features, training=None, told=told)

    def attention(
        self,
        features: Mapping[str, ScanFeatures],
        on_progress: Callable[[TrainingProgress], None] | None,
    ) -> _Made:
        """Attention pooling over a frozen encoder's tokens."""
        head = self._new_head()
        shown = [features[self.table.ids[row]].tokens for row in self.split.train]
        head.standardise(torch.cat(shown).to(self.device))
        result, told = self._trained(attention_task(head, features, self.samples), on_progress)
        assert isinstance(result.average, AttentionHead)
        return _Made(head=result.average, features=features, training=result, told=told)

    def full(self, on_progress: Callable[[TrainingProgress], None] | None) -> _Made:
        """Encoder and head; the encoder becomes the trained one, the decoder stays as it was."""
        head = self._new_head()
        encoder = self.net.encoder
        ids = [self.table.ids[row] for row in self.split.train[:_MEASURED_SCANS]]
        measure_tokens(head, encoder, self.store, ids, self.config.embedding)
        model = ImageClassifier(encoder, head)
        task = full_task(model, self.store, self.samples, self.config.embedding, self.config.augmentation)
        result, told = self._trained(task, on_progress)
        assert isinstance(result.average, ImageClassifier)
        encoder.load_state_dict(result.average.encoder.state_dict())
        tested = self.encoded((*self.split.validation, *self.split.test)) if result.complete else {}
        return _Made(head=result.average.head, features=tested, training=result, told=told)

    def _new_head(self) -> AttentionHead:
        torch.manual_seed(self.config.optimisation.seed)
        head = AttentionHead(
            sum(self.net.channels),
            len(self.table.classes),
            hidden=self.config.hidden,
            dropout=self.config.dropout,
        )
        return head.to(self.device)

    def _trained(
        self, task: Task[Any, Any], on_progress: Callable[[TrainingProgress], None] | None
    ) -> tuple[TrainingResult, dict[str, Any]]:
        """Train by steps; the averaged network of the result is the best one by the validation scans."""
        trainer = Trainer(
            task,
            self.folder,
            optimisation=self.config.optimisation,
            run=self.config.run,
            settings=self.config.values(),
            precision=self.precision,
            on_progress=on_progress,
        )
        if has_begun(self.folder):
            trainer.resume()
        result = trainer.run()
        told: dict[str, Any] = {"steps": result.step}
        best = self.folder / CHECKPOINTS / BEST
        if result.complete and best.exists():
            state = read_checkpoint(best)
            result.average.load_state_dict(state["ema_model"])
            told |= {"best_step": state["step"], "best_validation_auc": state["best"]}
        return result, told

    def finish(self, made: _Made, checkpoint: str) -> tuple[ClassScores, dict[str, Any]]:
        """Test the classifier, and write what came of it."""
        table, split, config = self.table, self.split, self.config
        linear = isinstance(made.head, LinearHead)
        card = HeadCard(
            kind="linear" if linear else "attention",
            classes=table.classes,
            multi_label=table.multi_label,
            width=sum(self.net.channels) + (self.net.channels[-1] if linear else 0),
            hidden=0 if linear else config.hidden,
            encoder=encoder_digest(self.net.encoder),
            embedding=config.embedding,
        )
        export_head(self.folder / HEAD, made.head, card)
        if config.mode == "full" or config.from_scratch:
            export_encoder(self.folder / ENCODER, self.net)
        rows = (*split.validation, *split.test)
        logits = logits_of(made.head, [made.features[table.ids[row]] for row in rows])
        probabilities = probabilities_of(logits, multi_label=table.multi_label)
        parts = {"train": split.train, "val": split.validation, split.tested_on: split.test}
        splits = {table.ids[row]: part for part, members in parts.items() for row in members}
        write_predictions(self.folder / PREDICTIONS, table, rows, splits, probabilities)
        table.to_csv(self.folder / LABELS, splits)
        tested = probabilities[len(split.validation) :]
        truth = table.targets[list(split.test)]
        scores = score_classes(tested, truth, table.classes, multi_label=table.multi_label)
        document = self._document(made, card, scores, checkpoint)
        page, text = to_markdown(scores, document), json.dumps(document, indent=1) + "\n"
        write_atomically(self.folder / TABLE, lambda file: file.write(page.encode()))
        write_atomically(self.folder / RESULTS, lambda file: file.write(text.encode()))
        return scores, document

    def _document(self, made: _Made, card: HeadCard, scores: ClassScores, checkpoint: str) -> dict[str, Any]:
        """What results.json says."""
        counts = self.table.targets[list(self.split.train)].sum(axis=0).astype(int).tolist()
        return {
            "mode": self.config.mode,
            "from_scratch": self.config.from_scratch,
            "seed": self.config.optimisation.seed,
            "checkpoint": checkpoint,
            "encoder": card.encoder,
            "store": self.store.path.resolve().name,
            "multi_label": self.table.multi_label,
            "tested_on": self.split.tested_on,
            "num_train": len(self.split.train),
            "num_validation": len(self.split.validation),
            "train_counts": dict(zip(self.table.classes, counts, strict=True)),
            **made.told,
            **scores.to_json(),
            "seconds": time.monotonic() - self.began,
        }
