"""Precision follows the device: what is chosen, why, what a resumed run keeps, and what Muon computes in."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import training.engine.precision as precision_module
from training.engine.optimisation import OptimisationConfig, make_optimiser
from training.engine.precision import (
    ChosenPrecision,
    Support,
    autocast,
    bfloat16_support,
    choose_precision,
    precision_of_run,
)
from training.engine.run_folder import RunRecord, begin_run, begun_precision
from training.pretraining.config import small

CPU = torch.device("cpu")
HAS = Support(has_bfloat16=True, why="the CPU has amx_bf16")
LACKS = Support(has_bfloat16=False, why="the CPU has no bfloat16 instructions")


def imitate(
    monkeypatch: pytest.MonkeyPatch, *, instructions: set[str], capability: str = "AVX512", isa: str = ""
) -> None:
    """Make this processor look like another."""
    monkeypatch.setattr(precision_module.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(precision_module, "_cpu_instructions", lambda: frozenset(instructions))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", isa)


@pytest.mark.parametrize(
    ("instructions", "capability", "isa", "expected"),
    [
        ({"amx_bf16", "avx512_bf16"}, "AVX512", "", True),
        ({"avx512_bf16"}, "AVX512", "", True),
        ({"avx512_bf16"}, "AVX512", "AVX512_CORE_BF16", True),
        ({"avx512_f"}, "AVX512", "", False),
        ({"avx2"}, "AVX2", "", False),
        ({"avx512_bf16"}, "AVX2", "", False),
        ({"avx512_bf16"}, "DEFAULT", "", False),
        ({"avx512_bf16"}, "AVX512", "AVX2", False),
        ({"avx512_bf16"}, "AVX512", "AVX512_CORE", False),
    ],
)
def test_bfloat16_is_used_where_the_instructions_are_there_and_not_taken_away(
    monkeypatch: pytest.MonkeyPatch, instructions: set[str], capability: str, isa: str, expected: bool
) -> None:
    imitate(monkeypatch, instructions=instructions, capability=capability, isa=isa)
    assert bfloat16_support(CPU).has_bfloat16 == expected
    assert choose_precision("auto", CPU).name == ("bfloat16" if expected else "float32")


@pytest.mark.parametrize("has", [True, False])
def test_an_arm_processor_is_asked_for_its_own_instruction(
    monkeypatch: pytest.MonkeyPatch, has: bool
) -> None:
    imitate(monkeypatch, instructions={"neon", "bf16"} if has else {"neon"}, capability="DEFAULT")
    monkeypatch.setattr(precision_module.platform, "machine", lambda: "aarch64")
    assert bfloat16_support(CPU).has_bfloat16 == has


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_a_card_has_bfloat16_from_compute_capability_8(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    assert bfloat16_support(torch.device("cuda", 0)).has_bfloat16 == expected


def test_a_device_that_nothing_is_known_of_computes_in_float32() -> None:
    assert choose_precision("auto", torch.device("meta")).name == "float32"


def test_the_cost_of_bfloat16_without_instructions_is_warned_of() -> None:
    assert "10 to 60 times" in choose_precision("bfloat16", CPU, LACKS).warning
    assert not choose_precision("bfloat16", CPU, HAS).warning
    assert not choose_precision("float32", CPU, HAS).warning
    assert not choose_precision("auto", CPU, LACKS).warning


def test_the_reason_stands_in_the_line_that_is_printed() -> None:
    assert choose_precision("auto", CPU, LACKS).line == f"precision float32: {LACKS.why}"


@pytest.mark.parametrize("begun", ["bfloat16", "float32"])
@pytest.mark.parametrize("support", [HAS, LACKS])
def test_a_run_that_goes_on_elsewhere_keeps_its_precision(begun: str, support: Support) -> None:
    chosen = precision_of_run("auto", begun, CPU, support)  # type: ignore[arg-type]
    assert (chosen.name, chosen.why) == (begun, "as the run began")
    assert bool(chosen.warning) == (begun == "bfloat16" and support is LACKS)


def test_a_runs_precision_is_read_back_and_one_from_before_has_none(tmp_path: Path) -> None:
    record = RunRecord(settings={}, store_name="s", scans={}, versions={})
    begin_run(tmp_path / "new", record, ChosenPrecision(name="float32", why="because"))
    begin_run(tmp_path / "old", record)
    assert begun_precision(tmp_path / "new") == "float32"
    assert json.loads((tmp_path / "new" / "run.json").read_text())["precision"]["why"] == "because"
    assert begun_precision(tmp_path / "old") is None
    assert begun_precision(tmp_path / "nothing") is None


@pytest.mark.parametrize("name", ["bfloat16", "float32"])
def test_the_network_computes_in_the_precision_chosen(name: str) -> None:
    layer = torch.nn.Linear(2, 2)
    with autocast(ChosenPrecision(name=name, why=""), CPU):  # type: ignore[arg-type]
        assert layer(torch.ones(1, 2)).dtype == getattr(torch, name)


class _Products(TorchDispatchMode):
    """Notes the dtypes of batched matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()
        self.num_products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func in (torch.ops.aten.bmm.default, torch.ops.aten.bmm.out):
            self.dtypes.add(args[0].dtype)
            self.num_products += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("bfloat16", [True, False])
def test_muon_orthogonalises_in_the_precision_of_the_run_one_batch_a_shape(bfloat16: bool) -> None:
    net = torch.nn.Sequential(*(torch.nn.Linear(4, 4, bias=False) for _ in range(3)), torch.nn.Linear(4, 6))
    optimiser = make_optimiser(net, OptimisationConfig(optimiser="muon"), bfloat16=bfloat16)
    for weight in net.parameters():
        weight.grad = torch.randn_like(weight)
    with _Products() as products:
        optimiser.step()
    assert products.dtypes == {torch.bfloat16 if bfloat16 else torch.float32}
    assert products.num_products == 2 * 5  # two shapes, five iterations


def test_muon_in_float32_moves_weights_as_in_bfloat16_but_for_rounding() -> None:
    moves = []
    for bfloat16 in (True, False):
        torch.manual_seed(0)
        net = torch.nn.Linear(24, 16, bias=False)
        before = net.weight.detach().clone()
        config = OptimisationConfig(optimiser="muon", weight_decay=0.0)
        optimiser = make_optimiser(net, config, bfloat16=bfloat16)
        net.weight.grad = torch.randn_like(net.weight)
        optimiser.step()
        moves.append(net.weight.detach() - before)
    exact = moves[1].norm()
    assert exact > 0
    # bfloat16 has 8 bits; five iterations of three products each.
    assert (moves[0] - moves[1]).norm() < 15 * 2**-8 * exact


def test_the_precision_of_muon_is_kept_with_its_state(tmp_path: Path) -> None:
    net = torch.nn.Linear(4, 4, bias=False)
    config = replace(small().optimisation, num_steps=2)
    first = make_optimiser(net, config, bfloat16=False)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = make_optimiser(net, config, bfloat16=True)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    net.weight.grad = torch.ones_like(net.weight)
    with _Products() as products:
        second.step()
    assert products.dtypes == {torch.float32}
