"""Prepare scans on a cluster: workers are jobs, as many as there is work, and gone when it is done.

    pip install -c constraints.txt 'mass3d[cluster]'
    DASK_CONFIG=examples/cluster python examples/cluster/prepare_on_cluster.py --jobs 20 RAW STORE
    DASK_CONFIG=examples/cluster python examples/cluster/prepare_on_cluster.py --kind local RAW STORE

Run it on a login node or in a small job: it is the scheduler, and does no heavy work itself. What follows
STORE goes to `mass prepare`. Settings of the jobs are in jobqueue.yaml.
"""

from __future__ import annotations

import argparse
import subprocess
import sys


def main() -> int:
    """Start workers, prepare, end them; the exit code of `mass prepare`."""
    import dask_jobqueue
    import dask_jobqueue.local

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", choices=("slurm", "local"), default="slurm")
    parser.add_argument("--jobs", type=int, default=2, help="most jobs at once")
    parser.add_argument("--script", action="store_true", help="print the script of a job, and end")
    parser.add_argument("raw")
    parser.add_argument("store")
    options, more = parser.parse_known_args()
    kinds = {"slurm": dask_jobqueue.SLURMCluster, "local": dask_jobqueue.local.LocalCluster}
    with kinds[options.kind](scheduler_options={"dashboard": False}) as cluster:
        if options.script:
            print(cluster.job_script())
            return 0
        cluster.scale(jobs=options.jobs)
        mass = [sys.executable, "-m", "commands", "prepare", options.raw, options.store]
        return subprocess.run(
            [*mass, "--scheduler", cluster.scheduler_address, *more], check=False
        ).returncode


if __name__ == "__main__":
    sys.exit(main())
