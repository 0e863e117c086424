"""Imported masks of a scan: added to its own proposals, listed, removed. Arrays, no I/O.

Imported masks have atom layers of their own, behind those of the scan's own proposals, and their rows follow
the own rows in the table. So the own proposals do not change: without the imported masks, the record is the
one before the import, to the byte. Sources are sorted by name, whatever the order of the imports.

    layers    own ... | of source a ... | of source b ...
    rows      own, best first | of a | of b         all imported rows have the lowest own score
    digests   masks:a, masks:b                       digest of the inputs of each source

*Reads* and *writes* `ScanRecord`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from storage.errors import InvalidRecord
from storage.records.orders import Rows
from storage.records.scan_record import ScanRecord

OWN = "own"
"""Stands for all of a scan's own sources; no imported source may have this name."""

_DIGEST = "masks:"
"""Beginning of the names of imported sources in `digests`."""

_ATTRIBUTE = "imported"
"""Name in `attributes` of what is known about each imported source."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, kw_only=True, eq=False)
class ImportedMasks:
    """The M masks of one imported source in one scan."""

    name: str
    """Name of the source: 1 to 64 letters, digits, dots, dashes, underscores."""
    digest: str
    """Digest of the inputs that they were imported from."""
    atoms: tuple[NDArray[np.uint16], ...]
    """(z, y, x) per layer: ids 0..A-1, or 65534 where there is no mask."""
    orders: tuple[Rows, ...]
    """Rows of atoms of each layer."""
    table: NDArray[np.int32]
    """(M, 11), columns as in PROPOSAL_COLUMNS; `order` counts the rows of these layers, `source` is 0."""
    about: Mapping[str, object]
    """JSON to keep about them, such as their names."""

    def __post_init__(self) -> None:
        check_source_name(self.name)


def check_source_name(name: str) -> None:
    """Raise InvalidRecord unless an imported source may have this name."""
    if _NAME.fullmatch(name) is None or name == OWN:
        raise InvalidRecord(
            f"source {name!r}: a name is 1 to 64 letters, digits, dots, dashes, underscores, a letter or "
            f"digit first, and is not {OWN!r}. Choose another name"
        )


def imported_sources(digests: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names of a scan's imported sources, sorted.

    Args:
        digests: Digests in its record or its line in the index.
    """
    return tuple(sorted(key.removeprefix(_DIGEST) for key in digests if key.startswith(_DIGEST)))


def import_digest(digests: Mapping[str, str], name: str) -> str | None:
    """Return the digest of an imported source's inputs; None if the scan does not have the source."""
    return digests.get(_DIGEST + name)


def own_digests(digests: Mapping[str, str]) -> dict[str, str]:
    """Return the digests without those of imported sources."""
    return {key: digest for key, digest in digests.items() if not key.startswith(_DIGEST)}


def own_record(record: ScanRecord) -> ScanRecord:
    """Return the record without imported masks; afterwards it is the record before any import."""
    num_imported = len(imported_sources(record.digests))
    if not num_imported:
        return record
    num_sources = len(record.sources) - num_imported
    own = record.table[:, -1] < num_sources
    layers = _first_imported_layer(record, num_sources)
    return replace(
        record,
        atoms=record.atoms[:layers],
        orders=record.orders[:layers],
        table=record.table[own],
        scores=record.scores[own],
        sources=record.sources[:num_sources],
        attributes={name: value for name, value in record.attributes.items() if name != _ATTRIBUTE},
        digests=own_digests(record.digests),
    )


def imports_of(record: ScanRecord) -> tuple[ImportedMasks, ...]:
    """Return the imported masks of a record, by the name of their source."""
    names = imported_sources(record.digests)
    first_code = len(record.sources) - len(names)
    about = record.attributes.get(_ATTRIBUTE, {})
    assert isinstance(about, Mapping)
    num_orders = [len(rows) for rows in record.orders]
    found = []
    for code, name in enumerate(names, start=first_code):
        table, layers = imported_rows(record.table, code, num_orders)
        found.append(
            ImportedMasks(
                name=name,
                digest=record.digests[_DIGEST + name],
                atoms=record.atoms[layers.start : layers.stop],
                orders=record.orders[layers.start : layers.stop],
                table=table,
                about=about[name],
            )
        )
    return tuple(found)


def imported_rows(
    table: NDArray[np.int32], code: int, num_orders: Sequence[int]
) -> tuple[NDArray[np.int32], range]:
    """Return the rows of an imported source, and its atom layers.

    Args:
        table: int32 (N, 11) of a scan.
        code: Code of the source.
        num_orders: Trees over each atom layer of the scan.

    Returns:
        int32 (M, 11), in which orders are counted from the source's first layer and the code is 0.
    """
    rows = table[table[:, -1] == code].copy()
    layers = np.repeat(np.arange(len(num_orders)), num_orders)[rows[:, 0]]
    first = int(layers.min())
    rows[:, 0] -= sum(num_orders[:first])
    rows[:, -1] = 0
    return rows, range(first, int(layers.max()) + 1)


def with_imports(record: ScanRecord, imports: Iterable[ImportedMasks]) -> ScanRecord:
    """Return a record with these imported masks, in place of those that it has.

    Args:
        record: The scan; its own proposals stay as they are.
        imports: Masks on the scan's grid, one of each name; a source without a mask is left out.

    Raises:
        InvalidRecord: A name is that of an own source or occurs twice, or the masks do not fit the scan.
    """
    own = own_record(record)
    chosen = sorted((masks for masks in imports if len(masks.table)), key=lambda masks: masks.name)
    names = [masks.name for masks in chosen]
    for name in names:
        if name in own.sources or names.count(name) > 1:
            raise InvalidRecord(f"source {name!r}: there is one of this name already. Choose another name")
    if not chosen:
        return own
    atoms, orders, tables = own.atoms, own.orders, [own.table]
    for code, masks in enumerate(chosen, start=len(own.sources)):
        table = masks.table.copy()
        table[:, 0] += sum(len(rows) for rows in orders)
        table[:, -1] = code
        atoms, orders = (*atoms, *masks.atoms), (*orders, *masks.orders)
        tables.append(table)
    table = np.concatenate(tables)
    lowest = np.full(len(table) - len(own.table), own.scores[-1], dtype=np.float32)
    return replace(
        own,
        atoms=atoms,
        orders=orders,
        table=table,
        scores=np.concatenate([own.scores, lowest]),
        sources=(*own.sources, *names),
        attributes={**own.attributes, _ATTRIBUTE: {masks.name: dict(masks.about) for masks in chosen}},
        digests={**own.digests, **{_DIGEST + masks.name: masks.digest for masks in chosen}},
    )


def about_imports(attributes: Mapping[str, object]) -> Mapping[str, Mapping[str, object]]:
    """Return what is known about each imported source of a scan, by name; empty without any.

    Args:
        attributes: Attributes of the scan or its record.
    """
    about = attributes.get(_ATTRIBUTE, {})
    return about if isinstance(about, Mapping) else {}


def _first_imported_layer(record: ScanRecord, num_own_sources: int) -> int:
    """Return the number of atom layers of the own proposals."""
    orders = record.table[record.table[:, -1] >= num_own_sources, 0]
    return int(record.proposals.layer_of_order[orders].min())
