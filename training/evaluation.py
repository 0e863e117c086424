"""In-context Dice on the labelled scans of a store, without training on the labels: how good is a net yet?

Some scans serve as references, others as targets; each *prompt* is k references (k shots), put to every
target that is not among them. A structure is one value of a label map, or (`whole`) all of them together.

Reads:  a store's images (z-scores) and labels.
Writes: one `Score` a prompt, target and structure; means over them.
Bounds: scans of one data set and label name are compared with each other only. A structure that is absent
        from a target has no Dice and counts nowhere; how many these are is stated, and how many of them were
        drawn all the same. Draws come from the config's seed: no generator of the caller's is touched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from storage import Store
from training.errors import ConfigError, DataError
from training.inference import (
    InContextNet,
    InferenceConfig,
    Prompt,
    Reference,
    Structure,
    encode_references,
    predict,
)

WHOLE = "whole"
"""Name of the structure made of all values of a label map."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Which scans are compared, and how."""

    targets: tuple[str, ...] = ()
    """Ids of the target scans; empty: `num_targets` drawn."""
    references: tuple[str, ...] = ()
    """Ids of the scans that prompts are made of, in turn; empty: drawn."""
    num_targets: int = 8
    """Targets drawn from each data set and label name."""
    num_prompts: int = 2
    """Prompts; each takes `shots` references that no earlier one has, as far as they last."""
    shots: int = 1
    """References a prompt; their priors are averaged."""
    datasets: tuple[str, ...] = ()
    """Data sets to evaluate on; empty: all that have labels."""
    label: str = ""
    """Label map to evaluate on; empty: every one."""
    whole: bool = True
    """Whether all values of a label map together are one structure more, where there are several."""
    parts: bool = True
    """Whether each value is a structure."""
    max_structures: int = 16
    """Most values of a label map that are looked at, those in most references first."""
    seed: int = 0
    """Of the draws."""
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    """Windows and precision."""

    def __post_init__(self) -> None:
        for name in ("num_targets", "num_prompts", "shots", "max_structures"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.whole and not self.parts:
            raise ConfigError("whole or parts must be true: there is nothing to evaluate")


@dataclass(frozen=True, kw_only=True)
class Score:
    """How well one structure was found in one target."""

    dataset: str
    """Collection of the scans."""
    label: str
    """Label map."""
    structure: str
    """Name of the value, or "whole"."""
    target: str
    """Id of the target."""
    references: tuple[str, ...]
    """Ids of the references."""
    expected_voxels: int
    """Voxels of the structure by the label."""
    predicted_voxels: int
    """Voxels that were drawn."""
    common_voxels: int
    """Voxels of both."""

    @property
    def dice(self) -> float:
        """2 |A and B| / (|A| + |B|) in [0, 1]; NaN where the target lacks the structure."""
        if not self.expected_voxels:
            return math.nan
        return 2 * self.common_voxels / (self.expected_voxels + self.predicted_voxels)


@dataclass(frozen=True, kw_only=True)
class StructureSummary:
    """One structure over all its cases."""

    dataset: str
    """Collection of the scans."""
    label: str
    """Label map."""
    structure: str
    """Name of the value, or "whole"."""
    dice: float
    """Mean over prompts and targets that have it; NaN where none has."""
    num_cases: int
    """How many these are."""
    num_absent: int
    """Cases whose target lacks it; not in the mean."""
    num_drawn_though_absent: int
    """Those of them where something was drawn."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All scores, and what they come to."""

    scores: tuple[Score, ...]
    """By prompt, target and structure."""
    num_unprompted: int
    """Structures that a prompt's references all lack, counted over prompts; they have no scores there."""

    @property
    def structures(self) -> tuple[StructureSummary, ...]:
        """A summary of each structure, in the order in which they were met."""
        groups: dict[tuple[str, str, str], list[Score]] = {}
        for score in self.scores:
            groups.setdefault((score.dataset, score.label, score.structure), []).append(score)
        return tuple(_summary(*names, scores) for names, scores in groups.items())

    @property
    def mean_dice(self) -> float:
        """Mean over structures, each of the same weight; NaN where there is none."""
        return _mean(summary.dice for summary in self.structures)

    def to_json(self) -> dict[str, Any]:
        """Return the means, the counts and each structure's mean, without the single scores."""
        return {
            "mean_dice": _plain(self.mean_dice),
            "num_cases": len(self.scores),
            "num_unprompted": self.num_unprompted,
            "structures": [
                {
                    "dataset": summary.dataset,
                    "label": summary.label,
                    "structure": summary.structure,
                    "dice": _plain(summary.dice),
                    "num_cases": summary.num_cases,
                    "num_absent": summary.num_absent,
                    "num_drawn_though_absent": summary.num_drawn_though_absent,
                }
                for summary in self.structures
            ],
        }


def evaluate_in_context(
    net: torch.nn.Module,
    store: Store,
    config: EvaluationConfig,
    *,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Return how well a network finds labelled structures when it is shown k labelled references.

    The network's mode and the state of every random generator are as before.

    Args:
        net: An `Iris` on `device`.
        store: With labels.
        config: Which scans, how many prompts.
        device: Where to compute.
        progress: Called with targets done and targets in all.

    Raises:
        DataError: No two scans of the store share a label map, or a chosen id is not in it.
    """
    cohorts = _cohorts(store, config)
    total, done = sum(len(cohort.targets) for cohort in cohorts), 0
    scores: list[Score] = []
    num_unprompted = 0
    training = net.training
    net.eval()
    try:
        for cohort in cohorts:
            structures = _structures(store, cohort, config)
            prompts = [_prompt(net, store, cohort, ids, structures, config, device) for ids in cohort.prompts]
            num_unprompted += sum(len(structures) - len(prompt.structures) for prompt in prompts if prompt)
            num_unprompted += sum(len(structures) for prompt in prompts if prompt is None)
            for target in cohort.targets:
                scores += _target_scores(net, store, cohort, target, prompts, config, device)
                done += 1
                if progress is not None:
                    progress(done, total)
    finally:
        net.train(training)
    return Evaluation(scores=tuple(scores), num_unprompted=num_unprompted)


@dataclass(frozen=True, kw_only=True)
class _Cohort:
    """Scans with the same label map: what can be compared."""

    dataset: str
    label: str
    prompts: tuple[tuple[str, ...], ...]
    targets: tuple[str, ...]


def _cohorts(store: Store, config: EvaluationConfig) -> list[_Cohort]:
    """Who is shown to whom."""
    strangers = [scan_id for scan_id in (*config.targets, *config.references) if scan_id not in store.entries]
    if strangers:
        raise DataError(
            f"evaluation: scan {strangers[0]!r} is not in {store.path}, nor {len(strangers) - 1} others"
        )
    members: dict[tuple[str, str], list[str]] = {}
    for entry in store.entries.values():
        for label in entry.labels:
            if config.label in ("", label) and (not config.datasets or entry.dataset in config.datasets):
                members.setdefault((entry.dataset, label), []).append(entry.scan_id)
    cohorts = []
    for (dataset, label), ids in members.items():
        generator = np.random.default_rng(config.seed)
        shuffled = [ids[k] for k in generator.permutation(len(ids))]
        targets = _chosen(config.targets, shuffled[: config.num_targets], ids)
        others = [scan_id for scan_id in shuffled if scan_id not in targets] or shuffled
        references = _chosen(config.references, others, ids)
        prompts = _groups(references, config.shots, config.num_prompts)
        # A target may be among the references of some prompts, but not of all.
        targets = [target for target in targets if any(target not in prompt for prompt in prompts)]
        if targets:
            cohorts.append(_Cohort(dataset=dataset, label=label, prompts=prompts, targets=tuple(targets)))
    if not cohorts:
        raise DataError(
            f"evaluation: no two scans of {store.path} share a label map"
            + (f" {config.label!r}" if config.label else "")
            + ". Give scans with labels, or leave the evaluation out"
        )
    return cohorts


def _chosen(wanted: Sequence[str], drawn: Sequence[str], ids: Sequence[str]) -> list[str]:
    """The wanted ids that are in the cohort; what was drawn where none is wanted."""
    there = set(ids)
    return [scan_id for scan_id in wanted if scan_id in there] if wanted else list(drawn)


def _groups(references: Sequence[str], shots: int, count: int) -> tuple[tuple[str, ...], ...]:
    """Up to `count` disjoint groups of `shots` references; one smaller group where there are not enough."""
    whole = [tuple(references[k : k + shots]) for k in range(0, len(references) - shots + 1, shots)]
    return tuple(whole[:count]) or ((tuple(references),) if references else ())


def _structures(store: Store, cohort: _Cohort, config: EvaluationConfig) -> tuple[Structure, ...]:
    """What is looked for: the most frequent values of the references' label maps, and all together."""
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
    """The encoded references of one prompt; None where they show none of the structures."""
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


def _target_scores(
    net: torch.nn.Module,
    store: Store,
    cohort: _Cohort,
    target: str,
    prompts: Sequence[Prompt | None],
    config: EvaluationConfig,
    device: torch.device | str,
) -> list[Score]:
    """The scores of one target with every prompt that it is not part of."""
    scan = store.scan(target)
    labels = scan.labels(cohort.label)
    asked = [
        (ids, prompt)
        for ids, prompt in zip(cohort.prompts, prompts, strict=True)
        if prompt is not None and target not in ids
    ]
    image = scan.image(normalize=True)
    scores = []
    context: InContextNet = net  # type: ignore[assignment]
    found = predict(context, image, [prompt for _, prompt in asked], config.inference, device=device)
    for number, part, probabilities in found:
        ids, prompt = asked[number]
        for structure, probability in zip(prompt.structures[part], probabilities, strict=True):
            drawn = probability >= config.inference.threshold
            scores.append(_score(cohort, structure, target, ids, structure.mask(labels), drawn))
    return scores


def _score(
    cohort: _Cohort,
    structure: Structure,
    target: str,
    references: tuple[str, ...],
    expected: NDArray[np.bool_],
    drawn: NDArray[np.bool_],
) -> Score:
    return Score(
        dataset=cohort.dataset,
        label=cohort.label,
        structure=structure.name,
        target=target,
        references=references,
        expected_voxels=int(expected.sum()),
        predicted_voxels=int(drawn.sum()),
        common_voxels=int((expected & drawn).sum()),
    )


def _summary(dataset: str, label: str, structure: str, scores: Sequence[Score]) -> StructureSummary:
    absent = [score for score in scores if not score.expected_voxels]
    return StructureSummary(
        dataset=dataset,
        label=label,
        structure=structure,
        dice=_mean(score.dice for score in scores),
        num_cases=len(scores) - len(absent),
        num_absent=len(absent),
        num_drawn_though_absent=sum(score.predicted_voxels > 0 for score in absent),
    )


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _plain(value: float) -> float | None:
    """A number for JSON, which has no NaN."""
    return None if math.isnan(value) else value
