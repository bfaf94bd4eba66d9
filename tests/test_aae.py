"""The adversarial autoencoder: each loss alone against values by hand, what each may change, and the shipped weights."""

import math

import pytest
import torch
from torch import nn

from cf_utils.datasets import mnist
from cf_utils.models import checkpoints
from cf_utils.models.generators import adversarial_autoencoder
from cf_utils.training import loop

SHIPPED = pytest.mark.skipif(
    not (checkpoints.FOLDER / "mnist_aae.json").exists(), reason="checkpoint not made yet"
)


def tiny() -> adversarial_autoencoder.AdversarialAutoencoder:
    torch.manual_seed(0)
    return adversarial_autoencoder.AdversarialAutoencoder((1, 3, 4), latent=2, hidden=8, critic=8)


def test_reconstruction_loss_is_summed_over_pixels_and_averaged_over_images():
    made, x = torch.tensor([[0.5, 0.5], [0.9, 0.2]]), torch.tensor([[1.0, 0.0], [1.0, 0.3]])
    second = -math.log(0.9) - 0.3 * math.log(0.2) - 0.7 * math.log(0.8)
    assert adversarial_autoencoder.reconstruction_loss(made, x).item() == pytest.approx(
        (2 * math.log(2) + second) / 2, rel=1e-5
    )
    assert adversarial_autoencoder.reconstruction_loss(
        torch.cat([made, made]), torch.cat([x, x])
    ).item() == pytest.approx(adversarial_autoencoder.reconstruction_loss(made, x).item(), rel=1e-5)


def test_discriminator_loss_by_hand():
    logit = lambda p: math.log(p / (1 - p))  # noqa: E731
    prior, codes = torch.tensor([logit(0.8), logit(0.5)]), torch.tensor([logit(0.25)])
    by_hand = -(math.log(0.8) + math.log(0.5)) / 2 - math.log(0.75)
    assert adversarial_autoencoder.discriminator_loss(prior, codes).item() == pytest.approx(
        by_hand, rel=1e-5
    )
    assert adversarial_autoencoder.discriminator_loss(
        torch.zeros(5), torch.zeros(7)
    ).item() == pytest.approx(2 * math.log(2), rel=1e-5)
    assert (
        adversarial_autoencoder.discriminator_loss(torch.tensor([9.0]), torch.tensor([-9.0]))
        < 1e-3
        < adversarial_autoencoder.discriminator_loss(torch.tensor([-9.0]), torch.tensor([9.0]))
    )  # the right way round


def test_generator_loss_by_hand():
    codes = torch.tensor([math.log(0.8 / 0.2), math.log(0.1 / 0.9)])
    assert adversarial_autoencoder.generator_loss(codes).item() == pytest.approx(
        -(math.log(0.8) + math.log(0.1)) / 2, rel=1e-5
    )
    assert (
        adversarial_autoencoder.generator_loss(torch.tensor([9.0])) < 1e-3
    )  # codes that pass for the prior cost nothing


def test_each_loss_reaches_the_parts_it_trains():
    x = torch.rand(6, 1, 3, 4)
    reached = {}
    for loss in (
        adversarial_autoencoder.reconstruction,
        adversarial_autoencoder.discrimination,
        adversarial_autoencoder.deception,
    ):
        m = tiny()
        loss(m, (x, None, None)).backward()
        reached[loss.__name__] = {
            name
            for name, part in m.named_children()
            if any(q.grad is not None and q.grad.any() for q in part.parameters())
        }
    assert reached["reconstruction"] == {"encoder", "decoder"}
    assert reached["discrimination"] == {"discriminator"}  # codes detached
    assert {"encoder"} <= reached["deception"] <= {"encoder", "discriminator"}


def test_batch_losses_are_the_losses_of_codes_and_prior():
    m, x = tiny(), torch.rand(6, 1, 3, 4)
    codes = m.encoder(x)
    assert torch.equal(
        adversarial_autoencoder.deception(m, (x,)),
        adversarial_autoencoder.generator_loss(m.discriminator(codes)),
    )
    assert torch.equal(
        adversarial_autoencoder.reconstruction(m, (x,)),
        adversarial_autoencoder.reconstruction_loss(m.decoder(codes), x),
    )
    torch.manual_seed(3)
    got = adversarial_autoencoder.discrimination(m, (x,))
    torch.manual_seed(3)
    assert torch.equal(
        got,
        adversarial_autoencoder.discriminator_loss(
            m.discriminator(torch.randn(6, 2)), m.discriminator(codes)
        ),
    )


def test_shapes_and_range():
    m, x = tiny(), torch.rand(5, 1, 3, 4)
    assert m.encoder(x).shape == (5, 2) and m.discriminator(m.encoder(x)).shape == (5,)
    assert m(x).shape == x.shape and m(x).min() >= 0 and m(x).max() <= 1


def test_adversarial_training_pulls_codes_to_the_prior():
    """Without the adversary nothing keeps codes near N(0, 1); with it their spread does come near 1."""
    torch.manual_seed(0)
    side = torch.randint(0, 2, (512, 1)).float()
    x = (0.2 + 0.6 * side + 0.2 * torch.rand(512, 4)).clamp(0, 1)
    data = torch.utils.data.TensorDataset(x, side[:, 0].long(), torch.arange(512))
    both = [
        loop.Part(
            adversarial_autoencoder.reconstruction,
            3e-3,
            lambda m: [*m.encoder.parameters(), *m.decoder.parameters()],
        ),
        loop.Part(
            adversarial_autoencoder.discrimination,
            3e-3,
            lambda m: m.discriminator.parameters(),
            betas=(0.5, 0.999),
        ),
        loop.Part(
            adversarial_autoencoder.deception,
            3e-3,
            lambda m: m.encoder.parameters(),
            betas=(0.5, 0.999),
        ),
    ]
    off = {}
    for name, parts in (("with", both), ("without", both[:1])):
        torch.manual_seed(1)
        m = adversarial_autoencoder.AdversarialAutoencoder((4,), latent=1, hidden=16, critic=16)
        loop.fit(m, data, parts, epochs=50, batch_size=64, device="cpu")
        codes = m.encoder(x).detach()
        off[name] = abs(math.log(codes.std().item())) + codes.mean().abs().item()
    assert off["with"] < 0.35 < off["without"], off  # measured 0.29, 0.59


@SHIPPED
def test_the_shipped_autoencoder_does_what_its_card_says():
    (m, card), digits = checkpoints.load("mnist_aae"), mnist.load("", "test")
    q = adversarial_autoencoder.quality(m, digits.x[:500], checkpoints.load("mnist_cnn").model)
    assert q["reconstruction_error"] < 0.07, q  # measured 0.058
    assert q["classifier_agreement"] > 0.8, q  # measured 0.918
    assert 0.4 < q["discriminator_accuracy"] < 0.7, q  # measured 0.507
    assert (checkpoints.FOLDER / "mnist_aae.safetensors").stat().st_size <= 2**20
    for key in ("reconstruction_error", "classifier_agreement", "discriminator_accuracy"):
        assert q[key] == pytest.approx(
            card.quality[key], abs=0.06
        )  # other digits, stored in float16


def test_quality_of_known_parts():
    """A decoder that returns the image itself and a discriminator that says "prior" to all but far codes."""

    class Perfect(nn.Module):
        encoder, decoder = nn.Identity(), nn.Identity()

        def discriminator(self, z):
            return 1.0 - z.norm(dim=1) / 100

    x = torch.full((40, 2), 1000.0)
    q = adversarial_autoencoder.quality(Perfect(), x, nn.Identity())
    assert q["reconstruction_error"] == 0 and q["classifier_agreement"] == 1
    assert q["discriminator_accuracy"] == 1 and q["codes_accepted"] == 0


def test_a_missing_checkpoint_says_how_to_make_it():
    with pytest.raises(FileNotFoundError, match=r"cf train no_such"):
        checkpoints.load("no_such")
