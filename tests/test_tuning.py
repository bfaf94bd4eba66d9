"""The tuning rule on hand-made tables; the grids against the papers' presets; a tuning in a world of stripes against every number
computed by hand, killed and taken up again."""

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
from cf_utils.explainers.ace import ACE
from cf_utils.explainers.dime import DiME
from cf_utils.harness import cases
from cf_utils.models import checkpoints
from cf_utils.models.cards import Card
from cf_utils.models.checkpoints import Loaded
from cf_utils.models.generators import diffusion
from cf_utils.training.tuning import __main__ as command
from cf_utils.training.tuning import tuner as tuner_file
from cf_utils.training.tuning.grids import GRIDS, METHODS, PAPER, crossed, papers
from cf_utils.training.tuning.record import best_of, choose, lost, record_of, settled, shown, stale
from cf_utils.training.tuning.tuner import Tuner, tune
from tests.test_truth import LOW, SPAN, STRIPES, TOY, USES, Perfect, Stripe, data

RECORDS = sorted((files.ROOT / "results" / "tuning").glob("*.json"))


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
        (
            1,
            False,
            [(0.97, 0.5), (0.95, 0.6), (0.94, 0.9)],
        ),  # at the floor counts, under it does not
        (2, False, [(0.95, 0.6), (0.96, 0.5), (0.97, 0.6)]),  # as valid: more turned
        (1, False, [(0.97, 0.5), (0.97, 0.6), (0.97, 0.6)]),  # then the first
        (
            1,
            True,
            [(0.90, 0.9), (0.94, 0.1), (0.93, 0.9)],
        ),  # none there: most turned, and it is said
        (1, True, [(0.90, 0.4), (0.90, 0.5), (0.90, 0.5)]),
    ],
)
def test_the_rule(chosen, missed, measured):
    row, floor_missed = choose(rows(*measured), 0.95)
    assert (row["number"], floor_missed) == (chosen, missed)


def test_a_share_at_the_floor_is_at_the_floor_in_binary_too():
    for n in range(20, 2001, 20):
        assert (
            not choose(rows((19 * n // 20 / n, 0.5)), 0.95)[1]
            and not choose(rows((9 * n // 10 / n, 0.5)), 0.9)[1]
        )
    with pytest.raises(ValueError, match="rows: got none"):
        choose([], 0.9)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.sampled_from([0.0, 0.5, 0.9, 1.0])] * 2), min_size=1, max_size=6))
def test_nothing_eligible_beats_the_choice(measured):
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
    made_on = {"n": 64, "checkpoints": {}}
    items = ["01" * 32, "01" * 32, "1" * 32 + "01" * 16]
    record = record_of(made_on, rows((1.0, 0.5), (0.8, 0.5), (0.95, 0.75), items=items), 24, 0.9)
    assert (
        record["chosen"] == 2
        and record["paper"] == PAPER == 0
        and record["left"] == list(range(3, 24))
    )
    assert record["verdict"] == "floor reached" and record["floor"] == 0.9
    d = record["difference"]
    assert d["mean"] == 0.25 and d["n"] == 64  # 16 of 64 are turned for good besides
    half = 1.96 * (0.25 * 0.75 / 64) ** 0.5  # 0.106: paired; unpaired it would be 0.16
    assert (
        abs(d["low"] - (0.25 - half)) < 0.02 and abs(d["high"] - (0.25 + half)) < 0.02
    )  # measured 0.141, 0.359
    same = record_of(made_on, rows((1.0, 0.5), (1.0, 0.5), items=items[:2]), 2, 0.9)
    assert (
        same["chosen"] == 0
        and same["difference"] == {"mean": 0.0, "low": 0.0, "high": 0.0, "n": 64}
        and not same["left"]
    )
    low = rows((0.1, 0.0), (0.8, 0.5), items=items[:2])
    assert record_of(made_on, low, 2, 0.9)["verdict"] == "floor missed"
    assert (
        record_of(made_on, low[1:], 2, 0.9)["difference"] is None
    )  # the paper's is not measured yet
    solid = rows((1.0, 0.5), (1.0, 0.5), (1.0, 1.0), items=["01" * 32, "01" * 32, "1" * 64])
    assert record_of(made_on, solid, 24, 0.9)["left"] == []  # none of the others can be better,
    assert record_of(made_on, solid[::2], 24, 0.9)["left"] == [
        1
    ]  # one before it as good, and then it is chosen


# the grids

SIZES = {"faces": (64, 64), "roads": (64, 128)}
PAPERS = {
    "faces": {"ace": ACE.celeba, "dime": DiME.celeba, "fastdime": DiME.fastdime},
    "roads": {"ace": ACE.bdd, "dime": DiME.bdd, "fastdime": DiME.fastdime},
}


class Silent(nn.Module):
    """A UNet that guesses no noise, and counts its calls."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, z, t):
        self.calls += 1
        return SimpleNamespace(sample=torch.zeros_like(z))


def both(world, method):
    """(shared search, whole) of each setting, with a prior of the world's size."""
    prior = diffusion.DDPM(Silent(), SIZES[world], 500)
    return prior, [METHODS[method].explainers(prior, 3, s) for s in GRIDS[world][method]]


def differ(a, b):
    a, b = core.describe(a), core.describe(b)
    assert a.keys() == b.keys()
    return {k for k in a if a[k] != b[k]}


@pytest.mark.parametrize("world", GRIDS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_24_settings_that_its_explainer_takes(world, method):
    prior, explainers = both(world, method)
    x = torch.full((1, 3, *SIZES[world]), 0.5)
    assert (
        GRIDS[world].keys() == METHODS.keys() and len(explainers) == 24
    )  # at most 24, and for all as many
    assert len({str(core.describe(whole)) for _, whole in explainers}) == 24
    for explain in (e for pair in explainers for e in pair if e is not None):
        explain.check(x, torch.zeros(1, 2))
        assert explain.seed == 3 and explain.prior is prior
    assert METHODS[method].floor == (0.95 if method == "ace" else 0.9)


@pytest.mark.parametrize("world", GRIDS)
def test_the_first_setting_is_the_papers(world):
    for method, preset in PAPERS[world].items():
        prior, explainers = both(world, method)
        unused = {"refine", "threshold"} if method == "dime" else set()  # only a paste uses them
        assert differ(explainers[PAPER][1], preset(prior, seed=3)) <= {"dilation"} | unused
        assert not differ(papers(world, method, prior, 3), explainers[PAPER][1])
    pasted, ace = both(world, "dime_pasted")[1][PAPER][1], both(world, "ace")[1][PAPER][1]
    assert (
        differ(pasted, both(world, "dime")[1][PAPER][1])
        <= {"pasted", "refine", "threshold", "dilation"}
        and pasted.pasted
    )
    assert (pasted.refine, pasted.threshold, pasted.dilation) == (
        (ace.spacing, ace.steps),
        ace.threshold,
        ace.dilation,
    )
    assert ace.dilation == {"faces": 7, "roads": 3}[world]  # 15 of 128 and of 256 rows


@pytest.mark.parametrize("world", GRIDS)
def test_the_preset_is_among_them(world):
    prior, explainers = both(world, "ace")
    preset = getattr(ACE, world)(prior, seed=3)
    assert [k for k, (_, whole) in enumerate(explainers) if not differ(whole, preset)]


@pytest.mark.parametrize("world", GRIDS)
def test_searches_are_shared(world):
    attacks = {str(core.describe(search)) for search, _ in both(world, "ace")[1]}
    assert len(attacks) == 6
    asked = {str(core.describe(search)) for search, _ in both(world, "dime_pasted")[1]}
    assert len(asked) == 4 and asked <= {
        str(core.describe(whole)) for _, whole in both(world, "dime")[1]
    }
    assert all(search is None for m in ("dime", "fastdime") for search, _ in both(world, m)[1])


# a tuning

SETTINGS = crossed(
    [{"spacing": "25", "steps": 2, "iterations": 3, "step": 0.04}],
    [{"lam": v} for v in (0.003, 0.03, 0.2)],
    [{"threshold": t, "dilation": 1} for t in (0.3, 0.95)],
)
ATTACK, FINISH, NULL = 3 * 3 * 2, 3 * 2, 3 * 2  # calls of the prior: batches x iterations x steps
MADE_ON = {"world": "stripes", "n": 12, "seed": 0, "checkpoints": {"net": "a", "oracle": "b"}}


@pytest.fixture
def case():
    """Twelve renders of stripes, and a classifier that a change of the left one turns, helped by a pattern that nothing makes."""
    found = data(12)
    found = dataclasses.replace(found, x=found.x.double())
    return cases.Case(
        "stripes",
        found,
        Stripe(brittle=40.0),
        diffusion.DDPM(Silent(), (16, 16), 50),
        None,
        None,
        None,
        USES,
    )


READS_ALL = Card(quality={"columns": {name: {"r2": 1.0} for name in Perfect.names}})


def tuner_of(case, folder, method="ace", grid=SETTINGS, **changes):
    return Tuner(
        case=case,
        oracle=Loaded(Perfect(), READS_ALL),
        method=method,
        grid=grid,
        folder=folder / "batches",
        batch=5,
        **changes,
    )


def reading(x):
    return torch.stack([(x[..., at].flatten(1).mean(1) - LOW) / SPAN for at in STRIPES.values()], 1)


def by_hand(case, setting, read=(1, 2)):
    """(flip rate, semantic validity of each, mean change, share of used moved, of unused moved) with no batches and no cache;
    `read`: the unused stripes that the oracle can read."""
    f, x, ids, factors = case.classifier, case.data.x, case.data.ids, case.data.factors
    cfs = ACE(prior=case.prior, **setting)(f, x, 1 - f(x).argmax(1), ids)
    same = case.prior.chain(setting["spacing"]).filter(
        x, setting["steps"], diffusion.noise_of(0, ids, x, "null")
    )
    null = (reading(same) - reading(x)).square().mean(0).sqrt()
    change = reading(cfs.counterfactual) - reading(x)
    moved = change.abs() > 2 * null
    for k, name in enumerate(STRIPES):
        factors = factors.move(
            name,
            torch.where(moved[:, k], factors[name] + change[:, k].float(), factors[name]).clamp(
                0, 1
            ),
        )
    turned = f(TOY.render(factors).double()).argmax(1) == cfs.target
    size = (cfs.counterfactual - x).abs().mean((1, 2, 3))
    return (
        cfs.valid.double().mean(),
        (turned & cfs.valid).double(),
        size[cfs.valid].mean(),
        moved[:, 0].double().mean(),
        moved[:, read].double().mean(),
    )


def test_a_tuning_measures_what_it_says(case, tmp_path):
    tuner, path = tuner_of(case, tmp_path), tmp_path / "record.json"
    measured = [tuner.row(k) for k in range(6)]
    assert case.prior.unet.calls == 3 * ATTACK + 6 * FINISH + NULL  # three attacks for six settings
    for k, row in enumerate(measured):
        flip, solid, change, used, unused = by_hand(case, SETTINGS[k])
        assert (
            row["number"] == k
            and row["settings"] == SETTINGS[k]
            and row["flip_rate"] == flip
            and row["measured"] == 12
        )
        assert [int(c) for c in row["items"]] == solid.tolist() and row[
            "semantic_validity"
        ] == pytest.approx(solid.mean().item())
        found = [row[name] for name in ("mean_change", "used_factor_moved", "unused_factor_moved")]
        assert found == pytest.approx([change.item(), used.item(), unused.item()], rel=1e-9)
    found = {(r["flip_rate"], r["semantic_validity"]) for r in measured}
    assert len(found) >= 3 and any(sv < fr for fr, sv in found), (
        found
    )  # the settings differ: the test above says something
    record = tune(tuner, MADE_ON, range(6), path)
    assert (
        files.read_json(path) == record
        and record["left"] == []
        and record["queries"] == files.sha256(case.data.x)[:16]
    )
    chosen = choose(measured, 0.95)
    assert (record["chosen"], record["verdict"] == "floor missed") == (
        chosen[0]["number"],
        chosen[1],
    )
    table = shown(record).splitlines()
    assert len(table) == 8 and "chosen" in table[1] and record["verdict"] in table[-1]
    assert record["chosen"] == 0 or "paper" in table[2]
    batches = [slice(at, at + 5) for at in (0, 5, 10)]
    seconds = [
        torch.cat([tuner.explained(0, b)[1] for b in batches]),
        torch.cat([tuner._kept(tuner.explainers(0)[0], b).seconds for b in batches]),
    ]
    assert (seconds[0] > seconds[1]).all() and (
        seconds[1] > 0
    ).all()  # a setting's time holds its attack's
    assert measured[0]["seconds_per_image"] == pytest.approx(seconds[0].mean().item())


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
def test_leaving_what_has_lost_leaves_the_choice(outcomes, floor, batch):
    """(turned, valid) of eight queries for each setting: whatever they are, the setting chosen is that of measuring all."""

    def row(k, found):
        fr, sv = (sum(one[j] for one in found) / len(found) for j in (0, 1))
        return {"number": k, "flip_rate": fr, "semantic_validity": sv, "measured": len(found)}

    kept = []
    for k, all_of_it in enumerate(outcomes):
        if k > settled(kept, 8):
            continue
        best = None if k == PAPER else best_of(kept, 8, floor)
        parts = (row(k, all_of_it[:n]) for n in (*range(batch, 8, batch), 8))
        kept.append(next(r for r in parts if r["measured"] == 8 or lost(r, 8, floor, best)))
    whole = choose([row(k, found) for k, found in enumerate(outcomes)], floor)
    got = choose([r for r in kept if r["measured"] == 8], floor)
    assert got[1] == whole[1] and (got[0] == whole[0] or whole[1])
    assert whole[1] is False or all(r["measured"] == 8 for r in kept)  # with no best, none is left


def test_a_setting_that_has_lost_is_left(case, tmp_path):
    tuner = tuner_of(case, tmp_path)
    whole = [tuner.row(k) for k in range(6)]
    last = min(whole, key=lambda r: r["semantic_validity"])
    one = tuner.row(last["number"], best=1.0)
    assert one["measured"] == 5 < whole[0]["measured"] and whole[last["number"]][
        "items"
    ].startswith(one["items"])
    assert (
        tuner.row(last["number"], best=0.0)["measured"] in (12, 5, 10) and tuner.row(0) == whole[0]
    )
    record = tune(tuner, MADE_ON, range(6), tmp_path / "record.json")
    for short in (r for r in record["rows"] if r["measured"] < 12):
        assert lost(short, 12, 0.95, whole[record["chosen"]]["semantic_validity"])


def test_none_is_begun_after_a_setting_that_is_valid_on_all(case, tmp_path, monkeypatch, capsys):
    rows_of = {0: "011", 1: "111", 2: "111"}
    row = {
        "flip_rate": 1.0,
        "measured": 12,
        "mean_change": 0.1,
        "used_factor_moved": 1.0,
        "unused_factor_moved": 0.0,
        "seconds_per_image": 1.0,
    }
    monkeypatch.setattr(
        Tuner,
        "row",
        lambda self, k, best: (
            row
            | {
                "number": k,
                "settings": SETTINGS[k],
                "items": rows_of[k] * 4,
                "semantic_validity": rows_of[k].count("1") / 3,
            }
        ),
    )
    record = tune(tuner_of(case, tmp_path), MADE_ON, range(6), tmp_path / "record.json")
    assert (
        [r["number"] for r in record["rows"]] == [0, 1]
        and record["chosen"] == 1
        and record["left"] == []
    )
    assert "setting 2: not begun, setting 1 is valid on all queries" in capsys.readouterr().out
    back = tune(
        tuner_of(case, tmp_path), MADE_ON, [2, 1, 0], tmp_path / "back.json"
    )  # whatever comes first
    assert back["chosen"] == 1 and [r["number"] for r in back["rows"]] == [0, 1, 2]


@pytest.mark.parametrize("read", [1, 2])
def test_what_the_oracle_cannot_read_is_not_counted_as_moved(case, tmp_path, read):
    oracle = Perfect()
    columns = {name: {"r2": 0.3 if k == 3 - read else 1.0} for k, name in enumerate(oracle.names)}
    oracle = Loaded(oracle, Card(quality={"columns": columns}))
    row = Tuner(
        case=case, oracle=oracle, method="ace", grid=SETTINGS, folder=tmp_path, batch=5
    ).row(0)
    asked = [by_hand(case, SETTINGS[0], [k])[-1].item() for k in (read, 3 - read)]
    assert row["unused_factor_moved"] == pytest.approx(asked[0]) and asked[0] != asked[1]


def test_a_killed_tuning_goes_on(case, tmp_path, monkeypatch, capsys):
    """The clock counts looks: 3 batches of an attack and of setting 0, the first two of both for setting 1."""
    path, unet = tmp_path / "record.json", case.prior.unet
    whole = tune(tuner_of(case, tmp_path / "whole"), MADE_ON, range(6), tmp_path / "whole.json")
    at_once, unet.calls = unet.calls, 0
    assert (
        tune(tuner_of(case, tmp_path, deadline=-1.0), MADE_ON, range(6), path) is None
        and not path.exists()
    )
    with monkeypatch.context() as clock:
        clock.setattr(tuner_file, "time", SimpleNamespace(monotonic=itertools.count().__next__))
        cut = tune(tuner_of(case, tmp_path, deadline=10), MADE_ON, range(6), path)
    assert [r["number"] for r in cut["rows"]] == [0] and cut["left"] == [1, 2, 3, 4, 5]
    assert "time is up before setting 1" in capsys.readouterr().out
    assert unet.calls == ATTACK + FINISH + NULL + 2 * FINISH // 3
    record = tune(tuner_of(case, tmp_path), MADE_ON, range(6), path)
    assert unet.calls == at_once + NULL  # what was made is not made again
    assert record["rows"][0] == cut["rows"][0] and record["left"] == []
    assert [r["items"] for r in record["rows"]] == [r["items"] for r in whole["rows"]]
    unet.calls = 0
    assert tune(tuner_of(case, tmp_path), MADE_ON, range(6), path) == record and unet.calls == NULL


def test_a_record_keeps_the_rows_that_still_hold(case, tmp_path, capsys):
    path = tmp_path / "record.json"
    tune(tuner_of(case, tmp_path), MADE_ON, [0, 1], path)
    record = tune(tuner_of(case, tmp_path), MADE_ON, [5], path)
    assert [r["number"] for r in record["rows"]] == [0, 1, 5] and record["left"] == [2, 3, 4]
    other = [SETTINGS[0], SETTINGS[1] | {"threshold": 0.5}, *SETTINGS[2:]]
    record = tune(tuner_of(case, tmp_path, grid=other), MADE_ON, [5], path)
    assert [r["number"] for r in record["rows"]] == [0, 5]  # setting 1 is another one now
    with pytest.raises(ValueError, match="holds a record of n 12, got n 13; give another folder"):
        tune(tuner_of(case, tmp_path), MADE_ON | {"n": 13}, [0], path)
    new = MADE_ON | {"checkpoints": {"net": "a", "oracle": "c"}}
    assert stale(record, new) == ["oracle"] and stale(record, MADE_ON) == []
    record = tune(tuner_of(case, tmp_path), new, [1], path)
    assert [r["number"] for r in record["rows"]] == [1] and record["difference"] is None
    assert "measured with another oracle" in capsys.readouterr().out
    with pytest.raises(ValueError, match="dilation: got 2, expected an odd number"):
        tune(
            tuner_of(case, tmp_path, grid=[SETTINGS[0] | {"dilation": 2}]),
            new,
            [0],
            tmp_path / "none.json",
        )
    assert not (tmp_path / "none.json").exists()


def test_pasted_takes_dimes_searches(case, tmp_path):
    search = {"spacing": "25", "steps": 3, "scales": (1.0,)}
    pasted = search | {"refine": ("25", 2), "threshold": 0.5, "dilation": 3}
    rows = slice(0, 5)
    tuner_of(case, tmp_path, "dime", [search]).explained(0, rows)
    case.prior.unet.calls = 0
    cfs, seconds = tuner_of(case, tmp_path, "dime_pasted", [pasted]).explained(0, rows)
    assert case.prior.unet.calls == 2  # the paste's: no search
    x, f = case.data.x[rows], case.classifier
    direct = DiME(prior=case.prior, pasted=True, **pasted)(
        f, x, 1 - f(x).argmax(1), case.data.ids[rows]
    )
    torch.testing.assert_close(cfs.counterfactual, direct.counterfactual, rtol=0, atol=1e-9)
    assert (seconds > cfs.seconds).all()
    fast = tuner_of(case, tmp_path, "fastdime", [search]).explainers(0)[1]
    assert fast.fast and not fast.pasted


# the command


def test_the_command_writes_a_record_and_prints_it(case, tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(cases, "rendered_case", lambda *given: asked.append(given) or case)
    monkeypatch.setattr(checkpoints, "load", lambda name, kind: Loaded(Perfect(), READS_ALL))
    monkeypatch.setattr(checkpoints, "FOLDER", tmp_path)
    monkeypatch.setenv("CF_RESULTS_ROOT", str(tmp_path / "run"))
    monkeypatch.setitem(GRIDS["faces"], "ace", SETTINGS)
    for name in ("faces_smile_causal", "faces_ddpm", "faces_oracle"):
        files.write_json(tmp_path / f"{name}.json", {"sha256": f"hash of {name}"})
    out = ["--out", str(tmp_path / "out"), "--n", "12", "--batch", "5", "--device", "cpu"]
    assert command.main(["faces", "--method", "ace", "--settings", "1, 0", *out]) == 0
    assert asked == [("faces", "smile", "causal", 12, "validation", 0, torch.device("cpu"))]
    record = files.read_json(tmp_path / "out" / "faces_smile_causal_ace.json")
    assert record["checkpoints"]["faces_oracle"] == "hash of faces_oracle" and record["left"] == [
        2,
        3,
        4,
        5,
    ]
    assert record["n"] == 12 and record["method"] == "ace" and record["split"] == "validation"
    assert (tmp_path / "run" / "tuning" / "faces_smile_causal").is_dir()
    assert "not measured yet: [2, 3, 4, 5]" in capsys.readouterr().out
    assert command.main(["faces", "--method", "ace", "--limit-minutes", "1e-9", *out]) == 1


def test_the_command_refuses_before_any_work(tmp_path, monkeypatch, capsys):
    assert command.main(["roads", "--method", "dime", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 24 and "the paper" in lines[0] and "'steps': 45" in lines[0]
    for options, said in (
        (["--settings", "3,24"], "numbers from 0 to 23"),
        (["--settings", ""], "numbers from 0 to 23"),
        (["--n", "0"], "expected over 0"),
        (["--limit-minutes", "nan"], "expected over 0"),
        (["--kind", "fair"], "invalid choice"),
    ):
        with pytest.raises(SystemExit):
            command.main(["faces", "--method", "ace", *options])
        assert said in capsys.readouterr().err
    monkeypatch.setattr(checkpoints, "FOLDER", tmp_path)
    with pytest.raises(FileNotFoundError, match="faces_oracle"):
        command.main(["faces", "--method", "ace"])


@pytest.mark.parametrize("path", RECORDS, ids=lambda p: p.stem)
def test_a_published_record_stands_on_the_shipped_checkpoints(path):
    record = files.read_json(path)
    now = {
        name: checkpoints.read_card(name).sha256
        for name in record["checkpoints"]
    }
    assert record["checkpoints"] == now and record["n"] == 64 and record["left"] == []
    assert choose(record["rows"], METHODS[record["method"]].floor)[0]["number"] == record["chosen"]
    preset = {
        ("faces", "ace"): ACE.faces,
        ("faces", "dime"): DiME.faces,  # ACE.roads: by hand, see there
        ("faces", "fastdime"): lambda prior: DiME.faces(prior, fast=True),
        ("faces", "dime_pasted"): lambda prior: DiME.faces(prior, pasted=True),
    }.get((record["world"], record["method"]))
    if preset is not None:  # what is explained with is what was chosen
        prior, explainers = both(record["world"], record["method"])
        chosen = explainers[record["chosen"]][1]
        finished = record["method"] in ("ace", "dime_pasted")
        unused = (
            set()
            if finished
            else {"refine"}
            if chosen.own_mask
            else {"refine", "threshold", "dilation"}
        )
        assert differ(preset(prior), chosen) <= {"seed"} | unused
    grid = core.describe(GRIDS[record["world"]][record["method"]])
    assert [r["number"] for r in record["rows"]] == list(
        range(min(settled(record["rows"], 64) + 1, len(grid)))
    )
    assert [r["settings"] for r in record["rows"]] == grid[: len(record["rows"])]
