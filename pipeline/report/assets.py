"""Files of the page (`pipeline/report/web`) as markup: style, modules, data, and the viewer's library.

A page is one file and needs no network. Our modules are plain ES modules; an import map in the page gives
each as a `data:` address under its name, `mass3d/NAME.js`, so there is no build step. NiiVue lies in the
page compressed, as it is in `web/vendor`, and is unpacked when a volume is first shown.

Reads: files of this package. Writes: markup. Bounds: the library takes 0.45 MB of a page.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from typing import Any

from pipeline.quality import SIZE_CLASS_NAMES, SIZE_CLASSES_MM3
from pipeline.report.slices import COMPARISON_COLORS, LABEL_COLOR, PALETTE, PROPOSAL_COLOR

MODULES = ("dom", "data", "scan", "outlines", "viewer", "explorer", "query", "table", "main")
"""Names of our modules."""

POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline' data: blob:; "
    "img-src data: blob:; connect-src 'self' data: blob:; base-uri 'none'; form-action 'none'"
)
"""What the page may load: itself, and on `mass inspect --serve` its own server; nothing else."""


def web_text(name: str) -> str:
    """Return a file of `pipeline/report/web`."""
    return (files("pipeline.report") / "web" / name).read_text(encoding="utf-8")


def json_script(element_id: str, value: Any) -> str:
    """Return a script element that carries a value as JSON; no text in it can end the element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    text = text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return f'<script type="application/json" id="{element_id}">{text}</script>\n'


def _module_scripts() -> str:
    """Return the import map of our modules, and the script that starts them."""
    addresses = {
        f"mass3d/{name}.js": "data:text/javascript;base64,"
        + base64.b64encode(web_text(f"{name}.js").encode()).decode("ascii")
        for name in MODULES
    }
    return (
        f'<script type="importmap">{json.dumps({"imports": addresses})}</script>\n'
        '<script type="module" async>import "mass3d/main.js";</script>\n'
    )


def page_scripts(packs: Mapping[str, bytes], *, served: bool = False, rows: Any = None) -> str:
    """Return the scripts of a page with a viewer, to stand at its end.

    What the table needs comes first, and its module does not wait for the rest of the page: it is there while
    the viewer's library and the packs are still being read.

    Args:
        packs: Pack of each scan that the page carries, by its id, see `pipeline.report.packs`.
        served: Whether packs come from a server.
        rows: Rows of the table of scans, if the page has one.
    """
    table = "" if rows is None else json_script("rows", rows)
    settings = json_script("settings", viewer_settings(served=served, packed=list(packs)))
    return table + settings + _module_scripts() + _carried(packs)


def _carried(packs: Mapping[str, bytes]) -> str:
    """Return the viewer's library and the packs, as base64."""
    library = (files("pipeline.report") / "web" / "vendor" / "niivue.mjs.gz").read_bytes()
    carried = "".join(
        f'<script type="application/octet-stream" class="pack" data-scan="{escape(scan_id)}">'
        f"{base64.b64encode(pack).decode('ascii')}</script>\n"
        for scan_id, pack in packs.items()
    )
    return (
        f'<script type="application/octet-stream" id="niivue">{base64.b64encode(library).decode("ascii")}'
        f"</script>\n{carried}"
    )


def viewer_settings(*, served: bool, packed: list[str]) -> dict[str, Any]:
    """Return the settings of the viewer: colours, size classes, and where packs come from."""
    bounds = [0.0, *(mm3 / 1000 for mm3 in SIZE_CLASSES_MM3), None]
    return {
        "palette": PALETTE,
        "label": LABEL_COLOR,
        "proposal": PROPOSAL_COLOR,
        "comparison": COMPARISON_COLORS,
        "sizes": list(zip(SIZE_CLASS_NAMES, bounds[:-1], bounds[1:], strict=True)),
        "served": served,
        "packed": packed,
    }
