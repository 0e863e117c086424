"""Which settings make stored scans stale, and which failures are tried again."""

from __future__ import annotations

from typing import Any

import pytest

from commands.prepare.settings import Settings, wanted_digests
from pipeline.ingest import IDLE_SETTINGS, LATER_SETTINGS, IngestConfig
from pipeline.proposals import ProposalConfig


def values(**ingest: Any) -> dict[str, dict[str, Any]]:
    return Settings(ingest=IngestConfig(**ingest), proposals=ProposalConfig()).values()


def test_a_store_made_before_a_setting_existed_is_up_to_date_at_its_default() -> None:
    before = values()
    for name in (*LATER_SETTINGS, *IDLE_SETTINGS):
        del before["ingest"][name]
    assert wanted_digests(before) == wanted_digests(values())
    assert wanted_digests(values(), before).ingest_change == ""


def test_how_long_a_read_may_stand_still_makes_nothing_stale() -> None:
    assert wanted_digests(values(read_timeout_seconds=5.0)) == wanted_digests(values())


@pytest.mark.parametrize("change", [{"resample_labels": True}, {"set_spacing_mm": 2.0}, {"margin_mm": 5.0}])
def test_a_setting_that_changes_scans_makes_them_stale(change: dict[str, Any]) -> None:
    assert wanted_digests(values(**change)).ingest != wanted_digests(values()).ingest
    assert next(iter(change)) in wanted_digests(values(**change), values()).ingest_change
