"""What a release is pinned to: every package once, each with a checksum, in the tested versions."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
PINS = sorted((ROOT / "release").glob("requirements-*.txt"))
LINE = re.compile(r"([a-z0-9-]+)==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)\n")


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"release_{name}", ROOT / "release" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def package(name: str, version: str, sha256: str = "") -> dict[str, object]:
    hashes = {"archive_info": {"hashes": {"sha256": sha256}}} if sha256 else {}
    return {"metadata": {"name": name, "version": version}, "download_info": hashes}


@pytest.mark.parametrize("path", [*PINS, ROOT / "release" / "tools.txt"], ids=lambda path: path.name)
def test_every_line_is_a_package_with_a_checksum(path: Path) -> None:
    text = re.sub(r"(?m)^#.*\n", "", path.read_text())
    assert LINE.sub("", text) == ""
    names = [match[1] for match in LINE.finditer(text)]
    assert len(names) == len(set(names))
    assert len(names) > 20


@pytest.mark.parametrize("path", PINS, ids=lambda path: path.name)
def test_a_release_has_the_versions_that_are_tested(path: Path) -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    tested = dict(line.split("==") for line in lines)
    found = {match[1]: match[2] for match in LINE.finditer(path.read_text())}
    assert {name: tested.get(name) for name in found} == found
    assert {"numpy", "zarr", "prefect", "safetensors"} <= set(found)
    assert not [name for name in found if name == "torch" or name.startswith("nvidia")]
    assert f"torch=={tested['torch']}" in path.read_text(), "it is named, to be installed beside"


def test_a_package_without_a_checksum_is_refused() -> None:
    with pytest.raises(ValueError, match="numpy"):
        script("pins").pinned([package("numpy", "2.0")], title="t")


def test_packages_are_sorted_and_builds_of_torch_left_out() -> None:
    a, b = "a" * 64, "b" * 64
    found = [
        package("Zarr_X", "1", b),
        package("aa", "2", b),
        package("aa", "2", a),
        package("torch", "3+cpu", a),
    ]
    text = script("pins").pinned(found, title="title")
    assert text == (
        "# title\n# To install beside it, the build that fits the machine: torch==3\n"
        f"aa==2 \\\n    --hash=sha256:{a} \\\n    --hash=sha256:{b}\nzarr-x==1 \\\n    --hash=sha256:{b}\n"
    )


def test_an_audit_without_a_database_is_skipped_visibly_and_with_strict_an_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    check = script("check")
    assert check.reachable({"nobody": "http://127.0.0.1:1/", "no name": "http://nobody.invalid/"}) == ""
    monkeypatch.setattr(check, "reachable", lambda: "")
    assert check.main(["audit"]) == 0
    assert "audit SKIPPED" in capsys.readouterr().out
    assert check.main(["audit", "--strict"]) == 1
