"""The tuning rule on hand-made tables, the grids against the papers' presets, and whole tunings.

The tunings run in a world of stripes. Their numbers are compared with ones computed by hand.
"""

from __future__ import annotations

import dataclasses
import itertools
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cf_utils import core
from cf_utils.core import files
from cf_utils.explainers import presets
from cf_utils.explainers.ace import ACE
from cf_utils.explainers.dime import DiME
from cf_utils.explainers.xgem import XGEM
from cf_utils.harness import ablation_record, cases
from cf_utils.models import checkpoints
from cf_utils.models.cards import Card
from cf_utils.models.checkpoints import Loaded
from cf_utils.models.generators import diffusion
from cf_utils.models.generators.latent import LatentModel
from cf_utils.models.generators.vae import VAE
from cf_utils.training.tuning import session
from cf_utils.training.tuning import tuner as tuner_file
from cf_utils.training.tuning.grids import GRIDS, METHODS, PAPER, build_paper_setting, combine
from cf_utils.training.tuning.record import (
    build_record,
    cannot_win,
    choose,
    find_best_validity,
    find_changes,
    find_perfect,
    format_record,
)
from cf_utils.training.tuning.tuner import Tuner, tune
from tests.stripes import LOW, SPAN, STRIPES, TOY, USES, Perfect, Stripe, data

WITH_PRIOR = [name for name, method in METHODS.items() if method.generator == "prior"]
RECORDS = sorted(set((files.ROOT / "results" / "tuning").glob("*.json")) - {ablation_record.RECORD})


def rows(*measured, items=None):
    """Rows of (flip rate, semantic validity), numbered in order."""
    names = ("flip_rate", "semantic_validity")
    return [
        {
            "number": k,
            **dict(zip(names, m, strict=True)),
            "items": items[k] if items else "0",
            "settings": {"lam": k},
            "measured": 64,
        }
        for k, m in enumerate(measured)
    ]


# the rule


@pytest.mark.parametrize(
    ("chosen", "missed", "measured"),
    [
        # the highest semantic validity at the floor or above it
        (1, False, [(0.97, 0.5), (0.95, 0.6), (0.94, 0.9)]),
        # ties: the higher flip rate, then the earlier setting
        (2, False, [(0.95, 0.6), (0.96, 0.5), (0.97, 0.6)]),
        (1, False, [(0.97, 0.5), (0.97, 0.6), (0.97, 0.6)]),
        # none at the floor: the highest flip rate, then semantic validity, then the earlier one
        (1, True, [(0.90, 0.9), (0.94, 0.1), (0.93, 0.9)]),
        (1, True, [(0.90, 0.4), (0.90, 0.5), (0.90, 0.5)]),
    ],
)
def test_the_rule(chosen, missed, measured):
    row, floor_missed = choose(rows(*measured), 0.95)
    assert (row["number"], floor_missed) == (chosen, missed)


def test_a_share_equal_to_the_floor_reaches_it_in_floating_point():
    for n in range(20, 2001, 20):
        assert not choose(rows((19 * n // 20 / n, 0.5)), 0.95)[1]
        assert not choose(rows((9 * n // 10 / n, 0.5)), 0.9)[1]
    with pytest.raises(ValueError, match="rows: got none"):
        choose([], 0.9)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.sampled_from([0.0, 0.5, 0.9, 1.0])] * 2), min_size=1, max_size=6))
def test_no_eligible_setting_beats_the_choice(measured):
    table = rows(*measured)
    row, missed = choose(table, 0.9)
    assert missed == all(fr < 0.9 for fr, _ in measured)
    for other in table:
        if not missed and other["flip_rate"] < 0.9:
            continue
        order = ["flip_rate", "semantic_validity"] if missed else ["semantic_validity", "flip_rate"]
        better = [(other[k] > row[k]) - (other[k] < row[k]) for k in order]
        first = next((b for b in better if b), 0)
        assert first < 0 or (first == 0 and other["number"] >= row["number"])


def test_the_record_holds_the_paired_difference_from_the_papers_setting():
    conditions = {"n": 64, "checkpoints": {}}
    items = ["01" * 32, "01" * 32, "1" * 32 + "01" * 16]
    measured = rows((1.0, 0.5), (0.8, 0.5), (0.95, 0.75), items=items)
    record = build_record(conditions, measured, 24, 0.9)
    assert record["chosen"] == 2 and record["paper"] == PAPER == 0
    assert record["left"] == list(range(3, 24))
    assert record["verdict"] == "floor reached" and record["floor"] == 0.9
    d = record["difference"]
    assert d["mean"] == 0.25 and d["n"] == 64  # 16 of 64 items are valid in addition
    half = 1.96 * (0.25 * 0.75 / 64) ** 0.5  # 0.106 as pairs; unpaired it would be 0.16
    assert abs(d["low"] - (0.25 - half)) < 0.02  # measured 0.141
    assert abs(d["high"] - (0.25 + half)) < 0.02  # measured 0.359


def test_the_record_of_special_tables():
    conditions, items = {"n": 64, "checkpoints": {}}, ["01" * 32, "01" * 32]
    same = build_record(conditions, rows((1.0, 0.5), (1.0, 0.5), items=items), 2, 0.9)
    assert same["chosen"] == 0 and not same["left"]
    assert same["difference"] == {"mean": 0.0, "low": 0.0, "high": 0.0, "n": 64}
    low = rows((0.1, 0.0), (0.8, 0.5), items=items)
    assert build_record(conditions, low, 2, 0.9)["verdict"] == "floor missed"
    assert build_record(conditions, low[1:], 2, 0.9)["difference"] is None  # no paper's setting
    perfect = rows((1.0, 0.5), (1.0, 0.5), (1.0, 1.0), items=[*items, "1" * 64])
    assert build_record(conditions, perfect, 24, 0.9)["left"] == []  # no other one can win
    # an earlier setting may be as good, and would then be chosen
    assert build_record(conditions, perfect[::2], 24, 0.9)["left"] == [1]


# the grids

SIZES = {"faces": (64, 64), "roads": (64, 128)}
PAPERS = {  # data sets whose presets the papers' settings are
    "faces": {"ace": "celeba", "dime": "celeba", "fastdime": "celeba"},
    "roads": {"ace": "bdd", "dime": "bdd", "fastdime": "celeba"},
}


class Silent(nn.Module):
    """A UNet that predicts no noise, and counts its calls."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, z, t):
        self.calls += 1
        return SimpleNamespace(sample=torch.zeros_like(z))


def build_all(world, method):
    """A prior of the world's size, and (shared search, whole) of each setting."""
    prior = diffusion.DDPM(Silent(), SIZES[world], 500)
    return prior, [METHODS[method].build(prior, 3, s) for s in GRIDS[world][method]]


def find_differences(a, b):
    a, b = core.describe(a), core.describe(b)
    assert a.keys() == b.keys()
    return {k for k in a if a[k] != b[k]}


@pytest.mark.parametrize("world", GRIDS)
@pytest.mark.parametrize("method", WITH_PRIOR)
def test_every_method_has_24_settings_that_its_explainer_accepts(world, method):
    prior, explainers = build_all(world, method)
    x = torch.full((1, 3, *SIZES[world]), 0.5)
    assert GRIDS[world].keys() == set(WITH_PRIOR) | ({"xgem"} if world == "faces" else set())
    assert len(explainers) == 24
    assert len({str(core.describe(whole)) for _, whole in explainers}) == 24
    for explain in (e for pair in explainers for e in pair if e is not None):
        explain.check(x, torch.zeros(1, 2))
        assert explain.seed == 3 and explain.prior is prior
    assert METHODS[method].floor == (0.95 if method == "ace" else 0.9)


def test_xgem_has_three_lambda_and_its_preset_is_the_first():
    model = VAE((16, 16), 3, (2, 2, 2, 2, 2), 2)
    pairs = [METHODS["xgem"].build(model, 3, s) for s in GRIDS["faces"]["xgem"]]
    assert len({whole.lam for _, whole in pairs}) == 3 and METHODS["xgem"].floor == 0.9
    for search, whole in pairs:
        assert search is None and whole.model is model and (whole.tau, whole.seed) == (0.9, 3)
        whole.check(torch.zeros(1, 3, 16, 16), torch.zeros(1, 2))
    preset = presets.get("xgem", "faces").build(model=model, tau=0.9, seed=3)
    assert not find_differences(pairs[PAPER][1], preset)


@pytest.mark.parametrize("world", GRIDS)
def test_the_first_setting_is_the_papers(world):
    for method, dataset in PAPERS[world].items():
        prior, explainers = build_all(world, method)
        preset = presets.get(method, dataset).build(prior=prior, seed=3)
        unused = {"refine", "threshold"} if method == "dime" else set()  # only a paste uses them
        assert find_differences(explainers[PAPER][1], preset) <= {"dilation"} | unused
        paper = build_paper_setting(world, method, prior, 3)
        assert not find_differences(paper, explainers[PAPER][1])


@pytest.mark.parametrize("world", GRIDS)
def test_the_first_setting_of_pasted_dime_pastes_as_ace_does(world):
    pasted, ace, dime = (
        build_all(world, method)[1][PAPER][1] for method in ("dime_pasted", "ace", "dime")
    )
    unused = {"pasted", "refine", "threshold", "dilation"}
    assert find_differences(pasted, dime) <= unused and pasted.pasted
    assert pasted.refine == (ace.spacing, ace.steps)
    assert (pasted.threshold, pasted.dilation) == (ace.threshold, ace.dilation)
    assert ace.dilation == {"faces": 7, "roads": 3}[world]  # 15 of 128 and of 256 rows


@pytest.mark.parametrize("world", GRIDS)
def test_the_preset_of_ace_is_in_its_grid(world):
    prior, explainers = build_all(world, "ace")
    preset = presets.get("ace", world).build(prior=prior, seed=3)
    assert any(not find_differences(whole, preset) for _, whole in explainers)


@pytest.mark.parametrize("world", GRIDS)
def test_searches_are_shared(world):
    attacks = {str(core.describe(search)) for search, _ in build_all(world, "ace")[1]}
    assert len(attacks) == 6
    searches = {str(core.describe(search)) for search, _ in build_all(world, "dime_pasted")[1]}
    assert len(searches) == 4
    assert searches <= {str(core.describe(whole)) for _, whole in build_all(world, "dime")[1]}
    for method in ("dime", "fastdime"):
        assert all(search is None for search, _ in build_all(world, method)[1])


# a tuning

SETTINGS = combine(
    [{"spacing": "25", "steps": 2, "iterations": 3, "step": 0.04}],
    [{"lam": v} for v in (0.003, 0.03, 0.2)],
    [{"threshold": t, "dilation": 1} for t in (0.3, 0.95)],
)
# calls of the prior: batches x iterations x steps
ATTACK, FINISH, NULL = 3 * 3 * 2, 3 * 2, 3 * 2
CONDITIONS = {"world": "stripes", "n": 12, "seed": 0, "checkpoints": {"net": "a", "oracle": "b"}}


READS_ALL = Card(quality={"columns": {name: {"r2": 1.0} for name in Perfect.names}})


@pytest.fixture
def case():
    """Twelve renders of stripes, and a classifier of the left one that noise can flip, too."""
    found = data(12)
    found = dataclasses.replace(found, x=found.x.double())
    prior = diffusion.DDPM(Silent(), (16, 16), 50)
    truth = cases.Truth(found.factors, USES, READS_ALL)
    return cases.Case("stripes", "stripes", found, Stripe(brittle=40.0), prior, truth)


def build_tuner(case, folder, method="ace", grid=SETTINGS, **changes):
    settings = {"oracle": Loaded(Perfect(), READS_ALL), "batch": 5} | changes
    return Tuner(case=case, method=method, grid=grid, folder=folder / "batches", **settings)


def read_stripes(x):
    return torch.stack([(x[..., at].flatten(1).mean(1) - LOW) / SPAN for at in STRIPES.values()], 1)


def measure_by_hand(case, setting, read=(1, 2)):
    """A setting's measurements without batches and stored results.

    `read`: the unused stripes that the oracle reads. `items` is semantic validity per query.
    """
    f, x, ids, factors = case.classifier, case.data.x, case.data.ids, case.data.factors
    cfs = ACE(prior=case.prior, **setting)(f, x, 1 - f(x).argmax(1), ids)
    noise = diffusion.noise_of(0, ids, x, "null")
    unedited = case.prior.chain(setting["spacing"]).filter(x, setting["steps"], noise)
    null = (read_stripes(unedited) - read_stripes(x)).square().mean(0).sqrt()
    change = read_stripes(cfs.counterfactual) - read_stripes(x)
    moved = change.abs() > 2 * null
    for k, name in enumerate(STRIPES):
        value = torch.where(moved[:, k], factors[name] + change[:, k].float(), factors[name])
        factors = factors.move(name, value.clamp(0, 1))
    flipped = f(TOY.render(factors).double()).argmax(1) == cfs.target
    size = (cfs.counterfactual - x).abs().mean((1, 2, 3))
    return {
        "flip_rate": cfs.valid.double().mean().item(),
        "items": (flipped & cfs.valid).double(),
        "mean_change": size[cfs.valid].mean().item(),
        "used_factor_moved": moved[:, 0].double().mean().item(),
        "unused_factor_moved": moved[:, read].double().mean().item(),
    }


def test_a_tuning_measures_what_it_says(case, tmp_path):
    tuner = build_tuner(case, tmp_path)
    measured = [tuner.measure(k) for k in range(6)]
    assert case.prior.unet.calls == 3 * ATTACK + 6 * FINISH + NULL  # six settings, three attacks
    for k, row in enumerate(measured):
        expected = measure_by_hand(case, SETTINGS[k])
        items = expected.pop("items")
        assert row["number"] == k and row["settings"] == SETTINGS[k] and row["measured"] == 12
        assert row["flip_rate"] == expected["flip_rate"]
        assert [int(c) for c in row["items"]] == items.tolist()
        assert row["semantic_validity"] == pytest.approx(items.mean().item())
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, rel=1e-9), name
    found = {(row["flip_rate"], row["semantic_validity"]) for row in measured}
    assert len(found) >= 3, found  # the settings differ
    assert any(validity < flips for flips, validity in found), found


def test_a_record_holds_the_choice_and_prints_as_a_table(case, tmp_path):
    tuner, path = build_tuner(case, tmp_path), tmp_path / "record.json"
    measured = [tuner.measure(k) for k in range(6)]
    record = tune(tuner, CONDITIONS, range(6), path)
    assert files.read_json(path) == record and record["left"] == []
    assert record["queries"] == files.sha256(case.data.x)[:16]
    row, missed = choose(measured, 0.95)
    assert record["chosen"] == row["number"]
    assert (record["verdict"] == "floor missed") == missed
    table = format_record(record).splitlines()
    assert len(table) == 8 and "chosen" in table[1] and record["verdict"] in table[-1]
    assert record["chosen"] == 0 or "paper" in table[2]


def test_the_seconds_of_a_setting_include_its_search(case, tmp_path):
    tuner = build_tuner(case, tmp_path)
    row, batches = tuner.measure(0), [slice(at, at + 5) for at in (0, 5, 10)]
    seconds = torch.cat([tuner.explain(0, batch)[1] for batch in batches])
    search, _ = tuner.build(0)
    of_search = torch.cat([tuner._load_or_explain(search, batch).seconds for batch in batches])
    assert (seconds > of_search).all() and (of_search > 0).all()
    assert row["seconds_per_image"] == pytest.approx(seconds.mean().item())


def test_a_case_without_truth_cannot_be_tuned(case, tmp_path):
    photographs = dataclasses.replace(case, truth=None)
    with pytest.raises(ValueError, match="case: got stripes, expected renders"):
        build_tuner(photographs, tmp_path).measure(0)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from([(0, 0), (1, 0), (1, 1)]), min_size=8, max_size=8),
        min_size=1,
        max_size=5,
    ),
    st.sampled_from([0.5, 0.9]),
    st.integers(1, 8),
)
def test_leaving_settings_early_does_not_change_the_choice(outcomes, floor, batch):
    """For any outcomes (flipped, valid) of eight queries per setting."""

    def row(k, found):
        flips, validity = (sum(one[j] for one in found) / len(found) for j in (0, 1))
        return {
            "number": k,
            "flip_rate": flips,
            "semantic_validity": validity,
            "measured": len(found),
        }

    kept = []
    for k, outcome in enumerate(outcomes):
        if k > find_perfect(kept, 8):
            continue
        best = None if k == PAPER else find_best_validity(kept, 8, floor)
        parts = (row(k, outcome[:n]) for n in (*range(batch, 8, batch), 8))
        kept.append(next(r for r in parts if r["measured"] == 8 or cannot_win(r, 8, floor, best)))
    whole = choose([row(k, found) for k, found in enumerate(outcomes)], floor)
    got = choose([r for r in kept if r["measured"] == 8], floor)
    assert got[1] == whole[1] and (got[0] == whole[0] or whole[1])
    # without a setting at the floor, none is left early
    assert whole[1] is False or all(r["measured"] == 8 for r in kept)


def test_a_setting_that_cannot_win_is_left_early(case, tmp_path):
    tuner = build_tuner(case, tmp_path)
    whole = [tuner.measure(k) for k in range(6)]
    last = min(whole, key=lambda r: r["semantic_validity"])
    one = tuner.measure(last["number"], best=1.0)
    assert one["measured"] == 5 < whole[0]["measured"]
    assert whole[last["number"]]["items"].startswith(one["items"])
    assert tuner.measure(last["number"], best=0.0)["measured"] in (12, 5, 10)
    assert tuner.measure(0) == whole[0]
    record = tune(tuner, CONDITIONS, range(6), tmp_path / "record.json")
    for short in (r for r in record["rows"] if r["measured"] < 12):
        assert cannot_win(short, 12, 0.95, whole[record["chosen"]]["semantic_validity"])


def test_no_setting_is_begun_after_one_that_is_valid_on_all(case, tmp_path, monkeypatch, capsys):
    items = {0: "011", 1: "111", 2: "111"}
    row = {
        "flip_rate": 1.0,
        "measured": 12,
        "mean_change": 0.1,
        "used_factor_moved": 1.0,
        "unused_factor_moved": 0.0,
        "seconds_per_image": 1.0,
    }

    def measure(self, k, best):
        validity = items[k].count("1") / 3
        own = {"number": k, "settings": SETTINGS[k], "items": items[k] * 4}
        return row | own | {"semantic_validity": validity}

    monkeypatch.setattr(Tuner, "measure", measure)
    tuner = build_tuner(case, tmp_path)
    record = tune(tuner, CONDITIONS, range(6), tmp_path / "record.json")
    assert [r["number"] for r in record["rows"]] == [0, 1]
    assert record["chosen"] == 1 and record["left"] == []
    assert "setting 2: not begun, setting 1 is valid on all queries" in capsys.readouterr().out
    back = tune(tuner, CONDITIONS, [2, 1, 0], tmp_path / "back.json")  # in any order
    assert back["chosen"] == 1 and [r["number"] for r in back["rows"]] == [0, 1, 2]


@pytest.mark.parametrize("read", [1, 2])
def test_factors_that_the_oracle_cannot_read_do_not_count_as_moved(case, tmp_path, read):
    names = enumerate(Perfect.names)
    columns = {name: {"r2": 0.3 if k == 3 - read else 1.0} for k, name in names}
    oracle = Loaded(Perfect(), Card(quality={"columns": columns}))
    row = build_tuner(case, tmp_path, oracle=oracle).measure(0)
    expected, other = (
        measure_by_hand(case, SETTINGS[0], [k])["unused_factor_moved"] for k in (read, 3 - read)
    )
    assert row["unused_factor_moved"] == pytest.approx(expected) and expected != other


def test_a_killed_tuning_resumes(case, tmp_path, monkeypatch, capsys):
    """The clock counts how often it is read.

    Time is up after three batches of an attack and of setting 0, and two batches of setting 1.
    """
    path, unet = tmp_path / "record.json", case.prior.unet
    fresh = build_tuner(case, tmp_path / "whole")
    whole = tune(fresh, CONDITIONS, range(6), tmp_path / "whole.json")
    at_once, unet.calls = unet.calls, 0
    late = build_tuner(case, tmp_path, deadline=-1.0)
    assert tune(late, CONDITIONS, range(6), path) is None and not path.exists()
    with monkeypatch.context() as clock:
        clock.setattr(tuner_file, "time", SimpleNamespace(monotonic=itertools.count().__next__))
        cut = tune(build_tuner(case, tmp_path, deadline=10), CONDITIONS, range(6), path)
    assert [r["number"] for r in cut["rows"]] == [0] and cut["left"] == [1, 2, 3, 4, 5]
    assert "time is up before setting 1" in capsys.readouterr().out
    assert unet.calls == ATTACK + FINISH + NULL + 2 * FINISH // 3
    record = tune(build_tuner(case, tmp_path), CONDITIONS, range(6), path)
    assert unet.calls == at_once + NULL  # stored batches are not computed again
    assert record["rows"][0] == cut["rows"][0] and record["left"] == []
    assert [r["items"] for r in record["rows"]] == [r["items"] for r in whole["rows"]]
    unet.calls = 0
    assert tune(build_tuner(case, tmp_path), CONDITIONS, range(6), path) == record
    assert unet.calls == NULL


def test_a_record_keeps_rows_of_unchanged_settings(case, tmp_path):
    path = tmp_path / "record.json"
    tune(build_tuner(case, tmp_path), CONDITIONS, [0, 1], path)
    record = tune(build_tuner(case, tmp_path), CONDITIONS, [5], path)
    assert [r["number"] for r in record["rows"]] == [0, 1, 5] and record["left"] == [2, 3, 4]
    other = [SETTINGS[0], SETTINGS[1] | {"threshold": 0.5}, *SETTINGS[2:]]
    record = tune(build_tuner(case, tmp_path, grid=other), CONDITIONS, [5], path)
    assert [r["number"] for r in record["rows"]] == [0, 5]  # setting 1 has changed


def test_a_record_under_other_conditions_is_refused_or_dropped(case, tmp_path, capsys):
    path, tuner = tmp_path / "record.json", build_tuner(case, tmp_path)
    record = tune(tuner, CONDITIONS, [0, 5], path)
    with pytest.raises(ValueError, match="holds a record of n 12, got n 13; give another folder"):
        tune(tuner, CONDITIONS | {"n": 13}, [0], path)
    new = CONDITIONS | {"checkpoints": {"net": "a", "oracle": "c"}}
    assert find_changes(record, new) == ["oracle"] and find_changes(record, CONDITIONS) == []
    record = tune(tuner, new, [1], path)
    assert [r["number"] for r in record["rows"]] == [1] and record["difference"] is None
    assert "measured with another oracle" in capsys.readouterr().out


def test_a_bad_setting_is_an_error_before_any_record(case, tmp_path):
    tuner, path = (
        build_tuner(case, tmp_path, grid=[SETTINGS[0] | {"dilation": 2}]),
        tmp_path / "none.json",
    )
    with pytest.raises(ValueError, match="dilation: got 2, expected an odd number"):
        tune(tuner, CONDITIONS, [0], path)
    assert not path.exists()


def test_pasted_dime_reuses_the_searches_of_dime(case, tmp_path):
    search = {"spacing": "25", "steps": 3, "scales": (1.0,)}
    pasted = search | {"refine": ("25", 2), "threshold": 0.5, "dilation": 3}
    rows = slice(0, 5)
    build_tuner(case, tmp_path, "dime", [search]).explain(0, rows)
    case.prior.unet.calls = 0
    cfs, seconds = build_tuner(case, tmp_path, "dime_pasted", [pasted]).explain(0, rows)
    assert case.prior.unet.calls == 2  # those of the paste
    x, f, ids = case.data.x[rows], case.classifier, case.data.ids[rows]
    direct = DiME(prior=case.prior, pasted=True, **pasted)(f, x, 1 - f(x).argmax(1), ids)
    torch.testing.assert_close(cfs.counterfactual, direct.counterfactual, rtol=0, atol=1e-9)
    assert (seconds > cfs.seconds).all()
    fast = build_tuner(case, tmp_path, "fastdime", [search]).build(0)[1]
    assert fast.fast and not fast.pasted


class StripeModel(LatentModel):
    """Codes are the three stripes' values; noise and the child's echo are not encoded."""

    def encode(self, x):
        return read_stripes(x)

    def decode(self, z):
        x = torch.full((len(z), 3, 16, 16), LOW).to(z)
        for k, at in enumerate(STRIPES.values()):
            x[..., at] = LOW + SPAN * z[:, k, None, None, None]
        return x


def test_xgem_is_tuned_with_its_own_generator_and_the_null_of_its_zero_edit(case, tmp_path):
    grid = [{"lam": lam} for lam in (0.001, 0.1)]
    tuner = build_tuner(case, tmp_path, "xgem", grid, generator=StripeModel())
    f, x, factors = case.classifier, case.data.x, case.data.factors
    null = (read_stripes(StripeModel()(x)) - read_stripes(x)).square().mean(0).sqrt()
    for k, setting in enumerate(grid):
        cfs = XGEM(model=StripeModel(), tau=0.9, **setting)(f, x, 1 - f(x).argmax(1))
        change = read_stripes(cfs.counterfactual) - read_stripes(x)
        row, moved = tuner.measure(k), change.abs() > 2 * null
        assert row["settings"] == setting and row["measured"] == 12
        assert row["flip_rate"] == cfs.valid.double().mean()
        assert row["used_factor_moved"] == moved[:, 0].double().mean()
        edited = factors.move("left", (factors["left"] + change[:, 0].float()).clamp(0, 1))
        flipped = f(TOY.render(edited).double()).argmax(1) == cfs.target
        assert [int(c) for c in row["items"]] == (flipped & cfs.valid).int().tolist()
    assert case.prior.unet.calls == 0


def test_a_session_loads_the_vae_for_xgem_and_names_it_in_the_record(monkeypatch, tmp_path):
    loaded = []
    monkeypatch.setattr(checkpoints, "FOLDER", tmp_path)
    monkeypatch.setattr(
        checkpoints, "load", lambda name, device: loaded.append(name) or Loaded("a VAE", None)
    )
    for name in ("faces_smile_causal", "faces_ddpm", "faces_oracle", "faces_vae"):
        files.write_json(tmp_path / f"{name}.json", {"sha256": f"hash of {name}"})
    queries = session.Queries("faces", device="cpu")
    assert session._load_generator(queries, "xgem") == "a VAE" and loaded == ["faces_vae"]
    assert session._load_generator(queries, "ace") is None
    hashes = session._describe(queries, "xgem")["checkpoints"]
    assert hashes.keys() == {"faces_smile_causal", "faces_vae", "faces_oracle"}
    assert "faces_ddpm" in session._describe(queries, "ace")["checkpoints"]
    with pytest.raises(ValueError, match="--method: got 'xgem'"):
        session.list_settings("roads", "xgem")


# the session


@pytest.fixture
def stripes_session(case, tmp_path, monkeypatch):
    """The session's case, oracle, grid and checkpoints replaced; returns the calls for a case."""
    calls = []
    monkeypatch.setattr(cases, "rendered_case", lambda *given: calls.append(given) or case)
    oracle = Loaded(Perfect(), READS_ALL)
    monkeypatch.setattr(checkpoints, "load", lambda name, kind=None: oracle)
    monkeypatch.setattr(checkpoints, "FOLDER", tmp_path)
    monkeypatch.setenv("CF_RESULTS_ROOT", str(tmp_path / "run"))
    monkeypatch.setitem(GRIDS["faces"], "ace", SETTINGS)
    for name in ("faces_smile_causal", "faces_ddpm", "faces_oracle"):
        files.write_json(tmp_path / f"{name}.json", {"sha256": f"hash of {name}"})
    return calls


def test_a_session_writes_a_record_and_prints_it(stripes_session, tmp_path, capsys):
    queries = session.Queries("faces", n=12, batch=5, device="cpu")
    out = tmp_path / "out"
    assert session.measure(queries, "ace", "1, 0", out=out) == 0
    given = ("faces", "smile", "causal", 12, "validation", 0, torch.device("cpu"))
    assert stripes_session == [given]
    record = files.read_json(out / "faces_smile_causal_ace.json")
    assert record["checkpoints"]["faces_oracle"] == "hash of faces_oracle"
    assert record["left"] == [2, 3, 4, 5]
    assert record["n"] == 12 and record["method"] == "ace" and record["split"] == "validation"
    assert (tmp_path / "run" / "tuning" / "faces_smile_causal").is_dir()
    assert "not measured yet: [2, 3, 4, 5]" in capsys.readouterr().out
    assert session.measure(queries, "ace", limit_minutes=1e-9, out=out) == 1


def test_a_session_lists_the_settings():
    lines = session.list_settings("roads", "dime")
    assert len(lines) == 24 and "the paper" in lines[0] and "'steps': 45" in lines[0]


@pytest.mark.parametrize(
    ("queries", "options", "says"),
    [
        ({}, {"settings": "3,24"}, "numbers from 0 to 23"),
        ({}, {"settings": ""}, "numbers from 0 to 23"),
        ({}, {"limit_minutes": float("nan")}, "--limit-minutes: got nan"),
        ({"n": 0}, {}, "--n: got 0"),
        ({"kind": "fair"}, {}, "--kind: got 'fair'"),
        ({"world": "moon"}, {}, "world: got 'moon'"),
    ],
)
def test_a_session_refuses_bad_arguments_before_any_work(queries, options, says):
    with pytest.raises(ValueError, match=says):
        session.measure(session.Queries(**{"world": "faces"} | queries), "ace", **options)


def test_a_session_names_a_missing_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "FOLDER", tmp_path)
    with pytest.raises(FileNotFoundError, match="faces_oracle"):
        session.measure(session.Queries("faces"), "ace")


# the published records


PRESETS = {  # the record's method -> the preset that follows it
    "ace": lambda prior: presets.get("ace", "faces").build(prior=prior),
    "dime": lambda prior: presets.get("dime", "faces").build(prior=prior),
    "fastdime": lambda prior: presets.get("fastdime", "faces").build(prior=prior),
    "dime_pasted": lambda prior: presets.get("dime", "faces").build(prior=prior, pasted=True),
}


@pytest.mark.parametrize("path", RECORDS, ids=lambda p: p.stem)
def test_a_published_record_follows_the_rule_on_the_shipped_checkpoints(path):
    record = files.read_json(path)
    now = {name: checkpoints.read_card(name).sha256 for name in record["checkpoints"]}
    assert record["checkpoints"] == now and record["n"] == 64 and record["left"] == []
    assert choose(record["rows"], METHODS[record["method"]].floor)[0]["number"] == record["chosen"]
    grid = core.describe(GRIDS[record["world"]][record["method"]])
    begun = min(find_perfect(record["rows"], 64) + 1, len(grid))
    assert [r["number"] for r in record["rows"]] == list(range(begun))
    assert [r["settings"] for r in record["rows"]] == grid[:begun]


@pytest.mark.parametrize("method", PRESETS)
def test_the_presets_of_faces_are_what_the_records_chose(method):
    record = files.read_json(
        files.ROOT / "results" / "tuning" / f"faces_smile_causal_{method}.json"
    )
    prior, explainers = build_all("faces", method)
    chosen = explainers[record["chosen"]][1]
    if method in ("ace", "dime_pasted"):
        unused = set()
    elif chosen.own_mask:
        unused = {"refine"}
    else:
        unused = {"refine", "threshold", "dilation"}
    assert find_differences(PRESETS[method](prior), chosen) <= {"seed"} | unused
