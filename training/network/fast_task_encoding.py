"""Fast task encoding: the same result as `TaskEncoding.forward`; work that all masks share is done once.

    foreground token   The mean of upsampled features inside a mask equals the adjoint of the upsampling,
                       applied to the mask, times the coarse feature. Nothing is upsampled.
    expand, merge      `merge` is linear after its ReLU, so the convolution of [image, mask] is the sum of an
                       image half (computed once per image, with the position volume) and a mask half (one
                       convolution with 1 input and 3 output channels serves all three stages).
    norm of the mask   For a binary mask of mean p, instance norm and ReLU give
                       mask * (1 - p) / sqrt(p (1 - p) + eps).
    squeeze            A matrix product on unshuffled tokens.
    cross-attention    The key and value projections, and the affine part of the context's norm, are applied
                       to the 11 queries instead of the N context tokens. This changes all scores of a query
                       by the same constant, which softmax ignores; and attention weights sum to one. Both
                       blocks then use the same normalised tokens as keys and values.

Masks must be 0 and 1; only the direct form takes soft masks. Closed forms, norms and softmax are computed in
float32 or wider under autocast.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from training.network.blocks import NORM_EPS, CrossAttention, at_least_float32, norm_relu
from training.network.decoder import Priors
from training.network.kernels import use_kernels
from training.network.task_encoding import TaskEncoding, TaskQueryBlock, pixel_shuffle


def encode_tasks(stages: Sequence[TaskEncoding], features: Sequence[Tensor], masks: Tensor) -> Priors:
    """Return the priors of all stages.

    Args:
        stages: Parameters of each stage.
        features: The reference's features, (B, C, z, y, x) for each stage.
        masks: (B, K, Z, Y, X), bool or 0 and 1.

    Returns:
        (B, K, 11, C) for each stage.
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
    """Return the matrix (coarse, fine) of linear interpolation with aligned corners; dtype as `like`."""
    unit = torch.eye(coarse, dtype=like.dtype, device=like.device)
    return functional.interpolate(unit[None], size=fine, mode="linear", align_corners=True)[0]


def _mask_halves(stages: Sequence[TaskEncoding], masks: Tensor) -> tuple[Tensor, ...]:
    """Return the mask's part of each stage's `merge` convolution, (B, K, Z, Y, X) each, without bias."""
    with torch.autocast(masks.device.type, enabled=False):
        mean = masks.mean(dim=(2, 3, 4), keepdim=True)
        height = (1 - mean) / torch.sqrt(mean * (1 - mean) + NORM_EPS)
        kernels = torch.cat([stage.merge.conv.weight[:, 1:] for stage in stages])
        halves = _conv((masks * height).flatten(0, 1)[:, None], kernels)
    return halves.view(*masks.shape[:2], *halves.shape[1:]).unbind(2)


def _conditioned(stage: TaskEncoding, feature: Tensor, mask_half: Tensor) -> Tensor:
    """Return the feature conditioned on each mask, as tokens (B, K, N, C), normalised without affine."""
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
    # Measured on a CPU with one channel: PyTorch's own kernel is used for single volumes and is 6 times as
    # fast as oneDNN's, which is used for batches and pads the channels to 16.
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
    if use_kernels(x):
        from training.network.kernels.triton_norms import norm_relu_rows

        return norm_relu_rows(x.flatten(0, 1), NORM_EPS).view(x.shape)
    variance, mean = torch.var_mean(x, dim=2, correction=0, keepdim=True)
    return functional.relu((x - mean) * torch.rsqrt(variance + NORM_EPS))


def _query_block(block: TaskQueryBlock, queries: Tensor, context: Tensor) -> Tensor:
    """Return what `TaskQueryBlock` returns, for a context that is already normalised without affine."""
    queries = block.query_ffn_1(block.query_attn_block_1(queries))
    queries = block.query_aggregate_ffn(_attend(block.query_aggregate_block, queries, context))
    out: Tensor = block.query_ffn_2(block.query_attn_block_2(queries))
    return out


def _attend(block: CrossAttention, queries: Tensor, context: Tensor) -> Tensor:
    """Return `CrossAttention` of queries (B, Q, C) to a context (B, N, C) normalised without affine.

    With the norm's weight w and bias b, a context token c and the attention weights p, which sum to one:
    score = q . Wk (w * c + b) + q . bk = (w * Wk^T q) . c + a constant;
    value = Wv (w * sum(p c) + b) + bv.
    """
    mha = block.fn.mha
    heads, width = mha.num_heads, mha.embed_dim // mha.num_heads
    to_query, to_key, to_value = mha.in_proj_weight.view(3, heads, width, -1).unbind()
    query_bias, _, value_bias = mha.in_proj_bias.chunk(3)
    projected = functional.linear(block.norm1(queries), to_query.flatten(0, 1), query_bias)
    projected = projected.view(*queries.shape[:2], heads, width)
    # Queries multiplied by the key projection, so that they are compared with context tokens directly.
    key_queries = torch.einsum("bqhd,hdc->bhqc", projected, to_key * block.norm2.weight)
    keys = context.to(key_queries.dtype)[:, None]
    attended = functional.scaled_dot_product_attention(
        key_queries.flatten(1, 2)[:, None], keys, keys, scale=width**-0.5
    )
    attended = at_least_float32(attended) * block.norm2.weight + block.norm2.bias
    value = torch.einsum("bhqc,hdc->bqhd", attended.view(key_queries.shape), to_value)
    out: Tensor = queries + mha.out_proj(value.flatten(2) + value_bias)
    return out
