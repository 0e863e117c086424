"""A segmented target: its labels, the voxels of each structure, pictures, Dice against an expert.

*Writes* the labels as an image file, on request.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from training.inference.pictures import Case
from training.inference.prompts import Reference, Structure
from training.inference.raw_scans import RawScan

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
    """Where masks were carried over: estimate of the structure's Dice, 0..1
    (`training.inference.refinement`)."""


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
