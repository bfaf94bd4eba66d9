"""What the image notebooks explain: the shipped case as its card says, and clear errors before any work on official ones."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from cf_utils import core
from cf_utils.harness import cases
from cf_utils.models import checkpoints, pretrained

SHIPPED = all(
    (checkpoints.FOLDER / f"{name}.json").exists() for name in ("faces_ddpm", "faces_smile_causal")
)


@pytest.mark.skipif(not SHIPPED, reason="no shipped models of faces")
def test_the_rendered_case_is_right_on_most_faces_and_its_prior_knows_their_size():
    case = cases.rendered_case("faces", "smile", n=64)
    assert (
        case.name == "faces (embedded)"
        and len(case.data) == 64
        and case.data.x.shape[1:] == (3, 64, 64)
    )
    with torch.no_grad():
        logits = case.classifier(case.data.x)
    assert (
        logits.shape == (64, 2) and (logits.argmax(1) == case.data.y).double().mean() >= 0.93
    )  # 0.98 on 2,000
    assert case.prior.size == (64, 64) and case.ace.prior is case.dime.prior is case.prior
    assert next(iter(case.uses)) == "smile"  # uses are sorted by what they do to the probability


def test_what_is_missing_is_named_before_any_work(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="dataset: got 'ffhq', expected one of"):
        cases.official_case("ffhq", str(tmp_path), "smile", 4)
    with pytest.raises(FileNotFoundError, match="celeba"):
        cases.official_case("celeba", str(tmp_path), "smile", 4)
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)

    class Listed:
        class_names, y = ("Male", "Young", "Smiling"), torch.eye(3, dtype=torch.int64)

    for dataset, module in (
        ("celeba", cases.celeba),
        ("celebahq", cases.celebahq),
        ("bdd", cases.bdd),
        ("bdd100k", cases.bdd),
        ("imagenet", cases.imagenet_pairs),
    ):
        monkeypatch.setattr(module, "load", lambda *args, **settings: Listed())
        file = pretrained.FILES[f"{dataset.removesuffix('100k')}_classifier"].file
        label = {"bdd": "action", "bdd100k": "action", "imagenet": "zebra-sorrel"}.get(
            dataset, "smile"
        )
        with pytest.raises(FileNotFoundError, match=f"{file} is missing.*How to get it: https://"):
            cases.official_case(dataset, "somewhere", label, 4)
    for dataset, label in (("bdd", "smile"), ("imagenet", "action"), ("celebahq", "Eyeglasses")):
        with pytest.raises(ValueError, match=f"label: got '{label}', expected one of"):
            cases.official_case(dataset, "somewhere", label, 4)


class Outputs(nn.Module):
    """Output k is (k + 1) times the mean of the image."""

    def __init__(self, n):
        super().__init__()
        self.n = n

    def forward(self, x):
        return x.flatten(1).mean(1, keepdim=True) * (torch.arange(self.n) + 1)


FORTY = (*(f"a{k}" for k in range(31)), "Smiling", *(f"a{k}" for k in range(32, 39)), "Young")


@pytest.mark.parametrize(
    ("dataset", "label", "outputs", "of", "column", "ace", "steps"),
    [
        ("celeba", "smile", 40, (31,), 31, "celeba", 60),
        ("celeba", "age", 40, (39,), 39, "celeba", 60),
        ("celebahq", "smile", 3, (1,), 31, "celebahq", 60),
        ("celebahq", "age", 3, (2,), 39, "celebahq", 60),
        ("bdd", "action", 4, (0,), None, "bdd", 45),
        ("bdd100k", "action", 4, (0,), None, "bdd", 45),
        ("imagenet", "zebra-sorrel", 1000, (340, 339), None, "imagenet", 60),
        ("imagenet", "cheetah-cougar", 1000, (293, 286), None, "imagenet", 60),
    ],
)
def test_an_official_case_asks_the_right_output(
    tmp_path, monkeypatch, dataset, label, outputs, of, column, ace, steps
):
    """Everything but the files: which output of the published network, which presets, which attribute, which data settings."""
    asked, x = [], torch.rand(3, 3, 8, 8)

    class Data(SimpleNamespace):
        def __len__(self):
            return len(self.x)

        def take(self, rows):
            return Data(**{**vars(self), "x": self.x[list(rows)]})

        def in_memory(self):
            return self

    own = dataset.removesuffix("100k")
    loader = {
        "celeba": cases.celeba,
        "celebahq": cases.celebahq,
        "bdd": cases.bdd,
        "imagenet": cases.imagenet_pairs,
    }[own]

    def load(root, split, *more, **settings):
        asked.append((split, more, settings))
        return Data(x=x, y=torch.eye(40, dtype=torch.int64), class_names=FORTY)

    monkeypatch.setattr(loader, "load", load)
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    monkeypatch.setattr(pretrained, "find", lambda name: name)
    monkeypatch.setattr(
        cases.image_classifiers, "load_published", lambda path, name, on: Outputs(outputs)
    )
    monkeypatch.setattr(cases.guided, "load", lambda path, name, on: (path, name))
    case = cases.official_case(dataset, "somewhere", label, 2, seed=3, broken="skip")
    assert asked[0][0] == cases.SPLITS[dataset] and all(s["broken"] == "skip" for _, _, s in asked)
    assert asked[0][2].get("crop") == (178 if dataset == "celeba" else None) and len(case.data) == 2
    logits, mean = case.classifier(x), x.flatten(1).mean(1)
    if len(of) == 1:
        torch.testing.assert_close(logits[:, 1] - logits[:, 0], mean * (of[0] + 1))
    else:
        torch.testing.assert_close(logits, mean[:, None] * (torch.tensor(of) + 1))
    assert core.describe(case.ace.with_(prior=None)) == core.describe(
        getattr(cases.ACE, ace)(None, seed=3)
    )
    assert (
        case.dime.steps == steps
        and case.fastdime.fast
        and case.prior == (f"{own}_ddpm", own)
        and case.attribute == column
    )


def test_training_labels_say_what_goes_with_the_attribute(tmp_path):
    y = torch.tensor([[0, 1, 0], [1, 1, 1], [0, 0, 1], [1, 0, 1]])

    def source(root, split, attribute):
        assert (root, split, attribute) == ("somewhere", "train", None)
        return SimpleNamespace(y=y, class_names=("Male", "Young", "Smiling"))

    column, training = cases.together(source, "somewhere", "Smiling")
    assert column == 2
    torch.testing.assert_close(training, torch.tensor(np.corrcoef(y.T.numpy())[2]))

    def nothing(*_):
        raise FileNotFoundError("no images")

    assert cases.together(nothing, "somewhere", "Smiling") == (None, None)


@pytest.mark.skipif(not SHIPPED, reason="no shipped models of faces")
def test_a_rendered_case_knows_what_goes_with_its_label_in_its_variant():
    tied, free = (
        cases.rendered_case("faces", "smile", n=2, variant=v) for v in ("correlated", "independent")
    )
    assert tied.training[tied.attribute] == 1.0 and tied.data.label_names[tied.attribute] == "smile"
    others = torch.arange(len(tied.training)) != tied.attribute
    assert tied.training[others].abs().max() > 0.15 > 0.06 > free.training[others].abs().max()


def test_a_pair_is_two_outputs_in_their_order():
    net = nn.Linear(4, 6)
    x = torch.randn(3, 4)
    assert torch.equal(cases.Pair(net, 5, 2)(x), net(x)[:, [5, 2]])
