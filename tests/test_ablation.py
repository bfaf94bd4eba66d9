"""The ablation of progressive exaggeration: its settings, its record, and one tiny training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cf_utils import worlds
from cf_utils.core import files
from cf_utils.models import checkpoints
from cf_utils.models.classifiers import OneOutput, predict
from cf_utils.training import ablation
from cf_utils.training.exaggeration import Weights


def test_the_ten_settings_of_the_papers_table():
    settings = ablation.list_settings()
    assert len(settings) == 10 and settings["paper"] == Weights(1, 1, 100)
    triples = {(w.cgan, w.f, w.rec) for w in settings.values()}
    assert triples == {
        (1, 1, 100),
        *((c, 1, 100) for c in (0, 10, 100)),
        *((1, f, 100) for f in (0, 10, 100)),
        *((1, 1, r) for r in (0, 1, 10)),
    }


def test_halving_averages_and_enlarging_keeps_constant_images():
    x = torch.tensor([[10, 20], [30, 40]], dtype=torch.uint8)[None, None]
    assert ablation.halve(x).tolist() == [[[[25]]]]
    model = ablation.Enlarged(nn.Identity())
    y = model(torch.full((1, 3, 4, 4), 0.3))
    assert y.shape == (1, 3, 8, 8)
    torch.testing.assert_close(y, torch.full_like(y, 0.3))


def test_a_record_is_written_per_training_and_never_mixed(tmp_path, monkeypatch):
    monkeypatch.setattr(ablation, "PER_EPOCH", 32)
    out, folder = tmp_path / "record.json", tmp_path / "states"
    size = {"epochs": 1, "n": 400, "n_test": 40, "folder": folder, "out": out}
    record = ablation.run(["paper", "rec=0"], [0], **size)
    assert [row["name"] for row in record["rows"]] == ["paper", "rec=0"]
    for row in record["rows"]:
        assert row["n"] == 40 and len(row["actual"]) == 10
        assert 0 <= row["fva_embedded"] <= 1 and -1 <= row["rank_correlation"] <= 1
    assert files.read_json(out) == record
    monkeypatch.setattr(ablation, "train_setting", None)  # nothing is trained again
    assert ablation.run(["paper", "rec=0"], [0], **size) == record
    with pytest.raises(ValueError, match="holds"):
        ablation.run(["paper"], [0], **(size | {"epochs": 2}))
    with pytest.raises(ValueError, match="names: got"):
        ablation.run(["lambda"], [0], **size)


def test_a_brief_training_without_reconstruction_lets_the_copy_forget_the_person():
    gan, _ = checkpoints.load("faces_smile_gan", kind="gan")
    f = OneOutput(checkpoints.load("faces_smile_causal").model).eval()
    before = {k: v.clone() for k, v in gan.state_dict().items()}
    x = worlds.get("faces").render(worlds.get("faces").sample(16, "test"))
    own = gan.bin_of(predict(f, x).softmax(1)[:, 1])
    errors = {}
    for rec in (100.0, 0.0):
        new = ablation.train_briefly(gan, f, Weights(rec=rec), steps=4)
        assert new is not gan and not new.training
        with torch.no_grad():
            errors[rec] = (new(x, own) - x).abs().mean().item()
    assert errors[0.0] > 1.3 * errors[100.0]
    assert all(torch.equal(v, before[k]) for k, v in gan.state_dict().items())
