"""Raw scans to weights through a real S3 server: the bytes of the same way on disk; the other commands."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from commands.main import main
from commands.prepare.command import prepare_store
from commands.prepare.settings import Settings
from commands.prepare.work import Options
from storage import StoreUrl, parse_store_path, read_ledger
from storage.access import client_of
from tests.storage.access.object_server import (
    ACCESS_KEY,
    SECRET,
    Proxy,
    new_url,
    proxy_before,
    s3_server,
    set_variables,
)

PRETRAIN = """
[model]
channels = [4, 8, 8, 16, 16]
[data]
crop_voxels = 16
cut_voxels = 20
masks_per_sample = 4
min_mask_voxels = 1
[optimisation]
num_steps = 2
batch_size = 1
precision = "float32"
[run]
num_workers = 0
evaluate_every = 0
draw_every = 0
"""


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with s3_server() as endpoint, proxy_before(endpoint) as running:
        set_variables(monkeypatch, running.endpoint)
        monkeypatch.setenv("MASS_OBJECT_TIMEOUT_SECONDS", "30")
        yield running


def scan_files(store: Path) -> dict[str, bytes]:
    """Every file of every scan on disk, by scan and key."""
    folders = store / "scans"
    return {
        "/".join(path.relative_to(folders).parts[1:]): path.read_bytes()
        for path in folders.rglob("*")
        if path.is_file()
    }


def scan_objects(store: StoreUrl) -> dict[str, bytes]:
    """The same of a store at a URL, without the folder of the commit."""
    client, found = client_of(store), {}
    for item in list(client.objects((store / "scans").key)):
        _, scan_id, *rest = item.key.split("/")
        key = "/".join([scan_id, *(rest if len(rest) == 1 else rest[1:])])
        found[key] = client.get((store / "scans" / item.key).key)[0]
    return found


@pytest.mark.long
@pytest.mark.parametrize("loaded_by", ["this process", "workers"])
def test_prepare_and_pretrain_give_the_same_bytes_as_on_disk(
    loaded_by: str,
    proxy: Proxy,
    raw: Path,
    tmp_path: Path,
    settings: Settings,
    mass: Callable[..., subprocess.Popen[str]],
    capfd: pytest.CaptureFixture[str],
) -> None:
    # Every seventh request fails at first.
    proxy.rule = lambda one: "503" if one.number % 7 == 0 else None
    (raw / "cis_ct.nii.gz").unlink()
    url, local = parse_store_path(new_url()), tmp_path / "store"
    assert isinstance(url, StoreUrl)
    for store in (local, url):
        report = prepare_store(raw, store, settings, Options())
        assert (report.exit_code, len(report.committed), report.failed) == (0, 2, ())
    again = prepare_store(raw, url, settings, Options())
    assert (again.exit_code, again.committed, len(again.skipped)) == (0, (), 2)
    assert scan_objects(url) == scan_files(local)
    assert read_ledger(url) == read_ledger(local)

    (tmp_path / "pretrain.toml").write_text(PRETRAIN)
    cache = ["--cache", str(tmp_path / "cache"), "--cache-size", "1"]
    for name, store, more in (
        ("a", local, []),
        ("b", url, []),
        ("c", url, [*cache, "--workers", "1"] if loaded_by == "workers" else cache),
        ("d", url, cache),
    ):
        words = ["pretrain", str(store), str(tmp_path / name), "--recipe", "small", "--device", "cpu"]
        words += ["--config", str(tmp_path / "pretrain.toml"), *more]
        proxy.bytes_sent = 0
        if "--workers" in more:  # the loader's server of this process may be older than the variables
            with mass(*words) as loading:
                told = loading.communicate()[0]
            assert loading.returncode == 0, told
        else:
            assert main(words) == 0
        weights = (tmp_path / name / "weights.safetensors").read_bytes()
        assert weights == (tmp_path / "a" / "weights.safetensors").read_bytes()
        if name == "d":
            assert proxy.bytes_sent < 20_000, "all but the index comes from the cache"

    for words in (["status"], ["verify"], ["score", "--scan", "ann*"], ["lift"]):
        result = tmp_path / "result.json"
        assert main([words[0], str(url), *words[1:], "--json", str(result)]) == 0
        assert json.loads(result.read_text())
    assert main(["inspect", str(url), "--out", str(tmp_path / "report.html"), "--full", "1"]) == 0
    assert main(["export", str(url), str(tmp_path / "out"), "--format", "nnunet"]) == 0
    shown = "".join(capfd.readouterr())
    assert str(url) in shown
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    for secret in (SECRET, ACCESS_KEY):
        assert secret not in shown
        assert not [data for data in [*written, *scan_objects(url).values()] if secret.encode() in data]


def test_a_store_that_cannot_be_reached_is_said_and_nothing_else_happens(
    proxy: Proxy, raw: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASS_OBJECT_TRIES", "1")
    proxy.rule = lambda one: "503"
    assert main(["prepare", str(raw), new_url()]) == 2
    assert "HTTP 503" in capsys.readouterr().err
    assert main(["status", "s3://nowhere/store"]) == 2
    with pytest.raises(SystemExit):
        main(["status", "https://host/store"])
    assert "s3://, gs://, az:// or file://" in capsys.readouterr().err


def test_a_file_url_is_a_store_on_disk(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["prepare", str(tmp_path / "empty"), (tmp_path / "made").as_uri()]) == 0
    assert (tmp_path / "made" / "store.json").exists()
    assert main(["verify", (tmp_path / "made").as_uri()]) == 0
