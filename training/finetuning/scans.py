"""Choice of a fine-tuning's training scans, held-out scans and structures.

*Reads* a store's index, and the label maps of the training scans, once. *Writes* nothing. The scans drawn
depend on the seed, the ids and the cases only; a smaller `num_scans` gives a subset of the scans of a larger
one. Scans of one case (patient) are never on both sides; scans are drawn from as many cases as possible.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from storage import IndexEntry, Store, digest_of
from training.data import DataConfig, cases_in_turn, of_other_cases, split_scans
from training.errors import ConfigError, DataError
from training.finetuning.carried_labels import CarriedTable, read_carried_table
from training.inference import Structure

Mode = Literal["full", "decoder", "tokens"]


@dataclass(frozen=True, kw_only=True)
class FinetuneTaskConfig:
    """The table [finetune]: which weights are trained, for which structures, on which labelled scans."""

    mode: Mode = "full"
    """Which weights are trained, in addition to the tokens: encoder and decoder ("full"), the decoder
    ("decoder"), or none ("tokens")."""
    from_scratch: bool = False
    """Whether network and tokens start with random values; a baseline with the same network."""
    label: str = ""
    """Label map to learn; may be left out if the store has only one."""
    values: tuple[int, ...] = ()
    """Label values to learn; empty for all values of the training scans."""
    datasets: tuple[str, ...] = ()
    """Data sets to choose scans from; empty for all."""
    splits: tuple[str, ...] = ()
    """Splits of the store to train on; empty for all."""
    scans: tuple[str, ...] = ()
    """Ids of the training scans; empty to draw them."""
    num_scans: int = 0
    """Number of training scans to draw; 0 for all that are not held out."""
    scan_seed: int = 0
    """Seed of this draw."""
    exclude: tuple[str, ...] = ()
    """Ids of scans that are neither trained on nor reported on."""
    held_out: tuple[str, ...] = ()
    """Ids of the scans to report on; empty for labelled scans not trained on (see holdout_fraction)."""
    holdout_fraction: float = 0.2
    """Fraction of the labelled scans to hold out, chosen by a hash of the case (without one, of the id), if
    `scans` and `held_out` are empty."""
    num_validation: int = 4
    """Number of held-out scans that are evaluated during the training."""
    max_reported: int = 100
    """Largest number of held-out scans in the report at the end."""
    max_token_references: int = 20
    """Largest number of scans that the initial tokens of a structure are averaged over."""
    carried: str = ""
    """Folder that `mass carry` has written: its scans are trained on, too, with the labels there. Without
    `scans` and `num_scans`, the labelled scans to train on are those that these labels are from."""
    least_confidence: float = 0.3
    """Least confidence of a carried label map, the mean over its structures, 0..1; others are left out. With
    0.5 networks were worse (docs/results.md)."""
    carried_digest: str = ""
    """Digest of the carried label maps; a run sets it when it begins, and then accepts no others."""
    checkpoint_digest: str = ""
    """Set by the program: digest of the checkpoint. A run can be resumed with the same checkpoint only."""

    def __post_init__(self) -> None:
        for name in ("num_scans", "scan_seed", "num_validation"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name in ("max_reported", "max_token_references"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("holdout_fraction", "least_confidence"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must be 0 to 1, got {getattr(self, name)}")
        if self.scans and self.num_scans:
            raise ConfigError("scans and num_scans: name the scans to train on, or say how many, not both")
        if self.from_scratch and self.mode != "full":
            raise ConfigError(
                f"from_scratch trains everything, mode {self.mode!r} would leave random weights as they are"
            )
        if any(not 0 < value < 65_536 for value in self.values):
            raise ConfigError(f"values must be 1 to 65,535 (0 is background), got {list(self.values)}")


@dataclass(frozen=True, kw_only=True)
class LabelledScans:
    """Training scans, held-out scans and structures of a fine-tuning."""

    label: str
    """Name of the label map."""
    training: tuple[str, ...]
    """Ids of the training scans, sorted."""
    held_out: tuple[str, ...]
    """Ids of the scans to report on, in drawn order; the first few are evaluated during the training."""
    structures: tuple[Structure, ...]
    """Structures to learn, in the order of their label values."""
    modalities: tuple[str, ...]
    """Modalities of the training scans, sorted."""
    carried: tuple[str, ...] = ()
    """Ids of the scans that are trained on with carried labels, sorted."""
    carried_digest: str = ""
    """Digest of these labels; empty without."""
    stale: tuple[str, ...] = ()
    """Ids of the scans whose carried labels are left out, because they are out of date."""

    @property
    def trained_on(self) -> tuple[str, ...]:
        """Ids of all scans that are trained on, sorted."""
        return tuple(sorted({*self.training, *self.carried}))


def choose_scans(store: Store, config: FinetuneTaskConfig) -> LabelledScans:
    """Return the scans and structures of a fine-tuning.

    Args:
        store: The store.
        config: The table [finetune].

    Raises:
        ConfigError: A scan is to be trained on and held out, or the carried labels are of others.
        DataError: There is no such label or scan, there are too few scans, labels have different names, or
            carried labels are damaged, or none is up to date and confident enough.
    """
    table = _carried_table(store, config)
    references = tuple(table.question.references) if table else ()
    if table:
        named = config.scans or (() if config.num_scans else references)
        config = replace(config, label=table.question.label, scans=named)
    label, candidates = _candidates(store, config)
    _check_ids(store, label, (*config.scans, *config.held_out), candidates)
    generator = np.random.default_rng(config.scan_seed)
    pool, held_out = _pools(candidates, config)
    shuffled = cases_in_turn((pool[k] for k in generator.permutation(len(pool))), candidates)
    if config.num_scans > len(pool):
        raise DataError(
            f"{store.path}: {config.num_scans} scans with the label {label!r} are asked for, {len(pool)} are "
            f"there to train on ({len(held_out)} more are kept out to report on). Ask for fewer"
        )
    training = tuple(sorted(shuffled[: config.num_scans] if config.num_scans else pool))
    carried = _carried_scans(table, training, config, store.entries) if table else ()
    held_out = of_other_cases(held_out or shuffled, (*training, *carried, *references), store.entries)
    reported = [held_out[k] for k in generator.permutation(len(held_out))][: config.max_reported]
    structures = find_structures(store, label, training, config.values)
    lacking = [part for part in structures if table and part.values[0] not in table.question.names]
    if table and lacking:
        raise ConfigError(
            f"{table.folder}: {lacking[0].name} (label {lacking[0].values[0]}) was not carried over, so "
            "these scans would teach that it is absent. Name the values that were ([finetune] values), or "
            "carry labels over from scans that have it"
        )
    return LabelledScans(
        label=label,
        training=training,
        held_out=tuple(reported),
        structures=structures,
        modalities=tuple(sorted({store.entries[scan_id].modality for scan_id in training})),
        carried=carried,
        carried_digest=digest_of({name: table.checksums[name] for name in carried}) if table else "",
        stale=table.stale if table else (),
    )


def count_scans(store: Store, config: FinetuneTaskConfig) -> int:
    """Return how many labelled scans there are to train on; reads the index alone.

    Args:
        store: The store.
        config: The table [finetune], without carried labels.

    Raises:
        DataError: There is no such label.
    """
    return len(_pools(_candidates(store, config)[1], config)[0])


def _candidates(store: Store, config: FinetuneTaskConfig) -> tuple[str, dict[str, IndexEntry]]:
    """Return the name of the label map, and the scans that have it and are not excluded."""
    label = _label(store, config)
    return label, {
        scan_id: entry
        for scan_id, entry in store.entries.items()
        if label in entry.labels
        and scan_id not in config.exclude
        and (not config.datasets or entry.dataset in config.datasets)
    }


def _carried_table(store: Store, config: FinetuneTaskConfig) -> CarriedTable | None:
    """Return the carried labels of the settings, if there are any."""
    if not config.carried:
        return None
    digests = {scan_id: entry.digest for scan_id, entry in store.entries.items()}
    table = read_carried_table(config.carried, digests)
    if config.label not in ("", table.question.label):
        raise ConfigError(
            f"{table.folder}: the labels there are of {table.question.label!r}, not of {config.label!r}"
        )
    check_known(store, config.held_out)
    references = table.question.references
    torn = set(config.held_out) - set(of_other_cases(config.held_out, references, store.entries))
    if torn:
        raise ConfigError(
            f"scan {min(torn)!r} is to be held out, and the labels in {table.folder} are carried over from "
            "it or from another scan of its case. Carry labels over without it (mass carry --held-out)"
        )
    return table


def _carried_scans(
    table: CarriedTable,
    training: Sequence[str],
    config: FinetuneTaskConfig,
    entries: Mapping[str, IndexEntry],
) -> tuple[str, ...]:
    """Return the scans to train on with carried labels: confident, not held out, excluded or labelled."""
    sure = [scan_id for scan_id, number in table.confidences.items() if number >= config.least_confidence]
    kept = of_other_cases(sure, config.held_out, entries)
    found = tuple(sorted(set(kept) - {*training, *config.exclude}))
    if not found:
        raise DataError(
            f"{table.folder}: none of the {len(table.confidences)} label maps can be trained on: "
            f"{len(table.confidences) - len(sure)} have a confidence below {config.least_confidence:g} "
            "([finetune] least_confidence), the others are of scans that are held out or excluded, or that "
            "are trained on with labels of their own"
        )
    if config.carried_digest:
        digest = digest_of({scan_id: table.checksums[scan_id] for scan_id in found})
        if digest != config.carried_digest:
            raise ConfigError(
                f"{table.folder}: these are not the label maps that the run was begun with. Restore them, or "
                "begin a new run"
            )
    return found


def _label(store: Store, config: FinetuneTaskConfig) -> str:
    """Return the name of the label map to learn: that of the settings, or the only one of the store."""
    known = {entry.dataset for entry in store.entries.values()}
    if unknown := sorted(set(config.datasets) - known):
        raise DataError(
            f"{store.path}: there is no data set {unknown[0]!r}. There are: {', '.join(sorted(known))}"
        )
    counts = Counter(
        name
        for entry in store.entries.values()
        if not config.datasets or entry.dataset in config.datasets
        for name in entry.labels
    )
    where = f"{store.path}" + (f", data sets {', '.join(config.datasets)}" if config.datasets else "")
    if not counts:
        raise DataError(
            f"{where}: no scan has labels. Prepare scans with their label maps (`mass prepare`: a column "
            "label of the manifest, or files paired by name)"
        )
    if config.label and config.label not in counts:
        near = difflib.get_close_matches(config.label, counts, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise DataError(
            f"{where}: no scan has the label {config.label!r}{hint} There are: {', '.join(sorted(counts))}"
        )
    if not config.label and len(counts) > 1:
        listed = ", ".join(f"{name} ({count} scans)" for name, count in sorted(counts.items()))
        raise DataError(f"{where}: there are several labels: {listed}. Say which one is meant (--label)")
    return config.label or next(iter(counts))


def check_known(store: Store, scan_ids: Iterable[str]) -> None:
    """Check that a store has some scans.

    Raises:
        DataError: It lacks one.
    """
    for scan_id in scan_ids:
        if scan_id not in store.entries:
            near = difflib.get_close_matches(scan_id, store.entries, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise DataError(f"{store.path}: there is no scan {scan_id!r}{hint}")


def _check_ids(store: Store, label: str, ids: Sequence[str], candidates: Mapping[str, IndexEntry]) -> None:
    check_known(store, ids)
    for scan_id in ids:
        if scan_id in candidates:
            continue
        if label not in store.entries[scan_id].labels:
            raise DataError(f"{store.path}: scan {scan_id!r} has no label {label!r}")
        raise DataError(f"{store.path}: scan {scan_id!r} is excluded, or of another data set")


def _pools(candidates: Mapping[str, IndexEntry], config: FinetuneTaskConfig) -> tuple[list[str], list[str]]:
    """Return the scans to train on or to draw from, and the scans to report on."""
    if config.scans:
        both = set(config.scans) & set(config.held_out)
        if both:
            raise ConfigError(f"scan {min(both)!r} is to be trained on and held out: choose one")
        apart = of_other_cases(config.held_out, config.scans, candidates)
        torn = sorted(set(config.held_out) - set(apart))
        if torn:
            raise ConfigError(
                f"scan {torn[0]!r} is to be held out, and another scan of its case "
                f"{candidates[torn[0]].case!r} is to be trained on: choose scans of different cases"
            )
        rest = of_other_cases(candidates, config.scans, candidates)
        return sorted(set(config.scans)), sorted(config.held_out) or rest
    split = split_scans(
        candidates,
        DataConfig(
            splits=config.splits,
            exclude=_of_cases(config.held_out, candidates),
            holdout_fraction=0.0 if config.held_out else config.holdout_fraction,
        ),
    )
    if config.held_out:
        return list(split.training), sorted(set(config.held_out))
    known = {*split.training, *split.holdout}
    others = [scan_id for scan_id in candidates if scan_id not in known]  # of other splits
    return list(split.training), others or list(split.holdout)


def _of_cases(scan_ids: Sequence[str], candidates: Mapping[str, IndexEntry]) -> tuple[str, ...]:
    """Return all candidates that share a case with one of these scans; also the scans themselves."""
    apart = set(of_other_cases(candidates, scan_ids, candidates))
    return tuple(scan_id for scan_id in candidates if scan_id not in apart)


def find_structures(
    store: Store, label: str, scan_ids: Iterable[str], wanted: Sequence[int] = ()
) -> tuple[Structure, ...]:
    """Return the structures in the label maps of scans, one per label value.

    Args:
        store: The store with the scans.
        label: Name of the label map.
        scan_ids: Ids of the scans.
        wanted: Label values to return; empty for all.

    Raises:
        DataError: There is no structure, a wanted value is in no scan, or a value has two names.
    """
    found: set[int] = set()
    names: dict[int, tuple[str, str]] = {}
    ids = tuple(scan_ids)
    for scan_id in ids:
        scan = store.scan(scan_id)
        found |= {int(value) for value in np.unique(scan.labels(label)) if value}
        for value, name in scan.label_values(label).items():
            before, first = names.setdefault(value, (name, scan_id))
            if before != name and value in (wanted or [value]):
                raise DataError(
                    f"{store.path}: value {value} of the label {label!r} is {before!r} in scan {first} and "
                    f"{name!r} in scan {scan_id}. Choose scans of one data set (--dataset)"
                )
    missing = sorted(set(wanted) - found)
    if missing or not found:
        what = f"value {missing[0]}" if missing else "any value but 0"
        raise DataError(
            f"{store.path}: none of the {len(ids)} labelled scans chosen has {what} in its label {label!r}, "
            f"but {', '.join(map(str, sorted(found)[:12])) or 'nothing'}. Choose others"
        )
    values = sorted(set(wanted) or found)
    return tuple(Structure(name=names[v][0] if v in names else str(v), values=(v,)) for v in values)
