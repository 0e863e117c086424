"""examples/slurm/pretrain.sbatch, with stand-ins for srun and scontrol."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent.parent / "examples" / "slurm" / "pretrain.sbatch"


def test_the_script_is_bash() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)


def stand_in(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


def submitted(folder: Path, code: int, *more: str) -> tuple[int, str, str]:
    """Run the script, where `mass` ends with a code; its code, what `mass` was given, what was requeued."""
    programs = folder / "bin"
    programs.mkdir()
    stand_in(programs, "srun", 'while [[ $1 == --* ]]; do shift; done; SLURM_PROCID=1 SLURM_LOCALID=1 "$@"')
    stand_in(
        programs, "mass", f'echo "$RANK $LOCAL_RANK $WORLD_SIZE $MASTER_ADDR $*" > mass.txt; exit {code}'
    )
    stand_in(
        programs, "scontrol", '[ "$1" = requeue ] && echo "$2" > requeued.txt || printf "node7\\nnode8\\n"'
    )
    variables = {"SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_ID": "123", "SLURM_NTASKS": "4"}
    done = subprocess.run(
        ["bash", str(SCRIPT), "STORE", "RUN", *more],
        cwd=folder,
        env=os.environ | variables | {"PATH": f"{programs}:{os.environ['PATH']}"},
        check=False,
    )
    requeued = folder / "requeued.txt"
    return (
        done.returncode,
        (folder / "mass.txt").read_text(),
        requeued.read_text() if requeued.exists() else "",
    )


@pytest.mark.parametrize(("code", "again"), [(138, "123\n"), (143, "123\n"), (0, ""), (1, ""), (2, "")])
def test_a_job_that_was_stopped_is_queued_again_and_no_other(code: int, again: str, tmp_path: Path) -> None:
    ended, given, requeued = submitted(tmp_path, code, "--recipe", "small")
    assert given == "1 1 4 node7 pretrain STORE RUN --recipe small\n"
    assert (ended, requeued) == (0 if again else code, again)


def test_a_job_that_was_queued_again_resumes(tmp_path: Path) -> None:
    (tmp_path / "RUN" / "checkpoints").mkdir(parents=True)
    (tmp_path / "RUN" / "checkpoints" / "step-00000004.pt").touch()
    assert submitted(tmp_path, 0)[1] == "1 1 4 node7 pretrain STORE RUN --resume\n"
