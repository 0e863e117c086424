"""What `training` offers is there."""

from __future__ import annotations

import pytest

import training


@pytest.mark.parametrize("name", training.__all__)
def test_every_offered_name_can_be_loaded(name: str) -> None:
    assert getattr(training, name).__name__ == name


def test_an_unknown_name_is_an_error_as_of_any_module() -> None:
    with pytest.raises(AttributeError, match="training attribute Unet"):
        _ = training.Unet
