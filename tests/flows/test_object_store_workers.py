"""Several processes prepare a store at a URL; it is changed and mended: the bytes of a store on disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from commands.main import main
from commands.prepare.command import prepare_store
from commands.prepare.settings import Settings
from commands.prepare.work import Options
from storage import StoreUrl, open_store, parse_store_path, read_ledger, verify
from storage.access import client_of
from tests.flows.dask_cluster import Cluster
from tests.flows.test_object_stores import scan_files, scan_objects
from tests.storage.access.object_server import new_url, s3_server, set_variables


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[StoreUrl]:
    """The URL of a store that is not there yet, on a real S3 server."""
    with s3_server() as endpoint:
        set_variables(monkeypatch, endpoint)
        monkeypatch.setenv("MASS_OBJECT_TIMEOUT_SECONDS", "60")
        found = parse_store_path(new_url())
        assert isinstance(found, StoreUrl)
        yield found


def objects(store: StoreUrl) -> dict[str, bytes]:
    """The files of the scans as they are now; those of replaced commits stay for a day."""
    entries = open_store(store).entries
    now = {f"{scan_id}/{entry.path.rpartition('/')[2]}" for scan_id, entry in entries.items()}
    client, found = client_of(store), {}
    for item in list(client.objects((store / "scans").key)):
        _, scan_id, folder, *rest = item.key.split("/")
        if f"{scan_id}/{folder}" in now:
            found["/".join([scan_id, *rest])] = client.get((store / "scans" / item.key).key)[0]
    return found


@pytest.mark.long
@pytest.mark.parametrize("how", ["workers", "scheduler"])
def test_several_processes_write_the_bytes_that_one_writes_on_disk(
    how: str, url: StoreUrl, prepared_once: Path, raw: Path, settings: Settings, cluster: Cluster
) -> None:
    if how == "scheduler":
        for _ in range(2):
            cluster.worker("--nthreads", "1")
        options = Options(scheduler=cluster.address)
    else:
        options = Options(workers=2)
    report = prepare_store(raw, url, settings, options)
    assert (report.exit_code, len(report.committed), report.failed) == (0, 3, ())
    assert scan_objects(url) == scan_files(prepared_once)
    assert read_ledger(url) == read_ledger(prepared_once)
    assert list(verify(url)) == []
    again = prepare_store(raw, url, settings, options)
    assert (again.exit_code, again.committed, len(again.skipped)) == (0, (), 3)


def test_masks_are_taken_out_again_and_a_lost_file_is_made_again_to_the_byte(
    url: StoreUrl, raw: Path, settings: Settings, tmp_path: Path
) -> None:
    assert prepare_store(raw, url, settings, Options()).exit_code == 0
    before = objects(url)
    mask = np.zeros((1, *open_store(url).entries["ann_ct"].shape_zyx), dtype=bool)
    mask[:, 2:6, 2:6, 2:8] = True
    np.savez(tmp_path / "box.npz", mask)
    words = ["import-masks", str(url), str(tmp_path / "box.npz"), "--scan", "ann_ct", "--source", "box"]
    assert main([*words, "--grid", "stored"]) == 0
    assert objects(url) != before
    assert main(["import-masks", str(url), "--remove", "box"]) == 0
    assert objects(url) == before

    path = url / open_store(url).entries["ben_ct"].path / "0" / "c.0.0.0"
    client_of(url).delete([path.key])
    assert [problem.scan_id for problem in verify(url)] == ["ben_ct"]
    assert main(["repair", str(url)]) == 0
    assert list(verify(url)) == []
    assert objects(url) == before
