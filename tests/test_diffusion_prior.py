"""What a prior draws, guesses and keeps: tables by hand, survival by known readings, figures."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cf_utils.evaluation import diffusion_prior
from cf_utils.evaluation.baselines import PGD
from cf_utils.evaluation.metrics import features, image
from cf_utils.explainers.reference import ace as reference
from cf_utils.harness import prior_arms
from cf_utils.models import checkpoints
from cf_utils.models.cards import Card
from cf_utils.models.generators.diffusion import DDPM, noise_of
from cf_utils.viz import denoising

SIDE = 16


class Unet(nn.Module):
    """Predicts a tenth of z as the noise, and a variance between its bounds."""

    def forward(self, z, t):
        return SimpleNamespace(sample=torch.cat([z / 10, z.tanh()], 1))


class Mean(nn.Module):
    """Logits (B, 2): class 1 if the mean of an image is over a half."""

    def forward(self, x):
        value = 10 * (x.flatten(1).mean(1) - 0.5)
        return torch.stack([-value, value], 1)


class Quarters(nn.Module):
    """Encoder: mean colours of the four quarters, (B, 12)."""

    def forward(self, x):
        return F.adaptive_avg_pool2d(x, 2).flatten(1)


class Oracle:
    """Reads the means of the three channels."""

    names = ("red", "green", "blue=1")

    def read(self, x):
        return x.mean((2, 3)), None


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


@pytest.fixture
def prior():
    return DDPM(Unet(), (SIDE, SIDE), 50)


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def checkerboard(size):
    return ((torch.arange(size)[:, None] + torch.arange(size)) % 2).float().expand(1, 3, size, size)


# ---------------------------------------------------------------- drawing and filtering


def test_a_sample_depends_on_its_number_and_the_seed_alone(prior):
    chain, like = prior.chain("5"), torch.zeros(1, 3, SIDE, SIDE)
    five = diffusion_prior.draw_samples(chain, 5, like, seed=1, size=2)
    three = diffusion_prior.draw_samples(chain, 3, like, seed=1)
    expected = chain.sample(noise_of(1, torch.arange(5), like, "samples"))
    torch.testing.assert_close(five, expected)
    torch.testing.assert_close(three, expected[:3])
    other = diffusion_prior.draw_samples(chain, 3, like, seed=2)
    assert five.shape == (5, 3, SIDE, SIDE) and (other - three).abs().max() > 0.1


def test_batches_keep_images_and_their_ids_together():
    x, ids = rand(5, 2), torch.tensor([7, 1, 4, 2, 9])
    sizes = []

    def add(x, ids, factor):
        sizes.append(len(x))
        assert not torch.is_grad_enabled()
        return x + factor * ids[:, None]

    found = diffusion_prior.map_batches(add, x, ids, 10, size=2)
    torch.testing.assert_close(found, x + 10 * ids[:, None])
    assert sizes == [2, 2, 1]


@pytest.mark.parametrize(("bound", "which"), [("large", 1), ("small", 0)])
def test_a_fixed_variance_is_the_bound_that_was_asked_for(prior, bound, which):
    chain = diffusion_prior.fix_variance(prior, "10", bound)
    learned, z, k = prior.chain("10"), torch.zeros(2, 3, SIDE, SIDE), 5
    noise = torch.ones_like(z)
    sd = (chain.schedule.log_variances[which][k] / 2).exp().float()
    added = chain.step(z, k, noise) - chain.step(z, k)
    torch.testing.assert_close(added, sd.expand_as(z), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(chain.step(z, k), learned.step(z, k))  # the same mean
    assert chain.schedule.t == learned.schedule.t


@pytest.mark.parametrize("k", [0, 1, 7])
def test_the_printed_step_is_the_chains(prior, k):
    chain, z = prior.chain("10"), rand(2, 3, SIDE, SIDE) - 0.5
    noise = rand(2, 3, SIDE, SIDE, seed=1)
    mean, variance, _ = reference.denoising_step(prior, chain.schedule, z, k)
    expected = mean + variance.sqrt() * noise if k else mean
    torch.testing.assert_close(chain.step(z, k, noise), expected.float())


# ---------------------------------------------------------------- tables


def test_detail_is_large_in_noise_and_small_in_a_blur():
    board = checkerboard(8)
    assert diffusion_prior.neighbour_difference(board).tolist() == [1.0]
    assert diffusion_prior.neighbour_difference(0.5 * board).tolist() == [0.5]
    ramp = torch.linspace(0, 0.7, 8).expand(1, 1, 8, 8)  # 0.1 across, 0 down
    assert diffusion_prior.neighbour_difference(ramp).item() == pytest.approx(0.05)
    down = ramp.transpose(2, 3)
    assert diffusion_prior.neighbour_difference(down).item() == pytest.approx(0.05)
    assert diffusion_prior.relative_detail(0.25 * board, 0.5 * board) == pytest.approx(0.5)


def test_a_guess_without_fine_detail_has_contrast():
    x = 0.5 * F.interpolate(checkerboard(4), scale_factor=8) + 0.2 * checkerboard(32)
    blurred = F.interpolate(F.avg_pool2d(x, 8), scale_factor=8)
    guesses = {0.1: (x, x, 0.02), 0.9: (x, blurred, 0.01), 1.0: (x, x.mean().expand_as(x), 0.3)}
    table = diffusion_prior.guess_table(x, guesses)
    assert table.index.name == "sigma" and table.index.tolist() == [0.1, 0.9, 1.0]
    assert table.contrast.tolist() == pytest.approx([1, 1, 0], abs=1e-5)
    assert table.detail[0.1] == 1 and 0.1 < table.detail[0.9] < 0.6 and table.detail[1.0] == 0
    assert table["error of the noise"].tolist() == [0.02, 0.01, 0.3]


def test_a_filter_is_described_by_change_detail_and_decisions():
    x = 0.4 * checkerboard(8) + torch.tensor([0.1, 0.2, 0.5, 0.55])[:, None, None, None]
    kept = {0.1: x, 0.5: x - 0.18, 0.9: x.mean((2, 3), keepdim=True).expand_as(x)}
    table = diffusion_prior.filter_table(Mean(), x, kept)  # means 0.3, 0.4, 0.7, 0.75
    assert table[diffusion_prior.CHANGE].tolist() == pytest.approx([0, 0.18, 0.2])
    assert table[diffusion_prior.DETAIL].tolist() == pytest.approx([1, 1, 0], abs=1e-5)
    assert table[diffusion_prior.DECISION].tolist() == [1, 1, 1]
    lower = diffusion_prior.filter_table(Mean(), x, {0.5: x - 0.22})
    assert lower[diffusion_prior.DECISION].tolist() == [0.75]  # the mean of 0.7 is now 0.48


def test_a_factor_survives_as_far_as_its_readings_go_together():
    levels = torch.tensor([[0.1, 0.2, 0.3], [0.5, 0.1, 0.9], [0.9, 0.8, 0.5], [0.3, 0.6, 0.1]])
    x = levels[:, :, None, None].expand(4, 3, 4, 4)
    after = x.clone()
    after[:, 0] = 0.5 * after[:, 0] + 0.2  # red keeps its order exactly
    after[:, 1] = after[:, 1].flip(0)  # green moves to other images
    after[:, 2] = 0.5  # blue is gone
    kept = {0.1: x, 0.9: after}
    table = diffusion_prior.survival_table(Oracle(), Oracle.names, x, kept)
    assert table.index[0] == "red" and table.index.name == "factor"
    assert table[0.1].tolist() == pytest.approx([1, 1, 1])
    expected = pd.Series(levels[:, 1]).corr(pd.Series(levels[:, 1].flip(0)))
    assert table.loc["green", 0.9] == pytest.approx(expected, abs=1e-5)
    assert table.loc["red", 0.9] == pytest.approx(1) and table.loc["blue=1", 0.9] == 0
    few = diffusion_prior.survival_table(Oracle(), ["green"], x, kept)
    assert few.index.tolist() == ["green"]


def test_an_undone_attack_is_counted_over_the_flipped_decisions_alone():
    x = torch.tensor([0.495, 0.497, 0.503, 0.2])[:, None, None, None].expand(4, 3, 4, 4).clone()
    f = Mean()
    attacked = PGD()(f, x, torch.tensor([1, 1, 0, 1]))  # the last is too far from the boundary
    assert attacked.valid.tolist() == [True, True, True, False]
    y = attacked.counterfactual
    kept = {0.1: x, 0.9: torch.cat([x[:1], 1 - x[1:2], x[2:]])}  # 0.9: the filter flips one alone
    washed = {0.1: y, 0.9: torch.cat([x[:1], 1 - x[1:2], y[2:]])}
    table = diffusion_prior.attack_table(f, attacked, kept, washed)
    assert table[diffusion_prior.UNDONE].tolist() == pytest.approx([0, 1 / 3])
    assert table[diffusion_prior.KEPT].tolist() == pytest.approx([1, 2 / 3])
    put_in, trace = (y - x).square(), (y - x)[2:].square()
    left = (trace.sum() / put_in.sum()).sqrt().item()
    assert table[diffusion_prior.LEFT].tolist() == pytest.approx([1, left])
    assert table.n.tolist() == [3, 3]


def test_kid_stands_beside_its_floor():
    real, far = rand(20, 3, 8, 8), rand(9, 3, 8, 8, seed=1) / 2
    table = diffusion_prior.kid_table(Quarters(), real, {"far": far})
    assert table.index.tolist() == [diffusion_prior.FLOOR, "far"]
    assert table.columns[0] == "kid_embedded"
    assert table.n_real.tolist() == [10, 20] and table.n_fake.tolist() == [10, 9]
    seen = [features.extract(Quarters(), part) for part in (real, far, real[:10], real[10:])]
    assert table.kid_embedded["far"] == pytest.approx(image.kid(*seen[:2])["kid_embedded"])
    floor = image.kid(*seen[2:])["kid_embedded"]
    assert table.kid_embedded[diffusion_prior.FLOOR] == pytest.approx(floor)
    assert table.kid_embedded["far"] > 10 * abs(floor)


# ---------------------------------------------------------------- the oracle of a case


@dataclasses.dataclass
class Roles:
    """Stands in for a world: who is what."""

    def role(self, role):
        return {"cause": ("red",), "identity": ("green",), "nuisance": ("blue",)}[role]


def test_survival_is_averaged_over_readable_factors_of_each_role(monkeypatch):
    columns = {"red": 0.9, "green": 0.8, "blue=1": 0.3}
    card = Card(architecture={}, quality={"columns": {k: {"r2": r2} for k, r2 in columns.items()}})
    asked = []

    def load(name, device):
        asked.append(name)
        return SimpleNamespace(model=Oracle())

    monkeypatch.setattr(checkpoints, "load", load)
    truth = SimpleNamespace(oracle=card, factors=SimpleNamespace(world=Roles()))
    case = SimpleNamespace(truth=truth, dataset="colours", classifier=Mean())
    x = rand(6, 3, 4, 4)
    after = x.clone()
    after[:, 1] = after[:, 1].flip(0)
    table, by_role = prior_arms.measure_survival(case, x, {0.1: x, 0.9: after})
    assert asked == ["colours_oracle"] and sorted(table.index) == ["green", "red"]
    assert by_role.index.tolist() == [0.1, 0.9]
    assert by_role["survival of cause"].tolist() == pytest.approx([1, 1])
    assert by_role["survival of identity"][0.9] == pytest.approx(table.loc["green", 0.9])
    assert by_role["survival of nuisance"].isna().all()


def test_without_known_factors_the_tables_are_empty_and_can_be_joined():
    case = SimpleNamespace(truth=None)
    table, by_role = prior_arms.measure_survival(case, rand(2, 3, 4, 4), {0.1: None, 0.9: None})
    assert table.empty and table.columns.tolist() == [0.1, 0.9]
    assert table[0.9].reindex(["smile"]).isna().tolist() == [True]
    joined = pd.DataFrame({"change": [1.0, 2.0]}, index=[0.1, 0.9]).join(by_role)
    assert joined.columns.tolist() == ["change"] and joined.change.tolist() == [1, 2]


# ---------------------------------------------------------------- figures


def pixels(ax):
    return torch.as_tensor(ax.images[0].get_array())


def test_images_are_numbered_from_one_and_surplus_panels_are_hidden():
    fig = denoising.numbered_grid(rand(5, 3, 4, 4), 3)
    assert [ax.get_title() for ax in fig.axes] == ["1", "2", "3", "4", "5", ""]
    assert not fig.axes[5].axison and fig.axes[4].axison
    torch.testing.assert_close(pixels(fig.axes[4]), rand(5, 3, 4, 4)[4].permute(1, 2, 0))


def test_rows_have_names_columns_have_titles():
    rows = {"a": rand(3, 3, 4, 4), "b": rand(2, 3, 4, 4, seed=1)}
    fig = denoising.image_rows(rows, ["one", "two", "three"])
    assert [ax.get_title() for ax in fig.axes] == ["one", "two", "three", "", "", ""]
    assert [fig.axes[k].get_ylabel() for k in (0, 3)] == ["a", "b"] and not fig.axes[5].axison
    torch.testing.assert_close(pixels(fig.axes[4]), rows["b"][1].permute(1, 2, 0))


def test_guesses_of_one_item_stand_below_its_noised_images():
    guesses = {s: (rand(3, 3, 4, 4, seed=k), rand(3, 3, 4, 4, seed=9 + k), 0.0)
               for k, s in enumerate((0.1, 0.9))}  # fmt: skip
    fig = denoising.guess_rows(guesses, 2)
    assert [ax.get_title() for ax in fig.axes[:2]] == ["σ = 0.1", "σ = 0.9"]
    torch.testing.assert_close(pixels(fig.axes[1]), guesses[0.9][0][2].permute(1, 2, 0))
    torch.testing.assert_close(pixels(fig.axes[2]), guesses[0.1][1][2].permute(1, 2, 0))


def test_the_forward_process_is_drawn_over_its_amplitudes(prior):
    fig = denoising.forward_process(rand(2, 3, 4, 4), [0, 25], prior.schedule)
    assert [ax.get_title() for ax in fig.axes[:2]] == ["t = 0", "t = 25"]
    image_line, noise_line = fig.axes[2].lines
    squares = image_line.get_ydata() ** 2 + noise_line.get_ydata() ** 2
    assert squares == pytest.approx(1) and len(squares) == 50
    assert noise_line.get_ydata()[-1] > noise_line.get_ydata()[0]


def test_the_map_of_survival_has_a_row_per_factor():
    table = pd.DataFrame({0.1: [1.0, 0.9], 0.9: [0.8, 0.1]}, index=["wall", "smile"])
    fig = denoising.survival_map(table)
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == ["wall", "smile"]
    assert fig.axes[0].collections[0].get_clim() == (0, 1)
