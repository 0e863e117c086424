"""Ways to make mask proposals of a scan, ours and others, on one grid and in one form, to be scored alike.

    ours          `pipeline.proposals.proposal_set` with its default settings
    watershed     the same, watershed hierarchies only (by volume and by dynamics)
    components    the same, connected components of intensity thresholds only
    slic          flat SLIC at four scales (100, 400, 1,600 and 6,400 segments)
    slic-2000     flat SLIC at four scales of 24, 94, 376 and 1,506 segments: made for 2,000 masks
    felzenszwalb  flat graph segmentation at five scales (`benchmarks.felzenszwalb`)

Flat methods rank nothing. Where only n of their masks may be used, these are taken in two ways, and both are
scored: *coarse first* (all of the coarsest scale, then all of the next), and *even* (one of each scale in
turn, as long as there are any). Within a scale the order is drawn once from a fixed seed, so that the first n
lie all over the scan; the order of the labels would take its lowest slices. Their
segments have no size limits: in a small scan, ours would drop SLIC's finest scale.

Reads:  a standardised scan, as ingest makes it.
Writes: `Made`: the scan with its proposals, and their cost.
Bounds: a flat scale of more than 65,534 segments within the limits keeps the largest.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.felzenszwalb import FelzenszwalbConfig, felzenszwalb_scales
from pipeline.compute.backend import get_backend
from pipeline.errors import NoProposals
from pipeline.ingest.standard_scan import StandardScan
from pipeline.proposals.config import ProposalConfig
from pipeline.proposals.proposal_set import propose
from pipeline.quality.slic_baseline import SlicConfig, slic_scales
from pipeline.quality.stored_scan import IntArray
from storage import LabelVolume, ScanRecord, commit_scan, create_store
from storage.layout import BACKGROUND_ATOM, MAX_ATOMS
from storage.records.proposal_checks import atom_extents

RANKINGS = ("coarse first", "even")
"""How the first n masks of a flat method are taken."""


@dataclass(frozen=True, kw_only=True)
class Masked:
    """A scan with proposals; a `pipeline.quality.stored_scan.ScanLike` that may have none."""

    scan_id: str
    dataset: str
    modality: str
    image: NDArray[np.int16]
    scale: float
    offset: float
    spacing_zyx_mm: tuple[float, float, float]
    labels: tuple[LabelVolume, ...]
    attributes: Mapping[str, Any]
    atoms: tuple[NDArray[np.uint16], ...]
    orders: tuple[NDArray[np.uint16], ...]
    table: NDArray[np.int32]
    scores: NDArray[np.float32]
    sources: tuple[str, ...]

    @classmethod
    def without(cls, scan: StandardScan, dataset: str, scan_id: str) -> Masked:
        """The scan with no proposal yet: one atom, and an empty table."""
        labels = tuple(
            LabelVolume(name=label.name, array=label.array, value_names=label.value_names or {})
            for label in scan.labels
        )
        return cls(
            scan_id=scan_id,
            dataset=dataset,
            modality=scan.modality,
            image=scan.image,
            scale=scan.scale,
            offset=scan.offset,
            spacing_zyx_mm=scan.grid.spacing_zyx_mm,
            labels=labels,
            attributes={"intensity": scan.intensity.to_dict()},
            atoms=(np.zeros(scan.image.shape, np.uint16),),
            orders=(np.zeros((1, 1), np.uint16),),
            table=np.zeros((0, 11), np.int32),
            scores=np.zeros(0, np.float32),
            sources=(),
        )

    def stored_bytes(self) -> int:
        """Bytes that the proposals (atoms, orders, table, scores) take in a store; 0 without any."""
        if not len(self.table):
            return 0
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        record = ScanRecord(**values, split="", digests={})
        with tempfile.TemporaryDirectory() as folder:
            create_store(folder, spacing_mm=1.5, config={})
            return proposal_bytes(Path(folder) / commit_scan(folder, record).path)


def proposal_bytes(folder: Path) -> int:
    """Bytes of a stored scan's atoms, orders, table and scores."""
    wanted = ("labels/atoms", "segments/", "level_voxels/", "proposals/", "scores/")
    files = [path for path in folder.rglob("*") if path.is_file()]
    return sum(p.stat().st_size for p in files if p.relative_to(folder).as_posix().startswith(wanted))


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a method gave for a scan."""

    rankings: Mapping[str, Masked]
    """The proposals, by how the first n are taken; "" where the method ranks them itself."""
    raised: Masked | None = None
    """The same with `max_proposals` raised, where that gives other atoms."""
    seconds: float
    """Of processor time, for `rankings`, without reading, storing and scoring."""


Method = Callable[[Masked], Made]


def proposed(config: ProposalConfig, *, raised_to: int | None = 4000) -> Method:
    """Ours with these settings, and again with `max_proposals` raised."""

    def make(scan: Masked) -> Made:
        began = time.process_time()
        made = with_proposals(scan, config)
        seconds = time.process_time() - began
        raised = with_proposals(scan, replace(config, max_proposals=raised_to)) if raised_to else None
        return Made(rankings={"": made}, raised=raised, seconds=seconds)

    return make


def with_proposals(scan: Masked, config: ProposalConfig) -> Masked:
    """The scan with ours; with none where there is no region to choose from."""
    intensity = scan.attributes["intensity"]
    try:
        made = propose(
            scan.image,
            scale=scan.scale,
            offset=scan.offset,
            intensity_range=(intensity["low"], intensity["high"]),
            spacing_zyx_mm=scan.spacing_zyx_mm,
            unit=intensity["unit"],
            config=config,
            backend=get_backend("cpu"),
        )
    except NoProposals:
        return scan
    names = ("atoms", "orders", "table", "scores", "sources")
    return replace(scan, **{name: getattr(made, name) for name in names})


def flat(scales: Callable[[Masked], Iterator[IntArray]], limits: ProposalConfig) -> Method:
    """A method of several partitions, coarsest first, every segment within the size limits a mask."""

    def make(scan: Masked) -> Made:
        began = time.process_time()
        made = with_segments(scan, scales(scan), limits)
        seconds = time.process_time() - began
        codes = made.table[:, 10]
        return Made(
            rankings={name: replace(made, table=made.table[ranked(codes, name)]) for name in RANKINGS},
            seconds=seconds,
        )

    return make


def ranked(scale_of: NDArray[np.integer[Any]], ranking: str) -> NDArray[np.int64]:
    """Rows in the order in which they are taken; `scale_of` (N,) is the scale of each, 0 the coarsest."""
    shuffled = np.random.default_rng(0).permutation(len(scale_of))
    if ranking == "coarse first":
        return shuffled[np.argsort(scale_of[shuffled], kind="stable")]
    turn = np.empty(len(scale_of), np.int64)
    for scale in np.unique(scale_of):
        rows = shuffled[scale_of[shuffled] == scale]
        turn[rows] = np.arange(len(rows))
    return np.lexsort((scale_of, turn))


def with_segments(scan: Masked, volumes: Iterable[IntArray], limits: ProposalConfig) -> Masked:
    """The scan with the segments of these label volumes (z, y, x) as masks, a layer each."""
    least = max(1, np.ceil(limits.min_volume_mm3 / float(np.prod(scan.spacing_zyx_mm))))
    most = int(limits.max_volume_fraction * scan.image.size)
    atoms, tables = [], []
    for labels in volumes:
        voxels = np.bincount(labels.ravel())
        rows = np.flatnonzero((voxels >= least) & (voxels <= most))
        if len(rows) > MAX_ATOMS:
            rows = np.sort(rows[np.argsort(-voxels[rows], kind="stable")[:MAX_ATOMS]])
        if not len(rows):
            continue
        number = np.full(len(voxels), BACKGROUND_ATOM, np.uint16)
        number[rows] = np.arange(len(rows))
        ids = number[labels]
        sizes, lows, highs = atom_extents(ids, len(rows), has_background=True)
        code, first = np.full(len(rows), len(atoms)), np.arange(len(rows))
        columns = [code[:, None], first[:, None], first[:, None] + 1, lows, highs, sizes[:, None]]
        tables.append(np.concatenate([*columns, code[:, None]], axis=1).astype(np.int32))
        atoms.append(ids)
    if not tables:
        return scan
    atoms, orders, shift = _with_first_layer(atoms)
    table = np.concatenate(tables)
    table[:, 0] += shift
    return replace(
        scan,
        atoms=atoms,
        orders=orders,
        table=table,
        scores=np.ones(len(table), np.float32),
        sources=tuple(f"scale-{k}" for k in range(len(tables))),
    )


def _with_first_layer(
    atoms: Sequence[NDArray[np.uint16]],
) -> tuple[tuple[NDArray[np.uint16], ...], tuple[NDArray[np.uint16], ...], int]:
    """Layers, orders, and how many layers were put before: the first must have every voxel in an atom."""
    shift = int((atoms[0] == BACKGROUND_ATOM).any())
    layers = [np.zeros_like(atoms[0])] * shift + list(atoms)
    counts = [1] * shift + [int(ids[ids != BACKGROUND_ATOM].max()) + 1 for ids in atoms]
    return tuple(layers), tuple(np.arange(n, dtype=np.uint16)[None] for n in counts), shift


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A method that can be asked for by name."""

    make: Method
    settings: Mapping[str, Any]
    """Everything that it depends on, for telling finished work from stale."""


def methods() -> dict[str, Entry]:
    """Every method but the first version, by name."""
    ours = ProposalConfig()
    kept = tuple(s.name for s in ours.specs if s.method in ("volume", "dynamics"))
    no_thresholds = replace(ours, component_thresholds_hu=(), component_percentiles=())
    entries = {
        "ours": proposed_entry(ours),
        "watershed": proposed_entry(replace(no_thresholds, trees=kept)),
        "components": proposed_entry(replace(ours, trees=())),
    }
    every = replace(ours, min_volume_mm3=0.0, max_volume_fraction=1.0)
    slic = SlicConfig()
    total = sum(slic.segments)
    few = replace(slic, segments=tuple(round(2000 * n / total) for n in slic.segments))
    for name, config in (("slic", slic), ("slic-2000", few)):
        entries[name] = _flat_entry(_slic(config), asdict(config), "pipeline.quality.slic_baseline", every)
    graph = FelzenszwalbConfig()
    entries["felzenszwalb"] = _flat_entry(
        _felzenszwalb(ours), asdict(graph), "benchmarks.felzenszwalb", every
    )
    return entries


def proposed_entry(config: ProposalConfig, *, raised_to: int | None = 4000) -> Entry:
    """Ours with these settings."""
    settings = {
        "proposals": asdict(config),
        "raised_to": raised_to,
        "code": code_digest("pipeline.proposals.proposal_set"),
    }
    return Entry(make=proposed(config, raised_to=raised_to), settings=settings)


def _flat_entry(
    scales: Callable[[Masked], Iterator[IntArray]],
    settings: Mapping[str, Any],
    module: str,
    limits: ProposalConfig,
) -> Entry:
    bounds = [limits.min_volume_mm3, limits.max_volume_fraction]
    known = {"settings": settings, "limits": bounds, "code": code_digest(module)}
    return Entry(make=flat(scales, limits), settings=known)


def _slic(config: SlicConfig) -> Callable[[Masked], Iterator[IntArray]]:
    return lambda scan: slic_scales(scan.image, scan.spacing_zyx_mm, config=config)


def _felzenszwalb(limits: ProposalConfig) -> Callable[[Masked], Iterator[IntArray]]:
    def scales(scan: Masked) -> Iterator[IntArray]:
        least = int(np.ceil(limits.min_volume_mm3 / float(np.prod(scan.spacing_zyx_mm))))
        return felzenszwalb_scales(scan.image, min_voxels=least, config=FelzenszwalbConfig())

    return scales


def code_digest(module: str) -> str:
    """Digest of a module's code and of what it imports of `pipeline`; comments and layout do not count."""
    digests: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        spec = find_spec(name)
        if name not in digests and spec is not None and spec.origin is not None:
            digests[name], imported = _parsed(Path(spec.origin).read_text(encoding="utf-8"))
            waiting += [name for name in imported if name.startswith("pipeline.")]
    return hashlib.sha256(repr(sorted(digests.items())).encode()).hexdigest()[:16]


@functools.cache
def _parsed(text: str) -> tuple[str, list[str]]:
    """Digest of a module's code, and the modules that it takes names from."""
    tree = ast.parse(text)
    imported = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest(), imported
