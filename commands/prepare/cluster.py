"""Where tasks run: in this process, in processes on this machine, or on the workers of a Dask cluster.

    --workers 1             a thread of this process
    --workers N             N processes of one task; together they get no more than fits into the machine.
                            With CUDA devices process i computes on device i modulo their number: on one
                            device the CPU grows trees of one scan while kernels of another run
    --scheduler ADDRESS     workers that were started before; each takes what fits into its own limit
    (`memory`) ... --device gpu        only workers that offer the resource GPU, one scan each

Reads: a Dask scheduler's description of its workers. Writes: nothing.
"""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from commands.prepare.memory import PROCESS_BYTES
from commands.prepare.work import Options
from commands.terminal import CommandError
from pipeline.compute import num_gpus

GPU = "GPU"
"""Name of the Dask resource of which a worker with a device offers 1."""

CONNECT_SECONDS = 20.0
"""Longest wait for a Dask scheduler."""

LEAST_LIMIT_BYTES = int(PROCESS_BYTES / 0.75)
"""Least memory limit of a worker: Dask pauses it at 80 %."""

MACHINE_SHARE = 0.9
"""Fraction of the machine's memory for local workers."""

ON_INTERRUPT = """
import signal
from pipeline.formats import hurry_reads
signal.signal(signal.SIGINT, lambda number, frame: hurry_reads())
signal.siginterrupt(signal.SIGINT, False)
"""
"""Code that each worker runs: on Ctrl-C only stalled reads are given up; the flow does the rest."""

ON_A_CARD = """
import os
def dask_setup(worker):
    cards = {cards!r}
    os.environ["CUDA_VISIBLE_DEVICES"] = cards[int(worker.name) % len(cards)]
"""
"""Code that a worker of this machine runs before it imports CuPy: it takes the CUDA device of its number. A
restarted worker has the same number."""


def in_this_process(options: Options) -> bool:
    """Return whether tasks run in this process, without Dask."""
    return options.workers == 1 and not options.scheduler


def task_runner(options: Options) -> Any:
    """Return the Prefect task runner: a thread of this process, processes on this machine, or a cluster."""
    if in_this_process(options):
        from prefect.task_runners import ThreadPoolTaskRunner

        return ThreadPoolTaskRunner(max_workers=1)
    import dask
    from prefect_dask.task_runners import DaskTaskRunner

    for name in ("distributed", "distributed.scheduler", "distributed.nanny"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # outcomes of scans are in our own table
    if options.scheduler:
        return DaskTaskRunner(address=options.scheduler)
    cards = cards_of(options)
    threads = str(max(1, (os.cpu_count() or 1) // options.workers))
    limits = dict.fromkeys(["NUMBA_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"], threads)
    limits |= dict.fromkeys(["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"], threads)
    dask.config.set(
        {
            "distributed.nanny.pre-spawn-environ": limits,
            "distributed.worker.memory.target": False,  # results are small: there is nothing to move to disk
            "distributed.worker.memory.spill": False,
            # A scan that kills its worker is tried once more by us, and alone.
            "distributed.scheduler.allowed-failures": 0,
            "distributed.scheduler.worker-saturation": 1.0,  # no task waits at a worker that may be killed
        }
    )
    return DaskTaskRunner(
        cluster_kwargs={
            "n_workers": options.workers,
            "threads_per_worker": 1,
            "memory_limit": None,  # the flow hands out no more than fits (`BatchScheduler`)
            "processes": True,
            "preload": [ON_INTERRUPT, *([ON_A_CARD.format(cards=cards)] if cards else [])],
            "host": "127.0.0.1",
            "dashboard_address": "127.0.0.1:0",  # a free port: two runs must not use the same
            "scheduler_kwargs": {"dashboard": False},
            "silence_logs": logging.CRITICAL,
            "local_directory": tempfile.gettempdir(),
        }
    )


def cards_of(options: Options) -> tuple[str, ...]:
    """Return the CUDA devices that workers of this machine share, as CUDA_VISIBLE_DEVICES names them."""
    count = 0 if options.device == "cpu" else num_gpus()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return tuple(named or map(str, range(count)))[:count]


def num_workers(options: Options) -> int:
    """Return how many tasks can run at once, right now; with --device gpu on a cluster, how many devices."""
    if in_this_process(options):
        return 1
    from prefect.context import FlowRunContext

    context: Any = FlowRunContext.get()
    info = context.task_runner.client.scheduler_info(n_workers=-1)
    return tasks_at_once(info["workers"].values(), on_gpus=needs_gpu_workers(options))


def tasks_at_once(workers: Iterable[Mapping[str, Any]], *, on_gpus: bool) -> int:
    """Return how many tasks workers run at once; an idle one that is paused for lack of memory runs none.

    Args:
        workers: As a Dask scheduler describes them.
        on_gpus: Whether only workers that offer a GPU count, with one task for each.
    """
    awake = [one for one in workers if one["status"] != "paused" or one["metrics"].get("executing")]
    return int(sum(one["resources"].get(GPU, 0) if on_gpus else one["nthreads"] for one in awake))


def needs_gpu_workers(options: Options) -> bool:
    """Return whether tasks go only to workers of a cluster that offer a GPU each."""
    return bool(options.scheduler) and options.device == "gpu"


@contextmanager
def on_fit_workers(options: Options) -> Iterator[None]:
    """Let tasks submitted inside the block run only where they can: one scan at once on each GPU."""
    if not needs_gpu_workers(options):
        yield
        return
    dask: Any = import_module("dask")
    with dask.annotate(resources={GPU: 1}):
        yield


def memory_for_workers(options: Options) -> int | None:
    """Return the memory that local workers share, in bytes; None where workers have limits of their own."""
    if in_this_process(options) or options.scheduler:
        return None
    return int(MACHINE_SHARE * machine_memory())


def machine_memory() -> int:
    """Return the memory of this machine, or of the control group that this process is in, in bytes."""
    from distributed.system import MEMORY_LIMIT

    return int(MEMORY_LIMIT)


def check_cluster(options: Options) -> str:
    """Connect to the Dask scheduler of a run; return a description of its workers.

    Raises:
        CommandError: No scheduler answers, or the workers do not fit the run; the message says what to do.
    """
    distributed: Any = import_module("distributed")
    address = options.scheduler
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", distributed.versions.VersionMismatchWarning)
            client = distributed.Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise CommandError(
            f"--scheduler {address}: no Dask scheduler answers ({type(error).__name__}). Start "
            "`dask scheduler`, and give the address that it prints, as tcp://HOST:PORT"
        ) from error
    with client:
        _check_versions(client.get_versions())
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
    if workers and needs_gpu_workers(options) and not any(GPU in worker["resources"] for worker in workers):
        raise CommandError(
            "--device gpu: no worker offers a GPU. Start one worker for each, as "
            f'`CUDA_VISIBLE_DEVICES=0 dask worker {address} --nthreads 1 --resources "{GPU}=1"`'
        )
    small = [worker for worker in workers if 0 < worker["memory_limit"] < LEAST_LIMIT_BYTES]
    if small:
        name, limit = small[0]["name"], small[0]["memory_limit"] / 2**30
        raise CommandError(
            f"the Dask worker {name} may take {limit:.1f} GiB, and this program alone takes "
            f"{PROCESS_BYTES / 2**30:.1f} GiB. Start it with a higher --memory-limit; `mass plan` says "
            "what the largest scan needs"
        )
    threads = sum(worker["nthreads"] for worker in workers)
    hosts = len({worker["host"] for worker in workers})
    return f"{address}: {len(workers)} workers on {hosts} machines, {threads} scans at once"


def _check_versions(versions: Mapping[str, Any]) -> None:
    """Refuse workers that cannot read this process's messages.

    Raises:
        CommandError: A worker has another version of Python or Dask.
    """
    own = _compared(versions["client"])
    for name, described in versions["workers"].items():
        there = _compared(described)
        differing = [
            f"{what} {there[what]} there, {own[what]} here" for what in own if there[what] != own[what]
        ]
        if differing:
            raise CommandError(
                f"the Dask worker {name} has {'; '.join(differing)}. Start it from the same installation"
            )


def _compared(described: Mapping[str, Any]) -> dict[str, str]:
    """Return those versions of a process that must be equal, by name."""
    packages = described["packages"]
    python = ".".join(str(described["host"]["python"]).split(".")[:2])
    return {"Python": python, "Dask": packages["distributed"], "cloudpickle": packages["cloudpickle"]}
