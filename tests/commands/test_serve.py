"""The server of `mass inspect --serve`: what it gives, and what it refuses."""

from __future__ import annotations

import gzip
import json
import struct
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest

from commands.serve import StoreServer
from storage import open_store
from tests.drawn_store import drawn_store
from tests.waits import PATIENT_SECONDS


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreServer]:
    store = drawn_store(tmp_path_factory.mktemp("served") / "store")
    with StoreServer(store, [("lost", "no such file", "copy it again")], port=0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(
    server: StoreServer, path: str, *, method: str = "GET", host: str = "", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body; the path is sent as it is."""
    connection = HTTPConnection("127.0.0.1", server.server_port, timeout=PATIENT_SECONDS)
    connection.putrequest(method, path, skip_host=True)
    connection.putheader("Host", host or f"127.0.0.1:{server.server_port}")
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders()), body


def test_the_page_lists_every_scan_and_failure_and_is_not_kept(server: StoreServer) -> None:
    status, headers, body = ask(server, f"/{server.word}/")
    assert status == 200
    text = body.decode()
    assert all(name in text for name in (*server.store.scan_ids, "no such file", '"served":true'))
    assert headers["Cache-Control"] == "no-store"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "Access-Control-Allow-Origin" not in headers


def test_a_pack_is_a_scan_at_the_level_asked_for(server: StoreServer) -> None:
    status, _, body = ask(server, f"/{server.word}/pack?id=drawn_1&level=0")
    assert status == 200
    data = gzip.decompress(body)
    header = json.loads(data[4 : 4 + struct.unpack("<I", data[:4])[0]])
    assert header["arrays"]["image"]["shape"] == [18, 40, 48]
    assert header["arrays"]["image"]["dtype"] == "int16"
    assert header["about"]["levels"] == [[18, 40, 48]]
    assert ask(server, f"/{server.word}/pack?id=drawn_1")[2] == body


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("id=nobody", 404),
        ("id=../../store.json", 404),
        ("id=drawn_1&level=9", 400),
        ("id=drawn_1&level=-1", 400),
        ("id=drawn_1&level=x", 400),
        ("", 404),
    ],
)
def test_a_pack_of_what_is_not_there_is_refused(server: StoreServer, query: str, status: int) -> None:
    assert ask(server, f"/{server.word}/pack?{query}")[0] == status


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/x/",
        "/{word}x/",
        "/{short}/",
        "/{word}/store.json",
        "/{word}/../../etc/passwd",
        "/{word}/%2e%2e/store.json",
        "//etc/passwd",
        "/{word}/pack/../../store.json",
    ],
)
def test_nothing_is_served_by_file_name_or_without_the_word(server: StoreServer, path: str) -> None:
    path = path.format(word=server.word, short=server.word[:-1])
    status, _, body = ask(server, path)
    assert status == 404
    assert len(body) < 100


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1", "localhost:1", "0.0.0.0:{port}", "[::1]:{port}"]
)
def test_a_request_for_another_host_is_refused_before_the_word_is_looked_at(
    server: StoreServer, host: str
) -> None:
    status, _, body = ask(server, f"/{server.word}/", host=host.format(port=server.server_port))
    assert status == 421
    assert b"drawn_1" not in body


def test_localhost_is_answered_and_another_site_is_not(server: StoreServer) -> None:
    assert ask(server, f"/{server.word}/", host=f"localhost:{server.server_port}")[0] == 200
    assert ask(server, f"/{server.word}/", Sec_Fetch_Site="same-origin")[0] == 200
    assert ask(server, f"/{server.word}/", Sec_Fetch_Site="cross-site")[0] == 403
    assert ask(server, f"/{server.word}/", Sec_Fetch_Site="same-site")[0] == 403


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS"])
def test_only_get_is_answered(server: StoreServer, method: str) -> None:
    assert ask(server, f"/{server.word}/", method=method)[0] == 501


def test_it_listens_on_loopback_and_its_word_is_long(server: StoreServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    assert len(server.word) >= 43


def test_scans_are_read_behind_the_page_and_damaged_ones_are_listed(tmp_path: Path) -> None:
    store = drawn_store(tmp_path / "store")
    damaged = store.scan("drawn_2").path / "proposals" / "c.0.0"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    with StoreServer(open_store(store.path), [], port=0) as server:
        survey = server.survey
        assert "Scans are being read" in survey.page().decode()
        assert survey.rows["drawn_1"].size_counts is None
        survey.read(threading.Event())
        assert survey.done
        assert survey.rows["drawn_1"].size_counts == (360, 318, 42, 0, 0)
        page = survey.page().decode()
        assert "Scans are being read" not in page
        assert "mass verify" in page
        assert [scan_id for scan_id, _, _ in survey.failures] == ["drawn_2"]
