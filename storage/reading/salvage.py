"""The imported masks of a damaged scan, as far as their own files are whole.

*Reads* the scan's metadata and table, and the atom layers and orders of each imported source; not the image,
the labels, nor the scan's own atoms.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from storage.errors import CorruptScan
from storage.reading.scan_files import ScanFiles
from storage.reading.scans import Scan
from storage.records import (
    ImportedMasks,
    Rows,
    about_imports,
    import_digest,
    imported_rows,
    imported_sources,
    unpack_orders,
)


def undamaged_imports(scan: Scan) -> tuple[tuple[ImportedMasks, ...], dict[str, str]]:
    """Return the imported masks of a scan whose files are whole, and by source what is lost of the others.

    A source is kept or lost as a whole.
    """
    names = imported_sources(scan.digests)
    if not names:
        return (), {}
    files = ScanFiles(scan.path, scan.entry)
    try:
        mass = files.metadata("")["mass"]
        table, about = files.whole("proposals"), about_imports(mass["attributes"])
    except CorruptScan as error:
        return (), {name: f"all masks ({_reason(error, scan)})" for name in names}
    kept, lost = [], {}
    for code, name in enumerate(names, start=len(mass["sources"]) - len(names)):
        rows, layers = imported_rows(table, code, mass["num_orders"])
        try:
            masks = ImportedMasks(
                name=name,
                digest=import_digest(scan.digests, name) or "",
                atoms=tuple(scan.atoms(layer) for layer in layers),
                orders=tuple(_orders(files, scan.entry.format_version, layer) for layer in layers),
                table=rows,
                about=about[name],
            )
        except CorruptScan as error:
            lost[name] = f"{len(rows)} masks, {_listed(about.get(name, {}))} ({_reason(error, scan)})"
        else:
            kept.append(masks)
    return tuple(kept), lost


def _orders(files: ScanFiles, format_version: int, layer: int) -> Rows:
    if format_version == 1:
        return tuple(files.whole(f"orders/{layer}"))
    return unpack_orders(files.whole(f"segments/{layer}"))


def _listed(about: Mapping[str, object]) -> str:
    """Return the first names of masks."""
    names = about.get("names", ())
    names = names if isinstance(names, list) else []
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return json.dumps(names[:5], ensure_ascii=False)[1:-1] + more


def _reason(error: CorruptScan, scan: Scan) -> str:
    """Return what is wrong, without the scan and what to do."""
    return str(error).removeprefix(f"scan {scan.id}").lstrip(",: ").split(". ")[0]
