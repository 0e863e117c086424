"""Names of one label value in the masks of several references."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from training.errors import DataError
from training.inference.raw_scans import structures_of


@dataclass
class Masked:
    """What `structures_of` asks of a scan."""

    location: str
    value_names: dict[int, str] = field(default_factory=dict)
    label_values: tuple[int, ...] = (1, 2)


def test_two_names_of_one_value_are_refused_with_both_files() -> None:
    references = [Masked("a.nii.gz", {1: "liver", 2: "lung"}), Masked("b.nii.gz", {1: "spleen", 2: "lung"})]
    with pytest.raises(DataError) as caught:
        structures_of(references, ())
    for words in ("label 1", "'liver'", "a.nii.gz", "'spleen'", "b.nii.gz", "--label", "correct the names"):
        assert words in str(caught.value)


def test_a_value_that_is_not_asked_for_may_have_two_names() -> None:
    references = [Masked("a", {1: "liver", 2: "lung"}), Masked("b", {1: "spleen", 2: "lung"})]
    assert [part.name for part in structures_of(references, (2,))] == ["lung"]


@pytest.mark.parametrize("first", [{}, {2: "lung"}, {1: "liver"}])
def test_references_without_names_stand_beside_those_with_names(first: dict[int, str]) -> None:
    references = [Masked("a", first), Masked("b", {1: "liver", 2: "lung"}), Masked("c")]
    assert [part.name for part in structures_of(references, ())] == ["liver", "lung"]
    assert [part.name for part in structures_of([Masked("a"), Masked("c")], ())] == ["label 1", "label 2"]
