"""Checksums of weights: a flipped bit in a file is an error, not another network.

A safetensors file has no checksum of its own, so ours has one in its metadata: `sha256`, over the rest of the
header and the data. PyTorch's files are zip archives with a CRC-32 of each record, which `torch.load` does
not compare.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from training.errors import CheckpointError

SEAL = "sha256"
"""Name of the checksum in the metadata."""

_CHUNK_BYTES = 1 << 24


def weights_digest(module: object) -> str:
    """Return the SHA-256 of a network's weights as float32, whatever their device; "" without a network."""
    if not isinstance(module, nn.Module):
        return ""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def in_fixed_order(written: bytes) -> bytes:
    """Return the bytes of a safetensors file with a checksum and sorted metadata; they come in random order.

    The format is: length of the header (8 bytes, little endian), header (JSON, padded with spaces), data.
    """
    start = 8 + int.from_bytes(written[:8], "little")
    header = json.loads(written[8:start])
    metadata = {name: text for name, text in header.get("__metadata__", {}).items() if name != SEAL}
    header["__metadata__"] = dict(sorted(metadata.items()))
    digest = hashlib.sha256(_compact(header))
    digest.update(written[start:])
    header["__metadata__"] = dict(sorted((metadata | {SEAL: digest.hexdigest()}).items()))
    text = _compact(header)
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + written[start:]


def check_seal(path: Path) -> None:
    """Compare a safetensors file with the checksum in its metadata, if it has one.

    Raises:
        CheckpointError: They differ, or the file is cut short.
    """
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, path.stat().st_size)))
            seal = header.get("__metadata__", {}).pop(SEAL, None)
            if seal is None:
                return
            digest = hashlib.sha256(_compact(header))
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: not a safetensors file, or a damaged one: {error}") from error
    if digest.hexdigest() != seal:
        raise CheckpointError(
            f"{path}: damaged: its bytes are not those that were written. Copy it again, or export it anew"
        )


def check_archive(path: Path) -> None:
    """Compare the records of a torch file with their checksums, if it is a zip archive.

    Raises:
        CheckpointError: A record differs.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged: {error}. Copy it again, or remove it") from error
    if damaged:
        raise CheckpointError(
            f"{path}: damaged: the bytes of {damaged} are not those that were written. Copy it again; of a "
            "run, remove it, to go on from the checkpoint before"
        )


def _compact(header: Mapping[str, Any]) -> bytes:
    return json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
