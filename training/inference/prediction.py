"""From a prompt and an image to the probability of each structure: arrays in, arrays out.

    image --sliding window, Gaussian weights, or the whole in one window--> probabilities, K at a time
          the whole in one window --boxes of structures--> fine windows, for fine-tuned networks

Reads:  images float32 (z, y, x) z-scores, of the spacing of the prompt's references.
Writes: probabilities float32 (K, z, y, x), or labels uint16 (z, y, x): 1 + index of the structure, 0 = none.
Bounds: beyond the faces of a scan a window holds its lowest value, as crops do in training. Memory holds one
        batch's features and the accumulators, at most `max_accumulator_bytes` of them; what exceeds that
        takes further passes over the image. On a CUDA card windows are batched, and added up there. Nothing
        is random; the network is not changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.data import (
    ScanView,
    Size,
    box_of_mask,
    fine_views,
    fit_window,
    from_window,
    take_image,
    to_window,
    visible_box,
    window_boxes,
    window_weights,
    windows_at_once,
)
from training.engine import autocast, choose_precision
from training.inference.prompts import (
    Flip,
    InContextNet,
    InferenceConfig,
    Progress,
    Prompt,
    size_of,
    to_batch,
)
from training.inference.window_sums import WindowSums, accumulator_bytes

_MIN_SEEN = 0.1
"""If the largest probability of a structure in the whole scan's window is lower, it gets no fine window."""


def predict_probabilities(
    net: InContextNet,
    image: NDArray[np.float32],
    prompt: Prompt,
    config: InferenceConfig,
    *,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """Return the probability of each of the prompt's structures, (K, z, y, x); independent of each other.

    Args:
        net: The network, on `device`, in evaluation mode.
        image: (z, y, x) z-scores.
        prompt: From `encode_references` with the same config.
        config: Windows, flips and precision.
        device: Where to compute.
        progress: Called after each batch of windows.
    """
    result = np.empty((len(prompt.structures), *image.shape), np.float32)
    for _, part, probabilities in predict(net, image, [prompt], config, device=device, progress=progress):
        result[part] = probabilities
    return result


def predict_labels(
    net: InContextNet,
    image: NDArray[np.float32],
    prompt: Prompt,
    config: InferenceConfig,
    *,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> NDArray[np.uint16]:
    """Return the most probable structure of each voxel: 1 + its index in the prompt, 0 below the threshold.

    Arguments as for `predict_probabilities`. Of the probabilities only the largest is kept.
    """
    labels = np.zeros(image.shape, np.uint16)
    best = np.full(image.shape, config.threshold, np.float32)
    for _, part, probabilities in predict(net, image, [prompt], config, device=device, progress=progress):
        for place, probability in enumerate(probabilities, start=part.start + 1):
            # ">=" for the first, so that a voxel at the threshold itself belongs to it.
            better = np.where(labels == 0, probability >= best, probability > best)
            labels[better] = place
            best[better] = probability[better]
    return labels


@torch.inference_mode()
def predict(
    net: InContextNet,
    image: NDArray[np.float32],
    prompts: Sequence[Prompt],
    config: InferenceConfig,
    *,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Iterator[tuple[int, slice, NDArray[np.float32]]]:
    """Predict the structures of several prompts in one image; a pass encodes each window once for all.

    Arguments as for `predict_probabilities`.

    Yields:
        The prompt's index, some of its structures, and their probabilities (k, z, y, x).
    """
    shape, device = size_of(image.shape), torch.device(device)
    if config.whole_scans:
        yield from _predict_whole(net, image, prompts, config, device, progress)
        return
    window = fit_window(shape, config.window_voxels)
    boxes = window_boxes(shape, window, config.overlap_fraction)
    jobs = _jobs(prompts, config, image.size, device)
    at_once = windows_at_once(config.windows_at_once, window, on_card=device.type == "cuda")
    done, total = 0, len(jobs) * len(boxes)
    for batch in jobs:
        sums = WindowSums([part.stop - part.start for _, part in batch], shape, window, device)
        first = 0
        while first < len(boxes):
            some = boxes[first : first + at_once]
            windows = np.stack([take_image(image, box) for box in some])
            try:
                found = _window_probabilities(net, windows, prompts, batch, config, device)
            except torch.OutOfMemoryError:
                if len(some) == 1:
                    raise
                at_once = len(some) // 2
                continue
            sums.add(some, found)
            first += len(some)
            done += len(some)
            if progress is not None:
                progress(done, total)
        for job, (number, part) in enumerate(batch):
            yield number, part, sums.take(job)


def _predict_whole(
    net: InContextNet,
    image: NDArray[np.float32],
    prompts: Sequence[Prompt],
    config: InferenceConfig,
    device: torch.device,
    progress: Progress | None,
) -> Iterator[tuple[int, slice, NDArray[np.float32]]]:
    """Do the same as `predict`, for the whole image in one window and then its structures in fine windows."""
    shape, window = size_of(image.shape), config.window_voxels
    shown = to_window(image, window)[None]
    jobs = _jobs(prompts, config, image.size, device)
    coarse: dict[int, list[tuple[slice, NDArray[np.float32]]]] = {}
    for done, batch in enumerate(jobs, start=1):
        found = _window_probabilities(net, shown, prompts, batch, config, device)
        if progress is not None:
            progress(done, len(jobs))
        for (number, part), probabilities in zip(batch, found, strict=True):
            coarse.setdefault(number, []).append((part, probabilities[0].cpu().numpy()))
    views_of = {
        number: _fine_views([values for _, part in parts for values in part], shape, config)
        for number, parts in coarse.items()
    }
    done = len(jobs)
    total = done + sum(len(views_of[number]) * len(parts) for number, parts in coarse.items())
    at_once = windows_at_once(config.windows_at_once, window, on_card=device.type == "cuda")
    for number, parts in coarse.items():
        views = views_of[number]
        windows = [to_window(image, window, view) for view in views]
        for part, values in parts:
            result = np.stack([from_window(value, shape) for value in values])
            fine: list[NDArray[np.float32]] = []
            for first in range(0, len(windows), at_once):
                some = np.stack(windows[first : first + at_once])
                (drawn,) = _window_probabilities(net, some, prompts, [(number, part)], config, device)
                fine += list(drawn.cpu().numpy())
                done += len(some)
                if progress is not None:
                    progress(done, total)
            _refine(result, views, fine)
            yield number, part, result


def _fine_views(
    seen: Sequence[NDArray[np.float32]], shape: Size, config: InferenceConfig
) -> tuple[ScanView, ...]:
    """Return the fine views of structures.

    Args:
        seen: Probabilities of each structure in the window of the whole scan, (z, y, x).
        shape: Voxels of the scan.
        config: Window and largest number of views.
    """
    boxes = []
    for values in seen if config.fine_windows else ():
        least = min(config.threshold, float(values.max()) / 2)
        box = box_of_mask(values >= least) if least >= _MIN_SEEN / 2 else None
        if box is not None:
            edges = [
                slice(part.start * length // side, -(-part.stop * length // side))
                for part, length, side in zip(box, shape, values.shape, strict=True)
            ]
            boxes.append((edges[0], edges[1], edges[2]))
    return fine_views(boxes, shape, config.window_voxels, most=config.fine_windows)


def _refine(
    result: NDArray[np.float32], views: Sequence[ScanView], fine: Sequence[NDArray[np.float32]]
) -> None:
    """Average the probabilities in place with those of the fine views, where a view shows them.

    The whole scan and the fine views count alike; where views overlap, their weighted mean counts.

    Args:
        result: (k, z, y, x) of the whole scan's window, on the grid of the scan.
        views: Boxes of the scan.
        fine: Probabilities in the window of each view, (k, z, y, x).
    """
    shape = size_of(result.shape[1:])
    norm = np.zeros(shape, np.float32)
    weights = []
    for view, values in zip(views, fine, strict=True):
        weight = from_window(window_weights(size_of(values.shape[1:])), shape, view)
        weights.append(np.maximum(weight, np.finfo(np.float32).tiny))
        norm[visible_box(view, shape).slices] += weights[-1]
    for volume in result if views else ():
        np.multiply(volume, 0.5, out=volume, where=norm > 0)
    for view, values, weight in zip(views, fine, weights, strict=True):
        inside = visible_box(view, shape).slices
        share = 0.5 * weight / norm[inside]
        for old, new in zip(result, values, strict=True):
            old[inside] += share * from_window(new, shape, view)


def _jobs(
    prompts: Sequence[Prompt], config: InferenceConfig, num_voxels: int, device: torch.device
) -> list[list[tuple[int, slice]]]:
    """Return the jobs of each pass over the image: (prompt, structures that are decoded together)."""
    room = max(1, accumulator_bytes(config.max_accumulator_bytes, device) // (4 * num_voxels))
    together = min(config.masks_at_once, room)
    passes: list[list[tuple[int, slice]]] = []
    free = 0
    for number, prompt in enumerate(prompts):
        for start in range(0, len(prompt.structures), together):
            part = slice(start, min(start + together, len(prompt.structures)))
            if part.stop - part.start > free:
                passes.append([])
                free = room
            passes[-1].append((number, part))
            free -= part.stop - part.start
    return passes


def _window_probabilities(
    net: InContextNet,
    windows: NDArray[np.float32],
    prompts: Sequence[Prompt],
    jobs: Sequence[tuple[int, slice]],
    config: InferenceConfig,
    device: torch.device,
) -> list[Tensor]:
    """Return the probabilities (B, k, z, y, x) of each job in windows (B, z, y, x), averaged over flips.

    A window is encoded once for all jobs. Windows are on the host, probabilities on the device.
    """
    sums: list[Tensor | None] = [None] * len(jobs)
    for flip_number, flip in enumerate(config.flips):
        with autocast(choose_precision(config.precision, device), device):
            features = net.encode(to_batch(windows, flip, device).transpose(0, 1))
            for number, (prompt, part) in enumerate(jobs):
                priors = [
                    _priors_of(prior, part, config).expand(len(windows), -1, -1, -1)
                    for prior in prompts[prompt].priors[flip_number]
                ]
                logits = net.decode(features, tuple(priors))[:, : part.stop - part.start]
                probability = _unflip(torch.sigmoid(logits.float()), flip)
                before = sums[number]
                sums[number] = probability if before is None else before + probability
    return [sum_ / len(config.flips) for sum_ in sums if sum_ is not None]


def _priors_of(prior: Tensor, part: slice, config: InferenceConfig) -> Tensor:
    """Return the priors of some structures, then those of the mask of all ones if the config wants it."""
    return torch.cat([prior[part], prior[-1:]]) if config.whole_mask else prior[part]


def _unflip(volumes: Tensor, flip: Flip) -> Tensor:
    return volumes.flip([axis + 2 for axis in flip]) if flip else volumes
