"""Data on the CPU and networks on a GPU: results return to the device of the input, or to the CPU.

Fake tensors know their device and refuse to mix two, without a GPU. Tests of values need a GPU.
"""

from __future__ import annotations

import contextlib
import dataclasses

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from cf_utils import core
from cf_utils.core import Counterfactuals
from cf_utils.evaluation import baselines
from cf_utils.evaluation.metrics import saliency
from cf_utils.explainers.ace import ACE
from cf_utils.explainers.shared.diffusion import count_passes
from cf_utils.models import classifiers, oracles
from cf_utils.models.agent import Agent
from cf_utils.models.generators import diffusion
from cf_utils.models.teacher import Teacher
from cf_utils.training.recipes import distillation

TINY = {
    "size": (16, 16),
    "steps": 50,
    "widths": (8, 16),
    "attention": (False, False),
    "blocks": 1,
    "head_width": 8,
    "groups": 4,
}


@pytest.fixture
def fake():
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield mode


def build_classifier():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, 2)
    return nn.Sequential(*layers).eval()


def move_to_fake_gpu(module):
    """Do what module.cuda() does, which fake tensors do not allow."""

    def empty_on_gpu(value):
        return torch.empty(value.shape, dtype=value.dtype, device="cuda")

    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                part._parameters[name] = nn.Parameter(empty_on_gpu(value))
        for name, value in part._buffers.items():
            if value is not None:
                part._buffers[name] = empty_on_gpu(value)
    return module


def test_a_fake_gpu_refuses_data_on_the_cpu(fake):
    with pytest.raises(RuntimeError, match="device"):
        move_to_fake_gpu(build_classifier())(torch.rand(2, 3, 16, 16))


def test_a_classifier_predicts_on_its_device_and_returns_to_that_of_its_input(fake):
    on_gpu = move_to_fake_gpu(build_classifier())
    logits = classifiers.predict(on_gpu, torch.rand(5, 3, 16, 16), batch_size=2)
    assert logits.shape == (5, 2) and logits.device.type == "cpu"
    x = torch.rand(5, 3, 16, 16, device="cuda")
    assert classifiers.predict(build_classifier(), x).device.type == "cuda"


def test_a_prior_returns_to_the_device_of_its_input(fake):
    model = move_to_fake_gpu(diffusion.build(**TINY)).eval()
    z = torch.rand(2, 3, 16, 16)
    for images, t in ((z, torch.zeros(2, dtype=torch.int64)), (z.to("cuda"), 3)):
        with torch.no_grad():
            assert model(images, t).device == images.device


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_prior_that_predicts_v_indexes_its_levels_on_the_device_of_the_image(
    fake, monkeypatch, device
):
    """A GPU index cannot read a CPU table. Fake tensors allow it, so the arguments are checked."""
    calls, original = [], diffusion.Schedule.noise_from_v

    def spy(self, z, k, v):
        calls.append((z, k, v))
        return original(self, z, k, v)

    monkeypatch.setattr(diffusion.Schedule, "noise_from_v", spy)
    model = move_to_fake_gpu(diffusion.build(**TINY, prediction="v")).eval()
    t = torch.zeros(2, dtype=torch.int64, device=device)
    with torch.no_grad():
        model(torch.rand(2, 3, 16, 16, device=device), t)
    assert [value.device.type for value in calls[0]] == [device] * 3


def test_an_oracle_reads_images_from_the_cpu(fake):
    oracle = oracles.FactorOracle(("smile", "age"), (16, 16), widths=(8, 8))
    value, disagreement = (
        move_to_fake_gpu(oracle).eval().read(torch.rand(5, 3, 16, 16), batch_size=2)
    )
    assert value.shape == disagreement.shape == (5, 2)
    assert value.device.type == disagreement.device.type == "cpu"


def test_a_prior_on_a_gpu_runs_in_the_autocast_of_the_gpu(fake, monkeypatch):
    """Images may be on the CPU, as in a zero edit; the prior moves them."""
    used = []

    def autocast(device_type, dtype, enabled):
        used.append((device_type, dtype, enabled))
        return contextlib.nullcontext()

    monkeypatch.setattr(torch, "autocast", autocast)
    prior = move_to_fake_gpu(diffusion.build(**TINY)).eval()
    z, t = torch.rand(2, 3, 16, 16), torch.zeros(2, dtype=torch.int64)
    count_passes(prior, 2, bfloat16=True).module((z, t))
    assert used == [("cuda", torch.bfloat16, True)]


def test_an_agent_on_a_gpu_is_measured_on_codes_on_the_cpu(fake, monkeypatch):
    def measure(build, fit, predict, y, *rest):
        agent = move_to_fake_gpu(build())
        return agent, {"logits": predict(agent, torch.tensor([2, 0, 1]))}

    monkeypatch.setattr(distillation, "train_folds", measure)
    for part in ("copy_head", "set_covariance"):  # compare values, which fake tensors lack
        monkeypatch.setattr(Agent, part, lambda *arguments: None)
    teacher = Teacher(growth=4, blocks=(1, 2), first=8)
    table = torch.rand(5, 12), torch.rand(5, teacher.head.in_features), torch.rand(5, 2)
    arguments = {"latent": 3, "features": teacher.head.in_features}
    _, log = distillation.fit_agent(teacher, table, arguments, {"objective": "l1"}, 0, None)
    assert log["logits"].shape == (3, 2) and log["logits"].device.type == "cpu"


def test_a_result_moves_to_the_cpu(fake):
    images, numbers = torch.empty(2, 3, 4, 4, device="cuda"), torch.empty(2, device="cuda")
    on_gpu = Counterfactuals(
        query=images,
        counterfactual=images,
        target=numbers,
        source=numbers,
        score=numbers,
        valid=numbers,
        reached=numbers,
        reason=("", ""),
        ids=("a", "b"),
        settings={},
        seed=0,
        seconds=torch.empty(2),
        n_forward=torch.empty(2),
        n_backward=torch.empty(2),
        mask=images,
    )
    moved = on_gpu.cpu()
    values = [getattr(moved, field.name) for field in dataclasses.fields(moved)]
    assert all(v.device.type == "cpu" for v in values if isinstance(v, torch.Tensor))
    assert moved.mask.shape == images.shape and moved.path is None and moved.ids == on_gpu.ids


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_explanations_of_a_gpu_join_stored_ones(tmp_path):
    f, x = build_classifier().cuda(), torch.rand(4, 3, 16, 16)
    prior = diffusion.build(**TINY).to("cuda").eval()
    target, ids = 1 - classifiers.predict(f, x).argmax(1), torch.arange(4)
    explain = ACE(prior=prior, spacing="10", steps=2, iterations=2, dilation=3)
    whole = core.explain_in_batches(explain, f, x, target, ids, batch_size=2, folder=tmp_path)
    (max(tmp_path.iterdir()) / "result.json").unlink()  # compute the second batch again
    again = core.explain_in_batches(explain, f, x, target, ids, batch_size=2, folder=tmp_path)
    assert again.counterfactual.device.type == "cpu"
    torch.testing.assert_close(again.counterfactual, whole.counterfactual)
    filtered = explain.with_(reuse=whole, stage="fr")(f, x, target, ids)
    assert filtered.counterfactual.device.type == "cpu"
    assert explain.zero_edit(x, ids).device.type == "cpu"
    assert baselines.PGD()(f, x, target, ids).valid.device.type == "cpu"
    assert saliency.gradient(f, x, target).device.type == "cpu"
