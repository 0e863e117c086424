"""Classes and splits of scans, from a labels.csv or from the store.

Reads:  a CSV file (columns: `id`; `class`, or one column of 0 and 1 for each class; optionally `split`), or
        the classes and splits in a store.
Writes: `ClassTable`, `ClassSplit`. Every error names the file or store and says what to do.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage import Store, write_atomically
from training.errors import DataError

SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
"""Accepted names of splits -> "train", "val" or "test"."""

_RESERVED = ("id", "split", "class")


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassTable:
    """Scans with their classes and splits."""

    source: str
    """File or store that the table is from, for messages."""
    ids: tuple[str, ...]
    """(N,) ids of the scans."""
    classes: tuple[str, ...]
    """(K,) names, sorted; names that are numbers are sorted by value."""
    targets: NDArray[np.float32]
    """(N, K) 0 or 1; without `multi_label`, each row has one 1."""
    multi_label: bool
    """Whether a scan may have several classes, or none."""
    splits: tuple[str, ...]
    """(N,) "train", "val", "test", or "" if unknown."""
    cases: tuple[str, ...] = ()
    """(N,) case of each scan, or its id where it has none; empty: every scan is a case of its own."""

    @property
    def indices(self) -> NDArray[np.int64]:
        """(N,) index of each scan's class; of its first class if it has several."""
        return np.asarray(self.targets.argmax(axis=1), dtype=np.int64)

    def to_csv(self, path: Path, splits: Mapping[str, str]) -> None:
        """Write the table as a labels.csv, atomically.

        Args:
            path: The file.
            splits: Split of each scan, by id.
        """
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(["id", *(self.classes if self.multi_label else ["class"]), "split"])
        for scan_id, row in zip(self.ids, self.targets, strict=True):
            cells = [f"{value:g}" for value in row] if self.multi_label else [self.classes[int(row.argmax())]]
            writer.writerow([scan_id, *cells, splits.get(scan_id, "")])
        write_atomically(path, lambda file: file.write(text.getvalue().encode()))


@dataclass(frozen=True, kw_only=True)
class ClassSplit:
    """Rows of a `ClassTable` for training, validation and test."""

    train: tuple[int, ...]
    """Rows of the training scans."""
    validation: tuple[int, ...]
    """Rows used to choose regularisation or weights; may be empty."""
    test: tuple[int, ...]
    """Rows that the scores are measured on."""
    tested_on: str
    """Name of the split of `test`: "test", or "val" if there is no test split."""


def read_class_table(path: Path, store: Store) -> ClassTable:
    """Return the table in a labels.csv.

    Args:
        path: The file; see the module's docstring for its columns.
        store: The store that has the scans.

    Raises:
        DataError: The file cannot be read, is invalid, or names scans that are not in the store.
    """
    rows, columns = _read_rows(path)
    ids = [row["id"] for row in rows]
    repeated = [scan_id for scan_id, count in Counter(ids).items() if count > 1]
    if repeated:
        raise DataError(
            f"{path}: {len(repeated)} ids occur more than once ({_listed(repeated)}); keep one row per scan"
        )
    unknown = [scan_id for scan_id in ids if scan_id not in store.entries]
    if unknown:
        raise DataError(
            f"{path}: {len(unknown)} of {len(ids)} ids are not in {store.path} ({_listed(unknown)}); "
            "correct them, or remove their rows (`mass status` shows what is in the store)"
        )
    splits = [_split(row.get("split", ""), f"{path}: scan {row['id']}") for row in rows]
    if any(splits) and not all(splits):
        lacking = [row["id"] for row, split in zip(rows, splits, strict=True) if not split]
        raise DataError(f"{path}: {len(lacking)} rows have no split ({_listed(lacking)}); fill in the column")
    if "class" in columns:
        return _with_cases(_single(str(path), ids, [row["class"] for row in rows], splits), store)
    names = [column for column in columns if column not in _RESERVED]
    if not names:
        raise DataError(
            f"{path}: there is no class in it; add a column `class`, or a column of 0 and 1 for each class"
        )
    cells = [[row[name] for name in names] for row in rows]
    return _with_cases(_multiple(str(path), ids, names, cells, splits), store)


def table_of_store(store: Store) -> ClassTable:
    """Return the classes recorded in a store, from .npz sets or the column `class` of manifests.

    Raises:
        DataError: The store has no classes, or classes of several kinds.
    """
    kept: dict[str, Any] = {scan_id: store.scan(scan_id).attributes.get("class") for scan_id in store.entries}
    kept = {scan_id: value for scan_id, value in kept.items() if value}
    where = str(store.path)
    if not kept:
        raise DataError(f"{where}: the store has no classes; name a file with --labels")
    ids = list(kept)
    splits = [SPLITS.get(store.entries[scan_id].split.lower(), "") for scan_id in ids]
    sizes = {len(value) if isinstance(value, list) else 0 for value in kept.values()}
    if len(sizes) > 1:
        raise DataError(f"{where}: its scans have classes of several kinds; name a file with --labels")
    if sizes == {0}:
        return _with_cases(_single(where, ids, list(kept.values()), splits), store)
    names = [str(number) for number in range(sizes.pop())]
    return _with_cases(_multiple(where, ids, names, list(kept.values()), splits), store)


def with_store_splits(table: ClassTable, store: Store) -> ClassTable:
    """Return the table with the splits recorded in the store, if it has no splits itself."""
    if any(table.splits):
        return table
    splits = tuple(SPLITS.get(store.entries[scan_id].split.lower(), "") for scan_id in table.ids)
    return replace(table, splits=splits)


def _with_cases(table: ClassTable, store: Store) -> ClassTable:
    return replace(table, cases=tuple(store.entries[scan_id].case_key for scan_id in table.ids))


def split_classes(table: ClassTable, *, test_fraction: float = 0.0, seed: int = 0) -> ClassSplit:
    """Return the rows for training, validation and test.

    Args:
        table: Classes of the scans, with splits unless `test_fraction` is above 0.
        test_fraction: If above 0, the splits are ignored, and this fraction of each class is drawn as test;
            scans of one case stay together.
        seed: Seed of the draw.

    Raises:
        DataError: A split is missing, or lacks a class that it needs.
    """
    splits = _drawn(table, test_fraction, seed) if test_fraction else table.splits
    parts = {
        name: tuple(k for k, split in enumerate(splits) if split == name) for name in ("train", "val", "test")
    }
    if not parts["train"] or not (parts["val"] or parts["test"]):
        missing = "train" if not parts["train"] else "test"
        raise DataError(
            f"{table.source}: no scan is of the split {missing!r}; add a column `split` (train, val, test), "
            "or have one drawn with --test-fraction 0.2"
        )
    unknown = [scan_id for scan_id, split in zip(table.ids, splits, strict=True) if not split]
    if unknown:
        raise DataError(
            f"{table.source}: {len(unknown)} scans have no split ({_listed(unknown)}); add a column `split`"
        )
    tested_on = "test" if parts["test"] else "val"
    split = ClassSplit(
        train=parts["train"],
        validation=parts["val"] if parts["test"] else (),
        test=parts[tested_on],
        tested_on=tested_on,
    )
    _check_classes(table, split)
    return split


def _check_classes(table: ClassTable, split: ClassSplit) -> None:
    """Raise DataError if the training scans lack a class, or the test scans do not define an AUC."""
    train, test = table.targets[list(split.train)], table.targets[list(split.test)]
    if not table.multi_label and (train.sum(axis=0) > 0).sum() < 2:
        only = table.classes[int(train[0].argmax())]
        raise DataError(
            f"{table.source}: all {len(train)} training scans are of the class {only!r}; two are needed"
        )
    for name, column in zip(table.classes, train.T, strict=True):
        if not column.any() or (table.multi_label and column.all()):
            which = "no training scan is" if not column.any() else "all training scans are"
            raise DataError(
                f"{table.source}: {which} of the class {name!r}; add scans, or leave the class out"
            )
    if not any(0 < column.sum() < len(column) for column in test.T):
        raise DataError(
            f"{table.source}: all {len(test)} scans of the split {split.tested_on!r} are of one class; "
            "an AUC needs two"
        )


def _drawn(table: ClassTable, fraction: float, seed: int) -> tuple[str, ...]:
    """Return random splits, stratified by class; for multi-label data, by combination of classes.

    Whole cases are drawn; the class of a case is that of its first scan.
    """
    if not 0 < fraction < 1:
        raise DataError(f"--test-fraction must be above 0 and below 1, got {fraction}")
    generator = np.random.default_rng(seed)
    splits = ["train"] * len(table.ids)
    cases: dict[str, list[int]] = {}
    for k, case in enumerate(table.cases or table.ids):
        cases.setdefault(case, []).append(k)
    groups: dict[tuple[float, ...], list[list[int]]] = {}
    for rows in cases.values():
        groups.setdefault(tuple(table.targets[rows[0]].tolist()), []).append(rows)
    for members in groups.values():
        shuffled = [members[k] for k in generator.permutation(len(members))]
        for rows in shuffled[: max(1, round(fraction * len(members)))] if len(members) > 1 else ():
            for k in rows:
                splits[k] = "test"
    return tuple(splits)


def _read_rows(path: Path) -> tuple[list[dict[str, str]], list[str]]:
    """Return the rows of a CSV with stripped cells, and its columns; reserved names are in lower case."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror}); check its path") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is no UTF-8 text; save it as CSV in UTF-8") from error
    first = text.split("\n", 1)[0]
    lines = [
        cells for cells in csv.reader(text.splitlines(), delimiter=max(",;\t", key=first.count)) if any(cells)
    ]
    if len(lines) < 2:
        raise DataError(f"{path}: has no rows; write a line `id,class`, then one line for each scan")
    columns = [cell.strip() for cell in lines[0]]
    columns = [column.lower() if column.lower() in _RESERVED else column for column in columns]
    if "id" not in columns or len(set(columns)) < len(columns):
        what = "two columns of one name" if "id" in columns else "no column `id`"
        raise DataError(f"{path}: has {what}; its first line names the columns, as `id,class,split`")
    for number, cells in enumerate(lines[1:], start=2):
        if len(cells) != len(columns):
            raise DataError(
                f"{path}: row {number} has {len(cells)} cells under {len(columns)} columns; correct it"
            )
    return [dict(zip(columns, map(str.strip, cells), strict=True)) for cells in lines[1:]], columns


def _split(word: str, where: str) -> str:
    if word and word.lower() not in SPLITS:
        raise DataError(f"{where}: the split {word!r} is none of train, val, test; correct it")
    return SPLITS[word.lower()] if word else ""


def _single(source: str, ids: Sequence[str], words: Sequence[str], splits: Sequence[str]) -> ClassTable:
    empty = [scan_id for scan_id, word in zip(ids, words, strict=True) if not word]
    if empty:
        raise DataError(f"{source}: {len(empty)} scans have no class ({_listed(empty)}); fill it in")
    numbers = all(word.isascii() and word.isdigit() for word in words)
    classes = sorted(set(words), key=int if numbers else str)
    targets = np.array([[word == name for name in classes] for word in words], dtype=np.float32)
    if len(classes) < 2:
        raise DataError(f"{source}: all {len(ids)} scans are of the class {classes[0]!r}; two are needed")
    return ClassTable(
        source=source,
        ids=tuple(ids),
        classes=tuple(classes),
        targets=targets,
        multi_label=False,
        splits=tuple(splits),
    )


def _multiple(
    source: str,
    ids: Sequence[str],
    names: Sequence[str],
    cells: Sequence[Sequence[str]],
    splits: Sequence[str],
) -> ClassTable:
    for scan_id, row in zip(ids, cells, strict=True):
        for name, cell in zip(names, row, strict=True):
            if cell not in ("0", "1"):
                raise DataError(
                    f"{source}: scan {scan_id}: the column {name!r} must be 0 or 1, got {cell!r}; without a "
                    "column `class`, every column but id and split is a class"
                )
    return ClassTable(
        source=source,
        ids=tuple(ids),
        classes=tuple(names),
        targets=np.array(cells, dtype=np.float32),
        multi_label=True,
        splits=tuple(splits),
    )


def _listed(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
