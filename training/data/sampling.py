"""What a sample shows: which scan, which places, which masks. Pure: arrays and a generator in, choices out.

Everything about sample i of a run is drawn from generators of its own, `generator_of(seed, i, ...)`: no
worker, rank or restart changes it. Scans are drawn with replacement, by the weight of their data set. Masks
are drawn without replacement among those visible in both views, evenly over octaves of volume, in an octave
evenly over sources, within these evenly. One of the K masks of a sample is not drawn: the last is all ones.

*Valid* for up to 16 masks a sample (15 drawn, one bit of a word each).
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from storage import IndexEntry, Proposals
from storage.orders import Rows
from training.data.boxes import Box, Triple
from training.errors import ConfigError, DataError

MAX_MASKS = 16
"""Most masks a sample, the all-ones mask counted."""

STREAMS = ("scan", "reference", "target")
"""What is drawn apart for a sample: adding a draw to one changes none of the others."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What the samples are made of; the defaults are the published recipe's."""

    crop_voxels: int | tuple[int, int, int] = 128
    """Voxels of a view along z, y, x (or all three); multiples of 16, at most 128: what the network takes."""
    cut_voxels: int | tuple[int, int, int] = 168
    """Voxels cut around a view before it is warped; exceeds the crop by an even number, or by none."""
    min_view_overlap: float = 0.67
    """Least share of a view's box that the other view covers, 0..1."""
    masks_per_sample: int = 13
    """Masks K of a sample, 2 to 16; the last is all ones."""
    max_window_voxels: int = 0
    """Above 0: the size of a view is chosen for the store, in place of `crop_voxels`: of the windows of at
    most so many voxels the one that shows its whole scans best (`training.data.whole_scans.window_for`)."""
    whole_fraction: float = 0.0
    """Share of the samples that show the whole scan, or a large part, in one view; the others are crops."""
    whole_move_fraction: float = 0.15
    """How far a view of the whole scan is moved along y and x, as a part of its length; half along z."""
    wide_fraction: float = 0.0
    """Share of the samples of whole scans whose views are boxes of any part: 0.4 to 1.3 of the scan along
    each axis, anywhere in it, drawn independently, so that the place alone answers nothing."""
    min_mask_voxels: int = 100
    """A mask counts as visible where it has at least this many voxels in each of both views."""
    max_mask_fraction: float = 0.9
    """A mask that covers more of a view's scan voxels than this, in both, says no more than all ones."""
    dataset_weights: dict[str, float] = field(default_factory=dict)
    """Share of the samples of each data set, relative. Empty: as many as it has scans. 0 leaves one out."""
    splits: tuple[str, ...] = ()
    """Splits of the store to train on; empty takes all."""
    exclude: tuple[str, ...] = ()
    """Ids of scans never to train on."""
    holdout_fraction: float = 0.0
    """Share of the scans kept out of training, 0..1, chosen by a hash of the scan's id."""

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
        if self.max_window_voxels < 0:
            raise ConfigError(f"max_window_voxels must be 0 or more, got {self.max_window_voxels}")
        for name in (
            "min_view_overlap",
            "max_mask_fraction",
            "holdout_fraction",
            "whole_fraction",
            "whole_move_fraction",
            "wide_fraction",
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must be 0 to 1, got {getattr(self, name)}")
        weights = self.dataset_weights.values()
        if any(weight < 0 for weight in weights) or (weights and not any(weights)):
            raise ConfigError(f"dataset_weights must be >= 0 and not all 0, got {self.dataset_weights}")

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
        """Voxels that a cut exceeds its view by, on each side."""
        z, y, x = ((cut - crop) // 2 for cut, crop in zip(self.cut_zyx, self.crop_zyx, strict=True))
        return z, y, x


def generator_of(seed: int, sample: int, stream: str) -> np.random.Generator:
    """Return the generator of one stream (see STREAMS) of sample `sample` of a run."""
    return np.random.default_rng((seed, sample, STREAMS.index(stream)))


@dataclass(frozen=True, kw_only=True)
class ScanSplit:
    """Which scans of a store a run trains on."""

    training: tuple[str, ...]
    """Ids, sorted."""
    holdout: tuple[str, ...]
    """Ids kept out by `holdout_fraction`, sorted: for evaluation."""


def split_scans(entries: Mapping[str, IndexEntry], config: DataConfig) -> ScanSplit:
    """Return the scans to train on, and those held out.

    Whether a scan is held out depends on its id alone: one that is added later moves no other. Scans of one
    patient are told apart like any others; keep a patient out with `exclude` or with a split.

    Raises:
        DataError: No scan is left to train on.
    """
    excluded = set(config.exclude)
    wanted = [
        scan_id
        for scan_id, entry in sorted(entries.items())
        if scan_id not in excluded and (not config.splits or entry.split in config.splits)
    ]
    held_out = {scan_id for scan_id in wanted if _share(scan_id) < config.holdout_fraction}
    training = tuple(scan_id for scan_id in wanted if scan_id not in held_out)
    if not training:
        has = ", ".join(sorted({repr(entry.split) for entry in entries.values()})) or "no scans"
        raise DataError(
            f"no scan is left to train on: the store has {len(entries)} scans (splits {has}), splits "
            f"{list(config.splits)} and exclude leave {len(wanted)}, holdout_fraction keeps out "
            f"{len(held_out)}. Prepare more scans or change the settings"
        )
    return ScanSplit(training=training, holdout=tuple(sorted(held_out)))


@dataclass(frozen=True, kw_only=True)
class ScanChoice:
    """The scans of a run and how often each data set is drawn."""

    scan_ids: tuple[tuple[str, ...], ...]
    """Ids of the scans of each data set."""
    cumulative: tuple[float, ...]
    """Cumulative share of the data sets; the last is 1."""

    def draw(self, generator: np.random.Generator) -> str:
        """Return the id of a scan."""
        dataset = int(np.searchsorted(self.cumulative, generator.random(), side="right"))
        members = self.scan_ids[min(dataset, len(self.scan_ids) - 1)]
        return members[int(generator.integers(len(members)))]


def make_choice(entries: Iterable[IndexEntry], weights: Mapping[str, float]) -> ScanChoice:
    """Return how scans are drawn.

    Args:
        entries: The scans of a run.
        weights: Share of the samples of each data set, relative; empty: as many as it has scans.

    Raises:
        DataError: No scans, or weights and data sets that do not name each other.
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
    """Return the proposals whose boxes let them be visible in every view, (n,): cheap, and none is lost."""
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
    """Return the voxels that proposals have in each of two views, (2, n), exactly.

    A proposal is a run of its order, so its voxels are the difference of two prefix sums along it.

    Args:
        ids: Proposals, (n,).
        proposals: All of the scan.
        orders: The rows of atoms of each layer.
        counts: Voxels of each atom id of a layer in the first view and, times 2^32, in the second, (65536,):
            one sum serves both. None for a layer without ids.
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
        voxels: Size of each candidate, (n,), >= 1; candidates of one power of two are one octave.
        sources: Source of each candidate, (n,).
        count: How many to draw, one after the other: each time an octave evenly among those that candidates
            are left of (nearly: shares are those before the first draw), a source evenly, a candidate evenly.
        generator: Draws.
    """
    octaves = np.frexp(voxels.astype(np.float64))[1].astype(np.int64)
    num_sources = int(sources.max()) + 1
    cells, cell_of, cell_sizes = np.unique(
        octaves * num_sources + sources, return_inverse=True, return_counts=True
    )
    sources_in = np.bincount(cells // num_sources)
    weights = 1.0 / (sources_in[octaves] * cell_sizes[cell_of])
    # The `count` largest of log(weight) + Gumbel noise are a draw without replacement by weight.
    keys = np.log(weights) + generator.gumbel(size=len(voxels))
    return np.argsort(-keys, kind="stable")[:count]


def _share(scan_id: str) -> float:
    return int.from_bytes(hashlib.sha256(scan_id.encode()).digest()[8:16], "big") / 2**64


def _triple(value: int | tuple[int, int, int]) -> Triple:
    if isinstance(value, int):
        return value, value, value
    z, y, x = value
    return z, y, x
