"""A real S3 server on this machine, and a proxy before it that injects faults and counts requests."""

from __future__ import annotations

import http.client
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.request import Request, urlopen

import pytest

from tests.waits import PATIENT_SECONDS

pytest.importorskip("obstore", reason="needs the extra [object-stores]")
moto_server = pytest.importorskip("moto.server", reason="needs moto's server")

BUCKET = "scans"

Fault = Literal["500", "503", "403", "cut", "slow", "lost", "unconditional"]
"""What becomes of a request: an error; half an answer; an answer that drips; done but without an answer;
done without its condition."""

Rule = Callable[["Exchange"], "Fault | None"]

SECRET = "canary-of-a-secret-key"
ACCESS_KEY = "CANARYACCESSKEY"

DENIED = (
    "<Error><Code>SignatureDoesNotMatch</Code><Message>no</Message>"
    f"<AWSAccessKeyId>{ACCESS_KEY}</AWSAccessKeyId></Error>"
)
"""As S3 answers: with the key's name."""


@dataclass(frozen=True)
class Exchange:
    """A request that went through the proxy."""

    number: int
    method: str
    path: str
    """Without the bucket; with the query."""
    range: str
    """The bytes asked for, as `bytes=0-99`; empty for all."""


@dataclass
class Proxy:
    """The proxy's endpoint, what it does to requests, and what it has seen."""

    endpoint: str
    rule: Rule | None = None
    seen: list[Exchange] = field(default_factory=list)
    bytes_sent: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def of(self, method: str, part: str = "") -> list[Exchange]:
        """Return the requests of a method whose path has `part`."""
        return [one for one in self.seen if one.method == method and part in one.path]


@contextmanager
def s3_server() -> Iterator[str]:
    """Run moto's server; yields its endpoint."""
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    try:
        with urlopen(Request(f"{endpoint}/{BUCKET}", method="PUT"), timeout=PATIENT_SECONDS):
            pass
        yield endpoint
    finally:
        server.stop()


@contextmanager
def proxy_before(endpoint: str) -> Iterator[Proxy]:
    """Run a proxy before a server; yields it."""
    upstream = endpoint.removeprefix("http://")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with proxy.lock:
                exchange = Exchange(
                    len(proxy.seen),
                    self.command,
                    self.path.removeprefix(f"/{BUCKET}"),
                    self.headers.get("Range") or "",
                )
                proxy.seen.append(exchange)
                fault = proxy.rule(exchange) if proxy.rule else None
            if fault in ("500", "503", "403"):
                return self.answer(int(fault), {}, DENIED.encode() if fault == "403" else b"")
            headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
            if fault == "unconditional":
                headers = {name: value for name, value in headers.items() if name.lower() != "if-none-match"}
            connection = http.client.HTTPConnection(upstream, timeout=PATIENT_SECONDS)
            connection.request(self.command, self.path, body, {**headers, "Host": upstream})
            reply = connection.getresponse()
            data = reply.read()
            connection.close()
            kept = {name: value for name, value in reply.getheaders() if name.lower() not in _OWN_HEADERS}
            if self.command == "HEAD":
                kept["Content-Length"] = reply.getheader("Content-Length") or "0"
            self.answer(reply.status, kept, data, fault)
            return None

        def answer(self, status: int, headers: dict[str, str], data: bytes, fault: str | None = None) -> None:
            if fault == "lost":
                return self.hang_up()
            self.send_response_only(status)
            for name, value in ({"Content-Length": str(len(data))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            if fault in ("cut", "slow"):
                self.wfile.write(data[: len(data) // 2])
                self.wfile.flush()
                if fault == "slow":
                    time.sleep(SLOW_SECONDS)
                return self.hang_up()
            self.wfile.write(data)
            proxy.bytes_sent += len(data)
            return None

        def hang_up(self) -> None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

        def log_message(self, *_: object) -> None:
            pass

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = forward  # noqa: N815 - names of the base class

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """A client that gave up is none of the test's business."""

    server = Server(("127.0.0.1", 0), Handler)
    proxy = Proxy(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


_OWN_HEADERS = {"content-length", "transfer-encoding", "connection", "date", "server"}

SLOW_SECONDS = 1.5
"""How long a slow answer stands still; a test of it has less patience."""


def new_url() -> str:
    """Return the URL of a store that is not there yet."""
    return f"s3://{BUCKET}/{uuid.uuid4().hex}/store"


def set_variables(monkeypatch: pytest.MonkeyPatch, endpoint: str, *, tries: int = 3) -> None:
    """Set the usual variables."""
    for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL_S3", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("MASS_OBJECT_TRIES", str(tries))
    monkeypatch.setenv("MASS_OBJECT_TIMEOUT_SECONDS", str(PATIENT_SECONDS))
