"""The file dataset.json of nnU-Net and the Medical Segmentation Decathlon.

*Reads*: JSON. *Writes*: `DatasetJson`: channels by number, names of label values, file ending.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.discovery.label_names import parse_value_names

DATASET_FILE = "dataset.json"


@dataclass(frozen=True, kw_only=True)
class DatasetJson:
    """Contents of a dataset.json.

    Attributes:
        form: "nnunet" with `channel_names`, "decathlon" with `modality` (also nnU-Net v1).
        channels: Name of each channel, by its number.
        value_names: Name of each label value without 0, or None.
        regions: Values of each region, by its name, where labels are regions; else empty.
        file_ending: Suffix of its images; empty if it does not say.
        num_training: Number of training cases that it states, or None.
        lists_files: Whether it names its files itself, in place of the usual folders.
    """

    form: str
    channels: Mapping[int, str]
    value_names: Mapping[int, str] | None
    regions: Mapping[str, tuple[int, ...]]
    file_ending: str
    num_training: int | None
    lists_files: bool


def read_dataset_json(path: Path) -> DatasetJson | None:
    """Return the contents of the file, or None if it is of neither form."""
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return None
    if not isinstance(data, dict):
        return None
    form = "nnunet" if "channel_names" in data else "decathlon" if "modality" in data else ""
    channels = _channels(data.get("channel_names", data.get("modality")))
    if not form or not channels:
        return None
    labels = data.get("labels")
    regions = _regions(labels)
    ending, count = data.get("file_ending"), data.get("numTraining")
    return DatasetJson(
        form=form,
        channels=channels,
        value_names=names_of_regions(regions) if regions else parse_value_names(labels, None),
        regions=regions,
        file_ending=ending if isinstance(ending, str) else "",
        num_training=count if isinstance(count, int) else None,
        lists_files=isinstance(data.get("dataset"), dict),
    )


def _channels(value: Any) -> dict[int, str]:
    """Return the channels by number; written as {"0": "CT"} or ["CT"]."""
    if isinstance(value, list):
        value = {str(number): name for number, name in enumerate(value)}
    if not isinstance(value, dict) or not all(str(k).isascii() and str(k).isdigit() for k in value):
        return {}
    return {int(k): str(name) for k, name in sorted(value.items(), key=lambda item: int(item[0]))}


def _regions(labels: Any) -> dict[str, tuple[int, ...]]:
    """Return the values of each name if at least one name has several, else {}."""
    if not isinstance(labels, dict):
        return {}
    found = {}
    for name, values in labels.items():
        listed = values if isinstance(values, list) else [values]
        if not all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in listed):
            return {}
        found[str(name)] = tuple(sorted(set(listed) - {0}))
    regions = {name: values for name, values in found.items() if values}
    return regions if any(isinstance(values, list) for values in labels.values()) else {}


def names_of_regions(regions: Mapping[str, tuple[int, ...]]) -> dict[int, str]:
    """Return a name for each value: the regions that hold it, from the largest to the smallest.

    Values in the same regions are distinguished by their number: "kidney (1)", "kidney (2)".
    """
    ordered = sorted(regions, key=lambda name: (-len(regions[name]), name))
    values = sorted({value for held in regions.values() for value in held})
    names = {value: " + ".join(name for name in ordered if value in regions[name]) for value in values}
    twice = {name for name in names.values() if list(names.values()).count(name) > 1}
    return {value: f"{name} ({value})" if name in twice else name for value, name in names.items()}
