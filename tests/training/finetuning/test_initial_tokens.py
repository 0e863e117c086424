"""Tokens before the first step: those of structures that a window of the whole scan does not show, too."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from training.finetuning.config import finetune_recipe
from training.finetuning.initial_tokens import initial_tokens
from training.finetuning.scans import LabelledScans
from training.inference import Structure
from training.network import Iris, Priors, TrainedOn

LARGE, SMALL = 1, 2


@dataclass
class DrawnScan:
    """A scan with a structure of 40^3 voxels and one of 2^3, which every third voxel misses."""

    values: NDArray[np.uint8]

    def labels(self, name: str) -> NDArray[np.uint8]:
        return self.values

    def image(self, *, normalize: bool) -> NDArray[np.float32]:
        return np.random.default_rng(0).normal(size=self.values.shape).astype(np.float32)


class DrawnStore:
    def scan(self, scan_id: str) -> DrawnScan:
        values = np.zeros((96, 96, 96), np.uint8)
        values[20:60, 20:60, 20:60] = LARGE
        values[71:73, 71:73, 71:73] = SMALL
        return DrawnScan(values)


def tokens_of(*values: int, shown_in: int = 32, trained_in: int | None = None) -> Priors:
    torch.manual_seed(0)
    net = Iris((8, 8, 16, 16, 16)).eval()
    if trained_in:
        net.trained_on = TrainedOn(crop_voxels=(trained_in,) * 3, whole_scans=True)
    config = finetune_recipe("whole")
    window = (shown_in,) * 3
    inference = replace(config.inference, window_voxels=window, reference_voxels=window, whole_scans=True)
    structures = tuple(Structure(name=str(value), values=(value,)) for value in values)
    scans = LabelledScans(
        label="drawn", training=("a",), held_out=(), structures=structures, modalities=("ct",)
    )
    return initial_tokens(net, DrawnStore(), scans, replace(config, inference=inference))  # type: ignore[arg-type]


@pytest.mark.parametrize("values", [(SMALL,), (LARGE, SMALL)])
def test_a_structure_too_small_to_be_seen_in_the_whole_scan_has_tokens(values: tuple[int, ...]) -> None:
    found = tokens_of(*values)
    alone = tokens_of(LARGE)
    for stage, large in zip(found, alone, strict=True):
        assert len(stage) == len(values) + 1
        assert torch.isfinite(stage).all()
        if LARGE in values:  # its tokens are those without the other
            assert torch.allclose(stage[0], large[0], atol=1e-5)
            assert not torch.allclose(stage[0], stage[1], atol=1e-3)


def test_references_are_shown_in_the_window_that_the_network_was_trained_with() -> None:
    own = tokens_of(LARGE, shown_in=32)
    larger = tokens_of(LARGE, shown_in=48, trained_in=32)
    for stage, same in zip(own, larger, strict=True):
        assert torch.equal(stage, same)
