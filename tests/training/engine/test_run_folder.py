"""The folder of a run: begun once, gone on with as it was, by one process at a time."""

from __future__ import annotations

import errno
import json
import tomllib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import pytest
from hypothesis import given, strategies as st

from training import files
from training.engine.run_folder import (
    RunRecord,
    begin_run,
    check_run,
    describe_differences,
    locked_run,
    to_toml,
)
from training.errors import ConfigError, RunError
from training.files import read_settings
from training.pretraining.config import published, small

RECORD = RunRecord(
    settings=small().values(),
    store_name="store",
    scans={"a": "1", "b": "2"},
    versions={"torch": "2"},
)


def test_a_folder_with_a_run_in_it_is_not_begun_again(tmp_path: Path) -> None:
    begin_run(tmp_path / "run", RECORD)
    with pytest.raises(RunError, match=r"there is a run here already.*--resume"):
        begin_run(tmp_path / "run", RECORD)
    check_run(tmp_path / "run", RECORD)


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(RunError, match="something else here"):
        begin_run(tmp_path, RECORD)
    with pytest.raises(RunError, match="file of this name"):
        begin_run(tmp_path / "thesis.txt", RECORD)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_going_on_where_there_is_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run here to go on with"):
        check_run(tmp_path / "run", RECORD)


def test_a_setting_that_changes_weights_may_not_differ_and_is_named(tmp_path: Path) -> None:
    begin_run(tmp_path / "run", RECORD)
    config = small()
    other = replace(config, optimisation=replace(config.optimisation, peak_rate=0.5))
    with pytest.raises(ConfigError, match=r"optimisation\.peak_rate .* -> 0\.5"):
        check_run(tmp_path / "run", replace(RECORD, settings=other.values()))


def test_a_setting_that_only_watches_may_differ(tmp_path: Path) -> None:
    begin_run(tmp_path / "run", RECORD)
    config = small()
    other = replace(config, run=replace(config.run, num_workers=7, keep_last=9))
    check_run(tmp_path / "run", replace(RECORD, settings=other.values()))


def test_any_flipped_bit_of_settings_or_record_is_an_error_or_changes_no_weight(tmp_path: Path) -> None:
    settings = {"data": {"crop_voxels": 32, "label": "liver"}, "run": {"num_workers": 4}}
    record = replace(RECORD, settings=settings)
    begin_run(tmp_path, record)
    for name in ("config.toml", "run.json"):
        path = tmp_path / name
        whole = path.read_bytes()
        for place in range(len(whole)):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << place % 8
            path.write_bytes(damaged)
            with suppress(RunError):
                check_run(tmp_path, record)
                assert read_settings(tmp_path)["data"] == settings["data"], damaged
        path.write_bytes(whole)
    (tmp_path / "config.toml").write_text(to_toml(settings).replace("32", "48"))
    with pytest.raises(RunError, match=r"config.toml: damaged, or changed by hand"):
        check_run(tmp_path, record)


def test_a_run_of_an_older_version_has_no_checksum_and_goes_on(tmp_path: Path) -> None:
    begin_run(tmp_path, RECORD)
    document = json.loads((tmp_path / "run.json").read_text())
    del document["checksum"], document["settings_digest"]
    (tmp_path / "run.json").write_text(json.dumps(document))
    check_run(tmp_path, RECORD)


@pytest.mark.parametrize(
    ("scans", "message"),
    [
        ({"a": "1"}, "b is gone"),
        ({"a": "1", "b": "2", "c": "3"}, "c is new"),
        ({"a": "1", "b": "x"}, "b has changed"),
    ],
)
def test_a_store_that_has_changed_is_told_scan_by_scan(
    scans: dict[str, str], message: str, tmp_path: Path
) -> None:
    begin_run(tmp_path / "run", RECORD)
    with pytest.raises(ConfigError, match=message):
        check_run(tmp_path / "run", replace(RECORD, scans=scans))


def test_one_process_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with locked_run(folder), pytest.raises(RunError, match="another process"), locked_run(folder):
        pass
    assert not folder.exists()  # no run was begun in it


def test_a_failure_at_the_start_is_told_and_leaves_nothing_that_is_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, write = tmp_path / "new", files.write_atomically

    def fail_at_the_record(path: Path, content: Callable[[IO[bytes]], object]) -> None:
        if path.name == files.RECORD:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, content)

    monkeypatch.setattr(files, "write_atomically", fail_at_the_record)
    with pytest.raises(OSError, match="No space left"):  # noqa: SIM117
        with locked_run(folder):
            begin_run(folder, RECORD)
    monkeypatch.undo()
    with locked_run(folder):
        begin_run(folder, RECORD)


@pytest.mark.parametrize("config", [published(), small()])
def test_settings_survive_their_file(config: Any) -> None:
    assert not describe_differences(tomllib.loads(to_toml(config.values())), config.values())


def test_a_setting_that_is_newer_than_the_run_changes_nothing_while_it_is_off() -> None:
    before = {"data": {"crop_voxels": [32, 32, 32]}}
    off = {"data": {"crop_voxels": (32, 32, 32), "early_fraction": 0.0, "early_window_voxels": 0}}
    assert not describe_differences(before, off)
    on = {"data": {"crop_voxels": (32, 32, 32), "early_fraction": 0.5}}
    assert describe_differences(before, on) == ["data.early_fraction unset -> 0.5"]
    assert describe_differences(on, before) == ["data.early_fraction 0.5 -> unset"]


VALUES = st.recursive(
    st.booleans() | st.integers(-(2**62), 2**62) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=6,
)
TABLES = st.recursive(
    st.dictionaries(st.text(max_size=5), VALUES, max_size=3),
    lambda inner: st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(TABLES)
def test_any_tables_survive_as_toml(tables: dict[str, Any]) -> None:
    assert tomllib.loads(to_toml(tables)) == tables
