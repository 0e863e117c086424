"""A Prefect server that is not there, and a machine without a network, are told at once, with a remedy."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from commands.main import main
from commands.prepare import prefect_server as servers
from commands.prepare.prefect_server import own_address, require_answer, require_connection
from commands.terminal import CommandError
from tests.phantom import phantom
from tests.waits import PATIENT_SECONDS

ROOT = Path(__file__).parents[2]


@contextmanager
def answering(code: int) -> Iterator[str]:
    """The address of an API that answers every request with this code."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(code)
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/api"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def silent() -> Iterator[str]:
    """The address of a server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/api"


@contextmanager
def closed() -> Iterator[str]:
    """The address of a port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    yield f"http://127.0.0.1:{port}/api"


@pytest.mark.parametrize("code", [200, 401, 404, 500])
def test_a_server_that_answers_anything_is_there(code: int) -> None:
    with answering(code) as url:
        require_answer(url, seconds=PATIENT_SECONDS)


@pytest.mark.parametrize("where", [closed, silent, lambda: answering(503)])
def test_a_server_that_does_not_answer_is_told_with_what_to_do(where: Callable[[], object]) -> None:
    with where() as url, pytest.raises(CommandError, match="no Prefect server answers") as caught:  # type: ignore[attr-defined]
        require_answer(url, seconds=1.0)
    assert url in str(caught.value)
    assert "--embedded-server" in str(caught.value)
    assert servers.ANSWER_SECONDS <= 25, "with what comes before, half a minute in all"


@pytest.mark.parametrize("url", ["nonsense", "http://", "http://[/api"])
def test_an_address_that_makes_no_sense_is_told_as_such(url: str) -> None:
    with pytest.raises(CommandError, match="correct PREFECT_API_URL"):
        require_answer(url, seconds=1.0)


def test_prepare_on_a_dead_server_ends_with_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    phantom().write(tmp_path / "raw" / "ann_ct.nii.gz")
    monkeypatch.setattr(servers.require_answer, "__kwdefaults__", {"seconds": 1.0})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = dict(os.environ)
    with closed() as url:
        monkeypatch.setenv("PREFECT_API_URL", url)
        try:
            assert main(["prepare", str(tmp_path / "raw"), str(tmp_path / "store")]) == 2
        finally:
            for name in set(os.environ) - set(before):
                monkeypatch.delenv(name)
    told = capsys.readouterr().err
    assert f"PREFECT_API_URL = {url}" in told
    assert "Traceback" not in told


def test_the_embedded_server_passes_a_named_one_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    @contextmanager
    def embedded(host: str, meanwhile: Callable[[], object]) -> Iterator[dict[str, str]]:
        seen.extend(name for name in named if name in os.environ)
        yield {"server": host}

    named = {"PREFECT_API_URL": "http://127.0.0.1:1/api", "PREFECT_API_AUTH_STRING": "some:body"}
    monkeypatch.setattr(servers, "_embedded_server", embedded)
    monkeypatch.setattr(servers, "keep_prefect_quiet", lambda: None)
    for name, value in named.items():
        monkeypatch.setenv(name, value)
    with servers.prefect_server(embedded=True) as settings:
        assert settings == {"server": "127.0.0.1"}
        assert not any(name in os.environ for name in named), "workers would follow it"
    assert seen == []
    assert {name: os.environ.get(name) for name in named} == named


def test_a_machine_that_cannot_reach_itself_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    require_connection("127.0.0.1")

    def unreachable(*_: object, **__: object) -> socket.socket:
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", unreachable)
    with pytest.raises(CommandError, match=r"Network is unreachable.*ip link set lo up"):
        require_connection("127.0.0.1")


@pytest.mark.parametrize("address", ["tcp://:", "tcp://nobody.invalid:8786", "tcp://127.0.0.1:99999999"])
def test_a_scheduler_that_no_way_leads_to_is_told_so(address: str) -> None:
    with pytest.raises(CommandError, match="--scheduler"):
        own_address(address)


def test_without_a_network_prepare_says_at_once_what_is_missing(tmp_path: Path) -> None:
    alone = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--user", "--net"]
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not allow a network namespace")
    phantom().write(tmp_path / "raw" / "ann_ct.nii.gz")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    run = subprocess.run(
        [*alone, sys.executable, "-m", "commands", "prepare", tmp_path / "raw", tmp_path / "store"],
        capture_output=True, text=True, check=False, timeout=PATIENT_SECONDS, cwd=ROOT,
        env=environment | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")},
    )  # fmt: skip
    assert run.returncode == 2, run.stderr
    assert "ip link set lo up" in run.stderr
    assert "embedded Prefect server (seconds" not in run.stderr, "it was not started"


TABLES = """
import asyncio
from commands.prepare.prefect_server import keep_prefect_quiet, keep_tables

keep_prefect_quiet()
keep_tables()
from prefect.server.database import provide_database_interface

async def told():
    database = provide_database_interface()
    await database.create_db()
    async with (await database.engine()).connect() as connection:
        made = "SELECT type, name, sql FROM sqlite_master ORDER BY 1, 2"
        for query in (made, "SELECT * FROM alembic_version"):
            for row in await connection.exec_driver_sql(query):
                print(*row)

asyncio.run(told())
"""


@pytest.mark.long
def test_kept_tables_are_those_of_the_migrations(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment |= {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path)}
    environment["PREFECT_API_DATABASE_CONNECTION_URL"] = "sqlite+aiosqlite:///:memory:"

    def run() -> str:
        command = [sys.executable, "-c", TABLES]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=PATIENT_SECONDS
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    migrated = run()
    assert "table flow_run " in migrated
    (kept,) = (tmp_path / "mass3d").glob("prefect-*.sql")
    written = kept.read_bytes()
    assert run() == migrated
    assert kept.read_bytes() == written


def test_kept_tables_that_are_cut_or_cannot_be_kept_are_as_good_as_none(tmp_path: Path) -> None:
    kept = tmp_path / "prefect-1.sql"
    assert servers.read_tables(kept) == ""
    servers.write_tables(kept, ["CREATE TABLE a (b);", "COMMIT;"])
    whole = kept.read_text()
    assert servers.read_tables(kept) == whole
    assert list(tmp_path.iterdir()) == [kept]
    kept.write_text(whole[:-4])
    assert servers.read_tables(kept) == ""
    kept.write_bytes(b"\xff" + whole.encode())
    assert servers.read_tables(kept) == ""
    servers.write_tables(kept / "no folder" / "prefect-1.sql", ["COMMIT;"])
    assert list(tmp_path.iterdir()) == [kept]
