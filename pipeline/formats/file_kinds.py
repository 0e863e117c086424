"""The image formats in one table, `IMAGE_FORMATS`, and the format of a file by its bytes.

*Reads*: a file's first bytes; for the binary and the zipped formats the whole file once, to verify its
length, its voxels and its checksum. *Writes*: a row of the table and what its check found, or a `ScanError`.
The checks are those that the image libraries do not make (`binary_headers`, `text_headers`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline.errors import NotAnImage, ScanError, UnreadableFile
from pipeline.formats.binary_headers import (
    Checked,
    check_analyze,
    check_mgh,
    check_nifti,
    check_nifti_2,
    check_nifti_pair,
)
from pipeline.formats.byte_streams import CHUNK_BYTES, chunks, is_zipped
from pipeline.formats.text_headers import check_meta, check_nrrd

_NIFTI_NAME = re.compile(r"\.nii(\.gz)?$", re.IGNORECASE)

_OTHERS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"%PDF", "a PDF document"),
    (b"<!DOCTYPE", "an HTML page"),
    (b"<html", "an HTML page"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF", "an HDF5 file"),
    (b"GIF8", "a GIF picture"),
    (b"ENVI", "a header of ENVI, of satellite pictures"),
    (b"!INTERFILE", "an Interfile header"),
)


@dataclass(frozen=True, kw_only=True)
class ImageFormat:
    """A single-file image format."""

    suffixes: Mapping[str, str]
    """Suffixes of its files in lower case, each with the suffix of result files for such an input."""
    data_file: Mapping[str, re.Pattern[str]] = field(default_factory=dict)
    """Suffixes of detached headers, each with the line that names the data file, as group `file`."""
    data_suffix: Mapping[str, str] = field(default_factory=dict)
    """Suffixes of headers whose data file has the same name, each with the data file's suffix."""
    library: Literal["SimpleITK", "nibabel"] = "SimpleITK"
    """The library that reads it."""
    reader: str
    """The library's name of the reader."""
    exact_reader: str = ""
    """nibabel's name of a reader for files that SimpleITK refuses for their orientation, or would change: it
    reads NaN as 0."""
    note: str = ""
    """Note that every scan of this format gets; empty for none."""
    check: Callable[[Path, bytes, int | None, str], Checked | None]
    """Returns the result of the check, or None for a file of another format. Its arguments: the path, the
    first bytes, the frame that is used (None: all), and the file's name in messages. Raises a `ScanError` if
    the file is broken in a way that the library would repair without notice."""


def identify(path: Path, *, shown: str, frame: int | None = None) -> tuple[ImageFormat, Checked]:
    """Return the format of an image file by its bytes, after checks of its header and length.

    Args:
        path: The file.
        shown: Name of the file in error messages.
        frame: Index of the frame that is used, for a 4D file; None if all are used.

    Raises:
        NotAnImage: The bytes are of no format of the table.
        CorruptImage: The file is shorter than its header says, or a packed stream is damaged.
        BadSpacing: The header has no voxel size, or one that is not positive, or two.
        NotVolumetric: The voxels are colours or complex numbers.
        UnreadableFile: The header names a data file outside of its folder; or the library cannot read a file
            of this name.
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(CHUNK_BYTES // 16)
    for image_format in IMAGE_FORMATS.values():
        checked = image_format.check(path, start, frame, shown)
        if checked is not None:
            _check_name(path, image_format, is_zipped(start), shown)
            return image_format, checked
    zipped = is_zipped(start)
    raise _no_image(next(chunks(path, zipped, shown), b""), zipped, shown)


def _check_name(path: Path, image_format: ImageFormat, zipped: bool, shown: str) -> None:
    """Refuse names of NIfTI files by which the libraries would misread them: a zipped x.nii, x.Nii.Gz."""
    ending = _NIFTI_NAME.search(path.name)
    if ending is None or ".nii" not in image_format.suffixes:
        return
    wanted = ".nii.gz" if zipped else ending.group().lower()
    if ending.group().lower() != wanted:
        what = "the file is zipped (gzip), its name does not say so"
    elif ending.group() not in (wanted, wanted.upper()):
        what = f"the end of its name, {ending.group()}, is neither in lower nor in upper case"
    else:
        return
    raise UnreadableFile(what, path=shown, remedy=f"Rename it, so that it ends with {wanted}")


def _no_image(start: bytes, zipped: bool, shown: str) -> ScanError:
    """Return the error for bytes that are not an image, with their kind if it is known."""
    lower = start.lstrip().lower()
    what = next((name for magic, name in _OTHERS if lower.startswith(magic.lower())), None)
    found = f"; this is {what}" if what else (", after unzipping" if zipped else "")
    *names, last = IMAGE_FORMATS
    return NotAnImage(
        f"the bytes are no {', '.join(names)} or {last}{found}",
        path=shown,
        remedy="Remove it from the folder or manifest, or put the real image in its place",
    )


IMAGE_FORMATS = {
    "NIfTI": ImageFormat(
        suffixes={".nii.gz": ".nii.gz", ".nii": ".nii"},
        reader="NiftiImageIO",
        exact_reader="Nifti1Image",
        check=check_nifti,
    ),
    "NIfTI-2": ImageFormat(
        suffixes={".nii.gz": ".nii.gz", ".nii": ".nii"},
        library="nibabel",
        reader="Nifti2Image",
        check=check_nifti_2,
    ),
    "NIfTI pair": ImageFormat(
        suffixes={".hdr": ".nii"},
        data_suffix={".hdr": ".img"},
        library="nibabel",
        reader="Nifti1Pair",
        check=check_nifti_pair,
    ),
    "Analyze 7.5": ImageFormat(
        suffixes={".hdr": ".nii"},
        data_suffix={".hdr": ".img"},
        library="nibabel",
        reader="Spm2AnalyzeImage",
        note="Analyze 7.5 has no orientation: the axes are taken to run to the left, front and head, as "
        "nibabel and SPM do; left and right may be exchanged",
        check=check_analyze,
    ),
    "MGH": ImageFormat(
        suffixes={".mgz": ".nii.gz", ".mgh": ".nii.gz"},
        library="nibabel",
        reader="MGHImage",
        check=check_mgh,
    ),
    "NRRD": ImageFormat(
        suffixes={".nrrd": ".nrrd", ".nhdr": ".nrrd"},
        data_file={
            ".nhdr": re.compile(r"^\s*data ?file:\s*(?P<file>\S.*?)\s*$", re.IGNORECASE | re.MULTILINE)
        },
        reader="NrrdImageIO",
        check=check_nrrd,
    ),
    "MetaImage": ImageFormat(
        suffixes={".mha": ".mha", ".mhd": ".mha"},
        data_file={
            ".mhd": re.compile(r"^\s*ElementDataFile\s*=\s*(?P<file>\S.*?)\s*$", re.IGNORECASE | re.MULTILINE)
        },
        reader="MetaImageIO",
        check=check_meta,
    ),
}
"""Every single-file image format, by its name in messages; the first whose check holds is taken."""
