"""Reads sample i of a run from the store: two cuts of image codes and words of one scan, or of two.

*Reads* of one scan: image codes and atoms in the smallest box around both cuts, the proposals, the orders.
*Gives* a Sample, which depends on the seed and i only. The visible voxels of each mask are counted exactly:
first the proposals' boxes exclude most proposals without reading voxels; then one histogram of the atoms in
each view, and prefix sums along the orders, give the voxel counts of all the others.

With pairs of regions (`region_pairs`), a part of the samples are of two scans (`paired_samples`).

Where it stops being valid: a scan that was replaced after the run began causes an error.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from storage import (
    CorruptScan,
    IndexEntry,
    Scan,
    StorageError,
    Store,
    StorePath,
    absolute_store_path,
    imported_sources,
    open_store,
)
from training.data.boxes import draw_crop_views, whole
from training.data.paired_samples import draw_paired_sample
from training.data.region_pairs import PairTable, read_pair_table
from training.data.sampling import (
    DataConfig,
    candidates,
    draw_masks,
    generator_of,
    make_choice,
)
from training.data.source_weights import SourceGroups, draw_by_group, groups_of, scans_with_weight
from training.data.view_pairs import Sample, ViewPair, visible_in, words_of
from training.data.whole_scans import ResampledCut, draw_scan_views, level_window
from training.errors import DataError

_MAX_VIEW_PAIRS = 4
"""Pairs of views drawn in a scan before the best one is used, although it shows fewer masks than wanted."""

_MAX_SCANS = 16
"""Scans drawn for a sample before it is an error that none of them shows any mask."""

_MAX_CACHED_BYTES = 128 * 2**20
"""Limit on the orders of opened scans that a reader keeps; opening a scan takes 2 to 4 ms."""


class KnownScans:
    """The scans of a run as they were when it began; each is opened without reading the index again.

    So a worker of the loader neither parses nor keeps the index lines of 100,000 scans.

    Args:
        store: The opened store.
        scan_ids: Scans of the run.

    Raises:
        DataError: A scan is not in the store.
    """

    def __init__(self, store: Store, scan_ids: Sequence[str]) -> None:
        entries = store.entries
        for scan_id in scan_ids:
            if scan_id not in entries:
                raise DataError(
                    f"scan {scan_id!r}: the run trains on it, but the store has it no longer. Prepare it "
                    "again, or begin a new run without it"
                )
        self.digests: Mapping[str, str] = {scan_id: entries[scan_id].digest for scan_id in scan_ids}
        """Digest of each scan, as in the index, by scan id."""
        self._store = Store(absolute_store_path(store.path), store.info)
        self._opened: dict[str, IndexEntry] = {}

    def open(self, scan_id: str) -> Scan:
        """Return a scan.

        Raises:
            CorruptScan: It is missing, damaged, or another one than when the run began.
            OSError: It cannot be read.
        """
        if scan_id not in self._opened:
            self._opened[scan_id] = self._find(scan_id)
        return Scan(self._store.path, self._opened[scan_id])

    def _find(self, scan_id: str) -> IndexEntry:
        scan = self._store.committed_now(scan_id)
        if scan is None:
            raise CorruptScan(
                f"scan {scan_id}: COMMIT.json is missing or damaged. Run `mass verify`, then prepare the "
                "scan again"
            )
        if scan.entry.digest != self.digests[scan_id]:
            raise CorruptScan(f"scan {scan_id}: it was replaced since the run began")
        return scan.entry


def opened_store(store: str | StorePath | Store) -> Store:
    """Return a store, opened if it is not.

    Raises:
        DataError: It cannot be opened, or its index cannot be read.
    """
    try:
        found = store if isinstance(store, Store) else open_store(store)
        _ = found.entries
    except (StorageError, OSError) as error:
        raise DataError(f"the store cannot be opened: {error}") from error
    return found


class SampleReader:
    """Reads samples of a run. Can be pickled at any time; the copy does not read the index again.

    Args:
        store: The store, or its path or URL.
        scan_ids: Scans to train on.
        config: Which samples are drawn, and their sizes.
        seed: Of the run, >= 0.

    Raises:
        DataError: The store cannot be opened, is empty, or lacks a scan.
        ConfigError: A number is outside its range.
    """

    def __init__(
        self, store: str | StorePath | Store, scan_ids: Sequence[str], config: DataConfig, *, seed: int
    ) -> None:
        found = opened_store(store)
        self._known = KnownScans(found, scan_ids)
        entries = [found.entries[scan_id] for scan_id in scan_ids]
        drawable = scans_with_weight(entries, config.source_weights)
        self._choice = make_choice(drawable, config.dataset_weights)
        self._config = config
        self._seed = seed
        self._scans: OrderedDict[str, Scan] = OrderedDict()
        self._kept_bytes = 0

    def __getstate__(self) -> dict[str, object]:
        settings = {name: self.__dict__[name] for name in ("_known", "_choice", "_config", "_seed")}
        return settings | {"_scans": OrderedDict(), "_kept_bytes": 0}

    def read(self, index: int) -> Sample:
        """Return sample `index` of the run.

        Raises:
            DataError: A scan that it needs is damaged, missing or replaced, or no scan shows a mask.
        """
        generator = generator_of(self._seed, index, "scan")
        table = self._pairs
        # No number is drawn without pairs, so that samples are those of versions without this setting.
        if table is not None and generator.random() < self._config.pair_fraction:
            paired = self._read_paired(table, index, generator)
            if paired is not None:
                return paired
        drawn = []
        for _ in range(_MAX_SCANS):
            scan_id = self._choice.draw(generator)
            drawn.append(scan_id)
            try:
                sample = self._read_from(self._scan(scan_id), index, generator)
            except (StorageError, OSError) as error:
                raise DataError(
                    f"sample {index} needs scan {scan_id}, which cannot be read: {error}\nRepair the scan "
                    "and resume, or begin a new run that leaves it out (`exclude` in [data])"
                ) from error
            if sample is not None:
                return sample
        raise DataError(
            f"sample {index}: {_MAX_SCANS} scans drawn in a row show no mask of at least "
            f"{self._config.min_mask_voxels} voxels in both views: {', '.join(sorted(set(drawn)))}. Lower "
            "min_mask_voxels, enlarge the crop, or leave these scans out"
        )

    def _read_paired(self, table: PairTable, index: int, generator: np.random.Generator) -> Sample | None:
        """Return a sample of two scans, or None if no pair that was drawn shows enough regions."""
        try:
            return draw_paired_sample(table, self._config, self._scan, index, generator)
        except (StorageError, OSError) as error:
            raise DataError(
                f"sample {index} needs two scans of {self._config.pairs}, one of which cannot be read: "
                f"{error}\nRepair the scan and resume"
            ) from error

    @cached_property
    def _pairs(self) -> PairTable | None:
        """The pairs to draw from; checked once against the digest with which the run began."""
        config = self._config
        if not config.pairs:
            return None
        table = read_pair_table(config.pairs, self._known.digests)
        if config.pairs_digest and config.pairs_digest != table.digest:
            raise DataError(f"{config.pairs}: pairs were made anew since the run began. Begin a new run")
        return table

    def _scan(self, scan_id: str) -> Scan:
        if scan_id not in self._scans:
            scan = self._known.open(scan_id)
            self._kept_bytes += _order_bytes(scan)
            self._scans[scan_id] = scan
            while self._kept_bytes > _MAX_CACHED_BYTES and len(self._scans) > 1:
                self._kept_bytes -= _order_bytes(self._scans.popitem(last=False)[1])
        self._scans.move_to_end(scan_id)
        return self._scans[scan_id]

    def _read_from(self, scan: Scan, index: int, generator: np.random.Generator) -> Sample | None:
        """Return a sample of this scan, or None if no pair of views that was drawn shows any mask."""
        wanted = self._config.masks_per_sample - 1
        best: ViewPair | None = None
        for _ in range(_MAX_VIEW_PAIRS):
            pair = self._draw_view_pair(scan, generator)
            if pair is not None and (best is None or len(pair.ids) > len(best.ids)):
                best = pair
            if best is not None and len(best.ids) >= wanted:
                break
        if best is None:
            return None
        chosen = self._draw_masks(scan, best, wanted, generator)
        # If too few are visible, they are repeated in the same order, so that K is the same in every sample.
        masks = np.resize(best.ids[chosen], wanted)
        words = words_of(scan, masks, best)
        intensity = scan.intensity
        low = int(np.clip(round((intensity.low - scan.offset) / scan.scale), -32_768, 32_767))
        codes = scan.image_codes(best.region.slices, level=best.level)
        return Sample(
            index=index,
            scan_id=scan.id,
            cuts=(
                best.cut(0, codes, padding=low, image=True),
                best.cut(1, codes, padding=low, image=True),
            ),
            words=(
                best.cut(0, words, padding=0, image=False),
                best.cut(1, words, padding=0, image=False),
            ),
            scale=scan.scale / intensity.std,
            offset=(scan.offset - intensity.mean) / intensity.std,
            padding_code=low,
            views=best.views,
            masks=tuple(int(mask) for mask in masks),
        )

    def _draw_masks(
        self, scan: Scan, pair: ViewPair, count: int, generator: np.random.Generator
    ) -> NDArray[np.int64]:
        """Return indices into the visible proposals of a pair of views, at most `count`."""
        sources = scan.proposals.source[pair.ids]
        groups = self._groups(scan)
        if groups is None:
            return draw_masks(pair.voxels, sources, count, generator)
        return draw_by_group(pair.voxels, sources, groups, count, generator)

    def _groups(self, scan: Scan) -> SourceGroups | None:
        """Return the groups of a scan's sources; None without weights."""
        weights = self._config.source_weights
        return groups_of(scan.sources, imported_sources(scan.digests), weights) if weights else None

    def _drawable(self, scan: Scan, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return those of some proposals whose source has a weight above 0."""
        groups = self._groups(scan)
        return ids if groups is None else ids[groups.may_be_drawn(scan.proposals.source[ids])]

    def _draw_view_pair(self, scan: Scan, generator: np.random.Generator) -> ViewPair | None:
        """Draw a pair of views and find the proposals visible in both; None if there are none."""
        fraction = self._config.whole_fraction
        # No number is drawn if the fraction is 0, so that samples are those of versions without this setting.
        if fraction > 0 and generator.random() < fraction:
            return self._draw_whole_scan_pair(scan, generator)
        return self._draw_crop_pair(scan, generator)

    def _draw_whole_scan_pair(self, scan: Scan, generator: np.random.Generator) -> ViewPair | None:
        """Draw two views of the whole scan, or of large parts of it, that are resampled to the window."""
        config, window = self._config, self._config.crop_zyx
        drawn = draw_scan_views(
            scan.shape,
            max_move=config.whole_move_fraction,
            wide_fraction=config.wide_fraction,
            generator=generator,
        )
        sides = zip(*(level_window(view, scan.shape, window) for view in drawn), strict=True)
        level = scan.level_for([max(pair) for pair in sides])
        factors, whole_scan = level.factors_zyx, whole(level.shape_zyx)
        first, second = (
            ResampledCut(view=view.grown(window, config.cut_zyx), shape=config.cut_zyx, factors=factors)
            for view in drawn
        )
        region = first.box.enclose(second.box).intersect(whole_scan)
        views = (drawn[0].box_at(factors), drawn[1].box_at(factors))
        clipped = [view.intersect(whole_scan) for view in views]
        if not all(view.voxels for view in clipped):
            return None
        ids = self._drawable(scan, np.arange(len(scan.proposals.voxels), dtype=np.int64))
        atoms = {layer: scan.atoms(layer, region.slices, level=level) for layer in range(scan.num_layers)}
        ratios = np.array([[view.voxel_ratio(window, factors)] for view in drawn])
        voxels = np.rint(visible_in(scan, ids, atoms, clipped, region) * ratios).astype(np.int64)
        most = config.max_mask_fraction * math.prod(window)
        visible = (voxels >= config.min_mask_voxels).all(axis=0) & (voxels <= most).any(axis=0)
        if not visible.any():
            return None
        return ViewPair(
            level=level,
            views=views,
            cuts=(first, second),
            region=region,
            atoms=atoms,
            ids=ids[visible],
            voxels=voxels.min(axis=0)[visible],
        )

    def _draw_crop_pair(self, scan: Scan, generator: np.random.Generator) -> ViewPair | None:
        """Draw two overlapping crops at the stored resolution."""
        config = self._config
        views = draw_crop_views(
            scan.shape, config.crop_zyx, min_overlap=config.min_view_overlap, generator=generator
        )
        clipped = [view.intersect(whole(scan.shape)) for view in views]
        ids = self._drawable(scan, candidates(scan.proposals, clipped, config.min_mask_voxels))
        if not len(ids):
            return None
        cuts = [view.grow(config.margin_zyx) for view in views]
        region = cuts[0].enclose(cuts[1]).intersect(whole(scan.shape))
        layers = {int(layer) for layer in np.unique(scan.proposals.layer[ids])}
        atoms = {layer: scan.atoms(layer, region.slices) for layer in sorted(layers)}
        voxels = visible_in(scan, ids, atoms, clipped, region)
        most = config.max_mask_fraction * np.array([[view.voxels] for view in clipped])
        visible = (voxels >= config.min_mask_voxels).all(axis=0) & (voxels <= most).any(axis=0)
        if not visible.any():
            return None
        return ViewPair(
            level=scan.level(0),
            views=views,
            cuts=(cuts[0], cuts[1]),
            region=region,
            atoms=atoms,
            ids=ids[visible],
            voxels=voxels.min(axis=0)[visible],
        )


def _order_bytes(scan: Scan) -> int:
    """Return the bytes of the orders that an opened scan keeps in memory."""
    return sum(row.nbytes for layer in range(scan.num_layers) for row in scan.orders(layer))
