"""Time and peak memory of a training step by part and precision, with the direct and the fast task encoding.

    python benchmarks/step.py                    # published width, 13 masks, 64^3, one thread: some minutes
    python benchmarks/step.py --small            # a step of `--recipe small`: 2 samples x 10 masks, 32x48x32
    python benchmarks/step.py --device cuda --crop 128 128 128 --samples 4      # a published step
    ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 python benchmarks/step.py --small     # an older CPU

A column for each precision: both where the device has bfloat16 instructions, else float32 alone; what is
named (--precisions bfloat16) is measured whatever it takes. The optimiser's part is Muon with clipping and
averaged weights; "a step" is the fast form and the optimiser, without data loading and augmentation.

Times are the least of some repeats, all parts, forms and precisions in turn within one process, so that
their ratios hold on a shared machine. Memory is measured apart, a process each: what forward and backward of
the part need beyond its inputs and weights, gradients included (on a CPU the peak of resident memory,
with freed memory given back; on a GPU what PyTorch allocated). The last table shows why the network chooses
its memory layout and attention as it does.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import training.network.encoder
from training.engine.losses import segmentation_loss
from training.engine.optimisation import (
    OptimisationConfig,
    clip_gradients,
    gradient_norm,
    make_optimiser,
    update_average,
)
from training.engine.precision import ChosenPrecision, autocast, bfloat16_support
from training.network.iris import PUBLISHED_CHANNELS, Iris, Widths

PARTS = ("encoder", "task encoding, direct", "task encoding, fast", "decoder", "classifier", "loss")
WHOLE = ("whole step, direct", "whole step, fast")
OPTIMISER, STEP = "optimiser", "a step"
PRECISIONS = ("float32", "bfloat16")
SMALL_CHANNELS: Widths = (8, 16, 32, 64, 96)

Part = tuple[Callable[..., Any], tuple[Any, ...]]
"""What runs forward, and on what."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is measured."""

    channels: Widths
    samples: int
    masks: int
    crop: tuple[int, int, int]
    device: str
    threads: int
    precision: str

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """The context in which the network computes."""
        chosen = ChosenPrecision(name=self.precision, why="measured")  # type: ignore[arg-type]
        return autocast(chosen, torch.device(self.device))


def main() -> None:
    options = parse()
    if options.worker:
        case = Case(**json.loads(options.worker))
        print(json.dumps(peak_bytes(case, options.part)))
        return
    case = Case(
        channels=SMALL_CHANNELS if options.small else PUBLISHED_CHANNELS,
        samples=options.samples or (2 if options.small else 1),
        masks=options.masks or (10 if options.small else 13),
        crop=tuple(options.crop or ((32, 48, 32) if options.small else (64, 64, 64))),
        device=options.device,
        threads=options.threads,
        precision="float32",
    )
    torch.set_num_threads(case.threads)
    support = bfloat16_support(torch.device(case.device))
    names = options.precisions or (PRECISIONS if support.has_bfloat16 else PRECISIONS[:1])
    print(f"{case}\ntorch {torch.__version__}; {support.why}", flush=True)
    seconds = step_seconds([replace(case, precision=name) for name in names], options.repeats)
    peaks = {
        name: {
            part: peak_in_own_process(replace(case, precision=name), part)
            for part in (() if options.no_memory else (*PARTS, *WHOLE))
        }
        for name in names
    }
    show(seconds, peaks)
    choices = []
    if case.device == "cpu" and not options.no_choices:
        choices = choice_seconds(case, names, options.repeats)
    numbers = {"case": asdict(case), "torch": torch.__version__, "cpu": support.why, "seconds": seconds}
    numbers |= {
        "peak_bytes": peaks,
        "ratios": {name: ratios(seconds[name], peaks[name]) for name in names},
        "choices": choices,
    }
    if options.json:
        options.json.write_text(json.dumps(numbers, indent=2) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="the small network and crop")
    parser.add_argument("--samples", type=int, help="samples a step")
    parser.add_argument("--masks", type=int, help="masks a sample")
    parser.add_argument("--crop", type=int, nargs=3, help="voxels along z, y and x")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--precisions", nargs="+", choices=PRECISIONS, help="by default those that the device has"
    )
    parser.add_argument("--no-memory", action="store_true", help="measure time only")
    parser.add_argument("--no-choices", action="store_true", help="leave out the last table")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    return parser.parse_args()


def parts_of(case: Case, names: tuple[str, ...]) -> dict[str, Part]:
    """Every part named, with inputs of its own that gradients flow to as in a step."""
    torch.manual_seed(0)
    net = Iris(case.channels, 1, position_std=0.02).to(case.device)
    target, reference = torch.randn(2, case.samples, 1, *case.crop, device=case.device)
    masks = torch.rand(case.samples, case.masks, *case.crop, device=case.device) < 0.2
    widths = case.channels[::-1]
    grids = [tuple(side // scale for side in case.crop) for scale in (16, 8, 4, 2, 1)]
    parts: dict[str, Part] = {}

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, device=case.device).requires_grad_()

    def features(count: int) -> tuple[Tensor, ...]:
        return tuple(leaf(case.samples, w, *g) for w, g in zip(widths[:count], grids[:count], strict=True))

    def encode_tasks(form: str, *inputs: Any) -> Any:
        net.task_encoding = form  # type: ignore[assignment]
        *encoded, full = inputs
        # Of the two finest features, task encoding only asks the size.
        return net.encode_tasks((*encoded, full, full), masks)  # type: ignore[arg-type]

    def whole(form: str) -> Any:
        net.task_encoding = form  # type: ignore[assignment]
        return net(target, reference, masks)

    for name in names:
        match name.split(", "):
            case ["encoder"]:
                parts[name] = lambda: (net.encode(target), net.encode(reference)), ()
            case ["task encoding", form]:
                parts[name] = encode_tasks, (form, *features(3), masks[:, :1])
            case ["decoder"]:
                priors = tuple(leaf(case.samples, case.masks, 11, width) for width in widths[:3])
                parts[name] = net.decoder, (features(5), priors)
            case ["classifier"]:
                tokens = leaf(case.samples, case.masks, sum(widths[:3]))
                parts[name] = net.out, (leaf(case.samples, widths[4], *case.crop), tokens)
            case ["loss"]:
                logits = leaf(*masks.shape)
                parts[name] = (lambda logits: segmentation_loss(logits, masks).total), (logits,)
            case [_, form]:
                parts[name] = whole, (form,)
    return parts


def run(case: Case, part: Part) -> tuple[float, float]:
    """Seconds forward and backward."""
    forward, inputs = part
    wait(case)
    began = time.perf_counter()
    with case.autocast():
        outputs = tensors(forward(*inputs))
    wait(case)
    middle = time.perf_counter()
    torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])
    wait(case)
    return middle - began, time.perf_counter() - middle


def tensors(outputs: Any) -> list[Tensor]:
    """All tensors with a gradient in what a part returned."""
    if isinstance(outputs, Tensor):
        return [outputs] if outputs.requires_grad else []
    return [tensor for output in outputs for tensor in tensors(output)]


def wait(case: Case) -> None:
    """Let a GPU finish."""
    if case.device != "cpu":
        torch.cuda.synchronize()


def step_seconds(cases: list[Case], repeats: int) -> dict[str, dict[str, tuple[float, float]]]:
    """Least seconds, forward and backward, of every part and of the sums that make a step, by precision."""
    parts = {case.precision: parts_of(case, PARTS) for case in cases}
    optimisers = {case.precision: optimiser_of(case) for case in cases}
    found: dict[str, dict[str, list[tuple[float, float]]]] = {case.precision: {} for case in cases}
    for repeat in range(repeats + 1):
        for case in cases:
            times = found[case.precision]
            for name, part in parts[case.precision].items():
                if repeat or "direct" not in name:  # slow enough that its first run tells
                    times.setdefault(name, []).append(run(case, part))
            times.setdefault(OPTIMISER, []).append((timed(case, optimisers[case.precision]), 0.0))
    return {
        name: with_sums({part: min(each, key=sum) for part, each in times.items()})
        for name, times in found.items()
    }


def with_sums(least: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """Add the whole steps: forward and backward of their parts, and the fast one with the optimiser."""
    for name, form in zip(WHOLE, ("direct", "fast"), strict=True):
        chosen = [least[part] for part in PARTS if ", " not in part or part.endswith(form)]
        least[name] = sum(f for f, _ in chosen), sum(b for _, b in chosen)
    forward, backward = least[WHOLE[1]]
    least[STEP] = forward, backward + least[OPTIMISER][0]
    return least


def optimiser_of(case: Case) -> Callable[[], None]:
    """What changes the weights in a step: Muon in the case's precision, clipping, the averaged weights."""
    torch.manual_seed(0)
    net, average = (Iris(case.channels, 1, position_std=0.02).to(case.device) for _ in range(2))
    for weight in net.parameters():
        weight.grad = torch.randn_like(weight)
    optimiser = make_optimiser(
        net, OptimisationConfig(optimiser="muon"), bfloat16=case.precision == "bfloat16"
    )

    def step() -> None:
        clip_gradients(net, gradient_norm(net), 1.0)
        optimiser.step()
        update_average(average, net, 0.99)

    return step


def timed(case: Case, work: Callable[[], None]) -> float:
    """Seconds that it takes."""
    wait(case)
    began = time.perf_counter()
    work()
    wait(case)
    return time.perf_counter() - began


def peak_in_own_process(case: Case, part: str) -> int:
    """Peak bytes of a part, measured where nothing else ran."""
    command = [sys.executable, __file__, "--worker", json.dumps(asdict(case)), "--part", part]
    # glibc would keep freed blocks of up to 32 MB and call them resident.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return int(json.loads(done.stdout.splitlines()[-1]))


def peak_bytes(case: Case, name: str) -> int:
    """Most bytes that one forward and backward of a part held beyond what was there before."""
    torch.set_num_threads(case.threads)
    part = parts_of(case, (name,))[name]
    if case.device != "cpu":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run(case, part)
        return torch.cuda.max_memory_allocated() - before
    warm = replace(case, channels=(2, 2, 2, 2, 32), crop=(16, 16, 16))
    run(warm, parts_of(warm, WHOLE[1:])[WHOLE[1]])  # what PyTorch sets up once is not the part's
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts over
    before = resident_bytes("VmRSS")
    run(case, part)
    return resident_bytes("VmHWM") - before


def resident_bytes(name: str) -> int:
    """A line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))


def ratios(seconds: dict[str, tuple[float, float]], peaks: dict[str, int]) -> dict[str, float]:
    """Direct by fast in time, fast by direct in memory."""
    found = {}
    for what in ("task encoding", "whole step"):
        direct, fast = f"{what}, direct", f"{what}, fast"
        found[f"{what}: times faster"] = sum(seconds[direct]) / sum(seconds[fast])
        if peaks:
            found[f"{what}: share of the memory"] = peaks[fast] / peaks[direct]
    return found


def show(seconds: dict[str, dict[str, tuple[float, float]]], peaks: dict[str, dict[str, int]]) -> None:
    """Print the table of parts: forward + backward = both, and peak memory, for each precision."""
    print("\n| part | " + " | ".join(f"{name} s | peak MB" for name in seconds) + " |")
    print("|---|" + "--:|" * 2 * len(seconds))
    for part in next(iter(seconds.values())):
        cells = []
        for name, times in seconds.items():
            forward, backward = times[part]
            both = f"{forward:.3f} + {backward:.3f} = {forward + backward:.3f}"
            cells += [both, f"{peaks[name][part] / 1e6:.0f}" if part in peaks[name] else ""]
        print(f"| {part} | " + " | ".join(cells) + " |")
    print("\nwhole step: the sum of its parts in time (the encoder runs twice), one real step in memory")
    for name, times in seconds.items():
        for what, ratio in ratios(times, peaks[name]).items():
            print(f"{name}: {what} {ratio:.2f}", flush=True)


def choice_seconds(case: Case, names: tuple[str, ...], repeats: int) -> list[dict[str, Any]]:
    """Seconds of the small network's step for each memory layout, attention and type; prints the table."""
    small = replace(case, channels=SMALL_CHANNELS, samples=2, masks=10, crop=(32, 48, 32))
    part = parts_of(small, WHOLE[1:])[WHOLE[1]]
    chosen = training.network.encoder.in_best_layout
    layouts = {"channels first": torch.contiguous_format, "channels last": torch.channels_last_3d}
    rows = []
    print("\nThe small network, 2 samples x 10 masks of 32x48x32, forward and backward:")
    print("\n| type | layout | attention | step s |\n|---|---|---|---|")
    for name in names:
        typed = replace(small, precision=name)
        for layout, memory_format in layouts.items():
            training.network.encoder.in_best_layout = lambda x, m=memory_format: x.contiguous(memory_format=m)
            for attention in ("SDPA", "math"):
                only_math = sdpa_kernel(SDPBackend.MATH) if attention == "math" else contextlib.nullcontext()
                with only_math:
                    seconds = min(sum(run(typed, part)) for _ in range(repeats + 1))
                rows.append({"type": name, "layout": layout, "attention": attention, "seconds": seconds})
                print(f"| {name} | {layout} | {attention} | {seconds:.3f} |", flush=True)
    training.network.encoder.in_best_layout = chosen
    return rows


if __name__ == "__main__":
    main()
