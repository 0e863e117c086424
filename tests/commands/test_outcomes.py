"""What became of a scan, and its line in the ledger."""

import pytest

from commands.prepare.outcomes import Outcome
from commands.prepare.settings import failure_in, ledger_line, outcome_of_failure
from pipeline.errors import Failure
from storage import LedgerEntry, LedgerFile

FAILURE = Failure(scan_id="a", location="a.nii", reason="flat", remedy="look", kind="ConstantImage")


def test_a_failure_comes_back_from_the_ledger() -> None:
    line = ledger_line(outcome_of_failure(FAILURE), "digest")
    assert failure_in(LedgerEntry.from_json(line.to_json())) == FAILURE


def test_the_line_of_a_failure_that_may_pass_lets_the_next_run_try_again() -> None:
    outcome = Outcome(scan_id="a", location="a.nii", state="failed", failure=FAILURE)
    assert ledger_line(outcome, "digest").config_digest == ""
    lasting = Outcome(scan_id="a", location="a.nii", state="failed", failure=FAILURE, lasting=True)
    assert ledger_line(lasting, "digest").config_digest == "digest"


def test_the_line_of_a_committed_scan_has_its_files_and_no_failure() -> None:
    outcome = Outcome(
        scan_id="a", location="a.nii", state="committed", source_digest="s", files=(("a.nii", 7, 9),)
    )
    line = ledger_line(outcome, "digest")
    assert line == LedgerEntry(
        scan_id="a",
        location="a.nii",
        state="committed",
        source_digest="s",
        files=(LedgerFile(location="a.nii", size=7, mtime_ns=9),),
    )
    assert failure_in(line) is None


@pytest.mark.parametrize(
    ("state", "failure"), [("failed", None), ("committed", FAILURE), ("not done", FAILURE)]
)
def test_only_a_scan_that_failed_has_a_failure(state: str, failure: Failure | None) -> None:
    with pytest.raises(ValueError, match="a: a scan that failed"):
        Outcome(scan_id="a", location="a.nii", state=state, failure=failure)  # type: ignore[arg-type]
