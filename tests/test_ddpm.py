"""Diffusion: schedule against closed forms and diffusers, chain against an analytic denoiser."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from torch import nn
from torch.utils.data import TensorDataset

from cf_utils import core
from cf_utils.models import checkpoints
from cf_utils.models.cards import Card
from cf_utils.models.generators import diffusion, schedule
from cf_utils.models.generators.diffusion import Chain, build, noise_of, to_image, to_model
from cf_utils.models.generators.schedule import linear, select_levels
from cf_utils.training import loop

SMALL = {
    "size": (16, 16),
    "steps": 50,
    "widths": (16, 32),
    "attention": (False, True),
    "head_width": 16,
    "groups": 8,
    "blocks": 1,
}
f64 = {"dtype": torch.float64}


def rand(*shape, seed=0, kind=torch.randn):
    return kind(shape, generator=torch.Generator().manual_seed(seed), **f64)


class Net(nn.Module):
    """Smooth random network of z and t; `parts` is 2 with a variance, 1 without."""

    def __init__(self, parts=2):
        super().__init__()
        torch.manual_seed(0)
        layers = (nn.Conv2d(3, 6, 3, 1, 1), nn.Tanh(), nn.Conv2d(6, 3 * parts, 3, 1, 1))
        self.conv = nn.Sequential(*layers).double()

    def forward(self, z, t):
        return self.conv(z * (1 + t.to(z).view(-1, 1, 1, 1) / 1000))


# ---------------------------------------------------------------- levels


@pytest.mark.parametrize(
    ("steps", "spacing", "levels", "sigma"),
    [
        (500, "50", [0, 10, 20, 31, 41], 0.273),
        (500, "25", [0, 21, 42, 62, 83], 0.506),
        (1000, "100", [0, 10, 20, 30, 40], 0.142),
        (1000, "25", [0, 42, 83, 125, 166], 0.504),
    ],
)
def test_respaced_levels_are_those_of_aces_scripts(steps, spacing, levels, sigma):
    """CelebA, CelebA-HQ, BDD, ImageNet: the original levels, and the noise at the start."""
    s = linear(steps).respace(spacing)
    assert list(s.t[:5]) == levels
    assert abs(s.sigma[4] - sigma) < 5e-4
    assert s.steps_for(sigma) == 5
    assert len(s) == int(spacing)


@given(st.integers(1, 400), st.lists(st.integers(1, 30), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_sections_keep_their_counts_and_their_ends(steps, counts):
    sizes = [steps // len(counts) + (i < steps % len(counts)) for i in range(len(counts))]
    if any(c > s for c, s in zip(counts, sizes, strict=True)):
        with pytest.raises(ValueError, match="cannot keep"):
            select_levels(steps, counts)
        return
    kept, start = select_levels(steps, ",".join(map(str, counts))), 0
    assert kept == sorted(set(kept)) and len(kept) == sum(counts)
    for count, size in zip(counts, sizes, strict=True):
        own = [k - start for k in kept if start <= k < start + size]
        ideal = [i * (size - 1) / max(count - 1, 1) for i in range(count)]
        assert all(abs(k - x) <= 0.5 + 1e-9 for k, x in zip(own, ideal, strict=True))
        start += size


def test_ddim_spacings_have_one_stride_and_bad_spacings_are_refused():
    assert select_levels(1000, "ddim25") == list(range(0, 1000, 40))
    assert select_levels(20, 20) == select_levels(20, "20") == list(range(20))
    for spacing in ("ddim300", "", "5,x", "-3", "0", "ddim5,5", 21):
        with pytest.raises(ValueError, match="spacing: "):
            select_levels(20, spacing)
    too_few = "steps: got 20, the last beta would be 1; expected at least 21"
    with pytest.raises(ValueError, match=too_few):
        linear(20)
    with pytest.raises(ValueError, match="fixed: got 'middle'"):
        linear(50, "middle")


@given(st.integers(21, 200), st.data())
@settings(max_examples=30, deadline=None)
def test_respaced_levels_are_as_noisy_as_the_levels_they_keep(steps, data):
    whole = linear(steps)
    part = whole.respace(data.draw(st.integers(1, steps)))
    abar = (1 - part.betas).cumprod(0)
    torch.testing.assert_close(abar, whole.abar[list(part.t)], rtol=1e-9, atol=1e-14)
    again = part.respace(data.draw(st.integers(1, len(part))))  # keeps the network's numbers
    torch.testing.assert_close(again.abar, whole.abar[list(again.t)], rtol=1e-9, atol=1e-14)


def test_linear_betas_end_at_the_published_values():
    torch.testing.assert_close(linear(1000).betas[[0, 999]], torch.tensor([1e-4, 0.02], **f64))
    torch.testing.assert_close(linear(500).betas[[0, 499]], torch.tensor([2e-4, 0.04], **f64))


@pytest.mark.parametrize("k", [1, 7, 24])
def test_the_posterior_is_gaussian_conditioning(k):
    """From the joint covariance of (z_{k-1}, z_k), which is sqrt(1 - beta) var(z_{k-1})."""
    s = linear(50).respace(25)
    before, beta = s.abar[k - 1], s.betas[k]
    var, cov = 1 - before, (1 - beta).sqrt() * (1 - before)
    total = (1 - beta) * var + beta
    z0, z = rand(4, 3, 2, 2), rand(4, 3, 2, 2, seed=1)
    mean = before.sqrt() * z0 + cov / total * (z - (1 - beta).sqrt() * before.sqrt() * z0)
    torch.testing.assert_close(s.posterior_mean(z0, z, k), mean, rtol=1e-10, atol=1e-12)
    variance = s.log_variances[0][k].exp()
    torch.testing.assert_close(variance, var - cov**2 / total, rtol=1e-10, atol=0)
    restored = s.remove_noise(s.add_noise(z0, k, z), k, z)
    torch.testing.assert_close(restored, z0, rtol=1e-10, atol=1e-10)
    rows = torch.full((4,), k)  # one level per item gives the same numbers
    torch.testing.assert_close(s.posterior_mean(z0, z, rows), mean, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(s.add_noise(z0, rows, z), s.add_noise(z0, k, z))


@pytest.mark.parametrize("kind", ["learned_range", "fixed_large", "fixed_small"])
def test_steps_equal_those_of_diffusers(kind):
    """DDPMScheduler with our respaced betas, which it stores in float32, and the same noise."""
    from diffusers import DDPMScheduler

    s = linear(100, "small" if kind == "fixed_small" else "large").respace("20")
    other = DDPMScheduler(
        len(s), trained_betas=s.betas.tolist(), variance_type=kind, clip_sample=True
    )
    chain, z = Chain(Net(2 if kind == "learned_range" else 1), s), 0.5 * rand(2, 3, 4, 4, seed=2)
    for k in (19, 10, 1, 0):
        with torch.no_grad():
            out = chain.predict(z, k)
            theirs = other.step(out, k, z, generator=torch.Generator().manual_seed(k)).prev_sample
            noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(k), **f64)
            torch.testing.assert_close(chain.step(z, k, noise), theirs, rtol=0, atol=1e-5)  # 7e-7
            assert (chain.step(z, k, noise) - chain.step(z, k)).abs().max() > 1e-3 or k == 0


def test_ddim_steps_equal_those_of_diffusers_and_invert():
    from diffusers import DDIMScheduler

    s = linear(100)
    other = DDIMScheduler(
        100, trained_betas=s.betas.tolist(), clip_sample=False, set_alpha_to_one=True
    )
    other.set_timesteps(100)
    chain, z = Chain(Net(1), s, clip=False), rand(2, 3, 4, 4)
    with torch.no_grad():
        for k in (99, 50, 1, 0):
            out = chain.predict(z, k)
            theirs = other.step(out, k, z, use_clipped_model_output=True).prev_sample
            ours = chain.ddim(z, k, k - 1)
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)  # measured 7e-8
    constant_noise = lambda z, t: rand(2, 3, 4, 4, seed=5)  # noqa: E731
    constant = Chain(constant_noise, s, clip=False)
    back = constant.ddim(constant.ddim(z, 30, 80), 80, 30)
    torch.testing.assert_close(back, z, rtol=1e-10, atol=1e-10)
    clipped = Chain(constant_noise, s).ddim(3 * z, 50, -1)
    assert clipped.abs().max() == 1  # z_0 itself, clipped


def test_the_bound_is_the_divergence_of_two_gaussians():
    """0 for the true step at the lower variance, else the divergence in closed form."""
    s, z0, noise = linear(50), 0.5 * rand(3, 3, 2, 2), rand(3, 3, 2, 2, seed=1)
    k = torch.tensor([5, 20, 49])
    z = s.add_noise(z0, k, noise)
    lower = torch.cat([noise, -torch.ones_like(noise)], 1)
    torch.testing.assert_close(s.bound(z0, z, k, lower), torch.zeros(3, **f64))
    upper = torch.cat([noise, torch.ones_like(noise)], 1)  # the variance is beta
    ratio = (s.log_variances[0] - s.log_variances[1])[k]
    expected = (-ratio - 1 + ratio.exp()) / 2 / torch.log(torch.tensor(2.0, **f64))
    torch.testing.assert_close(s.bound(z0, z, k, upper), expected)


def test_the_bound_at_level_0_is_the_log_probability_of_an_8_bit_value():
    s, first = linear(50), torch.zeros(1, dtype=torch.int64)
    values = torch.tensor([-1, -0.2, 0.6, 1.0], **f64).view(1, 1, 2, 2)
    z = s.add_noise(values, first, rand(1, 1, 2, 2))
    out = torch.zeros(1, 2, 2, 2, **f64)
    mean, log_variance, _ = s.mean_variance(z, first, out, clip=False)
    sd = (log_variance / 2).exp().numpy()
    low, high = ((values + h - mean).numpy() / sd for h in (-1 / 255, 1 / 255))
    chance = norm.cdf(high) - norm.cdf(low)
    chance[0, 0, 0, 0], chance[0, 0, 1, 1] = norm.cdf(high[0, 0, 0, 0]), norm.sf(low[0, 0, 1, 1])
    expected = -torch.from_numpy(chance).log2().mean()
    torch.testing.assert_close(s.bound(values, z, first, out)[0], expected, rtol=1e-6, atol=0)


# ---------------------------------------------------------------- the chain


def perfect_denoiser(schedule, mean, variance, learned):
    """The exact network for pixels drawn from N(mean, variance): expected noise, true variance."""

    def model(z, t):
        k = schedule.t.index(int(t[0]))
        abar, before = schedule.abar[k].item(), schedule.abar_before[k].item()
        eps = (1 - abar) ** 0.5 * (z - abar**0.5 * mean) / (abar * variance + 1 - abar)
        if not learned:
            return eps
        low, high = (x[k] for x in schedule.log_variances)
        share = torch.tensor(0.0, **f64)
        if k:
            beta, v = schedule.betas[k].item(), before * variance + 1 - before  # var(z_{k-1})
            of_step = v - (1 - beta) * v**2 / (abar * variance + 1 - abar)  # v - cov^2 / var(z_k)
            share = (torch.tensor(of_step, **f64).log() - low) / (high - low)
        return torch.cat([eps, torch.full_like(z, 2 * share.item() - 1)], 1)

    return model


@pytest.mark.parametrize(("spacing", "learned"), [(None, True), ("50", True), ("200", False)])
def test_a_perfect_denoiser_draws_the_data(spacing, learned):
    """The chain must reproduce mean and spread of the data, in all steps or a quarter of them."""
    mean = 0.3
    part = linear(200) if spacing is None else linear(200).respace(spacing)
    chain = Chain(perfect_denoiser(part, mean, 0.04, learned), part, clip=False)
    draw = torch.Generator().manual_seed(0)
    noise = lambda k: torch.randn(1, 1, 100, 100, generator=draw, **f64)  # noqa: E731
    z = chain.denoise(noise(0), len(part), noise)
    assert abs(z.mean() - mean) < 0.01  # measured 0.003, 0.002, 0.003; the standard error is 0.002
    assert abs(z.std() - 0.2) < (0.005 if learned else 0.01)  # measured -0.001, -0.001, 0.005
    x = to_image(mean + 0.2 * rand(1, 1, 100, 100, seed=3))
    filtered = to_model(chain.filter(x, len(part) // 4, noise))  # data in, data out
    assert abs(filtered.mean() - mean) < 0.01  # measured 0.002
    assert abs(filtered.std() - 0.2) < 0.01  # measured 0.005


def test_clipping_keeps_the_filtered_image_in_range():
    x = rand(2, 3, 4, 4, kind=torch.rand)
    noise = noise_of(0, torch.arange(2), x, "f")
    wild = Net()
    wild.conv[2].weight.data.mul_(20)
    schedule = linear(50).respace(10)
    free, clipped = (Chain(wild, schedule, clip=c).filter(x, 5, noise) for c in (False, True))
    assert clipped.min() >= 0 and clipped.max() <= 1
    assert free.max() > 1.1


def test_the_gradient_through_all_steps_equals_finite_differences():
    """With learned variance, noise and clipping; checkpointing changes nothing."""
    x, net = 0.3 + 0.4 * rand(2, 3, 4, 4, kind=torch.rand), Net()
    noise = noise_of(3, ("a", "b"), x, "f")

    def value(at, **kw):
        return Chain(net, linear(100).respace(20), **kw).filter(at, 5, noise).square().sum()

    grads = []
    for checkpoint in (False, True):
        z = x.clone().requires_grad_()
        grads.append(torch.autograd.grad(value(z, checkpoint=checkpoint), z)[0])
    torch.testing.assert_close(grads[0], grads[1], rtol=0, atol=0)
    for seed in range(3):
        way = rand(2, 3, 4, 4, seed=seed)
        differences = (value(x + 1e-5 * way) - value(x - 1e-5 * way)) / 2e-5
        slope = (grads[0] * way).sum()
        torch.testing.assert_close(slope, differences, rtol=1e-8, atol=0)  # measured 5e-11
    assert grads[0].abs().max() > 0.1


def test_the_filter_equals_its_steps_written_out():
    x, net = rand(2, 3, 4, 4, kind=torch.rand), Net()
    chain, noise = Chain(net, linear(100).respace(20)), noise_of(3, torch.arange(2), x, "f")
    s = chain.schedule
    z = s.abar[4].sqrt() * (2 * x - 1) + s.sigma[4] * noise(5)
    for k in (4, 3, 2, 1, 0):
        mean, log_variance, _ = s.mean_variance(z, k, net(z, torch.full((2,), s.t[k])))
        z = mean + (noise(k) * (log_variance / 2).exp() if k else 0)
    torch.testing.assert_close(chain.filter(x, 5, noise), (z + 1) / 2, rtol=1e-12, atol=1e-12)
    for steps in (0, 21):
        with pytest.raises(ValueError, match=f"steps: got {steps}, expected 1 to 20"):
            chain.filter(x, steps, noise)
    passes = []
    counted = dataclasses.replace(chain, model=lambda z, t: passes.append(len(z)) or net(z, t))
    counted.filter(x, 5, noise)
    assert passes == [2] * 5


# ---------------------------------------------------------------- the model


def small(**changes):
    torch.manual_seed(0)
    model = build(**(SMALL | changes))
    nn.init.normal_(model.unet.conv_out.weight, std=0.3)
    return model.double().eval()


def test_filtering_treats_items_independently():
    model, x, ids = small(), rand(4, 3, 16, 16, kind=torch.rand), torch.tensor([7, 3, 9, 1])
    chain = model.chain("10")
    with torch.no_grad():
        batch = chain.filter(x, 4, noise_of(0, ids, x, "f"))
        reordered = chain.filter(x.flip(0), 4, noise_of(0, ids.flip(0), x, "f")).flip(0)
        alone = chain.filter(x[2:3], 4, noise_of(0, ids[2:3], x[2:3], "f"))
        other = chain.filter(x, 4, noise_of(0, ids, x, "g"))
    torch.testing.assert_close(reordered, batch, rtol=0, atol=1e-12)
    torch.testing.assert_close(alone, batch[2:3], rtol=0, atol=1e-12)  # measured 2e-14
    assert (other - batch).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("unshuffle", "learned", "size"),
    [(1, True, (16, 16)), (2, False, (16, 32)), (4, True, (32, 32))],
)
def test_outputs_have_the_shape_of_the_images(unshuffle, learned, size):
    changes = {"unshuffle": unshuffle, "learned_variance": learned, "size": size}
    with torch.device("meta"):
        model = build(**(SMALL | changes))
        out = model(torch.empty(2, 3, *size), torch.zeros(2, dtype=torch.int64))
    assert out.shape == (2, 6 if learned else 3, *size) and out.is_meta


def test_the_default_model_is_small():
    with torch.device("meta"):
        assert 2e6 < sum(p.numel() for p in build().parameters()) < 4e6  # 3,161,480


def test_folded_pixels_return_to_their_places():
    """If the network predicts its input as the noise, so does the model, pixel by pixel."""
    model = small()

    class Echo(nn.Module):
        def forward(self, z, t):
            return type("Out", (), {"sample": torch.cat([z, 2 * z], 1)})

    model.unet, z = Echo(), rand(2, 3, 16, 16)
    torch.testing.assert_close(model(z, torch.zeros(2)), torch.cat([z, 2 * z], 1), rtol=0, atol=0)


class Constant(nn.Module):
    """A network that always predicts `sample`."""

    def __init__(self, sample):
        super().__init__()
        self.sample = sample

    def forward(self, z, t):
        return self


def test_a_network_that_predicts_v_gives_a_model_that_predicts_the_noise():
    """The true v becomes the true noise, and an error of v is one of z_0, at every level."""
    model, x, noise = small(prediction="v"), rand(4, 3, 16, 16), rand(4, 3, 16, 16)
    s, k = model.schedule, torch.tensor([0, 9, 30, 49])
    z = s.add_noise(x, k, noise)
    a, b = (v[k].view(-1, 1, 1, 1) for v in (s.abar.sqrt(), s.sigma))
    v = a * noise - b * x
    for error in (0.0, 0.1):
        folded = torch.nn.functional.pixel_unshuffle(v + error, 2)
        model.unet = Constant(torch.cat([folded, 2 * folded], 1))
        out = model(z, k)
        torch.testing.assert_close(out[:, :3], noise + a * error, rtol=0, atol=1e-12)
        torch.testing.assert_close(out[:, 3:], 2 * (v + error), rtol=0, atol=0)  # the variance
        z0 = s.remove_noise(z, k, out[:, :3])
        torch.testing.assert_close(z0, x - b * error, rtol=0, atol=1e-9)
    with pytest.raises(ValueError, match="prediction: got 'x0'"):
        small(prediction="x0")


def test_bad_settings_and_sizes_are_refused():
    for wrong, says in (
        ({"size": (18, 16)}, "size: got .18, 16., expected multiples of 4"),
        ({"groups": 5}, "widths: got"),
        ({"attention": (True,)}, "widths: got"),
        ({"head_width": 24}, "head_width: 24 does not divide"),
    ):
        with pytest.raises(ValueError, match=says):
            build(**(SMALL | wrong))
    other = r"z: got shape \(1, 3, 32, 32\), this .* model was trained on \(B, 3, 16, 16\)"
    x = rand(1, 3, 32, 32, kind=torch.rand)
    with pytest.raises(ValueError, match=other):
        small().chain("10").filter(x, 2, lambda k: rand(1, 3, 32, 32))


def test_a_checkpoint_restores_settings_and_weights(tmp_path, monkeypatch):
    model = small().float()
    card = Card(architecture=diffusion.describe_architecture(model))
    checkpoints.save("tiny_ddpm", model, card, tmp_path, half=False)
    monkeypatch.setattr(checkpoints, "FOLDER", tmp_path)
    again, z = checkpoints.load("tiny_ddpm").model, torch.randn(1, 3, 16, 16)
    assert again.settings == model.settings and len(again.schedule) == 50 and not again.training
    assert torch.equal(again(z, torch.tensor([3])), model(z, torch.tensor([3])))
    with pytest.raises(FileNotFoundError, match=r"no_ddpm\.json is missing"):
        checkpoints.load("no_ddpm")
    with pytest.raises(ValueError, match="model: got one with published weights"):
        diffusion.describe_architecture(diffusion.DDPM(nn.Identity(), (16, 16), 50))


# ---------------------------------------------------------------- training


class Oracle(nn.Module):
    """Knows z_0: predicts the true noise plus `error`, and a middle variance if `parts` is 2."""

    def __init__(self, z0, error=0.0, parts=2, prediction="epsilon"):
        super().__init__()
        self.prediction, self.channels, self.schedule = prediction, 3, linear(50)
        self.z0, self.error, self.parts, self.seen = z0, error, parts, []

    def forward(self, z, t):
        self.seen.append(t)
        s = self.schedule
        eps = (z - schedule._at(s.abar.sqrt(), t, z) * self.z0) / schedule._at(s.sigma, t, z)
        return torch.cat([eps + self.error, torch.zeros_like(z)][: self.parts], 1)


def test_the_loss_equals_its_formula():
    x = rand(64, 3, 2, 2, kind=torch.rand)
    for error, expected in ((0.0, 0.0), (0.5, 0.25)):
        got = diffusion.loss(Oracle(2 * x - 1, error, 1), (x,))
        torch.testing.assert_close(got, torch.tensor(expected, **f64), rtol=0, atol=1e-9)
    assert diffusion.loss(Oracle(2 * x - 1, 0.0, 1), (x,)) <= 1e-12
    torch.manual_seed(0)
    model = Oracle(2 * x - 1, 0.5)
    got = diffusion.loss(model, (x, None, None))
    torch.manual_seed(0)
    torch.rand(64)
    k, s = (torch.rand(64) * 50).long(), model.schedule
    assert torch.equal(k, model.seen[0])
    z = s.add_noise(2 * x - 1, k, torch.randn_like(x))
    term = s.bound(2 * x - 1, z, k, model(z, k)).mean()
    torch.testing.assert_close(got, 0.25 + 50 / 1000 * term)
    assert term > 0


def test_the_loss_of_v_is_the_squared_error_of_v():
    x = rand(64, 3, 2, 2, kind=torch.rand)
    torch.manual_seed(0)
    model = Oracle(2 * x - 1, 0.5, 1, "v")
    got = diffusion.loss(model, (x,))
    v = 0.5 / model.schedule.abar[model.seen[0]].sqrt()  # an error of eps in units of v
    torch.testing.assert_close(got, v.square().mean(), rtol=1e-9, atol=0)


def test_a_given_share_of_items_draws_low_levels():
    x = torch.zeros(4000, 3, 1, 1, **f64)
    for low, steps, share in ((0.0, None, 0.2), (0.5, None, 0.6), (1.0, 5, 1.0)):
        model = Oracle(2 * x - 1, 0.0, 1)
        diffusion.loss(model, (x,), low=low, low_steps=steps)
        k = model.seen[0]
        assert abs((k < 10).double().mean() - share) < 0.03  # of 50 levels, 10 are the lowest fifth
        assert k.max() == (4 if steps else 49) and k.min() == 0


def test_the_loss_in_bfloat16_is_close_to_float32():
    x, losses = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)), []
    model, seen = small().float(), []
    model.unet.conv_out.register_forward_hook(lambda m, i, o: seen.append(o.dtype))
    for half in (False, True):
        torch.manual_seed(0)
        losses.append(diffusion.loss(model, (x,), bfloat16=half).item())
    assert seen == [torch.float32, torch.bfloat16]
    assert losses[0] != losses[1] and abs(losses[1] / losses[0] - 1) < 0.02  # measured 1e-4


def test_the_bound_trains_only_the_variance():
    """The gradient by the noise is that of the squared error alone."""
    x, model = rand(4, 3, 4, 4, kind=torch.rand), Net()
    model.channels = 3
    grads = []
    for parts in (6, 3):
        torch.manual_seed(1)
        cut = nn.Module()
        cut.channels, cut.schedule, cut.prediction = 3, linear(50), "epsilon"
        cut.forward = lambda z, t, parts=parts: model(z, t)[:, :parts]
        model.zero_grad()
        diffusion.loss(cut, (x,)).backward()
        grads.append(model.conv[2].weight.grad.clone())
    torch.testing.assert_close(grads[0][:3], grads[1][:3], rtol=0, atol=1e-12)
    assert grads[0][3:].abs().max() > 1e-5 and grads[1][3:].abs().max() == 0


def test_training_with_averaged_weights_learns_to_denoise():
    """One epoch on stripes of two phases: the filter must remove part of the noise."""
    core.seed_everything(0)
    stripes = torch.tensor([0.1, 0.9]).repeat(4).view(1, 1, 1, 8).expand(2, 3, 8, 8).clone()
    stripes[1] = stripes[1].flip(-1)
    model = build(**SMALL | {"size": (8, 8), "attention": (False, False)})
    log = loop.fit(
        model,
        TensorDataset(stripes.repeat(1280, 1, 1, 1)),
        [loop.Part(diffusion.loss, 1e-2)],
        epochs=1,
        batch_size=32,
        ema=0.9,
        device="cpu",
    )
    x, noise = stripes, noise_of(0, torch.arange(2), stripes, "f")
    with torch.no_grad():
        chain = model.chain("25")
        filtered = chain.filter(x, 4, noise)
        noisy = to_image(chain.schedule.add_noise(to_model(x), 3, noise(4)))
        drawn = chain.sample(noise_of(1, torch.arange(8), stripes.repeat(4, 1, 1, 1), "s"))
    assert log["steps"] == 80
    error, before = (filtered - x).abs().mean(), (noisy - x).abs().mean()
    assert error < 0.7 * before, (error, before)  # measured 0.57; after half of the steps 0.83
    assert drawn.shape == (8, 3, 8, 8) and drawn.min() >= 0 and drawn.max() <= 1
