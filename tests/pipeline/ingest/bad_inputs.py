"""What tests of bad inputs share: files that are changed, and what is said of them."""

from __future__ import annotations

import gzip
import pickle
import struct
from pathlib import Path

import pytest

from pipeline.discovery.sources import LabelSource, Source
from pipeline.errors import ScanError
from pipeline.ingest.config import IngestConfig
from pipeline.ingest.reading import read_source
from pipeline.ingest.standard_scan import standardize

CONFIG = IngestConfig()


def source_of(
    path: Path, *labels: LabelSource, frame: int | None = None, modality: str | None = None
) -> Source:
    return Source(
        scan_id="case",
        format="file",
        files=(path,),
        labels=labels,
        location="here/case",
        frame=frame,
        modality=modality,
    )


def refused(
    path: Path, kind: type[ScanError], *labels: LabelSource, config: IngestConfig = CONFIG, **more
) -> str:
    """The message of the error; its class is exactly the one expected, and it survives pickling."""
    with pytest.raises(ScanError) as caught:
        standardize(read_source(source_of(path, *labels, **more), config), config)
    error = caught.value
    assert type(error) is kind, error
    assert str(error).startswith("here/case")
    assert str(path.parent) not in str(error)
    assert len(error.remedy) > 5
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (kind, str(error))
    return str(error)


def unzipped(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes())


def patched(path: Path, offset: int, value: bytes) -> Path:
    """The NIfTI file with some bytes of its header replaced, uncompressed."""
    data = bytearray(unzipped(path))
    data[offset : offset + len(value)] = value
    out = path.with_name("patched.nii")
    out.write_bytes(data)
    return out


def with_voxels(path: Path, *sizes: float) -> Path:
    """The NIfTI file with other voxel sizes along x, y, z, in pixdim and in the sform."""
    out = patched(path, 80, struct.pack(f"<{len(sizes)}f", *sizes))
    data = bytearray(out.read_bytes())
    for axis, size in enumerate(sizes):
        struct.pack_into("<f", data, 280 + 20 * axis, size)
    out.write_bytes(data)
    return out
