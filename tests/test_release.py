"""What a release is pinned to: every package once, each with a checksum, in the tested versions."""

from __future__ import annotations

import importlib.util
import re
import sys
from functools import partial
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
    sys.modules[spec.name] = module  # dataclasses look their module up
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


def told(version: str, *ids: str, yanked: bool = False, **more: object) -> dict[str, object]:
    """What PyPI says of a package whose newest release has these vulnerabilities."""
    files = [{"yanked": yanked, "yanked_reason": "broken"}]
    return {
        "info": {"version": version},
        "vulnerabilities": [{"id": name, "aliases": [f"CVE-{name}"], **more} for name in ids],
        "releases": {"1.0": files, version: files},
    }


def test_an_audit_without_a_database_fails_unless_that_is_allowed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "release")
    check = script("check")
    newest = sys.modules["newest"]
    assert check.reachable({"nobody": "http://127.0.0.1:1/", "no name": "http://nobody.invalid/"}) == ""
    monkeypatch.setattr(check, "reachable", lambda: "")
    monkeypatch.setattr(newest, "ADDRESS", "http://127.0.0.1:1/{name}")
    assert check.main(["audit"]) == 1
    assert "NOTHING WAS COMPARED" in capsys.readouterr().out
    assert check.main(["audit", "--allow-offline"]) == 0


def test_pins_that_are_the_newest_release_are_compared_and_older_ones_named() -> None:
    documents = {
        "pycrypto": told("2.6.1", "PYSEC-1"),
        "bad": told("2.0", "PYSEC-2", "PYSEC-3"),
        "fixed": told("2.0", "PYSEC-4", withdrawn="2026-01-01"),
        "old": told("2.0", "PYSEC-5"),
        "gone": told("2.0", yanked=True),
    }
    pins = [("bad", "2.0"), ("fixed", "2.0"), ("gone", "1.0"), ("old", "1.0")]
    compare = script("newest").compare
    result = compare(pins, frozenset(), fetch=documents.__getitem__)
    assert result.compared == ("bad==2.0", "fixed==2.0")
    assert result.older == ("gone==1.0", "old==1.0")
    assert result.found == ("bad==2.0: PYSEC-2, PYSEC-3", "gone==1.0: taken back (broken)")
    accepted = compare(pins[:2], frozenset({"PYSEC-2", "CVE-PYSEC-3"}), fetch=documents.__getitem__)
    assert accepted.found == ()


def test_a_database_that_knows_no_vulnerability_at_all_is_none() -> None:
    newest = script("newest")
    with pytest.raises(newest.NoDatabaseError, match="pycrypto"):
        newest.compare([("a", "1")], frozenset(), fetch=lambda name: told("1"))


@pytest.mark.parametrize(
    ("documents", "code"),
    [
        ({"a": told("1")}, 0),
        ({"a": told("1", "PYSEC-9")}, 1),
        ({"a": told("2")}, 1),  # no pin is the newest release: nothing was compared
    ],
)
def test_an_audit_passes_only_where_it_compared_something(
    documents: dict[str, dict[str, object]], code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(ROOT / "release")
    check = script("check")
    (tmp_path / "release").mkdir()
    (tmp_path / "release" / "accepted.txt").write_text("# none\n")
    for name in ("requirements-3.11.txt", "tools.txt"):
        (tmp_path / "release" / name).write_text("a==1 \\\n    --hash=sha256:00\n")
    answers = {"pycrypto": told("2.6.1", "PYSEC-1"), **documents}
    compare = partial(sys.modules["newest"].compare, fetch=answers.__getitem__)
    for name, value in (("ROOT", tmp_path), ("reachable", lambda: ""), ("compare", compare)):
        monkeypatch.setattr(check, name, value)
    assert check.main(["audit"]) == code


def test_the_torch_that_is_installed_beside_is_a_pin_too(tmp_path: Path) -> None:
    path = tmp_path / "pins.txt"
    path.write_text(
        "# t\n# To install beside it, the build that fits the machine: torch==3\nb-c==1.2 \\\n    --hash=x\n"
    )
    assert script("newest").read_pins(path) == [("torch", "3"), ("b-c", "1.2")]


def test_accepted_vulnerabilities_are_the_first_words_of_lines(tmp_path: Path) -> None:
    path = tmp_path / "accepted.txt"
    path.write_text("# none\n\nPYSEC-1  # not used\nGHSA-2 why\n")
    assert script("newest").read_accepted(path) == {"PYSEC-1", "GHSA-2"}
    assert script("newest").read_accepted(ROOT / "release" / "accepted.txt") == frozenset()
