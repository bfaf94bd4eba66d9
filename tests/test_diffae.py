"""Diffusion autoencoder: Eq. 1 and its inversion in closed form, conditioning, loss, recipe."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cf_utils import worlds
from cf_utils.evaluation.metrics.reconstruction import psnr
from cf_utils.models import checkpoints
from cf_utils.models.cards import Card
from cf_utils.models.generators import adaptive_unet, diffae
from cf_utils.models.generators.adaptive_unet import AdaptiveNorm, ResidualBlock, group_norm
from cf_utils.models.generators.diffae import DiffusionAutoencoder, loss
from cf_utils.models.generators.diffae_rows import reconstruct_rows
from cf_utils.models.generators.slices import split_slices
from cf_utils.training.recipes import RECIPES
from cf_utils.training.recipes import diffae as recipes

TINY = {
    "size": (16, 32),
    "latent": 3,
    "steps": 100,
    "unshuffle": 2,
    "widths": (8, 16),
    "encoder_widths": (8, 16),
    "groups": 4,
}
f64 = {"dtype": torch.float64}


def rand(*shape, seed=0, kind=torch.randn):
    return kind(shape, generator=torch.Generator().manual_seed(seed), **f64)


def make_model(kind=DiffusionAutoencoder, **changes):
    """An untrained model whose zero-initialised layers are random, too."""
    torch.manual_seed(0)
    model = kind(**(TINY | changes)).double()
    for weight in model.parameters():
        if not weight.any():
            nn.init.normal_(weight, std=0.1)
    return model.eval()


def draw_images(n=4, seed=0):
    return rand(n, 1, 16, 32, seed=seed, kind=torch.rand)


# ---------------------------------------------------------------- normalisation and networks


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_group_norm_equals_torch(dtype):
    h, scale, shift = 0.5 + rand(3, 8, 4, 6), rand(3, 8, seed=1), rand(3, 8, seed=2)
    h = h.to(dtype).contiguous(memory_format=torch.channels_last)
    expected = F.group_norm(h.double(), 4) * scale[:, :, None, None] + shift[:, :, None, None]
    found = group_norm(h, scale, shift, 4)
    assert found.dtype == dtype
    torch.testing.assert_close(
        found.double(), expected, rtol=0, atol=0.05 if h.dtype != scale.dtype else 1e-12
    )


def test_group_norm_has_the_gradient_of_finite_differences():
    h, scale, shift = rand(2, 4, 3, 2), rand(2, 4, seed=1), rand(2, 4, seed=2)
    inputs = [v.requires_grad_() for v in (h, scale, shift)]
    torch.autograd.gradcheck(lambda *v: group_norm(*v, 2), inputs)


def test_adaptive_normalisation_equals_eq_7():
    torch.manual_seed(0)
    norm, h = AdaptiveNorm(8, 4, 3).double(), rand(2, 8, 4, 4)
    level, code = rand(2, adaptive_unet.EMBEDDING, seed=1), rand(2, 3, seed=2)
    t_scale, t_shift = norm.of_level(level)[:, :8], norm.of_level(level)[:, 8:]
    z_scale = 1 + norm.of_code(code)
    at = (slice(None), slice(None), None, None)
    expected = z_scale[at] * ((1 + t_scale[at]) * F.group_norm(h, 4) + t_shift[at])
    torch.testing.assert_close(norm(h, level, code), expected)


def test_levels_are_encoded_by_waves_from_2_pi_to_20_000_pi():
    t = torch.tensor([0, 7, 999])
    found = adaptive_unet.encode_level(t, 8)
    for i, rate in enumerate((1, 0.1, 0.01, 0.001)):
        torch.testing.assert_close(found[:, i], (t * rate).sin(), atol=1e-4, rtol=0)
        torch.testing.assert_close(found[:, 4 + i], (t * rate).cos(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("what", ["code", "level"])
def test_code_and_level_reach_every_block(what):
    """Every adaptive normalisation must return other values for another code or level."""
    model, seen = make_model(blocks=2), []
    norms = [m for m in model.unet.modules() if isinstance(m, AdaptiveNorm)]
    assert len(norms) == sum(isinstance(m, ResidualBlock) for m in model.unet.modules()) == 9
    inputs = rand(1, 16, 4, 4)
    for norm in norms:
        norm.register_forward_hook(
            lambda m, args, out: (
                seen.append(m(inputs[:, : out.shape[1]], *args[1:]))
                if args[0] is not None and args[0].shape != (1, out.shape[1], 4, 4)
                else None
            )
        )
    t, q, x_t = torch.tensor([40]), rand(1, 3), rand(1, 1, 16, 32)
    with torch.no_grad():
        model.predict_noise(x_t, t, q)
        first, seen[:] = list(seen), []
        if what == "code":
            model.predict_noise(x_t, t, q + 1)
        else:
            model.predict_noise(x_t, t + 9, q)
    assert len(first) == len(seen) == 9
    assert all((a - b).abs().max() > 1e-4 for a, b in zip(first, seen, strict=True))


# ---------------------------------------------------------------- Eq. 1 and its inversion


class Gaussian(DiffusionAutoencoder):
    """The exact noise predictor for pixels drawn from N(q_0, variance)."""

    variance = 0.09

    def predict_noise(self, x_t, t, q):
        a = self.schedule.abar.to(x_t)[t].view(-1, 1, 1, 1)
        mean = q[:, :1, None, None]
        return (1 - a).sqrt() * (x_t - a.sqrt() * mean) / (a * self.variance + 1 - a)


class Near(Gaussian):
    """The noise of Gaussian pixels, bent a little by a random network."""

    def predict_noise(self, x_t, t, q):
        bend = DiffusionAutoencoder.predict_noise(self, x_t, t, q)
        return super().predict_noise(x_t, t, q / 10) + 0.1 * bend


def near():
    return make_model(Near)


def gaussian():
    return Gaussian(**TINY).double()


def spread(model, k, levels):
    """Standard deviation and weight of the mean at a level; level -1 is x_0."""
    a = model.schedule.abar[levels[k]].item() if k >= 0 else 1.0
    return math.sqrt(a * model.variance + 1 - a), math.sqrt(a)


@pytest.mark.parametrize("steps", [2, 5, 100])
def test_decoding_equals_the_affine_map_of_eq_1(steps):
    """For Gaussian pixels, Eq. 1 is affine; its slopes multiply to that of the whole path."""
    model, q, x_T = gaussian(), torch.tensor([[0.2, 0, 0], [-0.3, 0, 0]]).double(), None
    levels = model.schedule.respace(steps).t
    x_T = 0.2 * rand(2, 1, 16, 32)
    z = x_T
    for k in range(steps - 1, -1, -1):
        a = model.schedule.abar[levels[k]].item()
        before = model.schedule.abar[levels[k - 1]].item() if k else 1.0
        var = a * model.variance + 1 - a
        slope = (math.sqrt(a * before) * model.variance + math.sqrt((1 - a) * (1 - before))) / var
        mean = q[:, :1, None, None]
        z = math.sqrt(before) * mean + slope * (z - math.sqrt(a) * mean)
    found = model.decode(q, x_T, steps)
    torch.testing.assert_close(found, ((z + 1) / 2).clamp(0, 1), rtol=0, atol=1e-12)
    if steps == 100:  # the continuous path keeps (x_t - mean) / deviation
        top, weight = spread(model, 99, levels)
        exact = mean + math.sqrt(model.variance) / top * (x_T - weight * mean)
        assert (2 * found - 1 - exact).abs().max() < 0.02


def test_inversion_recovers_x_T_in_closed_form():
    """Iterating solves each step of Eq. 1; a step of the Gaussian's is solved by division."""
    model, q, x = gaussian(), torch.tensor([[0.2, 0, 0], [-0.3, 0, 0]]).double(), draw_images(2)
    levels, mean = model.schedule.respace(6).t, q[:, :1, None, None]
    z = 2 * x - 1
    for k in range(6):
        a = model.schedule.abar[levels[k]].item()
        below = model.schedule.abar[levels[k - 1]].item() if k else 1.0
        var = a * model.variance + 1 - a
        slope = (math.sqrt(a * below) * model.variance + math.sqrt((1 - a) * (1 - below))) / var
        z = math.sqrt(a) * mean + (z - math.sqrt(below) * mean) / slope
    errors = [(model.invert(x, q, 6, n) - z).abs().max().item() for n in (1, 2, 4, 20)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-9 < 1e-3 < errors[0], errors


def test_reconstruction_is_exact_in_few_steps_once_the_iteration_has_converged():
    model, x = near(), draw_images()
    q = model.encode(x).detach()
    for steps in (10, 20):
        errors = []
        for n in (1, 4, 24):
            back = model.decode(q, model.invert(x, q, steps, n), steps)
            errors.append((back - x).abs().max().item())
        assert errors[0] > 10 * errors[1] > 0 and errors[2] < 1e-9 < 1e-4 < errors[0], errors


@pytest.mark.parametrize("build", [gaussian, near])
def test_with_one_iteration_the_error_falls_with_the_number_of_steps(build):
    model, x = build(), draw_images()
    q = model.encode(x).detach()
    errors = []
    for steps in (5, 10, 20, 40):
        x_T = model.invert(x, q, steps, iterations=1)
        errors.append((model.decode(q, x_T, steps) - x).abs().mean().item())
    assert all(b < 0.8 * a for a, b in itertools.pairwise(errors)), errors


def test_x_T_as_printed_is_the_image_with_noise_of_the_last_level():
    model, x, noise = make_model(), draw_images(), rand(4, 1, 16, 32, seed=3)
    a = torch.prod(1 - torch.linspace(1e-3, 0.2, 100, **f64))
    expected = a.sqrt() * (2 * x - 1) + (1 - a).sqrt() * noise
    torch.testing.assert_close(model.add_noise(x, noise), expected)


def test_v_and_the_noise_that_it_stands_for_decode_alike():
    """The same network read as v: eps = sigma x_t + sqrt(abar) v."""
    model = make_model(prediction="v")
    x_t, q, t = rand(2, 1, 16, 32), rand(2, 3), torch.tensor([3, 90])
    a = model.schedule.abar[t].view(-1, 1, 1, 1)
    out = model.unet(x_t, t, q)
    expected = (1 - a).sqrt() * x_t + a.sqrt() * out
    torch.testing.assert_close(model.predict_noise(x_t, t, q), expected)
    model.prediction = "epsilon"
    torch.testing.assert_close(model.predict_noise(x_t, t, q), out)


# ---------------------------------------------------------------- codes


def test_codes_are_normalised_and_the_network_gets_the_raw_ones():
    model, x = make_model(), draw_images(50)
    raw, x_t, t = model.encode(x), rand(50, 1, 16, 32), torch.full((50,), 30)
    noise = model.predict_noise(x_t, t, raw)
    model.set_normalisation(raw)
    for _ in range(2):  # setting it again from normalised codes changes nothing
        q = model.encode(x)
        torch.testing.assert_close(q.mean(0), torch.zeros(3, **f64), rtol=0, atol=1e-9)
        torch.testing.assert_close(q.std(0), torch.ones(3, **f64))
        torch.testing.assert_close(model.predict_noise(x_t, t, q), noise)
        model.set_normalisation(q)
    with pytest.raises(ValueError, match="z: got 4 codes with 3 constant dimensions"):
        model.set_normalisation(q[:1].expand(4, -1))


def test_an_item_does_not_depend_on_its_batch():
    model, x = make_model(), draw_images()
    q = model.encode(x)
    x_T = model.invert(x, q, 5)
    whole = model.decode(q, x_T, 5)
    order = torch.tensor([2, 0, 3])
    torch.testing.assert_close(model.encode(x[order]), q[order])
    torch.testing.assert_close(model.invert(x[order], q[order], 5), x_T[order])
    torch.testing.assert_close(model.decode(q[order], x_T[order], 5), whole[order])
    noise = model.fixed_noise(q)
    assert torch.equal(noise[0], noise[3])
    torch.testing.assert_close(model.decode(q[1:2], None, 5), model.decode(q, noise, 5)[1:2])


def test_encoding_and_decoding_are_differentiable_and_forward_reconstructs():
    model, x = make_model(), draw_images(1)
    model.requires_grad_(False)
    q, x_T = model.encode(x), 0.1 * rand(1, 1, 16, 32)
    torch.autograd.gradcheck(
        lambda q: model.decode(q, x_T, 3), q.clone().requires_grad_(), fast_mode=True
    )
    torch.autograd.gradcheck(model.encode, x.clone().requires_grad_(), fast_mode=True)
    steps, iterations = diffae.STEPS, diffae.ITERATIONS
    expected = model.decode(q, model.invert(x, q, steps, iterations), steps)
    torch.testing.assert_close(model(x), expected)


def test_rows_use_the_code_and_the_noise_that_they_name():
    model, x, other = near(), draw_images(), draw_images(seed=9)
    rows = reconstruct_rows(model, x, other, torch.arange(4), steps=10, iterations=20, draws=2)
    q = model.encode(x)
    x_T = model.invert(x, q, 10, 20)
    torch.testing.assert_close(rows.inverted, x)
    torch.testing.assert_close(rows.other_code, model.decode(model.encode(other), x_T, 10))
    assert rows.random.shape == (2, 4, 1, 16, 32)
    apart = (rows.random[0] - rows.random[1]).abs().mean()
    assert apart > 1e-3 and not torch.equal(rows.printed, rows.random[0])
    alone = reconstruct_rows(model, x[1:2], other[1:2], torch.tensor([1]), 0, 10, 20, 2)
    for name in rows._fields:
        row = getattr(rows, name)
        one = row[:, 1:2] if name == "random" else row[1:2]
        torch.testing.assert_close(getattr(alone, name), one)
    with pytest.raises(ValueError, match="other: got shape"):
        reconstruct_rows(model, x, other[:2], torch.arange(4))


# ---------------------------------------------------------------- loss


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_the_loss_is_the_error_of_the_noise_written_out(norm, prediction):
    model, x = make_model(prediction=prediction), draw_images(6)
    model.set_normalisation(model.encode(draw_images(20, seed=5)).detach())
    torch.manual_seed(4)
    found = loss(model, (x,), norm)
    torch.manual_seed(4)
    t = torch.randint(100, (6,))
    noise, expected = torch.randn_like(x), 0.0
    for i in range(6):
        a = model.schedule.abar[t[i]]
        x_t = a.sqrt() * (2 * x[i : i + 1] - 1) + (1 - a).sqrt() * noise[i : i + 1]
        away = model.predict_noise(x_t, t[i : i + 1], model.encode(x[i : i + 1])) - noise[i]
        expected += (away.abs() if norm == "l1" else away**2).sum().item() / (6 * 16 * 32)
    assert found.item() == pytest.approx(expected, rel=1e-9)
    found.backward()  # trains encoder and decoder together
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_an_untrained_model_has_the_mean_of_the_noise_itself_as_its_loss():
    """E |eps| = sqrt(2 / pi) and E eps^2 = 1, as the last layer starts at zero."""
    torch.manual_seed(0)
    model, x = DiffusionAutoencoder(**TINY), draw_images(200).float()
    assert loss(model, (x,)).item() == pytest.approx(math.sqrt(2 / math.pi), rel=0.01)
    assert loss(model, (x,), "l2").item() == pytest.approx(1, rel=0.02)
    with pytest.raises(ValueError, match="norm"):
        loss(model, (x,), "huber")


def test_bfloat16_gives_nearly_the_same_loss_in_float32():
    model, x, losses = make_model().float(), draw_images(16).float(), []
    for bfloat16 in (False, True):
        torch.manual_seed(1)
        losses.append(loss(model, (x,), bfloat16=bfloat16))
    assert losses[1].dtype == torch.float32 and losses[0] != losses[1]
    torch.testing.assert_close(losses[1], losses[0], rtol=0.02, atol=0)


def test_training_puts_the_brightness_of_an_image_into_its_code():
    """Images of one colour: after training, another code changes the image, own x_T does not."""
    torch.manual_seed(0)
    x = torch.rand(64, 1, 1, 1).expand(-1, 1, 16, 32).contiguous()
    model = DiffusionAutoencoder(**(TINY | {"prediction": "v"}))
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(120):
        optimiser.zero_grad()
        loss(model, (x[torch.randint(64, (16,))],)).backward()
        optimiser.step()
    model.eval()
    bright = x[:, 0, 0, 0].argsort()
    own, other = x[bright[:8]], x[bright[-8:]]
    rows = reconstruct_rows(model, own, other, torch.arange(8), steps=10, iterations=8)
    a, d = (psnr(row, own).mean().item() for row in (rows.inverted, rows.other_code))
    assert a > d + 3
    assert (rows.random.mean() - own.mean()).abs() < (own.mean() - other.mean()).abs() / 3


# ---------------------------------------------------------------- bad input, checkpoint, recipe


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"size": (16, 20)}, r"size: got \(16, 20\), expected two multiples of 8"),
        ({"size": (16,)}, "size: got"),
        ({"latent": 0}, "latent: got 0"),
        ({"unshuffle": 0}, "unshuffle: got 0"),
        ({"widths": (8, 10)}, r"widths: got \(8, 10\), expected multiples of groups \(4\)"),
        ({"encoder_widths": ()}, "encoder_widths: got"),
        ({"prediction": "x0"}, "prediction"),
        ({"steps": 5}, "steps: got 5"),
    ],
)
def test_architectures_that_cannot_be_built_are_refused(changes, says):
    with pytest.raises(ValueError, match=says):
        DiffusionAutoencoder(**(TINY | changes))


def test_bad_input_is_refused():
    model, x, q = make_model(), draw_images(2), rand(2, 3)
    for bad in (rand(2, 4, 16, 32), rand(2, 1, 32, 16), rand(16, 32)):
        with pytest.raises(ValueError, match=r"x: got shape .*expected \(B, 1, 16, 32\)"):
            model.encode(bad)
    with pytest.raises(ValueError, match=r"z: got shape \(2, 4\), expected \(B, 3\)"):
        model.decode(rand(2, 4))
    with pytest.raises(ValueError, match=r"x_T: got shape \(3, 1, 16, 32\), expected \(2, 1, 16"):
        model.decode(q, rand(3, 1, 16, 32))
    with pytest.raises(ValueError, match=r"x: got shape .*expected \(1, 1, 16, 32\)"):
        model.invert(x, q[:1])
    for steps in (1, 101):
        with pytest.raises(ValueError, match=f"steps: got {steps}, expected 2 to 100"):
            model.decode(q, x, steps)
    with pytest.raises(ValueError, match="iterations: got 0"):
        model.invert(x, q, 5, 0)


def test_a_checkpoint_gives_the_same_codes_and_images(tmp_path):
    model, x = make_model(prediction="v").float(), draw_images().float()
    model.set_normalisation(model.encode(draw_images(20, seed=2).float()).detach())
    card = Card(
        architecture={"class": "DiffusionAutoencoder", "arguments": TINY | {"prediction": "v"}}
    )
    checkpoints.save("tiny", model, card, tmp_path, half=False)
    loaded = checkpoints.load("tiny", folder=tmp_path, kind="autoencoder").model
    torch.testing.assert_close(loaded.encode(x), model.encode(x))
    torch.testing.assert_close(loaded(x), model(x))


def test_the_recipe_trains_on_slices_and_measures_other_patients(monkeypatch):
    calls = {}

    def fit(module, data, parts, **settings):
        calls.update(settings, data=data, loss=parts[0].loss, seen=[])
        return {"seconds": 0.0}

    monkeypatch.setattr(recipes.loop, "fit", fit)
    small = TINY | {"size": (96, 96), "widths": (4, 4), "encoder_widths": (4, 4)}
    trained = recipes.train_autoencoder("lung_ct", 0, None, n=3, epochs=1, norm="l2", **small)
    world = worlds.get("lung_ct")
    patients = world.render(world.sample(3, "train", seed=0))
    assert len(calls["data"]) == 12 and calls["data"][5][0].shape == (1, 96, 96)
    torch.testing.assert_close(calls["data"][5][0][0], patients[1, 1], atol=0.501 / 255, rtol=0)
    assert calls["loss"].keywords == {"norm": "l2", "bfloat16": True}
    assert calls["settings"] == trained.card["settings"] and calls["ema"]
    q = trained.model.encode(split_slices(patients))
    assert q.mean(0).abs().max() < 0.05 and (q.std(0) - 1).abs().max() < 0.05
    monkeypatch.setattr(recipes, "reconstruct_rows", lambda model, x, other, ids, seed: Known(x))
    own = torch.zeros(9, 4, 96, 96)
    found = recipes.measure_rows(trained.model, own)
    assert found["n"] == 32 and found["psnr_a"] == pytest.approx(20)
    assert [round(found[f"psnr_{k}"]) for k in "bcd"] == [14, 14, 6]
    assert "lung_ct_diffae" in RECIPES


class Known:
    """Rows that differ from x by 0.1, 0.2, 0.2 and 0.5."""

    def __init__(self, x):
        self.inverted, self.printed = x + 0.1, x + 0.2
        self.random, self.other_code = torch.stack([x + 0.2] * 4), x + 0.5
