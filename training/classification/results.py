"""What came of a classification, for people: a page, a table's rows, predictions of every scan.

Reads:  figures and probabilities (N, K).
Writes: Markdown; predictions.csv: a row a scan, with its split, what it is, what is said, and probabilities.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.classification.labels import ClassTable
from training.classification.scores import ClassScores
from training.files import write_atomically


def score_rows(scores: ClassScores) -> list[tuple[str, str, str]]:
    """Return the table's rows: class, tested scans of it, AUC with its interval; the mean last."""
    rows = [(s.name, str(s.num_scans), interval(s.auc, s.auc_interval)) for s in scores.classes]
    return [*rows, ("mean over classes", str(scores.num_scans), interval(scores.auc, scores.auc_interval))]


def interval(value: float, bounds: tuple[float, float]) -> str:
    """Return a figure with its 95 % interval, as "0.871 (0.801 to 0.930)"."""
    return f"{value:.3f} ({bounds[0]:.3f} to {bounds[1]:.3f})"


def to_markdown(scores: ClassScores, document: Mapping[str, Any]) -> str:
    """Return the figures as a page."""
    encoder = "drawn weights" if document["from_scratch"] else f"checkpoint {document['checkpoint']}"
    lines = [
        f"# {document['mode']}, {encoder}",
        "",
        f"Trained on {document['num_train']} scans, chosen by {document['num_validation']}, tested on the "
        f"{scores.num_scans} of the split {document['tested_on']}; 95 % intervals over draws of these.",
        "",
        "| class | scans | AUC |",
        "|---|---|---|",
        *(f"| {name} | {count} | {auc} |" for name, count, auc in score_rows(scores)),
        "",
        f"Balanced accuracy {interval(scores.balanced_accuracy, scores.balanced_accuracy_interval)}.",
    ]
    return "\n".join(lines) + "\n"


def write_predictions(
    path: Path,
    table: ClassTable,
    rows: Sequence[int],
    splits: Mapping[str, str],
    probabilities: NDArray[np.float32],
) -> None:
    """Write what a classifier says of some scans, and what they are; whole or not at all."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    truth = [f"is {name}" for name in table.classes] if table.multi_label else ["class", "predicted"]
    writer.writerow(["id", "split", *truth, *(f"p {name}" for name in table.classes)])
    for row, values in zip(rows, probabilities, strict=True):
        if table.multi_label:
            said = [f"{value:g}" for value in table.targets[row]]
        else:
            said = [table.classes[int(table.indices[row])], table.classes[int(values.argmax())]]
        scan_id = table.ids[row]
        writer.writerow([scan_id, splits[scan_id], *said, *(f"{value:.6f}" for value in values)])
    write_atomically(path, lambda file: file.write(text.getvalue().encode()))
