"""Result of a target of `mass segment`: its files, their record, and the table of all results of a folder.

    NAME_seg.SUFFIX           labels
    NAME_seg.png              a picture
    NAME_prob_VALUE.SUFFIX    probability of a structure, on request
    NAME_result.json          the record: volumes, confidences, notes, and the marks below
    results.csv               a row for each target and structure, of all records in the folder

Files of a target are made in a hidden folder and renamed once all of them are complete, the record last. So a
target with a record is complete. It is kept by a later run if both marks are the same: that of the job
(settings, references, weights) and that of the target (its files' sizes and times).
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from pipeline.discovery import Source, choices_digest, source_stat
from storage import digest_of, write_atomically
from training.inference import LOW_CONFIDENCE, Found

TABLE = "results.csv"
_RECORD_SUFFIX = "_result.json"
_COLUMNS = (
    "target",
    "file",
    "modality",
    "structure",
    "label",
    "volume_ml",
    "confidence",
    "low_confidence",
    "labels",
)


@dataclass(frozen=True, kw_only=True)
class Written:
    """Result of one target."""

    scan_id: str
    location: str
    labels: Path
    picture: Path
    probabilities: tuple[Path, ...]
    volumes_ml: dict[str, float]
    """Volume of each requested structure, by name and label value."""
    modality: str
    modality_origin: str
    seconds: float
    agreement: float | None
    """Agreement of the images, if masks were carried over by registration."""
    confidences: dict[str, float]
    """Estimated Dice of each structure, 0..1, if masks were carried over."""
    notes: tuple[str, ...]
    kept: bool = False
    """Whether an earlier run made it."""

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain values."""
        return {
            **asdict(self),
            "labels": str(self.labels),
            "picture": str(self.picture),
            "probabilities": [str(path) for path in self.probabilities],
        }

    def to_record(self) -> dict[str, Any]:
        """Return what its record holds: plain values, names of files without their folder."""
        values = replace(
            self,
            labels=Path(self.labels.name),
            picture=Path(self.picture.name),
            probabilities=tuple(Path(path.name) for path in self.probabilities),
        ).to_json()
        del values["kept"]
        return values

    @classmethod
    def from_record(cls, record: Mapping[str, Any], folder: Path) -> Written:
        """Return the result that `to_record` described, with files in `folder`.

        Raises:
            KeyError, TypeError: It is no record of this version.
        """
        values = {field.name: record[field.name] for field in fields(cls) if field.name != "kept"}
        values |= {name: folder / Path(values[name]).name for name in ("labels", "picture")}
        values["probabilities"] = tuple(folder / Path(name).name for name in values["probabilities"])
        values["notes"] = tuple(values["notes"])
        return cls(**values, kept=True)

    @property
    def files(self) -> tuple[Path, ...]:
        """All files but the record."""
        return (self.labels, self.picture, *self.probabilities)


def named(found: Found) -> str:
    """Return name and label value of a structure, as results list it."""
    return f"{found.structure.name} ({found.structure.values[0]})"


def mark_of(source: Source) -> str:
    """Return a mark of a target that changes if one of its files does."""
    return digest_of([choices_digest(source), source_stat(source)])


def write_record(folder: Path, written: Written, *, job: str, target: str) -> None:
    """Write the record of a target.

    Args:
        folder: Of its files.
        written: The result.
        job: Mark of the job.
        target: Mark of the target.
    """
    record = {**written.to_record(), "job": job, "target": target}
    text = json.dumps(record, indent=1) + "\n"
    (folder / f"{written.scan_id}{_RECORD_SUFFIX}").write_text(text, encoding="utf-8")


def kept_result(out: Path, source: Source, job: str) -> Written | None:
    """Return the result of a target that is there already and was made in the same way; else None."""
    try:
        record = json.loads((out / f"{source.scan_id}{_RECORD_SUFFIX}").read_bytes())
        if record["job"] != job or record["target"] != mark_of(source):
            return None
        written = Written.from_record(record, out)
    except (OSError, ValueError, KeyError, TypeError):  # none, a damaged one, or one of another version
        return None
    return written if all(path.exists() for path in written.files) else None


def write_results_table(out: Path) -> None:
    """Write results.csv: a row for each target and structure of all records in a folder."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(_COLUMNS)
    for path in sorted(out.glob(f"*{_RECORD_SUFFIX}")):
        try:
            one = Written.from_record(json.loads(path.read_bytes()), out)
        except (OSError, ValueError, KeyError, TypeError):
            continue
        rows.writerows(_rows_of(one))
    write_atomically(out / TABLE, lambda file: file.write(text.getvalue().encode()))


def _rows_of(one: Written) -> Iterator[tuple[object, ...]]:
    for structure, volume in one.volumes_ml.items():
        name, value = structure.removesuffix(")").rsplit(" (", 1)
        confidence = one.confidences.get(structure)
        low = "" if confidence is None else "yes" if confidence < LOW_CONFIDENCE else "no"
        told = "" if confidence is None else f"{confidence:.3f}"
        yield (
            one.scan_id,
            one.location,
            one.modality,
            name,
            value,
            f"{volume:.4g}",
            told,
            low,
            one.labels.name,
        )


@contextmanager
def staged(out: Path, name: str) -> Iterator[Path]:
    """Yield a hidden folder; its files are moved to `out` at the end of the block, unless it fails.

    A record is removed first and moved last: whoever finds one finds the files that it describes.
    """
    folder = out / f".{name}.{os.getpid()}.part"
    folder.mkdir(parents=True)
    try:
        yield folder
        record = f"{name}{_RECORD_SUFFIX}"
        files = sorted(folder.iterdir(), key=lambda path: (path.name == record, path.name))
        for path in files:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        (out / record).unlink(missing_ok=True)
        for path in files:
            path.replace(out / path.name)
    finally:
        shutil.rmtree(folder)
