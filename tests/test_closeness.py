"""Latent space closeness, self-consistency and FID by group: loops, closed forms, invariances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cf_utils.evaluation.metrics import closeness, fid_groups
from cf_utils.evaluation.metrics.features import Features
from cf_utils.evaluation.metrics.image import frechet_distance
from cf_utils.models.generators.latent import LatentModel


def by_eq_10(query, explanations):
    """Eq. 10 item by item, in numpy."""
    found = []
    for i in range(len(query)):
        own = np.linalg.norm(query[i] - explanations[i])
        others = [
            np.linalg.norm(explanations[i] - explanations[j]) for j in range(len(query)) if j != i
        ]
        found.append(own < min(others))
    return found


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 40), st.integers(1, 30), st.floats(0, 2), st.integers(0, 99))
def test_closeness_equals_eq_10_item_by_item(rows, width, size, seed):
    gen = torch.Generator().manual_seed(seed)
    query = torch.randn(rows, width, generator=gen) + 100  # an offset must not cost digits
    explanations = query + size * torch.randn(rows, width, generator=gen)
    expected = by_eq_10(query.double().numpy(), explanations.double().numpy())
    for chunk in (1, 7, 256):
        assert closeness.is_closest(query, explanations, chunk).tolist() == expected


def test_closeness_on_a_line():
    """Explanations at 0, 1, 5: query 0 is 0.4 away, 1 is 1.2 away (too far), 2 is 3.9 away."""
    explanations = torch.tensor([[0.0], [1.0], [5.0]])
    query = explanations + torch.tensor([[0.4], [-1.2], [3.9]])
    assert closeness.is_closest(query, explanations).tolist() == [True, False, True]
    query[0] = 1.0  # exactly as far as the nearest other explanation: a tie
    assert closeness.is_closest(query, explanations).tolist() == [False, False, True]
    # the other QUERIES do not count: query 1 now coincides with explanation 0
    query[1] = 0.0
    query[0] = 0.3
    assert closeness.is_closest(query, explanations).tolist()[0]


def test_collapsed_explanations_are_not_close_and_unchanged_images_are():
    query = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    assert not closeness.is_closest(query, query[:1].expand(20, -1) + 0.0).any()
    assert closeness.is_closest(query, query).all()


@pytest.mark.parametrize(
    "query,explanations",
    [
        (torch.rand(1, 3), torch.rand(1, 3)),
        (torch.rand(4, 3), torch.rand(3, 3)),
        (torch.rand(4, 3), torch.full((4, 3), torch.nan)),
    ],
)
def test_closeness_refuses_a_lone_query_and_nan(query, explanations):
    with pytest.raises(ValueError, match=r"^query, explanations"):
        closeness.is_closest(query, explanations)


class Halves(LatentModel):
    """Encodes an image by its upper half; the forward pass would give the whole image."""

    def encode(self, x):
        return x[:, :, : x.shape[2] // 2]

    def decode(self, z):
        return torch.cat([z, z], 2)


def test_closeness_of_images_uses_encode_of_a_latent_model_bin_by_bin():
    gen = torch.Generator().manual_seed(2)
    query = torch.rand(6, 1, 4, 4, generator=gen)
    progression = query[:, None] + 0.3 * torch.randn(6, 3, 1, 4, 4, generator=gen)
    progression[:, :, :, 2:] = 0  # the lower half says nothing
    found = closeness.latent_space_closeness(Halves(), query, progression, batch_size=4)
    top = query[:, 0, :2].flatten(1).double().numpy()
    for k in range(3):
        codes = progression[:, k, 0, :2].flatten(1).double().numpy()
        assert found[:, k].tolist() == by_eq_10(top, codes)
    with pytest.raises(ValueError, match=r"^progression: got"):
        closeness.latent_space_closeness(Halves(), query, progression[:5])


def test_encoders_of_photographs_get_three_equal_channels_and_keep_their_mode():
    encoder = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten()).train()
    x = torch.rand(5, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    codes = closeness.encode(encoder, x, batch_size=2)
    torch.testing.assert_close(
        codes.view(5, 3, 4), x.view(5, 1, 4).expand(-1, 3, -1), atol=1e-4, rtol=0
    )
    assert encoder.training and encoder[0].num_batches_tracked == 0
    assert closeness.as_rgb(torch.rand(2, 3, 4, 4)).shape == (2, 3, 4, 4)
    assert closeness.as_rgb(torch.rand(2, 7, 1, 4, 4)).shape == (2, 7, 3, 4, 4)


def test_path_similarity_pairs_each_query_with_its_own_explanations():
    gen = torch.Generator().manual_seed(0)
    a, b = torch.randn(4, 5, generator=gen), torch.randn(4, 3, 5, generator=gen)
    of_queries, of_paths = Features(a, "E", ()), Features(b.flatten(0, 1), "E", ())
    expected = torch.nn.functional.cosine_similarity(a[:, None].double(), b.double(), dim=2)
    torch.testing.assert_close(closeness.path_similarity(of_queries, of_paths), expected)
    with pytest.raises(ValueError, match=r"^explanations: got 11"):
        closeness.path_similarity(of_queries, of_paths.take(torch.arange(11)))


def test_self_consistency_of_a_shift_that_loses_what_leaves_the_range():
    """I adds 0.1 (bin - own) and clamps to [0, 1]: the reversal loses what was clamped."""
    query = torch.tensor([0.05, 0.95])[:, None, None, None].expand(2, 1, 3, 3)
    own = torch.tensor([2, 2])
    current = {}

    def explain(images, bins):
        # the state of an image: the bin that it was last moved to
        before = current.get(id(images), own)
        moved = (images + 0.1 * (bins - before)[:, None, None, None]).clamp(0, 1)
        current[id(moved)] = bins
        current.setdefault("keep", []).append(moved)  # no id is used twice
        return moved

    found = closeness.self_consistency(explain, query, own, bins=4)
    torch.testing.assert_close(found["identity"], torch.zeros(2).double())
    lost = torch.tensor([[0.15, 0.05, 0, 0], [0, 0, 0, 0.05]]).double()
    torch.testing.assert_close(found["reversal"], lost, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match=r"^own: got"):
        closeness.self_consistency(explain, query, own.float())


def test_l1_error_is_the_mean_over_elements():
    query = torch.zeros(2, 3, 2, 2)
    image = query.clone()
    image[1, 0, 0, 0], image[1, 2, 1, 1] = 0.6, -0.6
    assert closeness.l1_error(query, image).tolist() == pytest.approx([0, 0.1])
    with pytest.raises(ValueError, match=r"^image: got"):
        closeness.l1_error(query, image[:1])


@pytest.fixture
def groups():
    gen = torch.Generator().manual_seed(3)
    real, fake = torch.randn(120, 4, generator=gen), torch.randn(200, 4, generator=gen)
    f_real, f_fake = torch.rand(120, generator=gen), torch.rand(200, generator=gen)
    f_real[:3], f_fake[:3] = torch.tensor([0.9, 1.0, 0.1]), torch.tensor([0.1, 0.0, 0.9])
    return Features(real, "E", ()), f_real.double(), Features(fake, "E", ()), f_fake.double()


def test_fid_by_group_compares_real_and_generated_images_of_the_same_response(groups):
    real, f_real, fake, f_fake = groups
    rows = fid_groups.fid_by_group(real, f_real, fake, f_fake, smallest=5)
    assert list(rows) == ["fid_embedded", "fid_embedded_present", "fid_embedded_absent"]
    inside = {
        "fid_embedded": lambda f: f >= 0,
        "fid_embedded_present": lambda f: f >= 0.9,
        "fid_embedded_absent": lambda f: f <= 0.1,
    }
    for name, chosen in inside.items():
        value, n, note = rows[name]
        a, b = real.values[chosen(f_real)], fake.values[chosen(f_fake)]
        assert value == pytest.approx(frechet_distance(a, b), rel=1e-12)
        assert n == len(b) and f"against {len(a)} real" in note
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    again = fid_groups.fid_by_group(real, f_real, fake.take(order), f_fake[order], smallest=5)
    assert again["fid_embedded_present"][0] == pytest.approx(rows["fid_embedded_present"][0])


def test_the_official_name_needs_the_official_network_and_small_groups_have_no_value(groups):
    real, f_real, fake, f_fake = groups
    official = [Features(f.values, "Inception", ("fid",)) for f in (real, fake)]
    rows = fid_groups.fid_by_group(official[0], f_real, official[1], f_fake * 0.5, smallest=5)
    assert list(rows) == ["fid", "fid_present", "fid_absent"]
    value, n, note = rows["fid_present"]
    assert np.isnan(value) and n == 0 and "too few, at least 5" in note
    assert np.isfinite(rows["fid"][0])
    with pytest.raises(ValueError, match=r"^fake_response: got"):
        fid_groups.fid_by_group(real, f_real, fake, f_fake[:-1])
    with pytest.raises(ValueError, match=r"^smallest: got 1"):
        fid_groups.fid_by_group(real, f_real, fake, f_fake, smallest=1)


def test_a_group_without_biased_note_has_twice_as_many_images_as_features(groups):
    real, f_real, fake, f_fake = groups
    rows = fid_groups.fid_by_group(real, f_real, fake, f_fake, smallest=2)
    assert "biased" not in rows["fid_embedded"][2]
    few = torch.arange(7)
    rows = fid_groups.fid_by_group(real, f_real, fake.take(few), f_fake[few], smallest=2)
    assert "biased: under 8 images" in rows["fid_embedded"][2]


def test_the_difference_of_two_fids_is_paired_by_query():
    """Both methods share large query effects; only a paired interval excludes 0."""
    gen = torch.Generator().manual_seed(0)
    real = Features(torch.randn(300, 3, generator=gen), "E", ())
    base = 2 * torch.randn(40, 1, 3, generator=gen)
    ours = base + 0.1 * torch.randn(40, 5, 3, generator=gen)
    worse = ours * 1.15
    a, b = (Features(v.flatten(0, 1), "E", ()) for v in (ours, worse))
    found = fid_groups.fid_difference(real, a, b, 40, draws=100)
    exact = frechet_distance(real.values, a.values) - frechet_distance(real.values, b.values)
    assert found["mean"] == pytest.approx(exact) and found["n"] == 40
    assert found["high"] < 0  # measured -0.84 .. -0.40
    swapped = fid_groups.fid_difference(real, b, a, 40, draws=100)
    assert swapped["low"] == pytest.approx(-found["high"])
    # the same method: no difference, whatever the draw
    same = fid_groups.fid_difference(real, a, a, 40, draws=5)
    assert same["low"] == same["mean"] == same["high"] == 0
    # explanations of other queries are another draw of pairs: wider
    order = torch.randperm(40, generator=gen)
    shuffled = Features(worse[order].flatten(0, 1), "E", ())
    wide = fid_groups.fid_difference(real, a, shuffled, 40, draws=100)
    assert wide["mean"] == pytest.approx(exact)
    assert wide["high"] - wide["low"] > 2 * (found["high"] - found["low"])
    with pytest.raises(ValueError, match=r"^n: got 7"):
        fid_groups.fid_difference(real, a, b, 7)
