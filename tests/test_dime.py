"""DiME against a second implementation, closed forms, its counted passes and its invariances."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from cf_utils import core
from cf_utils.explainers import presets
from cf_utils.explainers.dime import DiME
from cf_utils.explainers.reference import dime as reference
from cf_utils.explainers.reference.ace import denoise, denoising_step
from cf_utils.explainers.shared.diffusion import NAN_PRIOR
from cf_utils.explainers.shared.inpaint import change_mask, inpaint
from cf_utils.models.generators import diffusion
from tests import test_ace
from tests.test_ace import IDS, stored_result

QUICK = {
    "spacing": "25",
    "steps": 4,
    "scales": (1.0,),
    "dilation": 1,
    "threshold": 0.4,
    "warm_up": 2,
    "refine": ("25", 3),
}


class Linear(test_ace.Linear):
    """The classifier of test_ace, for images of 8 x 8 pixels."""

    def __init__(self, sharp=0.05, size=8):
        super().__init__(sharp, size)


class Constant(nn.Module):
    """A UNet that predicts the same noise for any image."""

    def __init__(self, value=0.0):
        super().__init__()
        self.value = value

    def forward(self, z, t):
        return SimpleNamespace(sample=torch.full_like(z, self.value))


class Blur(nn.Module):
    """A perceptual distance: the mean squared difference of 2 x 2 block means."""

    def forward(self, y, x):
        return nn.functional.avg_pool2d(y - x, 2).square().flatten(1).mean(1)


class Small(nn.Module):
    """A smooth random UNet of image and level, with a learned variance."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Sequential(
            nn.Conv2d(3, 8, 3, 1, 1), nn.Tanh(), nn.Conv2d(8, 6, 3, 1, 1)
        ).double()

    def forward(self, z, t):
        level = torch.as_tensor(t).to(z).view(-1, 1, 1, 1)
        return SimpleNamespace(sample=self.conv(z * (1 + level / 50)))


@pytest.fixture(scope="module")
def prior():
    return diffusion.DDPM(Small(), (8, 8), 50).eval()


@pytest.fixture(scope="module")
def silent():
    return diffusion.DDPM(Constant(), (8, 8), 50)


@pytest.fixture(scope="module")
def images():
    gen = torch.Generator().manual_seed(2)
    x = 0.3 + 0.4 * torch.rand(5, 3, 8, 8, generator=gen, dtype=torch.float64)
    return x, (Linear()(x).argmax(1) == 0).long()


class Bent(nn.Module):
    """Three classes, smooth."""

    def forward(self, x):
        z = Linear(0.1)(x)[:, 1]
        return torch.stack([z.sin(), z, z.square() - 0.5], 1)


def gradient_by_hand(dime, f, clean, row, t, scale):
    """The gradient of s L_class + p L_perc at a clean image, from the probability itself."""
    gradient = scale * reference.class_gradient(f, clean, t)
    if dime.perceptual is None:
        return gradient
    at = clean.detach().requires_grad_()
    loss = dime.perceptual_weight * dime.perceptual((at + 1) / 2, row[None])[0]
    return gradient + torch.autograd.grad(loss, at)[0]


def run_reference(dime, f, x, target, ids, scale, number):
    """The images of one scale by the reference, one item at a time."""
    s, out = dime.prior.schedule.respace(dime.spacing), []
    for row, t, i in zip(x, target, ids, strict=True):

        def noise(name, i=i, row=row):
            return diffusion.noise_of(dime.seed, i[None], row[None], name)

        def below(k, noise=noise):
            return noise(f"dime {number} below {k}")

        start, settings = noise("dime")(dime.steps), (t, scale, dime.steps, dime.l1)
        noises = start, noise(f"dime {number}"), below
        out.append(reference.dime(f, dime.prior, s, row[None], *settings, *noises))
    return torch.cat(out).detach()


def by_hand(dime, f, x, target, ids, scale, number):
    """The images of one scale, one item at a time; the plain form is the reference's."""
    if dime.perceptual is None and not dime.fast:
        return run_reference(dime, f, x, target, ids, scale, number)
    s, out = dime.prior.schedule.respace(dime.spacing), []
    for row, t, i in zip(x, target, ids, strict=True):
        q = 2 * row[None] - 1

        def noise(name, i=i, row=row):
            return diffusion.noise_of(dime.seed, i[None], row[None], name)

        def noised(k, eps, q=q):
            return s.abar[k].sqrt() * q + (1 - s.abar[k]).sqrt() * eps

        z, clean = noised(dime.steps - 1, noise("dime")(dime.steps)), q
        for k in range(dime.steps - 1, -1, -1):
            mean, variance, predicted = denoising_step(dime.prior, s, z, k)
            mask = torch.ones_like(z[:, :1], dtype=torch.bool)
            if dime.fast:
                clean = predicted
            if dime.own_mask and dime.steps - 1 - k >= dime.warm_up:
                image = (predicted + 1) / 2
                mask = change_mask(row[None], image, dime.threshold, dime.dilation)
                clean = torch.where(mask, predicted, q)
            g = gradient_by_hand(dime, f, clean, row, t, scale)
            g = g / s.abar[k].sqrt() + dime.l1 * torch.sign(z - q)
            z = mean - variance * g + (variance.sqrt() * noise(f"dime {number}")(k) if k else 0)
            if k:
                z = torch.where(mask, z, noised(k - 1, noise(f"query {number}")(k)))
                clean = z
                clean = denoise(dime.prior, s, z, k, noise(f"dime {number} below {k}"))
        out.append(torch.where(mask, ((z + 1) / 2).clamp(0, 1), row[None]).detach())
    return torch.cat(out)


@pytest.mark.parametrize(
    "changes", [{}, {"perceptual": Blur()}, {"fast": True}, {"fast": True, "own_mask": True}]
)
def test_images_equal_those_of_a_second_implementation(prior, images, changes):
    """Three classes, where the target's odds are not a difference of logits. Measured 4e-16."""
    x, f = images[0][:3], Bent()
    target = (f(x).argmax(1) + 1) % 3
    dime = DiME(prior=prior, **QUICK | {"scales": (3.0,)} | changes)
    cfs = dime(f, x, target, IDS[:3])
    expected = by_hand(dime, f, x, target, IDS[:3], 3.0, 0)
    torch.testing.assert_close(cfs.counterfactual, expected, rtol=0, atol=1e-9)
    parts = {"l1": 0.0}  # each part of the guidance matters
    if dime.perceptual is not None:
        parts["perceptual_weight"] = 0.0
    if dime.own_mask:
        parts["warm_up"] = 3
    for name, value in parts.items():
        other = dime.with_(**{name: value})(f, x, target, IDS[:3]).counterfactual
        assert (other - cfs.counterfactual).abs().max() > 1e-5, name


def test_the_gradient_is_carried_to_z_as_by_autograd_if_the_predicted_noise_is_constant(images):
    """Autograd through the predicted clean image yields the division by sqrt(abar)."""
    x, target = images
    prior, f = diffusion.DDPM(Constant(0.1), (8, 8), 50), Bent()
    dime = DiME(prior=prior, **QUICK | {"steps": 2, "fast": True, "l1": 0.0})
    s, noise = prior.schedule.respace("25"), diffusion.noise_of(0, IDS, x, "dime 0")
    z = s.add_noise(2 * x - 1, 1, diffusion.noise_of(0, IDS, x, "dime")(2))
    for k in (1, 0):
        z.requires_grad_()
        mean, log_variance, guess = s.mean_variance(z, k, torch.full_like(z, 0.1))
        p = f((guess + 1) / 2).softmax(1).gather(1, target[:, None])[:, 0]
        g = torch.autograd.grad((-torch.logit(p)).sum(), z)[0]
        step = noise(1) * (log_variance / 2).exp() if k else 0
        z = (mean - log_variance.exp() * g + step).detach()
    y = dime(f, x, target, IDS).counterfactual
    torch.testing.assert_close(y, ((z + 1) / 2).clamp(0, 1), rtol=0, atol=1e-10)


@pytest.mark.parametrize("fast", [False, True])
def test_how_far_a_scale_moves_an_image_in_closed_form(silent, images, fast):
    """Step k moves the image by beta_k s w / (2 sqrt(abar_k abar_{k-1})).

    This holds for a linear classifier and a prior that predicts no noise.
    """
    x, _ = images
    f, s, target = Linear(0.01), silent.schedule.respace("25"), torch.ones(5, dtype=torch.int64)
    x = 0.5 + 0.1 * (x - 0.5) - 0.02 * f.w.sign()  # decided 0, and never clipped
    dime = DiME(prior=silent, **QUICK | {"steps": 2, "fast": fast, "l1": 0.0})
    free, pushed = (dime.with_(scales=(c,))(f, x, target, IDS).counterfactual for c in (0.0, 8.0))
    reach = sum(s.betas[k] / (s.abar[k] * s.abar_before[k]).sqrt() for k in (0, 1))
    expected = (reach * 8 * f.w / 4).expand_as(x)
    torch.testing.assert_close(pushed - free, expected, rtol=0, atol=1e-12)
    assert reach > 0.01 and f(free).argmax(1).sum() == 0


def test_without_guidance_it_is_the_filter(prior, images):
    x, target = images
    begin, later = (diffusion.noise_of(0, IDS, x, name) for name in ("dime", "dime 0"))
    with torch.no_grad():
        plain = prior.chain("25").filter(x, 4, lambda k: begin(k) if k == 4 else later(k))
    for fast in (False, True):
        dime = DiME(prior=prior, **QUICK | {"scales": (0.0,), "l1": 0.0, "fast": fast})
        y = dime(Linear(), x, target, IDS).counterfactual
        torch.testing.assert_close(y, plain.clamp(0, 1), rtol=0, atol=1e-12)


def test_l1_pulls_towards_the_query(prior, images):
    x, target = images
    dime = DiME(prior=prior, **QUICK | {"scales": (0.0,), "l1": 0.0})
    free, pulled = (d(Linear(), x, target, IDS).counterfactual for d in (dime, dime.with_(l1=0.5)))
    assert (pulled - x).abs().mean() < 0.95 * (free - x).abs().mean()  # measured 0.86


class Brightness(nn.Module):
    """z_1 - z_0 = 50 (mean of the image - 0.5) - hold."""

    def __init__(self, hold=0.0):
        super().__init__()
        self.hold = hold

    def forward(self, x):
        z = (x.mean((1, 2, 3)) - 0.5) * 50 - self.hold
        return torch.stack([torch.zeros_like(z), z], 1)


@pytest.mark.parametrize(
    ("changes", "hold", "passes", "scales"),
    [
        ({}, 0.0, 1830, 1),
        ({"fast": True}, 0.0, 60, 1),
        ({"pasted": True}, 0.0, 1835, 1),
        ({"fast": True}, 1e4, 180, 3),
    ],
)
def test_passes_at_the_published_settings(changes, hold, passes, scales):
    """60 of 200 steps, counted by hooks; one scale if items flip, three if they never do."""
    prior, f, seen, classified = diffusion.DDPM(Constant(), (2, 2), 500), Brightness(hold), [], []
    x = torch.full((2, 3, 2, 2), 0.4, dtype=torch.float64)
    prior.unet.register_forward_hook(lambda m, i, o: seen.append(len(o.sample)))
    f.register_forward_hook(lambda m, i, o: classified.append(len(o)))
    dime = DiME(prior=prior, **changes)
    cfs = dime(f, x, torch.ones(2, dtype=torch.int64), torch.tensor([4, 9]))
    assert cfs.n_forward_generator.tolist() == [passes] * 2 and sum(seen) == 2 * passes
    assert cfs.n_backward_generator.tolist() == [0, 0]
    assert cfs.n_forward.tolist() == [1 + 61 * scales + 1] * 2
    assert sum(classified) == 2 * (2 + 61 * scales)
    assert cfs.n_backward.tolist() == [60 * scales] * 2
    assert cfs.valid.tolist() == [hold == 0] * 2
    assert cfs.path_len.tolist() == [1 + scales + changes.get("pasted", False)] * 2
    failed = "target not reached at the scales 8, 10, 15"
    assert cfs.reason == ("" if hold == 0 else failed,) * 2


def test_scales_are_tried_in_turn_on_those_that_did_not_flip(prior, images):
    """Each item ends at its first sufficient scale, as if that scale were tried alone."""
    darker = torch.tensor([0.0, 0.05, 0.1, 0.2, 0.3], dtype=torch.float64)
    x = images[0] - darker.view(-1, 1, 1, 1)
    f, target = Brightness(), torch.ones(5, dtype=torch.int64)
    dime = DiME(prior=prior, **QUICK | {"scales": (1.0, 10.0, 40.0), "l1": 0.0})
    cfs = dime(f, x, target, IDS)
    tried = (cfs.path_len - 1).tolist()
    assert sorted(set(tried)) == [1, 2, 3] and cfs.valid.tolist() != [False] * 5
    assert cfs.n_forward_generator.tolist() == [10 * n for n in tried]
    for i, n in enumerate(tried):
        assert bool(cfs.valid[i]) or n == 3
        for j in range(n):
            made = by_hand(dime, f, x[i : i + 1], target[:1], IDS[i : i + 1], dime.scales[j], j)
            torch.testing.assert_close(cfs.path[i : i + 1, 1 + j], made, rtol=0, atol=1e-9)
            assert bool(f(made).argmax(1)) == (j == n - 1 and bool(cfs.valid[i]))
    assert torch.equal(cfs.counterfactual, cfs.path[torch.arange(5), cfs.path_len - 1])
    more = dime(f, x, target, IDS, tau=0.99)  # a scale suffices if it reaches tau
    assert (more.path_len >= cfs.path_len).all() and more.path_len.sum() > cfs.path_len.sum()


@pytest.mark.parametrize("changes", [{}, {"fast": True, "own_mask": True}, {"pasted": True}])
def test_an_item_depends_neither_on_its_batch_nor_on_the_order(prior, images, changes):
    x, target = images
    f, dime = Linear(), DiME(prior=prior, **QUICK | {"scales": (0.5, 5.0)} | changes)
    whole, order = dime(f, x, target, IDS), torch.tensor([3, 0, 4, 1, 2])
    assert len(set(whole.n_forward_generator.tolist())) > 1  # some leave, some stay
    turned = dime(f, x[order], target[order], IDS[order])
    rows = [slice(i, i + 1) for i in range(5)]
    alone = torch.cat([dime(f, x[r], target[r], IDS[r]).counterfactual for r in rows])
    expected = whole.counterfactual[order]
    torch.testing.assert_close(turned.counterfactual, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(alone, whole.counterfactual, rtol=0, atol=1e-9)  # measured 2e-16
    assert turned.n_forward_generator.tolist() == whole.n_forward_generator[order].tolist()
    other = dime.with_(seed=1)(f, x, target, IDS)
    assert (other.counterfactual - whole.counterfactual).abs().max() > 1e-3


@pytest.mark.parametrize("changes", [{"fast": True, "own_mask": True}, {"pasted": True}])
def test_the_result_equals_the_query_outside_the_mask(prior, images, changes):
    x, target = images
    cfs = DiME(prior=prior, **QUICK | {"scales": (5.0,)} | changes)(Linear(), x, target, IDS)
    assert torch.equal(cfs.counterfactual[~cfs.mask], x[~cfs.mask])
    assert 0.05 < cfs.mask.double().mean() < 0.95
    assert ((cfs.counterfactual != x) == cfs.mask).double().mean() > 0.99


def test_the_pasted_image_is_aces_refinement_of_dimes(prior, images):
    x, target = images
    f, dime = Linear(), DiME(prior=prior, **QUICK | {"scales": (5.0,)})
    plain = dime(f, x, target, IDS)
    assert plain.mask is None and (plain.counterfactual != x).double().mean() > 0.99
    mask = change_mask(x, plain.counterfactual, dime.threshold, dime.dilation)
    noises = (diffusion.noise_of(0, IDS, x, name) for name in ("refine", "query"))
    with torch.no_grad():
        refined = inpaint(prior.chain("25"), x, plain.counterfactual, mask, 3, *noises)
    pasted = dime.with_(pasted=True)(f, x, target, IDS)
    torch.testing.assert_close(pasted.counterfactual, refined, rtol=0, atol=1e-9)
    order = torch.tensor([4, 2, 0, 1, 3])
    again = dime.with_(pasted=True, reuse=plain)
    cfs = again(f, x[order], target[order], IDS[order])
    torch.testing.assert_close(cfs.counterfactual, refined[order], rtol=0, atol=1e-9)
    assert cfs.n_forward_generator.tolist() == [3] * 5
    with pytest.raises(ValueError, match=r"reuse: has no item \[1\]"):
        again(f, x[:1], target[:1], torch.tensor([1]))


UNGUIDED = {"scales": (0.0,), "l1": 0.0}
VARIANTS = [{}, {"fast": True}, {"fast": True, "own_mask": True}, {"pasted": True}]


@pytest.mark.parametrize("changes", VARIANTS)
def test_zero_edit_equals_dime_at_scale_0(prior, images, changes):
    x, target = images
    dime = DiME(prior=prior, **QUICK | changes)
    cfs = dime.with_(**UNGUIDED)(Linear(), x, target, IDS)
    assert torch.equal(dime.zero_edit(x, IDS), cfs.counterfactual)


@pytest.mark.parametrize("changes", VARIANTS)
def test_zero_edit_takes_one_chain_and_does_not_depend_on_the_batch(prior, images, changes):
    x, passes, dime = images[0], [], DiME(prior=prior, **QUICK | changes)
    hook = prior.unet.register_forward_hook(lambda *_: passes.append(1))
    whole = dime.zero_edit(x, IDS)
    hook.remove()
    assert len(passes) == 4 + 3 * dime.pasted
    order = torch.tensor([3, 1])
    part = dime.zero_edit(x[order], IDS[order])
    torch.testing.assert_close(part, whole[order], rtol=0, atol=1e-9)
    assert torch.equal(dime.zero_edit(x), dime.zero_edit(x, torch.arange(5)))
    assert not torch.equal(dime.with_(seed=1).zero_edit(x, IDS), whole)


def test_zero_edit_refuses_bad_images(prior, images):
    dime, x = DiME(prior=prior, **QUICK), images[0]
    with pytest.raises(ValueError, match="x: got shape"):
        dime.zero_edit(x[..., :4])
    with pytest.raises(ValueError, match="x: values from"):
        dime.zero_edit(2 * x)


def test_an_item_with_nan_fails_alone(prior, images):
    x = images[0] - 0.15
    target = torch.ones(5, dtype=torch.int64)

    f, dime = Brightness(), DiME(prior=prior, **QUICK | {"scales": (10.0, 20.0), "l1": 0.0})
    clean, calls = dime(f, x, target, IDS), []

    class Once(nn.Module):
        """NaN for the third of five items at the second step."""

        def forward(self, y):
            calls.append(len(y))
            broken = (torch.arange(len(y)) == 2) & (len(calls) == 3)
            return f(y).masked_fill(broken[:, None], torch.nan)

    caught = dime(Once(), x, target, IDS)
    others = torch.tensor([0, 1, 3, 4])
    expected = clean.counterfactual[others]
    torch.testing.assert_close(caught.counterfactual[others], expected, rtol=0, atol=1e-9)
    assert caught.reason[2] == core.NAN
    assert torch.equal(caught.counterfactual[2], x[2]) and not caught.valid[2]
    assert caught.n_forward_generator[2] == 10  # no second scale


def test_nan_of_the_prior_has_its_own_reason(prior, images):
    x = images[0]

    class Marked(nn.Module):
        """NaN for the second item."""

        def forward(self, z, at):
            out, second = prior.unet(z, at).sample, torch.arange(len(z)) == 1
            return SimpleNamespace(sample=torch.where(second[:, None, None, None], torch.nan, out))

    dime = DiME(prior=diffusion.DDPM(Marked(), (8, 8), 50), **QUICK)
    caught = dime(Linear(), x, 1 - Linear()(x).argmax(1), IDS)
    assert [k for k, why in enumerate(caught.reason) if why == NAN_PRIOR] == [1]
    assert torch.equal(caught.counterfactual[1], x[1]) and not caught.valid[1]


def test_parameters_keep_their_gradients_and_modes(prior, images):
    x, target = images
    f = nn.Sequential(nn.Flatten(), nn.Linear(192, 2)).double().train()
    prior.train()
    DiME(prior=prior, **QUICK | {"steps": 2})(f, x, target, IDS)
    assert prior.training and f.training
    assert all(p.grad is None and p.requires_grad for m in (f, prior) for p in m.parameters())
    prior.eval()


def test_settings_are_saved_and_results_join(prior, images, tmp_path):
    x, target = images
    dime = DiME(prior=prior, perceptual=Blur(), **QUICK | {"steps": 2, "pasted": True})
    parts = [dime(Linear(), x[r], target[r], IDS[r]) for r in (slice(0, 3), slice(3, 5))]
    (parts[0] + parts[1]).save(tmp_path)
    back = core.Counterfactuals.load(tmp_path)
    assert back.ids.tolist() == sorted(IDS.tolist()) and back.settings["prior"]["module"] == "DDPM"
    assert back.settings["scales"] == [1.0] and back.settings["perceptual"]["module"] == "Blur"


def test_settings_keep_the_keys_of_stored_batches():
    """The hash was computed before the field `guided` became `reuse`."""
    dime = DiME(prior=None, pasted=True, reuse=stored_result("DiME"))
    settings = json.dumps(core.describe(dime), sort_keys=True)
    assert hashlib.sha256(settings.encode()).hexdigest()[:16] == "d90697006518c394"


def test_presets_follow_the_papers():
    def built(method, dataset):
        return presets.get(method, dataset).build(prior=None)

    celeba, bdd, fast = built("dime", "celeba"), built("dime", "bdd"), built("fastdime", "celeba")
    assert celeba.scales == bdd.scales == (8.0, 10.0, 15.0) and bdd.steps == 45
    assert fast.fast and fast.own_mask and fast.dilation == 5
    s = diffusion.schedule.linear(500).respace(celeba.spacing)
    assert abs(s.sigma[celeba.steps - 1] - 0.774) < 5e-4


def test_presets_paste_with_the_settings_of_ace():
    def built(method, dataset):
        return presets.get(method, dataset).build(prior=None)

    assert built("dime", "celebahq").refine == (built("ace", "celebahq").spacing, 5)
    ace = built("ace", "bdd")
    for dime in (built("dime", "bdd"), built("dime", "roads")):
        assert dime.refine == (ace.spacing, ace.steps)
        assert (dime.threshold, dime.dilation) == (ace.threshold, ace.dilation)


def test_presets_of_rendered_faces_have_no_own_mask():
    dime, fast = (presets.get(k, "faces").build(prior=None) for k in ("dime", "fastdime"))
    assert (dime.steps, dime.dilation) == (fast.steps, fast.dilation) == (45, 7)
    assert fast.fast and not fast.own_mask


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"scales": ()}, "scales, l1, perceptual_weight: got"),
        ({"scales": (-1.0,)}, "scales"),
        ({"l1": -0.1}, "l1"),
        ({"l1": float("nan")}, "l1"),
        ({"scales": (8.0, float("nan"))}, "scales"),
        ({"own_mask": True}, "own_mask: got fast=False, .*expected fast=True"),
        ({"own_mask": True, "fast": True, "warm_up": 4}, "own_mask: got .*warm_up=4"),
        ({"own_mask": True, "fast": True, "pasted": True}, "pasted=False"),
        ({"bounds": (-1, 1)}, "bounds: got"),
        ({"steps": 26}, "steps: got 26, expected 1 to 25"),
        ({"steps": 0}, "steps: got 0"),
        ({"refine": ("10", 11), "pasted": True}, "refine: got 11, expected 1 to 10"),
        ({"dilation": 4}, "dilation: got 4"),
        ({"threshold": 0.0}, "threshold: got 0.0"),
        ({"spacing": "60"}, "spacing: cannot keep 60"),
    ],
)
def test_a_bad_setting_is_an_error_before_any_pass(prior, images, changes, says):
    x, target = images
    seen = []
    hook = prior.unet.register_forward_hook(lambda m, i, o: seen.append(1))
    with pytest.raises(ValueError, match=says):
        DiME(prior=prior, **QUICK | changes)(Linear(), x, target, IDS)
    hook.remove()
    assert not seen


def test_images_of_another_size_are_an_error(prior, images):
    x, target = images
    narrow = nn.Sequential(nn.Flatten(), nn.Linear(96, 2)).double()
    says = r"x: got shape \(5, 3, 8, 4\), expected \(B, 3, 8, 8\); this prior was trained on"
    with pytest.raises(ValueError, match=says):
        DiME(prior=prior, **QUICK)(narrow, x[..., :4], target, IDS)


def test_results_are_reused_only_to_paste_and_only_of_dime(prior, images):
    x, target = images
    done = DiME(prior=prior, **QUICK | {"steps": 1})(Linear(), x, target, IDS)
    with pytest.raises(ValueError, match="reuse: got pasted=False, expected True"):
        DiME(prior=prior, reuse=done, **QUICK)(Linear(), x, target, IDS)
    of_ace = dataclasses.replace(done, settings=done.settings | {"method": "ACE"})
    with pytest.raises(ValueError, match="reuse: got a result of ACE, expected one of DiME"):
        DiME(prior=prior, pasted=True, reuse=of_ace, **QUICK)(Linear(), x, target, IDS)


def test_a_classifier_without_gradient_is_refused(prior, images):
    x, target = images

    class Rounded(Linear):
        def forward(self, y):
            return super().forward(y).detach()

    with pytest.raises(ValueError, match=r"classifier: .*gradient"):
        DiME(prior=prior, **QUICK)(Rounded(), x, target, IDS)


def test_bfloat16_rounds_the_prior_alone(images):
    """With `fast`, the classifier's gradient is taken at images of the rounded passes."""
    x, target = images
    small, seen = diffusion.DDPM(Small().float(), (8, 8), 50).eval(), []
    small.unet.conv[0].register_forward_hook(lambda m, given, out: seen.append(out.dtype))
    f = Linear().float()
    whole, half = (
        DiME(prior=small, fast=True, bfloat16=on, **QUICK)(f, x.float(), target, IDS)
        for on in (False, True)
    )
    n = len(seen) // 2
    assert set(seen[:n]) == {torch.float32} and set(seen[n:]) == {torch.bfloat16}
    difference = (half.counterfactual - whole.counterfactual).abs()
    assert half.counterfactual.dtype == torch.float32 and 0 < difference.mean() < 0.01
