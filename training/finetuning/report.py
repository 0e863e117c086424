"""How good a fine-tuned network is: Dice, HD95 and ASD of the label maps that it draws of labelled scans.

*Reads* images (z-scores) and label maps of a store. *Gives* an `Evaluation`, a score a scan and structure.
A structure that a scan lacks has no Dice and counts nowhere; one that was missed has Dice 0 and no distance:
as in the in-context evaluation (`training.evaluation.scores`).
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
    """Return how good the label maps are that a fine-tuned network draws, with sliding windows.

    A voxel belongs to its most probable structure, as `predict_labels` has it. The network's mode stays.

    Args:
        net: With its tokens, on `device`.
        store: Where the scans are.
        table: What the tokens mean.
        scan_ids: Scans with the label map.
        config: Overlap and precision; windows and number of masks are the table's.
        device: Where to compute.
        progress: Called with scans done and scans in all.
        distances: Whether surface distances are measured too.
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
            drawn = predict_labels(net, scan.image(normalize=True), prompt, config, device=device)
            expected = scan.labels(table.label)
            for place, structure in enumerate(table.structures, start=1):
                mask, found = structure.mask(expected), drawn == place
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
    """Return "dice", the mean over structures, and each structure's."""
    each = {f"dice/{part.dataset}/{part.label}/{part.structure}": part.dice for part in evaluation.structures}
    return {"dice": evaluation.mean_dice, **each}


def report_document(evaluation: Evaluation) -> dict[str, Any]:
    """Return means and single cases, for machines."""
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
