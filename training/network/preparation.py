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

from storage import Store

PUBLISHED_SPACING_MM = 1.5
"""Of the scans behind the published weights (Gao et al., CVPR 2026)."""
_LOOK = ("ct_window_hu", "percentiles", "crop", "margin_mm", "body_threshold_hu")
"""Ingest settings that change how a scan looks; the others decide about which files are taken."""


@dataclass(frozen=True, kw_only=True)
class TrainedOn:
    """How the scans of a training were prepared and cropped."""

    spacing_mm: float | None = None
    """Voxel edge of the store; None where it is not known."""
    ingest: Mapping[str, Any] = field(default_factory=dict)
    """Ingest settings of the store by name; empty where they are not known: the defaults."""
    crop_voxels: tuple[int, int, int] | None = None
    """Voxels (z, y, x) of the crops that the network was shown; None where it is not known."""
    whole_scans: bool = False
    """Whether it was shown whole scans, each stretched over one crop."""

    @classmethod
    def of_store(
        cls, store: Store, crop_voxels: tuple[int, int, int], *, whole_scans: bool = False
    ) -> TrainedOn:
        """How a store's scans were prepared and shown, for those who use the weights."""
        ingest = store.info.config.get("ingest", {})
        return cls(
            spacing_mm=store.info.spacing_mm, ingest=ingest, crop_voxels=crop_voxels, whole_scans=whole_scans
        )

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
            shown = "window of whole scans" if self.whole_scans else "crop"
            rows[shown] = f"{' x '.join(map(str, self.crop_voxels))} voxels"
        return rows

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` gives the same back."""
        return {
            "spacing_mm": self.spacing_mm,
            "ingest": dict(self.ingest),
            "crop_voxels": list(self.crop_voxels) if self.crop_voxels else None,
            **({"whole_scans": True} if self.whole_scans else {}),
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
                whole_scans=bool(values.get("whole_scans", False)),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"trained_on is incomplete ({error!r})") from error


def warning_of(trained_on: TrainedOn, store: Store) -> str:
    """A sentence on how a store's scans differ from those that a network was trained on; "" where in nothing.

    What is not recorded on both sides is not compared; a voxel size that is not known is the published one.
    """
    parts = []
    size, spacing = store.info.spacing_mm, trained_on.spacing_mm or PUBLISHED_SPACING_MM
    if size != spacing:
        part = f"the store's voxels measure {size:g} mm, those that the network was trained on {spacing:g} mm"
        parts.append(
            part if trained_on.spacing_mm else part + " (taken from the paper: the file does not tell)"
        )
    own = store.info.config.get("ingest", {})
    for name in _LOOK:
        # Stores and checkpoints are JSON, runs' records TOML: pairs are lists in one, tuples in the other.
        here, there = (_plain(values.get(name)) for values in (own, trained_on.ingest))
        if here is not None and there is not None and here != there:
            parts.append(f"the store was prepared with {name} = {here}, the training's scans with {there}")
    if not parts:
        return ""
    return f"{'; '.join(parts)}: what the network gives here may be worse than it could be"


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


def _plain(value: Any) -> Any:
    return [float(part) for part in value] if isinstance(value, list | tuple) else value


def _size(values: Any) -> tuple[int, int, int]:
    if isinstance(values, int):
        return values, values, values
    z, y, x = (int(value) for value in values)
    return z, y, x
