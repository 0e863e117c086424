"""Makes the pictures of the page in docs/look.md anew, from the page of the demo's store.

    mass inspect demo-store --out report.html
    python docs/make_look.py report.html

Needs Chromium (on Debian: `apt-get install chromium`). Look at each picture before you commit it.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.browser import Tab, browser, chromium  # noqa: E402

SCAN = "example_ct"
DRAWN = (
    f"document.querySelector('h3.opened')?.textContent === '{SCAN}' && !document.querySelector('[aria-busy]')"
)


def main() -> None:
    """Draw the four pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("page", type=Path)
    page = parser.parse_args().page.resolve().as_uri()
    with browser(chromium()) as tab:
        tab.size(1400, 900)
        tab.open(page)
        tab.wait("document.querySelectorAll('.vtable .spacer .tr').length > 0")
        save("table", picture(tab, "unusual"))
        open_scan(tab)
        save("ladder", picture(tab, "viewer"))
        tab.size(1400, 900, dark=True)
        show_label(tab, "spleen")
        save("labels", picture(tab, "viewer"))
        tab.size(390, 844)
        tab.open(page)
        tab.wait("document.querySelectorAll('.vtable .spacer .tr').length > 0")
        cards = picture(tab, "scans", width=390)
        open_scan(tab)
        show_label(tab, "spleen")
        save("telephone", beside(cards, picture(tab, "viewer", width=390)))


def open_scan(tab: Tab) -> None:
    """Open the scan that the pictures show, and wait until it is drawn."""
    tab.run(
        "[...document.querySelectorAll('.vtable [data-key=scan]')]"
        f".find((cell) => cell.textContent === '{SCAN}').click()"
    )
    tab.wait(DRAWN)


def show_label(tab: Tab, name: str) -> None:
    """Show a structure beside its best proposal."""
    tab.run("document.getElementById('tab-labels').click()")
    tab.run(
        "[...document.querySelectorAll('.pairs button')]"
        f".find((one) => one.textContent.startsWith('{name}')).click()"
    )


def picture(tab: Tab, anchor: str, *, width: int = 1000) -> Image.Image:
    """What the window shows when it has gone to a heading."""
    tab.run(f"document.getElementById('{anchor}').scrollIntoView()")
    tab.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    shown = Image.open(io.BytesIO(tab.png())).convert("RGB")
    return shown.resize((width, round(width * shown.height / shown.width)), Image.Resampling.LANCZOS)


def beside(left: Image.Image, right: Image.Image, *, gap: int = 20) -> Image.Image:
    """Two pictures of the same height in one."""
    both = Image.new("RGB", (left.width + gap + right.width, left.height), "white")
    both.paste(left, (0, 0))
    both.paste(right, (left.width + gap, 0))
    return both


def save(name: str, shown: Image.Image) -> None:
    """Write a picture where docs/look.md has it."""
    shown.save(ROOT / "docs" / f"look-{name}.webp", quality=86, method=6)


if __name__ == "__main__":
    main()
