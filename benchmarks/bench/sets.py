"""What is segmented: the data sets of the bench, how their stores are made, and which patients are kept out.

A set has targets, which answers are scored on and which nothing is trained on; labelled scans, whose labels
may be shown; and the scans that are pretrained on, without any label: all but those of the targets' patients
(of drawn shapes only those without the unseen ones). No patient is on two sides. Targets are drawn once;
which labelled scans a seed takes, and in which order, the seed draws: fewer are a part of more.

Reads:  a manifest of `mass prepare`, or a store that was prepared before.
Writes: OUT/sets/SET/store.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from benchmarks.adrenal import cut_set
from benchmarks.bench import phantoms
from benchmarks.rivals import Pairs, structures_of
from benchmarks.teaching import mass, with_absolute_paths
from storage import Store, digest_of, open_store
from training.engine import to_toml


@dataclass(frozen=True, kw_only=True)
class SetDescription:
    """A data set of the bench."""

    name: str
    title: str
    spacing_mm: float
    """Of the store."""
    dataset: str = ""
    """Of the manifest; empty for drawn shapes."""
    most_scans: int = 0
    """The first so many of the manifest, or of each part of an .npz set; 0 for all."""
    patient: str = "(.*)"
    """Regular expression whose first group is a scan id's patient."""
    structures: int = 10
    """The largest so many of the targets' structures are scored."""
    targets: int = 6
    """Patients kept out, at most a third of all."""
    classes: bool = False
    """Whether its scans have classes, for the frozen classification."""
    labels: bool = True
    """Whether its scans have label maps."""
    unseen: tuple[str, ...] = ()
    """Structures that no pretraining has seen, reported beside the others."""
    drawn: phantoms.PhantomConfig | None = None
    """Drawn shapes instead of a manifest."""
    prepare: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    """Further settings of `mass prepare`, by table."""

    def patient_of(self, scan_id: str) -> str:
        """The patient of a scan."""
        found = re.match(self.patient, scan_id)
        return found[1] if found else scan_id


def _table(*sets: SetDescription) -> dict[str, SetDescription]:
    return {each.name: each for each in sets}


_FEW_PROPOSALS = {
    "ingest": {"set_spacing_mm": 1.0},
    "proposals": {
        "trees": ["fine-contrast-0.7mm"],
        "max_voxel_leaves": 1,
        "component_percentiles": [50],
        "max_proposals": 200,
    },
}

SETS = _table(
    SetDescription(
        name="phantoms",
        title="drawn shapes",
        spacing_mm=phantoms.SPACING_MM,
        unseen=phantoms.UNSEEN,
        targets=10,
        classes=True,
        drawn=phantoms.PhantomConfig(),
    ),
    SetDescription(
        name="acdc",
        title="hearts, cine MR",
        dataset="acdc",
        spacing_mm=3.0,
        patient=r"(.*)_frame\d+",
    ),
    SetDescription(
        name="synthseg", title="heads, synthetic MR", dataset="synthseg", spacing_mm=3.0, targets=4
    ),
    SetDescription(
        name="hippocampus",
        title="hippocampus, MR",
        dataset="hippocampus",
        spacing_mm=1.0,
        most_scans=48,
        targets=10,
    ),
    SetDescription(
        name="sts_mr",
        title="sarcomas, MR",
        dataset="sts_sarcoma_mr",
        spacing_mm=3.0,
        targets=4,
    ),
    SetDescription(
        name="sts_pet",
        title="sarcomas, PET",
        dataset="sts_sarcoma_pet",
        spacing_mm=4.0,
        targets=4,
    ),
    SetDescription(
        name="spinal_cord", title="spinal cord, MR", dataset="spinal_cord", spacing_mm=1.5, targets=1
    ),
    SetDescription(
        name="adrenal",
        title="adrenal glands, CT (classes)",
        dataset="adrenal",
        spacing_mm=2.0,
        most_scans=400,
        labels=False,
        classes=True,
        prepare=_FEW_PROPOSALS,
    ),
)


@dataclass(frozen=True, kw_only=True)
class Split:
    """The scans of a set, by what they may be used for."""

    targets: tuple[str, ...]
    """Scored; nothing is trained on them."""
    pool: tuple[str, ...]
    """Labelled scans, one of each patient, whose labels may be shown or trained on."""
    pretraining: tuple[str, ...]
    """Pretrained on, without labels."""


@dataclass(frozen=True, kw_only=True)
class BenchSet:
    """A set with its store, ready for use."""

    about: SetDescription
    store: Store
    split: Split

    @cached_property
    def structures(self) -> dict[str, tuple[int, ...]]:
        """Scored structures by name, and "whole": all together."""
        pairs = Pairs(targets=self.split.targets, references=())
        return structures_of(self.store, pairs, self.about.structures)

    def labelled(self, seed: int, count: int) -> tuple[str, ...]:
        """So many labelled scans, drawn by the seed; 0 for all."""
        order = np.random.default_rng(seed).permutation(len(self.split.pool))
        chosen = order[: count or len(order)].tolist()
        return tuple(self.split.pool[k] for k in chosen)

    def digest_of(self, scan_ids: Sequence[str]) -> str:
        """Of the scans' content."""
        return digest_of({scan_id: self.store.entries[scan_id].digest for scan_id in sorted(scan_ids)})


def open_set(about: SetDescription, store: Store) -> BenchSet:
    """Draw who is kept out; the same every time.

    Raises:
        SystemExit: The store has too few labelled patients.
    """
    return BenchSet(about=about, store=store, split=split_of(about, store))


def split_of(about: SetDescription, store: Store) -> Split:
    """Return targets, labelled scans and scans to pretrain on."""
    ids = sorted(store.entries)
    if about.drawn:
        by_split = {
            name: tuple(i for i in ids if store.entries[i].split == name)
            for name in (phantoms.TARGET, phantoms.LABELLED, phantoms.PRETRAINING)
        }
        return Split(
            targets=by_split[phantoms.TARGET],
            pool=by_split[phantoms.LABELLED],
            pretraining=by_split[phantoms.PRETRAINING],
        )
    if not about.labels:
        return Split(
            targets=(), pool=(), pretraining=tuple(i for i in ids if store.entries[i].split != "val")
        )
    labelled = [scan_id for scan_id in ids if store.entries[scan_id].labels]
    patients = sorted({about.patient_of(scan_id) for scan_id in labelled})
    count = min(about.targets, max(1, len(patients) // 3))
    if len(patients) < count + 1:
        raise SystemExit(
            f"{store.path}: {len(patients)} labelled patients of {about.name}, two at least are needed: one "
            "to show, one to ask about. Prepare more scans with their label maps"
        )
    order = np.random.default_rng(0).permutation(len(patients))
    kept_out = {patients[k] for k in order[:count].tolist()}
    first: dict[str, str] = {}
    for scan_id in labelled:
        first.setdefault(about.patient_of(scan_id), scan_id)
    return Split(
        targets=tuple(scan_id for scan_id in labelled if about.patient_of(scan_id) in kept_out),
        pool=tuple(scan_id for patient, scan_id in sorted(first.items()) if patient not in kept_out),
        pretraining=tuple(scan_id for scan_id in ids if about.patient_of(scan_id) not in kept_out),
    )


# ------------------------------------------------------------------------------------------------ stores


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Where scans come from."""

    out: Path
    manifests: tuple[Path, ...] = ()
    stores: Mapping[str, Path] = field(default_factory=dict)
    """Stores that were prepared before, by set."""
    classes: Path | None = None
    """The .npz set of the adrenal glands."""
    workers: int = 2
    """Of `mass prepare`."""

    def has(self, about: SetDescription) -> bool:
        """Whether the set can be made of them."""
        found = (
            about.drawn or about.name in self.stores or (self.out / "sets" / about.name / "store").exists()
        )
        if about.name == "adrenal":
            return bool(found or self.classes)
        return bool(found or any(rows_of(manifest, about) for manifest in self.manifests))

    def store(self, about: SetDescription) -> Store:
        """Make the set's store, or what is missing of it.

        Raises:
            SystemExit: Neither a store nor a manifest has its scans, or `mass prepare` failed.
        """
        if about.name in self.stores:
            return open_store(self.stores[about.name])
        folder = self.out / "sets" / about.name
        folder.mkdir(parents=True, exist_ok=True)
        if about.drawn:
            return phantoms.make_phantom_store(folder / "store", about.drawn)
        if not self.has(about):
            raise SystemExit(
                f"set {about.name}: no scan of the data set {about.dataset!r} is in the manifests "
                f"({', '.join(map(str, self.manifests)) or 'none given'}). Name one (--manifest), or a store "
                f"(--stores {about.name}=STORE), or leave the set out (--only)"
            )
        if about.name == "adrenal" and self.classes:
            raw = cut_set(self.classes, folder / "cut.npz", about.most_scans)
        else:
            raw = self._manifest(about, folder)
        settings = folder / "prepare.toml"
        settings.write_text(prepare_settings(about), encoding="utf-8")
        mass("prepare", raw, folder / "store", "--config", settings, "--workers", self.workers)
        return open_store(folder / "store")

    def _manifest(self, about: SetDescription, folder: Path) -> Path:
        """Write the set's lines of the first manifest that has any."""
        for manifest in self.manifests:
            rows = rows_of(manifest, about)
            if rows:
                return with_absolute_paths(rows, manifest, folder / "manifest.csv")
        return folder / "manifest.csv"  # of an earlier call


def rows_of(manifest: Path, about: SetDescription) -> list[dict[str, str]]:
    """The lines of a manifest that are of the set."""
    with manifest.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get("dataset") == about.dataset]
    return rows[: about.most_scans or len(rows)] if about.dataset else []


def prepare_settings(about: SetDescription) -> str:
    """The settings of `mass prepare`, as TOML."""
    tables = {name: dict(table) for name, table in about.prepare.items()}
    tables.setdefault("ingest", {})["spacing_mm"] = about.spacing_mm
    return to_toml(tables)
