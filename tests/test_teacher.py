"""The black box of DiffExplainer and its agent: second implementations and closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from cf_utils.models import checkpoints
from cf_utils.models.agent import OBJECTIVES, Agent, distillation_loss
from cf_utils.models.cards import Card
from cf_utils.models.image_classifiers import SmallDenseNet
from cf_utils.models.teacher import Teacher
from tests.slice_models import D, F, S, make_agent

SMALL = {"growth": 4, "blocks": (1, 2), "first": 8}


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- teacher


def test_the_small_teacher_is_the_small_densenet_with_slices_as_channels():
    teacher = Teacher(slices=3, outputs=2, **SMALL).eval()
    twin = SmallDenseNet(outputs=2, pool=True, **SMALL).eval()
    twin.load_state_dict(teacher.state_dict())
    x = rand(3, 3, 32, 32)
    torch.testing.assert_close(teacher(x), twin(x))
    assert teacher.features(x).shape == (3, teacher.n_features)


def test_the_split_of_densenet121_is_torchvisions_forward():
    teacher = Teacher(network="densenet121").eval()
    x = rand(2, 4, 64, 64)
    with torch.no_grad():
        features = teacher.features(x)
        assert features.shape == (2, 1024)  # as many as the paper's agent has neurons
        expected = teacher.net(2 * x - 1)
        torch.testing.assert_close(teacher.classify(features), expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(teacher(x), expected, atol=1e-5, rtol=0)


def test_the_teacher_refuses_other_inputs_and_settings():
    teacher = Teacher(**SMALL)
    with pytest.raises(ValueError, match=r"x: got shape \(2, 3, 32, 32\)"):
        teacher(rand(2, 3, 32, 32))
    for argument, value in {"network": "resnet", "slices": 0, "outputs": 1}.items():
        with pytest.raises(ValueError, match=f"{argument}: got"):
            Teacher(**{argument: value})


# ---------------------------------------------------------------- agent


def test_the_agent_is_linear_in_the_joined_codes():
    agent, codes = make_agent(), torch.randn(6, S * D, dtype=torch.float64)
    contrast = agent.head.weight[1] - agent.head.weight[0]
    slope = contrast @ agent.linear.weight
    offset = contrast @ agent.linear.bias + agent.head.bias[1] - agent.head.bias[0]
    logits = agent(codes)
    torch.testing.assert_close(logits[:, 1] - logits[:, 0], codes @ slope + offset)


def test_the_mean_of_codes_is_one_weight_for_all_slices():
    mean, concat = make_agent(join="mean"), make_agent()
    with torch.no_grad():
        concat.linear.weight.copy_(mean.linear.weight.repeat(1, S) / S)
        concat.linear.bias.copy_(mean.linear.bias)
        concat.head.load_state_dict(mean.head.state_dict())
    codes = torch.randn(6, S * D, dtype=torch.float64)
    torch.testing.assert_close(mean(codes), concat(codes))
    mixed = codes.unflatten(1, (S, D)).flip(1).flatten(1)
    torch.testing.assert_close(mean(mixed), mean(codes))
    assert not torch.allclose(make_agent()(mixed), make_agent()(codes))


def test_the_objectives_equal_loops():
    agent, n = make_agent(), 4
    gen = torch.Generator().manual_seed(5)
    codes, features = (torch.randn(n, k, generator=gen).double() for k in (S * D, F))
    logits = agent.head(features).detach()
    found = {o: distillation_loss(agent, codes, features, logits, o).item() for o in OBJECTIVES}
    away = (agent.features(codes) - features).flatten().tolist()
    assert found["l1"] == pytest.approx(sum(abs(a) for a in away) / (n * F))
    assert found["mse"] == pytest.approx(sum(a * a for a in away) / (n * F))
    p, q = logits.softmax(1).tolist(), agent(codes).softmax(1).tolist()
    total = sum(a * math.log(a / b) for i in range(n) for a, b in zip(p[i], q[i], strict=True))
    assert found["kl"] == pytest.approx(total / n)
    exact = distillation_loss(agent, codes, features, agent(codes), "kl").item()
    assert exact == pytest.approx(0, abs=1e-12)


def test_the_head_is_copied_and_never_trained():
    agent, head = make_agent(), torch.nn.Linear(F, 2).double()
    agent.copy_head(head)
    assert torch.equal(agent.head.weight, head.weight)
    before = agent.linear.weight.detach().clone()
    optimiser = torch.optim.AdamW(agent.parameters(), lr=0.1, weight_decay=1.0)
    codes = torch.randn(5, S * D, dtype=torch.float64)
    agent(codes).square().sum().backward()
    optimiser.step()
    assert torch.equal(agent.head.weight, head.weight) and torch.equal(agent.head.bias, head.bias)
    assert not torch.equal(agent.linear.weight, before)


def test_the_agent_refuses_other_codes_heads_and_settings():
    agent = make_agent()
    with pytest.raises(ValueError, match=r"codes: got shape \(2, 11\), expected \(B, 12\)"):
        agent(torch.zeros(2, 11).double())
    with pytest.raises(ValueError, match=r"head: got weights \(2, 3\), expected \(2, 5\)"):
        agent.copy_head(torch.nn.Linear(3, 2))
    with pytest.raises(ValueError, match="join: got 'sum'"):
        Agent(D, F, join="sum")
    with pytest.raises(ValueError, match="objective: got 'l2'"):
        distillation_loss(agent, torch.zeros(1, 12).double(), torch.zeros(1, 5), agent.head, "l2")


def test_both_are_checkpoints(tmp_path):
    arguments = {"latent": D, "features": F, "slices": S, "join": "mean"}
    card = Card(architecture={"class": "Agent", "arguments": arguments})
    agent = Agent(**arguments)
    checkpoints.save("small_agent", agent, card, tmp_path, half=False)
    loaded = checkpoints.load("small_agent", kind="agent", folder=tmp_path).model
    codes = torch.randn(3, S * D)
    torch.testing.assert_close(loaded(codes), agent(codes))
    card = Card(architecture={"class": "Teacher", "arguments": SMALL | {"blocks": [1, 2]}})
    teacher = Teacher(**SMALL).eval()
    checkpoints.save("small_teacher", teacher, card, tmp_path, half=False)
    loaded = checkpoints.load("small_teacher", kind="classifier", folder=tmp_path).model
    x = rand(2, 4, 32, 32)
    torch.testing.assert_close(loaded(x), teacher(x), atol=1e-5, rtol=1e-4)
