"""Bring masks made elsewhere into a store, scan by scan, or take them out again."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from commands.disk_errors import warn_of_locks
from commands.prepare.outcomes import counted_scans, failure_values
from commands.score import chosen_ids
from commands.terminal import CommandError, counted, print_failures, print_table
from pipeline.errors import Failure, ScanError
from pipeline.exchange import (
    FoundMasks,
    MaskInput,
    PackedMasks,
    PlacedMasks,
    Target,
    digest_masks,
    find_masks,
    pack_masks,
    read_masks,
)
from pipeline.ingest import IngestConfig, ingest_config
from pipeline.volumes import Grid
from storage import (
    ImportedMasks,
    Scan,
    StorageError,
    Store,
    StoreFull,
    check_source_name,
    commit_scan,
    finish,
    import_digest,
    imported_sources,
    imports_of,
    open_store,
    sweep,
    with_imports,
)


@dataclass(frozen=True, kw_only=True)
class Imported:
    """Result of the import for one scan."""

    scan_id: str
    num_masks: int
    num_layers: int
    """Number of their atom layers."""
    empty: tuple[str, ...]
    """Names of masks without a voxel on the stored grid."""
    done_before: bool


def run_import_masks(arguments: Namespace) -> tuple[int, dict[str, Any]]:
    """Run `mass import-masks`; return the exit code and the results for --json."""
    store = open_store(arguments.store)
    store.require_current()
    warn_of_locks(store.path)
    sweep(store.path)
    store = open_store(arguments.store)
    if arguments.remove is not None:
        if arguments.files or arguments.source is not None:
            raise CommandError("--remove SOURCE takes masks out of the store: give no FILE and no --source")
        return _remove(store, arguments.remove, arguments.scan)
    if arguments.scan is not None and arguments.scan not in store.entries:
        raise CommandError(f"{store.path}: no scan {arguments.scan!r}. `mass status` lists the scans")
    found = find_masks(arguments.files, store.scan_ids, scan_id=arguments.scan)
    source = "imported" if arguments.source is None else arguments.source
    check_source_name(source)
    imported, failed, stopped = _import_all(store, found, source, arguments)
    finish(store.path)
    _print_imported(source, imported, failed, stopped, left=len(found.inputs) - len(imported))
    failures = [*(_of_file(error, "") for error in found.failures), *failed]
    print_failures(failures)
    document = {
        "store": str(arguments.store),
        "source": source,
        "imported": [
            {
                "scan": one.scan_id,
                "masks": one.num_masks,
                "layers": one.num_layers,
                "empty": list(one.empty),
                "done_before": one.done_before,
            }
            for one in imported
        ],
        "failed": failure_values(failures),
        "stopped": stopped,
    }
    return int(bool(failures or stopped)), document


def _import_all(
    store: Store, found: FoundMasks, source: str, arguments: Namespace
) -> tuple[list[Imported], list[Failure], str]:
    """Import scan by scan; return what was imported, what failed, and why it stopped before the end."""
    config = ingest_config(store.info.config.get("ingest"))
    imported: list[Imported] = []
    failed: list[Failure] = []
    for scan_id in counted("import", sorted(found.inputs), failed=failed):
        try:
            target = target_of(store.scan(scan_id))
            target = replace(target, grid=arguments.grid, axes=arguments.axes)
            imported.append(_import_one(store, target, found.inputs[scan_id], source, config))
        except ScanError as error:
            failed.append(_of_file(error, scan_id))
        except StoreFull as error:
            return imported, failed, str(error)
        except StorageError as error:
            failed.append(Failure.of(error, scan_id=scan_id, remedy="Run `mass verify` on the store"))
    return imported, failed, ""


def _import_one(
    store: Store, target: Target, inputs: Sequence[MaskInput], source: str, config: IngestConfig
) -> Imported:
    """Import the masks of one scan, in place of those that it has of this source.

    Raises:
        ScanError: An input cannot be used, or no mask has a voxel; the scan is unchanged.
    """
    scan = store.scan(target.scan_id)
    digest = digest_masks(inputs, target)
    if import_digest(scan.digests, source) == digest:
        about = about_source(scan, source)
        return Imported(
            scan_id=scan.id,
            num_masks=len(about["names"]),
            num_layers=int(about["layers"]),
            empty=tuple(about["empty"]),
            done_before=True,
        )
    placed = read_masks(inputs, target, config)
    if not placed.masks:
        raise ScanError(
            "no mask has a voxel inside the stored scan",
            path=", ".join(one.shown for one in inputs),
            remedy="Check that the masks belong to this scan",
        )
    record = scan.record()
    packed = pack_masks(placed.masks, scan.shape)
    others = [masks for masks in imports_of(record) if masks.name != source]
    made = imported_masks(source, digest, packed, placed)
    commit_scan(store.path, with_imports(record, [*others, made]), replace=True)
    return Imported(
        scan_id=scan.id,
        num_masks=len(packed.table),
        num_layers=len(packed.atoms),
        empty=placed.empty,
        done_before=False,
    )


def imported_masks(source: str, digest: str, packed: PackedMasks, placed: PlacedMasks) -> ImportedMasks:
    """Return packed masks in the form of the store."""
    about: dict[str, object] = {
        "names": list(packed.names),
        "empty": list(placed.empty),
        "layers": len(packed.atoms),
    }
    if any(score is not None for score in packed.scores):
        about["scores"] = list(packed.scores)
    return ImportedMasks(
        name=source,
        digest=digest,
        atoms=packed.atoms,
        orders=packed.orders,
        table=packed.table,
        about=about,
    )


def about_source(scan: Scan, source: str) -> Mapping[str, Any]:
    """Return the store's facts on a source's masks: `names`, perhaps `scores` (row by row), `empty`."""
    about: Mapping[str, Any] = scan.attributes["imported"][source]
    return about


def target_of(scan: Scan) -> Target:
    """Return the grids of a stored scan, on which masks are placed.

    Raises:
        ScanError: The store has no geometry of the scan.
    """
    try:
        stored, original = (Grid.from_dict(scan.attributes[name]) for name in ("grid", "source_grid"))
    except (KeyError, TypeError, ValueError):
        raise ScanError(
            "the store does not say how the scan lies in the patient",
            path=scan.id,
            remedy="Prepare it again with `mass prepare`",
        ) from None
    return Target(scan_id=scan.id, stored=stored, original=original, image=scan.image)


def _remove(store: Store, source: str, scan_id: str | None) -> tuple[int, dict[str, Any]]:
    """Remove a source from every scan, or from one."""
    ids = [
        name
        for name in chosen_ids(store, [scan_id] if scan_id else [], [])
        if source in imported_sources(store.entries[name].digests)
    ]
    if not ids:
        every = {name for entry in store.entries.values() for name in imported_sources(entry.digests)}
        known = ", ".join(sorted(every)) or "none"
        raise CommandError(f"{store.path}: no scan has imported masks of source {source!r}. It has: {known}")
    removed: list[str] = []
    failed: list[Failure] = []
    stopped = ""
    for name in counted("remove", ids, failed=failed):
        try:
            record = store.scan(name).record()
            kept = [masks for masks in imports_of(record) if masks.name != source]
            commit_scan(store.path, with_imports(record, kept), replace=True)
        except StoreFull as error:
            stopped = str(error)
            break
        except StorageError as error:
            failed.append(Failure.of(error, scan_id=name, remedy="Run `mass verify` on the store"))
        else:
            removed.append(name)
    finish(store.path)
    print_failures(failed)
    if stopped:
        print(f"stopped before the end: {stopped}")
    print(f"masks of {source} removed from {counted_scans(len(removed))}")
    document = {"removed": removed, "source": source, "failed": failure_values(failed), "stopped": stopped}
    return int(bool(failed or stopped)), document


def _print_imported(
    source: str, imported: Sequence[Imported], failed: Sequence[Failure], stopped: str, *, left: int
) -> None:
    new = [one for one in imported if not one.done_before]
    if new:
        rows = [(one.scan_id, one.num_masks, one.num_layers, len(one.empty)) for one in new]
        print_table(f"masks of {source}", ("scan", "masks", "atom layers", "empty"), rows)
    for one in new:
        if one.empty:
            more = f" and {len(one.empty) - 5} more" if len(one.empty) > 5 else ""
            names = json.dumps(list(one.empty[:5]), ensure_ascii=False)[1:-1]
            print(f"{one.scan_id}: without a voxel on the stored grid: {names}{more}")
    if stopped:
        print(f"stopped before the end: {stopped}; the same command goes on from here")
    masks = sum(one.num_masks for one in new)
    print(
        f"{masks:,} masks imported into {counted_scans(len(new))}, {len(imported) - len(new)} done before, "
        f"{len(failed)} failed, {left - len(failed)} not done"
    )


def _of_file(error: ScanError, scan_id: str) -> Failure:
    """Return the failure of a file of masks; its scan may be unknown."""
    return Failure.of(error, scan_id=scan_id, location=str(error.path or ""))
