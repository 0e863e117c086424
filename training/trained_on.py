"""How the scans were prepared that a network was trained on: whoever uses the weights does the same.

*Reads* and *writes* plain values, in the metadata of exported weights, in checkpoints ("config"), and in a
run's run.json. A published checkpoint tells nothing of it: everything is None there.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PUBLISHED_SPACING_MM = 1.5
"""Of the scans behind the published weights (Gao et al., CVPR 2026)."""


@dataclass(frozen=True, kw_only=True)
class TrainedOn:
    """How the scans of a training were prepared and cropped."""

    spacing_mm: float | None = None
    """Voxel edge of the store; None where it is not known."""
    ingest: Mapping[str, Any] = field(default_factory=dict)
    """Ingest settings of the store by name; empty where they are not known: the defaults."""
    crop_voxels: tuple[int, int, int] | None = None
    """Voxels (z, y, x) of the crops that the network was shown; None where it is not known."""

    @property
    def ingest_settings(self) -> dict[str, Any]:
        """The ingest settings that give scans such as the network was trained on."""
        return {**self.ingest, "spacing_mm": self.spacing_mm or PUBLISHED_SPACING_MM}

    def rows(self) -> dict[str, str]:
        """What a model card says of it."""
        rows = {}
        if self.spacing_mm is not None:
            rows["spacing"] = f"{self.spacing_mm:g} mm"
        if self.crop_voxels is not None:
            rows["crop"] = f"{' x '.join(map(str, self.crop_voxels))} voxels"
        return rows

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` gives the same back."""
        return {
            "spacing_mm": self.spacing_mm,
            "ingest": dict(self.ingest),
            "crop_voxels": list(self.crop_voxels) if self.crop_voxels else None,
        }

    @classmethod
    def from_json(cls, values: Any) -> TrainedOn | None:
        """What `to_json` wrote; None for None.

        Raises:
            ValueError: The values are not of this kind.
        """
        if values is None:
            return None
        try:
            spacing, crop = values["spacing_mm"], values["crop_voxels"]
            return cls(
                spacing_mm=None if spacing is None else float(spacing),
                ingest=dict(values["ingest"]),
                crop_voxels=None if crop is None else _size(crop),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"trained_on is incomplete ({error!r})") from error


def recorded_beside(path: Path) -> TrainedOn | None:
    """What the run's folder tells that a checkpoint lies in; None where it lies in none.

    Args:
        path: RUN/weights.safetensors, or RUN/checkpoints/step-N.pt.
    """
    for folder in (path.absolute().parent, path.absolute().parent.parent):
        record, config = folder / "run.json", folder / "config.toml"
        if not (record.is_file() and config.is_file()):
            continue
        try:
            told = TrainedOn.from_json(json.loads(record.read_text(encoding="utf-8")).get("trained_on"))
            if told is not None:
                return told
            # Runs begun before spacing was recorded tell the crop.
            crop = tomllib.loads(config.read_text(encoding="utf-8"))["data"]["crop_voxels"]
            return TrainedOn(crop_voxels=_size(crop))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
    return None


def _size(values: Any) -> tuple[int, int, int]:
    if isinstance(values, int):
        return values, values, values
    z, y, x = (int(value) for value in values)
    return z, y, x
