"""From a scan on its own grid to the stored form: turned, cropped, resampled, coded.

*Reads*: `RawScan`: image (z, y, x) int16 or float32 in real units on the file's axes; label maps on the same
grid. *Writes*: `StandardScan`: int16 codes and uint8/uint16 label maps on one isotropic grid. Its array axes
run to the head (z), the front (y) and the right (x) of the patient, as nearly as the scan's own axes do; an
oblique scan stays oblique and its grid has the true directions. Nothing is padded. Labels are resampled by
nearest neighbour.

The crop uses intensities only. If it cuts off labelled voxels, a note says how many. Real value = code *
scale + offset. The same input gives the same bytes on any machine and with any number of workers. Sheared
grids are refused earlier. CT that is not in HU is scaled like MR, with a note.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import BadSpacing, ConstantImage, EmptyForeground, NotFinite
from pipeline.ingest.config import IngestConfig
from pipeline.ingest.intensity import Intensity, ct_window, encode, looks_like_hounsfield, percentile_window
from pipeline.ingest.labels import refuse_label_as_scan
from pipeline.ingest.modality import guess_modality
from pipeline.ingest.reading import RawScan
from pipeline.volumes import (
    FilledImage,
    Grid,
    body_box,
    crop_grid,
    fill_not_finite,
    resample_image,
    resample_labels,
    resampled_grid,
    turn_array,
    turn_grid,
    turn_to_ras,
    whole,
)

_MOST_MISSING = 0.5
"""Largest fraction of the body that may be NaN or infinite."""

_PADDING_FLOOR_HU = -1024.0
"""Scanners mark voxels outside the field of view with -2000 or -3024; no tissue is below this value."""


@dataclass(frozen=True, kw_only=True)
class StandardLabel:
    """A label map on the stored grid.

    Attributes:
        name: Name of the map in the store.
        array: (z, y, x) uint8 or uint16; 0 is background.
        value_names: Name of each value; empty if none are declared.
    """

    name: str
    array: NDArray[np.uint8] | NDArray[np.uint16]
    value_names: Mapping[int, str]


@dataclass(frozen=True, kw_only=True)
class StandardScan:
    """A scan in its stored form.

    Attributes:
        image: (z, y, x) int16 codes on `grid`; real value = code * scale + offset.
        scale: Real units per code.
        offset: Real value of code 0.
        intensity: Clip bounds and z-score statistics in real units.
        labels: Label maps on `grid`.
        grid: The stored grid.
        source_grid: The input's own grid, for writing results on it.
        modality: "ct", "mr" or "pet"; "other" for a set.
        modality_origin: "manifest", "dicom", "set", or "guess: " with the reason.
        facts: Machine and acquisition from DICOM.
        notes: What was unusual, and what was done about it.
    """

    image: NDArray[np.int16]
    scale: float
    offset: float
    intensity: Intensity
    labels: tuple[StandardLabel, ...]
    grid: Grid
    source_grid: Grid
    modality: str
    modality_origin: str
    facts: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


def standardize(raw: RawScan, config: IngestConfig) -> StandardScan:
    """Return the stored form of a scan.

    Raises:
        ScanError: Most of the body is NaN or infinite, the image has one value everywhere or no foreground,
            the volume is too large or too small, or the image is a label map.
    """
    filled = _without_missing(raw)
    values_in = raw.image if filled is None else filled.image
    _check_values(raw, values_in)
    turn = turn_to_ras(raw.grid)
    image, grid = turn_array(values_in, turn), turn_grid(raw.grid, turn)
    modality, origin = raw.modality, raw.modality_origin
    if modality is None:
        guess, why = guess_modality(image, grid.spacing_zyx_mm, name=raw.location.split("/")[-1])
        modality, origin = guess, f"guess: {why}"
    notes = list(raw.notes)
    in_hu = modality == "ct" and looks_like_hounsfield(image, config)
    if filled is not None:
        notes.append(_fill_padding(filled, in_hu=in_hu))
    has_air = modality == "ct" and float(image.min()) < config.body_threshold_hu
    if modality == "ct" and not in_hu:
        notes.append("said to be CT, but the values are not HU: scaled by percentiles as MR is")
    box = _box(raw, image, grid, threshold=config.body_threshold_hu if has_air else None, config=config)
    cropped = crop_grid(grid, box)
    target = resampled_grid(cropped, config.spacing_mm)
    _check_target(raw, target, config)
    floor = _PADDING_FLOOR_HU if in_hu else -np.inf
    values = resample_image(image[box], cropped, target, floor=floor)
    window, step, offset = ct_window(config) if in_hu else percentile_window(values, config)
    codes, intensity = _encode(raw, values, window, step, offset, unit=_unit(raw, in_hu=in_hu))
    labels = []
    for label in raw.labels:
        notes.extend(label.notes)
        turned: NDArray[Any] = turn_array(label.array, turn)
        notes.extend(_cut_off(label.name, turned, box))
        array = resample_labels(turned[box], cropped, target)
        labels.append(StandardLabel(name=label.name, array=array, value_names=dict(label.value_names or {})))
    return StandardScan(
        image=codes,
        scale=step,
        offset=offset,
        intensity=intensity,
        labels=tuple(labels),
        grid=target,
        source_grid=raw.grid,
        modality=modality,
        modality_origin=origin,
        facts=raw.facts,
        notes=tuple(notes),
    )


def _encode(
    raw: RawScan,
    values: NDArray[np.float32],
    window: tuple[float, float],
    step: float,
    offset: float,
    *,
    unit: str,
) -> tuple[NDArray[np.int16], Intensity]:
    """Return codes and statistics of the stored volume, which must not be constant."""
    if window[1] > window[0]:
        codes, intensity = encode(values, window=window, step=step, offset=offset, unit=unit)
        if intensity.std > 0:
            return codes, intensity
    raise ConstantImage(
        f"all voxels left are the same after clipping to {window[0]:g} to {window[1]:g}",
        path=raw.location,
        remedy="Check the export of this scan, its units, and its modality in the manifest",
    )


def _unit(raw: RawScan, *, in_hu: bool) -> str:
    if in_hu:
        return "HU"
    if raw.unit:
        return raw.unit
    return "Bq/ml" if dict(raw.facts).get("Units") == "BQML" else "arbitrary"


def _without_missing(raw: RawScan) -> FilledImage | None:
    """Return the image with a number in every voxel; None if it has one already.

    Raises:
        NotFinite: More than half of the body is NaN or infinite.
    """
    low, high = float(raw.image.min()), float(raw.image.max())  # both are NaN if any voxel is
    if np.isfinite(low) and np.isfinite(high):
        return None
    filled = fill_not_finite(raw.image.astype(np.float32, copy=False), raw.grid.spacing_zyx_mm)
    if filled is None or filled.fraction_of_body > _MOST_MISSING:
        found = "no voxel is a number" if filled is None else f"{100 * filled.fraction_of_body:.0f} % are not"
        raise NotFinite(
            f"at least half of the body's voxels must be numbers, {found} (NaN or infinite)",
            path=raw.location,
            remedy="Check the step that made this file, and make it again",
        )
    return filled


def _fill_padding(filled: FilledImage, *, in_hu: bool) -> str:
    """Give padding in a CT the value of air, in place; return a note on all voxels that were filled."""
    num_padding = int(filled.padding.sum())
    value = float(filled.image[filled.padding][0]) if num_padding else 0.0
    if in_hu:
        value = _PADDING_FLOOR_HU
        filled.image[filled.padding] = value
    parts = []
    if num_padding:
        parts.append(f"{num_padding} at the border or outside of the body became background ({value:g})")
    if filled.num_inside:
        parts.append(f"{filled.num_inside} inside the body took the value of the nearest voxel")
    share = 100 * (num_padding + filled.num_inside) / filled.image.size
    return f"{share:.2g} % of the voxels were NaN or infinite: {', '.join(parts)}"


def _check_values(raw: RawScan, image: NDArray[Any]) -> None:
    """Refuse constant images, and label maps."""
    low, high = float(image.min()), float(image.max())
    if low == high:
        raise ConstantImage(
            f"every voxel has the value {low:g}",
            path=raw.location,
            remedy="Check the export of this scan, or remove it",
        )
    if raw.modality is None:
        refuse_label_as_scan(image, shown=raw.location)


def _box(
    raw: RawScan, image: NDArray[Any], grid: Grid, *, threshold: float | None, config: IngestConfig
) -> tuple[slice, slice, slice]:
    """Return the box that is kept."""
    if raw.kept_whole or not config.crop:
        return whole(image.shape)
    box = body_box(image, grid.spacing_zyx_mm, threshold=threshold, margin_mm=config.margin_mm)
    if box is None:
        found = "" if threshold is None else f" (no voxel above {threshold:g} HU)"
        raise EmptyForeground(
            f"nothing is left after the crop to the body{found}",
            path=raw.location,
            remedy="Check that the scan shows a patient; crop = false keeps the whole volume",
        )
    return box


def _check_target(raw: RawScan, target: Grid, config: IngestConfig) -> None:
    """Refuse stored volumes that are too large for memory or too small to be useful."""
    if target.num_voxels > config.max_stored_voxels:
        raise BadSpacing(
            f"the stored volume would have {target.num_voxels:,} voxels "
            f"({config.max_stored_voxels:,} are allowed)",
            path=raw.location,
            remedy="Check the voxel size in the header, or choose a larger spacing_mm",
        )
    if min(target.extent_zyx_mm) < config.min_extent_mm:
        z, y, x = target.extent_zyx_mm
        raise EmptyForeground(
            f"a volume must measure at least {config.min_extent_mm:g} mm along each axis, "
            "after the crop this is "
            f"{z:.1f} x {y:.1f} x {x:.1f} mm",
            path=raw.location,
            remedy="Check the voxel size in the header; crop = false keeps the whole volume",
        )


def _cut_off(name: str, label: NDArray[Any], box: tuple[slice, slice, slice]) -> list[str]:
    """Return a note if labelled voxels are outside the box."""
    total, kept = int(np.count_nonzero(label)), int(np.count_nonzero(label[box]))
    return (
        [] if total == kept else [f"{total - kept} of {total} labelled voxels of {name} lie outside the crop"]
    )
