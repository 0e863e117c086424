"""Classification heads on the encoder's features: attention pooling of tokens, or a linear layer.

Reads:  `ScanFeatures`: tokens (T, C), pooled (F,); see `training.classification.embedding`.
Writes: logits (K,), and `head.safetensors`: the weights, with the kind of head, the classes and the digest of
        the encoder in the metadata.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from storage import write_atomically
from training.classification.embedding import EmbeddingConfig, ScanFeatures, encode_scan
from training.errors import CheckpointError
from training.network import Iris, check_seal, in_fixed_order, load_checkpoint, weights_digest

HEAD, ENCODER = "head.safetensors", "encoder.safetensors"
Kind = Literal["attention", "linear"]

_METADATA = "mass3d_head"


class AttentionHead(nn.Module):
    """Gated attention pooling of tokens, then a linear layer (Ilse et al. 2018).

    Args:
        width: Channels of a token.
        num_classes: Number of logits.
        hidden: Width of the two layers that compute a token's attention weight.
        dropout: Dropout probability of the channels of the weighted sum.
    """

    def __init__(self, width: int, num_classes: int, *, hidden: int = 64, dropout: float = 0.2) -> None:
        super().__init__()
        self.register_buffer("token_mean", torch.zeros(width))
        self.register_buffer("token_std", torch.ones(width))
        self.value = nn.Linear(width, hidden)
        self.gate = nn.Linear(width, hidden)
        self.score = nn.Linear(hidden, 1)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(width, num_classes)

    def standardise(self, tokens: Tensor) -> None:
        """Set the mean and standard deviation of the input normalisation from tokens (N, C)."""
        self.get_buffer("token_mean").copy_(tokens.mean(0))
        self.get_buffer("token_std").copy_(tokens.std(0, correction=0).clamp_min(1e-6))

    def forward(self, tokens: Tensor, valid: Tensor) -> Tensor:
        """Map tokens (B, T, C) to logits (B, K); tokens where `valid` (B, T) is False are padding."""
        tokens = (tokens - self.get_buffer("token_mean")) / self.get_buffer("token_std")
        scores = self.score(torch.tanh(self.value(tokens)) * torch.sigmoid(self.gate(tokens)))[..., 0]
        weights = torch.softmax(scores.masked_fill(~valid, -torch.inf), dim=1)
        logits: Tensor = self.out(self.dropout((weights[..., None] * tokens).sum(1)))
        return logits


class LinearHead(nn.Module):
    """A linear layer on the standardised pooled vector."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("feature_mean", torch.zeros(width))
        self.register_buffer("feature_std", torch.ones(width))
        self.out = nn.Linear(width, num_classes)

    def forward(self, pooled: Tensor) -> Tensor:
        """Map pooled vectors (B, F) to logits (B, K)."""
        standardised = (pooled - self.get_buffer("feature_mean")) / self.get_buffer("feature_std")
        logits: Tensor = self.out(standardised)
        return logits


Head = AttentionHead | LinearHead


@torch.no_grad()
def logits_of(head: Head, features: Sequence[ScanFeatures]) -> NDArray[np.float32]:
    """Return the logits (N, K) of encoded scans, computed in evaluation mode; the head's mode is restored."""
    training = head.training
    head.eval()
    device = next(head.parameters()).device
    try:
        if isinstance(head, LinearHead):
            rows = [head(scan.pooled[None].to(device))[0] for scan in features]
        else:
            rows = []
            for scan in features:
                tokens = scan.tokens[None].to(device)
                rows.append(head(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=device))[0])
    finally:
        head.train(training)
    logits: NDArray[np.float32] = torch.stack(rows).float().cpu().numpy()
    return logits


def probabilities_of(logits: NDArray[np.float32], *, multi_label: bool) -> NDArray[np.float32]:
    """Return probabilities (N, K): sigmoid of each logit for multi-label data, else the softmax."""
    tensor = torch.from_numpy(logits)
    return (torch.sigmoid(tensor) if multi_label else torch.softmax(tensor, dim=1)).numpy()


@dataclass(frozen=True, kw_only=True)
class HeadCard:
    """Metadata in the file of a head: its kind and size, the classes, the encoder."""

    kind: Kind
    """Kind of head."""
    classes: tuple[str, ...]
    """Name of each class, in the order of the logits."""
    multi_label: bool
    """Whether a scan may have several classes."""
    width: int
    """Number of input channels: of a token, or of the pooled vector."""
    hidden: int
    """Width of the attention's layers; 0 for a linear head."""
    encoder: str
    """Digest of the encoder that the head was trained with."""
    embedding: EmbeddingConfig
    """Settings of the encoding of scans."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Classifier:
    """An encoder with a classification head, for prediction."""

    net: Iris
    """The network with the encoder."""
    head: Head
    """The head."""
    card: HeadCard
    """Metadata of the head."""

    def probabilities(
        self, image: NDArray[np.float32], *, device: torch.device | str = "cpu"
    ) -> dict[str, float]:
        """Return the probability of each class, by name.

        Args:
            image: (z, y, x) z-scores, with the spacing of the store that the head was trained on.
            device: Device of the head; the encoder is moved to it.
        """
        encoder = self.net.encoder.to(device).eval()
        features = encode_scan(encoder, image, self.card.embedding, device=device)
        row = probabilities_of(logits_of(self.head, [features]), multi_label=self.card.multi_label)[0]
        return dict(zip(self.card.classes, row.tolist(), strict=True))


def export_head(path: Path, head: Head, card: HeadCard) -> None:
    """Write the weights of a head as safetensors, with its card in the metadata; atomic."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in head.state_dict().items()}
    values = asdict(card)
    if not card.embedding.whole_scans:  # as in files of versions without this setting
        del values["embedding"]["whole_scans"]
    written = in_fixed_order(save(tensors, metadata={"format": "pt", _METADATA: json.dumps(values)}))
    write_atomically(path, lambda file: file.write(written))


def export_encoder(path: Path, net: Iris) -> None:
    """Write a network whose encoder alone was trained (or is random); `load_checkpoint` reads it."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
    note = "the encoder is for the head beside it; the decoder was not trained with it: not for segmentation"
    written = in_fixed_order(save(tensors, metadata={"format": "pt", "note": note}))
    write_atomically(path, lambda file: file.write(written))


def load_head(path: Path) -> tuple[Head, HeadCard]:
    """Return a head, in evaluation mode, and its card.

    Raises:
        CheckpointError: There is no such file, or it does not contain a head.
    """
    try:
        check_seal(path)
        with safe_open(path, framework="pt") as file:
            document = json.loads((file.metadata() or {}).get(_METADATA, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        card = _card_of(document)
        head: Head = LinearHead(card.width, len(card.classes))
        if card.kind == "attention":
            head = AttentionHead(card.width, len(card.classes), hidden=card.hidden)
        head.load_state_dict(tensors)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read, name the head.safetensors of a run") from error
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: holds no head, name the head.safetensors of `mass classify`"
        ) from error
    return head.eval(), card


def load_classifier(run: Path | str, checkpoint: Path | str | None = None) -> Classifier:
    """Return the classifier in the folder of a complete run of `mass classify`.

    Args:
        run: Folder of the run.
        checkpoint: The checkpoint of the frozen encoder; not needed if the run folder has its own encoder.

    Raises:
        CheckpointError: A file is missing, or the checkpoint has another encoder.
    """
    run = Path(run)
    head, card = load_head(run / HEAD)
    own = run / ENCODER
    if not own.exists() and checkpoint is None:
        raise CheckpointError(f"{run}: its encoder is that of the checkpoint it was made with, name that too")
    net = load_checkpoint(own if own.exists() else Path(checkpoint or ""))
    if weights_digest(net.encoder) != card.encoder:
        raise CheckpointError(
            f"{checkpoint}: has another encoder than {run / HEAD} is for, name the one used"
        )
    return Classifier(net=net, head=head, card=card)


def _card_of(document: dict[str, Any]) -> HeadCard:
    embedding = document["embedding"]
    embedding = EmbeddingConfig(**{**embedding, "window_voxels": tuple(embedding["window_voxels"])})
    return HeadCard(**{**document, "classes": tuple(document["classes"]), "embedding": embedding})
