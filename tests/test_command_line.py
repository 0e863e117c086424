"""The `mass` command from outside: it answers at once, says what is wrong, and its exit code is true."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from commands.arguments import parser
from commands.main import main

ROOT = Path(__file__).parent.parent
COMMANDS = (
    "prepare", "plan", "status", "verify", "repair", "lift", "score", "inspect", "import-masks", "export",
    "pair", "pretrain", "carry", "finetune", "segment", "evaluate", "embed", "classify", "export-weights",
    "demo",
)  # fmt: skip
HEAVY = (
    "numpy",
    "scipy",
    "skimage",
    "SimpleITK",
    "pydicom",
    "zarr",
    "numba",
    "higra",
    "prefect",
    "dask",
    "torch",
)


def mass(
    *arguments: str, code: str = "import sys; from commands.main import main; sys.exit(main())"
) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment, check=False
    )


def test_help_names_every_command_in_under_a_second_of_processor_time() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    run = mass("--help")
    seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    assert run.returncode == 0
    for command in COMMANDS:
        assert re.search(rf"^ +{command}( |$)", run.stdout, re.MULTILINE), command
    assert seconds < 1


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_and_can_write_json(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert "--json FILE" in capsys.readouterr().out


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom commands.main import main\n"
        "try: main(['prepare', '--help'])\n"
        "except SystemExit: pass\n"
        "print('LOADED', *(m for m in sys.modules if '.' not in m))"
    )
    run = mass(code=code)
    loaded = run.stdout.split("LOADED")[1].split()
    assert "commands" in loaded
    assert not set(HEAVY) & set(loaded)


def test_importing_the_packages_loads_nothing_heavy() -> None:
    run = mass(
        code="import sys, pipeline, storage, training; print(*(m for m in sys.modules if '.' not in m))"
    )
    assert run.returncode == 0, run.stderr
    assert not set(HEAVY) & set(run.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["status", "nowhere"], "nowhere: no store here"),
        (["verify", "nowhere"], "nowhere: no store here"),
        (["score", "nowhere"], "nowhere: no store here"),
        (["inspect", "nowhere", "--out", "r.html"], "nowhere: no store here"),
        (["prepare", "nowhere", "store"], "nowhere: there is no such file or folder"),
        (["demo", "--raw", "nowhere"], "nowhere: no bundled scans here"),
        (["pretrain", "nowhere", "run"], "nowhere: no store here"),
        (["evaluate", "weights.pt", "nowhere"], "nowhere: no store here"),
        (
            ["segment", "w.pt", "--reference-image", "i", "--reference-mask", "m", "t", "--out", "o"],
            "w.pt: there is no such file",
        ),
        (["segment", "w.pt", "--reference-image", "i", "t", "--out", "o"], "Give them in pairs"),
        (["pretrain", "nowhere", "run", "--resume"], "run: no run here to go on with"),
        (["finetune", "nowhere.pth", "store", "run"], "nowhere.pth: there is no such file"),
        (["finetune", "nowhere.pth", "store", "run", "--resume"], "run: no run here to go on with"),
        (["embed", "c.pt", "nowhere", "--out", "f.npz"], "nowhere: no store here"),
        (["embed", "c.pt", "nowhere", "--out", "f.txt"], "f.txt: features are written as .npz or .csv"),
        (["classify", "c.pt", "nowhere", "run"], "nowhere: no store here"),
        (["prepare", ".", "store", "--config", "c.toml"], "the config c.toml cannot be read"),
    ],
)
def test_a_command_that_cannot_be_carried_out_says_why_and_leaves_nothing(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_misspelt_setting_is_an_error_that_names_the_nearest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "c.toml"
    config.write_text("[ingest]\nspacing = 2\n")
    assert main(["prepare", str(tmp_path), str(tmp_path / "store"), "--config", str(config)]) == 2
    assert "[ingest]: unknown setting 'spacing'; did you mean 'spacing_mm'?" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("workers", ["0", "-1", "two"])
def test_the_number_of_workers_is_at_least_one(workers: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parser().parse_args(["prepare", "raw", "store", "--workers", workers])
    assert ended.value.code == 2
    assert "--workers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "device"),
    [
        (["prepare", "RAW", "STORE"], "gpu"),
        (["pretrain", "STORE", "RUN"], "cuda"),
        (["embed", "CHECKPOINT", "STORE", "--out", "features.npz"], "cuda"),
    ],
)
@pytest.mark.parametrize("name", ["gpu", "cuda"])
def test_the_gpu_has_both_names_in_every_command(arguments: list[str], device: str, name: str) -> None:
    assert parser().parse_args([*arguments, "--device", name]).device == device


def test_a_device_of_another_name_is_refused() -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["pretrain", "STORE", "RUN", "--device", "numpy"])


def test_a_command_that_ends_early_tells_machines_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    told = tmp_path / "told.json"
    told.write_text('{"scans": 12}')
    assert main(["status", "nowhere", "--json", str(told)]) == 2
    said = capsys.readouterr().err
    assert f"mass: {json.loads(told.read_text())['error']}\n" == said

    assert main(["status", "nowhere", "--json", "no/folder/told.json"]) == 2
    assert capsys.readouterr().err == said


def test_an_interrupted_command_tells_machines_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("commands.status.run_status", interrupted)
    told = tmp_path / "told.json"
    assert main(["status", "nowhere", "--json", str(told)]) == 130
    assert json.loads(told.read_text()) == {"error": "interrupted; the same command goes on from here"}
