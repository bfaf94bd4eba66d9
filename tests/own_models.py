"""Classifiers that a user could bring; the tests name them as `tests.own_models:function`."""

from __future__ import annotations

import torch
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

not_a_function = 3


def small_network() -> nn.Module:
    """A network of grey images 12 x 12, three classes."""
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(100, 3)
    return nn.Sequential(*layers)


def ends_in_softmax() -> nn.Module:
    return nn.Sequential(small_network(), nn.Softmax(1))


def one_sigmoid() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(144, 1), nn.Sigmoid())


def forest() -> RandomForestClassifier:
    data = load_breast_cancer(as_frame=True)
    return RandomForestClassifier(20, random_state=0).fit(data.data, data.target)


def logistic():
    data = load_breast_cancer()
    return make_pipeline(StandardScaler(), LogisticRegression()).fit(data.data, data.target)


def ridge() -> RidgeClassifier:
    data = load_breast_cancer()
    return RidgeClassifier().fit(data.data, data.target)


def a_class():
    return nn.Identity


def nonsense() -> object:
    return object()
