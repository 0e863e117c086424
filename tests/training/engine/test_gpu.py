"""What keeps a GPU busy, on a CPU: values read late, a step captured by a stand-in, blocks compiled."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.training.engine.test_trainer import STEPS, WATCH, make_task, same, stop_at
from training.engine.checkpoints import list_checkpoints, read_checkpoint
from training.engine.gpu.captured import CapturedStep, capture
from training.engine.gpu.compiling import CACHE, compile_blocks
from training.engine.losses import LossTerms, segmentation_loss
from training.engine.monitoring import METRICS, read_metrics
from training.engine.task import Task
from training.engine.trainer import Trainer
from training.errors import NonFiniteLoss
from training.network import Iris, recompute_stages, repeated_blocks

compiles = pytest.mark.filterwarnings("ignore::UserWarning:torch", "ignore::DeprecationWarning:torch")

pytestmark = pytest.mark.usefixtures("one_thread")


def trained(
    task: Task[Tensor, Tensor], folder: Path, *, late: bool, resume: bool = False
) -> Trainer[Tensor, Tensor]:
    folder.mkdir(exist_ok=True)
    trainer = Trainer(task, folder, optimisation=STEPS, run=WATCH)
    trainer.reads_late = late
    if resume:
        trainer.resume()
    trainer.run()
    return trainer


def test_values_read_a_step_late_change_no_weight_and_no_metric(tmp_path: Path) -> None:
    now = trained(make_task(dice=lambda net: 0.5), tmp_path / "now", late=False)
    late = trained(make_task(dice=lambda net: 0.5), tmp_path / "late", late=True)
    assert same(now.state(), late.state())
    assert now.losses == late.losses
    one, two = (
        [(line["kind"], line["step"], line.get("loss")) for line in read_metrics(tmp_path / name / METRICS)]
        for name in ("now", "late")
    )
    assert one == two


@pytest.mark.parametrize("step", [3, 4, 7])
def test_a_run_that_reads_late_goes_on_as_if_undisturbed(step: int, tmp_path: Path) -> None:
    undisturbed = trained(make_task(), tmp_path / "a", late=False)
    stopped = trained(make_task(on_batch=stop_at(step)), tmp_path / "b", late=True)
    assert step <= stopped.step <= step + 1  # it is read one step later
    assert same(trained(make_task(), tmp_path / "b", late=True, resume=True).state(), undisturbed.state())


@pytest.mark.parametrize("step", [4, 5])
def test_no_checkpoint_holds_weights_of_a_step_that_was_not_finite(step: int, tmp_path: Path) -> None:
    """Checkpoints are due after steps 4 and 8: step 4 is read before its own, step 5 after step 6."""

    def spoil(first: int, batch: Tensor) -> Tensor:
        return batch * torch.nan if first == (step - 1) * STEPS.batch_size else batch

    with pytest.raises(NonFiniteLoss, match=rf"step {step}: loss is nan.*Weights were changed before"):
        trained(make_task(spoil=spoil), tmp_path / "run", late=True)
    kept = read_checkpoint(tmp_path / "run" / "failures" / f"step-{step:08d}" / "rank-0.pt")
    assert torch.isnan(kept["batches"][0]).all()
    for path in list_checkpoints(tmp_path / "run" / "checkpoints"):
        state = read_checkpoint(path)
        assert state["step"] < step
        assert all(torch.isfinite(weight).all() for weight in state["model"].values())


def stand_in(net: nn.Module, work: Callable[[], LossTerms]) -> tuple[Callable[[], None], LossTerms]:
    """Records as a graph does: its outputs and gradients stay where they are, and are overwritten."""
    terms = work()
    kept = {name: weight.grad for name, weight in net.named_parameters()}

    def replay() -> None:
        found = work()
        terms.total.data.copy_(found.total)
        for name, weight in net.named_parameters():
            gradient, memory = weight.grad, kept[name]
            assert gradient is not None
            assert memory is not None
            memory.copy_(gradient)

    return replay, terms


def captured_step(net: nn.Module, views: Tensor) -> CapturedStep:
    def work(batch: Tensor) -> LossTerms:
        total = net(batch).square().mean()
        total.backward()
        return LossTerms(total=total.detach(), parts={})

    return capture(net, views, work, lambda once: stand_in(net, once))


def test_a_captured_step_has_loss_and_gradients_of_the_views_it_is_given() -> None:
    torch.manual_seed(0)
    net = nn.Conv3d(1, 2, 3)
    views = torch.randn(3, 2, 1, 4, 4, 4)
    captured = captured_step(net, views[0])
    for batch in views:
        net.zero_grad(set_to_none=True)
        found = float(captured.run(batch).total)
        gradient = net.weight.grad
        assert gradient is not None
        gradient = gradient.clone()
        net.zero_grad(set_to_none=True)
        loss = net(batch).square().mean()
        loss.backward()
        assert found == float(loss.detach())
        assert torch.equal(gradient, net.weight.grad)


def test_a_captured_step_keeps_its_views_and_takes_no_other_shape() -> None:
    net, views = nn.Conv3d(1, 2, 3), torch.randn(2, 1, 4, 4, 4)
    captured = captured_step(net, views)
    before = views.clone()
    captured.run(torch.zeros_like(views))
    assert torch.equal(views, before)
    assert captured.takes(torch.zeros_like(views))
    assert not captured.takes(torch.zeros(1, 1, 4, 4, 4))
    assert not captured.takes(views.double())


def drawn(crop: tuple[int, int, int], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    target, reference = torch.randn(2, 1, 1, *crop)
    return target, reference, torch.rand(1, 2, *crop) < 0.3


@pytest.mark.long
@compiles
def test_crops_of_another_size_compile_nothing_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.testing import CompileCounter

    monkeypatch.setenv(CACHE, "/kept")
    torch._dynamo.reset()
    net = Iris((4, 4, 4, 4, 4), 1).train()  # blocks of one width, which is compiled once for all
    counter = CompileCounter()
    plain = deepcopy(net)
    compile_blocks(net, backend=counter)
    inputs = drawn((32, 32, 32))
    torch.testing.assert_close(net(*inputs), plain(*inputs), rtol=0, atol=1e-4)
    after_first = counter.frame_count
    assert after_first > 0
    for crop in ((48, 32, 64), (64, 64, 32)):
        net(*drawn(crop))
    after_large = counter.frame_count
    # PyTorch itself asks whether a convolution's output exceeds 20,480 values: one block is on both sides.
    assert after_large <= after_first + 1
    for crop in ((32, 48, 48), (48, 64, 32)):
        net(*drawn(crop))
    assert counter.frame_count == after_large
    torch._dynamo.reset()


@compiles
def test_compiling_changes_no_name_of_a_weight() -> None:
    net = Iris((4, 4, 8, 8, 32), 1)
    names = list(net.state_dict())
    assert compile_blocks(net, backend="eager") == len(repeated_blocks(net)) == 23
    assert list(net.state_dict()) == names


def test_activations_computed_again_give_the_same_gradients_and_are_not_kept() -> None:
    net = Iris((4, 4, 8, 8, 32), 1).train()
    other = deepcopy(net)
    assert recompute_stages(other) == 9
    inputs = drawn((32, 32, 32))
    kept = []
    for each in (net, other):
        sizes: dict[int, int] = {}

        def keep(tensor: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = segmentation_loss(each(*inputs), inputs[2]).total
        kept.append(sum(sizes.values()))
        loss.backward()
    for one, two in zip(net.parameters(), other.parameters(), strict=True):
        assert same(one.grad, two.grad) if one.grad is not None else two.grad is None
    assert kept[1] < 0.7 * kept[0]
