"""Where caches lie: in the home where it can be written, in a folder of one's own where it cannot."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import pytest

from commands.caches import cache_folder, choose_numba_cache, has_compiled


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cache_folder.cache_clear()
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)


def blocked(path: Path) -> Path:
    """A place where no folder can be made, whoever asks: a file lies in its way."""
    path.write_text("")
    return path


def test_the_home_is_used_where_it_can_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "mass3d"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    cache_folder.cache_clear()
    assert cache_folder() == tmp_path / "x" / "mass3d"
    assert cache_folder().is_dir()


def test_without_a_home_the_folder_is_this_users_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(blocked(tmp_path / "home")))
    found = cache_folder()
    assert found == tmp_path / "tmp" / f"mass3d-{os.getuid()}"
    assert stat.S_IMODE(found.stat().st_mode) == 0o700


@pytest.mark.parametrize("trap", ["link", "open"])
def test_a_folder_that_others_may_have_laid_is_not_trusted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, trap: str
) -> None:
    monkeypatch.setenv("HOME", str(blocked(tmp_path / "home")))
    laid = tmp_path / "tmp" / f"mass3d-{os.getuid()}"
    if trap == "link":
        (tmp_path / "theirs").mkdir()
        laid.symlink_to(tmp_path / "theirs")
    else:
        laid.mkdir()
        laid.chmod(0o777)
    found = cache_folder()
    assert found != laid
    assert found.parent == tmp_path / "tmp"


def test_numba_is_left_alone_where_it_can_write_beside_the_source(tmp_path: Path) -> None:
    choose_numba_cache(tmp_path)
    assert "NUMBA_CACHE_DIR" not in os.environ


def test_numba_gets_a_folder_where_the_installation_is_read_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NUMBA_CACHE_DIR", "")
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    choose_numba_cache(blocked(tmp_path / "package"))
    assert os.environ["NUMBA_CACHE_DIR"] == str(tmp_path / ".cache" / "mass3d" / "numba")


def test_a_folder_that_is_set_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/elsewhere")
    choose_numba_cache(blocked(tmp_path / "package"))
    assert os.environ["NUMBA_CACHE_DIR"] == "/elsewhere"


def test_a_user_without_a_name_and_a_home_gets_a_folder_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(number: int) -> None:
        raise KeyError(number)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    assert cache_folder() == Path(tempfile.gettempdir()) / f"mass3d-{os.getuid()}"


def test_compiled_code_is_there_once_numba_has_kept_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    assert not has_compiled(tmp_path)
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "trees.cpython-311.pyc").touch()
    assert not has_compiled(tmp_path)
    (tmp_path / "__pycache__" / "trees.grow-12.py311.nbi").touch()
    assert has_compiled(tmp_path)
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "elsewhere"))
    assert not has_compiled(tmp_path)
