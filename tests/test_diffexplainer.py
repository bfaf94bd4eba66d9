"""DiffExplainer against closed forms of a linear autoencoder, agent and black box."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn

from cf_utils.core import PassCounter, target_score
from cf_utils.explainers import diffexplainer
from cf_utils.explainers.diffexplainer import DiffExplainer, difference_maps
from cf_utils.explainers.latent_shift import LatentShift
from cf_utils.explainers.shared import line
from cf_utils.explainers.shared.false_position import TracedLines, aim_of, refine
from cf_utils.models.generators.diffae import DiffusionAutoencoder
from cf_utils.models.generators.slices import DiffusionCodes, SlicedModel
from tests.slice_models import (
    SIDE,
    CurvedBlackBox,
    D,
    LinearBlackBox,
    LinearSlices,
    S,
    make_agent,
    make_patients,
)
from tests.test_latent import LinearModel

TAU, TOLERANCE = 0.9, 0.01
SETTINGS = {"bounds": None, "tau": TAU, "tolerance": TOLERANCE, "limit": 1e3}


def make(**changes):
    networks = {"autoencoder": LinearSlices(), "agent": make_agent()}
    return DiffExplainer(**(networks | SETTINGS | changes))


def odds_of(classifier, x):
    logits = classifier(x)
    return (logits[:, 1] - logits[:, 0]).detach()


def targets(classifier, x):
    return (odds_of(classifier, x) < 0).long()


def slope_of(agent):
    """dy'/dq of the log-odds of class 1, by hand: W^T (c_1 - c_0)."""
    return ((agent.head.weight[1] - agent.head.weight[0]) @ agent.linear.weight).detach()


def change_of(model, slope):
    """Change of the patient per unit of alpha towards class 1."""
    return (slope.view(S, D) @ model.basis.T).view(S, SIDE, SIDE).detach()


# ---------------------------------------------------------------- Eq. 2


@pytest.mark.parametrize("box", [LinearBlackBox(), CurvedBlackBox()])
def test_the_amount_is_that_of_the_closed_form_and_decodes_the_query(box):
    explain, x = make(refinements=40, tolerance=1e-6), make_patients()
    target = targets(box, x)
    cfs = explain(box, x, target)
    step = change_of(explain.autoencoder, slope_of(explain.agent))
    sign = torch.where(target == 1, 1.0, -1.0).double()
    rise = (step * box.w).sum().item()  # log-odds of the black box per unit of alpha
    assert rise > 0.1
    wanted = math.log(TAU / (1 - TAU))
    if isinstance(box, CurvedBlackBox):  # invert z + sin(1.5 z) / 2 by a fixed point
        low, high = 0.0, 10.0
        for _ in range(80):
            middle = (low + high) / 2
            low, high = (
                (middle, high) if middle + math.sin(1.5 * middle) / 2 < wanted else (low, middle)
            )
        wanted = high
    z = LinearBlackBox.forward(box, x)[:, 1].detach()
    amount = (wanted - sign * z) / rise  # along sign * step, log-odds rise by `rise`
    assert (amount > 0).all()
    expected = x + (amount * sign)[:, None, None, None] * step
    assert cfs.reached.all() and (cfs.score < TAU + 2e-6).all()
    torch.testing.assert_close(cfs.counterfactual, expected, atol=1e-4, rtol=0)


def test_the_decoder_keeps_the_noise_of_the_query():
    """Detail outside the plane of the codes is that of the query."""
    explain, box, x = make(), LinearBlackBox(), make_patients()
    cfs = explain(box, x, targets(box, x))
    away = (cfs.counterfactual - x).flatten(2)
    basis = explain.autoencoder.basis.detach()
    torch.testing.assert_close(away @ basis @ basis.T, away, atol=1e-12, rtol=0)
    torch.testing.assert_close(explain.zero_edit(x), x, atol=1e-12, rtol=0)


def test_an_item_beyond_the_limit_ends_at_the_limit():
    box, x = LinearBlackBox(), make_patients()
    target = targets(box, x)
    slope = slope_of(make().agent)
    step = change_of(LinearSlices(), slope)
    rise = (step * box.w).sum().detach()
    sign = torch.where(target == 1, 1.0, -1.0).double()
    away = (math.log(TAU / (1 - TAU)) - sign * odds_of(box, x)) / rise * slope.norm()
    limit = float(away.median()) + 0.2
    cfs = make(limit=limit)(box, x, target)
    near = away < limit
    assert 0 < near.sum() < len(x) and torch.equal(cfs.reached, near)
    expected = x + (sign * limit / slope.norm())[:, None, None, None] * step
    torch.testing.assert_close(cfs.counterfactual[~near], expected[~near], atol=1e-9, rtol=0)
    assert all(("up to distance" in r) == (not ok) for r, ok in zip(cfs.reason, near, strict=True))


def test_the_black_box_is_asked_and_not_the_agent():
    """An agent of the opposite direction moves the black box away: every item fails."""
    explain, box, x = make(limit=5.0), LinearBlackBox(), make_patients()
    agent = make_agent()
    with torch.no_grad():
        agent.linear.weight.neg_()
    cfs = explain.with_(agent=agent)(box, x, targets(box, x))
    assert not cfs.reached.any()
    torch.testing.assert_close(cfs.counterfactual, x, atol=1e-12, rtol=0)  # best point: alpha = 0


def test_no_gradient_of_the_black_box_is_needed():
    box, x = LinearBlackBox(), make_patients()

    class Decisions(nn.Module):
        def forward(self, x):
            return box(x).detach()

    assert make()(Decisions(), x, targets(box, x)).reached.all()


def test_both_directions_and_undecided_items():
    box, x = LinearBlackBox(), make_patients()
    step = change_of(LinearSlices(), slope_of(make_agent()))
    x = x - (odds_of(box, x) / (step * box.w).sum().detach())[:, None, None, None] * step
    torch.testing.assert_close(odds_of(box, x), torch.zeros(len(x)).double(), atol=1e-9, rtol=0)
    lower, upper = make().explain_both(box, x)
    assert lower.reached.all() and upper.reached.all()
    opposite = (lower.counterfactual - x, x - upper.counterfactual)
    torch.testing.assert_close(*opposite, atol=1e-9, rtol=0)
    assert (lower.target == 0).all() and (upper.target == 1).all()


def test_manipulation_by_hand_and_directions():
    explain, x = make(), make_patients(3)
    slope = slope_of(explain.agent)
    alpha, target = torch.tensor([-1.0, 0.0, 2.0]), torch.tensor([1, 0, 1])
    found = explain.manipulate(x, target, alpha)
    step = change_of(explain.autoencoder, slope)
    sign = torch.tensor([1.0, -1.0, 1.0]).double()
    expected = x[:, None] + (sign[:, None] * alpha)[..., None, None, None] * step
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(explain.directions(x, target), sign[:, None] * slope)


# ---------------------------------------------------------------- the pattern of the agent


def make_covariance(seed=5):
    a = torch.randn(S * D, S * D, generator=torch.Generator().manual_seed(seed)).double()
    return torch.eye(S * D).double() + 0.1 * a @ a.T / (S * D)


def with_covariance(covariance):
    agent = make_agent()
    agent.covariance.copy_(covariance)
    return agent


@pytest.mark.parametrize("box", [LinearBlackBox()])
def test_the_pattern_is_the_covariance_times_the_gradient(box):
    """The search goes along C dy'/dq, as far as the linear black box needs."""
    covariance, x = make_covariance(), make_patients()
    explain = make(agent=with_covariance(covariance), direction="pattern", tolerance=1e-6)
    target = targets(box, x)
    ahead = covariance @ slope_of(explain.agent)
    sign = torch.where(target == 1, 1.0, -1.0).double()
    torch.testing.assert_close(explain.directions(x, target), sign[:, None] * ahead)
    step = change_of(explain.autoencoder, ahead)
    rise = (step * box.w).sum().item()
    amount = ((math.log(TAU / (1 - TAU)) - sign * odds_of(box, x)) / rise).clamp(min=0)
    expected = x + (amount * sign)[:, None, None, None] * step
    cfs = explain(box, x, target)
    assert rise > 0 and cfs.reached.all()
    torch.testing.assert_close(cfs.counterfactual, expected, atol=1e-3, rtol=0)


def test_a_pattern_ignores_what_only_cancels_a_disturbance():
    """Haufe et al. 2014: codes s a + n b; the optimal filter is not a, but its pattern is."""
    generator = torch.Generator().manual_seed(0)
    s, n = torch.randn(2, 4000, generator=generator).double()
    codes = torch.zeros(4000, S * D).double()
    codes[:, 0], codes[:, 1] = s + n, n  # the score s is code 0 less code 1
    agent = make_agent()
    with torch.no_grad():
        agent.linear.weight.zero_()
        row = agent.head.weight[1] - agent.head.weight[0]
        agent.linear.weight[:, 0] = row / row.square().sum()
        agent.linear.weight[:, 1] = -row / row.square().sum()
    agent.set_covariance(codes)
    x, target = make_patients(), torch.ones(len(make_patients()), dtype=torch.int64)
    found = {
        k: make(agent=agent, direction=k).directions(x, target)[0] for k in diffexplainer.DIRECTIONS
    }
    assert found["gradient"][:2].tolist() == pytest.approx([1, -1])
    assert abs(found["pattern"][1] / found["pattern"][0]) < 0.05
    assert found["pattern"][2:].abs().max() == 0


def test_the_covariance_is_that_of_the_codes_and_without_one_both_directions_agree():
    codes = torch.randn(50, S * D, generator=torch.Generator().manual_seed(1)).double()
    agent, x = make_agent(), make_patients()
    target = torch.zeros(len(x), dtype=torch.int64)
    one, other = (
        make(agent=agent, direction=k).directions(x, target) for k in ("gradient", "pattern")
    )
    torch.testing.assert_close(one, other)
    agent.set_covariance(codes)
    away = codes - codes.mean(0)
    torch.testing.assert_close(agent.covariance, away.T @ away / 49)
    with pytest.raises(ValueError, match="codes"):
        agent.set_covariance(codes[:1])
    with pytest.raises(ValueError, match="direction"):
        make(direction="along")(LinearBlackBox(), x, target)


# ---------------------------------------------------------------- path, maps


@pytest.mark.parametrize("box", [LinearBlackBox(), CurvedBlackBox()])
def test_the_path_has_equal_steps_of_the_score(box):
    explain, x = make(path_steps=4, tolerance=1e-5, refinements=40), make_patients()
    target = targets(box, x)
    cfs = explain(box, x, target)
    assert cfs.path.shape[1] == 6 and torch.equal(cfs.path[:, 0], x)
    torch.testing.assert_close(cfs.path[:, 1], x, atol=1e-12, rtol=0)  # exact reconstruction
    assert torch.equal(cfs.path[:, -1], cfs.counterfactual)
    states = cfs.path[:, 1:].flatten(0, 1)
    score = target_score(box(states), target.repeat_interleave(5)).unflatten(0, (-1, 5))
    even = score[:, :1] + (score[:, -1:] - score[:, :1]) * torch.arange(5) / 4
    torch.testing.assert_close(score, even, atol=2e-5, rtol=0)


def test_a_path_by_amount_has_equal_steps_of_alpha():
    box, x = CurvedBlackBox(), make_patients()
    cfs = make(path_steps=4, path_by="amount")(box, x, targets(box, x))
    assert cfs.path.shape[1] == 6 and torch.equal(cfs.path[:, -1], cfs.counterfactual)
    steps = cfs.path[:, 1:].diff(dim=1)  # the decoder is linear
    torch.testing.assert_close(steps, steps[:, :1].expand_as(steps), atol=1e-10, rtol=0)
    with pytest.raises(ValueError, match="path_by: got 'alpha'"):
        make(path_by="alpha")(box, x, targets(box, x))


def test_a_path_of_one_step_and_a_failed_item():
    box, x = LinearBlackBox(), make_patients()
    cfs = make(path_steps=1)(box, x, targets(box, x))
    assert cfs.path.shape[1] == 3 and torch.equal(cfs.path[:, 2], cfs.counterfactual)
    short = make(path_steps=3, limit=0.3, tolerance=1e-5, refinements=40)
    cfs = short(box, x, targets(box, x))
    assert not cfs.reached.any()
    target = targets(box, x)
    score = target_score(box(cfs.path[:, 1:].flatten(0, 1)), target.repeat_interleave(4))
    steps = score.unflatten(0, (-1, 4)).diff(dim=1)
    torch.testing.assert_close(steps, steps.mean(1, keepdim=True).expand(-1, 3), atol=2e-5, rtol=0)


def test_a_reconstruction_at_the_target_is_the_result():
    class Shifted(LinearSlices):
        def encode(self, x):
            towards = box.w.detach().mean(0).flatten() @ self.basis
            return super().encode(x) + 4 * towards

        def invert(self, x, q, steps):
            return torch.zeros_like(x)

    box, x = LinearBlackBox(), make_patients()
    x = x[odds_of(box, x) < 0]
    explain = make().with_(autoencoder=Shifted())
    ones = torch.ones(len(x), dtype=torch.int64)
    assert (odds_of(box, explain.zero_edit(x)) > 5).all()
    cfs = explain(box, x, ones)
    assert cfs.reached.all()
    torch.testing.assert_close(cfs.counterfactual, explain.zero_edit(x))
    expected = cfs.counterfactual[:, None].expand(-1, 6, -1, -1, -1)
    torch.testing.assert_close(cfs.path[:, 1:], expected)
    assert cfs.n_forward_generator.tolist() == [2] * len(x)


def test_difference_maps_are_hounsfield_units_against_the_reconstruction():
    class Lossy(LinearSlices):
        def invert(self, x, q, steps):
            return torch.zeros_like(x)

    box, x = LinearBlackBox(), make_patients()
    explain = make().with_(autoencoder=Lossy())
    cfs = explain(box, x, targets(box, x))
    maps = difference_maps(cfs)
    expected = 1200 * (cfs.counterfactual - explain.zero_edit(x))
    torch.testing.assert_close(maps, expected, atol=1e-9, rtol=0)
    assert (maps - 1200 * (cfs.counterfactual - x)).abs().max() > 10
    wide = difference_maps(cfs, (-1000.0, 1000.0))
    torch.testing.assert_close(wide, maps * 2000 / 1200)
    with pytest.raises(ValueError, match="cfs: got a result without path"):
        difference_maps(dataclasses.replace(cfs, path=None, path_len=None))
    bare = dataclasses.replace(cfs, path=None, path_len=None)
    found = difference_maps(bare, zero_edit=x + 0.1)
    torch.testing.assert_close(found, 1200 * (cfs.counterfactual - x - 0.1), atol=1e-9, rtol=0)


# ---------------------------------------------------------------- contract


def test_items_do_not_depend_on_their_batch():
    box, x = CurvedBlackBox(), make_patients(7)
    target = targets(box, x)
    explain = make(limit=4.0)
    together = explain(box, x, target)
    assert together.reached.any() and not together.reached.all()
    for rows in ([4], [5, 0, 2]):
        alone, part = explain(box, x[rows], target[rows]), together.select(rows)
        torch.testing.assert_close(alone.counterfactual, part.counterfactual, atol=1e-10, rtol=0)
        torch.testing.assert_close(alone.path, part.path, atol=1e-9, rtol=0)
        assert alone.n_forward.tolist() == part.n_forward.tolist()


def test_decodings_are_few_and_counted():
    """A linear black box whose slope the agent predicts needs one amount per state."""
    box, x = LinearBlackBox(), make_patients()
    explain = make(path_steps=5)
    slope = slope_of(explain.agent)
    with torch.no_grad():  # make the agent's slope that of the black box on the codes
        per_code = (box.w.flatten(1) @ explain.autoencoder.basis).flatten()
        explain.agent.linear.weight.copy_(
            torch.linalg.pinv(explain.agent.head.weight[1:] - explain.agent.head.weight[:1])
            @ per_code[None]
        )
    assert not torch.allclose(slope, slope_of(explain.agent))
    cfs = explain(box, x, targets(box, x))
    assert cfs.reached.all() and (cfs.score <= TAU + TOLERANCE).all()
    assert cfs.n_forward_generator.tolist() == [1 + 1 + 1 + 4] * len(x)
    assert cfs.n_forward.tolist() == [1 + 1 + 1 + 4 + 1] * len(x)
    assert cfs.n_backward.tolist() == [0] * len(x)


def test_bad_input_is_refused():
    box, x = LinearBlackBox(), make_patients(2)
    target = targets(box, x)
    for name, value in {"limit": 0.0, "tolerance": 0.0, "steps": 0, "path_steps": 0}.items():
        with pytest.raises(ValueError, match=f"{name}: got"):
            make(**{name: value})(box, x, target)

    class Three(nn.Module):
        def forward(self, x):
            return torch.stack([x.flatten(1).sum(1), -x.flatten(1).sum(1)], 1)

    with pytest.raises(ValueError, match=r"x: got shape \(2, 3, 4, 4\), expected patients"):
        make()(Three(), x[:, :3], target)


def test_an_agent_without_slope_and_broken_logits_are_reported():
    box, x = LinearBlackBox(), make_patients(3)
    explain = make()
    with torch.no_grad():
        explain.agent.linear.weight.zero_()
    cfs = explain(box, x, targets(box, x))
    assert set(cfs.reason) == {diffexplainer.FLAT}

    class Breaks(LinearBlackBox):
        def forward(self, x):
            logits = super().forward(x)
            return torch.where(logits[:, 1:].abs() > 1.0, torch.nan, logits)

    box = Breaks()
    step = change_of(LinearSlices(), slope_of(make_agent()))
    rise = (step * box.w).sum().detach()
    odds = odds_of(LinearBlackBox(), x)
    near = x - (odds / rise)[:, None, None, None] * step  # undecided, log-odds 0
    cfs = make()(box, near, torch.ones(3, dtype=torch.int64))
    assert not cfs.reached.any() and cfs.counterfactual.isfinite().all()


# ---------------------------------------------------------------- parts


def test_codes_hold_the_noise_and_have_no_gradient_in_it():
    model = DiffusionCodes(LinearSlices(), (SIDE, SIDE), 3)
    x = make_patients(2)
    z = model.encode(x).detach().requires_grad_(True)
    assert z.shape == (2, S, D + SIDE * SIDE)
    torch.testing.assert_close(model.decode(z), x, atol=1e-12, rtol=0)
    torch.testing.assert_close(model.semantic(z), model.encode_semantic(x))
    (gradient,) = torch.autograd.grad(model.decode(z).sum(), z)
    assert (gradient[..., D:] == 0).all() and (gradient[..., :D] != 0).any()
    q = torch.randn(2, S * D, dtype=torch.float64)
    assert torch.equal(model.semantic(model.extend(q, S)), q)
    assert (model.extend(q, S)[..., D:] == 0).all()
    other = DiffusionCodes(LinearSlices(), (SIDE, SIDE), 4)
    assert not torch.equal(model.settings, other.settings)


def test_bfloat16_keeps_the_dtype_and_is_close():
    torch.manual_seed(0)
    model = DiffusionAutoencoder((16, 16), 1, latent=3, widths=(16,), encoder_widths=(16,)).eval()
    x = torch.rand(2, 4, 16, 16)
    exact, fast = (DiffusionCodes(model, (16, 16), 4, bfloat16=b) for b in (False, True))
    with torch.no_grad():
        z, y = exact.encode(x), fast.encode(x)
        assert y.dtype == torch.float32 and fast.decode(y).dtype == torch.float32
        assert not torch.equal(z, y)
        torch.testing.assert_close(fast.decode(z), exact.decode(z), atol=0.05, rtol=0)
        assert fast.encode_semantic(x).shape == exact.encode_semantic(x).shape


def test_with_the_diffusion_autoencoder_items_do_not_depend_on_their_batch():
    """Codes, directions and both methods on a small network with random weights."""
    torch.manual_seed(0)
    shape = {"size": (16, 16), "latent": D, "steps": 50, "unshuffle": 2, "groups": 4}
    widths = {"widths": (8, 8), "encoder_widths": (8, 8)}
    autoencoder = DiffusionAutoencoder(**shape, **widths).double().eval()
    with torch.no_grad():  # some layers begin at 0
        for p in autoencoder.parameters():
            p.add_(0.1 * torch.randn_like(p))
    x = rand_patients(3, 16)

    class Wide(LinearBlackBox):
        def forward(self, x):
            return super().forward(x.unflatten(3, (4, 4)).unflatten(2, (4, 4)).mean((3, 5)))

    box, target = Wide(), targets(Wide(), x)
    explain = DiffExplainer(autoencoder=autoencoder, agent=make_agent(), steps=3, limit=6.0)
    shift = LatentShift(model=DiffusionCodes(autoencoder, (16, 16), 3), limit=6.0)
    for method in (explain, shift):
        together, alone = method(box, x, target), method(box, x[1:2], target[1:2])
        torch.testing.assert_close(
            alone.counterfactual, together.counterfactual[1:2], atol=1e-8, rtol=0
        )
        assert (together.counterfactual - together.path[:, 1]).abs().max() > 1e-6
    torch.testing.assert_close(explain.zero_edit(x), together.path[:, 1], atol=1e-12, rtol=0)
    codes = shift.model.encode(x).requires_grad_(True)
    (gradient,) = torch.autograd.grad(shift.model.decode(codes).sum(), codes)
    assert (gradient[..., D:] == 0).all() and (gradient[..., :D].abs().sum(2) > 0).all()


def rand_patients(n, side):
    gen = torch.Generator().manual_seed(4)
    return torch.rand(n, S, side, side, generator=gen).double()


def test_latent_shift_runs_on_both_kinds_of_codes():
    """On the linear decoder, its direction is the gradient of the black box in the codes."""
    box, x = LinearBlackBox(), make_patients()
    target = targets(box, x)
    model = DiffusionCodes(LinearSlices(), (SIDE, SIDE), 3)
    cfs = LatentShift(model=model, bounds=None, tau=TAU, halvings=40, limit=1e3)(box, x, target)
    basis = model.model.basis.detach()
    direction = (box.w.detach().flatten(1) @ basis @ basis.T).view(S, SIDE, SIDE)
    sign = torch.where(target == 1, 1.0, -1.0).double()
    amount = (math.log(TAU / (1 - TAU)) - sign * odds_of(box, x)) / direction.square().sum()
    expected = x + (sign * amount)[:, None, None, None] * direction
    torch.testing.assert_close(cfs.counterfactual, expected, atol=1e-8, rtol=0)


def test_a_model_of_slices_encodes_each_slice():
    class Images(LinearModel):
        def __init__(self):
            super().__init__(SIDE * SIDE, D)

        def encode(self, x):
            return super().encode(x.flatten(1))

        def decode(self, z):
            return super().decode(z).unflatten(1, (1, SIDE, SIDE))

    model, x = Images(), make_patients(3)
    sliced = SlicedModel(model)
    z = sliced.encode(x)
    for i in range(3):
        for s in range(S):
            torch.testing.assert_close(z[i, s], model.encode(x[i, s][None, None])[0])
            torch.testing.assert_close(sliced(x)[i, s], model(x[i, s][None, None])[0, 0])


CURVES = {  # on which one end would stay: log-odds of an amount, and their inverse
    "convex": (lambda a: (a.exp() - 30) / 10, lambda z: math.log(10 * z + 30)),
    "concave": (lambda a: 14 - (5.1 - a).exp() / 6, lambda z: 5.1 - math.log(6 * (14 - z))),
}


@pytest.mark.parametrize("curve", CURVES)
def test_false_position_finds_the_roots_of_curves_quickly(curve):
    """Without the Illinois rule, one end stays; 14 points are then too few."""
    function, inverse = CURVES[curve]

    class Curve(nn.Module):
        def forward(self, x):
            z = function(x[:, 0])
            return torch.stack([torch.zeros_like(z), z], 1)

    class Decoder:
        @staticmethod
        def decode(z, items):
            return z

    n, tau = 5, 0.7
    f = PassCounter(Curve(), n)
    code, direction = torch.zeros(n, 1).double(), torch.linspace(0.5, 1.5, n).double()[:, None]
    wanted = torch.full((n,), tau).double()
    target = torch.ones(n, dtype=torch.int64)
    lines = TracedLines(f, Decoder(), torch.arange(n), code, direction, target, wanted)
    every = torch.arange(n)
    begin = lines.judge(code, f(code, every), every)
    lines.remember(begin, torch.zeros(n).double(), every)
    most = 5.1 / direction[:, 0]
    found = line.search_amounts(lines, line.start(begin), most, most, halvings=0)
    refine(lines, found, lines.bracket(aim_of(wanted, 1e-6)), 14, 1e-6)
    assert found.reached.all() and (found.score <= tau + 1e-6).all() and (found.score >= tau).all()
    root = inverse(math.log(tau / (1 - tau))) / direction[:, 0]
    torch.testing.assert_close(found.amount, root, atol=1e-5, rtol=0)
