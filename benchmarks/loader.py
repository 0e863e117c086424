"""What batches cost: samples a second against loader workers, bytes read per byte used, augmentation.

    python benchmarks/loader.py STORE                            # the small recipe, 0, 1 and 2 workers
    python benchmarks/loader.py STORE --recipe published --workers 0 2 4 8 --device cuda
    python benchmarks/loader.py STORE --dataset hippocampus      # scans of some data sets only

Samples a second are those of a process that does nothing else, warm: the first batch, which pays for starting
the workers, is told apart. *Used* are the voxels of both cuts that lie in the scan, two bytes for the image
and two for the atoms; *read* is what the process took from files, compressed, with what opening a scan takes,
where it is the first time; *decoded* is what came out of the chunks touched. *Shipped* is what a worker hands
over a sample; *float* what float32 images with as many float32 masks would be.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from storage import open_store
from storage.reading.shards import ArrayReader
from training.data.augmentation import AugmentationConfig, augment
from training.data.batches import Batch
from training.data.boxes import whole
from training.data.loader import SampleLoader, Share, make_loader
from training.data.sample_reader import SampleReader
from training.data.sampling import DataConfig, split_scans
from training.pretraining.config import PretrainConfig, published, small

RECIPES = {"small": small, "published": published}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store", type=Path)
    parser.add_argument("--recipe", choices=RECIPES, default="small")
    parser.add_argument("--dataset", nargs="+", help="scans of these data sets only")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--batches", type=int, help="batches measured; 200 of the small recipe, 12 else")
    parser.add_argument("--device", default="cpu", help="where to augment")
    parser.add_argument("--threads", type=int, default=1, help="PyTorch's, in this process")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    recipe = RECIPES[options.recipe]()
    store = open_store(options.store)
    entries = {
        name: entry
        for name, entry in store.entries.items()
        if options.dataset is None or entry.dataset in options.dataset
    }
    ids = split_scans(entries, recipe.data).training
    num_batches = options.batches or (200 if options.recipe == "small" else 12)
    numbers: dict[str, Any] = {
        "recipe": options.recipe,
        "num_scans": len(ids),
        "batch_size": recipe.optimisation.batch_size,
        "crop_zyx": recipe.data.crop_zyx,
        "cut_zyx": recipe.data.cut_zyx,
        "device": device_name(options.device),
    }
    numbers |= measure_bytes(options.store, ids, recipe.data)
    numbers["loading"] = [
        measure_loading(make(options.store, ids, recipe, num_batches, workers), workers)
        for workers in options.workers
    ]
    few = make(options.store, ids, recipe, min(num_batches, 40), 0)
    numbers["augment_ms_per_batch"] = measure_augmentation(few, recipe.augmentation, options.device)
    print_table(numbers)
    if options.json:
        options.json.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


def make(
    store: Path, ids: tuple[str, ...], recipe: PretrainConfig, num_batches: int, workers: int
) -> SampleLoader:
    batch_size = recipe.optimisation.batch_size
    return make_loader(
        store,
        ids,
        recipe.data,
        Share(batch_size=batch_size, num_samples=batch_size * num_batches),
        seed=0,
        num_workers=workers,
    )


def measure_loading(loader: SampleLoader, workers: int) -> dict[str, float]:
    """Seconds to the first batch, and samples a second after it."""
    began = time.perf_counter()
    iterator = iter(loader)
    next(iterator)
    first = time.perf_counter() - began
    began = time.perf_counter()
    samples = sum(len(batch) for batch in iterator)
    taken = time.perf_counter() - began
    return {"workers": workers, "first_batch_seconds": first, "samples_per_second": samples / taken}


def measure_bytes(store: Path, ids: tuple[str, ...], config: DataConfig) -> dict[str, float]:
    """Bytes a sample: read from files, decoded, used, shipped."""
    opened = open_store(store)
    reader = SampleReader(opened, ids, config, seed=1)
    reader.read(0)  # imports, and the index
    used, num_samples = 0, 32
    with counted_decoding() as decoded:
        before = bytes_taken()
        for index in range(1, num_samples + 1):
            sample = reader.read(index)
            scan = whole(opened.scan(sample.scan_id).shape)
            used += sum(4 * view.grow(config.margin_zyx).intersect(scan).voxels for view in sample.views)
        taken = bytes_taken() - before
    shipped = sum(part.nbytes for part in sample.cuts + sample.words)
    return {
        "read_bytes_per_sample": taken / num_samples,
        "decoded_bytes_per_sample": sum(decoded) / num_samples,
        "used_bytes_per_sample": used / num_samples,
        "bytes_read_per_byte_used": taken / used,
        "bytes_decoded_per_byte_used": sum(decoded) / used,
        "shipped_bytes_per_sample": shipped,
        "float_bytes_per_sample": shipped * (1 + config.masks_per_sample),
    }


def bytes_taken() -> int:
    """Bytes this process asked of files so far, from memory or disk (Linux)."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


@contextmanager
def counted_decoding() -> Iterator[list[int]]:
    """The sizes of all chunks decoded meanwhile."""
    sizes: list[int] = []
    real = ArrayReader._decode

    def counting(self: ArrayReader, handle: int, start: int, size: int, chunk: np.ndarray) -> None:
        real(self, handle, start, size, chunk)
        sizes.append(chunk.nbytes)

    ArrayReader._decode = counting  # type: ignore[method-assign]
    try:
        yield sizes
    finally:
        ArrayReader._decode = real  # type: ignore[method-assign]


def measure_augmentation(loader: SampleLoader, config: AugmentationConfig, device: str) -> float:
    """Milliseconds to move a batch to the device, warp both views and unpack the masks; median."""
    taken = []
    for batch in loader:
        began = time.perf_counter()
        moved: Batch = batch.to(device)
        augment(moved, config)
        if device != "cpu":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return 1000 * float(np.median(taken[1:]))


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device != "cpu" else f"cpu, {torch.get_num_threads()} threads"


def print_table(numbers: dict[str, Any]) -> None:
    print(
        f"{numbers['recipe']} recipe: {numbers['batch_size']} samples a batch, crop {numbers['crop_zyx']}, "
        f"cut {numbers['cut_zyx']}, {numbers['num_scans']} scans"
    )
    print(f"{'workers':>8s} {'first batch (s)':>16s} {'samples/s':>10s} {'ms/sample':>10s}")
    for row in numbers["loading"]:
        rate = row["samples_per_second"]
        print(f"{row['workers']:8d} {row['first_batch_seconds']:16.2f} {rate:10.1f} {1000 / rate:10.2f}")
    for name in ("read", "decoded", "used", "shipped", "float"):
        print(f"{name + ' (MB/sample)':24s} {numbers[f'{name}_bytes_per_sample'] / 1e6:10.2f}")
    for name in ("read", "decoded"):
        print(f"{f'{name} per byte used':24s} {numbers[f'bytes_{name}_per_byte_used']:10.2f}")
    print(f"augmentation on {numbers['device']}: {numbers['augment_ms_per_batch']:.1f} ms a batch")


if __name__ == "__main__":
    sys.exit(main())
