"""Evaluation of a fine-tuned network on labelled scans: Dice, HD95 and ASD of its label maps.

*Reads* images (z-scores) and label maps of a store. *Gives* an `Evaluation`, with one score per scan and
structure. As in the in-context evaluation (`training.evaluation.scores`), a structure that a scan lacks has
no Dice and is in no mean; a missed structure has Dice 0 and no distance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from storage import Store
from training.evaluation import MEASURES, UNKNOWN, Evaluation, Score, plain, surface_distances
from training.inference import InferenceConfig, TokenTable, predict_labels, token_inference, token_prompt
from training.network import Iris


def evaluate_tokens(
    net: Iris,
    store: Store,
    table: TokenTable,
    scan_ids: Iterable[str],
    config: InferenceConfig,
    *,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
    distances: bool = False,
) -> Evaluation:
    """Return the scores of the label maps that a fine-tuned network predicts with sliding windows.

    Each voxel gets its most probable structure (`predict_labels`). The network's mode is restored.

    Args:
        net: The network with its tokens, on `device`.
        store: The store with the scans.
        table: The structures of the tokens.
        scan_ids: Scans that have the label map.
        config: Overlap and precision; window and number of masks are those of the table.
        device: Device to compute on.
        progress: Called with the number of scans done and of all scans.
        distances: Whether to measure surface distances also.
    """
    ids = tuple(scan_ids)
    config = token_inference(config, table)
    prompt = token_prompt(net, table.structures, config, device)
    training = net.training
    net.eval()
    scores: list[Score] = []
    try:
        for number, scan_id in enumerate(ids):
            scan = store.scan(scan_id)
            predicted = predict_labels(net, scan.image(normalize=True), prompt, config, device=device)
            expected = scan.labels(table.label)
            for value, structure in enumerate(table.structures, start=1):
                mask, found = structure.mask(expected), predicted == value
                apart = surface_distances(found, mask, scan.spacing_zyx_mm) if distances else UNKNOWN
                scores.append(
                    Score(
                        dataset=scan.dataset,
                        label=table.label,
                        structure=structure.name,
                        target=scan_id,
                        references=(),
                        expected_voxels=int(mask.sum()),
                        predicted_voxels=int(found.sum()),
                        common_voxels=int((mask & found).sum()),
                        hd95_mm=apart.hd95_mm,
                        asd_mm=apart.asd_mm,
                    )
                )
            if progress:
                progress(number + 1, len(ids))
    finally:
        net.train(training)
    return Evaluation(scores=tuple(scores))


def scalars(evaluation: Evaluation) -> dict[str, float]:
    """Return the mean Dice over structures ("dice"), and the Dice of each structure, by name."""
    each = {f"dice/{part.dataset}/{part.label}/{part.structure}": part.dice for part in evaluation.structures}
    return {"dice": evaluation.mean_dice, **each}


def report_document(evaluation: Evaluation) -> dict[str, Any]:
    """Return means and single cases as plain values, for report.json."""
    cases = [
        {
            "scan": score.target,
            "structure": score.structure,
            "state": score.state,
            **{measure: plain(getattr(score, measure)) for measure in MEASURES},
            "expected_voxels": score.expected_voxels,
            "predicted_voxels": score.predicted_voxels,
        }
        for score in evaluation.scores
    ]
    return {**evaluation.to_json(), "cases": cases}
