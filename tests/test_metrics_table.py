"""COUT against a loop over pixels and closed forms; ACE's table against the metrics themselves."""

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
    """Decides for class 1, whatever the image."""

    def forward(self, x):
        return torch.tensor([[-1e4, 1e4]]).expand(len(x), 2)


class Share(nn.Module):
    """Logits (0, z), z from the mean of red; its batch norm must not be in training mode."""

    def __init__(self, scale=20.0, edge=0.5):
        super().__init__()
        self.norm = nn.BatchNorm1d(1, affine=False)
        self.scale, self.edge = scale, edge

    def forward(self, x):
        z = self.norm(self.scale * (x[:, 0].mean((1, 2)) - self.edge)[:, None])
        return torch.cat([torch.zeros_like(z), z], 1)


class First(nn.Module):
    """Decides for class 1 if the top left pixel is white."""

    def forward(self, x):
        z = 1e4 * (x[:, 0, 0, 0] - 0.5)
        return torch.stack([torch.zeros_like(z), z], 1)


def make_pairs(n=4, h=5, w=6, seed=0):
    """Queries, brighter counterfactuals, sources 0 and targets 1."""
    gen = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 3, h, w, generator=gen, dtype=torch.float64) * 0.5
    cf = (x + torch.rand(n, 3, h, w, generator=gen, dtype=torch.float64) * 0.5).clamp(0, 1)
    return x, cf, torch.zeros(n, dtype=torch.int64), torch.ones(n, dtype=torch.int64)


def cout_by_hand(net, x, cf, source, target, steps, official):
    """COUT of one item, pixel by pixel."""
    _, h, w = x.shape
    places = [(i, j) for i in range(h) for j in range(w)]
    places.sort(key=lambda p: -(cf[:, p[0], p[1]] - x[:, p[0], p[1]]).abs().sum().item())
    now = x.clone()

    def height():
        p = net(now[None]).softmax(1)[0]
        return (p[target] - p[source]).item()

    step, area, last = max(1, h * w // steps), 0.0, height()
    for start in range(0, h * w, step):
        batch = places[start : start + step]
        for i, j in batch:
            now[:, i, j] = cf[:, i, j]
        here = height()
        area += (last + here) / 2 * (step if official else len(batch)) / (h * w)
        last = here
    return area


@pytest.mark.parametrize(
    "steps,official", [(7, False), (7, True), (30, False), (50, False), (1, False)]
)
def test_cout_equals_a_loop_over_pixels(steps, official):
    x, cf, source, target = make_pairs()
    target[1], source[1] = 0, 1
    net = Share().double().eval()
    found = cout(net, x, cf, source, target, steps, official)
    rows = zip(x, cf, source.tolist(), target.tolist(), strict=True)
    by_hand = [cout_by_hand(net, *row, steps, official) for row in rows]
    expected = torch.tensor(by_hand, dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert found.std() > 0.1
    # neither the batch nor the classifier's mode matters, and the mode is restored
    item = x[2:3], cf[2:3], source[2:3], target[2:3]
    alone = cout(net.train(), *item, steps, official, batch_size=1)
    torch.testing.assert_close(alone, found[2:3], rtol=1e-9, atol=1e-12)
    assert net.training and net.norm.training


@pytest.mark.parametrize(
    "size,factor", [((128, 128), 1.018), ((256, 256), 1.019), ((256, 512), 1.020)]
)
def test_official_code_returns_up_to_two_percent_more(size, factor):
    x, one = torch.zeros(1, 3, *size), torch.tensor([1])
    x[0, 0, 0, 0] = 0.1
    best = cout(Always(), x * 0, x, 1 - one, one)
    assert best.item() == pytest.approx(1, abs=1e-12)
    official = cout(Always(), x * 0, x, 1 - one, one, official=True)
    assert official.item() == pytest.approx(factor, abs=5e-4)
    worst = cout(Always(), x * 0, x, one, 1 - one)
    assert worst.item() == pytest.approx(-1, abs=1e-12)


def test_cout_of_a_single_decisive_pixel_depends_on_its_rank():
    x, source, target = torch.zeros(1, 3, 10, 10), torch.tensor([0]), torch.tensor([1])
    first = torch.linspace(1, 0.01, 100).view(1, 1, 10, 10).expand(1, 3, 10, 10)
    for steps in (50, 100):
        found = cout(First(), x, first, source, target, steps=steps)
        assert found.item() == pytest.approx(1 - 1 / steps, abs=1e-12)
    last = torch.ones(1, 3, 10, 10)
    last[0, 1:, 0, 0] = 0  # the decisive pixel changes least, so it is replaced last
    found = cout(First(), x, last, source, target, steps=50)
    assert found.item() == pytest.approx(-(1 - 1 / 50), abs=1e-12)


def test_cout_of_equal_images_unknown_sources_and_invalid_input():
    x, cf, source, target = make_pairs()
    net = Share().double().eval()
    p = net(x).softmax(1)
    unchanged = cout(net, x, x, source, target)
    torch.testing.assert_close(unchanged, (p[:, 1] - p[:, 0]).detach(), rtol=1e-9, atol=1e-12)
    found = cout(net, x, cf, torch.tensor([0, -1, 0, 0]), target)
    assert found.isnan().tolist() == [False, True, False, False]
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


def make_results(n=12):
    """Counterfactuals of `Share`: the last one failed, the first query is decided as class 1."""
    x, cf, source, target = make_pairs(n, 8, 8)
    source[0], target[0] = 1, 0
    valid = torch.ones(n, dtype=torch.bool)
    valid[-1] = False
    return Counterfactuals(
        query=x.float(),
        counterfactual=cf.float(),
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
    """An encoder of two colours that claims to be official for the metrics `names`."""

    def __init__(self, *names):
        super().__init__()
        self.official_for, self.threshold = names, 0.99

    def forward(self, x):
        return x[:, :, ::4, ::4].flatten(1)[:, :2]


def make_oracle():
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    with torch.no_grad():
        net[1].weight.copy_(torch.randn(3, 192, generator=torch.Generator().manual_seed(0)))
        net[1].bias.copy_(-net[1].weight.sum(1) * 0.35)
    return net


MISSING_FILES = {
    "fid": "inception",
    "sfid": "inception",
    "fva": "vggface2",
    "fs": "vggface2",
    "mnac": "celeba_oracle",
    "cd": "celeba_oracle",
    "fid_embedded": "alexnet",
    "s3_embedded": "alexnet",
}


def test_columns_without_weights_name_the_missing_file(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    found = tables.ace_table(make_results(), Share(), oracle="celeba")
    assert list(found.index[:8]) == list(tables.FACES)
    for column, name in MISSING_FILES.items():
        weights = pretrained.FILES[name]
        assert found.value.isna()[column] and found.n[column] == 0
        assert f"{pretrained.FOLDER / weights.file} is missing" in found.note[column], column
        assert weights.how in found.note[column], column
    assert found.value["fr"] == pytest.approx(11 / 12) and found.n["fr"] == 12
    assert not found.value.isna()["cout"]
    scenes = tables.ace_table(make_results(), Share(), tables.SCENES, embedded=False)
    assert list(scenes.index) == list(tables.SCENES)
    assert pretrained.FILES["simsiam"].how in scenes.note["s3"]
    without_oracle = tables.ace_table(make_results(), Share(), ("mnac",), embedded=False)
    assert "no attribute oracle" in without_oracle.note["mnac"]


def test_notes_name_no_path_of_this_machine(monkeypatch):
    monkeypatch.setattr(pretrained, "FOLDER", tables.files.ROOT / "data" / "nowhere")
    note = tables.ace_table(make_results(), Share(), ("fid",), embedded=False).note["fid"]
    assert str(tables.files.ROOT) not in note and "data/nowhere/" in note


OFFICIAL = {"inception": ("fid", "kid", "sfid"), "vggface2": ("fva", "fs"), "simsiam": ("s3",)}
CORRELATIONS = torch.tensor([0.2, 1.0, -0.3], dtype=torch.float64)


def test_each_column_is_its_metric_on_its_set(monkeypatch):
    cfs, net, oracle = make_results(), Share().eval(), make_oracle()
    monkeypatch.setattr(encoders, "load", lambda name, device: Eye(*OFFICIAL[name]))
    labels = cfs.source.clone()
    labels[2] = 1  # the classifier gets this query wrong
    oracle.official_for = ("mnac", "cd")
    found = tables.ace_table(
        cfs,
        net,
        ("fid", "sfid", "fva", "fs", "mnac", "cd", "s3", "cout", "fr"),
        labels=labels,
        oracle=oracle,
        training=CORRELATIONS,
        attribute=1,
        judge=Always(),
        face=Eye(),
        embedded=False,
    )
    real, fake = (features.extract(Eye("fid", "sfid"), x) for x in (cfs.query, cfs.counterfactual))
    valid, right = cfs.select(cfs.valid), cfs.select(labels == cfs.source)
    blended = right.query, right.counterfactual, right.source, right.target
    before, after = (
        attributes.read_attributes(oracle, x) for x in (valid.query, valid.counterfactual)
    )
    person = identity.fva_fs(Eye("fva", "fs"), valid.query, valid.counterfactual)
    expected = {
        "fid": image.fid(real, fake.take(cfs.valid))["fid"],
        "sfid": image.sfid(real, fake, cfs.valid)["sfid"],
        "fva": person["fva"],
        "fs": person["fs"],
        "mnac": attributes.attributes_changed(before, after).double().mean().item(),
        "cd": attributes.correlation_difference(before, after, CORRELATIONS, 1),
        "s3": identity.s3(Eye("s3"), right.query, right.counterfactual)["s3"],
        "cout": cout(net, *blended).mean().item(),
        "fr": 11 / 12,
        "cout_judge": cout(Always(), *blended).mean().item(),
        "fva_embedded": person["fva"],
        "fs_embedded": person["fs"],
    }
    assert found.value.to_dict() == pytest.approx(expected)
    half = round(image.sfid(real, fake, cfs.valid)["n_fake"])
    assert found.n.to_dict() == dict.fromkeys(expected, 11) | {"sfid": half, "fr": 12}
    assert found.note["fid"].startswith("against 12 queries")
    assert "against the other half's 6 queries" in found.note["sfid"]
    assert "no change scores" in found.note["sfid"] and "random pairs" in found.note["fva"]
    assert found.note["cout"] == ""


def test_columns_say_when_labels_or_official_networks_are_missing():
    cfs, net, oracle = make_results(), Share().eval(), make_oracle()
    without_labels = tables.ace_table(cfs, net, ("cout",), embedded=False)
    assert without_labels.n["cout"] == 12 and "no labels" in without_labels.note["cout"]
    own = tables.ace_table(cfs, net, ("mnac", "cd"), oracle=oracle, embedded=False)
    valid = cfs.select(cfs.valid)
    before, after = (
        attributes.read_attributes(oracle, x) for x in (valid.query, valid.counterfactual)
    )
    mnac = attributes.attributes_changed(before, after).double().mean().item()
    assert own.value["mnac_embedded"] == pytest.approx(mnac)
    assert own.note["mnac"] == "see mnac_embedded" and "train split" in own.note["cd_embedded"]
    with pytest.raises(ValueError, match="columns: got"):
        tables.ace_table(cfs, net, ("lpips",))
    with pytest.raises(ValueError, match="labels: got"):
        tables.ace_table(cfs, net, labels=torch.zeros(3).long())


def test_cd_of_too_few_items_says_so():
    cfs, columns = make_results(), ("mnac", "cd")
    more = {
        "oracle": make_oracle(),
        "training": CORRELATIONS,
        "attribute": 1,
        "embedded": False,
    }
    none = tables.ace_table(cfs.select([11, 11]), Share().eval(), columns, **more)
    assert none.value.isna().all() and "no counterfactual is valid" in none.note["cd"]
    one = tables.ace_table(cfs.select([1]), Share().eval(), columns, **more)
    assert one.value["mnac_embedded"] >= 0 and one.value.isna()["cd_embedded"]
    assert "needs two valid" in one.note["cd_embedded"]
    with pytest.raises(ValueError, match="before: got 1 items, expected at least 2"):
        attributes.correlation_difference(*torch.zeros(2, 1, 3).bool(), CORRELATIONS, 1)


def test_items_that_were_the_target_already_are_left_out():
    cfs, net, columns = make_results(), Share().eval(), ("cout", "fr")
    source = cfs.source.index_copy(0, torch.tensor([1, 2]), cfs.target[1:3])
    already = dataclasses.replace(cfs, source=source)
    found = tables.ace_table(already, net, columns, labels=already.source, embedded=False)
    rest = cfs.select([0, *range(3, 12)])
    expected = tables.ace_table(rest, net, columns, labels=rest.source, embedded=False)
    assert found.value.to_dict() == pytest.approx(expected.value.to_dict())
    assert found.n["fr"] == 10 and found.value["fr"] == pytest.approx(0.9)
    assert found.note["fr"] == "2 were the target already" and expected.note["fr"] == ""


def test_columns_with_alexnet_note_bias_and_too_few_valid_items():
    alexnet()
    cfs = make_results()
    found = tables.ace_table(cfs, Share().eval(), ("fr",))
    assert set(found.index[1:]) == {"fid_embedded", "sfid_embedded", "s3_embedded"}
    assert not found.value.isna().any()
    assert "biased: under 512 images" in found.note["fid_embedded"]
    few = tables.ace_table(cfs.select([0, 11, 11]), Share().eval(), ("fr",))
    assert few.value.isna()["fid_embedded"] and "2 or more" in few.note["fid_embedded"]
