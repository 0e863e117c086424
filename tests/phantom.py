"""A patient made of ellipsoids, drawn on any grid, and written to disk in any format.

Nested (body, organ, lesion in the organ), off-centre in every direction (so a mirrored or transposed copy
differs), with anisotropic spacing by default and a plate one voxel thin.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.ingest.writeback import write_image
from pipeline.volumes.grid import Grid, nine, triple

STRUCTURES = {1: "organ", 2: "lesion", 3: "lung", 4: "bone", 5: "plate"}

#            value, centre from the middle of the body in mm (left, back, head), radii in mm, HU
_ELLIPSOIDS = [
    (0, (0, 0, 0), (34, 27, 48), 40.0),
    (3, (12, -4, 18), (11, 14, 20), -850.0),
    (4, (1, 17, -2), (6, 6, 44), 700.0),
    (1, (-13, -5, -14), (16, 13, 18), 120.0),
    (2, (-16, -8, -10), (7, 6, 8), 220.0),
]


@dataclass(frozen=True, kw_only=True)
class Phantom:
    """Image in real units and labels, both (z, y, x) on `grid`."""

    image: np.ndarray
    labels: np.ndarray
    grid: Grid
    modality: str

    def replace(self, **changes: Any) -> Phantom:
        return dataclasses.replace(self, **changes)

    def write(self, path: Path) -> Path:
        """Writes the image; the suffix tells the format."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(path, self.image, self.grid)
        return path

    def write_labels(self, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(path, self.labels, self.grid)
        return path


def phantom(
    *,
    shape_zyx: tuple[int, int, int] = (36, 60, 70),
    spacing_zyx_mm: tuple[float, float, float] = (3.0, 1.2, 1.3),
    direction: Any = ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    centre_xyz_mm: tuple[float, float, float] = (20.0, -35.0, 410.0),
    modality: str = "ct",
    noise: float = 8.0,
    seed: int = 0,
) -> Phantom:
    """The patient on a grid of the given shape and direction; the body's middle lies at the grid's middle."""
    z, y, x = shape_zyx
    matrix = np.asarray(direction, dtype=float)
    spacing_xyz = np.array(spacing_zyx_mm[::-1])
    middle = (np.array([x, y, z]) - 1) / 2
    grid = Grid(
        shape_zyx=shape_zyx,
        spacing_xyz_mm=triple(spacing_xyz),
        origin_xyz_mm=triple(np.array(centre_xyz_mm) - matrix @ (middle * spacing_xyz)),
        direction=nine(matrix),
    )
    k, j, i = np.meshgrid(*(np.arange(n) for n in shape_zyx), indexing="ij")
    points = grid.to_world(np.stack([i, j, k], axis=-1).astype(float)) - np.array(centre_xyz_mm)
    image, labels = np.full(shape_zyx, -1000.0), np.zeros(shape_zyx, np.uint8)
    for value, place, radii, hu in _ELLIPSOIDS:
        inside = (((points - place) / radii) ** 2).sum(axis=-1) <= 1
        image[inside], labels[inside] = hu, value
    thin = (np.abs(points[..., 0] - 24) <= spacing_xyz.min() / 2) & (labels == 0) & (image > 0)
    thin &= (np.abs(points[..., 2]) < 20) & (np.abs(points[..., 1]) < 12)
    image[thin], labels[thin] = 300.0, 5
    image += np.random.default_rng(seed).normal(0, noise, shape_zyx)
    if modality != "ct":
        image = np.maximum(image + 1000, 0) * 0.7
    return Phantom(image=np.rint(image).astype(np.int16), labels=labels, grid=grid, modality=modality)


def write_dicom(
    folder: Path,
    scan: Phantom,
    *,
    patient_name: str = "DOE^JOHN",
    patient_id: str = "XK-4711",
    skip: tuple[int, ...] = (),
    shift_mm: float = 0.0,
    tilt_mm: float = 0.0,
    series_uid: str = "1.2.826.0.1.3680043.8.498.1",
    study_uid: str = "1.2.826.0.1.3680043.8.498.2",
    series_number: int = 3,
    suffix: str = ".dcm",
    slope: tuple[float, float] = (1.0, -1024.0),
    tags: dict[str, Any] | None = None,
) -> list[Path]:
    """Writes one file a slice, in an order that is not that of the slices.

    Args:
        skip: Slices left out.
        shift_mm: The last slice lies this much too far.
        tilt_mm: Every slice is shifted this much sideways against the one before.
        slope: Rescale slope and intercept.
        tags: Further tags for every file.
    """
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage

    folder.mkdir(parents=True, exist_ok=True)
    grid, paths = scan.grid, []
    matrix = grid.matrix
    num_slices = grid.shape_zyx[0]
    for k in range(num_slices):
        if k in skip:
            continue
        place = grid.to_world(np.array([0.0, 0.0, float(k)])) + matrix[:, 1] * tilt_mm * k
        if k == num_slices - 1:
            place = place + matrix[:, 2] * shift_mm
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage if scan.modality == "ct" else MRImageStorage
        meta.MediaStorageSOPInstanceUID = f"{series_uid}.{k + 1}"
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folder / f"{(k * 7) % 1000:04d}-{k:03d}{suffix}"
        data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        data.StudyInstanceUID, data.SeriesInstanceUID, data.SeriesNumber = (
            study_uid,
            series_uid,
            series_number,
        )
        data.FrameOfReferenceUID = "1.2.826.0.1.3680043.8.498.9"
        data.PatientName, data.PatientID, data.PatientBirthDate = patient_name, patient_id, "19510203"
        data.Modality = {"ct": "CT", "mr": "MR", "pet": "PT"}[scan.modality]
        data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        data.InstanceNumber = k + 1
        data.Rows, data.Columns = scan.image.shape[1:]
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
        data.RescaleSlope, data.RescaleIntercept = slope
        data.ImagePositionPatient = [f"{v:.6f}" for v in place]
        data.ImageOrientationPatient = [f"{v:.8f}" for v in (*matrix[:, 0], *matrix[:, 1])]
        data.PixelSpacing = [f"{grid.spacing_xyz_mm[1]:.6f}", f"{grid.spacing_xyz_mm[0]:.6f}"]
        data.SliceThickness = f"{grid.spacing_xyz_mm[2]:.6f}"
        for name, value in (tags or {}).items():
            setattr(data, name, value)
        stored = np.rint((scan.image[k].astype(float) - slope[1]) / slope[0])
        data.PixelData = np.clip(stored, 0, 65535).astype("<u2").tobytes()
        data.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths
