"""Several methods side by side: each column is that method's own table."""

from __future__ import annotations

import pandas as pd
import pytest

from cf_utils.evaluation.progression_rivals import compare_methods
from cf_utils.evaluation.progressions import consistency_table, difference_table
from tests.test_progressions import Left, Pixels, world  # noqa: F401  (a fixture)


def test_each_column_is_the_methods_own_table(world):  # noqa: F811
    query, progression = world
    images = {"ours": progression, "theirs": 0.5 * progression + 0.25, "third": progression.flip(0)}
    encoders = {name: Pixels() for name in images}
    unchanged = {"ours": query, "theirs": query + 0.125, "third": query - 0.25}
    options = {"official": False, "embedded": False}
    found = compare_methods(
        query,
        images,
        Left(),
        query,
        encoders,
        unchanged,
        face=Pixels(),
        realism=Pixels(),
        seed=4,
        **options,
    )
    for name, own in images.items():
        table = consistency_table(
            (query, own), Left(), query, own=encoders[name], common=Pixels(), face=Pixels(),
            unchanged=unchanged[name], **options,
        )  # fmt: skip
        assert found.values[name].equals(table["value"])
    errors = found.values.loc["identity_error"]
    assert errors[list(images)].to_list() == pytest.approx([0, 0.125, 0.25], abs=1e-6)
    assert list(found.values) == ["ours", "theirs", "third", "n", "note"]
    assert found.differences.index.names == ["ours less", "of"]
    for name in ("theirs", "third"):
        expected = difference_table(
            (query, progression), (query, images[name]), query, Pixels(), Pixels(), seed=4
        )
        pd.testing.assert_frame_equal(found.differences.loc[name], expected, check_names=False)


def test_one_method_alone_has_no_differences(world):  # noqa: F811
    query, progression = world
    options = {"official": False, "embedded": False}
    found = compare_methods(
        query, {"ours": progression}, Left(), query, {"ours": Pixels()}, {"ours": query}, **options
    )
    assert found.differences.empty and list(found.values) == ["ours", "n", "note"]
