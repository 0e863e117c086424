"""In-context Dice on the labelled scans of a store, without training on the labels: how good is a net yet?

Some scans serve as references, others as targets; each *prompt* is k references (k shots), put to every
target that is not among them. A structure is one value of a label map, or (`whole`) all of them together.

Reads:  a store's images (z-scores) and labels.
Writes: one `Score` a prompt, target and structure (`training.evaluation.scores`); ensembled, one a target and
        structure.
Bounds: scans of one data set and label name are compared with each other only. A structure that is absent
        from a target has no Dice and counts nowhere; how many these are is stated, and how many of them were
        drawn all the same. Draws come from the config's seed: no generator of the caller's is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from storage import CorruptStore, Scan, Store
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


def evaluate_in_context(
    net: torch.nn.Module,
    store: Store,
    config: EvaluationConfig,
    *,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
    ensemble: bool = False,
    distances: bool = False,
    keep_going: bool = False,
) -> Evaluation:
    """Return how well a network finds labelled structures when it is shown k labelled references.

    The network's mode and the state of every random generator are as before.

    Args:
        net: An `Iris` on `device`.
        store: With labels.
        config: Which scans, how many prompts.
        device: Where to compute.
        progress: Called with targets done and targets in all.
        ensemble: Whether the prompts' probabilities are averaged, in place of scoring each prompt.
        distances: Whether surface distances are measured too.
        keep_going: Whether a target whose bytes are damaged is told of, in place of ending it all.

    Raises:
        DataError: No two scans of the store share a label map, or a chosen id is not in it.
        CorruptStore: A reference is damaged; a target too, unless `keep_going`.
    """
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
            ask = _Asking(net=net, cohort=cohort, config=config, device=device, distances=distances)
            for target in cohort.targets:
                try:
                    shown = _Target.read(store.scan(target), cohort.label)
                    prompted = _prompts_for(target, cohort, prompts)
                    scores += ask.ensembled(shown, prompted) if ensemble else ask.each(shown, prompted)
                except CorruptStore as error:
                    if not keep_going:
                        raise
                    failed.append(Failed(target=target, label=cohort.label, reason=str(error)))
                done += 1
                if progress is not None:
                    progress(done, total)
    finally:
        net.train(training)
    return Evaluation(scores=tuple(scores), unprompted=tuple(unprompted), failed=tuple(failed))


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
        strange = [scan_id for scan_id in shuffled if scan_id not in config.references] or shuffled
        targets = _chosen(config.targets, strange[: config.num_targets], ids)
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


def _unprompted(
    cohort: _Cohort, prompts: Sequence[Prompt | None], structures: Sequence[Structure]
) -> Iterator[Unprompted]:
    """What a prompt's references all lack."""
    for ids, prompt in zip(cohort.prompts, prompts, strict=True):
        for structure in structures if prompt is None else prompt.missing:
            yield Unprompted(
                dataset=cohort.dataset, label=cohort.label, structure=structure.name, references=ids
            )


_Prompted = list[tuple[tuple[str, ...], Prompt]]
"""Prompts with the ids of their references."""


def _prompts_for(target: str, cohort: _Cohort, prompts: Sequence[Prompt | None]) -> _Prompted:
    """The prompts that a target is not part of."""
    return [
        (ids, prompt)
        for ids, prompt in zip(cohort.prompts, prompts, strict=True)
        if prompt is not None and target not in ids
    ]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Target:
    """A scan that structures are looked for in."""

    scan_id: str
    image: NDArray[np.float32]
    labels: NDArray[np.uint8] | NDArray[np.uint16]
    spacing_zyx_mm: tuple[float, float, float]

    @classmethod
    def read(cls, scan: Scan, label: str) -> _Target:
        """A scan of a store."""
        return cls(
            scan_id=scan.id,
            labels=scan.labels(label),
            image=scan.image(normalize=True),
            spacing_zyx_mm=scan.spacing_zyx_mm,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Asking:
    """Who is asked what, and how answers are scored."""

    net: torch.nn.Module
    cohort: _Cohort
    config: EvaluationConfig
    device: torch.device | str
    distances: bool

    def _predict(
        self, target: _Target, prompts: Sequence[Prompt]
    ) -> Iterator[tuple[int, slice, NDArray[np.float32]]]:
        context: InContextNet = self.net  # type: ignore[assignment]
        return predict(context, target.image, prompts, self.config.inference, device=self.device)

    def each(self, target: _Target, prompted: _Prompted) -> Iterator[Score]:
        """The scores of one target with every prompt."""
        for number, part, probabilities in self._predict(target, [prompt for _, prompt in prompted]):
            ids, prompt = prompted[number]
            for structure, probability in zip(prompt.structures[part], probabilities, strict=True):
                yield self._score(target, structure, ids, probability)

    def ensembled(self, target: _Target, prompted: _Prompted) -> Iterator[Score]:
        """The scores of one target with the mean probability of all prompts that show a structure.

        As many structures at a time as half the memory of the accumulators holds.
        """
        structures = list(dict.fromkeys(s for _, prompt in prompted for s in prompt.structures))
        room = self.config.inference.max_accumulator_bytes // (2 * 4 * target.image.size)
        for first in range(0, len(structures), max(1, room)):
            some = structures[first : first + max(1, room)]
            asked = [(ids, prompt.only(some)) for ids, prompt in prompted]
            asked = [(ids, prompt) for ids, prompt in asked if prompt.structures]
            sums: dict[Structure, NDArray[np.float32]] = {}
            shown: dict[Structure, list[str]] = {structure: [] for structure in some}
            for number, part, probabilities in self._predict(target, [prompt for _, prompt in asked]):
                ids, prompt = asked[number]
                for structure, probability in zip(prompt.structures[part], probabilities, strict=True):
                    if structure in sums:
                        sums[structure] += probability
                    else:
                        sums[structure] = probability.copy()
                    shown[structure].append("+".join(ids))
            for structure in some:
                mean = sums.pop(structure) / np.float32(len(shown[structure]))
                yield self._score(target, structure, tuple(shown[structure]), mean)

    def _score(
        self,
        target: _Target,
        structure: Structure,
        references: tuple[str, ...],
        probability: NDArray[np.float32],
    ) -> Score:
        drawn, expected = probability >= self.config.inference.threshold, structure.mask(target.labels)
        apart: SurfaceDistances = UNKNOWN
        if self.distances:
            apart = surface_distances(drawn, expected, target.spacing_zyx_mm)
        return Score(
            dataset=self.cohort.dataset,
            label=self.cohort.label,
            structure=structure.name,
            target=target.scan_id,
            references=references,
            expected_voxels=int(expected.sum()),
            predicted_voxels=int(drawn.sum()),
            common_voxels=int((expected & drawn).sum()),
            hd95_mm=apart.hd95_mm,
            asd_mm=apart.asd_mm,
        )
