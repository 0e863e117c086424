"""Look for known vulnerabilities, and write the list of parts (SBOM), with tools in their own environment.

    python release/check.py audit                 the pins of release/*.txt
    python release/check.py sbom OUT.json         CycloneDX, of what is installed in .venv

The audit asks the database of PyPI or OSV, with pip-audit. Where neither can be reached, as behind a mirror
of PyPI, it asks for the newest releases only (`newest.py`), and names the pins that it could not compare.
Nothing compared is an error; --allow-offline makes it a notice. What was looked at and does not
concern us is in release/accepted.txt, with the reason. *Writes* .venv-release, with the versions of
release/tools.txt.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import urllib.error
import urllib.request
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path

from newest import NoDatabaseError, compare, read_accepted, read_pins

ROOT = Path(__file__).parents[1]

SERVICES = {
    "pypi": "https://pypi.org/pypi/jinja2/2.4.1/json",
    "osv": "https://api.osv.dev/v1/vulns/PYSEC-2023-228",
}
"""An address of each database that names a known vulnerability. Mirrors of PyPI may answer for packages, but
not for versions; pip-audit would then find nothing, and say that nothing is wrong."""

ANSWER_SECONDS = 10


def reachable(services: Mapping[str, str] = SERVICES) -> str:
    """Return the name of the first database that answers; empty if none does."""
    for name, url in services.items():
        try:
            with urllib.request.urlopen(url, timeout=ANSWER_SECONDS) as answer:
                if answer.status == 200 and b"PYSEC-" in answer.read():
                    return name
        except OSError:  # refused, no such name, 404 of a mirror without that database
            continue
    return ""


def tools() -> Path:
    """Return the folder with the tools' commands; the environment is made if it is not there."""
    folder = ROOT / ".venv-release"
    pins = ROOT / "release" / "tools.txt"
    stamp = folder / "installed"
    if not stamp.exists() or stamp.read_text() != pins.read_text():
        venv.create(folder, clear=True, with_pip=True)
        python = folder / "bin" / "python"
        command = [python, "-m", "pip", "install", "--quiet", "--require-hashes", "--no-deps", "-r", pins]
        subprocess.run(command, check=True)
        stamp.write_text(pins.read_text())
    return folder / "bin"


def audit(*, allow_offline: bool) -> int:
    """Look the pins up; returns 1 where something is found, or where nothing could be compared."""
    files = [*sorted((ROOT / "release").glob("requirements-*.txt")), ROOT / "release" / "tools.txt"]
    accepted = read_accepted(ROOT / "release" / "accepted.txt")
    if service := reachable():
        return _pip_audit(service, files, accepted)
    try:
        return _audit_newest(files, accepted)
    except NoDatabaseError as error:
        print(f"audit: NOTHING WAS COMPARED: {error}; nor can {' or '.join(SERVICES)} be asked for a version")
        return int(not allow_offline)


def _pip_audit(service: str, files: Sequence[Path], accepted: frozenset[str]) -> int:
    code = 0
    ignored = [word for name in sorted(accepted) for word in ("--ignore-vuln", name)]
    for pins in files:
        command = [tools() / "pip-audit", "--vulnerability-service", service, "--disable-pip", *ignored]
        code |= subprocess.run([*command, "--require-hashes", "-r", pins], check=False).returncode
    return code


def _audit_newest(files: Sequence[Path], accepted: frozenset[str]) -> int:
    result = compare([pin for path in files for pin in read_pins(path)], accepted)
    print(f"audit: {len(result.compared)} pins are the newest release, and were compared with PyPI's data")
    older = ", ".join(result.older) or "none"
    print(f"NOT COMPARED, as a newer release is out ({len(result.older)}): {older}")
    for line in result.found:
        print(f"FOUND {line}")
    print(f"{len(result.found)} with known vulnerabilities")
    return int(bool(result.found) or not result.compared)


def sbom(out: Path, python: Path) -> int:
    """Write the parts of an environment as CycloneDX JSON; the same parts give the same bytes."""
    command = [tools() / "cyclonedx-py", "environment", python, "--output-reproducible", "--of", "JSON"]
    command += ["--pyproject", ROOT / "pyproject.toml", "-o", out]
    return subprocess.run(command, check=False).returncode


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of the two."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="what", required=True)
    commands.add_parser("audit").add_argument("--allow-offline", action="store_true")
    listing = commands.add_parser("sbom")
    listing.add_argument("out", type=Path)
    listing.add_argument("--python", type=Path, default=ROOT / ".venv" / "bin" / "python")
    arguments = parser.parse_args(argv)
    if arguments.what == "audit":
        return audit(allow_offline=arguments.allow_offline)
    return sbom(arguments.out, arguments.python)


if __name__ == "__main__":
    sys.exit(main())
