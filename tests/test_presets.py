"""Presets: the settings equal those that the published results were computed with."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import pytest
from torch import nn

from cf_utils import core
from cf_utils.core import files
from cf_utils.explainers import presets

PARTS = {"gradual": (None,), "gradual_words": (None,), "lore": (None,), "abele": (None,)}
NAMED = {
    "gradual_words": {"vectors": None},
    "ace": {"prior": None},
    "dime": {"prior": None},
    "fastdime": {"prior": None},
}
REQUIRED = {
    "constraints": None,
    "block": (4, 4),
    "mad": None,
    "autoencoder": nn.Identity(),
    "model": None,
    "gan": None,
    "agent": None,
}

# SHA-256 of the JSON of all settings, defaults included, as they enter the keys of stored batches.
DESCRIPTIONS = {
    ("gradual", "mnist", None): "eda07db89584",
    ("gradual", "mnist", "recommended"): "cc3a4d807beb",
    ("gradual", "mnist", "early"): "ec24a8928679",
    ("gradual", "mnist", "official"): "aa84578f2fc6",
    ("wachter", "mnist", None): "bff62283799e",
    ("wachter", "mnist", "recommended"): "4888bfe48dcf",
    ("cem", "mnist", None): "7c908a2cf103",
    ("cem", "mnist", "recommended"): "dc58bb6aa2ce",
    ("abele", "mnist", None): "588b70d4ab11",
    ("gradual_words", "imdb", None): "bee9a7e977f3",
    ("gradual_words", "imdb", "recommended"): "572e5c336850",
    ("gradual", "table", None): "5eaa894fc94b",
    ("gradual", "table", "constrained"): "033ee645cf43",
    ("wachter", "table", None): "9002f9393979",
    ("cem", "table", None): "982334773c98",
    ("growing_spheres", "table", None): "636300da6596",
    ("growing_spheres", "table", "official"): "a4e814f844b7",
    ("lore", "table", None): "f9e24023c937",
    ("cem", "table", "autoencoder"): "5757fa8c2697",
    ("ace", "celeba", None): "895834601e48",
    ("ace", "celebahq", None): "e5ef7d22e831",
    ("ace", "bdd", None): "7b315bb10066",
    ("ace", "imagenet", None): "16f987dd0ae0",
    ("ace", "faces", None): "302d8fc48ce9",
    ("ace", "roads", None): "39f79e1cdcc2",
    ("dime", "celeba", None): "ad2023e61827",
    ("dime", "celebahq", None): "394c567fff27",
    ("dime", "bdd", None): "d17664851a7f",
    ("dime", "faces", None): "ba20ad4c3d4b",
    ("dime", "roads", None): "d17664851a7f",
    ("fastdime", "celeba", None): "fd458d93c707",
    ("fastdime", "celebahq", None): "fd458d93c707",
    ("fastdime", "bdd", None): "fd458d93c707",
    ("fastdime", "faces", None): "2685f10c1e95",
    ("fastdime", "roads", None): "eafa5ea600ca",
    ("xgem", "faces", None): "db45ab87f0b1",
    ("xgem", "radiographs", None): "db45ab87f0b1",
    ("xgem", "celeba", None): "db45ab87f0b1",
    ("xgem", "faces", "survey"): "99fd58d1ca0a",
    ("xgem", "radiographs", "survey"): "99fd58d1ca0a",
    ("xgem", "celeba", "survey"): "99fd58d1ca0a",
    ("latent_shift", "faces", None): "e68d816be182",
    ("latent_shift", "radiographs", None): "e68d816be182",
    ("latent_shift", "celeba", None): "e68d816be182",
    ("latent_shift", "lung_ct", None): "e68d816be182",
    ("latent_shift", "osic", None): "e68d816be182",
    ("diffexplainer", "lung_ct", None): "50ad58aa3666",
    ("diffexplainer", "osic", None): "20018af38ce8",
    ("exaggeration", "faces", None): "22a9b884d793",
    ("exaggeration", "radiographs", None): "22a9b884d793",
    ("exaggeration", "celeba", None): "22a9b884d793",
    ("exaggeration", "chexpert", None): "22a9b884d793",
    ("gradual", "images", None): "ec24a8928679",
    ("wachter", "images", None): "4888bfe48dcf",
    ("cem", "images", None): "d0a5c80d9e9b",
    ("cem", "images", "autoencoder"): "7d48c310bc28",
    ("ace", "images", None): "302d8fc48ce9",
    ("ace", "lung_ct", None): "302d8fc48ce9",
    ("dime", "images", None): "ba20ad4c3d4b",
    ("fastdime", "images", None): "2685f10c1e95",
}


def build(preset):
    """The preset's explainer with an empty part wherever the class needs one."""
    required = {k: REQUIRED[k] for k, v in preset.settings.items() if v is presets.REQUIRED}
    parts, named = PARTS.get(preset.method, ()), NAMED.get(preset.method, {})
    return preset.build(*parts, **named, **required)


@pytest.mark.parametrize("preset", presets.available(), ids=str)
def test_settings_are_those_of_the_published_results(preset):
    dataset = "table" if preset.dataset in presets.TABLES else preset.dataset
    described = json.dumps(core.describe(build(preset)), sort_keys=True)
    expected = DESCRIPTIONS[preset.method, dataset, preset.variant]
    assert hashlib.sha256(described.encode()).hexdigest()[:12] == expected


def test_every_published_preset_exists():
    found = {(p.method, p.dataset, p.variant) for p in presets.available()}
    assert DESCRIPTIONS.keys() <= found
    assert {p.method for p in presets.available()} == presets.CLASSES.keys()
    for table in presets.TABLES:
        assert {(m, table, v) for m, d, v in DESCRIPTIONS if d == "table"} <= found


@pytest.mark.parametrize("preset", presets.available(), ids=str)
def test_provenance_begins_with_its_kind_and_names_files_that_exist(preset):
    kind, _, detail = preset.provenance.partition(":")
    assert kind.startswith(("paper", "official script", "tuned", "by hand"))
    for word in detail.split():
        if word.startswith("results/"):
            assert (files.ROOT / word.rstrip(",;")).exists()
    assert kind != "tuned" or "results/tuning/" in detail


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("dime", "imagenet"), r"got \('imagenet', None\) for 'dime', expected one of .*'celeba'"),
        (("fastdime", "imagenet"), "dataset, variant: got"),
        (("ace", "faces", "recommended"), r"got \('faces', 'recommended'\) for 'ace'"),
        (("ace", "mnist"), "'imagenet', None"),
        (("fast_dime", "faces"), "method: got 'fast_dime', expected one of .*'fastdime'"),
    ],
)
def test_a_missing_combination_is_an_error_that_lists_what_exists(given, says):
    with pytest.raises(ValueError, match=says):
        presets.get(*given)


def test_changes_override_the_settings_and_leave_the_preset_as_it_is():
    changed = presets.get("ace", "faces", lam=0.5)
    assert changed.settings["lam"] == 0.5 and changed.settings["spacing"] == "33"
    explain = changed.build(prior=None, seed=3, spacing="25")
    assert (explain.lam, explain.spacing, explain.seed) == (0.5, "25", 3)
    assert presets.get("ace", "faces").settings["lam"] == 1e-6


def test_parts_without_a_default_must_be_given():
    with pytest.raises(ValueError, match=r"constraints: missing; .*build\(constraints=...\)"):
        presets.get("gradual", "uci_credit", "constrained").build(None)
    with pytest.raises(ValueError, match="mad: missing"):
        presets.get("wachter", "heloc").build()
    assert presets.get("wachter", "heloc", mad=None).build().mad is None


def test_looking_up_a_table_preset_imports_no_diffusion_model():
    code = (
        "import sys; from cf_utils.explainers import presets; presets.get('cem', 'heloc').build();"
        "print([m for m in ('diffusers', 'torchvision') if m in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=files.ROOT
    )
    assert out.stdout.strip() == "[]"
