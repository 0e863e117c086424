"""Finished pieces of a quality measurement: one method on one scan, a JSON file each, kept in OUT/cells.

    source --ingest--> scan --method--> masks --score--> cell

A cell carries a key: of the method's settings and code, ingest's version, the scoring's settings and code,
and the size and time of the source's files. A cell with another key is stale, and is made again.

Reads:  a manifest of scans and labels. Writes: OUT/cells/METHOD/SCAN.json, whole or not at all.
Bounds: one scan a process at a time; 4 GiB for the largest (a whole-body PET of 60 million voxels).
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.mask_methods import Entry, Made, Masked, code_digest
from pipeline.discovery.fingerprint import source_stat
from pipeline.discovery.from_path import discover
from pipeline.discovery.sources import Source
from pipeline.errors import ScanError
from pipeline.ingest.config import INGEST_VERSION, IngestConfig
from pipeline.ingest.reading import read_source
from pipeline.ingest.standard_scan import standardize
from pipeline.quality.intervals import num_atoms
from pipeline.quality.overlap import atom_limit
from pipeline.quality.scoring import ScanScore, ScoreConfig, SkippedStructure, StructureScore, score_scan
from pipeline.quality.stored_scan import ScanLike
from storage import LabelVolume, digest_of

COUNTS = (250, 500, 1000, 2000, 4000)
"""Numbers of proposals at which quality is reported."""

SCORING = ScoreConfig(counts=COUNTS)

DEFAULT_SCANS = {"hippocampus": 12, "sts_sarcoma_ct": 4, "sts_sarcoma_mr": 4, "sts_sarcoma_pet": 4}
"""Scans of the large sets; of the others, all up to `_FEW`."""
_FEW = 3

Catalogue = Callable[[], Mapping[str, Entry]]
"""Gives the methods by name; goes to worker processes, so it must be importable (or a partial of such)."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One method on one scan."""

    key: str
    scan_id: str
    dataset: str
    method: str
    seconds: float
    """Processor time of making the masks."""
    num_bytes: int
    """Of the masks in a store."""
    scores: Mapping[str, ScanScore]
    """By how the first n masks are taken; "" where the method ranks them itself."""

    def write(self, path: Path) -> None:
        """Write the cell, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        temporary.replace(path)

    @classmethod
    def read(cls, path: Path) -> Cell:
        """The cell in a file."""
        values = json.loads(path.read_text(encoding="utf-8"))
        return cls(**values | {"scores": {name: _score_of(s) for name, s in values["scores"].items()}})


def _score_of(values: Mapping[str, Any]) -> ScanScore:
    structures = tuple(
        StructureScore(**s | {"iou": tuple(s["iou"]), "dice": tuple(s["dice"])}) for s in values["structures"]
    )
    skipped = tuple(SkippedStructure(**s) for s in values["skipped"])
    parsed = {"counts": tuple(values["counts"]), "structures": structures, "skipped": skipped}
    return ScanScore(**dict(values) | parsed)


# ------------------------------------------------------------------------------------------- which scans


def labelled_sources(manifest: Path, sets: Sequence[str], scans: int | None) -> list[Source]:
    """The scans to measure: those with labels, of each set as many as asked for, evenly spaced by id.

    Args:
        manifest: Lists scans and labels.
        sets: Names of data sets; empty: all.
        scans: Of each set; None: `DEFAULT_SCANS`.

    Raises:
        SystemExit: A name that is no data set of the manifest.
    """
    members: dict[str, list[Source]] = {}
    for source in discover(manifest, IngestConfig().series_rules).sources:
        if source.labels:
            members.setdefault(source.dataset, []).append(source)
    strangers = sorted(set(sets) - set(members))
    if strangers:
        sys.exit(f"no labelled scan is of {', '.join(strangers)}; there are {', '.join(sorted(members))}")
    chosen = []
    for name in sorted(sets or members):
        wanted = scans or DEFAULT_SCANS.get(name, _FEW)
        chosen += evenly_spaced(sorted(members[name], key=lambda s: s.scan_id), wanted)
    return chosen


def evenly_spaced(items: Sequence[Any], wanted: int) -> list[Any]:
    """So many of the items, the first and the last among them; the one in the middle where one is wanted."""
    if wanted >= len(items):
        return list(items)
    places = np.linspace(0, len(items) - 1, wanted) if wanted > 1 else np.array([(len(items) - 1) / 2])
    return [items[int(place)] for place in places]


# -------------------------------------------------------------------------------------------- one cell


def cell_key(source: Source, settings: Mapping[str, Any]) -> str:
    """What the cell of a method with these settings depends on."""
    files = [(Path(state[0]).name, *state[1:]) for state in source_stat(source)]
    known = {"files": files, "ingest": INGEST_VERSION, "scoring": asdict(SCORING), "method": dict(settings)}
    return digest_of(json.loads(json.dumps(known | {"code": _scoring_code()})))


@functools.cache
def _scoring_code() -> str:
    return code_digest("pipeline.quality.scoring")


def score(scan: ScanLike) -> ScanScore:
    """The score of a scan's proposals; the limit of the atoms is the best layer's for each structure."""
    scored = score_scan(scan, config=SCORING)
    structures = list(scored.structures)
    for layer in range(1, len(scan.atoms)):
        for label in scan.labels:
            here = [i for i, s in enumerate(structures) if s.label == label.name]
            values = [structures[i].value for i in here]
            size = num_atoms(scan, layer)
            limit = atom_limit(scan.atoms[layer], label.array, num_atoms=size, values=values)
            for place, i in enumerate(here):
                structures[i] = replace(
                    structures[i],
                    limit_iou=max(structures[i].limit_iou, float(limit.iou[place])),
                    limit_dice=max(structures[i].limit_dice, float(limit.dice[place])),
                )
    return replace(scored, structures=tuple(structures))


def with_more(scored: ScanScore, raised: ScanScore, limit: int = 2000) -> ScanScore:
    """The score, its columns beyond `limit` proposals taken from that of the raised number of proposals."""
    beyond = sum(n <= limit for n in COUNTS)
    structures = tuple(
        replace(s, iou=s.iou[:beyond] + r.iou[beyond:], dice=s.dice[:beyond] + r.dice[beyond:])
        for s, r in zip(scored.structures, raised.structures, strict=True)
    )
    return replace(scored, structures=structures, num_proposals=raised.num_proposals)


def cell_of(made: Made, *, key: str, method: str) -> Cell:
    """The cell of what a method gave."""
    scores = {name: score(masked) for name, masked in made.rankings.items()}
    if made.raised is not None:
        more = score(made.raised)
        scores = {name: with_more(scored, more) for name, scored in scores.items()}
    some = next(iter(made.rankings.values()))
    return Cell(
        key=key,
        scan_id=some.scan_id,
        dataset=some.dataset,
        method=method,
        seconds=round(made.seconds, 3),
        num_bytes=some.stored_bytes(),
        scores=scores,
    )


# ------------------------------------------------------------------------------------------- all cells


def cell_path(out: Path, method: str, scan_id: str) -> Path:
    """Where a cell is kept."""
    return out / "cells" / method / f"{scan_id}.json"


def finished(path: Path, key: str) -> bool:
    """Whether a cell is there, and of what it would be made from now."""
    return path.is_file() and json.loads(path.read_text(encoding="utf-8"))["key"] == key


def make_cells(
    sources: Sequence[Source], names: Sequence[str], catalogue: Catalogue, out: Path, *, workers: int
) -> list[str]:
    """Make the cells that are not there yet; a line on each; what could not be read, with the reason."""
    entries = catalogue()
    jobs = []
    for source in sources:
        keys = {name: cell_key(source, entries[name].settings) for name in names}
        missing = {n: key for n, key in keys.items() if not finished(cell_path(out, n, source.scan_id), key)}
        if missing:
            jobs.append((source, missing, catalogue, out))
    print(f"{len(sources)} scans, {len(names)} methods: {sum(len(j[1]) for j in jobs)} cells to make")
    failures = []
    for number, failed in enumerate(_results(jobs, workers), start=1):
        failures += failed
        print(f"{number}/{len(jobs)} scans", flush=True)
    return failures


def _results(jobs: Sequence[tuple[Any, ...]], workers: int) -> Iterator[list[str]]:
    if workers == 1:
        yield from (make_scan(*job) for job in jobs)
        return
    os.environ["NUMBA_NUM_THREADS"] = "1"  # of the processes to come: a core each
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from (done.result() for done in as_completed([pool.submit(make_scan, *job) for job in jobs]))


def make_scan(source: Source, keys: Mapping[str, str], catalogue: Catalogue, out: Path) -> list[str]:
    """Make the cells of some methods on one scan."""
    config = IngestConfig()
    try:
        scan = Masked.without(
            standardize(read_source(source, config), config), source.dataset, source.scan_id
        )
    except ScanError as error:
        return [f"{source.scan_id}: {error.reason}"]
    entries = catalogue()
    for name, key in keys.items():
        entries[name].make(drawn_scan())  # what is to be compiled or loaded is none of the method's time
        cell = cell_of(entries[name].make(scan), key=key, method=name)
        cell.write(cell_path(out, name, source.scan_id))
        print(f"  {source.scan_id} {name}: {cell.seconds:.1f} s", flush=True)
    return []


def read_cells(sources: Iterable[Source], names: Sequence[str], out: Path) -> list[Cell]:
    """The finished cells of these scans and methods."""
    paths = [cell_path(out, name, source.scan_id) for name in names for source in sources]
    return [Cell.read(path) for path in paths if path.is_file()]


def drawn_scan() -> Masked:
    """A bright ball in noise."""
    rng = np.random.default_rng(0)
    k = np.indices((24, 24, 24)) - 11.5
    inside = (k**2).sum(axis=0) < 60
    image = (300 * inside + rng.normal(200, 30, inside.shape)).astype(np.int16)
    intensity = {"low": 0.0, "high": 600.0, "unit": "", "mean": 200.0, "std": 90.0}
    return Masked(
        scan_id="drawn",
        dataset="drawn",
        modality="mr",
        image=image,
        scale=1.0,
        offset=0.0,
        spacing_zyx_mm=(1.5, 1.5, 1.5),
        labels=(LabelVolume(name="ball", array=inside.astype(np.uint8), value_names={}),),
        attributes={"intensity": intensity},
        atoms=(np.zeros(image.shape, np.uint16),),
        orders=(np.zeros((1, 1), np.uint16),),
        table=np.zeros((0, 11), np.int32),
        scores=np.zeros(0, np.float32),
        sources=(),
    )
