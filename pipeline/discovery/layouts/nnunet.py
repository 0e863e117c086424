"""nnU-Net raw data sets (v1 and v2) and the Medical Segmentation Decathlon: dataset.json beside imagesTr.

    imagesTr/CASE_0000.nii.gz  CASE_0001.nii.gz   a file for each channel (nnU-Net)
    imagesTr/CASE.nii.gz                          a volume of a 4D file for each channel (Decathlon)
    labelsTr/CASE.nii.gz                          the label map of all channels of the case
    imagesTs, labelsTs                            likewise, split "test"
    imagesVa or imagesVal, labelsVa, ...          likewise, split "val"

The names of the channels give the modality. Scans get a case only where it has several channels. Names of
values come from `labels`, also where these are regions. Other folders and files are left to other layouts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.discovery.layouts.channel_words import modality_of_channel
from pipeline.discovery.layouts.dataset_json import DATASET_FILE, DatasetJson, read_dataset_json
from pipeline.discovery.layouts.layout import (
    Files,
    Layout,
    LayoutFailure,
    LayoutFind,
    LayoutScan,
    together,
)
from pipeline.discovery.sources import LabelSource
from pipeline.errors import NotAnImage, NotVolumetric
from pipeline.formats import stem_of, volume_suffix

_SPLITS = {"imagestr": "train", "imagests": "test", "imagesva": "val", "imagesval": "val"}
_LABELS_OF = {images: images.replace("images", "labels") for images in _SPLITS}
_CHANNEL = re.compile(r"^(?P<case>.+)_(?P<number>\d{4})$")
_FLAT_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif")
"""Images that can only be 2D."""


def find_nnunet(files: Files) -> LayoutFind:
    """Return the scans of all nnU-Net data sets."""
    return together(_find(files, "nnunet"))


def find_decathlon(files: Files) -> LayoutFind:
    """Return the scans of all data sets of the Decathlon's form, of nnU-Net v1 too."""
    return together(_find(files, "decathlon"))


def _find(files: Files, form: str) -> Iterable[LayoutFind]:
    for folder in files.folders_with(DATASET_FILE):
        facts = read_dataset_json(files.root / folder / DATASET_FILE)
        if facts is None or facts.form != form:
            continue
        if any((files.root / folder / name).is_dir() for name in ("imagesTr", "imagesTs")):
            yield _read(files, folder, facts)


@dataclass(frozen=True, kw_only=True)
class _Image:
    """An image file of a data set: its folder in lower case, its case, and its channel if the name tells."""

    path: Path = field(repr=False)
    top: str
    case: Path
    number: int | None


def _read(files: Files, folder: Path, facts: DatasetJson) -> LayoutFind:
    """Return the scans of one data set."""
    failure = _unread_ending(folder, facts)
    if failure is not None:
        return LayoutFind(failures=(failure,))
    images: list[Path] = []
    labels: dict[tuple[str, Path], Path] = {}
    for path in files.below(folder):
        top, inner = _place(path, folder)
        if top in _SPLITS:
            images.append(path)
        elif top in _LABELS_OF.values():
            labels[top, inner.with_name(stem_of(inner.name))] = path
    found = _images(images, folder, labels, facts)
    scans: list[LayoutScan] = []
    taken = set[Path]()
    for image in found:
        label = labels.get((_LABELS_OF[image.top], image.case))
        scans.extend(_scans(image, files.root, folder, facts, label))
        taken |= {image.path} | ({label} if label else set())
    return LayoutFind(
        scans=tuple(scans), taken=frozenset(taken), notes=tuple(_notes(found, len(images), facts))
    )


def _place(path: Path, folder: Path) -> tuple[str, Path]:
    """Return the folder of a data set that a file is in, in lower case, and its path below that."""
    inner = path.relative_to(folder)
    return (inner.parts[0].lower(), Path(*inner.parts[1:])) if len(inner.parts) > 1 else ("", inner)


def _images(
    paths: Sequence[Path], folder: Path, labels: dict[tuple[str, Path], Path], facts: DatasetJson
) -> list[_Image]:
    """Return the images; those of nnU-Net whose names end with no channel are not among them.

    In the Decathlon's form a number at the end is a channel only if no label has the image's whole name.
    """
    whole, split = [], []
    for path in paths:
        top, inner = _place(path, folder)
        plain = inner.with_name(stem_of(inner.name))
        match = _CHANNEL.match(plain.name)
        whole.append(_Image(path=path, top=top, case=plain, number=None))
        if match:
            case = plain.with_name(match["case"])
            split.append(_Image(path=path, top=top, case=case, number=int(match["number"])))
    if facts.form == "nnunet":
        return split
    is_whole = any((_LABELS_OF[image.top], image.case) in labels for image in whole)
    return whole if is_whole or len(split) < len(whole) else split


def _scans(
    image: _Image, root: Path, folder: Path, facts: DatasetJson, label: Path | None
) -> Iterable[LayoutScan]:
    """Yield the scans of one file: one, or one for each channel of a 4D file."""
    several = len(facts.channels) > 1
    sources = []
    if label is not None:
        sources.append(LabelSource(name="label", path=root / label, value_names=facts.value_names))
    frames = image.number is None and several
    for number in facts.channels if frames else [image.number or 0]:
        name = facts.channels.get(number, "")
        yield LayoutScan(
            image=image.path,
            labels=tuple(sources),
            modality=modality_of_channel(name),
            split=_SPLITS[image.top],
            case=folder / image.case if several else None,
            dataset=folder,
            frame=number if frames else None,
            part=name or str(number) if frames else "",
        )


def _unread_ending(folder: Path, facts: DatasetJson) -> LayoutFailure | None:
    """Return the failure of a data set whose files are of a kind that is not read."""
    ending = facts.file_ending
    if not ending or volume_suffix(f"x{ending}"):
        return None
    if ending.lower() in _FLAT_SUFFIXES:
        error = NotVolumetric(
            f"the nnU-Net data set has {ending} files (file_ending): its images are 2D, scans must be 3D",
            path=None,
            remedy="Leave it out; there is no 3D scan in it",
        )
        return LayoutFailure(where=folder, error=error)
    unread = NotAnImage(
        f"the nnU-Net data set has {ending} files (file_ending), which are not read",
        path=None,
        remedy="Save its images and labels as .nii.gz, and set file_ending",
    )
    return LayoutFailure(where=folder, error=unread)


def _notes(found: Sequence[_Image], num_images: int, facts: DatasetJson) -> Iterable[str]:
    """Yield notes on differences between a data set and its dataset.json."""
    if facts.lists_files:
        yield (
            "a dataset.json lists its files itself (key dataset): only those in imagesTr and imagesTs are "
            "read; a manifest can name others"
        )
    if len(found) < num_images:
        yield (
            f"{num_images - len(found)} images of an nnU-Net data set do not end with a channel such as "
            "_0000; they are taken as in a folder of any other kind"
        )
    unknown = sorted({image.number for image in found if image.number is not None} - set(facts.channels))
    if unknown:
        listed = ", ".join(f"{number:04d}" for number in unknown)
        yield f"dataset.json names no channel {listed}: the modality of these images is guessed"
    cases = {image.case for image in found if image.top == "imagestr"}
    if facts.num_training is not None and facts.num_training != len(cases):
        yield f"dataset.json promises {facts.num_training} training cases, there are {len(cases)}"
    if facts.regions:
        listed = "; ".join(
            f"{name} = {', '.join(map(str, values))}" for name, values in facts.regions.items()
        )
        yield f"the labels are regions, each value is named by all regions that hold it: {listed}"


NNUNET = Layout(
    name="nnunet",
    title="nnU-Net",
    wants="a dataset.json with channel_names, beside imagesTr or imagesTs",
    find=find_nnunet,
)
DECATHLON = Layout(
    name="decathlon",
    title="Medical Segmentation Decathlon",
    wants="a dataset.json with modality, beside imagesTr or imagesTs",
    find=find_decathlon,
)
