"""Write scans, labels and proposals of a store as other tools read them."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from commands.import_masks import target_of
from commands.prepare.outcomes import counted_scans, failure_values
from commands.score import chosen_ids
from commands.terminal import CommandError, counted, print_failures
from pipeline.errors import ExportRefused, Failure, ScanError
from pipeline.exchange import (
    ExportLabel,
    ExportMasks,
    ExportScan,
    LabelNumbers,
    begin,
    number_structures,
    on_original_grid,
)
from storage import OWN, Scan, StorageError, Store, about_imports, imported_sources, open_store

_PUBLISHED_PROPOSALS = 100
"""Number of proposals in the published layout, unless --proposals is given."""


def run_export(arguments: Namespace) -> tuple[int, dict[str, Any]]:
    """Run `mass export`; return the exit code and the results for --json."""
    store = open_store(arguments.store)
    ids = chosen_ids(store, arguments.scan, arguments.dataset)
    _check(store, ids, arguments)
    about = {
        "program": f"mass3d {version('mass3d')}",
        "store": store.name,
        "grid": arguments.grid,
        "spacing_mm": store.info.spacing_mm,
    }
    numbers = _numbers(store, ids, arguments) if arguments.format == "nnunet" else LabelNumbers(by_name={})
    export = begin(arguments.out, arguments.format, about, numbers)
    written: list[str] = []
    failed: list[Failure] = []
    for scan_id in counted("export", ids, failed=failed):
        try:
            export.add(_scan_of(store.scan(scan_id), arguments))
        except ExportRefused as error:
            failed.append(Failure.of(error, scan_id=scan_id))
        except ScanError as error:
            failed.append(Failure.of(error, scan_id=scan_id))
        except StorageError as error:
            failed.append(Failure.of(error, scan_id=scan_id, remedy="Run `mass verify` on the store"))
        else:
            written.append(scan_id)
    export.finish()
    print_failures(failed)
    if arguments.grid == "original":
        print("images are the stored ones, resampled back: cropped, clipped, no finer than the store")
    print(f"{counted_scans(len(written))} written to {export.folder}, {len(failed)} failed")
    return int(bool(failed)), {
        "folder": str(export.folder),
        "format": arguments.format,
        "written": written,
        "failed": failure_values(failed),
    }


def _check(store: Store, ids: Sequence[str], arguments: Namespace) -> None:
    """Refuse options with which no scan could be written."""
    known = {name for scan_id in ids for name in imported_sources(store.entries[scan_id].digests)}
    for source in arguments.source:
        if source not in {OWN, *known}:
            listed = ", ".join(sorted(known)) or "none"
            raise CommandError(
                f"--source {source}: must be {OWN}, or an imported source of these scans: {listed}"
            )
    maps = {name for scan_id in ids for name in store.entries[scan_id].labels}
    if arguments.label_map is not None and arguments.label_map not in maps:
        listed = ", ".join(sorted(maps)) or "none"
        raise CommandError(f"--label-map {arguments.label_map}: no scan has it. There are: {listed}")
    modalities = sorted({store.entries[scan_id].modality for scan_id in ids})
    if arguments.format == "nnunet" and len(modalities) > 1:
        raise CommandError(
            f"nnU-Net has the same channels in every case, these scans are of {', '.join(modalities)}. "
            "Choose those of one modality with --dataset or --scan"
        )


def _labels_of(scan: Scan, arguments: Namespace) -> tuple[ExportLabel, ...]:
    names = [name for name in scan.label_names if arguments.label_map in (None, name)]
    return tuple(
        ExportLabel(name=name, array=scan.labels(name), value_names=scan.label_values(name)) for name in names
    )


def _numbers(store: Store, ids: Sequence[str], arguments: Namespace) -> LabelNumbers:
    """Return one numbering of the structures of all scans."""
    return number_structures(
        [label.names() for label in _labels_of(store.scan(scan_id), arguments)]
        for scan_id in counted("names of structures", ids)
    )


def _scan_of(scan: Scan, arguments: Namespace) -> ExportScan:
    """Return a stored scan as it is exported.

    Raises:
        ScanError: The store has no geometry of the scan.
    """
    target = target_of(scan)
    made = ExportScan(
        scan_id=scan.id,
        dataset=scan.dataset,
        split=scan.split,
        modality=scan.modality,
        case=scan.case,
        image=scan.image(),
        low=float(scan.intensity.low),
        grid=target.stored,
        labels=_labels_of(scan, arguments),
        masks=_masks_of(scan, arguments),
    )
    return made if arguments.grid == "stored" else on_original_grid(made, target.original)


def _masks_of(scan: Scan, arguments: Namespace) -> ExportMasks:
    """Return the best proposals of the requested sources."""
    most = arguments.proposals
    if most is None:
        most = _PUBLISHED_PROPOSALS if arguments.format == "published" else 0
    imported = imported_sources(scan.digests)
    names = scan.proposals.source_names
    origins = np.where(np.isin(names, imported), names, OWN)
    wanted = np.isin(origins, arguments.source) if arguments.source else np.ones(len(names), np.bool_)
    rows = np.flatnonzero(wanted)[:most]
    listed = _names_of(scan, origins)

    def read(number: int) -> NDArray[np.bool_]:
        mask: NDArray[np.bool_] = scan.masks([int(rows[number])])[0]
        return mask

    return ExportMasks(
        names=tuple(listed[row] for row in rows),
        sources=tuple(str(names[row]) for row in rows),
        scores=tuple(float(scan.proposals.scores[row]) for row in rows),
        read=read,
    )


def _names_of(scan: Scan, origins: NDArray[np.str_]) -> list[str]:
    """Return a name for each proposal: that of its imported file, else its source and rank."""
    named = [f"{source} #{row}" for row, source in enumerate(scan.proposals.source_names)]
    for source, about in about_imports(scan.attributes).items():
        given = about["names"]
        assert isinstance(given, list)
        for row, name in zip(np.flatnonzero(origins == source), given, strict=True):
            named[row] = str(name)
    return named
