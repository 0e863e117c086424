"""What tests of fine-tuning share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.drawn_checkpoint import drawn_net, export


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, exported as pretraining does."""
    return export(drawn_net(), tmp_path_factory.mktemp("checkpoint") / "weights.safetensors")
