"""Checks of the text headers: NRRD and MetaImage, whose voxels may lie in a file of their own.

*Reads*: the first kilobytes of a header, file sizes, and once all bytes of a zipped stream. *Writes*: what
was found, or a `ScanError`. The image library makes none of these checks: it takes a missing voxel size for
1 mm, allocates memory for whatever size the header gives, and follows a data file's name to anywhere.

Sources: the NRRD format (teem.sourceforge.net/nrrd); MetaIO of ITK.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterable
from pathlib import Path

from pipeline.errors import BadSpacing, CorruptImage, ScanError, UnreadableFile
from pipeline.formats.binary_headers import Checked, colour_error, complex_error
from pipeline.formats.byte_streams import CHUNK_BYTES

_META_BYTES = {"CHAR": 1, "UCHAR": 1, "SHORT": 2, "USHORT": 2, "INT": 4, "UINT": 4, "LONG": 4, "ULONG": 4}
_META_BYTES |= {"LONG_LONG": 8, "ULONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8}

_NRRD_BYTES = {
    1: "signed char|int8|int8_t|uchar|unsigned char|uint8|uint8_t",
    2: "short|short int|signed short|signed short int|int16|int16_t"
    "|ushort|unsigned short|unsigned short int|uint16|uint16_t",
    4: "int|signed int|int32|int32_t|uint|unsigned int|uint32|uint32_t|float",
    8: "longlong|long long|long long int|signed long long|signed long long int|int64|int64_t"
    "|ulonglong|unsigned long long|unsigned long long int|uint64|uint64_t|double",
}
_NRRD_TYPES = {name: size for size, names in _NRRD_BYTES.items() for name in names.split("|")}

_MOST_DEFLATED = 1032
"""Most bytes that one byte of a deflate stream (zlib, gzip) unpacks to (zlib's technical details)."""

_META_LINE = re.compile(r"[^=]*\w[^=]*=")
_META_TRUE, _META_KNOWN = "Tt1", "Tt1Ff0"
_META_SWITCHES = ("BinaryData", "BinaryDataByteOrderMSB", "ElementByteOrderMSB", "CompressedData")
_META_MATRICES = ("TransformMatrix", "Orientation", "Rotation")
_META_BY_AXIS = ("DimSize", "ElementSpacing", "ElementSize", "Offset", "Position", "Origin", *_META_MATRICES)

_PATTERN = re.compile(r"\S.*%\d*d\S*(?: (-?\d+))?(?: (-?\d+))?(?: (?P<step>-?\d+))?(?: \d)?")
"""A name with numbers, and the first number, the last and the step: `slice%03d.raw 1 60 1`."""

_REMEDY_COPY = "Copy or export the file again"


def check_nrrd(path: Path, start: bytes, frame: int | None, shown: str) -> Checked | None:
    """Refuse an NRRD file without a voxel size, of colours, cut short, or with its data elsewhere."""
    if start[:4] != b"NRRD":
        return None
    end = re.search(rb"\r?\n\r?\n", start)
    text = start[: end.start() if end else len(start)].replace(b"\r", b"").decode("latin-1")
    fields = {
        name.lower(): value for name, value in re.findall(r"^([\w ]+?): ?(.*?)\s*$", text, re.MULTILINE)
    }
    kinds = fields.get("kinds", "").lower()
    if "color" in kinds:
        raise colour_error("as its `kinds` say", shown)
    if "complex" in kinds:
        raise complex_error(shown)
    found = re.search(r"^(spacings|space directions):(.*)$", text, re.IGNORECASE | re.MULTILINE)
    if found is None:
        raise _no_spacing("nothing", shown)
    if "nan" in found[2].lower() and "none" not in found[2].lower() and found[1].lower() == "spacings":
        values = found[2].split()[:3]
        if any("nan" in v.lower() for v in values):
            raise _no_spacing(" ".join(values), shown)
    sizes = fields.get("sizes", "").split()
    _check_sizes(sizes, fields.get("sizes", "nothing"), shown)
    needed = math.prod(map(int, sizes)) * _NRRD_TYPES.get(fields.get("type", "").lower(), 0)
    encoding = fields.get("encoding", "").lower()
    name = fields.get("data file", fields.get("datafile"))
    check_data_names([] if name is None else _names(name, text, "data ?file:"), shown)
    data = path if name is None else path.parent / name
    if name is not None and _is_list(name):
        return Checked()
    skip = _whole_number(fields.get("byte skip", fields.get("byteskip", "0")))
    begin = (end.end() if end and name is None else 0) + max(0, skip)
    if encoding == "raw":
        _check_length(data.stat().st_size - begin, needed, shown)
    elif encoding in ("gz", "gzip"):
        _check_deflated(data, begin, needed, shown)
    return Checked()


def check_meta(path: Path, start: bytes, frame: int | None, shown: str) -> Checked | None:
    """Refuse MetaImage headers that the library would complain about on the terminal, or read as 1 mm."""
    if b"NDims" not in start[:4096] or b"=" not in start[:4096]:
        return None
    text = re.split(rb"(?<=\n)ElementDataFile[^\n]*\n", start, maxsplit=1)[0]
    fields = dict(re.findall(r"^\s*(\w+)\s*=\s*(.*?)\s*$", text.decode("latin-1"), re.MULTILINE))
    data = re.search(rb"^\s*ElementDataFile\s*=\s*(.*?)\s*$", start, re.MULTILINE)
    missing = [name for name in ("NDims", "DimSize", "ElementType") if name not in fields]
    if missing or data is None:
        raise CorruptImage(
            f"the MetaImage header is incomplete: {', '.join(missing) or 'ElementDataFile'} is missing",
            path=shown,
            remedy=_REMEDY_COPY,
        )
    sizes = fields["DimSize"].split()
    _check_sizes(sizes, fields["DimSize"], shown)
    _check_meta_lines(text.decode("latin-1"), fields, shown)
    spacing = str(fields.get("ElementSpacing", fields.get("ElementSize", "")))
    if not _all_positive(spacing):
        raise _no_spacing(spacing or "nothing", shown)
    name = data[1].decode("latin-1")
    check_data_names(_names(name, start.decode("latin-1"), "ElementDataFile *="), shown)
    if _is_list(name):
        return Checked()
    local = name.upper() == "LOCAL"
    where, begin = (path, start.index(b"\n", data.start(1)) + 1) if local else (path.parent / name, 0)
    needed = math.prod(map(int, sizes)) * _META_BYTES.get(fields["ElementType"].removeprefix("MET_"), 0)
    needed *= max(1, _whole_number(fields.get("ElementNumberOfChannels", "1")))
    if fields.get("CompressedData", "False")[0] in _META_TRUE:
        packed = _whole_number(fields.get("CompressedDataSize", "0"))
        _check_length(where.stat().st_size - begin, packed, shown)
        _check_deflated(where, begin, needed, shown)
    else:
        _check_length(where.stat().st_size - begin, needed, shown)
    return Checked()


def _check_meta_lines(text: str, fields: dict[str, str], shown: str) -> None:
    """Refuse headers that the library cannot read: malformed lines, switches, numbers; axes before NDims."""
    broken = next((line for line in text.splitlines() if line.strip() and not _META_LINE.match(line)), None)
    names = list(fields)
    early = [name for name in names[: names.index("NDims")] if name in _META_BY_AXIS]
    switches = [name for name in _META_SWITCHES if name in fields and fields[name][:1] not in _META_KNOWN]
    if broken is not None:
        found = "a line is none of the kind `name = value`"
    elif fields["NDims"] != str(len(fields["DimSize"].split())):
        found = f"NDims is {fields['NDims']!r}, DimSize is {fields['DimSize']!r}"
    elif early or switches:
        found = f"{early[0]} stands before NDims" if early else f"{switches[0]} is neither True nor False"
    elif miscounted := [name for name in _META_BY_AXIS if name in fields and not _counts(fields, name)]:
        found = f"{miscounted[0]} is {fields[miscounted[0]]!r}, NDims is {fields['NDims']}"
    elif not re.fullmatch(r"\d+", fields.get("CompressedDataSize", "0")):
        found = f"CompressedDataSize is {fields['CompressedDataSize']!r}"
    else:
        return
    raise CorruptImage(f"the MetaImage header makes no sense: {found}", path=shown, remedy=_REMEDY_COPY)


def _counts(fields: dict[str, str], name: str) -> bool:
    """Whether a field has the number of words that NDims requires."""
    number = int(fields["NDims"])
    return len(fields[name].split()) == (number**2 if name in _META_MATRICES else number)


def check_data_names(names: Iterable[str], shown: str) -> None:
    """Refuse data files that do not lie in the header's folder or below it.

    Args:
        names: The names as the header gives them.
        shown: Name of the header in the message.

    Raises:
        UnreadableFile: A name is an absolute path, or has `..` in it.
        CorruptImage: A name is not valid, or the step of a name with numbers is 0: the library divides by it.
    """
    for name in names:
        pattern = _PATTERN.fullmatch(name)
        if not name.isprintable() or ("%" in name and (pattern is None or pattern["step"] == "0")):
            raise CorruptImage(
                "the name of the data file in the header is not valid", path=shown, remedy=_REMEDY_COPY
            )
        if not lies_below(name):
            raise UnreadableFile(
                "a data file must lie in its header's own folder or below it, the name in the header "
                + ("is an absolute path" if name.startswith(("/", "~", "\\")) else "leads out of the folder"),
                path=shown,
                remedy="Put the data file beside its header and correct the name, or save both as one file",
            )


def lies_below(name: str) -> bool:
    """Whether a data file of this name lies in the header's own folder or below it."""
    parts = name.replace("\\", "/").split("/")
    return not (
        "\0" in name or name.startswith(("/", "~", "\\")) or ".." in parts or re.match(r"[A-Za-z]:", name)
    )


def _names(name: str, text: str, field: str) -> list[str]:
    """Return all file names that a header gives: one, a pattern with numbers, or a list of lines."""
    if not name.upper().startswith("LIST"):
        return [] if name.upper() == "LOCAL" else [name]
    lines = re.split(rf"^\s*{field}.*$", text, maxsplit=1, flags=re.IGNORECASE | re.MULTILINE)[-1]
    return [line.strip() for line in lines.splitlines() if line.strip()]


def _is_list(name: str) -> bool:
    return name.upper().startswith("LIST") or "%" in name


def _check_sizes(sizes: list[str], listed: str, shown: str) -> None:
    if not all(re.fullmatch(r"\d+", size) and int(size) > 0 for size in sizes) or len(sizes) < 2:
        raise CorruptImage(
            f"the header must give at least one voxel per axis, got {listed}",
            path=shown,
            remedy=_REMEDY_COPY,
        )


def _check_length(present: int, needed: int, shown: str) -> None:
    if present < needed:
        raise CorruptImage(
            f"the file is cut short: its header needs {needed} bytes of voxels, it has {present}",
            path=shown,
            remedy="Copy or download the file again",
        )


def _check_deflated(data: Path, begin: int, needed: int, shown: str) -> None:
    """Unpack a zlib or gzip stream to check its length and its checksum; the bytes are discarded."""
    _check_length((data.stat().st_size - begin) * _MOST_DEFLATED, needed, shown)
    unpacker, present = zlib.decompressobj(zlib.MAX_WBITS | 32), 0
    with data.open("rb") as file:
        file.seek(begin)
        try:
            while not unpacker.eof and (chunk := file.read(CHUNK_BYTES // 16)):
                present += len(unpacker.decompress(chunk))
        except zlib.error:
            raise CorruptImage(
                "the packed voxels are damaged", path=shown, remedy="Copy or download the file again"
            ) from None
    if not unpacker.eof:
        raise CorruptImage(
            "the packed voxels end early, the file is cut short",
            path=shown,
            remedy="Copy or download the file again",
        )
    _check_length(present, needed, shown)


def _no_spacing(header: str, shown: str) -> ScanError:
    return BadSpacing(
        f"the header must give a voxel size above 0, it says {header}",
        path=shown,
        remedy="Add it to the header, or export the file again",
    )


def _whole_number(text: str) -> int:
    return int(text) if re.fullmatch(r"-?\d+", text.strip()) else 0


def _all_positive(words: str) -> bool:
    try:
        values = [float(word) for word in words.split()]
    except ValueError:
        return False
    return bool(values) and all(math.isfinite(v) and v > 0 for v in values)
