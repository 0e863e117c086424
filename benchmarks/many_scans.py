"""A store of very many tiny scans: seconds and memory of everything that is done once for each of them.

    python benchmarks/many_scans.py DIR                          100,000 scans: search, plan, status, ...
    python benchmarks/many_scans.py DIR --scans 10000            fewer
    python benchmarks/many_scans.py DIR --prepare 2000 4000      prepare so many for real, in this order

Without --prepare, proposals are made for one scan only. It is stored under so many ids (the arrays are links
to the first), and its raw file is linked as often: the store is what `mass prepare` would have left. Each
step runs in a process of its own. Seconds are those of the step, without the start of Python; memory is the
largest resident size of the process, with it.

With --prepare, all scans differ by noise and are prepared by `mass prepare`; linear time and flat memory show
in the last columns. What is in DIR already is used again.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

FAST = """
[ingest]
spacing_mm = 4.0

[proposals]
trees = ["fine-contrast-0.7mm"]
max_voxel_leaves = 1
component_thresholds_hu = [-400]
candidates_per_half_octave = 50
max_proposals = 60
"""
"""Settings that make a tiny scan cheap."""

EDGE_VOXELS = 20
FOLDER_SCANS = 1000


def write_scan(path: Path, seed: int) -> None:
    """Write a ball of soft tissue with a lesion in air, voxels of 4 mm with noise, as a plain NIfTI."""
    import SimpleITK as sitk

    points = np.stack(np.meshgrid(*[np.arange(EDGE_VOXELS) - (EDGE_VOXELS - 1) / 2] * 3, indexing="ij"))
    values = np.where((points**2).sum(0) < 8.5**2, 40.0, -1000.0)
    values[((points - 3) ** 2).sum(0) < 3.5**2] = 200.0
    noise = np.random.default_rng(seed).normal(0, 8, values.shape)
    image = sitk.GetImageFromArray(np.rint(values + noise).astype(np.int16))
    image.SetSpacing((4.0, 4.0, 4.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


def raw_path(raw: Path, number: int) -> Path:
    """Where the raw file of a scan lies."""
    return raw / f"part{number // FOLDER_SCANS:03d}" / f"case_{number:06d}_ct.nii"


def link_raw(raw: Path, number: int) -> None:
    """Link one tiny scan so many times; a file system allows some ten thousand links of a file."""
    for i in range(number):
        path = raw_path(raw, i)
        if path.exists():
            continue
        if i % FOLDER_SCANS == 0:
            write_scan(path, 0)
        else:
            os.link(raw_path(raw, i - i % FOLDER_SCANS), path)


def make_store(folder: Path, number: int) -> None:
    """Make `folder`/raw, and `folder`/store as `mass prepare` would leave it, but for ledger and index."""
    from commands.prepare.command import prepare_store
    from commands.prepare.settings import Settings
    from commands.prepare.work import Options
    from storage.layout import COMMIT_FILE, dump_document, scan_key

    raw, store = folder / "raw", folder / "store"
    config = folder / "fast.toml"
    config.write_text(FAST)
    link_raw(raw, number)
    first = folder / "first" / "raw"
    if not store.exists():
        write_scan(raw_path(first, 0), 0)
        prepare_store(first, folder / "one", Settings.read(config), Options())
        store.mkdir()
        shutil.copy(folder / "one" / "store.json", store)
    (source,) = (folder / "one" / "scans").glob("*/*")
    document = json.loads((source / COMMIT_FILE).read_bytes())
    for i in range(number):
        path = raw_path(Path(), i)
        scan_id = "_".join(path.with_suffix("").parts)
        target = store / scan_key(scan_id)
        if target.exists():
            continue
        target.mkdir(parents=True)
        for entry in source.iterdir():
            if entry.name != COMMIT_FILE:
                os.symlink(entry, target / entry.name)
        document["scan"]["id"] = scan_id
        (target / COMMIT_FILE).write_bytes(dump_document(document))


def run_mass(*arguments: object) -> Callable[[], None]:
    """A step that runs a `mass` command, silently."""

    def step() -> None:
        from commands.main import main

        with contextlib.redirect_stdout(io.StringIO()) as said:
            code = main([str(argument) for argument in arguments])
        assert code == 0, said.getvalue()[-2000:]

    return step


def search(folder: Path) -> None:
    """Search for scans."""
    from pipeline.discovery import discover
    from pipeline.ingest import IngestConfig

    discover(folder / "raw", IngestConfig().series_rules)


def index_and_ledger(folder: Path) -> None:
    """Read index and ledger, and write both."""
    from storage import finish, open_store, read_ledger, write_ledger

    assert len(open_store(folder / "store"))
    entries = read_ledger(folder / "store")
    write_ledger(folder / "store", list(entries.values())[:8])
    finish(folder / "store")


def first_batch(folder: Path) -> None:
    """Make a loader with two workers, up to its first batch."""
    from storage import open_store
    from training.data import DataConfig, Share, make_loader

    store = open_store(folder / "store")
    config = DataConfig(crop_voxels=16, cut_voxels=16, masks_per_sample=3, min_mask_voxels=2)
    share = Share(batch_size=2, num_samples=100)
    next(iter(make_loader(store, store.scan_ids, config, share, seed=0, num_workers=2)))


def steps(folder: Path) -> dict[str, Callable[[], None]]:
    """What is measured, by name."""
    store = folder / "store"
    prepare = run_mass("prepare", folder / "raw", store, "--config", folder / "fast.toml")
    return {
        "prepare, no ledger or index": prepare,
        "prepare, nothing to do": prepare,
        "search for scans": lambda: search(folder),
        "index and ledger, read and written": lambda: index_and_ledger(folder),
        "status": run_mass("status", store),
        "loader, to its first batch": lambda: first_batch(folder),
    }


def measured(arguments: list[str]) -> dict[str, float]:
    """Seconds, processor seconds and memory of a step, in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, *arguments], check=True, stdout=subprocess.PIPE, text=True
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def usage(step: Callable[[], None]) -> dict[str, float]:
    """Run a step in this process; what it took."""
    began, before = time.monotonic(), os.times()
    step()
    seconds, after = time.monotonic() - began, os.times()
    return {
        "seconds": seconds,
        "processor_seconds": sum(after[:4]) - sum(before[:4]),
        "memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def prepared(folder: Path, number: int, workers: int) -> Iterator[tuple[str, dict[str, float]]]:
    """Prepare so many scans for real, then once more with nothing to do."""
    part = folder / f"real{number}"
    config = folder / "fast.toml"
    config.write_text(FAST)
    for i in range(number):
        if not raw_path(part / "raw", i).exists():
            write_scan(raw_path(part / "raw", i), i)
    shutil.rmtree(part / "store", ignore_errors=True)
    child = ["--real", str(number), "--workers", str(workers), str(folder)]
    for name in ("prepare", "prepare, nothing to do"):
        yield name, measured(child)


def show(name: str, number: int, figures: dict[str, float]) -> dict[str, object]:
    """Print a row; returns it for the JSON file."""
    row = {"step": name, "scans": number, **figures, "ms_a_scan": 1000 * figures["seconds"] / number}
    print(
        f"| {name} | {number:,} | {figures['seconds']:.1f} | {figures['processor_seconds']:.1f} | "
        f"{row['ms_a_scan']:.2f} | {figures['memory_mib']:,.0f} |",
        flush=True,
    )
    return row


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="scratch; kept")
    parser.add_argument("--scans", type=int, default=100_000)
    parser.add_argument("--prepare", type=int, nargs="+", default=[], metavar="N")
    parser.add_argument("--workers", type=int, default=1, help="of --prepare")
    parser.add_argument("--only", nargs="+", default=[], help="steps whose names begin so")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--step", help=argparse.SUPPRESS)  # the measuring child
    parser.add_argument("--real", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if options.step:
        made = {"make": lambda: make_store(folder, options.scans)}
        print(json.dumps(usage((made | steps(folder))[options.step])))
        return
    if options.real:
        part = folder / f"real{options.real}"
        more = ("--config", folder / "fast.toml", "--workers", options.workers)
        print(json.dumps(usage(run_mass("prepare", part / "raw", part / "store", *more))))
        return
    rows = []
    if not options.prepare:
        measured(["--step", "make", "--scans", str(options.scans), str(folder)])
    print("| step | scans | seconds | processor seconds | ms a scan | memory, MiB |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for number in options.prepare:
        for name, figures in prepared(folder, number, options.workers):
            rows.append(show(name, number, figures))
    wanted = tuple(options.only) or ("",)
    rows += [
        show(name, options.scans, measured(["--step", name, str(folder)]))
        for name in steps(folder)
        if not options.prepare and name.startswith(wanted)
    ]
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
