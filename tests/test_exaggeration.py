"""Progressive exaggeration: the explainer on a generator whose answers are known in closed form."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cf_utils.explainers.exaggeration import Exaggeration, choose_bin
from cf_utils.models.generators.cgan import ConditionalGAN

K = 10


class Knob(ConditionalGAN):
    """A generator that sets the mean of each channel to the bin's centre and keeps the texture."""

    def __init__(self, offset=0.0):
        super().__init__(channels=1, size=16, widths=(2, 2), blocks=1, critic=2)
        self.offset = offset

    def encode(self, x):
        return x - x.mean((1, 2, 3), keepdim=True)

    def decode(self, z, bins=None):
        return z + (bins[:, None, None, None] + 0.5) / K + self.offset


class Brightness(nn.Module):
    """f(x) is the mean brightness."""

    def forward(self, x):
        p = x.mean((1, 2, 3)).clamp(1e-6, 1 - 1e-6)
        return torch.stack([torch.zeros_like(p), p.logit()], 1)


def queries(*means):
    texture = 0.02 * (torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0)) - 0.5)
    texture = texture - texture.mean()
    return torch.tensor(means)[:, None, None, None] + texture


def test_the_counterfactual_is_the_nearest_bin_that_reaches_tau():
    x = queries(0.12, 0.44, 0.93)
    cfs = Exaggeration(gan=Knob(), tau=0.7)(Brightness(), x, torch.tensor([1, 1, 0]))
    # centres 0.75 >= 0.7 for class 1; 1 - 0.25 >= 0.7 for class 0
    torch.testing.assert_close(cfs.score, torch.tensor([0.75, 0.75, 0.75]))
    torch.testing.assert_close(cfs.counterfactual, queries(0.75, 0.75, 0.25))
    assert cfs.reached.all()


def test_tau_chooses_the_bin():
    x, target = queries(0.12), torch.tensor([1])
    scores = [
        Exaggeration(gan=Knob())(Brightness(), x, target, tau=t).score.item()
        for t in (0.5, 0.6, 0.9)
    ]
    assert scores == pytest.approx([0.55, 0.65, 0.95], abs=1e-4)


def test_the_path_is_the_query_and_the_whole_progression():
    x = queries(0.12, 0.93)
    cfs = Exaggeration(gan=Knob())(Brightness(), x, torch.tensor([1, 0]))
    assert cfs.path.shape == (2, 1 + K, 1, 16, 16) and cfs.path_len.tolist() == [1 + K] * 2
    torch.testing.assert_close(cfs.path[:, 0], x)
    means = cfs.path[:, 1:].mean((2, 3, 4))
    torch.testing.assert_close(means, ((torch.arange(K) + 0.5) / K).expand(2, K))


def test_an_unreachable_tau_gives_the_best_bin_and_a_reason():
    cfs = Exaggeration(gan=Knob(), tau=0.99)(Brightness(), queries(0.12), torch.tensor([1]))
    assert cfs.score.item() == pytest.approx(0.95, abs=1e-4)
    assert cfs.valid.all() and not cfs.reached.any() and cfs.reason == ("score below tau",)


def test_passes_are_counted():
    cfs = Exaggeration(gan=Knob())(Brightness(), queries(0.12, 0.93, 0.97), torch.tensor([1, 0, 1]))
    # the third is at its target already: one pass to see that
    assert cfs.n_forward.tolist() == [1 + K + 1 + 1, 1 + K + 1 + 1, 1]
    assert cfs.n_forward_generator.tolist() == [1 + K, 1 + K, 0]
    assert not cfs.n_backward.any()


def test_zero_edit_is_the_own_bin():
    x = queries(0.12, 0.93)
    explain = Exaggeration(gan=Knob(), classifier=Brightness())
    torch.testing.assert_close(explain.zero_edit(x), queries(0.15, 0.95))
    with pytest.raises(ValueError, match="classifier: got None"):
        Exaggeration(gan=Knob()).zero_edit(x)


def test_progress_expects_steps_of_one_bin():
    x = queries(0.12, 0.93)
    found = Exaggeration(gan=Knob()).progress(Brightness(), x, batch_size=1)
    assert found.own.tolist() == [1, 9]
    torch.testing.assert_close(found.source, torch.tensor([0.12, 0.93]), atol=1e-4, rtol=0)
    expected = torch.stack([0.12 + (torch.arange(K) - 1) / K, 0.93 + (torch.arange(K) - 9) / K])
    torch.testing.assert_close(found.expected, expected.clamp(0, 1), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.actual, ((torch.arange(K) + 0.5) / K).expand(2, K))
    torch.testing.assert_close(found.images[0], found.images[1])  # the queries share a texture


def test_batches_do_not_matter():
    x, target = queries(0.12, 0.93, 0.31), torch.tensor([1, 0, 1])
    explain = Exaggeration(gan=Knob())
    together = explain(Brightness(), x, target)
    for i in range(3):
        alone = explain(Brightness(), x[i : i + 1], target[i : i + 1])
        torch.testing.assert_close(alone.counterfactual, together.counterfactual[i : i + 1])
        torch.testing.assert_close(alone.path, together.path[i : i + 1])


@given(st.data())
def test_chosen_bin_by_brute_force(data):
    score = torch.tensor(data.draw(st.lists(st.floats(0, 1), min_size=K, max_size=K)))
    own, target = data.draw(st.integers(0, K - 1)), data.draw(st.integers(0, 1))
    tau = data.draw(st.floats(0.05, 0.95))
    way = list(range(own + 1, K)) if target else list(range(own - 1, -1, -1))
    way = way or [own]
    reached = [k for k in way if score[k] >= tau]
    found = choose_bin(score[None], torch.tensor([own]), torch.tensor([target]), tau).item()
    if reached:
        assert found == reached[0]
    else:
        assert found in way and score[found] == max(score[k] for k in way)


def test_bad_input_is_named():
    explain = Exaggeration(gan=Knob())
    with pytest.raises(ValueError, match=r"x: got images of shape \(3, 16, 16\), the GAN expects"):
        explain(Brightness(), torch.rand(2, 3, 16, 16), torch.tensor([1, 1]))
    three = nn.Sequential(nn.Flatten(), nn.Linear(256, 3))
    with pytest.raises(ValueError, match="classifier: got 3 classes, expected 2"):
        explain(three, queries(0.3), torch.tensor([1]))
    colour = nn.Sequential(nn.Conv2d(3, 2, 16), nn.Flatten())
    with pytest.raises(ValueError, match=r"x: got torch.float32 of shape \(1, 1, 16, 16\)"):
        explain(colour, queries(0.3), torch.tensor([1]))
