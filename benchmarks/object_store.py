"""What a store in an object store costs beside one on disk: requests, seconds, processor time, with a cache.

    python benchmarks/object_store.py STORE s3://BUCKET/NAME          # the server that AWS_ENDPOINT_URL names
    python benchmarks/object_store.py STORE --moto                    # moto's server, started here
    python benchmarks/object_store.py STORE --moto --samples 100 --scans 10
    python benchmarks/object_store.py --clients --moto                # obstore beside s3fs, where installed

STORE is a store on disk; its first scans are committed to the URL, then samples of the small recipe are read
from both. Requests are those that the client makes, tries again included. On this machine there is no network
between: a request to a service takes 10 to 100 ms more.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from storage import (
    CacheSettings,
    StorePath,
    commit_scan,
    create_store,
    finish,
    open_store,
    parse_store_path,
    with_cache,
)
from storage.access import ObjectClient
from training.data.sample_reader import SampleReader
from training.pretraining.config import small

MOTO = """
import sys, threading
from moto.server import ThreadedMotoServer
ThreadedMotoServer(ip_address="127.0.0.1", port=int(sys.argv[1]), verbose=False).start()
threading.Event().wait()
"""

REQUESTS: Counter[str] = Counter()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store", type=Path, nargs="?", help="a store on disk")
    parser.add_argument("url", nargs="?", help="where its scans are put")
    parser.add_argument("--moto", action="store_true", help="start a server on this machine")
    parser.add_argument("--clients", action="store_true", help="compare libraries instead")
    parser.add_argument("--scans", type=int, default=5)
    parser.add_argument("--samples", type=int, default=50)
    options = parser.parse_args()
    with moto_server() if options.moto else as_it_is(options.url) as url:
        if options.clients:
            compare_clients(url)
        else:
            compare_stores(options.store, url, options.scans, options.samples)


@contextmanager
def as_it_is(url: str) -> Iterator[str]:
    yield url


@contextmanager
def moto_server(port: int = 5617) -> Iterator[str]:
    """Run moto's server in a process of its own; yields a URL in its bucket."""
    nothing = subprocess.DEVNULL
    server = subprocess.Popen([sys.executable, "-c", MOTO, str(port)], stdout=nothing, stderr=nothing)
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
    }
    try:
        for _ in range(100):
            try:
                urlopen(Request(f"http://127.0.0.1:{port}/bench", method="PUT"), timeout=5).close()
                break
            except OSError:
                time.sleep(0.1)
        yield f"s3://bench/{uuid.uuid4().hex}"
    finally:
        server.kill()
        server.wait()


def measured(name: str, count: int, work: Callable[[], Any]) -> None:
    """Do some work; print its wall and processor time and requests, each per item."""
    REQUESTS.clear()
    wall, processor = time.perf_counter(), time.process_time()
    work()
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    per = ", ".join(f"{number / count:.1f} {doing}" for doing, number in sorted(REQUESTS.items()))
    print(f"{name:38} {1e3 * wall / count:9.1f} ms  {1e3 * processor / count:8.1f} ms cpu  {per}", flush=True)


def compare_stores(local: Path, url: str, num_scans: int, num_samples: int) -> None:
    """Commit scans of a store on disk to a URL; open both, read samples of both."""
    tried = ObjectClient._tried

    def counted(self: ObjectClient, doing: str, key: str, call: Callable[[], Any]) -> Any:
        def once() -> Any:
            REQUESTS[doing] += 1
            return call()

        return tried(self, doing, key, once)

    ObjectClient._tried = counted  # type: ignore[method-assign]
    source = open_store(local)
    ids = source.scan_ids[:num_scans]
    records = [source.scan(scan_id).record() for scan_id in ids]
    config = dict(source.info.config)
    with tempfile.TemporaryDirectory() as scratch:
        disk: StorePath = Path(scratch) / "store"
        there = parse_store_path(url)
        cached = with_cache(there, CacheSettings(Path(scratch) / "cache", 10**10))
        for name, place in (("on disk", disk), ("at the URL", there)):
            create_store(place, spacing_mm=source.info.spacing_mm, config=config)
            measured(
                f"a commit, {name}", len(ids), lambda p=place: [commit_scan(p, record) for record in records]
            )
            measured(f"finish, {name}", 1, lambda p=place: finish(p))
            measured(f"open, {name}", 1, lambda p=place: open_store(p).entries)
        places = (
            ("on disk", disk),
            ("at the URL", there),
            ("cache, first time", cached),
            ("cache, second time", cached),
        )
        for name, place in places:
            measured(f"a sample, {name}", num_samples, lambda p=place: read_samples(p, ids, num_samples))


def read_samples(place: StorePath, ids: tuple[str, ...], number: int) -> None:
    """Read the first samples of the small recipe."""
    reader = SampleReader(place, ids, small().data, seed=0)
    for index in range(number):
        reader.read(index)


def compare_clients(url: str) -> None:
    """Small objects and ranges, one after the other and several at once, with each library."""
    import obstore
    import obstore.store

    bucket, prefix = url.removeprefix("s3://").split("/", 1)
    datas, large, number = [os.urandom(4000)] * 300, os.urandom(8 << 20), 300
    store: Any = obstore.store.from_url(
        f"s3://{bucket}", region="us-east-1", client_options={"allow_http": True}
    )
    pool = ThreadPoolExecutor(16)

    def put(i: int) -> None:
        obstore.put(store, f"{prefix}/o/{i}", datas[i])

    def get(i: int) -> bytes:
        return bytes(obstore.get(store, f"{prefix}/o/{i}").bytes())

    def part(i: int) -> bytes:
        return bytes(obstore.get_range(store, f"{prefix}/large", start=20_000 * i, length=100_000))

    obstore.put(store, f"{prefix}/large", large)
    for name, work in (("put 4 kB", put), ("get 4 kB", get), ("get 100 kB by range", part)):
        measured(f"obstore, {name}", number, lambda w=work: [w(i) for i in range(number)])
        measured(f"obstore, {name}, 16 at once", number, lambda w=work: list(pool.map(w, range(number))))
    try:
        import s3fs
    except ImportError:
        print("s3fs is not installed")
        return
    files = s3fs.S3FileSystem(endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    base = f"{bucket}/{prefix}/s"
    names = [f"{base}/{i}" for i in range(number)]
    starts = [20_000 * i for i in range(number)]
    ends = [start + 100_000 for start in starts]
    source = [f"{bucket}/{prefix}/large"] * number
    measured("s3fs, put 4 kB", number, lambda: [files.pipe_file(name, datas[0]) for name in names])
    measured("s3fs, put 4 kB, many", number, lambda: files.pipe(dict.fromkeys(names, datas[0])))
    measured("s3fs, get 4 kB", number, lambda: [files.cat_file(name) for name in names])
    measured("s3fs, get 4 kB, many", number, lambda: files.cat(names))
    measured(
        "s3fs, get 100 kB by range",
        number,
        lambda: [files.cat_file(source[0], start=a, end=b) for a, b in zip(starts, ends, strict=True)],
    )
    measured("s3fs, get 100 kB by range, many", number, lambda: files.cat_ranges(source, starts, ends))


if __name__ == "__main__":
    main()
