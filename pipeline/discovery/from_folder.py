"""Search for scans below a folder.

*Reads*: folder entries, JSON files of label names, DICOM headers, headers and labels of .npz sets.
*Writes*: `Discovery`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pipeline.discovery.dicom_studies import cases, pair_dicom_labels
from pipeline.discovery.folder_listing import FolderListing, walk
from pipeline.discovery.from_dicom import DicomFind, find_dicom
from pipeline.discovery.layouts.layout import Files
from pipeline.discovery.layouts.table import Search, search
from pipeline.discovery.pairing import IMAGE_FOLDERS
from pipeline.discovery.sources import Discovery, SetItem, Source, distinct_ids, id_from_parts
from pipeline.errors import Failure, NotAnImage, ScanError, UnreadableFile
from pipeline.formats import SET_SUFFIX, Scrubber, SeriesRules, SetPart, companions, ids_in, open_set, stem_of

_SPLIT_FOLDERS = {"imagestr": "train", "imagests": "test", "imagesva": "val", "imagesval": "val"}


@dataclass(frozen=True, kw_only=True)
class _FoundScan:
    """A scan, or an error in place of one. Its id is chosen when all are known.

    Attributes:
        shown: Its location in messages, without a patient's name.
        id_parts: Parts of its id.
        result: The scan, of which only `scan_id` and `location` are missing; or why it cannot be read.
    """

    shown: str
    id_parts: tuple[str, ...]
    result: partial[Source] | ScanError = field(repr=False)


def discover_folder(
    root: Path,
    rules: SeriesRules,
    *,
    only: Path | None = None,
    layout: str = "auto",
    follow_links: bool = False,
) -> Discovery:
    """Return the scans below a folder.

    Args:
        root: The folder.
        rules: How regular DICOM series must be.
        only: A file in the folder, to be searched alone.
        follow_links: Whether links to folders elsewhere are followed.
        layout: Name of the layout of its files (`layouts.table`); "auto" to recognise it.

    Raises:
        ConfigError: There is no such layout, or nothing of it.
    """
    listing = walk(root, recursive=only is None, follow_links=follow_links)
    if only is not None:
        listing = _only_file(listing, only.relative_to(root))
    dicom = find_dicom(root, listing.dicom, rules)
    scrubber = Scrubber(dicom.patients)
    of_files = search(Files(root=root, volumes=listing.volumes, tables=listing.tables), layout)
    notes = [*of_files.notes, *_orphan_notes(of_files.orphans, scrubber)]
    found = [
        *_volumes(root, of_files, scrubber),
        *_series(root, dicom, scrubber, notes),
        *_sets(root, listing.sets, scrubber, notes, requested=only is not None),
        *_unreadable(listing, scrubber),
    ]
    notes.extend(dicom.notes)
    notes.extend(_left_out(listing, scrubber))
    if listing.other:
        listed = ", ".join(f"{suffix} {count}" for suffix, count in listing.other)
        notes.append(f"{sum(n for _, n in listing.other)} files of other kinds left out: {listed}")
    return _with_ids(found, notes)


def _only_file(listing: FolderListing, only: Path) -> FolderListing:
    """Return the listing with one of its files only."""
    return FolderListing(
        volumes=tuple(p for p in listing.volumes if p == only),
        dicom=tuple(p for p in listing.dicom if p == only),
        sets=tuple(p for p in listing.sets if p == only),
        tables=(),
        unreadable=tuple(item for item in listing.unreadable if item[0] == only),
        special=tuple(item for item in listing.special if item[0] == only),
        other=(),
    )


def _volumes(root: Path, found: Search, scrubber: Scrubber) -> Iterable[_FoundScan]:
    """Yield the scans of image files with their labels, and the failures of data sets that cannot be read."""
    for scan in found.scans:
        shown = scrubber.path(scan.image)
        folders = [part.lower() for part in scan.image.parent.parts]
        split = next((_SPLIT_FOLDERS[f] for f in folders if f in _SPLIT_FOLDERS), "")
        source = partial(
            Source,
            format="file",
            files=companions(root / scan.image),
            labels=scan.labels,
            modality=scan.modality,
            dataset=_shown_folder(root, scan.dataset, scrubber)[-1],
            split=split if scan.split is None else scan.split,
            frame=scan.frame,
            classes=(scan.group,) if scan.group else (),
            case="" if scan.case is None else "/".join(_shown_folder(root, scan.case, scrubber)),
        )
        parts = shown.split("/")
        id_parts = (*_plain(parts[:-1]), stem_of(parts[-1]), *([scan.part] if scan.part else []))
        place = f"{shown} [{scan.part}]" if scan.part else shown
        yield _FoundScan(shown=place, id_parts=id_parts, result=source)
    for failed in found.failures:
        id_parts = _shown_folder(root, failed.where, scrubber)
        yield _FoundScan(shown="/".join(id_parts), id_parts=id_parts, result=failed.error)


def _shown_folder(root: Path, folder: Path, scrubber: Scrubber) -> tuple[str, ...]:
    """Return the parts of a path as they may be shown; the searched folder has its own name."""
    return tuple(scrubber.path(Path(root.resolve().name) if folder == Path() else folder).split("/"))


def _series(root: Path, dicom: DicomFind, scrubber: Scrubber, notes: list[str]) -> Iterable[_FoundScan]:
    """Yield the DICOM series with their labels, and the failures of those that cannot be read."""
    labels, label_notes = pair_dicom_labels(dicom, root, scrubber)
    notes.extend(label_notes)
    (*_, dataset) = _shown_folder(root, Path(), scrubber)
    for index, (series, case) in enumerate(zip(dicom.series, cases(dicom.series), strict=True)):
        folder = scrubber.path(series.folder, series.identity)
        if folder == ".":
            folder = scrubber.path(Path(root.resolve().name), series.identity)
        shown = folder + (f" [{series.suffix}]" if series.suffix else "")
        parts = (*_plain(folder.split("/")), *([series.suffix] if series.suffix else []))
        if series.error is not None:
            yield _FoundScan(shown=shown, id_parts=parts, result=series.error)
            continue
        source = partial(
            Source,
            format="dicom",
            files=series.files,
            labels=labels.get(index, ()),
            dataset=dataset,
            frame=series.frame,
            stack=series.stack,
            later_rules=series.later_rules,
            case=case,
        )
        yield _FoundScan(shown=shown, id_parts=parts, result=source)


def _sets(
    root: Path, paths: Sequence[Path], scrubber: Scrubber, notes: list[str], *, requested: bool
) -> Iterable[_FoundScan]:
    """Yield the scans of .npz sets, and the failures of sets that cannot be read.

    Other .npz files are noted, or are failures if the user has `requested` one by name.
    """
    for path in paths:
        shown = scrubber.path(path)
        parts = shown.split("/")
        id_parts = (*_plain(parts[:-1]), parts[-1][: -len(SET_SUFFIX)])
        try:
            held = open_set(root / path, shown=shown)
        except ScanError as error:
            if isinstance(error, NotAnImage) and not requested:
                notes.append(f"{shown} left out: {error.reason}")
            else:
                yield _FoundScan(shown=shown, id_parts=id_parts, result=error)
            continue
        counts = ", ".join(f"{len(part.classes)} {part.split}" for part in held)
        notes.append(f"{shown} is a set of scans without voxel size or orientation, taken as it is: {counts}")
        for part in held:
            yield from _items(root / path, part, shown, id_parts)


def _items(path: Path, part: SetPart, shown: str, id_parts: tuple[str, ...]) -> Iterable[_FoundScan]:
    """Yield the scans of one split of a set."""
    for index, name in ids_in(part):
        source = partial(
            Source,
            format="set",
            files=(path,),
            dataset=id_parts[-1],
            split=part.split,
            item=SetItem(array=part.array, index=index, shape_zyx=part.shape_zyx),
            classes=part.classes[index],
        )
        yield _FoundScan(
            shown=f"{shown} [{part.split} {name}]", id_parts=(*id_parts, part.split, name), result=source
        )


def _plain(folders: Sequence[str]) -> tuple[str, ...]:
    """Return the folders without those that only mark images, such as imagesTr."""
    return tuple(f for f in folders if f.lower() not in IMAGE_FOLDERS)


def _unreadable(listing: FolderListing, scrubber: Scrubber) -> Iterable[_FoundScan]:
    for path, reason in listing.unreadable:
        shown = scrubber.path(path)
        error = UnreadableFile(
            f"it cannot be opened ({reason})",
            path=shown,
            remedy="Give yourself permission to read it, or remove it",
        )
        yield _FoundScan(shown=shown, id_parts=(*shown.split("/"), "unreadable"), result=error)


def _left_out(listing: FolderListing, scrubber: Scrubber) -> list[str]:
    """Return notes on special files, and on links to folders elsewhere."""
    notes = [f"{scrubber.path(path)} left out: a {kind}, not a file" for path, kind in listing.special[:5]]
    if len(listing.special) > 5:
        notes.append(f"{len(listing.special) - 5} more left out that are no files")
    if listing.links_out:
        shown = ", ".join(scrubber.path(path) for path in listing.links_out[:5])
        more = f" and {len(listing.links_out) - 5} more" if len(listing.links_out) > 5 else ""
        notes.append(f"links to folders elsewhere left out (--follow-links follows them): {shown}{more}")
    return notes


def _with_ids(found: Sequence[_FoundScan], notes: Sequence[str]) -> Discovery:
    """Give every scan its id; locations that are equal without patients' names are numbered."""
    ordered = sorted(found, key=lambda f: f.shown)
    times = Counter[str]()
    wanted, by_key = {}, {}
    for item in ordered:
        times[item.shown] += 1
        key = item.shown if times[item.shown] == 1 else f"{item.shown} ({times[item.shown]})"
        wanted[key], by_key[key] = id_from_parts(item.id_parts), item
    ids = distinct_ids(wanted)
    sources, failures = [], []
    for key, item in by_key.items():
        if isinstance(item.result, ScanError):
            failures.append(Failure.of(item.result, scan_id=ids[key], location=key))
        else:
            sources.append(item.result(scan_id=ids[key], location=key))
    return Discovery(
        sources=tuple(sorted(sources, key=lambda s: s.scan_id)),
        failures=tuple(sorted(failures, key=lambda f: f.scan_id)),
        notes=tuple(notes),
    )


def _orphan_notes(orphans: Sequence[Path], scrubber: Scrubber) -> list[str]:
    """Return a note on labels without a scan."""
    if not orphans:
        return []
    shown = [scrubber.path(path) for path in orphans]
    more = f" and {len(shown) - 5} more" if len(shown) > 5 else ""
    return [
        f"{len(shown)} files look like labels by their name or folder "
        "(labels, masks, ...; _label, _seg, _gt, _mask, ...) but "
        "belong to no scan, left out: "
        f"{', '.join(shown[:5])}{more}; a manifest can pair them"
    ]
