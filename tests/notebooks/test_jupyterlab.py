"""The panels in JupyterLab, where it is installed (`pip install jupyterlab`); also in a slow browser."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import nbformat
import pytest

from tests.browser import Tab, browser, chromium
from tests.notebooks.frame import assert_it_draws
from tests.waits import PATIENT_SECONDS

ROOT = Path(__file__).parents[2]
CELL = """import sys
sys.path[:0] = {path}
from notebooks.viewer import browse, explore
from tests.pipeline.drawn_scan import drawn_scan
from IPython.display import display
display(browse(drawn_scan(), (9, 20, 24)), explore(drawn_scan(), None, (9, 20, 24)))
"""
SLOW = "const limit = AbortSignal.timeout.bind(AbortSignal); AbortSignal.timeout = () => limit(0);"
"""As if the two seconds were over that anywidget gives its scripts to load."""
PANEL = "[...window.jupyterapp.shell.widgets('main')].find((widget) => widget.sessionContext)"
PICTURE = "document.querySelector('.jp-OutputArea img.widget-image')"
HANDLE = "document.querySelector('.jp-OutputArea .noUi-handle')"
CROSS = "document.querySelector('.jp-OutputArea [role=img][aria-label*=axial]')"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a notebook with two panels, in a JupyterLab that runs with this environment's kernel."""
    program = shutil.which("jupyter-lab")
    if program is None:
        pytest.skip("needs JupyterLab (pip install jupyterlab)")
    chromium()
    folder = tmp_path_factory.mktemp("lab")
    (folder / "notebooks").mkdir()
    cell = nbformat.v4.new_code_cell(CELL.format(path=[str(ROOT), str(ROOT / "notebooks")]))
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=kernel), folder / "notebooks/panels.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {f"JUPYTER_{part}_DIR": str(folder / part.lower()) for part in ("CONFIG", "DATA", "RUNTIME")}
    place["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    place["JUPYTER_PATH"] = str(Path(sys.prefix) / "share" / "jupyter")
    place["IPYTHONDIR"] = str(folder / "ipython")
    options = ["--no-browser", "--allow-root", "--expose-app-in-browser", "--ip=127.0.0.1", f"--port={port}"]
    options += ["--IdentityProvider.token=drawn", f"--ServerApp.root_dir={folder / 'notebooks'}"]
    log = (folder / "log.txt").open("wb")
    process = subprocess.Popen(
        [program, *options], env={**os.environ, **place}, stdout=log, stderr=subprocess.STDOUT
    )
    try:
        address = f"http://127.0.0.1:{port}"
        end = time.monotonic() + PATIENT_SECONDS
        while not answers(f"{address}/api?token=drawn"):
            assert process.poll() is None, (folder / "log.txt").read_text()
            assert time.monotonic() < end, "JupyterLab does not start"
            time.sleep(0.1)
        yield f"{address}/lab/tree/panels.ipynb?token=drawn&reset"
    finally:
        process.terminate()
        process.wait(timeout=PATIENT_SECONDS)
        log.close()


def answers(url: str) -> bool:
    with contextlib.suppress(OSError), urlopen(url):
        return True
    return False


@pytest.mark.parametrize("script", ["", SLOW], ids=["fast", "slow"])
def test_panels_follow_their_controls_and_the_volume_is_drawn(lab: str, script: str) -> None:
    with browser(chromium()) as tab:
        tab.size(1400, 1000)
        if script:
            tab.call("Page.addScriptToEvaluateOnNewDocument", source=script)
        tab.open(lab)
        tab.wait("!!(window.jupyterapp && document.querySelector('.jp-Notebook .jp-Cell'))")
        tab.wait(f"{PANEL}?.sessionContext?.session?.kernel?.status === 'idle'")
        tab.click_on(".jp-Notebook .jp-Cell .jp-Editor")  # commands work on the panel that has the focus
        tab.run("window.jupyterapp.commands.execute('notebook:run-all-cells') && 1")
        tab.wait(f"{PICTURE}?.naturalWidth > 0 && !!{HANDLE}")
        first = shown(tab)
        tab.run(f"{PICTURE}.scrollIntoView({{block: 'center'}}); {HANDLE}.focus()")
        tab.press("ArrowRight")
        tab.wait(f"{PICTURE}.dataset.seen !== {PICTURE}.src")
        moved = shown(tab)
        assert moved != first
        tab.wait(f"!!{CROSS}")
        x, y = tab.run(
            f"(() => {{ const r = {PICTURE}.getBoundingClientRect(); "
            "return [r.x + r.width / 4, r.y + r.height / 4]; })()"
        )
        value = tab.run("document.querySelectorAll('.jp-OutputArea .noUi-handle')[1].ariaValueNow")
        tab.click(x, y)
        tab.wait(f"document.querySelectorAll('.jp-OutputArea .noUi-handle')[1].ariaValueNow !== '{value}'")
        assert_it_draws(tab)


def shown(tab: Tab) -> str:
    """Digest of the first picture; marks its address as seen."""
    data = tab.run(
        f"(async () => {{ const i = {PICTURE}; i.dataset.seen = i.src; "
        "return [...new Uint8Array(await (await fetch(i.src)).arrayBuffer())].join(); })()"
    )
    return hashlib.sha256(data.encode()).hexdigest()
