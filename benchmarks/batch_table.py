"""The largest batch that fits a card, computed: no card is used.

    python benchmarks/batch_table.py        # published and small recipe, with and without recomputation

Bytes kept from the forward to the backward pass are counted with PyTorch's fake tensors (shapes only), in
bfloat16 on the plain forms. These keep more than the kernels: several float32 volumes of the logits. With
recomputation, the stage that keeps most is added once. On top: weights, gradients, average and two moments
in float32, and one more copy of the weights for what a step needs beside them. A tenth of the card is left
free. So the table is an estimate and not a measurement.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from training.engine import segmentation_loss
from training.network import recompute_stages
from training.network.blocks import RECOMPUTE
from training.pretraining import PretrainConfig, recipe

CARDS_GIB = (24, 40, 80, 141)
USABLE = 0.9


NUM_STAGES = 9
"""Stages of encoder and decoder."""


def kept_bytes(
    config: PretrainConfig, samples: int, *, recompute: bool, but: int | None = None
) -> tuple[int, int]:
    """Bytes of the weights, and bytes kept for the backward pass of some samples.

    Args:
        config: Network, crop and masks.
        samples: Number of samples.
        recompute: Whether stages compute their activations again.
        but: A stage that does not.
    """
    kept: dict[int, int] = {}
    with FakeTensorMode():
        net = config.model.make().train()
        if recompute:
            recompute_stages(net)
            stages = [module for module in net.modules() if getattr(module, RECOMPUTE, False)]
            assert len(stages) == NUM_STAGES
            if but is not None:
                setattr(stages[but], RECOMPUTE, False)
        crop, masks = config.data.crop_zyx, config.data.masks_per_sample
        target, reference = (torch.randn(samples, 1, *crop) for _ in range(2))
        truth = torch.empty(samples, masks, *crop, dtype=torch.bool)
        known = {weight.untyped_storage()._cdata for weight in net.parameters()}
        alive: list[Tensor] = []

        def keep(tensor: Tensor) -> Tensor:
            memory = tensor.untyped_storage()
            if memory._cdata not in known:
                kept[memory._cdata] = memory.nbytes()
                alive.append(tensor)
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with hooks, torch.autocast("cpu", dtype=torch.bfloat16):
            loss = segmentation_loss(net(target, reference, truth), truth).total
        assert loss.requires_grad
        size = sum(weight.numel() * weight.element_size() for weight in net.parameters())
    return size, sum(kept.values())


def main() -> None:
    lines = []
    cards = " | ".join(f"{card} GiB" for card in CARDS_GIB)
    print(f"| recipe | recompute_activations | GiB a sample | GiB beside | {cards} |")
    print("| --- | --- | ---: | ---: |" + " ---: |" * len(CARDS_GIB))
    for name in ("published", "small"):
        config = recipe(name)
        for recompute in (False, True):
            size, two = kept_bytes(config, 2, recompute=recompute)
            sample, beside = (kept_bytes(config, 4, recompute=recompute)[1] - two) / 2, 6 * size
            if recompute:
                full = (0, NUM_STAGES - 1)  # the stages of the full resolution keep most
                each = [kept_bytes(config, 2, recompute=True, but=stage)[1] for stage in full]
                sample += (max(each) - two) / 2
            fits = [int((USABLE * card * 2**30 - beside) / sample) for card in CARDS_GIB]
            sizes = f"{sample / 2**30:.2f} | {beside / 2**30:.2f}"
            cells = " | ".join(str(batch) for batch in fits)
            print(f"| `{name}` | {str(recompute).lower()} | {sizes} | {cells} |", flush=True)
            found = {"sample_bytes": sample, "beside_bytes": beside, "batch": fits}
            lines.append({"recipe": name, "recompute": recompute, **found})
    print(*map(json.dumps, lines), sep="\n")


if __name__ == "__main__":
    main()
