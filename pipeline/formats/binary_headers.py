"""Checks of the binary headers: NIfTI-1, NIfTI-2, Analyze 7.5 and MGH.

*Reads*: the header, and then the whole data file once, to verify its length, a gzip checksum, and whether the
voxels are numbers. *Writes*: what was found, or a `ScanError`. The image libraries make none of these checks:
they read missing bytes as zeros, a voxel size of 0 as 1 mm, and NaN in a NIfTI-1 file as 0.

Sources: nifti1.h and nifti2.h of the NIfTI working group; the Analyze 7.5 file format (Mayo Clinic); the MGH
format of FreeSurfer (mri_io.c).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from pipeline.errors import BadSpacing, CorruptImage, NotVolumetric, ScanError
from pipeline.formats.byte_streams import chunks, is_zipped

_NIFTI_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4"}
_NIFTI_TYPES |= {1024: "i8", 1280: "u8"}
_NIFTI_COLOURS = {128: "red, green and blue", 2304: "red, green, blue and opacity"}
_NIFTI_COMPLEX = (32, 1792, 2048)
_ANALYZE_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8"}
_MGH_TYPES = {0: "u1", 1: "i4", 3: "f4", 4: "i2", 10: "u2"}
_MGH_DATA_OFFSET = 284

_REMEDY_COPY = "Copy or export the file again"

_SIZE_TOLERANCE = 0.01
"""Largest difference between the voxel sizes of pixdim and of the sform, as a fraction."""


@dataclass(frozen=True, kw_only=True)
class Checked:
    """Result of the check of an image file.

    Attributes:
        num_not_finite: Voxels of the frame in use that are NaN or infinite; 0 where the format's library
            hands them on as they are.
    """

    num_not_finite: int = 0


@dataclass(frozen=True, kw_only=True)
class BinaryHeader:
    """The fields of a binary header that say where its voxels are.

    Attributes:
        shape: Voxels along each stored axis, x first.
        voxel_mm: Voxel size along the first three axes, in the header's unit.
        dtype: NumPy's name of the voxel type, with the byte order.
        data_offset: Byte at which the voxels begin.
        scale: Slope and intercept, as the header has them.
        sform: 3x3 part of the sform if it is in use, by rows; else None.
    """

    shape: tuple[int, ...]
    voxel_mm: tuple[float, ...]
    dtype: str
    data_offset: float
    scale: tuple[float, float] = (1.0, 0.0)
    sform: tuple[float, ...] | None = None

    @property
    def bytes_per_voxel(self) -> int:
        """Bytes of a voxel."""
        return np.dtype(self.dtype).itemsize

    @property
    def num_bytes(self) -> int:
        """Bytes that the uncompressed data file must have."""
        return int(self.data_offset) + math.prod(self.shape) * self.bytes_per_voxel


def check_nifti(path: Path, start: bytes, frame: int | None, shown: str) -> Checked | None:
    """Check a NIfTI-1 file, header and voxels in one; see `ImageFormat.check`."""
    if path.suffix.lower() == ".hdr":
        return None
    return _check_file(path, start, frame, shown, parse=lambda first: _nifti_1(first, b"n+1\0", shown))


def check_nifti_pair(path: Path, start: bytes, frame: int | None, shown: str) -> Checked | None:
    """Check a NIfTI-1 pair, header X.hdr and voxels X.img; see `ImageFormat.check`."""
    header = _nifti_1(start, b"ni1\0", shown) if path.suffix.lower() == ".hdr" else None
    return None if header is None else _check_pair(path, header, frame, shown)


def check_nifti_2(path: Path, start: bytes, frame: int | None, shown: str) -> Checked | None:
    """Check a NIfTI-2 file, header and voxels in one; see `ImageFormat.check`."""
    return _check_file(path, start, frame, shown, parse=lambda first: _nifti_2(first, shown))


def check_analyze(path: Path, start: bytes, frame: int | None, shown: str) -> Checked | None:
    """Check an Analyze 7.5 pair, header X.hdr and voxels X.img; see `ImageFormat.check`."""
    header = _analyze(start, shown) if path.suffix.lower() == ".hdr" else None
    return None if header is None else _check_pair(path, header, frame, shown)


def check_mgh(path: Path, start: bytes, frame: int | None, shown: str) -> Checked | None:
    """Check an MGH file, which may be zipped (.mgz); see `ImageFormat.check`."""
    if path.suffix.lower() not in (".mgh", ".mgz"):
        return None
    return _check_file(path, start, frame, shown, parse=lambda first: _mgh(first, shown))


def _check_file(
    path: Path, start: bytes, frame: int | None, shown: str, *, parse: Callable[[bytes], BinaryHeader | None]
) -> Checked | None:
    stream = chunks(path, is_zipped(start), shown)
    first = next(stream, b"")
    header = parse(first)
    if header is None:
        return None
    _check_header(header, shown)
    return _check_voxels(header, chain((first,), stream), frame, shown)


def _check_pair(path: Path, header: BinaryHeader, frame: int | None, shown: str) -> Checked:
    _check_header(header, shown)
    return _check_voxels(header, chunks(data_of_pair(path), False, shown), frame, shown)


def data_of_pair(header: Path) -> Path:
    """Return the file with the voxels of a header X.hdr: X.img, in the header's case."""
    return header.with_suffix(".IMG" if header.suffix.isupper() else ".img")


def _nifti_1(start: bytes, magic: bytes, shown: str) -> BinaryHeader | None:
    """Return the header in a file's first bytes, of either byte order, or None."""
    if len(start) < (352 if magic == b"n+1\0" else 348):
        return None
    # A NIfTI file in one part whose magic number is that of a pair is read, as the library does.
    known = (magic,) if magic == b"ni1\0" else (magic, b"ni1\0")
    for order in "<>":
        if struct.unpack_from(order + "i", start)[0] != 348 or start[344:348] not in known:
            continue
        dim = struct.unpack_from(order + "8h", start, 40)
        offset = struct.unpack_from(order + "f", start, 108)[0]
        if magic == b"n+1\0" and 0 < offset < 348:
            raise _inside_header(offset, shown)
        rows = struct.unpack_from(order + "12f", start, 280)
        qform_code, sform_code = struct.unpack_from(order + "2h", start, 252)
        return BinaryHeader(
            shape=_shape(dim),
            voxel_mm=struct.unpack_from(order + "3f", start, 80),
            dtype=order + _nifti_type(struct.unpack_from(order + "h", start, 70)[0], shown),
            data_offset=offset,
            scale=struct.unpack_from(order + "2f", start, 112),
            sform=_sform_in_use(rows, qform_code, sform_code),
        )
    return None


def _nifti_2(start: bytes, shown: str) -> BinaryHeader | None:
    if len(start) < 544 or start[4:12] != b"n+2\0\r\n\x1a\n":
        return None
    for order in "<>":
        if struct.unpack_from(order + "i", start)[0] != 540:
            continue
        offset = struct.unpack_from(order + "q", start, 168)[0]
        if offset < 544:
            raise _inside_header(offset, shown)
        rows = struct.unpack_from(order + "12d", start, 400)
        qform_code, sform_code = struct.unpack_from(order + "2i", start, 344)
        return BinaryHeader(
            shape=_shape(struct.unpack_from(order + "8q", start, 16)),
            voxel_mm=struct.unpack_from(order + "3d", start, 112),
            dtype=order + _nifti_type(struct.unpack_from(order + "h", start, 12)[0], shown),
            data_offset=offset,
            scale=struct.unpack_from(order + "2d", start, 176),
            sform=_sform_in_use(rows, qform_code, sform_code),
        )
    return None


def _analyze(start: bytes, shown: str) -> BinaryHeader | None:
    if len(start) < 348 or start[344:348] in (b"n+1\0", b"ni1\0"):
        return None
    for order in "<>":
        if struct.unpack_from(order + "i", start)[0] != 348:
            continue
        code = struct.unpack_from(order + "h", start, 70)[0]
        _refuse_multiple(code, shown)
        return BinaryHeader(
            shape=_shape(struct.unpack_from(order + "8h", start, 40)),
            voxel_mm=struct.unpack_from(order + "3f", start, 80),
            dtype=order + _known_type(code, _ANALYZE_TYPES, shown),
            data_offset=struct.unpack_from(order + "f", start, 108)[0],
            scale=(struct.unpack_from(order + "f", start, 112)[0], 0.0),
        )
    return None


def _mgh(start: bytes, shown: str) -> BinaryHeader | None:
    if len(start) < _MGH_DATA_OFFSET or struct.unpack_from(">i", start)[0] != 1:
        return None
    *dims, code = struct.unpack_from(">5i", start, 4)
    good = struct.unpack_from(">h", start, 28)[0]
    voxel_mm = struct.unpack_from(">3f", start, 30) if good > 0 else (1.0, 1.0, 1.0)
    return BinaryHeader(
        shape=tuple(dims),
        voxel_mm=voxel_mm,
        dtype=">" + _known_type(code, _MGH_TYPES, shown),
        data_offset=_MGH_DATA_OFFSET,
    )


def _shape(dim: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(dim[1 : dim[0] + 1]) if 1 <= dim[0] <= 7 else ()


def _sform_in_use(rows: tuple[float, ...], qform_code: int, sform_code: int) -> tuple[float, ...] | None:
    """Return the sform's 3x3 part where it says how the voxels lie (`nibabel_files.nifti_affines`)."""
    if sform_code == 1 or (sform_code > 0 and qform_code <= 0):
        return (*rows[0:3], *rows[4:7], *rows[8:11])
    return None


def _nifti_type(code: int, shown: str) -> str:
    _refuse_multiple(code, shown)
    return _known_type(code, _NIFTI_TYPES, shown)


def _refuse_multiple(code: int, shown: str) -> None:
    """Refuse colours and complex numbers; NIfTI and Analyze have the same codes for them."""
    if code in _NIFTI_COLOURS:
        raise colour_error(_NIFTI_COLOURS[code], shown)
    if code in _NIFTI_COMPLEX:
        raise complex_error(shown)


def _known_type(code: int, known: dict[int, str], shown: str) -> str:
    if code not in known:
        raise CorruptImage(
            f"the voxel type must be one of the format's, the header says number {code}",
            path=shown,
            remedy="Save it with a plain integer or float type (not binary, not 128-bit)",
        )
    return known[code]


def colour_error(what: str, shown: str) -> ScanError:
    """Return the error of a colour image.

    Args:
        what: The values of a voxel, in words.
        shown: Name of the file in the message.
    """
    return NotVolumetric(
        f"a scan has one intensity per voxel, this is a colour image ({what})",
        path=shown,
        remedy="Export the intensities themselves; a screenshot or a colour map of them is no scan",
    )


def complex_error(shown: str) -> ScanError:
    """Return the error of an image of complex numbers."""
    return NotVolumetric(
        "a scan has one intensity per voxel, this image has complex numbers (real and imaginary part)",
        path=shown,
        remedy="Save the magnitude as a file of its own",
    )


def _inside_header(offset: float, shown: str) -> ScanError:
    return CorruptImage(
        f"the voxels must begin after the header, it says at byte {offset:g}",
        path=shown,
        remedy=_REMEDY_COPY,
    )


def _check_header(header: BinaryHeader, shown: str) -> None:
    """Refuse headers that the libraries would repair without notice, or cannot read."""
    if not header.shape or min(header.shape) < 1:
        raise CorruptImage(
            f"the header must give at least one voxel per axis, got {header.shape}",
            path=shown,
            remedy=_REMEDY_COPY,
        )
    if not (math.isfinite(header.data_offset) and 0 <= header.data_offset == int(header.data_offset)):
        raise _inside_header(header.data_offset, shown)
    slope, intercept = header.scale
    if math.isfinite(slope) and slope != 0 and not math.isfinite(intercept):
        raise CorruptImage(
            f"the intercept of the values must be a number, the header says {intercept}",
            path=shown,
            remedy=_REMEDY_COPY,
        )
    used = header.voxel_mm[: min(3, len(header.shape))]
    if not all(math.isfinite(s) and s > 0 for s in used):
        raise BadSpacing(
            f"the voxel size must be positive, the header says {tuple(round(s, 6) for s in used)} mm",
            path=shown,
            remedy="Correct the header's pixdim (nibabel: header.set_zooms) or export the file again",
        )
    if header.sform is not None:
        _check_sizes_agree(header.sform, header.voxel_mm, shown)


def _check_sizes_agree(sform: tuple[float, ...], voxel_mm: tuple[float, ...], shown: str) -> None:
    """Refuse an sform whose columns are not as long as the voxels are large: one of the two is wrong."""
    lengths = [math.hypot(*sform[axis::3]) for axis in range(3)]
    # An sform without any length is left to the reader, which refuses it as an orientation.
    if not all(math.isfinite(length) and length > 0 for length in lengths):
        return
    if any(abs(a / b - 1) > _SIZE_TOLERANCE for a, b in zip(lengths, voxel_mm, strict=True)):
        raise BadSpacing(
            f"the header must give one voxel size, pixdim says {' x '.join(f'{v:.4g}' for v in voxel_mm)}, "
            f"the sform {' x '.join(f'{v:.4g}' for v in lengths)} mm",
            path=shown,
            remedy="Find out which is right and save the file again with it (nibabel: set_sform, set_zooms)",
        )


def _check_voxels(header: BinaryHeader, stream: Iterator[bytes], frame: int | None, shown: str) -> Checked:
    """Read a data file, and check its length, its gzip stream and the voxels of the frame."""
    num_bytes, num_not_finite = 0, 0
    frame_bytes = math.prod(header.shape[:3]) * header.bytes_per_voxel
    begin = int(header.data_offset) + (frame or 0) * frame_bytes
    end = header.num_bytes if frame is None else begin + frame_bytes
    rest = b""
    for chunk in stream:
        if np.dtype(header.dtype).kind == "f":
            data = rest + chunk[max(0, begin - num_bytes) : max(0, end - num_bytes)]
            whole = len(data) - len(data) % header.bytes_per_voxel
            values = np.frombuffer(data[:whole], dtype=header.dtype)
            num_not_finite += values.size - int(np.isfinite(values).sum())
            rest = data[whole:]
        num_bytes += len(chunk)
    if num_bytes < header.num_bytes:
        raise CorruptImage(
            f"the file is cut short: its header needs {header.num_bytes} bytes"
            f" for {' x '.join(map(str, header.shape))} voxels, it has {num_bytes}",
            path=shown,
            remedy="Copy or download the file again",
        )
    return Checked(num_not_finite=num_not_finite)
