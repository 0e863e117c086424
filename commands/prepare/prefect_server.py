"""The embedded Prefect server of a run: in memory, for this user only, ended with the run.

Reads:  PREFECT_API_URL, if a server runs already; PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS.
Writes: Prefect's home under the cache folder; nothing else, and nothing that is set already is changed.
Bounds: one server per process. A server that does not answer, or a machine without a loopback, is an error
        that tells what to do within half a minute.
"""

from __future__ import annotations

import http.client
import os
import secrets
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from commands.caches import cache_folder
from commands.terminal import CommandError
from storage import write_atomically

EVENTS_SECONDS = 20.0
"""Longest wait for the last events to reach the embedded server."""

SERVER_START_SECONDS = 180.0
"""Longest wait for the embedded server; PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS overrides it."""

ANSWER_SECONDS = 20.0
"""Longest wait for an answer of the server that PREFECT_API_URL names."""

CONNECTION_SECONDS = 5.0
"""Longest wait for this machine to reach itself."""

_END_OF_TABLES = "-- end"
"""Last line of kept tables that are complete."""

_NAMED_SERVER = ("PREFECT_API_URL", "PREFECT_API_KEY", "PREFECT_API_AUTH_STRING")


@contextmanager
def prefect_server(
    scheduler: str = "", meanwhile: Callable[[], object] = lambda: None, *, embedded: bool = False
) -> Iterator[dict[Any, Any]]:
    """Run a Prefect server during the block, unless PREFECT_API_URL names one that runs already.

    Args:
        scheduler: Address of the Dask scheduler whose workers must reach it; "" for this machine only.
        meanwhile: Called while it starts.
        embedded: Whether PREFECT_API_URL is ignored.

    Yields:
        Prefect settings for clients of the server; they are sent to Dask workers with each task.

    Raises:
        CommandError: No server answers, or this machine has no network for one.
    """
    keep_prefect_quiet()
    url = os.environ.get("PREFECT_API_URL")
    if url and not embedded:
        require_answer(url)
        yield prefect_settings(url, os.environ.get("PREFECT_API_AUTH_STRING"))
        return
    host = own_address(scheduler)
    require_connection(host)
    named = {name: os.environ.pop(name) for name in _NAMED_SERVER if name in os.environ}
    try:
        with _embedded_server(host, meanwhile) as settings:
            yield settings
    finally:
        os.environ.update(named)


@contextmanager
def _embedded_server(host: str, meanwhile: Callable[[], object]) -> Iterator[dict[Any, Any]]:
    """Run the program's own server on an address of this machine.

    Its database is in memory: nothing to migrate between versions, no file that two runs could both use. It
    ends with this process, in whatever way that ends. Clients need the run's random password.
    """
    print("starting the embedded Prefect server (seconds; a minute on a busy machine)", file=sys.stderr)
    password = f"mass:{secrets.token_urlsafe(24)}"
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    environment = {
        "PYTHONPATH": path,
        "PREFECT_API_DATABASE_CONNECTION_URL": "sqlite+aiosqlite:///:memory:",
        "PREFECT_SERVER_API_AUTH_STRING": password,
        "PREFECT_UI_ENABLED": "0",
        "PREFECT__SERVER_EPHEMERAL": "1",
        "PREFECT__SERVER_FINAL": "1",
    }
    serve = f"import sys; from {__name__} import serve_prefect; serve_prefect(sys.argv[1])"
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(
            [sys.executable, "-c", serve, host],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=os.environ | environment,
            start_new_session=True,  # Ctrl-C must not reach the server
            text=True,
        )
        from prefect.events.clients import PrefectEventsClient
        from prefect.events.worker import EventsWorker

        meanwhile()
        EventsWorker.set_client_override(PrefectEventsClient, reconnection_attempts=0)
        try:
            yield prefect_settings(f"http://{host}:{wait_for_server(server, host, log)}/api", password)
            EventsWorker.drain_all(timeout=EVENTS_SECONDS)  # else it would wait for the dead server at exit
        finally:
            EventsWorker.set_client_override(None)
            server.kill()
            server.communicate()


def keep_prefect_quiet() -> None:
    """Set Prefect's home, no telemetry and no log lines; variables that are set already stay."""
    settings = {
        "PREFECT_HOME": str(cache_folder() / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_CLIENT_MAX_RETRIES": "2",  # do not wait minutes for a server that is gone
        "DO_NOT_TRACK": "1",
        "PREFECT_LOGGING_LEVEL": "CRITICAL",
        "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",
        "PREFECT_LOGGING_TO_API_ENABLED": "false",
        "PREFECT_CLI_PROMPT": "false",
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    Path(os.environ["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)


def prefect_settings(url: str, password: str | None) -> dict[Any, Any]:
    """Return the settings of a client of a server."""
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL

    return {PREFECT_API_URL: url} | ({PREFECT_API_AUTH_STRING: password} if password else {})


def serve_prefect(host: str) -> None:
    """Run the embedded server: print the port, serve, and end when the parent closes stdin."""
    import uvicorn

    def end_with_parent() -> None:
        sys.stdin.buffer.read()
        os._exit(0)

    threading.Thread(target=end_with_parent, daemon=True).start()
    keep_tables()
    config = uvicorn.Config(
        "prefect.server.api.server:create_app", factory=True, host=host, port=0, log_level="error"
    )
    listening = config.bind_socket()
    print(listening.getsockname()[1], flush=True)
    uvicorn.Server(config).run(sockets=[listening])


def keep_tables() -> None:
    """Make this Prefect server, with its empty database in memory, create its tables from a kept file.

    Otherwise a hundred migrations create them, in five seconds. Their result is kept as SQL statements in the
    cache folder, by version, before the first request: so it holds nothing of a run. A missing or incomplete
    file is written again. Has to be called before the server starts.
    """
    from prefect import __version__
    from prefect.server.database.interface import PrefectDBInterface

    kept = cache_folder() / f"prefect-{__version__}.sql"
    migrate: Callable[[Any], Awaitable[None]] | None = getattr(PrefectDBInterface, "create_db", None)
    if migrate is None:  # another version of Prefect: it creates its tables itself
        return

    async def create_db(self: Any) -> None:
        statements = read_tables(kept)
        if not statements:
            await migrate(self)
        async with (await self.engine()).connect() as connection:
            database = (await connection.get_raw_connection()).driver_connection
            if statements:
                await database.executescript(statements)
            else:
                write_tables(kept, [line async for line in database.iterdump()])

    setattr(PrefectDBInterface, "create_db", create_db)  # noqa: B010


def read_tables(path: Path) -> str:
    """Return the kept statements; "" if there are none, or not all."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
    return text if text.rstrip().endswith(_END_OF_TABLES) else ""


def write_tables(path: Path, lines: list[str]) -> None:
    """Write statements to be kept; a folder that cannot be written to is no error."""
    text = "\n".join([*lines, _END_OF_TABLES, ""])
    # Several servers may start at once, and write_atomically has one temporary name for a path.
    own = path.with_suffix(f".{os.getpid()}")
    with suppress(OSError):
        write_atomically(own, lambda file: file.write(text.encode()))
        own.replace(path)


def wait_for_server(server: subprocess.Popen[str], host: str, log: Any) -> int:
    """Wait until the embedded server answers; return its port."""
    limit = os.environ.get("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS")
    deadline = time.monotonic() + (float(limit) if limit else SERVER_START_SECONDS)
    assert server.stdout is not None
    port = int(server.stdout.readline() or 0)
    while time.monotonic() < deadline and server.poll() is None:
        connection = http.client.HTTPConnection(host, port, timeout=5)
        try:
            connection.request("GET", "/api/health")
            if connection.getresponse().status == 200:
                return port
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.1)
    log.seek(0)
    raise CommandError(
        "the embedded Prefect server did not start. Set PREFECT_API_URL to a server of yours, or mend this:\n"
        + log.read()[-2000:]
    )


def require_answer(url: str, *, seconds: float = ANSWER_SECONDS) -> None:
    """Wait until a Prefect server answers; an error in the answer is left to the client.

    Raises:
        CommandError: No server answers; the message says what to do.
    """
    deadline = time.monotonic() + seconds
    while True:
        left = deadline - time.monotonic()
        try:
            with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=max(1.0, left)):
                return
        except urllib.error.HTTPError as error:
            if error.code not in (502, 503, 504):  # a proxy's answer for a server that is gone
                return
            reason = f"it answers {error.code} {error.reason}"
        except (OSError, http.client.HTTPException, ValueError) as error:
            cause = getattr(error, "reason", error)
            if isinstance(cause, ssl.SSLError):  # there is a server; Prefect checks its certificate
                return
            reason = str(cause) or type(cause).__name__
        if time.monotonic() + 1 >= deadline:
            raise CommandError(
                f"no Prefect server answers at PREFECT_API_URL = {url} ({reason}). Start that server, or "
                "correct PREFECT_API_URL, or use the server that this program brings along: "
                "--embedded-server. Nothing was done yet"
            )
        time.sleep(1)


def require_connection(host: str) -> None:
    """Check that this machine reaches itself at an address, as the embedded server needs.

    Raises:
        CommandError: It does not; the message says what to do.
    """
    try:
        with socket.create_server((host, 0)) as listening:
            socket.create_connection(listening.getsockname()[:2], timeout=CONNECTION_SECONDS).close()
    except OSError as error:
        raise CommandError(
            f"this machine cannot reach itself at {host} ({error.strerror or error}), so the embedded "
            "Prefect server cannot run. In a container or a network namespace of its own, bring the loopback "
            "up (`ip link set lo up`), or take away what blocks it; or set PREFECT_API_URL to a server of "
            "yours"
        ) from error


def own_address(scheduler: str) -> str:
    """Return the address of this machine that a Dask scheduler's workers can reach; loopback without one."""
    if not scheduler:
        return "127.0.0.1"
    host, _, port = scheduler.split("://")[-1].rpartition(":")
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # nothing is sent
            probe.connect((host.strip("[]"), int(port)))
            address: str = probe.getsockname()[0]
            return address
    except (OSError, ValueError, OverflowError) as error:
        raise CommandError(
            f"--scheduler {scheduler}: no way leads there ({error}). Give the address that the scheduler "
            "prints, as tcp://HOST:PORT"
        ) from error
