"""Data on the CPU, networks on a GPU: what asks a network answers on the device of its input, and a result lies on the CPU.

Fake tensors know their device and refuse to mix two, without a GPU; what looks at values needs a real one.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from cf_utils import core
from cf_utils.core import Counterfactuals
from cf_utils.evaluation import baselines
from cf_utils.evaluation.metrics import saliency
from cf_utils.explainers.ace import ACE
from cf_utils.models import classifiers, oracles
from cf_utils.models.generators import diffusion

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


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, 2)
    ).eval()


def moved(module):
    """module.cuda(), which fake tensors do not allow."""

    def there(own):
        return {
            k: v if v is None else torch.empty(v.shape, dtype=v.dtype, device="cuda")
            for k, v in own.items()
        }

    for one in module.modules():
        one._parameters |= {
            k: v if v is None else nn.Parameter(v) for k, v in there(one._parameters).items()
        }
        one._buffers |= there(one._buffers)
    return module


def test_a_fake_gpu_refuses_what_a_real_one_would(fake):
    with pytest.raises(RuntimeError, match="device"):
        moved(net())(torch.rand(2, 3, 16, 16))


def test_a_classifier_is_asked_on_its_device_and_answers_on_that_of_its_input(fake):
    logits = classifiers.predict(moved(net()), torch.rand(5, 3, 16, 16), batch_size=2)
    assert logits.shape == (5, 2) and logits.device.type == "cpu"
    assert classifiers.predict(net(), torch.rand(5, 3, 16, 16, device="cuda")).device.type == "cuda"


def test_a_prior_answers_where_it_is_asked(fake):
    model, z = moved(diffusion.build(**TINY)).eval(), torch.rand(2, 3, 16, 16)
    for images, t in ((z, torch.zeros(2, dtype=torch.int64)), (z.to("cuda"), 3)):
        with torch.no_grad():
            assert model(images, t).device == images.device


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_prior_that_says_v_looks_its_level_up_where_the_image_is(fake, monkeypatch, device):
    """A table on the CPU cannot be indexed from a GPU; fake tensors do not mind, so what reaches the lookup is compared."""
    asked, own = [], diffusion.Schedule.noise_in
    monkeypatch.setattr(
        diffusion.Schedule,
        "noise_in",
        lambda self, z, k, v: asked.append((z, k, v)) or own(self, z, k, v),
    )
    model = moved(diffusion.build(**TINY, prediction="v")).eval()
    with torch.no_grad():
        model(
            torch.rand(2, 3, 16, 16, device=device),
            torch.zeros(2, dtype=torch.int64, device=device),
        )
    assert [one.device.type for one in asked[0]] == [device] * 3


def test_an_oracle_reads_images_from_anywhere(fake):
    oracle = moved(oracles.FactorOracle(("smile", "age"), (16, 16), widths=(8, 8))).eval()
    value, disagreement = oracle.read(torch.rand(5, 3, 16, 16), batch_size=2)
    assert value.shape == disagreement.shape == (5, 2)
    assert value.device.type == disagreement.device.type == "cpu"


def test_a_result_goes_to_the_cpu(fake):
    images, numbers = torch.empty(2, 3, 4, 4, device="cuda"), torch.empty(2, device="cuda")
    one = Counterfactuals(
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
    there = one.cpu()
    assert all(v.device.type == "cpu" for v in vars(there).values() if isinstance(v, torch.Tensor))
    assert there.mask.shape == one.mask.shape and there.path is None and there.ids == one.ids


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpus_explanations_join_those_from_files(tmp_path):
    f, prior, x = net().cuda(), diffusion.build(**TINY).to("cuda").eval(), torch.rand(4, 3, 16, 16)
    target, ids = 1 - classifiers.predict(f, x).argmax(1), torch.arange(4)
    explain = ACE(prior=prior, spacing="10", steps=2, iterations=2, dilation=3)
    whole = core.explain_in_batches(explain, f, x, target, ids, batch_size=2, folder=tmp_path)
    (
        max(tmp_path.iterdir()) / "result.json"
    ).unlink()  # the second batch is searched again, the first read
    again = core.explain_in_batches(explain, f, x, target, ids, batch_size=2, folder=tmp_path)
    assert again.counterfactual.device.type == "cpu"
    torch.testing.assert_close(again.counterfactual, whole.counterfactual)
    assert (
        explain.with_(attacked=whole, stage="fr")(f, x, target, ids).counterfactual.device.type
        == "cpu"
    )
    assert baselines.PGD()(f, x, target, ids).valid.device.type == "cpu"
    assert saliency.gradient(f, x, target).device.type == "cpu"
