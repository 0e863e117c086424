from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from commands.prepare.plan import Done, Found, Job, Known, Plan, Wanted, batches, decide, make_plan
from pipeline.discovery import Source
from pipeline.errors import Failure

WANTED = Wanted(ingest="i" * 64, proposals="p" * 64, proposals_change="max_proposals 1000 -> 2000")
FAILURE = Failure(scan_id="a", location="a.nii", reason="flat", remedy="look", kind="ConstantImage")
COMMITTED = {"source": "s1", "ingest": WANTED.ingest, "proposals": WANTED.proposals}


def found(scan_id: str = "a", *, size: int = 100, mtime_ns: int = 1, choices: str = "c") -> Found:
    source = Source(scan_id=scan_id, format="file", files=(Path(f"{scan_id}.nii.gz"),), location=scan_id)
    return Found(source=source, files=((scan_id, size, mtime_ns),), choices_digest=choices)


def known(**changes: object) -> Known:
    recorded = Known(committed=COMMITTED, source_digest="s1", files=(("a", 100, 1),), choices_digest="c")
    return replace(recorded, **changes)  # type: ignore[arg-type]


def untouched(source: Source) -> str:
    pytest.fail("the bytes were looked at")


def test_a_scan_that_nobody_knows_is_new() -> None:
    job = decide(found(), Known(), WANTED, digest=untouched)
    assert isinstance(job, Job)
    assert (job.stage, job.why) == ("ingest", "new")


def test_an_unchanged_scan_is_done_without_a_look_at_its_bytes() -> None:
    decision = decide(found(), known(), WANTED, digest=untouched)
    assert decision == Done(found=found(), source_digest="s1", recorded=True)


def test_a_touched_file_with_the_same_bytes_is_done_and_recorded_anew() -> None:
    decision = decide(found(mtime_ns=2), known(), WANTED, digest=lambda source: "s1")
    assert isinstance(decision, Done)
    assert not decision.recorded


def test_a_committed_scan_without_a_ledger_line_is_recognised_by_its_bytes() -> None:
    decision = decide(found(), Known(committed=COMMITTED), WANTED, digest=lambda source: "s1")
    assert isinstance(decision, Done)
    assert not decision.recorded


@pytest.mark.parametrize("now", [found(mtime_ns=2), found(size=99), found(choices="other")])
def test_other_bytes_or_choices_redo_everything(now: Found) -> None:
    job = decide(now, known(), WANTED, digest=lambda source: "s2")
    assert isinstance(job, Job)
    assert (job.stage, job.why, job.source_digest) == ("ingest", "source changed", "")


def test_another_case_alone_computes_nothing_anew() -> None:
    now = replace(found(choices="other"), source=replace(found().source, case="p7"))

    def digest(source: Source) -> str:
        return {"": "s1", "p7": "s2"}[source.case]

    job = decide(now, known(), WANTED, digest=digest)
    assert isinstance(job, Job)
    assert (job.stage, job.why, job.source_digest) == ("case", "case changed", "s2")
    other_proposals = known(committed={**COMMITTED, "proposals": "old"})
    job = decide(now, other_proposals, WANTED, digest=digest)
    assert isinstance(job, Job)
    assert (job.stage, job.source_digest) == ("proposals", "s2")
    job = decide(now, known(case="p6"), WANTED, digest=lambda source: {"p6": "s0", "p7": "s2"}[source.case])
    assert isinstance(job, Job)
    assert (job.stage, job.why) == ("ingest", "source changed")


def test_a_source_that_cannot_be_read_any_more_is_tried_so_that_its_failure_is_told() -> None:
    gone = replace(found(), files=())
    job = decide(gone, known(files=()), WANTED, digest=lambda source: None)
    assert isinstance(job, Job)
    assert job.why == "source changed"


def test_other_proposal_settings_redo_the_proposals_only_and_say_which() -> None:
    decision = decide(found(), known(committed={**COMMITTED, "proposals": "old"}), WANTED, digest=untouched)
    assert isinstance(decision, Job)
    assert (decision.stage, decision.source_digest) == ("proposals", "s1")
    assert decision.why == "proposals settings changed (max_proposals 1000 -> 2000)"


def test_other_ingest_settings_or_code_redo_everything() -> None:
    stale = {**COMMITTED, "ingest": "old", "proposals": "old"}
    job = decide(found(), known(committed=stale), WANTED, digest=untouched)
    assert isinstance(job, Job)
    assert (job.stage, job.why) == ("ingest", "ingest settings or code changed")


def failed(**changes: object) -> Known:
    return known(committed=None, failure=FAILURE, config_digest=WANTED.config_digest, **changes)


def test_a_failure_is_told_again_where_nothing_changed() -> None:
    assert decide(found(), failed(), WANTED, digest=untouched) == FAILURE


def test_a_failure_is_tried_again_on_request() -> None:
    job = decide(found(), failed(), WANTED, digest=untouched, retry_failed=True)
    assert isinstance(job, Job)
    assert job.why == "failed before"


@pytest.mark.parametrize(
    ("now", "then"),
    [
        (found(mtime_ns=2), failed()),
        (found(choices="d"), failed()),
        (found(), replace(failed(), config_digest="other")),
        (found(), replace(failed(), config_digest="")),
        (replace(found(), files=()), replace(failed(), files=())),
    ],
)
def test_a_failure_is_tried_again_where_anything_may_have_changed(now: Found, then: Known) -> None:
    job = decide(now, then, WANTED, digest=untouched)
    assert isinstance(job, Job)
    assert job.why == "failed before"


def test_a_bad_new_version_of_a_committed_scan_keeps_failing_until_it_changes() -> None:
    then = replace(failed(), committed=COMMITTED, source_digest="s2")
    assert decide(found(), then, WANTED, digest=untouched) == FAILURE
    back = decide(found(mtime_ns=9), then, WANTED, digest=lambda source: "s1")
    assert isinstance(back, Done), "the old version is back, and it is in the store"
    assert not back.recorded


def plan_of(*sources: Found, **known_scans: Known) -> Plan:
    return make_plan(sources, known_scans, WANTED, digest=lambda source: "s1")


def test_a_plan_sorts_scans_and_counts_reasons() -> None:
    stale = known(committed={**COMMITTED, "proposals": "old"})
    plan = plan_of(
        found("a"), found("b", size=5), found("c", size=50), found("d"), a=known(), d=stale, gone=known()
    )
    assert [job.scan_id for job in plan.jobs] == ["d", "c", "b"], "largest first"
    assert [done.found.source.scan_id for done in plan.done] == ["a"]
    assert plan.absent == ("gone",)
    assert plan.reasons() == {"new": 2, "proposals settings changed (max_proposals 1000 -> 2000)": 1}


def test_a_scan_that_was_found_but_cannot_be_a_source_is_not_absent() -> None:
    plan = make_plan([], {"a": known()}, WANTED, digest=untouched, elsewhere=["a"])
    assert plan.absent == ()


def test_small_scans_share_a_batch_and_large_ones_do_not() -> None:
    plan = plan_of(found("big", size=1000), *(found(f"s{i}", size=10) for i in range(5)))
    packed = list(batches(plan.jobs, max_scans=3, max_weight=100))
    assert [[job.scan_id for job in batch] for batch in packed] == [["big"], ["s0", "s1", "s2"], ["s3", "s4"]]
    assert list(batches([], max_scans=3, max_weight=100)) == []
