"""Look for known vulnerabilities, and write the list of parts (SBOM), with tools in their own environment.

    python release/check.py audit [--strict]      pip-audit on release/requirements-*.txt
    python release/check.py sbom OUT.json         CycloneDX, of what is installed in .venv

The audit needs a database that can be reached: that of PyPI, or OSV. Where none can, it says so and is
skipped; with --strict that is an error. *Writes* .venv-release, with the versions of release/tools.txt.
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


def audit(*, strict: bool) -> int:
    """Run pip-audit on the pinned packages; returns its exit code, 1 where it finds something."""
    service = reachable()
    if not service:
        print(f"audit SKIPPED: no database of vulnerabilities can be reached ({', '.join(SERVICES)})")
        return int(strict)
    code = 0
    for pins in sorted((ROOT / "release").glob("requirements-*.txt")):
        command = [tools() / "pip-audit", "--vulnerability-service", service, "--disable-pip"]
        code |= subprocess.run([*command, "--require-hashes", "-r", pins], check=False).returncode
    return code


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
    commands.add_parser("audit").add_argument("--strict", action="store_true")
    listing = commands.add_parser("sbom")
    listing.add_argument("out", type=Path)
    listing.add_argument("--python", type=Path, default=ROOT / ".venv" / "bin" / "python")
    arguments = parser.parse_args(argv)
    if arguments.what == "audit":
        return audit(strict=arguments.strict)
    return sbom(arguments.out, arguments.python)


if __name__ == "__main__":
    sys.exit(main())
