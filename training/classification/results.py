"""Results of a classification as files: a Markdown page, rows of a table, predictions of every scan.

Reads:  figures and probabilities (N, K).
Writes: Markdown; predictions.csv with one row per scan: split, true class, predicted class, probabilities.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage import write_atomically
from training.classification.labels import ClassTable
from training.classification.scores import ClassScores


def score_rows(scores: ClassScores) -> list[tuple[str, str, str]]:
    """Return the table's rows: class, number of its test scans, AUC with interval; the mean comes last."""
    rows = [(s.name, str(s.num_scans), interval(s.auc, s.auc_interval)) for s in scores.classes]
    return [*rows, ("mean over classes", str(scores.num_scans), interval(scores.auc, scores.auc_interval))]


def interval(value: float, bounds: tuple[float, float]) -> str:
    """Return a figure with its 95 % interval, as "0.871 (0.801 to 0.930)"."""
    return f"{value:.3f} ({bounds[0]:.3f} to {bounds[1]:.3f})"


def to_markdown(scores: ClassScores, document: Mapping[str, Any]) -> str:
    """Return a Markdown page with the figures.

    Args:
        scores: Scores of the test scans.
        document: The content of results.json.
    """
    encoder = "random weights" if document["from_scratch"] else f"checkpoint {document['checkpoint']}"
    lines = [
        f"# {document['mode']}, {encoder}",
        "",
        f"Trained on {document['num_train']} scans, selected on {document['num_validation']} validation "
        f"scans, tested on the {scores.num_scans} scans of the split {document['tested_on']}. 95 % intervals "
        "by bootstrap over the test scans.",
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
    """Write true and predicted classes of scans as CSV, atomically.

    Args:
        path: The file.
        table: Classes of the scans.
        rows: Rows of the table to write.
        splits: Split of each scan, by id.
        probabilities: (len(rows), K).
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    truth = [f"is {name}" for name in table.classes] if table.multi_label else ["class", "predicted"]
    writer.writerow(["id", "split", *truth, *(f"p {name}" for name in table.classes)])
    for row, values in zip(rows, probabilities, strict=True):
        if table.multi_label:
            cells = [f"{value:g}" for value in table.targets[row]]
        else:
            cells = [table.classes[int(table.indices[row])], table.classes[int(values.argmax())]]
        scan_id = table.ids[row]
        writer.writerow([scan_id, splits[scan_id], *cells, *(f"{value:.6f}" for value in values)])
    write_atomically(path, lambda file: file.write(text.getvalue().encode()))
