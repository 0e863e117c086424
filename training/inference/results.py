"""A segmented target: its labels, the voxels of each structure, pictures, Dice against an expert.

*Writes* the labels as an image file, on request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from training.inference.pictures import Case
from training.inference.prompts import Reference, Structure
from training.inference.raw_scans import RawScan
from training.inference.registration import LOW_CONFIDENCE

Labels: TypeAlias = NDArray[np.uint8] | NDArray[np.uint16]

_DRAWN_STRUCTURES = 6
"""Most structures in a picture, the largest first."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """One structure in one target."""

    structure: Structure
    """Its name and label value."""
    num_voxels: int
    """Voxels on the target's own grid."""
    volume_ml: float
    """Its volume in millilitres."""
    confidence: float | None = None
    """Estimate of the structure's Dice, 0..1, where masks were carried over
    (`training.inference.refinement`) or a fine-tuned network drew them (`training.inference.confidence`)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Segmentation:
    """A segmented target."""

    labels: Labels
    """(z, y, x) on the target's own grid and array axes; the references' label values, 0 is background."""
    found: tuple[Found, ...]
    """Every requested structure that a reference shows, also if nothing of it was found."""
    scan: RawScan
    """The target."""
    reference: Reference | None
    """The first reference, for pictures."""
    probabilities: Mapping[int, NDArray[np.float32]] = field(default_factory=dict)
    """Probabilities on the target's own grid, by label value, if they were requested."""
    agreement: float | None = None
    """If masks were carried over: correlation of the images there, -1..1
    (`training.inference.registration`)."""
    notes: tuple[str, ...] = ()
    """Remarks for the user."""

    def save(self, path: Path | str) -> None:
        """Write the labels as an image file on the target's own grid; the suffix decides the format."""
        self.scan.write(Path(path), self.labels)

    def dice(self, expected: Labels) -> dict[int, float]:
        """Return the Dice of each structure in a label map on the target's own grid, by label value."""
        found = {}
        for structure in (one.structure for one in self.found):
            drawn, there = structure.mask(self.labels), structure.mask(expected)
            if there.any():
                found[structure.values[0]] = 2 * int((drawn & there).sum()) / int(drawn.sum() + there.sum())
        return found

    def cases_against(self, expected: Labels) -> list[Case]:
        """Return the pictures of `cases` with an expert's masks, (z, y, x) on the target's own grid."""
        dice, there = self.dice(expected), self.scan.from_own_grid(expected)
        return [
            replace(
                case,
                reference=self.scan.image,
                reference_name="expert",
                mask=found.structure.mask(there),
                expected=found.structure.mask(there),
                own_dice=dice.get(found.structure.values[0]),
            )
            for case, found in zip(self.cases(), self._largest, strict=True)
        ]

    @property
    def _largest(self) -> list[Found]:
        """Return the structures that pictures show."""
        return sorted(self.found, key=lambda found: -found.num_voxels)[:_DRAWN_STRUCTURES]

    def cases(self) -> list[Case]:
        """Return the largest structures as cases for a picture (`training.draw_cases`)."""
        shown = self.scan.from_own_grid(self.labels)
        reference = self.reference or Reference(image=self.scan.image, labels=np.zeros_like(shown))
        return [
            Case(
                reference=reference.image,
                mask=found.structure.mask(reference.labels),
                target=self.scan.image,
                prediction=found.structure.mask(shown),
                spacing_zyx_mm=self.scan.spacing_zyx_mm,
                title=f"{found.structure.name}  {found.volume_ml:.3g} ml",
            )
            for found in self._largest
        ]


def confidence_note(found: Sequence[Found], how: str) -> str:
    """Return a note with the confidence of each structure, lowest first.

    Args:
        found: Structures with their confidences.
        how: How their masks were made.
    """
    ranked = sorted(found, key=lambda one: one.confidence or 0.0)
    low = [one for one in ranked if (one.confidence or 0.0) < LOW_CONFIDENCE]
    if not low:
        return f"{how}; least confidence {ranked[0].confidence or 0:.2f} of 1"
    named = ", ".join(f"{one.structure.name} {one.confidence or 0:.2f}" for one in low[:6])
    more = f" and {len(low) - 6} more" if len(low) > 6 else ""
    return f"low confidence (0 to 1), look whether it is there at all: {named}{more}"
