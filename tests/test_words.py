"""Gradual construction on words against loops over the vocabulary, and its independences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cf_utils.core import NAN, target_score
from cf_utils.explainers import presets, truncate_at_tau
from cf_utils.explainers.gradual_words import GradualWords, find_nearest, list_replacements
from cf_utils.models import classifiers

D, V = 4, 12
EXACT = {"rtol": 0, "atol": 1e-9}


def make_classifier(seed=0) -> nn.Module:
    """Return a small max-pooling network that decides for both classes about equally often."""
    torch.manual_seed(seed)
    net = classifiers.TextCNN(D, filters=6, widths=(2, 3), dropout=0.0).double()
    with torch.no_grad():
        net.head.weight.mul_(6)
        z = net(make_reviews(64, seed=5)[0])
        net.head.bias.sub_(z.mean(0))
    return net


def make_vocabulary(seed=3) -> Tensor:
    """Return V word vectors, (V, D)."""
    return torch.randn(V, D, generator=torch.Generator().manual_seed(seed)).double()


def make_reviews(n=6, length=7, tail=3, seed=1) -> tuple[Tensor, Tensor]:
    """Return x (n, length + tail, D), the last `tail` vectors zero, and the rows of the words."""
    rows = torch.randint(0, V, (n, length), generator=torch.Generator().manual_seed(seed))
    return torch.cat([make_vocabulary()[rows], torch.zeros(n, tail, D).double()], 1), rows


def make_case(n=6, **changes):
    net, (x, rows) = make_classifier().eval(), make_reviews(n)
    with torch.no_grad():
        target = 1 - net(x).argmax(1)
    explain = presets.get("gradual_words", "imdb", "recommended").build(
        4.0 * torch.eye(2).double() - 2, vectors=make_vocabulary(), tau=0.8, shortlist=5, **changes
    )
    return net, x, rows, target, explain


def search_by_loops(net, x, target, e):
    """Search one review by loops over words, as the docstring of the module says.

    Returns: the counterfactual, the unmasked positions, the state after each step.
    """
    words, mean = make_vocabulary(), e.prototypes[target]
    z, on, states = x.clone(), [], []

    def loss(v):
        return (net(v[None])[0] - mean).norm() + e.lam * (v - x).norm()

    def differentiate(v):
        v = v.clone().requires_grad_(True)
        value = (net(v[None])[0] - mean).norm()
        away = (v - x).norm()
        return torch.autograd.grad(value + (e.lam * away if away > 0 else 0), v)[0]

    while len(on) < e.max_blocks:
        gradient = differentiate(z)
        gains = {
            p: max(float(-gradient[p] @ (w - z[p])) for w in words)
            for p in range(len(x))
            if p not in on and x[p].any()
        }
        if not gains:
            break
        at = max(gains, key=lambda p: (gains[p], -p))
        for p in [at, *sorted(on)]:
            gradient = differentiate(z)
            short = sorted(range(V), key=lambda w: -float(-gradient[p] @ words[w]))[: e.shortlist]
            best, best_loss = z.clone(), loss(z)
            for w in short:
                tried = z.clone()
                tried[p] = words[w]
                if loss(tried) < best_loss:
                    best, best_loss = tried, loss(tried)
            z = best
        on.append(at)
        states.append(z.clone())
        with torch.no_grad():
            if net(z[None]).softmax(1)[0, target] >= e.tau:
                break
    return z, on, states


def test_the_search_equals_loops_over_words():
    net, x, _, target, e = make_case()
    cfs = e(net, x, target)
    assert cfs.reached.sum() >= 3 and (cfs.path_len > 2).any()  # measured 6 of 6, up to 3 words
    for i in range(len(x)):
        z, on, states = search_by_loops(net, x[i], target[i], e)
        torch.testing.assert_close(cfs.counterfactual[i], z, atol=1e-12, rtol=0)
        assert sorted(on) == cfs.mask[i].any(1).nonzero().flatten().tolist()
        assert cfs.path_len[i] == 1 + len(states)
        torch.testing.assert_close(cfs.path[i, len(states)], states[-1], atol=1e-12, rtol=0)


def test_changed_words_are_real_and_padding_stays():
    net, x, rows, target, e = make_case()
    for explain in (e, e.with_(compose="embedding", steps=30, init="normal")):
        cfs = explain(net, x, target)
        away = torch.cdist(cfs.counterfactual[:, :7], make_vocabulary()).amin(2)
        assert away.max() <= 1e-12
        assert not cfs.counterfactual[:, 7:].any() and not cfs.mask[:, 7:].any()
        for i, changed in enumerate(list_replacements(cfs, make_vocabulary())):
            for p, old, new in changed:
                assert rows[i, p] == old != new
                assert torch.equal(make_vocabulary()[new], cfs.counterfactual[i, p])


def test_the_embedding_form_scores_real_words_and_keeps_the_vectors_on_the_path():
    net, x, _, target, e = make_case()
    e = e.with_(compose="embedding", steps=200, lam=0.0, tau=0.9)
    cfs = e(net, x, target)
    with torch.no_grad():
        before = target_score(net(cfs.path[torch.arange(6), cfs.path_len - 1]), target)
        after = target_score(net(cfs.counterfactual), target)
    assert (before >= 0.9).all()  # vectors reach tau for all six
    torch.testing.assert_close(cfs.score, after)
    assert (cfs.reached == (after >= 0.9)).all() and not cfs.reached.all()
    assert all(why for ok, why in zip(cfs.reached, cfs.reason, strict=True) if not ok)


@pytest.mark.parametrize("compose", ["vocabulary", "embedding"])
def test_a_review_does_not_depend_on_batch_padding_or_a_failing_review(compose):
    net, x, _, target, e = make_case()
    e = e.with_(compose=compose, steps=40)
    whole = e(net, x, target)
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    permuted = e(net, x[order], target[order]).counterfactual
    torch.testing.assert_close(permuted, whole.counterfactual[order], **EXACT)
    alone = torch.cat([e(net, x[i : i + 1], target[i : i + 1]).counterfactual for i in range(6)])
    torch.testing.assert_close(alone, whole.counterfactual, **EXACT)
    longer = e(net, torch.cat([x, torch.zeros(6, 4, D).double()], 1), target)
    torch.testing.assert_close(longer.counterfactual[:, :10], whole.counterfactual, **EXACT)

    class NanOnceChanged(nn.Module):
        def forward(self, v):
            z = net(v)
            moved = (v != x[:1]).flatten(1).any(1) & (
                (v[:, :, 0] == x[0, :, 0]).double().mean(1) > 0.85
            )
            return torch.where(moved[:, None], torch.nan, z)  # once review 0 has changed

    broken = e(NanOnceChanged(), x, target)
    expected = "budget of 7" if compose == "vocabulary" else NAN  # words that give NaN lose
    assert broken.reason[0].startswith(expected)
    assert not broken.reached[0] and torch.equal(broken.counterfactual[0], x[0])
    torch.testing.assert_close(broken.counterfactual[1:], whole.counterfactual[1:], **EXACT)


def test_noise_outside_every_window_gets_no_gradient_and_the_word_itself_does():
    """One filter of width 1: noise below the maximum gets no gradient from the class term."""
    net = classifiers.TextCNN(2, filters=1, widths=(1,), dropout=0.0).double().eval()
    with torch.no_grad():
        net.convolutions[0].weight.copy_(torch.tensor([1.0, 0.0]).view(1, 2, 1, 1))
        net.convolutions[0].bias.zero_()
        net.head.weight.copy_(torch.tensor([[-4.0], [4.0]]))
        net.head.bias.copy_(torch.tensor([6.0, -6.0]))  # positive where the maximum is over 1.5
    x = torch.zeros(1, 7, 2).double()
    x[0, 0], x[0, 1] = torch.tensor([1.0, 0.0]), torch.tensor([0.9, 0.0])  # decided negative
    e = GradualWords(
        torch.tensor([[4.0, -4.0], [-4.0, 4.0]]).double(),
        vectors=make_vocabulary()[:, :2],
        tau=0.6,
        max_blocks=1,
        shortlist=5,
        steps=300,
        lam=0.0,
    )
    low = next(
        s for s in range(50) if e.with_(seed=s)._draw_composite(x, [0], (None, None))[0, 0, 0] < 0.5
    )
    stuck = e.with_(seed=low)(net, x, torch.tensor([1]))
    assert stuck.n_backward[0] > 250
    assert stuck.path[0, 1, 0, 0] < 0.9  # no gradient: Adam moved nothing
    free = e.with_(seed=low, init="query")(net, x, torch.tensor([1]))
    assert free.path[0, 1, 0, 0] > 1.5  # starts from the word
    pulled = e.with_(seed=low, lam=0.3)(net, x, torch.tensor([1]))
    assert pulled.path[0, 1, 0, 0] > 0.9  # lam pulls it back to the word


@pytest.mark.parametrize("chunk", [2**24, 3 * V])
def test_find_nearest_equals_loops_for_both_metrics(chunk, monkeypatch):
    monkeypatch.setattr("cf_utils.explainers.gradual_words.CHUNK", chunk)  # one, or 3 points each
    points = torch.randn(40, D, generator=torch.Generator().manual_seed(6)).double()
    table = make_vocabulary()
    for metric, distance in (
        ("euclidean", lambda p, w: (p - w).norm()),
        ("cosine", lambda p, w: -torch.dot(p, w) / w.norm()),
    ):
        distances = torch.tensor([[distance(p, w) for w in table] for p in points])
        assert find_nearest(points, table, metric).tolist() == distances.argmin(1).tolist()
    assert find_nearest(points[:0], table).shape == (0,)


def test_gains_do_not_depend_on_the_chunk(monkeypatch):
    net, x, _, target, e = make_case()
    whole = e(net, x, target)
    monkeypatch.setattr("cf_utils.explainers.gradual_words.CHUNK", 2 * V * x.shape[1])
    parts = e(net, x, target)
    torch.testing.assert_close(parts.counterfactual, whole.counterfactual, atol=1e-12, rtol=0)


@pytest.mark.parametrize("compose", ["vocabulary", "embedding"])
def test_an_empty_review_fails_with_a_reason(compose):
    net, x, _, target, e = make_case()
    with torch.no_grad():
        blank = torch.cat([torch.zeros_like(x[:1]), x[1:]])
        wanted = 1 - net(blank).argmax(1)
    e = e.with_(compose=compose, steps=20)
    cfs, others = e(net, blank, wanted), e(net, x, target)
    assert cfs.reason[0] == "nothing in it may change"
    assert not cfs.mask[0].any() and torch.equal(cfs.counterfactual[0], blank[0])
    torch.testing.assert_close(cfs.counterfactual[1:], others.counterfactual[1:])


def test_a_path_of_vectors_is_not_truncated():
    net, x, _, target, e = make_case()
    assert truncate_at_tau(e(net, x, target), net, 0.5).valid.all()
    with pytest.raises(ValueError, match="holds vectors, not words"):
        truncate_at_tau(e.with_(compose="embedding", steps=5)(net, x, target), net, 0.5)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"init": "uniform"}, "init: got 'uniform'"),
        ({"vectors": torch.zeros(5, D + 1)}, "vectors: got"),
        ({"compose": "letters"}, "compose: got 'letters'"),
        ({"metric": "l1"}, "metric: got 'l1'"),
        ({"shortlist": V + 1}, "shortlist: got 13"),
        ({"shortlist": 0}, "shortlist: got 0"),
    ],
)
def test_bad_settings_are_named(changes, match):
    net, x, _, target, e = make_case()
    with pytest.raises(ValueError, match=match):
        e.with_(**changes)(net, x, target)
