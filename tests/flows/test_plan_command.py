"""`mass plan` tells before it runs what `mass prepare` then does, and writes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from commands import plan
from commands.main import main
from tests.phantom import phantom


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run(*arguments: object, out: Path) -> tuple[int, dict[str, object]]:
    code = main([*map(str, arguments), "--json", str(out)])
    return code, json.loads(out.read_text())


def test_what_is_planned_is_what_is_done(
    raw: Path,
    tmp_path: Path,
    config: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    examples = tmp_path / "examples" / "manifest.csv"
    phantom(shape_zyx=(18, 30, 35), spacing_zyx_mm=(6.0, 2.4, 2.6)).write(examples.parent / "a_ct.nii")
    phantom(seed=5).write(examples.parent / "b_ct.nii")
    examples.write_text("id,image\na,a_ct.nii\nb,b_ct.nii\n")
    monkeypatch.setattr(plan, "EXAMPLES", examples)
    monkeypatch.setattr(plan, "TRIAL_SCANS", ("a", "b"))
    (raw / "dud_ct.nii.gz").write_bytes(b"no image")
    (raw / "cut_ct.nii").write_bytes((examples.parent / "b_ct.nii").read_bytes()[:5000])
    before, store, out = files(raw), tmp_path / "store", tmp_path / "out.json"

    code, told = run("plan", raw, store, "--config", config, out=out)
    shown = capsys.readouterr().out
    assert not store.exists()
    assert files(raw) == before
    assert code == 1
    assert {failure["scan"]: failure["kind"] for failure in told["failed"]} == {  # type: ignore[attr-defined]
        "cut_ct": "CorruptImage",
        "dud_ct": "NotAnImage",
    }
    assert told["num_scans"] == 3
    assert "3 scans would be prepared, 0 scans are done, 2 scans would fail" in shown

    code, done = run("prepare", raw, store, "--config", config, out=out)
    assert {failure["scan"] for failure in done["failed"]} == {"cut_ct", "dud_ct"}  # type: ignore[attr-defined]
    stored = sum(path.stat().st_size for path in (store / "scans").rglob("*") if path.is_file())
    assert 0.5 < told["num_bytes"] / stored < 2  # type: ignore[operator]

    then = files(store)
    code, told = run("plan", raw, store, "--config", config, out=out)
    assert (told["num_scans"], told["done"], len(told["failed"])) == (0, 3, 2)  # type: ignore[arg-type]
    assert files(store) == then
