"""Requests to a real S3 server through a proxy that injects faults."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from storage import (
    LibraryMissing,
    StoreDenied,
    StoreFull,
    StoreUnreachable,
    create_store,
    open_store,
    parse_store_path,
)
from storage.access import ObjectConflictError, StoreUrl, client_of
from storage.access.client import ObjectClient
from tests.storage.access.object_server import ACCESS_KEY, SECRET, SLOW_SECONDS, Fault, Proxy, new_url

DATA = bytes(range(256)) * 400


@pytest.fixture
def place(proxy: Proxy) -> StoreUrl:
    url = parse_store_path(new_url())
    assert isinstance(url, StoreUrl)
    client_of(url).put((url / "x").key, DATA)
    proxy.seen.clear()
    return url


def first(number: int, fault: Fault, proxy: Proxy, method: str = "GET") -> None:
    """Let the first requests of a method go wrong."""
    proxy.rule = lambda one: fault if len(proxy.of(method)) <= number and one.method == method else None


@pytest.mark.parametrize("fault", ["500", "503", "cut", "slow", "lost"])
def test_a_read_that_goes_wrong_is_tried_again_and_gives_all_bytes(
    fault: Fault, place: StoreUrl, proxy: Proxy
) -> None:
    first(2, fault, proxy)
    client, key = client_of(place), (place / "x").key
    assert client.get(key)[0] == DATA
    proxy.seen.clear()
    data, size, _ = client.get_range(key, 1000, 5000)
    assert (data, size) == (DATA[1000:6000], len(DATA))
    assert len(proxy.of("GET")) == 3


@pytest.mark.parametrize("fault", ["500", "lost"])
def test_a_write_that_goes_wrong_is_tried_again(fault: Fault, place: StoreUrl, proxy: Proxy) -> None:
    first(2, fault, proxy, "PUT")
    client_of(place).put((place / "y").key, DATA)
    assert client_of(place).get((place / "y").key)[0] == DATA


def test_a_file_is_written_without_being_read_into_memory(place: StoreUrl, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(DATA * 60)  # more than a part: sent in several
    client_of(place).put((place / "large").key, tmp_path / "large")
    assert client_of(place).get((place / "large").key)[0] == DATA * 60


def test_after_all_tries_the_error_names_the_object_and_what_to_do(place: StoreUrl, proxy: Proxy) -> None:
    proxy.rule = lambda one: "503"
    with pytest.raises(StoreUnreachable) as caught:
        client_of(place).get((place / "x").key)
    message = str(caught.value)
    assert str(place / "x") in message
    assert "failed 4 times" in message
    assert "HTTP 503" in message
    assert "run the same command again" in message
    assert len(proxy.of("GET")) == 4


def test_missing_credentials_are_said_at_once(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    client = client_of(StoreUrl("s3", "any"))

    def call() -> None:
        raise client._exceptions.GenericError("Error performing PUT http://169.254.169.254/latest/api/token")

    with pytest.raises(StoreDenied, match="no credentials in the environment"):
        client._tried("reading", "key", call)


@pytest.mark.parametrize(("fault", "what"), [("cut", "the connection was cut"), ("slow", "in time")])
def test_what_went_wrong_is_said(
    fault: Fault, what: str, place: StoreUrl, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy.rule = lambda one: fault
    monkeypatch.setenv("MASS_OBJECT_TRIES", "1")
    if fault == "slow":
        monkeypatch.setenv("MASS_OBJECT_TIMEOUT_SECONDS", str(SLOW_SECONDS / 3))
    with pytest.raises(StoreUnreachable, match=what):
        client_of(place).get((place / "x").key)


def test_nobody_at_the_endpoint_is_said_so(place: StoreUrl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreUnreachable, match=r"no connection.*127\.0\.0\.1:9"):
        open_store(place)


def test_a_refusal_is_not_tried_again_and_no_message_has_a_credential(place: StoreUrl, proxy: Proxy) -> None:
    proxy.rule = lambda one: "403"
    with pytest.raises(StoreDenied, match="HTTP 403 SignatureDoesNotMatch") as caught:
        client_of(place).get((place / "x").key)
    shown = "".join(map(str, (caught.value, caught.value.__cause__, repr(client_of(place)))))
    assert ACCESS_KEY not in shown
    assert SECRET not in shown
    assert caught.value.__suppress_context__
    assert len(proxy.seen) == 1


def test_a_bucket_that_is_not_there_is_named(proxy: Proxy) -> None:
    with pytest.raises(StoreUnreachable, match="s3://nowhere: there is no such bucket"):
        open_store("s3://nowhere/store")


def test_a_conditional_put_is_refused_where_another_was_faster(place: StoreUrl) -> None:
    client, key = client_of(place), (place / "x").key
    _, stamp = client.get(key)
    with pytest.raises(ObjectConflictError):
        client.put_if(key, b"new", unchanged=None)
    client.put_if(key, b"new", unchanged=stamp)
    with pytest.raises(ObjectConflictError):
        client.put_if(key, b"other", unchanged=stamp)
    assert client.get(key)[0] == b"new"


def test_a_conditional_put_whose_answer_was_lost_is_known_to_be_done(place: StoreUrl, proxy: Proxy) -> None:
    first(1, "lost", proxy, "PUT")
    client_of(place).put_if((place / "z").key, b"mine", unchanged=None)
    assert client_of(place).get((place / "z").key)[0] == b"mine"


def test_a_service_without_conditional_puts_is_refused(proxy: Proxy) -> None:
    proxy.rule = lambda one: "unconditional" if one.method == "PUT" else None
    with pytest.raises(StoreUnreachable, match="no conditional puts"):
        create_store(new_url(), spacing_mm=1.5, config={})


def test_a_listing_longer_than_a_page_is_complete(place: StoreUrl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.access.client._PAGE_OBJECTS", 3)
    client = client_of(place)
    for number in range(7):
        client.put((place / f"many/{number}").key, b"")
    found = [item.key for item in client.objects((place / "many").key)]
    assert found == [str(number) for number in range(7)]
    client.delete((place / f"many/{number}").key for number in range(9))
    assert list(client.objects((place / "many").key)) == []


def test_an_object_that_is_gone_is_not_found_and_not_tried_again(place: StoreUrl, proxy: Proxy) -> None:
    with pytest.raises(FileNotFoundError):
        client_of(place).get((place / "gone").key)
    assert len(proxy.seen) == 1


def test_no_space_is_said_as_on_a_disk(place: StoreUrl, monkeypatch: pytest.MonkeyPatch) -> None:
    client = client_of(place)

    def full() -> None:
        raise client._exceptions.GenericError("status code: 507 <Code>InsufficientStorage</Code>")

    with pytest.raises(StoreFull, match="no space or quota is left"):
        client._tried("writing", "key", full)


def test_without_the_library_the_message_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(LibraryMissing, match=r"pip install obstore.*\[object-stores\]"):
        ObjectClient("s3", "bucket")
