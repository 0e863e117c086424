"""A second reader of every image format, written from the formats' descriptions alone.

    arrays, affines = plain_reader("x.nii")(Path("x.nii"))

It checks nothing, and shares no code with `pipeline`. `mutated_files.py` compares what we read with it.

Reads: one file, uncompressed or zipped. Gives: a list of values (z, y, x) float64, one for each frame, and
the 4x4 affines that the file states, from voxel (x, y, z) to mm to the left, back and head.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Reading = tuple[list[np.ndarray], list[np.ndarray]]

FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])
NIFTI = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
}
MGH = {0: "u1", 1: "i4", 3: "f4", 4: "i2", 10: "u2"}
META = {"CHAR": "i1", "UCHAR": "u1", "SHORT": "i2", "USHORT": "u2", "INT": "i4", "UINT": "u4", "LONG": "i4"}
META |= {"ULONG": "u4", "LONG_LONG": "i8", "ULONG_LONG": "u8", "FLOAT": "f4", "DOUBLE": "f8"}
NRRD = {
    "short": "i2",
    "int16": "i2",
    "ushort": "u2",
    "uchar": "u1",
    "float": "f4",
    "int": "i4",
    "uint16": "u2",
}
NRRD |= {"unsigned short": "u2", "unsigned char": "u1", "signed char": "i1", "uint8": "u1", "double": "f8"}
NRRD |= {"int8": "i1", "uint": "u4", "unsigned int": "u4", "int32": "i4", "uint32": "u4"}


def plain_reader(name: str) -> Callable[[Path], Reading]:
    """Return the reader for a file of this name; numbers that overflow become infinite or NaN in silence."""
    return np.errstate(all="ignore")(_reader(name.lower()))


def _reader(end: str) -> Callable[[Path], Reading]:
    if end.endswith((".nii", ".nii.gz")):
        return read_nifti
    if end.endswith(".hdr"):
        return read_pair
    if end.endswith((".mgh", ".mgz")):
        return read_mgh
    return read_nrrd if end.endswith((".nrrd", ".nhdr")) else read_meta


def whole(path: Path) -> bytes:
    """Return a file's bytes, unzipped."""
    data = path.read_bytes()
    return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data


def frames(
    data: bytes, offset: int, shape: list[int], kind: str, slope: float, inter: float
) -> list[np.ndarray]:
    """Return the frames (z, y, x) of voxels that lie x first."""
    count = int(np.prod(shape))
    values = np.frombuffer(data, kind, count=count, offset=offset).astype(np.float64)
    if not (np.isfinite(slope) and slope):
        slope, inter = 1.0, 0.0
    x, y, z = shape[:3]
    return list((values * slope + inter).reshape(-1, z, y, x))


def order_of(data: bytes, size: int) -> str:
    return next(order for order in "<>" if struct.unpack_from(order + "i", data)[0] == size)


def quaternion(b: float, c: float, d: float, factor: float, sizes: Any, offsets: Any) -> np.ndarray:
    a = np.sqrt(max(0.0, 1 - b * b - c * c - d * d))
    turn = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    affine = np.eye(4)
    affine[:3, :3] = turn * np.array(sizes) * [1, 1, -1 if factor < 0 else 1]
    affine[:3, 3] = offsets
    return affine


def read_nifti(path: Path) -> Reading:
    """NIfTI-1 and NIfTI-2 of one part."""
    data = whole(path)
    return read_nifti_2(data) if data[4:8] == b"n+2\0" else read_nifti_1(data, data, 348)


def read_nifti_1(head: bytes, data: bytes, least_offset: int) -> Reading:
    o = order_of(head, 348)
    dim = struct.unpack_from(o + "8h", head, 40)
    kind = o + NIFTI[struct.unpack_from(o + "h", head, 70)[0]]
    pixdim = struct.unpack_from(o + "8f", head, 76)
    offset, slope, inter = struct.unpack_from(o + "3f", head, 108)
    qform, sform = struct.unpack_from(o + "2h", head, 252)
    numbers = struct.unpack_from(o + "18f", head, 256)
    affines = nifti_affines(qform, sform, pixdim, numbers[:6], numbers[6:], head[123] & 7)
    return frames(
        data, max(int(offset), least_offset), list(dim[1 : dim[0] + 1]), kind, slope, inter
    ), affines


def read_nifti_2(data: bytes) -> Reading:
    o = order_of(data, 540)
    dim = struct.unpack_from(o + "8q", data, 16)
    kind = o + NIFTI[struct.unpack_from(o + "h", data, 12)[0]]
    pixdim = struct.unpack_from(o + "8d", data, 104)
    offset, slope, inter = struct.unpack_from(o + "q2d", data, 168)
    qform, sform = struct.unpack_from(o + "2i", data, 344)
    numbers = struct.unpack_from(o + "18d", data, 352)
    units = struct.unpack_from(o + "i", data, 500)[0] & 7
    affines = nifti_affines(qform, sform, pixdim, numbers[:6], numbers[6:], units)
    return frames(data, offset, list(dim[1 : dim[0] + 1]), kind, slope, inter), affines


def nifti_affines(
    qform: int, sform: int, pixdim: Any, quatern: Any, rows: Any, units: int
) -> list[np.ndarray]:
    """Return all orientations that are in use."""
    affines = []
    if sform > 0:
        affines.append(np.vstack([np.reshape(rows, (3, 4)), [0, 0, 0, 1]]))
    if qform > 0:
        affines.append(quaternion(*quatern[:3], pixdim[0], pixdim[1:4], quatern[3:]))
    if not affines:
        affines.append(FLIP @ np.diag([*pixdim[1:4], 1]))
    millimetres = {1: 1000.0, 3: 0.001}.get(units, 1.0)
    return [np.diag([millimetres] * 3 + [1]) @ FLIP @ affine for affine in affines]


def read_pair(path: Path) -> Reading:
    """A header X.hdr with its voxels in X.img: NIfTI-1, or Analyze 7.5 as SPM takes it."""
    head, data = path.read_bytes(), path.with_suffix(".img").read_bytes()
    if head[344:348] == b"ni1\0":
        return read_nifti_1(head, data, 0)
    o = order_of(head, 348)
    dim = struct.unpack_from(o + "8h", head, 40)
    kind = o + NIFTI[struct.unpack_from(o + "h", head, 70)[0]]
    sizes = np.array(struct.unpack_from(o + "3f", head, 80))
    offset, slope = struct.unpack_from(o + "2f", head, 108)
    shape = list(dim[1 : dim[0] + 1])
    origin = np.array(struct.unpack_from(o + "3h", head, 253), dtype=float) - 1
    middle = (np.array(shape[:3]) - 1) / 2
    affines = []
    for zero in (origin, middle):
        affine = np.diag([-sizes[0], sizes[1], sizes[2], 1.0])
        affine[:3, 3] = -affine[:3, :3] @ zero
        affines.append(FLIP @ affine)
    return frames(data, int(offset), shape, kind, slope, 0.0), affines


def read_mgh(path: Path) -> Reading:
    data = whole(path)
    _, *dims, kind, _ = struct.unpack_from(">7i", data)
    good = struct.unpack_from(">h", data, 28)[0]
    sizes, columns, centre = (1.0, 1.0, 1.0), (-1.0, 0, 0, 0, 0, -1, 0, 1, 0), (0.0, 0.0, 0.0)
    if good > 0:
        numbers = struct.unpack_from(">15f", data, 30)
        sizes, columns, centre = numbers[:3], numbers[3:12], numbers[12:]
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(columns, (3, 3)).T * np.array(sizes)
    affine[:3, 3] = np.array(centre) - affine[:3, :3] @ (np.array(dims[:3]) / 2)
    return frames(data, 284, dims, ">" + MGH[kind], 1.0, 0.0), [FLIP @ affine]


def read_nrrd(path: Path) -> Reading:
    data = path.read_bytes()
    head, _, body = data.partition(b"\n\n")
    fields = {}
    for line in head.decode("latin-1").splitlines()[1:]:
        name, found, value = line.partition(":")
        if found and not line.startswith("#"):
            fields[name.strip().lower()] = value.removeprefix("=").strip()
    if "data file" in fields:
        body = (path.parent / fields["data file"]).read_bytes()
    if fields["encoding"].lower() in ("gz", "gzip"):
        body = zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(body)
    kind = (">" if fields.get("endian", "little").lower() == "big" else "<") + NRRD[fields["type"].lower()]
    shape = [int(n) for n in fields["sizes"].split()]
    affine = np.eye(4)
    vectors = [v for v in fields.get("space directions", "").split() if v != "none"]
    if vectors:
        affine[:3, :3] = np.array([[float(c) for c in v.strip("()").split(",")] for v in vectors]).T
    else:
        affine[:3, :3] = np.diag([float(v) for v in fields["spacings"].split()][:3])
    if "space origin" in fields:
        affine[:3, 3] = [float(c) for c in fields["space origin"].strip("()").split(",")]
    space = fields.get("space", "").lower()
    signs = {"ras": (-1, -1, 1), "right-anterior-superior": (-1, -1, 1)}
    signs |= {"las": (1, -1, 1), "left-anterior-superior": (1, -1, 1)}
    return frames(body, 0, shape, kind, 1.0, 0.0), [np.diag([*signs.get(space, (1, 1, 1)), 1.0]) @ affine]


def read_meta(path: Path) -> Reading:
    data = path.read_bytes()
    fields, at = {}, 0
    while "ElementDataFile" not in fields:
        end = data.index(b"\n", at)
        name, _, value = data[at:end].decode("latin-1").partition("=")
        fields[name.strip()], at = value.strip(), end + 1
    local = fields["ElementDataFile"].upper() == "LOCAL"
    body = data[at:] if local else (path.parent / fields["ElementDataFile"]).read_bytes()
    if fields.get("CompressedData", "").lower() in ("true", "1"):
        body = zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(body)
    big = fields.get("BinaryDataByteOrderMSB", fields.get("ElementByteOrderMSB", "False")).lower()
    kind = (">" if big in ("true", "1") else "<") + META[fields["ElementType"].removeprefix("MET_")]
    shape = [int(n) for n in fields["DimSize"].split()]
    words = next(
        (fields[n] for n in ("TransformMatrix", "Orientation", "Rotation") if n in fields),
        "1 0 0 0 1 0 0 0 1",
    )
    sizes = [float(v) for v in fields.get("ElementSpacing", fields.get("ElementSize", "")).split()][:3]
    affine = np.eye(4)
    affine[:3, :3] = np.reshape([float(v) for v in words.split()][:9], (3, 3)).T * np.array(sizes)
    offset = next((fields[n] for n in ("Offset", "Position", "Origin") if n in fields), "0 0 0")
    affine[:3, 3] = [float(v) for v in offset.split()][:3]
    return frames(body, 0, shape, kind, 1.0, 0.0), [affine]
