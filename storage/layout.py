"""Names, numbers and paths of format version 2, and its canonical JSON. No I/O.

    STORE/
      store.json                     format version, target spacing, the prepare config and its digest
      index.jsonl                    one line per committed scan
      ledger.jsonl                   one line per known source: committed, or failed with the reason
      store.lock                     always empty; writers hold flock on it for a short time
      tmp/                           scans being written; absent if there is no writer
      scans/<aa>/<scan_id>/          <aa>: first two hex digits of sha256(scan_id)
        zarr.json                    OME-NGFF 0.5 multiscales, and our `mass` attributes
        0/, 1/, ...                  image, int16 (z, y, x), one array per level
        labels/atoms/0/, 1/, ...     uint16 (z, y, x), ids 0..A-1 everywhere
        labels/atoms_<k>/0/, ...     uint16 (z, y, x), ids 0..A-1 or 65534 = background
        labels/<name>/0/, ...        expert labels, uint8 or uint16 (z, y, x), 0 = background
        segments/<k>/                (A, T) uint8 or uint16: the orders of layer k (`storage.records.orders`)
        proposals/                   (N, 11) int32, columns as in PROPOSAL_COLUMNS
        scores/                      (N,) float32, best first
        level_voxels/                (N, levels) int32: voxels of each proposal at each level
        COMMIT.json                  every key with its size and checksum; written last

On an object store there is no lock and no tmp/, and the files of a scan lie one folder deeper, in one that is
named after the digest of the commit (`commit_folder`):

    STORE/
      changes/<scan_id>.<digest>.<n> empty: the index may not know this change of a scan yet
      garbage/<scan_id>.<digest>.<n> empty: a folder that a newer commit has replaced
      scans/<aa>/<scan_id>/
        COMMIT.json                  of the scan as it is now; put last
        <digest>/                    first 16 hex digits of the sha256 of COMMIT.json: the files, as above

Format version 1 has level 0 only, no level_voxels, and instead of segments orders/<k>/, (T, A) uint16 rows
that are permutations of the atoms. An array has its chunks in one file next to its `zarr.json` (`c.0.0.0`),
so a scan has few files and few folders.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Final

FORMAT: Final = "mass3d-store"
FORMAT_VERSION: Final = 2
"""Version that is written."""

READ_VERSIONS: Final = (1, 2)
"""Versions that can be read."""

OME_VERSION: Final = "0.5"

STORE_FILE: Final = "store.json"
INDEX_FILE: Final = "index.jsonl"
LEDGER_FILE: Final = "ledger.jsonl"
LOCK_FILE: Final = "store.lock"
TEMPORARY_FOLDER: Final = "tmp"
SCANS_FOLDER: Final = "scans"
CHANGES_FOLDER: Final = "changes"
GARBAGE_FOLDER: Final = "garbage"
COMMIT_FILE: Final = "COMMIT.json"
METADATA_FILE: Final = "zarr.json"

CHUNK_VOXELS: Final = 64
"""Edge of an inner chunk of a volume, in voxels; smaller along an axis that is shorter."""

LEVEL_WINDOW_VOXELS: Final = 64
"""Longest axis of a scan's coarsest level, in voxels: each level halves the axes that are longer than
this."""

MISSING_ATOM: Final = 65_535
"""Fill value of atom volumes; it is no valid id, so that lost data is never taken for an atom."""

BACKGROUND_ATOM: Final = 65_534
"""Id of voxels without an atom; only in layers k >= 1."""

MAX_ATOMS: Final = 65_534
"""The most atoms in a layer: ids 0..65533."""

MAX_WORD_BITS: Final = 16
"""The most masks in one word."""

PROPOSAL_COLUMNS: Final = ("order", "start", "stop", "z0", "y0", "x0", "z1", "y1", "x1", "voxels", "source")

_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_ATOMS_NAME = re.compile(r"atoms(_\d+)?")


def is_safe_name(name: str) -> bool:
    """Return whether `name` is safe as a folder name: inside its parent, not hidden, without quoting."""
    return _SAFE_NAME.fullmatch(name) is not None


def is_label_name(name: str) -> bool:
    """Return whether an expert label may have this name (not that of an atom layer or a Zarr file)."""
    return is_safe_name(name) and not _ATOMS_NAME.fullmatch(name) and name != METADATA_FILE


def scan_key(scan_id: str) -> str:
    """Return the path of a scan's folder, relative to the store."""
    return f"{SCANS_FOLDER}/{hashlib.sha256(scan_id.encode()).hexdigest()[:2]}/{scan_id}"


def commit_folder(digest: str) -> str:
    """Return the name of a commit's folder on an object store, from the sha256 of its COMMIT.json."""
    return digest[:16]


def atoms_name(layer: int) -> str:
    """Return the label name of an atom layer: `atoms`, `atoms_1`, ..."""
    return "atoms" if layer == 0 else f"atoms_{layer}"


def level_key(volume: str, level: int) -> str:
    """Return the key of a volume's array at a level; the volume "" is the image."""
    return f"{volume}/{level}" if volume else str(level)


def label_volume(name: str) -> str:
    """Return the key of a label's (or atom layer's) group."""
    return f"labels/{name}"


def chunk_name(num_axes: int) -> str:
    """Return the file name of the only chunk of an array (`c.0.0.0`)."""
    return ".".join(["c", *["0"] * num_axes])


def dump_document(value: object) -> bytes:
    """Return readable JSON: sorted keys, indented, newline at the end. NaN raises ValueError."""
    return (json.dumps(value, sort_keys=True, indent=2, allow_nan=False) + "\n").encode()


def dump_line(value: object) -> bytes:
    """Return JSON as one line: sorted keys, no spaces, newline at the end. NaN raises ValueError."""
    return (json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False) + "\n").encode()


def digest_of(value: object) -> str:
    """Return the sha256 (hex) of a JSON value; it does not depend on the order of keys."""
    return hashlib.sha256(dump_line(value)).hexdigest()
