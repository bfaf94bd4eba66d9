"""Searches of notebook 07: what each one explains, with which settings, and what a shard makes."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from cf_utils.core import describe
from cf_utils.explainers import presets
from cf_utils.explainers.ace import ACE, pre_explanation
from cf_utils.explainers.dime import DiME
from cf_utils.harness import ace_arms, results
from cf_utils.models.generators.diffusion import noise_of
from tests.ace_stripes import SIZES, Recorder, make_case, make_prior
from tests.test_ace import QUICK


@pytest.fixture(scope="module")
def prior():
    return make_prior()


@pytest.fixture(scope="module")
def explain(prior):
    return ACE(prior=prior, seed=3, **QUICK)


@pytest.fixture
def quick(monkeypatch):
    """Presets that fit the small prior."""
    changes = {"spacing": "25", "steps": 2, "dilation": 3, "refine": ("25", 2), "scales": (8.0,)}
    get = presets.get
    monkeypatch.setattr(ace_arms.presets, "get", lambda *names: get(*names, **changes))
    return changes


def test_the_first_faces_are_explained_towards_the_other_class(prior, explain):
    case, run = make_case(prior=prior), Recorder()
    cfs = ace_arms.explain_first(run, "name", explain, case, 3, n=2)
    call = run.calls["name"]
    assert torch.equal(call.x, case.data.x[:2]) and torch.equal(call.ids, case.data.ids[:2])
    assert torch.equal(call.target, 1 - case.classifier(call.x).argmax(1)) and call.batch == 3
    assert len(cfs) == 2 and call.method is explain
    assert len(ace_arms.explain_first(run, "all", explain, case, 3)) == 4


def test_stages_share_the_attack_and_differ_in_what_follows(prior, explain):
    case, run = make_case(prior=prior), Recorder()
    ace = ace_arms.explain_first(run, "ace", explain, case, 2)
    stages = ace_arms.explain_stages(run, explain, case, ace)
    assert list(stages) == ["Pre-CE", "FR-CE", "F-CE", "ACE"] and stages["ACE"] is ace
    for key, stage in ace_arms.STAGES.items():
        method = run.calls[f"ace_{stage}"].method
        assert method.stage == stage and method.reuse is ace
        alone = explain.with_(stage=stage)(case.classifier, case.data.x, ace.target, case.data.ids)
        torch.testing.assert_close(stages[key].counterfactual, alone.counterfactual)
    assert torch.equal(stages["Pre-CE"].counterfactual, pre_explanation(ace))
    assert ace_arms.explain_stages(run, explain, case, None) == {}


def test_linked_faces_have_their_own_stages(prior, explain):
    case, run = make_case(prior=prior), Recorder()
    linked = ace_arms.explain_linked(run, explain, case, {})
    assert torch.equal(linked["F-CE"].query, case.linked.data.x)
    assert set(run.calls) == {"linked", "linked_pre", "linked_fr", "linked_f"}
    own = {"ACE": linked["ACE"]}
    photographs = make_case(truth=False, prior=prior)
    assert ace_arms.explain_linked(run, explain, photographs, own) is own


def test_the_shortcut_is_that_of_the_second_classifier(prior, explain):
    case, run = make_case(prior=prior), Recorder()
    ace_arms.explain_shortcut(run, explain, case)
    assert run.calls["shortcut"].f is case.shortcut.classifier
    assert torch.equal(run.calls["shortcut"].x, case.shortcut.data.x)
    assert ace_arms.explain_shortcut(run, explain, make_case(truth=False)) is None


def test_variants_differ_in_distance_and_attack_alone(prior, explain):
    case, run = make_case(prior=prior), Recorder()
    tried = ace_arms.explain_variants(run, explain, case)
    made = [run.calls[f"variant_{i}"].method for i in range(4)]
    assert list(tried) == ["PGD, l1", "PGD, l2", "GD, l1", "C&W, l1"]
    kinds = [(m.attack, m.distance, m.iterations, m.step) for m in made]
    one = SIZES.variant_steps
    assert kinds == [
        ("pgd", "l1", one, explain.step),
        ("pgd", "l2", one, explain.step),
        ("gd", "l1", 2 * one, 0.02),
        ("cw", "l1", 2 * one, 0.03),
    ]
    assert {len(cfs) for cfs in tried.values()} == {SIZES.n_variants}


def test_respacings_keep_the_proportion_of_steps_to_levels(explain):
    assert ace_arms.respacings(explain.with_(spacing="33", steps=5)) == [
        ("30", 5),
        ("24", 4),
        ("36", 6),
        ("18", 3),
        ("42", 7),
    ]


def test_each_seed_attacks_anew_and_its_varied_answer_reuses_that_attack(prior, explain):
    case, run = make_case(prior=prior), Recorder()
    explain = explain.with_(spacing="12", steps=2)
    answers = ace_arms.explain_seeds(run, explain, case)
    same, varied = answers["same re-spacing"], answers["varied re-spacing"]
    others = ace_arms.respacings(explain)
    for s in range(SIZES.n_seeds):
        one, two = (run.calls[f"seed_{s}{end}"].method for end in ("", "_respaced"))
        assert (one.seed, one.stage, one.reuse) == (3 + s, "fr", None)
        assert (two.seed, two.stage, two.reuse, two.refine) == (3 + s, "fr", same[s], others[s])
    assert len(same) == len(varied) == SIZES.n_seeds and len(same[0]) == SIZES.n_diverse
    assert not torch.equal(same[0].counterfactual, same[1].counterfactual)
    titles = ace_arms.name_seeds(explain, case)
    sigma = prior.chain("12").schedule.sigma[1]
    other = prior.chain(others[1][0]).schedule.sigma[others[1][1] - 1]
    assert titles[1] == f"seed 1\nσ {sigma:.2f}, {other:.2f}"


def test_papers_settings_are_compared_where_ours_are_others(prior, explain, quick):
    case = make_case(prior=prior)
    ours = ace_arms.build_rivals(case, 5)
    assert ours["DiME"].steps == SIZES.dime_steps and ours["DiME"].seed == 5
    assert ours["FastDiME"].fast and not ours["DiME"].fast
    papers = {
        "ACE": explain.with_(iterations=9),  # cut to our iterations, it is ours
        "FastDiME": ours["FastDiME"].with_(l1=0.4),
        "DiME": ours["DiME"].with_(steps=60, dilation=15, l1=0.3),
    }
    found = ace_arms.list_searches(case, explain, papers, 5)
    assert {k: (s.name, s.n) for k, s in found.items()} == {
        "FastDiME": ("fastdime", SIZES.n_fastdime),
        "DiME": ("dime", SIZES.n_dime),
        "FastDiME, paper's": ("fastdime_paper", SIZES.n_dime),
        "DiME, paper's": ("dime_paper", SIZES.n_dime),
    }
    theirs = found["DiME, paper's"].method
    assert (theirs.l1, theirs.steps, theirs.dilation) == (0.3, SIZES.dime_steps, 3)


def test_a_whole_dime_has_the_steps_of_its_preset(prior, quick):
    case = make_case(prior=prior)
    whole = dataclasses.replace(case, sizes=dataclasses.replace(SIZES, dime_steps=0))
    assert ace_arms.build_rivals(whole, 0)["DiME"].steps == quick["steps"]


def test_the_paste_reuses_dimes_images(prior, explain, quick):
    case, run = make_case(prior=prior), Recorder()
    found = ace_arms.explain_rivals(run, case, explain, {"ACE": explain.with_(lam=0.5)}, 0)
    assert list(found) == ["FastDiME", "DiME", "DiME, pasted", "ACE, paper's"]
    pasted = run.calls["dime_pasted"].method
    assert isinstance(pasted, DiME) and pasted.pasted and pasted.reuse is found["DiME"]
    assert found["DiME, pasted"].mask is not None


def test_shards_make_all_searches_that_need_no_other(prior, explain, quick, tmp_path, monkeypatch):
    """The job that joins the shards finds their batches and adds only what reuses a result."""
    monkeypatch.setenv("CF_RESULTS_ROOT", str(tmp_path))
    case, papers = make_case(prior=prior), {"ACE": explain.with_(lam=0.5)}
    explain = explain.with_(spacing="12", steps=2)

    def start():
        return results.Run("07_ace_faces", profile="embedded", seed=0, data="embedded")

    def stored():
        return {p.parent.relative_to(tmp_path) for p in tmp_path.rglob("batches/*/*/result.json")}

    for k in (1, 2):
        monkeypatch.setenv("CF_SHARD", f"{k}/2")
        ace_arms.run_shard(start(), case, explain, explain, papers, 0)
    monkeypatch.delenv("CF_SHARD")
    before, run = stored(), start()
    ace_arms.run_shard(run, case, explain, explain, papers, 0)
    assert stored() == before and len(before) > 10
    ace = ace_arms.explain_first(run, "ace", explain, case, SIZES.batch)
    ace_arms.explain_linked(run, explain, case, ace_arms.explain_stages(run, explain, case, ace))
    ace_arms.explain_shortcut(run, explain, case)
    ace_arms.explain_variants(run, explain, case)
    ace_arms.explain_rivals(run, case, explain, papers, 0)
    ace_arms.explain_seeds(run, explain, case)
    added = {path.parent.name for path in stored() - before}
    pairs = {f"{of}_{stage}" for of in ("ace", "linked") for stage in ("pre", "fr", "f")}
    assert added == pairs | {"dime_pasted", "seed_0_respaced", "seed_1_respaced"}


def test_images_are_filtered_with_their_own_noise_in_any_batch(prior):
    case = make_case(n=3, prior=prior)
    x, ids = case.data.x, case.data.ids
    found = ace_arms.filter_images(case, x, ids, ("25", 3), 7, "stream")
    for i in range(3):
        one = slice(i, i + 1)
        with torch.no_grad():
            noise = noise_of(7, ids[one], x[one], "stream")
            alone = prior.chain("25").filter(x[one], 3, noise)
        torch.testing.assert_close(found[one], alone, atol=1e-5, rtol=0)
    assert ace_arms.filter_images(case, x[:0], ids[:0], ("25", 3), 7, "stream").shape == x[:0].shape
    with pytest.raises(ValueError, match="case: got one without a prior"):
        ace_arms.filter_images(make_case(), x, ids, ("25", 3), 7, "stream")


def test_equal_settings_have_equal_descriptions(explain):
    """`list_searches` leaves out a paper's setting that describes the same search."""
    assert describe(explain.with_(lam=explain.lam)) == describe(explain)
