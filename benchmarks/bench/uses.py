"""What is done with a pretrained network, and what it is scored on.

    in context     shown one labelled scan, or five, and asked about the targets; nothing is trained
    fine-tuning    trained on the labels of 1, 5, 20 or all labelled scans, some steps, then asked
    classification frozen encoder, logistic regression on pooled features, tested on the targets
    carried        fine-tuning on all other scans of the pretraining, too, with the labels that registration
                   carries over to them from the labelled ones; their own are not read
    rivals         the labels of the shown scans copied, or carried over by registration; nothing is learnt

Fine-tuning is that of `mass finetune --recipe whole`, but that an arm which pretrained its encoder alone gets
the decoder and the tokens that "from scratch" has with the same seed, to the bit. In the others the tokens
begin as those of the labelled scans, shown as references.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.bench.sets import BenchSet
from benchmarks.registration import METHODS, Image, Labels, Method, Shown
from benchmarks.rivals import Network, scored
from training.classification import ClassScans, classify, classify_config, embedding_for
from training.classification.labels import ClassSplit, table_of_store
from training.classification.run import RESULTS
from training.engine import CHECKPOINTS, Ranks, Trainer, choose_device
from training.engine.checkpoints import list_checkpoints
from training.errors import DataError
from training.finetuning.carrying import carry_labels, plan_carrying
from training.finetuning.config import FinetuneConfig, finetune_recipe, with_chosen_window
from training.finetuning.initial_tokens import initial_tokens, random_tokens
from training.finetuning.run import finetuning_task, freeze, token_table
from training.finetuning.scans import FinetuneTaskConfig, LabelledScans, choose_scans, find_structures
from training.inference import PromptedIris, TokenTable, predict_labels, token_inference, token_prompt
from training.network import Iris, TrainedOn, load_checkpoint, weights_digest
from training.pretraining import PretrainConfig

RIVALS = {
    "copied": METHODS["copied"],
    "demons": METHODS["affine + demons"],
    "registration": METHODS["located + demons + refined"],
}
RIVAL_TITLES = {
    "copied": "*copied*",
    "demons": "*registration (affine + demons)*",
    "registration": "*registration (`mass segment --by registration`)*",
}


@dataclass(frozen=True, kw_only=True)
class Start:
    """The network that a fine-tuning or classification starts from."""

    config: PretrainConfig
    """Of the set's pretrainings: widths and window."""
    weights: Path | None = None
    """Of the pretraining; None from scratch."""
    encoder_only: bool = False

    def trained_on(self, bench_set: BenchSet) -> TrainedOn:
        """How scans are to be shown."""
        return TrainedOn.of_store(bench_set.store, self.config.data.crop_zyx, whole_scans=True)

    def network(self, bench_set: BenchSet, seed: int) -> Iris:
        """The network with the weights that it starts from; all drawn ones are those of the seed."""
        torch.manual_seed(seed)
        net = Iris(self.config.model.channels)
        if self.weights:
            found = load_checkpoint(self.weights)
            if self.encoder_only:
                net.encoder.load_state_dict(found.encoder.state_dict())
            else:
                net = found
        net.trained_on = self.trained_on(bench_set)
        return net.eval()


Scores = list[dict[str, Any]]
"""For each target and prompt: target, references, and the Dice and drawn / expected of each structure."""


def score_method(bench_set: BenchSet, method: Method, prompts: Sequence[Sequence[str]]) -> Scores:
    """Ask a method about every target, with every prompt."""
    structures = bench_set.structures
    return [
        {
            "target": target,
            "references": list(ids),
            "scores": scored(bench_set.store, method, "stored", target, ids, structures),
        }
        for target in bench_set.split.targets
        for ids in prompts
    ]


def prompts_of(bench_set: BenchSet, seed: int, shots: int, number: int) -> list[tuple[str, ...]]:
    """Prompts of so many labelled scans each, drawn by the seed; fewer where there are too few scans."""
    ids = bench_set.labelled(seed, 0)
    prompts = [ids[k * shots : (k + 1) * shots] for k in range(number)]
    return [prompt for prompt in prompts if len(prompt) == shots]


def in_context(weights: Path) -> Method:
    """A network, shown the references; nothing is trained."""
    return Network(weights)


# ------------------------------------------------------------------------------------ fine-tuning


def finetune_config(
    bench_set: BenchSet, start: Start, ids: Sequence[str], *, seed: int, steps: int
) -> FinetuneConfig:
    """The recipe for whole scans with the set's window."""
    base = finetune_recipe("whole")
    config = replace(
        base,
        finetune=replace(base.finetune, scans=tuple(sorted(ids)), num_validation=0),
        data=replace(base.data, max_window_voxels=start.config.data.max_window_voxels),
        optimisation=replace(
            base.optimisation,
            num_steps=steps,
            seed=seed,
            precision=start.config.optimisation.precision,
        ),
        run=replace(base.run, num_workers=0, evaluate_every=0, draw_every=0, keep_last=1),
    )
    shapes = [bench_set.store.entries[scan_id].shape_zyx for scan_id in ids]
    return with_chosen_window(config, start.trained_on(bench_set), shapes)


def carried_over(bench_set: BenchSet, ids: Sequence[str], folder: Path) -> Path:
    """Carry the labels of some scans over to all others that are pretrained on; the folder with them.

    Raises:
        DataError: A scan cannot be read.
    """
    store = bench_set.store
    scans = labelled_scans(bench_set, ids)
    question = FinetuneTaskConfig(
        label=scans.label,
        scans=scans.training,
        values=tuple(part.values[0] for part in scans.structures),
    )
    targets = sorted(set(bench_set.split.pretraining) - set(ids))
    for done in carry_labels(store.path, folder, plan_carrying(store, question, targets=targets)):
        if done.error:
            raise DataError(f"{store.path}: {done.scan_id}: {done.error}")
    return folder


def fine_tuned(
    bench_set: BenchSet,
    start: Start,
    ids: Sequence[str],
    folder: Path,
    *,
    seed: int,
    steps: int,
    carried: Path | None = None,
) -> Method:
    """Fine-tune on labelled scans, or go on with it; the network as a method that needs no reference.

    Args:
        bench_set: The set.
        start: The network that it starts from.
        ids: The labelled scans.
        folder: Of the run.
        seed: Of drawn weights and samples.
        steps: Of the training.
        carried: Labels that were carried over to other scans, to train on, too.

    Raises:
        SystemExit: A signal stopped it; the same command goes on.
    """
    config = finetune_config(bench_set, start, ids, seed=seed, steps=steps)
    scans = labelled_scans(bench_set, ids)
    if carried:
        values = tuple(part.values[0] for part in scans.structures)
        chosen = replace(config.finetune, label=scans.label, values=values, carried=str(carried))
        config = replace(config, finetune=chosen)
        scans = replace(choose_scans(bench_set.store, chosen), held_out=())
    table = token_table(bench_set.store, scans, config)
    device = choose_device("auto")
    model = starting_model(bench_set, start, scans, config, seed).to(device)
    freeze(model, "full")
    folder.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(
        finetuning_task(model, bench_set.store, config, scans, table, Ranks()),
        folder,
        optimisation=config.optimisation,
        run=config.run,
        settings=config.values(),
    )
    if list_checkpoints(folder / CHECKPOINTS):
        trainer.resume()
    result = trainer.run()
    if not result.complete:
        raise SystemExit(f"{folder.name}: stopped; the same command goes on")
    assert isinstance(result.average, PromptedIris)
    return _as_method(result.average.module.eval(), table, config, device)


def starting_model(
    bench_set: BenchSet, start: Start, scans: LabelledScans, config: FinetuneConfig, seed: int
) -> PromptedIris:
    """The network and tokens before the first step."""
    net = start.network(bench_set, seed)
    if start.weights and not start.encoder_only:
        return PromptedIris(net, initial_tokens(net, bench_set.store, scans, config))
    return PromptedIris(net, random_tokens(net, len(scans.structures)))


def labelled_scans(bench_set: BenchSet, ids: Sequence[str]) -> LabelledScans:
    """The scans with those of the scored structures that they have."""
    store = bench_set.store
    label = next(iter(store.entries[ids[0]].labels))
    wanted = {value for values in bench_set.structures.values() for value in values}
    found = find_structures(store, label, ids)
    return LabelledScans(
        label=label,
        training=tuple(sorted(ids)),
        held_out=(),
        structures=tuple(part for part in found if part.values[0] in wanted),
        modalities=tuple(sorted({store.entries[scan_id].modality for scan_id in ids})),
    )


def _as_method(net: Iris, table: TokenTable, config: FinetuneConfig, device: torch.device) -> Method:
    inference = token_inference(config.inference, table)
    prompt = token_prompt(net, table.structures, inference, device)
    values = np.array([0, *table.values], np.uint16)

    def method(shown: Sequence[Shown], target: Image) -> Labels:
        return values[predict_labels(net, target, prompt, inference, device=device)]

    return method


# ------------------------------------------------------------------------------------ classification


def classified(bench_set: BenchSet, start: Start, folder: Path, *, seed: int) -> dict[str, float]:
    """AUC and balanced accuracy on the targets, of a logistic regression on the frozen encoder's features."""
    if not (folder / RESULTS).exists():
        shutil.rmtree(folder, ignore_errors=True)
        net = start.network(bench_set, seed)
        table = table_of_store(bench_set.store)
        targets = set(bench_set.split.targets)
        rows = {scan_id: row for row, scan_id in enumerate(table.ids)}
        split = ClassSplit(
            train=tuple(row for scan_id, row in sorted(rows.items()) if scan_id not in targets),
            validation=(),
            test=tuple(rows[scan_id] for scan_id in sorted(targets) if scan_id in rows),
            tested_on="test",
        )
        config = classify_config("frozen-linear")
        config = replace(
            config,
            embedding=embedding_for(net.trained_on, config.embedding),
            optimisation=replace(config.optimisation, seed=seed),
        )
        scans = ClassScans(store=bench_set.store, table=table, split=split)
        classify(net, scans, folder, config, checkpoint=weights_digest(net.encoder)[:12])
    found = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    return {name: float(found[name]) for name in ("auc", "balanced_accuracy")}


def clean(folder: Path) -> None:
    """Remove a run's checkpoints, which only going on with it needs."""
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
