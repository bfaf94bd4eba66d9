"""Tables 1, 2 and 5 of Progressive Exaggeration for several methods on the same queries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas as pd
from torch import Tensor, nn

from cf_utils.evaluation.progressions import consistency_table, difference_table


class Comparison(NamedTuple):
    """Tables of several methods.

    values: rows of `consistency_table`, one column per method, then n and note of the first one.
    differences: `difference_table` of the first method less each other one; empty without others.
    """

    values: pd.DataFrame
    differences: pd.DataFrame


def compare_methods(
    query: Tensor,
    progressions: Mapping[str, Tensor],
    classifier: nn.Module,
    real: Tensor,
    encoders: Mapping[str, nn.Module],
    unchanged: Mapping[str, Tensor],
    face: nn.Module | None = None,
    realism: nn.Module | None = None,
    seed: int = 0,
    **options: Any,
) -> Comparison:
    """Compare the first method with the others.

    Args:
        query: (B, C, H, W); progressions: per method, (B, K, C, H, W).
        real: real images (N, C, H, W) for FID.
        encoders: per method, its encoder, for lsc_method.
        unchanged: per method, its zero edit (B, C, H, W), for identity_error.
        face: identity encoder with a `threshold`, also the common encoder of lsc_common.
        realism: encoder of FID in the differences, the embedded AlexNet by default.
        seed: of the bootstrap.
        options: of `consistency_table`.
    """
    tables = {
        name: consistency_table(
            (query, images),
            classifier,
            real,
            own=encoders[name],
            common=face,
            face=face,
            unchanged=unchanged[name],
            **options,
        )
        for name, images in progressions.items()
    }
    first, *others = tables
    values = pd.DataFrame({name: table["value"] for name, table in tables.items()})
    values = values.join(tables[first][["n", "note"]])
    ours = query, progressions[first]
    differences = {
        name: difference_table(ours, (query, progressions[name]), real, face, realism, seed=seed)
        for name in others
    }
    joined = pd.concat(differences, names=[f"{first} less", "of"]) if others else pd.DataFrame()
    return Comparison(values, joined)
