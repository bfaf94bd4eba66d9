"""A table of one's own: scaling, units, classes and constraints against values by hand."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_breast_cancer

from cf_utils.datasets.tabular import Table
from cf_utils.explainers import presets
from tests.small import Bent


@pytest.fixture
def frame():
    return pd.DataFrame(
        {
            "age": [30, 20, 60, 40],
            "rate": [0.5, 2.5, 1.5, 1.0],
            "debts": [0.0, 3.0, 6.0, 3.0],
            "owner": [True, False, True, True],
            "paid": ["no", "yes", "no", "yes"],
        },
        index=["a", "b", "c", "d"],
    )


def test_features_are_scaled_by_minimum_and_maximum(frame):
    table = Table.from_frame(frame, "paid")
    assert table.features == ("age", "rate", "debts", "owner")
    expected = [[0.25, 0, 0, 1], [0, 1, 0.5, 0], [1, 0.5, 1, 1], [0.5, 0.25, 0.5, 1]]
    torch.testing.assert_close(table.x, torch.tensor(expected))
    assert table.y.tolist() == [0, 1, 0, 1] and table.class_names == ("no", "yes")
    assert table.ids == ("a", "b", "c", "d")
    back = table.to_units(table.x)
    assert back.astype(float).equals(
        frame.drop(columns="paid").astype(float).reset_index(drop=True)
    )


def test_constraints_follow_the_names(frame):
    monotone = {"debts": -1, "rate": 1}
    table = Table.from_frame(frame, "paid", immutable=["owner"], monotone=monotone)
    limits = table.stated_constraints()
    assert limits.immutable.tolist() == [False, False, False, True]
    assert limits.only_up.tolist() == [False, True, False, False]
    assert limits.only_down.tolist() == [False, False, True, False]
    torch.testing.assert_close(limits.step, torch.tensor([1 / 40, 0, 1 / 6, 1.0]))
    query = table.x[[3]]  # 40, 1.0, 3, owner
    wish = table.from_units(pd.DataFrame([[44.4, 0.7, 4.4, 0]], columns=list(table.features)))
    kept = table.to_units(limits.snap(wish, query)).iloc[0].tolist()
    assert kept == [44, 1.0, 3, 1]


def test_integer_features_are_found_or_named(frame):
    assert Table.from_frame(frame, "paid").layout.integer == ("age", "debts", "owner")
    named = Table.from_frame(frame, "paid", integer=["age"])
    assert (named.stated_constraints().step > 0).tolist() == [True, False, False, False]


def test_another_frame_is_scaled_by_the_first(frame):
    train = Table.from_frame(frame.iloc[:3], "paid", immutable=["age"])
    rest = Table.from_frame(frame.assign(age=100).iloc[3:], "paid", like=train)
    torch.testing.assert_close(rest.x, torch.tensor([[2.0, 0.25, 0.5, 1.0]]))
    assert rest.y.tolist() == [1] and rest.layout is train.layout
    with pytest.raises(ValueError, match=r"'paid', row 0.*got maybe; unknown class"):
        Table.from_frame(frame.assign(paid="maybe"), "paid", like=train)


def test_classes_may_be_numbers_or_unknown(frame):
    numbers = Table.from_frame(frame.assign(paid=[10, 9, 10, 9]), "paid")
    assert numbers.class_names == ("9", "10") and numbers.y.tolist() == [1, 0, 1, 0]
    unknown = Table.from_frame(frame.drop(columns="paid"), None)
    assert unknown.y.tolist() == [-1] * 4 and unknown.class_names == ()


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"label": "pays"}, "label: got 'pays', expected one of"),
        ({"rate": ["x", "y", "z", "w"]}, {}, "column 'rate': got .* such as 'x', expected numbers"),
        ({"rate": [1, np.nan, 2, 3]}, {}, "column 'rate', row 1 .*a value is missing"),
        ({"rate": [1, 2, np.inf, 3]}, {}, "column 'rate', row 2 .*finite"),
        ({}, {"integer": ["rate"]}, "column 'rate', row 0.*got 0.5; expected a whole number"),
        ({}, {"integer": ["height"]}, "integer: got the unknown feature 'height'"),
        ({}, {"immutable": ["height"]}, "immutable: got the unknown feature 'height'"),
        ({}, {"monotone": {"height": 1}}, "only_up: got the unknown feature 'height'"),
        ({}, {"monotone": {"age": "up"}}, "monotone: got 'up' for 'age', expected"),
        ({"paid": "no"}, {}, "label: got 1 distinct values in column 'paid'"),
        ({"paid": ["no", None, "no", "yes"]}, {}, "column 'paid', row 1.*expected a class"),
    ],
)
def test_wrong_input_is_named(frame, change, options, message):
    with pytest.raises(ValueError, match=message):
        Table.from_frame(frame.assign(**change), **({"label": "paid"} | options))


def test_a_frame_without_rows_or_features_is_refused(frame):
    with pytest.raises(ValueError, match="frame: got 0 rows"):
        Table.from_frame(frame[:0], "paid")
    with pytest.raises(ValueError, match="frame: got no column besides the label"):
        Table.from_frame(frame[["paid"]], "paid")


def test_an_explanation_keeps_what_the_frame_states():
    gen = torch.Generator().manual_seed(0)
    frame = pd.DataFrame(
        100 * torch.rand(40, 2, generator=gen).numpy().round(2), columns=["u", "v"]
    )
    frame["class"] = (frame["v"] > 40).astype(int)
    table = Table.from_frame(frame, "class", immutable=["u"], monotone={"v": 1})
    low = (table.x[:, 1] < 0.2).nonzero().flatten()[:4]
    explain = presets.get("growing_spheres", "table").build(
        constraints=table.stated_constraints(), n=200
    )
    cfs = explain(Bent(), table.x[low], torch.ones(len(low), dtype=torch.int64))
    assert cfs.reached.any()
    assert torch.equal(cfs.counterfactual[:, 0], table.x[low, 0])
    assert (cfs.counterfactual[:, 1] >= table.x[low, 1]).all()


def test_a_whole_public_table_returns_to_its_units():
    data = load_breast_cancer(as_frame=True)
    table = Table.from_frame(data.frame, "target")
    assert table.x.min() == 0 and table.x.max() == 1 and len(table) == 569
    back = table.to_units(table.x).to_numpy(float)
    np.testing.assert_allclose(back, data.data.to_numpy(), rtol=1e-6, atol=1e-4)
