"""`mass embed` and `mass classify`: features of a store's scans, and classes predicted from them."""

from __future__ import annotations

import time
from argparse import Namespace
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from commands.progress import Progress
from commands.terminal import CommandError, State, counted, print_precision, print_table, shown
from pipeline.toml_settings import parse_config, read_tables
from storage import Store, open_store
from training.classification import (
    Classification,
    ClassifyConfig,
    ClassScans,
    EmbeddingConfig,
    Mode,
    check_features_path,
    classify,
    classify_config,
    embedding_for,
    encode_scan,
    interval,
    read_class_table,
    score_rows,
    split_classes,
    table_of_store,
    with_store_splits,
    write_features,
)
from training.engine import Callbacks, choose_device
from training.network import TrainedOn, load_checkpoint, preparation_warning, weights_digest

_TABLES = ("classification", "embedding", "augmentation", "optimisation", "run")


def run_embed(arguments: Namespace) -> tuple[int, dict[str, Any]]:
    """Run `mass embed`; return the exit code and the results for --json."""
    path = check_features_path(arguments.out)
    store = open_store(arguments.store)
    if not store.scan_ids:
        raise CommandError(f"{arguments.store}: the store has no scans; `mass prepare RAW STORE` fills it")
    net = load_checkpoint(arguments.checkpoint)
    warnings = print_warning(net.trained_on, store)
    device = choose_device(arguments.device)
    encoder = net.encoder.to(device)
    config = (
        EmbeddingConfig(window_voxels=(arguments.window,) * 3)
        if arguments.window
        else embedding_for(net.trained_on)
    )
    if config.whole_scans:
        window = " x ".join(map(str, config.window_voxels))
        print(f"each scan is shown whole, in a window of {window} voxels, as in training")
    began = time.monotonic()
    pooled = {}
    for scan_id in counted("embed", store.scan_ids):
        image = store.scan(scan_id).image(normalize=True)
        pooled[scan_id] = encode_scan(encoder, image, config, device=device).pooled.numpy()
    digest = weights_digest(net.encoder)
    write_features(path, store, pooled, channels=net.channels, encoder=digest)
    num_features = len(next(iter(pooled.values())))
    print(f"{len(pooled)} scans, {num_features} features each: {path}")
    seconds = time.monotonic() - began
    return 0, {
        "features": str(path),
        "num_scans": len(pooled),
        "num_features": num_features,
        "encoder": digest,
        "warnings": warnings,
        "seconds": seconds,
    }


def run_classify(arguments: Namespace) -> tuple[int, dict[str, Any]]:
    """Run `mass classify`; return the exit code and the results for --json."""
    store = open_store(arguments.store)
    net = load_checkpoint(arguments.checkpoint)
    config = read_settings(
        arguments.config, arguments.mode, from_scratch=arguments.from_scratch, trained_on=net.trained_on
    )
    if arguments.seed is not None:
        config = replace(config, optimisation=replace(config.optimisation, seed=arguments.seed))
    table = read_class_table(arguments.labels, store) if arguments.labels else table_of_store(store)
    table = with_store_splits(table, store)
    split = split_classes(table, test_fraction=arguments.test_fraction, seed=config.optimisation.seed)
    warnings = [] if config.from_scratch else print_warning(net.trained_on, store)
    with shown("classify") as show:
        began = time.monotonic()
        done = classify(
            net,
            ClassScans(store=store, table=table, split=split),
            arguments.run_folder,
            config,
            checkpoint=arguments.checkpoint.name,
            resume=arguments.resume,
            device=arguments.device,
            callbacks=Callbacks(
                scan=lambda _, number, total: show(
                    Progress.of_equals(number, total, time.monotonic() - began)
                ),
                progress=lambda state: show(TrainingAfter(state, time.monotonic() - began)),
                precision=print_precision,
            ),
        )
    print_result(arguments.run_folder, done)
    signal_number = done.training.signal_number if done.training else 0
    document = {
        "run": str(arguments.run_folder),
        "complete": done.scores is not None,
        "warnings": warnings,
        **done.document,
    }
    return 128 + signal_number if signal_number else 0, document


def print_warning(trained_on: TrainedOn, store: Store) -> list[str]:
    """Print how the store's scans differ from those of the training; return the warnings for --json."""
    text = preparation_warning(trained_on, store)
    if text:
        print(f"warning: {text}")
    return [text] if text else []


def read_settings(
    path: Path | None, mode: Mode, *, from_scratch: bool, trained_on: TrainedOn
) -> ClassifyConfig:
    """Return the settings of a mode, changed by a TOML file (tables as in the run's config.toml).

    Scans are shown as in the checkpoint's training, if that was on whole scans.
    """
    base = classify_config(mode, from_scratch=from_scratch)
    base = replace(base, embedding=embedding_for(trained_on, base.embedding))
    if not path:
        return base
    tables = read_tables(path, _TABLES)
    own = parse_config(tables["classification"], ClassifyConfig, where="[classification]", base=base)
    parts: dict[str, Any] = {
        name: parse_config(
            tables[name], type(getattr(base, name)), where=f"[{name}]", base=getattr(base, name)
        )
        for name in _TABLES[1:]
    }
    return replace(own, **parts, mode=mode, from_scratch=from_scratch)


def print_result(folder: Path, done: Classification) -> None:
    """Print the results of a classification."""
    if done.scores is None:
        step = done.training.step if done.training else 0
        print(f"stopped and saved at step {step}; the same command with --resume goes on from here")
        return
    title = f"{done.document['mode']}, tested on {done.tested_on}, 95 % intervals"
    print_table(title, ("class", "scans", "AUC"), score_rows(done.scores))
    scores = done.scores
    text = interval(scores.balanced_accuracy, scores.balanced_accuracy_interval)
    print(f"balanced accuracy: {text}")
    print(f"head, predictions, results: {folder}")


@dataclass(frozen=True)
class TrainingAfter:
    """Progress of a training that began after other work, with the time since the command began."""

    state: State
    seconds: float
    """Seconds since the command began."""

    @property
    def fraction(self) -> float:
        """Fraction of the training that is done."""
        return self.state.fraction

    def line(self) -> str:
        """Return the progress in one line."""
        return self.state.line()

    def later(self, seconds: float) -> TrainingAfter:
        """Return the progress some seconds later, if no step has ended since."""
        return TrainingAfter(self.state.later(seconds), self.seconds + seconds)
