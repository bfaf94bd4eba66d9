"""The VAE against closed forms, torch.distributions and a second implementation of its blocks."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Normal, kl_divergence

from cf_utils import worlds
from cf_utils.models import checkpoints
from cf_utils.models.cards import Card
from cf_utils.models.generators import vae
from cf_utils.models.generators.latent import LatentModel
from cf_utils.models.generators.vae import VAE, Posterior, ResidualBlock
from cf_utils.training.recipes import RECIPES, renders
from cf_utils.training.recipes import vae as recipes
from cf_utils.worlds import lung_ct_scan

TINY = {"size": (16, 32), "channels": 1, "widths": (4, 4, 6, 6, 8), "latent": 2}
CODE = (2, 2, 4)  # of TINY


def make_model(**changes) -> VAE:
    """Return a small VAE in float64 and eval mode with running statistics unlike 0 and 1."""
    torch.manual_seed(0)
    model = VAE(**(TINY | changes)).double().eval()
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.2)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return model


def draw_images(n=6, shape=(1, 16, 32), seed=1):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed)).double()


# ---------------------------------------------------------------- architecture


@pytest.mark.parametrize("factor", [8, 16])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(16, 16), (48, 32), (64, 64)])
def test_any_size_divisible_by_16_with_one_or_three_channels(size, channels, factor):
    model = make_model(size=size, channels=channels, factor=factor)
    x = draw_images(2, (channels, *size))
    z = model.encode(x)
    assert isinstance(model, LatentModel)
    assert z.shape == (2, 2, size[0] // factor, size[1] // factor)
    y = model.decode(z)
    assert y.shape == x.shape and (y > 0).all() and (y < 1).all()


def test_the_widths_set_the_number_of_parameters():
    def count(**changes):
        return sum(p.numel() for p in VAE(**changes).parameters()) / 1e6

    assert 1.0 < count() < 1.2  # 1.10
    assert 2.0 < count(widths=(16, 32, 64, 144, 176)) < 2.1  # 2.07


@pytest.mark.parametrize("factor", [8, 16])
def test_both_sides_have_five_blocks_from_the_image_to_the_code(factor):
    model, sizes = make_model(factor=factor), []
    blocks = [m for m in model.modules() if isinstance(m, ResidualBlock)]
    for block in blocks:
        block.register_forward_hook(lambda m, i, o: sizes.append(tuple(o.shape[2:])))
    model(draw_images(1))
    small = [(1, 2)] if factor == 16 else [(2, 4)]
    down, up = [(8, 16), (4, 8), (2, 4)], [(4, 8), (8, 16), (16, 32)]
    assert sizes == down + 2 * small + small + [(2, 4)] + up


def test_a_vector_is_a_code_without_places():
    """Encoder and decoder end and begin with one linear map of the whole last grid."""
    model, x = make_model(vector=True, latent=5, factor=16), draw_images()
    z = model.encode(x)
    assert z.shape == (6, 5) and model(x).shape == x.shape
    grid = model.encoder[:-2](2 * x - 1)
    assert grid.shape[1:] == (TINY["widths"][-1], 1, 2)
    linear = model.encoder[-1]
    torch.testing.assert_close(z, (grid.flatten(1) @ linear.weight.T + linear.bias)[:, :5])
    first = model.decoder[0]
    torch.testing.assert_close(
        model.decoder[:2](z), (z @ first.weight.T + first.bias).view(6, *grid.shape[1:])
    )
    assert model.posterior(x).kl().shape == (6, 5)


def test_a_block_is_bn_relu_conv_twice_plus_a_shortcut():
    torch.manual_seed(0)
    block = ResidualBlock(3, 5, before=vae._double, after=vae._halve).double().train()
    h = torch.randn(4, 3, 6, 6).double()

    def norm(v):
        mean, var = v.mean((0, 2, 3), keepdim=True), v.var((0, 2, 3), keepdim=True, correction=0)
        return (v - mean) / (var + 1e-5).sqrt()

    def repeat(v):
        return v.repeat_interleave(2, 2).repeat_interleave(2, 3)

    r = F.conv2d(repeat(norm(h).clamp(min=0)), block.conv1.weight, padding=1)
    r = F.conv2d(norm(r).clamp(min=0), block.conv2.weight, block.conv2.bias, padding=1)
    r = r + repeat(F.conv2d(h, block.shortcut.weight, block.shortcut.bias))
    expected = r.unflatten(2, (6, 2)).unflatten(4, (6, 2)).mean((3, 5))
    torch.testing.assert_close(block(h), expected, atol=1e-10, rtol=0)


# ---------------------------------------------------------------- codes


def test_encode_returns_the_mean_and_draws_nothing():
    model, x = make_model(), draw_images()
    state = torch.get_rng_state()
    z = model.encode(x)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(z, model.posterior(x).mean)
    assert torch.equal(model(x), model.decode(z))


def test_draws_have_the_mean_and_the_variance():
    q = Posterior(torch.tensor([[1.0, -2.0]]), torch.tensor([[math.log(0.25), math.log(4.0)]]))
    torch.manual_seed(0)
    draws = Posterior(*(v.expand(100_000, 2) for v in q)).sample()
    torch.testing.assert_close(draws.mean(0), q.mean[0], atol=0.03, rtol=0)
    torch.testing.assert_close(draws.std(0), torch.tensor([0.5, 2.0]), atol=0.02, rtol=0)


def test_kl_equals_torch():
    gen = torch.Generator().manual_seed(0)
    mean, log_variance = (torch.randn(7, 5, generator=gen).double() for _ in range(2))
    expected = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(Posterior(mean, log_variance).kl(), expected)
    assert not Posterior(torch.zeros(1, 3), torch.zeros(1, 3)).kl().any()


def test_an_item_does_not_depend_on_its_batch_in_eval_mode():
    model, x = make_model(), draw_images()
    together = model(x), model.posterior(x).log_variance
    order = torch.tensor([3, 0, 5])
    for all_items, part in zip(
        together, (model(x[order]), model.posterior(x[order]).log_variance), strict=True
    ):
        torch.testing.assert_close(part, all_items[order], atol=1e-12, rtol=0)
    model.train()  # batch statistics: the same comparison must fail there
    assert (model(x)[order] - model(x[order])).abs().max() > 1e-4


# ---------------------------------------------------------------- loss


def test_the_loss_equals_its_definition():
    model, x = make_model(), draw_images()
    torch.manual_seed(5)
    got = vae.loss(model, (x, "targets are ignored"), beta=0.3)
    torch.manual_seed(5)
    q = model.posterior(x)
    z = q.mean + (q.log_variance / 2).exp() * torch.randn(6, *CODE, dtype=torch.float64)
    expected = 0.0
    for i in range(6):
        squared = ((x[i] - model.decode(z)[i]) ** 2).sum() / 2
        normal = Normal(q.mean[i], (q.log_variance[i] / 2).exp())
        expected += (squared + 0.3 * kl_divergence(normal, Normal(0.0, 1.0)).sum()) / 6
    torch.testing.assert_close(got, expected)


def test_every_parameter_gets_a_gradient_and_they_equal_finite_differences():
    model, x = make_model().train(), draw_images()

    def evaluate():
        torch.manual_seed(2)
        return vae.loss(model, (x,), beta=0.5)

    evaluate().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
    last = model.encoder[-1].bias  # two means, then two log variances
    for k in (0, 3):
        with torch.no_grad():
            last[k] += 1e-6
            high = evaluate()
            last[k] -= 2e-6
            low = evaluate()
            last[k] += 1e-6
        assert last.grad[k] == pytest.approx(float((high - low) / 2e-6), rel=1e-3)


def test_encode_and_decode_are_differentiable_in_their_input():
    model = make_model(size=(16, 16), widths=(2, 2, 2, 2, 2), latent=1)
    model.requires_grad_(False)
    z = torch.randn(1, 1, 2, 2, generator=torch.Generator().manual_seed(3))
    z = z.double().requires_grad_(True)
    torch.autograd.gradcheck(lambda z: model.decode(z)[..., ::5, ::5], z)
    x = draw_images(1, (1, 16, 16)).requires_grad_(True)
    torch.autograd.gradcheck(model.encode, x)


def test_bfloat16_gives_nearly_the_same_loss_in_float32():
    torch.manual_seed(0)
    model, x = VAE(**TINY), draw_images(16).float()
    losses = []
    for bfloat16 in (False, True):
        torch.manual_seed(1)
        losses.append(vae.loss(model, (x,), beta=0.01, bfloat16=bfloat16))
    assert losses[1].dtype == torch.float32 and losses[0] != losses[1]
    torch.testing.assert_close(losses[1], losses[0], rtol=0.01, atol=0)  # measured 0.0005


def test_training_reconstructs_images_better_than_their_mean():
    side = torch.linspace(-1, 1, 16)
    centre = torch.rand(32, 2, 1, 1, generator=torch.Generator().manual_seed(0)) - 0.5
    x = torch.exp(-8 * ((side[:, None] - centre[:, 0]) ** 2 + (side - centre[:, 1]) ** 2))[:, None]
    torch.manual_seed(0)
    model = VAE((16, 16), 1, (4, 8, 8, 8, 8), 2)
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(120):
        optimiser.zero_grad()
        vae.loss(model, (x,), beta=1e-2).backward()
        optimiser.step()
    found = vae.measure_quality(model.eval(), x)
    assert found["reconstruction_mse"] < 0.5 * (x - x.mean(0)).square().mean()  # measured 0.29
    assert 2 <= found["active_units"] <= found["latent"] == 8 and found["kl"] > 2


# ---------------------------------------------------------------- quality


class Known(VAE):
    """Codes and reconstructions with known quality: decode gives 0.25 everywhere."""

    def posterior(self, x):
        spread = torch.zeros(CODE)
        spread[0, 0, :3] = torch.tensor([1.0, 0.05, 0.2])
        sign = 1 - 2 * (torch.arange(len(x)) % 2).to(x)
        mean = sign[:, None, None, None] * spread
        return Posterior(mean, torch.zeros_like(mean))

    def decode(self, z):
        return torch.full((len(z), 1, 16, 32), 0.25).to(z)


def test_quality_in_closed_form():
    x = torch.cat([torch.zeros(100, 1, 16, 32), torch.ones(100, 1, 16, 32)]).double()
    found = vae.measure_quality(Known(**TINY).double(), x, batch_size=2)
    assert found["n"] == 200 and found["latent"] == 16
    assert found["reconstruction_l1"] == pytest.approx((0.25 + 0.75) / 2)
    assert found["reconstruction_mse"] == pytest.approx((0.25**2 + 0.75**2) / 2)
    assert found["kl"] == pytest.approx((1 + 0.05**2 + 0.2**2) / 2)
    assert found["active_units"] == 2  # variances 1 and 0.04 exceed 0.01; 0.0025 does not


# ---------------------------------------------------------------- bad input, checkpoint, recipes


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"size": (16, 20)}, r"size: got \(16, 20\), expected two multiples of 16"),
        ({"size": (64,)}, "size: got"),
        ({"size": (0, 16)}, "size: got"),
        ({"channels": 2}, "channels: got 2, expected 1 or 3"),
        ({"widths": (8, 8, 8, 8)}, "widths: got .*five"),
        ({"widths": (8, 8, 0, 8, 8)}, "widths: got 0"),
        ({"latent": 0}, "latent: got 0"),
        ({"factor": 4}, "factor: got 4, expected 8 or 16"),
    ],
)
def test_architectures_that_cannot_be_built_are_refused(changes, says):
    with pytest.raises(ValueError, match=says):
        VAE(**(TINY | changes))


@pytest.mark.parametrize("shape", [(3, 16, 32), (1, 32, 16), (1, 64, 64)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"x: got shape .*expected \(B, \(1, 16, 32\)\)"):
        make_model().encode(draw_images(2, shape))


def test_a_checkpoint_gives_the_same_outputs(tmp_path):
    model, x = make_model().float(), draw_images().float()
    card = Card(architecture={"class": "VAE", "arguments": TINY})
    checkpoints.save("tiny", model, card, tmp_path, half=False)
    loaded = checkpoints.load("tiny", folder=tmp_path, kind="autoencoder").model
    torch.testing.assert_close(loaded(x), model(x))


def test_half_of_the_batches_are_mirrored_if_the_world_allows_it(monkeypatch):
    x, seen = draw_images(2), []
    monkeypatch.setattr(vae, "loss", lambda module, batch, beta: seen.append(batch[0]))
    for mirror in (True, False):
        torch.manual_seed(0)
        for _ in range(200):
            recipes.mirrored_loss(None, (x,), mirror, beta=0.1)
    flipped = [torch.equal(batch, x.flip(3)) for batch in seen]
    assert all(f or torch.equal(batch, x) for f, batch in zip(flipped, seen, strict=True))
    assert 70 < sum(flipped[:200]) < 130 and not any(flipped[200:])


def test_the_recipe_trains_on_renders_of_the_world_and_measures_other_ones(monkeypatch):
    calls = {}

    def fit(module, data, parts, **settings):
        calls.update(settings, data=data, loss=parts[0].loss)
        return {"seconds": 0.0}

    monkeypatch.setattr(recipes.loop, "fit", fit)
    small = {"n": 40, "epochs": 1, "widths": (2, 2, 2, 2, 2), "latent": 1, "beta": 0.5}
    trained = recipes.train_vae("faces", 0, None, mirror=True, **small)
    assert calls["settings"] == trained.card["settings"] and len(calls["data"]) == 40
    assert calls["loss"].keywords == {"mirror": True, "beta": 0.5, "bfloat16": True}
    rendered = worlds.get("faces").render(worlds.get("faces").sample(2, "train", seed=0))
    torch.testing.assert_close(calls["data"][1][0], rendered[1], atol=0.501 / 255, rtol=0)
    assert trained.card["architecture"]["arguments"]["channels"] == 3
    assert {"faces_vae", "radiographs_vae"} <= RECIPES.keys()


@pytest.mark.skipif(not lung_ct_scan.exists(), reason=f"no scan: run {lung_ct_scan.HOW}")
def test_a_recipe_of_slices_trains_on_single_slices_of_patients(monkeypatch):
    calls = {}

    def fit(module, data, parts, **settings):
        calls.update(data=data)
        return {"seconds": 0.0}

    monkeypatch.setattr(recipes.loop, "fit", fit)
    small = {"widths": (2, 2, 2, 2, 2), "latent": 3, "vector": True, "sliced": True}
    trained = recipes.train_vae("lung_ct", 0, None, n=3, epochs=1, mirror=False, **small)
    world = worlds.get("lung_ct")
    x = world.render(world.sample(3, "train", seed=0))
    assert len(calls["data"]) == 12
    torch.testing.assert_close(calls["data"][7][0], x[1, 3:], atol=0.501 / 255, rtol=0)
    assert trained.card["architecture"]["arguments"]["channels"] == 1
    model = trained.model.eval()
    test = renders.render_bytes(world.sample(125, "test", seed=0)).flatten(0, 1)[:, None] / 255
    found = trained.measure(model)
    error = (model(test) - test).detach().square().flatten(1).mean(1)
    assert found["n"] == 500 and found["latent"] == 3
    assert found["psnr"] == pytest.approx((-10 * error.log10()).mean().item(), rel=1e-4)


def test_the_shipped_model_reconstructs_faces_as_its_card_says():
    model, card = checkpoints.load("faces_vae", kind="autoencoder", data=worlds.get("faces"))
    x = worlds.get("faces").render(worlds.get("faces").sample(48, "test", seed=0))
    found = vae.measure_quality(model, x)
    for name in ("reconstruction_l1", "reconstruction_mse", "kl"):
        assert found[name] == pytest.approx(card.quality[name], rel=0.15)
    assert card.parameters == sum(p.numel() for p in model.parameters()) < 1.2e6
