"""The arrows between packages, and which package may know which library (DESIGN, section 2)."""

from __future__ import annotations

import ast
import importlib
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

OURS = ("commands", "flows", "pipeline", "storage", "training")
ARROWS = {
    "flows": {"commands", "pipeline", "storage", "training"},
    "commands": {"flows", "pipeline", "storage", "training"},
    "training": {"storage"},
    "pipeline": set(),
    "storage": set(),
}
"""Who may import whom, beside itself."""

ROOMS = {
    "pipeline.compute": set(),
    "pipeline.volumes": set(),
    "pipeline.quality": set(),
    "pipeline.formats": {"volumes"},
    "pipeline.hierarchies": {"compute"},
    "pipeline.report": {"quality", "volumes"},
    "pipeline.discovery": {"formats"},
    "pipeline.proposals": {"compute", "hierarchies", "volumes"},
    "pipeline.ingest": {"discovery", "formats", "volumes"},
    "pipeline.exchange": {"discovery", "formats", "ingest", "volumes"},
    "storage.access": set(),
    "storage.records": set(),
    "storage.reading": {"access", "records"},
    "storage.writing": {"access", "reading", "records"},
    "training.network": set(),
    "training.data": set(),
    "training.engine": {"network"},
    "training.inference": {"data", "engine", "network"},
    "training.evaluation": {"data", "inference"},
    "training.pretraining": {"data", "engine", "evaluation", "inference", "network"},
    "training.finetuning": {"data", "engine", "evaluation", "inference", "network"},
    "training.classification": {"data", "engine", "network"},
}
"""Rooms of a package, each with the rooms that it may import, beside the files at the top of the package."""

WITH_ROOMS = ("pipeline", "storage", "training")

HOMES = {
    "zarr": {"storage"},
    "obstore": {"storage.access.client"},
    "prefect": {
        "flows",
        "commands.prepare.cluster",
        "commands.prepare.command",
        "commands.prepare.prefect_server",
    },
    "prefect_dask": {"commands.prepare.cluster"},
    "dask": {"commands.prepare.cluster"},
    "distributed": {"commands.prepare.cluster"},
    "uvicorn": {"commands.prepare.prefect_server"},
    "h5py": {"pipeline.exchange.published"},
    "torch": {"training"},
    "safetensors": {"training"},
    "triton": {
        "training.network.kernels.triton_norms",
        "training.network.kernels.triton_sums",
        "training.network.kernels.triton_upsampling",
    },
    "pytorch_optimizer": {"training"},
    "nibabel": {"pipeline.exchange.export_files", "pipeline.ingest.nibabel_files"},
    "cupy": {"pipeline.compute.backend"},
    "cupyx": {"pipeline.compute.backend"},
}
"""The only places that know a library: a package, or one module of it."""


DISTRIBUTIONS = {
    "PIL": "pillow",
    "cc3d": "connected-components-3d",
    "google_crc32c": "google-crc32c",
    "lazy_loader": "lazy-loader",
    "prefect_dask": "prefect-dask",
    "pytorch_optimizer": "pytorch-optimizer",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
}
"""Libraries whose distribution is called otherwise."""


def modules() -> dict[str, Path]:
    """Every module of the project by its dotted name."""
    files = [ROOT / "flows.py", *(file for name in OURS for file in sorted((ROOT / name).rglob("*.py")))]
    return {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in files}


MODULES = modules()


@cache
def imports(file: Path) -> tuple[str, ...]:
    """Full names of what a file imports anywhere, also within functions and for types only."""
    return tuple(_imports(file))


def _imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            assert node.module is not None
            yield node.module
        elif isinstance(node, ast.Call) and _is_import(node.func):
            yield from (str(name.value) for name in node.args[:1] if isinstance(name, ast.Constant))


def _is_import(function: ast.expr) -> bool:
    return isinstance(function, ast.Name) and function.id in ("import_module", "__import__")


def test_every_package_is_looked_at() -> None:
    for name in OURS:
        assert any(module.split(".")[0] == name for module in MODULES), name


def test_imports_follow_the_arrows() -> None:
    """All modules in one test: hundreds of tests would be collected in each process."""
    wrong = {}
    for module, file in MODULES.items():
        package = module.split(".")[0]
        ours = {name.split(".")[0] for name in imports(file)} & {*OURS, "tests", "benchmarks"}
        wrong[module] = ours - {package} - ARROWS[package]
    assert {module: names for module, names in wrong.items() if names} == {}


def room_of(module: str) -> str:
    """The room of a module; "" for the files at the top of a package, and where there are no rooms."""
    room = ".".join(module.split(".")[:2])
    return room if room in ROOMS else ""


def wrong_arrows(module: str, imported: Iterable[str]) -> list[str]:
    """What a module imports against the order of the rooms."""
    room = room_of(module)
    package = module.split(".")[0]
    if package not in WITH_ROOMS:
        return []
    allowed = {room, "", *(f"{package}.{name}" for name in ROOMS.get(room, set()))}
    return [name for name in imported if name.split(".")[0] == package and room_of(name) not in allowed]


def not_through_the_door(module: str, imported: Iterable[str]) -> list[str]:
    """Modules inside another room that a module imports, past the names that the room offers."""
    return [name for name in imported if room_of(name) and room_of(name) not in (room_of(module), name)]


def test_every_folder_is_a_room() -> None:
    folders = {
        f"{package}.{path.parent.name}"
        for package in WITH_ROOMS
        for path in (ROOT / package).glob("*/__init__.py")
    }
    assert folders == set(ROOMS)


def test_rooms_import_each_other_in_one_direction_and_through_the_door() -> None:
    imported = {module: imports(file) for module, file in MODULES.items()}
    for wrong in (wrong_arrows, not_through_the_door):
        found = {module: wrong(module, names) for module, names in imported.items()}
        assert {module: names for module, names in found.items() if names} == {}


def test_an_arrow_against_the_order_of_the_rooms_would_be_seen() -> None:
    assert wrong_arrows("pipeline.volumes.grid", ["pipeline.formats", "pipeline.errors"]) == [
        "pipeline.formats"
    ]
    assert wrong_arrows("training.errors", ["training.network"]) == ["training.network"]
    assert wrong_arrows("storage.reading.scans", ["storage.writing"]) == ["storage.writing"]
    assert not_through_the_door("commands.score", ["pipeline.quality.scoring", "pipeline.quality"]) == [
        "pipeline.quality.scoring"
    ]


DOORS = sorted(path for package in OURS for path in (ROOT / package).rglob("__init__.pyi"))


@pytest.mark.parametrize("door", DOORS, ids=lambda path: path.parent.name)
def test_every_name_of_a_door_can_be_loaded(door: Path) -> None:
    room = importlib.import_module(".".join(door.parent.relative_to(ROOT).parts))
    assert room.__all__
    for name in room.__all__:
        assert getattr(room, name) is not None
    assert room.__doc__


@pytest.mark.parametrize("library", HOMES)
def test_a_library_is_known_in_its_home_only(library: str) -> None:
    users = {
        module
        for module, file in MODULES.items()
        if library in {name.split(".")[0] for name in imports(file)}
    }
    strangers = {user for user in users if not {user, user.split(".")[0]} & HOMES[library]}
    assert not strangers


def test_every_library_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[^A-Za-z0-9-]", line)[0].lower() for line in project["dependencies"]}
    used = {name.split(".")[0] for file in MODULES.values() for name in imports(file)}
    optional = {"cupy", "cupyx", "triton"}  # for GPUs; Triton comes with PyTorch for CUDA
    optional |= {"obstore"}  # for stores at URLs
    libraries = used - set(sys.stdlib_module_names) - {*OURS, *optional}
    needed = {DISTRIBUTIONS.get(library, library).lower() for library in libraries}
    assert needed - declared == set(), "a fresh environment would lack it"
    used_by_libraries = {"tensorboard"}  # by torch.utils.tensorboard
    assert declared - needed - used_by_libraries == set(), "nothing uses it"


def test_a_wrong_arrow_would_be_seen(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text("def f():\n    from zarr.storage import LocalStore\n    import storage.layout as s\n")
    assert set(imports(file)) == {"zarr.storage", "storage.layout"}
