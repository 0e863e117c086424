"""The flows as a Prefect user has them: from Python, with parameters, with what a run leaves behind."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from commands.prepare.prefect_server import prefect_settings
from storage import open_store
from tests.phantom import phantom

TINY = """
[model]
channels = [4, 8, 16, 32, 32]

[data]
crop_voxels = 16
cut_voxels = 20
holdout_fraction = 0.0
min_mask_voxels = 1

[optimisation]
num_steps = 2
batch_size = 1

[run]
num_workers = 0
evaluate_every = 0
draw_every = 0
"""


@pytest.fixture
def flows() -> Any:
    """The module, which imports Prefect: seconds that only the process that runs these tests pays."""
    import flows

    return flows


@pytest.fixture(autouse=True)
def server(prefect_api: str) -> Iterator[None]:
    """Prefect's settings are read once: lead them to the server of these tests."""
    from prefect.settings import temporary_settings

    with temporary_settings(updates=prefect_settings(prefect_api, os.environ["PREFECT_API_AUTH_STRING"])):
        yield


def read_artifacts(key: str) -> list[Any]:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

    async def read() -> list[Any]:
        async with get_client() as client:
            wanted = ArtifactFilter(key=ArtifactFilterKey(any_=[key]))
            found = await client.read_artifacts(artifact_filter=wanted)
            return sorted(found, key=lambda artifact: artifact.created)

    return asyncio.run(read())


def task_run_names() -> set[str]:
    from prefect.client.orchestration import get_client

    async def read() -> set[str]:
        async with get_client() as client:
            return {run.name for run in await client.read_task_runs(limit=200)}

    return asyncio.run(read())


@pytest.mark.parametrize("name", ["prepare", "pretrain", "run_all"])
def test_a_flow_has_a_form_of_its_parameters(flows: Any, name: str) -> None:
    flow = getattr(flows, name)
    properties = flow.parameters.properties
    assert "store" in properties
    assert properties["store"].get("description"), "described in the form"
    assert set(flow.parameters.required) <= {"raw", "store", "run"}


def test_the_choices_of_a_parameter_are_in_its_form(flows: Any) -> None:
    assert flows.prepare.parameters.properties["device"]["enum"] == ["auto", "cpu", "numpy", "gpu"]
    assert flows.pretrain.parameters.properties["recipe"]["enum"] == ["whole", "large", "small", "published"]


def test_prepare_from_python_leaves_a_table_of_scans_and_a_link_to_the_report(
    flows: Any, raw: Path, tmp_path: Path, config: Path
) -> None:
    (raw / "dud_ct.nii.gz").write_bytes(b"no image")
    report = flows.prepare(str(raw), str(tmp_path / "store"), config=str(config))
    assert [outcome.scan_id for outcome in report.committed] == ["ann_ct", "ben_ct", "cis_ct"]
    assert open_store(tmp_path / "store").scan_ids == ("ann_ct", "ben_ct", "cis_ct")
    table = read_artifacts("prepared-scans")[-1]
    assert all(name in str(table.data) for name in ("ann_ct", "dud_ct", "NotAnImage"))
    page = tmp_path / "store-report.html"
    assert page.as_uri() in str(read_artifacts("store-report")[-1].data)
    assert "ben_ct" in page.read_text()
    ids = ("ann_ct", "ben_ct", "cis_ct", "dud_ct")
    assert any(name.startswith(f"prepare {first}") for first in ids for name in task_run_names())


def test_a_run_with_nothing_to_do_is_reported_all_the_same(
    flows: Any, raw: Path, prepared: Path, config: Path
) -> None:
    again = flows.prepare(raw, prepared, config=config)
    assert (again.committed, len(again.skipped)) == ((), 3)


def test_the_tasks_alone_are_no_flow_to_start(flows: Any) -> None:
    with pytest.raises(RuntimeError, match="a part of the flow"):
        flows.prepare_scans()


def test_run_all_goes_from_scans_to_weights(flows: Any, tmp_path: Path, config: Path) -> None:
    for seed in range(2):
        phantom(seed=seed).write(tmp_path / "raw" / f"scan{seed}_ct.nii.gz")
    settings = tmp_path / "tiny.toml"
    settings.write_text(TINY)
    run = tmp_path / "run"
    raw, store = tmp_path / "raw", tmp_path / "store"
    weights = flows.run_all(raw, store, run, config=config, pretrain_config=settings)
    assert weights == run / "weights.safetensors"
    assert weights.is_file()
    assert "last_loss" in str(read_artifacts("pretraining")[-1].data)
    before = weights.read_bytes()
    again = flows.run_all(raw, store, run, config=config, pretrain_config=settings)
    assert again == weights, "a run that is there goes on with its own settings"
    assert weights.read_bytes() == before


def test_run_all_without_a_scan_says_so(flows: Any, tmp_path: Path, config: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a_ct.nii.gz").write_bytes(b"no image")
    with pytest.raises(RuntimeError, match="1 failed"):
        flows.run_all(tmp_path / "raw", tmp_path / "store", tmp_path / "run", config=config)
