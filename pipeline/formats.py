"""What a file is, by its bytes, and the checks that the image library does not make.

*Reads*: the first bytes of a file; for gzip the whole stream once, to verify its checksum. *Writes*: the name
of a format, or a `ScanError`. The library repairs some broken NIfTI headers in silence (a voxel size of 0
becomes 1 mm) and reads missing bytes as zeros; both are caught here.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, cast

from pipeline.errors import BadSpacing, CorruptImage, NotAnImage, ScanError

Format = Literal["nifti", "nrrd", "meta"]

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
)

_NIFTI_MAGIC = {348: (b"n+1\0", b"ni1\0"), 540: (b"n+2\0", b"ni2\0")}
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class NiftiHeader:
    """The fields of a NIfTI-1 or -2 header that say how many bytes follow and how large a voxel is."""

    shape: tuple[int, ...]
    pixdim: tuple[float, ...]
    bits: int
    data_offset: int

    @property
    def num_bytes(self) -> int:
        """Bytes that the file must have, uncompressed."""
        return self.data_offset + math.prod(self.shape) * self.bits // 8


def identify(path: Path, *, shown: str) -> Format:
    """The format of an image file by its bytes; NIfTI and gzip are checked to be whole.

    Raises:
        NotAnImage: The bytes are none of NIfTI, NRRD, MetaImage.
        CorruptImage: The file is shorter than its header says, or its gzip stream is damaged.
        BadSpacing: A NIfTI header's voxel size is not positive.
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(1024)
    zipped = start[:2] == b"\x1f\x8b"
    if zipped:
        start, num_bytes = _unzip(path, shown)
    else:
        num_bytes = path.stat().st_size
    if start[:4] == b"NRRD":
        return "nrrd"
    if b"NDims" in start and (b"=" in start):
        return "meta"
    header = _nifti_header(start)
    if header is None:
        raise _no_image(start, zipped, shown)
    _check_nifti(header, num_bytes, shown)
    return "nifti"


def _no_image(start: bytes, zipped: bool, shown: str) -> ScanError:
    """The error for bytes that are no image, with what they are where that is known."""
    lower = start.lstrip().lower()
    what = next((name for magic, name in _OTHERS if lower.startswith(magic.lower())), None)
    if (
        what is None
        and start[344:348] == b"\0\0\0\0"
        and struct.unpack("<i", start[:4])[0] in (348, 1543569408)
    ):
        what = "an Analyze 7.5 file, whose orientation is unknown"
    found = f"; this is {what}" if what else (", after unzipping" if zipped else "")
    return NotAnImage(
        f"the bytes are no NIfTI, NRRD or MetaImage{found}",
        path=shown,
        remedy="Remove it from the folder or manifest, or put the real image in its place",
    )


def _nifti_header(start: bytes) -> NiftiHeader | None:
    """The header in a file's first bytes, in either byte order; None where there is none."""
    if len(start) < 352:
        return None
    for order in "<>":
        size = struct.unpack_from(order + "i", start)[0]
        if size == 348 and start[344:348] in _NIFTI_MAGIC[348]:
            dim = struct.unpack_from(order + "8h", start, 40)
            bits = struct.unpack_from(order + "h", start, 72)[0]
            pixdim = struct.unpack_from(order + "8f", start, 76)
            offset = int(struct.unpack_from(order + "f", start, 108)[0])
        elif size == 540 and start[4:8] in _NIFTI_MAGIC[540] and len(start) >= 540:
            dim = struct.unpack_from(order + "8q", start, 16)
            bits = struct.unpack_from(order + "h", start, 14)[0]
            pixdim = struct.unpack_from(order + "8d", start, 104)
            offset = struct.unpack_from(order + "q", start, 168)[0]
        else:
            continue
        num_axes = dim[0] if 1 <= dim[0] <= 7 else 0
        return NiftiHeader(
            shape=tuple(dim[1 : num_axes + 1]), pixdim=tuple(pixdim[1:4]), bits=bits, data_offset=offset
        )
    return None


def _check_nifti(header: NiftiHeader, num_bytes: int, shown: str) -> None:
    if not header.shape or min(header.shape) < 1:
        raise CorruptImage(
            f"the header must tell a size of at least one voxel an axis, got {header.shape}",
            path=shown,
            remedy="Copy or export the file again",
        )
    used = header.pixdim[: min(3, len(header.shape))]
    if not all(math.isfinite(s) and s > 0 for s in used):
        raise BadSpacing(
            f"the voxel size must be positive, the header says {tuple(round(s, 6) for s in used)} mm",
            path=shown,
            remedy="Correct the header's pixdim (nibabel: header.set_zooms) or export the file again",
        )
    if num_bytes < header.num_bytes:
        raise CorruptImage(
            f"the file is cut short: its header needs {header.num_bytes} bytes"
            f" for {' x '.join(map(str, header.shape))} voxels, it has {num_bytes}",
            path=shown,
            remedy="Copy or download the file again",
        )


def _unzip(path: Path, shown: str) -> tuple[bytes, int]:
    """First bytes and length of a gzip stream, whose end and checksum are verified.

    Raises:
        CorruptImage: The stream is damaged or ends early.
    """
    start, num_bytes = b"", 0
    try:
        with path.open("rb") as raw, gzip.GzipFile(fileobj=raw) as file:
            stream = cast("BinaryIO", file)
            while chunk := stream.read(_CHUNK_BYTES):
                start = start or chunk[:1024]
                num_bytes += len(chunk)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        short = isinstance(error, EOFError)
        raise CorruptImage(
            "the gzip stream ends early, the file is cut short" if short else "the gzip stream is damaged",
            path=shown,
            remedy="Copy or download the file again",
        ) from None
    return start, num_bytes
