"""Labels of a few scans, carried over by registration to scans without labels, before a fine-tuning.

    references  labelled scans of a store: those that are named, or some that are drawn
    targets     scans of their modalities without the label, of no case that is kept apart; drawn if many
    for each    every reference is registered to it, their masks are averaged and moved onto its boundaries
                (`training.inference.registration`): a label map, with a confidence for each structure

*Reads* images and label maps of a store. *Writes* a folder with a file and a picture for each target
(`carried_labels`); files that are up to date are not made again. The same store gives the same bytes. No
label of a target is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from storage import IndexEntry, StorageError, Store, StorePath, open_store
from training.data import cases_in_turn, of_other_cases
from training.errors import DataError
from training.finetuning.carried_labels import (
    CarriedLabels,
    Question,
    carried_files,
    file_name,
    read_carried,
    write_carried,
)
from training.finetuning.scans import FinetuneTaskConfig, LabelledScans, choose_scans
from training.inference import THRESHOLD, Case, Reference, Structure, carry_structures, write_png

REFERENCES = 5
"""Most labelled scans that labels are carried over from, if none are named: each takes seconds a target."""
TARGETS = 100
"""Most scans that labels are carried over to, if none are named."""
_DRAWN = 4
"""Most structures in a picture, the largest first."""


@dataclass(frozen=True, kw_only=True)
class CarryPlan:
    """From which scans what is carried over, and to which."""

    question: Question
    targets: tuple[str, ...]
    """Ids, sorted."""


@dataclass(frozen=True, kw_only=True)
class CarriedScan:
    """Result for one target."""

    scan_id: str
    confidences: Mapping[int, float]
    """Estimated Dice of each structure, 0..1, by label value; empty if it failed."""
    error: str = ""
    """Why there is no file; empty if there is one."""
    kept: bool = False
    """Whether its file was there already."""

    @property
    def confidence(self) -> float:
        """Mean confidence of the structures, 0..1."""
        return float(np.mean(list(self.confidences.values()))) if self.confidences else 0.0


def plan_carrying(
    store: Store,
    config: FinetuneTaskConfig,
    *,
    targets: Sequence[str] = (),
    most: int = TARGETS,
) -> CarryPlan:
    """Return which labels are carried over to which scans.

    Args:
        store: The store.
        config: Which scans are the references, as for a fine-tuning (`choose_scans`); with neither `scans`
            nor `num_scans`, at most `REFERENCES` are drawn from all labelled ones. No scan of
            `exclude`, and none of a case in `held_out`, is a target.
        targets: Ids of the targets; their own labels are not read. Empty for scans without the label.
        most: Most targets, of as many cases as possible; those of fewer are among those of more.

    Raises:
        ConfigError: A scan is a reference and held out.
        DataError: There is no such label or scan, or there is no target.
    """
    if not config.scans and not config.num_scans:
        every = choose_scans(store, replace(config, holdout_fraction=0.0)).training
        config = replace(config, num_scans=min(REFERENCES, len(every)))
    chosen = choose_scans(store, replace(config, holdout_fraction=0.0))
    entries = store.entries
    found = sorted(targets or _without_label(store, config, chosen))
    refused = sorted(set(found) - _allowed(store, config, chosen))
    if refused:
        why = (
            "is a reference, excluded, or of a case that is held out"
            if refused[0] in entries
            else "is not there"
        )
        raise DataError(
            f"{store.path}: scan {refused[0]!r} {why}, so no labels are carried over to it. Leave it out"
        )
    generator = np.random.default_rng(config.scan_seed)
    drawn = cases_in_turn((found[k] for k in generator.permutation(len(found))), entries)
    return CarryPlan(
        question=Question(
            label=chosen.label,
            names={part.values[0]: part.name for part in chosen.structures},
            references={scan_id: entries[scan_id].digest for scan_id in chosen.training},
        ),
        targets=tuple(sorted(drawn if targets else drawn[:most])),
    )


def _allowed(store: Store, config: FinetuneTaskConfig, chosen: LabelledScans) -> set[str]:
    """Return the scans that labels may be carried over to."""
    apart = of_other_cases(store.entries, config.held_out, store.entries)
    return set(apart) - {*config.exclude, *chosen.training}


def _without_label(store: Store, config: FinetuneTaskConfig, chosen: LabelledScans) -> list[str]:
    """Return the scans of the references' modalities without the label, of the data sets asked for."""
    allowed = _allowed(store, config, chosen)
    found = [
        scan_id
        for scan_id, entry in store.entries.items()
        if scan_id in allowed
        and chosen.label not in entry.labels
        and entry.modality in chosen.modalities
        and (not config.datasets or entry.dataset in config.datasets)
    ]
    if not found:
        raise DataError(
            f"{store.path}: every scan of the modality {' or '.join(chosen.modalities)} has the label "
            f"{chosen.label!r} or is held out, so there is none to carry it over to. Name some (--to): their "
            "own labels are not read"
        )
    return found


def carry_labels(
    store: StorePath, folder: Path, plan: CarryPlan, *, workers: int = 1
) -> Iterator[CarriedScan]:
    """Carry labels over to each target, write its file and picture, and yield each result.

    A target that fails is yielded with its error; the others go on.

    Args:
        store: Path or URL of the store.
        folder: Folder of the files; created if it does not exist.
        plan: What is carried over, and to which scans.
        workers: Number of processes; 1 works in this one.

    Raises:
        DataError: The folder has labels of other structures or from other scans, or files are damaged.
    """
    opened = open_store(store)
    check_folder(folder, plan.question)
    left = []
    for scan_id in plan.targets:
        found = _up_to_date(folder, scan_id, plan.question, opened.entries)
        if found is None:
            left.append(scan_id)
        else:
            yield found
    if workers <= 1 or len(left) <= 1:
        shown = _references(opened, plan.question) if left else []
        for scan_id in left:
            yield _carry(opened, folder, plan.question, shown, scan_id)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures: list[Future[CarriedScan]] = [
            pool.submit(_carry_alone, store, folder, plan.question, scan_id) for scan_id in left
        ]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            for future in futures:
                future.cancel()


def check_folder(folder: Path, question: Question) -> None:
    """Check that labels may be carried over into a folder.

    Raises:
        DataError: It is a file, a file in it is damaged, or it has labels of other structures or scans.
    """
    if not folder.exists():
        return
    for path in carried_files(folder):
        other = read_carried(path).question
        same = (other.label, other.names, set(other.references)) == (
            question.label,
            question.names,
            set(question.references),
        )
        if not same:
            raise DataError(
                f"{folder}: there are labels here already that are from other scans "
                f"({', '.join(sorted(other.references))}) or of other structures. Name a new folder"
            )


def carried_labels(
    store: Store, question: Question, references: Sequence[Reference], scan_id: str
) -> tuple[CarriedLabels, list[Case]]:
    """Return the labels that registration carries over to a scan, and the cases of a picture of them.

    Args:
        store: The store.
        question: The structures.
        references: Images (z-scores) and label maps of the labelled scans.
        scan_id: The target.

    Raises:
        StorageError: It cannot be read.
    """
    scan = store.scan(scan_id)
    image = scan.image(normalize=True)
    structures = [Structure(name=name, values=(value,)) for value, name in question.names.items()]
    found = carry_structures(references, structures, image)
    values = np.array(list(question.names), np.uint16)
    best = values[found.probabilities.argmax(axis=0)]
    labels = np.where(found.probabilities.max(axis=0) >= THRESHOLD, best, 0).astype(np.uint16)
    carried = CarriedLabels.of(
        labels,
        scan_id=scan_id,
        digest=store.entries[scan_id].digest,
        question=question,
        confidences=dict(zip(question.names, found.confidences, strict=True)),
        agreement=found.agreement,
    )
    sizes = np.bincount(labels.ravel(), minlength=int(values.max()) + 1)
    largest = sorted(structures, key=lambda part: -int(sizes[part.values[0]]))[:_DRAWN]
    cases = [
        Case(
            reference=references[0].image,
            mask=part.mask(references[0].labels),
            target=image,
            prediction=part.mask(labels),
            spacing_zyx_mm=scan.spacing_zyx_mm,
            title=f"{part.name}  confidence {carried.confidences[part.values[0]]:.2f}",
        )
        for part in largest
    ]
    return carried, cases


def _carry_alone(store: StorePath, folder: Path, question: Question, scan_id: str) -> CarriedScan:
    opened = open_store(store)
    return _carry(opened, folder, question, _references(opened, question), scan_id)


def _carry(
    store: Store, folder: Path, question: Question, references: Sequence[Reference], scan_id: str
) -> CarriedScan:
    try:
        carried, cases = carried_labels(store, question, references, scan_id)
    except (StorageError, ValueError, RuntimeError) as error:
        return CarriedScan(scan_id=scan_id, confidences={}, error=str(error).splitlines()[-1])
    write_png(folder / f"{scan_id}.png", cases)
    write_carried(folder, carried)
    return CarriedScan(scan_id=scan_id, confidences=carried.confidences)


def _references(store: Store, question: Question) -> list[Reference]:
    """Return images and label maps of the labelled scans."""
    scans = [store.scan(scan_id) for scan_id in question.references]
    return [Reference(image=scan.image(normalize=True), labels=scan.labels(question.label)) for scan in scans]


def _up_to_date(
    folder: Path, scan_id: str, question: Question, entries: Mapping[str, IndexEntry]
) -> CarriedScan | None:
    """Return the result of an earlier call; None if it is missing, damaged, or of other scans."""
    with suppress(DataError):
        carried = read_carried(folder / file_name(scan_id))
        if carried.question == question and carried.digest == entries[scan_id].digest:
            return CarriedScan(scan_id=scan_id, confidences=carried.confidences, kept=True)
    return None
