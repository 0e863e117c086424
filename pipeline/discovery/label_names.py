"""Names of label values, from JSON files next to the labels or named in a manifest.

*Reads*: JSON. *Writes*: {value: name} without the background 0. Accepted forms: {"1": "liver"}; {"liver": 1};
either of them under "labels" (as in the Medical Segmentation Decathlon and nnU-Net); one of several tables by
its key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import LabelMismatch, UnreadableFile
from pipeline.formats import refuse_special, stem_of

SIDECARS = ("label_names.json", "dataset.json")
"""Files in the labels' folder, or one folder up, that may name the values of all of them."""


def read_value_names(path: Path, key: str | None, *, shown: str) -> dict[int, str]:
    """Return the table in a JSON file that a manifest names.

    Args:
        path: The file.
        key: Key of the table, if the file holds several.
        shown: Name of the file in error messages.

    Returns:
        {value: name} without 0.

    Raises:
        UnreadableFile: The file cannot be opened.
        LabelMismatch: It holds no table of names.
    """
    refuse_special(path, shown=shown, what="file of label names")
    try:
        names = parse_value_names(json.loads(path.read_text(encoding="utf-8-sig")), key)
    except OSError as error:
        raise UnreadableFile(
            f"the file of label names cannot be opened ({error.strerror})",
            path=shown,
            remedy="Correct the manifest's `label_names` column",
        ) from error
    except ValueError:
        names = None
    if names is None:
        raise LabelMismatch(
            'the file of label names must be a JSON object such as {"1": "liver"}'
            + (f" with the key {key!r}" if key else ""),
            path=shown,
            remedy="Write one name per value; for one table of several write FILE#KEY in the manifest",
        )
    return names


def find_value_names(label: Path, root: Path) -> tuple[dict[int, str] | None, str | None]:
    """Return the names declared next to a label map, and a note if a file of names was not understood.

    Searches LABEL.json, then `label_names.json` and `dataset.json` in the label's folder and the one above,
    never outside `root`.

    Args:
        label: The label map.
        root: Folder that is searched for scans.

    Returns:
        {value: name} without 0, or None; and the note, or None.
    """
    folders = [label.parent] + ([label.parent.parent] if label.parent != root else [])
    own = label.with_name(stem_of(label.name) + ".json")
    note = None
    for path in [own, *(folder / name for folder in folders for name in SIDECARS)]:
        try:
            if not path.is_file():
                continue
            names = parse_value_names(json.loads(path.read_text(encoding="utf-8-sig")), None)
        except (OSError, ValueError):
            names = None
        if names is not None:
            return names, None
        if path.name in SIDECARS:
            note = f"{path.name} holds no single table of label names; labels beside it stay without names"
    return None, note


def parse_value_names(data: Any, key: str | None) -> dict[int, str] | None:
    """Return {value: name} of a JSON value without 0, or None if it is no such table.

    Args:
        data: The JSON value.
        key: Key of the table, if there are several.
    """
    if key is not None:
        data = data.get(key) if isinstance(data, dict) else None
    if isinstance(data, dict) and isinstance(data.get("labels"), dict):
        data = data["labels"]
    if not isinstance(data, dict) or not data:
        return None
    return _by_value(data) or _by_name(data)


def _by_value(data: Mapping[str, Any]) -> dict[int, str] | None:
    if not all(k.isascii() and k.isdigit() and isinstance(v, str) for k, v in data.items()):
        return None
    return {int(k): v for k, v in sorted(data.items(), key=lambda item: int(item[0])) if int(k) != 0}


def _by_name(data: Mapping[str, Any]) -> dict[int, str] | None:
    if not all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in data.values()):
        return None
    return {v: k for k, v in sorted(data.items(), key=lambda item: item[1]) if v != 0}
