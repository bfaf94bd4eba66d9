"""The conditional GAN's networks against the paper's formulas."""

import pytest
import torch
from torch import nn

from cf_utils.models import checkpoints
from cf_utils.models.cards import Card
from cf_utils.models.generators.cgan import (
    ConditionalBatchNorm,
    ConditionalGAN,
    DiscriminatorBlock,
    EncoderBlock,
    GeneratorBlock,
)


def make(size=32, channels=3, **settings):
    torch.manual_seed(0)
    small = {"widths": (4, 8), "blocks": 5, "critic": 4} | settings
    return ConditionalGAN(channels=channels, size=size, **small).eval()


def randomise(gan):
    """Give every bin its own scale and offset, and each residual branch weights, as if trained."""
    for module in gan.modules():
        if isinstance(module, EncoderBlock | GeneratorBlock):
            nn.init.normal_(module.conv2.weight, std=0.1)
        if isinstance(module, ConditionalBatchNorm):
            nn.init.normal_(module.scale.weight)
            nn.init.normal_(module.offset.weight)
    return gan


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [32, 48, 64])
def test_images_of_any_size_divisible_by_16(size, channels):
    gan = make(size, channels)
    x = torch.rand(2, channels, size, size)
    y = gan(x, torch.tensor([0, 9]))
    assert y.shape == x.shape and y.min() >= 0 and y.max() <= 1
    assert gan.criticise(y, torch.tensor([0, 9])).shape == (2,)


def test_five_residual_blocks_each():
    gan = make()
    for part, kind in (
        (gan.encoder, EncoderBlock),
        (gan.generator, GeneratorBlock),
        (gan.discriminator, DiscriminatorBlock),
    ):
        assert sum(isinstance(m, kind) for m in part.modules()) == 5


def test_only_the_generator_is_conditioned():
    """The official code conditions the encoder, too."""
    gan = make()
    assert not any(isinstance(m, ConditionalBatchNorm) for m in gan.encoder.modules())
    in_blocks = [m for m in gan.generator.blocks.modules() if isinstance(m, nn.BatchNorm2d)]
    assert in_blocks and all(not m.affine for m in in_blocks)


def test_conditional_norm_uses_the_row_of_each_items_bin():
    norm = ConditionalBatchNorm(3, bins=4)
    nn.init.normal_(norm.scale.weight)
    nn.init.normal_(norm.offset.weight)
    norm.norm.running_mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
    norm.norm.running_var.copy_(torch.tensor([4.0, 9.0, 16.0]))
    x, bins = torch.randn(2, 3, 5, 5), torch.tensor([3, 1])
    y = norm.eval()(x, bins)
    for i, k in enumerate(bins.tolist()):
        for c, (mean, sd) in enumerate(((1, 2), (2, 3), (3, 4))):
            expected = (x[i, c] - mean) / sd * norm.scale.weight[k, c] + norm.offset.weight[k, c]
            torch.testing.assert_close(y[i, c], expected, rtol=1e-4, atol=1e-4)


def test_ordinal_ratio_sums_the_vectors_below_the_bin():
    """Eq. 4 by brute force, with K - 1 different vectors."""
    gan = make(bins=6)
    d = gan.discriminator
    v = d.thresholds.weight  # (K - 1, F)
    assert v.shape[0] == 5 and torch.linalg.matrix_rank(v) == 5
    phi, bins = torch.randn(6, v.shape[1]), torch.arange(6)
    ratio = d.ordinal_ratio(phi, bins)
    for k in range(6):
        expected = sum((v[i] @ phi[k] for i in range(k)), torch.zeros(()))
        torch.testing.assert_close(ratio[k], expected, rtol=1e-4, atol=1e-5)


def test_discriminator_adds_ratio_and_psi():
    gan = make()
    x, bins = torch.rand(4, 3, 32, 32), torch.tensor([0, 3, 6, 9])
    d = gan.discriminator
    phi = d.features(2 * x - 1)
    expected = d.ordinal_ratio(phi, bins) + d.psi(phi)[:, 0]
    torch.testing.assert_close(gan.criticise(x, bins), expected)
    unconditional = gan.criticise(x, torch.zeros(4, dtype=torch.int64))
    torch.testing.assert_close(unconditional, d.psi(phi)[:, 0])


def test_every_weight_of_the_discriminator_is_spectrally_normalised():
    gan = make()
    gan.discriminator.train()
    for _ in range(60):  # power iterations
        gan.criticise(torch.rand(2, 3, 32, 32), torch.tensor([1, 2]))
    gan.eval()
    layers = [m for m in gan.discriminator.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == 5 * 3 + 2
    for layer in layers:
        largest = torch.linalg.matrix_norm(layer.weight.flatten(1), 2)
        assert abs(largest - 1) < 0.05


def test_an_item_does_not_depend_on_its_batch():
    gan = randomise(make())
    x, bins = torch.rand(5, 3, 32, 32), torch.tensor([0, 2, 4, 6, 9])
    together = gan(x, bins)
    for i in range(5):
        torch.testing.assert_close(gan(x[i : i + 1], bins[i : i + 1])[0], together[i])
    one = gan.criticise(x[:1], bins[:1])
    torch.testing.assert_close(one, gan.criticise(x, bins)[:1])


def test_bins_change_the_image_but_not_the_code():
    gan = randomise(make())
    x = torch.rand(2, 3, 32, 32)
    z = gan.encode(x)
    a, b = (gan.decode(z, torch.full((2,), k)) for k in (0, 9))
    assert (a - b).abs().mean() > 0.01
    torch.testing.assert_close(a, gan(x, torch.zeros(2, dtype=torch.int64)))


def test_an_untrained_block_is_its_shortcut():
    """No detail is lost: 2 x 2 pixels become channels, and come back."""
    x, bins = torch.rand(1, 2, 8, 8), torch.tensor([3])
    down, up = EncoderBlock(2, 8, True).eval(), GeneratorBlock(8, 2, 10, True).eval()
    with torch.no_grad():
        for block in (down, up):
            block.conv2.bias.zero_()
            block.skip.weight.copy_(torch.eye(8)[:, :, None, None])
            block.skip.bias.zero_()
    torch.testing.assert_close(down(x), nn.functional.pixel_unshuffle(x, 2))
    torch.testing.assert_close(up(down(x), bins), x)


def test_bins_divide_the_unit_interval():
    gan = make(bins=10)
    p = torch.tensor([0.0, 0.05, 0.15, 0.95, 1.0])
    assert gan.bin_of(p).tolist() == [0, 0, 1, 9, 9]


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="size: got 40"):
        ConditionalGAN(size=40)
    with pytest.raises(ValueError, match="bins: got 1"):
        ConditionalGAN(bins=1)
    with pytest.raises(ValueError, match="widths: got None for size 96"):
        ConditionalGAN(size=96)
    with pytest.raises(ValueError, match="widths: got 7"):
        ConditionalGAN(size=64, widths=(4,) * 7)
    gan = make()
    with pytest.raises(ValueError, match="expected images"):
        gan.encode(torch.rand(2, 1, 32, 32))
    with pytest.raises(ValueError, match="bins: got None"):
        gan.decode(gan.encode(torch.rand(1, 3, 32, 32)))


def test_a_checkpoint_holds_all_three_networks(tmp_path):
    gan = make()
    arguments = {"channels": 3, "size": 32, "widths": [4, 8], "blocks": 5, "critic": 4}
    card = Card.from_json(
        {"recipe": "", "about": "", "seed": 0}
        | {"architecture": {"class": "ConditionalGAN", "arguments": arguments}}
    )
    checkpoints.save("gan", gan, card, tmp_path, half=False)
    again = checkpoints.load("gan", kind="gan", folder=tmp_path).model
    x, bins = torch.rand(2, 3, 32, 32), torch.tensor([1, 8])
    torch.testing.assert_close(again(x, bins), gan(x, bins))
    torch.testing.assert_close(again.criticise(x, bins), gan.criticise(x, bins))
