"""A fine-tuned network: Iris that carries its question, so that it needs no reference.

    in context   reference + mask --encode--> tokens --+
    fine-tuned   tokens, trained like weights ---------+--> decode(image) -> a mask each

The tokens of K structures at the three deepest stages, and after them those of the whole image (the all-ones
mask of pretraining), take the place of the buffers `task_prior_0..2` that the published network has for
them: (K + 1, 11, C) each. So a fine-tuned file is an ordinary checkpoint of Iris, which `load_checkpoint`
reads as well.

*Reads* weights.safetensors of a fine-tuning, or one of its run's checkpoints; what the tokens mean is in the
metadata, or in the checkpoint's "config". *Writes* nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from training.data import Size
from training.engine import read_checkpoint
from training.errors import CheckpointError, ConfigError
from training.inference.prompts import InferenceConfig, Prompt, Structure
from training.network import WEIGHTS, Iris, Priors, WhichWeights, load_checkpoint

FINETUNED = "mass3d_finetuned"
"""Key of the table in a safetensors file's metadata, and in a checkpoint's "config"."""

NUM_STAGES = 3


class PromptedIris(nn.Module):
    """Iris whose tokens are weights: an image in, the masks of its structures out.

    The network is called `module`, so that its keys in a run's checkpoint are those of a wrapped Iris.
    """

    def __init__(self, net: Iris, tokens: Priors) -> None:
        """Take over a network and give it tokens.

        Args:
            net: Loses what it remembered of other tasks.
            tokens: Deepest stage first, (K + 1, 11, C) each; the last row is the whole image's.
        """
        super().__init__()
        for name, rows in zip(_token_names(), tokens, strict=True):
            delattr(net, name)
            net.register_parameter(name, nn.Parameter(rows.detach().float().clone()))
        net.num_tasks = len(tokens[0])
        self.module = net

    def forward(self, image: Tensor, structures: Tensor) -> Tensor:
        """Draw structures in an image.

        Args:
            image: (B, 1, Z, Y, X), z-scores. Axes are multiples of 16.
            structures: int64 (B, k), places in the list of structures.

        Returns:
            Logits (B, k, Z, Y, X), float32.
        """
        whole = structures.new_full((len(structures), 1), self.module.num_tasks - 1)
        rows = torch.cat([structures, whole], dim=1)
        first, second, third = (stage[rows] for stage in tokens_of(self.module))
        logits = self.module.decode(self.module.encode(image), (first, second, third))
        return logits[:, : structures.shape[1]]


@dataclass(frozen=True, kw_only=True)
class TokenTable:
    """What the tokens of a fine-tuned network mean, and what images they are for."""

    label: str
    """Label map of the store that they were trained on."""
    structures: tuple[Structure, ...]
    """In the order of the tokens; one label value each."""
    spacing_mm: float
    """Of the images."""
    ingest: Mapping[str, Any]
    """Settings that the scans were prepared with, by name; empty where the store does not tell."""
    modalities: tuple[str, ...]
    """Of the scans trained on, as "ct", "mr"."""
    window_voxels: Size
    """Size of the crops trained on: the window to segment with."""
    masks_at_once: int
    """Most structures that were drawn together."""

    @property
    def values(self) -> tuple[int, ...]:
        """The label value of each structure."""
        return tuple(structure.values[0] for structure in self.structures)

    def to_json(self) -> dict[str, Any]:
        """Return the table as plain values."""
        return {
            "label": self.label,
            "structures": [{"value": part.values[0], "name": part.name} for part in self.structures],
            "spacing_mm": self.spacing_mm,
            "ingest": dict(self.ingest),
            "modalities": list(self.modalities),
            "window_voxels": list(self.window_voxels),
            "masks_at_once": self.masks_at_once,
        }

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> TokenTable:
        """Return the table in plain values; KeyError, TypeError or ValueError where it is none."""
        z, y, x = (int(size) for size in table["window_voxels"])
        return cls(
            label=str(table["label"]),
            structures=tuple(
                Structure(name=str(part["name"]), values=(int(part["value"]),))
                for part in table["structures"]
            ),
            spacing_mm=float(table["spacing_mm"]),
            ingest=dict(table["ingest"]),
            modalities=tuple(str(name) for name in table["modalities"]),
            window_voxels=(z, y, x),
            masks_at_once=int(table["masks_at_once"]),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Finetuned:
    """A fine-tuned network, ready for use."""

    net: Iris
    """On the CPU, float32, in evaluation mode; tokens are among its buffers."""
    table: TokenTable
    """What they mean."""

    @property
    def structures(self) -> tuple[Structure, ...]:
        """What it segments, in the order of `predict_labels`."""
        return self.table.structures

    @property
    def values(self) -> tuple[int, ...]:
        """The label value of each structure."""
        return self.table.values

    @property
    def label(self) -> str:
        """Label map that it was trained on."""
        return self.table.label

    @property
    def spacing_mm(self) -> float:
        """Of the images that it takes."""
        return self.table.spacing_mm

    @property
    def ingest(self) -> Mapping[str, Any]:
        """Settings that its scans were prepared with."""
        return self.table.ingest

    @property
    def modalities(self) -> tuple[str, ...]:
        """Of the scans that it was trained on."""
        return self.table.modalities

    @property
    def window_voxels(self) -> Size:
        """The window that it was trained with."""
        return self.table.window_voxels

    @property
    def masks_at_once(self) -> int:
        """Most structures that were drawn together."""
        return self.table.masks_at_once

    def inference(self, base: InferenceConfig | None = None) -> InferenceConfig:
        """Return inference settings with the window and the number of masks of the training."""
        return token_inference(base or InferenceConfig(), self.table)

    def prompt(self, config: InferenceConfig, device: torch.device | str = "cpu") -> Prompt:
        """Return the tokens as what `predict`, `predict_labels` and `predict_probabilities` take.

        Args:
            config: As they are given; see `inference`.
            device: The network's.

        Raises:
            ConfigError: Mirrored copies are asked for.
        """
        return token_prompt(self.net, self.structures, config, device)


def load_finetuned(path: Path | str, *, weights: WhichWeights = "ema") -> Finetuned:
    """Return a fine-tuned network and what it segments.

    Args:
        path: weights.safetensors of a fine-tuning's run, one of its checkpoints (best.pt, step-N.pt), or the
            folder of a run that is complete.
        weights: Which of a checkpoint's two sets; exported weights have one.

    Raises:
        CheckpointError: No such file, no network, or one that was not fine-tuned.
    """
    path = weights_file(path)
    net = load_checkpoint(path, weights=weights)
    plain = _table_in_safetensors(path) if path.suffix == ".safetensors" else _table_in_checkpoint(path)
    if plain is None:
        raise CheckpointError(
            f"{path}: a network that was not fine-tuned; show it a reference with its mask, or fine-tune it "
            "(`mass finetune`)"
        )
    try:
        table = TokenTable.from_json(plain)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its table of structures is damaged ({error!r})") from error
    if net.num_tasks != len(table.structures) + 1:
        raise CheckpointError(
            f"{path}: tokens of {net.num_tasks - 1} structures, but names of {len(table.structures)}; the "
            "file is damaged"
        )
    return Finetuned(net=net, table=table)


def weights_file(path: Path | str) -> Path:
    """Return the file that is meant: of a run's folder its exported weights."""
    path = Path(path)
    if path.is_dir():
        exported = path / WEIGHTS
        if not exported.is_file():
            raise CheckpointError(f"{path}: no {WEIGHTS} in it. Name a complete run, or a checkpoint")
        return exported
    return path


def tokens_of(net: Iris) -> Priors:
    """Return the tokens that a fine-tuned network carries, deepest stage first: (K + 1, 11, C) each."""
    first, second, third = (getattr(net, name) for name in _token_names())
    return first, second, third


def token_prompt(
    net: Iris, structures: tuple[Structure, ...], config: InferenceConfig, device: torch.device | str = "cpu"
) -> Prompt:
    """Return a network's tokens as a prompt.

    Args:
        net: Of `PromptedIris`, or loaded.
        structures: What the tokens mean.
        config: Of the inference.
        device: Where the prompt is needed.

    Raises:
        ConfigError: Mirrored copies are asked for: tokens of the left side are not those of the right.
    """
    if config.mirror:
        raise ConfigError(
            "mirror: the tokens of a fine-tuned network were trained on images that are not mirrored. Leave "
            "mirroring out"
        )
    tokens = tuple(stage.detach().to(device) for stage in tokens_of(net))
    if not config.whole_mask:
        tokens = tuple(stage[:-1] for stage in tokens)
    return Prompt(structures=structures, missing=(), priors=(tokens,))


def token_inference(base: InferenceConfig, table: TokenTable) -> InferenceConfig:
    """Return inference settings as a network was trained: its window, its number of masks, all ones too."""
    return replace(
        base, window_voxels=table.window_voxels, masks_at_once=table.masks_at_once, whole_mask=True
    )


def _token_names() -> tuple[str, ...]:
    return tuple(f"task_prior_{stage}" for stage in range(NUM_STAGES))


def _table_in_safetensors(path: Path) -> Mapping[str, Any] | None:
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(FINETUNED)
        table: Mapping[str, Any] | None = json.loads(text) if text else None
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: its metadata cannot be read: {error}") from error
    return table


def _table_in_checkpoint(path: Path) -> Mapping[str, Any] | None:
    try:
        config = read_checkpoint(path).get("config", {})
    except CheckpointError:  # the published file is a checkpoint of Iris, but none of our runs'
        return None
    table: Mapping[str, Any] | None = config.get(FINETUNED) if isinstance(config, dict) else None
    return table
