"""Folds, class weights, and the networks of lung CT that are trained on them."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

from cf_utils.models.agent import Agent
from cf_utils.training import loop
from cf_utils.training.folds import balanced_loss, class_weights, split_folds, train_folds
from cf_utils.training.recipes import distillation


def labels(n=57, ones=16):
    y = torch.zeros(n, dtype=torch.int64)
    y[torch.randperm(n, generator=torch.Generator().manual_seed(0))[:ones]] = 1
    return y


# ---------------------------------------------------------------- folds


def test_folds_validate_each_item_once_and_keep_the_share_of_classes():
    y = labels()
    folds = split_folds(y, 5, seed=1)
    assert torch.cat([fold.validation for fold in folds]).sort().values.tolist() == list(range(57))
    for fold in folds:
        assert not set(fold.train.tolist()) & set(fold.validation.tolist())
        assert len(fold.train) + len(fold.validation) == 57
        assert int(y[fold.validation].sum()) in (3, 4)
    again, other = split_folds(y, 5, seed=1), split_folds(y, 5, seed=2)
    assert all(torch.equal(a.train, b.train) for a, b in zip(folds, again, strict=True))
    assert not torch.equal(folds[0].validation, other[0].validation)


def test_a_fold_with_one_class_and_a_patient_without_label_are_errors():
    with pytest.raises(ValueError, match=r"y: got 53 and 4 patients .* a fold would hold one"):
        split_folds(labels(ones=4), 5)
    with pytest.raises(ValueError, match="too few of class 0"):
        split_folds(torch.ones(20, dtype=torch.int64), 5)
    y = labels()
    y[[3, 9]] = -1
    with pytest.raises(ValueError, match=r"y: rows \[3, 9\] have no label"):
        split_folds(y)
    with pytest.raises(ValueError, match=r"y: got torch\.float32"):
        split_folds(labels().float())


def test_class_weights_balance_the_loss():
    y = labels()
    weights = class_weights(y)
    assert (weights[y][y == 0].sum() - weights[y][y == 1].sum()).abs() < 1e-4
    assert weights[y].mean().item() == pytest.approx(1)
    logits = torch.randn(57, 2, generator=torch.Generator().manual_seed(2))
    by_class = [F.cross_entropy(logits[y == c], y[y == c]) for c in (0, 1)]
    torch.testing.assert_close(balanced_loss(logits, y, weights), sum(by_class) / 2)
    with pytest.raises(ValueError, match=r"y: got \[5, 0\] items per class"):
        class_weights(torch.zeros(5, dtype=torch.int64))


class Constant(nn.Module):
    """Stands for a model of one fold."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(1))


def test_the_model_with_the_best_sum_of_rates_is_kept():
    y, seen, built = labels(), [], []

    def build():
        built.append(Constant())
        return built[-1]

    def fit(model, rows, folder):
        seen.append((set(rows.tolist()), folder.name))
        model.fold = len(seen) - 1
        return {"seconds": 2.0}

    def predict(model, rows):
        """Fold 1 says 1 always (sum 1), fold 3 finds half of the deaths, others say 0."""
        decision = torch.zeros(len(rows), dtype=torch.int64)
        if model.fold == 1:
            decision[:] = 1
        if model.fold == 3:
            decision[y[rows].nonzero().flatten()[0]] = 1
        return F.one_hot(decision, 2).float()

    model, log = train_folds(build, fit, predict, y, 5, 7, Path("state"))
    assert model is built[3] and log["chosen"] == 3 and log["seconds"] == 10.0
    assert [name for _, name in seen] == [f"fold{i}" for i in range(5)]
    assert [row["sensitivity"] for row in log["folds"]][:3] == [0, 1, 0]
    assert all(
        rows == set(f.train.tolist())
        for (rows, _), f in zip(seen, split_folds(y, 5, 7), strict=True)
    )
    first = built[2].weight.item()
    torch.rand(100)  # another state of the global generator
    train_folds(build, fit, predict, y, 5, 7, Path("state"))
    assert built[7].weight.item() == first != built[6].weight.item()


# ---------------------------------------------------------------- the recipes


def test_training_the_agent_recovers_a_linear_teacher():
    """Features that are linear in the codes: every objective finds a matching agent."""
    gen = torch.Generator().manual_seed(0)
    codes, weight = torch.randn(400, 12, generator=gen), 0.3 * torch.randn(5, 12, generator=gen)
    head = nn.Linear(5, 2)
    features = codes @ weight.T
    logits = head(features).detach()
    for objective in ("l1", "mse", "kl"):
        agent = Agent(3, 5)
        agent.copy_head(head)
        part = loop.Part(functools.partial(distillation.agent_loss, objective=objective), lr=0.03)
        loop.fit(agent, TensorDataset(codes, features, logits), [part], epochs=25, batch_size=50)
        divergence = F.kl_div(
            agent(codes).log_softmax(1),
            logits.log_softmax(1),
            reduction="batchmean",
            log_target=True,
        )
        assert divergence < 2e-3, objective
        assert torch.equal(agent.head.weight, head.weight)
        if objective != "kl":  # the divergence leaves directions that the head ignores free
            torch.testing.assert_close(agent.linear.weight.detach(), weight, atol=0.05, rtol=0)


def test_the_loss_of_a_teacher_shifts_images_and_weighs_classes():
    x, y = torch.rand(6, 4, 16, 16), torch.tensor([0, 0, 0, 0, 1, 1])
    mean = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    expected = balanced_loss(mean(x), y, torch.tensor([0.75, 1.5]))
    found = distillation.teacher_loss(mean, (x, y), [0.75, 1.5], 3)  # its mean ignores shifts
    torch.testing.assert_close(found, expected)
    corner = nn.Sequential(nn.Flatten(), nn.Linear(4 * 256, 2))
    draws = {
        round(distillation.teacher_loss(corner, (x, y), [0.75, 1.5], 3).item(), 6) for _ in range(9)
    }
    assert len(draws) > 3
