"""Reads and writes weights of Iris: the published checkpoint, checkpoints of runs, exported safetensors.

*Reads* a torch file with the state dicts "model" and "ema_model" (the published `mass_base.pth`, and
`step-N.pt` of a run), a torch file that is one state dict, or a safetensors file. Torch files are read with
`weights_only`, so no code in them is run. The number of channels and of tasks follows from the tensors'
shapes. *Writes* NAME.safetensors, with the architecture in its metadata, and the model card NAME.md.
"""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from textwrap import indent
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, load_file, save
from torch import Tensor

from storage import write_atomically
from training.errors import CheckpointError, ConfigError
from training.files import read_record
from training.network.encoder import Widths
from training.network.iris import Iris
from training.network.preparation import TrainedOn, recorded_beside
from training.network.sealing import SEAL, check_archive, check_seal, in_fixed_order
from training.network.task_encoding import MAX_CROP_VOXELS

WhichWeights = Literal["ema", "model"]
StateDict = dict[str, Tensor]

MODEL_CARD = "MODEL_CARD.md"
WEIGHTS = "weights.safetensors"
"""Names of the two files that a complete run exports."""

POSITION_VOLUMES = ".pos_embed.embedding"
"""End of the names of the position volumes: three of 128^3 values, half of a small network's numbers."""

_ARCHITECTURE = "mass3d"
_LEFT_OUT = "left_out"
_STEP = ".step"
"""End of the names of the steps of rounded tensors: (rows,), float32. A row is int8 values times its step."""
_SMALLEST_ROUNDED = 1024
"""Tensors of fewer values, and vectors, are float16: together they are a few kilobytes."""
_COMPACT = (
    "int8 with one step a row (an output channel), vectors as float16, without the position volumes (learned "
    "offsets by place, close to 0 in the small networks), which are read as zeros. Written by `mass "
    "export-weights --compact`."
)
_BYTES = "\n\n## Bytes\n\n"
"""Heading of the card's last section, where weights are compact."""
SHIPPED = {"small-v1": Path(__file__).parents[2] / "examples" / "weights" / "small-v1" / WEIGHTS}
"""Weights that come with a checkout of this project, by the name that is given in place of a file."""
_WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes that DDP, weight averaging and torch.compile add to every key."""
_IN_CONTEXT = """\
from training import load_checkpoint

net = load_checkpoint("FILE.safetensors")
logits = net(target, reference, masks)  # z-scores (B,1,Z,Y,X); masks (B,K,Z,Y,X)"""
_VERSIONED = ("mass3d", "torch", "numpy", "safetensors")


def installed_versions() -> dict[str, str]:
    """Return the versions of the packages that the weights depend on, by name."""
    found = {}
    for name in _VERSIONED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a checkout that was never installed
            found[name] = "not installed"
    return found


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """The origin of exported weights: all that is needed to train them again."""

    title: str
    """Title of the card, one line."""
    recipe: str
    """The whole training config, as TOML."""
    store_digest: str
    """Digest of the store that the network was trained on."""
    num_scans: int | None
    """Number of training scans; None where it is not recorded."""
    num_steps: int | None
    """Number of optimiser steps; None where it is not recorded."""
    weights: WhichWeights
    """"ema" for the moving average of the weights, "model" for those of the last step."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """Measured quality, by name, for example the in-context Dice on held-out scans."""
    versions: Mapping[str, str] = field(default_factory=installed_versions)
    """Versions of the packages used for training."""
    summary: str = "Pretrained without labels."
    """One or two sentences: what was trained, and on what."""
    use: str = _IN_CONTEXT
    """Python lines that show how to use the file; FILE stands for its name without .safetensors."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Further entries of the file's metadata."""
    trained_on: TrainedOn = field(default_factory=TrainedOn)
    """How the training scans were prepared and cropped; new scans have to be prepared in the same way."""

    def to_markdown(self, net: Iris) -> str:
        """Return the card as Markdown; `net` is the network whose weights it describes."""
        num_parameters = sum(parameter.numel() for parameter in net.parameters())
        rows = {
            "network": f"Iris, channels {'-'.join(map(str, net.channels))}, {net.num_tasks} task priors",
            "parameters": f"{num_parameters:,}",
            "weights": {"ema": "moving average (EMA)", "model": "last step"}[self.weights],
            "steps": _counted(self.num_steps),
            "scans": _counted(self.num_scans),
            "store digest": f"`{self.store_digest}`" if self.store_digest else "not recorded",
            **self.trained_on.rows(),
            **{name: "-" if math.isnan(value) else f"{value:.4g}" for name, value in self.figures.items()},
            **{f"version of {name}": value for name, value in self.versions.items()},
        }
        table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
        return (
            f"# {self.title}\n\n{self.summary} Not a medical device; for research.\n\n"
            f"|  |  |\n|---|---|\n{table}\n\n## Use\n\n"
            f"{indent(self.use, ' ' * 4)}\n\n"
            f"## Recipe\n\n```toml\n{self.recipe.strip()}\n```\n"
        )


def _counted(number: int | None) -> str:
    return "not recorded" if number is None else f"{number:,}"


def export_weights(net: Iris, path: Path | str, card: ModelCard) -> Path:
    """Write the weights as safetensors, and the model card as Markdown in the same folder.

    Args:
        net: The network whose weights to write.
        path: Ends in .safetensors; the card has the same name with .md.
        card: Origin of the weights.

    Returns:
        Path of the card.

    Raises:
        ConfigError: The path does not end in .safetensors.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ConfigError(f"{path}: the name of exported weights ends in .safetensors")
    return _write(path, *_packed(net, path, card))


def _packed(net: Iris, path: Path, card: ModelCard) -> tuple[bytes, str]:
    """Return the bytes of the safetensors file, and the text of its card."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
    architecture: dict[str, Any] = {
        "channels": net.channels,
        "num_tasks": net.num_tasks,
        "store_digest": card.store_digest,
    }
    if card.trained_on != TrainedOn():
        architecture["trained_on"] = card.trained_on.to_json()
    metadata = {"format": "pt", _ARCHITECTURE: json.dumps(architecture), **card.metadata}
    text = card.to_markdown(net).replace("FILE.safetensors", path.name)
    return in_fixed_order(save(tensors, metadata=metadata)), text


def _write(path: Path, content: bytes, card: str) -> Path:
    write_atomically(path, lambda file: file.write(content))
    card_path = path.with_suffix(".md")
    write_atomically(card_path, lambda file: file.write(card.encode()))
    return card_path


def convert_weights(
    source: Path | str, path: Path, *, weights: WhichWeights = "ema", compact: bool = False
) -> Path:
    """Write the weights of any checkpoint as safetensors, with what is recorded of their origin.

    Exported weights are copied as they are. Of a run's checkpoint, the steps, settings and scans are
    recorded; of the published checkpoint nothing is.

    Args:
        source: As for `load_checkpoint`.
        path: Ends in .safetensors; the card has the same name with .md.
        weights: Which set of weights to write; ignored for files that have only one.
        compact: Write int8 with a step a row, without the position volumes, which are read as zeros: an
            eighth of the bytes of a small network. Its outputs change slightly.

    Returns:
        Path of the card.

    Raises:
        CheckpointError: As for `load_checkpoint`; or a weight is too large for float16.
    """
    source = weights_file(source)
    content, card = _converted(source, path, weights)
    if compact:
        content = _compacted(content, source)
        card = f"{card.split(_BYTES)[0].rstrip()}{_BYTES}{_COMPACT}\n"
    return _write(path, content, card)


def _converted(source: Path, path: Path, weights: WhichWeights) -> tuple[bytes, str]:
    """Return the file to write and its card; existing exported weights and card are returned unchanged."""
    net = load_checkpoint(source, weights=weights)
    if source.suffix == ".safetensors":
        for card in (source.with_name(MODEL_CARD), source.with_suffix(".md")):
            if card.is_file() and (source.name == WEIGHTS or card.stem == source.stem):
                return source.read_bytes(), card.read_text(encoding="utf-8")
    return _packed(net, path, _card_of(source, net, weights))


def _compacted(content: bytes, source: Path) -> bytes:
    """Return a safetensors file with large tensors rounded to int8, and without the position volumes."""
    start = 8 + int.from_bytes(content[:8], "little")
    metadata: dict[str, str] = json.loads(content[8:start]).get("__metadata__", {})
    tensors: StateDict = {}
    for name, tensor in load(content).items():
        if name.endswith(POSITION_VOLUMES):
            continue
        if tensor.is_floating_point() and tensor.ndim >= 2 and tensor.numel() >= _SMALLEST_ROUNDED:
            tensors[name], tensors[name + _STEP] = _rounded(tensor.float())
        else:
            tensors[name] = tensor if tensor.dtype == torch.int8 or name.endswith(_STEP) else tensor.half()
        if not all(part.isfinite().all() for part in (tensors[name], tensors.get(name + _STEP, tensor))):
            raise CheckpointError(f"{source}: {name} has values beyond float16. Leave out --compact")
    about = json.loads(metadata.get(_ARCHITECTURE, "{}")) | {_LEFT_OUT: [POSITION_VOLUMES]}
    return in_fixed_order(save(tensors, metadata={**metadata, _ARCHITECTURE: json.dumps(about)}))


def _rounded(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Return the int8 values of a tensor, and the step of each row: a 127th of its largest absolute value."""
    rows = tensor.reshape(len(tensor), -1)
    step = rows.abs().amax(1) / 127
    values = (rows / step.clamp_min(torch.finfo(torch.float32).tiny)[:, None]).round().to(torch.int8)
    return values.reshape(tensor.shape), step


def _restored(state: StateDict) -> StateDict:
    """Return a state dict in which rounded tensors are float32 again."""
    steps = {name.removesuffix(_STEP): step for name, step in state.items() if name.endswith(_STEP)}
    return {
        name: tensor.float() * steps[name].reshape(-1, *[1] * (tensor.ndim - 1)) if name in steps else tensor
        for name, tensor in state.items()
        if not name.endswith(_STEP)
    }


def _card_of(source: Path, net: Iris, weights: WhichWeights) -> ModelCard:
    """Return a card for weights that have none, from the records in the checkpoint and its run folder."""
    document: dict[str, Any] = {}
    metadata: dict[str, str] = {}
    if source.suffix == ".safetensors":
        with safe_open(source, framework="pt") as opened:
            stored = opened.metadata() or {}
        metadata = {
            name: text for name, text in stored.items() if name not in ("format", _ARCHITECTURE, SEAL)
        }
        document["store_digest"] = json.loads(stored.get(_ARCHITECTURE, "{}")).get("store_digest", "")
    elif source.is_file():
        document = torch.load(source, map_location="cpu", weights_only=True)
    config = document.get("config", {})
    run: Mapping[str, Any] = {}
    for folder in (source.absolute().parent, source.absolute().parent.parent):
        if (folder / "run.json").is_file() and not run:
            run = read_record(folder)
            recipe = folder / "config.toml"
            document["recipe"] = recipe.read_text(encoding="utf-8") if recipe.is_file() else ""
    # Tables that other rooms keep in a checkpoint's settings, as that of a fine-tuning's structures.
    tables = {
        name: json.dumps(value) for name, value in config.items() if name.startswith(f"{_ARCHITECTURE}_")
    }
    step = document.get("step")
    return ModelCard(
        title=f"Iris, from {source.name}",
        recipe=document.get("recipe") or "# not recorded",
        store_digest=str(run.get("store_digest") or document.get("store_digest", "")),
        num_scans=len(run["scans"]) if "scans" in run else None,
        num_steps=step if isinstance(step, int) else None,
        weights=weights,
        metadata={**metadata, **tables},
        trained_on=net.trained_on,
        summary="Converted by mass export-weights.",
    )


def load_checkpoint(path: Path | str, *, weights: WhichWeights = "ema") -> Iris:
    """Return the network of a checkpoint, on the CPU, float32, in evaluation mode.

    Its attribute `trained_on` is the preparation of the training scans, as far as it is recorded in the
    checkpoint or in the run folder around it.

    Args:
        path: A published .pth, a run's step-N.pt or best.pt, exported .safetensors, the folder of a complete
            run, or the name of weights that come with a checkout (`SHIPPED`).
        weights: Which set of weights to use; ignored for files that have only one.

    Raises:
        CheckpointError: There is no such file, it is not a checkpoint of Iris, or it holds more than tensors
            and plain values.
    """
    path = weights_file(path)
    if not path.is_file():
        known = ", ".join(SHIPPED)
        raise CheckpointError(f"{path}: there is no such file, nor weights of this name (there are: {known})")
    read = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path, weights)
    net = network_of(read[0], path)
    net.trained_on = read[1] or recorded_beside(path) or TrainedOn()
    return net


def weights_file(path: Path | str) -> Path:
    """Return the file with the weights of a checkpoint.

    Args:
        path: A file; the folder of a complete run; or a name of `SHIPPED`, if nothing of this name is there.

    Returns:
        The path itself, the exported weights in the folder, or the file that comes with a checkout.

    Raises:
        CheckpointError: The folder has no exported weights, or the checkout lacks the file.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / WEIGHTS).is_file():
            hidden = (
                f" (it hides the weights {path} that come with the project)" if str(path) in SHIPPED else ""
            )
            raise CheckpointError(
                f"{path}: a folder without {WEIGHTS}{hidden}. Name a complete run, or a checkpoint"
            )
        return path / WEIGHTS
    shipped = SHIPPED.get(str(path))
    if shipped and not path.exists():
        if not shipped.is_file():
            raise CheckpointError(
                f"{path}: these weights come with a checkout of the project, in examples/weights, and "
                f"{shipped} is not there. Install from a checkout (`pip install -e .`), or name the file"
            )
        return shipped
    return path


def network_of(state: StateDict, path: Path) -> Iris:
    """Return Iris with these weights, in evaluation mode.

    Args:
        state: Tensors by name; prefixes of wrappers are removed.
        path: File that error messages name.

    Raises:
        CheckpointError: The tensors do not fit Iris.
    """
    state = {_bare(name): tensor.float() for name, tensor in state.items() if name != "n_averaged"}
    try:
        with torch.device("meta"):
            net = Iris(_channels(state), len(state["task_prior_0"]))
        net.load_state_dict(state, assign=True)
    except KeyError as error:
        raise CheckpointError(f"{path}: not a checkpoint of Iris: it has no {error}") from error
    except (RuntimeError, ConfigError) as error:
        lines = str(error).splitlines()
        raise CheckpointError(f"{path}: does not fit Iris: {' '.join(lines[:4])}") from error
    return net.eval()


def _channels(state: StateDict) -> Widths:
    widths = [state["encoder.inc.conv1.weight"].shape[0]]
    widths += [state[f"encoder.down{stage}.conv.1.conv1.conv.weight"].shape[0] for stage in (1, 2, 3, 4)]
    c0, c1, c2, c3, c4 = widths
    return c0, c1, c2, c3, c4


def _bare(name: str) -> str:
    """Return a key of a state dict without the prefixes of wrappers."""
    for wrapper in _WRAPPERS:
        name = name.removeprefix(wrapper)
    return name


def _read_safetensors(path: Path) -> tuple[StateDict, TrainedOn | None]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        check_seal(path)
        state = _restored(load_file(path))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a safetensors file, or a damaged one: {error}") from error
    try:
        about = json.loads(metadata.get(_ARCHITECTURE, "{}"))
        if POSITION_VOLUMES in about.get(_LEFT_OUT, ()):
            side = MAX_CROP_VOXELS
            stages = {name.split(".")[1] for name in state if name.startswith("task_embedding.")}
            for stage in sorted(stages):
                state[f"task_embedding.{stage}{POSITION_VOLUMES}"] = torch.zeros(1, 1, side, side, side)
        return state, TrainedOn.from_json(about.get("trained_on"))
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: its metadata are damaged: {error}") from error


def _read_torch(path: Path, weights: WhichWeights) -> tuple[StateDict, TrainedOn | None]:
    check_archive(path)
    try:
        document = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds more than tensors and plain values, or is damaged; such a file could run code "
            "when read, and is refused"
        ) from error
    except (RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: no torch file, or a damaged one") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{path}: holds a {type(document).__name__}; a dict of state dicts is expected")
    chosen: object = document
    if "model" in document or "ema_model" in document:
        name = {"ema": "ema_model", "model": "model"}[weights]
        chosen = document.get(name)
        if chosen is None:
            raise CheckpointError(f"{path}: has no {name!r} weights; load the other set")
    if not isinstance(chosen, dict) or not all(isinstance(value, Tensor) for value in chosen.values()):
        raise CheckpointError(f"{path}: not a checkpoint of Iris: no state dict in it")
    config = document.get("config")
    return chosen, TrainedOn.from_json(config.get("trained_on") if isinstance(config, dict) else None)
