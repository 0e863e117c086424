"""Predictions of `mass evaluate` for the viewer of its page: those with the lowest Dice.

Reads:  masks and scores as the evaluation makes them; a store.
Writes: packs for the viewer (`pipeline.report.packs`), the worst target first.
Bounds: one prompt per target is kept, the worst; at most `MOST_KEPT` targets, at the level that a page shows.
        Structures of several values ("whole") are left out: their parts are there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from commands.pages.evaluation import at_page_level
from commands.survey import MOST_VOXELS_IN_PAGE, level_within
from pipeline.report import LeveledLabel, PackFacts, Pair, at_level, in_8_bits, pack_scan
from storage import Store
from training.evaluation import Listener, Score
from training.inference import Structure

MOST_KEPT = 24
"""Most targets whose predictions are kept."""
NOT_THERE = "drawn, but not there"
"""Note of a structure that the target lacks and the network drew."""
_MOST_VALUES = 255
"""Most structures in one label map of predictions."""


@dataclass(kw_only=True)
class Kept:
    """The predictions of one target with one prompt."""

    score: Score
    """The first score; target, label map and references are those of all."""
    pairs: list[Pair] = field(default_factory=list)
    layers: list[NDArray[np.uint8]] = field(default_factory=list)
    """Label maps (z, y, x) at the page's level; structures that overlap are in different ones."""
    values: list[dict[int, str]] = field(default_factory=list)
    """Names of the values of each layer."""

    @property
    def mean_dice(self) -> float:
        """Mean Dice over the structures that the target has; 1 if it has none."""
        known = [pair.dice for pair in self.pairs if pair.note != NOT_THERE]
        return float(np.mean(known)) if known else 1.0

    def paint(self, mask: NDArray[np.bool_], name: str) -> tuple[int, int]:
        """Add a mask (z, y, x); returns its layer and its value there."""
        free = (
            layer
            for layer, painted in enumerate(self.layers)
            if len(self.values[layer]) < _MOST_VALUES and not painted[mask].any()
        )
        layer = next(free, len(self.layers))
        if layer == len(self.layers):
            self.layers.append(np.zeros(mask.shape, np.uint8))
            self.values.append({})
        value = len(self.values[layer]) + 1
        self.layers[layer][mask] = value
        self.values[layer][value] = name
        return layer, value


class WorstPredictions(Listener):
    """Keeps the predictions of the targets with the lowest mean Dice."""

    def __init__(
        self, store: Store, begins: Callable[[int, int, str], None], *, most: int = MOST_KEPT
    ) -> None:
        self._store, self._begins, self._most = store, begins, most
        self._open: dict[tuple[str, str, tuple[str, ...]], Kept] = {}
        self._kept: dict[str, Kept] = {}

    def begins(self, done: int, total: int, scan_id: str) -> None:
        """Choose among the prompts of the previous target, and report progress."""
        for one in self._open.values():
            target = one.score.target
            if one.pairs and (target not in self._kept or one.mean_dice < self._kept[target].mean_dice):
                self._kept[target] = one
        self._open.clear()
        worst = sorted(self._kept.items(), key=lambda item: (item[1].mean_dice, item[0]))
        self._kept = dict(worst[: self._most])
        self._begins(done, total, scan_id)

    def scored(self, score: Score, structure: Structure, predicted: NDArray[np.bool_]) -> None:
        """Keep the mask of a structure of one value."""
        if not self._most or len(structure.values) != 1 or score.state == "absent":
            return
        scan = self._store.scan(score.target)
        kept = self._open.setdefault((score.target, score.label, score.references), Kept(score=score))
        small = at_page_level(scan, predicted)
        num_labels = len(scan.label_names)
        layer, value = kept.paint(small, structure.name) if small.any() else (-1, 0)
        common, either = score.common_voxels, score.expected_voxels + score.predicted_voxels
        kept.pairs.append(
            Pair(
                name=structure.name,
                label=scan.label_names.index(score.label),
                value=structure.values[0],
                other=num_labels + layer if layer >= 0 else -1,
                other_value=value,
                iou=common / (either - common),
                dice=2 * common / either,
                note={"missed": "nothing was drawn", "drawn though absent": NOT_THERE}.get(score.state, ""),
            )
        )

    @property
    def shown(self) -> Mapping[str, tuple[str, ...]]:
        """Ids of the targets kept, the worst first, with label map and references that are shown."""
        return {target: (one.score.label, *one.score.references) for target, one in self._kept.items()}

    def packs(self, most_bytes: int) -> dict[str, bytes]:
        """Return the packs of the worst targets that fit into `most_bytes` together."""
        packs: dict[str, bytes] = {}
        left = most_bytes
        for target, one in self._kept.items():
            pack = self._pack(target, one)
            if len(pack) > left:
                break
            packs[target], left = pack, left - len(pack)
        return packs

    def _pack(self, target: str, one: Kept) -> bytes:
        scan = self._store.scan(target)
        leveled = at_level(scan, level_within(scan, MOST_VOXELS_IN_PAGE))
        drawn = [
            LeveledLabel(name="prediction", array=array, value_names=names)
            for array, names in zip(one.layers, one.values, strict=True)
        ]
        pairs = tuple(sorted(one.pairs, key=lambda pair: (pair.dice, pair.name)))
        facts = (("references", ", ".join(one.score.references)), ("mean Dice", f"{one.mean_dice:.3f}"))
        shown = replace(leveled, labels=[*leveled.labels, *drawn], atoms=[], orders=[])
        return pack_scan(in_8_bits(shown), PackFacts(pairs=pairs, facts=facts), compression=9)
