"""Result of a target of `mass segment`: its files, their record, and the table of all results of a folder.

    NAME_seg.SUFFIX           labels
    NAME_seg.png              a picture
    NAME_prob_VALUE.SUFFIX    probability of a structure, on request
    NAME_result.json          the record: volumes, confidences, notes, and the marks below
    results.csv               a row for each target and structure of the records of a job

Files of a target are made in a hidden folder and renamed once all of them are complete. A later run keeps
them if both marks are the same: that of the job (settings, references, weights) and that of the target (the
content of its files). It replaces nothing that it did not make, and no labels that were changed since.
"""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from pipeline.discovery import Source, source_digest
from pipeline.errors import ScanError
from storage import checksum, folder_lock
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
    "edited",
    "labels",
)
_DAY_SECONDS = 86_400
_PART = ".mass.part"
"""End of the names of hidden folders."""
_LATER_FIELDS = ("kept", "edited")
"""Of a result, but not of its record."""


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
    edited: bool = False
    """Whether the labels were changed since, so that the volumes and confidences of before are left out."""

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
        return {name: value for name, value in values.items() if name not in _LATER_FIELDS}

    @classmethod
    def from_record(cls, record: Mapping[str, Any], folder: Path) -> Written:
        """Return the result that `to_record` described, with files in `folder`.

        Raises:
            KeyError, TypeError: It is no record of this version.
        """
        values = {field.name: record[field.name] for field in fields(cls) if field.name not in _LATER_FIELDS}
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
    """Return a digest of a target's image, wherever it lies and whatever lies beside it.

    Raises:
        ScanError: A file cannot be read.
    """
    return source_digest(replace(source, labels=(), dataset="", split="", case="", classes=()))


def write_record(folder: Path, written: Written, *, job: str, target: str) -> None:
    """Write the record of a target.

    Args:
        folder: Of its files.
        written: The result.
        job: Mark of the job.
        target: Mark of the target.
    """
    marks = {"job": job, "target": target, "labels_sha256": checksum(folder / written.labels.name)[1]}
    text = json.dumps({**written.to_record(), **marks}, indent=1) + "\n"
    (folder / f"{written.scan_id}{_RECORD_SUFFIX}").write_text(text, encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class _Record:
    """A record that was read."""

    written: Written
    job: str
    target: str
    labels_sha256: str

    @property
    def is_edited(self) -> bool:
        """Whether the labels are there and were changed."""
        return self.written.labels.is_file() and checksum(self.written.labels)[1] != self.labels_sha256

    @classmethod
    def read(cls, path: Path) -> _Record | None:
        """Return the record in a file; None if there is none, or a damaged one."""
        try:
            values = json.loads(path.read_bytes())
            marks = {name: str(values[name]) for name in ("job", "target", "labels_sha256")}
            return cls(written=Written.from_record(values, path.parent), **marks)
        except (OSError, ValueError, KeyError, TypeError):
            return None


class ResultInTheWayError(ScanError):
    """Something is there that a result may not replace."""


def result_there(out: Path, source: Source, job: str) -> Written | None:
    """Return the result of a target if it is there, None if it has to be made.

    Args:
        out: Folder of the results.
        source: The target.
        job: Mark of the job.

    Raises:
        ResultInTheWayError: A result under this name would replace what may not be replaced.
    """
    try:
        return _result_there(out, source, job)
    except OSError as error:
        reason = f"what is there under this name cannot be read ({error.strerror or error})"
        raise _in_the_way(reason) from None


def _result_there(out: Path, source: Source, job: str) -> Written | None:
    record = _Record.read(out / f"{source.scan_id}{_RECORD_SUFFIX}")
    if record is None:
        names = (f"{source.scan_id}_seg.*", f"{source.scan_id}_prob_*", f"{source.scan_id}{_RECORD_SUFFIX}")
        there = [path.name for name in names for path in sorted(out.glob(name))]
        if there:
            raise _in_the_way(f"{there[0]} is there, and no record says that it was made here")
        return None
    try:
        same = record.target == mark_of(source)
    except ScanError:
        return None  # it fails where it is read, with its reason
    if not same:
        raise _in_the_way("the result of another file is there under this name")
    if record.is_edited:
        if record.job == job:
            return replace(record.written, edited=True, volumes_ml={}, confidences={})
        raise _in_the_way(f"{record.written.labels.name} was changed since it was made")
    whole = all(path.is_file() for path in record.written.files)
    return record.written if whole and record.job == job else None


def _in_the_way(reason: str) -> ResultInTheWayError:
    remedy = "Name another --out, or replace it: this target alone, with --again"
    return ResultInTheWayError(reason, path=None, remedy=remedy)


def own_files(out: Path) -> set[Path]:
    """Return labels and probabilities of all records in a folder, resolved: they are no targets."""
    records = (_Record.read(path) for path in out.glob(f"*{_RECORD_SUFFIX}"))
    return {path.resolve() for record in records if record for path in record.written.files}


def write_results_table(out: Path, job: str, *, without: Collection[str] = ()) -> None:
    """Write results.csv: a row for each target and structure of the records of a job; none without any.

    Args:
        out: Folder of the results.
        job: Mark of the job.
        without: Ids of targets that are left out.

    Raises:
        OSError: It cannot be written.
    """
    with folder_lock(out, wait=True):  # two runs that end at once each see the records of the other
        found = [_Record.read(path) for path in sorted(out.glob(f"*{_RECORD_SUFFIX}"))]
        chosen = [record for record in found if record and record.job == job]
        chosen = [record for record in chosen if record.written.scan_id not in without]
        table = out / TABLE
        if table.is_file() and not table.read_text("utf-8", "replace").startswith(",".join(_COLUMNS[:3])):
            raise OSError(errno.EEXIST, "there is a table of this name that this command did not write")
        if chosen or table.exists():
            with tempfile.TemporaryDirectory(prefix=f".{TABLE}.", suffix=_PART, dir=out) as folder:
                made = Path(folder) / TABLE
                text = _table_of(chosen).encode("utf-8", "backslashreplace")  # names of files may be no UTF-8
                made.write_bytes(text)
                made.replace(table)


def _table_of(records: Sequence[_Record]) -> str:
    """Return a table with a row for each structure of each record."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(_COLUMNS)
    for record in records:
        rows.writerows(_rows_of(replace(record.written, edited=record.is_edited)))
    return text.getvalue()


def _rows_of(one: Written) -> Iterator[tuple[object, ...]]:
    for structure, volume in one.volumes_ml.items():
        name, value = structure.removesuffix(")").rsplit(" (", 1)
        confidence = None if one.edited else one.confidences.get(structure)
        yield (
            one.scan_id,
            one.location,
            one.modality,
            name,
            value,
            "" if one.edited else f"{volume:.4g}",
            "" if confidence is None else f"{confidence:.3f}",
            "" if confidence is None else "yes" if confidence < LOW_CONFIDENCE else "no",
            "yes" if one.edited else "no",
            one.labels.name,
        )


@contextmanager
def staged(out: Path, name: str) -> Iterator[Path]:
    """Yield a hidden folder; its files are moved to `out` at the end of the block, unless it fails.

    Files of an earlier result are removed first, then the record is moved, then the others: whenever a run is
    killed, files are missing, and none is taken for another's.
    """
    folder = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=_PART, dir=out))
    try:
        yield folder
        record = f"{name}{_RECORD_SUFFIX}"
        earlier = _Record.read(out / record)
        files = sorted(folder.iterdir(), key=lambda path: (path.name != record, path.name))
        for path in files:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        before = {path.name for path in (*files[1:], *(earlier.written.files if earlier else ()))}
        for file_name in sorted(before):
            (out / file_name).unlink(missing_ok=True)
        for path in files:
            path.replace(out / path.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def clear_leftovers(out: Path) -> None:
    """Remove hidden folders of runs that were killed more than a day ago."""
    for folder in out.glob(f".*{_PART}"):
        with suppress(OSError):  # another run may remove it too
            if time.time() - folder.stat().st_mtime > _DAY_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
