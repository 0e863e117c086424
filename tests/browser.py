"""Chromium without a window, driven by its DevTools protocol: pages opened, keys pressed, pictures taken.

Debian's `chromium` is enough; WebGL is drawn by the CPU. A test that needs it skips where it is missing.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.waits import PATIENT_SECONDS

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless=new", "--no-sandbox", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-extensions", "--hide-scrollbars",
    "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--remote-debugging-port=0",
    "--disable-dev-shm-usage", "--force-color-profile=srgb",
)  # fmt: skip


LOW_CONTRAST = """(() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (c) => {
    const [r, g, b] = c.map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > 0) return c.slice(0, 3);
    }
    return parse(getComputedStyle(document.body).backgroundColor).slice(0, 3);
  };
  const poor = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement;
    const words = walk.currentNode.data.trim();
    if (!words || !e.checkVisibility() || e.closest('svg, script, option, .stage')) continue;
    const ink = parse(getComputedStyle(e).color).slice(0, 3);
    const [a, b] = [light(ink), light(ground(e))].sort((x, y) => x - y);
    if ((b + 0.05) / (a + 0.05) < 4.5) poor.push(words.slice(0, 40));
  }
  return poor;
})()"""
"""Texts whose contrast with what is behind them is below 4.5 (WCAG AA)."""


def chromium() -> str:
    """Path of the browser; skips the test where there is none."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("needs chromium (on Debian: apt-get install chromium)")
    return found


class Tab:
    """A page in the browser."""

    def __init__(self, address: str) -> None:
        from websockets.sync.client import connect

        self._socket = connect(address, max_size=None, open_timeout=PATIENT_SECONDS)
        self._number = 0
        self.messages: list[str] = []
        """Errors and warnings of the console, exceptions, refused loads."""
        self.requests: list[str] = []
        """Addresses that the page asked for, beside `data:` and `blob:`."""
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Performance.enable", timeDomain="threadTicks")  # counts from now on

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Carry out a command of the protocol and return its result."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._socket.recv(timeout=PATIENT_SECONDS))
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self._note(answer)

    def _note(self, event: dict[str, Any]) -> None:
        kind, what = event.get("method"), event.get("params", {})
        if kind == "Runtime.consoleAPICalled" and what["type"] in ("error", "warning", "assert"):
            self.messages.append(" ".join(str(a.get("value", a.get("description"))) for a in what["args"]))
        elif kind == "Runtime.exceptionThrown":
            details = what["exceptionDetails"]
            self.messages.append(str(details.get("exception", {}).get("description", details["text"])))
        elif kind == "Log.entryAdded" and what["entry"]["level"] in ("error", "warning"):
            self.messages.append(what["entry"]["text"])
        elif kind == "Network.requestWillBeSent":
            url = what["request"]["url"]
            if not url.startswith(("data:", "blob:")):
                self.requests.append(url)

    def size(self, width: int, height: int, *, dark: bool = False, scale: float = 1) -> None:
        """Set the window, and the theme that the reader wants."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=scale, mobile=width < 600,
        )  # fmt: skip
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[theme])

    def open(self, address: str) -> None:
        """Load a page; returns when it is loaded."""
        self.call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, script: str) -> Any:
        """Return the value of an expression, or of what it promises."""
        result = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, condition: str, seconds: float = PATIENT_SECONDS) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + seconds
        while not self.run(condition):
            assert time.monotonic() < end, f"not true after {seconds} s: {condition}; {self.messages}"
            time.sleep(0.03)

    def press(self, key: str, *, text: str = "") -> None:
        """Press and release a key."""
        for kind in ("keyDown", "keyUp"):
            more = {"text": text} if text and kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, **more)

    def click(self, x: float, y: float) -> None:
        """Click at a point of the window."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def click_on(self, selector: str) -> None:
        """Click in the middle of an element."""
        find = f"document.querySelector({json.dumps(selector)})"
        self.run(f"{find}.scrollIntoView({{block: 'center'}})")
        x, y = self.run(
            f"(() => {{ const r = {find}.getBoundingClientRect(); "
            "return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        self.click(x, y)

    def png(self, selector: str = "") -> bytes:
        """Return a picture of the window, or of an element, as PNG."""
        more: dict[str, Any] = {}
        if selector:
            x, y, width, height = self.run(
                f"(() => {{ const e = document.querySelector({json.dumps(selector)}); "
                "const r = e.getBoundingClientRect(); "
                "return [r.x + scrollX, r.y + scrollY, r.width, r.height]; })()"
            )
            more = {"clip": {"x": x, "y": y, "width": width, "height": height, "scale": 1}}
        return base64.b64decode(self.call("Page.captureScreenshot", format="png", **more)["data"])

    def pixels(self, selector: str = "") -> NDArray[np.uint8]:
        """Return a picture of the window, or of an element, uint8 (height, width, 3)."""
        return np.asarray(Image.open(io.BytesIO(self.png(selector))).convert("RGB"))

    def work_seconds(self) -> float:
        """Return what the page's main thread has worked, in seconds of a processor that is its own."""
        metrics = {one["name"]: one["value"] for one in self.call("Performance.getMetrics")["metrics"]}
        return float(metrics["TaskDuration"])

    def close(self) -> None:
        """End the connection."""
        self._socket.close()


@contextlib.contextmanager
def browser(program: str) -> Iterator[Tab]:
    """A page in a browser that is started for it and ended after it."""
    with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as folder:
        command = [program, *FLAGS, f"--user-data-dir={folder}", "about:blank"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            tab = Tab(_address(Path(folder) / "DevToolsActivePort", process))
            yield tab
            tab.close()
        finally:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _address(port_file: Path, process: subprocess.Popen[bytes]) -> str:
    """Return the address of the first page, once the browser has written its port."""
    from http.client import HTTPConnection

    end = time.monotonic() + PATIENT_SECONDS
    while not port_file.exists() or len(port_file.read_text().split()) < 2:
        assert process.poll() is None, "the browser ended"
        assert time.monotonic() < end, "the browser does not start"
        time.sleep(0.05)
    connection = HTTPConnection("127.0.0.1", int(port_file.read_text().split()[0]), timeout=PATIENT_SECONDS)
    connection.request("GET", "/json/list")
    pages = [page for page in json.loads(connection.getresponse().read()) if page["type"] == "page"]
    connection.close()
    return str(pages[0]["webSocketDebuggerUrl"])
