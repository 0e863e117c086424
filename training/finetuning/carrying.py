"""Labels of a few scans, carried over by registration to scans without labels, before a fine-tuning.

    references  labelled scans of a store: those that are named, or some that are drawn; for each target those
                of its modality
    targets     scans of their modalities without the label, of no case that is kept apart; drawn if many
    for each    every reference is registered to it, their masks are averaged and moved onto its boundaries
                (`training.inference.registration`): a label map, with a confidence for each structure

*Reads* images and label maps of a store. *Writes* a folder with a file and a picture for each target
(`carried_labels`); files that are up to date are not made again. The same store gives the same bytes. No
label of a target is read.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TypeAlias

import numpy as np

from storage import IndexEntry, StorageError, Store, StorePath, folder_lock, open_store
from training.data import cases_in_turn, of_other_cases
from training.engine import in_processes
from training.errors import ConfigError, DataError
from training.finetuning.carried_labels import (
    CarriedLabels,
    Question,
    carried_files,
    file_name,
    read_carried,
    write_carried,
)
from training.finetuning.scans import (
    FinetuneTaskConfig,
    LabelledScans,
    check_known,
    choose_scans,
    count_scans,
    find_structures,
)
from training.inference import THRESHOLD, Case, Reference, Structure, carry_structures, write_png

REFERENCES = 5
"""Most labelled scans that labels are carried over from, if none are named: each takes seconds a target."""
TARGETS = 100
"""Most scans that labels are carried over to, if none are named."""
_Shown: TypeAlias = dict[str, Reference]
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
    kept_out: Sequence[str] = (),
    most: int = TARGETS,
) -> CarryPlan:
    """Return which labels are carried over to which scans.

    Args:
        store: The store.
        config: Which scans are the references, as for a fine-tuning (`choose_scans`); with neither `scans`
            nor `num_scans`, at most `REFERENCES` are drawn from all labelled ones. No scan of `exclude` is a
            target.
        targets: Ids of the targets, each once; their own labels are not read. Empty for scans without the
            label.
        kept_out: Ids of scans that are neither references nor targets, with all others of their cases.
        most: Most targets if none are named, of as many cases as possible; those of fewer are among those of
            more.

    Raises:
        ConfigError: A scan is a reference and kept out.
        DataError: There is no such label or scan, there is no target, or the labelled scans of a target's
            modality lack a structure that those of another have.
    """
    entries = store.entries
    check_known(store, (*targets, *kept_out))
    apart = set(entries) - set(of_other_cases(entries, kept_out, entries))
    torn = sorted(apart & set(config.scans))
    if torn:
        raise ConfigError(f"scan {torn[0]!r}, or another of its case, is to be carried from and held out")
    config = replace(config, holdout_fraction=0.0, exclude=(*config.exclude, *sorted(apart)))
    if not config.scans and not config.num_scans:
        config = replace(config, num_scans=min(REFERENCES, count_scans(store, config)))
    chosen = choose_scans(store, config)
    if targets:
        found = sorted(set(targets))
        _check_targets(store, found, config, chosen)
    else:
        found = _without_label(store, config, chosen)
        generator = np.random.default_rng(config.scan_seed)
        found = cases_in_turn((found[k] for k in generator.permutation(len(found))), entries)[:most]
    _check_structures(store, chosen, {entries[scan_id].modality for scan_id in found})
    return CarryPlan(
        question=Question(
            label=chosen.label,
            names={part.values[0]: part.name for part in chosen.structures},
            references={scan_id: entries[scan_id].digest for scan_id in chosen.training},
        ),
        targets=tuple(sorted(found)),
    )


def _check_targets(
    store: Store, targets: Sequence[str], config: FinetuneTaskConfig, chosen: LabelledScans
) -> None:
    """Check that labels may be carried over to these scans."""
    for scan_id in targets:
        if scan_id in chosen.training:
            raise DataError(
                f"{store.path}: scan {scan_id!r} is one of the labelled scans that are carried over from. "
                "Name others (--scans) to carry labels over to it"
            )
        if scan_id in config.exclude:
            raise DataError(
                f"{store.path}: scan {scan_id!r} is excluded, or of a case that is held out. Leave it out"
            )
        modality = store.entries[scan_id].modality
        if modality not in chosen.modalities:
            raise DataError(
                f"{store.path}: scan {scan_id!r} is {modality.upper()}, the labelled scans are "
                f"{' and '.join(chosen.modalities).upper()}: registration compares intensities. Leave it out"
            )


def _check_structures(store: Store, chosen: LabelledScans, modalities: Set[str]) -> None:
    """Check that the labelled scans of each modality show every structure."""
    for modality in sorted(modalities) if len(chosen.modalities) > 1 else ():
        ids = [scan_id for scan_id in chosen.training if store.entries[scan_id].modality == modality]
        shown = {part.values[0] for part in find_structures(store, chosen.label, ids)}
        lacking = [part for part in chosen.structures if part.values[0] not in shown]
        if lacking:
            raise DataError(
                f"{store.path}: no labelled {modality.upper()} scan of these shows {lacking[0].name} (label "
                f"{lacking[0].values[0]}), so the labels of other {modality.upper()} scans would "
                "lack it, and teach that it is absent. Choose structures that all modalities show "
                "(--values), other labelled scans (--scans), or targets of another modality (--to)"
            )


def _without_label(store: Store, config: FinetuneTaskConfig, chosen: LabelledScans) -> list[str]:
    """Return the scans of the references' modalities and data sets that lack the label, sorted."""
    found = [
        scan_id
        for scan_id, entry in store.entries.items()
        if scan_id not in config.exclude
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
    return sorted(found)


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
        ConfigError: The folder has labels of other structures or from other scans.
        DataError: It is something else than a folder of carried labels, or another process writes into it.
        TrainingError: A process ended early.
    """
    opened = open_store(store)
    check_folder(folder, plan.question, opened.entries)
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(folder_lock(folder))
        except BlockingIOError as error:
            raise DataError(
                f"{folder}: another command carries labels into this folder. Wait for it"
            ) from error
        yield from _carry_all(store, opened, folder, plan, workers)


def _carry_all(
    store: StorePath, opened: Store, folder: Path, plan: CarryPlan, workers: int
) -> Iterator[CarriedScan]:
    left = []
    for scan_id in plan.targets:
        found = _up_to_date(folder, scan_id, plan.question, opened.entries)
        if found is None:
            left.append(scan_id)
        else:
            yield found
    if workers <= 1 or len(left) <= 1:
        shown = _references(opened, plan.question) if left else {}
        for scan_id in left:
            yield _carry(opened, folder, plan.question, shown, scan_id)
        return
    yield from in_processes(partial(_carry_alone, store, folder, plan.question), left, workers)


def check_folder(folder: Path, question: Question, scan_ids: Container[str]) -> None:
    """Check that labels may be carried over into a folder; damaged files and other scans do not matter.

    Args:
        folder: The folder.
        question: What is carried over.
        scan_ids: Scans of the store.

    Raises:
        ConfigError: It has labels of other structures or from other scans.
        DataError: It is something else than a folder of carried labels.
    """
    if not folder.exists():
        return
    files = carried_files(folder)
    others = sorted({path.suffix for path in folder.iterdir()} - {".npz", ".png"})
    if others and not files:
        raise DataError(f"{folder}: there is something else here. Name a new or an empty folder")
    for path in files:
        if path.name.removesuffix(".npz") not in scan_ids:
            continue
        with suppress(DataError):
            other = read_carried(path).question
            if other.is_like(question):
                continue
            where = f"{folder}: there are labels here already that are from other scans"
            listed = ", ".join(sorted(other.references))
            raise ConfigError(
                f"{where} ({listed}) or of other structures. Name a new folder, or the same scans (--scans) "
                "and structures (--values)"
            )


def carried_labels(
    store: Store, question: Question, references: Mapping[str, Reference], scan_id: str
) -> tuple[CarriedLabels, list[Case]]:
    """Return the labels that registration carries over to a scan, and the cases of a picture of them.

    Args:
        store: The store.
        question: The structures.
        references: Images (z-scores) and label maps of the labelled scans of its modality, by id.
        scan_id: The target.

    Raises:
        StorageError: It cannot be read.
    """
    scan = store.scan(scan_id)
    image = scan.image(normalize=True)
    structures = [Structure(name=name, values=(value,)) for value, name in question.names.items()]
    found = carry_structures(list(references.values()), structures, image)
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
    first, shown = next(iter(references.items()))
    sizes = np.bincount(labels.ravel(), minlength=int(values.max()) + 1)
    largest = sorted(structures, key=lambda part: -int(sizes[part.values[0]]))[:_DRAWN]
    cases = [
        Case(
            reference=shown.image,
            mask=part.mask(shown.labels),
            target=image,
            prediction=part.mask(labels),
            spacing_zyx_mm=scan.spacing_zyx_mm,
            title=f"{part.name}  {scan_id}, from {first}  "
            f"confidence {carried.confidences[part.values[0]]:.2f}",
        )
        for part in largest
    ]
    return carried, cases


def _carry_alone(store: StorePath, folder: Path, question: Question, scan_id: str) -> CarriedScan:
    """Carry labels over to a scan, in a worker."""
    opened, references = _opened(store, json.dumps(question.to_json()))
    return _carry(opened, folder, question, references, scan_id)


@lru_cache(maxsize=1)
def _opened(store: StorePath, question: str) -> tuple[Store, dict[str, _Shown]]:
    """Return a store and the labelled scans of a question (as JSON); a worker reads them once."""
    opened = open_store(store)
    return opened, _references(opened, Question.from_json(json.loads(question)))


def _carry(
    store: Store, folder: Path, question: Question, references: Mapping[str, _Shown], scan_id: str
) -> CarriedScan:
    try:
        alike = references[store.entries[scan_id].modality]
        carried, cases = carried_labels(store, question, alike, scan_id)
    except (StorageError, ValueError, RuntimeError) as error:
        return CarriedScan(scan_id=scan_id, confidences={}, error=str(error).splitlines()[-1])
    write_png(folder / f"{scan_id}.png", cases)
    write_carried(folder, carried)
    return CarriedScan(scan_id=scan_id, confidences=carried.confidences)


def _references(store: Store, question: Question) -> dict[str, _Shown]:
    """Return images and label maps of the labelled scans, by modality and id."""
    found: dict[str, _Shown] = {}
    for scan_id in question.references:
        scan = store.scan(scan_id)
        shown = Reference(image=scan.image(normalize=True), labels=scan.labels(question.label))
        found.setdefault(scan.modality, {})[scan_id] = shown
    return found


def _up_to_date(
    folder: Path, scan_id: str, question: Question, entries: Mapping[str, IndexEntry]
) -> CarriedScan | None:
    """Return the result of an earlier call; None if it is missing, damaged, or of other scans."""
    with suppress(DataError):
        carried = read_carried(folder / file_name(scan_id))
        if carried.question == question and carried.digest == entries[scan_id].digest:
            return CarriedScan(scan_id=scan_id, confidences=carried.confidences, kept=True)
    return None
