"""A network whose answers are known: it marks the voxels that are as bright as the reference's mask is."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH = 0.3
"""Voxels closer in intensity than this belong to the structure."""


class LikeIntensity(nn.Module):
    """A prior holds the mean intensity in its mask; logits are positive within WIDTH of it."""

    def __init__(self) -> None:
        super().__init__()
        self.encoded: list[tuple[int, ...]] = []
        self.asked: list[int] = []
        self.modes: list[bool] = []

    def encode(self, image: Tensor) -> Tensor:
        assert all(size % 16 == 0 for size in image.shape[2:])
        assert not torch.is_grad_enabled()
        self.encoded.append(tuple(image.shape))
        self.modes.append(self.training)
        return image

    def encode_tasks(self, features: Tensor, masks: Tensor) -> tuple[Tensor, ...]:
        inside = (features * masks).sum(dim=(2, 3, 4)) / masks.sum(dim=(2, 3, 4)).clamp(min=1)
        return tuple(inside[:, :, None, None].expand(-1, -1, 11, width) for width in (4, 2, 1))

    def decode(self, features: Tensor, priors: tuple[Tensor, ...]) -> Tensor:
        assert len(features) == len(priors[0])
        self.asked.append(priors[0].shape[1])
        means = priors[0][:, :, 0, 0]
        return 20 * (WIDTH - (features - means[:, :, None, None, None]).abs())


class LikeInside(LikeIntensity):
    """A prior holds the mean intensities in its mask and close around; logits are positive near the first.

    So edges lie where the intensity is half way, whatever the spacing, and whatever pads a window.
    """

    def encode_tasks(self, features: Tensor, masks: Tensor) -> tuple[Tensor, ...]:
        around = functional.max_pool3d(masks.float(), 5, stride=1, padding=2) - masks.float()
        means = [
            (features * part).sum(dim=(2, 3, 4)) / part.sum(dim=(2, 3, 4)).clamp(min=1)
            for part in (masks, around)
        ]
        prior = torch.stack(means, dim=-1)[:, :, None].expand(-1, -1, 11, -1)
        return prior, prior, prior

    def decode(self, features: Tensor, priors: tuple[Tensor, ...]) -> Tensor:
        inside, outside = priors[0][:, :, 0, :, None, None, None].unbind(dim=2)
        return 4 * ((features - outside).abs() - (features - inside).abs())
