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
from training.network import Iris, Priors

WINDOW = (32, 32, 32)
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


def tokens_of(*values: int) -> Priors:
    torch.manual_seed(0)
    net = Iris((8, 8, 16, 16, 16)).eval()
    config = finetune_recipe("whole")
    inference = replace(config.inference, window_voxels=WINDOW, reference_voxels=WINDOW, whole_scans=True)
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
