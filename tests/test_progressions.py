"""Tables of progressions: a world of two numbers in which every figure is known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from cf_utils.core import Explainer, SearchResult
from cf_utils.evaluation import progression_effects, progressions
from cf_utils.evaluation.metrics import response
from cf_utils.evaluation.metrics.deletion import DeletionCurve
from cf_utils.evaluation.metrics.identity import similarity
from cf_utils.models import encoders


class Left(nn.Module):
    """Probability of class 1 is the mean of the left half."""

    def forward(self, x):
        p = x[..., : x.shape[-1] // 2].mean((1, 2, 3)).clamp(1e-4, 1 - 1e-4)
        return torch.stack([(1 - p).log(), p.log()], 1)


class Right(nn.Module):
    """Decides by whether the right half is bright."""

    def forward(self, x):
        z = x[..., x.shape[-1] // 2 :].mean((1, 2, 3)) - 0.5
        return torch.stack([-z, z], 1)


class Both(nn.Module):
    """Two attributes: left half bright, right half bright."""

    def forward(self, x):
        return torch.cat([m(x)[:, 1:] - m(x)[:, :1] for m in (Left(), Right())], 1)


class Pixels(nn.Module):
    """An identity encoder: the pixels."""

    threshold = 0.5

    def forward(self, x):
        return x.flatten(1) - 0.5


def halves(left, right, channels=3):
    """Images 2 x 4 with uniform halves, (..., channels, 2, 4), from two tensors of one shape."""
    sides = torch.stack([left, left, right, right], -1).float()
    return sides[..., None, None, :].expand(*left.shape, channels, 2, 4)


@pytest.fixture
def world():
    """60 queries; explanations that respond exactly as asked and keep the right half."""
    gen = torch.Generator().manual_seed(0)
    left, right = torch.rand(60, generator=gen), torch.rand(60, generator=gen)
    wanted = response.expected_response(left.double()).float()
    return halves(left, right), halves(wanted, right[:, None].expand(-1, 10))


def test_compatibility_of_an_exact_method_and_of_a_judge_that_sees_nothing(world):
    query, progression = world
    table = progressions.compatibility_table(
        world, Left(), {"judge": Right()},
        {"mean": (lambda x: x.mean((1, 2, 3)), 0.01), "none": (lambda x: 0 * x[:, 0, 0, 0], 0.0)},
    )  # fmt: skip
    value, n = table["value"], table["n"]
    for name in ("rank_correlation", "linear_correlation", "rank_correlation_within", "monotone"):
        assert value[name] == pytest.approx(1, abs=1e-4)
    assert value["response_error"] < 1e-4 and n["response_error"] == 60
    bins = [f"response_error_bin_{k}" for k in range(10)]
    assert value[bins].max() < 1e-4 and (n[bins] == 60).all()
    # the judge's response is constant along every path
    assert np.isnan(value["rank_correlation_within_judge"])
    assert "60 without a value" in table.loc["rank_correlation_within_judge", "note"]
    assert value["monotone_judge"] == 0 and abs(value["rank_correlation_judge"]) < 0.2
    expected = response.expected_response(response.respond(Left(), query))
    judged = response.respond(Right(), progression)
    assert value["response_error_judge"] == pytest.approx((judged - expected).abs().mean().item())
    assert value["mean_monotone"] == 1 and value["mean_rank_correlation_within"] == 1
    assert value["none_monotone"] == 0 and n["none_rank_correlation_within"] == 0


@pytest.fixture
def small_encoders(monkeypatch):
    """Replace the networks of FID and FVA by pixels; one of them is the published one."""

    def load(name, device="cpu"):
        if name == "vggface2":
            raise FileNotFoundError("vggface2 is missing")
        encoder = Pixels()
        encoder.official_for = ("fid",) if name == "inception" else ()
        return encoder

    monkeypatch.setattr(encoders, "load", load)


def test_consistency_names_what_is_official_and_what_is_missing(world, small_encoders):
    query, progression = world
    table = progressions.consistency_table(
        world, Left(), query, own=Pixels(), common=Pixels(), face=Pixels(),
        unchanged=query + 0.25, returned=query[:, None] - 0.1 * torch.ones(10)[:, None, None, None],
        smallest=2,
    )  # fmt: skip
    assert table.index.tolist() == [
        "fid", "fid_present", "fid_absent",
        "fid_embedded", "fid_embedded_present", "fid_embedded_absent",
        "lsc_method", "lsc_common", "fva", "fva_embedded", "identity_error", "reversal_error",
    ]  # fmt: skip
    value = table["value"]
    assert value["fid"] == value["fid_embedded"] and np.isfinite(value["fid_present"])
    assert table.loc["fid", "n"] == 600
    f = response.respond(Left(), progression)
    assert table.loc["fid_present", "n"] == int((f >= 0.9).sum())
    assert np.isnan(value["fva"]) and "vggface2 is missing" in table.loc["fva", "note"]
    assert value["identity_error"] == pytest.approx(0.25)
    assert value["reversal_error"] == pytest.approx(0.1, rel=1e-5)
    cosine = nn.functional.cosine_similarity(
        (query - 0.5).flatten(1)[:, None], (progression - 0.5).flatten(2), dim=2
    )
    assert value["fva_embedded"] == pytest.approx((cosine > 0.5).double().mean().item())
    assert 0.2 < value["fva_embedded"] < 0.9  # so that the comparison can fail
    assert value["lsc_common"] == value["lsc_method"] < 0.5


def test_fva_over_a_path_equals_similarity_bin_by_bin(world):
    query, progression = world
    verified, name = progressions.verify(Pixels(), query, progression)
    assert name == "fva_embedded"
    from cf_utils.evaluation.metrics.features import extract

    for k in range(10):
        pairs = similarity(extract(Pixels(), query), extract(Pixels(), progression[:, k]))
        assert torch.equal(verified[:, k], (pairs > 0.5).double())
    with pytest.raises(ValueError, match=r"^face: got Left"):
        progressions.verify(Left(), query, progression)


def test_one_channel_images_are_shown_to_encoders_as_three(small_encoders):
    gen = torch.Generator().manual_seed(0)
    left, right = torch.rand(30, generator=gen), torch.rand(30, generator=gen)
    wanted = response.expected_response(left.double()).float()
    values = []
    for channels in (1, 3):
        pair = (
            halves(left, right, channels),
            halves(wanted, right[:, None].expand(-1, 10), channels),
        )
        table = progressions.consistency_table(pair, Left(), pair[0], face=Pixels(), official=False)
        values.append(table.loc[["fid_embedded", "fva_embedded"], "value"])
    assert np.allclose(values[0], values[1])


def test_a_small_group_has_no_fid_and_says_so(world, small_encoders):
    table = progressions.consistency_table(world, Left(), world[0], official=False, smallest=50)
    assert np.isnan(table.loc["fid_embedded_present", "value"])
    assert "too few" in table.loc["fid_embedded_present", "note"]
    assert np.isfinite(table.loc["fid_embedded", "value"])
    with pytest.raises(ValueError, match=r"^classifier: returned"):  # no reason for a silent NaN
        progressions.consistency_table(
            world, nn.Sequential(nn.Flatten(), nn.Linear(24, 1)), world[0]
        )


def test_the_difference_of_two_methods_favours_the_one_that_keeps_the_right_half(world):
    query, progression = world
    blurred = 0.5 * progression + 0.25
    table = progressions.difference_table(
        world, (query, blurred), query, face=Pixels(), realism=Pixels(), draws=50
    )
    assert table.index.tolist() == ["fid_embedded", "fva_embedded"]
    assert table.loc["fid_embedded", "high"] < 0  # measured -0.61 .. -0.26
    same = progressions.difference_table(world, world, query, Pixels(), Pixels(), draws=3)
    assert (same[["value", "low", "high"]] == 0).all(axis=None) and (same["n"] == 60).all()
    with pytest.raises(ValueError, match=r"^second: its queries"):
        progressions.difference_table(world, (query.flip(0), blurred), query)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Exact(Explainer):
    """Returns the whole progression as its path."""

    def search(self, f, x, target, ids, tau):
        with torch.no_grad():
            p = response.respond(f.module, x)
        right = x[:, 0, 0, 2][:, None].expand(-1, 10)
        path = halves(response.expected_response(p).float(), right)
        return SearchResult(path[:, 9], path=path, path_len=torch.full((len(x),), 10))


def test_counterfactuals_with_a_path_give_the_same_table_as_images(world):
    query, progression = world
    below = response.respond(Left(), query) < 0.5
    cfs = Exact()(Left(), query, torch.ones(60, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"^explanations: items at .* have no whole path of 11"):
        progressions.compatibility_table(cfs, Left())
    some = progressions.compatibility_table(cfs.select(below), Left())
    other = progressions.compatibility_table((query[below], progression[below]), Left())
    assert np.allclose(some["value"], other["value"], atol=1e-6) and (some["n"] == other["n"]).all()
    with pytest.raises(ValueError, match=r"^explanations: got a result without path"):
        progressions.images_of(dataclasses.replace(cfs, path=None))
    with pytest.raises(ValueError, match=r"^progression: got"):
        progressions.images_of((query, progression[:, 0]))


def test_the_confounding_table_finds_the_biased_arm(world):
    """The biased arm sets the right half to the wanted response, the other one keeps it."""
    query, progression = world
    left = progression[:, :, 0, 0, 0]
    a = Right()(query).argmax(1)
    arms = {"biased": ((query, halves(left, left)), Left()), "unbiased": (world, Left())}
    table = progression_effects.confounding_table(arms, Right(), a)
    value = table.set_index(["arm", "target", "figure"])["value"]
    assert value["biased", "present", "male"] == 1 and value["biased", "absent", "male"] == 0
    assert value["biased", "absent", "female"] == 1
    share = (a == 1).double().mean().item()
    assert value["unbiased", "present", "male"] == pytest.approx(share)
    assert value["biased", "present", "confounding"] == pytest.approx(1 - share)
    assert value["biased", "absent", "confounding"] == pytest.approx(share)
    assert value["unbiased", "present", "confounding"] == 0
    rows = table.set_index(["arm", "target"])
    for target, expected in (("present", 1 - share), ("absent", share)):
        row = rows.loc[("biased - unbiased", target)]
        assert row["value"].item() == pytest.approx(expected) and row["n"].item() == 60
        assert 0 < row["low"].item() < expected < row["high"].item()
    for wrong in (a[:5], a + 1):
        with pytest.raises(ValueError, match=r"^(arms, )?a: got"):
            progression_effects.confounding_table(arms, Right(), wrong)


def test_the_flip_matrix_counts_flips_against_the_query(world):
    query, progression = world
    end = torch.where((Left()(query)[:, 1] > np.log(0.5))[:, None, None, None],
                      progression[:, 0], progression[:, 9])  # fmt: skip
    both = 1 - query
    table = progression_effects.flip_matrix_table(
        {"left": (query, end), "right": (query, both)}, Both(), ["left", "right"]
    )
    assert table.loc["left", ["left", "right"]].tolist() == [1, 0]
    assert table.loc["right", ["left", "right"]].tolist() == [1, 1]
    summary = progression_effects.flip_summary(table)
    assert summary["value"].tolist() == [1, 0.5] and (summary["n"] == 60).all()
    one = progression_effects.flip_matrix_table({"right": (query, end)}, Both(), ["left", "right"])
    assert progression_effects.flip_summary(one)["value"].tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"^explanations: got \['up'\]"):
        progression_effects.flip_matrix_table({"up": (query, end)}, Both(), ["left", "right"])
    with pytest.raises(ValueError, match=r"^names: got 1"):
        progression_effects.flip_matrix_table({"left": (query, end)}, Both(), ["left"])


def test_deletion_table_compares_with_the_random_map():
    grid = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)

    def curve(middle):
        heights = torch.tensor([[1.0, m, 0.0] for m in middle], dtype=torch.float64)
        return DeletionCurve(grid, heights / 2, heights)

    curves = {"ours": curve([0, 0, 0.4]), "random": curve([1, 0.5, 0.9]), "LRP": "no rule"}
    table = progression_effects.deletion_table(curves)
    assert table.loc["ours", "value"] == pytest.approx((0.25 + 0.25 + 0.45) / 3)
    assert table.loc["ours", "difference"] == pytest.approx(-(0.5 + 0.25 + 0.25) / 3)
    assert table.loc["ours", "high"] < 0 and table.loc["random", "difference"] == 0
    assert np.isnan(table.loc["LRP", "value"]) and table.loc["LRP", "note"] == "no rule"
    halved = progression_effects.deletion_table(curves, of="probability")
    assert halved.loc["ours", "value"] == pytest.approx(table.loc["ours", "value"] / 2)
    with pytest.raises(ValueError, match=r"^reference: got 'LRP'"):
        progression_effects.deletion_table(curves, reference="LRP")


def test_heart_size_groups_pair_each_query_with_its_own_explanation():
    query_size, query_response = torch.tensor([1.0, 2, 3, 4]), torch.tensor([0.05, 0.95, 0.5, 0.02])
    sizes = torch.tensor([[1.0, 9], [2.5, 8], [3.5, 7], [4.5, 6]])
    responses = torch.tensor([[0.05, 0.95], [0.04, 0.99], [0.1, 0.9], [0.0, 0.6]])
    groups = progression_effects.heart_size_groups(query_size, sizes, query_response, responses)
    assert groups["healthy"].tolist() == [1, 4] and groups["abnormal"].tolist() == [2]
    enlarged = groups["healthy_to_abnormal"]
    assert enlarged[0] == 9 and enlarged[1].isnan()  # the second does not reach 0.9
    assert groups["abnormal_to_healthy"].tolist() == [2.5]
    with pytest.raises(ValueError, match=r"^query_size, sizes"):
        progression_effects.heart_size_groups(query_size, sizes[0], query_response, responses)


def test_heart_size_tests_are_those_of_fig_4b():
    gen = torch.Generator().manual_seed(0)

    def normal(mean, n):
        return mean + 0.05 * torch.randn(n, generator=gen, dtype=torch.float64)

    healthy, abnormal = normal(0.45, 80), normal(0.6, 70)
    groups = {
        "healthy": healthy,
        "healthy_to_abnormal": healthy + normal(0.14, 80),
        "abnormal": abnormal,
        "abnormal_to_healthy": abnormal - normal(0.02, 70),  # hardly smaller
    }
    table = progression_effects.heart_size_tests(groups, margin=0.04)
    assert table["n"].tolist() == [80, 70, 150, 150, 150, 150]
    assert table.loc["paired_healthy", "value"] == pytest.approx(0.14, abs=0.02)
    assert table.loc["paired_abnormal", "value"] == pytest.approx(-0.02, abs=0.02)
    assert table.loc["paired_healthy", "p"] < 1e-6 and table.loc["paired_abnormal", "p"] < 0.05
    assert table.loc["two_sample_healthy", "p"] < 0.001  # too large to be healthy
    assert table.loc["equivalence_healthy", "p"] > 0.9
    assert table.loc["equivalence_abnormal", "p"] < 0.01
    assert table.loc["two_sample_abnormal", "value"] == pytest.approx(
        (groups["healthy_to_abnormal"].mean() - abnormal.mean()).item()
    )
    few = progression_effects.heart_size_tests(groups | {"healthy": healthy[:1]}, margin=0.04)
    assert (
        np.isnan(few.loc["paired_healthy", "value"])
        and "a, b: got" in few.loc["paired_healthy", "note"]
    )
    assert np.isfinite(few.loc["paired_abnormal", "value"])
    with pytest.raises(ValueError, match=r"^margin"):
        progression_effects.heart_size_tests(groups, margin=0)
