"""Batches go to a device whole, whichever kind they are."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from torch import Tensor

from training.data.batches import Batch, Cuts
from training.finetuning.labelled_samples import LabelledBatch

SHARED = {
    "scale": torch.ones(1),
    "offset": torch.zeros(1),
    "padding_codes": torch.zeros(1, dtype=torch.int16),
    "sample_indices": torch.arange(1),
    "scan_ids": ("a",),
    "seed": 3,
    "crop_zyx": (2, 2, 2),
}
CODES, WORDS = torch.zeros(1, 1, 2, 2, 2, dtype=torch.int16), torch.zeros(1, 2, 2, 2, dtype=torch.int16)


@pytest.mark.parametrize(
    "batch",
    [
        Batch(
            reference_codes=CODES,
            target_codes=CODES,
            reference_words=WORDS,
            target_words=WORDS,
            num_masks=2,
            **SHARED,
        ),
        LabelledBatch(codes=CODES, words=WORDS, structures=torch.zeros(1, 1, dtype=torch.int64), **SHARED),
    ],
)
def test_every_tensor_is_moved_but_the_numbers_of_the_samples(batch: Cuts) -> None:
    moved = batch.to("meta")
    assert type(moved) is type(batch)
    assert (len(moved), moved.scan_ids, moved.seed) == (1, ("a",), 3)
    tensors = {part.name: getattr(moved, part.name) for part in fields(moved)}
    tensors = {name: value for name, value in tensors.items() if isinstance(value, Tensor)}
    assert len(tensors) >= 7
    for name, tensor in tensors.items():
        assert tensor.device.type == ("cpu" if name == "sample_indices" else "meta"), name
