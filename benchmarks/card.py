"""Everything that a GPU has to show, in at most 8 minutes: first that it computes the same, then how fast.

    python benchmarks/card.py                      on a machine with a card, without a store or any data
    python benchmarks/card.py --device cpu         a trial of this script with tiny sizes, without a card
    python benchmarks/card.py --device cpu --only ten_steps --steps 10    in Triton's interpreter: 20 minutes
    python benchmarks/card.py --only sync published

Each part runs in a process of its own, with a limit: a part that fails or takes too long ends nothing else.
The last lines are JSON, one for each part: "part", "ok" (null: measured, not judged), "seconds", and what was
found. Exit code 1 where a part is not ok.

Compared are: kernels with their plain form in float64; the network on the card with the CPU's; ten steps in
bfloat16, with kernels, plain, and plain on images rounded otherwise, with ten in float32; a captured step
with an eager one; a run that was stopped with one that was not; waits of the host in a step. Measured: the
card's matrix product and copy, steps of the published and the small recipe with and without kernels,
compiled, recomputed, captured. Views are drawn: no loader takes part (that is benchmarks/train_speed.py).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor
from torch.nn import functional

from training.data import Views
from training.engine import (
    OptimisationConfig,
    Precision,
    RunConfig,
    Task,
    Trainer,
    choose_precision,
    rehearse,
)
from training.engine.precision import autocast
from training.network import Iris
from training.network.kernels import SWITCH, forms, has_triton
from training.pretraining import PretrainConfig, recipe
from training.pretraining.run import in_context_loss

LIMIT_SECONDS = 75
"""For one part; compiling gets as long. The longest are the published steps."""
ALL_SECONDS = 480
Found = dict[str, Any]


def main() -> int:
    options = parse()
    if options.part:
        if options.device == "cpu":
            # In Triton's interpreter, where that is not hours.
            forms._on_gpu = lambda x: options.part in ("kernels", "network", "ten_steps")
            torch.set_num_threads(1)
        part = partial(ten_steps, steps=options.steps) if options.part == "ten_steps" else PARTS[options.part]
        print("\n" + json.dumps(part(options.device)))
        return 0
    began, lines = time.monotonic(), []
    for name in options.only or PARTS:
        left = ALL_SECONDS - (time.monotonic() - began)
        limit = min(LIMIT_SECONDS, left) if options.device == "cuda" else 300 * max(options.steps, 2)
        line = run_part(name, options, limit) if limit > 5 else {"error": "no time left"}
        lines.append({"part": name, "ok": False} | line)
        print(f"{name}: {'not ok' if lines[-1]['ok'] is False else 'done'}", flush=True)
    for line in lines:
        print(json.dumps(line))
    return int(any(line["ok"] is False for line in lines))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--steps", type=int, metavar="N", help="of the part ten_steps: 10, on a CPU 2")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.steps = options.steps or (2 if options.device == "cpu" else 10)
    return options


def run_part(name: str, options: argparse.Namespace, limit: float) -> Found:
    """Run a part in a process of its own."""
    began, device = time.monotonic(), options.device
    command = [sys.executable, __file__, "--part", name, "--device", device, "--steps", str(options.steps)]
    environment = os.environ | ({"TRITON_INTERPRET": "1"} if device == "cpu" else {})
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, env=environment)
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {limit:.0f} s"}
    took = {"seconds": round(time.monotonic() - began, 1)}
    if done.returncode:
        return took | {"error": done.stderr[-1500:]}
    found: Found = json.loads(done.stdout.splitlines()[-1])
    return found | took


def distance(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference, by the norm of what is expected."""
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    return float((found - expected).norm() / expected.norm().clamp(min=1e-30))


# ------------------------------------------------------------ the same results


def kernels(device: str) -> Found:
    """Each kernel beside its plain form in float64: relative distances of outputs and gradients."""
    if not has_triton():
        return {"ok": device == "cpu", "skipped": "Triton is not installed"}
    from training.network.kernels.triton_norms import add_norm_relu, norm_relu
    from training.network.kernels.triton_sums import sums_of_masks
    from training.network.kernels.triton_upsampling import upsample_beside

    def norm(x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, dim=(2, 3, 4), correction=0, keepdim=True)
        return functional.relu((x - mean) * torch.rsqrt(variance + 1e-4))

    def upsampled(x: Tensor, skip: Tensor) -> Tensor:
        wide = functional.interpolate(x, size=skip.shape[2:], mode="trilinear", align_corners=True)
        return torch.cat([skip, wide], dim=1)

    def entropy(x: Tensor) -> Tensor:
        wide = x.double()
        return functional.binary_cross_entropy_with_logits(wide, truth.double(), reduction="none").sum(
            (2, 3, 4)
        )

    size = 64 if device == "cuda" else 8
    half = (size // 2,) * 3
    full = (2, 32, size, size, size)
    truth = torch.rand(2, 5, size, size, size, device=device) < 0.2
    cases: dict[str, tuple[Callable[..., Any], Callable[..., Any], list[tuple[int, ...]]]] = {
        "norm": (lambda x: norm_relu(x, 1e-4), norm, [full]),
        "sum and norm": (
            lambda a, b: torch.cat(add_norm_relu(a, b, 1e-4)), lambda a, b: torch.cat([a + b, norm(a + b)]),
            [full, full],
        ),
        "upsampling": (upsample_beside, upsampled, [(2, 64, *half), full]),
        "loss": (lambda x: sums_of_masks(x.contiguous(), truth).entropy, entropy, [tuple(truth.shape)]),
    }  # fmt: skip
    found: Found = {}
    for dtype, most in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
        for name, (kernel, plain, shapes) in cases.items():
            torch.manual_seed(0)
            # Quarters: a sum of two is exact, so that no rounding moves a value across the ReLU.
            drawn = [(torch.randn(shape, device=device) * 8).round() / 4 for shape in shapes]
            ours = [x.to(dtype, memory_format=torch.channels_last_3d).requires_grad_() for x in drawn]
            exact = [x.double().requires_grad_() for x in drawn]
            out, expected = kernel(*ours), plain(*exact)
            weights = torch.randn_like(expected)
            (out.double() * weights).sum().backward()
            (expected * weights).sum().backward()
            apart = [
                distance(out, expected),
                *(distance(a.grad, b.grad) for a, b in zip(ours, exact, strict=True)),
            ]
            found[f"{name} {str(dtype)[6:]}"] = {"distance": max(apart), "ok": max(apart) < most}
    return {"ok": all(case["ok"] for case in found.values()), "kernels": found}


def network(device: str) -> Found:
    """Logits and gradients of the small network on the card, in both precisions, beside the CPU's."""
    crop = (32, 48, 32) if device == "cuda" else (16, 16, 16)
    torch.manual_seed(0)
    net = Iris((8, 16, 32, 64, 96), 1, position_std=0.02)
    views = drawn_views(2, 5, crop, torch.device("cpu"), seed=0)
    expected = outputs(net, views, "float32")
    results = {"float32": outputs(net.to(device), to(views, device), "float32")}
    results["bfloat16 kernels"] = outputs(net, to(views, device), "bfloat16")
    with plain_forms():
        results["bfloat16 plain"] = outputs(net, to(views, device), "bfloat16")
    apart = {
        name: {"logits": distance(found[0], expected[0]), "gradients": distance(found[1], expected[1])}
        for name, found in results.items()
    }
    kernel, plain = apart["bfloat16 kernels"], apart["bfloat16 plain"]
    ok = apart["float32"]["logits"] < 1e-3 and kernel["logits"] < 1.5 * plain["logits"] + 1e-3
    return {"ok": ok and kernel["gradients"] < 1.5 * plain["gradients"] + 1e-2, "distance_from_cpu": apart}


def ten_steps(device: str, *, steps: int = 10) -> Found:
    """How far are ten bfloat16 steps from float32: with kernels, plain, and plain on other rounding?

    Not from each other: the plain form rounds more often than the kernels.
    """

    def train(folder: str, precision: Precision, seed: int | None = None) -> tuple[list[float], Tensor]:
        config = small_config(device, steps=steps, precision=precision)
        trainer = synthetic(Path(place) / folder, config, device, rounding=seed)
        trainer.run()
        return trainer.losses, torch.cat([w.detach().flatten().cpu() for w in trainer.task.net.parameters()])

    with tempfile.TemporaryDirectory() as place:
        with plain_forms():
            exact = train("float32", "float32")
            plain = [train(f"plain-{seed}", "bfloat16", seed) for seed in (None, 1, 2)]
        fused = train("kernels", "bfloat16")

    def apart(one: tuple[list[float], Tensor]) -> dict[str, float]:
        losses = max(abs(a - b) for a, b in zip(one[0], exact[0], strict=True))
        return {"largest_loss_difference": losses, "weights": distance(one[1], exact[1])}

    others, ours = [apart(other) for other in plain], apart(fused)
    ok = all(ours[name] <= 1.5 * max(each[name] for each in others) + 1e-4 for name in ours)
    return {
        "ok": ok,
        "kernels": ours,
        "plain": others[0],
        "rounded_otherwise": others[1:],
        "losses_float32": exact[0],
        "losses_plain": plain[0][0],
        "losses_kernels": fused[0],
    }


def resume(device: str) -> Found:
    """A run stopped after three of six steps and gone on with, beside an undisturbed one."""
    config = small_config(device, steps=6)

    def weights(trainer: Trainer[Any, Any]) -> Tensor:
        return torch.cat([weight.detach().flatten().cpu() for weight in trainer.task.net.parameters()])

    with tempfile.TemporaryDirectory() as place:
        straight = [synthetic(Path(place) / str(i), config, device) for i in range(2)]
        for trainer in straight:
            trainer.run()
        first = synthetic(Path(place) / "stopped", config, device)
        batches = iter(first.task.batches(first.part_size, 0, 100))
        for _ in range(3):
            first._one_step(batches, None, [])
        first._settle(None)
        from training.engine.checkpoints import checkpoint_path, save_checkpoint

        save_checkpoint(checkpoint_path(first.folder / "checkpoints", 3), first.state())
        second = synthetic(first.folder, config, device)
        second.resume()
        second.run()
    twice, gone_on = (distance(weights(t), weights(straight[0])) for t in (straight[1], second))
    return {"ok": gone_on <= 2 * twice + 1e-7, "two_runs": twice, "stopped_and_gone_on": gone_on}


def graph(device: str) -> Found:
    """Six steps of the small network replayed as a CUDA graph, beside six eager ones."""
    if device == "cpu":
        return {"ok": True, "skipped": "needs CUDA"}
    config = small_config(device, steps=6)
    captured = replace(config, run=replace(config.run, cuda_graph=True))
    with tempfile.TemporaryDirectory() as place:
        trainers = [synthetic(Path(place) / str(i), c, device) for i, c in enumerate((config, captured))]
        for trainer in trainers:
            trainer.run()
    one, two = (trainer.losses for trainer in trainers)
    most = max(abs(a - b) for a, b in zip(one, two, strict=True))
    return {"ok": trainers[1].captured is not None and most < 2e-2, "largest_loss_difference": most}


def sync(device: str) -> Found:
    """Waits of the host for the card in a step, as PyTorch reports them; none is expected."""
    if device == "cpu":
        return {"ok": True, "skipped": "needs CUDA"}
    found: dict[str, int] = {}
    for name in ("lamb", "muon"):
        config = small_config(device, steps=100)
        config = replace(config, optimisation=replace(config.optimisation, optimiser=name))
        trainer = synthetic(Path("/nowhere"), config, device)
        batches = iter(trainer.task.batches(trainer.part_size, 0, 400))
        for _ in range(3):
            trainer._one_step(batches, None, [])
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            trainer._one_step(batches, None, [])
            torch.cuda.set_sync_debug_mode("default")
        for each in seen:
            if "synchroniz" in str(each.message):
                place = f"{name}: {Path(each.filename).name}:{each.lineno}"
                found[place] = found.get(place, 0) + 1
    return {"ok": not found, "waits": found}


# ------------------------------------------------------------ speed


def card(device: str) -> Found:
    """What the card can do: a bfloat16 matrix product and a copy."""
    size = 8192 if device == "cuda" else 256
    a, b = torch.randn(2, size, size, device=device, dtype=torch.bfloat16)
    source = torch.empty(2**28 if device == "cuda" else 2**20, device=device, dtype=torch.float32)
    product, copy = fastest(lambda: a @ b, device), fastest(source.clone, device)
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return {
        "ok": None,
        "device": name,
        "torch": torch.__version__,
        "matrix_product_tflops": 2 * size**3 / product / 1e12,
        "copy_gb_per_second": 2 * source.nbytes / copy / 1e9,
    }


def published(device: str, **change: Any) -> Found:
    """Steps of the published recipe: seconds and memory of a step, TFLOP/s."""
    config = recipe("published")
    if device == "cpu":
        config = replace(
            small_config(device, steps=20), optimisation=replace(config.optimisation, batch_size=1)
        )
    config = replace(
        config,
        optimisation=replace(config.optimisation, **{k: v for k, v in change.items() if k == "compile"}),
        run=replace(config.run, **{k: v for k, v in change.items() if k != "compile"}),
    )
    began = time.monotonic()
    trainer = synthetic(Path("/nowhere"), config, device)
    if change.get("compile"):
        trainer._one_step(iter(trainer.task.batches(trainer.part_size, 0, 40)), None, [])
        wait(device)
    first = time.monotonic() - began
    steps = rehearse(trainer)
    return {
        "ok": None,
        "first_step_seconds": first,
        **asdict(steps),
        "tflops_per_second": flops(trainer, steps),
    }


def published_plain(device: str) -> Found:
    """The same without kernels."""
    with plain_forms():
        return published(device)


def published_recomputed(device: str) -> Found:
    """The same with activations computed again."""
    return published(device, recompute_activations=True)


def published_compiled(device: str) -> Found:
    """The same with compiled blocks; the first step within 60 s."""
    if device == "cpu":
        return {"ok": True, "skipped": "takes minutes on a CPU"}
    found = published(device, compile=True)
    return found | {"ok": found["first_step_seconds"] < 60}


def small(device: str) -> Found:
    """Steps of the small recipe, eager and as a CUDA graph."""
    config = recipe("small") if device == "cuda" else small_config(device, steps=20)
    ways = {"eager": config, "graph": replace(config, run=replace(config.run, cuda_graph=True))}
    return {"ok": None} | {
        name: asdict(rehearse(synthetic(Path("/nowhere"), chosen, device))) for name, chosen in ways.items()
    }


def flops(trainer: Trainer[Any, Any], steps: Any) -> float | None:
    """TFLOP/s of a step: operations of matrix products and convolutions, counted once."""
    from torch.utils.flop_counter import FlopCounterMode

    views = trainer.task.prepare(next(iter(trainer.task.batches(trainer.part_size, 0, trainer.part_size))))
    trainer.captured = None
    with FlopCounterMode(display=False) as counter:
        trainer._work(views, 0)
    return float(counter.get_total_flops()) / steps.step_seconds / 1e12


def fastest(work: Callable[[], object], device: str, repeats: int = 20) -> float:
    """Least seconds of some repeats."""
    times = []
    for _ in range(repeats):
        wait(device)
        began = time.perf_counter()
        work()
        wait(device)
        times.append(time.perf_counter() - began)
    return min(times)


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


# ------------------------------------------------------------ drawn samples


class plain_forms:  # noqa: N801 - a context
    """The network without kernels."""

    def __enter__(self) -> None:
        os.environ[SWITCH] = "0"

    def __exit__(self, *_: object) -> None:
        del os.environ[SWITCH]


def drawn_views(
    size: int, masks: int, crop: tuple[int, int, int], device: torch.device, *, seed: int
) -> Views:
    """Views of blurred noise, and masks that follow from it."""
    torch.manual_seed(seed)
    noise = torch.randn(size, 1, *crop)
    image = functional.avg_pool3d(noise, 5, stride=1, padding=2)
    image = (image - image.mean()) / image.std()
    levels = torch.linspace(-1.0, 1.0, masks).view(1, masks, 1, 1, 1)
    views = Views(
        reference=image,
        target=image.flip(2),
        reference_masks=image > levels,
        target_masks=image.flip(2) > levels,
    )
    return to(views, str(device))


def to(views: Views, device: str) -> Views:
    return Views(**{name: getattr(views, name).to(device) for name in views.__dataclass_fields__})


def outputs(net: Iris, views: Views, precision: str) -> tuple[Tensor, Tensor]:
    """Logits, and the gradients of all weights in one row."""
    device = views.target.device
    net.zero_grad(set_to_none=True)
    with autocast(choose_precision(precision, device), device):  # type: ignore[arg-type]
        logits = net(views.target, views.reference, views.reference_masks)
        loss = in_context_loss(lambda *_: logits, views)  # type: ignore[arg-type]
    loss.total.backward()  # type: ignore[no-untyped-call]
    return logits.detach(), torch.cat([w.grad.flatten() for w in net.parameters() if w.grad is not None])


def small_config(device: str, *, steps: int, precision: Precision = "bfloat16") -> PretrainConfig:
    """The small recipe; on a CPU tinier still."""
    config = recipe("small")
    run = RunConfig(num_workers=0, evaluate_every=0, draw_every=0, log_every=1, checkpoint_every=1000)
    optimisation: OptimisationConfig = replace(config.optimisation, num_steps=steps, precision=precision)
    if device == "cpu":
        # Not 16 nor 32 planes: two of them in bfloat16 are not for oneDNN (training.network.blocks), and the
        # blocks that the kernels join have no way around it on a CPU.
        crop = (48, 16, 16)
        config = replace(
            config,
            model=replace(config.model, channels=(4, 4, 8, 8, 32)),
            data=replace(config.data, crop_voxels=crop, cut_voxels=crop, masks_per_sample=3),
        )
    return replace(config, optimisation=optimisation, run=run)


def synthetic(
    folder: Path, config: PretrainConfig, device: str, *, rounding: int | None = None
) -> Trainer[int, Views]:
    """A trainer of drawn views; with `rounding`, images are changed by a part of a bfloat16 rounding step."""
    where = torch.device(device)
    torch.manual_seed(0)
    net = config.model.make().to(where)
    crop, masks = config.data.crop_zyx, config.data.masks_per_sample
    some = [drawn_views(config.optimisation.batch_size, masks, crop, where, seed=seed) for seed in range(4)]
    if rounding is not None:
        torch.manual_seed(rounding)
        some = [replace(v, target=v.target * (1 + 2e-3 * torch.randn_like(v.target))) for v in some]

    def batches(size: int, first: int, number: int) -> Iterator[int]:
        return iter(range(first // size, (first + number) // size))

    if folder.parent.is_dir() and folder.parent != Path("/"):
        folder.mkdir(exist_ok=True)
    task = Task(net=net, batches=batches, prepare=lambda index: some[index % len(some)], loss=in_context_loss)
    return Trainer(task, folder, optimisation=config.optimisation, run=config.run)


PARTS: dict[str, Callable[[str], Found]] = {
    "kernels": kernels,
    "network": network,
    "ten_steps": ten_steps,
    "resume": resume,
    "graph": graph,
    "sync": sync,
    "card": card,
    "published": published,
    "published_plain": published_plain,
    "published_recomputed": published_recomputed,
    "small": small,
    "published_compiled": published_compiled,
}


if __name__ == "__main__":
    sys.exit(main())
