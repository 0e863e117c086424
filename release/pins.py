"""Pin every package of a release, with the checksum of the file that pip takes.

    python release/pins.py                  release/requirements-3.11.txt, for the Python that runs it
    python release/pins.py --python 3.13    for another one; which packages, says the metadata of those here
    python release/pins.py --tools          release/tools.txt: what `make audit` and `make sbom` run

*Reads* pyproject.toml and constraints.txt, and asks pip, which asks the index that it is set up for; nothing
is installed. For another Python it needs an environment with all packages (.venv), and takes wheels only.
*Writes* a file for this kind of machine, to install with

    pip install --require-hashes --no-deps -r release/requirements-3.11.txt

PyTorch and its CUDA libraries are left out: which build fits, depends on the machine (docs/install.md). They
are pinned in constraints.txt, without a checksum.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]

PYTHONS = ("3.11", "3.12", "3.13")
"""What the tools may run on: their file has the checksums of all."""

TOOLS = ("pip-audit==2.10.1", "cyclonedx-bom==7.5.0")

BUILDS_OF_TORCH = re.compile(r"torch|triton|nvidia-.*|cuda-.*")
"""Packages whose files differ from machine to machine."""


def needed(requirements: Iterable[str], python: str) -> list[str]:
    """Return the packages that others need on a Python, by the metadata of those installed here, sorted.

    Args:
        requirements: Of the project.
        python: Version, such as 3.13.
    """
    surroundings = {"python_version": python, "python_full_version": f"{python}.99"}
    waiting = [(Requirement(text), frozenset[str]()) for text in requirements]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        requirement, extras = waiting.pop()
        marker, name = requirement.marker, canonicalize_name(requirement.name)
        applies = marker is None or any(
            marker.evaluate({**surroundings, "extra": extra}) for extra in extras or {""}
        )
        wanted = (name, frozenset(requirement.extras))
        if not applies or wanted in seen:
            continue
        seen.add(wanted)
        try:
            more = metadata.requires(name) or ()
        except metadata.PackageNotFoundError:  # a package that only that Python needs
            more = ()
        waiting += [(Requirement(text), wanted[1]) for text in more]
    return sorted({name for name, _ in seen})


def resolve(requirements: Iterable[str], python: str = "", *, alone: bool = False) -> list[Mapping[str, Any]]:
    """Return what pip would install, as its report has it.

    Args:
        requirements: As on pip's command line.
        python: Version that the packages are for, where it is not this one; wheels only.
        alone: Whether nothing is added that these need.

    Raises:
        subprocess.CalledProcessError: pip finds no set of packages.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        command += ["--constraint", str(ROOT / "constraints.txt"), "--report", str(report)]
        if python:
            command += ["--python-version", python, "--only-binary", ":all:", "--target", folder]
        command += ["--no-deps"] if alone else []
        subprocess.run([*command, *requirements], check=True)
        found: list[Mapping[str, Any]] = json.loads(report.read_text())["install"]
    return found


def pinned(packages: Iterable[Mapping[str, Any]], *, title: str) -> str:
    """Return the lines of a file with the checksums of each package, sorted by name.

    Args:
        packages: As pip reports them, perhaps for several Pythons.
        title: Comment above.

    Raises:
        ValueError: A package has no checksum.
    """
    checksums: dict[str, set[str]] = {}
    left_out = set()
    for package in packages:
        name = re.sub(r"[-_.]+", "-", package["metadata"]["name"]).lower()
        version = package["metadata"]["version"]
        if BUILDS_OF_TORCH.fullmatch(name):
            left_out.add(f"{name}=={version.partition('+')[0]}")
            continue
        sha256 = package["download_info"].get("archive_info", {}).get("hashes", {}).get("sha256")
        if not sha256:
            raise ValueError(f"{name}: the index gives no sha256 of its file")
        checksums.setdefault(f"{name}=={version}", set()).add(sha256)
    lines = [f"# {title}"]
    if left_out:
        lines.append(f"# To install beside it, the build that fits the machine: {' '.join(sorted(left_out))}")
    for name, found in sorted(checksums.items()):
        lines.append(" \\\n    ".join([name, *(f"--hash=sha256:{sha256}" for sha256 in sorted(found))]))
    return "\n".join(lines) + "\n"


def _without_file(name: str) -> Mapping[str, Any]:
    """What pip would report of an installed package, without the file that it comes from."""
    return {"metadata": {"name": name, "version": metadata.version(name)}, "download_info": {}}


def main(argv: Sequence[str] | None = None) -> int:
    """Write the files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tools", action="store_true")
    parser.add_argument("--python", choices=PYTHONS, default="")
    arguments = parser.parse_args(argv)
    folder = ROOT / "release"
    if arguments.tools:
        found = [package for python in PYTHONS for package in resolve(TOOLS, python)]
        title = "Made by `python release/pins.py --tools`: what `make audit` and `make sbom` run"
        (folder / "tools.txt").write_text(pinned(found, title=title))
        return 0
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    here = ".".join(platform.python_version_tuple()[:2])
    python = arguments.python or here
    if python == here:
        found = resolve(project["dependencies"])
    else:
        names = needed(project["dependencies"], python)
        found = resolve([name for name in names if not BUILDS_OF_TORCH.fullmatch(name)], python, alone=True)
        found += [_without_file(name) for name in names if BUILDS_OF_TORCH.fullmatch(name)]
    what = f"mass3d {project['version']} on Python {python}, {platform.system()}, {platform.machine()}"
    path = folder / f"requirements-{python}.txt"
    path.write_text(pinned(found, title=f"Made by `python release/pins.py`: {what}"))
    print(f"{path.relative_to(ROOT)}: {len(found)} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
