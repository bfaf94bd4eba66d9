"""Preflight and explanation of one's own classifier and data, on folders as a user brings them."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from cf_utils import cli
from cf_utils.core import Counterfactuals
from cf_utils.harness import own_case, own_methods, own_report, own_run, preflight
from cf_utils.harness.own_case import Options
from cf_utils.models import own
from cf_utils.models.classifiers import predict
from cf_utils.viz import plots

HERE = "tests.test_own_run:"
NAMES = ("dark", "light", "middle")  # classes of the images, by their mean


class ByMean(nn.Module):
    """Three classes by the mean of a grey image 12 x 12: below 1/3, above 2/3, between."""

    def __init__(self, order=(0, 1, 2), shift=0.0, scale=1.0):
        super().__init__()
        self.order, self.shift, self.scale = list(order), shift, scale
        self.size = nn.Parameter(torch.tensor(60.0))

    def forward(self, x):
        assert x.shape[1:] == (1, 12, 12)
        mean = (x.mean((1, 2, 3)) - self.shift) * self.scale
        logits = torch.stack([1 / 3 - mean, mean - 2 / 3, (mean - 0.5).abs() * 0], 1)
        return self.size * logits[:, self.order]


def by_mean():
    return ByMean()


def reordered():
    return ByMean((2, 0, 1))


def normalised():
    """It expects (x - 0.5) / 0.5."""
    return ByMean(shift=-1.0, scale=0.5)


def softmaxed():
    return nn.Sequential(ByMean(), nn.Softmax(1))


class Rounded(ByMean):
    def forward(self, x):
        return super().forward((x * 50).round() / 50)


class MeanOverBatch(ByMean):
    def forward(self, x):
        return super().forward(x - 0.5 * x.mean(0, keepdim=True) + 0.2)


class Random(ByMean):
    def forward(self, x):
        return super().forward(x) + torch.rand(len(x), 1)


class Paired(ByMean):
    def forward(self, x):
        return super().forward(x), x


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """24 grey images of 12 x 12 in three folders, named by their mean."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name, mean in zip(NAMES, (50, 205, 128), strict=True):
        (root / name).mkdir()
        for i in range(8):
            pixels = rng.normal(mean + rng.uniform(-20, 20), 10, (12, 12)).clip(0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def csv(tmp_path_factory):
    """60 rows whose class is whether income minus debt exceeds 20,000."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"id": range(60), "age": rng.integers(20, 70, 60)})
    frame["income"], frame["debt"] = (
        rng.uniform(2e4, 9e4, 60).round(),
        rng.uniform(0, 5e4, 60).round(),
    )
    frame["paid"] = np.where(frame["income"] - frame["debt"] > 2e4, "yes", "no")
    path = tmp_path_factory.mktemp("table") / "clients.csv"
    frame.to_csv(path, index=False)
    return path


class Payer:
    """Looks like an estimator of scikit-learn; takes age, income and debt in their units."""

    feature_names_in_ = np.array(["age", "income", "debt"])

    def predict_proba(self, frame):
        p = 1 / (1 + np.exp(-(frame["income"] - frame["debt"] - 2e4).to_numpy() / 4e3))
        return np.stack([1 - p, p], 1)


def payer():
    return Payer()


def findings(**options):
    return {f.subject: f for f in preflight.inspect(own_case.load(Options(**options)))}


def fixes(**options):
    return {f.subject: f.text for f in findings(**options).values() if f.level == "fix"}


# ---------------------------------------------------------------- preflight


def test_a_classifier_that_fits_has_nothing_to_fix(folder):
    found = findings(model=HERE + "by_mean", images=str(folder), n=24)
    assert {f.level for f in found.values()} == {"ok"}
    assert "accuracy 1.00 on 24" in found["range"].text
    assert list(found) == [
        "data",
        "shape",
        "outputs",
        "batch",
        "classes",
        "decisions",
        "range",
        "gradient",
    ]


@pytest.mark.parametrize(
    ("options", "subject", "text"),
    [
        ({"channels": 3}, "shape", "it accepts (B, 1, 12, 12): pass --channels 1"),
        (
            {"model": HERE + "softmaxed"},
            "outputs",
            "in a softmax: pass --output probabilities",
        ),
        ({"output": "probabilities"}, "outputs", "leave [0, 1]: pass --output logits"),
        ({"model": HERE + "Paired"}, "shape", "its output is a tuple, not one tensor"),
        ({"model": HERE + "MeanOverBatch"}, "batch", "depends on its batch"),
        ({"model": HERE + "Random"}, "batch", "two equal calls differ"),
        ({"model": HERE + "Rounded"}, "gradient", "its gradient is zero"),
        ({"model": HERE + "normalised"}, "range", "1.00 with --mean 0.5 --std 0.5: pass it"),
        ({"model": HERE + "reordered"}, "classes", "come as in --classes middle,dark,light"),
        ({"method": "ace"}, "prior", "needs a diffusion model"),
        ({"method": "ace", "prior": "faces_ddpm"}, "prior", "pass --size 64 --channels 3"),
    ],
)
def test_each_misfit_is_named_with_its_option(folder, options, subject, text):
    found = fixes(**({"model": HERE + "by_mean", "images": str(folder), "n": 24} | options))
    assert list(found) == [subject] and text in found[subject]


def test_another_size_is_found(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(preflight, "SIDES", (10, 12, 14))
    found = fixes(model=HERE + "by_mean", images=str(folder), size=(16, 16))
    assert "it accepts (B, 1, 12, 12): pass --size 12" in found["shape"]


def test_the_proposed_options_repair(folder):
    common = {"images": str(folder), "n": 24}
    for change in (
        {"model": HERE + "softmaxed", "output": "probabilities"},
        {"model": HERE + "normalised", "mean": (0.5,), "std": (0.5,)},
        {"model": HERE + "reordered", "classes": ("middle", "dark", "light")},
    ):
        assert fixes(**common, **change) == {}


def test_without_labels_the_range_is_a_note(folder):
    found = findings(model=HERE + "by_mean", images=str(folder / "dark"))
    assert found["range"].level == found["decisions"].level == "note"
    assert "all 8 queries are '0'" in found["decisions"].text


def test_a_table_in_units_and_scaled(csv):
    common = {"model": HERE + "payer", "csv": str(csv), "label": "paid", "drop": ("id",)}
    assert fixes(**common) == {}
    assert "1.00 with --units raw: pass it" in fixes(**common, units="scaled")["range"]
    assert "use --method growing_spheres or lore" in fixes(**common, method="wachter")["gradient"]
    assert "compare --drop and --label" in fixes(**common | {"drop": ("id", "age")})["shape"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "--images, --csv: expected exactly one"),
        ({"images": "a", "csv": "b"}, "--images, --csv: expected exactly one"),
        ({"csv": "missing.csv"}, "missing.csv is missing"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        own_run.prepare(Options(model=HERE + "by_mean", **options))


def test_wrong_names_are_refused_before_any_work(folder, csv):
    for options, message in (
        ({"method": "growing_spheres"}, "method: got 'growing_spheres'"),
        ({"settings": {"stepps": 3}}, "setting: got 'stepps'"),
        ({"target": "blue"}, "target: got 'blue'"),
        ({"classes": ("dark", "light")}, "--classes: .* expected 'middle' among them"),
    ):
        with pytest.raises(ValueError, match=message):
            own_run.prepare(Options(model=HERE + "by_mean", images=str(folder), **options))
    with pytest.raises(ValueError, match="--drop: got 'ids'"):
        own_run.prepare(Options(model=HERE + "payer", csv=str(csv), drop=("ids",)))


# ---------------------------------------------------------------- methods and targets


def test_other_is_the_second_most_probable_class(folder):
    case = own_case.load(Options(model=HERE + "by_mean", images=str(folder), n=24))
    ranked = predict(case.model, case.x).argsort(1, descending=True)
    assert torch.equal(case.find_target(), ranked[:, 1])
    named = own_case.load(
        Options(model=HERE + "by_mean", images=str(folder), target="middle", n=24)
    )
    assert named.find_target().tolist() == [2] * 24


@pytest.mark.parametrize("method", own_methods.METHODS["images"][:3])
def test_methods_for_images_find_counterfactuals(folder, method):
    settings = {"gradual": {"steps": 30}, "wachter": {}, "cem": {"tries": 3}}[method]
    options = Options(
        model=HERE + "by_mean", images=str(folder), method=method, n=3, settings=settings, tau=0.6
    )
    _, _, plan = own_run.prepare(options)
    cfs = plan.explain(plan.case.model, plan.case.x, plan.target)
    assert cfs.valid.all() and cfs.settings["tau"] == 0.6


@pytest.mark.parametrize("method", ["growing_spheres", "lore"])
def test_tables_keep_what_was_stated(csv, tmp_path, method):
    options = Options(
        model=HERE + "payer", csv=str(csv), label="paid", drop=("id",), method=method, n=12,
        immutable=("debt",), up=("income",), target="yes",
    )  # fmt: skip
    _, cfs = own_run.explain(options, tmp_path)
    rows = pd.read_csv(csv)
    results = pd.read_csv(tmp_path / "results.csv", index_col="id")
    poor = rows.loc[results.index, "paid"] == "no"
    assert poor.any() and results.loc[poor, "reached"].all() and cfs.reached[poor.to_numpy()].all()
    changes = pd.read_csv(tmp_path / "changes.csv")
    assert len(changes) and "debt" not in set(changes["feature"])
    income = changes[changes["feature"] == "income"].set_index("id")
    assert (income["after"] > income["before"]).all()
    assert (income["after"] % 1 == 0).all()  # whole in every row of the file
    np.testing.assert_allclose(income["before"], rows.loc[income.index, "income"])
    paid = income["after"] - rows.loc[income.index, "debt"] > 2e4 - 1
    assert paid.all()


# ---------------------------------------------------------------- outputs, resume, estimate


def explain_images(folder, out, **changes):
    options = {"model": HERE + "by_mean", "images": str(folder), "n": 10, "batch": 4} | changes
    return own_run.explain(Options(**options), out)


def test_all_outputs_are_written_and_hold_the_result(folder, tmp_path):
    found, cfs = explain_images(folder, tmp_path)
    assert all(f.level == "ok" for f in found)
    saved = Counterfactuals.load(tmp_path / "counterfactuals")
    assert torch.equal(saved.counterfactual, cfs.counterfactual)
    results = pd.read_csv(tmp_path / "results.csv", index_col="id")
    assert results["decided"].tolist() == [i.split("/")[0] for i in results.index]
    assert results["score"].to_numpy() == pytest.approx(cfs.score.numpy(), abs=1e-6)
    pixels = np.asarray(Image.open(tmp_path / results["image"].iloc[3]), dtype=float) / 255
    np.testing.assert_allclose(pixels, cfs.counterfactual[3, 0], atol=1 / 255)
    page = (tmp_path / "report.html").read_text()
    assert f"{int(cfs.reached.sum())} of 10" in page and page.count("<img") == 2
    assert all(len(alt) > 20 for alt in re.findall(r'alt="([^"]*)"', page))
    assert not re.findall(r'(?:src|href)="(?!data:)', page)  # no request to another host
    assert (tmp_path / "gallery-2.png").exists() and not list(tmp_path.rglob("*.part-*"))
    assert json.loads((tmp_path / "run.json").read_text())["options"]["n"] == 10


def test_a_second_call_resumes_whole_batches(folder, tmp_path, monkeypatch):
    calls, whole = [], own.OwnModel.forward

    def forward(self, x):
        calls.append(len(x))
        if len(calls) > stop:
            raise KeyboardInterrupt
        return whole(self, x)

    stop = 10**9
    monkeypatch.setattr(own.OwnModel, "forward", forward)
    expected = explain_images(folder, tmp_path / "whole")[1]
    stop, n = int(0.8 * len(calls)), len(calls)
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        explain_images(folder, tmp_path / "killed")
    stored = len(list((tmp_path / "killed" / "batches").iterdir()))
    assert 1 <= stored <= 2
    stop = 10**9
    calls.clear()
    resumed = explain_images(folder, tmp_path / "killed")[1]
    assert torch.equal(resumed.counterfactual, expected.counterfactual)
    assert len(calls) < 0.9 * n


class Clock:
    """A clock that only a pass of the classifier moves: 20 ms, and 1 ms per item."""

    def __init__(self):
        self.now = 0.0

    def time(self):
        return self.now

    perf_counter = time

    def move(self, module, arguments):
        self.now += 0.02 + 0.001 * len(arguments[0])


@pytest.mark.parametrize(("method", "batch"), [("wachter", 4), ("cem", 2)])
def test_the_estimate_is_within_30_percent(folder, tmp_path, monkeypatch, method, batch):
    clock = Clock()
    monkeypatch.setattr(own_run, "time", clock)
    monkeypatch.setattr(own_run, "write", lambda *_: None)
    handle = nn.modules.module.register_module_forward_pre_hook(
        lambda module, arguments: clock.move(module, arguments) if type(module) is ByMean else None
    )
    steps = {"steps": 10, ("tries" if method == "cem" else "rounds"): 3}
    options = Options(
        model=HERE + "by_mean", images=str(folder), n=24, batch=batch, method=method,
        settings=steps,
    )  # fmt: skip
    try:
        _, _, plan = own_run.prepare(options)
        minutes, timed = own_run.estimate(plan, tmp_path / "pilot", clock.now, seconds=2)
        clock.now = 0.0
        own_run.explain(options, tmp_path / "out")
    finally:
        handle.remove()
    assert timed < plan.n_batches
    assert 60 * minutes == pytest.approx(clock.now, rel=0.3)


def test_the_first_batch_and_a_busy_moment_do_not_stand_for_the_others():
    assert own_run.extrapolate([7.0], 3) == 21  # nothing else is known
    assert own_run.extrapolate([5.0, 1.0], 4) == 5 + 1 + 2
    assert own_run.extrapolate([5.0, 1.0, 3.0, 2.0], 4) == 11  # all were timed
    assert own_run.extrapolate([5.0, 1.0, 30.0, 2.0, 3.0, 1.0], 8) == 42 + 2 * (1 + 2 + 3) / 3


def test_the_features_of_a_table_are_counted(csv):
    case = own_case.load(Options(model=HERE + "payer", csv=str(csv), label="paid", drop=("id",)))
    figure = own_report.draw_features(case.table, make_changes())
    labels = [t.get_text() for t in figure.axes[0].get_yticklabels()]
    widths = [bar.get_width() for bar in figure.axes[0].patches]
    assert labels == ["income", "debt", "age"]
    assert widths == pytest.approx([0.75, 0.25, 0, -0.25, -0.5, 0])


def make_changes():
    """Four items: income rises in three and falls in one; debt rises once and falls twice."""
    change = torch.tensor([[0, 1, 1.0], [0, 1, -1], [0, 1, -1], [0, -1, 0], [5, 5, 5]])
    none = torch.zeros(5, dtype=torch.int64)
    valid = torch.tensor([True] * 4 + [False])
    return Counterfactuals(
        query=torch.zeros(5, 3), counterfactual=change, target=none, source=none,
        score=torch.ones(5), valid=valid, reached=valid, reason=("",) * 5, ids=torch.arange(5),
        settings={}, seed=0, seconds=torch.zeros(5), n_forward=none, n_backward=none,
    )  # fmt: skip


def test_the_gallery_names_short_classes_and_numbers_long_ones():
    none = torch.zeros(2, dtype=torch.int64)
    cfs = Counterfactuals(
        query=torch.zeros(2, 1, 8, 8), counterfactual=torch.ones(2, 1, 8, 8), target=none + 1,
        source=none, score=torch.ones(2), valid=none == 0, reached=none == 0, reason=("",) * 2,
        ids=torch.arange(2), settings={}, seed=0, seconds=torch.zeros(2), n_forward=none,
        n_backward=none,
    )  # fmt: skip
    title = lambda *names: plots.grid(cfs, names=names).axes[0].get_title()  # noqa: E731
    assert (title(), title("cat", "dog")) == ("0 → 1", "cat\n→ dog")
    assert title("cat", "a dog with a long name") == title("cat") == "0 → 1"


# ---------------------------------------------------------------- command line


def test_the_commands_check_and_explain(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(own_run, "START_UP", 1.0)
    weights = tmp_path / "w.safetensors"
    save_file(ByMean().state_dict(), weights)
    common = ["--model", HERE + "by_mean", "--weights", str(weights), "--images", str(folder)]
    assert cli.main(["check", *common, "-n", "4"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"ok +time +about .* for 4 items", shown) and "ok   memory" in shown
    assert cli.main(["check", *common, "--channels", "3"]) == 1
    assert "pass --channels 1" in capsys.readouterr().out
    out = ["--out", str(tmp_path / "out"), "-n", "3", "-s", "rounds=4", "--tau", "0.7"]
    assert cli.main(["explain", *common, *out]) == 0
    shown = capsys.readouterr().out
    assert "3 of 3 explained" in shown and "report.html" in shown
    settings = Counterfactuals.load(tmp_path / "out" / "counterfactuals").settings
    assert (settings["rounds"], settings["tau"]) == (4, 0.7)
    assert cli.main(["explain", *common, *out, "--size", "x"]) == 2
    assert "--size: got 'x'" in capsys.readouterr().err
    assert cli.main(["explain", *common, *out, "--channels", "3"]) == 1
