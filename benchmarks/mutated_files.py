"""Files with a random fault, in every format: none may crash or hang the reader, fill memory, or be misread.

    python -m benchmarks.mutated_files --count 300 --seed 0

Each file is a small phantom with one fault of `FAULTS`, in its header or its voxels. Four outcomes:

    refused    a `ScanError`, in the search or in the reader
    unchanged  voxels and grid are those of the phantom: the fault does not matter
    as stated  they are what the faulty file says by the description of its format, as a second reader finds
               (`plain_readers.py`). A voxel or an origin that was changed where the format has no checksum
               cannot be known to be wrong.
    WRONG      they are neither

Every file is read in one process with limits on memory (`--memory` MiB above what it begins with) and on time
(10 s a file), and no library may write to the terminal. The first file of each kind has no fault and must be
read as it is. The exit code is 1 if anything was wrong. Same seed, same faults.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom

from benchmarks.plain_readers import plain_reader
from pipeline.discovery import Source, discover
from pipeline.errors import ScanError
from pipeline.ingest import IngestConfig, RawScan, read_source, standardize
from pipeline.ingest.writeback import write_image
from pipeline.volumes import Grid
from tests.phantom import Phantom, phantom, write_dicom

CONFIG = IngestConfig(min_extent_mm=1.0)
SECONDS_A_FILE = 10
SIZES = (12, 16, 18)
TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
KNOWN_WORDS = ("Uncompress failed",)
"""What MetaIO says of a file without the length of its packed voxels, which it reads all the same."""

SPECIAL = (b"\0", b"\xff", b"\x7f", b"\x80", b"\x01")
WORDS = ("0", "-1", "nan", "1e30", "2147483647", "99999999999999", "x", "", "0.5", "3", "none", "True")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of file.

    Attributes:
        family: Format in the table of outcomes.
        name: Name of the file, or of the folder of a DICOM series.
        write: Writes the phantom under a path.
        header_bytes: Length of a binary header; 0 for a text header.
    """

    family: str
    name: str
    write: Callable[[Path, Phantom], None]
    header_bytes: int


def by_nibabel(image_class: Any) -> Callable[[Path, Phantom], None]:
    def write(path: Path, scan: Phantom) -> None:
        target = path.with_suffix(".img") if path.suffix == ".hdr" else path
        image_class(scan.image.T, TO_RAS @ scan.grid.affine).to_filename(target)

    return write


def by_itk(path: Path, scan: Phantom) -> None:
    write_image(path, scan.image, scan.grid)


def plain_nrrd(path: Path, scan: Phantom) -> None:
    """An NRRD file that is not packed."""
    z, y, x = scan.image.shape
    vectors = " ".join(f"({','.join(f'{v:.9g}' for v in column)})" for column in scan.grid.affine[:3, :3].T)
    origin = ",".join(f"{v:.9g}" for v in scan.grid.origin_xyz_mm)
    lines = [
        "NRRD0004",
        "type: short",
        "dimension: 3",
        "space: left-posterior-superior",
        f"sizes: {x} {y} {z}",
    ]
    lines += [
        f"space directions: {vectors}",
        "kinds: domain domain domain",
        "endian: little",
        "encoding: raw",
    ]
    lines += [f"space origin: ({origin})"]
    path.write_bytes("\n".join(lines).encode() + b"\n\n" + scan.image.astype("<i2").tobytes())


def plain_meta(path: Path, scan: Phantom) -> None:
    """A MetaImage that is not packed."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(scan.image)
    image.SetSpacing(scan.grid.spacing_xyz_mm)
    image.SetOrigin(scan.grid.origin_xyz_mm)
    image.SetDirection(scan.grid.direction)
    sitk.WriteImage(image, str(path), useCompression=False)


def series(path: Path, scan: Phantom) -> None:
    write_dicom(path, scan)


def image_set(path: Path, scan: Phantom) -> None:
    images = np.stack([scan.image, scan.image + 1]).astype(np.int16)
    (np.savez_compressed if "packed" in path.name else np.savez)(path, train_images=images)


KINDS = (
    Kind(family="NIfTI-1", name="x.nii", write=by_nibabel(nibabel.Nifti1Image), header_bytes=352),
    Kind(family="NIfTI-1", name="x.nii.gz", write=by_itk, header_bytes=0),
    Kind(
        family="NIfTI-2, Analyze, MGH", name="y.nii", write=by_nibabel(nibabel.Nifti2Image), header_bytes=544
    ),
    Kind(
        family="NIfTI-2, Analyze, MGH", name="p.hdr", write=by_nibabel(nibabel.Nifti1Pair), header_bytes=352
    ),
    Kind(
        family="NIfTI-2, Analyze, MGH", name="a.hdr", write=by_nibabel(nibabel.AnalyzeImage), header_bytes=348
    ),
    Kind(family="NIfTI-2, Analyze, MGH", name="x.mgh", write=by_nibabel(nibabel.MGHImage), header_bytes=90),
    Kind(family="NRRD", name="x.nrrd", write=plain_nrrd, header_bytes=0),
    Kind(family="NRRD", name="packed.nrrd", write=by_itk, header_bytes=0),
    Kind(family="MetaImage", name="x.mha", write=plain_meta, header_bytes=0),
    Kind(family="MetaImage", name="packed.mha", write=by_itk, header_bytes=0),
    Kind(family="MetaImage", name="x.mhd", write=plain_meta, header_bytes=0),
    Kind(family="DICOM", name="series", write=series, header_bytes=1500),
    Kind(family="DICOM", name="series", write=series, header_bytes=1500),
    Kind(family="npz", name="x.npz", write=image_set, header_bytes=300),
    Kind(family="npz", name="packed.npz", write=image_set, header_bytes=300),
)


# --- faults: bytes in, bytes out


def flip_a_bit(data: bytearray, rng: np.random.Generator, head: int) -> None:
    data[int(rng.integers(head))] ^= 1 << int(rng.integers(8))


def overwrite(data: bytearray, rng: np.random.Generator, head: int) -> None:
    length = int(rng.choice([1, 2, 4, 8]))
    at = int(rng.integers(max(1, head - length)))
    value = SPECIAL[int(rng.integers(len(SPECIAL)))] * length if rng.random() < 0.6 else rng.bytes(length)
    data[at : at + length] = value


def cut_short(data: bytearray, rng: np.random.Generator, head: int) -> None:
    del data[int(rng.integers(len(data))) :]


def leave_out(data: bytearray, rng: np.random.Generator, head: int) -> None:
    at = int(rng.integers(head))
    del data[at : at + int(rng.integers(1, 9))]


def put_in(data: bytearray, rng: np.random.Generator, head: int) -> None:
    at = int(rng.integers(head))
    data[at:at] = rng.bytes(int(rng.integers(1, 9)))


def spoil_voxels(data: bytearray, rng: np.random.Generator, head: int) -> None:
    at = int(rng.integers(min(head, len(data) - 1), len(data)))
    data[at] ^= int(rng.integers(1, 256))


def change_a_word(data: bytearray, rng: np.random.Generator, head: int) -> None:
    text = bytes(data[:head])
    words = [(at, word) for at, word in _words(text) if any(c in b"0123456789" for c in word)]
    at, word = words[int(rng.integers(len(words)))]
    data[at : at + len(word)] = WORDS[int(rng.integers(len(WORDS)))].encode()


def drop_a_line(data: bytearray, rng: np.random.Generator, head: int) -> None:
    lines = bytes(data[:head]).splitlines(keepends=True)
    del lines[int(rng.integers(len(lines)))]
    data[:head] = b"".join(lines)


def _words(text: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    for word in (
        text.replace(b",", b" ").replace(b"(", b" ").replace(b")", b" ").replace(b"\n", b" ").split(b" ")
    ):
        if word:
            yield at, word
        at += len(word) + 1


FAULTS = (flip_a_bit, flip_a_bit, overwrite, overwrite, overwrite, cut_short, leave_out, put_in, spoil_voxels)
TEXT_FAULTS = (change_a_word, change_a_word, change_a_word, drop_a_line, flip_a_bit, *FAULTS[3:])


def spoiled(kind: Kind, folder: Path, rng: np.random.Generator) -> str:
    """Give one file of the folder one fault; return its name."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = files[int(rng.integers(len(files)))]
    data = bytearray(path.read_bytes())
    text = _text_length(bytes(data)) if kind.family in ("NRRD", "MetaImage") and path.suffix != ".raw" else 0
    head = text or min(len(data), kind.header_bytes or len(data))
    faults = TEXT_FAULTS if text else FAULTS
    fault = faults[int(rng.integers(len(faults)))]
    fault(data, rng, head)
    path.write_bytes(data)
    return fault.__name__


def _text_length(data: bytes) -> int:
    if data.startswith(b"NRRD"):
        return data.index(b"\n\n") + 2
    return data.index(b"\n", data.index(b"ElementDataFile")) + 1


# --- what came of it


def outcome(kind: Kind, folder: Path, scan: Phantom) -> str:
    """Read what is in a folder, and compare it with the phantom and with the second reader."""
    found = discover(folder, CONFIG.series_rules)
    told = set()
    for source in found.sources:
        try:
            raw = read_source(source, CONFIG)
            standardize(raw, CONFIG)
        except ScanError:
            told.add("refused")
        else:
            told.add(verdict(kind, source, raw, scan))
    order = ("WRONG", "as stated", "unchanged", "refused")
    return next((word for word in order if word in told), "refused")


def verdict(kind: Kind, source: Source, raw: RawScan, scan: Phantom) -> str:
    if kind.family == "npz":
        truth = scan.image + source.item.index if source.item else scan.image
        return "unchanged" if np.array_equal(raw.image, truth) else stated_set(source, raw)
    same = raw.image.shape == scan.image.shape and np.array_equal(raw.image, scan.image)
    # Analyze has no orientation: the axes are those that everybody assumes.
    if same and (near(raw.grid, scan.grid.affine) or (kind.name == "a.hdr" and assumed(raw.grid, scan.grid))):
        return "unchanged"
    try:
        return stated_series(source, raw) if kind.family == "DICOM" else stated_file(source.files[0], raw)
    except Exception as error:  # noqa: BLE001 - the second reader understands only what is whole
        return f"WRONG: the second reader cannot read it ({type(error).__name__}: {error})"


def stated_file(path: Path, raw: RawScan) -> str:
    arrays, affines = plain_reader(path.name)(path)
    voxels = [array for array in arrays if equal(raw.image, array)]
    places = [affine for affine in affines if near(raw.grid, affine)]
    if voxels and places:
        return "as stated"
    return f"WRONG: {'grid' if voxels else 'voxels'}: {raw.grid}, {affines}"


def stated_set(source: Source, raw: RawScan) -> str:
    assert source.item is not None
    with np.load(source.files[0], allow_pickle=False) as held:
        array = held[source.item.array][source.item.index]
    return "as stated" if equal(raw.image, array) else "WRONG: voxels of a set"


def stated_series(source: Source, raw: RawScan) -> str:
    slices = [pydicom.dcmread(path) for path in source.files]
    for number, one in enumerate(slices):
        pixels = one.pixel_array * float(one.get("RescaleSlope", 1)) + float(one.get("RescaleIntercept", 0))
        place = raw.grid.to_world(np.array([0.0, 0.0, float(number)]))
        if not equal(raw.image[number], pixels):
            return f"WRONG: voxels of slice {number}"
        if np.abs(place - np.array(one.ImagePositionPatient, dtype=float)).max() > 0.2:
            return f"WRONG: place of slice {number}: {place}, {one.ImagePositionPatient}"
        row, column = np.array(one.ImageOrientationPatient, dtype=float).reshape(2, 3)
        if np.abs(raw.grid.matrix[:, :2].T - [row, column]).max() > 0.02:
            return f"WRONG: direction of slice {number}"
    return "as stated"


def equal(mine: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether all values are the same, to the precision of float32."""
    if mine.shape != theirs.shape:
        return False
    with np.errstate(over="ignore", invalid="ignore"):
        other = theirs.astype(np.float32)
        return bool(np.all((mine == other) | np.isclose(mine, other, rtol=1e-5) | ~np.isfinite(other)))


def near(grid: Grid, affine: np.ndarray) -> bool:
    """Whether all corners are in the same place, to 2 % of the volume's size (what is put right)."""
    z, y, x = grid.shape_zyx
    corners = np.array([[i, j, k, 1.0] for i in (0, x - 1) for j in (0, y - 1) for k in (0, z - 1)])
    with np.errstate(all="ignore"):
        away = np.linalg.norm((corners @ grid.affine.T - corners @ affine.T)[:, :3], axis=1).max()
    return bool(away <= 0.02 * max(grid.extent_zyx_mm))


def assumed(grid: Grid, truth: Grid) -> bool:
    return np.allclose(grid.spacing_xyz_mm, truth.spacing_xyz_mm, rtol=1e-4) and np.allclose(
        grid.matrix, np.diag([1, -1, 1])
    )


def limit_memory(mebibytes: int) -> None:
    """Refuse this process more address space than it has now, and so much more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + (mebibytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def too_slow(number: int, frame: Any) -> None:
    raise RuntimeError(f"a file took more than {SECONDS_A_FILE} s")


class Terminal:
    """Keeps what is written to stderr, by libraries in C too, and gives what is new."""

    def __enter__(self) -> Terminal:
        sys.stderr.flush()
        self._file = tempfile.TemporaryFile()
        self._before, self._seen = os.dup(2), 0
        os.dup2(self._file.fileno(), 2)
        return self

    def new_text(self) -> str:
        """Return what was written since the last call."""
        sys.stderr.flush()
        text = os.pread(self._file.fileno(), 1 << 16, self._seen)
        self._seen += len(text)
        return text.decode(errors="replace").strip()

    def __exit__(self, *error: object) -> None:
        os.dup2(self._before, 2)
        os.close(self._before)
        self._file.close()


def run(count: int, seed: int) -> tuple[Counter[tuple[str, str]], list[str]]:
    """Read `count` faulty files; return outcomes by format, and what was wrong."""
    turned = ((0, 0, 1), (-1, 0, 0), (0, -1, 0))
    scan = phantom(shape_zyx=SIZES, spacing_zyx_mm=(9.0, 4.5, 5.0), direction=turned)
    scan = scan.replace(image=scan.image.clip(-1024))  # what the DICOM files can hold
    counts: Counter[tuple[str, str]] = Counter()
    wrong = []
    signal.signal(signal.SIGALRM, too_slow)
    with tempfile.TemporaryDirectory() as temporary, Terminal() as terminal:
        for number in range(count):
            rng = np.random.default_rng((seed, number))
            kind = KINDS[number % len(KINDS)]
            folder = Path(temporary) / "raw"
            folder.mkdir()
            kind.write(folder / kind.name, scan)
            fault = "no fault" if number < len(KINDS) else spoiled(kind, folder, rng)
            signal.alarm(SECONDS_A_FILE)
            try:
                word = outcome(kind, folder, scan)
            except Exception as error:  # noqa: BLE001 - whatever is no ScanError is a crash or a hang
                where = "".join(traceback.format_tb(error.__traceback__)[-1:]).strip()
                word = f"WRONG: {type(error).__name__}: {error} {where}"
            signal.alarm(0)
            if (said := terminal.new_text()) not in ("", *KNOWN_WORDS):
                word = f"WRONG: a library wrote to the terminal: {said}"
            if fault == "no fault" and word != "unchanged":
                word = f"WRONG: a sound file is not read as it is: {word}"
            if word.startswith("WRONG"):
                wrong.append(f"{number} {kind.name} {fault}: {word}")
            counts[kind.family, word.partition(":")[0]] += 1
            shutil.rmtree(folder)
    return counts, wrong


def main() -> int:
    """Read faulty files and print a table of outcomes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memory", type=int, default=1024, metavar="MiB")
    arguments = parser.parse_args()
    limit_memory(arguments.memory)
    counts, wrong = run(arguments.count, arguments.seed)
    words = ("refused", "unchanged", "as stated", "WRONG")
    print(f"{'':24}" + "".join(f"{word:>12}" for word in words))
    for family in dict.fromkeys(kind.family for kind in KINDS):
        print(f"{family:24}" + "".join(f"{counts[family, word]:>12}" for word in words))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"{arguments.count} files, {len(wrong)} misread, crashed or hung, at most {peak} MiB of memory")
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
