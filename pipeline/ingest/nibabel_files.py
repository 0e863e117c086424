"""Single-file images that nibabel reads: NIfTI-2, pairs (.hdr and .img), MGH, NIfTI-1 that SimpleITK refuses.

*Reads*: a file whose header, length and checksum are checked. *Writes*: `FileImage`. nibabel's world (right,
front, head) becomes ours (left, back, head), and its (x, y, z) arrays (z, y, x).

Orientation of a NIfTI header, the same for all versions: the sform if it is the scanner's (code 1), else the
qform, else the sform; without either, axes to the left, back and head, from voxel (0, 0, 0). The first of
these whose axes are at right angles is taken; if there is none, the first that can be corrected.
"""

from __future__ import annotations

import logging
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import BadGeometry, ScanError
from pipeline.ingest.config import IngestConfig
from pipeline.ingest.image_checks import (
    FileImage,
    Frames,
    check_size,
    check_spacing,
    choose_frame,
    damaged,
    grid_of_header,
    out_of_memory,
    plain,
    sheared,
    too_many_axes,
)
from pipeline.volumes import Grid

_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])

_UNIT_MM = {1: 1000.0, 3: 0.001}
"""Length of NIfTI's units of space in mm, by their code: metre, micrometre; all others are mm."""

_DAMAGED = (ValueError, TypeError, KeyError, IndexError, OverflowError, EOFError, zlib.error)


def read_with_nibabel(
    path: Path, reader_name: str, note: str, config: IngestConfig, frame: int | None, shown: str
) -> FileImage:
    """Return the voxels and the grid of a file; arguments and errors as in `image_files.read_file`.

    Args:
        path: The file.
        reader_name: nibabel's name of the image class.
        note: Note that every scan of this format gets; empty for none.
        config: Limits of size and voxel size.
        frame: Index of the frame to take.
        shown: Name of the file in error messages.
    """
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.openers import ImageOpener
    from nibabel.spatialimages import HeaderDataError

    image_class: Any = getattr(nibabel, reader_name)
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)  # what it would repair is checked before
    if reader_name == "Spm2AnalyzeImage":
        _refuse_side_file(path, shown)
    try:
        # nibabel itself leaves some files open; numbers that make no sense are refused, not warned of
        with ExitStack() as opened, np.errstate(all="ignore"):
            files = image_class.filespec_to_file_map(path)
            for holder in files.values():
                if Path(holder.filename).is_file():
                    holder.fileobj = opened.enter_context(ImageOpener(holder.filename, mode="rb"))
            image = image_class.from_file_map(files, mmap=False)
            size = [int(n) for n in image.shape]
            index = _frame_index(size, config, frame, shown)
            grid, notes = _grid(image, reader_name, (size[0], size[1], size[2]), config, shown)
            array = _values(image.dataobj, index)
    except MemoryError:
        raise out_of_memory(shown) from None
    except (HeaderDataError, ImageFileError, *_DAMAGED):
        raise damaged(shown) from None
    return FileImage(array=array, grid=grid, notes=notes if not note else (note, *notes))


def header_with_nibabel(
    path: Path, config: IngestConfig, frame: int | None, shown: str
) -> tuple[tuple[int, int, int], tuple[float, float, float]] | None:
    """Return (x, y, z) voxels of a frame and their size in mm; None for a file that nibabel does not know.

    Raises:
        ScanError: The header shows that the file cannot be used.
    """
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)
    try:
        with np.errstate(all="ignore"):
            header: Any = nibabel.load(path).header
            size = [int(n) for n in header.get_data_shape()]
            zooms = [float(length) for length in header.get_zooms()[:3]]
    except (HeaderDataError, ImageFileError, *_DAMAGED):
        return None
    _frame_index(size, config, frame, shown)
    check_spacing(zooms, size[:3], config, shown)
    return (size[0], size[1], size[2]), (zooms[0], zooms[1], zooms[2])


def _refuse_side_file(path: Path, shown: str) -> None:
    """Refuse an Analyze pair with SPM's file of its orientation, which is not read."""
    if path.with_suffix(".mat").exists():
        raise BadGeometry(
            "the orientation of this Analyze pair is in the .mat file of SPM beside it, which is not read",
            path=shown,
            remedy="Convert it to NIfTI with SPM, or with nibabel (nib.load, nib.Nifti1Image.from_image)",
        )


def _frame_index(size: list[int], config: IngestConfig, frame: int | None, shown: str) -> tuple[int, ...]:
    """Return the index of the chosen frame along all axes after the third."""
    check_size(size, config, shown)
    frames = [n for n in size[3:] if n > 1]
    if len(frames) > 1:
        raise too_many_axes(size, 1, shown)
    if not frames:
        return (0,) * len(size[3:])
    chosen = choose_frame(Frames(kind="4D", count=frames[0]), frame, shown)
    return tuple(chosen if n > 1 else 0 for n in size[3:])


def _values(proxy: Any, index: tuple[int, ...]) -> NDArray[np.int16] | NDArray[np.float32]:
    """Return (z, y, x) real values of a frame; only its bytes are read."""
    with np.errstate(all="ignore"):  # voxels that are NaN or infinite are handled later
        array = np.asarray(proxy[(..., *index)] if index else proxy[...])
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    return plain(np.ascontiguousarray(native.T))


def _grid(
    image: Any, reader_name: str, size: tuple[int, int, int], config: IngestConfig, shown: str
) -> tuple[Grid, tuple[str, ...]]:
    """Return the grid, and a note if its axes were put to right angles."""
    if reader_name.startswith("Nifti"):
        affines = nifti_affines(image.header)
    else:
        affines = [_TO_LPS @ np.asarray(image.affine, dtype=np.float64)]
    found: list[tuple[Grid, tuple[str, ...]]] = []
    refusal: ScanError | None = None
    for affine in affines:
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
        if not (np.isfinite(affine).all() and lengths.min() > 0):
            refusal = refusal or sheared(
                "the header's orientation is no number, or an axis has no length", shown
            )
            continue
        check_spacing(lengths, size, config, shown)
        try:
            found.append(grid_of_header(size[::-1], lengths, affine[:3, 3], affine[:3, :3] / lengths, shown))
        except BadGeometry as error:
            refusal = refusal or error
    if not found:
        raise refusal or sheared("the header has no orientation", shown)
    return next((one for one in found if not one[1]), found[0])


def nifti_affines(header: Any) -> list[NDArray[np.float64]]:
    """Return the affines of a NIfTI header that are in use, float64 (4, 4), best first.

    Args:
        header: nibabel's.

    Returns:
        From index (x, y, z, 1) to a point in mm in the frame of `Grid`.
    """
    sform_code, qform_code = int(header["sform_code"]), int(header["qform_code"])
    sform = np.asarray(header.get_sform(), dtype=np.float64)
    affines = [sform] if sform_code == 1 else []
    if qform_code > 0:
        affines.append(np.asarray(header.get_qform(), dtype=np.float64))
    if sform_code > 1:
        affines.append(sform)
    if not affines:
        affines = [_TO_LPS @ np.diag([*np.asarray(header["pixdim"][1:4], dtype=np.float64), 1.0])]
    millimetres = np.diag([*[_UNIT_MM.get(int(header["xyzt_units"]) & 7, 1.0)] * 3, 1.0])
    return [millimetres @ _TO_LPS @ affine for affine in affines]
