"""ACE against a second implementation, closed forms on a prior that guesses no noise, and its invariances; the refinement."""

from __future__ import annotations

import copy
import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from cf_utils import core
from cf_utils.explainers.ace import ACE, pre_explanation
from cf_utils.explainers.shared.diffusion import NAN_PRIOR
from cf_utils.explainers.shared.inpaint import change_mask, inpaint
from cf_utils.models.generators import diffusion

SMALL = {
    "size": (16, 16),
    "steps": 50,
    "widths": (16, 32),
    "attention": (False, True),
    "head_width": 16,
    "groups": 8,
    "blocks": 1,
}
QUICK = {
    "spacing": "25",
    "steps": 3,
    "iterations": 4,
    "step": 0.02,
    "lam": 0.01,
    "dilation": 3,
    "trace": 2,
}


class Linear(nn.Module):
    """z_1 - z_0 = sharp * w.(x - 0.5), w = +-1 by pixel."""

    def __init__(self, sharp=0.05, size=16):
        super().__init__()
        self.w = (
            torch.randn(3, size, size, generator=torch.Generator().manual_seed(1)).sign().double()
            * sharp
        )

    def forward(self, x):
        z = (self.w * (x - 0.5)).flatten(1).sum(1)
        return torch.stack([torch.zeros_like(z), z], 1)


class Silent(nn.Module):
    """A UNet that guesses no noise: denoising is then linear in the image."""

    def forward(self, z, t):
        class Out:
            sample = torch.zeros_like(z)

        return Out


@pytest.fixture(scope="module")
def prior():
    torch.manual_seed(0)
    model = diffusion.build(**SMALL).double().eval()
    nn.init.normal_(
        model.unet.conv_out.weight, std=0.05
    )  # a fresh model guesses no noise: this one does
    return model


@pytest.fixture(scope="module")
def silent():
    return diffusion.DDPM(Silent(), (16, 16), 50)


@pytest.fixture(scope="module")
def images():
    x = 0.3 + 0.4 * torch.rand(
        5, 3, 16, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )
    return x, (Linear()(x).argmax(1) == 0).long()


IDS = torch.tensor([11, 3, 7, 20, 5])


def by_hand(ace, f, x, t, ids):
    """Eq. 3 by PGD, written out: no chain, no masks, one item at a time."""
    s, out = ace.prior.schedule.respaced(ace.spacing), []
    for row, target, i in zip(x, t, ids, strict=True):
        y = row[None].clone()
        for k in range(ace.iterations):
            y.requires_grad_(True)
            noise = diffusion.noise_of(ace.seed, i[None], row[None], f"attack {k}")
            z = s.abar[ace.steps - 1].sqrt() * (2 * y - 1) + (
                1 - s.abar[ace.steps - 1]
            ).sqrt() * noise(ace.steps)
            for level in range(ace.steps - 1, -1, -1):
                eps, v = ace.prior(z, torch.tensor([s.t[level]])).chunk(2, 1)
                a, b, before = s.abar[level], s.betas[level], s.abar_before[level]
                z0 = ((z - (1 - a).sqrt() * eps) / a.sqrt()).clamp(-1, 1)
                mean = (
                    before.sqrt() * b / (1 - a) * z0 + (1 - before) * (1 - b).sqrt() / (1 - a) * z
                )
                small = (
                    (b * (1 - before) / (1 - a))
                    if level
                    else s.betas[1] * (1 - s.abar[0]) / (1 - s.abar[1])
                )
                z = (
                    mean
                    + (((v + 1) / 2 * b.log() + (1 - v) / 2 * small.log()) / 2).exp() * noise(level)
                    if level
                    else mean
                )
            loss = -f((z + 1) / 2).log_softmax(1)[0, target] + ace.lam * (y - row).abs().sum()
            (g,) = torch.autograd.grad(loss, y)
            y = (y.detach() - ace.step * g.sign()).clamp(0, 1)
        out.append(y[0])
    return torch.stack(out)


def test_the_attack_is_equation_3(prior, images):
    x, t = images
    ace = ACE(prior=prior, **QUICK)
    cfs = ace(Linear(), x, t, IDS)
    torch.testing.assert_close(
        pre_explanation(cfs), by_hand(ace, Linear(), x, t, IDS), rtol=0, atol=1e-9
    )
    assert (
        cfs.n_forward_generator.tolist() == [4 * 3 + 3] * 5
        and cfs.n_backward_generator.tolist() == [4 * 3] * 5
    )
    assert (
        cfs.n_backward.tolist() == [4] * 5 and cfs.n_forward.tolist() == [4 + 2] * 5
    )  # asked first and last, too
    assert (
        cfs.path.shape[1] == 4 and (cfs.path_len == 4).all()
    )  # query, state 2, pre-explanation, result
    assert torch.equal(cfs.path[:, 0], x) and torch.equal(cfs.path[:, -1], cfs.counterfactual)


@pytest.mark.parametrize("attack", ["pgd", "gd", "cw"])
def test_an_item_does_not_depend_on_its_batch_or_on_recomputing(prior, images, attack):
    x, t = images
    ace = ACE(prior=prior, attack=attack, **QUICK)
    whole = ace(Linear(), x, t, IDS)
    order = torch.tensor([4, 0, 2])
    part = ace.with_(checkpoint=True)(Linear(), x[order], t[order], IDS[order])
    torch.testing.assert_close(part.counterfactual, whole.counterfactual[order], rtol=0, atol=1e-9)
    assert torch.equal(part.mask, whole.mask[order])
    assert not torch.equal(
        ace.with_(seed=1)(Linear(), x, t, IDS).counterfactual, whole.counterfactual
    )


def test_pgd_walks_along_the_sign_and_stops_at_eps(silent, images):
    """With no noise guessed and little added (nothing is clipped), each step is `step` along the target's weights."""
    x, t = images
    f, way = Linear(), torch.where(t == 1, 1.0, -1.0).view(-1, 1, 1, 1) * Linear().w.sign()
    ace = ACE(prior=silent, stage="pre", **QUICK | {"lam": 0.0, "steps": 1})
    torch.testing.assert_close(ace(f, x, t).counterfactual, x + 4 * 0.02 * way)
    torch.testing.assert_close(ace.with_(eps=0.05)(f, x, t).counterfactual, x + 0.05 * way)
    plain = ace.with_(attack="gd", iterations=1)(f, x, t).counterfactual - x
    assert (plain * way > 0).all()
    least, most = (getattr(plain.abs(), k)((1, 2, 3)) for k in ("amin", "amax"))
    assert (most <= 0.02 * 0.05 * 1.1).all() and (
        least > 0.999 * most
    ).all()  # w is +-0.05, the softmax at most 1


def test_the_distance_holds_back(silent, images):
    """A weight over the class gradient (0.05 at most) keeps l1 within a step of the query; l2 pulls the whole change shorter."""
    x, t = images
    ace = ACE(prior=silent, stage="pre", **QUICK | {"lam": 1.0, "iterations": 7, "steps": 1})
    assert (ace(Linear(), x, t).counterfactual - x).abs().max() <= 0.02 + 1e-9
    ace = ACE(
        prior=silent,
        stage="pre",
        distance="l2",
        attack="gd",
        **QUICK | {"iterations": 7, "step": 0.5, "steps": 1},
    )
    free, held = (ace.with_(lam=lam)(Linear(), x, t).counterfactual - x for lam in (0.0, 0.3))
    assert (held.flatten(1).norm(dim=1) < free.flatten(1).norm(dim=1)).all()
    away = torch.randn(4, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(
        ace.with_(distance="l1")._distance(away), away.flatten(1).norm(p=1, dim=1)
    )
    assert torch.allclose(ace.l2()._distance(away), away.flatten(1).norm(dim=1))


def test_carlini_wagner_ends_at_its_margin(silent, images):
    """Past the hinge only the distance pulls, so the lead settles near kappa; with the cross-entropy it would go on."""
    x, t = images
    ace = ACE(
        prior=silent,
        attack="cw",
        stage="pre",
        **QUICK | {"iterations": 60, "step": 0.05, "lam": 0.01},
        kappa=2.0,
    )
    cfs = ace(Linear(), x, t)
    lead = ace._lead(Linear()(cfs.counterfactual), t[:, None])
    assert cfs.valid.all()
    assert (lead > 0.8).all() and (lead < 4.5).all(), lead
    assert cfs.counterfactual.min() > 0 and cfs.counterfactual.max() < 1


def test_stages_share_one_attack(prior, images):
    x, t = images
    ace, f = ACE(prior=prior, **QUICK), Linear()
    cfs = ace(f, x, t, IDS)
    pre = pre_explanation(cfs)
    stage = {s: ace.with_(stage=s, attacked=cfs)(f, x, t, IDS) for s in ("ace", "pre", "fr", "f")}
    assert torch.equal(stage["ace"].counterfactual, cfs.counterfactual) and torch.equal(
        stage["ace"].mask, cfs.mask
    )
    assert (
        torch.equal(stage["pre"].counterfactual, pre)
        and stage["pre"].n_forward_generator.sum() == 0
    )
    torch.testing.assert_close(stage["pre"].score, f(pre).softmax(1).gather(1, t[:, None])[:, 0])
    with torch.no_grad():
        fr = prior.chain("25").filter(pre, 3, diffusion.noise_of(0, IDS, x, "refine"))
        level = prior.schedule.respaced("25").t[2]
        full = prior.chain().filter(pre, level + 1, diffusion.noise_of(0, IDS, x, "refine"))
    torch.testing.assert_close(stage["fr"].counterfactual, fr.clamp(0, 1))
    torch.testing.assert_close(stage["f"].counterfactual, full.clamp(0, 1))
    assert (
        stage["f"].n_forward_generator.tolist() == [level + 1] * 5
        and stage["fr"].n_backward_generator.sum() == 0
    )
    other = ace.with_(refine=("10", 1), attacked=cfs)(f, x, t, IDS)
    assert other.n_forward_generator.tolist() == [1] * 5 and not torch.equal(
        other.counterfactual, cfs.counterfactual
    )
    last = ace.with_(stage="pre", attacked=cfs)(f, x[3:], t[3:], IDS[3:])
    assert torch.equal(last.counterfactual, pre[3:])  # by id, not by place
    again = ace.with_(attacked=cfs)
    with pytest.raises(ValueError, match=r"attacked: has no item \[99\]"):
        again(f, x[:1], t[:1], torch.tensor([99]))
    other, ids = x.clone(), IDS.tolist()
    other[1] = 1 - other[1]
    with pytest.raises(
        ValueError, match=rf"attacked: its query of item \[{ids[1]}\] is another one"
    ):
        again(f, other, 1 - f(other).argmax(1), IDS)
    backwards = dataclasses.replace(cfs, target=1 - cfs.target)
    with pytest.raises(
        ValueError, match=rf"attacked: its target of item \[{ids[0]}, .*is another one"
    ):
        ace.with_(attacked=backwards)(f, x, t, IDS)
    with pytest.raises(
        ValueError, match=r"attacked: its queries have shape \(3, 8, 16\), got x of \(3, 16, 16\)"
    ):
        ace.with_(attacked=dataclasses.replace(cfs, query=cfs.query[:, :, :8]))(f, x, t, IDS)
    for wrong in (
        {"settings": cfs.settings | {"method": "DiME"}},
        {"path": None, "path_len": None},
    ):
        with pytest.raises(
            ValueError,
            match=r"attacked: got a result of (DiME|ACE), expected one of ACE with its path",
        ):
            ace.with_(attacked=dataclasses.replace(cfs, **wrong))(f, x, t, IDS)


def test_items_leave_once_they_lead_by_the_margin(silent, images):
    x, t = images
    ace = ACE(prior=silent, **QUICK | {"iterations": 30, "lam": 0.0})
    whole, early = ace(Linear(), x, t, IDS), ace.with_(margin=2.0)(Linear(), x, t, IDS)
    assert early.valid.all() and (early.n_backward < whole.n_backward).all()
    pre, chain = pre_explanation(early), silent.chain("25")
    for k in range(5):  # it left in the state that the classifier was asked at
        last = int(early.n_backward[k]) - 1
        noise = diffusion.noise_of(0, IDS[k : k + 1], x[k : k + 1], f"attack {last}")
        lead = ace._lead(Linear()(chain.filter(pre[k : k + 1], 3, noise)), t[k : k + 1, None])
        assert lead >= 2.0
        steps = ace.with_(iterations=last)(Linear(), x[k : k + 1], t[k : k + 1], IDS[k : k + 1])
        torch.testing.assert_close(
            pre[k : k + 1], pre_explanation(steps)
        )  # and not one step further
    assert whole.path.shape == early.path.shape


def test_common_noise_repeats_itself(prior, images):
    """The noise of all iterations, seen by the network: one draw under common noise, a new one each time otherwise."""
    x, t = images
    for common, draws in ((True, 1), (False, 4)):
        starts, ace = (
            [],
            ACE(
                prior=prior, stage="pre", common_noise=common, **QUICK | {"lam": 0.0, "step": 1e-12}
            ),
        )
        watch = prior.unet.register_forward_pre_hook(
            lambda _, given, starts=starts: starts.append(given[0].detach().clone())
        )
        ace(Linear(), x, t, IDS)
        watch.remove()
        firsts = starts[:: ace.steps]  # the image hardly moves: what differs is the noise
        assert len(firsts) == 4
        assert (
            sum(all((a - b).abs().max() > 1e-6 for b in firsts[:k]) for k, a in enumerate(firsts))
            == draws
        )


def test_black_pixels_can_be_attacked_by_carlini_and_wagner_too(silent):
    """At w = atanh(-1) a step of w would be none of x."""
    x, f = torch.zeros(2, 3, 16, 16, dtype=torch.float64), Linear()
    t = 1 - f(x).argmax(1)
    ace = ACE(
        prior=silent,
        attack="cw",
        stage="pre",
        **QUICK | {"iterations": 60, "step": 0.05, "lam": 0.0},
    )
    assert (ace(f, x, t).counterfactual - x).abs().amax() > 0.05


def test_a_prior_with_nan_is_told_from_a_classifier_with_nan(prior, images):
    x, t = images

    class Marked(nn.Module):
        def forward(self, z, at):
            out = prior.unet(z, at).sample
            second = (torch.arange(len(z)) == 1) & (len(z) == 5)  # while it is there
            return SimpleNamespace(sample=torch.where(second[:, None, None, None], torch.nan, out))

    marked = diffusion.DDPM(Marked(), (16, 16), 50, unshuffle=prior.unshuffle)
    fine, cfs = (ACE(prior=one, **QUICK)(Linear(), x, t, IDS) for one in (prior, marked))
    assert (
        cfs.reason[1] == NAN_PRIOR != core.NAN
        and not cfs.valid[1]
        and torch.equal(cfs.counterfactual[1], x[1])
    )
    rest = [0, 2, 3, 4]
    torch.testing.assert_close(cfs.counterfactual[rest], fine.counterfactual[rest])
    late = ACE(prior=marked, attacked=fine, **QUICK)(
        Linear(), x, t, IDS
    )  # the attack was well, the refinement is not
    assert late.reason[1] == NAN_PRIOR and torch.equal(late.counterfactual[1], x[1])
    for stage in ("ace", "pre", "fr", "f"):  # an attack that failed stays failed
        after = ACE(prior=prior, attacked=cfs, stage=stage, **QUICK)(Linear(), x, t, IDS)
        assert (
            after.reason[1] == NAN_PRIOR
            and not after.valid[1]
            and torch.equal(after.counterfactual[1], x[1])
        )
        assert not torch.equal(after.counterfactual[0], x[0])


def test_an_item_with_nan_fails_alone(silent, images):
    """A classifier that breaks on bright images once they are about to be decided otherwise."""
    x = images[0].clone()
    x[2] += 0.2
    source = Linear()(x).argmax(1)

    class Marked(nn.Module):
        def forward(self, y):
            z = Linear()(y)
            beyond = (y.flatten(1).mean(1) > 0.6) & (z.argmax(1) != source[2])
            return torch.where(beyond[:, None], torch.nan, z)

    ace = ACE(prior=silent, **QUICK | {"lam": 0.0, "iterations": 12})
    cfs, fine = (ace(f, x, 1 - source, IDS) for f in (Marked(), Linear()))
    rest = [0, 1, 3, 4]
    torch.testing.assert_close(cfs.counterfactual[rest], fine.counterfactual[rest])
    assert (
        cfs.reason[2] == core.NAN and not cfs.valid[2] and torch.equal(cfs.counterfactual[2], x[2])
    )
    assert 1 < cfs.n_backward[2] < 12 and fine.valid[2]


# ---------------------------------------------------------------- the refinement


def test_the_mask_by_brute_force():
    gen = torch.Generator().manual_seed(0)
    x, y = (torch.rand(2, 3, 12, 10, generator=gen) for _ in range(2))
    y[1] = x[1]
    y[0, :, :6] = x[0, :, :6]
    mask = change_mask(x, y, 0.7, 3)
    size = (y - x).abs().sum(1)
    for i in range(12):
        for j in range(10):
            near = size[0, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].max()
            assert mask[0, 0, i, j] == (near >= 0.7 * size[0].max())
    assert mask.shape == (2, 1, 12, 10) and not mask[1].any() and 0 < mask[0].sum() < 60
    for bad, text in (
        ((0.5, 4), "dilation: got 4"),
        ((0, 3), "threshold: got 0"),
        ((1.5, 3), "threshold: got 1.5"),
    ):
        with pytest.raises(ValueError, match=text):
            change_mask(x, y, *bad)


def test_inpainting_keeps_the_query_outside_and_is_a_filter_where_all_may_change(prior, images):
    x, _ = images
    edited = x.flip(0)
    noise, other = (diffusion.noise_of(0, IDS, x, s) for s in "ab")
    chain, half = prior.chain("25"), torch.zeros(5, 1, 16, 16, dtype=torch.bool)
    half[..., 8:] = True
    with torch.no_grad():
        whole = inpaint(chain, x, edited, torch.ones_like(half), 3, noise, other)
        torch.testing.assert_close(whole, chain.filter(edited, 3, noise).clamp(0, 1))
        assert torch.equal(inpaint(chain, x, edited, torch.zeros_like(half), 3, noise, other), x)
        mixed = inpaint(chain, x, edited, half, 3, noise, other)
    assert torch.equal(mixed[..., :8], x[..., :8])
    assert not torch.equal(
        mixed[..., 8:], whole[..., 8:]
    )  # what lies outside is seen by the network


def test_inpainting_pastes_the_query_at_every_level(silent, images):
    """A chain that looks at the outside only: where the query were pasted once, level 0 would see the edit's noise."""
    x, _ = images
    seen = []

    def spy(z, t):
        seen.append(z.clone())
        return torch.zeros_like(z)

    chain = diffusion.Chain(spy, silent.schedule.respaced("25"))
    noise, other = (diffusion.noise_of(0, IDS, x, s) for s in "ab")
    left = torch.zeros(5, 1, 16, 16, dtype=torch.bool)
    left[..., :8] = True
    inpaint(chain, x, 1 - x, left, 3, noise, other)
    for z, k in zip(seen, (2, 1, 0), strict=True):
        expected = chain.schedule.noised(2 * x - 1, k, other(k))
        torch.testing.assert_close(z[..., 8:], expected[..., 8:])


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"attack": "fgsm"}, "attack: got 'fgsm'"),
        ({"distance": "linf"}, "distance: got 'linf'"),
        ({"stage": "x"}, "stage: got 'x'"),
        ({"steps": 26}, "steps: got 26, expected 1 to 25"),
        ({"dilation": 4}, "dilation: got 4"),
        ({"lam": -1.0}, "lam"),
        ({"lam": math.nan}, "lam"),
        ({"step": math.nan}, "step"),
        ({"kappa": math.nan}, "kappa"),
        ({"kappa": -1.0}, "kappa"),
        ({"margin": math.nan}, "margin: got nan"),
        ({"steps": 2.0}, "steps: got 2.0, expected a whole"),
        ({"trace": 0}, "trace"),
        ({"iterations": 2.5}, "iterations: got 2.5, expected a whole number"),
        ({"bounds": (-1.0, 1.0)}, "bounds: got"),
        ({"refine": ("10", 11)}, "refine: got 11, expected 1 to 10"),
        ({"threshold": 0.0}, "threshold"),
        ({"spacing": "60"}, "cannot keep 60"),
    ],
)
def test_bad_settings(silent, images, change, text):
    x, t = images
    with pytest.raises(ValueError, match=text):
        ACE(prior=silent, **QUICK | change)(Linear(), x, t)


def test_bad_images_and_classifiers(silent, images):
    x, t = images
    ace = ACE(prior=silent, **QUICK)
    with pytest.raises(
        ValueError,
        match=r"x: got shape \(5, 3, 16, 8\), this prior was trained on \(B, 3, 16, 16\)",
    ):
        ace(nn.Sequential(nn.Flatten(), nn.Linear(384, 2).double()), x[..., :8].contiguous(), t)
    with pytest.raises(ValueError, match=r"x: .*0.*1"):
        ace(Linear(), 2 * x - 1, t)
    with pytest.raises(ValueError, match="classifier: gave"):
        ace(nn.Sequential(nn.Flatten(), nn.Linear(768, 1).double()), x, t)
    with pytest.raises(ValueError, match="target: values from 0 to 2"):
        ace(Linear(), x, t.clone().fill_(0).index_fill_(0, torch.tensor([0]), 2))


@pytest.mark.parametrize(
    ("preset", "levels", "sigma", "settings"),
    [
        ("celeba", 500, 0.273, ("50", 50, 0.003, 0.15)),
        ("celebahq", 500, 0.506, ("25", 50, 0.001, 0.15)),
        ("bdd", 1000, 0.142, ("100", 50, 0.001, 0.05)),
        ("imagenet", 1000, 0.504, ("25", 100, 0.001, 0.15)),
    ],
)
def test_presets_are_the_authors_scripts(preset, levels, sigma, settings):
    """Spacing, iterations, lambda of l1 (the script's times its batch), threshold; sigma at the start, for the number of levels
    that each published model has."""
    ace = getattr(ACE, preset)(diffusion.DDPM(Silent(), (16, 16), levels))
    assert abs(float(ace.prior.schedule.respaced(ace.spacing).sigma[ace.steps - 1]) - sigma) < 5e-4
    assert (ace.spacing, ace.iterations, ace.lam, ace.threshold) == settings
    assert (ace.steps, ace.dilation, ace.step, ace.eps, ace.attack, ace.distance) == (
        5,
        15,
        1 / 255,
        1.0,
        "pgd",
        "l1",
    )


def test_another_attack_takes_twice_the_iterations(prior):
    signed = ACE.celeba(prior)
    assert [signed.by(attack).iterations for attack in ("pgd", "gd", "cw")] == [50, 100, 100]
    assert (
        signed.by("cw", step=0.03, iterations=7).iterations == 7 and signed.by("gd").attack == "gd"
    )


def test_bfloat16_is_the_prior_in_autocast_and_nearly_the_same(prior, images):
    """The classifier and the chain stay as they are; only what the UNet computes is rounded."""
    x, t = images
    small = copy.deepcopy(prior).float()
    seen = []
    small.unet.conv_in.register_forward_hook(lambda m, given, out: seen.append(out.dtype))
    whole, half = (
        ACE(prior=small, **QUICK | {"bfloat16": on, "stage": "fr", "iterations": 1})(
            Linear(), x.float(), t, IDS
        )
        for on in (False, True)
    )
    assert set(seen[: len(seen) // 2]) == {torch.float32} and set(seen[len(seen) // 2 :]) == {
        torch.bfloat16
    }
    off = (half.counterfactual - whole.counterfactual).abs()
    assert half.counterfactual.dtype == torch.float32 and 0 < off.mean() < 0.01
