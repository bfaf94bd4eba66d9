"""A case of ACE in the world of stripes: a small untrained prior, and everything else exact."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import torch
from torch import nn

from cf_utils.core import Counterfactuals
from cf_utils.harness.ace_cases import FaceCase, Sizes
from cf_utils.harness.cases import Case, Truth
from cf_utils.models.cards import Card
from cf_utils.models.generators import diffusion
from tests import stripes
from tests.test_ace import SMALL

SIZES = Sizes(2, 3, 3, 2, 1, 2, 2, 3, 4, 2, 2, 6)
READS = {"left": 0.9, "right": 0.2, "shade": 0.9}  # R^2 of the oracle


class Read(nn.Module):
    """Reads the stripes as attributes; the names are those of the factors."""

    names = ("left", "right", "shade")

    def forward(self, x):
        return 20 * (stripes.Perfect().read(x)[0] - 0.5)


def make_prior():
    torch.manual_seed(0)
    return diffusion.build(**SMALL).eval()


def make_truth(rows):
    columns = {name: {"r2": value} for name, value in READS.items()}
    return Truth(rows.factors, stripes.USES, Card(quality={"columns": columns}))


def make_case(n=4, prior=None, truth=True) -> FaceCase:
    """Return n stripes as faces; the classifier with a shortcut is the causal one, only sharper."""
    rows, f = stripes.data(), stripes.Stripe()
    data, linked, other = (rows.take(range(at, at + n)) for at in (0, 4, 8))
    part = {"prior": prior, "name": "stripes", "dataset": "faces"}
    if not truth:
        return FaceCase(**part, data=data, classifier=f, label="smile", sizes=SIZES, fresh=data)
    return FaceCase(
        **part,
        data=data,
        classifier=f,
        truth=make_truth(data),
        label="left",
        sizes=SIZES,
        fresh=rows.take(range(12, 18)),
        linked=Case(**part, data=linked, classifier=f, truth=make_truth(linked)),
        shortcut=Case(
            **part, data=other, classifier=stripes.Stripe(gain=40.0), truth=make_truth(other)
        ),
        attributes=Read(),
        oracle=stripes.Perfect(),
    )


def move(case: Case, **factors) -> Counterfactuals:
    """Return explanations of all queries that set factors to the given values."""
    rows = case.data
    target = 1 - case.classifier(rows.x).argmax(1)
    moves = {k: torch.as_tensor(v).expand(len(rows)).float() for k, v in factors.items()}
    x = stripes.render_moved(rows, **moves)
    cfs = stripes.make_counterfactuals(rows, case.classifier, x, target)
    passes = torch.full((len(rows),), 7)
    return dataclasses.replace(
        cfs, seconds=torch.full((len(rows),), 2.0).double(), n_forward_generator=passes
    )


def towards(case: Case) -> torch.Tensor:
    """Return the left stripe that has the target's decision, (B,)."""
    return 0.1 + 0.8 * (1 - case.classifier(case.data.x).argmax(1)).float()


class Recorder:
    """A run that explains at once and remembers what it was asked for."""

    def __init__(self, shard=(1, 1)):
        self.shard, self.calls = shard, {}

    def explain(self, name, method, f, x, target, ids, batch_size):
        self.calls[name] = SimpleNamespace(
            method=method, f=f, x=x, target=target, ids=ids, batch=batch_size
        )
        return None if self.shard != (1, 1) else method(f, x, target, ids)
