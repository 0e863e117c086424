"""A fine-tuned network: Iris with learned tokens of each structure, so that no reference image is needed.

    in context   reference + mask --encode--> tokens --+
    fine-tuned   tokens, trained like weights ---------+--> decode(image) -> one mask per structure

The tokens of K structures at the three deepest stages, followed by those of the whole image (the all-ones
mask of pretraining), replace the buffers `task_prior_0..2` of the published network: (K + 1, 11, C) each.
A fine-tuned file is therefore an ordinary checkpoint of Iris, which `load_checkpoint` also reads.

*Reads* weights.safetensors of a fine-tuning, or a checkpoint of its run; the meaning of the tokens is in the
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
from training.network import Iris, Priors, WhichWeights, load_checkpoint, weights_file

FINETUNED = "mass3d_finetuned"
"""Key of the table in a safetensors file's metadata, and in a checkpoint's "config"."""

NUM_STAGES = 3


class PromptedIris(nn.Module):
    """Iris whose tokens are trainable weights: maps an image to the masks of its structures.

    The network is the attribute `module`, so that its keys in a run's checkpoint are those of an Iris wrapped
    by DDP.
    """

    def __init__(self, net: Iris, tokens: Priors) -> None:
        """Replace the task priors of a network by trainable tokens, in place.

        Args:
            net: The network; its stored priors of other tasks are removed.
            tokens: Deepest stage first, (K + 1, 11, C) each; the last row is that of the whole image.
        """
        super().__init__()
        for name, rows in zip(_token_names(), tokens, strict=True):
            delattr(net, name)
            net.register_parameter(name, nn.Parameter(rows.detach().float().clone()))
        net.num_tasks = len(tokens[0])
        self.module = net

    def forward(self, image: Tensor, structures: Tensor) -> Tensor:
        """Return the logits of some structures in an image.

        Args:
            image: (B, 1, Z, Y, X), z-scores. Axes are multiples of 16.
            structures: int64 (B, k), indices into the list of structures.

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
    """The structures of a fine-tuned network's tokens, and the preparation of its training images."""

    label: str
    """Label map of the store that the tokens were trained on."""
    structures: tuple[Structure, ...]
    """One per token, in the order of the tokens; each has one label value."""
    spacing_mm: float
    """Voxel edge of the training images."""
    ingest: Mapping[str, Any]
    """Settings that the training scans were prepared with, by name; empty if the store has no record."""
    modalities: tuple[str, ...]
    """Modalities of the training scans, as "ct", "mr"."""
    window_voxels: Size
    """Size of the training crops (z, y, x); the window to segment with."""
    masks_at_once: int
    """Largest number of structures that were predicted together in training."""
    whole_scans: bool = False
    """Whether it was trained on views of whole scans and on fine views, and predicts in the same way."""
    fine_windows: int = 0
    """Largest number of fine views of a target."""

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
            **({"whole_scans": True, "fine_windows": self.fine_windows} if self.whole_scans else {}),
        }

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> TokenTable:
        """Return the table that `to_json` wrote.

        Raises:
            KeyError: A field is missing.
            TypeError: A value is of another type.
            ValueError: A value cannot be converted.
        """
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
            whole_scans=bool(table.get("whole_scans", False)),
            fine_windows=int(table.get("fine_windows", 0)),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Finetuned:
    """A fine-tuned network with one learned task embedding per structure; no reference image is needed."""

    net: Iris
    """The network, on the CPU, float32, in evaluation mode; the tokens are its buffers."""
    table: TokenTable
    """Structures of the tokens, and preparation of the training images."""

    @property
    def structures(self) -> tuple[Structure, ...]:
        """The structures that it segments, in the order of `predict_labels`."""
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
        """Voxel edge of the images that it takes, mm."""
        return self.table.spacing_mm

    @property
    def ingest(self) -> Mapping[str, Any]:
        """Settings that its training scans were prepared with."""
        return self.table.ingest

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities of its training scans."""
        return self.table.modalities

    @property
    def window_voxels(self) -> Size:
        """Size of its training crops (z, y, x)."""
        return self.table.window_voxels

    @property
    def masks_at_once(self) -> int:
        """Largest number of structures that were predicted together in training."""
        return self.table.masks_at_once

    def inference(self, base: InferenceConfig | None = None) -> InferenceConfig:
        """Return inference settings with the window, levels and number of masks of the training.

        Args:
            base: All other settings; None for the defaults.
        """
        return token_inference(base or InferenceConfig(), self.table)

    def prompt(self, config: InferenceConfig, device: torch.device | str = "cpu") -> Prompt:
        """Return the tokens as a prompt for `predict`, `predict_labels` and `predict_probabilities`.

        Args:
            config: The settings that these functions get; see `inference`.
            device: Device of the network.

        Raises:
            ConfigError: `config.mirror` is set.
        """
        return token_prompt(self.net, self.structures, config, device)


def load_finetuned(path: Path | str, *, weights: WhichWeights = "ema") -> Finetuned:
    """Return a fine-tuned network and the structures that it segments.

    Args:
        path: weights.safetensors of a fine-tuning, a checkpoint of its run (best.pt, step-N.pt), or the
            folder of a complete run.
        weights: Which set of weights of a checkpoint; exported weights have only one.

    Raises:
        CheckpointError: There is no such file, or it is not a fine-tuned network.
    """
    path = weights_file(path)
    net = load_checkpoint(path, weights=weights)
    plain = _table_in_safetensors(path) if path.suffix == ".safetensors" else _table_in_checkpoint(path)
    if plain is None:
        raise CheckpointError(
            f"{path}: a network that was not fine-tuned; show it a reference with its mask (without "
            "--finetuned), or fine-tune it (`mass finetune`)"
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


def tokens_of(net: Iris) -> Priors:
    """Return the tokens of a fine-tuned network, deepest stage first: (K + 1, 11, C) each."""
    first, second, third = (getattr(net, name) for name in _token_names())
    return first, second, third


def token_prompt(
    net: Iris, structures: tuple[Structure, ...], config: InferenceConfig, device: torch.device | str = "cpu"
) -> Prompt:
    """Return the tokens of a fine-tuned network as a prompt.

    Args:
        net: The `module` of a `PromptedIris`, or a loaded network.
        structures: The structure of each token.
        config: Settings of the inference.
        device: Device of the prompt.

    Raises:
        ConfigError: `config.mirror` is set. In mirrored images, left and right are exchanged, but the tokens
            of left and right structures are not.
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
    """Return inference settings as in training: the same window, levels, number of masks, all-ones mask."""
    return replace(
        base,
        window_voxels=table.window_voxels,
        masks_at_once=table.masks_at_once,
        whole_mask=True,
        whole_scans=table.whole_scans,
        fine_windows=table.fine_windows,
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
    except CheckpointError:  # a checkpoint of Iris that is not from a run, as the published one
        return None
    table: Mapping[str, Any] | None = config.get(FINETUNED) if isinstance(config, dict) else None
    return table
