"""A store at az:// on Azurite, Microsoft's emulator; skipped where `azurite-blob` is not installed (npm)."""

from __future__ import annotations

import base64
import email.utils
import hashlib
import hmac
import http.client
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator

import pytest

from storage import ScanRecord, StoreUnreachable, commit_scan, create_store, finish, open_store, verify
from storage.access import ObjectConflictError, StoreUrl, client_of, parse_store_path
from tests.storage.drawn_record import differently
from tests.waits import PATIENT_SECONDS

pytest.importorskip("obstore", reason="needs the extra [object-stores]")
AZURITE = shutil.which("azurite-blob")
pytestmark = pytest.mark.skipif(AZURITE is None, reason="needs Azurite: npm install -g azurite")

ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Of the emulator, the same everywhere (Microsoft's documentation)."""


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[StoreUrl]:
    """The address of a store that is not there yet, in a container that is."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert AZURITE is not None
    command = [AZURITE, "--silent", "--inMemoryPersistence", "--skipApiVersionCheck"]
    with subprocess.Popen([*command, "--blobHost", "127.0.0.1", "--blobPort", str(port)]) as server:
        try:
            until = time.monotonic() + PATIENT_SECONDS
            while make_container(port, "scans") != 201:
                assert time.monotonic() < until
                time.sleep(0.1)
            monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT)
            monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", KEY)
            monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", f"http://127.0.0.1:{port}/{ACCOUNT}")
            address = parse_store_path("az://scans/store")
            assert isinstance(address, StoreUrl)
            yield address
        finally:
            server.terminate()


def make_container(port: int, name: str) -> int:
    """Ask for a container; returns the HTTP status, 0 without an answer."""
    headers = {"x-ms-date": email.utils.formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
    signed = "PUT" + 12 * "\n" + "".join(f"{key}:{value}\n" for key, value in headers.items())
    signed += f"/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
    digest = hmac.new(base64.b64decode(KEY), signed.encode(), hashlib.sha256).digest()
    headers["Authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}"
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("PUT", f"/{ACCOUNT}/{name}?restype=container", headers=headers)
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


def test_a_store_is_made_read_replaced_and_verified(store: StoreUrl, record: ScanRecord) -> None:
    create_store(store, spacing_mm=1.5, config={})
    commit_scan(store, record)
    assert open_store(store).scan(record.scan_id).record().scores.tolist() == record.scores.tolist()
    commit_scan(store, differently(record), replace=True)
    finish(store)
    assert list(verify(store)) == []


def test_an_object_that_has_changed_is_not_replaced(store: StoreUrl) -> None:
    client, key = client_of(store), (store / "x").key
    client.put_if(key, b"0123456789", unchanged=None)
    data, stamp = client.get(key)
    assert (data, client.get_range(key, 8, 30)[:2]) == (b"0123456789", (b"89", 10))
    client.put_if(key, b"second", unchanged=stamp)
    for unchanged in (stamp, None):
        with pytest.raises(ObjectConflictError):
            client.put_if(key, b"third", unchanged=unchanged)
    assert [item.key for item in client.objects(store.key)] == ["x"]
    client.delete([key, key + "-that-is-not-there"])
    assert list(client.objects(store.key)) == []


def test_a_container_that_is_not_there_is_said(store: StoreUrl) -> None:
    with pytest.raises(StoreUnreachable, match="there is no such bucket"):
        list(client_of(StoreUrl("az", "nowhere")).objects("store"))
