"""The training loop: resuming, the moving average, several parts, and several processes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

from cf_utils.datasets.base import OnDisk
from cf_utils.training import fingerprint, state
from cf_utils.training.loop import Part, fit
from cf_utils.training.progress import report


def make_data(n=40, seed=0):
    gen = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=gen)
    return TensorDataset(x, (x.sum(1) > 0).long())


def make_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2)
    )


def noisy_loss(module, batch):
    """Cross-entropy with random augmentation, whose draws must resume as well."""
    x, y = batch
    return F.cross_entropy(module(x + 0.1 * torch.randn_like(x)), y)


def run(model, **changes):
    arguments = {"epochs": 4, "batch_size": 8, "device": "cpu"} | changes
    data = arguments.pop("data", make_data())
    parts = arguments.pop("parts", [Part(noisy_loss, lr=0.01)])
    return fit(model, data, parts, **arguments)


def equal_weights(a, b):
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(p, q) for p, q in pairs)


def test_loading_in_other_processes_changes_nothing():
    """Two worker processes deliver the batches of a single process, in the same order."""
    alone, ahead = make_net(), make_net()
    logs = [run(alone, epochs=2), run(ahead, epochs=2, workers=2)]
    assert equal_weights(alone, ahead) and logs[0]["losses"] == logs[1]["losses"]


class KilledError(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("total", [1, 2, 3, 5, 9, 10])
def test_a_short_training_has_a_schedule(total):
    """With 5 steps the rise would last one step, and OneCycleLR would divide by 0."""
    log = run(make_net(), data=make_data(8), epochs=total)
    assert log["steps"] == total


@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_resumed_training_equals_an_uninterrupted_one_bit_for_bit(tmp_path, ema):
    whole = make_net()
    log = run(whole, ema=ema)
    killed, steps = make_net(), []

    def die(model, step):
        steps.append(step)
        if step == 13:  # in the third epoch, whose steps are repeated
            raise KilledError
        return False

    with pytest.raises(KilledError):
        run(killed, ema=ema, folder=tmp_path, stop=die)
    torch.rand(5)  # the resumed process has another random state
    resumed = make_net()
    nn.init.constant_(resumed[0].weight, 9.0)
    again = run(resumed, ema=ema, folder=tmp_path, stop=lambda m, s: steps.append(s) or False)
    assert equal_weights(resumed, whole)
    assert again["losses"] == log["losses"]
    assert again["steps"] == log["steps"] == 20
    assert steps == [*range(1, 14), *range(11, 21)]
    third = make_net()
    run(third, ema=ema, folder=tmp_path)  # nothing is left to do
    assert equal_weights(third, whole)
    other = make_net()
    run(other, ema=ema, seed=1)
    assert not equal_weights(other, whole)


def other_loss(module, batch):
    return noisy_loss(module, batch)


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"seed": 1}, "seed: saved 0, current 1"),
        ({"epochs": 5}, "epochs: saved 4, current 5"),
        ({"batch_size": 4}, "batch_size: saved 8, current 4"),
        ({"ema": 0.9}, "ema: saved None, current 0.9"),
        ({"clip": 1.0}, "clip: saved None, current 1.0"),
        ({"settings": {"noise": 0.2}}, "settings.noise: saved 0.1, current 0.2"),
        ({"data": make_data(seed=1)}, "data: saved '"),
        ({"parts": [Part(noisy_loss, lr=0.02)]}, "part 0.lr: saved 0.01, current 0.02"),
        (
            {"parts": [Part(noisy_loss, lr=0.01, betas=(0.5, 0.999))]},
            "part 0.betas: saved [0.9, 0.999], current [0.5, 0.999]",
        ),
        ({"parts": [Part(other_loss, lr=0.01)]}, "part 0.loss: saved 'tests.test_training.noisy"),
    ],
)
def test_the_state_of_another_training_is_refused_and_the_difference_named(
    tmp_path, changes, difference
):
    same = {"folder": tmp_path, "settings": {"noise": 0.1}}
    run(make_net(), **same)
    before = (tmp_path / "state.pt").read_bytes()
    with pytest.raises(ValueError, match="folder: got a state of another training in") as error:
        run(make_net(), **(same | changes))
    assert difference in str(error.value)
    assert str(error.value).count("saved") == 1  # nothing else differs
    assert (tmp_path / "state.pt").read_bytes() == before
    run(make_net(), **same)


def test_the_state_of_another_module_is_refused(tmp_path):
    run(make_net(), folder=tmp_path)
    wide = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 2))
    with pytest.raises(ValueError, match=r"another training .*module: saved 'Sequential"):
        run(wide, folder=tmp_path)


def test_a_state_without_fingerprint_and_a_damaged_one_are_refused(tmp_path):
    run(make_net(), folder=tmp_path)
    path = tmp_path / "state.pt"
    whole = path.read_bytes()
    content = torch.load(path, weights_only=True)
    del content["fingerprint"]
    torch.save(content, path)
    with pytest.raises(ValueError, match="without a record of its settings and data"):
        run(make_net(), folder=tmp_path)
    for damaged in (b"", b"no state", whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"unreadable state in .*state\.pt"):
            run(make_net(), folder=tmp_path)


def test_an_interrupted_write_keeps_the_old_state(tmp_path, monkeypatch):
    run(make_net(), folder=tmp_path)
    before, save = (tmp_path / "state.pt").read_bytes(), torch.save

    def die(content, path):
        save(content, path)
        path.write_bytes(path.read_bytes()[:100])
        raise KilledError

    monkeypatch.setattr(state.torch, "save", die)
    with pytest.raises(KilledError):
        state.StateFile(tmp_path / "state.pt", {}).write({"log": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]
    assert (tmp_path / "state.pt").read_bytes() == before


def test_a_stopped_training_is_not_continued(tmp_path):
    stopped, again = make_net(), make_net()
    log = run(stopped, folder=tmp_path, stop=lambda m, step: step == 7)
    assert (log["steps"], log["epochs"]) == (7, 2)
    assert run(again, folder=tmp_path, stop=lambda m, step: False) == log
    assert equal_weights(stopped, again)


def test_the_hash_of_a_data_set_depends_on_content_and_labels_and_not_on_its_folder(tmp_path):
    first = fingerprint.hash_dataset(make_data())
    assert first == fingerprint.hash_dataset(make_data())
    assert first != fingerprint.hash_dataset(make_data(seed=1))
    x, y = make_data().tensors
    assert first != fingerprint.hash_dataset(TensorDataset(x, 1 - y))
    assert first != fingerprint.hash_dataset(torch.utils.data.ConcatDataset([make_data()]))

    def on_disk(folder, names, label):
        y = torch.tensor([label, 0])
        return OnDisk(folder, names, torch.load, y, torch.arange(2), ("a", "b"), "official")

    here = fingerprint.hash_dataset(on_disk(tmp_path, ("1.jpg", "2.jpg"), 1))
    assert here == fingerprint.hash_dataset(on_disk(tmp_path / "moved", ("1.jpg", "2.jpg"), 1))
    assert here != fingerprint.hash_dataset(on_disk(tmp_path, ("1.jpg", "3.jpg"), 1))
    assert here != fingerprint.hash_dataset(on_disk(tmp_path, ("1.jpg", "2.jpg"), 0))


def test_each_epoch_is_reported_where_no_terminal_shows_a_bar(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    monkeypatch.delenv("CF_HEADLESS", raising=False)
    run(make_net(), epochs=2)
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("epoch 1/2: loss 0.") and second.startswith("epoch 2/2: loss 0.")
    monkeypatch.setenv("CF_HEADLESS", "1")  # a notebook that papermill runs
    report("nothing")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("ema", [0.3, 0.8])
def test_moving_average_by_hand(ema):
    model, track, buffers = make_net(), [], []

    def watch(m, step):
        track.append(m[0].weight.detach().clone())
        buffers.append(m[1].running_mean.clone())
        return False

    run(model, ema=ema, epochs=2, stop=watch)
    for history, got in ((track, model[0].weight), (buffers, model[1].running_mean)):
        average = history[0]
        for n, value in enumerate(history[1:], 1):  # the first weights decay faster
            decay = min(ema, (1 + n) / (10 + n))
            average = decay * average + (1 - decay) * value
        torch.testing.assert_close(got.detach(), average, rtol=0, atol=1e-6)
    assert not torch.allclose(model[0].weight, track[-1])


def test_without_schedule_it_is_plain_adamw():
    model, plain = nn.Linear(4, 2), nn.Linear(4, 2)
    plain.load_state_dict(model.state_dict())

    def loss(module, batch):
        return F.cross_entropy(module(batch[0]), batch[1])

    part = Part(loss, lr=0.05, schedule=False, weight_decay=0.1)
    run(model, data=make_data(8), parts=[part], epochs=5)
    adam = torch.optim.AdamW(plain.parameters(), lr=0.05, weight_decay=0.1)
    x, y = make_data(8).tensors
    for _ in range(5):
        adam.zero_grad()
        F.cross_entropy(plain(x), y).backward()
        adam.step()
    # the order of the rows differs, so sums differ by rounding
    torch.testing.assert_close(model.weight, plain.weight, rtol=0, atol=1e-6)


def test_two_parts_step_in_turn_each_on_its_own_parameters():
    model = nn.ModuleDict({"a": nn.Linear(4, 2), "b": nn.Linear(4, 2)})
    start = {k: v.clone() for k, v in model.state_dict().items()}
    seen = []

    def part(name, lr):
        def own_loss(m, batch):
            seen.append((name, m["a"].weight.detach().clone()))
            return F.cross_entropy(m["a"](batch[0]) + m["b"](batch[0]), batch[1])

        return Part(own_loss, lr=lr, parameters=lambda m: m[name].parameters(), schedule=False)

    log = run(model, parts=[part("a", 0.05), part("b", 0.0)], epochs=2)
    assert [n for n, _ in seen] == ["a", "b"] * 10
    assert not torch.equal(seen[0][1], seen[1][1])  # b's loss is computed after a's step
    assert not torch.equal(model["a"].weight, start["a.weight"])
    # rate 0 of b: it has its own rate, and the steps of a do not change it
    assert torch.equal(model["b"].weight, start["b.weight"])
    assert len(log["losses"]) == 2
    assert all(len(row) == 2 for row in log["losses"])
    both = nn.ModuleDict({"a": nn.Linear(4, 2), "b": nn.Linear(4, 2)})
    start = {k: v.clone() for k, v in both.state_dict().items()}
    run(both, parts=[part("a", 0.05), part("b", 0.05)], epochs=1)
    assert all(not torch.equal(v, start[k]) for k, v in both.state_dict().items())


def test_stop_ends_the_training_and_clip_bounds_the_gradient():
    model = make_net()
    log = run(model, stop=lambda m, s: s == 7)
    assert (log["steps"], log["epochs"]) == (7, 2)
    assert not model.training
    seen = []

    def watched(module, batch):
        return 1e4 * noisy_loss(module, batch)

    clipped = make_net()
    clipped[0].weight.register_post_accumulate_grad_hook(
        lambda p: seen.append(p.grad.norm().item())
    )
    run(clipped, parts=[Part(watched, lr=0.01)], epochs=1, clip=1.0)
    assert min(seen) > 10  # large before clipping
    assert clipped[0].weight.grad.norm() <= 1.0 + 1e-5


SHARED = """
import os, sys, torch
from cf_utils.training.loop import Part, fit
from torch.utils.data import TensorDataset
torch.manual_seed(0)
model, seen, drawn = torch.nn.Linear(4, 1).double(), [], []
x = torch.arange(48.0, dtype=torch.float64).view(12, 4) / 48

def loss(module, batch):
    seen.append(batch[0]); drawn.append(torch.rand(()))
    return (module(batch[0]).squeeze(1) - batch[1]).square().mean()

settings = {"epochs": 2, "batch_size": 4, "ema": 0.5, "clip": 0.5, "device": "cpu"}
log = fit(model, TensorDataset(x, x.sum(1)), [Part(loss, 0.1)], **settings)
found = {"weight": model.weight.detach(), "seen": torch.stack(seen), "drawn": torch.stack(drawn)}
torch.save(found | {"steps": log["steps"]}, sys.argv[1] + "/" + os.environ.get("RANK", "alone"))
"""


def test_two_processes_share_each_batch_and_end_with_the_weights_of_one(tmp_path):
    """Each sees half of every batch and draws other noise; their averaged weights are equal."""
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
