"""Initial tokens of a fine-tuning: those of labelled scans encoded as references, or random ones.

*Reads* images and label maps of a store, one scan at a time. *Gives* tokens of K structures and, as the last
row, of the whole image, at the three deepest stages: (K + 1, 11, C) each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from storage import Store
from training.data import labels_to_window
from training.finetuning.config import FinetuneConfig
from training.finetuning.scans import LabelledScans
from training.inference import InferenceConfig, Prompt, Reference, Structure, encode_references
from training.network import NUM_QUERIES, Iris, Priors

OnScan = Callable[[str, int, int], None]
"""Called with the kind of work ("encode" or "report"), the number of scans done, and of all scans."""


def token_shapes(net: Iris, num_structures: int) -> tuple[tuple[int, int, int], ...]:
    """Return the shapes of the tokens of structures and of the whole image, deepest stage first."""
    return tuple((num_structures + 1, NUM_QUERIES + 1, width) for width in net.channels[:1:-1])


def random_tokens(net: Iris, num_structures: int) -> Priors:
    """Return random tokens from torch's global generator, about as large as those of encoded references."""
    first, second, third = (torch.randn(shape) for shape in token_shapes(net, num_structures))
    return first, second, third


def initial_tokens(
    net: Iris, store: Store, scans: LabelledScans, config: FinetuneConfig, *, on_scan: OnScan | None = None
) -> Priors:
    """Return the tokens of labelled scans encoded as references, averaged over the scans with a structure.

    Args:
        net: The network in evaluation mode, on the device to compute on.
        store: The store with the scans.
        scans: Training scans and structures; one scan is in memory at a time.
        config: Gives `max_token_references`, and the windows of [inference], where the network was not
            trained on whole scans.
        on_scan: Called after each scan.

    Returns:
        Deepest stage first, (K + 1, 11, C) each, float32 on the network's device; the last row is that of the
        whole image, averaged over all encoded references.
    """
    device = next(net.parameters()).device
    inference = replace(config.inference, whole_mask=True)
    own = net.trained_on.crop_voxels if net.trained_on.whole_scans else None
    if own and inference.whole_scans:  # as the network knows them
        inference = replace(inference, window_voxels=own, reference_voxels=own)
    structures, at_once = scans.structures, config.data.structures_at_once
    counts = torch.zeros(len(structures) + 1, device=device)
    sums = [torch.zeros(shape, device=device) for shape in token_shapes(net, len(structures))]
    for number, scan_id in enumerate(scans.training):
        scan = store.scan(scan_id)
        labels = scan.labels(scans.label)
        values = set(np.unique(labels).tolist())
        wanted = [
            k
            for k, structure in enumerate(structures)
            if counts[k] < config.finetune.max_token_references and values & set(structure.values)
        ]
        reference = Reference(image=scan.image(normalize=True), labels=labels) if wanted else None
        for first in range(0, len(wanted), at_once):
            group = wanted[first : first + at_once]
            assert reference is not None
            for rows, prompt in _prompts(net, reference, structures, group, inference, device):
                counts[rows] += 1
                for total, stage in zip(sums, prompt.priors[0], strict=True):
                    total[rows] += stage.clone()
        if on_scan:
            on_scan("encode", number + 1, len(scans.training))
    one, two, three = (total / counts[:, None, None] for total in sums)
    return one, two, three


def _prompts(
    net: Iris,
    reference: Reference,
    structures: Sequence[Structure],
    group: Sequence[int],
    inference: InferenceConfig,
    device: torch.device,
) -> Iterator[tuple[list[int], Prompt]]:
    """Yield prompts of a reference, each with the rows of its tokens: its structures, and the whole image.

    A structure that is too small to be seen in a window of the whole scan is shown in a finer window.
    """
    small: list[int] = []
    if inference.whole_scans:
        seen = set(np.unique(labels_to_window(reference.labels, inference.window_voxels)).tolist())
        small = [k for k in group if not seen & set(structures[k].values)]
    finer = replace(inference, whole_scans=False)
    for part, config in (([k for k in group if k not in small], inference), (small, finer)):
        if part:
            shown = [structures[k] for k in part]
            yield [*part, len(structures)], encode_references(net, [reference], shown, config, device=device)
