"""Prompts: references with labels, encoded once, to segment any number of targets.

    references --window around each structure--> priors, averaged over windows and references  = a prompt

Reads:  images float32 (z, y, x) z-scores, reference labels uint8/uint16 (z, y, x), all of one spacing.
Writes: a `Prompt`: priors of each structure, for each flip.
Bounds: beyond the faces of a scan a window holds its lowest value, as crops do in training. Memory holds
        one window's features. Nothing is random; the network is not changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.data import (
    STRIDE_VOXELS,
    Size,
    Slices,
    box_of_mask,
    boxes_over,
    fit_window,
    hull_of,
    join_boxes,
    labels_to_window,
    take,
    take_image,
    to_window,
)
from training.engine import Precision, autocast, choose_precision
from training.errors import ConfigError, DataError
from training.network import TrainedOn

Flip: TypeAlias = tuple[int, ...]
"""Axes of (z, y, x) that are mirrored."""
Priors: TypeAlias = tuple[Tensor, ...]
"""Tokens of K masks, deepest stage first: (K, 11, C) each."""
Progress: TypeAlias = Callable[[int, int], None]
"""Called with the number of windows done, and of all windows."""
StepProgress: TypeAlias = Callable[[Literal["windows", "references"], int, int], None]
"""Called with the name of what is counted, the number done, and the number of all."""


_MAX_REFERENCE_VOXELS = 128
"""Most voxels of a reference along an axis: the size of the network's position volume."""


class InContextNet(Protocol):
    """Methods of a network that inference needs; `Iris` has them."""

    def encode(self, image: Tensor) -> Any:
        """Return the features of (B, 1, Z, Y, X)."""

    def encode_tasks(self, reference_features: Any, masks: Tensor) -> Priors:
        """Return the priors (B, K, 11, C) of masks (B, K, Z, Y, X)."""

    def decode(self, target_features: Any, priors: Any) -> Tensor:
        """Return logits (B, K, Z, Y, X)."""


WHOLE_SCAN_THRESHOLD = 0.2
"""Least probability of a labelled voxel for whole scans and one reference.

One reference leaves the network uncertain, so all probabilities are low: a threshold of 0.5 labels two thirds
as many voxels as the expert, 0.2 as many (docs/results.md).
"""


@dataclass(frozen=True, kw_only=True)
class InferenceConfig:
    """Settings of prompts and of windows over images; checked when made."""

    window_voxels: Size = (128, 128, 128)
    """Most voxels of a target window; multiples of 16. Shorter axes take a shorter window."""
    reference_voxels: Size = (128, 128, 128)
    """Most voxels of a window around a reference's structure; multiples of 16, at most 128."""
    whole_scans: bool = False
    """Whether references and targets are shown whole, each stretched over one window of `window_voxels`: as
    trained on views of whole scans. Overlap and windows around structures are then not used."""
    fine_windows: int = 0
    """Most windows that show whole scans' structures finer, around what the window of the whole scan shows;
    for prompts that were trained on both, as those of fine-tuned networks. 0 for none."""
    overlap_fraction: float = 0.5
    """Least overlap of neighbouring windows, as a fraction of the window's length."""
    max_reference_windows: int = 4
    """Most windows for a structure that is larger than a window; those that hold most of it are taken."""
    masks_at_once: int = 13
    """Most structures that are decoded together; the published training shows 13."""
    whole_mask: bool = True
    """Whether a mask of all ones is decoded together with the structures, as in every training sample."""
    windows_at_once: int = 1
    """Fewest windows in one batch. A CUDA card takes up to 4 x 128^3 voxels at once, 64 windows at most, and
    half as many where its memory is not enough."""
    mirror: bool = False
    """Whether to average over the eight mirrored copies of references and image: eight times the work."""
    precision: Precision = "auto"
    """Precision of the network (autocast): "auto" is bfloat16 where the device has it, else float32."""
    threshold: float = 0.5
    """Least probability of a labelled voxel."""
    max_accumulator_bytes: int = 1 << 30
    """Most bytes for the sums of probabilities in one pass over the image; on a CUDA card an eighth of its
    memory, if that is more."""

    def __post_init__(self) -> None:
        for name in ("window_voxels", "reference_voxels"):
            size = getattr(self, name)
            if len(size) != 3 or any(side < STRIDE_VOXELS or side % STRIDE_VOXELS for side in size):
                raise ConfigError(f"{name}: three positive multiples of {STRIDE_VOXELS} expected, got {size}")
        if max(self.reference_voxels) > 128:
            raise ConfigError(f"reference_voxels: at most 128 along an axis, got {self.reference_voxels}")
        if not 0 <= self.overlap_fraction < 1:
            raise ConfigError(f"overlap_fraction must be in [0, 1), got {self.overlap_fraction}")
        if self.fine_windows < 0:
            raise ConfigError(f"fine_windows must be at least 0, got {self.fine_windows}")
        for name in ("max_reference_windows", "masks_at_once", "windows_at_once", "max_accumulator_bytes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def flips(self) -> tuple[Flip, ...]:
        """Mirrored copies to average over; the first is not mirrored."""
        if not self.mirror:
            return ((),)
        return tuple(
            tuple(axis for axis in range(3) if bits[axis]) for bits in product((False, True), repeat=3)
        )


def inference_for(trained_on: TrainedOn, **changes: Any) -> InferenceConfig:
    """Return settings for a network with references: windows as in its training, 128^3 if not known.

    For a fine-tuned network use `Finetuned.inference`, with a higher threshold. `changes`: other fields.
    """
    crop = trained_on.crop_voxels or (128, 128, 128)
    z, y, x = (max(STRIDE_VOXELS, side - side % STRIDE_VOXELS) for side in crop)
    z_most, y_most, x_most = (min(side, _MAX_REFERENCE_VOXELS) for side in (z, y, x))
    own: dict[str, Any] = {"window_voxels": (z, y, x), "reference_voxels": (z_most, y_most, x_most)}
    if trained_on.whole_scans:
        own |= {"whole_scans": True, "threshold": WHOLE_SCAN_THRESHOLD}
    return InferenceConfig(**{**own, **changes})


@dataclass(frozen=True, kw_only=True)
class Structure:
    """A structure to segment: the voxels with one of its label values."""

    name: str
    """Its name."""
    values: tuple[int, ...]
    """Its label values in the references; not 0."""

    def mask(self, labels: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
        """Return its mask, bool, of the labels' shape."""
        if len(self.values) == 1:
            return np.asarray(labels == self.values[0])
        return np.isin(labels, self.values)


@dataclass(frozen=True, kw_only=True, eq=False)
class Reference:
    """An image with labels."""

    image: NDArray[np.float32]
    """(z, y, x) z-scores."""
    labels: NDArray[np.integer[Any]]
    """(z, y, x) on the image's grid; 0 is background."""

    def __post_init__(self) -> None:
        if self.image.ndim != 3 or self.image.shape != self.labels.shape:
            raise DataError(
                f"a reference has an image and labels (z, y, x) on one grid, got {self.image.shape} and "
                f"{self.labels.shape}"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Prompt:
    """Encoded references: they define the structures to segment in a new image."""

    structures: tuple[Structure, ...]
    """K structures that at least one reference shows, in the order of the request."""
    missing: tuple[Structure, ...]
    """Structures that no reference shows."""
    priors: tuple[Priors, ...]
    """For each of the config's flips: priors of the K structures, then, with `whole_mask`, of all ones."""

    def only(self, wanted: Sequence[Structure]) -> Prompt:
        """Return the prompt with only some of its structures."""
        kept = [place for place, structure in enumerate(self.structures) if structure in wanted]
        rows = [*kept, *range(len(self.structures), len(self.priors[0][0]))]  # all ones stays last
        return Prompt(
            structures=tuple(self.structures[place] for place in kept),
            missing=self.missing,
            priors=tuple(tuple(prior[rows] for prior in priors) for priors in self.priors),
        )


@torch.inference_mode()
def encode_references(
    net: InContextNet,
    references: Sequence[Reference],
    structures: Sequence[Structure],
    config: InferenceConfig,
    *,
    device: torch.device | str = "cpu",
) -> Prompt:
    """Return the prompt of some references; each has the same weight for the structures that it shows.

    Args:
        net: The network, on `device`, in evaluation mode.
        references: At least one.
        structures: At least one.
        config: Windows, flips and precision.
        device: Where to compute.

    Raises:
        DataError: No reference shows any of the structures.
    """
    views = [view for reference in references for view in _views(reference, structures, config)]
    totals = np.zeros(len(structures))
    for view in views:
        totals[list(view.structures)] += view.shares
    present = np.flatnonzero(totals)
    if not len(present):
        raise DataError(
            f"none of {len(references)} references shows {', '.join(s.name for s in structures)}: "
            "their masks are empty"
        )
    priors = tuple(_priors(net, views, totals, config, flip, torch.device(device)) for flip in config.flips)
    return Prompt(
        structures=tuple(structures[k] for k in present.tolist()),
        missing=tuple(structures[k] for k in np.flatnonzero(totals == 0).tolist()),
        priors=priors,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _View:
    """A window of a reference, with the structures that it shows."""

    image: NDArray[np.float32]
    masks: NDArray[np.bool_]
    """(n, z, y, x) masks of the structures in the window."""
    structures: tuple[int, ...]
    """(n,) indices in the list of structures."""
    shares: NDArray[np.float64]
    """(n,) fraction of each structure's voxels, over all windows, that this window holds."""


def _views(reference: Reference, structures: Sequence[Structure], config: InferenceConfig) -> Iterator[_View]:
    """Yield the windows of one reference: each structure is centred in one, near structures share one.

    For whole scans, yield one window of the whole reference.
    """
    if config.whole_scans:
        yield from _whole_views(reference, structures, config)
        return
    shape = size_of(reference.image.shape)
    window = fit_window(shape, config.reference_voxels)
    found = {k: box_of_mask(structure.mask(reference.labels)) for k, structure in enumerate(structures)}
    boxes: dict[int, Slices] = {k: box for k, box in found.items() if box is not None}
    places = list(boxes)
    for group in join_boxes(list(boxes.values()), window) if boxes else ():
        members = tuple(places[index] for index in group)
        windows = boxes_over(hull_of(*(boxes[k] for k in members)), window, shape)
        labels = [take(reference.labels, box, fill=0) for box in windows]
        voxels = np.array([[structures[k].mask(part).sum() for part in labels] for k in members])
        best = np.sort(np.argsort(-voxels.sum(axis=0), kind="stable")[: config.max_reference_windows])
        shares = voxels[:, best] / np.maximum(voxels[:, best].sum(axis=1, keepdims=True), 1)
        for column, index in enumerate(best):
            here = np.flatnonzero(shares[:, column])
            if not len(here):
                continue
            yield _View(
                image=take_image(reference.image, windows[index]),
                masks=np.stack([structures[members[row]].mask(labels[index]) for row in here]),
                structures=tuple(members[row] for row in here),
                shares=shares[here, column],
            )


def _whole_views(
    reference: Reference, structures: Sequence[Structure], config: InferenceConfig
) -> Iterator[_View]:
    """Yield a reference resampled to one window; nothing if no structure has a voxel left."""
    labels = labels_to_window(reference.labels, config.window_voxels)
    masks = [structure.mask(labels) for structure in structures]
    here = [k for k, mask in enumerate(masks) if mask.any()]
    if here:
        yield _View(
            image=to_window(reference.image, config.window_voxels),
            masks=np.stack([masks[k] for k in here]),
            structures=tuple(here),
            shares=np.ones(len(here)),
        )


def _priors(
    net: InContextNet,
    views: Sequence[_View],
    totals: NDArray[np.float64],
    config: InferenceConfig,
    flip: Flip,
    device: torch.device,
) -> Priors:
    """Return the averaged priors of the structures that are shown, then those of the mask of all ones."""
    sums: list[Tensor] | None = None
    rows = {int(k): row for row, k in enumerate(np.flatnonzero(totals))}
    weights = torch.zeros(len(rows) + config.whole_mask, device=device)
    for view in views:
        masks = view.masks
        places, shares = [rows[k] for k in view.structures], list(view.shares)
        if config.whole_mask:
            masks = np.concatenate([masks, np.ones_like(masks[:1])])
            places, shares = [*places, len(rows)], [*shares, 1.0]
        with autocast(choose_precision(config.precision, device), device):
            features = net.encode(to_batch(view.image[None], flip, device))
            parts = net.encode_tasks(features, to_batch(masks, flip, device))
        share = torch.tensor(shares, device=device, dtype=torch.float32)
        weights[places] += share
        if sums is None:
            sums = [part.new_zeros((len(weights), *part.shape[2:]), dtype=torch.float32) for part in parts]
        for total, part in zip(sums, parts, strict=True):
            total[places] += part[0].float() * share[:, None, None]
    assert sums is not None
    return tuple(total / weights[:, None, None] for total in sums)


def to_batch(volumes: NDArray[Any], flip: Flip, device: torch.device) -> Tensor:
    """Return (n, z, y, x) as (1, n, z, y, x) float32 on the device, mirrored."""
    tensor = torch.from_numpy(np.ascontiguousarray(volumes)).to(device)[None].float()
    return tensor.flip([axis + 2 for axis in flip]) if flip else tensor


def size_of(shape: tuple[int, ...]) -> Size:
    """Return the shape of an image (z, y, x).

    Raises:
        DataError: It has other axes.
    """
    if len(shape) != 3:
        raise DataError(f"an image is (z, y, x), got shape {shape}")
    z, y, x = shape
    return z, y, x
