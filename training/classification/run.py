"""Classification of whole scans with a frozen or a trained encoder: training, test and results.

    frozen-linear     standardised pooled features, logistic regression
    frozen-attention  tokens of the frozen encoder; attention pooling and linear layer trained
    full              encoder, attention pooling and linear layer trained on augmented windows

Reads:  a checkpoint, a store, a table of classes and splits.
Writes: a run's folder (`training.engine.run_folder`) and, when the run is complete: head.safetensors,
        encoder.safetensors (unless the encoder is that of the checkpoint), predictions.csv (validation and
        test scans), labels.csv (the classes and splits used), results.json, results.md.
Bounds: the test scans are not used for any choice. If there are validation scans, C or the best weights are
        chosen by their macro AUC; otherwise C by cross-validation, and the last averaged weights are used.
        Training uses one process; a frozen encoder's tokens of all scans are in memory.
"""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from storage import Store, digest_of, write_atomically
from training.classification.config import ClassifyConfig
from training.classification.embedding import Progress, ScanFeatures, encode_store
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
    Callbacks,
    ChosenPrecision,
    DeviceName,
    RunRecord,
    Task,
    Trainer,
    TrainingProgress,
    TrainingResult,
    choose_device,
    has_begun,
    open_run,
    read_checkpoint,
    settle_precision,
)
from training.errors import ConfigError
from training.network import Iris, weights_digest

RESULTS, TABLE, PREDICTIONS, LABELS = "results.json", "results.md", "predictions.csv", "labels.csv"

_NORMALISATION_SCANS = 64
"""Number of training scans whose tokens set a head's input normalisation in the mode "full"."""


@dataclass(frozen=True, kw_only=True)
class Classification:
    """The outcome of a classification."""

    scores: ClassScores | None
    """Scores of the test scans; None if a signal stopped the training."""
    tested_on: str
    """Split of the test scans: "test" or "val"."""
    training: TrainingResult | None
    """Result of the trainer; None in the mode frozen-linear."""
    document: Mapping[str, Any]
    """Content of results.json."""


@dataclass(frozen=True, kw_only=True)
class ClassScans:
    """The scans of a classification."""

    store: Store
    """The store with the scans."""
    table: ClassTable
    """Classes of the scans."""
    split: ClassSplit
    """Rows of the table for training, validation and test."""
    features: Mapping[str, ScanFeatures] | None = None
    """Features of the scans, if they were computed before with this encoder and `config.embedding`."""


def classify(
    net: Iris,
    scans: ClassScans,
    folder: Path,
    config: ClassifyConfig,
    *,
    checkpoint: str = "",
    resume: bool = False,
    device: DeviceName = "auto",
    callbacks: Callbacks | None = None,
) -> Classification:
    """Train a classifier, test it, and write the run's folder.

    Args:
        net: The network of the checkpoint; not changed.
        scans: The scans, their classes and their split.
        folder: Folder of the run; created if it does not exist.
        config: All settings.
        checkpoint: Name of the checkpoint, for the results.
        resume: Whether to resume the run in the folder.
        device: Device to compute on.
        callbacks: Functions to call while it works.

    Raises:
        RunError: There is a run in the folder (or, with `resume`, none), or another process trains in it.
        ConfigError: Settings, classes or scans differ from those of the run.
        DataError: A scan cannot be read.
        NonFiniteLoss: A loss or gradient is NaN or infinite.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ConfigError("mass classify trains in one process; start it without torchrun")
    net = _with_random_weights(net, config) if config.from_scratch else copy.deepcopy(net)
    where = choose_device(device)
    net = net.to(where)
    precision = settle_precision(folder, config.optimisation.precision, where, resume=resume)
    callbacks = callbacks or Callbacks()
    split = scans.split
    with open_run(folder, _record(net, scans, config), precision, resume=resume):
        if callbacks.precision and config.mode != "frozen-linear":
            callbacks.precision(precision)
        job = _Job(
            store=scans.store,
            folder=folder,
            config=config,
            table=scans.table,
            split=split,
            net=net,
            precision=precision,
        )
        trained = job.train(scans.features, callbacks)
        training = trained.training
        if training is not None and not training.complete:
            return Classification(
                scores=None, tested_on=split.tested_on, training=training, document=trained.details
            )
        scores, document = job.finish(trained, checkpoint)
    return Classification(scores=scores, tested_on=split.tested_on, training=training, document=document)


def _with_random_weights(net: Iris, config: ClassifyConfig) -> Iris:
    """Return a network of the same size with random weights."""
    torch.manual_seed(config.optimisation.seed)
    return Iris(net.channels, net.num_tasks, position_std=0.02).eval()


def _record(net: Iris, scans: ClassScans, config: ClassifyConfig) -> RunRecord:
    """Return the record that identifies the run: settings, scans, classes, splits and encoder."""
    store, table, split = scans.store, scans.table, scans.split
    used = {
        part: [[table.ids[row], "".join(f"{value:g}" for value in table.targets[row])] for row in rows]
        for part, rows in (("train", split.train), ("val", split.validation), ("test", split.test))
    }
    data = {
        "encoder": weights_digest(net.encoder),
        "classes": list(table.classes),
        "labels": digest_of({"used": used}),
        **{f"num_{part}": len(rows) for part, rows in used.items()},
    }
    ids = sorted(table.ids[row] for row in (*split.train, *split.validation, *split.test))
    return RunRecord.of_store(store, ids, config.values() | {"data": data})


@dataclass(frozen=True, kw_only=True, eq=False)
class _TrainedHead:
    """A trained head, with the features to test it on."""

    head: Head
    features: Mapping[str, ScanFeatures]
    """Features by id, at least of validation and test scans; empty if the training was stopped."""
    training: TrainingResult | None
    """Result of the trainer; None for a linear head."""
    details: Mapping[str, Any]
    """Entries of results.json on the training: C, or steps and the best step."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Job:
    """A classification, after its folder was created or checked."""

    store: Store
    folder: Path
    config: ClassifyConfig
    table: ClassTable
    split: ClassSplit
    net: Iris
    """A copy of the checkpoint's network, on its device; the mode "full" trains its encoder in place."""
    precision: ChosenPrecision
    began: float = field(default_factory=time.monotonic)

    def train(self, features: Mapping[str, ScanFeatures] | None, callbacks: Callbacks) -> _TrainedHead:
        """Train according to the mode; a frozen encoder first encodes the scans."""
        if self.config.mode == "full":
            return self.full(callbacks.progress)
        if features is None:
            rows = (*self.split.train, *self.split.validation, *self.split.test)
            progress = partial(callbacks.scan, "encode") if callbacks.scan else None
            features = self.encoded(rows, progress)
        if self.config.mode == "frozen-linear":
            return self.linear(features)
        return self.attention(features, callbacks.progress)

    def encoded(self, rows: Sequence[int], progress: Progress | None = None) -> dict[str, ScanFeatures]:
        """Return the features of rows of the table, by id, with the present encoder."""
        ids = [self.table.ids[row] for row in rows]
        return encode_store(
            self.net.encoder, self.store, ids, self.config.embedding, device=self.device, progress=progress
        )

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return next(self.net.parameters()).device

    @property
    def samples(self) -> Samples:
        """The scans of the training."""
        return Samples(
            table=self.table,
            train=self.split.train,
            validation=self.split.validation,
            seed=self.config.optimisation.seed,
            weighted=self.config.weighted,
        )

    def linear(self, features: Mapping[str, ScanFeatures]) -> _TrainedHead:
        """Fit a logistic regression on pooled features."""
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
        details = {"c": chosen.value, "c_chosen_by": chosen.by}
        return _TrainedHead(head=head, features=features, training=None, details=details)

    def attention(
        self,
        features: Mapping[str, ScanFeatures],
        on_progress: Callable[[TrainingProgress], None] | None,
    ) -> _TrainedHead:
        """Train an attention head on the frozen encoder's tokens."""
        head = self._new_head()
        tokens = [features[self.table.ids[row]].tokens for row in self.split.train]
        head.standardise(torch.cat(tokens).to(self.device))
        result, details = self._run_trainer(attention_task(head, features, self.samples), on_progress)
        assert isinstance(result.average, AttentionHead)
        return _TrainedHead(head=result.average, features=features, training=result, details=details)

    def full(self, on_progress: Callable[[TrainingProgress], None] | None) -> _TrainedHead:
        """Train encoder and attention head; the encoder is replaced by the trained one."""
        head = self._new_head()
        encoder = self.net.encoder
        ids = [self.table.ids[row] for row in self.split.train[:_NORMALISATION_SCANS]]
        measure_tokens(head, encoder, self.store, ids, self.config.embedding)
        model = ImageClassifier(encoder, head)
        task = full_task(model, self.store, self.samples, self.config.embedding, self.config.augmentation)
        result, details = self._run_trainer(task, on_progress)
        assert isinstance(result.average, ImageClassifier)
        encoder.load_state_dict(result.average.encoder.state_dict())
        features = self.encoded((*self.split.validation, *self.split.test)) if result.complete else {}
        return _TrainedHead(head=result.average.head, features=features, training=result, details=details)

    def _new_head(self) -> AttentionHead:
        torch.manual_seed(self.config.optimisation.seed)
        head = AttentionHead(
            sum(self.net.channels),
            len(self.table.classes),
            hidden=self.config.hidden,
            dropout=self.config.dropout,
        )
        return head.to(self.device)

    def _run_trainer(
        self, task: Task[Any, Any], on_progress: Callable[[TrainingProgress], None] | None
    ) -> tuple[TrainingResult, dict[str, Any]]:
        """Train; if there are validation scans, the result's averaged network is the best one on them."""
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
        details: dict[str, Any] = {"steps": result.step}
        best = self.folder / CHECKPOINTS / BEST
        if result.complete and best.exists():
            state = read_checkpoint(best)
            result.average.load_state_dict(state["ema_model"])
            details |= {"best_step": state["step"], "best_validation_auc": state["best"]}
        return result, details

    def finish(self, trained: _TrainedHead, checkpoint: str) -> tuple[ClassScores, dict[str, Any]]:
        """Test the classifier and write head, predictions and results; return scores and results.json."""
        table, split, config = self.table, self.split, self.config
        linear = isinstance(trained.head, LinearHead)
        card = HeadCard(
            kind="linear" if linear else "attention",
            classes=table.classes,
            multi_label=table.multi_label,
            width=sum(self.net.channels) + (self.net.channels[-1] if linear else 0),
            hidden=0 if linear else config.hidden,
            encoder=weights_digest(self.net.encoder),
            embedding=config.embedding,
        )
        export_head(self.folder / HEAD, trained.head, card)
        if config.mode == "full" or config.from_scratch:
            export_encoder(self.folder / ENCODER, self.net)
        rows = (*split.validation, *split.test)
        logits = logits_of(trained.head, [trained.features[table.ids[row]] for row in rows])
        probabilities = probabilities_of(logits, multi_label=table.multi_label)
        parts = {"train": split.train, "val": split.validation, split.tested_on: split.test}
        splits = {table.ids[row]: part for part, members in parts.items() for row in members}
        write_predictions(self.folder / PREDICTIONS, table, rows, splits, probabilities)
        table.to_csv(self.folder / LABELS, splits)
        test_probabilities = probabilities[len(split.validation) :]
        truth = table.targets[list(split.test)]
        scores = score_classes(test_probabilities, truth, table.classes, multi_label=table.multi_label)
        document = self._document(trained, card, scores, checkpoint)
        page, text = to_markdown(scores, document), json.dumps(document, indent=1) + "\n"
        write_atomically(self.folder / TABLE, lambda file: file.write(page.encode()))
        write_atomically(self.folder / RESULTS, lambda file: file.write(text.encode()))
        return scores, document

    def _document(
        self, trained: _TrainedHead, card: HeadCard, scores: ClassScores, checkpoint: str
    ) -> dict[str, Any]:
        """Return the content of results.json."""
        counts = self.table.targets[list(self.split.train)].sum(axis=0).astype(int).tolist()
        return {
            "mode": self.config.mode,
            "from_scratch": self.config.from_scratch,
            "seed": self.config.optimisation.seed,
            "checkpoint": checkpoint,
            "encoder": card.encoder,
            "store": self.store.name,
            "multi_label": self.table.multi_label,
            "tested_on": self.split.tested_on,
            "num_train": len(self.split.train),
            "num_validation": len(self.split.validation),
            "train_counts": dict(zip(self.table.classes, counts, strict=True)),
            **trained.details,
            **scores.to_json(),
            "seconds": time.monotonic() - self.began,
        }
