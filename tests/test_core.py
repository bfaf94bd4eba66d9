"""What all methods share: input checks, noise, the result, batches and shards."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn

from cf_utils import core
from cf_utils.core import (
    ALREADY,
    Counterfactuals,
    check_query,
    explain_in_batches,
    files,
    item_noise,
)
from cf_utils.models import classifiers
from tests.conftest import make_explainer, make_net, make_queries

X, T = torch.rand(4, 1, 3, 3), torch.tensor([0, 1, 2, 0])


# ---------------------------------------------------------------- input checks


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"x": (X - 0.13) / 0.31}, r"x: values from .*normalised"),
        ({"x": X * 255}, "x: values"),
        ({"x": X.index_fill(0, torch.tensor([2]), torch.nan)}, r"x: rows \[2\] hold NaN"),
        ({"x": X.index_fill(0, torch.tensor([1, 3]), torch.inf)}, r"x: rows \[1, 3\]"),
        ({"x": X[0, 0, 0]}, r"x: got shape \(3,\)"),
        ({"x": X[:0], "target": T[:0]}, "x: got shape"),
        ({"x": (X * 255).byte()}, "x: got torch.uint8"),
        ({"x": X.numpy()}, "x: got float32"),
        ({"x": [[0.5]]}, "x: got list"),
        ({"target": T.int()}, "target: got torch.int32"),
        ({"target": T[:3]}, r"target: got torch.int64 \(3,\)"),
        ({"target": T[:, None]}, "target: got"),
        ({"target": 3}, "target: got int"),
        ({"target": T.float()}, "target: got torch.float32"),
        ({"ids": torch.tensor([0, 1, 1, 2])}, "ids: got 4 ids, 3 distinct"),
        ({"ids": ["a", "b", "a", "c"]}, "3 distinct"),
        ({"ids": torch.arange(3)}, "ids: got 3 ids"),
        ({"ids": torch.rand(4)}, "ids: got torch.float32"),
        ({"ids": [1, 2, 3, 4]}, "ids: expected an int64 tensor or strings"),
        ({"tau": 0.0}, "tau: got 0"),
        ({"tau": 1.0}, "tau"),
        ({"tau": 90}, "tau"),
        ({"bounds": (1.0, 0.0)}, "bounds: got a low that is not below its high"),
    ],
)
def test_bad_input_is_named(changes, named):
    good = {"x": X, "target": T, "ids": None, "bounds": (0.0, 1.0), "tau": None}
    check_query(**good)
    with pytest.raises(ValueError, match=named):
        check_query(**{**good, **changes})


def test_valid_input_is_accepted():
    assert torch.equal(check_query(X, T), torch.arange(4))
    assert check_query(X, T, ["a", "b", "c", "d"]) == ("a", "b", "c", "d")
    check_query(X * 100 - 50, T, bounds=None)
    bounds = (torch.tensor([0.0, 10.0]), torch.tensor([1.0, 20.0]))  # per feature
    check_query(torch.tensor([[0.5, 15.0]]), T[:1], bounds=bounds)
    with pytest.raises(ValueError, match="per feature"):
        check_query(torch.tensor([[0.5, 5.0]]), T[:1], bounds=bounds)


@pytest.mark.parametrize(
    ("target", "named"),
    [([0, 3], "target: values from 0 to 3, expected 0 to 2"), ([-1, 0], "from -1")],
)
def test_target_out_of_range(net, target, named):
    x, _ = make_queries(net, 2)
    with pytest.raises(ValueError, match=named):
        make_explainer()(net, x, torch.tensor(target))


@pytest.mark.parametrize(
    "shape", [(2, 28, 28), (2, 784), (2, 3, 28, 28), (2, 1, 32, 32), (2, 1, 29, 29)]
)
def test_digits_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"x: got shape .*expected digits \(B, 1, 28, 28\)"):
        make_explainer(classes=10)(classifiers.MnistCNN(), torch.rand(shape), torch.tensor([0, 1]))


def test_input_that_a_classifier_rejects_is_refused(net):
    x, target = make_queries(net, 2, shape=(1, 6, 6))
    got = r"x: got torch.float64 of shape \(2, 1, 6, 5\)"
    with pytest.raises(ValueError, match=f"{got}, which this classifier does not accept"):
        make_explainer()(net, x[..., 1:], target)


@pytest.mark.parametrize("shape", [(1,), (), (3, 2)])
def test_a_classifier_without_logits_is_refused(net, shape):
    class Odd(nn.Module):
        def forward(self, x):
            return x.sum().expand(len(x), *shape)

    x, target = make_queries(net, 2)
    with pytest.raises(ValueError, match=r"classifier: gave .*OneOutput"):
        make_explainer()(Odd(), x, target)


# ---------------------------------------------------------------- noise


def test_noise_depends_on_seed_id_and_stream_alone():
    ids = torch.tensor([5, 3, 900])
    a = item_noise(0, ids, (2, 3), "s")
    assert torch.equal(item_noise(0, ids.flip(0), (2, 3), "s"), a.flip(0))
    assert torch.equal(item_noise(0, ids[1:2], (2, 3), "s")[0], a[1])
    assert torch.equal(item_noise(0, ["5"], (2, 3), "s")[0], a[0])  # an id is its text
    state = torch.get_rng_state()
    torch.manual_seed(77)
    assert torch.equal(item_noise(0, ids, (2, 3), "s"), a)  # the global generator has no effect
    torch.set_rng_state(state)
    others = [a[0], a[1], item_noise(1, ids, (2, 3), "s")[0], item_noise(0, ids, (2, 3), "r")[0]]
    assert all(not torch.equal(p, q) for i, p in enumerate(others) for q in others[:i])
    assert a.dtype == torch.float32


def test_noise_has_its_distribution():
    """Mean within 4 standard errors, and neighbours uncorrelated, over 2,000 items x 16."""
    z = item_noise(0, torch.arange(2000), (16,), "s")
    assert abs(z.mean()) < 4 / 32000**0.5  # measured 0.003
    assert abs(z.std() - 1) < 0.02  # measured 0.003
    assert abs(np.corrcoef(z[:-1].flatten(), z[1:].flatten())[0, 1]) < 0.025  # measured 0.004
    u = item_noise(0, torch.arange(2000), (16,), "s", "uniform")
    assert u.min() >= 0
    assert u.max() < 1
    excess = torch.histc(u, 10, 0, 1).sub(3200).abs().max()
    assert excess < 4 * (32000 * 0.09) ** 0.5  # measured 110, bound 215


# ---------------------------------------------------------------- the result


@pytest.fixture
def cfs(net):
    x, target = make_queries(net, 6)
    return make_explainer()(net, x, target, torch.tensor([4, 2, 9, 1, 0, 7]))


def equal(a: Counterfactuals, b: Counterfactuals, without=("seconds",)) -> None:
    for f in dataclasses.fields(a):
        p, q = getattr(a, f.name), getattr(b, f.name)
        if f.name in without:
            continue
        if isinstance(p, torch.Tensor):
            assert p.dtype == q.dtype, f.name
            assert torch.equal(p, q), f.name
        else:
            assert p == q, f.name


@pytest.mark.parametrize("ids", [torch.tensor([4, 2, 9, 1]), ("a", "b", "d", "c"), None])
def test_save_and_load(net, tmp_path, ids):
    x, target = make_queries(net, 4)
    cfs = make_explainer()(net, x, target, ids)
    cfs.save(tmp_path / "r")
    equal(Counterfactuals.load(tmp_path / "r"), cfs, without=())
    cfs.select([0, 1]).save(tmp_path / "r")  # over an old one: one tensors file stays
    assert len(Counterfactuals.load(tmp_path / "r")) == 2
    assert len(list((tmp_path / "r").iterdir())) == 2
    json.loads((tmp_path / "r" / "result.json").read_text())


def test_load_refuses_what_was_changed(cfs, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"result\.json"):
        Counterfactuals.load(tmp_path)
    cfs.save(tmp_path)
    (file,) = tmp_path.glob("tensors-*")
    raw = file.read_bytes()
    file.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"not the one that result\.json names"):
        Counterfactuals.load(tmp_path)
    file.unlink()
    with pytest.raises(ValueError, match="is missing"):
        Counterfactuals.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "0 bytes that are no saved result"),
        ('{"tensors": "t', "no saved result"),
        ("[1, 2]", "no saved result"),
        ('{"reason": [], "ids": null}', "no entry 'tensors'"),
    ],
    ids=["empty", "truncated", "another JSON", "without its entries"],
)
def test_a_damaged_result_file_is_named_in_one_sentence(cfs, tmp_path, content, says):
    cfs.save(tmp_path)
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(ValueError, match=f"{says}.*delete the folder and compute it again") as e:
        Counterfactuals.load(tmp_path)
    assert str(tmp_path / "result.json") in str(e.value) and "\n" not in str(e.value)


def test_a_truncated_tensors_file_is_named(cfs, tmp_path):
    cfs.save(tmp_path)
    (file,) = tmp_path.glob("tensors-*")
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"is damaged.*compute it again") as e:
        Counterfactuals.load(tmp_path)
    assert str(file) in str(e.value)
    file.write_bytes(b"")
    plain = json.loads((tmp_path / "result.json").read_text())
    plain["sha256"] = files.sha256(file)  # a consistent pair that holds nothing
    (tmp_path / "result.json").write_text(json.dumps(plain))
    with pytest.raises(ValueError, match="hold no whole result"):
        Counterfactuals.load(tmp_path)


@pytest.mark.parametrize("size", [0, -5, 2.5])
def test_a_senseless_batch_size_is_refused(net, size):
    x, target = make_queries(net, 2)
    with pytest.raises(ValueError, match=rf"batch_size: got {size}, expected a whole number >= 1"):
        explain_in_batches(make_explainer(), net, x, target, None, batch_size=size)


def test_select_and_frame(cfs):
    part = cfs.select([3, 0])
    assert part.ids.tolist() == [1, 4]
    assert torch.equal(part.counterfactual, cfs.counterfactual[[3, 0]])
    assert part.reason == (cfs.reason[3], cfs.reason[0])
    assert cfs.select(cfs.ids > 3).ids.tolist() == [4, 9, 7]
    frame = cfs.to_frame()
    assert frame.index.tolist() == cfs.ids.tolist()
    assert frame.loc[9, "score"] == cfs.score[2].item()
    columns = {"target", "source", "valid", "reached", "reason", "n_forward", "seconds"}
    assert columns <= set(frame.columns)


def test_joining(net):
    x, target = make_queries(net, 6)
    ids, e = torch.tensor([4, 2, 9, 1, 0, 7]), make_explainer(max_blocks=4)
    parts = [e(net, x[r], target[r], ids[r]) for r in (slice(0, 2), slice(2, 3), slice(3, 6))]
    a, b = parts[0] + parts[1] + parts[2], parts[2] + (parts[1] + parts[0])
    assert a.ids.tolist() == [0, 1, 2, 4, 7, 9]  # sorted by id, whatever the order of joining
    equal(a, b, without=())
    equal(a, Counterfactuals.join([parts[1], parts[2], parts[0]]), without=())
    assert torch.equal(a.query, x[[4, 3, 1, 0, 5, 2]])
    assert len({p.path.shape[1] for p in parts}) > 1  # paths of two lengths were padded
    for i in range(6):
        n = int(a.path_len[i])
        assert torch.equal(a.path[i, n - 1 :], a.counterfactual[i].expand_as(a.path[i, n - 1 :]))


def test_results_that_do_not_fit_are_not_joined(net, cfs):
    x, target = make_queries(net, 2)
    ids = torch.tensor([100, 101])
    for other, named in [
        (make_explainer(lam=0.9)(net, x, target, ids), r"settings.*\['lam'\]"),
        (make_explainer(seed=5)(net, x, target, ids), "settings.*seed"),
        (make_explainer()(make_net(seed=3), x, target, ids), "settings.*classifier"),
        (make_explainer()(net, x, target, torch.tensor([100, 9])), r"ids: \[9\] are in both"),
        (make_explainer()(net, x, target), "ids: results with ids=None"),
        (dataclasses.replace(make_explainer()(net, x, target, ids), mask=None), "mask: only one"),
    ]:
        with pytest.raises(ValueError, match=named):
            cfs + other
    assert cfs.__add__(1) is NotImplemented


def test_a_result_without_a_search_joins(net):
    x, target = make_queries(net, 4)
    with torch.no_grad():
        target[0] = net(x)[0].argmax()
    ids, e = torch.arange(4), make_explainer(tau=0.4)
    parts = [e(net, x[i : i + 1], target[i : i + 1], ids[i : i + 1]) for i in range(4)]
    assert parts[0].reason == (ALREADY,)
    assert parts[0].path is None
    joined, whole = parts[0] + parts[1] + parts[2] + parts[3], e(net, x, target, ids)
    rounded = ("counterfactual", "path", "score")  # equal up to rounding
    equal(joined, whole, without=("seconds", *rounded))
    for name in rounded:
        torch.testing.assert_close(getattr(joined, name), getattr(whole, name), rtol=0, atol=1e-9)


def test_describe_is_plain_json_and_tells_weights_apart(net):
    e = make_explainer()
    plain = core.describe({"explainer": e, "model": net, "list": (1, None, "a")})
    assert json.loads(json.dumps(plain)) == plain
    assert core.describe(net) == core.describe(make_net()) != core.describe(make_net(seed=1))
    assert core.describe(e) != core.describe(e.with_(prototypes=e.prototypes + 1e-12))
    with pytest.raises(TypeError, match="cannot be a setting"):
        core.describe(object())


def test_a_result_among_the_settings_is_hashed_once(cfs, monkeypatch):
    hashed = []
    monkeypatch.setattr(files, "sha256", lambda *parts: hashed.append(parts) or "0" * 64)
    again = dataclasses.replace(cfs)
    assert core.describe(again) == core.describe([again])[0] and hashed
    assert len(hashed) == sum(isinstance(v, torch.Tensor) for v in vars(again).values())


# ---------------------------------------------------------------- many items


def test_joined_shards_equal_one_run_bit_for_bit(net, tmp_path):
    x, target = make_queries(net, 11)
    ids, e = torch.arange(50, 61).flip(0), make_explainer(patience=3)
    whole = explain_in_batches(e, net, x, target, ids, batch_size=3)
    assert torch.equal(whole.ids, ids)  # the caller's order
    settings = {"batch_size": 3, "folder": tmp_path}
    for k in (2, 1, 3):
        assert explain_in_batches(e, net, x, target, ids, shard=(k, 3), **settings) is None
    joined = explain_in_batches(e, net, x, target, ids, **settings)
    equal(joined, whole)


def test_stored_batches_are_read_and_damaged_ones_computed_again(net, tmp_path, monkeypatch):
    x, target = make_queries(net, 7)
    ids, e, done = torch.arange(7), make_explainer(), []
    plain = type(e).search
    monkeypatch.setattr(
        type(e), "search", lambda self, f, x, *a: (done.append(len(x)), plain(self, f, x, *a))[1]
    )

    def run(e=e, x=x, net=net, **kw):
        done.clear()
        out = explain_in_batches(
            e, net, x, target, ids, **{"batch_size": 3, "folder": tmp_path} | kw
        )
        return out, sum(done)

    first, n = run()
    assert n == 7
    again, n = run()
    assert n == 0
    equal(first, again, without=())
    record = min(tmp_path.iterdir()) / "result.json"
    record.unlink()  # a batch that was not finished
    assert run()[1] == 3
    record.write_text("")  # a full disk
    with pytest.warns(
        UserWarning, match=r"is damaged and is computed again: .*result\.json"
    ) as told:
        assert run()[1] == 3
    assert "delete the folder" not in str(told[0].message)
    moved = x.clone()
    moved[6] = 0.5
    assert run(x=moved)[1] == 1  # only the batch of the changed row
    # Another setting, tau or other weights: no stored batch is reused.
    assert run(e.with_(lam=0.2))[1] == 7
    assert run(tau=0.8)[1] == 7
    assert run(net=make_net(seed=9))[1] > 0
    assert run()[1] == 0


def test_failures_are_kept_in_order_and_flagged(net):
    x, target = make_queries(net, 5)
    explain = make_explainer(steps=4, max_blocks=2)
    cfs = explain_in_batches(explain, net, x, target, torch.arange(5), batch_size=2)
    assert len(cfs) == 5
    assert 0 < cfs.reached.sum() < 5  # measured 2
    assert [bool(r) for r in cfs.reason] == [not r for r in cfs.reached.tolist()]


def test_shards_need_ids(net):
    x, target = make_queries(net, 4)
    with pytest.raises(ValueError, match="ids: got None"):
        explain_in_batches(make_explainer(), net, x, target, None, shard=(1, 2))
    with pytest.raises(ValueError, match="shard: got 3/2"):
        explain_in_batches(make_explainer(), net, x, target, torch.arange(4), shard=(3, 2))
    assert len(explain_in_batches(make_explainer(), net, x, target, None, batch_size=9)) == 4


def test_devices_seeds_headless(monkeypatch):
    assert core.pick_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert core.pick_device() == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert core.pick_device() == torch.device("cuda")
    core.seed_everything(3)
    a = (torch.rand(2), np.random.rand(2))  # noqa: NPY002
    core.seed_everything(3)
    assert torch.equal(torch.rand(2), a[0])
    assert (np.random.rand(2) == a[1]).all()  # noqa: NPY002
    monkeypatch.setenv("CF_HEADLESS", "1")
    assert core.headless()
    assert core.progress(range(3)).disable


def test_frozen_restores_modules_even_after_an_error(net):
    net[1].bias.requires_grad_(False)
    with pytest.raises(RuntimeError), core.frozen(net):
        assert not net.training
        assert not any(p.requires_grad for p in net.parameters())
        raise RuntimeError
    assert net.training
    assert [p.requires_grad for p in net.parameters()] == [True, False, True, True]


def test_the_hash_of_a_module_depends_on_its_values(net):
    other = make_net()
    assert files.module_sha256(net) == files.module_sha256(other)
    with torch.no_grad():
        other[1].weight[0, 0] += 1e-9
    assert files.module_sha256(net) != files.module_sha256(other)


def test_a_method_without_a_search_cannot_be_created():
    with pytest.raises(TypeError, match=r"abstract method '?search"):
        core.Explainer()
