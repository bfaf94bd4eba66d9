"""DiME against a second implementation, closed forms on a prior that guesses no noise, its counted passes and invariances."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from cf_utils import core
from cf_utils.explainers.ace import ACE
from cf_utils.explainers.dime import DiME
from cf_utils.explainers.shared.diffusion import NAN_PRIOR
from cf_utils.explainers.shared.inpaint import change_mask, inpaint
from cf_utils.models.generators import diffusion

QUICK = {
    "spacing": "25",
    "steps": 4,
    "scales": (1.0,),
    "dilation": 1,
    "threshold": 0.4,
    "warm_up": 2,
    "refine": ("25", 3),
}
IDS = torch.tensor([11, 3, 7, 20, 5])


class Linear(nn.Module):
    """z_1 - z_0 = sharp * w.(x - 0.5), w = +-1 by pixel."""

    def __init__(self, sharp=0.05, size=8):
        super().__init__()
        self.w = (
            torch.randn(3, size, size, generator=torch.Generator().manual_seed(1)).sign().double()
            * sharp
        )

    def forward(self, x):
        z = (self.w * (x - 0.5)).flatten(1).sum(1)
        return torch.stack([torch.zeros_like(z), z], 1)


class Constant(nn.Module):
    """A UNet whose guess of the noise depends on nothing."""

    def __init__(self, value=0.0):
        super().__init__()
        self.value = value

    def forward(self, z, t):
        class Out:
            sample = torch.full_like(z, self.value)

        return Out


class Blur(nn.Module):
    """A stand-in for VGG's features: the mean squared difference of 2 x 2 block means."""

    def forward(self, y, x):
        return nn.functional.avg_pool2d(y - x, 2).square().flatten(1).mean(1)


class Small(nn.Module):
    """A smooth random UNet of image and level: noise, and where the variance lies between its bounds."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Sequential(
            nn.Conv2d(3, 8, 3, 1, 1), nn.Tanh(), nn.Conv2d(8, 6, 3, 1, 1)
        ).double()

    def forward(self, z, t):
        class Out:
            sample = self.conv(z * (1 + torch.as_tensor(t).to(z).view(-1, 1, 1, 1) / 50))

        return Out


@pytest.fixture(scope="module")
def prior():
    return diffusion.DDPM(Small(), (8, 8), 50).eval()


@pytest.fixture(scope="module")
def silent():
    return diffusion.DDPM(Constant(), (8, 8), 50)


@pytest.fixture(scope="module")
def images():
    x = 0.3 + 0.4 * torch.rand(
        5, 3, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )
    return x, (Linear()(x).argmax(1) == 0).long()


class Bent(nn.Module):
    """Three classes, smooth."""

    def forward(self, x):
        z = Linear(0.1)(x)[:, 1]
        return torch.stack([z.sin(), z, z.square() - 0.5], 1)


def by_hand(dime, f, x, target, ids, scale, number):
    """The chain written out, an item at a time, from the closed forms of the schedule; returns the image."""
    s, out = dime.prior.schedule.respaced(dime.spacing), []
    for row, t, i in zip(x, target, ids, strict=True):
        noise = lambda name, i=i, row=row: diffusion.noise_of(dime.seed, i[None], row[None], name)  # noqa: E731
        q = 2 * row[None] - 1

        def step(z, k):
            eps, v = dime.prior(z, torch.tensor([s.t[k]])).chunk(2, 1)
            a, b, before = s.abar[k], s.betas[k], s.abar_before[k]
            guess = ((z - (1 - a).sqrt() * eps) / a.sqrt()).clamp(-1, 1)
            mean = before.sqrt() * b / (1 - a) * guess + (1 - before) * (1 - b).sqrt() / (1 - a) * z
            small = (
                (b * (1 - before) / (1 - a))
                if k
                else s.betas[1] * (1 - s.abar[0]) / (1 - s.abar[1])
            )
            return guess, mean, ((v + 1) / 2 * b.log() + (1 - v) / 2 * small.log()).exp()

        z = s.abar[dime.steps - 1].sqrt() * q + (1 - s.abar[dime.steps - 1]).sqrt() * noise("dime")(
            dime.steps
        )
        clean = q
        for k in range(dime.steps - 1, -1, -1):
            guess, mean, variance = step(z, k)
            mask = torch.ones_like(z[:, :1], dtype=torch.bool)
            if dime.fast:
                clean = guess
                if dime.own_mask and dime.steps - 1 - k >= dime.warm_up:
                    mask = change_mask(row[None], (guess + 1) / 2, dime.threshold, dime.dilation)
                    clean = torch.where(mask, guess, q)
            at = clean.detach().requires_grad_()
            p = f((at + 1) / 2).softmax(1)[0, t]
            loss = -scale * (p / (1 - p)).log()
            if dime.perceptual is not None:
                loss = loss + dime.perceptual_weight * dime.perceptual((at + 1) / 2, row[None])[0]
            g = torch.autograd.grad(loss, at)[0] / s.abar[k].sqrt() + dime.l1 * torch.sign(z - q)
            z = mean - variance * g + (variance.sqrt() * noise(f"dime {number}")(k) if k else 0)
            if k:
                again = s.abar[k - 1].sqrt() * q + (1 - s.abar[k - 1]).sqrt() * noise(
                    f"query {number}"
                )(k)
                z = torch.where(mask, z, again)
                clean = z
                for below in range(k - 1, -1, -1):
                    _, mean, variance = step(clean, below)
                    clean = mean + (
                        variance.sqrt() * noise(f"dime {number} below {k}")(below) if below else 0
                    )
        out.append(torch.where(mask, ((z + 1) / 2).clamp(0, 1), row[None]).detach())
    return torch.cat(out)


@pytest.mark.parametrize(
    "changes", [{}, {"perceptual": Blur()}, {"fast": True}, {"fast": True, "own_mask": True}]
)
def test_against_a_second_implementation(prior, images, changes):
    """On three classes; the odds of the target are p / (1 - p) there, not a difference of logits. Measured 4e-16."""
    x, f = images[0][:3], Bent()
    target = (f(x).argmax(1) + 1) % 3
    dime = DiME(prior=prior, **QUICK | {"scales": (3.0,)} | changes)
    cfs = dime(f, x, target, IDS[:3])
    torch.testing.assert_close(
        cfs.counterfactual, by_hand(dime, f, x, target, IDS[:3], 3.0, 0), rtol=0, atol=1e-9
    )
    for name, value in (
        ("l1", 0.0),
        ("perceptual_weight", 0.0),
        ("warm_up", 3),
    ):  # each part counts
        if (name, bool(changes.get("perceptual"))) != ("perceptual_weight", False) and (
            name != "warm_up" or dime.own_mask
        ):
            other = dime.with_(**{name: value})(f, x, target, IDS[:3]).counterfactual
            assert (other - cfs.counterfactual).abs().max() > 1e-5, name


def test_the_shortcut_is_the_gradient_through_a_guess_that_depends_on_nothing(images):
    """Autograd through the guess of the clean image itself, where the network's noise is constant: the division by sqrt(abar)."""
    x, target = images
    prior, f = diffusion.DDPM(Constant(0.1), (8, 8), 50), Bent()
    dime = DiME(prior=prior, **QUICK | {"steps": 2, "fast": True, "l1": 0.0})
    s, noise = prior.schedule.respaced("25"), diffusion.noise_of(0, IDS, x, "dime 0")
    z = s.noised(2 * x - 1, 1, diffusion.noise_of(0, IDS, x, "dime")(2))
    for k in (1, 0):
        z.requires_grad_()
        mean, log_variance, guess = s.mean_variance(z, k, torch.full_like(z, 0.1))
        p = f((guess + 1) / 2).softmax(1).gather(1, target[:, None])[:, 0]
        g = torch.autograd.grad((-torch.logit(p)).sum(), z)[0]
        z = (
            mean - log_variance.exp() * g + (noise(1) * (log_variance / 2).exp() if k else 0)
        ).detach()
    torch.testing.assert_close(
        dime(f, x, target, IDS).counterfactual, ((z + 1) / 2).clamp(0, 1), rtol=0, atol=1e-10
    )


@pytest.mark.parametrize("fast", [False, True])
def test_how_far_a_scale_moves_an_image_in_closed_form(silent, images, fast):
    """No noise guessed, a linear classifier: a push at step k ends as beta_k s w / (2 sqrt(abar_k abar_{k-1}))."""
    x, _ = images
    f, s, target = Linear(0.01), silent.schedule.respaced("25"), torch.ones(5, dtype=torch.int64)
    x = 0.5 + 0.1 * (x - 0.5) - 0.02 * f.w.sign()  # all are decided 0, and nothing is clipped
    dime = DiME(prior=silent, **QUICK | {"steps": 2, "fast": fast, "l1": 0.0})
    free, pushed = (dime.with_(scales=(c,))(f, x, target, IDS).counterfactual for c in (0.0, 8.0))
    reach = sum(s.betas[k] / (s.abar[k] * s.abar_before[k]).sqrt() for k in (0, 1))
    torch.testing.assert_close(
        pushed - free, (reach * 8 * f.w / 4).expand_as(x), rtol=0, atol=1e-12
    )
    assert reach > 0.01 and f(free).argmax(1).sum() == 0


def test_without_guidance_it_is_the_filter(prior, images):
    x, target = images
    begin, later = (diffusion.noise_of(0, IDS, x, name) for name in ("dime", "dime 0"))
    with torch.no_grad():
        plain = prior.chain("25").filter(x, 4, lambda k: begin(k) if k == 4 else later(k))
    for fast in (False, True):
        cfs = DiME(prior=prior, **QUICK | {"scales": (0.0,), "l1": 0.0, "fast": fast})(
            Linear(), x, target, IDS
        )
        torch.testing.assert_close(cfs.counterfactual, plain.clamp(0, 1), rtol=0, atol=1e-12)
    pulled = DiME(prior=prior, **QUICK | {"scales": (0.0,), "l1": 0.5})(
        Linear(), x, target, IDS
    ).counterfactual
    assert (pulled - x).abs().mean() < 0.95 * (
        plain - x
    ).abs().mean()  # measured 0.86: l1 pulls to the query


class Brightness(nn.Module):
    """z_1 - z_0 = 50 (mean of the image - 0.5), and `hold` less."""

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
    """At 60 of 200 steps, counted by hooks; one scale for items that flip, three for those that never do."""
    prior, f, seen, asked = diffusion.DDPM(Constant(), (2, 2), 500), Brightness(hold), [], []
    x = torch.full((2, 3, 2, 2), 0.4, dtype=torch.float64)
    prior.unet.register_forward_hook(lambda m, i, o: seen.append(len(o.sample)))
    f.register_forward_hook(lambda m, i, o: asked.append(len(o)))
    cfs = DiME(prior=prior, **changes)(f, x, torch.ones(2, dtype=torch.int64), torch.tensor([4, 9]))
    assert cfs.n_forward_generator.tolist() == [passes] * 2 and sum(seen) == 2 * passes
    assert cfs.n_forward.tolist() == [1 + 61 * scales + 1] * 2 and sum(asked) == 2 * (
        2 + 61 * scales
    )
    assert cfs.n_backward.tolist() == [60 * scales] * 2 and cfs.n_backward_generator.tolist() == [
        0,
        0,
    ]
    assert (
        cfs.valid.tolist() == [hold == 0] * 2
        and cfs.path_len.tolist() == [1 + scales + changes.get("pasted", False)] * 2
    )
    assert cfs.reason == (("",) if hold == 0 else ("not there at the scales 8, 10, 15",)) * 2


def test_scales_are_tried_in_turn_on_those_that_did_not_flip(prior, images):
    """Items at different distances: each ends where its own first sufficient scale, tried alone, would end it."""
    x = images[0] - torch.tensor([0.0, 0.05, 0.1, 0.2, 0.3], dtype=torch.float64).view(-1, 1, 1, 1)
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
    torch.testing.assert_close(
        cfs.counterfactual, cfs.path[torch.arange(5), cfs.path_len - 1], rtol=0, atol=0
    )
    more = dime(f, x, target, IDS, tau=0.99)  # a score asked for is what a scale must reach
    assert (more.path_len >= cfs.path_len).all() and more.path_len.sum() > cfs.path_len.sum()


@pytest.mark.parametrize("changes", [{}, {"fast": True, "own_mask": True}, {"pasted": True}])
def test_an_item_depends_neither_on_its_batch_nor_on_the_order(prior, images, changes):
    x, target = images
    f, dime = Linear(), DiME(prior=prior, **QUICK | {"scales": (0.5, 5.0)} | changes)
    whole, order = dime(f, x, target, IDS), torch.tensor([3, 0, 4, 1, 2])
    assert len(set(whole.n_forward_generator.tolist())) > 1  # some leave, some stay
    turned = dime(f, x[order], target[order], IDS[order])
    alone = torch.cat(
        [dime(f, x[i : i + 1], target[i : i + 1], IDS[i : i + 1]).counterfactual for i in range(5)]
    )
    torch.testing.assert_close(
        turned.counterfactual, whole.counterfactual[order], rtol=0, atol=1e-9
    )
    torch.testing.assert_close(alone, whole.counterfactual, rtol=0, atol=1e-9)  # measured 2e-16
    assert turned.n_forward_generator.tolist() == whole.n_forward_generator[order].tolist()
    other = dime.with_(seed=1)(f, x, target, IDS)
    assert (other.counterfactual - whole.counterfactual).abs().max() > 1e-3


def test_masks(prior, images):
    """The query outside the mask, to the last bit; the pasted image is ACE's refinement of DiME's, also when given."""
    x, target = images
    f, dime = Linear(), DiME(prior=prior, **QUICK | {"scales": (5.0,)})
    plain = dime(f, x, target, IDS)
    assert plain.mask is None and ((plain.counterfactual != x).double().mean() > 0.99)
    own, pasted = (
        dime.with_(fast=True, own_mask=True)(f, x, target, IDS),
        dime.with_(pasted=True)(f, x, target, IDS),
    )
    for cfs in (own, pasted):
        assert torch.equal(cfs.counterfactual[~cfs.mask], x[~cfs.mask])
        assert 0.05 < cfs.mask.double().mean() < 0.95
        assert ((cfs.counterfactual != x) == cfs.mask).double().mean() > 0.99
    mask = change_mask(x, plain.counterfactual, dime.threshold, dime.dilation)
    noise, other = (diffusion.noise_of(0, IDS, x, name) for name in ("refine", "query"))
    with torch.no_grad():
        refined = inpaint(prior.chain("25"), x, plain.counterfactual, mask, 3, noise, other)
    torch.testing.assert_close(pasted.counterfactual, refined, rtol=0, atol=1e-9)
    order = torch.tensor([4, 2, 0, 1, 3])
    again = dime.with_(pasted=True, guided=plain)(f, x[order], target[order], IDS[order])
    torch.testing.assert_close(again.counterfactual, refined[order], rtol=0, atol=1e-9)
    assert again.n_forward_generator.tolist() == [3] * 5
    with pytest.raises(ValueError, match=r"guided: has no item \[1\]"):
        dime.with_(pasted=True, guided=plain)(f, x[:1], target[:1], torch.tensor([1]))


def test_a_neighbour_with_nan_is_flagged_and_disturbs_nobody(prior, images):
    x = images[0] - 0.15
    target = torch.ones(5, dtype=torch.int64)

    f, dime = Brightness(), DiME(prior=prior, **QUICK | {"scales": (10.0, 20.0), "l1": 0.0})
    clean, calls = dime(f, x, target, IDS), []

    class Once(nn.Module):
        """NaN for the third of five items at the second step."""

        def forward(self, y):
            calls.append(len(y))
            return f(y).masked_fill(
                ((torch.arange(len(y)) == 2) & (len(calls) == 3))[:, None], torch.nan
            )

    caught = dime(Once(), x, target, IDS)
    others = torch.tensor([0, 1, 3, 4])
    torch.testing.assert_close(
        caught.counterfactual[others], clean.counterfactual[others], rtol=0, atol=1e-9
    )
    assert (
        caught.reason[2] == core.NAN
        and torch.equal(caught.counterfactual[2], x[2])
        and not caught.valid[2]
    )
    assert caught.n_forward_generator[2] == 10  # no second scale


def test_a_prior_with_nan_is_told_from_a_classifier_with_nan(prior, images):
    x = images[0]

    class Marked(nn.Module):
        def forward(self, z, at):
            out = prior.unet(z, at).sample
            return SimpleNamespace(
                sample=torch.where((torch.arange(len(z)) == 1)[:, None, None, None], torch.nan, out)
            )

    caught = DiME(prior=diffusion.DDPM(Marked(), (8, 8), 50), **QUICK)(
        Linear(), x, 1 - Linear()(x).argmax(1), IDS
    )
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
    one, two = (
        dime(Linear(), x[rows], target[rows], IDS[rows]) for rows in (slice(0, 3), slice(3, 5))
    )
    (one + two).save(tmp_path)
    back = core.Counterfactuals.load(tmp_path)
    assert back.ids.tolist() == sorted(IDS.tolist()) and back.settings["prior"]["module"] == "DDPM"
    assert back.settings["scales"] == [1.0] and back.settings["perceptual"]["module"] == "Blur"


def test_presets(prior):
    assert DiME.celeba(prior).with_(steps=45).scales == DiME.bdd(prior).scales == (8.0, 10.0, 15.0)
    assert DiME.celebahq(prior).refine == (ACE.celebahq(prior).spacing, 5)
    assert (DiME.bdd(prior).refine[0], DiME.bdd(prior).threshold) == (
        ACE.bdd(prior).spacing,
        ACE.bdd(prior).threshold,
    )
    assert (
        DiME.bdd(prior).steps == 45
        and DiME.fastdime(prior).fast
        and DiME.fastdime(prior).dilation == 5
    )
    assert (
        DiME.faces(prior).dilation == 7
        and DiME.faces(prior).steps == 45
        and not DiME.faces(prior, fast=True).own_mask
    )
    roads, ace = DiME.roads(prior), ACE.bdd(prior)
    assert (roads.refine, roads.threshold, roads.dilation) == (
        (ace.spacing, ace.steps),
        ace.threshold,
        ace.dilation,
    )
    s = diffusion.schedule.linear(500).respaced(DiME.celeba(prior).spacing)
    assert abs(s.sigma[DiME.celeba(prior).steps - 1] - 0.774) < 5e-4


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"scales": ()}, "scales, l1, perceptual_weight: got"),
        ({"scales": (-1.0,)}, "scales"),
        ({"l1": -0.1}, "l1"),
        ({"l1": float("nan")}, "l1"),
        ({"scales": (8.0, float("nan"))}, "scales"),
        ({"own_mask": True}, "own_mask: needs fast=True"),
        ({"own_mask": True, "fast": True, "warm_up": 4}, "warm_up .got 4"),
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
def test_bad_settings_are_refused_before_any_pass(prior, images, changes, says):
    x, target = images
    seen = []
    hook = prior.unet.register_forward_hook(lambda m, i, o: seen.append(1))
    with pytest.raises(ValueError, match=says):
        DiME(prior=prior, **QUICK | changes)(Linear(), x, target, IDS)
    hook.remove()
    assert not seen


def test_images_of_another_size_and_results_not_to_be_pasted(prior, images):
    x, target = images
    with pytest.raises(
        ValueError, match=r"x: got shape \(5, 3, 8, 4\), this prior was trained on \(B, 3, 8, 8\)"
    ):
        DiME(prior=prior, **QUICK)(
            nn.Sequential(nn.Flatten(), nn.Linear(96, 2)).double(), x[..., :4], target, IDS
        )
    done = DiME(prior=prior, **QUICK | {"steps": 1})(Linear(), x, target, IDS)
    with pytest.raises(ValueError, match="guided: results of another run"):
        DiME(prior=prior, guided=done, **QUICK)(Linear(), x, target, IDS)
    attacked = dataclasses.replace(done, settings=done.settings | {"method": "ACE"})
    with pytest.raises(ValueError, match="guided: got a result of ACE, expected one of DiME"):
        DiME(prior=prior, pasted=True, guided=attacked, **QUICK)(Linear(), x, target, IDS)


def test_bfloat16_is_the_prior_in_autocast_and_nearly_the_same(images):
    """Steered by the guess of the step, so that the rounded passes are those that the classifier is asked about."""
    x, target = images
    small, seen = diffusion.DDPM(Small().float(), (8, 8), 50).eval(), []
    small.unet.conv[0].register_forward_hook(lambda m, given, out: seen.append(out.dtype))
    whole, half = (
        DiME(prior=small, **QUICK | {"bfloat16": on, "fast": True})(
            Linear().float(), x.float(), target, IDS
        )
        for on in (False, True)
    )
    assert set(seen[: len(seen) // 2]) == {torch.float32} and set(seen[len(seen) // 2 :]) == {
        torch.bfloat16
    }
    off = (half.counterfactual - whole.counterfactual).abs()
    assert half.counterfactual.dtype == torch.float32 and 0 < off.mean() < 0.01
