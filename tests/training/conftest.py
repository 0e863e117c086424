"""What the tests of training share."""

from __future__ import annotations

import pytest
import torch

from storage import Store
from tests.training.blob_store import make_blob_store
from tests.training.phantom_store import make_phantom_store


@pytest.fixture(scope="session")
def phantom_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Four labelled phantoms with proposals; read only."""
    return make_phantom_store(tmp_path_factory.mktemp("phantoms") / "store")


@pytest.fixture(scope="session")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Forty scans, every second with a bright blob, which is its class; read only."""
    return make_blob_store(tmp_path_factory.mktemp("blobs") / "store")


@pytest.fixture(scope="module")
def one_thread():
    """Bits depend on the number of threads: one, for fixtures of the module too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
