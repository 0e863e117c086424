"""Record of how a network's training scans were prepared, so that new scans are prepared in the same way.

*Reads* and *writes* plain values, in the metadata of exported weights, in checkpoints ("config"), and in a
run's run.json. A published checkpoint has no such record: spacing and crop are None there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from storage import Store
from training.errors import RunError
from training.files import CONFIG, RECORD, read_record, read_settings

PUBLISHED_SPACING_MM = 1.5
"""Voxel edge of the scans that the published weights were trained on (Gao et al., CVPR 2026)."""
_IMAGE_SETTINGS = ("ct_window_hu", "percentiles", "crop", "margin_mm", "body_threshold_hu")
"""Ingest settings that change the prepared image; the other settings choose which files are used."""


@dataclass(frozen=True, kw_only=True)
class TrainedOn:
    """How the training scans of a network were prepared and cropped."""

    spacing_mm: float | None = None
    """Voxel edge of the store, mm; None where it is not known."""
    ingest: Mapping[str, Any] = field(default_factory=dict)
    """Ingest settings of the store by name; empty where they are not known, which means the defaults."""
    crop_voxels: tuple[int, int, int] | None = None
    """Voxels (z, y, x) of the training crops; None where they are not known."""
    whole_scans: bool = False
    """Whether the network was trained on whole scans, each resampled to the size of one crop."""

    @classmethod
    def of_store(
        cls, store: Store, crop_voxels: tuple[int, int, int], *, whole_scans: bool = False
    ) -> TrainedOn:
        """Return the record of a training on this store.

        Args:
            store: The store that the network is trained on.
            crop_voxels: Voxels (z, y, x) of a crop.
            whole_scans: Whether each crop is a whole scan, resampled.
        """
        ingest = store.info.config.get("ingest", {})
        return cls(
            spacing_mm=store.info.spacing_mm, ingest=ingest, crop_voxels=crop_voxels, whole_scans=whole_scans
        )

    @property
    def ingest_settings(self) -> dict[str, Any]:
        """Ingest settings that prepare new scans as the training scans were prepared."""
        return {**self.ingest, "spacing_mm": self.spacing_mm or PUBLISHED_SPACING_MM}

    def rows(self) -> dict[str, str]:
        """Return the rows of the model card's table: name -> text."""
        rows = {}
        if self.spacing_mm is not None:
            rows["spacing"] = f"{self.spacing_mm:g} mm"
        if self.crop_voxels is not None:
            shown = "window of whole scans" if self.whole_scans else "crop"
            rows[shown] = f"{' x '.join(map(str, self.crop_voxels))} voxels"
        return rows

    def to_json(self) -> dict[str, Any]:
        """Return plain values, from which `from_json` restores the record."""
        return {
            "spacing_mm": self.spacing_mm,
            "ingest": dict(self.ingest),
            "crop_voxels": list(self.crop_voxels) if self.crop_voxels else None,
            **({"whole_scans": True} if self.whole_scans else {}),
        }

    @classmethod
    def from_json(cls, values: Any) -> TrainedOn | None:
        """Return the record that `to_json` wrote; None for None.

        Raises:
            ValueError: The values are incomplete or of another type.
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


def preparation_warning(trained_on: TrainedOn, store: Store) -> str:
    """Return one sentence on how the preparation of a store differs from that of a network's training scans.

    A setting that is not recorded on both sides is not compared. An unknown spacing of the training is taken
    to be the published one.

    Args:
        trained_on: Preparation of the training scans.
        store: The scans that the network shall be used on.

    Returns:
        The sentence; "" where nothing differs.
    """
    parts = []
    size, spacing = store.info.spacing_mm, trained_on.spacing_mm or PUBLISHED_SPACING_MM
    if size != spacing:
        part = f"the store's voxels measure {size:g} mm, those that the network was trained on {spacing:g} mm"
        parts.append(
            part if trained_on.spacing_mm else part + " (taken from the paper: the file does not say)"
        )
    own = store.info.config.get("ingest", {})
    for name in _IMAGE_SETTINGS:
        # Pairs are lists in values read from JSON, tuples in settings of this process.
        here, there = (_plain(values.get(name)) for values in (own, trained_on.ingest))
        if here is not None and there is not None and here != there:
            parts.append(f"the store was prepared with {name} = {here}, the training's scans with {there}")
    if not parts:
        return ""
    return f"{'; '.join(parts)}: the results here may be worse than they could be"


def recorded_beside(path: Path) -> TrainedOn | None:
    """Return the preparation recorded in the run folder around a checkpoint; None where there is no record.

    Args:
        path: RUN/weights.safetensors, or RUN/checkpoints/step-N.pt.

    Raises:
        RunError: The record is damaged.
    """
    for folder in (path.absolute().parent, path.absolute().parent.parent):
        if not ((folder / RECORD).is_file() and (folder / CONFIG).is_file()):
            continue
        try:
            trained_on = TrainedOn.from_json(read_record(folder).get("trained_on"))
            if trained_on is not None:
                return trained_on
            # Runs older than this record have at least the crop, in their settings.
            crop = read_settings(folder)["data"]["crop_voxels"]
            return TrainedOn(crop_voxels=_size(crop))
        except RunError:  # damaged: not the same as without a record
            raise
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
