"""The image formats in one table, `IMAGE_FORMATS`, and the format of a file by its bytes.

*Reads*: the first bytes of a file; for NIfTI the whole file once, to verify its length, its voxels and a gzip
checksum. *Writes*: a row of the table, or a `ScanError`. The checks are those that the image library does not
make: it repairs some broken NIfTI headers
without a message (a voxel size of 0 becomes 1 mm) and reads missing bytes as zeros; both are found here.
"""

from __future__ import annotations

import gzip
import math
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from pipeline.errors import BadSpacing, CorruptImage, NotAnImage, NotFinite, ScanError

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

_NIFTI_MAGIC = (b"n+1\0", b"ni1\0")
_NIFTI_2_MAGIC = (b"n+2\0", b"ni2\0")
_NIFTI_FLOATS = {16: "f4", 64: "f8"}
_META_BYTES = {"CHAR": 1, "UCHAR": 1, "SHORT": 2, "USHORT": 2, "INT": 4, "UINT": 4, "LONG": 4, "ULONG": 4}
_META_BYTES |= {"LONG_LONG": 8, "ULONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8}
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class NiftiHeader:
    """Fields of a NIfTI-1 header: shape, voxel size and type."""

    shape: tuple[int, ...]
    """Voxels along each stored axis, x first."""
    pixdim: tuple[float, ...]
    """Voxel size along x, y, z in mm."""
    bits: int
    """Bits per voxel."""
    data_offset: int
    """Byte at which the voxels begin."""
    float_type: str | None
    """NumPy's name of the voxel type if it is a float; else None."""

    @property
    def num_bytes(self) -> int:
        """Bytes that the uncompressed file must have."""
        return self.data_offset + math.prod(self.shape) * self.bits // 8


@dataclass(frozen=True, kw_only=True)
class ImageFormat:
    """A single-file image format."""

    suffixes: Mapping[str, str]
    """Suffixes of its files in lower case, each with the suffix of result files for such an input."""
    data_file: Mapping[str, re.Pattern[str]] = field(default_factory=dict)
    """Suffixes of detached headers, each with the line that names the data file, as group `file`."""
    reader: str
    """SimpleITK's name of the reader."""
    check: Callable[[Path, bytes, int | None, str], bool]
    """Whether a file is of this format, from its path, its first bytes, the frame that is used (None: all),
    and its name in messages. Raises a `ScanError` if it is, but broken in a way that the library would repair
    in silence."""


def identify(path: Path, *, shown: str, frame: int | None = None) -> ImageFormat:
    """Return the format of an image file by its bytes, after checks of its header and length.

    For NIfTI the voxels are checked too.

    Args:
        path: The file.
        shown: Name of the file in error messages.
        frame: Index of the frame that is used, for a 4D file; None if all are used.

    Raises:
        NotAnImage: The bytes are of no format of the table.
        CorruptImage: The file is shorter than its header says, or its gzip stream is damaged.
        BadSpacing: The header has no voxel size, or one that is not positive.
        NotFinite: A NIfTI file holds NaN or infinite voxels (the library would read them as 0).
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(_CHUNK_BYTES // 16)
    for image_format in IMAGE_FORMATS.values():
        if image_format.check(path, start, frame, shown):
            return image_format
    zipped = _is_zipped(start)
    raise _no_image(next(_chunks(path, zipped, shown), b""), zipped, shown)


def _no_image(start: bytes, zipped: bool, shown: str) -> ScanError:
    """Return the error for bytes that are not an image, with their kind if it is known."""
    lower = start.lstrip().lower()
    what = next((name for magic, name in _OTHERS if lower.startswith(magic.lower())), None)
    if start[4:8] in _NIFTI_2_MAGIC:
        return NotAnImage(
            "the file is NIfTI-2, which the image library does not read",
            path=shown,
            remedy="Save it as NIfTI-1 (nibabel: nib.Nifti1Image.from_image)",
        )
    if (
        what is None
        and start[344:348] == b"\0\0\0\0"
        and struct.unpack("<i", start[:4])[0] in (348, 1543569408)
    ):
        what = "an Analyze 7.5 file, whose orientation is unknown"
    found = f"; this is {what}" if what else (", after unzipping" if zipped else "")
    *names, last = IMAGE_FORMATS
    return NotAnImage(
        f"the bytes are no {', '.join(names)} or {last}{found}",
        path=shown,
        remedy="Remove it from the folder or manifest, or put the real image in its place",
    )


def _check_nifti(path: Path, start: bytes, frame: int | None, shown: str) -> bool:
    """Refuse a NIfTI file that is cut short, or has no voxel size, or voxels that are no numbers."""
    chunks = _chunks(path, _is_zipped(start), shown)
    first = next(chunks, b"")
    header = _nifti_header(first)
    if header is None:
        return False
    _check_nifti_header(header, shown)
    _check_nifti_data(header, first, chunks, frame, shown)
    return True


def _nifti_header(start: bytes) -> NiftiHeader | None:
    """Return the header in a file's first bytes, of either byte order, or None."""
    if len(start) < 352:
        return None
    for order in "<>":
        if struct.unpack_from(order + "i", start)[0] != 348 or start[344:348] not in _NIFTI_MAGIC:
            continue
        dim = struct.unpack_from(order + "8h", start, 40)
        kind, bits = struct.unpack_from(order + "2h", start, 70)
        pixdim = struct.unpack_from(order + "8f", start, 76)
        offset = int(struct.unpack_from(order + "f", start, 108)[0])
        num_axes = dim[0] if 1 <= dim[0] <= 7 else 0
        return NiftiHeader(
            shape=tuple(dim[1 : num_axes + 1]),
            pixdim=tuple(pixdim[1:4]),
            bits=bits,
            data_offset=offset,
            float_type=order + _NIFTI_FLOATS[kind] if kind in _NIFTI_FLOATS else None,
        )
    return None


def _check_nifti_header(header: NiftiHeader, shown: str) -> None:
    if not header.shape or min(header.shape) < 1:
        raise CorruptImage(
            f"the header must give at least one voxel per axis, got {header.shape}",
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


def _check_nifti_data(
    header: NiftiHeader, first: bytes, chunks: Iterator[bytes], frame: int | None, shown: str
) -> None:
    """Read the rest of a NIfTI file, and check its length, its gzip stream and the voxels of the frame."""
    num_bytes, num_not_finite = 0, 0
    frame_bytes = math.prod(header.shape[:3]) * header.bits // 8
    begin = header.data_offset + (frame or 0) * frame_bytes
    end = header.num_bytes if frame is None else begin + frame_bytes
    rest = b""
    for chunk in chain((first,), chunks):
        rest, num_bytes, num_not_finite = _count_not_finite(
            header, rest, chunk, num_bytes, num_not_finite, (begin, end)
        )
    if num_bytes < header.num_bytes:
        raise CorruptImage(
            f"the file is cut short: its header needs {header.num_bytes} bytes"
            f" for {' x '.join(map(str, header.shape))} voxels, it has {num_bytes}",
            path=shown,
            remedy="Copy or download the file again",
        )
    if num_not_finite:
        raise not_finite(num_not_finite, (end - begin) * 8 // header.bits, shown)


def _count_not_finite(
    header: NiftiHeader, rest: bytes, chunk: bytes, position: int, num_not_finite: int, span: tuple[int, int]
) -> tuple[bytes, int, int]:
    """Add the NaN and infinite voxels of a chunk to their number.

    Args:
        header: The header.
        rest: Bytes of an incomplete voxel from the last chunk.
        chunk: The next bytes of the file.
        position: Byte of the file at which the chunk begins.
        num_not_finite: Number so far.
        span: First byte of the voxels that count, and one past the last.

    Returns:
        Bytes of an incomplete voxel, position of the next chunk, number of voxels.
    """
    if header.float_type is not None:
        data = chunk[max(0, span[0] - position) : max(0, span[1] - position)]
        data = rest + data
        whole = len(data) - len(data) % (header.bits // 8)
        num_not_finite += whole * 8 // header.bits - int(
            np.isfinite(np.frombuffer(data[:whole], dtype=header.float_type)).sum()
        )
        rest = data[whole:]
    return rest, position + len(chunk), num_not_finite


def not_finite(count: int, total: int, shown: str) -> ScanError:
    """Return the error of an image with NaN or infinite voxels.

    Args:
        count: Voxels that are NaN or infinite.
        total: Voxels of the image.
        shown: Name of the file in the message.
    """
    return NotFinite(
        f"every voxel must be a number, {count} of {total} are NaN or infinite",
        path=shown,
        remedy="Replace them by the background's value (for CT -1000, else 0) and save the file again",
    )


def _is_zipped(start: bytes) -> bool:
    return start[:2] == b"\x1f\x8b"


def _chunks(path: Path, zipped: bool, shown: str) -> Iterator[bytes]:
    """Yield the file's bytes in chunks, uncompressed; verifies the end and checksum of a gzip stream.

    Raises:
        CorruptImage: The stream is damaged or ends early.
    """
    try:
        with path.open("rb") as raw:
            stream = cast("BinaryIO", gzip.GzipFile(fileobj=raw)) if zipped else raw
            while chunk := stream.read(_CHUNK_BYTES):
                yield chunk
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        short = isinstance(error, EOFError)
        raise CorruptImage(
            "the gzip stream ends early, the file is cut short" if short else "the gzip stream is damaged",
            path=shown,
            remedy="Copy or download the file again",
        ) from None


def _no_spacing(header: str, shown: str) -> ScanError:
    return BadSpacing(
        f"the header must give a voxel size above 0, it says {header}",
        path=shown,
        remedy="Add it to the header, or export the file again",
    )


def _check_nrrd(path: Path, start: bytes, frame: int | None, shown: str) -> bool:
    """Refuse an NRRD file without a voxel size; the library would take it for 1 mm."""
    if start[:4] != b"NRRD":
        return False
    text = start.split(b"\n\n", 1)[0].replace(b"\r", b"").decode("latin-1")
    found = re.search(r"^(spacings|space directions):(.*)$", text, re.IGNORECASE | re.MULTILINE)
    if found is None:
        raise _no_spacing("nothing", shown)
    if "nan" in found[2].lower() and "none" not in found[2].lower() and found[1].lower() == "spacings":
        values = found[2].split()[:3]
        if any("nan" in v.lower() for v in values):
            raise _no_spacing(" ".join(values), shown)
    return True


def _check_meta(path: Path, start: bytes, frame: int | None, shown: str) -> bool:
    """Refuse MetaImage headers that the library would complain about on the terminal, or read as 1 mm."""
    if b"NDims" not in start[:4096] or b"=" not in start[:4096]:
        return False
    text = re.split(rb"(?<=\n)ElementDataFile[^\n]*\n", start, maxsplit=1)[0]
    fields = dict(re.findall(r"^\s*(\w+)\s*=\s*(.*?)\s*$", text.decode("latin-1"), re.MULTILINE))
    data = re.search(rb"^\s*ElementDataFile\s*=\s*(.*?)\s*$", start, re.MULTILINE)
    missing = [name for name in ("DimSize", "ElementType") if name not in fields]
    if missing or data is None:
        raise CorruptImage(
            f"the MetaImage header is incomplete: {', '.join(missing) or 'ElementDataFile'} is missing",
            path=shown,
            remedy="Copy or export the file again",
        )
    sizes = fields["DimSize"].split()
    if not all(re.fullmatch(r"\d+", size) and int(size) > 0 for size in sizes) or len(sizes) < 2:
        raise CorruptImage(
            f"the header must give at least one voxel per axis, got {fields['DimSize']}",
            path=shown,
            remedy="Copy or export the file again",
        )
    spacing = str(fields.get("ElementSpacing", fields.get("ElementSize", "")))
    if not _all_positive(spacing):
        raise _no_spacing(spacing or "nothing", shown)
    needed = math.prod(map(int, sizes)) * _META_BYTES.get(fields["ElementType"].removeprefix("MET_"), 0)
    needed *= int(fields.get("ElementNumberOfChannels", "1") or 1)
    if fields.get("CompressedData", "False").lower() == "true":
        needed = int(fields.get("CompressedDataSize", "0") or 0)
    _check_meta_length(data[1].decode("latin-1"), data.end(), needed, path, shown)
    return True


def _check_meta_length(name: str, header_bytes: int, needed: int, path: Path, shown: str) -> None:
    local = name.upper() == "LOCAL"
    if not local and (name.upper().startswith("LIST") or "%" in name):
        return
    present = path.stat().st_size - header_bytes if local else (path.parent / name).stat().st_size
    if present < needed:
        raise CorruptImage(
            f"the file is cut short: its header needs {needed} bytes of voxels, it has {present}",
            path=shown,
            remedy="Copy or download the file again",
        )


def _all_positive(words: str) -> bool:
    try:
        values = [float(word) for word in words.split()]
    except ValueError:
        return False
    return bool(values) and all(math.isfinite(v) and v > 0 for v in values)


IMAGE_FORMATS = {
    "NIfTI": ImageFormat(
        suffixes={".nii.gz": ".nii.gz", ".nii": ".nii"}, reader="NiftiImageIO", check=_check_nifti
    ),
    "NRRD": ImageFormat(
        suffixes={".nrrd": ".nrrd", ".nhdr": ".nrrd"},
        data_file={
            ".nhdr": re.compile(r"^\s*data ?file:\s*(?P<file>\S.*?)\s*$", re.IGNORECASE | re.MULTILINE)
        },
        reader="NrrdImageIO",
        check=_check_nrrd,
    ),
    "MetaImage": ImageFormat(
        suffixes={".mha": ".mha", ".mhd": ".mha"},
        data_file={
            ".mhd": re.compile(r"^\s*ElementDataFile\s*=\s*(?P<file>\S.*?)\s*$", re.IGNORECASE | re.MULTILINE)
        },
        reader="MetaImageIO",
        check=_check_meta,
    ),
}
"""Every single-file image format, by its name in messages; the first whose check holds is taken."""
