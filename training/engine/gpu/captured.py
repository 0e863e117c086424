"""Loss and gradients of a step as one CUDA graph: its thousands of kernels are started by one call.

For networks so small that Python starts kernels more slowly than the GPU runs them. All shapes must stay the
same: crop, masks, batch. For views of other shapes (`CapturedStep.takes`) the trainer captures anew.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from training.engine.losses import LossTerms

_WARM_UPS = 3
"""Runs before the capture, in which libraries choose their algorithms (PyTorch's recommendation)."""

Recorder = Callable[[Callable[[], LossTerms]], tuple[Callable[[], None], LossTerms]]
"""Records work; returns a function that repeats it, and its result, which each repetition overwrites."""


@dataclass(kw_only=True)
class CapturedStep:
    """Replays loss and gradients of a network on the views it is given."""

    net: nn.Module
    views: Any
    """A dataclass of tensors, or a tensor; the graph reads its memory."""
    replay: Callable[[], None]
    terms: LossTerms
    """The loss; overwritten by each replay."""
    gradients: list[tuple[nn.Parameter, Tensor]]
    """Gradient of each weight that has one; overwritten by each replay."""

    def takes(self, views: Any) -> bool:
        """Whether these views have the shapes and types of the captured ones."""
        known, given = tensors_of(self.views), tensors_of(views)
        return [(t.shape, t.dtype) for t in known] == [(t.shape, t.dtype) for t in given]

    def run(self, views: Any) -> LossTerms:
        """Return the loss of views; the gradients of the weights are set to those of this loss."""
        for kept, given in zip(tensors_of(self.views), tensors_of(views), strict=True):
            kept.copy_(given)
        self.replay()
        for weight, gradient in self.gradients:
            weight.grad = gradient
        return self.terms


def capture(
    net: nn.Module, views: Any, work: Callable[[Any], LossTerms], recorder: Recorder | None = None
) -> CapturedStep:
    """Capture the loss and the gradients of a network; changes no weight.

    Args:
        net: The network.
        views: Views of a step; their shapes are the only ones that the result takes.
        work: Computes the loss and adds the gradients (`backward`).
        recorder: Records work; by default as a CUDA graph.
    """
    kept = copied(views)

    def once() -> LossTerms:
        net.zero_grad(set_to_none=True)
        return work(kept)

    replay, terms = (recorder or record_graph)(once)
    gradients = [(weight, weight.grad) for weight in net.parameters() if weight.grad is not None]
    return CapturedStep(net=net, views=kept, replay=replay, terms=terms, gradients=gradients)


def record_graph(work: Callable[[], LossTerms]) -> tuple[Callable[[], None], LossTerms]:
    """Record work as a CUDA graph; warm-up and capture run on one side stream."""
    here, side = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(here)
    with torch.cuda.stream(side):
        for _ in range(_WARM_UPS):
            work()
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        terms = work()
    here.wait_stream(side)
    # Nothing was computed while the work was recorded: the first replay is the caller's first step.
    return graph.replay, terms


def tensors_of(views: Any) -> list[Tensor]:
    """Return the tensors of a dataclass, or the tensor itself."""
    if isinstance(views, Tensor):
        return [views]
    values = [getattr(views, field.name) for field in fields(views)]
    return [value for value in values if isinstance(value, Tensor)]


def copied(views: Any) -> Any:
    """Return views with tensors of their own."""
    if isinstance(views, Tensor):
        return views.clone()
    values = {field.name: getattr(views, field.name) for field in fields(views)}
    return replace(views, **{name: v.clone() for name, v in values.items() if isinstance(v, Tensor)})
