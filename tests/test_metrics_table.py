"""COUT against a loop over pixels and closed forms; the table of ACE's columns against the metrics themselves."""

import dataclasses

import pytest
import torch
from torch import nn

from cf_utils.core import Counterfactuals
from cf_utils.evaluation import tables
from cf_utils.evaluation.metrics import attributes, features, identity, image
from cf_utils.evaluation.metrics.transition import cout
from cf_utils.models import encoders, pretrained
from tests.test_weights import alexnet


class Always(nn.Module):
    """Class 1, whatever it sees."""

    def forward(self, x):
        return torch.tensor([[-1e4, 1e4]]).expand(len(x), 2)


class Share(nn.Module):
    """Smooth in the image: logits (0, z), z from the mean of red, with a batch norm that must not be in training mode."""

    def __init__(self, scale=20.0, edge=0.5):
        super().__init__()
        self.norm = nn.BatchNorm1d(1, affine=False)
        self.scale, self.edge = scale, edge

    def forward(self, x):
        z = self.norm(self.scale * (x[:, 0].mean((1, 2)) - self.edge)[:, None])
        return torch.cat([torch.zeros_like(z), z], 1)


def pair(n=4, h=5, w=6, seed=0):
    gen = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 3, h, w, generator=gen, dtype=torch.float64) * 0.5
    cf = (x + torch.rand(n, 3, h, w, generator=gen, dtype=torch.float64) * 0.5).clamp(0, 1)
    return x, cf, torch.zeros(n, dtype=torch.int64), torch.ones(n, dtype=torch.int64)


def cout_by_hand(net, x, cf, source, target, steps, official):
    """One item, one pixel after the other."""
    _, h, w = x.shape
    size = [
        (-(cf[:, i, j] - x[:, i, j]).abs().sum().item(), i * w + j)
        for i in range(h)
        for j in range(w)
    ]
    order, shown, now = [k for _, k in sorted(size)], 0, x.clone()

    def level():
        p = net(now[None]).softmax(1)[0]
        return (p[target] - p[source]).item()

    step, area, last = max(1, h * w // steps), 0.0, level()
    while shown < h * w:
        batch = order[shown : shown + step]
        for k in batch:
            now[:, k // w, k % w] = cf[:, k // w, k % w]
        shown += step
        here = level()
        area += (last + here) / 2 * (step if official else len(batch)) / (h * w)
        last = here
    return area


@pytest.mark.parametrize(
    "steps,official", [(7, False), (7, True), (30, False), (50, False), (1, False)]
)
def test_cout_pixel_after_pixel(steps, official):
    x, cf, source, target = pair()
    target[1], source[1] = 0, 1
    net = Share().double().eval()
    got = cout(net, x, cf, source, target, steps, official)
    by_hand = [
        cout_by_hand(net, *row, steps, official)
        for row in zip(x, cf, source.tolist(), target.tolist(), strict=True)
    ]
    torch.testing.assert_close(
        got, torch.tensor(by_hand, dtype=torch.float64), rtol=1e-9, atol=1e-12
    )
    assert got.std() > 0.1
    one = cout(
        net.train(), x[2:3], cf[2:3], source[2:3], target[2:3], steps, official, batch_size=1
    )
    torch.testing.assert_close(
        one, got[2:3], rtol=1e-9, atol=1e-12
    )  # neither its batch nor its mode matters
    assert net.training


@pytest.mark.parametrize(
    "size,factor", [((128, 128), 1.018), ((256, 256), 1.019), ((256, 512), 1.020)]
)
def test_the_official_code_gives_up_to_two_percent_more(size, factor):
    x, one = torch.zeros(1, 3, *size), torch.tensor([1])
    x[0, 0, 0, 0] = 0.1
    assert cout(Always(), x * 0, x, 1 - one, one).item() == pytest.approx(1, abs=1e-12)
    assert cout(Always(), x * 0, x, 1 - one, one, official=True).item() == pytest.approx(
        factor, abs=5e-4
    )
    assert cout(Always(), x * 0, x, one, 1 - one).item() == pytest.approx(-1, abs=1e-12)


class First(nn.Module):
    """Class 1 as soon as the top left pixel is white."""

    def forward(self, x):
        z = 1e4 * (x[:, 0, 0, 0] - 0.5)
        return torch.stack([torch.zeros_like(z), z], 1)


def test_reference_points_of_cout():
    x, source, target = torch.zeros(1, 3, 10, 10), torch.tensor([0]), torch.tensor([1])
    cf = (
        torch.linspace(1, 0.01, 100).view(1, 1, 10, 10).expand(1, 3, 10, 10)
    )  # the deciding pixel changes most
    assert cout(First(), x, cf, source, target, steps=50).item() == pytest.approx(
        1 - 1 / 50, abs=1e-12
    )
    assert cout(First(), x, cf, source, target, steps=100).item() == pytest.approx(
        1 - 1 / 100, abs=1e-12
    )
    late = torch.ones(1, 3, 10, 10)
    late[0, 1:, 0, 0] = 0  # it changes least: put in at the very end
    assert cout(First(), x, late, source, target, steps=50).item() == pytest.approx(
        -(1 - 1 / 50), abs=1e-12
    )
    x, cf, source, target = pair()
    net = Share().double().eval()
    still = net(x).softmax(1)
    torch.testing.assert_close(
        cout(net, x, x, source, target), (still[:, 1] - still[:, 0]).detach(), rtol=1e-9, atol=1e-12
    )
    lost = torch.tensor([0, -1, 0, 0])
    got = cout(net, x, cf, lost, target)
    assert got.isnan().tolist() == [False, True, False, False]
    for bad in (
        (x * 3, cf, source, target),
        (x, cf[:2], source, target),
        (x, cf, source[:2], target),
    ):
        with pytest.raises(ValueError, match="expected"):
            cout(net, *bad)
    with pytest.raises(ValueError, match="steps: got 0"):
        cout(net, x, cf, source, target, steps=0)


# ---------------------------------------------------------------- the table


def results(n=12):
    """Counterfactuals of `Share`: the last fails, the first query is decided 1 already."""
    x, cf, source, target = pair(n, 8, 8)
    x, cf = x.float(), cf.float()
    source[0], target[0] = 1, 0
    valid = torch.ones(n, dtype=torch.bool)
    valid[-1] = False
    return Counterfactuals(
        query=x,
        counterfactual=cf,
        target=target,
        source=source,
        score=torch.full((n,), 0.8),
        valid=valid,
        reached=valid,
        reason=("",) * n,
        ids=torch.arange(n),
        settings={},
        seed=0,
        seconds=torch.zeros(n),
        n_forward=torch.ones(n).long(),
        n_backward=torch.ones(n).long(),
    )


class Eye(nn.Module):
    """An encoder of a few colours that says it is whatever `names` are."""

    def __init__(self, *names):
        super().__init__()
        self.official_for, self.threshold = names, 0.99

    def forward(self, x):
        return x[:, :, ::4, ::4].flatten(1)[:, :2]


def oracle():
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    with torch.no_grad():
        net[1].weight.copy_(torch.randn(3, 192, generator=torch.Generator().manual_seed(0)))
        net[1].bias.copy_(-net[1].weight.sum(1) * 0.35)
    return net


def test_without_weights_each_official_column_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    got = tables.ace_table(results(), Share(), oracle="celeba")
    assert list(got.index[:8]) == list(tables.FACES)
    for column, file in (
        ("fid", "inception"),
        ("sfid", "inception"),
        ("fva", "vggface2"),
        ("fs", "vggface2"),
        ("mnac", "celeba_oracle"),
        ("cd", "celeba_oracle"),
        ("fid_embedded", "alexnet"),
        ("s3_embedded", "alexnet"),
    ):
        note = got.note[column]
        assert got.value.isna()[column] and got.n[column] == 0
        assert (
            f"{pretrained.FOLDER / pretrained.FILES[file].file} is missing" in note
            and pretrained.FILES[file].how in note
        ), column
    monkeypatch.setattr(pretrained, "FOLDER", tables.files.ROOT / "data" / "nowhere")
    said = tables.ace_table(results(), Share(), ("fid",), embedded=False).note["fid"]
    assert (
        str(tables.files.ROOT) not in said and "data/nowhere/" in said
    )  # published tables name no machine
    assert (
        got.value["fr"] == pytest.approx(11 / 12)
        and got.n["fr"] == 12
        and not got.value.isna()["cout"]
    )
    scenes = tables.ace_table(results(), Share(), tables.SCENES, embedded=False)
    assert (
        list(scenes.index) == list(tables.SCENES)
        and pretrained.FILES["simsiam"].how in scenes.note["s3"]
    )
    assert (
        "no attribute oracle"
        in tables.ace_table(results(), Share(), ("mnac",), embedded=False).note["mnac"]
    )


def test_with_weights_each_column_is_the_metric_on_its_set(monkeypatch):
    cfs, net, o = results(), Share().eval(), oracle()
    names = {"inception": ("fid", "kid", "sfid"), "vggface2": ("fva", "fs"), "simsiam": ("s3",)}
    monkeypatch.setattr(encoders, "load", lambda name, device: Eye(*names[name]))
    labels = cfs.source.clone()
    labels[2] = 1  # one query that the classifier gets wrong
    training = torch.tensor([0.2, 1.0, -0.3], dtype=torch.float64)
    columns = ("fid", "sfid", "fva", "fs", "mnac", "cd", "s3", "cout", "fr")
    o.official_for = ("mnac", "cd")
    got = tables.ace_table(
        cfs,
        net,
        columns,
        labels=labels,
        oracle=o,
        training=training,
        attribute=1,
        judge=Always(),
        face=Eye(),
        embedded=False,
    )
    real, fake = (features.extract(Eye("fid", "sfid"), x) for x in (cfs.query, cfs.counterfactual))
    valid, right = cfs.select(cfs.valid), cfs.select(labels == cfs.source)
    before, after = (attributes.read_attributes(o, x) for x in (valid.query, valid.counterfactual))
    person = identity.fva_fs(Eye("fva", "fs"), valid.query, valid.counterfactual)
    expected = {
        "fid": image.fid(real, fake.take(cfs.valid))["fid"],
        "sfid": image.sfid(real, fake, cfs.valid)["sfid"],
        "fva": person["fva"],
        "fs": person["fs"],
        "mnac": attributes.attributes_changed(before, after).double().mean().item(),
        "cd": attributes.correlation_difference(before, after, training, 1),
        "s3": identity.s3(Eye("s3"), right.query, right.counterfactual)["s3"],
        "cout": cout(net, right.query, right.counterfactual, right.source, right.target)
        .mean()
        .item(),
        "fr": 11 / 12,
        "cout_judge": cout(Always(), right.query, right.counterfactual, right.source, right.target)
        .mean()
        .item(),
        "fva_embedded": person["fva"],
        "fs_embedded": person["fs"],
    }
    assert got.value.to_dict() == pytest.approx(expected)
    half = round(image.sfid(real, fake, cfs.valid)["n_fake"])
    assert got.n.to_dict() == dict.fromkeys(expected, 11) | {"sfid": half, "fr": 12}
    assert (
        got.note["fid"].startswith("against 12 queries")
        and "against the other half's 6 queries" in got.note["sfid"]
    )
    assert (
        "no change scores" in got.note["sfid"]
        and "random pairs" in got.note["fva"]
        and got.note["cout"] == ""
    )
    everyone = tables.ace_table(cfs, net, ("cout",), embedded=False)
    assert everyone.n["cout"] == 12 and "no labels" in everyone.note["cout"]
    del o.official_for
    other = tables.ace_table(cfs, net, ("mnac", "cd"), oracle=o, embedded=False)
    assert (
        other.value["mnac_embedded"] == pytest.approx(expected["mnac"])
        and other.note["mnac"] == "see mnac_embedded"
    )
    assert "train split" in other.note["cd_embedded"]
    with pytest.raises(ValueError, match="columns: got"):
        tables.ace_table(cfs, net, ("lpips",))
    with pytest.raises(ValueError, match="labels: got"):
        tables.ace_table(cfs, net, labels=labels[:3])


def test_what_needs_spread_says_so_and_what_was_the_target_already_counts_nowhere():
    cfs, o, training = results(), oracle(), torch.tensor([0.2, 1.0, -0.3], dtype=torch.float64)
    more = {"oracle": o, "training": training, "attribute": 1, "embedded": False}
    none = tables.ace_table(cfs.select([11, 11]), Share().eval(), ("mnac", "cd"), **more)
    assert none.value.isna().all() and "no counterfactual is valid" in none.note["cd"]
    one = tables.ace_table(cfs.select([1]), Share().eval(), ("mnac", "cd"), **more)
    assert (
        one.value["mnac_embedded"] >= 0
        and one.value.isna()["cd_embedded"]
        and "needs two valid" in one.note["cd_embedded"]
    )
    with pytest.raises(ValueError, match="before: got 1 items, expected at least 2"):
        attributes.correlation_difference(*torch.zeros(2, 1, 3).bool(), training, 1)
    there = dataclasses.replace(
        cfs, source=cfs.source.index_copy(0, torch.tensor([1, 2]), cfs.target[1:3])
    )
    asked = tables.ace_table(
        there, Share().eval(), ("cout", "fr"), labels=there.source, embedded=False
    )
    rest = cfs.select([0, *range(3, 12)])
    expected = tables.ace_table(
        rest, Share().eval(), ("cout", "fr"), labels=rest.source, embedded=False
    )
    assert asked.value.to_dict() == pytest.approx(expected.value.to_dict())
    assert asked.n["fr"] == 10 and asked.value["fr"] == pytest.approx(0.9)
    assert asked.note["fr"] == "2 were the target already" and expected.note["fr"] == ""


def test_alexnets_columns_and_too_few_valid():
    alexnet()
    cfs = results()
    got = tables.ace_table(cfs, Share().eval(), ("fr",))
    assert {"fid_embedded", "sfid_embedded", "s3_embedded"} == set(
        got.index[1:]
    ) and not got.value.isna().any()
    assert "biased: under 512 images" in got.note["fid_embedded"]
    few = tables.ace_table(cfs.select([0, 11, 11]), Share().eval(), ("fr",))
    assert few.value.isna()["fid_embedded"] and "2 or more" in few.note["fid_embedded"]
