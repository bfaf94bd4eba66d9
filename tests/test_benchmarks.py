"""Each benchmark runs from the folder that `make bench` calls it in and writes every figure that it judges."""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys

import pytest
import torch

from cf_utils.core.files import ROOT

FIGURES = {
    "ace": {
        "overhead",
        "speedup_batch8",
        "max_abs_difference",
        "checkpoint_max_abs_difference",
        "speedup_early",
        "flip_rate",
        "flip_rate_early",
        "peak_mib",
    },
    "gradual": {
        "speedup_batch64",
        "max_abs_difference",
        "speedup_early",
        "overhead",
        "peak_mib",
        "float32_same_blocks",
    },
    "layout": {"ratio_mnist_cnn", "ratio_faces_ddpm_forward", "max_abs_difference"},
    "tabular": {
        "speedup_batch",
        "speedup_spheres",
        "same_batch",
        "limit_gradual",
        "rows_per_second_lore",
    },
    "words": {
        "speedup_replacement",
        "same_words",
        "sentences_per_second_recommended",
        "sentences_per_second_loop",
    },
}


def test_every_benchmark_is_tried():
    assert {p.stem for p in (ROOT / "benchmarks").glob("[a-z]*.py")} == FIGURES.keys()


@pytest.mark.parametrize("name", sorted(FIGURES))
def test_it_runs_and_writes_its_figures(name, tmp_path):
    out = tmp_path / "out.json"
    command = [sys.executable, f"benchmarks/{name}.py", "--quick", "--out", out]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads(out.read_text())
    assert record["quick"] and record["data"] == "embedded" and FIGURES[name] <= record.keys()
    assert all(math.isfinite(record[k]) and record[k] >= 0 for k in FIGURES[name])
    if name == "ace":
        assert (
            record["max_abs_difference"] <= 1e-9 and record["checkpoint_max_abs_difference"] <= 1e-4
        )
        assert record["unet_passes_an_image"] == 3 * 5 + 5  # the attack's, the refinement's
        assert 1 < record["peak_mib_checkpoint"] < 0.8 * record["peak_mib"]
    if name == "gradual":
        assert record["max_abs_difference"] <= 1e-9 and record["passes_overhead"] > 2 * 20
    if name == "layout":
        assert record["max_abs_difference"] <= 1e-4
    if name == "tabular":
        assert 0 < record["limit_gradual"] < 1.1 and record["same_spheres_query"] == 1
    if name == "words":
        assert record["same_words"] == 1


def test_the_bare_passes_are_those_of_the_call(monkeypatch):
    """The limit beside an overhead: as many passes, of the same modules and sizes, with a way back where the call had one."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    ace, side = importlib.import_module("ace"), importlib.import_module("_side")
    explain, model, x, target, _ = ace.build_small(2)
    passes = side.Passes(explain.with_(iterations=2), model, x, target, generator=explain.prior)
    made, again = [tuple(p) for p in passes.made], []

    def hook(module, given, out):
        again.append((module, len(out), out.requires_grad))

    for module in (model, explain.prior):
        module.register_forward_hook(hook)
    passes.bare()
    assert (
        again == made
        and sum(m is explain.prior for m, _, _ in made) == 2 * explain.steps + explain.steps
    )
    assert {back for m, _, back in made if m is explain.prior} == {
        True,
        False,
    }  # the attack's, the refinement's
    assert torch.is_grad_enabled()
