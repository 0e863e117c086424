"""`mass inspect STORE --serve`: the page of a store of any size, on this machine only.

The page has every scan in its table; the viewer asks for one scan at one level at a time. The server has the
page, its progress and packs of scans, and nothing by file name. It listens on loopback only and answers GET
only, under a random word in the printed address. The header `Host` must name loopback, so that a page of
another site whose name resolves to this machine (DNS rebinding) gets nothing.
"""

from __future__ import annotations

import hmac
import json
import secrets
import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from commands.prepare.local_records import remembered_seconds
from commands.survey import VERIFY, level_within, pack_of
from pipeline.report import ScanRow, StoreContents, index_row, store_page, table_row
from storage import CorruptStore, InvalidSelection, Store, StorePath, open_store, scan_bytes

MOST_VOXELS_AT_FIRST = 8_000_000
"""A scan is first shown at the finest level with at most this many voxels."""

HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Headers of every answer: not cached, not shown in frames, not readable by other sites."""


class Survey:
    """Rows of all scans: from the index at once, from their tables when they are read."""

    def __init__(self, store: Store, failures: Sequence[tuple[str, str, str]]) -> None:
        self.store = store
        self.failures = list(failures)
        seconds = remembered_seconds(store.path)
        self.rows: dict[str, ScanRow] = {
            scan_id: replace(index_row(line), seconds=seconds.get(scan_id))
            for scan_id, line in store.entries.items()
        }
        self.num_read = 0
        self._page: tuple[int, bytes] | None = None

    @property
    def done(self) -> bool:
        """Whether every scan's tables are read."""
        return self.num_read == len(self.rows)

    def read(self, stop: threading.Event) -> None:
        """Read the tables of one scan after the other; damaged scans become failures."""
        for scan_id in list(self.rows):
            if stop.is_set():
                return
            scan = self.store.scan(scan_id)
            try:
                self.rows[scan_id] = table_row(self.rows[scan_id], scan, scan_bytes(scan))
            except (CorruptStore, OSError) as error:
                self.failures.append((scan_id, str(error), VERIFY))
            self.num_read += 1

    def page(self) -> bytes:
        """Return the page with the rows read so far; it is made again when all are read."""
        version = int(self.done)
        if self._page is None or self._page[0] != version:
            notice = "" if self.done else "Scans are being read; sizes, sources and unusual scans follow."
            contents = StoreContents(
                name=self.store.name,
                facts=(
                    ("spacing", f"{self.store.info.spacing_mm:g} mm"),
                    ("format", str(self.store.info.format_version)),
                ),
                failures=tuple(self.failures),
                rows=list(self.rows.values()),
                served=True,
                notice=notice,
            )
            self._page = version, store_page(contents).encode()
        return self._page[1]


class StoreServer(ThreadingHTTPServer):
    """A server of one store on loopback, under a random word."""

    daemon_threads = True

    def __init__(self, store: Store, failures: Sequence[tuple[str, str, str]], port: int) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.store = store
        self.survey = Survey(store, failures)
        self.word = secrets.token_urlsafe(32)
        self.hosts = {f"{name}:{self.server_port}" for name in ("127.0.0.1", "localhost")}
        # One at a time: a pack of a large scan takes as much memory as the scan.
        self._making = threading.Lock()
        self._pack = lru_cache(maxsize=4)(self._make_pack)

    @property
    def address(self) -> str:
        """The address of the page."""
        return f"http://127.0.0.1:{self.server_port}/{self.word}/"

    def pack(self, scan_id: str, level: str) -> bytes:
        """Return the pack of a scan at a level; without a level, at the one that is shown first.

        Raises:
            KeyError: There is no such scan.
            ValueError: The level is not a number.
            InvalidSelection: There is no such level.
            CorruptStore: The scan is damaged.
        """
        scan = self.store.scan(scan_id) if scan_id in self.store.entries else None
        if scan is None:
            raise KeyError(scan_id)
        number = int(level) if level else level_within(scan, MOST_VOXELS_AT_FIRST)
        if not 0 <= number < len(scan.levels):
            raise InvalidSelection(f"level {number} is not in 0..{len(scan.levels) - 1}")
        with self._making:
            return self._pack(scan_id, number)

    def _make_pack(self, scan_id: str, level: int) -> bytes:
        return pack_of(self.store.scan(scan_id), level, small=False)


class Handler(BaseHTTPRequestHandler):
    """Answers of a `StoreServer`."""

    server: StoreServer
    server_version = "mass3d"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer a request, or refuse it."""
        if self.headers.get("Host", "") not in self.server.hosts:
            return self._refuse(HTTPStatus.MISDIRECTED_REQUEST, "this server answers to 127.0.0.1 only")
        if self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            return self._refuse(HTTPStatus.FORBIDDEN, "another site may not ask")
        address = urlsplit(self.path)
        word, _, name = address.path.removeprefix("/").partition("/")
        if not hmac.compare_digest(word.encode(), self.server.word.encode()):
            return self._refuse(HTTPStatus.NOT_FOUND, "open the address that `mass inspect --serve` printed")
        match name:
            case "":
                return self._answer("text/html; charset=utf-8", self.server.survey.page())
            case "progress":
                survey = self.server.survey
                state = {"done": survey.num_read, "total": len(survey.rows)}
                return self._answer("application/json", json.dumps(state).encode())
            case "pack":
                return self._answer_pack(parse_qs(address.query))
        return self._refuse(HTTPStatus.NOT_FOUND, "no such page")

    def _answer_pack(self, query: dict[str, list[str]]) -> None:
        scan_id, level = query.get("id", [""])[0], query.get("level", [""])[0]
        try:
            pack = self.server.pack(scan_id, level)
        except KeyError:
            return self._refuse(HTTPStatus.NOT_FOUND, "no such scan in the store")
        except (ValueError, InvalidSelection) as error:
            return self._refuse(HTTPStatus.BAD_REQUEST, str(error))
        except (CorruptStore, OSError) as error:
            return self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, f"{error}. {VERIFY}")
        return self._answer("application/octet-stream", pack)

    def _answer(self, kind: str, body: bytes, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        for name, value in {**HEADERS, "Content-Type": kind, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        self._answer("text/plain; charset=utf-8", f"{reason}\n".encode(), status)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing: requests contain names of scans."""


def serve_store(store_path: StorePath, *, port: int) -> None:
    """Serve a store until the command is interrupted."""
    from commands.prepare.settings import known_scans

    store = open_store(store_path)
    failed = [known.failure for known in known_scans(store).values() if known.failure]
    failures = [(one.scan_id, one.reason, one.remedy) for one in failed]
    stop = threading.Event()
    with StoreServer(store, failures, port) as server:
        print(f"open {server.address}\nonly this machine can reach it; end with Ctrl-C", flush=True)
        threading.Thread(target=server.survey.read, args=(stop,), daemon=True).start()
        try:
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            print("ended")
        finally:
            stop.set()
