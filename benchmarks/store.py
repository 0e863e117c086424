"""What a stored scan costs: bytes, writing, opening, and one training read, beside the published layout.

    python benchmarks/store.py                              # a drawn phantom with a CT's noise, 256^3
    python benchmarks/store.py --scan CT.nii.gz             # a real CT, resampled to 256^3
    python benchmarks/store.py --store STORE [--id ID]      # a scan that `mass prepare` made
    python benchmarks/store.py --edge 128 --masks 500       # quicker

A training read is what DESIGN section 6 asks for: two 168^3 views of one scan that overlap by at least 0.67,
the image as z-scores and 13 masks as words, warm, on one core; the box around both is read once and cut. The
published layout is a float32 .npy and a dense uint8 HDF5 of all masks (N, z, y, x) in the chunks that h5py
chooses, compressed with lzf (which fits the 236 kB a mask that DESIGN section 3 measured) and with gzip; one
block of its chunks is written, with masks drawn at random, and its size scaled up.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from storage import Level, Scan, ScanRecord, commit_scan, create_store, finish, open_store, remove_scan
from storage.records.proposal_checks import atom_extents, interval_extents

VIEW_VOXELS = 168
NUM_WORD_MASKS = 13
MIN_OVERLAP_FRACTION = 0.67
CT_WINDOW_HU = (-991, 500)
SPACING_MM = 1.5


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scan", type=Path, help="a CT that SimpleITK reads; a drawn phantom without it")
    parser.add_argument("--store", type=Path, help="measure a scan of this store")
    parser.add_argument("--id", help="which scan of --store; its first without it")
    parser.add_argument("--edge", type=int, default=256, help="voxels along each axis")
    parser.add_argument("--masks", type=int, default=2000, help="proposals")
    parser.add_argument("--noise-hu", type=float, default=10.0, help="noise of a thin-slice CT, added")
    parser.add_argument("--repeats", type=int, default=15, help="training reads measured")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    options = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one core
    with tempfile.TemporaryDirectory() as scratch:
        numbers: dict[str, float] = {}
        folder = options.store
        if folder is None:
            folder = Path(scratch) / "store"
            numbers = write_store(options, folder)
        numbers |= measure(folder, options.id, options.repeats, Path(scratch))
    print_table(numbers)
    if options.json is not None:
        options.json.write_text(json.dumps(numbers, indent=2) + "\n")


def write_store(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    codes = read_ct(options.scan, options.edge) if options.scan else draw_ct(options.edge)
    noise = np.random.default_rng(0).normal(0.0, options.noise_hu, codes.shape)
    codes = np.clip(np.rint(codes + noise), *CT_WINDOW_HU).astype(np.int16)
    parts = make_parts(codes, options.masks)
    check_s, record = seconds(lambda: ScanRecord(**parts))
    create_store(folder, spacing_mm=SPACING_MM, config={})
    commit_scan(folder, record)  # imports zarr
    remove_scan(folder, record.scan_id)
    commit_s, _ = seconds(lambda: commit_scan(folder, record))
    finish(folder)
    return {"check_seconds": check_s, "commit_seconds": commit_s}


def measure(folder: Path, scan_id: str | None, repeats: int, scratch: Path) -> dict[str, float]:
    store = open_store(folder)
    scan = store.scan(scan_id or store.scan_ids[0])
    sizes = {path.relative_to(scan.path).as_posix(): path.stat().st_size for path in scan.path.rglob("*.*")}
    sizes = {key: size for key, size in sizes.items() if (scan.path / key).is_file()}
    numbers = {
        "num_atoms": float(scan.num_atoms()),
        "num_proposals": float(len(scan.proposals)),
        "num_files": float(len(sizes)),
        "store_bytes": float(sum(sizes.values())),
        "store_image_bytes": float(sizes["0/c.0.0.0"]),
        "store_atoms_bytes": float(
            sum(sizes[key] for key in sizes if re.match(r"labels/atoms[^/]*/0/", key))
        ),
        "store_levels_bytes": float(sum(sizes[key] for key in sizes if is_of_coarser_level(key))),
        "store_proposals_bytes": float(
            sum(sizes[key] for key in sizes if key.startswith(("segments", "orders", "proposals", "scores")))
        ),
        "num_levels": float(scan.num_levels),
        "open_ms": 1e3 * seconds(lambda: open_and_touch(folder, scan.id))[0],
    }
    numbers |= measure_reads(scan, repeats)
    numbers |= measure_whole_reads(scan, repeats)
    numbers |= measure_published(scan, scratch)
    for compression in ("lzf", "gzip"):
        numbers[f"{compression}_fraction"] = numbers["store_bytes"] / numbers[f"{compression}_bytes"]
    return numbers


def is_of_coarser_level(key: str) -> bool:
    """Whether a file of a scan belongs to a volume at level 1 or beyond."""
    return re.match(r"(labels/[^/]+/)?[1-9]\d*/", key) is not None


def seconds(action: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = action()
    return time.perf_counter() - began, result


def open_and_touch(folder: Path, scan_id: str) -> tuple[int, ...]:
    scan = open_store(folder).scan(scan_id)
    return scan.image_codes((slice(0, 1), slice(0, 1), slice(0, 1))).shape


# -------------------------------------------------------------------------------------- training reads


def measure_reads(scan: Scan, repeats: int) -> dict[str, float]:
    rng = np.random.default_rng(1)
    reads = [time_one_read(scan, rng) for _ in range(repeats + 1)][1:]  # the first warms up
    numbers = {key: float(np.median([read[key] for read in reads])) for key in reads[0]}
    return numbers | {"read_ms_worst": max(read["read_ms"] for read in reads)}


def time_one_read(scan: Scan, rng: np.random.Generator) -> dict[str, float]:
    views, union = draw_views(rng, scan.shape)
    ids = draw_masks(rng, scan)
    image_s, image = seconds(lambda: scan.image(union, normalize=True))
    words_s, words = seconds(lambda: scan.words(ids, union))
    cut_s, _ = seconds(
        lambda: [np.ascontiguousarray(array[view]) for array in (image, words) for view in views]
    )
    zarr_s, both = seconds(lambda: read_with_zarr(scan, union))
    assert np.array_equal(both[0], scan.image_codes(union))
    return {
        "read_ms": 1e3 * (image_s + words_s + cut_s),
        "read_image_ms": 1e3 * image_s,
        "read_words_ms": 1e3 * words_s,
        "read_cut_ms": 1e3 * cut_s,
        "read_zarr_ms": 1e3 * zarr_s,
        "read_union_voxels": float(image.size),
    }


def measure_whole_reads(scan: Scan, repeats: int) -> dict[str, float]:
    """Time reading the whole scan, codes and 13 masks, at the level that fits a window."""
    rng = np.random.default_rng(2)
    numbers = {}
    for name, window in (("64", (64, 64, 64)), ("small", (32, 64, 64))):
        level = scan.level_for(window)
        times = []
        for _ in range(repeats + 1):
            ids = draw_masks(rng, scan)
            taken, _ = seconds(lambda ids=ids, level=level: read_whole(scan, level, ids))
            times.append(taken)
        numbers[f"whole_{name}_ms"] = 1e3 * float(np.median(times[1:]))
    return numbers


def read_whole(scan: Scan, level: Level, ids: NDArray[np.int64]) -> None:
    scan.image_codes(level=level)
    scan.words(ids, level=level)


def read_with_zarr(scan: Scan, region: tuple[slice, ...]) -> list[NDArray[Any]]:
    """Read the same two boxes with zarr-python, without any look-up."""
    import zarr

    group = zarr.open_group(scan.path, mode="r")
    return [np.asarray(group[key][region]) for key in ("0", "labels/atoms/0")]


def draw_views(
    rng: np.random.Generator, shape: tuple[int, ...]
) -> tuple[list[tuple[slice, ...]], tuple[slice, ...]]:
    """Return two views, counted from the corner of the box around both, and that box."""
    size = np.minimum(VIEW_VOXELS, shape)
    while True:
        first, second = (rng.integers(0, np.array(shape) - size + 1) for _ in range(2))
        if np.prod(np.maximum(size - abs(first - second), 0) / size) >= MIN_OVERLAP_FRACTION:
            break
    low, high = np.minimum(first, second), np.maximum(first, second) + size
    views = [
        tuple(slice(a, a + n) for a, n in zip(corner - low, size, strict=True)) for corner in (first, second)
    ]
    return views, tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))


def draw_masks(rng: np.random.Generator, scan: Scan) -> NDArray[np.int64]:
    """Return proposals balanced over size: one for each of 13 equal shares of the ranks by volume."""
    by_size = np.argsort(scan.proposals.voxels)
    shares = np.array_split(by_size, NUM_WORD_MASKS)
    return np.array([rng.choice(share) for share in shares if len(share)])


# ------------------------------------------------------------------------------------ published layout


def measure_published(scan: Scan, scratch: Path) -> dict[str, float]:
    image = scan.image(normalize=True)
    np.save(scratch / "image.npy", image)
    num_all = len(scan.proposals)
    numbers: dict[str, float] = {}
    for compression in ("lzf", "gzip"):
        path = scratch / f"{compression}.h5"
        write_s, num_written = seconds(lambda p=path, c=compression: write_published(scan, p, c))
        read_s, _ = seconds(lambda p=path, n=num_written: read_published(p, scratch / "image.npy", n))
        numbers |= {
            f"{compression}_bytes": image.nbytes + num_all / num_written * path.stat().st_size,
            f"{compression}_write_seconds": num_all / num_written * write_s,
            f"{compression}_read_ms": 1e3 * read_s,
        }
    return numbers | {"published_masks_written": float(num_written)}


def write_published(scan: Scan, path: Path, compression: str) -> int:
    """Write the first block of chunks of a dense (N, z, y, x) HDF5 of random proposals; return its masks."""
    import h5py

    num_all = len(scan.proposals)
    with h5py.File(path, "w") as file:
        masks = file.create_dataset("masks", (num_all, *scan.shape), np.uint8, compression=compression)
        block, depth = masks.chunks[:2]
        ids = np.random.default_rng(3).permutation(num_all)[:block]
        for first in range(0, scan.shape[0], depth):
            slab = slice(first, min(first + depth, scan.shape[0]))
            masks[: len(ids), slab] = scan.masks(ids, (slab, slice(None), slice(None)))
    return len(ids)


def read_published(masks: Path, image: Path, num_written: int) -> None:
    """Read the image and 13 masks of one block of chunks; a real sample's masks lie in several blocks."""
    import h5py

    np.load(image, allow_pickle=False)
    chosen = np.linspace(0, num_written - 1, min(NUM_WORD_MASKS, num_written)).astype(int)
    with h5py.File(masks) as file:
        file["masks"][np.unique(chosen)].astype(np.float32)


# ----------------------------------------------------------------------------------------------- input


def read_ct(path: Path, edge: int) -> NDArray[np.float32]:
    """Return a CT resampled to edge^3, HU."""
    import SimpleITK as sitk

    image = sitk.ReadImage(str(path), sitk.sitkFloat32)
    spacing = [size * gap / edge for size, gap in zip(image.GetSize(), image.GetSpacing(), strict=True)]
    grid = ([edge] * 3, sitk.Transform(), sitk.sitkLinear, image.GetOrigin(), spacing, image.GetDirection())
    array: NDArray[np.float32] = sitk.GetArrayFromImage(sitk.Resample(image, *grid, -1000.0))
    return array


def draw_ct(edge: int) -> NDArray[np.float32]:
    """Return a body with a few hundred ellipsoids in it, edge^3, HU."""
    rng = np.random.default_rng(0)
    axes = np.linspace(-1, 1, edge, dtype=np.float32)
    z, y, x = np.meshgrid(axes, axes, axes, indexing="ij", sparse=True)
    image = np.where((y / 0.8) ** 2 + (x / 0.9) ** 2 + 0 * z < 1, np.float32(40), np.float32(-1000))
    for _ in range(300):
        centre, radii = rng.uniform(-0.7, 0.7, 3), rng.uniform(0.02, 0.25, 3)
        low = np.clip(((centre - radii + 1) / 2 * edge).astype(int), 0, edge)
        high = np.clip(((centre + radii + 1) / 2 * edge).astype(int) + 1, 0, edge)
        part = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        distance = sum(
            ((axes[s].reshape([-1 if i == j else 1 for j in range(3)]) - c) / r) ** 2
            for i, (s, c, r) in enumerate(zip(part, centre, radii, strict=True))
        )
        image[part][distance < 1] = rng.uniform(-900, 400)
    return image


def make_parts(codes: NDArray[np.int16], num_proposals: int) -> dict[str, Any]:
    """Return the fields of a record with watershed-like atoms and nested proposals over them."""
    atoms = descend(codes)
    orders, table = nest(codes, atoms, num_proposals)
    sample = codes[::4, ::4, ::4].astype(np.float64)
    statistics = {"mean": float(sample.mean()), "std": float(sample.std())}
    return {
        "scan_id": "benchmark",
        "dataset": "benchmark",
        "split": "train",
        "modality": "ct",
        "image": codes,
        "scale": 1.0,
        "offset": 0.0,
        "spacing_zyx_mm": (SPACING_MM,) * 3,
        "labels": (),
        "atoms": (atoms,),
        "orders": (orders,),
        "table": table,
        "scores": np.linspace(1, 0, len(table), dtype=np.float32),
        "sources": tuple(f"linkage {row}" for row in range(len(orders))),
        "attributes": {"intensity": {"low": -991.0, "high": 500.0, "unit": "HU"} | statistics},
        "digests": {},
    }


def descend(codes: NDArray[np.int16], max_atoms: int = 32_000) -> NDArray[np.uint16]:
    """Return basins of steepest descent on the gradient magnitude, smoothed until they are few enough."""
    sigma = 1.0
    while True:
        height = ndimage.gaussian_gradient_magnitude(codes.astype(np.float32), sigma)
        points_to = lowest_neighbours(height).ravel()
        while not np.array_equal(jumped := points_to[points_to], points_to):
            points_to = jumped
        basins = np.unique(points_to)
        if len(basins) <= max_atoms:
            return np.searchsorted(basins, points_to).astype(np.uint16).reshape(codes.shape)
        sigma *= 1.25


def lowest_neighbours(height: NDArray[np.float32]) -> NDArray[np.int32]:
    """Return for each voxel the index of the lowest of it and its face neighbours, ties to the lowest."""
    own = np.arange(height.size, dtype=np.int32).reshape(height.shape)
    best, points_to = np.full_like(height, np.inf), own.copy()
    low, high = slice(None, -1), slice(1, None)
    steps = [(0, high, low), (1, high, low), (2, high, low), (0, slice(None), slice(None))]
    steps += [(2, low, high), (1, low, high), (0, low, high)]
    for axis, here, there in steps:
        to = tuple(here if a == axis else slice(None) for a in range(3))
        source = tuple(there if a == axis else slice(None) for a in range(3))
        lower = height[source] < best[to]
        best[to][lower] = height[source][lower]
        points_to[to][lower] = own[source][lower]
    return points_to


def nest(
    codes: NDArray[np.int16], atoms: NDArray[np.uint16], num_proposals: int, num_orders: int = 4
) -> tuple[NDArray[np.uint16], NDArray[np.int32]]:
    """Return orders and a table: hierarchies by average boundary gradient, each at another smoothing."""
    rng = np.random.default_rng(2)
    num_atoms = int(atoms.max()) + 1
    sizes, lows, highs = atom_extents(atoms, num_atoms, has_background=False)
    orders, rows = [], []
    for row in range(num_orders):
        height = ndimage.gaussian_gradient_magnitude(codes.astype(np.float32), 0.8 + 0.3 * row)
        order, starts, stops = merge(atoms.astype(np.int64), height, num_atoms)
        extents = interval_extents(starts, stops, sizes[order], lows[order], highs[order])
        chosen = draw_nodes(rng, extents[:, 6], num_proposals // num_orders)
        run = np.column_stack([starts, stops, extents])[chosen]
        rows.append(np.column_stack([np.full(len(run), row), run, np.full(len(run), row)]))
        orders.append(order)
    table = np.concatenate(rows).astype(np.int32)
    return np.array(orders, dtype=np.uint16), rng.permutation(table)


def merge(
    atoms: NDArray[np.int64], height: NDArray[np.float32], num_atoms: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """Return the atoms in depth-first order under average linkage, and each inner node's start and stop."""
    import higra

    pairs, heights = [], []
    for axis in range(3):
        ids, rise = np.moveaxis(atoms, axis, 0), np.moveaxis(height, axis, 0)
        border = ids[1:] != ids[:-1]
        first, second = ids[1:][border], ids[:-1][border]
        pairs.append(np.minimum(first, second) * num_atoms + np.maximum(first, second))
        heights.append(np.maximum(rise[1:], rise[:-1])[border])
    keys, edge = np.unique(np.concatenate(pairs), return_inverse=True)
    faces = np.bincount(edge).astype(np.float64)
    graph = higra.UndirectedGraph(num_atoms)
    graph.add_edges(keys // num_atoms, keys % num_atoms)
    means = np.bincount(edge, np.concatenate(heights)) / faces
    parents = higra.binary_partition_tree_average_linkage(graph, means, faces)[0].parents()
    return depth_first(np.asarray(parents), num_atoms)


def depth_first(
    parents: NDArray[np.intp], num_leaves: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """Return the leaves in depth-first order, and where each inner node starts and stops."""
    size = np.r_[np.ones(num_leaves, int), np.zeros(len(parents) - num_leaves, int)]
    for node in range(len(parents) - 1):
        size[parents[node]] += size[node]
    start, taken = np.zeros(len(parents), int), np.zeros(len(parents), int)
    for node in range(len(parents) - 2, -1, -1):
        start[node] = start[parents[node]] + taken[parents[node]]
        taken[parents[node]] += size[node]
    return np.argsort(start[:num_leaves]), start[num_leaves:], (start + size)[num_leaves:]


def draw_nodes(rng: np.random.Generator, voxels: NDArray[np.int64], count: int) -> NDArray[np.intp]:
    """Return nodes of 1 ml to a third of the scan, in equal shares by log2 of their volume."""
    level = np.log2(voxels).astype(int)
    fits = (voxels >= 300) & (voxels <= voxels.max() / 3)
    weight = np.where(fits, 1.0 / np.bincount(level)[level], 0.0)
    return rng.choice(len(level), min(count, int(fits.sum())), replace=False, p=weight / weight.sum())


# ---------------------------------------------------------------------------------------------- output

ROWS = (
    ("atoms", "num_atoms", "{:,.0f}"),
    ("proposals", "num_proposals", "{:,.0f}"),
    ("files", "num_files", "{:,.0f}"),
    ("bytes of the scan", "store_bytes", "{:,.0f}"),
    ("  image", "store_image_bytes", "{:,.0f}"),
    ("  atoms", "store_atoms_bytes", "{:,.0f}"),
    ("  orders, table, scores", "store_proposals_bytes", "{:,.0f}"),
    ("  coarser levels of image, atoms, labels", "store_levels_bytes", "{:,.0f}"),
    ("levels", "num_levels", "{:,.0f}"),
    ("bytes in the published layout, lzf", "lzf_bytes", "{:,.0f}"),
    ("bytes in the published layout, gzip", "gzip_bytes", "{:,.0f}"),
    ("fraction of it, lzf (at most 0.08)", "lzf_fraction", "{:.3f}"),
    ("fraction of it, gzip", "gzip_fraction", "{:.3f}"),
    ("checking the record, s", "check_seconds", "{:.2f}"),
    ("commit, s", "commit_seconds", "{:.2f}"),
    ("writing the published layout, lzf, s", "lzf_write_seconds", "{:.1f}"),
    ("opening store and scan, first voxel, ms", "open_ms", "{:.1f}"),
    ("training read, median ms (at most 150)", "read_ms", "{:.0f}"),
    ("training read, worst ms", "read_ms_worst", "{:.0f}"),
    ("  image of the union box", "read_image_ms", "{:.0f}"),
    ("  words of the union box", "read_words_ms", "{:.0f}"),
    ("  cutting out both views", "read_cut_ms", "{:.0f}"),
    ("whole scan in a window of 64^3, ms", "whole_64_ms", "{:.1f}"),
    ("whole scan in a window of 32 x 64 x 64, ms", "whole_small_ms", "{:.1f}"),
    ("same box by zarr-python, no look-up, ms", "read_zarr_ms", "{:.0f}"),
    ("13 masks of one block + image, lzf, ms", "lzf_read_ms", "{:.0f}"),
)


def print_table(numbers: dict[str, float]) -> None:
    for name, key, form in ROWS:
        if key in numbers:
            print(f"{name:<48}{form.format(numbers[key]):>16}")


if __name__ == "__main__":
    main()
