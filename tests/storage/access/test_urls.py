"""Where a store can be."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from storage import CacheSettings, InvalidLocation, StoreUrl, parse_store_path, store_name, with_cache


@pytest.mark.parametrize("scheme", ["s3", "gs", "az"])
def test_a_url_is_a_bucket_and_a_key(scheme: str) -> None:
    url = parse_store_path(f"{scheme}://bucket/some/store/")
    assert url == StoreUrl(scheme, "bucket", "some/store")
    assert str(url) == f"{scheme}://bucket/some/store"
    assert str(url / "scans" / "a") == f"{scheme}://bucket/some/store/scans/a"
    assert store_name(url) == "store"


def test_a_bucket_may_be_the_store() -> None:
    url = parse_store_path("s3://bucket")
    assert str(url) == "s3://bucket"
    assert str(url / "store.json") == "s3://bucket/store.json"
    assert store_name(url) == "bucket"


def test_a_url_that_pathlib_has_shortened_is_the_same() -> None:
    assert parse_store_path(Path("s3://bucket/store")) == StoreUrl("s3", "bucket", "store")


def test_other_names_are_paths() -> None:
    for name in ("store", "/data/store", "a/b", "C:/x", "s3", "s3:bucket"):
        assert parse_store_path(name) == Path(name)


def test_a_file_url_is_a_path(tmp_path: Path) -> None:
    assert parse_store_path(tmp_path.as_uri()) == tmp_path
    assert parse_store_path("file:///data/my%20store") == Path("/data/my store")
    assert parse_store_path(Path("file:///data/store")) == Path("/data/store")
    with pytest.raises(InvalidLocation, match="file:///FOLDER"):
        parse_store_path("file://elsewhere/data")


@pytest.mark.parametrize("text", ["https://bucket/store", "ftp://x/y", "s4://x/y"])
def test_other_schemes_are_refused(text: str) -> None:
    with pytest.raises(InvalidLocation, match="s3://, gs://, az:// or file://"):
        parse_store_path(text)


@pytest.mark.parametrize("text", ["s3:///store", "s3://b/../c", "s3://b/./c", "s3://b/c d", "s3://b/c?x=1"])
def test_a_url_that_names_no_store_is_refused(text: str) -> None:
    with pytest.raises(InvalidLocation, match="not an address of a store"):
        parse_store_path(text)


def test_credentials_in_a_url_are_refused_and_not_repeated() -> None:
    with pytest.raises(InvalidLocation, match="must not hold credentials") as caught:
        parse_store_path("s3://key:hidden@bucket/store")
    assert "hidden" not in str(caught.value)


def test_a_cache_goes_with_the_url_into_workers_and_is_not_part_of_its_name(tmp_path: Path) -> None:
    cache = CacheSettings(tmp_path, 1000)
    url = with_cache(parse_store_path("s3://bucket/store"), cache)
    assert isinstance(url, StoreUrl)
    assert pickle.loads(pickle.dumps(url / "scans")).cache == cache
    assert str(url) == "s3://bucket/store"
    assert with_cache(tmp_path, cache) == tmp_path
