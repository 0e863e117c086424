"""Contents of the report on a scan's proposals: facts, pictures and numbers, without layout.

Reads: a scan (see `pipeline.quality.stored_scan.ScanLike`) and, if it has labels, its score.
Writes: a `ScanOverview` (a row of a table) or a `ScanReport` (a section of a page). Both hold plain values
and PNG bytes, so they can be sent between processes.
Bounds: a few seconds and a few MB per scan. Examples are the best-ranked ones; the number of structures shown
is limited, and the page states it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.quality import (
    OWN,
    SOURCE,
    VOXELS,
    ScanLike,
    ScanScore,
    StructureScore,
    coverage,
    interval_overlap,
    num_atoms,
    rows_by_origin,
    select,
)
from pipeline.report.browsing import hierarchy_sheet
from pipeline.report.montages import (
    Point,
    coverage_limits,
    coverage_planes,
    focus_point,
    foreground,
    group_montages,
    overview_slice,
    proposal_tile,
    rows_by_size,
    structure_tile,
)
from pipeline.report.slices import Rgb, arrange_planes, to_png, volume_text

COVERAGE_STEPS = ((0, 0), (1, 9), (10, 19), (20, 49), (50, 99), (100, 199), (200, 499), (500, 10**9))
"""Groups of voxels by how many proposals contain them: first and last count."""

OUTSIDE_BODY_FRACTION = 0.1
"""A proposal is outside the body if a smaller fraction of its voxels is in the body."""


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """Sizes and numbers of the pictures of a scan."""

    plane_pixels: int = 520
    """Longest edge of the scan in the three-plane pictures."""
    sheet_pixels: int = 240
    """Longest edge of the scan in the picture that shows all sizes side by side."""
    tile_pixels: int = 200
    """Edge of the small pictures."""
    examples: int = 6
    """Number of single proposals shown for each size class."""
    structures: int = 60
    """Number of structures shown with their best proposal; the table lists all."""
    png_colors: int = 256
    """Colours of a picture's palette; fewer make smaller pages."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture with its description."""

    png: bytes
    width: int
    height: int
    alt: str
    """Description for readers who do not see the picture."""
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class SizeGroup:
    """The proposals of one size class."""

    name: str
    num_proposals: int
    body_fraction: float
    """Fraction of the body's voxels that at least one of them contains."""
    planes: Picture
    examples: tuple[Picture, ...]


@dataclass(frozen=True, kw_only=True)
class Match:
    """A labelled structure and the proposal that matches it best."""

    score: StructureScore
    picture: Picture


@dataclass(frozen=True, kw_only=True)
class ScanOverview:
    """Contents of a scan's row in a table."""

    scan_id: str
    dataset: str
    modality: str
    shape_zyx: tuple[int, int, int]
    extent_zyx_mm: tuple[float, float, float]
    num_atoms: int
    num_proposals: int
    covered_fraction: float
    """Fraction of the body's voxels that at least one proposal contains."""
    outside_fraction: float
    """Fraction of the proposals that are outside the body: couch, streaks, air."""
    num_structures: int
    mean_iou: float | None
    """Mean best IoU over the scored structures; None without labels."""
    found_fraction: float | None
    """Fraction of the scored structures with a best IoU of 0.5 or more."""
    slic_iou: float | None
    """Mean best IoU of flat SLIC, if it was computed."""
    thumbnail: Picture


@dataclass(frozen=True, kw_only=True)
class ScanReport:
    """Contents of a scan's page."""

    overview: ScanOverview
    facts: tuple[tuple[str, str], ...]
    """Names and values of what is known about the scan."""
    sheet: Picture
    """From image to organ: image, atoms, proposals of each size class and labels, in three planes."""
    groups: tuple[SizeGroup, ...]
    coverage: Picture
    coverage_shares: tuple[tuple[str, float], ...]
    """Fraction of the body's voxels by the number of proposals that contain them."""
    matches: tuple[Match, ...]
    """Best first; at most `InspectConfig.structures`."""
    score: ScanScore | None
    volumes_ml: NDArray[np.float64]
    """(N,) volume of each proposal."""
    scores: NDArray[np.float64]
    """(N,) score of each proposal."""
    sources: tuple[tuple[str, int], ...]
    """Number of proposals of each source."""


def describe_scan(scan: ScanLike, score: ScanScore | None, config: InspectConfig | None = None) -> ScanReport:
    """Return facts, pictures and numbers of one scan."""
    config = config or InspectConfig()
    body = foreground(scan)
    point = focus_point(scan, body)
    cover = coverage(scan)
    inside = cover[body] if body.any() else cover.ravel()
    few, many = coverage_limits(cover)
    counts = np.bincount(scan.table[:, SOURCE], minlength=len(scan.sources))
    return ScanReport(
        overview=_overview(scan, score, body, cover, config),
        facts=scan_facts(scan),
        sheet=_sheet(scan, point, config),
        groups=_size_groups(scan, point, body, config),
        coverage=_picture(
            arrange_planes(coverage_planes(scan, cover, point, pixels=config.plane_pixels)),
            f"Three planes of {scan.scan_id}, coloured by how many proposals contain each voxel",
            config,
            f"dark blue: {few:,} proposals or fewer, yellow: {many:,} or more; grey: none",
        ),
        coverage_shares=tuple(
            (_step_name(low, high), float(np.mean((inside >= low) & (inside <= high))))
            for low, high in COVERAGE_STEPS
        ),
        matches=_matches(scan, score, config),
        score=score,
        volumes_ml=scan.table[:, VOXELS].astype(np.float64) * _voxel_ml(scan),
        scores=np.asarray(scan.scores, dtype=np.float64),
        sources=tuple((name, int(n)) for name, n in zip(scan.sources, counts, strict=False)),
    )


def overview_scan(
    scan: ScanLike, score: ScanScore | None, config: InspectConfig | None = None
) -> ScanOverview:
    """Return the contents of a scan's row in a table; much faster than `describe_scan`."""
    return _overview(scan, score, foreground(scan), coverage(scan), config or InspectConfig())


def _overview(
    scan: ScanLike,
    score: ScanScore | None,
    body: NDArray[np.bool_],
    cover: NDArray[np.int32],
    config: InspectConfig,
) -> ScanOverview:
    structures = score.structures if score is not None else ()
    best = [entry.iou[-1] for entry in structures]
    flat = [entry.slic_iou for entry in structures if entry.slic_iou is not None]
    z, y, x = scan.image.shape
    dz, dy, dx = scan.spacing_zyx_mm
    return ScanOverview(
        scan_id=scan.scan_id,
        dataset=scan.dataset,
        modality=scan.modality,
        shape_zyx=(z, y, x),
        extent_zyx_mm=(z * dz, y * dy, x * dx),
        num_atoms=sum(num_atoms(scan, layer) for layer in range(len(scan.atoms))),
        num_proposals=len(scan.table),
        covered_fraction=float(np.mean(cover[body] > 0)) if body.any() else 0.0,
        outside_fraction=_outside_fraction(scan, body),
        num_structures=len(structures),
        mean_iou=float(np.mean(best)) if best else None,
        found_fraction=float(np.mean(np.array(best) >= 0.5)) if best else None,
        slic_iou=float(np.mean(flat)) if flat else None,
        thumbnail=_picture(
            overview_slice(scan, focus_point(scan, body), pixels=150),
            f"Axial slice of {scan.scan_id} with its proposals of 1 mL and more",
            config,
        ),
    )


def _outside_fraction(scan: ScanLike, body: NDArray[np.bool_]) -> float:
    """Return the fraction of the proposals that have less than a tenth of their voxels in the body."""
    overlap = interval_overlap(scan, body.view(np.uint8), values=[1])
    return float(np.mean(overlap.intersection[0] < OUTSIDE_BODY_FRACTION * overlap.proposal_voxels))


def scan_facts(scan: ScanLike) -> tuple[tuple[str, str], ...]:
    """Return what is known about a scan, as names and values to print."""
    z, y, x = scan.image.shape
    dz, dy, dx = scan.spacing_zyx_mm
    known = scan.attributes
    source = _mapping(known.get("source_grid"))
    intensity = _mapping(known.get("intensity"))
    machine = ", ".join(f"{name}: {value}" for name, value in _mapping(known.get("facts")).items())
    notes = known.get("notes")
    labels = [f"{label.name} ({len(label.value_names or {}) or 'unnamed'} values)" for label in scan.labels]
    facts = [
        ("data set", scan.dataset),
        ("modality", f"{scan.modality.upper()}, known by {known.get('modality_origin', 'an unstated rule')}"),
        ("stored", f"{z} × {y} × {x} voxels of {dz:g} × {dy:g} × {dx:g} mm"),
        ("extent", f"{z * dz:.0f} × {y * dy:.0f} × {x * dx:.0f} mm (height, depth, width)"),
        ("source file", str(known.get("location", ""))),
        ("source grid", _source_grid(source)),
        ("intensity", _intensity(intensity)),
        ("acquisition", machine),
        ("notes", "; ".join(str(note) for note in notes) if isinstance(notes, list | tuple) else ""),
        ("atoms", ", ".join(f"{num_atoms(scan, layer):,}" for layer in range(len(scan.atoms)))),
        ("hierarchies", str(sum(len(orders) for orders in scan.orders))),
        ("proposals", _origins(scan)),
        ("labels", ", ".join(labels) or "none"),
    ]
    return tuple((name, value) for name, value in facts if value)


def _origins(scan: ScanLike) -> str:
    """Return the number of proposals; of own and imported ones, if there are any."""
    rows = rows_by_origin(scan)
    listed = ", ".join(f"{len(some):,} {name}" for name, some in rows.items())
    return f"{len(scan.table):,}" + (f" ({listed})" if len(rows) > 1 else "")


def _source_grid(grid: Mapping[str, Any]) -> str:
    shape, spacing = grid.get("shape_zyx"), grid.get("spacing_xyz_mm")
    if not shape or not spacing:
        return ""
    sizes = " × ".join(str(n) for n in shape)
    return f"{sizes} voxels of {' × '.join(f'{s:.4g}' for s in reversed(spacing))} mm"


def _intensity(intensity: Mapping[str, Any]) -> str:
    if not {"low", "high", "mean", "std"} <= set(intensity):
        return ""
    low, high, mean, std = (float(intensity[name]) for name in ("low", "high", "mean", "std"))
    unit = f" {intensity['unit']}" if intensity.get("unit") else ""
    return f"{low:.4g} to {high:.4g}{unit}; mean {mean:.4g}, standard deviation {std:.4g}"


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _voxel_ml(scan: ScanLike) -> float:
    return float(np.prod(scan.spacing_zyx_mm)) / 1000


def _picture(picture: Rgb, alt: str, config: InspectConfig, caption: str = "") -> Picture:
    height, width, _ = picture.shape
    png = to_png(picture, colors=config.png_colors)
    return Picture(png=png, width=width, height=height, alt=alt, caption=caption)


def _step_name(low: int, high: int) -> str:
    if low == high:
        return "none" if low == 0 else str(low)
    return f"{low} or more" if high >= 10**9 else f"{low} to {high}"


def _sheet(scan: ScanLike, point: Point, config: InspectConfig) -> Picture:
    """Return the picture from image to organ; of several label maps it shows the first."""
    label = scan.labels[0].array if scan.labels else None
    sheet = hierarchy_sheet(scan, point, pixels=config.sheet_pixels, label=label)
    shown = "image, atoms, proposals of each size class" + (" and expert labels" if scan.labels else "")
    return _picture(sheet, f"Three planes of {scan.scan_id}: {shown}", config)


def _size_groups(
    scan: ScanLike, point: Point, body: NDArray[np.bool_], config: InspectConfig
) -> tuple[SizeGroup, ...]:
    """Return a group per size class and imported source: its best disjoint proposals, and single examples."""
    groups = []
    chosen = rows_by_size(scan)
    chosen |= {f"imported {name}": rows for name, rows in rows_by_origin(scan).items() if name != OWN}
    montages = group_montages(scan, point, chosen, pixels=config.plane_pixels)
    for name, rows in chosen.items():
        covered = coverage(select(scan, rows)) > 0
        groups.append(
            SizeGroup(
                name=name,
                num_proposals=len(rows),
                body_fraction=float(np.mean(covered[body])) if body.any() else 0.0,
                planes=_picture(
                    arrange_planes(montages[name]),
                    f"Axial, coronal and sagittal slice of {scan.scan_id} with proposals of {name}",
                    config,
                ),
                examples=tuple(_example(scan, int(row), config) for row in rows[: config.examples]),
            )
        )
    return tuple(groups)


def _example(scan: ScanLike, row: int, config: InspectConfig) -> Picture:
    volume = volume_text(int(scan.table[row, VOXELS]) * _voxel_ml(scan))
    source = scan.sources[int(scan.table[row, SOURCE])]
    return _picture(
        proposal_tile(scan, row, pixels=config.tile_pixels),
        f"Proposal {row} of {scan.scan_id} on its widest slice",
        config,
        f"#{row} · {volume} · {source} · score {float(scan.scores[row]):.3g}",
    )


def _matches(scan: ScanLike, score: ScanScore | None, config: InspectConfig) -> tuple[Match, ...]:
    """Return the structures with the proposal that matches each best, best first."""
    if score is None:
        return ()
    arrays = {label.name: label.array for label in scan.labels}
    ordered = sorted(score.structures, key=lambda entry: (-entry.iou[-1], entry.name))
    return tuple(_match(scan, entry, arrays, config) for entry in _spread(ordered, config.structures))


def _match(scan: ScanLike, entry: StructureScore, arrays: Mapping[str, Any], config: InspectConfig) -> Match:
    tile = structure_tile(scan, arrays[entry.label], entry.value, entry.best, pixels=config.tile_pixels)
    alt = f"{entry.name}: label outlined, proposal {entry.best} filled, IoU {entry.iou[-1]:.2f}"
    return Match(score=entry, picture=_picture(tile, alt, config))


def _spread(entries: Sequence[StructureScore], most: int) -> list[StructureScore]:
    """Return at most `most` entries, evenly spread over the ranking, so that the worst are shown too."""
    if len(entries) <= most:
        return list(entries)
    return [entries[round(k * (len(entries) - 1) / (most - 1))] for k in range(most)]
