"""Task encoding, the fast form: what `TaskEncoding.forward` gives, with all that masks share done once.

    foreground token   the mean of upsampled features inside a mask = the adjoint of the upsampling applied to
                       the mask, then one product with the coarse feature; nothing is upsampled
    expand, merge      linear after the ReLU, so [image, mask] splits into an image half (once an image, with
                       the position volume) and a mask half (all three stages are one 1 -> 3 convolution)
    norm of the mask   of a binary mask of mean p is mask * (1 - p) / sqrt(p (1 - p) + eps) after the ReLU
    squeeze            a matrix product on unshuffled tokens
    cross-attention    key and value projections, with the affine part of the context's norm, move to the 11
                       queries: scores change by a constant a query, which softmax drops, and its weights add
                       to one. Both blocks then read one affine-free norm of the tokens, as keys and values

Masks must be 0 and 1; only the direct form takes soft ones. Closed forms, norms and softmax stay in float32
or wider under autocast. Checkpointing activations saved a tenth of what memory is left, for a third more time
(measured on a CPU): not done.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from training.network.blocks import NORM_EPS, CrossAttention, at_least_float32, norm_relu
from training.network.decoder import Priors
from training.network.task_encoding import TaskEncoding, TaskQueryBlock, pixel_shuffle


def encode_tasks(stages: Sequence[TaskEncoding], features: Sequence[Tensor], masks: Tensor) -> Priors:
    """Return the priors of all stages.

    Args:
        stages: Parameters, one a stage.
        features: The reference's features, (B, C, z, y, x) a stage.
        masks: (B, K, Z, Y, X), bool or 0 and 1.

    Returns:
        (B, K, 11, C) a stage.
    """
    B, K = masks.shape[:2]
    masks = masks.to(at_least_float32(features[0]).dtype)
    halves = _mask_halves(stages, masks)
    priors: list[Tensor] = []
    for stage, feature, half in zip(stages, features, halves, strict=True):
        foreground = foreground_tokens(feature, masks).flatten(0, 1)
        context = _conditioned(stage, feature, half).flatten(0, 1)
        queries = stage.combine(foreground)
        for block in stage.query_blocks():
            queries = _query_block(block, queries, context)
        priors.append(stage.norm_post(queries).view(B, K, *queries.shape[1:]))
    first, second, third = priors
    return first, second, third


def foreground_tokens(feature: Tensor, masks: Tensor) -> Tensor:
    """Return the mean (B, K, C) of the upsampled feature (B, C, z, y, x) inside each mask (B, K, Z, Y, X)."""
    with torch.autocast(feature.device.type, enabled=False):
        up_z, up_y, up_x = (
            _upsampling(coarse, fine, like=masks)
            for coarse, fine in zip(feature.shape[2:], masks.shape[2:], strict=True)
        )
        weights = torch.einsum("bkzyx,cx,dy,ez->bkedc", masks, up_x, up_y, up_z)
        totals = weights.flatten(2) @ at_least_float32(feature).flatten(2).transpose(1, 2)
        return totals / masks.sum(dim=(2, 3, 4)).clamp(min=1)[..., None]


def _upsampling(coarse: int, fine: int, *, like: Tensor) -> Tensor:
    """Return the matrix (coarse, fine) of linear interpolation with aligned corners."""
    unit = torch.eye(coarse, dtype=like.dtype, device=like.device)
    return functional.interpolate(unit[None], size=fine, mode="linear", align_corners=True)[0]


def _mask_halves(stages: Sequence[TaskEncoding], masks: Tensor) -> tuple[Tensor, ...]:
    """Return the mask half of every stage's merge, (B, K, Z, Y, X) each, without bias."""
    with torch.autocast(masks.device.type, enabled=False):
        mean = masks.mean(dim=(2, 3, 4), keepdim=True)
        height = (1 - mean) / torch.sqrt(mean * (1 - mean) + NORM_EPS)
        kernels = torch.cat([stage.merge.conv.weight[:, 1:] for stage in stages])
        halves = _conv((masks * height).flatten(0, 1)[:, None], kernels)
    return halves.view(*masks.shape[:2], *halves.shape[1:]).unbind(2)


def _conditioned(stage: TaskEncoding, feature: Tensor, mask_half: Tensor) -> Tensor:
    """Return the feature's tokens (B, K, N, C) that have seen each mask, normed without affine."""
    fine = pixel_shuffle(stage.expand(feature), stage.scale)
    with torch.autocast(feature.device.type, enabled=False):
        fine = norm_relu(at_least_float32(fine), NORM_EPS)
        merge = stage.merge.conv
        position = stage.pos_embed(fine.shape[2:]) + merge.bias
        image_half = _conv(fine, merge.weight[:, :1]) + position
        merged = _blocks(image_half, stage.scale) + _blocks(mask_half, stage.scale)
        active = _norm_relu_tokens(merged)
    squeeze = stage.squeeze.conv
    tokens = functional.linear(active, squeeze.weight.flatten(1), squeeze.bias)
    tokens = at_least_float32(tokens) + feature.flatten(2).transpose(1, 2)[:, None]
    return functional.layer_norm(tokens, tokens.shape[-1:], eps=NORM_EPS)


def _conv(volumes: Tensor, kernels: Tensor) -> Tensor:
    """Convolve (N, 1, Z, Y, X) with (O, 1, 3, 3, 3) to (N, O, Z, Y, X)."""
    # Measured on a CPU: for one channel, PyTorch's own kernel, which takes single volumes, is 6 times as fast
    # as oneDNN's, which takes batches and pads the channels to 16.
    at_once = 1 if volumes.device.type == "cpu" else len(volumes)
    return torch.cat([functional.conv3d(part, kernels, padding=1) for part in torch.split(volumes, at_once)])


def _blocks(volumes: Tensor, scale: int) -> Tensor:
    """Unshuffle volumes (B, K, Z, Y, X) into tokens (B, K, N, s^3) of s^3 voxels each."""
    B, K, Z, Y, X = volumes.shape
    s = scale
    blocks = volumes.view(B, K, Z // s, s, Y // s, s, X // s, s).permute(0, 1, 2, 4, 6, 3, 5, 7)
    return blocks.reshape(B, K, -1, s**3)


def _norm_relu_tokens(x: Tensor) -> Tensor:
    """Instance norm over the tokens of (B, K, N, M), then ReLU."""
    variance, mean = torch.var_mean(x, dim=2, correction=0, keepdim=True)
    return functional.relu((x - mean) * torch.rsqrt(variance + NORM_EPS))


def _query_block(block: TaskQueryBlock, queries: Tensor, context: Tensor) -> Tensor:
    """Do what `TaskQueryBlock` does, for a context that is normed already."""
    queries = block.query_ffn_1(block.query_attn_block_1(queries))
    queries = block.query_aggregate_ffn(_attend(block.query_aggregate_block, queries, context))
    out: Tensor = block.query_ffn_2(block.query_attn_block_2(queries))
    return out


def _attend(block: CrossAttention, queries: Tensor, context: Tensor) -> Tensor:
    """Do what `CrossAttention` does from queries (B, Q, C) to a context (B, N, C) normed without affine.

    score = q . Wk (w * c + b) + q . bk = (w * Wk^T q) . c + a constant; and as the attention p sums to one,
    value = Wv (w * sum(p c) + b) + bv.
    """
    mha = block.fn.mha
    heads, width = mha.num_heads, mha.embed_dim // mha.num_heads
    to_query, to_key, to_value = mha.in_proj_weight.view(3, heads, width, -1).unbind()
    query_bias, _, value_bias = mha.in_proj_bias.chunk(3)
    asking = functional.linear(block.norm1(queries), to_query.flatten(0, 1), query_bias)
    asking = asking.view(*queries.shape[:2], heads, width)
    asked = torch.einsum("bqhd,hdc->bhqc", asking, to_key * block.norm2.weight)
    keys = context.to(asked.dtype)[:, None]
    seen = functional.scaled_dot_product_attention(
        asked.flatten(1, 2)[:, None], keys, keys, scale=width**-0.5
    )
    seen = at_least_float32(seen) * block.norm2.weight + block.norm2.bias
    value = torch.einsum("bhqc,hdc->bqhd", seen.view(asked.shape), to_value)
    out: Tensor = queries + mha.out_proj(value.flatten(2) + value_bias)
    return out
