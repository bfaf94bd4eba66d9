"""Tables and figures of DiffExplainer: closed forms by hand, single metrics, and what is drawn."""

from __future__ import annotations

import dataclasses
import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from cf_utils.evaluation import ct_tables
from cf_utils.evaluation.metrics.alignment import measure_alignment
from cf_utils.evaluation.metrics.manipulation import measure_manipulation
from cf_utils.evaluation.metrics.reconstruction import measure_reconstruction
from cf_utils.evaluation.metrics.voxels import auprc
from cf_utils.models.generators.slices import DiffusionCodes
from cf_utils.viz import slices
from tests.conftest import make_net
from tests.slice_models import SIDE, LinearBlackBox, LinearSlices, S, make_agent, make_patients
from tests.test_diffexplainer import make, targets


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- reconstruction and alignment


def test_reconstructions_of_known_errors():
    """Errors of 0.1 and 0.01 are 20 and 40 dB; the draws of row C are averaged."""
    x, f = 0.3 + 0.4 * rand(3, 2, 16, 16).double(), make_net((2, 16, 16), 2)
    body = torch.zeros(3, 2, 16, 16, dtype=torch.bool)
    body[..., 2:14, 2:14] = True
    one, ten = x + 0.01, x - 0.1
    outside = torch.where(body, one, ten)
    rows = {"a": one[None], "b": ten[None], "c": torch.stack([one, ten]), "d": outside[None]}
    table = ct_tables.reconstruction_table(f, x, rows, {"VAE": x.roll(-1, 0)}, body)
    assert list(table.index) == [*ct_tables.ROWS.values(), "VAE"]
    assert table.index[0].startswith("A") and table.index[3].startswith("D")
    assert table.psnr[:3].tolist() == pytest.approx([40, 20, 30])
    mse = 0.01**2 * 144 / 256 + 0.1**2 * 112 / 256
    assert table.psnr.iloc[3] == pytest.approx(-10 * math.log10(mse))
    assert table.psnr_body[:4].tolist() == pytest.approx([40, 20, 30, 40])
    assert table.draws.tolist() == [1, 1, 2, 1, 1] and table.n.tolist() == [3] * 5
    with torch.no_grad():
        z = {"x": f.eval()(x), "VAE": f(x.roll(-1, 0)), "one": f(one), "ten": f(ten)}
    expected = measure_reconstruction(x, x.roll(-1, 0), z["x"], z["VAE"], body)
    assert table.loc["VAE"].to_dict() == pytest.approx(expected | {"draws": 1})
    p = z["x"].softmax(1)
    divergences = [(p * (p / z[k].softmax(1)).log()).sum(1).mean().item() for k in ("one", "ten")]
    assert table.kl.iloc[2] == pytest.approx(sum(divergences) / 2)
    assert "psnr_body" not in ct_tables.reconstruction_table(f, x, rows, {})


def test_agents_are_compared_with_the_black_box_on_the_codes_of_all_slices():
    model, box, x = LinearSlices(), LinearBlackBox(), make_patients(40)
    agents = {"l1": make_agent(), "kl": make_agent(5)}
    table = ct_tables.alignment_table(agents, DiffusionCodes(model, (SIDE, SIDE), 2), box, x)
    q = ((x.flatten(2) - 0.5) @ model.basis).flatten(1).detach()
    for name, agent in agents.items():
        expected = measure_alignment(agent(q).detach(), box(x).detach())
        assert table.loc[name].to_dict() == pytest.approx(expected)
    assert list(table.index) == ["l1", "kl"] and table.n.dtype == np.int64
    assert table.auc["l1"] != table.auc["kl"]


# ---------------------------------------------------------------- manipulation


def test_changes_are_seen_against_the_reconstruction_of_patients_that_were_searched():
    """Nine pixels by 3 sd; eight pixels; nine pixels by 1.9 sd; and a patient not searched."""
    box, x = LinearBlackBox(), make_patients(4)
    noise = torch.tensor([0.01, 0.02, 0.03, 0.04])
    change = torch.zeros_like(x)
    for i, (pixels, deviations) in enumerate(((9, 3.0), (8, 3.0), (9, 1.9))):
        change[i, 2].view(-1)[:pixels] = deviations * noise[i]
    again = x + 0.3  # the generator alone changes more than the search
    path = torch.stack([x, again, again + change], 1)
    path[3] = x[3]
    base = make()(box, x, targets(box, x))
    parts = {"path": path, "path_len": torch.tensor([3, 3, 3, 1]), "counterfactual": path[:, 2]}
    cfs = dataclasses.replace(base, **parts)
    row = ct_tables.manipulation_row(box, cfs, noise)
    assert row.pop("observable") == pytest.approx(1 / 3) and row["n"] == 3
    assert row == measure_manipulation(box, cfs).summary() == ct_tables.manipulation_row(box, cfs)
    assert {*ct_tables.MANIPULATION.values()} <= {*row, "observable", "undecided_reached"}


# ---------------------------------------------------------------- localisation


@pytest.fixture
def located():
    """Three patients of five voxels: the last voxel is outside, the last patient not ill inside."""
    truth = torch.tensor([[1, 0, 1, 0, 1], [0, 1, 0, 0, 1], [0, 0, 0, 0, 1]]).bool()
    maps = {"ours": [4.0, 3, 2, 1, 9], "rival": [1.0, 4, 2, 3, 0]}
    maps = {k: torch.tensor([v] * 3).view(3, 1, 1, 5) for k, v in maps.items()}
    within = torch.ones(3, 1, 1, 5, dtype=torch.bool)
    within[..., 4] = False
    return maps | {"lost": "needs a gradient"}, truth.view(3, 1, 1, 5), within


def test_localisation_by_hand(located):
    """Ours ranks T F T F and F T F F, the rival F F T T and T F F F."""
    table = ct_tables.localisation_table(*located)
    ours, rival = (5 / 6, 1 / 2), (5 / 12, 1.0)
    assert table.auprc.tolist()[:2] == pytest.approx([sum(ours) / 2, sum(rival) / 2])
    assert table.pointing.tolist()[:2] == pytest.approx([1 / 2, 1 / 2])
    assert table["mass"].tolist()[:2] == pytest.approx([(4 / 7 + 0) / 2, (0 + 1) / 2])
    least, most = sorted(a - b for a, b in zip(ours, rival, strict=True))
    assert table.ahead.rival == pytest.approx((least + most) / 2)  # ours less the rival's
    assert (table.low.rival, table.high.rival) == pytest.approx((least, most))  # of two patients
    assert table.loc["ours", ["ahead", "low", "high"]].tolist() == [0, 0, 0]
    assert table.n.tolist() == [2, 2, 0] and table.note.tolist() == ["", "", "needs a gradient"]
    assert table.loc["lost"].drop(["n", "note"]).isna().all()
    maps, truth, within = located
    ill = ct_tables.localisation_table(
        {k: maps[k][:2] for k in ("ours", "rival")}, truth[:2], within[:2]
    )
    assert ill.equals(table.iloc[:2])
    with pytest.raises(ValueError, match="maps: got a reason for 'lost'"):
        ct_tables.localisation_table({"lost": "no gradient", **maps}, truth, within)


def test_chance_is_what_a_constant_map_scores(located):
    """Patients differ in the size of their body, and one has no disease."""
    _, truth, within = located
    assert ct_tables.chance(truth, within) == pytest.approx((2 / 4 + 1 / 4) / 2)
    truth, within = rand(4, 2, 8, 8) < 0.3, rand(4, 2, 8, 8, seed=1) < 0.8
    truth[3], within[0, :, 2:] = False, False
    flat = auprc(torch.ones(4, 2, 8, 8), truth, within)
    assert ct_tables.chance(truth, within) == pytest.approx(flat.nanmean().item())


# ---------------------------------------------------------------- bodies


def test_the_body_holds_its_lungs_slice_by_slice():
    x = torch.zeros(2, 3, 11, 11)
    chest = torch.zeros(11, 11, dtype=torch.bool)
    chest[1:10, 2:9] = True
    x[:, :, chest] = 0.8
    x[:, :, 3:8, 4:7] = 0.1  # lungs
    x[0, 1, :4, 5] = 0.0  # an open chest
    x[1, 2] = 0.0  # air alone
    expected = chest.expand(2, 3, 11, 11).clone()
    expected[0, 1] = x[0, 1] > 0.5
    expected[1, 2] = False
    found = ct_tables.segment_body(x)
    assert found.dtype == torch.bool and torch.equal(found, expected)
    hu = torch.tensor([-520.0, -480.0]).view(1, 1, 1, 2)  # either side of -500 HU
    assert ct_tables.segment_body((hu + 1000) / 1200).flatten().tolist() == [False, True]


def test_the_overlap_of_shifted_discs_is_that_of_their_lens():
    """Two discs of radius r, d apart, share 2 r^2 acos(d / 2r) - d / 2 sqrt(4 r^2 - d^2)."""
    side, r = 240, 50.0
    at = torch.arange(side, dtype=torch.float64)

    def draw(shift):
        away = ((at[:, None] - 100).square() + (at - 70 - shift).square()).sqrt()
        return 0.8 * (away <= r) * (away > 0.7 * r)  # lungs of air

    shifts = [0.0, 20.0, 45.0, 101.0]
    shared = [
        2 * r**2 * math.acos(d / 2 / r) - d / 2 * math.sqrt(4 * r**2 - d**2) if d < 2 * r else 0
        for d in shifts
    ]
    expected = torch.tensor(shared) / (math.pi * r**2)
    still = draw(0.0).expand(4, 1, side, side)
    moved = torch.stack([draw(d) for d in shifts])[:, None]
    found = ct_tables.body_overlap(still, moved)
    torch.testing.assert_close(found, expected.double(), atol=0.01, rtol=0)
    assert found[0] == 1 and found[3] == 0
    two = [torch.cat([still, part], 1) for part in (still, moved)]  # one slice of two moves
    half = ct_tables.body_overlap(*two)
    torch.testing.assert_close(half, (1 + expected.double()) / 2, atol=0.01, rtol=0)


def test_air_code_and_change_have_closed_forms():
    x = torch.zeros(2, 1, 10, 10)
    x[:, :, 1:9, 1:9] = 0.8
    x[1, :, 3:5, 3:6] = 0.1
    assert ct_tables.air_share(x).tolist() == pytest.approx([0, 6 / 64])
    query = 0.2 + 0.6 * rand(3, 2, 6, 6)
    other = (query.roll(-1, 0) + 0.01)[None]  # row D shows the next patient: 40 dB
    own = [
        10 * math.log10((query[i] - other[0, i]).square().mean((1, 2))[c])
        for i in range(3)
        for c in range(2)
    ]
    expected = 40 + sum(own) / 6
    assert ct_tables.other_less_own(query, other) == pytest.approx(expected, abs=1e-3)
    lungs = torch.tensor([[[[True, False], [True, False]]]])
    change = torch.tensor([[[[3.0, 90.0], [-1.0, 90.0]]]])
    assert ct_tables.change_inside({"a": change, "b": -change}, lungs) == {"a": 1, "b": -1}


# ---------------------------------------------------------------- figures


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def panels(fig, rows):
    return np.array(fig.axes).reshape(rows, -1)


def shown(ax):
    """What one panel shows: its values, their range and colours."""
    (image,) = ax.images
    return np.asarray(image.get_array()), image.get_clim(), image.get_cmap().name


def check(ax, values, limits=(0.0, 1.0), colours="gray"):
    found, clim, cmap = shown(ax)
    assert np.allclose(found, values) and cmap == colours
    assert clim == pytest.approx(limits)


def outlines(ax):
    return [c for c in ax.collections if len(c.get_paths())]


CHANGE = {"limits": (-250, 250), "colours": "RdBu_r"}


def test_a_grid_of_patients_has_a_row_each_and_names_above_the_first():
    a, b = rand(3, 5, 5), rand(3, 5, 5, seed=1) * 0.2
    axes = panels(slices.slice_grid({"query": a, "A": b}, ("arch", "hilum", "base")), 2)
    assert axes.shape == (2, 3)
    for i in range(3):
        check(axes[0, i], a[i])
        check(axes[1, i], b[i])
    assert [ax.get_title() for ax in axes.flat] == ["arch", "hilum", "base", "", "", ""]
    assert [ax.get_ylabel() for ax in axes[:, 0]] == ["query", "A"]


def test_both_ways_show_class_1_above_class_0_and_the_change_in_hu():
    down, up = rand(3, 5, 5), rand(3, 5, 5, seed=1)
    scores = torch.tensor([0.5, 0.3, 0.1]), torch.tensor([0.5, 0.7, 0.9])
    fig = slices.both_ways(down, up, scores, ("survives", "dies"), 1 / 1200)
    axes = panels(fig, 2)
    assert axes.shape == (2, 4)
    for line, states, p, name in zip(
        axes, (up, down), (scores[1], scores[0]), ("dies", "survives"), strict=True
    ):
        for ax, state, value in zip(line[:3], states, p, strict=True):
            check(ax, state)
            assert ax.get_title() == f"{value:.2f}"
        check(line[3], 1200 * (states[2] - states[0]), **CHANGE)
        assert line[3].get_title() == "change, ±250 HU" and line[0].get_ylabel() == f"→ {name}"


def test_changes_stand_below_their_counterfactual_with_the_outline_of_the_truth():
    before, after = rand(2, 6, 6), {"→ a": rand(2, 6, 6, seed=1), "→ b": rand(2, 6, 6, seed=2)}
    outline = torch.zeros(2, 6, 6, dtype=torch.bool)
    outline[1, 2:4, 2:4] = True
    axes = panels(slices.change_grid(before, after, ("arch", "base"), 1 / 1200, outline), 5)
    assert axes.shape == (5, 2)
    for i in range(2):
        check(axes[0, i], before[i])
        for k, patient in enumerate(after.values()):
            check(axes[1 + 2 * k, i], patient[i])
            check(axes[2 + 2 * k, i], 1200 * (patient[i] - before[i]), **CHANGE)
            assert len(outlines(axes[2 + 2 * k, i])) == i and not outlines(axes[1 + 2 * k, i])
    vertices = outlines(axes[2, 1])[0].get_paths()[0].vertices
    assert (vertices.min(), vertices.max()) == (1.5, 3.5)  # half a pixel around rows 2 and 3
    assert [ax.get_title() for ax in axes[0]] == ["arch", "base"]
    labels = ["reconstruction", "→ a", "change", "→ b", "change"]
    assert [ax.get_ylabel() for ax in axes[:, 0]] == labels
    plain = panels(slices.change_grid(before, after, ("arch", "base"), 1 / 1200), 5)
    assert not any(outlines(ax) for ax in plain.flat)


def test_maps_are_drawn_to_their_own_quantile_and_reasons_left_out():
    x, truth = rand(2, 9, 9), torch.zeros(2, 9, 9, dtype=torch.bool)
    truth[0, 2:5, 2:5] = True
    maps = {
        "pattern": 5 * (rand(2, 9, 9, seed=1) - 0.7),
        "lost": "no gradient",
        "latent_shift_vae": rand(2, 9, 9, seed=2).square(),
        "flat": torch.zeros(2, 9, 9),
    }
    axes = panels(slices.map_grid(x, truth, maps, signed=["pattern"]), 2)
    assert axes.shape == (2, 4)
    for i in range(2):
        check(axes[i, 0], x[i])
        high = np.quantile(maps["pattern"][i].abs().numpy(), 0.995)
        check(axes[i, 1], maps["pattern"][i], (-high, high), "RdBu_r")
        high = np.quantile(maps["latent_shift_vae"][i].numpy(), 0.995)
        check(axes[i, 2], maps["latent_shift_vae"][i], (0, high), "magma")
        low, high = shown(axes[i, 3])[1]
        assert low == 0 < high
        assert [len(outlines(ax)) for ax in axes[i]] == [1 - i] * 4
    titles = ["query", "pattern", "latent shift vae", "flat"]
    assert [ax.get_title() for ax in axes.flat] == titles * 2
    wrapped = panels(slices.map_grid(x, truth, maps, columns=3), 4)  # two lines per image
    assert wrapped.shape == (4, 3)
    check(wrapped[3, 0], maps["flat"][1], shown(wrapped[3, 0])[1], "magma")
    assert not wrapped[1, 1].axison and wrapped[2, 0].axison


def test_the_number_of_slices_is_that_of_the_patients():
    assert len(slices.slice_grid({"one": rand(S, 4, 4)}).axes) == S
