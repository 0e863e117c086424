"""BIDS: sub-X/[ses-Y/]anat/sub-X_T1w.nii.gz, with labels below derivatives.

    sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz                         a scan; its suffix gives the modality
    derivatives/P/sub-01/anat/sub-01_space-orig_dseg.nii.gz           a label map; names from dseg.tsv
    derivatives/P/sub-01/anat/sub-01_T1w_label-SC_mask.nii.gz         the mask of the structure SC

A label belongs to the scans whose entities (sub, ses, acq, run, ...) it repeats; to one of them if it names
its suffix or the JSON beside it names its source (RawSources); else to all that lie on its grid. Masks of one
scan are one label map. Labels may lie beside their scans too. The case is the subject. participants.tsv may
give the split (column split) and the class of its scans (column group). Images that are no scan, probability
maps, labels in another space, and images among the derivatives are left out, with a note for each kind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.discovery.layouts.bids_names import (
    LABEL_SUFFIXES,
    NO_SCANS,
    RAW_FOLDER,
    SCAN_SUFFIXES,
    BidsName,
    modality_of_suffix,
    parse_name,
    place_of,
)
from pipeline.discovery.layouts.bids_tables import participants, raw_sources, sidecar_modality, value_names
from pipeline.discovery.layouts.layout import Files, Layout, LayoutFind, LayoutScan, together
from pipeline.discovery.layouts.mask_folders import number_names
from pipeline.discovery.layouts.paired import label_sources, with_distinct_names
from pipeline.discovery.pairing import pair
from pipeline.discovery.sources import LabelPart, LabelSource, id_from_parts
from pipeline.formats import Modality, stem_of

_OWN_SPACES = ("orig", "native", "individual", "scanner", "T1w", "T2w")
"""Values of the entity space that mean the space of the scan itself."""

_OF_DERIVATIVES = frozenset(["space", "desc", "label", "seg", "res", "den", "atlas", "hemi", "from", "to"])
"""Entities that only derivatives have; they are not compared with those of scans."""


def find_bids(files: Files) -> LayoutFind:
    """Return the scans of all BIDS data sets."""
    raw: dict[Path, list[Path]] = {}
    derived: dict[Path, list[Path]] = {}
    for path in files.volumes:
        place = place_of(path)
        if place is not None:
            is_derived = place[1] or parse_name(path).suffix in ("dseg", "probseg")
            (derived if is_derived else raw).setdefault(place[0], []).append(path)
    return together(
        _read(files.root, folder, raw.get(folder, []), derived.get(folder, []))
        for folder in sorted({*raw, *derived})
    )


@dataclass(frozen=True, kw_only=True)
class _Mark:
    """A label among the derivatives, with the scans that it belongs to.

    Attributes:
        path: Its file.
        name: Its parsed name.
        owners: The scans.
        sure: Whether it names its scan; then it must lie on the scan's grid.
    """

    path: Path = field(repr=False)
    name: BidsName
    owners: tuple[Path, ...] = field(repr=False)
    sure: bool

    @property
    def is_mask(self) -> bool:
        """Whether it is the mask of one structure."""
        return self.name.suffix == "mask" or (
            self.name.suffix in ("seg", "msk") and "label" in self.name.entities
        )

    @property
    def structure(self) -> str:
        """Name of the structure of a mask."""
        label, desc = (self.name.entities.get(key, "") for key in ("label", "desc"))
        return f"{label} ({desc})" if label and desc else label or desc or "mask"

    @property
    def map_name(self) -> str:
        """Name of a label map in the store."""
        entities = self.name.entities
        kept = [entities[key] for key in ("atlas", "seg", "desc", "label") if key in entities]
        return id_from_parts([*kept, "mask" if self.name.suffix == "msk" else "dseg"])


def _read(root: Path, folder: Path, raw: Sequence[Path], derived: Sequence[Path]) -> LayoutFind:
    """Return the scans of one data set."""
    left_out = Counter[str]()
    pairing = pair(raw)
    unsure = {path for paired in pairing.scans for path in paired.unsure}
    by_entities = {path for path in (*pairing.orphans, *unsure) if parse_name(path).suffix in LABEL_SUFFIXES}
    scans = [paired for paired in pairing.scans if not _no_scan(paired.image, root, left_out)]
    names = {paired.image: parse_name(paired.image) for paired in scans}
    of_subject: dict[str, dict[Path, BidsName]] = {}
    for image, name in names.items():
        of_subject.setdefault(name.entities.get("sub", ""), {})[image] = name
    marked = sorted({*derived, *by_entities})
    marks = [mark for path in marked if (mark := _mark(path, root, of_subject, left_out)) is not None]
    drawn_on: dict[Path, list[_Mark]] = {}
    for mark in marks:
        for image in mark.owners:
            drawn_on.setdefault(image, []).append(mark)
    numbers = number_names(mark.structure for mark in marks if mark.is_mask)
    people = participants(root / folder) or participants(root / folder / RAW_FOLDER)
    found, notes = [], dict[str, None]()
    for paired in scans:
        named = [label for label in paired.labels if label[1] not in by_entities]
        own, said = label_sources(root, named, shared=paired.unsure)
        notes |= dict.fromkeys(said)
        derived_labels = _labels(drawn_on.get(paired.image, ()), root, folder, numbers)
        person = people.get(f"sub-{names[paired.image].entities.get('sub', '')}", {})
        found.append(
            LayoutScan(
                image=paired.image,
                labels=with_distinct_names((*own, *derived_labels)),
                modality=_modality(root / paired.image, root / folder, names[paired.image].suffix),
                split=person.get("split") or None,
                group=person.get("group", ""),
                case=folder / f"sub-{names[paired.image].entities.get('sub', '')}",
                dataset=folder,
            )
        )
    orphans = set(pairing.orphans) - by_entities
    notes |= dict.fromkeys(f"{count} BIDS files left out: {why}" for why, count in sorted(left_out.items()))
    return LayoutFind(scans=tuple(found), taken=frozenset({*raw, *derived} - orphans), notes=tuple(notes))


def _no_scan(path: Path, root: Path, left_out: Counter[str]) -> bool:
    """Whether an image is no scan; then it is counted."""
    name = parse_name(path)
    if name.entities.get("part") in ("phase", "imag"):
        left_out["images of phases (part-phase)"] += 1
        return True
    if name.suffix in NO_SCANS and not (name.suffix == "dwi" and not _has_directions(root / path)):
        left_out[f"{name.suffix}, {NO_SCANS[name.suffix]}"] += 1
        return True
    return False


def _has_directions(scan: Path) -> bool:
    """Whether a diffusion image is a series: its b-values lie beside it, or above the subjects.

    Without them it is one image, such as the mean of all directions.
    """
    folders = [scan.parent, *scan.parents[1:5]]
    return scan.with_name(f"{stem_of(scan.name)}.bval").exists() or any(
        (folder / "dwi.bval").exists() or (folder / f"{folder.name}_dwi.bval").exists() for folder in folders
    )


def _modality(scan: Path, dataset: Path, suffix: str) -> Modality | None:
    """Return the modality by the suffix, else by the JSON file."""
    return modality_of_suffix(suffix) or sidecar_modality(scan, dataset, suffix)


def _mark(
    path: Path, root: Path, of_subject: Mapping[str, Mapping[Path, BidsName]], left_out: Counter[str]
) -> _Mark | None:
    """Return a derivative as a label, or None if it is not a label; then it is counted."""
    name = parse_name(path)
    is_label = name.suffix in LABEL_SUFFIXES or {"seg", "label"} & set(name.entities)
    if not is_label:
        left_out[f"images among the derivatives ({name.suffix}), which were made of scans"] += 1
        return None
    if name.suffix == "probseg":
        left_out["probseg, probabilities are no label; save them as a dseg"] += 1
        return None
    space = _space(name)
    of_person = of_subject.get(name.entities.get("sub", ""), {})
    scans = {scan: other for scan, other in of_person.items() if _space(other) == space}
    if space and not scans:
        left_out[f"labels in another space than their scan (space-{space})"] += 1
        return None
    owners, sure = _owners(path, name, root, scans)
    if not owners:
        left_out["labels whose entities fit no scan"] += 1
        return None
    return _Mark(path=path, name=name, owners=owners, sure=sure)


def _space(name: BidsName) -> str:
    """Return the space of an image; "" for that of the scan itself."""
    space = name.entities.get("space", "")
    return "" if space in _OWN_SPACES else space


def _owners(
    path: Path, name: BidsName, root: Path, scans: Mapping[Path, BidsName]
) -> tuple[tuple[Path, ...], bool]:
    """Return the scans that a label belongs to, and whether it names them."""
    named = raw_sources(root / path)
    sources = tuple(scan for scan in scans if any(_ends_with(scan, text) for text in named))
    if sources:
        return sources, True
    compared = {key: value for key, value in name.entities.items() if key not in _OF_DERIVATIVES}
    fitting = [
        scan
        for scan, other in scans.items()
        if other.entities.get("ses") == compared.get("ses")
        and all(other.entities.get(key) == value for key, value in compared.items())
    ]
    inner = [word for word in name.words if word not in LABEL_SUFFIXES]
    space = name.entities.get("space", "")
    suffix = inner[-1] if inner else space if space in SCAN_SUFFIXES else ""
    if not suffix:
        return tuple(fitting), False
    exact = [scan for scan in fitting if scans[scan].suffix == suffix]
    same = [scan for scan in exact if set(scans[scan].entities) == set(compared)]
    return tuple(same or exact), bool(inner)


def _ends_with(scan: Path, text: str) -> bool:
    """Whether a scan's path ends with a path that a JSON file gives."""
    parts = Path(text).parts
    return bool(parts) and scan.parts[-len(parts) :] == parts


def _labels(
    marks: Iterable[_Mark], root: Path, folder: Path, numbers: Mapping[str, int]
) -> list[LabelSource]:
    """Return the label maps of a scan: one of all masks, and one for each dseg."""
    labels, masks = [], []
    for mark in marks:
        if mark.is_mask:
            masks.append(mark)
            continue
        labels.append(
            LabelSource(
                name=mark.map_name,
                path=root / mark.path,
                value_names=value_names(root / mark.path, root / folder),
                shared=not mark.sure,
            )
        )
    parts = sorted(
        (LabelPart(value=numbers[m.structure], name=m.structure, path=root / m.path) for m in masks),
        key=lambda part: (part.value, part.path),
    )
    if parts:
        shared = not all(mark.sure for mark in masks)
        labels.append(
            LabelSource(name="masks", path=parts[0].path, value_names=None, parts=tuple(parts), shared=shared)
        )
    return labels


BIDS = Layout(
    name="bids",
    title="BIDS",
    wants="files such as sub-01/anat/sub-01_T1w.nii.gz",
    find=find_bids,
)
