"""Time and peak memory of a training step by part, with the direct and the fast task encoding.

    python benchmarks/step.py                    # published width, 13 masks, 64^3, one thread: some minutes
    python benchmarks/step.py --small            # the small network, 2 samples x 6 masks, 32x48x32: a minute
    python benchmarks/step.py --device cuda --crop 128 128 128 --samples 4 --autocast    # a published step

Times are the least of some repeats, all parts and both forms in turn within one process, so that their ratios
hold on a shared machine. Memory is measured apart, a process each: what forward and backward of the part need
beyond its inputs and weights, their gradients included (on a CPU the peak of the process's resident memory,
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

import training.encoder
from training.iris import PUBLISHED_CHANNELS, Iris, Widths

PARTS = ("encoder", "task encoding, direct", "task encoding, fast", "decoder", "classifier")
WHOLE = ("whole step, direct", "whole step, fast")
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
    autocast: bool


def main() -> None:
    options = parse()
    if options.worker:
        case = Case(**json.loads(options.worker))
        print(json.dumps(peak_bytes(case, options.part)))
        return
    case = Case(
        channels=SMALL_CHANNELS if options.small else PUBLISHED_CHANNELS,
        samples=options.samples or (2 if options.small else 1),
        masks=options.masks or (6 if options.small else 13),
        crop=tuple(options.crop or ((32, 48, 32) if options.small else (64, 64, 64))),
        device=options.device,
        threads=options.threads,
        autocast=options.autocast,
    )
    torch.set_num_threads(case.threads)
    print(f"{case}\ntorch {torch.__version__}", flush=True)
    seconds = step_seconds(case, options.repeats)
    peaks = {part: peak_in_own_process(case, part) for part in (*PARTS, *WHOLE)}
    show(seconds, peaks)
    choices = choice_seconds(case, options.repeats) if case.device == "cpu" else []
    numbers = {"case": asdict(case), "torch": torch.__version__, "seconds": seconds, "peak_bytes": peaks}
    numbers |= {"ratios": ratios(seconds, peaks), "choices": choices}
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
    parser.add_argument("--autocast", action="store_true", help="bfloat16")
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
            case [_, form]:
                parts[name] = whole, (form,)
    return parts


def run(case: Case, part: Part) -> tuple[float, float]:
    """Seconds forward and backward."""
    forward, inputs = part
    wait(case)
    began = time.perf_counter()
    with torch.autocast(torch.device(case.device).type, torch.bfloat16, enabled=case.autocast):
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


def step_seconds(case: Case, repeats: int) -> dict[str, tuple[float, float]]:
    """Least seconds, forward and backward, of every part and of the sums that make a step."""
    parts = parts_of(case, PARTS)
    for name in PARTS:
        if "direct" not in name:  # slow enough that its first run tells
            run(case, parts[name])
    times = [{name: run(case, part) for name, part in parts.items()} for _ in range(repeats)]
    least = {name: min((time[name] for time in times), key=sum) for name in PARTS}
    for name, form in zip(WHOLE, ("direct", "fast"), strict=True):
        chosen = [least[part] for part in PARTS if ", " not in part or part.endswith(form)]
        least[name] = sum(f for f, _ in chosen), sum(b for _, b in chosen)
    return least


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
        found[f"{what}: share of the memory"] = peaks[fast] / peaks[direct]
    return found


def show(seconds: dict[str, tuple[float, float]], peaks: dict[str, int]) -> None:
    """Print the table of parts."""
    print("\n| part | forward s | backward s | both s | peak MB |\n|---|---|---|---|---|")
    for name, (forward, backward) in seconds.items():
        both = forward + backward
        print(f"| {name} | {forward:.3f} | {backward:.3f} | {both:.3f} | {peaks[name] / 1e6:.0f} |")
    print("\nwhole step: the sum of its parts in time (the encoder runs twice), one real step in memory")
    for name, ratio in ratios(seconds, peaks).items():
        print(f"{name} {ratio:.2f}", flush=True)


def choice_seconds(case: Case, repeats: int) -> list[dict[str, Any]]:
    """Seconds of the small network's step for each memory layout, attention and type; prints the table."""
    small = replace(case, channels=SMALL_CHANNELS, samples=2, masks=6, crop=(32, 48, 32))
    part = parts_of(small, WHOLE[1:])[WHOLE[1]]
    chosen = training.encoder.in_best_layout
    layouts = {"channels first": torch.contiguous_format, "channels last": torch.channels_last_3d}
    rows = []
    print("\nThe small network, 2 samples x 6 masks of 32x48x32:")
    print("\n| type | layout | attention | step s |\n|---|---|---|---|")
    for autocast in (False, True):
        typed = replace(small, autocast=autocast)
        for layout, memory_format in layouts.items():
            training.encoder.in_best_layout = lambda x, m=memory_format: x.contiguous(memory_format=m)
            for attention in ("SDPA", "math"):
                only_math = sdpa_kernel(SDPBackend.MATH) if attention == "math" else contextlib.nullcontext()
                with only_math:
                    seconds = min(sum(run(typed, part)) for _ in range(repeats + 1))
                kind = "bfloat16" if autocast else "float32"
                rows.append({"type": kind, "layout": layout, "attention": attention, "seconds": seconds})
                print(f"| {kind} | {layout} | {attention} | {seconds:.3f} |", flush=True)
    training.encoder.in_best_layout = chosen
    return rows


if __name__ == "__main__":
    main()
