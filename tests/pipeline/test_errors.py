"""Failures: the record of an error."""

import pickle

from pipeline.discovery import SourceFailure
from pipeline.errors import ConstantImage, Failure


def test_an_error_of_a_scan_brings_its_reason_and_remedy_without_its_path() -> None:
    error = ConstantImage("one value everywhere", path="john/a.nii", remedy="Check it")
    failure = Failure.of(error, scan_id="a", location="a.nii", remedy="not this one")
    assert failure == Failure(
        scan_id="a",
        location="a.nii",
        reason="one value everywhere",
        remedy="Check it",
        kind="ConstantImage",
    )
    assert pickle.loads(pickle.dumps(failure)) == failure


def test_another_error_is_a_reason_and_needs_a_remedy() -> None:
    failure = Failure.of(ValueError("five is no voxel"), scan_id="a", remedy="Look")
    assert (failure.reason, failure.remedy, failure.kind) == ("five is no voxel", "Look", "ValueError")
    assert failure.location == ""


def test_the_older_name_is_the_same_class() -> None:
    assert SourceFailure is Failure
