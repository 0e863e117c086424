"""Random choices of a sample: which scan and which masks. Pure functions of arrays and a generator.

All choices of sample i of a run are drawn from its own generators, `generator_of(seed, i, ...)`, so that they
do not depend on workers, ranks or restarts. Scans are drawn with replacement, by the weight of their data
set. Masks are drawn without replacement among those visible in both views: uniformly over octaves of volume,
within an octave uniformly over sources, within a source uniformly. The last of the K masks of a sample is all
ones and is not drawn.

*Valid* for up to 16 masks per sample (15 are drawn, with one bit of a word each).
"""

from __future__ import annotations

import difflib
import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from storage import IndexEntry, Proposals
from storage.records import Rows
from training.data.boxes import Box, Triple
from training.data.windows import STRIDE_VOXELS
from training.errors import ConfigError, DataError

MAX_MASKS = 16
"""Largest number of masks per sample, including the mask of all ones."""

STREAMS = ("scan", "reference", "target")
"""Independent random streams of a sample: an additional draw from one does not change the others."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which samples are drawn, and their sizes; the defaults are those of the published recipe."""

    crop_voxels: int | tuple[int, int, int] = 128
    """Voxels of a view along z, y, x (or along all three); multiples of 16, at most 128 (network's limit)."""
    cut_voxels: int | tuple[int, int, int] = 168
    """Voxels of the cut around a view, from which the view is warped; larger by an even number, or equal."""
    min_view_overlap: float = 0.67
    """Smallest fraction of a view's box that the other view covers, 0..1."""
    masks_per_sample: int = 13
    """Number of masks K of a sample, 2 to 16; the last mask is all ones."""
    max_window_voxels: int = 0
    """Above 0, the size of a view is chosen for the store, instead of `crop_voxels`: it is the best window of
    at most this many voxels for showing whole scans (`training.data.whole_scans.window_for`)."""
    early_window_voxels: int = 0
    """The largest number of voxels of a window in the first steps (`early_fraction`), chosen for the store as
    with `max_window_voxels`. Small windows cost less time, and the network learns the task sooner."""
    early_fraction: float = 0.0
    """Fraction of the steps, from the first one on, with windows of `early_window_voxels` and without the
    views of `wide_fraction`."""
    whole_fraction: float = 0.0
    """Fraction of samples whose views show the whole scan, or large parts of it; all others are crops."""
    whole_move_fraction: float = 0.15
    """Largest shift of a view of the whole scan along y and x, as a fraction of the scan's length; along z it
    is half of this."""
    wide_fraction: float = 0.0
    """Fraction of the whole-scan samples whose views are independent boxes of 0.4 to 1.3 of the scan along
    each axis, centred anywhere in the scan, so that the position of a mask alone does not predict it."""
    pairs: str = ""
    """Folder that `mass pair` has written, for samples of two scans of different cases; empty for none."""
    pair_fraction: float = 0.0
    """Fraction of samples that are of two scans; `--pairs` sets it to 0.5 where it is 0."""
    pairs_digest: str = ""
    """Digest of the pairs; a run sets it when it begins, and then accepts no other pairs."""
    min_mask_voxels: int = 100
    """A mask is visible if it has at least this many voxels in each of the two views."""
    max_mask_fraction: float = 0.9
    """A mask is not used if it covers more than this fraction of the scan's voxels in each of the two views,
    because it would be nearly the mask of all ones."""
    dataset_weights: dict[str, float] = field(default_factory=dict)
    """Relative number of samples per data set. Empty: the number of its scans. 0 leaves a data set out."""
    source_weights: dict[str, float] = field(default_factory=dict)
    """Relative number of masks drawn from the scan's own proposals (`own`) and from each imported source, by
    its name; 1 for those that are not named, 0 leaves a source out. Empty: an imported source counts as one
    of the scan's many sources."""
    splits: tuple[str, ...] = ()
    """Splits of the store to train on; empty for all."""
    exclude: tuple[str, ...] = ()
    """Ids of scans that are never trained on."""
    holdout_fraction: float = 0.0
    """Fraction of the scans kept out of training, 0..1, chosen by a hash of the case (without one, of the
    id)."""

    def __post_init__(self) -> None:
        for crop, cut in zip(self.crop_zyx, self.cut_zyx, strict=True):
            if crop < 1 or cut < crop or (cut - crop) % 2:
                raise ConfigError(
                    "cut_voxels must exceed crop_voxels by an even number or none along each axis, got "
                    f"{self.cut_voxels} and {self.crop_voxels}"
                )
        if not 2 <= self.masks_per_sample <= MAX_MASKS:
            raise ConfigError(f"masks_per_sample must be 2 to {MAX_MASKS}, got {self.masks_per_sample}")
        if self.min_mask_voxels < 1:
            raise ConfigError(f"min_mask_voxels must be at least 1, got {self.min_mask_voxels}")
        for name in ("max_window_voxels", "early_window_voxels"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if 0 < self.early_window_voxels < STRIDE_VOXELS**3:
            raise ConfigError(
                f"early_window_voxels must be 0 or at least {STRIDE_VOXELS**3}, "
                f"got {self.early_window_voxels}"
            )
        if self.early_fraction and not self.early_window_voxels:
            raise ConfigError(
                f"early_fraction is {self.early_fraction}, so early_window_voxels must be above 0"
            )
        for name in (
            "min_view_overlap",
            "max_mask_fraction",
            "holdout_fraction",
            "whole_fraction",
            "whole_move_fraction",
            "wide_fraction",
            "early_fraction",
            "pair_fraction",
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must be 0 to 1, got {getattr(self, name)}")
        if bool(self.pairs) != bool(self.pair_fraction):
            raise ConfigError(
                f"pairs is {self.pairs!r} and pair_fraction {self.pair_fraction}: set both, or neither"
            )
        if self.pairs and not self.whole_fraction:
            raise ConfigError(
                "pairs of scans are shown whole: choose --recipe whole, or set whole_fraction above 0"
            )
        weights = self.dataset_weights.values()
        if any(weight < 0 for weight in weights) or (weights and not any(weights)):
            raise ConfigError(f"dataset_weights must be >= 0 and not all 0, got {self.dataset_weights}")
        if not all(math.isfinite(weight) and weight >= 0 for weight in self.source_weights.values()):
            raise ConfigError(f"source_weights must be >= 0, got {self.source_weights}")

    @property
    def crop_zyx(self) -> Triple:
        """Voxels of a view along each axis."""
        return _triple(self.crop_voxels)

    @property
    def cut_zyx(self) -> Triple:
        """Voxels of a cut along each axis."""
        return _triple(self.cut_voxels)

    @property
    def margin_zyx(self) -> Triple:
        """Margin in voxels of a cut around its view, on each side of each axis."""
        z, y, x = ((cut - crop) // 2 for cut, crop in zip(self.cut_zyx, self.crop_zyx, strict=True))
        return z, y, x


def generator_of(seed: int, sample: int, stream: str) -> np.random.Generator:
    """Return the random generator of one stream of a sample.

    Args:
        seed: Seed of the run.
        sample: Number of the sample in the run.
        stream: One of STREAMS.
    """
    return np.random.default_rng((seed, sample, STREAMS.index(stream)))


@dataclass(frozen=True, kw_only=True)
class ScanSplit:
    """The scans of a store that a run trains on, and those it keeps out."""

    training: tuple[str, ...]
    """Ids of the training scans, sorted."""
    holdout: tuple[str, ...]
    """Ids of the scans kept out by `holdout_fraction` for evaluation, sorted."""


def split_scans(entries: Mapping[str, IndexEntry], config: DataConfig) -> ScanSplit:
    """Return the scans to train on, and those held out.

    Whether a scan is held out depends on its case alone (on its id, where it has none). So the scans of a
    case stay together, and adding scans does not change the choice for others.

    Args:
        entries: The index of the store, by scan id.
        config: Splits, excluded scans and the fraction to hold out.

    Raises:
        DataError: No scan is left to train on.
    """
    excluded = set(config.exclude)
    wanted = [
        scan_id
        for scan_id, entry in sorted(entries.items())
        if scan_id not in excluded and (not config.splits or entry.split in config.splits)
    ]
    held_out = {scan_id for scan_id in wanted if _share(entries[scan_id].case_key) < config.holdout_fraction}
    training = tuple(scan_id for scan_id in wanted if scan_id not in held_out)
    if not training:
        has = ", ".join(sorted({repr(entry.split) for entry in entries.values()})) or "no scans"
        raise DataError(
            f"no scan is left to train on: the store has {len(entries)} scans (splits {has}), splits "
            f"{list(config.splits)} and exclude leave {len(wanted)}, holdout_fraction keeps out "
            f"{len(held_out)}. Prepare more scans or change the settings"
        )
    return ScanSplit(training=training, holdout=tuple(sorted(held_out)))


def cases_in_turn(scan_ids: Iterable[str], entries: Mapping[str, IndexEntry]) -> list[str]:
    """Return scans in turns: the first of each case, then the second of each case, and so on.

    So the first n of them are of as many cases as can be. Scans without a case keep their order.

    Args:
        scan_ids: Ids, in the order that is kept within a turn.
        entries: The index of the store, by scan id.
    """
    times = Counter[str]()
    turns: dict[int, list[str]] = {}
    for scan_id in scan_ids:
        key = entries[scan_id].case_key
        turns.setdefault(times[key], []).append(scan_id)
        times[key] += 1
    return [scan_id for turn in turns.values() for scan_id in turn]


def of_other_cases(
    scan_ids: Iterable[str], others: Iterable[str], entries: Mapping[str, IndexEntry]
) -> list[str]:
    """Return the scans that share no case with any of `others`, in their order."""
    cases = {entries[scan_id].case_key for scan_id in others}
    return [scan_id for scan_id in scan_ids if entries[scan_id].case_key not in cases]


@dataclass(frozen=True, kw_only=True)
class ScanChoice:
    """The scans of a run, by data set, and how often each data set is drawn."""

    scan_ids: tuple[tuple[str, ...], ...]
    """Ids of the scans of each data set."""
    cumulative: tuple[float, ...]
    """Cumulative probability of the data sets; the last is 1."""

    def draw(self, generator: np.random.Generator) -> str:
        """Draw a scan and return its id."""
        dataset = int(np.searchsorted(self.cumulative, generator.random(), side="right"))
        members = self.scan_ids[min(dataset, len(self.scan_ids) - 1)]
        return members[int(generator.integers(len(members)))]


def make_choice(entries: Iterable[IndexEntry], weights: Mapping[str, float]) -> ScanChoice:
    """Return the probabilities with which scans are drawn.

    Args:
        entries: The scans of a run.
        weights: Relative number of samples per data set; empty for the number of its scans.

    Raises:
        DataError: There are no scans, or the weights and the scans do not have the same data sets.
    """
    members: dict[str, list[str]] = {}
    for entry in sorted(entries, key=lambda entry: entry.scan_id):
        members.setdefault(entry.dataset, []).append(entry.scan_id)
    if not members:
        raise DataError("no scans to draw from: the store is empty. `mass prepare RAW STORE` fills it")
    for name in [*weights, *members] if weights else []:
        if name not in members or name not in weights:
            near = difflib.get_close_matches(name, members if name in weights else weights, n=1)
            where = "no scan is of it" if name in weights else "it has scans but no weight"
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise DataError(f"dataset_weights and data set {name!r}: {where}{hint}. Name each data set once")
    names = [name for name in sorted(members) if not weights or weights[name] > 0]
    shares = np.array([weights[name] if weights else len(members[name]) for name in names], dtype=float)
    return ScanChoice(
        scan_ids=tuple(tuple(members[name]) for name in names),
        cumulative=tuple(float(share) for share in np.cumsum(shares) / shares.sum()),
    )


def candidates(proposals: Proposals, views: Sequence[Box], min_voxels: int) -> NDArray[np.int64]:
    """Return the indices (n,) of the proposals that may be visible in every view, judged by their boxes.

    A fast first test: every proposal with `min_voxels` voxels in each view is among them.

    Args:
        proposals: All proposals of the scan.
        views: Boxes of the scan.
        min_voxels: Smallest number of visible voxels.
    """
    boxes = proposals.boxes
    possible = proposals.voxels >= min_voxels
    for view in views:
        sizes = np.minimum(boxes[:, 3:], view.stop) - np.maximum(boxes[:, :3], view.start)
        possible &= np.maximum(sizes, 0).prod(axis=1, dtype=np.int64) >= min_voxels
    return np.flatnonzero(possible)


def visible_voxels(
    ids: NDArray[np.int64],
    proposals: Proposals,
    orders: Sequence[Rows],
    counts: Sequence[NDArray[np.int64] | None],
) -> NDArray[np.int64]:
    """Return the exact number of voxels of proposals in each of two views, (2, n).

    A proposal is an interval of its order of atoms, so that its voxel count is the difference of two prefix
    sums along the order.

    Args:
        ids: Indices of the proposals to count, (n,).
        proposals: All proposals of the scan.
        orders: The orders (rows of atom ids) of each layer.
        counts: For each layer, (65536,): the voxel count of each atom id in the first view plus 2^32 times
            that in the second, so that one sum serves both. None for a layer without any of `ids`.
    """
    found = np.zeros(len(ids), dtype=np.int64)
    rows = proposals.order[ids]
    first = 0
    for layer_orders, layer_counts in zip(orders, counts, strict=True):
        used = np.flatnonzero(
            np.bincount(rows, minlength=first + len(layer_orders))[first:][: len(layer_orders)]
        )
        for row in used:
            assert layer_counts is not None
            here = np.flatnonzero(rows == first + row)
            sums = np.concatenate(([0], np.cumsum(layer_counts[layer_orders[row]])))
            found[here] = sums[proposals.stop[ids[here]]] - sums[proposals.start[ids[here]]]
        first += len(layer_orders)
    return np.stack([found & 0xFFFF_FFFF, found >> 32])


def draw_masks(
    voxels: NDArray[np.int64], sources: NDArray[np.int32], count: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Return up to `count` different indices into `voxels`, in random order.

    Args:
        voxels: Size of each candidate, (n,), >= 1; an octave is the sizes from one power of two to the next.
        sources: Source of each candidate, (n,).
        count: Number of draws. Each draws an octave, then a source, then a candidate, uniformly among those
            with candidates left. (This holds nearly: the probabilities are those before the first draw.)
        generator: Source of randomness.
    """
    octaves = np.frexp(voxels.astype(np.float64))[1].astype(np.int64)
    num_sources = int(sources.max()) + 1
    cells, cell_of, cell_sizes = np.unique(
        octaves * num_sources + sources, return_inverse=True, return_counts=True
    )
    sources_in = np.bincount(cells // num_sources)
    weights = 1.0 / (sources_in[octaves] * cell_sizes[cell_of])
    # Gumbel top-k: the `count` largest log(weight) + noise are a weighted draw without replacement.
    keys = np.log(weights) + generator.gumbel(size=len(voxels))
    return np.argsort(-keys, kind="stable")[:count]


def _share(case_key: str) -> float:
    return int.from_bytes(hashlib.sha256(case_key.encode()).digest()[8:16], "big") / 2**64


def _triple(value: int | tuple[int, int, int]) -> Triple:
    if isinstance(value, int):
        return value, value, value
    z, y, x = value
    return z, y, x
