"""What is measured about explanations of roads: tables by hand, and the shipped networks."""

from __future__ import annotations

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from cf_utils.evaluation.truth import map_tables
from cf_utils.evaluation.truth.displacement import Displacement
from cf_utils.harness import road_arms, road_cases, road_drivers, road_truth
from cf_utils.viz import scenes
from tests.test_notebook_helpers import make_result
from tests.test_road_cases import photographs, shipped


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def corner(n=2):
    """A region of two of eight pixels, (n, 1, 2, 4)."""
    region = torch.zeros(n, 1, 2, 4, dtype=torch.bool)
    region[:, :, 0, :2] = True
    return region


# ---------------------------------------------------------------- map_tables


def test_maps_are_compared_by_share_area_and_rank():
    region = corner(3)
    region[2] = False  # no region: counts nowhere
    exact, even, empty = region[:, 0].double(), torch.ones(3, 2, 4), torch.zeros(3, 2, 4)
    empty[0, 1, 3] = 1.0  # one pixel outside
    table = map_tables.compare_maps({"exact": exact, "even": even, "empty": empty}, region)
    assert table["share inside"].tolist() == [1.0, 0.25, 0.0]
    assert table["pixel AUROC"].tolist() == pytest.approx([1.0, 0.5, (5 / 12 + 0.5) / 2])
    assert table["area"].tolist() == [0.25] * 3 and table["n"].tolist() == [2] * 3
    assert table["n, share"].tolist() == [2, 2, 1]  # an empty map has no share


def test_masks_of_explanations_are_compared_on_the_same_region():
    query = torch.zeros(2, 3, 2, 4)
    cf, mask = query.clone(), torch.zeros(2, 3, 2, 4, dtype=torch.bool)
    cf[:, :, 0, :2], mask[:, :, 0] = 0.5, True
    cfs = make_result(query, cf, torch.ones(2, dtype=torch.int64), valid=[True, False])
    table = map_tables.compare_masks({"narrow": replace(cfs, mask=mask)}, corner())
    assert table.loc["narrow"].to_dict() == {
        "turned": 0.5,
        "area of the mask": 0.5,
        "share inside": 1.0,
        "pixel AUROC": 1.0,
        "n": 2,
    }


def test_values_are_averaged_over_kinds_of_scene():
    items = pd.DataFrame({"turned": [1.0, 0.0, 1.0], "pixel AUROC": [0.9, np.nan, 0.5]})
    kinds = pd.Series(["lamp", "lamp", "person"], name="scene")
    largest = pd.Series([0.2, 0.6, 0.4, 0.1], index=["lamp", "lamp", "lamp", "person"])
    table = map_tables.scene_table(items, kinds, pd.Series([1.0, 0.0, 1.0]), largest)
    assert table.loc["lamp", "turned"] == 0.5 and table.loc["lamp", "pixel AUROC"] == 0.9
    assert table["ceiling"].to_dict() == {"lamp": 0.5, "person": 1.0}
    assert table["n"].to_dict() == {"lamp": 2, "person": 1}
    assert table["n, region"].to_dict() == {"lamp": 1, "person": 1}
    assert table["largest true change"].to_dict() == pytest.approx({"lamp": 0.4, "person": 0.1})


def test_the_rest_of_the_region_counts_neither_for_nor_against_a_map():
    region = corner(1)
    needed = region.clone()
    needed[..., 0, 1] = False  # the second pixel of the region is not needed
    ace = torch.zeros(1, 2, 4)
    ace[0, 0, 0], ace[0, 1, 3] = 1.0, 0.5  # finds the needed pixel, and one outside
    parts = map_tables.decisive_parts({"ACE": ace, "the renderer": ace}, region, needed).iloc[0]
    assert parts["area"] == 0.25 and parts["area, decisive part"] == 0.125
    assert parts["of the decisive part"] == parts["the renderer's"] == 1.0
    assert parts["pixel AUROC"] == pytest.approx((6 + 5 * 0.5) / 12)


def test_a_reader_follows_all_explanations_or_those_towards_one_class():
    follows = {"A": torch.tensor([True, True, False]), "B": torch.zeros(3, dtype=torch.bool)}
    target = torch.tensor([0, 1, 1])
    table = map_tables.follow_table(follows, target, ("go", "stop"))
    assert table.loc["A"].to_dict() == pytest.approx(
        {"all": 2 / 3, "to go": 1.0, "to stop": 0.5, "n": 3}
    )
    assert (table.loc["B", ["all", "to go", "to stop"]] == 0).all()
    assert np.isnan(map_tables.follow_table(follows, target * 0, ("go", "stop"))["to stop"]["A"])


def displacement_of(moved, unreadable=None):
    moved = torch.tensor(moved)
    unreadable = torch.zeros_like(moved) if unreadable is None else torch.tensor(unreadable)
    return Displacement(
        ("red", "scene=0", "scene=1"),
        torch.zeros(moved.shape),
        moved,
        moved,
        unreadable,
        torch.zeros(len(moved), dtype=torch.bool),
    )


def test_a_factor_moves_in_a_share_of_the_valid_explanations():
    read = displacement_of([[1, 0, 1], [1, 0, 0], [0, 0, 0]])
    read = replace(read, moved=read.moved.bool(), unreadable=read.unreadable.bool())
    valid = torch.tensor([True, False, True])
    share = map_tables.share_moved(read, valid, ["red", "scene"])
    assert share.to_dict() == {"red": 0.5, "scene": 0.5}  # the second row is not valid
    assert map_tables.share_moved(read, valid & False, ["red"])["red"] == 0.0


class World:
    """Renders two factors as two pixels."""

    def render(self, factors):
        return torch.stack([factors.a, factors.b], 1)


class Two:
    """Factors a and b of N scenes."""

    def __init__(self, a, b):
        self.a, self.b, self.world = a, b, World()

    def __len__(self):
        return len(self.a)

    def move(self, name, value):
        other = Two(self.a, self.b)
        setattr(other, name, torch.full_like(self.a, value))
        return other


class Sum(nn.Module):
    """Class 1 where the weighted sum of two pixels exceeds 0.5."""

    def __init__(self, *weights):
        super().__init__()
        self.register_buffer("weights", torch.tensor(weights))

    def forward(self, x):
        z = x @ self.weights - 0.5
        return torch.stack([-z, z], 1)


def test_only_factors_that_a_classifier_uses_flip_it_alone():
    factors = Two(torch.tensor([0.2, 0.9, 0.4]), torch.tensor([0.0, 1.0, 0.0]))
    both = {"of a": Sum(1.0, 0.0), "of both": Sum(0.5, 0.4)}
    asked = {"a": ("a",), "b": ("b",), "a and b": ("a", "b")}
    table = map_tables.flip_alone(both, factors, asked)
    assert table["of a"].to_dict() == {"a": 1.0, "b": 0.0, "a and b": 1.0}
    assert table["of both"].to_dict() == pytest.approx({"a": 1 / 3, "b": 2 / 3, "a and b": 1.0})
    assert table["n"].tolist() == [3] * 3


# ---------------------------------------------------------------- road_arms


def test_the_window_counts_kept_decisions_and_attacks_that_are_undone():
    query, target = torch.tensor([[0.0], [0.1], [0.9]]), torch.tensor([1, 1, 0])
    pgd = make_result(query, torch.tensor([[0.6], [0.7], [0.8]]), target, [True, True, False])

    def decide(x):
        return (x[:, 0] > 0.5).long()

    def filtered(x, ids, steps):  # moves towards 0: undoes the attack, then changes decisions
        assert len(ids) == len(x)
        return x - 0.15 * steps

    table = road_arms.filter_window(pgd, decide, filtered, {1: 0.1, 2: 0.2, 3: 0.3})
    assert table["decisions kept"].tolist() == pytest.approx([1, 1, 2 / 3])
    assert table["PGD undone"].tolist() == [0.5, 1.0, 1.0]
    assert table["sd of the noise"].tolist() == [0.1, 0.2, 0.3] and table.index.name == "steps"
    assert table["n"].tolist() == [3] * 3 and table["n_pgd"].tolist() == [2] * 3


class Recorder:
    """A run that records what it is asked to explain; returns None, as in a shard."""

    def __init__(self, shard):
        self.shard, self.asked = shard, {}

    def explain(self, name, explainer, classifier, x, target, ids, batch_size):
        assert torch.equal(target, 1 - classifier(x).argmax(1)) and len(x) == len(ids)
        self.asked[name] = len(x)


def test_a_shard_makes_the_batches_of_all_searches_and_the_whole_run_none(monkeypatch):
    case = photographs(6, dataset="roads", truth=object())
    second = photographs(5)
    monkeypatch.setattr(road_arms, "second_driver", lambda case, seed: second)
    explain, whole, shard = case.ace(1, "l1", 0), Recorder((1, 1)), Recorder((1, 4))
    road_arms.run_shard(whole, case, explain, 0)
    road_arms.run_shard(shard, case, explain, 0)
    n = case.sizes
    attacks = {"ace_sig": n.n_attacks, "ace_bdd": n.n_attacks, "dime": n.n_dime}
    assert whole.asked == {} and shard.asked == {"ace": 6, **attacks, "shortcut": 5}
    assert road_arms.explain_rivals(shard, case, explain, 0) == {}  # a shard gets nothing
    assert road_arms.explain_second(whole, case, explain, None) is None and not whole.asked


def test_methods_on_photographs_are_compared_by_what_needs_no_truth():
    case = photographs(3)
    explain = case.ace(1, "l1", 0)
    cfs = make_result(case.data.x, case.data.x + 0.25, 1 - case.data.y, [True, False, True])
    found = {road_arms.OURS: cfs, "DiME": cfs.select([0, 2, 1])}
    table = road_arms.compare_methods(case, None, found, explain, 0)
    assert list(table.index) == list(found) and table["n"].tolist() == [3, 3]
    assert table["turned"].tolist() == pytest.approx([2 / 3] * 2)
    assert table["mean change"].tolist() == pytest.approx([0.25] * 2)
    assert list(table) == ["n", "turned", "mean change", "seconds", "UNet passes"]
    metrics = road_arms.method_metrics(table.rename(index={"DiME": "PGD"}))
    assert metrics["unet_passes_descent"] == 0 and metrics["n_descent"] == 3
    assert all(name.endswith("_descent") for name in metrics)  # baselines have no metrics


@pytest.mark.parametrize(
    ("dataset", "label", "table", "column"),
    [
        ("bdd", "action", "table3", "BDD-OIA"),
        ("bdd100k", "action", "table3", "BDD100k"),
        ("imagenet", "zebra-sorrel", "table4", "zebra-sorrel"),
    ],
)
def test_the_papers_columns_have_our_metrics_and_units(dataset, label, table, column):
    name, theirs = road_arms.reported_columns(dataset, label)
    assert name == table and all(column in c for c in theirs) and len(theirs.columns) >= 2
    assert {"fid", "sfid", "s3", "cout", "fr"} <= set(theirs.index)
    assert theirs.loc["fr"].dropna().between(0.1, 1).all()


# ---------------------------------------------------------------- nothing known


def test_photographs_have_empty_tables():
    case = photographs(2)
    explain = case.ace(1, "l1", 0)
    cfs = make_result(case.data.x, case.data.x, 1 - case.data.y)
    known = road_truth.consult_renderer(case, cfs)
    maps = road_truth.collect_maps(case, known, explain, 0)
    assert known is None and maps == {}
    for table, metrics in (
        road_truth.locate(maps, known),
        road_truth.compare_masks({"7 pixels": cfs}, known),
    ):
        assert table.empty and metrics == {}


# ---------------------------------------------------------------- shipped networks


def half_euclidean(net, a, b):
    assert net == "net"
    return 0.5 * (a - b).double().flatten(1).norm(dim=1)


@pytest.fixture(scope="module")
def solved():
    """Three roads, and ACE's answers to them after a single step."""
    case = road_cases.load_case("bdd", "", "action", 3, "demo")
    small = replace(case.sizes, n_fresh=4, n_null=2, n_shortcut=2, n_dreamt=2)
    case = replace(case, sizes=small)
    explain = case.ace(1, "l1", 0).with_(step=0.6)
    x, ids = case.data.x, case.data.ids
    cfs = explain(case.classifier, x, 1 - case.decide(x), ids)
    return case, explain, cfs, road_truth.consult_renderer(case, cfs)


@shipped
def test_the_renderers_own_map_lies_in_the_true_region(solved):
    case, explain, cfs, known = solved
    maps = road_truth.collect_maps(case, known, explain, 0)
    where, metrics = road_truth.locate(maps, known)
    assert where.loc["the renderer", "pixel AUROC"] > 0.99
    assert where["share inside"].idxmax() == "the renderer"
    assert metrics["pixel_auroc_gradcam"] == where.loc["Grad-CAM", "pixel AUROC"]
    assert metrics["pixel_auroc"] == where.loc["ACE", "pixel AUROC"]
    assert metrics["region_area"] == pytest.approx(known.region.double().mean().item(), rel=0.5)
    torch.testing.assert_close(maps["ACE, of another query"][0], maps["ACE"][-1])
    assert (maps["random mask"].sum((1, 2)) == cfs.mask[:, 0].sum((1, 2))).all()
    changed = (known.change.abs().amax(1, keepdim=True) > 0.2) & known.regions
    assert changed.flatten(1).any(1).any()
    drawn = {"true region": known.region[:, 0], "ACE": maps["ACE"]}
    fig = scenes.overlay_grid(cfs.query, drawn, ["a", "b", "c"])
    assert [ax.get_title() for ax in fig.axes[:3]] == ["a", "b", "c"] and len(fig.axes) == 9


@shipped
def test_tables_hold_baselines_whose_values_are_known(solved, monkeypatch):
    case, explain, _, known = solved
    case.__dict__["lpips"] = "net"  # a cached property
    monkeypatch.setattr(road_truth.perceptual, "lpips_distance", half_euclidean)
    read = road_truth.read_factors(case, known, explain, 0)
    truth, judged = read.average(), road_truth.ask_judge(case, known)
    assert list(truth.index) == ["ACE", "no change", "PGD", "true"] == list(judged.index)
    assert truth.loc["no change", ["turned", "semantic validity"]].tolist() == [0, 0]
    assert truth.loc["true", "turned"] > 0.5 and truth.loc["PGD", "semantic validity"] == 0
    metrics = road_truth.truth_metrics(case, known, truth, judged)
    assert metrics["semantic_validity_ceiling"] == truth.loc["true", "semantic validity"]
    assert metrics["followed_by_judge"] == judged.loc["ACE", "all"] and metrics["true_gain"] <= 1
    for end in ("", "_inside"):  # a factor of the distance cancels
        assert metrics[f"true_gain_lpips{end}"] == pytest.approx(
            metrics[f"true_gain{end}"], abs=1e-5
        )
    assert all(metrics[f"oracle_r2_{k}"] > 0.8 for k in case.causes)
    maps = road_truth.collect_maps(case, known, explain, 0)
    by_scene, reach = road_truth.split_by_scene(case, known, read, maps)
    assert by_scene["n"].sum() == 3 and 0 < reach["furthest"] <= 1
    decisive, parts = road_truth.split_by_target(case, known, maps)
    assert decisive["n"].sum() == known.region.flatten(1).any(1).sum()
    assert (decisive["area, decisive part"] <= decisive["area"]).all()
    assert parts["decisive_area"] <= decisive["area"].max()


@shipped
def test_rivals_are_held_against_the_null_of_their_own_chain(solved, monkeypatch):
    case, explain, cfs, known = solved
    asked, null = [], case.null(("50", 1), 0)
    monkeypatch.setattr(
        type(case), "null", lambda self, chain, seed, n=None: asked.append((*chain, n)) or null
    )
    script = {"spacing": "100", "steps": 5}
    found = {road_arms.OURS: cfs, "BDD's script": replace(cfs, settings=cfs.settings | script)}
    table = road_arms.compare_methods(case, known, found, explain, 0)
    own = (explain.spacing, explain.steps, None)
    assert asked == [own, ("100", 5, 2), *[own] * 3]
    assert list(table.index) == [*found, "no change", "PGD", "true"]
    assert table.loc["no change", "semantic validity"] == 0 and len(table.columns) == 10


@shipped
def test_the_second_driver_looks_at_the_right_car(solved, monkeypatch):
    case, explain, cfs, _ = solved
    monkeypatch.setattr(road_drivers, "N_PROOF", 24)
    monkeypatch.setattr(road_drivers, "N_HOME", 16)
    second = road_cases.second_driver(case, 0)
    proof = road_drivers.prove_shortcut(case, second)
    lamps = proof.loc["lamps of the right car"]
    assert lamps["second classifier"] > 0.4 > 0.2 > lamps["first classifier"]
    flips = road_drivers.proof_metrics(proof)
    assert flips["shortcut_flips_right_braking"] == lamps["second classifier"]
    x, ids = second.data.x, second.data.ids
    short = explain(second.classifier, x, 1 - second.classifier(x).argmax(1), ids)
    found = road_drivers.examine_second(case, second, short, explain, 0)
    assert found["semantic_validity_shortcut_pgd"] <= found["semantic_validity_shortcut_ceiling"]
    assert found["shortcut_accuracy_at_home"] > 0.8 and 0 < found["right_lane_area"] < 0.2
    moved = road_drivers.compare_moves(case, cfs, short, explain, 0)
    assert moved.loc["red", "R2 of the oracle"] == pytest.approx(
        case.truth.oracle.quality["columns"]["red"]["r2"]
    )
    assert moved[["first classifier", "second classifier"]].stack().between(0, 1).all()
    assert len(scenes.moved_bars(moved, 5).axes[0].patches) == 10


# ---------------------------------------------------------------- figures


def test_figures_name_rows_and_mark_failures():
    x = torch.rand(4, 3, 4, 8)
    cfs = make_result(x, 1 - x, torch.tensor([1, 0, 1, 0]), [True, True, False, True])
    with pytest.raises(ValueError, match="cfs: got a result without masks"):
        scenes.masks(cfs)
    cfs = replace(cfs, mask=torch.ones(4, 3, 4, 8, dtype=torch.bool))
    fig = scenes.explanation_grid(cfs, ("go", "stop"), n=3)
    titles = [ax.get_title() for ax in fig.axes[:3]]
    assert titles == ["go\nto stop", "stop\nto go", "go\nto stop\n(failed)"]
    assert [fig.axes[k].get_ylabel() for k in (0, 3, 6)] == ["query", "ACE", "mask"]
    fig = scenes.answer_grid({"ours": cfs, "theirs": cfs}, ("go", "stop"), n=2)
    assert [fig.axes[k].get_ylabel() for k in (0, 2, 4)] == ["query", "ours", "theirs"]
    fig = scenes.gallery(x, list("abcd"))
    assert [ax.get_title() for ax in fig.axes] == ["a", "b", "c", "d", "", ""]
    assert not fig.axes[5].axison


def test_the_window_is_drawn_with_the_methods_own_level():
    rows = {"sd of the noise": [0.1, 0.3], "decisions kept": [1.0, 0.5], "PGD undone": [0.0, 1.0]}
    window = pd.DataFrame(rows, index=[1, 5]).assign(n=4, n_pgd=3)
    lines = scenes.window_curves(window, 5).axes[0].lines
    assert [line.get_label() for line in lines[:2]] == ["decisions kept (n 4)", "PGD undone (n 3)"]
    assert lines[1].get_ydata().tolist() == [0.0, 1.0] and set(lines[2].get_xdata()) == {0.3}
