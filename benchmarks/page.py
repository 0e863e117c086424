"""Seconds until the page of `mass inspect` can be used in Chromium: table filled, and a scan drawn.

    python benchmarks/page.py [report.html ...]

Without pages: a table of 5,000 and of 100,000 made-up scans. Needs Chromium (on Debian: `apt-get install
chromium`). "Work" is the time of the page's main thread on a processor, whatever else the machine does.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from pipeline.report import ScanRow, StoreContents, store_page
from tests.browser import Tab, browser, chromium

ROWS = "[...document.querySelectorAll('.vtable .spacer .tr')]"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pages", nargs="*", type=Path)
    pages = parser.parse_args().pages
    print("| page | MB | table, s | of it work, s | first scan drawn, s |\n|---|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as folder:
        if not pages:
            pages = [made_up_page(Path(folder) / f"{n}-scans.html", n) for n in (5_000, 100_000)]
        for page in pages:
            with browser(chromium()) as tab:
                print(measure(tab, page))


def made_up_page(path: Path, number: int) -> Path:
    """Write the page of a store of so many scans, of which nothing but the rows is there."""
    rng = np.random.default_rng(0)
    rows = [
        ScanRow(
            scan_id=f"scan_{k:06}",
            dataset=f"collection_{k % 12}",
            modality=("ct", "mr", "pet")[k % 3],
            split="train",
            case=f"case_{k // 2}",
            shape_zyx=(int(rng.integers(60, 300)), 256, 256),
            spacing_zyx_mm=(1.5, 1.5, 1.5),
            num_proposals=int(rng.integers(1000, 2000)),
            num_labels=1,
            source_spacing_mm=(0.8, 0.8, float(rng.uniform(1, 5))),
            mean=float(rng.normal(100, 10)),
            std=float(rng.normal(40, 4)),
            num_atoms=60_000,
            covered=float(rng.uniform(0.9, 1)),
            outside=float(rng.uniform(0, 0.05)),
            mean_iou=float(rng.uniform(0.3, 0.7)),
            num_structures=5,
            stored_bytes=int(rng.integers(1, 20) * 1e6),
        )
        for k in range(number)
    ]
    path.write_text(store_page(StoreContents(name="made up", rows=rows)), encoding="utf-8")
    return path


def measure(tab: Tab, page: Path) -> str:
    """A line of the table for one page."""
    tab.size(1400, 1000)
    began = time.monotonic()
    tab.call("Page.navigate", url=page.resolve().as_uri())
    tab.wait(f"{ROWS}.length > 0", seconds=60)
    table, work = time.monotonic() - began, tab.work_seconds()
    drawn = ""
    if tab.run("document.querySelectorAll('script.pack').length"):
        began = time.monotonic()
        tab.run(f"{ROWS}.find((row) => !row.classList.contains('closed')).click()")
        tab.wait(
            "document.querySelector('h3.opened')?.textContent && !document.querySelector('[aria-busy]')",
            seconds=120,
        )
        drawn = f"{time.monotonic() - began:.1f}"
    return f"| {page.name} | {page.stat().st_size / 1e6:.1f} | {table:.1f} | {work:.1f} | {drawn} |"


if __name__ == "__main__":
    main()
