"""Tables of BIDS: names of label values, participants, and the modality in sidecar files.

*Reads*: TSV and JSON files. *Writes*: names, splits, groups and modalities. A file that cannot be read is
treated as missing: in the specification all of them are optional.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

from pipeline.discovery.layouts.bids_names import BidsName, parse_name
from pipeline.formats import Modality, parse_modality, stem_of

PARTICIPANTS_FILE = "participants.tsv"
_NOTHING = ("", "n/a", "N/A", "na", "nan")


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a TSV file by column; "n/a" is empty."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        return []
    rows = csv.DictReader(text.splitlines(), delimiter="\t")
    return [{str(column).strip(): _cell(value) for column, value in row.items() if column} for row in rows]


def _cell(value: object) -> str:
    text = str(value or "").strip()
    return "" if text in _NOTHING else text


def participants(dataset: Path) -> dict[str, dict[str, str]]:
    """Return the row of each participant, by "sub-01"."""
    rows = read_rows(dataset / PARTICIPANTS_FILE)
    return {row["participant_id"]: row for row in rows if row.get("participant_id")}


def value_names(label: Path, dataset: Path) -> dict[int, str] | None:
    """Return the names in the dseg.tsv that applies to a label map, or None.

    The file has the label's own name, or it lies in its folder or one above, up to the data set's, and has no
    entity that the label has not (the inheritance principle). The nearest one is taken; of several in one
    folder, the one with most entities.

    Args:
        label: The label map.
        dataset: Folder of the data set.
    """
    name = parse_name(label)
    own = label.with_name(stem_of(label.name) + ".tsv")
    above = (folder for folder in label.parents[1:] if dataset in (folder, *folder.parents))
    folders = [label.parent, *above]
    found = [own] if own.is_file() else []
    for folder in folders:
        tables = [path for path in sorted(folder.glob("*dseg.tsv")) if _holds_for(parse_name(path), name)]
        found.extend(sorted(tables, key=lambda path: -len(parse_name(path).entities)))
    for path in found:
        rows = [row for row in read_rows(path) if row.get("index", "").isdigit() and row.get("name")]
        if rows:
            return {int(row["index"]): row["name"] for row in rows if int(row["index"]) != 0}
    return None


def _holds_for(table: BidsName, label: BidsName) -> bool:
    return all(label.entities.get(key) == value for key, value in table.entities.items())


def sidecar_modality(scan: Path, dataset: Path, suffix: str) -> Modality | None:
    """Return the modality in the JSON beside a scan, or in that of its suffix at the top of the data set."""
    for path in (scan.with_name(stem_of(scan.name) + ".json"), dataset / f"{suffix}.json"):
        word = _json(path).get("Modality")
        if isinstance(word, str) and parse_modality(word):
            return parse_modality(word)
    return None


def raw_sources(label: Path) -> tuple[str, ...]:
    """Return the scans that a label's JSON names as its sources, as they are written there."""
    data = _json(label.with_name(stem_of(label.name) + ".json"))
    named = [*_texts(data.get("RawSources")), *_texts(data.get("Sources"))]
    return tuple(text.rsplit(":", 1)[-1] for text in named)


def _texts(value: object) -> list[str]:
    listed = value if isinstance(value, list) else [value]
    return [text for text in listed if isinstance(text, str)]


def _json(path: Path) -> dict[str, object]:
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}
