"""One-shot segmentation beside what costs nothing: copying the reference's labels, and registration.

    python benchmarks/rivals.py STORE OUT                             copied, registered, registered our way
    python benchmarks/rivals.py STORE OUT --checkpoint RUN            a network of ours too, alone and joined
    python benchmarks/rivals.py STORE OUT --variants stored border    targets where it lies elsewhere
    python benchmarks/rivals.py STORE OUT --structures 30 --targets 4 --references 3
    python benchmarks/rivals.py STORE OUT --shots 5                   five references (rivals: by majority)

Targets and references are scans of different patients (the id up to `_frame`, else the whole id), drawn once
for all methods; --keep-out names a file of ids, one a line, that targets are drawn from: those that a network
was not trained on. A cell is one method, target and reference(s): kept in OUT/cells.jsonl, not made again.
Written: OUT/results.json, OUT/results.md. A pair takes 0.1 s (copied) to some seconds (demons), one thread.

*border*: of the target 65 % along y and x, cut so that the labelled structures are whole but at the border.
Copying then puts the middle of the reference on the middle of the cut, as a user would.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from numpy.typing import NDArray

from benchmarks.registration import METHODS, Image, Labels, Method, Shown, refined
from storage import Store, open_store

WHOLE = "whole"
KEPT_FRACTION = 0.65
"""Of y and x, in the variant `border`."""
MARGIN_VOXELS = 2
"""Between the structures and the edge of a cut."""
RESAMPLES = 2000
"""Of the bootstrap over target patients."""


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Who is shown to whom."""

    targets: tuple[str, ...]
    references: tuple[tuple[str, ...], ...]
    """Prompts: the ids of `shots` references each."""

    def of(self, target: str) -> list[tuple[str, ...]]:
        """The prompts of which no scan is of the target's patient."""
        return [ids for ids in self.references if patient_of(target) not in map(patient_of, ids)]


def main() -> None:
    options = parse()
    store = open_store(options.store)
    pairs = draw_pairs(store, options)
    methods = {name: METHODS[name] for name in options.methods}
    if options.checkpoint:
        ours = Network(options.checkpoint)
        methods[f"ours ({options.checkpoint.name})"] = ours
        methods[f"located + demons + refined + ours ({options.checkpoint.name})"] = ours.with_registration
    structures = structures_of(store, pairs, options.structures)
    options.out.mkdir(parents=True, exist_ok=True)
    cells = run(store, pairs, methods, structures, options.variants, options.out / "cells.jsonl")
    table = to_markdown(cells, list(methods), structures, options.variants)
    (options.out / "results.json").write_text(json.dumps(cells, indent=1) + "\n", encoding="utf-8")
    (options.out / "results.md").write_text(table, encoding="utf-8")
    print(table)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store", type=Path, metavar="STORE")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--checkpoint", type=Path, metavar="RUN", help="a network, shown the same references")
    parser.add_argument("--variants", nargs="+", choices=("stored", "border"), default=["stored"])
    parser.add_argument("--targets", type=int, default=8)
    parser.add_argument("--references", type=int, default=4, help="prompts a target")
    parser.add_argument("--shots", type=int, default=1, help="references a prompt")
    parser.add_argument("--structures", type=int, default=10, help="the largest so many, and all together")
    parser.add_argument("--keep-out", type=Path, metavar="FILE", help="ids that targets are drawn from")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def patient_of(scan_id: str) -> str:
    """The patient of a scan: its phases are never shown to each other."""
    return scan_id.split("_frame")[0]


def draw_pairs(store: Store, options: argparse.Namespace) -> Pairs:
    """Targets and prompts, the same for every method; no patient is on both sides."""
    ids = sorted(scan_id for scan_id, entry in store.entries.items() if entry.labels)
    generator = np.random.default_rng(options.seed)
    wanted = set(options.keep_out.read_text(encoding="utf-8").split()) if options.keep_out else set(ids)
    patients = sorted({patient_of(scan_id) for scan_id in ids if scan_id in wanted})
    order = [patients[k] for k in generator.permutation(len(patients))]
    targets: list[str] = []
    for patient in order:
        if len(targets) < options.targets:
            targets += [scan_id for scan_id in ids if patient_of(scan_id) == patient and scan_id in wanted]
    targets = targets[: options.targets]
    taken = {patient_of(scan_id) for scan_id in targets}
    others = sorted({patient_of(scan_id) for scan_id in ids} - taken)
    shuffled = [others[k] for k in generator.permutation(len(others))][: options.references * options.shots]
    first = [next(scan_id for scan_id in ids if patient_of(scan_id) == patient) for patient in shuffled]
    prompts = [tuple(first[k : k + options.shots]) for k in range(0, len(first), options.shots)]
    if not targets or not prompts or len(prompts[-1]) < options.shots:
        raise SystemExit(
            f"{store.path}: too few labelled patients for {options.targets} targets and "
            f"{options.references} x {options.shots} references. Ask for fewer"
        )
    return Pairs(targets=tuple(targets), references=tuple(prompts))


def structures_of(store: Store, pairs: Pairs, count: int) -> dict[str, tuple[int, ...]]:
    """The largest structures of the targets by name, and all of them together where there are several."""
    voxels: dict[int, int] = {}
    names: dict[int, str] = {}
    for scan_id in pairs.targets:
        scan = store.scan(scan_id)
        label = scan.label_names[0]
        names |= scan.label_values(label)
        for value, number in zip(*np.unique(scan.labels(label), return_counts=True), strict=True):
            if value:
                voxels[int(value)] = voxels.get(int(value), 0) + int(number)
    largest = sorted(voxels, key=lambda value: (-voxels[value], value))[:count]
    parts = {names.get(value, str(value)): (value,) for value in sorted(largest)}
    return ({WHOLE: tuple(sorted(largest))} if len(parts) > 1 else {}) | parts


class Network:
    """A network of ours as a method: shown the reference, asked about the target."""

    def __init__(self, folder: Path) -> None:
        from training import load_checkpoint
        from training.inference.prompts import inference_for

        self.net = load_checkpoint(folder).eval()
        self.config = inference_for(self.net.trained_on)

    def __call__(self, shown: Sequence[Shown], target: Image) -> Labels:
        """Return the labels that the network draws in the target."""
        from training.inference import predict_labels

        prompt = self._prompt(shown)
        found = predict_labels(self.net, target, prompt, self.config)
        known = np.array([0, *(int(structure.name) for structure in prompt.structures)], np.uint16)
        return known[found]

    def with_registration(self, shown: Sequence[Shown], target: Image) -> Labels:
        """Return what `mass segment --by both` draws."""
        from training.inference import predict_probabilities

        seen = predict_probabilities(self.net, target, self._prompt(shown), self.config).max(axis=0)
        return refined(shown, target, seen=seen)

    def _prompt(self, shown: Sequence[Shown]) -> Any:
        from training.inference import Reference, Structure, encode_references

        values = sorted({int(value) for _, labels in shown for value in np.unique(labels) if value})
        structures = [Structure(name=str(value), values=(value,)) for value in values]
        references = [Reference(image=image, labels=labels) for image, labels in shown]
        return encode_references(self.net, references, structures, self.config)


def cut_to_border(image: Image, labels: Labels, seed: int) -> tuple[Image, Labels]:
    """Return a part of a scan in which its structures are whole but at the border along y and x."""
    generator = np.random.default_rng(seed)
    parts = [slice(0, image.shape[0])]
    for axis in (1, 2):
        inside = np.flatnonzero(labels.any(axis=tuple(other for other in range(3) if other != axis)))
        low, high, size = int(inside[0]), int(inside[-1]) + 1, labels.shape[axis]
        kept = min(size, max(round(KEPT_FRACTION * size), high - low))
        least, most = max(high - kept, 0), min(low, size - kept)
        starts = [
            min(max(start, least), most) for start in (low - MARGIN_VOXELS, high + MARGIN_VOXELS - kept)
        ]
        apart = [min(low - start, start + kept - high) for start in starts]
        near = [
            start for start, gap in zip(starts, apart, strict=True) if gap <= max(MARGIN_VOXELS, min(apart))
        ]
        start = near[int(generator.integers(len(near)))]
        parts.append(slice(start, start + kept))
    return image[tuple(parts)], labels[tuple(parts)]


def run(
    store: Store,
    pairs: Pairs,
    methods: dict[str, Method],
    structures: dict[str, tuple[int, ...]],
    variants: Sequence[str],
    path: Path,
) -> list[dict[str, Any]]:
    """Compute the cells that are not in the file, and append each as it is done; returns those asked for."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    known = {cell["key"]: cell for cell in map(json.loads, lines)}
    chosen = []
    for target in pairs.targets:
        for variant in variants:
            for ids in pairs.of(target):
                for name, method in methods.items():
                    key = key_of(store, name, variant, target, ids, structures)
                    if key not in known:
                        scores = scored(store, method, variant, target, ids, structures)
                        known[key] = {"key": key, "method": name, "variant": variant, "target": target}
                        known[key] |= {"references": list(ids), "scores": scores}
                        with path.open("a", encoding="utf-8") as file:
                            file.write(json.dumps(known[key]) + "\n")
                    chosen.append(known[key])
        print(f"{target}: done", file=sys.stderr, flush=True)
    return chosen


def key_of(
    store: Store,
    method: str,
    variant: str,
    target: str,
    references: Sequence[str],
    structures: dict[str, tuple[int, ...]],
) -> str:
    """A digest of everything that a cell's scores follow from, but the code."""
    scans = [store.entries[scan_id].digest for scan_id in (target, *references)]
    text = json.dumps([method, variant, target, list(references), scans, structures])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def scored(
    store: Store,
    method: Method,
    variant: str,
    target: str,
    references: Sequence[str],
    structures: dict[str, tuple[int, ...]],
) -> dict[str, dict[str, float]]:
    """Dice and the ratio of drawn to expected voxels, a structure."""
    image, truth = read(store, target, structures)
    if variant == "border":
        image, truth = cut_to_border(image, truth, int(hashlib.sha256(target.encode()).hexdigest()[:8], 16))
    found = method([read(store, scan_id, structures) for scan_id in references], image)
    scores = {}
    for name, values in structures.items():
        drawn, expected = np.isin(found, values), np.isin(truth, values)
        if expected.any():
            both = int((drawn & expected).sum())
            scores[name] = {
                "dice": 2 * both / (int(drawn.sum()) + int(expected.sum())),
                "ratio": int(drawn.sum()) / int(expected.sum()),
            }
    return scores


def read(store: Store, scan_id: str, structures: dict[str, tuple[int, ...]]) -> tuple[Image, Labels]:
    """A scan's z-scores, and its labels of the structures asked for."""
    scan = store.scan(scan_id)
    labels = scan.labels(scan.label_names[0]).astype(np.uint16)
    wanted = [value for values in structures.values() for value in values]
    return scan.image(normalize=True), np.where(np.isin(labels, wanted), labels, 0).astype(np.uint16)


def to_markdown(
    cells: Sequence[dict[str, Any]],
    methods: Sequence[str],
    structures: dict[str, tuple[int, ...]],
    variants: Sequence[str],
) -> str:
    """Rows: methods and variants; columns: Dice with its interval over patients, drawn / expected."""
    names = list(structures)
    shown = names if len(names) <= 6 else names[:1]
    parts = [name for name in names if name != WHOLE]
    head = [*shown, f"mean of {len(parts)} structures", f"drawn / expected, {names[0]}"]
    lines = ["| method | " + " | ".join(head) + " |", "|---|" + "--:|" * len(head)]
    for variant in variants:
        for method in methods:
            own = [cell for cell in cells if (cell["method"], cell["variant"]) == (method, variant)]
            row = [
                interval([(patient_of(c["target"]), c["scores"][n]["dice"]) for c in own if n in c["scores"]])
                for n in shown
            ]
            means = [
                (
                    patient_of(c["target"]),
                    float(np.mean([c["scores"][n]["dice"] for n in parts if n in c["scores"]])),
                )
                for c in own
            ]
            ratios = [c["scores"][names[0]]["ratio"] for c in own if names[0] in c["scores"]]
            row += [interval(means), f"{np.median(ratios):.2f}"]
            title = method if variant == "stored" else f"{method}, at the border"
            lines.append(f"| {title} | " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


def interval(values: Sequence[tuple[str, float]]) -> str:
    """The mean, and its 95 % interval by resampling patients."""
    by_patient: dict[str, list[float]] = {}
    for patient, value in values:
        by_patient.setdefault(patient, []).append(value)
    means: NDArray[np.float64] = np.array([np.mean(each) for each in by_patient.values()])
    drawn = np.random.default_rng(0).choice(means, (RESAMPLES, len(means))).mean(axis=1)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return f"{np.mean([value for _, value in values]):.2f} ({low:.2f}-{high:.2f})"


if __name__ == "__main__":
    main()
