"""In-context evaluation of a network on the labelled scans of a store, without training on the labels.

Some scans are references, the others targets. A *prompt* is k references (k shots); it is applied to every
target that is not one of them. A structure is one value of a label map, or (`whole`) all values together.

Reads:  a store's images (z-scores) and labels.
Writes: one `Score` per prompt, target and structure (`training.evaluation.scores`); with ensembling, one per
        target and structure.
Bounds: references and targets are of the same data set and label map. A target never gets a reference of
        its own case (patient); references and targets are drawn from as many cases as there are. If a target
        lacks a structure, it has no Dice for it and is in no mean; the number of such targets, and of those
        with a prediction, is reported. Random choices use the config's seed only; no other generator is
        changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from storage import CorruptStore, IndexEntry, Scan, Store
from training.data import cases_in_turn, of_other_cases
from training.errors import ConfigError, DataError
from training.evaluation.scores import Evaluation, Failed, Score, Unprompted
from training.evaluation.surfaces import UNKNOWN, SurfaceDistances, surface_distances
from training.inference import (
    InContextNet,
    InferenceConfig,
    Prompt,
    Reference,
    Structure,
    encode_references,
    predict,
)

__all__ = ["Evaluation", "EvaluationConfig", "Score", "evaluate_in_context"]

WHOLE = "whole"
"""Name of the structure made of all values of a label map."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Settings of an evaluation: references, targets and structures."""

    targets: tuple[str, ...] = ()
    """Ids of the target scans; empty to draw `num_targets` scans."""
    references: tuple[str, ...] = ()
    """Ids of the reference scans, assigned to prompts in this order; empty to draw them."""
    num_targets: int = 8
    """Number of targets drawn from each data set and label map."""
    num_prompts: int = 2
    """Largest number of prompts. Each has `shots` references; no reference is in two prompts."""
    shots: int = 1
    """References per prompt; their priors are averaged."""
    datasets: tuple[str, ...] = ()
    """Data sets to evaluate on; empty for all that have labels."""
    label: str = ""
    """Label map to evaluate on; empty for all."""
    whole: bool = True
    """Whether all values of a label map together are an additional structure, if there are several."""
    parts: bool = True
    """Whether each value is a structure."""
    max_structures: int = 16
    """Largest number of values of a label map to evaluate; those in most references are chosen."""
    seed: int = 0
    """Seed of the random choices."""
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    """Settings of the inference, for example windows and precision."""

    def __post_init__(self) -> None:
        for name in ("num_targets", "num_prompts", "shots", "max_structures"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.whole and not self.parts:
            raise ConfigError("whole or parts must be true: there is nothing to evaluate")


class Listener:
    """Follows an evaluation. These methods do nothing; a subclass overrides those that it needs."""

    def begins(self, done: int, total: int, scan_id: str) -> None:
        """Called when a target is begun.

        Args:
            done: Targets done.
            total: All targets.
            scan_id: Id of the target; empty at the end.
        """

    def scored(self, score: Score, structure: Structure, predicted: NDArray[np.bool_]) -> None:
        """Called when a structure was predicted in a target and scored.

        Args:
            score: The score.
            structure: The structure.
            predicted: (z, y, x), on the target's grid.
        """


def evaluate_in_context(
    net: torch.nn.Module,
    store: Store,
    config: EvaluationConfig,
    *,
    device: torch.device | str = "cpu",
    listener: Listener | None = None,
    ensemble: bool = False,
    distances: bool = False,
    keep_going: bool = False,
) -> Evaluation:
    """Return the scores of in-context segmentation on labelled targets, given labelled references.

    The network's mode (training or evaluation) and the state of every random generator are restored.

    Args:
        net: An `Iris` on `device`.
        store: A store with labels.
        config: References, targets and structures.
        device: Device to compute on.
        listener: Called for every target and every score.
        ensemble: Whether to average the probabilities of all prompts, instead of scoring each prompt.
        distances: Whether to measure surface distances also.
        keep_going: Whether to list a damaged target in `Evaluation.failed`, instead of raising an error.

    Raises:
        DataError: No two scans of the store share a label map, or a chosen id is not in the store.
        CorruptStore: A reference is damaged, or a target without `keep_going`.
    """
    listener = listener or Listener()
    cohorts = _cohorts(store, config)
    total, done = sum(len(cohort.targets) for cohort in cohorts), 0
    scores: list[Score] = []
    unprompted: list[Unprompted] = []
    failed: list[Failed] = []
    training = net.training
    net.eval()
    try:
        for cohort in cohorts:
            structures = _structures(store, cohort, config)
            prompts = [_prompt(net, store, cohort, ids, structures, config, device) for ids in cohort.prompts]
            unprompted += _unprompted(cohort, prompts, structures)
            scorer = _Scorer(
                net=net, cohort=cohort, config=config, device=device, distances=distances, listener=listener
            )
            for scan_id in cohort.targets:
                listener.begins(done, total, scan_id)
                try:
                    target = _Target.read(store.scan(scan_id), cohort.label)
                    usable = _prompts_for(scan_id, cohort, prompts, store.entries)
                    scores += scorer.ensembled(target, usable) if ensemble else scorer.each(target, usable)
                except CorruptStore as error:
                    if not keep_going:
                        raise
                    failed.append(Failed(target=scan_id, label=cohort.label, reason=str(error)))
                done += 1
        listener.begins(done, total, "")
    finally:
        net.train(training)
    return Evaluation(scores=tuple(scores), unprompted=tuple(unprompted), failed=tuple(failed))


@dataclass(frozen=True, kw_only=True)
class _Cohort:
    """Scans of one data set that share a label map, split into references and targets."""

    dataset: str
    label: str
    prompts: tuple[tuple[str, ...], ...]
    """Ids of the references of each prompt."""
    targets: tuple[str, ...]
    """Ids of the targets."""


def _cohorts(store: Store, config: EvaluationConfig) -> list[_Cohort]:
    """Return the scans of each data set that share a label map, split into references and targets."""
    entries = store.entries
    missing = [scan_id for scan_id in (*config.targets, *config.references) if scan_id not in entries]
    if missing:
        more = f" ({len(missing) - 1} more are missing)" if len(missing) > 1 else ""
        raise DataError(f"evaluation: scan {missing[0]!r} is not in {store.path}{more}")
    members: dict[tuple[str, str], list[str]] = {}
    for entry in entries.values():
        for label in entry.labels:
            if config.label in ("", label) and (not config.datasets or entry.dataset in config.datasets):
                members.setdefault((entry.dataset, label), []).append(entry.scan_id)
    cohorts = []
    for (dataset, label), ids in members.items():
        generator = np.random.default_rng(config.seed)
        shuffled = cases_in_turn((ids[k] for k in generator.permutation(len(ids))), entries)
        no_references = of_other_cases(shuffled, config.references, entries) or shuffled
        targets = _chosen(config.targets, no_references[: config.num_targets], ids)
        others = of_other_cases(shuffled, targets, entries) or shuffled
        references = _chosen(config.references, others, ids)
        prompts = _groups(references, config.shots, config.num_prompts)
        # A target's case may be in the references of some prompts, but not of all.
        targets = [t for t in targets if any(of_other_cases([t], ids, entries) for ids in prompts)]
        if targets:
            cohorts.append(_Cohort(dataset=dataset, label=label, prompts=prompts, targets=tuple(targets)))
    if not cohorts:
        raise DataError(
            f"evaluation: no two scans of {store.path} share a label map"
            + (f" {config.label!r}" if config.label else "")
            + " and are of different cases. Give scans with labels, or leave the evaluation out"
        )
    return cohorts


def _chosen(wanted: Sequence[str], drawn: Sequence[str], ids: Sequence[str]) -> list[str]:
    """Return the ids to use: the wanted ones that are among `ids`, or the drawn ones if none are wanted."""
    present = set(ids)
    return [scan_id for scan_id in wanted if scan_id in present] if wanted else list(drawn)


def _groups(references: Sequence[str], shots: int, count: int) -> tuple[tuple[str, ...], ...]:
    """Return up to `count` disjoint groups of `shots` references; one smaller group if there are too few."""
    full = [tuple(references[k : k + shots]) for k in range(0, len(references) - shots + 1, shots)]
    return tuple(full[:count]) or ((tuple(references),) if references else ())


def _structures(store: Store, cohort: _Cohort, config: EvaluationConfig) -> tuple[Structure, ...]:
    """Return the structures: the values found in most references' label maps, and all values together."""
    counts: dict[int, int] = {}
    names: dict[int, str] = {}
    for scan_id in dict.fromkeys(scan_id for ids in cohort.prompts for scan_id in ids):
        scan = store.scan(scan_id)
        names |= scan.label_values(cohort.label)
        for value in np.unique(scan.labels(cohort.label)).tolist():
            if value:
                counts[value] = counts.get(value, 0) + 1
    values = sorted(counts, key=lambda value: (-counts[value], value))[: config.max_structures]
    parts = [Structure(name=names.get(value, str(value)), values=(value,)) for value in sorted(values)]
    if not config.whole or (len(counts) < 2 and config.parts):
        return tuple(parts)
    everything = Structure(name=WHOLE, values=tuple(sorted(counts)))
    return (everything, *parts) if config.parts else (everything,)


def _prompt(
    net: torch.nn.Module,
    store: Store,
    cohort: _Cohort,
    ids: Sequence[str],
    structures: Sequence[Structure],
    config: EvaluationConfig,
    device: torch.device | str,
) -> Prompt | None:
    """Return the encoded references of one prompt; None if they have none of the structures."""
    scans = [store.scan(scan_id) for scan_id in ids]
    references = [
        Reference(image=scan.image(normalize=True), labels=scan.labels(cohort.label)) for scan in scans
    ]
    if not any(
        structure.mask(reference.labels).any() for structure in structures for reference in references
    ):
        return None
    context: InContextNet = net  # type: ignore[assignment]
    return encode_references(context, references, structures, config.inference, device=device)


def _unprompted(
    cohort: _Cohort, prompts: Sequence[Prompt | None], structures: Sequence[Structure]
) -> Iterator[Unprompted]:
    """Yield the structures that all references of a prompt lack."""
    for ids, prompt in zip(cohort.prompts, prompts, strict=True):
        for structure in structures if prompt is None else prompt.missing:
            yield Unprompted(
                dataset=cohort.dataset, label=cohort.label, structure=structure.name, references=ids
            )


_NamedPrompts = list[tuple[tuple[str, ...], Prompt]]
"""Prompts, each with the ids of its references."""


def _prompts_for(
    target: str, cohort: _Cohort, prompts: Sequence[Prompt | None], entries: Mapping[str, IndexEntry]
) -> _NamedPrompts:
    """Return the prompts without a reference of the target's case."""
    return [
        (ids, prompt)
        for ids, prompt in zip(cohort.prompts, prompts, strict=True)
        if prompt is not None and of_other_cases([target], ids, entries)
    ]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Target:
    """A scan to segment, with its expert labels."""

    scan_id: str
    image: NDArray[np.float32]
    labels: NDArray[np.uint8] | NDArray[np.uint16]
    spacing_zyx_mm: tuple[float, float, float]

    @classmethod
    def read(cls, scan: Scan, label: str) -> _Target:
        """Read image and label map of a stored scan."""
        return cls(
            scan_id=scan.id,
            labels=scan.labels(label),
            image=scan.image(normalize=True),
            spacing_zyx_mm=scan.spacing_zyx_mm,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Scorer:
    """Segments targets of a cohort with prompts, and scores the results."""

    net: torch.nn.Module
    cohort: _Cohort
    config: EvaluationConfig
    device: torch.device | str
    distances: bool
    listener: Listener

    def _predict(
        self, target: _Target, prompts: Sequence[Prompt]
    ) -> Iterator[tuple[int, slice, NDArray[np.float32]]]:
        context: InContextNet = self.net  # type: ignore[assignment]
        return predict(context, target.image, prompts, self.config.inference, device=self.device)

    def each(self, target: _Target, prompts: _NamedPrompts) -> Iterator[Score]:
        """Yield the scores of one target with every prompt."""
        for number, part, probabilities in self._predict(target, [prompt for _, prompt in prompts]):
            ids, prompt = prompts[number]
            for structure, probability in zip(prompt.structures[part], probabilities, strict=True):
                yield self._score(target, structure, ids, probability)

    def ensembled(self, target: _Target, prompts: _NamedPrompts) -> Iterator[Score]:
        """Yield the scores of one target with the mean probability of all prompts that have a structure.

        Structures are processed in groups, so that the sums of a group need at most half of
        `max_accumulator_bytes`.
        """
        structures = list(dict.fromkeys(s for _, prompt in prompts for s in prompt.structures))
        group_size = self.config.inference.max_accumulator_bytes // (2 * 4 * target.image.size)
        for first in range(0, len(structures), max(1, group_size)):
            group = structures[first : first + max(1, group_size)]
            reduced = [(ids, prompt.only(group)) for ids, prompt in prompts]
            reduced = [(ids, prompt) for ids, prompt in reduced if prompt.structures]
            sums: dict[Structure, NDArray[np.float32]] = {}
            references: dict[Structure, list[str]] = {structure: [] for structure in group}
            for number, part, probabilities in self._predict(target, [prompt for _, prompt in reduced]):
                ids, prompt = reduced[number]
                for structure, probability in zip(prompt.structures[part], probabilities, strict=True):
                    if structure in sums:
                        sums[structure] += probability
                    else:
                        sums[structure] = probability.copy()
                    references[structure].append("+".join(ids))
            for structure in group:
                mean = sums.pop(structure) / np.float32(len(references[structure]))
                yield self._score(target, structure, tuple(references[structure]), mean)

    def _score(
        self,
        target: _Target,
        structure: Structure,
        references: tuple[str, ...],
        probability: NDArray[np.float32],
    ) -> Score:
        predicted, expected = probability >= self.config.inference.threshold, structure.mask(target.labels)
        distances: SurfaceDistances = UNKNOWN
        if self.distances:
            distances = surface_distances(predicted, expected, target.spacing_zyx_mm)
        score = Score(
            dataset=self.cohort.dataset,
            label=self.cohort.label,
            structure=structure.name,
            target=target.scan_id,
            references=references,
            expected_voxels=int(expected.sum()),
            predicted_voxels=int(predicted.sum()),
            common_voxels=int((expected & predicted).sum()),
            hd95_mm=distances.hd95_mm,
            asd_mm=distances.asd_mm,
        )
        self.listener.scored(score, structure, predicted)
        return score
