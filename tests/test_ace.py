"""ACE against a second implementation, closed forms, and its invariances; the refinement."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from cf_utils import core
from cf_utils.explainers import presets
from cf_utils.explainers.ace import ACE, pre_explanation
from cf_utils.explainers.reference import ace as reference
from cf_utils.explainers.shared.diffusion import NAN_PRIOR
from cf_utils.explainers.shared.inpaint import change_mask, inpaint
from cf_utils.explainers.shared.search import logit_margin
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
IDS = torch.tensor([11, 3, 7, 20, 5])


class Linear(nn.Module):
    """z_1 - z_0 = sharp * w.(x - 0.5), with w = +-1 per pixel value."""

    def __init__(self, sharp=0.05, size=16):
        super().__init__()
        gen = torch.Generator().manual_seed(1)
        self.w = torch.randn(3, size, size, generator=gen).sign().double() * sharp

    def forward(self, x):
        z = (self.w * (x - 0.5)).flatten(1).sum(1)
        return torch.stack([torch.zeros_like(z), z], 1)


class Silent(nn.Module):
    """A UNet that predicts no noise, so denoising is linear in the image."""

    def forward(self, z, t):
        return SimpleNamespace(sample=torch.zeros_like(z))


@pytest.fixture(scope="module")
def prior():
    torch.manual_seed(0)
    model = diffusion.build(**SMALL).double().eval()
    nn.init.normal_(model.unet.conv_out.weight, std=0.05)  # a new model predicts no noise
    return model


@pytest.fixture(scope="module")
def silent():
    return diffusion.DDPM(Silent(), (16, 16), 50)


@pytest.fixture(scope="module")
def images():
    gen = torch.Generator().manual_seed(2)
    x = 0.3 + 0.4 * torch.rand(5, 3, 16, 16, generator=gen, dtype=torch.float64)
    return x, (Linear()(x).argmax(1) == 0).long()


def stored_result(method):
    """An earlier result of a method for two images, with fixed numbers."""
    x = torch.arange(24, dtype=torch.float32).view(2, 3, 2, 2) / 24
    zero, score = torch.zeros(2, dtype=torch.int64), x[:, 0, 0, 0]
    return core.Counterfactuals(
        query=x,
        counterfactual=1 - x,
        target=zero + 1,
        source=zero,
        score=score,
        valid=zero == 0,
        reached=zero == 0,
        reason=("", ""),
        ids=torch.tensor([4, 9]),
        settings={"method": method},
        seed=0,
        seconds=score.double(),
        n_forward=zero,
        n_backward=zero,
        path=torch.stack([x, 1 - x], 1),
        path_len=zero + 2,
    )


def noise_streams(x, *names, ids=IDS, seed=0):
    return [diffusion.noise_of(seed, ids, x, name) for name in names]


# ---------------------------------------------------------------- the attack


def run_reference(ace, f, x, t, ids):
    """The pre-explanation and the counterfactual of one item at a time."""
    s, made = ace.prior.schedule.respace(ace.spacing), []
    for row, target, i in zip(x, t, ids, strict=True):
        row, i = row[None], i[None]

        def noise_of(name, row=row, i=i):
            return diffusion.noise_of(ace.seed, i, row, name)

        def by_iteration(k, noise_of=noise_of):
            return noise_of(f"attack {k}")

        settings = (ace.steps, ace.iterations, ace.step, ace.lam)
        pre = reference.attack(f, ace.prior, s, row, target, by_iteration, *settings)
        mask = reference.find_mask(row, pre, ace.threshold, ace.dilation)
        noises = noise_of("refine"), noise_of("query")
        made.append((pre, reference.refine(ace.prior, s, row, pre, mask, ace.steps, *noises)))
    return (torch.cat(images) for images in zip(*made, strict=True))


def test_the_attack_minimises_equation_3(prior, images):
    x, t = images
    ace = ACE(prior=prior, **QUICK | {"threshold": 0.9, "dilation": 1})
    cfs = ace(Linear(), x, t, IDS)
    pre, refined = run_reference(ace, Linear(), x, t, IDS)
    torch.testing.assert_close(pre_explanation(cfs), pre, rtol=0, atol=1e-9)
    torch.testing.assert_close(cfs.counterfactual, refined, rtol=0, atol=1e-9)
    assert 0.05 < cfs.mask.double().mean() < 0.95


def test_the_reference_keeps_each_step_of_the_attack_within_eps():
    x, gradient = torch.tensor([[0.5, 0.02, 0.98, 0.5]]), torch.tensor([[3.0, 0.1, -7.0, 0.0]])
    near = torch.tensor([[0.45, 0.02, 0.98, 0.5]])
    moved = reference.attack_step(near, gradient, x, step=0.04, eps=0.06)
    torch.testing.assert_close(moved, torch.tensor([[0.44, 0.0, 1.0, 0.5]]))


def test_passes_and_path_are_those_of_attack_and_refinement(prior, images):
    x, t = images
    cfs = ACE(prior=prior, **QUICK)(Linear(), x, t, IDS)
    assert cfs.n_forward_generator.tolist() == [4 * 3 + 3] * 5
    assert cfs.n_backward_generator.tolist() == [4 * 3] * 5
    assert cfs.n_backward.tolist() == [4] * 5
    assert cfs.n_forward.tolist() == [4 + 2] * 5  # the query and the result are classified, too
    assert cfs.path.shape[1] == 4  # query, state 2, pre-explanation, result
    assert (cfs.path_len == 4).all()
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
    other = ace.with_(seed=1)(Linear(), x, t, IDS)
    assert not torch.equal(other.counterfactual, whole.counterfactual)


def test_pgd_steps_along_the_sign_and_stops_at_eps(silent, images):
    """Without predicted noise, and with too little noise to clip, PGD follows the weights."""
    x, t = images
    f, way = Linear(), torch.where(t == 1, 1.0, -1.0).view(-1, 1, 1, 1) * Linear().w.sign()
    ace = ACE(prior=silent, stage="pre", **QUICK | {"lam": 0.0, "steps": 1})
    torch.testing.assert_close(ace(f, x, t).counterfactual, x + 4 * 0.02 * way)
    torch.testing.assert_close(ace.with_(eps=0.05)(f, x, t).counterfactual, x + 0.05 * way)


def test_gradient_descent_steps_along_the_gradient(silent, images):
    x, t = images
    f, way = Linear(), torch.where(t == 1, 1.0, -1.0).view(-1, 1, 1, 1) * Linear().w.sign()
    settings = QUICK | {"lam": 0.0, "steps": 1, "iterations": 1}
    ace = ACE(prior=silent, stage="pre", attack="gd", **settings)
    plain = ace(f, x, t).counterfactual - x
    assert (plain * way > 0).all()
    least, most = (getattr(plain.abs(), k)((1, 2, 3)) for k in ("amin", "amax"))
    assert (most <= 0.02 * 0.05 * 1.1).all()  # |w| is 0.05, the softmax's factor at most 1
    assert (least > 0.999 * most).all()


def test_the_distance_limits_the_change(silent, images):
    """l1 with a weight above the class gradient stays within a step; l2 shortens the change."""
    x, t = images
    ace = ACE(prior=silent, stage="pre", **QUICK | {"lam": 1.0, "iterations": 7, "steps": 1})
    assert (ace(Linear(), x, t).counterfactual - x).abs().max() <= 0.02 + 1e-9
    settings = QUICK | {"iterations": 7, "step": 0.5, "steps": 1}
    ace = ACE(prior=silent, stage="pre", distance="l2", attack="gd", **settings)
    free, limited = (ace.with_(lam=lam)(Linear(), x, t).counterfactual - x for lam in (0.0, 0.3))
    assert (limited.flatten(1).norm(dim=1) < free.flatten(1).norm(dim=1)).all()


def test_the_distances_are_norms(silent):
    ace = ACE(prior=silent, **QUICK)
    change = torch.randn(
        4, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    assert torch.allclose(ace._distance(change), change.flatten(1).norm(p=1, dim=1))
    assert torch.allclose(ace.l2()._distance(change), change.flatten(1).norm(dim=1))
    assert ace.l2()._distance(torch.zeros(1, 3, 2, 2)).item() == 0


def test_carlini_wagner_ends_at_its_margin(silent, images):
    """Beyond the hinge only the distance acts, so the margin settles near kappa."""
    x, t = images
    settings = QUICK | {"iterations": 60, "step": 0.05, "lam": 0.01}
    cfs = ACE(prior=silent, attack="cw", stage="pre", kappa=2.0, **settings)(Linear(), x, t)
    margin = logit_margin(Linear()(cfs.counterfactual), t)
    assert cfs.valid.all()
    assert (margin > 0.8).all() and (margin < 4.5).all(), margin
    assert cfs.counterfactual.min() > 0 and cfs.counterfactual.max() < 1


def test_carlini_wagner_can_change_black_pixels(silent):
    """At w = atanh(-1) a step of w would not move x."""
    x, f = torch.zeros(2, 3, 16, 16, dtype=torch.float64), Linear()
    t = 1 - f(x).argmax(1)
    settings = QUICK | {"iterations": 60, "step": 0.05, "lam": 0.0}
    ace = ACE(prior=silent, attack="cw", stage="pre", **settings)
    assert (ace(f, x, t).counterfactual - x).abs().amax() > 0.05


def test_items_leave_the_attack_at_the_margin(silent, images):
    x, t = images
    ace = ACE(prior=silent, **QUICK | {"iterations": 30, "lam": 0.0})
    whole, early = ace(Linear(), x, t, IDS), ace.with_(margin=2.0)(Linear(), x, t, IDS)
    assert early.valid.all() and (early.n_backward < whole.n_backward).all()
    assert whole.path.shape == early.path.shape
    pre, chain = pre_explanation(early), silent.chain("25")
    for k in range(5):  # the state that was classified last is kept, without a further step
        last, row = int(early.n_backward[k]) - 1, slice(k, k + 1)
        (noise,) = noise_streams(x[row], f"attack {last}", ids=IDS[row])
        assert logit_margin(Linear()(chain.filter(pre[row], 3, noise)), t[row]) >= 2.0
        steps = ace.with_(iterations=last)(Linear(), x[row], t[row], IDS[row])
        torch.testing.assert_close(pre[row], pre_explanation(steps))


@pytest.mark.parametrize(("common", "draws"), [(True, 1), (False, 4)])
def test_common_noise_is_one_draw_for_all_iterations(prior, images, common, draws):
    x, t = images
    settings = QUICK | {"lam": 0.0, "step": 1e-12}  # the image hardly moves, so noise differs alone
    ace, starts = ACE(prior=prior, stage="pre", common_noise=common, **settings), []
    watch = prior.unet.register_forward_pre_hook(
        lambda _, given: starts.append(given[0].detach().clone())
    )
    ace(Linear(), x, t, IDS)
    watch.remove()
    firsts = starts[:: ace.steps]
    assert len(firsts) == 4
    new = [all((a - b).abs().max() > 1e-6 for b in firsts[:k]) for k, a in enumerate(firsts)]
    assert sum(new) == draws


def test_another_attack_takes_twice_the_iterations(prior):
    signed = ACE(prior=prior)
    assert [signed.by(attack).iterations for attack in ("pgd", "gd", "cw")] == [50, 100, 100]
    assert signed.by("cw", step=0.03, iterations=7).iterations == 7
    assert signed.by("gd").attack == "gd"


# ---------------------------------------------------------------- stages and reused results


def test_stages_share_one_attack(prior, images):
    x, t = images
    ace, f = ACE(prior=prior, **QUICK), Linear()
    cfs = ace(f, x, t, IDS)
    pre = pre_explanation(cfs)
    stage = {s: ace.with_(stage=s, reuse=cfs)(f, x, t, IDS) for s in ("ace", "pre", "fr", "f")}
    assert torch.equal(stage["ace"].counterfactual, cfs.counterfactual)
    assert torch.equal(stage["ace"].mask, cfs.mask)
    assert torch.equal(stage["pre"].counterfactual, pre)
    assert stage["pre"].n_forward_generator.sum() == 0
    torch.testing.assert_close(stage["pre"].score, core.target_score(f(pre), t))
    (noise,) = noise_streams(x, "refine")
    level = prior.schedule.respace("25").t[2]
    with torch.no_grad():
        fr, full = (
            prior.chain("25").filter(pre, 3, noise),
            prior.chain().filter(pre, level + 1, noise),
        )
    torch.testing.assert_close(stage["fr"].counterfactual, fr.clamp(0, 1))
    torch.testing.assert_close(stage["f"].counterfactual, full.clamp(0, 1))
    assert stage["f"].n_forward_generator.tolist() == [level + 1] * 5
    assert stage["fr"].n_backward_generator.sum() == 0
    other = ace.with_(refine=("10", 1), reuse=cfs)(f, x, t, IDS)
    assert other.n_forward_generator.tolist() == [1] * 5
    assert not torch.equal(other.counterfactual, cfs.counterfactual)
    last = ace.with_(stage="pre", reuse=cfs)(f, x[3:], t[3:], IDS[3:])
    assert torch.equal(last.counterfactual, pre[3:])  # matched by id, not by position


def test_results_of_other_items_are_not_reused(prior, images):
    x, t = images
    ace, f = ACE(prior=prior, **QUICK), Linear()
    cfs = ace(f, x, t, IDS)
    again, ids, other = ace.with_(reuse=cfs), IDS.tolist(), x.clone()
    with pytest.raises(ValueError, match=r"reuse: has no item \[99\]"):
        again(f, x[:1], t[:1], torch.tensor([99]))
    other[1] = 1 - other[1]
    with pytest.raises(ValueError, match=rf"reuse: got another query for items \[{ids[1]}\]"):
        again(f, other, 1 - f(other).argmax(1), IDS)
    backwards = dataclasses.replace(cfs, target=1 - cfs.target)
    with pytest.raises(ValueError, match=rf"reuse: got another target for items \[{ids[0]}, "):
        ace.with_(reuse=backwards)(f, x, t, IDS)
    cut = dataclasses.replace(cfs, query=cfs.query[:, :, :8])
    says = r"reuse: got queries of shape \(3, 8, 16\), expected \(3, 16, 16\)"
    with pytest.raises(ValueError, match=says):
        ace.with_(reuse=cut)(f, x, t, IDS)


@pytest.mark.parametrize(
    "change", [{"settings": {"method": "DiME"}}, {"path": None, "path_len": None}]
)
def test_results_of_another_method_or_without_a_path_are_not_reused(silent, images, change):
    x, t = images
    cfs = dataclasses.replace(stored_result("ACE"), **change)
    says = r"reuse: got a result of (DiME|ACE), expected one of ACE with its path"
    with pytest.raises(ValueError, match=says):
        ACE(prior=silent, reuse=cfs, **QUICK)(Linear(), x, t, IDS)


def test_settings_keep_the_keys_of_stored_batches():
    """The hash was computed before the field `attacked` became `reuse`."""
    settings = json.dumps(
        core.describe(ACE(prior=None, reuse=stored_result("ACE"))), sort_keys=True
    )
    assert hashlib.sha256(settings.encode()).hexdigest()[:16] == "c883a9673bac4202"


# ---------------------------------------------------------------- zero edit


def zero_edit_by_hand(ace, x):
    chain, noises = ace.prior.chain("25"), noise_streams(x, "zero edit", "refine", "query")
    with torch.no_grad():
        mask = change_mask(x, chain.filter(x, 3, noises[0]), ace.threshold, ace.dilation)
        return inpaint(ace.prior.chain("10"), x, x, mask, 2, *noises[1:]), mask


def test_zero_edit_repaints_where_the_filter_changes_most(prior, images):
    x, _ = images
    ace = ACE(prior=prior, refine=("10", 2), **QUICK | {"dilation": 1, "threshold": 0.5})
    y = ace.zero_edit(x, IDS)
    expected, mask = zero_edit_by_hand(ace, x)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    inside = mask.expand_as(x)
    assert 0.05 < mask.double().mean() < 0.95
    assert torch.equal(y[~inside], x[~inside]) and (y[inside] != x[inside]).double().mean() > 0.99


@pytest.mark.parametrize("stage", ["fr", "f", "pre"])
def test_zero_edit_of_the_other_stages_filters_the_query(prior, images, stage):
    x, _ = images
    y, (noise,) = (
        ACE(prior=prior, stage=stage, **QUICK).zero_edit(x, IDS),
        noise_streams(x, "refine"),
    )
    level = prior.schedule.respace("25").t[2]
    with torch.no_grad():
        if stage == "fr":
            x = prior.chain("25").filter(x, 3, noise).clamp(0, 1)
        elif stage == "f":
            x = prior.chain().filter(x, level + 1, noise).clamp(0, 1)
    torch.testing.assert_close(y, x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("stage", ["ace", "fr", "f", "pre"])
def test_zero_edit_takes_the_passes_of_filter_and_refinement(prior, images, stage):
    x, passes = images[0], []
    ace = ACE(prior=prior, stage=stage, refine=("10", 2), **QUICK)
    hook = prior.unet.register_forward_hook(lambda *_: passes.append(1))
    ace.zero_edit(x, IDS)
    hook.remove()
    full = prior.schedule.respace("10").t[1] + 1
    assert len(passes) == {"ace": 3 + 2, "fr": 2, "f": full, "pre": 0}[stage]


@pytest.mark.parametrize("stage", ["ace", "fr", "f", "pre"])
def test_zero_edit_of_an_item_does_not_depend_on_its_batch(prior, images, stage):
    x, ace = images[0], ACE(prior=prior, stage=stage, **QUICK)
    whole, order = ace.zero_edit(x, IDS), torch.tensor([3, 1])
    torch.testing.assert_close(ace.zero_edit(x[order], IDS[order]), whole[order], rtol=0, atol=1e-9)
    assert torch.equal(ace.zero_edit(x), ace.zero_edit(x, torch.arange(5)))
    assert stage == "pre" or not torch.equal(ace.with_(seed=1).zero_edit(x, IDS), whole)


def test_zero_edit_refuses_bad_images(prior, images):
    ace, x = ACE(prior=prior, **QUICK), images[0]
    with pytest.raises(ValueError, match="x: got shape"):
        ace.zero_edit(x[..., :8])
    with pytest.raises(ValueError, match="x: values from"):
        ace.zero_edit(2 * x)
    with pytest.raises(ValueError, match="ids"):
        ace.zero_edit(x, IDS[:2])
    prior.train()
    ace.zero_edit(x, IDS)
    assert prior.training and all(p.requires_grad for p in prior.parameters())
    prior.eval()


# ---------------------------------------------------------------- NaN


def test_nan_of_the_prior_has_its_own_reason(prior, images):
    x, t = images

    class Marked(nn.Module):
        """NaN for the second of five items."""

        def forward(self, z, at):
            out = prior.unet(z, at).sample
            second = (torch.arange(len(z)) == 1) & (len(z) == 5)
            return SimpleNamespace(sample=torch.where(second[:, None, None, None], torch.nan, out))

    marked = diffusion.DDPM(Marked(), (16, 16), 50, unshuffle=prior.unshuffle)
    clean, cfs = (ACE(prior=one, **QUICK)(Linear(), x, t, IDS) for one in (prior, marked))
    assert cfs.reason[1] == NAN_PRIOR != core.NAN
    assert not cfs.valid[1] and torch.equal(cfs.counterfactual[1], x[1])
    rest = [0, 2, 3, 4]
    torch.testing.assert_close(cfs.counterfactual[rest], clean.counterfactual[rest])
    late = ACE(prior=marked, reuse=clean, **QUICK)(Linear(), x, t, IDS)  # in the refinement alone
    assert late.reason[1] == NAN_PRIOR and torch.equal(late.counterfactual[1], x[1])
    for stage in ("ace", "pre", "fr", "f"):  # an attack that failed stays failed
        after = ACE(prior=prior, reuse=cfs, stage=stage, **QUICK)(Linear(), x, t, IDS)
        assert after.reason[1] == NAN_PRIOR and not after.valid[1]
        assert torch.equal(after.counterfactual[1], x[1])
        assert not torch.equal(after.counterfactual[0], x[0])


def test_an_item_with_nan_fails_alone(silent, images):
    """A classifier that returns NaN for bright images just before their decision flips."""
    x = images[0].clone()
    x[2] += 0.2
    source = Linear()(x).argmax(1)

    class Marked(nn.Module):
        def forward(self, y):
            z = Linear()(y)
            beyond = (y.flatten(1).mean(1) > 0.6) & (z.argmax(1) != source[2])
            return torch.where(beyond[:, None], torch.nan, z)

    ace = ACE(prior=silent, **QUICK | {"lam": 0.0, "iterations": 12})
    cfs, clean = (ace(f, x, 1 - source, IDS) for f in (Marked(), Linear()))
    rest = [0, 1, 3, 4]
    torch.testing.assert_close(cfs.counterfactual[rest], clean.counterfactual[rest])
    assert cfs.reason[2] == core.NAN
    assert not cfs.valid[2] and torch.equal(cfs.counterfactual[2], x[2])
    assert 1 < cfs.n_backward[2] < 12 and clean.valid[2]


# ---------------------------------------------------------------- the refinement


def test_the_mask_equals_brute_force():
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


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        ((0.5, 4), "dilation: got 4"),
        ((0, 3), "threshold: got 0"),
        ((1.5, 3), "threshold: got 1.5"),
    ],
)
def test_a_bad_mask_setting_is_an_error(bad, text):
    with pytest.raises(ValueError, match=text):
        change_mask(torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 4), *bad)


def test_inpainting_keeps_the_query_outside_and_filters_inside(prior, images):
    x, _ = images
    edited = x.flip(0)
    noise, query_noise = noise_streams(x, "a", "b")
    chain, half = prior.chain("25"), torch.zeros(5, 1, 16, 16, dtype=torch.bool)
    half[..., 8:] = True
    everywhere, nowhere = torch.ones_like(half), torch.zeros_like(half)
    with torch.no_grad():
        whole = inpaint(chain, x, edited, everywhere, 3, noise, query_noise)
        torch.testing.assert_close(whole, chain.filter(edited, 3, noise).clamp(0, 1))
        assert torch.equal(inpaint(chain, x, edited, nowhere, 3, noise, query_noise), x)
        mixed = inpaint(chain, x, edited, half, 3, noise, query_noise)
    assert torch.equal(mixed[..., :8], x[..., :8])
    assert not torch.equal(mixed[..., 8:], whole[..., 8:])  # the network sees the outside


def test_inpainting_pastes_the_query_at_every_level(silent, images):
    x, _ = images
    seen = []

    def spy(z, t):
        seen.append(z.clone())
        return torch.zeros_like(z)

    chain = diffusion.Chain(spy, silent.schedule.respace("25"))
    noise, query_noise = noise_streams(x, "a", "b")
    left = torch.zeros(5, 1, 16, 16, dtype=torch.bool)
    left[..., :8] = True
    inpaint(chain, x, 1 - x, left, 3, noise, query_noise)
    for z, k in zip(seen, (2, 1, 0), strict=True):
        expected = chain.schedule.add_noise(2 * x - 1, k, query_noise(k))
        torch.testing.assert_close(z[..., 8:], expected[..., 8:])


# ---------------------------------------------------------------- settings and bad input


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
def test_a_bad_setting_is_an_error(silent, images, change, text):
    x, t = images
    with pytest.raises(ValueError, match=text):
        ACE(prior=silent, **QUICK | change)(Linear(), x, t)


def test_bad_images_and_classifiers_are_errors(silent, images):
    x, t = images
    ace = ACE(prior=silent, **QUICK)
    narrow = nn.Sequential(nn.Flatten(), nn.Linear(384, 2).double())
    one_output = nn.Sequential(nn.Flatten(), nn.Linear(768, 1).double())
    says = r"x: got shape \(5, 3, 16, 8\), expected \(B, 3, 16, 16\); this prior was trained on"
    with pytest.raises(ValueError, match=says):
        ace(narrow, x[..., :8].contiguous(), t)
    with pytest.raises(ValueError, match=r"x: .*0.*1"):
        ace(Linear(), 2 * x - 1, t)
    with pytest.raises(ValueError, match="classifier: "):
        ace(one_output, x, t)
    with pytest.raises(ValueError, match="target: values from 0 to 2"):
        ace(Linear(), x, t.clone().fill_(0).index_fill_(0, torch.tensor([0]), 2))


def test_a_classifier_without_gradient_is_refused(silent, images):
    x, t = images

    class Rounded(Linear):
        def forward(self, y):
            return super().forward(y).detach()

    with pytest.raises(ValueError, match=r"classifier: .*gradient"):
        ACE(prior=silent, **QUICK)(Rounded(), x, t)


@pytest.mark.parametrize(
    ("dataset", "levels", "sigma", "settings"),
    [
        ("celeba", 500, 0.273, ("50", 50, 0.003, 0.15)),
        ("celebahq", 500, 0.506, ("25", 50, 0.001, 0.15)),
        ("bdd", 1000, 0.142, ("100", 50, 0.001, 0.05)),
        ("imagenet", 1000, 0.504, ("25", 100, 0.001, 0.15)),
    ],
)
def test_presets_equal_the_authors_scripts(dataset, levels, sigma, settings):
    """Compare spacing, iterations, lambda of l1 (the script's times its batch) and threshold.

    The first noise level follows from the number of levels of each published model.
    """
    prior = diffusion.DDPM(Silent(), (16, 16), levels)
    ace = presets.get("ace", dataset).build(prior=prior)
    assert abs(float(prior.schedule.respace(ace.spacing).sigma[ace.steps - 1]) - sigma) < 5e-4
    assert (ace.spacing, ace.iterations, ace.lam, ace.threshold) == settings
    assert (ace.steps, ace.dilation, ace.step, ace.eps) == (5, 15, 1 / 255, 1.0)
    assert (ace.attack, ace.distance) == ("pgd", "l1")


def test_bfloat16_rounds_the_prior_alone(prior, images):
    x, t = images
    small, seen = copy.deepcopy(prior).float(), []
    small.unet.conv_in.register_forward_hook(lambda m, given, out: seen.append(out.dtype))
    settings = QUICK | {"stage": "fr", "iterations": 1}
    whole, half = (
        ACE(prior=small, bfloat16=on, **settings)(Linear(), x.float(), t, IDS)
        for on in (False, True)
    )
    n = len(seen) // 2
    assert set(seen[:n]) == {torch.float32} and set(seen[n:]) == {torch.bfloat16}
    difference = (half.counterfactual - whole.counterfactual).abs()
    assert half.counterfactual.dtype == torch.float32 and 0 < difference.mean() < 0.01
