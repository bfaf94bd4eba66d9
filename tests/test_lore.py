"""LORE against closed forms, brute force, and lore-sa's reading of the same trees."""

import dataclasses
import operator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from sklearn.tree import DecisionTreeClassifier
from torch import nn

from cf_utils.core import PassCounter, describe
from cf_utils.explainers.lore import LORE
from cf_utils.explainers.shared.rules import (
    Rule,
    move_to_neighbour,
    move_to_thresholds,
    read_rules,
)
from tests.small import Bent, Trap, assert_kept, plane, table, tables

TRAIN = torch.rand(400, 6, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
SMALL = LORE(TRAIN, population=200, generations=5)


class Box(nn.Module):
    """Decided as class 1 where x_0 > 0.6 and x_1 <= 0.3: a tree can represent it exactly."""

    def forward(self, x):
        inside = (x[:, 0] > 0.6) & (x[:, 1] <= 0.3)
        return torch.stack([(~inside).to(x), inside.to(x)], 1) * 4


class Never(nn.Module):
    """Always decided as class 0."""

    def forward(self, x):
        return torch.stack([x[:, 0] * 0 + 1, x[:, 0] * 0], 1)


def ones(x):
    return torch.ones(len(x), dtype=torch.int64)


def breed(explain, net, x, target):
    """Neighbours of each x, and whether each is decided as the target with probability 0.5."""
    rows = torch.arange(len(x))
    with torch.no_grad():
        return explain._breed(PassCounter(net, len(x)), x, target, rows, 0.5, rows)


# ---------------------------------------------------------------- rules


def test_a_classifier_that_is_a_rule_is_recovered():
    rest = [0.5] * 4
    x = torch.tensor([[0.2, 0.1, *rest], [0.8, 0.7, *rest], [0.2, 0.7, *rest]]).double()
    explain = LORE(TRAIN, overshoot=1e-3)
    cfs, rules = explain(Box(), x, ones(x)), explain.rules(Box(), x, ones(x))
    assert cfs.reached.all()
    changed = [row.nonzero().flatten().tolist() for row in cfs.counterfactual != x]
    assert changed == [[0], [1], [0, 1]]  # and nothing else
    first, second = cfs.counterfactual[:, 0], cfs.counterfactual[:, 1]
    assert (first[[0, 2]] - 0.6 < 0.06).all()  # measured 0.019
    assert (0.3 - second[[1, 2]] < 0.06).all()  # measured 0.038
    assert all(r.fidelity > 0.98 and not r.factual.wanted and r.both_decisions for r in rules)
    assert torch.equal(torch.stack([r.points[r.best] for r in rules]), cfs.counterfactual)


def test_rules_are_printed_in_units_of_the_data():
    x = torch.tensor([[0.2, 0.1, 0.5, 0.5, 0.5, 0.5]]).double()
    (rules,) = LORE(TRAIN).rules(Box(), x, ones(x))
    names = ["income", "debt", "a", "b", "c", "d"]
    text = rules.text(names, lambda i, v: f"{100 * v:.0f} k")
    assert text.startswith("refused because income ≤ 59 k")
    assert "; accepted if income > 59 k (here 20 k, to 61 k)" in text
    assert "debt" not in text.split(";")[1]
    assert rules.text(names, words=("no", "yes")).startswith("no because")


def test_rules_of_a_tree_partition_the_space_and_predict_what_the_tree_predicts():
    gen = np.random.default_rng(0)
    z, y = gen.random((500, 4)), gen.random(500) > 0.5
    tree = DecisionTreeClassifier(min_samples_leaf=3, random_state=0).fit(z, y)
    rules, points = read_rules(tree), gen.random((300, 4))
    met = np.stack([~rule.unmet(points).any(1) for rule in rules], 1)
    assert (met.sum(1) == 1).all() and len(rules) == tree.get_n_leaves()
    assert [rules[i].wanted for i in met.argmax(1)] == tree.predict(points).tolist()
    assert [rules[i].node for i in met.argmax(1)] == tree.apply(points).tolist()
    assert sum(rule.support for rule in rules) == 500
    for rule in rules:
        own = y[tree.apply(z) == rule.node]
        assert abs(rule.share - (own == rule.wanted).mean()) < 1e-9


def test_a_move_to_thresholds_ends_at_the_nearest_point_that_meets_the_rule():
    low = np.array([0.4, -np.inf, 0.2, -np.inf])
    high = np.array([np.inf, 0.3, 0.2004, np.inf])
    rule = Rule(low, high, True, 9, 1.0, 3)
    x, free = np.array([0.1, 0.9, 0.8, 0.5]), np.zeros(4)
    moved = move_to_thresholds(rule, x, 1e-3, free)
    # at most to the middle of a narrow interval
    np.testing.assert_allclose(moved, [0.401, 0.299, 0.2002, 0.5])
    assert not rule.unmet(moved).any()
    assert rule.unmet(x).tolist() == [True, True, True, False]
    on_grid = move_to_thresholds(rule, x, 1e-3, np.array([0.25, 0.25, 0, 0.25]))
    np.testing.assert_allclose(on_grid, [0.5, 0.25, 0.2002, 0.5])
    assert rule.text("abcd") == "a > 0.4 and b ≤ 0.3 and 0.2 < c ≤ 0.2"


def test_a_move_to_the_nearest_neighbour_copies_only_the_unmet_features():
    low = np.array([0.4, -np.inf, 0.2, -np.inf])
    high = np.array([np.inf, 0.3, 0.2004, np.inf])
    rule = Rule(low, high, True, 9, 1.0, 3)
    members = np.array([[0.9, 0.1, 0.2002, 0.0], [0.5, 0.2, 0.2001, 9.0]])
    moved = move_to_neighbour(rule, np.array([0.1, 0.9, 0.8, 0.5]), members)
    np.testing.assert_allclose(moved, [0.5, 0.2, 0.2001, 0.5])


# ---------------------------------------------------------------- the neighbourhood


def test_neighbours_are_bred_for_both_decisions_near_the_query():
    net, x, target, _ = table(rows=6)
    z, wanted = breed(SMALL.with_(generations=10), net, x, target)
    assert wanted[:, :100].double().mean() < 0.1  # measured 0.01
    assert wanted[:, 100:].double().mean() > 0.8  # measured 0.90
    known = torch.cat([TRAIN, x]).T[None, None]  # values of training rows, or of x
    assert (z[..., None] == known).any(3).all()
    far = (TRAIN[None] - x[:, None]).norm(dim=2).mean()
    assert (z - x[:, None]).norm(dim=2).mean() < 0.6 * far  # measured 0.40
    assert (z == x[:, None]).all(2).double().mean() < 0.3  # and not the query itself


def test_the_populations_begin_at_the_query():
    net, x, target, _ = table(rows=6)
    start, _ = breed(SMALL.with_(generations=1, mutation=1e-9, crossover=0.0), net, x, target)
    assert torch.equal(start, x[:, None].expand(-1, 200, -1))


def test_the_distance_between_categories_is_0_or_1():
    """As categories, far values cost what near ones do; as numbers, near values win."""
    train = (TRAIN * 10).round() / 10
    x = torch.zeros(4, 6, dtype=torch.float64)

    def mean_change(**changes):
        z, _ = breed(LORE(train, population=200, **changes), Never(), x, ones(x))
        return float(z[z != 0].mean())

    assert mean_change() < 0.25  # measured 0.16
    assert mean_change(categorical=range(6)) > 0.42  # measured 0.50


# ---------------------------------------------------------------- the method against other answers


def test_a_linear_classifier_is_flipped_by_a_move_just_past_its_plane():
    """z_1 - z_0 = w.x + b: one feature must move by gap / |w_i| at least."""
    model = nn.Linear(6, 2).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0] * 6, [6, 5, 0.1, 0.1, 0.1, 0.1]]))
        model.bias.copy_(torch.tensor([0.0, -5.5]))
    x = 0.3 + 0.2 * torch.rand(8, 6, generator=torch.Generator().manual_seed(0)).double()
    x = x[model(x).argmax(1) == 0]
    cfs = LORE(TRAIN)(model, x, ones(x))
    gap = -(model(x) @ torch.tensor([-1.0, 1.0]).double()).detach()
    moved = (cfs.counterfactual - x).abs()
    assert cfs.reached.all()
    assert ((moved * model.weight[1].abs()).sum(1) >= gap - 1e-9).all()
    ratio = moved.sum(1) / (gap / 6)
    assert (ratio <= 1.8).all() and ratio.mean() < 1.4  # measured 1.53, 1.23


def test_the_result_is_close_to_brute_force_in_the_plane():
    x, good = plane()
    least = torch.cdist(x, good, p=1).amin(1)
    train = torch.rand(500, 2, generator=torch.Generator().manual_seed(0)).double()
    cfs = LORE(train, tau=0.9)(Bent(), x, ones(x))
    moved = (cfs.counterfactual - x).abs().sum(1)
    assert cfs.reached.all() and (moved >= least - 2 / 800).all()
    assert (moved <= 1.35 * least).all()  # measured 1.22


# ---------------------------------------------------------------- contracts


@settings(max_examples=12, deadline=None, derandomize=True)
@given(tables())
def test_any_constraints_hold_exactly(case):
    net, x, target, limits = case
    assert_kept(SMALL.with_(constraints=limits, population=120)(net, x, target), limits)


def test_items_that_can_flip_inside_their_constraints_do_and_others_say_why():
    net, x, target, limits = table(rows=24)
    cfs = SMALL.with_(constraints=limits, population=400)(net, x, target)
    assert_kept(cfs, limits)
    assert cfs.reached.double().mean() > 0.5  # measured 0.667
    assert all("inside the constraints" in reason for reason in cfs.reason if reason)
    immutable = table(immutable=range(6), only_up=[], only_down=[])[3]
    still = SMALL.with_(constraints=immutable)(net, x, target)
    assert torch.equal(still.counterfactual, x)
    assert all("none of 0 counterfactual rules" in reason for reason in still.reason)


def test_an_item_without_a_neighbour_of_the_target_says_so():
    _, x, _, _ = table(rows=24)
    cfs = SMALL(Never(), x, ones(x))
    assert set(cfs.reason) == {"no neighbour is decided as the target"}
    (rules,) = SMALL.rules(Never(), x[:1], ones(x[:1]))
    assert "no rule found" in rules.text("abcdef")


def test_an_item_depends_neither_on_its_batch_nor_on_the_order(monkeypatch):
    net, x, target, _ = table(rows=6)
    ids, order = torch.arange(20, 26), torch.tensor([3, 0, 5, 1, 4, 2])
    whole = SMALL(net, x, target, ids).counterfactual
    mixed = SMALL(net, x[order], target[order], ids[order]).counterfactual
    alone = [
        SMALL(net, x[i : i + 1], target[i : i + 1], ids[i : i + 1]).counterfactual for i in range(6)
    ]
    torch.testing.assert_close(mixed, whole[order], atol=1e-9, rtol=0)
    torch.testing.assert_close(torch.cat(alone), whole, atol=1e-9, rtol=0)
    monkeypatch.setattr("cf_utils.explainers.lore.MAX_POINTS", 400)
    in_parts = SMALL(net, x, target, ids).counterfactual
    torch.testing.assert_close(in_parts, whole, atol=1e-9, rtol=0)
    assert (SMALL.with_(seed=1)(net, x, target, ids).counterfactual != whole).any()
    assert (SMALL(net, x, target, ids + 9).counterfactual != whole).any()


def test_string_ids_give_each_item_its_own_noise():
    net, x, target, _ = table(rows=3)
    whole = SMALL(net, x, target, ("a", "b", "c")).counterfactual
    alone = SMALL(net, x[1:2], target[1:2], ("b",)).counterfactual
    torch.testing.assert_close(alone, whole[1:2], atol=1e-9, rtol=0)


def test_an_item_with_nan_changes_no_other_item():
    net, x, target, _ = table(rows=4)
    x[0, 0] = 0.9
    caught = SMALL(Trap(net, -99.0), x, target)  # NaN wherever feature 0 is over 0.9
    assert caught.reached.any() and caught.counterfactual.isfinite().all()
    assert (caught.counterfactual[:, 0] <= 0.9).all()


def test_passes_equal_those_that_a_hook_counts():
    net, x, target, _ = table(rows=5)
    seen = []
    net.register_forward_hook(lambda m, i, o: seen.append(len(o)))
    cfs = SMALL(net, x, target)
    assert int(cfs.n_forward.sum()) == sum(seen) and cfs.n_backward.sum() == 0
    n_rules = torch.tensor([len(r.holds) for r in SMALL.rules(net, x, target)])
    assert cfs.n_forward.tolist() == (2 + 6 * 200 + 2 * n_rules).tolist()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"train": TRAIN[:, :5]}, "train"),
        ({"train": TRAIN[:0]}, "train"),
        ({"train": TRAIN * torch.nan}, "train"),
        ({"population": 6}, "population"),
        ({"population": 0}, "population"),
        ({"generations": 0}, "generations"),
        ({"tournament": 0}, "tournament"),
        ({"leaf": 0}, "leaf"),
        ({"crossover": 1.5}, "crossover"),
        ({"mutation": 0.0}, "mutation"),
        ({"overshoot": 0.0}, "overshoot"),
        ({"categorical": (6,)}, "categorical"),
    ],
)
def test_bad_settings_are_refused_by_name(change, word):
    net, x, target, _ = table()
    for call in (SMALL.with_(**change), SMALL.with_(**change).rules):
        with pytest.raises(ValueError, match=word):
            call(net, x, target)


def test_images_are_refused():
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with pytest.raises(ValueError, match=r"expected \(B, F\)"):
        SMALL(net, torch.rand(2, 1, 4, 4), torch.ones(2, dtype=torch.int64))


def test_the_description_hashes_the_training_rows_and_keeps_stored_names():
    a, b = (
        dataclasses.replace(SMALL, train=t)(*table(rows=2)[:3]).settings["train"]
        for t in (TRAIN, TRAIN + 1e-3)
    )
    assert a["sha256"] != b["sha256"] and a["tensor"] == [400, 6]
    described = describe(SMALL)
    assert described["over"] == 1e-3 and "overshoot" not in described


# ---------------------------------------------------------------- a second implementation


def make_encoder(names):
    """lore-sa's encoder for the training rows."""
    import pandas as pd
    from lore_sa.dataset import TabularDataset
    from lore_sa.encoder_decoder import ColumnTransformerEnc

    frame = pd.DataFrame(TRAIN.numpy(), columns=names)
    frame = frame.assign(y=np.where(np.arange(400) % 2, "True", "False"))
    return ColumnTransformerEnc(TabularDataset(frame, class_name="y").descriptor)


def test_lore_sa_reads_the_same_rules_off_our_trees():
    """The package, given our neighbourhood and tree, finds the same factual rule.

    It also finds the same sets of changed features with the fewest changes. It takes the rules of
    all neighbours with another label; some lie in a leaf of the query's own decision, so it gets
    the tree's labels here.
    """
    pytest.importorskip("lore_sa")
    from lore_sa.surrogate import DecisionTreeSurrogate

    net, x, target, _ = table(rows=8)
    names = [f"f{i}" for i in range(6)]
    encoder = make_encoder(names)
    z, wanted = breed(SMALL, net, x, target)
    items = zip(x.numpy(), SMALL.rules(net, x, target), z.numpy(), wanted.numpy(), strict=True)
    for query, own, points, labels in items:
        theirs = DecisionTreeSurrogate()
        theirs.dt = SMALL._fit_tree(points, labels.astype(int))
        low, high = np.full(6, -np.inf), np.full(6, np.inf)
        for p in theirs.get_rule(query, encoder).premises:
            (high if p.operator is operator.le else low)[names.index(p.variable)] = p.value
        np.testing.assert_allclose(low, own.factual.low)
        np.testing.assert_allclose(high, own.factual.high)
        rules, _ = theirs.get_counterfactual_rules(
            query, points, theirs.dt.predict(points), encoder
        )
        named = dict(zip(names, query, strict=True))
        least = {
            frozenset(p.variable for p in theirs.get_falsified_conditions(named, rule))
            for rule in rules
        }
        unmet = [rule.unmet(query) for rule in own.counterfactual]
        fewest = min(u.sum() for u in unmet)
        ours = {frozenset(names[i] for i in np.flatnonzero(u)) for u in unmet if u.sum() == fewest}
        assert ours == least
