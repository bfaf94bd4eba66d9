"""The training loop: resume equals an uninterrupted run, the average is the average, every part steps."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

from cf_utils.training.loop import Part, fit


def data(n=40):
    gen = torch.Generator().manual_seed(0)
    x = torch.randn(n, 4, generator=gen)
    return TensorDataset(x, (x.sum(1) > 0).long())


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2)
    )


def loss(module, batch):
    x, y = batch
    return F.cross_entropy(
        module(x + 0.1 * torch.randn_like(x)), y
    )  # augmentation draws: these must resume as well


def run(model, **kw):
    return fit(
        model,
        data(),
        [Part(loss, lr=0.01)],
        **({"epochs": 4, "batch_size": 8, "device": "cpu"} | kw),
    )


def same(a, b):
    return all(
        torch.equal(p, q)
        for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def test_readers_ahead_change_nothing():
    """Batches that two processes read are the ones that this process reads, in their order."""
    alone, ahead = net(), net()
    logs = [run(alone, epochs=2), run(ahead, epochs=2, workers=2)]
    assert same(alone, ahead) and logs[0]["losses"] == logs[1]["losses"]


class KilledError(Exception):
    pass


@pytest.mark.parametrize("total", [1, 2, 3, 5, 9, 10])
def test_a_short_training_has_a_schedule(total):
    """Of 5 steps the rise would be one step long, and OneCycleLR divided by 0."""
    log = fit(net(), data(8), [Part(loss, lr=0.01)], epochs=total, batch_size=8, device="cpu")
    assert log["steps"] == total


@pytest.mark.parametrize("ema", [None, 0.9])
def test_killed_and_resumed_is_uninterrupted_bit_for_bit(tmp_path, ema):
    whole = net()
    log = run(whole, ema=ema)
    killed, steps = net(), []

    def dies(model, step):
        steps.append(step)
        if step == 13:  # in the third epoch: its steps are lost and redone
            raise KilledError
        return False

    with pytest.raises(KilledError):
        run(killed, ema=ema, folder=tmp_path, stop=dies)
    torch.rand(5)  # the resumed process has another past
    resumed = net()
    nn.init.constant_(resumed[0].weight, 9.0)
    again = run(resumed, ema=ema, folder=tmp_path, stop=lambda m, s: steps.append(s) or False)
    assert same(resumed, whole)
    assert again["losses"] == log["losses"]
    assert again["steps"] == log["steps"] == 20
    assert steps == [*range(1, 14), *range(11, 21)]
    third = net()
    run(third, ema=ema, folder=tmp_path)  # nothing left to do
    assert same(third, whole)
    other = net()
    run(other, ema=ema, seed=1)
    assert not same(other, whole)


@pytest.mark.parametrize("ema", [0.3, 0.8])
def test_moving_average_by_hand(ema):
    model, track, buffers = net(), [], []

    def watch(m, step):
        track.append(m[0].weight.detach().clone())
        buffers.append(m[1].running_mean.clone())
        return False

    run(model, ema=ema, epochs=2, stop=watch)
    for history, got in ((track, model[0].weight), (buffers, model[1].running_mean)):
        average = history[0]
        for n, value in enumerate(history[1:], 1):  # the first weights are forgotten sooner
            decay = min(ema, (1 + n) / (10 + n))
            average = decay * average + (1 - decay) * value
        torch.testing.assert_close(got.detach(), average, rtol=0, atol=1e-6)
    assert not torch.allclose(model[0].weight, track[-1])


def test_without_schedule_it_is_plain_adamw():
    model, plain = nn.Linear(4, 2), nn.Linear(4, 2)
    plain.load_state_dict(model.state_dict())
    fit(
        model,
        data(8),
        [
            Part(
                lambda m, b: F.cross_entropy(m(b[0]), b[1]),
                lr=0.05,
                schedule=False,
                weight_decay=0.1,
            )
        ],
        epochs=5,
        batch_size=8,
        device="cpu",
    )
    adam = torch.optim.AdamW(plain.parameters(), lr=0.05, weight_decay=0.1)
    x, y = data(8).tensors
    for _ in range(5):
        adam.zero_grad()
        F.cross_entropy(plain(x), y).backward()
        adam.step()
    torch.testing.assert_close(
        model.weight, plain.weight, rtol=0, atol=1e-6
    )  # shuffled: sums differ by rounding


def test_two_parts_step_in_turn_each_on_its_own_parameters():
    model = nn.ModuleDict({"a": nn.Linear(4, 2), "b": nn.Linear(4, 2)})
    start = {k: v.clone() for k, v in model.state_dict().items()}
    seen = []

    def part(name, lr):
        def own_loss(m, batch):
            seen.append((name, m["a"].weight.detach().clone()))
            return F.cross_entropy(m["a"](batch[0]) + m["b"](batch[0]), batch[1])

        return Part(own_loss, lr=lr, parameters=lambda m: m[name].parameters(), schedule=False)

    log = fit(
        model, data(), [part("a", 0.05), part("b", 0.0)], epochs=2, batch_size=8, device="cpu"
    )
    assert [n for n, _ in seen] == ["a", "b"] * 10
    assert not torch.equal(seen[0][1], seen[1][1])  # b's loss is taken after a has stepped
    assert not torch.equal(model["a"].weight, start["a.weight"])
    assert torch.equal(
        model["b"].weight, start["b.weight"]
    )  # lr 0: its own rate, and a's steps do not touch it
    assert len(log["losses"]) == 2
    assert all(len(row) == 2 for row in log["losses"])
    both = nn.ModuleDict({"a": nn.Linear(4, 2), "b": nn.Linear(4, 2)})
    start = {k: v.clone() for k, v in both.state_dict().items()}
    fit(both, data(), [part("a", 0.05), part("b", 0.05)], epochs=1, batch_size=8, device="cpu")
    assert all(not torch.equal(v, start[k]) for k, v in both.state_dict().items())


def test_stop_and_clip():
    model = net()
    log = run(model, stop=lambda m, s: s == 7)
    assert (log["steps"], log["epochs"]) == (7, 2)
    assert not model.training
    seen = []

    def watched(module, batch):
        return 1e4 * loss(module, batch)

    clipped = net()
    clipped[0].weight.register_post_accumulate_grad_hook(
        lambda p: seen.append(p.grad.norm().item())
    )
    fit(clipped, data(), [Part(watched, lr=0.01)], epochs=1, batch_size=8, clip=1.0, device="cpu")
    assert min(seen) > 10  # large before clipping
    assert clipped[0].weight.grad.norm() <= 1.0 + 1e-5


SHARED = """
import sys, torch
from cf_utils.training import Part, fit
from torch.utils.data import TensorDataset
torch.manual_seed(0)
model, seen, drawn = torch.nn.Linear(4, 1).double(), [], []
x = torch.arange(48.0, dtype=torch.float64).view(12, 4) / 48

def loss(module, batch):
    seen.append(batch[0]); drawn.append(torch.rand(()))
    return (module(batch[0]).squeeze(1) - batch[1]).square().mean()

log = fit(model, TensorDataset(x, x.sum(1)), [Part(loss, 0.1)], epochs=2, batch_size=4, ema=0.5, clip=0.5, device="cpu")
torch.save({"weight": model.weight.detach(), "seen": torch.stack(seen), "drawn": torch.stack(drawn), "steps": log["steps"]},
           sys.argv[1] + "/" + __import__("os").environ.get("RANK", "alone"))
"""


def test_processes_share_each_batch_and_end_as_one_would(tmp_path):
    """Two of them see halves of what one sees, draw other noise, and their (averaged) weights are the one's."""
    script, env = tmp_path / "shared.py", {**os.environ, "OMP_NUM_THREADS": "1"}
    script.write_text(SHARED)
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for how in ([sys.executable], two):
        subprocess.run([*how, str(script), str(tmp_path)], check=True, env=env, timeout=240)
    alone, first, second = (
        torch.load(tmp_path / name, weights_only=True) for name in ("alone", "0", "1")
    )
    assert alone["steps"] == first["steps"] == 6 and first["seen"].shape == (6, 2, 4)
    both = torch.cat([first["seen"], second["seen"]], 1).sort(1).values
    assert torch.equal(both, alone["seen"].sort(1).values)
    assert (
        torch.equal(first["drawn"], alone["drawn"])
        and not torch.isclose(first["drawn"], second["drawn"]).any()
    )
    torch.testing.assert_close(first["weight"], alone["weight"], rtol=0, atol=1e-12)
    assert torch.equal(first["weight"], second["weight"])
