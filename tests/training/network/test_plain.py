"""Plain networks: the same encoder, no reference; and the fine-tuned network as one module."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from training.errors import ConfigError
from training.network.iris import Iris
from training.network.plain import (
    STRIDES,
    FinetunedUNet,
    PlainUNet,
    finetuned_unet,
    plain_unet,
    plain_unet_state,
)

CHANNELS = (4, 8, 8, 16, 32)


@pytest.fixture(scope="module")
def net() -> Iris:
    torch.manual_seed(0)
    return Iris(CHANNELS, 4).eval()


def test_a_plain_network_has_the_encoder_features_of_iris_to_the_bit(net: Iris) -> None:
    image = torch.randn(2, 1, 32, 16, 48)
    unet = plain_unet(net, 3).eval()
    with torch.no_grad():
        for one, other in zip(unet.encoder(image), net.encode(image), strict=True):
            assert torch.equal(one, other)


def test_the_plain_decoder_has_the_upsampling_weights_of_iris(net: Iris) -> None:
    unet, have = plain_unet(net, 3), net.state_dict()
    shared = {name for name in unet.state_dict() if not name.startswith("decoder.seg_layers.")}
    assert {name for name in have if name.startswith(("encoder.", "decoder.up"))} == shared
    for name in shared:
        assert torch.equal(unet.state_dict()[name], have[name])


def test_deep_supervision_gives_four_scales_full_resolution_first(net: Iris) -> None:
    unet = plain_unet(net, 3)
    unet.decoder.deep_supervision = True
    image = torch.randn(1, 1, 32, 16, 48)
    scales = unet(image)
    assert [tuple(logits.shape) for logits in scales] == [
        (1, 3, 32 // factor, 16 // factor, 48 // factor) for factor in (1, 2, 4, 8)
    ]
    unet.decoder.deep_supervision = False
    torch.testing.assert_close(unet(image), scales[0])


def test_large_pretrained_features_do_not_make_the_first_logits_large(net: Iris) -> None:
    image = torch.randn(1, 1, 16, 32, 16)
    torch.manual_seed(3)
    unet = plain_unet(net, 3).eval()
    with torch.no_grad():
        before = unet(image).std()
        for part in (unet.encoder.inc.conv1, unet.decoder.up4.conv[1].conv2.conv):
            part.weight.mul_(100)
        assert unet(image).std() < 2 * before


def test_several_equal_channels_give_the_features_of_one(net: Iris) -> None:
    image = torch.randn(1, 1, 16, 16, 32)
    unet = plain_unet(net, 2, input_channels=3).eval()
    with torch.no_grad():
        for one, other in zip(unet.encoder(image.repeat(1, 3, 1, 1, 1)), net.encode(image), strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_the_state_of_the_plain_network_shares_no_memory_with_iris(net: Iris) -> None:
    before = net.state_dict()["encoder.inc.conv1.weight"].clone()
    for tensor in plain_unet_state(net).values():
        tensor.zero_()
    assert torch.equal(net.state_dict()["encoder.inc.conv1.weight"], before)


def test_other_strides_are_refused() -> None:
    with pytest.raises(ConfigError, match="strides"):
        PlainUNet(1, 2, channels=CHANNELS, strides=[(1, 1, 1), (1, 2, 2), *STRIDES[2:]])


def test_a_few_steps_of_training_lower_the_loss(net: Iris) -> None:
    torch.manual_seed(1)
    unet = plain_unet(net, 2)
    image = torch.randn(1, 1, 16, 32, 16)
    labels = (image[:, 0] > 0).long()
    optimiser = torch.optim.SGD(unet.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(15):
        loss = nn.functional.cross_entropy(unet(image), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def with_random_tokens(net: Iris) -> Iris:
    torch.manual_seed(2)
    for stage in range(3):
        net.get_buffer(f"task_prior_{stage}").normal_()
    return net


def test_the_fine_tuned_module_decodes_structures_together_as_in_training() -> None:
    torch.manual_seed(0)
    net = with_random_tokens(Iris(CHANNELS, 4).eval())  # three structures and the whole image
    image = torch.randn(2, 1, 16, 32, 16)
    unet = finetuned_unet(net, masks_at_once=2)
    tokens = [net.get_buffer(f"task_prior_{stage}") for stage in range(3)]
    expected = []
    with torch.no_grad():
        for part in ([0, 1, 3], [2, 3]):
            priors = tuple(stage[part].expand(2, -1, -1, -1) for stage in tokens)
            expected.append(net.decode(net.encode(image), priors)[:, :-1])  # type: ignore[arg-type]
        torch.testing.assert_close(unet.logits(image), torch.cat(expected, dim=1))
        apart = finetuned_unet(net, masks_at_once=1).logits(image)
    assert not torch.allclose(apart, torch.cat(expected, dim=1), atol=1e-3), "who is decoded together matters"


def test_the_largest_channel_of_the_fine_tuned_module_is_the_label() -> None:
    torch.manual_seed(0)
    net = with_random_tokens(Iris(CHANNELS, 3).eval())
    image = torch.randn(1, 1, 16, 16, 16)
    unet = finetuned_unet(net, masks_at_once=13)
    with torch.no_grad():
        probabilities, logits = unet(image), unet.logits(image)
    assert probabilities.shape == (1, 3, 16, 16, 16)
    best, place = logits.max(dim=1)
    assert torch.equal(probabilities.argmax(dim=1), torch.where(best > 0, place + 1, 0))


def test_the_fine_tuned_module_is_built_from_its_shape_alone() -> None:
    net = Iris(CHANNELS, 3)
    state = finetuned_unet(net, masks_at_once=13).state_dict()
    assert FinetunedUNet(CHANNELS, 2, 13).load_state_dict(state).missing_keys == []
    assert not any(name.startswith("task_embedding") for name in state)
