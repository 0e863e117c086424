"""Samples for training on labels: crops or views of labelled scans, with some structures as bits of words.

*Reads* of one scan: its whole label map once per process (at most `_POINTS` voxels of each structure are
kept), then the codes and labels of each cut. *Gives* batches of codes and words and, after augmentation on
the device, images and masks.

Sample i of a run depends on the seed and i only, as in pretraining. If there are many structures, a sample
uses a few: the one it is centred on, if any, and others chosen uniformly. The expected mask of a structure
that the crop lacks is empty.

A sample is a crop at the stored resolution or, with `whole_fraction`, a view resampled to the same number of
voxels: of the whole scan, or a fine view of some structures (`training.data.fine_views`), the two kinds of
views with which a fine-tuned network predicts (`training.inference.prediction`).

*Valid* for complete label maps: if a structure is visible but not labelled, the network learns that it is
absent. Some scans may have labels that registration carried over to them (`carried_labels`).
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from storage import Level, Scan, StorageError, Store, StorePath
from training.data import (
    MAX_MASKS,
    BatchReader,
    Box,
    Cuts,
    DataConfig,
    KnownScans,
    ResampledCut,
    SampleLoader,
    ScanView,
    Share,
    Slices,
    Triple,
    ViewAugmentation,
    apply_drawn,
    box_of_mask,
    cut_out,
    draw,
    draw_scan_views,
    fine_views,
    generator_of,
    jittered,
    level_window,
    make_choice,
    opened_store,
    stack,
    unpack_words,
    whole,
)
from training.errors import ConfigError, DataError
from training.finetuning.carried_labels import CarriedMaps
from training.inference import Structure

_POINTS = 512
"""Largest number of voxels per structure and scan that crops are placed around; drawn once."""


@dataclass(frozen=True, kw_only=True)
class LabelledDataConfig:
    """The table [data]: sizes and structures of samples; the defaults are for the published network."""

    crop_voxels: int | tuple[int, int, int] = 128
    """Voxels of a crop along z, y, x (or along all three); multiples of 16, at most 128 (network's limit)."""
    cut_voxels: int | tuple[int, int, int] = 168
    """Voxels of the cut around a crop, from which the crop is warped; larger by an even number, or equal."""
    foreground_fraction: float = 0.67
    """Fraction of samples whose crop is placed around a voxel of a structure; others are placed anywhere."""
    max_window_voxels: int = 0
    """Above 0, the size of a view is that of the checkpoint's training if it was trained on whole scans, else
    the best window of at most this many voxels for the training scans, instead of `crop_voxels`."""
    choose_window: bool = False
    """Whether the window is chosen even if the checkpoint has one. With a larger `max_window_voxels`, many
    structures that fill the scan, as in a head, are drawn better, in several times the time."""
    whole_fraction: float = 0.0
    """Above 0, samples are views of any scale, not crops: this fraction of them shows the whole scan, or a
    large part of it, and the others are fine views of some structures, as in prediction."""
    whole_move_fraction: float = 0.15
    """Largest shift of a view of the whole scan along y and x, as a fraction of the scan's length; along z it
    is half of this."""
    wide_fraction: float = 0.5
    """Fraction of the whole-scan samples that show a box of 0.4 to 1.3 of the scan along each axis, anywhere,
    so that the position of a structure alone does not predict it."""
    max_fine_windows: int = 8
    """Largest number of fine views of a target, after the view of the whole scan."""
    structures_at_once: int = 12
    """Largest number of structures per sample, 1 to 15; if there are more, each sample uses some of them."""
    dataset_weights: dict[str, float] = field(default_factory=dict)
    """Relative number of samples per data set. Empty: the number of its scans."""

    def __post_init__(self) -> None:
        if not 0 <= self.foreground_fraction <= 1:
            raise ConfigError(f"foreground_fraction must be 0 to 1, got {self.foreground_fraction}")
        if not 1 <= self.structures_at_once < MAX_MASKS:
            raise ConfigError(
                f"structures_at_once must be 1 to {MAX_MASKS - 1}, got {self.structures_at_once}: more "
                "structures take turns"
            )
        if self.max_window_voxels < 0 or self.max_fine_windows < 0:
            raise ConfigError(
                f"max_window_voxels and max_fine_windows must be 0 or more, got {self.max_window_voxels} and "
                f"{self.max_fine_windows}"
            )
        for name in ("whole_fraction", "whole_move_fraction", "wide_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must be 0 to 1, got {getattr(self, name)}")
        if any(side % 16 or not 16 <= side <= 128 for side in self.boxes.crop_zyx):
            raise ConfigError(f"crop_voxels must be multiples of 16, at most 128, got {self.crop_voxels}")

    @property
    def boxes(self) -> DataConfig:
        """The sizes of crops and cuts as a `DataConfig`, which checks them."""
        return DataConfig(
            crop_voxels=self.crop_voxels, cut_voxels=self.cut_voxels, dataset_weights=self.dataset_weights
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledSample:
    """A cut of one scan with its structures."""

    index: int
    """Number of the sample in the run."""
    scan_id: str
    """The scan it is from."""
    codes: NDArray[np.int16]
    """Image codes, (z, y, x)."""
    words: NDArray[np.int16]
    """(z, y, x): bit k is structure structures[k]; 0 outside the scan."""
    structures: tuple[int, ...]
    """Indices into the list of structures, ascending."""
    scale: float
    """Z-score units per code step."""
    offset: float
    """Z-score of code 0."""
    padding_code: int
    """Value of `codes` outside the scan."""
    crop: Box | ScanView
    """The unwarped crop or view, in voxels of the scan."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledBatch(Cuts):
    """Cuts of B scans before augmentation; like `Batch` of pretraining, but with one view."""

    codes: Tensor
    """int16 (B, 1, Z, Y, X): cuts; z-score = code * scale + offset."""
    words: Tensor
    """int16 (B, Z, Y, X): cuts; bit k is structure `structures[:, k]`."""
    structures: Tensor
    """int64 (B, k): indices into the list of structures, one per bit."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledViews:
    """Augmented crops with the masks of their structures, on the training device."""

    image: Tensor
    """float32 (B, 1, Z, Y, X), z-scores."""
    masks: Tensor
    """bool (B, k, Z, Y, X); a mask is empty if the crop lacks the structure."""
    structures: Tensor
    """int64 (B, k): indices of these structures in the list of structures."""


def augment_labelled(batch: LabelledBatch, config: ViewAugmentation) -> LabelledViews:
    """Return the augmented crops of a batch, on the batch's device.

    The result is a function of the batch's data, seed and sample indices.
    """
    generators = [generator_of(batch.seed, int(index), "target") for index in batch.sample_indices]
    image, words = apply_drawn(batch.codes, batch.words, batch, draw(config, generators))
    masks = unpack_words(words, batch.structures.shape[1] + 1)[:, :-1]
    return LabelledViews(image=image, masks=masks, structures=batch.structures)


class LabelReader:
    """Reads samples of a run. Holds no open files between reads, so that it can be pickled."""

    def __init__(
        self,
        store: str | StorePath | Store,
        scan_ids: Sequence[str],
        label: str,
        structures: Sequence[Structure],
        config: LabelledDataConfig,
        *,
        seed: int,
        carried: CarriedMaps | None = None,
    ) -> None:
        """Open the store; the label maps of some scans are those of `carried`, not their own."""
        found = opened_store(store)
        self._known = KnownScans(found, scan_ids)
        self._choice = make_choice((found.entries[scan_id] for scan_id in scan_ids), config.dataset_weights)
        self._label = label
        self._carried = carried or CarriedMaps(Path(), ())
        self._structures = tuple(structures)
        self._config = config
        self._seed = seed
        self._places: dict[str, _Places] = {}

    def read(self, index: int) -> LabelledSample:
        """Return sample `index` of the run.

        Raises:
            DataError: A scan that it needs is damaged, missing or replaced.
        """
        generator = generator_of(self._seed, index, "scan")
        scan_id = self._choice.draw(generator)
        try:
            return self._read_from(self._known.open(scan_id), index, generator)
        except (StorageError, OSError) as error:
            raise DataError(
                f"sample {index} needs scan {scan_id}, which cannot be read: {error}\nRepair the scan and "
                "resume, or begin a new run without it"
            ) from error

    def _read_from(self, scan: Scan, index: int, generator: np.random.Generator) -> LabelledSample:
        """Return a sample of this scan: a view if whole scans are shown, else a crop."""
        config = self._config
        crop: Box | ScanView
        if config.whole_fraction > 0:
            centre, crop = self._draw_view(scan, generator)
            chosen = self._draw_structures(centre, generator)
            codes, words, low = self._resampled(scan, crop, self._lookup(chosen))
        else:
            centre, crop = self._draw_crop(scan, generator)
            chosen = self._draw_structures(centre, generator)
            codes, words, low = self._cropped(scan, crop, self._lookup(chosen))
        intensity = scan.intensity
        return LabelledSample(
            index=index,
            scan_id=scan.id,
            codes=codes,
            words=words,
            structures=chosen,
            scale=scan.scale / intensity.std,
            offset=(scan.offset - intensity.mean) / intensity.std,
            padding_code=low,
            crop=crop,
        )

    def _labels(
        self, scan: Scan, region: Box | None = None, level: Level | None = None
    ) -> NDArray[np.uint8] | NDArray[np.uint16]:
        """Return the labels of a scan that are trained on: its own, or those carried over to it."""
        return self._carried.labels(scan, self._label, region.slices if region else None, level)

    def _draw_crop(self, scan: Scan, generator: np.random.Generator) -> tuple[int | None, Box]:
        """Draw a crop, around a structure (its index comes first) or anywhere (None)."""
        crop = self._config.boxes.crop_zyx
        points = self._places_of(scan).points
        # All numbers are drawn, also unused ones: a changed fraction does not change later draws.
        around = generator.random() < self._config.foreground_fraction
        picks = generator.random(2)
        inside, anywhere = generator.random(3), generator.random(3)
        if around and points:
            centre = sorted(points)[int(picks[0] * len(points))]
            voxel = points[centre][int(picks[1] * len(points[centre]))]
            return centre, box_around(voxel, scan.shape, crop, inside)
        return None, box_anywhere(scan.shape, crop, anywhere)

    def _draw_view(self, scan: Scan, generator: np.random.Generator) -> tuple[int | None, ScanView]:
        """Draw a view of the whole scan (None), or a fine view of a structure (its index comes first)."""
        config, places = self._config, self._places_of(scan)
        whole_scan = generator.random() < config.whole_fraction
        picks = generator.random(2)
        _, view = draw_scan_views(
            scan.shape,
            max_move=config.whole_move_fraction,
            wide_fraction=config.wide_fraction,
            generator=generator,
        )
        boxes = [places.boxes[k] for k in sorted(places.boxes)]
        window = config.boxes.crop_zyx
        fine = fine_views(boxes, scan.shape, window, most=config.max_fine_windows)
        if whole_scan or not fine:
            return None, view
        centre = sorted(places.points)[int(picks[0] * len(places.points))]
        voxel = places.points[centre][int(picks[1] * len(places.points[centre]))]
        showing = [view for view in fine if view.contains((int(voxel[0]), int(voxel[1]), int(voxel[2])))]
        return centre, jittered((showing or fine)[0], generator)

    def _cropped(
        self, scan: Scan, crop: Box, lookup: NDArray[np.int16]
    ) -> tuple[NDArray[np.int16], NDArray[np.int16], int]:
        """Return codes and words of the cut around a crop, and the code outside the scan."""
        low = _lowest_code(scan)
        cut = crop.grow(self._config.boxes.margin_zyx)
        region = cut.intersect(whole(scan.shape))
        words = lookup[self._labels(scan, region)]
        codes = cut_out(scan.image_codes(region.slices), region, cut, low)
        return codes, cut_out(words, region, cut, 0), low

    def _resampled(
        self, scan: Scan, view: ScanView, lookup: NDArray[np.int16]
    ) -> tuple[NDArray[np.int16], NDArray[np.int16], int]:
        """Return codes and words of the cut around a view, and the code outside the scan."""
        low, sizes = _lowest_code(scan), self._config.boxes
        level = scan.level_for(level_window(view, scan.shape, sizes.crop_zyx))
        cut = ResampledCut(
            view=view.grown(sizes.crop_zyx, sizes.cut_zyx), shape=sizes.cut_zyx, factors=level.factors_zyx
        )
        region = cut.box.intersect(whole(level.shape_zyx))
        words = lookup[self._labels(scan, region, level)]
        codes = scan.image_codes(region.slices, level=level)
        return (
            cut.take(codes, region, padding=low, image=True),
            cut.take(words, region, padding=0, image=False),
            low,
        )

    def _draw_structures(self, centre: int | None, generator: np.random.Generator) -> tuple[int, ...]:
        """Draw the structures of a sample: all, or some that include the one the crop is centred on."""
        count = min(self._config.structures_at_once, len(self._structures))
        order = [int(k) for k in generator.permutation(len(self._structures))]
        if centre is not None:
            order = [centre, *(k for k in order if k != centre)]
        return tuple(sorted(order[:count]))

    def _lookup(self, chosen: Sequence[int]) -> NDArray[np.int16]:
        """Return the word of every label value, int16 (65536,)."""
        lookup = np.zeros(65_536, np.int16)
        for bit, k in enumerate(chosen):
            lookup[list(self._structures[k].values)] |= 1 << bit
        return lookup

    def _places_of(self, scan: Scan) -> _Places:
        """Return the positions of a scan's structures; the same in every process."""
        if scan.id not in self._places:
            labels = self._labels(scan)
            generator = np.random.default_rng(zlib.crc32(scan.id.encode()))
            points: dict[int, NDArray[np.int16]] = {}
            boxes: dict[int, Slices] = {}
            for k, structure in enumerate(self._structures):
                mask = structure.mask(labels)
                flat = np.flatnonzero(mask)
                if len(flat) > _POINTS:
                    flat = flat[np.sort(generator.choice(len(flat), _POINTS, replace=False))]
                box = box_of_mask(mask)
                if box is not None:
                    points[k] = np.stack(np.unravel_index(flat, labels.shape), axis=1).astype(np.int16)
                    boxes[k] = box
            self._places[scan.id] = _Places(points=points, boxes=boxes)
        return self._places[scan.id]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Places:
    """Positions of the structures in a scan, by index of the structure; only those that it has."""

    points: Mapping[int, NDArray[np.int16]]
    """Random voxels, (n, 3) each."""
    boxes: Mapping[int, Slices]
    """The smallest box around each."""


def _lowest_code(scan: Scan) -> int:
    """Return the code of the lowest value, which is outside the scan."""
    return int(np.clip(round((scan.intensity.low - scan.offset) / scan.scale), -32_768, 32_767))


def box_around(voxel: NDArray[np.int16], shape: Triple, crop: Triple, draws: NDArray[np.float64]) -> Box:
    """Return a crop with a voxel in its middle half, or nearer to its border if the scan ends there.

    Along each axis the crop lies inside the scan or, if it is longer, contains the scan.

    Args:
        voxel: (3,), (z, y, x).
        shape: Voxels of the scan.
        crop: Voxels of the crop.
        draws: Uniform random numbers (3,) in 0..1, which determine the position.
    """
    start = voxel - np.floor((0.25 + 0.5 * draws) * crop).astype(np.int64)
    return _box(np.clip(start, *_range(shape, crop)), crop)


def box_anywhere(shape: Triple, crop: Triple, draws: NDArray[np.float64]) -> Box:
    """Return a crop with a uniformly random position; arguments as for `box_around`."""
    low, high = _range(shape, crop)
    return _box(low + np.floor(draws * (high - low + 1)).astype(np.int64), crop)


def _range(shape: Triple, crop: Triple) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the smallest and the largest start of a crop along each axis."""
    difference = np.subtract(shape, crop)
    return np.minimum(0, difference), np.maximum(0, difference)


def _box(start: NDArray[np.int64], size: Triple) -> Box:
    z, y, x = (int(value) for value in start)
    return Box(start=(z, y, x), stop=(z + size[0], y + size[1], x + size[2]))


def collate_labelled(
    samples: Sequence[LabelledSample], *, config: LabelledDataConfig, seed: int
) -> LabelledBatch:
    """Return samples as one batch."""
    return LabelledBatch(
        codes=stack([sample.codes for sample in samples])[:, None],
        words=stack([sample.words for sample in samples]),
        structures=torch.tensor([sample.structures for sample in samples], dtype=torch.int64),
        scale=torch.tensor([sample.scale for sample in samples], dtype=torch.float32),
        offset=torch.tensor([sample.offset for sample in samples], dtype=torch.float32),
        padding_codes=torch.tensor([sample.padding_code for sample in samples], dtype=torch.int16),
        sample_indices=torch.tensor([sample.index for sample in samples], dtype=torch.int64),
        scan_ids=tuple(sample.scan_id for sample in samples),
        seed=seed,
        crop_zyx=config.boxes.crop_zyx,
    )


def make_labelled_loader(
    reader: LabelReader,
    config: LabelledDataConfig,
    share: Share,
    *,
    seed: int,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> SampleLoader[LabelledBatch]:
    """Return a loader of the batches of one rank; like `training.data.make_loader`, for labelled samples.

    Args:
        reader: Reads the samples.
        config: Sizes of crops.
        share: The samples of this rank.
        seed: Seed of the run.
        num_workers: Number of reading processes; 0 reads in this process.
        pin_memory: Whether batches are in page-locked memory, for training on a GPU.
    """
    collate = partial(collate_labelled, config=config, seed=seed)
    return SampleLoader(BatchReader(reader, collate, share), num_workers=num_workers, pin=pin_memory)
