"""The stages of a pretraining: first small windows of whole scans, then windows of full size.

    steps      0 ............................ early_fraction .................... 1
    windows    16 x 32 x 32                       16 x 64 x 64
    views      the whole scan, hardly shifted     these, and boxes anywhere (`wide_fraction`)

A network must first learn that the mask in the reference defines the structure to segment; only then it
learns precise outlines. It learns the first in small windows too, which cost less time, if both views show
the scan at nearly the same position; with boxes anywhere it does not (docs/decisions/0025-early-windows.md).
*Reads* samples of a store.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from storage import Store
from training.data import Batch, DataConfig, Share, Triple, cut_around, make_loader, window_for
from training.pretraining.config import PretrainConfig


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Some consecutive steps, with the settings of their samples."""

    first_step: int
    """First step, counted from 0."""
    last_step: int
    """One after the last step."""
    data: DataConfig
    """Settings of the samples, with the window of these steps."""

    @property
    def num_steps(self) -> int:
        """Steps of this stage."""
        return self.last_step - self.first_step


def stages_of(data: DataConfig, shapes: Sequence[Triple], num_steps: int) -> tuple[Stage, ...]:
    """Return the stages of a training, in order; one or two, without empty ones.

    Args:
        data: Settings of the samples, with the window of the last steps in `crop_voxels`.
        shapes: Voxels along z, y, x of the training scans.
        num_steps: Number of steps of the training.
    """
    changes = round(data.early_fraction * num_steps)
    early = data
    if changes:
        window = window_for(shapes, data.early_window_voxels)
        early = replace(with_window(data, window), wide_fraction=0.0)
    stages = (
        Stage(first_step=0, last_step=changes, data=early),
        Stage(first_step=changes, last_step=num_steps, data=data),
    )
    return tuple(stage for stage in stages if stage.num_steps)


def with_window(data: DataConfig, window: Triple) -> DataConfig:
    """Return the settings of samples with another window, and the cut for it."""
    return replace(data, crop_voxels=window, cut_voxels=cut_around(window))


def staged_batches(
    store: Store, scans: Sequence[str], config: PretrainConfig, share: Share, *, pin_memory: bool = False
) -> Iterator[Batch]:
    """Yield the batches of some consecutive samples of a pretraining, each with the window of its stage.

    Args:
        store: Store that samples are read from.
        scans: Training scans.
        config: All settings, with the chosen window.
        share: The samples, counted from the first step of the training, and the process that they are for.
        pin_memory: Whether batches are in pinned memory, for a GPU.
    """
    shapes = [store.entries[scan_id].shape_zyx for scan_id in scans]
    size = config.optimisation.batch_size
    for stage in stages_of(config.data, shapes, config.optimisation.num_steps):
        begin = max(share.first_sample, stage.first_step * size)
        end = min(share.first_sample + share.num_samples, stage.last_step * size)
        if begin < end:
            yield from make_loader(
                store,
                scans,
                stage.data,
                replace(share, first_sample=begin, num_samples=end - begin),
                seed=config.optimisation.seed,
                num_workers=config.run.num_workers,
                pin_memory=pin_memory,
            )
