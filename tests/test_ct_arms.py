"""Maps, undecided patients and directions of DiffExplainer's notebook, on a linear world."""

from __future__ import annotations

import dataclasses

import pandas as pd
import pytest
import torch

from cf_utils.datasets.base import InMemory
from cf_utils.explainers.diffexplainer import DiffExplainer, difference_maps
from cf_utils.harness import ct_arms
from cf_utils.harness.cases import Truth
from cf_utils.harness.ct_cases import CTCase
from tests.slice_models import LinearBlackBox, LinearSlices, make_agent, make_patients

N = 8


class Runner:
    """Explains at once, as a run without shards; lists what was asked for."""

    def __init__(self, lost=()):
        self.asked, self.lost = [], lost

    def explain(self, name, explainer, classifier, x, target, ids, **options):
        self.asked.append((name, target.tolist()))
        return None if name in self.lost else explainer(classifier, x, target, ids)


@pytest.fixture
def case(monkeypatch):
    """Linear patients whose black box is explained by its own agent, without a search."""
    x = 0.5 + 0.3 * (make_patients(N, seed=11) - 0.5)
    labels = torch.zeros(N, dtype=torch.int64)
    data = InMemory(x, labels, 100 + torch.arange(N), ("no", "yes"), "")
    agent = make_agent()
    gen = torch.Generator().manual_seed(2)
    agent.set_covariance(torch.randn(40, 12, generator=gen).double())
    disease = torch.rand(x.shape, generator=gen) < 0.2
    truth = Truth(None, {}, None)
    black_box = LinearBlackBox()
    black_box.layer = torch.nn.Identity()
    monkeypatch.setattr(ct_arms, "render_atlas", lambda n, seed: disease[:n])
    maps = {"saliency": x.abs(), "Grad-CAM": "no such layer"}
    monkeypatch.setattr(
        ct_arms,
        "attribution_maps",
        lambda f, layer, x, target: dict(
            maps, **{"saliency": maps["saliency"][: len(x)] * target.double()[:, None, None, None]}
        ),
    )
    return CTCase(
        "ct", "lung_ct", classifier=black_box, data=data, prior=None, autoencoder=LinearSlices(),
        agents={"l1": agent}, truth=truth,
        masks={"disease": disease, "body": torch.ones_like(disease), "lungs": disease.roll(1, 3)},
    )  # fmt: skip


def methods_of(case, tau=0.6, **own):
    own |= {"autoencoder": case.autoencoder, "agent": case.agents["l1"], "steps": 2}
    return {k: DiffExplainer(tau=tau, direction=k, **own) for k in ("gradient", "pattern")}


def test_undecided_patients_count_if_they_reach_both_classes(case, monkeypatch):
    short = {"limit": 1.0}  # too short a way for some patients
    monkeypatch.setattr(
        CTCase, "methods", lambda self, tau, *rest, **own: methods_of(self, tau, **short)
    )
    run = Runner()
    found = ct_arms.explain_undecided(run, case, case, 0.6, 0, 2)
    names = [f"undecided_{k}_{c}" for k in ("gradient", "pattern") for c in (0, 1)]
    assert run.asked == [(name, [int(name[-1])] * N) for name in names]
    for name, method in methods_of(case, **short).items():
        both, either = torch.ones(N, dtype=torch.bool), torch.zeros(N, dtype=torch.bool)
        for c in (0, 1):
            way = method(case.classifier, case.data.x, torch.full((N,), c), case.data.ids)
            both, either = both & way.reached, either | way.reached
        assert 0 < both.sum() < either.sum()
        assert found[name] == pytest.approx(both.double().mean().item())


def test_a_shard_leaves_out_a_direction_that_it_has_in_part(case, monkeypatch):
    monkeypatch.setattr(CTCase, "methods", lambda self, tau, *rest, **own: methods_of(self, tau))
    lost = ("undecided_gradient_1", "undecided_pattern_0", "undecided_pattern_1")
    assert ct_arms.explain_undecided(Runner(lost), case, case, 0.6, 0, 2) == {}
    assert list(ct_arms.explain_undecided(Runner(lost[:1]), case, case, 0.6, 0, 2)) == ["pattern"]


def explain_all(case):
    """Explain all patients towards their other class, along the pattern."""
    source, x = case.classifier(case.data.x).argmax(1), case.data.x
    return methods_of(case)["pattern"](case.classifier, x, 1 - source, case.data.ids)


@pytest.fixture
def seen(case):
    """Maps of the patients judged "yes", from explanations of all patients."""
    methods = methods_of(case)
    source = case.classifier(case.data.x).argmax(1)
    both = {
        k: m(case.classifier, case.data.x, 1 - source, case.data.ids) for k, m in methods.items()
    }
    run = Runner()
    shift = {"latent_shift": methods["gradient"]}
    found = ct_arms.collect_maps(run, case, {**methods, **shift}, both, 3, 5, 0)
    return found, both, source, run


def test_maps_belong_to_the_patients_judged_yes_towards_no(case, seen):
    found, both, source, run = seen
    rows = (source == 1).nonzero()[:3, 0]
    assert len(rows) == 3 and 0 in source[: rows[-1]]  # others are skipped
    assert torch.equal(found.rows, rows)
    assert run.asked == [("latent_shift", [0, 0, 0])]  # the other two are there already
    for name in ("gradient", "pattern"):
        change = difference_maps(both[name])[rows]
        torch.testing.assert_close(found.changes[name], change)
        torch.testing.assert_close(found.amounts[name], change.abs())
    assert found.found["latent_shift"].ids.tolist() == case.data.ids[rows].tolist()
    assert torch.equal(found.disease, case.masks["disease"][rows])
    assert found.amounts["saliency"].sum() > 0  # class 1 is attributed
    atlas = case.masks["disease"][:5].double().mean(0)
    assert all(torch.equal(item.double(), atlas) for item in found.amounts["atlas"])
    official = dataclasses.replace(case, truth=None)
    bare = ct_arms.collect_maps(run, official, {}, both, 3, 5, 0)
    assert not bare.disease.any() and "atlas" not in bare.amounts
    assert ct_arms.locate(official, bare, 0).empty and ct_arms.best_maps(pd.DataFrame()) == {}


def test_the_change_of_ace_is_that_from_its_zero_edit(case):
    explain = methods_of(case)["gradient"]

    class Lossy:
        """Explains like `explain`, with a path and a zero edit that are not the query."""

        def __call__(self, *args):
            cfs = explain(*args)
            return dataclasses.replace(cfs, path=cfs.path + 0.1)

        def zero_edit(self, x, ids):
            return x + 0.3

    methods = {"gradient": Lossy(), "ace": Lossy()}
    both = {"pattern": explain_all(case)}
    found = ct_arms.collect_maps(Runner(), case, methods, both, 3, 5, 0)
    for name, base in (("gradient", 0.1), ("ace", 0.3)):
        cfs = found.found[name]
        expected = 1200 * (cfs.counterfactual - cfs.query - base)
        torch.testing.assert_close(found.changes[name], expected, atol=1e-6, rtol=0)


def test_panels_show_the_slice_with_most_disease(case, seen):
    found = seen[0]
    level = found.disease.double().sum((2, 3)).argmax(1)
    image, disease, maps = found.panels(2)
    assert "random" not in maps and "edges" not in maps and "Grad-CAM" not in maps
    for i in range(2):
        query = case.data.x[found.rows[i]]
        assert torch.equal(image[i], query[level[i]])
        assert torch.equal(disease[i], found.disease[i, level[i]])
        signed = found.changes["pattern"][i, level[i]]
        assert torch.equal(maps["pattern"][i], signed) and (signed < 0).any()


def test_the_best_rival_is_none_of_ours_and_no_reference(case, seen):
    table = ct_arms.locate(case, seen[0], 0)
    assert table.index[0] == "gradient" and table.note["Grad-CAM"] == "no such layer"
    share = case.masks["disease"][seen[0].rows].flatten(1).double().mean(1).mean().item()
    assert table.auprc["by chance"] == pytest.approx(share)
    lungs = case.masks["lungs"][seen[0].rows]
    signed = seen[0].changes["pattern"]
    expected = signed[lungs].mean().item()
    assert table["HU in lungs"]["pattern"] == pytest.approx(expected)
    table["auprc"] = [0.1 + 0.01 * k for k in range(len(table))]
    table.loc[["random", "edges", "atlas", "by chance"], "auprc"] = 0.9
    best = ct_arms.best_maps(table)
    rivals = table.auprc[["saliency", "latent_shift", "Grad-CAM"]].max()
    assert best["localisation_auprc_best_rival"] == pytest.approx(rivals)
    assert best["localisation_auprc"] == table.auprc["gradient"]
    assert best["localisation_auprc_pattern"] == table.auprc["pattern"]
    assert best["localisation_auprc_atlas"] == 0.9


def test_a_linear_agent_moves_every_patient_alike(case):
    methods = methods_of(case)
    filters, patterns, cosines = ct_arms.compare_directions(methods, case.data.x)
    agent = case.agents["l1"]
    wanted = torch.ones(N, dtype=torch.int64)
    assert torch.equal(filters, methods["gradient"].directions(case.data.x, wanted))
    aligned = torch.cosine_similarity(filters @ agent.covariance, patterns)
    torch.testing.assert_close(aligned, torch.ones_like(aligned))
    assert cosines["cosine_patients"] == pytest.approx(1)
    expected = torch.cosine_similarity(filters[0], patterns[0], dim=0).item()
    assert cosines["cosine_pattern"] == pytest.approx(expected) and expected < 0.999
