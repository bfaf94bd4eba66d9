"""Cases of DiffExplainer: patients, networks, undecided patients, proofs and two black boxes."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from pytest import approx

from cf_utils.datasets import rendered
from cf_utils.datasets.base import InMemory
from cf_utils.evaluation import baselines
from cf_utils.evaluation.ct_tables import body_overlap
from cf_utils.evaluation.metrics.alignment import measure_alignment
from cf_utils.evaluation.truth.table import compare_validity, truth_table
from cf_utils.explainers.diffexplainer import DiffExplainer
from cf_utils.harness import ct_arms, ct_cases
from cf_utils.harness.cases import Truth
from cf_utils.harness.ct_cases import CTCase
from cf_utils.models import checkpoints
from cf_utils.models.agent import Agent
from cf_utils.models.cards import Card
from cf_utils.models.generators import diffusion
from cf_utils.models.generators.cgan import ConditionalGAN
from cf_utils.models.generators.diffae import DiffusionAutoencoder
from cf_utils.models.generators.slices import DiffusionCodes, SlicedModel
from cf_utils.models.generators.vae import VAE
from cf_utils.models.teacher import Teacher
from cf_utils.worlds import lung_ct
from tests import stripes
from tests.slice_models import LinearBlackBox, LinearSlices, S, make_agent, make_patients
from tests.test_diffexplainer import change_of, odds_of, slope_of
from tests.test_official_run import TINY

USES = {"extent": {"r": 0.5, "flips": 0.9}}
BOX = {"growth": 4, "blocks": [1, 1], "first": 8}
CODES = {"latent": 3, "widths": [16, 16], "encoder_widths": [16, 16], "blocks": 1}
OF_SLICES = {"size": [96, 96], "channels": 1, "widths": [4] * 5, "latent": 2}
OF_PATIENTS = {"channels": 4, "size": 96, "widths": [4, 4], "critic": 4}
N = 5  # patients of the pool


@pytest.fixture(scope="module")
def pool():
    """All patients that the tests of rendered cases render."""
    return rendered.load("lung_ct", "test", N, "site_a")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Small networks without training, under the names of the shipped ones, but no oracle."""
    torch.manual_seed(0)
    made = {"mortality": (Teacher, BOX), "emphysema": (Teacher, BOX)}
    width = Teacher(**BOX).head.in_features
    names = ("agent", "agent_mse", "agent_kl", "emphysema_agent")
    made |= {name: (Agent, {"latent": 3, "features": width}) for name in names}
    made |= {"diffae": (DiffusionAutoencoder, CODES), "vae": (VAE, OF_SLICES)}
    made |= {"gan": (ConditionalGAN, OF_PATIENTS)}
    to = tmp_path_factory.mktemp("checkpoints")
    for name, (kind, arguments) in made.items():
        built = {"class": kind.__name__, "arguments": arguments}
        card = Card(architecture=built, quality={"uses": USES})
        checkpoints.save(f"lung_ct_{name}", kind(**arguments).eval(), card, to, half=False)
    prior = diffusion.build(channels=4, size=(96, 96), **TINY)
    card = Card(architecture=diffusion.describe_architecture(prior))
    checkpoints.save("lung_ct_ddpm", prior.eval(), card, to, half=False)
    return to


@pytest.fixture
def asked(pool, folder, monkeypatch):
    """Serve patients of the pool and the small networks; list what was asked for."""
    calls = []

    def load(world, split="test", n=1000, variant="independent", size=None, seed=0):
        calls.append((world, split, n, variant, seed))
        return pool.take(torch.arange(min(n, N)))

    monkeypatch.setattr(rendered, "load", load)
    monkeypatch.setattr(checkpoints, "FOLDER", folder)
    return calls


# ---------------------------------------------------------------- rendered cases


def check_patients(case, pool, rows):
    """Everything in a case belongs to these patients of the pool."""
    expected = pool.take(rows)
    assert torch.equal(case.data.x, expected.x) and torch.equal(case.data.ids, expected.ids)
    assert torch.equal(case.truth.factors.values, expected.factors.values)
    sd = 0.005 + (0.028 - 0.005) * expected.factors["noise"]
    torch.testing.assert_close(case.noise.float(), sd.float())
    masks = lung_ct.render_masks(expected.factors)
    assert set(masks) == set(case.masks) == {"disease", "lungs", "body"}
    assert all(torch.equal(case.masks[k], masks[k]) for k in masks)


def test_a_rendered_case_has_two_black_boxes_for_the_same_patients(asked, pool, folder):
    case = ct_cases.rendered_case(2, "site_b", seed=7)
    assert asked == [("lung_ct", "test", 2, "site_b", 7)]
    check_patients(case, pool, torch.arange(2))
    second = case.second
    assert second.data is case.data and second.autoencoder.latent == 3 and second.second is None
    assert list(case.agents) == ["l1", "mse", "kl"] and list(second.agents) == ["l1"]
    stored = {
        "mortality": case.classifier,
        "emphysema": second.classifier,
        "agent": case.agents["l1"],
        "agent_mse": case.agents["mse"],
        "agent_kl": case.agents["kl"],
        "emphysema_agent": second.agents["l1"],
    }
    for name, model in stored.items():
        own = checkpoints.load(f"lung_ct_{name}").model.state_dict()
        assert all(torch.equal(v, own[k]) for k, v in model.state_dict().items()), name
    assert case.gan is not None and second.gan is None  # it was trained for one black box
    assert case.truth.uses == USES and case.oracle is None and case.readable == ()
    assert case.size == (96, 96) and not case.classifier.training


def test_an_undecided_case_holds_nothing_of_other_patients(asked, pool, monkeypatch):
    p = checkpoints.load("lung_ct_mortality").model(pool.x).softmax(1)[:, 1]
    away = (p - 0.5).abs()
    limit = float(
        away.detach().sort().values[1:3].double().mean()
    )  # two patients are nearer than this
    monkeypatch.setattr(ct_cases, "UNDECIDED", limit)
    rows = (away <= limit).nonzero()[:, 0]
    assert len(rows) == 2
    case = ct_cases.rendered_case(2, undecided=True)
    check_patients(case, pool, rows)
    check_patients(case.second, pool, rows)
    with pytest.raises(ValueError, match="n: got 3, expected at most 2"):
        ct_cases.rendered_case(3, undecided=True)


def test_undecided_patients_are_the_first_within_a_tenth_of_one_half(monkeypatch):
    seen, gain = [], 5.0

    def load(world, split, n, variant, seed):
        seen.append((world, split, n, variant, seed))
        return stripes.data(n)

    monkeypatch.setattr(rendered, "load", load)
    found = ct_cases.take_undecided(stripes.Stripe(gain), 3, "site_b", seed=4)
    assert seen == [("lung_ct", "test", 172, "site_b", 4)]
    chosen = {limit: [] for limit in (0.05, 0.1, 0.2)}
    data = stripes.data(172)
    for i in range(len(data)):
        left = data.x[i, :, :, :6].double().mean().item()
        p = 1 / (1 + math.exp(-gain * (left - 0.5)))
        for limit, rows in chosen.items():
            if abs(p - 0.5) <= limit and len(rows) < 3:
                rows.append(i)
    assert found.ids.tolist() == data.ids[chosen[0.1]].tolist()
    assert chosen[0.05] != chosen[0.1] != chosen[0.2]
    assert torch.equal(found.factors.values, data.factors.values[chosen[0.1]])
    with pytest.raises(ValueError, match="n: got 3, expected at most"):
        ct_cases.take_undecided(stripes.Stripe(1e5), 3, "site_a")


def test_a_missing_network_is_named(asked, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "FOLDER", tmp_path)
    with pytest.raises(FileNotFoundError, match="lung_ct_mortality"):
        ct_cases.rendered_case(2)


def test_cohorts_are_both_sites_or_the_official_patients(asked):
    case = ct_cases.rendered_case(2)
    asked.clear()
    cohorts = ct_cases.load_cohorts(case, 4, seed=3)
    assert list(cohorts) == ["site_a", "site_b"] and len(cohorts["site_b"]) == 4
    assert asked == [("lung_ct", "test", 4, site, 3) for site in ("site_a", "site_b")]
    official = dataclasses.replace(case, truth=None, name="osic (official)")
    ((name, x),) = ct_cases.load_cohorts(official, 4).items()
    assert name == "osic (official)" and x is case.data.x


def test_all_methods_ask_for_the_same_probability(asked):
    case = ct_cases.rendered_case(2)
    methods = case.methods(0.8, 5, steps=3, path_by="amount")
    assert list(methods) == ["gradient", "pattern", "latent_shift", "latent_shift_vae", "ace"]
    assert {(m.tau, m.seed) for m in methods.values()} == {(0.8, 5)}
    for name in ("gradient", "pattern"):
        method = methods[name]
        assert isinstance(method, DiffExplainer) and method.direction == name
        assert method.steps == 3 and method.path_by == "amount"
        assert method.autoencoder is case.autoencoder and method.agent is case.agents["l1"]
    codes, of_vae = methods["latent_shift"].model, methods["latent_shift_vae"].model
    assert isinstance(codes, DiffusionCodes) and (codes.size, codes.steps) == ((96, 96), 3)
    assert isinstance(of_vae, SlicedModel) and of_vae.model is case.vae
    assert methods["ace"].prior is case.prior and case.prior.channels == 4
    # the attack ends at p = 0.8: softmax of (0, margin)
    assert math.exp(methods["ace"].margin) / (1 + math.exp(methods["ace"].margin)) == approx(0.8)
    bare = dataclasses.replace(case, vae=None, prior=None).methods(0.8, 5, 3)
    assert list(bare) == ["gradient", "pattern", "latent_shift"]


def test_rivals_reconstruct_slices_and_patients(asked):
    case = ct_cases.rendered_case(3)
    rivals, x = case.reconstruct_rivals(), case.data.x
    assert list(rivals) == ["VAE", "GAN"]
    with torch.no_grad():
        slices = [case.vae(x[i : i + 1, s : s + 1])[0] for i in range(3) for s in range(4)]
        p = case.classifier(x).softmax(1)[:, 1]
        edited = case.gan(x, case.gan.bin_of(p))
    expected = torch.stack(slices).view_as(x)
    torch.testing.assert_close(rivals["VAE"], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(rivals["GAN"], edited, atol=1e-5, rtol=0)
    assert dataclasses.replace(case, vae=None, gan=None).reconstruct_rivals() == {}


needed = [f"lung_ct_{k}" for k in ("mortality", "agent", "agent_mse", "agent_kl", "diffae")]


@pytest.mark.skipif(not all(map(checkpoints.exists, needed)), reason="no shipped models of lung CT")
def test_shipped_agents_end_in_the_last_layer_of_their_black_box(pool, monkeypatch):
    monkeypatch.setattr(rendered, "load", lambda *_, n, **__: pool.take(torch.arange(n)))
    case = ct_cases.rendered_case(2)
    for box in filter(None, (case, case.second)):
        assert all(
            torch.equal(a.head.weight, box.classifier.head.weight) for a in box.agents.values()
        )
    assert "extent" in {k for k, row in case.truth.uses.items() if row["flips"] >= 0.25}


# ---------------------------------------------------------------- proofs


class Lifted:
    """A method whose zero edit brightens the right stripe."""

    def zero_edit(self, x, ids):
        y = x.clone()
        y[..., stripes.STRIPES["right"]] += 0.03
        return y


def oracle_card(**r2):
    return Card(quality={"columns": {k: {"r2": v} for k, v in r2.items()}})


@pytest.fixture
def striped():
    """Stripes as patients of three slices, and a counterfactual that moves an unused stripe."""
    rows = stripes.data()
    f, card = stripes.Stripe(), oracle_card(left=0.9, right=0.2, shade=0.9)
    truth = Truth(rows.factors, stripes.USES, card)
    case = CTCase(
        "stripes",
        "lung_ct",
        data=rows,
        classifier=f,
        prior=None,
        autoencoder=None,
        agents={},
        oracle=stripes.Perfect(),
        truth=truth,
    )
    picked = torch.tensor([5, 2, 9, 11])
    data = rows.take(picked)
    target = 1 - f(data.x).argmax(1)
    left, right = 0.1 + 0.8 * target.float(), 1 - data.factors["right"].round()
    y = stripes.render_moved(data, left=left, right=right)
    return case, picked, {"ours": stripes.make_counterfactuals(data, f, y, target)}


def test_the_proof_is_the_truth_table_of_those_patients(striped):
    case, picked, found = striped
    methods = {"ours": Lifted(), "unused": None}
    table = ct_arms.prove(case, found, methods, picked, 0.9, 0)
    data, ours = case.data.take(picked), found["ours"]
    every = found | baselines.baseline_rows(
        case.classifier, data, ours.target, stripes.USES, ours.score, eps=ct_arms.PGD_EPS, tau=0.9
    )
    edits = {"ours": Lifted().zero_edit(data.x, data.ids)}
    expected = truth_table(
        every,
        data.factors,
        case.classifier,
        stripes.USES,
        case.oracle,
        readable=("left", "shade"),
        zero_edits=edits,
    )
    assert list(table.index) == ["ours", "no change", "PGD", "true"]
    assert table[list(expected)].equals(expected)
    gaps = compare_validity(
        every, data.factors, case.classifier, stripes.USES, case.oracle, zero_edits=edits, seed=0
    )
    assert table[["ahead", "low", "high"]].equals(gaps)
    assert table.reached["no change"] == 0
    assert table.reached["ours"] == (ours.score >= 0.9).double().mean()
    overlap = [body_overlap(c.query, c.counterfactual).mean().item() for c in every.values()]
    assert table.body_overlap.tolist() == pytest.approx(overlap)
    assert table.body_overlap["no change"] == 1 > table.body_overlap["ours"]
    assert table.n.tolist() == [4] * 4 and not table.unused_factor_moved_zero_edit.isna()["ours"]
    assert table.score["true"] == pytest.approx(ours.score.mean().item(), abs=0.05)


def test_factors_that_the_oracle_cannot_read_are_no_evidence(striped):
    case, picked, found = striped
    assert case.readable == ("left", "shade")
    quiet = ct_arms.prove(case, found, {}, picked, 0.9, 0)
    card = oracle_card(left=0.9, right=0.9, shade=0.9)
    truth = dataclasses.replace(case.truth, oracle=card)
    heard = ct_arms.prove(dataclasses.replace(case, truth=truth), found, {}, picked, 0.9, 0)
    moved = [table.unused_factor_moved["ours"] for table in (quiet, heard)]
    assert moved[0] < moved[1]
    for lost in ({"truth": None}, {"oracle": None}):
        assert not len(ct_arms.prove(dataclasses.replace(case, **lost), found, {}, picked, 0.9, 0))


# ---------------------------------------------------------------- two black boxes


class Linear:
    """Reads four factors as linear functions of the image."""

    names = ("airway", "kernel", "extent", "emphysema")
    weights = torch.randn(4, S * 16, generator=torch.Generator().manual_seed(8)).double()

    def read(self, x):
        value = x.flatten(1) @ self.weights.T
        return value, torch.zeros_like(value)


@pytest.fixture
def boxes():
    """Two linear black boxes of twelve patients, each with an agent whose pattern is its own."""
    x = 0.5 + 0.2 * (make_patients(12, seed=7) - 0.5)
    data = InMemory(x, torch.zeros(12, dtype=torch.int64), 50 + torch.arange(12), ("no", "yes"), "")
    model, cases = LinearSlices(), []
    for seed in (24, 5):
        gen, agent, box = torch.Generator().manual_seed(seed), make_agent(seed), LinearBlackBox()
        agent.set_covariance(torch.randn(40, 12, generator=gen).double())
        step = change_of(model, slope_of(agent) @ agent.covariance)
        noise = torch.randn(step.shape, generator=gen).double()
        with torch.no_grad():
            box.w.copy_(10 * (step / step.norm() + 0.1 * noise))
            box.b.copy_(-0.5 * box.w.sum())
        cases.append((box, agent, step))
    (f, agent, _), (g, other, _) = cases
    common = {"data": data, "prior": None, "autoencoder": model}
    second = CTCase("ct", "lung_ct", classifier=g, agents={"l1": other}, **common)
    truth = Truth(None, USES, oracle_card(extent=0.9, emphysema=0.6, airway=0.3))
    own = {"agents": {"l1": agent}, "second": second, "oracle": Linear(), "truth": truth}
    case = CTCase("ct", "lung_ct", classifier=f, **common, **own)
    return case, {"mortality": cases[0], "emphysema": cases[1]}


def test_two_black_boxes_are_explained_on_the_same_calm_patients(boxes):
    """Along its pattern, each box moves every reading by (wanted - now) / rise times a step."""
    case, known = boxes
    x, tau, images = case.data.x, 0.8, make_patients(40)
    odds = {name: odds_of(box, x) for name, (box, _, _) in known.items()}
    calm = [i for i in range(12) if all(z[i] < 0 for z in odds.values())]
    assert calm[0] > 0 and len(calm) > 2  # patients are left out, before and after
    crossed = ct_arms.cross_examine(case, images, 2, tau, 0, 3)
    assert list(crossed.table.index) == ["mortality", "emphysema"]
    assert "airway" not in crossed.table  # the oracle does not read it reliably
    assert crossed.table.n.tolist() == [2, 2] and crossed.table.reached.tolist() == [1, 1]
    torch.testing.assert_close(crossed.before, x[calm[0]], atol=1e-9, rtol=0)
    for name, (box, _, step) in known.items():
        rise = (step * box.w).sum().item()
        spans = []
        for p in (tau, tau + 0.01):  # the tolerance of the search
            wanted = math.log(p / (1 - p))
            spans.append([(wanted - odds[name][i].item()) / rise for i in calm[:2]])
        least, most = (sum(span) / 2 for span in spans)
        for cause in ("extent", "emphysema"):
            per_unit = Linear.weights[Linear.names.index(cause)] @ step.flatten()
            found = crossed.table.loc[name, cause] / per_unit.item()
            assert least - 1e-6 <= found <= most + 1e-6, (name, cause)
        own = x[calm[:2]] + step * torch.tensor(spans[0])[:, None, None, None]
        for other, (f, _, _) in known.items():
            p = [odds_of(f, y).sigmoid() for y in (x[calm[:2]], own)]
            moved = (p[1] - p[0]).mean().item()
            assert crossed.table.loc[name, f"p {other}"] == pytest.approx(moved, abs=0.02)
        agent = known[name][1]
        q = ((images.flatten(2) - 0.5) @ LinearSlices().basis).flatten(1)
        expected = measure_alignment(agent(q).detach(), box(images).detach())["auc"]
        assert crossed.table.agent_auc[name] == pytest.approx(expected)
        change = (crossed.after[f"→ {name}"] - x[calm[0]]) / step
        assert change.min() == pytest.approx(change.max().item(), rel=1e-6)
        assert spans[0][0] - 1e-6 <= change.min() <= spans[1][0] + 1e-6


def test_nothing_to_compare_is_an_error(boxes):
    case, known = boxes
    for lost in ({"second": None}, {"oracle": None}):
        with pytest.raises(ValueError, match="no second black box or no oracle"):
            ct_arms.cross_examine(dataclasses.replace(case, **lost), case.data.x, 2, 0.8, 0, 3)
    with torch.no_grad():
        known["emphysema"][0].b.add_(1e3)
    with pytest.raises(ValueError, match="no patient that both"):
        ct_arms.cross_examine(case, case.data.x, 2, 0.8, 0, 3)
