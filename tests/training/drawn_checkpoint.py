"""Checkpoints with random weights, exported as a pretraining does."""

from __future__ import annotations

from pathlib import Path

import torch

from training.network.iris import Iris
from training.network.preparation import TrainedOn
from training.network.weights import ModelCard, export_weights
from training.pretraining.config import ModelConfig


def drawn_net(seed: int = 0, channels: tuple[int, int, int, int, int] = (8, 8, 16, 16, 32)) -> Iris:
    """Return a small network with random weights."""
    torch.manual_seed(seed)
    return ModelConfig(channels=channels, num_tasks=1, position_std=0.02).make()


def export(net: Iris, path: Path, trained_on: TrainedOn | None = None) -> Path:
    """Write a network's weights with a card of what it was trained on; returns the path."""
    card = ModelCard(
        title="t",
        recipe="",
        store_digest="",
        num_scans=0,
        num_steps=0,
        weights="ema",
        trained_on=trained_on or TrainedOn(),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    export_weights(net, path, card)
    return path
